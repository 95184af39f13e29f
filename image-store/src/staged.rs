//! A store that lies on a server, with what is about to be published there.
//!
//! Whatever is written goes to a work directory and nowhere else; whatever is read is looked for
//! there first, then asked for at the server. So a publish runs as it does beside its store, up to
//! the last signature, and an uploader then brings over what the server lacks. The work directory
//! survives a publish that broke off: what it holds need not be made again.
//!
//! Bytes from the server are believed as little as those of a directory: readers of the store hold
//! them against digests and signatures. The one thing taken on trust is the answer which objects
//! the server has, and the server checks that itself before it makes anything visible.

mod overlay;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Formatter};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use image_format::digest::{Hasher, ObjectMismatch};
use image_format::marker::{MARKER_BYTES_MAX, MARKER_PATH, Marker};
use image_format::{Digest, DigestMismatch, ObjectRef};
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};

use crate::store::{self, Bound, Store, StoreError};
use crate::trust::{METADATA_DIRECTORY, TARGETS_DIRECTORY};

/// Why a server did not answer a question. Whoever talks to it says why.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RemoteError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// A file, or part of one, as it comes from the server.
pub struct RemoteFile {
    /// The length of the whole file.
    pub length: u64,
    /// Which of its bytes come.
    pub range: Range<u64>,
    /// They; exactly as many as `range` says, or an error.
    pub bytes: BoxStream<'static, Result<Bytes, RemoteError>>,
}

impl Debug for RemoteFile {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { length, range, .. } = self;
        write!(formatter, "RemoteFile({range:?} of {length})")
    }
}

/// What the server of a store can be asked. Tries again, where that helps, are its own affair.
pub trait Remote: Debug + Send + Sync + 'static {
    /// Reads a file of the store, or part of it; `None` if there is none.
    fn open<'a>(
        &'a self,
        path: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<Option<RemoteFile>, RemoteError>>;

    /// Returns the length of a file; `None` if there is none.
    fn length<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Option<u64>, RemoteError>>;

    /// Returns those of these objects that the server lacks.
    fn missing<'a>(
        &'a self,
        objects: &'a [Digest],
    ) -> BoxFuture<'a, Result<Vec<Digest>, RemoteError>>;
}

/// The back end of a store on a server: a work directory over what the server has.
#[derive(Debug)]
pub struct Staged {
    work: Arc<dyn ObjectStore>,
    remote: Arc<dyn Remote>,
    /// The store as far as the work directory holds it.
    held: Store,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// What was written, or found written, since the store was opened.
    written: BTreeSet<String>,
    /// The `timestamp.json` that the server had when it was last read.
    timestamp: Option<Digest>,
}

impl Store {
    /// Opens the store that `remote` serves. What is written to it goes to the directory `work`,
    /// which no other publish uses at the same time.
    ///
    /// # Errors
    /// The server has no store, or one of a newer format; `work` cannot be used.
    pub async fn open_staged(work: &Path, remote: Arc<dyn Remote>) -> Result<Self, StoreError> {
        let local = LocalFileSystem::new_with_prefix(work)
            .map_err(|source| store::access(&work.to_string_lossy(), source))?;
        // What survives a power cut is whole, and need not be made again.
        let backend: Arc<dyn ObjectStore> = Arc::new(local.with_fsync(true));
        let held = Self {
            backend: backend.clone(),
            root: work.to_owned(),
            marker: Marker::DEFAULT,
            staged: None,
        };
        let staged = Arc::new(Staged {
            work: backend,
            remote,
            held,
            seen: Mutex::default(),
        });
        let bytes = store::fetch(&*staged, MARKER_PATH, Bound::AtMost(MARKER_BYTES_MAX)).await?;
        let marker = Marker::decode(&bytes).map_err(store::decode(MARKER_PATH))?;
        Ok(Self {
            backend: staged.clone(),
            root: work.to_owned(),
            marker,
            staged: Some(staged),
        })
    }

    /// Returns what is about to be published, if this store lies on a server.
    pub const fn staged(&self) -> Option<&Arc<Staged>> {
        self.staged.as_ref()
    }

    /// Returns the store as far as this machine holds it. Where it all lies here, that is all of it.
    pub(crate) fn held(&self) -> &Self {
        self.staged.as_ref().map_or(self, |staged| &staged.held)
    }

    /// Notes that an object which is about to be published is held already.
    pub(crate) fn note_held(&self, path: &str) {
        if let Some(staged) = &self.staged {
            staged.note(path);
        }
    }

    /// Returns those of these objects that are not there.
    ///
    /// # Errors
    /// The back end cannot tell.
    pub(crate) async fn lacking(
        &self,
        objects: impl IntoIterator<Item = ObjectRef>,
    ) -> Result<Vec<ObjectRef>, StoreError> {
        let objects: Vec<_> = objects.into_iter().collect();
        let gone = self.held().gone(objects.iter().copied()).await?;
        if let Some(staged) = &self.staged {
            // What an earlier run left here may not have got to the server.
            let absent: BTreeSet<_> = gone.iter().map(|object| object.digest).collect();
            let held = objects.iter().map(|object| object.digest);
            for digest in held.filter(|digest| !absent.contains(digest)) {
                staged.note(&digest.object_path());
            }
        }
        let mut lacking: BTreeMap<_, _> = gone
            .into_iter()
            .map(|object| (object.digest, object))
            .collect();
        if let Some(staged) = &self.staged {
            // The server took each object only after it matched its digest, and so its length.
            let asked: Vec<_> = lacking.keys().copied().collect();
            let missing: BTreeSet<_> = staged.remote.missing(&asked).await?.into_iter().collect();
            lacking.retain(|digest, _| missing.contains(digest));
        }
        Ok(lacking.into_values().collect())
    }

    /// Makes sure that this machine holds an object, whole and verified, and returns its path.
    ///
    /// # Errors
    /// It is missing or damaged, or cannot be kept.
    pub(crate) async fn hold(&self, object: &ObjectRef) -> Result<PathBuf, StoreError> {
        let path = object.digest.object_path();
        match (self.held().verify_object(object).await, &self.staged) {
            (Err(error), Some(staged)) if error.is_damage() => {
                staged.bring(object, &path).await?;
            }
            (held, _) => held?,
        }
        Ok(self.root.join(path))
    }
}

impl Staged {
    /// Returns the objects that were written since the store was opened, as paths in the store and
    /// in the work directory.
    pub fn objects(&self) -> Vec<String> {
        let seen = self.seen();
        seen.written
            .iter()
            .filter(|path| path.starts_with("objects/"))
            .cloned()
            .collect()
    }

    /// Returns the digest of the `timestamp.json` of the server that staged metadata follows; `None`
    /// if the server had none.
    pub fn follows(&self) -> Option<Digest> {
        self.seen().timestamp
    }

    /// Returns the targets that were written since the last commit, in the same way.
    ///
    /// # Errors
    /// The work directory cannot be read.
    pub async fn targets(&self) -> Result<Vec<String>, StoreError> {
        self.list_held(TARGETS_DIRECTORY).await
    }

    /// Returns the signed metadata that was written since the last commit, in the same way.
    ///
    /// # Errors
    /// The work directory cannot be read.
    pub async fn metadata(&self) -> Result<Vec<String>, StoreError> {
        self.list_held(METADATA_DIRECTORY).await
    }

    /// Reads a file as the work directory has it; `None` if it has none.
    ///
    /// # Errors
    /// It cannot be read, or is longer than `max` bytes.
    pub async fn read_held(&self, path: &str, max: usize) -> Result<Option<Bytes>, StoreError> {
        match store::fetch(&*self.work, path, Bound::AtMost(max)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Drops signed metadata and targets that were not committed: what is current is read from the
    /// server again. Objects stay.
    ///
    /// # Errors
    /// The work directory cannot be written.
    pub async fn drop_metadata(&self) -> Result<(), StoreError> {
        for path in [self.metadata().await?, self.targets().await?].concat() {
            self.held.remove(&path).await?;
        }
        self.seen().timestamp = None;
        Ok(())
    }

    /// Drops every object that is not in `keep`; they are on the server.
    ///
    /// # Errors
    /// The work directory cannot be written.
    pub async fn drop_objects(&self, keep: &[ObjectRef]) -> Result<(), StoreError> {
        let keep: BTreeSet<_> = keep
            .iter()
            .map(|object| object.digest.object_path())
            .collect();
        for path in self.list_held("objects").await? {
            if !keep.contains(&path) {
                self.held.remove(&path).await?;
            }
        }
        self.seen().written.clear();
        Ok(())
    }

    async fn list_held(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        let prefix = store::object_path(directory);
        let mut paths: Vec<_> = self
            .work
            .list(Some(&prefix))
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .map_err(|source| store::access(directory, source))?;
        paths.sort_unstable();
        Ok(paths)
    }

    /// Fetches an object into the work directory; it appears there only once it was verified.
    async fn bring(&self, object: &ObjectRef, path: &str) -> Result<(), StoreError> {
        let missing = || StoreError::Missing {
            path: path.to_owned(),
        };
        let mut file = self.remote.open(path, None).await?.ok_or_else(missing)?;
        let damaged = |source| StoreError::Damaged {
            path: path.to_owned(),
            source,
        };
        let (expected, length) = (object.digest, object.length);
        if file.length != length {
            return Err(damaged(ObjectMismatch::Length {
                digest: expected,
                expected: length,
                actual: file.length,
            }));
        }
        let failed = |source| store::access(path, source);
        let place = store::object_path(path);
        let upload = self.work.put_multipart(&place).await.map_err(failed)?;
        let mut upload = WriteMultipart::new(upload);
        let mut hasher = Hasher::new();
        while let Some(part) = file.bytes.next().await {
            let part = part?;
            hasher.update(&part);
            upload.wait_for_capacity(2).await.map_err(failed)?;
            upload.write(&part);
        }
        let actual = hasher.finish();
        if actual != expected {
            upload.abort().await.map_err(failed)?;
            return Err(damaged(DigestMismatch { expected, actual }.into()));
        }
        upload.finish().await.map_err(failed)?;
        Ok(())
    }

    fn note(&self, path: &str) {
        self.seen().written.insert(path.to_owned());
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what a server said, or did not, back out of the error of the back end.
pub(crate) fn failed_access(path: String, error: object_store::Error) -> StoreError {
    let source = match error {
        object_store::Error::Generic { store, source } => match source.downcast() {
            Ok(said) => return StoreError::Remote(*said),
            Err(source) => object_store::Error::Generic { store, source },
        },
        source => source,
    };
    StoreError::Access { path, source }
}
