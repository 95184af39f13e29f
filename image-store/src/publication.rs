//! Makes a written disk visible: one atomic commit under the lock.
//!
//! Order: the objects are there already; then manifest, catalogue, numbered metadata, timestamp (the
//! switch), boot files. A publish that dies before the switch has changed nothing; one that dies after it left
//! boot files of the version before, which still boot, and which the next publish rewrites.

use std::fs::File;

use image_format::catalogue::{self, CATALOGUE_BYTES_MAX, Catalogue, ChunkIndexList, VersionEntry};
use image_format::chunker::ChunkerParams;
use image_format::manifest::{Boot, Manifest};
use image_format::{ImageName, ImageRef, ObjectRef, Version};

use crate::boot_files;
use crate::index::{ChunkIndexes, IndexError};
use crate::lock::CommitLock;
use crate::store::{Store, StoreError};
use crate::trust::CHUNK_INDEXES_TARGET;
use crate::trust::keys::KeyError;
use crate::trust::sign::Signer;
use crate::writer::WrittenDisk;

/// Above this many chunk indexes, a publish merges them into one: each costs a search per chunk.
const CHUNK_INDEXES_MAX: usize = 16;

/// Why a disk cannot be made visible.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "the catalogue of `{name}` is full: no more than {CATALOGUE_BYTES_MAX} bytes of versions and tags; nothing was published. Publish under a new name"
    )]
    CatalogueFull { name: ImageName },
    #[error("the image is published, but its boot scripts could not be written: publish it again")]
    BootFiles { source: StoreError },
    #[error("pack {} of an earlier publish is missing or damaged; nothing was published. Run `circular verify` to see which images it harms", .pack.digest)]
    PackGone { pack: ObjectRef },
}

/// A disk about to be published.
#[derive(Debug)]
pub struct Publication {
    /// Under which name, and to which tag (`latest` if none is given).
    pub reference: ImageRef,
    /// When: seconds since 1970-01-01 00:00 UTC.
    pub created: u64,
    /// The disk.
    pub written: WrittenDisk,
    /// How it was cut.
    pub chunker: ChunkerParams,
    /// How to boot it.
    pub boot: Option<Boot>,
}

/// What a publish came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishedAs {
    /// A version with a disk that the name did not have.
    NewVersion,
    /// The disk was there; how it is booted is new.
    NewRevision,
    /// All of it was there, or more: a publish that cannot boot takes nothing from a version that
    /// can. Only the tag may have moved.
    Unchanged,
}

/// A disk that is visible now.
#[derive(Clone, Debug)]
pub struct Published {
    /// How to name it, with its version.
    pub reference: ImageRef,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether it is a new version.
    pub published_as: PublishedAs,
}

impl Publication {
    /// Commits the disk.
    ///
    /// # Errors
    /// The store cannot be read or written, or lost a pack meanwhile.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the publish is visible or not, never in part.
    pub async fn commit(
        self,
        store: &Store,
        signer: &Signer<'_>,
    ) -> Result<Published, PublishError> {
        let _lock = CommitLock::acquire(store).await?;
        self.check_packs(store).await?;
        let current = store.current(&signer.keys.root()?).await?;
        let mut names = store.names_of(&current).await?;
        let name = &self.reference.name;
        let before = match names.names.contains_key(name) {
            true => store.catalogue(&names, name).await?,
            false => Catalogue::empty(name.clone()),
        };
        let (manifest, entry, published_as) = self.place(store, &before).await?;
        let mut after = before.clone();
        after.versions.insert(manifest.version, entry);
        after
            .tags
            .insert(self.reference.tag_or_latest(), manifest.version);
        // Publishers of one image at the same time all make the same index.
        let index = self.written.index;
        let index = index.filter(|index| !names.chunk_indexes.contains(index));
        if after != before || index.is_some() {
            let bytes = after.encode();
            // Readers refuse what is longer, so it must not become visible.
            if bytes.len() > CATALOGUE_BYTES_MAX {
                return Err(PublishError::CatalogueFull { name: name.clone() });
            }
            let mut set = vec![put_target(store, name.to_file_safe(), bytes).await?];
            names.names.insert(name.clone(), set[0].1);
            if let Some(index) = index {
                names.chunk_indexes.push(index);
                if names.chunk_indexes.len() > CHUNK_INDEXES_MAX {
                    let merged = store.chunk_indexes(&names.chunk_indexes).await?.merge()?;
                    names.chunk_indexes = vec![store.put_file(merged).await?];
                }
                let list = ChunkIndexList {
                    format: 1,
                    chunk_indexes: names.chunk_indexes.clone(),
                };
                set.push(put_target(store, CHUNK_INDEXES_TARGET.to_owned(), list.encode()).await?);
            }
            signer.advance(store, &current, &set).await?;
        }
        boot_files::write(store, &names, &after)
            .await
            .map_err(|source| PublishError::BootFiles { source })?;
        let tagged = ImageRef {
            tag: Some(self.reference.tag_or_latest()),
            ..self.reference.clone()
        };
        Ok(Published {
            reference: tagged.pinned(manifest.version),
            manifest,
            published_as,
        })
    }

    /// Checks that the packs of earlier publishes, found through the chunk index, are still there.
    async fn check_packs(&self, store: &Store) -> Result<(), PublishError> {
        for pack in &self.written.known_packs {
            if store.object_length(&pack.digest).await? != Some(pack.length) {
                return Err(PublishError::PackGone { pack: *pack });
            }
        }
        Ok(())
    }

    /// Decides which version and revision the disk becomes, and stores its manifest if it is new.
    async fn place(
        &self,
        store: &Store,
        catalogue: &Catalogue,
    ) -> Result<(Manifest, VersionEntry, PublishedAs), PublishError> {
        let disk = self.written.disk;
        let same = |entry: &VersionEntry| entry.disk == disk.regions.digest;
        let existing = catalogue
            .versions
            .iter()
            .rev()
            .find(|(_, entry)| same(entry));
        let Some((version, entry)) = existing else {
            return self
                .store_manifest(store, catalogue.next_version(), 1, PublishedAs::NewVersion)
                .await;
        };
        let manifest = store.manifest(&entry.manifest).await?;
        if self.boot.is_none() || manifest.boot == self.boot {
            return Ok((manifest, *entry, PublishedAs::Unchanged));
        }
        let revision = manifest.revision.saturating_add(1);
        self.store_manifest(store, *version, revision, PublishedAs::NewRevision)
            .await
    }

    async fn store_manifest(
        &self,
        store: &Store,
        version: Version,
        revision: u32,
        published_as: PublishedAs,
    ) -> Result<(Manifest, VersionEntry, PublishedAs), PublishError> {
        let manifest = Manifest {
            format: 1,
            name: self.reference.name.clone(),
            version,
            revision,
            disk: self.written.disk,
            chunker: self.chunker,
            boot: self.boot.clone(),
            boot_pack: None,
        };
        let entry = VersionEntry {
            manifest: store.put_object(manifest.encode().into()).await?,
            revision,
            created: self.created,
            disk: manifest.disk.regions.digest,
            length: manifest.disk.length,
            bootable: manifest.boot.is_some(),
        };
        Ok((manifest, entry, published_as))
    }
}

/// Stores a target under its name and digest.
async fn put_target(
    store: &Store,
    name: String,
    bytes: Vec<u8>,
) -> Result<(String, ObjectRef), StoreError> {
    let object = ObjectRef::of(&bytes);
    store
        .create(&catalogue::target_path(&name, &object.digest), bytes.into())
        .await?;
    Ok((name, object))
}

impl Store {
    /// Opens the chunk indexes in this list, each held against its digest first: a damaged index
    /// would lead a publish to the wrong bytes. One that is missing or damaged is left out: what
    /// only it knows is stored again.
    ///
    /// # Errors
    /// One cannot be read.
    pub async fn chunk_indexes(&self, list: &[ObjectRef]) -> Result<ChunkIndexes, PublishError> {
        let mut indexes = ChunkIndexes::default();
        for object in list {
            match self.verify_object(object).await {
                Ok(()) => {}
                Err(error @ (StoreError::Missing { .. } | StoreError::Damaged { .. })) => {
                    tracing::warn!(%error, "chunk index left out; known chunks may be stored again");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let path = self.root().join(object.digest.object_path());
            let file = File::open(path).map_err(|source| IndexError::Read {
                index: object.digest,
                source,
            })?;
            indexes.add(object.digest, file)?;
        }
        Ok(indexes)
    }
}
