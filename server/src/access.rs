//! Who may come in: the table of tokens as it stands in its file now, asked for each request.

use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;

use crate::credentials;
use crate::reload::{ReloadError, Reloaded};
use crate::tokens::{Grant, Tokens};

/// The table of tokens, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    tokens: Option<Arc<Reloaded<Tokens>>>,
}

impl Access {
    /// Reads the table. Blocks.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, ReloadError> {
        let open = |path: &Path| {
            let paths = vec![path.to_owned()];
            Reloaded::open(paths, |bytes| {
                let bytes: Vec<u8> = bytes.concat();
                Ok(Tokens::parse(&bytes)?)
            })
        };
        let tokens = path.map(open).transpose()?.map(Arc::new);
        Ok(Self { tokens })
    }

    /// Finds what the token of a request allows; nothing where it brings none that is known.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Option<Grant> {
        let tokens = self.tokens.clone()?;
        let token = credentials::token(headers)?;
        let find = move || tokens.current().find(&token).cloned();
        tokio::task::spawn_blocking(find).await.ok().flatten()
    }

    /// Reads the table again. Blocks.
    pub(crate) fn reload(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.reload();
        }
    }
}
