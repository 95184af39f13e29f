//! The upload router: takes objects and targets by their digests, and metadata that chains to a root.
//!
//! Opt-in, and only for whoever has a token to publish. It holds no key: what it makes current was
//! signed elsewhere and is checked by [`image_store::trust::accept`] as if the publisher were hostile.
//! An object is believed for its digest; one that nothing refers to is dead weight until
//! garbage is collected.
//!
//! ```text
//! protocol ─► receive ─► staging ─► accept
//!   pure       socket      disk     image-store
//! ```

pub(crate) mod protocol;
pub(crate) mod receive;
mod staging;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, Request};
use hyper::body::Body as HttpBody;
use image_store::Store;
use image_store::trust::accept::{self, AcceptError, PROPOSAL_BYTES_MAX, Proposal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config::{Limits, UploadRoot};
use crate::reload::{ReloadError, read_bounded};
use protocol::{Asked, Item, Question, Reply, UploadError};
use staging::Placed;

/// Why uploads cannot be taken.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum UploadStartError {
    #[error(transparent)]
    Store(#[from] image_store::StoreError),
    #[error("cannot use `{}`", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Root(#[from] ReloadError),
    #[error("`{}` is no root of a store", .path.display())]
    NotARoot {
        path: PathBuf,
        source: image_store::trust::TrustError,
    },
}

/// Takes uploads into one store.
#[derive(Debug)]
pub(crate) struct Uploads {
    store: Store,
    root: PathBuf,
    staging: PathBuf,
    trusted: Option<Bytes>,
    files: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    commits: Arc<Semaphore>,
    stall_timeout: Duration,
}

impl Uploads {
    /// Opens the store, or makes it, and cleans up after an earlier server.
    ///
    /// # Errors
    /// The directory is no store and cannot become one, or the root cannot be used.
    pub(crate) async fn open(
        root: &Path,
        trusted: &UploadRoot,
        limits: &Limits,
    ) -> Result<Self, UploadStartError> {
        let store = Store::open_or_create(root).await?;
        let directory = |path: &Path| {
            let path = path.to_owned();
            move |source| UploadStartError::Directory { path, source }
        };
        // As the back end does: a link that is turned over later does not split the store.
        let root = root.canonicalize().map_err(directory(root))?;
        let staging = root.join(staging::DIRECTORY);
        staging::prepare(&staging).map_err(directory(&staging))?;
        let trusted = match trusted {
            UploadRoot::OfStore => None,
            UploadRoot::File(path) => {
                let bytes = read_bounded(path)?;
                accept::check_root(&bytes).map_err(|source| UploadStartError::NotARoot {
                    path: path.clone(),
                    source,
                })?;
                Some(bytes.into())
            }
        };
        if let Some(trusted) = &trusted
            && accept::end_first_commit(&store, trusted).await?
        {
            tracing::warn!(
                "the first commit to this store had not come to its end: its root is there now"
            );
        }
        Ok(Self {
            store,
            root,
            staging,
            trusted,
            files: Arc::new(Semaphore::new(Limits::UPLOADS_MAX)),
            questions: Arc::new(Semaphore::new(Limits::UPLOAD_DOCUMENTS_MAX)),
            commits: Arc::new(Semaphore::new(Limits::UPLOAD_DOCUMENTS_MAX)),
            stall_timeout: limits.upload_stall_timeout,
        })
    }

    /// Answers a request that was let in.
    ///
    /// # Errors
    /// The request is refused; nothing that was current has changed.
    pub(crate) async fn answer<B>(
        &self,
        asked: Asked,
        request: Request<B>,
    ) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let (head, mut body) = request.into_parts();
        let answer = match asked {
            Asked::Put(item) => self.put(&item, &head.headers, &mut body).await,
            Asked::Missing => self.missing(&mut body).await,
            Asked::Commit => self.commit(&mut body).await,
            Asked::Other(allowed) => Err(UploadError::Method(allowed)),
        };
        discard(&head.headers, body);
        answer
    }

    async fn put<B>(
        &self,
        item: &Item,
        headers: &HeaderMap,
        body: &mut B,
    ) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let length = headers.get(CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let length = length.ok_or(UploadError::NoLength)?;
        if length > item.bytes_max {
            let max = item.bytes_max;
            return Err(UploadError::TooLong { max });
        }
        let target = self.root.join(item.path.relative());
        if self.is_there(target.clone(), length).await? {
            return Ok(Reply::Existed);
        }
        let _turn = turn(&self.files).await?;
        let staged = receive::file(body, length, &self.staging, self.stall_timeout).await?;
        let digest = item.digest;
        let placed = spawn_blocking(move || staged.place(&digest, &target)).await??;
        Ok(match placed {
            Placed::New => Reply::Stored,
            Placed::Existed => Reply::Existed,
        })
    }

    /// Tells whether a file is there, and makes sure that it stays: whoever wrote it may not have
    /// come that far.
    async fn is_there(&self, target: PathBuf, length: u64) -> Result<bool, UploadError> {
        let look = move || match staging::has_length(&target, length) {
            true => staging::sync_directory(target.parent().unwrap_or(&target)).map(|()| true),
            false => Ok(false),
        };
        spawn_blocking(look).await?.map_err(UploadError::Write)
    }

    async fn missing<B>(&self, body: &mut B) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let _turn = turn(&self.questions).await?;
        let max = protocol::QUESTION_BYTES_MAX;
        let json = receive::document(body, max, self.stall_timeout).await?;
        let question = Question::decode(&json)?;
        let root = self.root.clone();
        let look = move || {
            // Those that are there a commit makes last.
            let lacks = |path: &Path| !root.join(path).is_file();
            let Question { objects, targets } = question;
            let objects = objects.into_iter();
            let objects = objects.filter(|digest| lacks(digest.object_path().as_ref()));
            let targets = targets.map(|targets| {
                let targets = targets.into_iter();
                let targets = targets.filter(|(_, path)| lacks(&path.relative()));
                targets.map(|(name, _)| name).collect()
            });
            Reply::Missing {
                objects: objects.collect(),
                targets,
            }
        };
        Ok(spawn_blocking(look).await?)
    }

    async fn commit<B>(&self, body: &mut B) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let turn = turn(&self.commits).await?;
        let json = receive::document(body, PROPOSAL_BYTES_MAX as u64, self.stall_timeout).await?;
        let proposal = Proposal::decode(&json).map_err(AcceptError::from)?;
        drop(json);
        let (store, trusted) = (self.store.clone(), self.trusted.clone());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        // A task of its own: it comes to its end whether or not the client waits for it.
        let accepting = tokio::spawn(async move {
            let _turn = turn;
            accept::accept(&store, trusted.as_deref(), &proposal, now).await
        });
        Ok(Reply::Accepted(accepting.await??))
    }
}

/// Waits for the turn of a body.
pub(crate) async fn turn(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, UploadError> {
    let turn = timeout(Limits::ADMISSION_TIMEOUT, Arc::clone(turns).acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or(UploadError::Busy)
}

/// Takes and drops what is left of a body, unless its client waits to be asked for it.
pub(crate) fn discard<B>(headers: &HeaderMap, body: B)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    if !headers.contains_key(EXPECT) {
        receive::discard(body);
    }
}
