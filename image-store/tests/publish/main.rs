//! What a store promises to publishers, on real directories: nothing is lost, nothing is torn, and
//! no byte that comes back is another one than was published.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod collect;
mod commits;
mod concurrent;
mod damage;
mod deltas;
mod kill;
mod killer;
mod mend;
mod minimum;
mod revisions;
mod roots;
mod sizes;
mod tags;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_format::chunker::ChunkerParams;
use image_format::geometry::BLOCK_LEN;
use image_format::manifest::Boot;
use image_format::{BLOCK_BYTES, ChunkId, Digest, ImageRef, ObjectRef};
use image_store::publication::PublishError;
use image_store::writer::WriteError;
use image_store::{
    ImageReader, ImageWriter, KeyRing, Known, Lifetimes, Prepared, Publication, Published, Signer,
    Store, WriteStats, WrittenDisk,
};
use tempfile::TempDir;

/// Blocks of each chunk of a test disk.
const CHUNK_BLOCKS: usize = 4;

/// A directory for a store, removed on drop.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// Opens the store; the first time it is made, with keys beside it.
    pub(crate) async fn store(&self) -> Store {
        let store = Store::open_or_create(&self.root()).await.unwrap();
        let keys = keys_of(&store);
        let ring = match keys.exists() {
            true => KeyRing::open(&keys).unwrap(),
            false => KeyRing::generate(&keys).unwrap(),
        };
        signer(&ring).establish(&store).await.unwrap();
        store
    }

    /// Makes a copy of the store and of its keys.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        for (from, bytes) in files_below(self.0.path()) {
            let to = copy
                .0
                .path()
                .join(from.strip_prefix(self.0.path()).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(&to, bytes).unwrap();
            let mode = std::fs::metadata(&from).unwrap().permissions();
            std::fs::set_permissions(&to, mode).unwrap();
        }
        copy
    }

    /// Every file of the store, by its path.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files_below(&self.root())
    }
}

fn files_below(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    collect_files(directory, &mut files);
    files
}

fn keys_of(store: &Store) -> PathBuf {
    store.root().with_file_name("keys")
}

pub(crate) fn ring(store: &Store) -> KeyRing {
    KeyRing::open(&keys_of(store)).unwrap()
}

pub(crate) fn signer(ring: &KeyRing) -> Signer<'_> {
    Signer {
        keys: ring,
        lifetimes: Lifetimes::DEFAULT,
        now: 1_700_000_000,
    }
}

fn collect_files(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_files(&path, files);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            files.insert(path, bytes);
        }
    }
}

/// A disk of `chunks` chunks that differ from each other; disks of one seed share none with others.
pub(crate) fn disk(seed: u8, chunks: u8) -> Vec<u8> {
    (0..chunks)
        .flat_map(|number| {
            let mut chunk = vec![seed | 1; CHUNK_BLOCKS * BLOCK_LEN];
            chunk[..2].copy_from_slice(&[seed, number]);
            chunk
        })
        .collect()
}

/// Writes a disk without making it visible: as far as a publish gets that is killed.
pub(crate) async fn write(store: &Store, content: &[u8]) -> Result<WrittenDisk, PublishError> {
    write_without(store, content, &[], <[u8]>::to_vec).await
}

/// Writes a disk, given packs that are known to be lost, and how a new chunk is encoded.
pub(crate) async fn write_without(
    store: &Store,
    content: &[u8],
    lost: &[Digest],
    encode: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<WrittenDisk, PublishError> {
    let names = store.names().await?;
    let mut known = store.chunk_indexes(&names.chunk_indexes).await?;
    known.exclude(lost.iter().copied());
    let known = Arc::new(known);
    let mut writer = ImageWriter::new(store.clone(), known.clone());
    let mut block = 0;
    for plain in content.chunks(CHUNK_BLOCKS * BLOCK_LEN) {
        let chunk = ChunkId::of(plain);
        let prepared = match known.find(chunk)? {
            Some(place) => Prepared::Known(place),
            None => Prepared::Encoded(encode(plain)),
        };
        let blocks = u32::try_from(plain.len()).unwrap() / BLOCK_BYTES;
        writer
            .push(block, blocks, chunk, prepared)
            .await
            .map_err(swept)?;
        block += u64::from(blocks);
    }
    writer.finish(content.len() as u64).await.map_err(swept)
}

/// What a sweep without a grace period may do to a publisher: the part of a file that it is about to
/// rename is taken for one of a killed writer.
fn swept(error: WriteError) -> PublishError {
    match error {
        WriteError::Store(error) => PublishError::Store(error),
        other => panic!("{other}"),
    }
}

pub(crate) fn publication(reference: &str, written: WrittenDisk) -> Publication {
    Publication {
        reference: reference.parse().unwrap(),
        created: 1_700_000_000,
        written,
        chunker: ChunkerParams::DEFAULT,
        boot: None,
        boot_pack: None,
        index_delta: None,
        known: Known::Published,
    }
}

pub(crate) fn boot() -> Boot {
    Boot {
        kernel: ObjectRef::of(b"kernel"),
        initramfs: ObjectRef::of(b"initramfs"),
        kernel_release: "6.1".to_owned(),
        cmdline: String::new(),
        root: None,
        base_url: None,
        mirrors: Vec::new(),
    }
}

/// Publishes a disk that can be booted.
pub(crate) async fn publish_bootable(
    store: &Store,
    reference: &str,
    content: &[u8],
) -> Result<Published, PublishError> {
    let mut bootable = publication(reference, write(store, content).await?);
    bootable.boot = Some(boot_stored(store).await);
    bootable.commit(store, &signer(&ring(store))).await
}

/// Stores what [`boot`] refers to.
pub(crate) async fn boot_stored(store: &Store) -> Boot {
    for bytes in [&b"kernel"[..], b"initramfs"] {
        store.put_object(bytes.to_vec().into()).await.unwrap();
    }
    boot()
}

pub(crate) async fn publish(
    store: &Store,
    reference: &str,
    content: &[u8],
) -> Result<(Published, WriteStats), PublishError> {
    let written = write(store, content).await?;
    let stats = written.stats;
    let ring = ring(store);
    let published = publication(reference, written)
        .commit(store, &signer(&ring))
        .await?;
    Ok((published, stats))
}

/// Reads a whole disk as a stranger would: the store is opened for it.
pub(crate) async fn read(root: &Path, reference: &ImageRef) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let store = Store::open(root).await.map_err(|error| text(&error))?;
    let resolved = store
        .resolve(reference)
        .await
        .map_err(|error| text(&error))?;
    let reader = ImageReader::open(store, &resolved.manifest)
        .await
        .map_err(|error| text(&error))?;
    let length = usize::try_from(reader.length()).unwrap();
    let bytes = reader.read(0, length).await.map_err(|error| text(&error))?;
    Ok(bytes.to_vec())
}

/// Reads what must be there.
pub(crate) async fn read_back(root: &Path, reference: &str) -> Vec<u8> {
    read(root, &reference.parse().unwrap()).await.unwrap()
}
