//! Opens a store and reads it: marker, names, catalogues, manifests, objects.
//!
//! Everything read is bounded before it is read and verified before it is returned.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use image_format::catalogue::{self, Catalogue, ChunkIndexList, ResolveError, VersionEntry};
use image_format::digest::ObjectMismatch;
use image_format::manifest::Manifest;
use image_format::marker::{MARKER_PATH, Marker};
use image_format::{DecodeError, Digest, ImageName, ImageRef, ObjectRef, Version};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::check::unread;
use crate::staged::{self, RemoteError, Staged};
use crate::trust::{self, Current, Names, TrustError, load};

/// Why a store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum StoreError {
    #[error("`{}` is not a circular store: it has no {MARKER_PATH}; `circular publish IMAGE NAME --store {}` makes one", .path.display(), .path.display())]
    NotAStore { path: PathBuf },
    #[error("`{}` is not empty and not a circular store: give an empty or new directory", .path.display())]
    NotEmpty { path: PathBuf },
    #[error("cannot use the directory `{}`", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot lock the store with `{}`", .path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("store has no `{path}`: it is damaged, or was changed meanwhile")]
    Missing { path: String },
    #[error("cannot access `{path}` in the store")]
    Access {
        path: String,
        source: object_store::Error,
    },
    #[error("`{path}` in the store cannot be used")]
    Decode { path: String, source: DecodeError },
    #[error("`{path}` in the store is damaged")]
    Damaged {
        path: String,
        source: ObjectMismatch,
    },
    #[error("store has no image `{name}`; {known}")]
    UnknownImage { name: ImageName, known: String },
    #[error("the catalogue lists another manifest than that of {reference}: the store is damaged")]
    OtherManifest { reference: ImageRef },
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("`{path}` in the store cannot be read: its disk has lost it")]
    Unreadable { path: String, source: io::Error },
    #[error("cannot write a temporary file")]
    Temporary { source: io::Error },
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl StoreError {
    /// Tells whether a file is gone or not what it should be, so that writing it again helps.
    pub const fn is_damage(&self) -> bool {
        match self {
            // A newer version of this program wrote it, and reads it.
            Self::Decode {
                source: DecodeError::Version { .. },
                ..
            } => false,
            Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::Unreadable { .. }
            | Self::Decode { .. } => true,
            _ => false,
        }
    }
}

/// An open store. Cheap to clone: clones share the back end.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) backend: Arc<dyn ObjectStore>,
    pub(crate) root: PathBuf,
    pub(crate) marker: Marker,
    /// What is about to be published, if the store lies on a server.
    pub(crate) staged: Option<Arc<Staged>>,
}

/// What a reference leads to.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The reference with its version pinned.
    pub reference: ImageRef,
    /// That version.
    pub version: Version,
    /// Its line in the catalogue.
    pub entry: VersionEntry,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Store {
    /// Opens the store in the directory `root`.
    ///
    /// # Errors
    /// There is no store, or one of a newer format.
    pub async fn open(root: &Path) -> Result<Self, StoreError> {
        if !root.join(MARKER_PATH).is_file() {
            return Err(StoreError::NotAStore {
                path: root.to_owned(),
            });
        }
        let backend = local(root)?;
        let bytes = fetch(
            &*backend,
            MARKER_PATH,
            Bound::AtMost(image_format::marker::MARKER_BYTES_MAX),
        )
        .await?;
        let marker = Marker::decode(&bytes).map_err(|source| StoreError::Decode {
            path: MARKER_PATH.to_owned(),
            source,
        })?;
        Ok(Self {
            backend,
            root: root.to_owned(),
            marker,
            staged: None,
        })
    }

    /// Opens the store in `root`, or makes one there if the directory is new or empty.
    ///
    /// # Errors
    /// The directory holds something else, or cannot be written.
    pub async fn open_or_create(root: &Path) -> Result<Self, StoreError> {
        let directory = |source| StoreError::Directory {
            path: root.to_owned(),
            source,
        };
        if root.join(MARKER_PATH).is_file() {
            return Self::open(root).await;
        }
        std::fs::create_dir_all(root).map_err(directory)?;
        let foreign = std::fs::read_dir(root)
            .map_err(directory)?
            .filter_map(Result::ok)
            // A publisher that was killed at once, or one that does the same just now, leaves these.
            .map(|entry| entry.file_name())
            .any(|name| {
                let name = name.to_string_lossy();
                !name.starts_with('.')
                    && !name.starts_with(MARKER_PATH)
                    && !["metadata", "lost+found"].contains(&&*name)
            });
        // Another publisher may have made the store since it was looked for.
        if foreign && !root.join(MARKER_PATH).is_file() {
            return Err(StoreError::NotEmpty {
                path: root.to_owned(),
            });
        }
        let store = Self {
            backend: local(root)?,
            root: root.to_owned(),
            marker: Marker::DEFAULT,
            staged: None,
        };
        store
            .create(MARKER_PATH, Marker::DEFAULT.encode().into())
            .await?;
        Self::open(root).await
    }

    /// Returns the directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the back end, for whoever serves the files as they are.
    pub fn backend(&self) -> &Arc<dyn ObjectStore> {
        &self.backend
    }

    /// Puts something around the back end: what counts, slows or breaks what goes through it.
    #[must_use]
    pub fn wrapped(
        mut self,
        wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>,
    ) -> Self {
        self.backend = wrap(self.backend);
        self
    }

    /// Returns what the store says of itself.
    pub const fn marker(&self) -> &Marker {
        &self.marker
    }

    /// Reads the signed metadata that is current, held against a trusted root.
    ///
    /// # Errors
    /// It is missing, or not signed as the root demands.
    pub async fn current(&self, root: &[u8]) -> Result<Current, StoreError> {
        Ok(load::load(self.backend.clone(), root).await?)
    }

    /// Reads the first root of the store, which vouches for no more than that the store is whole.
    ///
    /// # Errors
    /// It is missing.
    pub async fn first_root(&self) -> Result<Bytes, StoreError> {
        self.root_version(1).await
    }

    /// Reads a version of the root as it lies in the store: nothing vouches for it.
    ///
    /// # Errors
    /// It is missing.
    pub async fn root_version(&self, version: u64) -> Result<Bytes, StoreError> {
        let max = usize::try_from(trust::ROLE_BYTES_MAX).unwrap_or(usize::MAX);
        let path = format!("{}/{version}.root.json", trust::METADATA_DIRECTORY);
        self.fetch(&path, Bound::AtMost(max)).await
    }

    /// Reads the first root; `None` for a store that was never published to. The root is the last
    /// file that the first publish writes before any target, so a store that has targets and no
    /// root has lost it.
    ///
    /// # Errors
    /// The root was lost, or cannot be read.
    pub async fn root_if_signed(&self) -> Result<Option<Bytes>, StoreError> {
        let missing = match self.first_root().await {
            Err(StoreError::Missing { path }) => StoreError::Missing { path },
            root => return root.map(Some),
        };
        let targets = object_path(trust::TARGETS_DIRECTORY);
        match self.backend.list(Some(&targets)).next().await {
            None => Ok(None),
            Some(_) => Err(missing),
        }
    }

    /// Reads what the store offers, as far as its own first root vouches for it; a store that was
    /// never published to offers nothing.
    ///
    /// # Errors
    /// It cannot be read, or is not signed as it should be.
    pub async fn names(&self) -> Result<Names, StoreError> {
        let Some(root) = self.root_if_signed().await? else {
            return Ok(Names::default());
        };
        self.names_of(&self.current(&root).await?).await
    }

    /// Reads what `current` offers.
    ///
    /// # Errors
    /// A target is no image, or the list of chunk indexes is damaged.
    pub async fn names_of(&self, current: &Current) -> Result<Names, StoreError> {
        let chunk_indexes = match current.chunk_index_list() {
            None => Vec::new(),
            Some(object) => {
                let path = catalogue::target_path(trust::CHUNK_INDEXES_TARGET, &object.digest);
                let bytes = self.fetch(&path, Bound::Object(&object)).await?;
                ChunkIndexList::decode(&bytes)
                    .map_err(decode(&path))?
                    .chunk_indexes
            }
        };
        Ok(current.names(chunk_indexes)?)
    }

    /// Reads the catalogue of `name` that `names` lists.
    ///
    /// # Errors
    /// There is no such name, or its catalogue is damaged.
    pub async fn catalogue(
        &self,
        names: &Names,
        name: &ImageName,
    ) -> Result<Catalogue, StoreError> {
        let object = names
            .names
            .get(name)
            .ok_or_else(|| StoreError::UnknownImage {
                name: name.clone(),
                known: known_names(names),
            })?;
        let path = catalogue::catalogue_path(name, &object.digest);
        let bytes = self.fetch(&path, Bound::Object(object)).await?;
        Catalogue::decode(&bytes, name).map_err(decode(&path))
    }

    /// Finds the version that `reference` means, and reads its manifest.
    ///
    /// # Errors
    /// There is no such name, tag or version, or what describes it is damaged.
    pub async fn resolve(&self, reference: &ImageRef) -> Result<Resolved, StoreError> {
        let names = self.names().await?;
        let catalogue = self.catalogue(&names, &reference.name).await?;
        let (version, entry) = catalogue.resolve(reference)?;
        let reference = reference.pinned(version);
        let manifest = self.listed_manifest(&reference, version, entry).await?;
        Ok(Resolved {
            reference,
            version,
            entry: *entry,
            manifest,
        })
    }

    /// Reads the manifest that a catalogue lists for `version` of `reference`.
    ///
    /// # Errors
    /// It is missing, damaged, or that of something else.
    pub(crate) async fn listed_manifest(
        &self,
        reference: &ImageRef,
        version: Version,
        entry: &VersionEntry,
    ) -> Result<Manifest, StoreError> {
        let manifest = self.manifest(&entry.manifest).await?;
        let listed = manifest.name == reference.name
            && (manifest.version, manifest.revision) == (version, entry.revision)
            && (manifest.disk.regions.digest, manifest.disk.length) == (entry.disk, entry.length)
            && manifest.disk.content == entry.content;
        if !listed {
            return Err(StoreError::OtherManifest {
                reference: reference.clone(),
            });
        }
        Ok(manifest)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub async fn manifest(&self, object: &ObjectRef) -> Result<Manifest, StoreError> {
        let bytes = self.object(object).await?;
        Manifest::decode(&bytes).map_err(decode(&object.digest.object_path()))
    }

    /// Reads a whole object of known length.
    ///
    /// # Errors
    /// It is missing, or not what its reference says.
    pub async fn object(&self, object: &ObjectRef) -> Result<Bytes, StoreError> {
        self.fetch(&object.digest.object_path(), Bound::Object(object))
            .await
    }

    /// Reads a whole object of at most `max` bytes.
    ///
    /// # Errors
    /// It is missing, longer, or not what its digest says.
    pub async fn object_at_most(&self, digest: &Digest, max: usize) -> Result<Bytes, StoreError> {
        self.fetch(&digest.object_path(), Bound::Digest(digest, max))
            .await
    }

    /// Reads part of an object. The bytes are not verified: only a whole object, or a chunk in it,
    /// has a digest.
    ///
    /// # Errors
    /// The object is missing or shorter than that.
    pub async fn object_range(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let path = digest.object_path();
        let bytes = self
            .backend
            .get_range(&object_path(&path), range.clone())
            .await
            .map_err(|source| access(&path, source))?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(StoreError::Damaged {
                path,
                source: ObjectMismatch::Length {
                    digest: *digest,
                    expected: range.end,
                    actual: range.start + bytes.len() as u64,
                },
            });
        }
        Ok(bytes)
    }

    /// Reads a file of at most `max` bytes.
    pub(crate) async fn file_at_most(&self, path: &str, max: usize) -> Result<Bytes, StoreError> {
        self.fetch(path, Bound::AtMost(max)).await
    }

    /// Reads a target.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub(crate) async fn target(&self, path: &str, object: &ObjectRef) -> Result<Bytes, StoreError> {
        self.fetch(path, Bound::Object(object)).await
    }

    /// Writes a file that must not exist, in one step; tells whether it did not.
    pub(crate) async fn create(&self, path: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let options = PutOptions::from(PutMode::Create);
        let payload = PutPayload::from_bytes(bytes);
        match self
            .backend
            .put_opts(&object_path(path), payload, options)
            .await
        {
            Ok(_) => Ok(Created::Yes),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Existed),
            Err(source) => Err(access(path, source)),
        }
    }

    /// Writes a file, over an older one if need be, in one step.
    pub(crate) async fn replace(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.backend
            .put(&object_path(path), PutPayload::from_bytes(bytes))
            .await
            .map(drop)
            .map_err(|source| access(path, source))
    }

    /// Removes a file if it is there.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), StoreError> {
        match self.backend.delete(&object_path(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(access(path, source)),
        }
    }

    async fn fetch(&self, path: &str, bound: Bound<'_>) -> Result<Bytes, StoreError> {
        fetch(&*self.backend, path, bound).await
    }
}

/// Whether a file was written, or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// It was written.
    Yes,
    /// There was one of that name; it was left as it is.
    Existed,
}

/// What is known of a file before it is read.
#[derive(Clone, Copy)]
pub(crate) enum Bound<'a> {
    AtMost(usize),
    Digest(&'a Digest, usize),
    Object(&'a ObjectRef),
}

pub(crate) async fn fetch(
    backend: &dyn ObjectStore,
    path: &str,
    bound: Bound<'_>,
) -> Result<Bytes, StoreError> {
    let result = backend
        .get(&object_path(path))
        .await
        .map_err(|source| unread(path, source))?;
    let max = match bound {
        Bound::AtMost(max) | Bound::Digest(_, max) => max as u64,
        Bound::Object(object) => object.length,
    };
    if result.meta.size > max {
        return Err(StoreError::Decode {
            path: path.to_owned(),
            source: DecodeError::TooLong { what: "file", max },
        });
    }
    let bytes = result
        .bytes()
        .await
        .map_err(|source| unread(path, source))?;
    let verified = match bound {
        Bound::AtMost(_) => Ok(()),
        Bound::Digest(digest, _) => ObjectRef {
            digest: *digest,
            length: bytes.len() as u64,
        }
        .verify(&bytes),
        Bound::Object(object) => object.verify(&bytes),
    };
    verified.map_err(|source| StoreError::Damaged {
        path: path.to_owned(),
        source,
    })?;
    Ok(bytes)
}

fn local(root: &Path) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let backend = LocalFileSystem::new_with_prefix(root)
        .map_err(|source| access(&root.to_string_lossy(), source))?;
    // A publish that was reported as done must survive a power cut.
    Ok(Arc::new(backend.with_fsync(true)))
}

pub(crate) fn object_path(path: &str) -> ObjectPath {
    ObjectPath::from(path)
}

pub(crate) fn access(path: &str, source: object_store::Error) -> StoreError {
    let path = path.to_owned();
    match source {
        object_store::Error::NotFound { .. } => StoreError::Missing { path },
        source => staged::failed_access(path, source),
    }
}

pub(crate) fn decode(path: &str) -> impl FnOnce(DecodeError) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Decode { path, source }
}

/// How many names an error message lists.
const NAMES_LISTED_MAX: usize = 10;

fn known_names(names: &Names) -> String {
    let mut known: Vec<_> = names
        .names
        .keys()
        .take(NAMES_LISTED_MAX)
        .map(ImageName::as_str)
        .collect();
    match names.names.len() {
        0 => return "it has none yet".to_owned(),
        n if n > NAMES_LISTED_MAX => known.push("…"),
        _ => {}
    }
    format!("it has: {}", known.join(", "))
}
