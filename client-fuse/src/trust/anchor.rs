//! Where trust begins: a root that was given, or the first one that a store ever showed.

use std::path::Path;
use std::sync::Arc;

use image_format::digest::Digest;
use tough::schema::{Root, Signed};

use super::state::FirstUse;
use super::transport::File;
use super::{Trust, TrustError, blocking};
use crate::config::BaseUrl;
use crate::fetch::Source;
use crate::fetch::fetcher::Fetcher;

/// Which root to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// This one.
    Given(Vec<u8>),
    /// The one that was trusted when the store was first used; if this is the first time, whatever
    /// the store shows.
    FirstUse,
    /// The one that was trusted when the store was first used.
    Remembered,
}

/// The root to begin with.
#[derive(Debug)]
pub(super) struct First {
    /// The document.
    pub(super) root: Vec<u8>,
    /// Where to remember it, if it was never used before and turns out well.
    pub(super) first_use: Option<FirstUse>,
}

/// Finds the root to begin with.
pub(super) async fn find<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    base: &BaseUrl,
    trust: &Trust,
) -> Result<First, TrustError> {
    let fetch = match &trust.anchor {
        Anchor::Given(root) => {
            return Ok(First {
                root: root.clone(),
                first_use: None,
            });
        }
        Anchor::FirstUse => true,
        Anchor::Remembered => false,
    };
    let nobody = || TrustError::Nobody {
        base: base.to_string(),
    };
    let Some(directory) = trust.state.as_deref() else {
        return Err(if fetch {
            TrustError::NoMemory
        } else {
            nobody()
        });
    };
    if let Some(root) = recall(directory, base).await? {
        return Ok(First {
            root,
            first_use: None,
        });
    }
    if !fetch {
        return Err(nobody());
    }
    let root = fetch_first(fetcher).await?;
    tracing::warn!(
        store = %base,
        root_sha256 = %Digest::of(&root),
        "trusting this root because it is the first one seen: compare its digest with the publisher's"
    );
    Ok(First {
        root,
        first_use: Some(FirstUse::of(directory, base)),
    })
}

async fn recall(directory: &Path, base: &BaseUrl) -> Result<Option<Vec<u8>>, TrustError> {
    let first_use = FirstUse::of(directory, base);
    blocking(move || first_use.recall()).await
}

/// Asks a store for the root that it began with.
async fn fetch_first<S: Source>(fetcher: &Arc<Fetcher<S>>) -> Result<Vec<u8>, TrustError> {
    let file = File::Root(1);
    let bytes = fetcher
        .whole(&file.fixed(), &fetcher.stats().fetched.metadata_bytes)
        .await
        .map_err(|source| TrustError::Fetch { file, source })?;
    let root: Signed<Root> = serde_json::from_slice(&bytes).map_err(TrustError::Root)?;
    if root.signed.version.get() != 1 {
        return Err(TrustError::Mismatch { file });
    }
    Ok(bytes.into())
}
