//! A store on a server, to publish to.
//!
//! [`RemoteStore`] is a [`Store`] over a work directory ([`work`]) and the server ([`http`]): what a
//! command writes to it is staged. [`RemoteStore::commit`] then brings over what the server lacks
//! ([`upload`]) and makes it visible on top of the state that it was signed for; if another
//! publisher was faster, the change is made and signed again on what that one left.
//!
//! - [`address`]: where the server is, and the token that opens it
//! - [`protocol`]: the documents of the upload protocol
//! - [`error`], [`retry`]: pure; what a status means, and when to try again

pub mod address;
pub mod error;
pub mod http;
pub mod protocol;
pub mod retry;
pub mod upload;
pub mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use image_format::{ImageRef, ObjectRef};
use image_store::trust::TIMESTAMP_PATH;
use image_store::trust::sign::Established;
use image_store::{KeyRing, Signer, Staged, Store};
use reqwest::Certificate;

use crate::keys::KeyArgs;
use crate::ui::Ui;
use address::{Privacy, StoreUrl, Token};
use error::HttpError;
use http::{Http, HttpConfig};
use retry::RetryPolicy;
use upload::{Landed, UploadError, Uploaded};
use work::WorkDirectory;

/// How often a change is signed again because another publisher was faster.
const COMMIT_TRIES_MAX: u32 = 20;

/// The longest wait before that: commits of others take less than a second.
const CONFLICT_WAIT_MAX: Duration = Duration::from_secs(2);

/// Which server to publish to, and how.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Publishing to a server")]
pub struct RemoteArgs {
    /// Publish to the store that this circular-server serves, instead of a directory
    #[arg(long, value_name = "URL")]
    pub to: Option<StoreUrl>,
    /// File that holds the token for the server
    #[arg(long, value_name = "FILE", env = TOKEN_FILE_VARIABLE)]
    pub token_file: Option<PathBuf>,
    /// Trust the server by these certificates (PEM), not by those of the system
    #[arg(long, value_name = "FILE", requires = "to")]
    pub ca: Option<PathBuf>,
    /// Directory for what is not published yet, kept for another try [default: ~/.cache/circular/publish/SERVER]
    #[arg(long, value_name = "DIR", requires = "to")]
    pub work: Option<PathBuf>,
}

/// Says where the token is, whether or not it is needed.
const TOKEN_FILE_VARIABLE: &str = "CIRCULAR_TOKEN_FILE";

/// A store on a server, open for one publisher.
#[derive(Debug)]
pub struct RemoteStore {
    http: Http,
    store: Store,
    staged: Arc<Staged>,
    work: WorkDirectory,
}

impl RemoteArgs {
    /// Opens the store on the server, if one was named.
    ///
    /// # Errors
    /// The server does not answer, wants another token, or has no store.
    pub async fn open(&self, ui: &Ui) -> anyhow::Result<Option<RemoteStore>> {
        let Some(url) = &self.to else {
            if self.token_file.is_some() && std::env::var_os(TOKEN_FILE_VARIABLE).is_none() {
                bail!(
                    "a token is for a server: say which with --to URL, or leave out --token-file"
                );
            }
            return Ok(None);
        };
        let token = match &self.token_file {
            None => None,
            Some(path) => Some(read_token(path, url, ui)?),
        };
        let config = HttpConfig {
            url: url.clone(),
            token,
            authorities: match &self.ca {
                None => Vec::new(),
                Some(path) => read_authorities(path)?,
            },
            retry: RetryPolicy::DEFAULT,
        };
        RemoteStore::open(config, self.work.as_deref())
            .await
            .map(Some)
    }
}

fn read_token(path: &Path, url: &StoreUrl, ui: &Ui) -> anyhow::Result<Token> {
    let (token, privacy) = Token::from_file(path)?;
    if privacy == Privacy::Open {
        ui.warn(&format!(
            "others can read the token in `{}`: chmod 600 it",
            path.display()
        ));
    }
    if url.is_in_clear() {
        ui.warn(&format!(
            "the token goes to {url} in clear: whoever listens can publish there; use https"
        ));
    }
    Ok(token)
}

fn read_authorities(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if certificates.is_empty() {
        bail!("`{}` holds no certificate in PEM form", path.display());
    }
    Ok(certificates)
}

impl RemoteStore {
    /// Opens the store on a server, with a work directory of this publisher's own.
    ///
    /// # Errors
    /// The server does not answer, or has no store; the directory cannot be used.
    pub async fn open(config: HttpConfig, work: Option<&Path>) -> anyhow::Result<Self> {
        let url = config.url.clone();
        let work = WorkDirectory::open(work, &url)?;
        let http = Http::new(config)?;
        let store = Store::open_staged(work.path(), Arc::new(http.clone()))
            .await
            .with_context(|| format!("cannot open the store at {url}"))?;
        let staged = store.staged().context("a staged store")?.clone();
        // What an earlier publish signed and did not commit was signed for a state that is gone.
        staged.drop_metadata().await?;
        Ok(Self {
            http,
            store,
            staged,
            work,
        })
    }

    /// Returns the store; what is written to it is staged.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the address of the server.
    pub fn url(&self) -> &StoreUrl {
        self.http.url()
    }

    /// Opens the keys of the store. One that nobody published to yet has none of its own: its
    /// server was started with the root of keys that are there.
    ///
    /// # Errors
    /// The keys are not where they should be.
    pub async fn keys(&self, keys: &KeyArgs) -> anyhow::Result<KeyRing> {
        if let Some(ring) = keys.open(&self.store).await? {
            return Ok(ring);
        }
        if self.http.file_length(TIMESTAMP_PATH).await?.is_some() {
            bail!(
                "the store at {} lost its root: start its server again with --upload-root, or put the root.json of its keys there as metadata/1.root.json",
                self.url()
            );
        }
        keys.open_made().with_context(|| {
            format!(
                "nobody published to {} yet. Make keys with `circular init --root-only --keys DIR`, \
                 start the server with `--upload-root DIR/root.json`, and publish with `--keys DIR`",
                self.url()
            )
        })
    }

    /// Makes a change, brings it to the server, and makes it visible there.
    ///
    /// `change` stages it and signs it for the state that the store shows. It runs again if another
    /// publisher was faster.
    ///
    /// # Errors
    /// The change fails, or the server does not take it; then nothing became visible.
    pub async fn commit<T>(
        &self,
        signer: &Signer<'_>,
        ui: &Ui,
        change: impl AsyncFn(&Store) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Uploaded)> {
        let mut uploaded = Uploaded::default();
        let mut tries = 1;
        loop {
            self.establish(signer).await?;
            let value = change(&self.store).await?;
            let outcome = self.upload(ui, &mut uploaded).await;
            match outcome {
                Ok(()) => {
                    self.clean_up(signer).await;
                    return Ok((value, uploaded));
                }
                Err(UploadError::Http(HttpError::Conflict { .. })) if tries < COMMIT_TRIES_MAX => {}
                Err(error @ UploadError::Http(HttpError::Refused { .. })) => {
                    // A sweep may have taken what was there still when it was looked for: then the change
                    // fails with that now, and can be made again as a whole.
                    self.staged.drop_metadata().await?;
                    change(&self.store).await?;
                    return Err(error).with_context(|| format!("cannot publish to {}", self.url()));
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot publish to {}", self.url()));
                }
            }
            tracing::debug!(tries, "another publisher was faster; signing again");
            self.staged.drop_metadata().await?;
            let patience = RetryPolicy {
                tries: COMMIT_TRIES_MAX,
                last: CONFLICT_WAIT_MAX,
                ..self.http.retry()
            };
            let wait = patience.wait(tries, retry::random()).unwrap_or_default();
            tokio::time::sleep(wait).await;
            tries += 1;
        }
    }

    /// As [`upload::mend_boot_files`].
    ///
    /// # Errors
    /// As there.
    pub async fn mend_boot_files(
        &self,
        reference: &ImageRef,
        manifest: &ObjectRef,
    ) -> Result<Option<Landed>, UploadError> {
        upload::mend_boot_files(&self.http, &self.staged, reference, manifest).await
    }

    /// Signs the first, empty metadata of a store that nobody published to, and makes it visible: a
    /// server takes only metadata that follows what it has.
    async fn establish(&self, signer: &Signer<'_>) -> anyhow::Result<()> {
        if let Established::Before(_) = signer.establish(&self.store).await? {
            return Ok(());
        }
        let outcome = upload::commit(&self.http, &self.staged).await;
        self.staged.drop_metadata().await?;
        match outcome {
            Ok(_) => Ok(()),
            // Another publisher with these keys was faster.
            Err(UploadError::Http(HttpError::Conflict { .. }))
                if self.store.root_if_signed().await?.is_some() =>
            {
                Ok(())
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot begin the store at {}", self.url()))
            }
        }
    }

    async fn upload(&self, ui: &Ui, so_far: &mut Uploaded) -> Result<(), UploadError> {
        let work = self.work.path();
        let files = upload::plan(&self.http, &self.staged, work).await?;
        let bar = ui.progress("uploading", upload::total(&files));
        let sent = upload::send(&self.http, work, &files, &bar).await;
        bar.finish_and_clear();
        let sent = sent?;
        so_far.files += sent.files;
        so_far.bytes += sent.bytes;
        so_far.committed = upload::commit(&self.http, &self.staged).await?;
        Ok(())
    }

    /// Makes room: what is published is on the server. Only the chunk indexes are kept, which the
    /// next publish would fetch again.
    async fn clean_up(&self, signer: &Signer<'_>) {
        let attempt = async {
            // It landed, and is remembered from now on.
            let current = signer.current(&self.store).await?;
            let names = self.store.names_of(&current).await?;
            self.staged.drop_metadata().await?;
            self.staged.drop_objects(&names.chunk_indexes).await
        };
        if let Err(error) = attempt.await {
            let error = anyhow::Error::from(error);
            tracing::warn!(
                error = format!("{error:#}"),
                "the work directory keeps what is published"
            );
        }
    }
}
