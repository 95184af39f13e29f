//! Reads the current metadata of a store and holds it against a trusted root.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use image_format::{Digest, ImageName, ObjectRef};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tough::error::Error;
use tough::schema::Target;
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, Transport, TransportError, TransportErrorKind,
    TransportStream, async_trait,
};
use url::Url;

use super::{CHUNK_INDEXES_TARGET, Current, Names, ROLE_BYTES_MAX, TARGETS_BYTES_MAX, TrustError};

/// What stands for the store in URLs that never leave this process.
const BASE: &str = "circular-store:///";

/// The bounds of what is read before it is trusted.
const LIMITS: Limits = Limits {
    max_root_size: ROLE_BYTES_MAX,
    max_targets_size: TARGETS_BYTES_MAX,
    max_timestamp_size: ROLE_BYTES_MAX,
    max_snapshot_size: ROLE_BYTES_MAX,
    max_root_updates: 1024,
};

/// Loads what `backend` says is current, as far as `root`, a trusted root document, vouches for it.
///
/// Expired metadata is accepted here: whoever stands beside the store renews it; clients enforce.
///
/// # Errors
/// Something is missing, or not signed as the root demands.
pub async fn load(backend: Arc<dyn ObjectStore>, root: &[u8]) -> Result<Current, TrustError> {
    load_over(backend, Arc::default(), root).await
}

/// Does as [`load`], and refuses what is older than the documents in the directory `seen`, which is
/// written to.
pub(super) async fn load_after(
    backend: Arc<dyn ObjectStore>,
    root: &[u8],
    seen: &Path,
) -> Result<Current, TrustError> {
    load_with(backend, Arc::default(), root, Some(seen)).await
}

/// Metadata as it would be, by its path in the store: other bytes, or none.
pub(super) type Overlay = Arc<BTreeMap<ObjectPath, Option<Bytes>>>;

/// Loads what would be current in `backend` if its files were those of `overlay`, as [`load`] does.
pub(super) async fn load_over(
    backend: Arc<dyn ObjectStore>,
    overlay: Overlay,
    root: &[u8],
) -> Result<Current, TrustError> {
    load_with(backend, overlay, root, None).await
}

async fn load_with(
    backend: Arc<dyn ObjectStore>,
    overlay: Overlay,
    root: &[u8],
    seen: Option<&Path>,
) -> Result<Current, TrustError> {
    let url = |directory: &str| Url::parse(&format!("{BASE}{directory}/")).expect("a constant");
    let loader = RepositoryLoader::new(&root, url("metadata"), url("targets"));
    let loader = match seen {
        Some(seen) => loader.datastore(seen),
        None => loader,
    };
    let repository = loader
        .transport(StoreTransport { backend, overlay })
        .limits(LIMITS)
        .expiration_enforcement(ExpirationEnforcement::Unsafe)
        .load()
        .await
        .map_err(|error| match error {
            error @ (Error::DatastoreInit { .. }
            | Error::DatastoreCreate { .. }
            | Error::DatastoreOpen { .. }) => TrustError::Temporary(Box::new(error)),
            error => TrustError::Load(Box::new(error)),
        })?;
    Ok(Current {
        root: repository.root().clone(),
        timestamp: repository.timestamp().clone(),
        snapshot: repository.snapshot().clone(),
        targets: repository.targets().clone(),
    })
}

impl Current {
    /// Returns the catalogues by name.
    ///
    /// # Errors
    /// A target is neither an image nor the list of chunk indexes.
    pub fn catalogues(&self) -> Result<BTreeMap<ImageName, ObjectRef>, TrustError> {
        let targets = self.targets.signed.targets.iter();
        targets
            .filter(|(name, _)| name.raw() != CHUNK_INDEXES_TARGET)
            .map(|(name, target)| {
                let unknown = || TrustError::Target {
                    name: name.raw().to_owned(),
                };
                let image = ImageName::from_file_safe(name.raw()).map_err(|_| unknown())?;
                Ok((image, object(target).ok_or_else(unknown)?))
            })
            .collect()
    }

    /// Returns the target that lists the chunk indexes; none before the first publish.
    pub fn chunk_index_list(&self) -> Option<ObjectRef> {
        let mut targets = self.targets.signed.targets.iter();
        let (_, target) = targets.find(|(name, _)| name.raw() == CHUNK_INDEXES_TARGET)?;
        object(target)
    }

    /// Returns what is offered, given the list of chunk indexes.
    ///
    /// # Errors
    /// A target is no image.
    pub fn names(&self, chunk_indexes: Vec<ObjectRef>) -> Result<Names, TrustError> {
        Ok(Names {
            names: self.catalogues()?,
            chunk_indexes,
        })
    }
}

fn object(target: &Target) -> Option<ObjectRef> {
    let digest: &[u8] = &target.hashes.sha256;
    Some(ObjectRef {
        digest: Digest::from_bytes(digest.try_into().ok()?),
        length: target.length,
    })
}

/// Lets `tough` read from a store's back end.
#[derive(Clone, Debug)]
struct StoreTransport {
    backend: Arc<dyn ObjectStore>,
    overlay: Overlay,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[async_trait]
impl Transport for StoreTransport {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let path = ObjectPath::from(url.path());
        match self.overlay.get(&path) {
            Some(Some(bytes)) => {
                return Ok(futures_util::stream::iter([Ok(bytes.clone())]).boxed_sync());
            }
            Some(None) => {
                let kind = TransportErrorKind::FileNotFound;
                return Err(TransportError::new(kind, url.as_str()));
            }
            None => {}
        }
        let read = match self.backend.get(&path).await {
            // tough stops reading at its own limit; nothing larger is held here first.
            Ok(result) if result.meta.size > TARGETS_BYTES_MAX => {
                Err("the file is longer than any metadata".into())
            }
            Ok(result) => result.bytes().await.map_err(Cause::from),
            Err(error @ object_store::Error::NotFound { .. }) => {
                let kind = TransportErrorKind::FileNotFound;
                return Err(TransportError::new_with_cause(kind, url.as_str(), error));
            }
            Err(error) => Err(error.into()),
        };
        // To tough, a next root that cannot be asked for is one that is not there. What cannot be
        // read fails while it is read, so that no root is passed over.
        let read = read.map_err(|cause| {
            TransportError::new_with_cause(TransportErrorKind::Other, url.as_str(), cause)
        });
        Ok(futures_util::stream::iter([read]).boxed_sync())
    }
}

/// Boxes a stream that may be shared between threads, as `tough` wants it.
trait BoxedSync {
    fn boxed_sync(self) -> TransportStream;
}

impl<S: futures_util::Stream<Item = Result<Bytes, TransportError>> + Send + Sync + 'static>
    BoxedSync for S
{
    fn boxed_sync(self) -> TransportStream {
        Box::pin(self)
    }
}
