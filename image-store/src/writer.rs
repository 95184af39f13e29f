//! Turns the chunks of a disk, in their order, into packs, pages and a region table.
//!
//! Callers cut, hash and compress, on as many threads as they like, and hand the results over in
//! the order of the disk. This module decides what is new, where it goes, and writes it. Nothing
//! of it is visible until a [`Publication`](crate::Publication) commits it.
//!
//! A page names packs by their digests, which are known only once a pack is full, so regions wait
//! for the packs that they refer to; when too many entries wait, the pack is closed early. Memory
//! is bounded by that, one pack, and the tables of the [index builder](crate::index).

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use image_format::content::ContentHasher;
use image_format::digest::Hasher;
use image_format::geometry::{self, REGION_BLOCKS};
use image_format::manifest::Disk;
use image_format::pack::{PACK_BYTES_TARGET, PACK_MAGIC};
use image_format::page::{Location, PageBuilder};
use image_format::region_table::RegionTable;
use image_format::{BLOCK_BYTES, ChunkId, DecodeError, Digest, ObjectRef};

use crate::index::{ChunkIndexes, IndexBuilder, IndexError, NewPlace};
use crate::store::{Store, StoreError};

/// Entries that may wait for a pack to be closed: some 64 bytes each, so 32 MiB.
const WAITING_ENTRIES_MAX: usize = 512 * 1024;

/// Why a disk cannot be written to a store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("cannot index region {region} of the disk")]
    Page { region: u32, source: DecodeError },
}

/// A chunk that was cut, hashed, looked up and, if need be, compressed.
#[derive(Clone, Debug)]
pub enum Prepared {
    /// The store has it already.
    Known(Location),
    /// The bytes to store.
    Encoded(Vec<u8>),
}

/// What writing a disk came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Chunks of the disk, repeated ones counted each time.
    pub chunks: u64,
    /// Bytes of the disk in chunks, not in holes.
    pub data_bytes: u64,
    /// Bytes that all those chunks take in packs.
    pub stored_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Plain bytes of those.
    pub new_data_bytes: u64,
    /// Bytes that those take in packs: what the disk adds to the store.
    pub new_stored_bytes: u64,
}

/// A disk whose objects are all in the store, not yet visible.
#[derive(Debug)]
pub struct WrittenDisk {
    /// What goes into the manifest.
    pub disk: Disk,
    /// What it came to.
    pub stats: WriteStats,
    /// The index of the new chunks, if there are any.
    pub(crate) index: Option<ObjectRef>,
    /// Packs of earlier publishes that the disk refers to: checked again under the commit lock.
    pub(crate) known_packs: HashSet<ObjectRef>,
    /// What was written, or was there already: checked again as well.
    pub(crate) objects: HashSet<ObjectRef>,
    /// Packs that were found to be missing or damaged, and are so still.
    pub(crate) lost_packs: HashSet<Digest>,
}

/// A chunk of a region whose page is not written yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    block: u32,
    blocks: u32,
    chunk: ChunkId,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Known(Location),
    New(NewPlace),
}

/// Writes one disk.
#[derive(Debug)]
pub struct ImageWriter {
    store: Store,
    known: Arc<ChunkIndexes>,
    known_packs: HashSet<ObjectRef>,
    new: IndexBuilder,
    /// Packs that are closed, by number.
    packs: Vec<ObjectRef>,
    pack: OpenPack,
    /// Regions that are complete but for packs, with their entries; then the current one.
    waiting: Vec<(u32, Vec<Waiting>)>,
    n_waiting: usize,
    pages: Vec<Option<Digest>>,
    /// All that was written but packs.
    objects: HashSet<ObjectRef>,
    content: ContentHasher,
    stats: WriteStats,
}

/// The pack that is being filled.
#[derive(Debug)]
struct OpenPack {
    bytes: Vec<u8>,
    hasher: Hasher,
}

impl OpenPack {
    fn new() -> Self {
        let mut pack = Self {
            bytes: Vec::with_capacity(PACK_BYTES_TARGET as usize + 1024 * 1024),
            hasher: Hasher::new(),
        };
        pack.push(PACK_MAGIC);
        pack
    }

    /// Appends bytes; returns where they begin.
    fn push(&mut self, bytes: &[u8]) -> u32 {
        let offset = self.len();
        self.hasher.update(bytes);
        self.bytes.extend_from_slice(bytes);
        offset
    }

    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a pack is closed at 16 MiB")
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == PACK_MAGIC.len()
    }
}

impl ImageWriter {
    /// Begins to write a disk; `known` are the chunks that the store has.
    pub fn new(store: Store, known: Arc<ChunkIndexes>) -> Self {
        Self {
            store,
            known,
            known_packs: HashSet::new(),
            new: IndexBuilder::default(),
            packs: Vec::new(),
            pack: OpenPack::new(),
            waiting: Vec::new(),
            n_waiting: 0,
            pages: Vec::new(),
            objects: HashSet::new(),
            content: ContentHasher::default(),
            stats: WriteStats::default(),
        }
    }

    /// Returns what was written so far.
    pub const fn stats(&self) -> &WriteStats {
        &self.stats
    }

    /// Adds the chunk of `blocks` blocks at `block` of the disk. Chunks come in order.
    ///
    /// # Errors
    /// The store cannot be written.
    ///
    /// # Panics
    /// If the chunk crosses the border of a region.
    pub async fn push(
        &mut self,
        block: u64,
        blocks: u32,
        chunk: ChunkId,
        prepared: Prepared,
    ) -> Result<(), WriteError> {
        let region = u32::try_from(block / u64::from(REGION_BLOCKS))
            .expect("disks have at most 2^22 regions");
        let in_region =
            u32::try_from(block % u64::from(REGION_BLOCKS)).expect("less than a region");
        assert!(
            in_region + blocks <= REGION_BLOCKS,
            "no chunk crosses a region's border"
        );
        let plain_bytes = u64::from(blocks) * u64::from(BLOCK_BYTES);
        let (place, stored) = self.place(chunk, prepared, plain_bytes)?;
        self.content.push(block, blocks, chunk);
        self.stats.chunks += 1;
        self.stats.data_bytes += plain_bytes;
        self.stats.stored_bytes += u64::from(stored);
        if self.waiting.last().is_none_or(|(last, _)| *last != region) {
            self.waiting.push((region, Vec::new()));
        }
        let (_, entries) = self.waiting.last_mut().expect("pushed above");
        entries.push(Waiting {
            block: in_region,
            blocks,
            chunk,
            place,
        });
        self.n_waiting += 1;
        if self.pack.len() >= PACK_BYTES_TARGET || self.n_waiting >= WAITING_ENTRIES_MAX {
            self.close_pack().await?;
            self.write_pages(Some(region)).await?;
        }
        Ok(())
    }

    /// Finds the place of a chunk, and appends it to the pack if it is new.
    fn place(
        &mut self,
        chunk: ChunkId,
        prepared: Prepared,
        plain: u64,
    ) -> Result<(Place, u32), WriteError> {
        let bytes = match prepared {
            Prepared::Known(location) => {
                self.known_packs.insert(location.pack);
                return Ok((Place::Known(location), location.length));
            }
            Prepared::Encoded(bytes) => bytes,
        };
        if let Some(place) = self.new.find(chunk)? {
            return Ok((Place::New(place), place.length));
        }
        let place = NewPlace {
            pack: u32::try_from(self.packs.len()).expect("less than 2^32 packs"),
            offset: self.pack.push(&bytes),
            length: u32::try_from(bytes.len()).expect("a chunk has at most 1 MiB"),
        };
        self.new.insert(chunk, place)?;
        self.stats.new_chunks += 1;
        self.stats.new_data_bytes += plain;
        self.stats.new_stored_bytes += u64::from(place.length);
        Ok((Place::New(place), place.length))
    }

    async fn close_pack(&mut self) -> Result<(), WriteError> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let pack = std::mem::replace(&mut self.pack, OpenPack::new());
        let object = ObjectRef {
            digest: pack.hasher.finish(),
            length: pack.bytes.len() as u64,
        };
        self.store
            .put_named(object, Bytes::from(pack.bytes))
            .await?;
        self.packs.push(object);
        Ok(())
    }

    /// Writes the pages of all waiting regions but `except`, which may get more chunks. All packs
    /// that they refer to are closed.
    async fn write_pages(&mut self, except: Option<u32>) -> Result<(), WriteError> {
        let keep = self.waiting.pop_if(|(region, _)| Some(*region) == except);
        for (region, entries) in std::mem::take(&mut self.waiting) {
            self.n_waiting -= entries.len();
            let digest = self.write_page(region, &entries).await?;
            self.pages.resize(region as usize, None);
            self.pages.push(Some(digest));
        }
        self.waiting.extend(keep);
        Ok(())
    }

    async fn write_page(&mut self, region: u32, entries: &[Waiting]) -> Result<Digest, WriteError> {
        let mut builder = PageBuilder::default();
        for entry in entries {
            let location = match entry.place {
                Place::Known(location) => location,
                Place::New(place) => Location {
                    pack: self.packs[place.pack as usize],
                    offset: place.offset,
                    length: place.length,
                },
            };
            builder.push(entry.block, entry.blocks, entry.chunk, location);
        }
        let page = builder
            .finish()
            .map_err(|source| WriteError::Page { region, source })?
            .expect("a waiting region has entries");
        Ok(self.put(page.encode()).await?.digest)
    }

    async fn put(&mut self, bytes: Vec<u8>) -> Result<ObjectRef, WriteError> {
        let object = self.store.put_object(bytes.into()).await?;
        self.objects.insert(object);
        Ok(object)
    }

    /// Writes what is left, and the tables, of a disk of `length` bytes.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn finish(mut self, length: u64) -> Result<WrittenDisk, WriteError> {
        self.close_pack().await?;
        self.write_pages(None).await?;
        let n_regions = usize::try_from(geometry::regions_for(length)).expect("at most 2^22");
        self.pages.resize(n_regions, None);
        let table = RegionTable::encode(length, &self.pages);
        for leaf in table.leaves {
            self.put(leaf).await?;
        }
        let regions = self.put(table.root).await?;
        let index = match self.new.finish(&self.packs)? {
            Some(file) => Some(self.store.put_file(file).await?),
            None => None,
        };
        let mut lost_packs = self.known.excluded().clone();
        for pack in &self.packs {
            lost_packs.remove(&pack.digest);
        }
        self.objects.extend(self.packs.into_iter().chain(index));
        Ok(WrittenDisk {
            disk: Disk {
                length,
                regions,
                content: self.content.finish(length),
                chunks: self.stats.chunks,
                data_bytes: self.stats.data_bytes,
                stored_bytes: self.stats.stored_bytes,
            },
            stats: self.stats,
            index,
            known_packs: self.known_packs,
            objects: self.objects,
            lost_packs,
        })
    }
}
