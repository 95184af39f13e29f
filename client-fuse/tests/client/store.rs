//! A published store in memory, made with the encoders of `image-format`.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use image_format::boot_pack::{Head, PlacedChunk, plan_frames};
use image_format::catalogue::{Catalogue, VersionEntry, catalogue_path};
use image_format::chunk::ChunkId;
use image_format::chunker::{ChunkerParams, Cut, End};
use image_format::digest::{Digest, ObjectRef};
use image_format::frame::Encoder;
use image_format::geometry::BLOCK_LEN;
use image_format::hint::{Hint, hint_path};
use image_format::index_delta::PatchesBuilder;
use image_format::manifest::{BootPack, Disk, IndexDelta, Manifest};
use image_format::pack::PACK_MAGIC;
use image_format::page::{Entry, Location, PageBuilder};
use image_format::reference::{ImageName, Tag, Version};
use image_format::region_table::{Lookup, RegionTable};
use image_format::{BLOCK_BYTES, REGION_BLOCKS, REGION_BYTES};

use crate::publisher::{Publisher, Release};

/// All files of a store, and the disk that was published into it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) files: HashMap<String, Bytes>,
    pub(crate) publisher: Publisher,
    /// The catalogue of each name, and what else is signed.
    pub(crate) targets: Vec<(String, ObjectRef)>,
    pub(crate) disk: Vec<u8>,
    pub(crate) disk_digest: Digest,
    /// Where the manifest is.
    pub(crate) manifest: String,
    pub(crate) n_chunks: u64,
    /// What is in the boot pack, in order.
    pub(crate) boot_set: Vec<PlacedChunk>,
    pub(crate) boot_pack: Option<BootPack>,
}

/// The image.
const NAME: &str = "lab/debian";

/// The length of a region.
const REGION_LEN: usize = REGION_BLOCKS as usize * BLOCK_LEN;

/// Packs of the tests are small, so that small disks have several.
const PACK_BYTES: usize = 2 << 20;

/// A chunk that is cut but not yet in a finished pack.
#[derive(Clone, Copy)]
struct Pending {
    region: usize,
    block: u32,
    blocks: u32,
    id: ChunkId,
    offset: u32,
    length: u32,
}

impl Store {
    /// Publishes `disk` as `lab/debian:12`, version 1.
    pub(crate) fn of(disk: Vec<u8>) -> Self {
        let regions: Vec<_> = disk.chunks(REGION_LEN).enumerate().collect();
        let mut store = Self::sparse(disk.len() as u64, &regions);
        store.disk = disk;
        store
    }

    /// Publishes `disk` with a boot pack of every `nth` of its chunks, the last one first.
    pub(crate) fn booting(disk: Vec<u8>, nth: usize) -> Self {
        let regions: Vec<_> = disk.chunks(REGION_LEN).enumerate().collect();
        let mut store = Self::publish(disk.len() as u64, &regions, &[], |placed| {
            let mut seen = HashSet::new();
            let set = placed.iter().rev().step_by(nth).copied();
            set.filter(|chunk| seen.insert(chunk.entry.chunk)).collect()
        });
        store.disk = disk;
        store
    }

    /// Publishes a disk of `length` bytes that is all hole but for these regions.
    pub(crate) fn sparse(length: u64, regions: &[(usize, &[u8])]) -> Self {
        Self::publish(length, regions, &[], |_| Vec::new())
    }

    /// Publishes the chunks of `bytes`, and says in the index that the first one is at block `again` of the next region
    /// too, with one block less: within a region nobody can say that.
    pub(crate) fn contradicting(length: u64, bytes: &[u8], again: u32) -> Self {
        Self::publish(length, &[(0, bytes)], &[again], |_| Vec::new())
    }

    fn publish(
        length: u64,
        regions: &[(usize, &[u8])],
        shortened: &[u32],
        choose: impl Fn(&[PlacedChunk]) -> Vec<PlacedChunk>,
    ) -> Self {
        let mut files = HashMap::new();
        let mut packer = Packer::default();
        for (region, bytes) in regions {
            packer.region(*region, bytes);
        }
        packer.finish_pack();
        packer.shorten(shortened);
        let n_regions = usize::try_from(length).unwrap().div_ceil(REGION_LEN);
        let mut pages: Vec<_> = (0..n_regions).map(|_| PageBuilder::default()).collect();
        for (chunk, location) in &packer.placed {
            pages[chunk.region].push(chunk.block, chunk.blocks, chunk.id, *location);
        }
        let mut page_of = |page: PageBuilder| {
            let page = page.finish().unwrap();
            page.map(|page| put(&mut files, page.encode()).digest)
        };
        let pages: Vec<_> = pages.into_iter().map(&mut page_of).collect();
        let table = RegionTable::encode(length, &pages);
        for leaf in table.leaves {
            put(&mut files, leaf);
        }
        let regions = put(&mut files, table.root);
        for pack in packer.packs {
            put(&mut files, pack);
        }
        let n_chunks = packer.placed.len() as u64;
        let placed: Vec<_> = packer.placed.iter().map(placed_chunk).collect();
        let boot_set = choose(&placed);
        let boot_pack = pack_boot(&mut files, &boot_set, &packer.plain);
        let blocks = packer
            .placed
            .iter()
            .map(|(chunk, _)| u64::from(chunk.blocks));
        let data_bytes = blocks.sum::<u64>() * u64::from(BLOCK_BYTES);
        let chunks = (n_chunks, data_bytes);
        let manifest = manifest(&mut files, length, regions, chunks, boot_pack);
        let targets = vec![
            catalogue(&mut files, length, regions, manifest, boot_pack),
            (
                "_chunk-indexes".to_owned(),
                ObjectRef::of(b"not for clients"),
            ),
        ];
        let publisher = Publisher::new();
        files.extend(publisher.sign(Release::number(1), &targets));
        Self {
            files,
            publisher,
            targets,
            disk: Vec::new(),
            disk_digest: regions.digest,
            manifest: manifest.digest.object_path(),
            n_chunks,
            boot_set,
            boot_pack,
        }
    }

    /// The same files with other metadata: signed by `publisher`, and none of before.
    pub(crate) fn signed(&self, publisher: &Publisher, release: Release) -> Self {
        let mut store = self.clone();
        store.files.retain(|path, _| !path.starts_with("metadata/"));
        store.files.extend(publisher.sign(release, &self.targets));
        store.publisher = publisher.clone();
        store
    }

    /// The same as the next version of `old`, with an index delta that `spoil` has changed.
    pub(crate) fn since(&self, old: &Self, spoil: impl Fn(&mut Vec<u8>)) -> Self {
        let mut store = self.clone();
        let page = |of: &Self, region| {
            let table = RegionTable::decode(&of.files[&of.disk_digest.object_path()]).unwrap();
            match table.lookup(region) {
                Lookup::Page(page) => Some(of.files[&page.object_path()].clone()),
                Lookup::Hole => None,
                Lookup::Leaf { .. } => panic!("these disks are short"),
            }
        };
        let mut manifest = Manifest::decode(&self.files[&self.manifest]).unwrap();
        let mut builder = PatchesBuilder::default();
        for region in 0..u32::try_from(manifest.disk.length.div_ceil(REGION_BYTES)).unwrap() {
            if let (Some(base), Some(page)) = (page(old, region), page(self, region))
                && base != page
            {
                assert!(builder.push(region, &base, &page, 1 << 20).unwrap());
            }
        }
        let mut delta = builder.finish().unwrap();
        spoil(&mut delta);
        manifest.index_delta = Some(IndexDelta {
            object: put(&mut store.files, delta),
            base: old.disk_digest,
        });
        let object = put(&mut store.files, manifest.encode());
        let Disk {
            length, regions, ..
        } = manifest.disk;
        store.manifest = object.digest.object_path();
        store.targets[0] = catalogue(&mut store.files, length, regions, object, self.boot_pack);
        store.signed(&old.publisher, Release::number(2))
    }

    /// The root that a client would be given.
    pub(crate) fn first_root(&self) -> Vec<u8> {
        self.publisher.roots[0].to_vec()
    }

    /// What reading `len` bytes at `offset` must return.
    pub(crate) fn flat(&self, offset: u64, len: u32) -> &[u8] {
        let within = |at: u64| {
            usize::try_from(at)
                .unwrap_or(usize::MAX)
                .min(self.disk.len())
        };
        &self.disk[within(offset)..within(offset.saturating_add(u64::from(len)))]
    }
}

/// A disk of `blocks` blocks and `odd` bytes: files of noise, of numbers that compress, and holes.
/// Files end in the middle of a block, as files do.
pub(crate) fn mixed_disk(blocks: usize, odd: usize) -> Vec<u8> {
    let mut random = Random(42);
    let length = blocks * 4096 + odd;
    let mut disk = Vec::with_capacity(length);
    while disk.len() < length {
        let run = 512 * (1 + usize::try_from(random.next() % 100).unwrap());
        match random.next() % 5 {
            0 => disk.resize(disk.len() + run, 0),
            1 => disk.extend((0..run).flat_map(|_| (random.next() % 1000).to_be_bytes())),
            _ => disk.extend((0..run / 8).flat_map(|_| random.next().to_le_bytes())),
        }
        disk.resize(disk.len().next_multiple_of(4096), 0);
    }
    disk.truncate(length);
    disk
}

/// A small random number generator: the same numbers in every run.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[derive(Default)]
struct Packer {
    pack: Vec<u8>,
    pending: Vec<Pending>,
    packs: Vec<Vec<u8>>,
    placed: Vec<(Pending, Location)>,
    known: BTreeMap<ChunkId, Location>,
    plain: HashMap<ChunkId, Vec<u8>>,
}

impl Packer {
    fn region(&mut self, region: usize, bytes: &[u8]) {
        let block_bytes = BLOCK_BYTES as usize;
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(block_bytes), 0);
        let (mut rest, mut block) = (&bytes[..], 0);
        while !rest.is_empty() {
            let blocks = match ChunkerParams::DEFAULT.cut(rest, End::Region) {
                Cut::Zero { blocks } => blocks,
                Cut::Chunk { blocks } => {
                    self.chunk(region, block, &rest[..blocks * block_bytes]);
                    blocks
                }
                Cut::More => panic!("the region ends here"),
            };
            rest = &rest[blocks * block_bytes..];
            block += u32::try_from(blocks).unwrap();
        }
    }

    fn chunk(&mut self, region: usize, block: u32, plain: &[u8]) {
        let blocks = u32::try_from(plain.len()).unwrap() / BLOCK_BYTES;
        let id = ChunkId::of(plain);
        self.plain.insert(id, plain.to_vec());
        if self.pack.is_empty() {
            self.pack.extend_from_slice(PACK_MAGIC);
        }
        let stored = Encoder::new(1).unwrap().encode(plain).unwrap();
        let offset = u32::try_from(self.pack.len()).unwrap();
        let length = u32::try_from(stored.len()).unwrap();
        self.pack.extend_from_slice(&stored);
        self.pending.push(Pending {
            region,
            block,
            blocks,
            id,
            offset,
            length,
        });
        if self.pack.len() >= PACK_BYTES {
            self.finish_pack();
        }
    }

    /// Places the first chunk again, without its last block, at each of `blocks` of the next region.
    fn shorten(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let (first, location) = self.placed[0];
            let again = Pending {
                region: first.region + 1,
                block,
                blocks: first.blocks - 1,
                ..first
            };
            self.placed.push((again, location));
        }
    }

    fn finish_pack(&mut self) {
        if self.pack.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.pack);
        let pack = ObjectRef::of(&bytes);
        self.packs.push(bytes);
        for chunk in self.pending.drain(..) {
            let location = Location {
                pack,
                offset: chunk.offset,
                length: chunk.length,
            };
            let location = *self.known.entry(chunk.id).or_insert(location);
            self.placed.push((chunk, location));
        }
    }
}

fn put(files: &mut HashMap<String, Bytes>, bytes: Vec<u8>) -> ObjectRef {
    let object = ObjectRef::of(&bytes);
    files.insert(object.digest.object_path(), bytes.into());
    object
}

fn placed_chunk((chunk, location): &(Pending, Location)) -> PlacedChunk {
    PlacedChunk {
        region: u32::try_from(chunk.region).unwrap(),
        entry: Entry {
            block: chunk.block,
            blocks: chunk.blocks,
            chunk: chunk.id,
            pack: 0,
            offset: location.offset,
            length: location.length,
        },
        pack: location.pack,
    }
}

fn pack_boot(
    files: &mut HashMap<String, Bytes>,
    set: &[PlacedChunk],
    plain: &HashMap<ChunkId, Vec<u8>>,
) -> Option<BootPack> {
    let mut encoder = Encoder::new(3).unwrap();
    let frames: Vec<_> = plan_frames(set)
        .into_iter()
        .map(|frame| {
            let bytes: Vec<_> = set[frame]
                .iter()
                .flat_map(|chunk| plain[&chunk.entry.chunk].clone())
                .collect();
            encoder.encode(&bytes).unwrap()
        })
        .collect();
    let lengths: Vec<_> = frames
        .iter()
        .map(|frame| u32::try_from(frame.len()).unwrap())
        .collect();
    let head = Head::build(set, &lengths).ok()?.encode();
    let profile = put(files, b"not for clients".to_vec());
    Some(BootPack {
        head: ObjectRef::of(&head),
        object: put(files, [head, frames.concat()].concat()),
        profile,
    })
}

fn manifest(
    files: &mut HashMap<String, Bytes>,
    length: u64,
    regions: ObjectRef,
    chunks: (u64, u64),
    boot_pack: Option<BootPack>,
) -> ObjectRef {
    let (chunks, data_bytes) = chunks;
    let manifest = Manifest {
        format: 1,
        name: NAME.parse().unwrap(),
        version: Version::FIRST,
        revision: 1,
        disk: Disk {
            length,
            regions,
            content: regions.digest,
            chunks,
            data_bytes,
            stored_bytes: 0,
        },
        chunker: ChunkerParams::DEFAULT,
        boot: None,
        boot_pack,
        index_delta: None,
    };
    put(files, manifest.encode())
}

fn catalogue(
    files: &mut HashMap<String, Bytes>,
    length: u64,
    regions: ObjectRef,
    manifest: ObjectRef,
    boot_pack: Option<BootPack>,
) -> (String, ObjectRef) {
    let name: ImageName = NAME.parse().unwrap();
    let entry = VersionEntry {
        manifest,
        revision: 1,
        created: 1_700_000_000,
        disk: regions.digest,
        content: regions.digest,
        length,
        bootable: false,
    };
    let mut catalogue = Catalogue::empty(name.clone());
    catalogue.versions.insert(Version::FIRST, entry);
    catalogue
        .tags
        .insert("12".parse::<Tag>().unwrap(), Version::FIRST);
    let bytes = catalogue.encode();
    let object = ObjectRef::of(&bytes);
    files.insert(catalogue_path(&name, &object.digest), bytes.into());
    let hint = Hint {
        format: 1,
        catalogue: object,
        manifest,
        disk: regions.digest,
        boot_pack,
    };
    let path = hint_path(&"lab/debian:12".parse().unwrap());
    files.insert(path, hint.encode().into());
    (name.to_file_safe(), object)
}
