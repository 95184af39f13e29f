//! Makes a written disk visible: one atomic commit under the lock.
//!
//! Order: the objects are there already; then manifest, catalogue, numbered metadata, timestamp (the
//! switch), boot files. A publish that dies before the switch has changed nothing; one that dies after it left
//! boot files of the version before, which still boot, and which the next publish rewrites.

mod whole;

use std::fs::File;

use image_format::catalogue::{self, CATALOGUE_BYTES_MAX, Catalogue, ChunkIndexList, VersionEntry};
use image_format::chunker::ChunkerParams;
use image_format::manifest::{Boot, BootPack, IndexDelta, Manifest};
use image_format::{DecodeError, Digest, ImageName, ImageRef, ObjectRef, links};

use crate::boot_files;
use crate::catalogue_change::CatalogueChange;
use crate::index::{ChunkIndexes, IndexError};
use crate::lock::CommitLock;
use crate::store::{Created, Store, StoreError};
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
    #[error("cannot tell what the boot refers to")]
    Boot(#[from] DecodeError),
    #[error("nothing was published: no reader would take the manifest")]
    Manifest { source: DecodeError },
    #[error(
        "the catalogue of `{name}` is full: no more than {CATALOGUE_BYTES_MAX} bytes of versions and tags; nothing was published. Publish under a new name"
    )]
    CatalogueFull { name: ImageName },
    #[error("the image is published, but its boot scripts could not be written: publish it again")]
    BootFiles { source: StoreError },
    #[error("{} objects of the store that the image needs are gone, {} among them; nothing was published. Publish it again", .objects.len(), .objects[0].digest)]
    Gone { objects: Vec<ObjectRef> },
}

/// A disk about to be published.
#[derive(Clone, Debug)]
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
    /// What a boot of it reads first, carried over from another version; used if the disk is new to
    /// the name. A version that has a boot pack keeps it.
    pub boot_pack: Option<BootPack>,
    /// What changed in the index since the version before; used if the disk is new to the name, too.
    pub index_delta: Option<IndexDelta>,
    /// What becomes of a version that has the disk already.
    pub known: Known,
}

/// What becomes of a version whose disk is published again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is published again: the tag goes to it, and it boots as is said now.
    Published,
    /// What the store has lost of it is stored again, after all of it was read. Nothing else of it changes: not where
    /// tags lead, not when it was published, nor, unless that is said anew, how it boots.
    Mended {
        /// Whether it is said anew how it boots.
        boots_anew: bool,
    },
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
    /// The version had lost something: its disk is stored anew, as a new revision.
    Mended,
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
        self.check_objects(store).await?;
        let current = signer.current(store).await?;
        let mut names = store.names_of(&current).await?;
        let name = &self.reference.name;
        let before = match names.names.contains_key(name) {
            true => store.catalogue(&names, name).await?,
            false => Catalogue::empty(name.clone()),
        };
        let (manifest, mut entry, published_as) = self.place(store, &before).await?;
        let mut after = before.clone();
        let mended = matches!(self.known, Known::Mended { .. });
        let former = before.versions.get(&manifest.version);
        let tag = match former.filter(|_| mended) {
            Some(former) => {
                entry.created = former.created;
                None
            }
            None => Some(self.reference.tag_or_latest()),
        };
        after.versions.insert(manifest.version, entry);
        if let Some(tag) = &tag {
            after.tags.insert(tag.clone(), manifest.version);
        }
        let indexes = self
            .list_indexes(store, &names.chunk_indexes, &manifest)
            .await?;
        if after != before || indexes.is_some() {
            let change = CatalogueChange::encode(&before, &after)?;
            let mut also = Vec::new();
            if let Some(indexes) = indexes {
                also.push(put_index_list(store, indexes).await?);
            }
            change
                .commit(store, signer, &current, &mut names, also)
                .await?;
        }
        // A server writes the boot files of its store itself, once it took the commit.
        if store.staged().is_none() {
            boot_files::write(store, signer, &names, &after)
                .await
                .map_err(|source| PublishError::BootFiles { source })?;
        }
        let tagged = ImageRef {
            tag,
            ..self.reference.clone()
        };
        Ok(Published {
            reference: tagged.pinned(manifest.version),
            manifest,
            published_as,
        })
    }

    /// Checks that all that the disk and its boot refer to is there still, to stay: a sweep may have taken
    /// what nothing referred to yet.
    async fn check_objects(&self, store: &Store) -> Result<(), PublishError> {
        let mut objects = self.written.known_packs.clone();
        objects.extend(&self.written.objects);
        if let Some(boot) = &self.boot {
            objects.extend(links::objects_in(
                &serde_json::to_vec(boot).unwrap_or_default(),
            )?);
        }
        let pack = self.boot_pack.iter();
        objects.extend(pack.flat_map(|pack| [pack.object, pack.profile]));
        objects.extend(self.index_delta.iter().map(|delta| delta.object));
        let used: Vec<Digest> = objects.iter().map(|object| object.digest).collect();
        let gone = store.lacking(objects).await?;
        if !gone.is_empty() {
            return Err(PublishError::Gone { objects: gone });
        }
        Ok(store.sync_directories(used).await?)
    }

    /// Returns the list of chunk indexes with that of the new chunks, and without what would lead
    /// to lost packs; `None` if it stays as it is.
    async fn list_indexes(
        &self,
        store: &Store,
        current: &[ObjectRef],
        manifest: &Manifest,
    ) -> Result<Option<Vec<ObjectRef>>, PublishError> {
        let mut list = current.to_vec();
        // What was stored a second time is not used. Publishers of one image at the same time all
        // make the same index.
        let used = manifest.disk.regions == self.written.disk.regions;
        let index = self.written.index;
        list.extend(index.filter(|index| used && !current.contains(index)));
        let lost = &self.written.lost_packs;
        if list.len() > CHUNK_INDEXES_MAX || !lost.is_empty() {
            let mut indexes = store.chunk_indexes(&list).await?;
            indexes.exclude(lost.iter().copied());
            if list.len() > CHUNK_INDEXES_MAX || indexes.lead_to_excluded() {
                list = vec![store.put_file(indexes.merge()?).await?];
            }
        }
        Ok((list != current).then_some(list))
    }

    /// Decides which version and revision the disk becomes, and stores its manifest if it is new.
    async fn place(
        &self,
        store: &Store,
        catalogue: &Catalogue,
    ) -> Result<(Manifest, VersionEntry, PublishedAs), PublishError> {
        let disk = self.written.disk;
        let mut manifest = Manifest {
            format: 1,
            name: self.reference.name.clone(),
            version: catalogue.next_version(),
            revision: 1,
            disk,
            chunker: self.chunker,
            boot: self.boot.clone(),
            boot_pack: self.boot_pack,
            index_delta: self.index_delta,
        };
        let find = |same: &dyn Fn(&VersionEntry) -> bool| {
            let mut newest_first = catalogue.versions.iter().rev();
            newest_first.find(|(_, entry)| same(entry))
        };
        let existing = find(&|entry| entry.disk == disk.regions.digest)
            .or_else(|| find(&|entry| entry.content == disk.content));
        let Some((version, entry)) = existing else {
            return self
                .store_manifest(store, manifest, PublishedAs::NewVersion)
                .await;
        };
        manifest.version = *version;
        manifest.revision = entry.revision;
        let existing = match store.manifest(&entry.manifest).await {
            Ok(existing) => existing,
            Err(error) if error.is_damage() => {
                // With the same boot as before it is the same manifest again.
                if ObjectRef::of(&manifest.encode()) == entry.manifest {
                    store.put_object(manifest.encode().into()).await?;
                    return Ok((manifest, *entry, PublishedAs::Unchanged));
                }
                manifest.revision = entry.revision.saturating_add(1);
                return self
                    .store_manifest(store, manifest, PublishedAs::Mended)
                    .await;
            }
            Err(error) => return Err(error.into()),
        };
        let whole = existing.disk.regions == disk.regions
            || whole::is_whole(store, &existing, &self.written.lost_packs).await?;
        manifest.boot = self.boot_of(store, &existing).await?;
        manifest.revision = existing.revision.saturating_add(1);
        let (boot_pack, index_delta) = self.what_is_left(store, &existing).await?;
        // Its chunks and their places are those of the disk.
        manifest.boot_pack = boot_pack.or(self.boot_pack);
        if !whole {
            return self
                .store_manifest(store, manifest, PublishedAs::Mended)
                .await;
        }
        manifest.disk = existing.disk;
        manifest.boot_pack = existing.boot_pack.and(manifest.boot_pack);
        manifest.index_delta = index_delta;
        let lost = (manifest.boot_pack, manifest.index_delta)
            != (existing.boot_pack, existing.index_delta);
        if manifest.boot == existing.boot && !lost {
            return Ok((existing, *entry, PublishedAs::Unchanged));
        }
        let is_mended = lost || self.known == Known::Mended { boots_anew: false };
        let published_as = match is_mended {
            true => PublishedAs::Mended,
            false => PublishedAs::NewRevision,
        };
        self.store_manifest(store, manifest, published_as).await
    }

    /// Returns how a version boots from now on.
    async fn boot_of(
        &self,
        store: &Store,
        existing: &Manifest,
    ) -> Result<Option<Boot>, PublishError> {
        let (said, had) = (self.boot.clone(), existing.boot.clone());
        if self.known != (Known::Mended { boots_anew: false }) {
            return Ok(said.or(had));
        }
        let (Some(said), Some(had)) = (&said, &had) else {
            return Ok(had.or(said));
        };
        let damaged = store.damaged([had.kernel, had.initramfs]).await?;
        Ok(Some(match damaged.is_empty() {
            true => had.clone(),
            // Built anew, and told the same.
            false => Boot {
                kernel: said.kernel,
                initramfs: said.initramfs,
                kernel_release: said.kernel_release.clone(),
                ..had.clone()
            },
        }))
    }

    /// Returns the boot pack and the index delta of a version, as far as the store has them. Machines do without; but no server
    /// takes a manifest that names what is not there.
    async fn what_is_left(
        &self,
        store: &Store,
        existing: &Manifest,
    ) -> Result<(Option<BootPack>, Option<IndexDelta>), PublishError> {
        let pack = existing.boot_pack;
        let of_pack = pack.iter().flat_map(|pack| [pack.object, pack.profile]);
        let of_delta = existing.index_delta.iter().map(|delta| delta.object);
        let objects: Vec<_> = of_pack.chain(of_delta).collect();
        let gone = match self.known {
            Known::Published => store.lacking(objects).await?,
            Known::Mended { .. } => store.damaged(objects).await?,
        };
        let is_there = |object: &ObjectRef| !gone.contains(object);
        Ok((
            pack.filter(|pack| is_there(&pack.object) && is_there(&pack.profile)),
            existing.index_delta.filter(|delta| is_there(&delta.object)),
        ))
    }

    async fn store_manifest(
        &self,
        store: &Store,
        manifest: Manifest,
        published_as: PublishedAs,
    ) -> Result<(Manifest, VersionEntry, PublishedAs), PublishError> {
        let bytes = manifest.encode();
        // What no reader takes would lead to a version that nobody can open.
        Manifest::decode(&bytes).map_err(|source| PublishError::Manifest { source })?;
        let entry = VersionEntry {
            manifest: store.put_object(bytes.into()).await?,
            revision: manifest.revision,
            created: self.created,
            disk: manifest.disk.regions.digest,
            content: manifest.disk.content,
            length: manifest.disk.length,
            bootable: manifest.boot.is_some(),
        };
        Ok((manifest, entry, published_as))
    }
}

/// Stores the list of chunk indexes; returns the target that it is.
pub(crate) async fn put_index_list(
    store: &Store,
    chunk_indexes: Vec<ObjectRef>,
) -> Result<(String, ObjectRef), StoreError> {
    let list = ChunkIndexList {
        format: 1,
        chunk_indexes,
    };
    put_target(store, CHUNK_INDEXES_TARGET.to_owned(), list.encode()).await
}

/// Stores a target under its name and digest.
pub(crate) async fn put_target(
    store: &Store,
    name: String,
    bytes: Vec<u8>,
) -> Result<(String, ObjectRef), StoreError> {
    let object = ObjectRef::of(&bytes);
    let path = catalogue::target_path(&name, &object.digest);
    if store.create(&path, bytes.clone().into()).await? == Created::Existed
        && store.target(&path, &object).await.is_err()
    {
        // An older state comes back, and its file has rotted meanwhile.
        store.replace(&path, bytes.into()).await?;
    }
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
            let path = match self.hold(object).await {
                Ok(path) => path,
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "chunk index left out; known chunks may be stored again");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let file = File::open(path).map_err(|source| IndexError::Read {
                index: object.digest,
                source,
            })?;
            indexes.add(object.digest, file)?;
        }
        Ok(indexes)
    }
}
