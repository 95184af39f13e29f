//! Disks that are written to: what an overlay keeps, and what it refuses.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use client_fuse::overlay::layered::Layered;
use client_fuse::overlay::{Base, Kept, Overlay, OverlayError, Patch};
use client_fuse::stats::Stats;
use image_format::overlay::{Layout, Side};

use crate::source::MemorySource;
use crate::stack::{Setup, start};
use crate::store::{Random, Store, mixed_disk};

mod deaths;
mod model;
mod mounted;
mod systems;
mod threads;

const BLOCKS: usize = 150;
const ODD: usize = 321;
const LENGTH: u64 = (BLOCKS * 4096 + ODD) as u64;

/// So short that tests see checkpoints.
const CHECKPOINT_BYTES: u64 = 32 << 10;

/// A disk that can be written to.
struct Writable {
    stats: Arc<Stats>,
    disk: Layered<MemorySource>,
    overlay: Arc<Overlay>,
    /// What a process after this one may go on with.
    kept: Option<Kept>,
}

fn store() -> Arc<Store> {
    static STORE: std::sync::LazyLock<Arc<Store>> =
        std::sync::LazyLock::new(|| Arc::new(Store::of(mixed_disk(BLOCKS, ODD))));
    Arc::clone(&STORE)
}

fn base_of(store: &Store) -> Base {
    Base {
        disk: store.disk_digest,
        length: store.disk.len() as u64,
        reference: "lab/debian:12@1".to_owned(),
    }
}

/// A directory in memory, where a sync costs nothing.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

async fn open(store: &Arc<Store>, path: &Path) -> Result<Writable, OverlayError> {
    let overlay = Overlay::open_with(path, &base_of(store), CHECKPOINT_BYTES)?;
    Ok(under(store, overlay, None).await)
}

/// The disk under `overlay`.
async fn under(store: &Arc<Store>, overlay: Arc<Overlay>, kept: Option<Kept>) -> Writable {
    let source = MemorySource::new(store);
    let stack = start(&source, Setup::DEFAULT).await;
    let disk = Arc::into_inner(stack.disk).unwrap();
    let disk = Layered::writable(disk, Arc::clone(&overlay));
    let stats = stack.stats;
    Writable {
        stats,
        disk,
        overlay,
        kept,
    }
}

impl Writable {
    async fn read_all(&self) -> Vec<u8> {
        let length = u32::try_from(self.disk.length()).unwrap();
        self.disk.read(0, length).await.unwrap().to_vec()
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> u32 {
        let bytes = Bytes::copy_from_slice(bytes);
        self.disk.write(offset, bytes).await.unwrap()
    }
}

/// An overlay file, closed, in which block 10 is written.
async fn written(directory: &Path) -> PathBuf {
    let path = directory.join("overlay");
    let writable = open(&store(), &path).await.unwrap();
    writable.write(40_960, &[7; 4096]).await;
    writable.disk.sync().await.unwrap();
    path
}

fn on_file(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

async fn refusal(path: &Path) -> String {
    let Err(error) = open(&store(), path).await else {
        panic!("it opens");
    };
    error.to_string()
}

#[tokio::test]
async fn what_was_synced_is_there_after_a_restart() {
    let (store, directory) = (store(), directory());
    let path = directory.path().join("overlay");
    let mut model = store.disk.clone();
    let writable = open(&store, &path).await.unwrap();
    assert!(writable.read_all().await == model, "it begins as the image");
    // In the middle of blocks, over their edges, whole, and the odd end of the disk.
    for (offset, len) in [(5, 10), (4000, 5000), (81_920, 8192), (LENGTH - 400, 400)] {
        let at = usize::try_from(offset).unwrap();
        model[at..at + len].fill(0xA7);
        assert_eq!(writable.write(offset, &vec![0xA7; len]).await as usize, len);
    }
    writable.disk.discard(100_000, 50_000).await.unwrap();
    model[100_000..150_000].fill(0);
    assert!(writable.read_all().await == model);
    writable.disk.sync().await.unwrap();
    drop(writable);
    let writable = open(&store, &path).await.unwrap();
    assert!(writable.read_all().await == model, "all of it is kept");
}

#[tokio::test]
async fn a_write_ends_where_the_disk_ends() {
    let (store, directory) = (store(), directory());
    let path = directory.path().join("overlay");
    let writable = open(&store, &path).await.unwrap();
    assert_eq!(writable.write(LENGTH - 10, &[1; 100]).await, 10);
    let bytes = Bytes::from_static(b"x");
    assert!(writable.disk.write(LENGTH, bytes.clone()).await.is_err());
    assert!(writable.disk.write(u64::MAX, bytes).await.is_err());
    writable
        .disk
        .discard(LENGTH - 5000, u64::MAX)
        .await
        .unwrap();
    let tail = writable.disk.read(LENGTH - 5000, 9000).await.unwrap();
    assert!(tail.len() == 5000 && tail.iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_second_writer_is_refused() {
    let directory = directory();
    let path = directory.path().join("overlay");
    let first = open(&store(), &path).await.unwrap();
    let message = refusal(&path).await;
    assert!(message.contains("in use by another mount"), "{message}");
    drop(first);
    open(&store(), &path).await.unwrap();
}

#[tokio::test]
async fn an_overlay_of_another_disk_is_refused_with_its_name() {
    let directory = directory();
    let path = written(directory.path()).await;
    let other = Arc::new(Store::of(mixed_disk(BLOCKS + 1, ODD)));
    let Err(error) = open(&other, &path).await else {
        panic!("it opens");
    };
    let message = error.to_string();
    assert!(
        message.contains("lab/debian:12@1") && message.contains("mount that version"),
        "{message}"
    );
    open(&store(), &path).await.unwrap();
}

#[tokio::test]
async fn a_damaged_header_is_mended_from_its_copy() {
    let directory = directory();
    let path = written(directory.path()).await;
    for place in [0, 4096] {
        on_file(&path).write_all_at(&[0xFF; 4096], place).unwrap();
        let writable = open(&store(), &path).await.unwrap();
        assert_eq!(
            &writable.disk.read(40_960, 4096).await.unwrap()[..],
            [7; 4096]
        );
    }
    on_file(&path).write_all_at(&[0xFF; 8192], 0).unwrap();
    let message = refusal(&path).await;
    assert!(message.contains("is no overlay"), "{message}");
    // Zeros look like a file that was never finished, but for what was written.
    on_file(&path).write_all_at(&[0; 8192], 0).unwrap();
    let message = refusal(&path).await;
    assert!(message.contains("is no overlay"), "{message}");
}

#[tokio::test]
async fn a_file_that_is_no_overlay_is_refused_and_an_unfinished_one_begun_anew() {
    let directory = directory();
    let path = directory.path().join("letter");
    fs::write(&path, "Dear reader,").unwrap();
    let message = refusal(&path).await;
    assert!(message.contains("is no overlay"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"Dear reader,");
    assert!(refusal(directory.path()).await.contains("cannot open"));
    // A file system image of somebody else may begin with zeros, and be shorter or longer than an overlay.
    let path = directory.path().join("foreign");
    for length in [1 << 20, 3 << 20, Layout::of(LENGTH).file_bytes() + 4096] {
        let mut foreign = vec![0; 1 << 20];
        foreign[65_536..].fill(5);
        fs::write(&path, &foreign).unwrap();
        on_file(&path).set_len(length).unwrap();
        let message = refusal(&path).await;
        assert!(message.contains("is no overlay"), "{message}");
        assert!(fs::read(&path).unwrap()[..1 << 20] == foreign);
        assert_eq!(fs::metadata(&path).unwrap().len(), length);
    }
    // Killed before the header was there.
    let layout = Layout::of(LENGTH);
    let path = directory.path().join("unfinished");
    File::create(&path)
        .unwrap()
        .set_len(layout.file_bytes())
        .unwrap();
    on_file(&path)
        .write_all_at(b"half a batch", layout.log(1).start)
        .unwrap();
    let writable = open(&store(), &path).await.unwrap();
    assert!(writable.read_all().await == store().disk);
}

#[tokio::test]
async fn a_truncated_overlay_is_refused() {
    let directory = directory();
    let path = written(directory.path()).await;
    let length = fs::metadata(&path).unwrap().len();
    on_file(&path).set_len(length - 1).unwrap();
    let message = refusal(&path).await;
    assert!(message.contains("shorter than it was"), "{message}");
}

#[tokio::test]
async fn each_read_counts_once_whoever_has_its_blocks() {
    let directory = directory();
    let path = written(directory.path()).await;
    let writable = open(&store(), &path).await.unwrap();
    let counted = || {
        let stats = &writable.stats;
        let errors = stats.read_errors.count();
        (stats.reads.count(), stats.read_bytes.count(), errors)
    };
    // What surrounds a part of a block is read for the write.
    writable.write(80_000, b"part").await;
    assert_eq!(counted(), (0, 0, 0));
    // Blocks of the image, of the overlay, and of the image again.
    writable.disk.read(36_864, 3 * 4096).await.unwrap();
    assert_eq!(counted(), (1, 3 * 4096, 0));
    writable.disk.read(40_960, 4096).await.unwrap();
    writable.disk.read(0, 4096).await.unwrap();
    writable.disk.read(LENGTH, 4096).await.unwrap();
    assert_eq!(counted(), (4, 5 * 4096, 0));
    let rot = Layout::of(LENGTH).place(Side::A, 10) + 99;
    on_file(&path).write_all_at(&[6], rot).unwrap();
    writable.disk.read(36_864, 3 * 4096).await.unwrap_err();
    assert_eq!(counted(), (5, 5 * 4096, 1));
}

#[tokio::test]
async fn a_block_that_rots_is_an_error_until_it_is_written_again() {
    let directory = directory();
    let path = written(directory.path()).await;
    let layout = Layout::of(LENGTH);
    on_file(&path)
        .write_all_at(&[6], layout.place(Side::A, 10) + 99)
        .unwrap();
    let writable = open(&store(), &path).await.unwrap();
    let error = writable.disk.read(40_960, 4096).await.unwrap_err();
    assert!(
        error.to_string().contains("block 10 of the disk"),
        "{error}"
    );
    assert!(
        writable
            .disk
            .write(40_970, Bytes::from_static(b"part"))
            .await
            .is_err(),
        "what is around a part has to be known"
    );
    assert!(
        writable.disk.read(36_864, 4096).await.is_ok(),
        "others are whole"
    );
    writable.write(40_960, &[8; 4096]).await;
    assert_eq!(
        &writable.disk.read(40_960, 4096).await.unwrap()[..],
        [8; 4096]
    );
}

#[tokio::test]
async fn every_damaged_byte_of_a_log_is_noticed() {
    let directory = directory();
    let path = directory.path().join("overlay");
    let base = base_of(&store());
    let overlay = Overlay::open(&path, &base).unwrap();
    let (mut before_last, mut now) = (Vec::new(), Vec::new());
    for step in 0..3 {
        before_last = std::mem::take(&mut now);
        let patch = Patch {
            offset: step * 8192,
            bytes: Bytes::from(vec![9; 8192]),
            disk_length: LENGTH,
            base: Vec::new(),
        };
        overlay.write(patch).await.unwrap();
        overlay.sync().await.unwrap();
        now = overlay.read(0..10).await.unwrap();
    }
    drop(overlay);
    let good = model::sectors(&path);
    let log = Layout::of(LENGTH).log(1).start;
    // A checkpoint and three batches, a block each; the bytes that count are at their fronts.
    for at in (0..4).flat_map(|batch| (0..90).map(move |byte| batch * 4096 + byte)) {
        fs::remove_file(&path).unwrap();
        model::write_file(&path, &good);
        let (file, mut byte) = (on_file(&path), [0]);
        file.read_exact_at(&mut byte, log + at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], log + at).unwrap();
        match Overlay::open(&path, &base) {
            Err(error) => assert!(error.to_string().contains("is damaged"), "{error}"),
            // Padding, or the last batch, which looks as if a crash had cut it.
            Ok(overlay) => {
                let found = overlay.read(0..10).await.unwrap();
                let padding = found == now && at % 4096 >= if at < 4096 { 56 } else { 88 };
                let cut = found == before_last && at >= 3 * 4096;
                assert!(padding || cut, "byte {at}");
            }
        }
    }
}

#[tokio::test]
async fn space_is_given_back() {
    let directory = directory();
    let path = directory.path().join("overlay");
    let used = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let writable = open(&store(), &path).await.unwrap();
    let empty = used(&path);
    assert!(empty < 1 << 20, "an empty overlay takes {empty} bytes");
    let mut random = Random(3);
    let noise: Vec<u8> = (0..LENGTH)
        .map(|_| random.next().to_le_bytes()[0])
        .collect();
    for _ in 0..3 {
        writable.write(0, &noise).await;
        writable.disk.sync().await.unwrap();
    }
    let full = used(&path);
    assert!(full > LENGTH, "{full} bytes");
    writable.overlay.close().await.unwrap();
    let once = used(&path);
    assert!(
        once < LENGTH + (2 << 20),
        "{once} bytes: each block once, and the log"
    );
    writable.disk.discard(0, LENGTH).await.unwrap();
    writable.disk.sync().await.unwrap();
    let discarded = used(&path);
    assert!(discarded < 2 << 20, "{discarded} bytes: the log");
    assert!(writable.read_all().await.iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_long_log_is_replaced_by_a_checkpoint() {
    let directory = directory();
    let path = directory.path().join("overlay");
    let writable = open(&store(), &path).await.unwrap();
    let mut model = store().disk.clone();
    for step in 0..100_u8 {
        let at = usize::from(step % 7) * 4096;
        model[at..at + 4096].fill(step);
        writable.write(at as u64, &[step; 4096]).await;
        writable.disk.sync().await.unwrap();
    }
    drop(writable);
    let writable = open(&store(), &path).await.unwrap();
    assert!(writable.read_all().await == model);
    let layout = Layout::of(LENGTH);
    let file = on_file(&path);
    let begins = [0, 1].map(|generation| {
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, layout.log(generation).start)
            .unwrap();
        &magic == b"CIRCBTCH"
    });
    assert!(begins[0] != begins[1], "there is one log");
    let used = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(used < 2 << 20, "100 batches and 7 blocks take {used} bytes");
}
