//! Keeps what is written to a disk in a file beside it, so that a published image can be written to.
//!
//! The file is that of [`image_format::overlay`]; the rules by which no crash breaks a block are those
//! of the [`ledger`]. Here they meet the file:
//!
//! - *write*: bytes go to the side that the log does not point to; they are dirty.
//! - *sync*: data reach the disk (`fdatasync`), then one batch of the log does (`fdatasync`). After a
//!   crash the disk is as it was at some sync that had begun, none before the last that had ended.
//! - *read*: what comes out of the file is held against its checksum, each time.
//! - *discard*: the blocks are zeros at once; their places are given back after the next sync.
//!
//! Nothing is ever overwritten that a log on disk points to, so a torn write is either not pointed
//! to, or noticed by its checksum: an error, never other bytes.
//!
//! Order of locks: `log`, then `io`, then `ledger`. The first two are held across file operations,
//! which run on threads that may block; the ledger's for a few lines. Whoever is dropped while it
//! waits leaves the file operation to end by itself, with its lock.
//!
//! What is dirty is in a [`journal`], too, where the process has a supervisor: a worker after this one goes on from there.
//!
//! Bounds: dirty blocks, [`DIRTY_MAX`]; how long they stay so, [`FLUSH_AFTER`]; the log, twice the
//! records that the map needs and 4 MiB; bytes in the file that nothing points to, 64 MiB and what a
//! crash left; file operations under way, [`THREADS`]. Opening reads the log: 16 to 32 bytes for each written block.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use image_format::BLOCK_BYTES;
use image_format::overlay::{Layout, Log, RECORDS_MAX, Record, Side, checksum};
use nix::fcntl::Flock;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;

mod commit;
mod counters;
mod error;
pub mod journal;
pub mod layered;
pub mod ledger;
mod open;
pub mod ranges;

use commit::HEADROOM_BYTES;
pub use commit::keep_flushed;
pub use counters::{OverlayNow, OverlayStats};
pub use error::OverlayError;
pub use open::{Base, Kept};

use crate::waits::{self, Layer};
use error::Attempt;
use journal::{ENTRIES_MAX, Entry, Journal};
use ledger::{Content, Ledger, Run};

/// The most dirty blocks, 256 MiB of them, before a writer has to wait for a sync: half a batch.
const DIRTY_MAX: usize = RECORDS_MAX / 2;

/// How long what was written may stay dirty when nobody syncs.
const FLUSH_AFTER: Duration = Duration::from_secs(5);

const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCK_LEN: usize = BLOCK_BYTES as usize;

/// An open overlay file; nobody else has it open.
#[derive(Debug)]
pub struct Overlay {
    file: File,
    /// Unless it is that of a supervisor.
    _lock: Option<Flock<File>>,
    path: PathBuf,
    layout: Layout,
    seed: u64,
    /// A log that is longer is replaced by a checkpoint, if that is half as long.
    checkpoint_bytes: u64,
    /// Held by who syncs.
    log: Arc<tokio::sync::Mutex<Log>>,
    /// What is not on disk yet, for a process after this one, if there may be one.
    journal: Option<Journal>,
    /// Of the log, for who makes room in it without waiting for a sync.
    space: Mutex<Space>,
    /// Shared by who reads data; exclusive to who writes it or gives it back.
    io: Arc<RwLock<()>>,
    ledger: Mutex<Ledger>,
    /// Changes whenever a batch is no longer in flight.
    landed: watch::Sender<()>,
    /// Set when it cannot be known any more what is on disk.
    broken: AtomicBool,
    stats: OverlayStats,
}

/// Where the log goes on.
#[derive(Debug)]
struct Space {
    /// As the last sync left it.
    log: Log,
    /// Up to here the log has its place on disk, counted from its start.
    reserved: u64,
}

/// Bytes to write, and what is around them.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Where on the disk.
    pub offset: u64,
    /// The bytes; they end within the disk.
    pub bytes: Bytes,
    /// The length of the disk: behind it, a last block has zeros.
    pub disk_length: u64,
    /// The whole blocks of the image of which only a part is written, as far as they were
    /// [`Overlay::needs_base`] at any time before.
    pub base: Vec<(u64, Bytes)>,
}

impl Patch {
    /// The blocks that it touches.
    #[must_use]
    pub const fn blocks(&self) -> Range<u64> {
        let end = self.offset + self.bytes.len() as u64;
        self.offset / BLOCK..end.div_ceil(BLOCK)
    }

    /// The first and last block, as far as only a part of them is written.
    pub fn partial(&self) -> impl Iterator<Item = u64> {
        let end = self.offset + self.bytes.len() as u64;
        let first = self.offset / BLOCK;
        let last = end.saturating_sub(1) / BLOCK;
        let first_partial = !self.offset.is_multiple_of(BLOCK);
        let last_partial = !end.is_multiple_of(BLOCK) && end < self.disk_length;
        let first_too = first_partial && !(last_partial && first == last);
        let first = first_too.then_some(first);
        first.into_iter().chain(last_partial.then_some(last))
    }
}

impl Overlay {
    /// Whether a partial write of `block` needs what the image has there. A "no" is for ever.
    #[must_use]
    pub fn needs_base(&self, block: u64) -> bool {
        let runs = self.ledger().look_up(block..block + 1);
        runs.iter().any(|run| run.content == Content::Base)
    }

    /// When the file was last written to.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        let modified = self
            .file
            .metadata()
            .and_then(|metadata| metadata.modified());
        modified.unwrap_or(UNIX_EPOCH)
    }

    /// What is known of `blocks`, and the bytes of those that are in the file, each checked.
    ///
    /// # Errors
    ///
    /// When they cannot be read, or do not match their checksum.
    pub async fn read(
        self: &Arc<Self>,
        blocks: Range<u64>,
    ) -> Result<Vec<(Run, Bytes)>, OverlayError> {
        let runs = self.ledger().look_up(blocks.clone());
        if !runs.iter().any(Run::is_data) {
            return Ok(runs.into_iter().map(|run| (run, Bytes::new())).collect());
        }
        waits::note(Layer::Overlay);
        let guard = Arc::clone(&self.io).read_owned().await;
        let this = Arc::clone(self);
        blocking(move || {
            let runs = this.ledger().look_up(blocks);
            let read = runs.into_iter().map(|run| {
                let bytes = this.read_run(&run)?;
                Ok((run, bytes))
            });
            let read = read.collect();
            drop(guard);
            read
        })
        .await
    }

    /// Writes a patch.
    ///
    /// # Errors
    ///
    /// When the file system is full, a partial write meets a block that is damaged, or the overlay is
    /// out of use. What was there before is there still, or in parts what was to be written.
    ///
    /// # Cancel safety
    ///
    /// Once it has the file for itself, the write is made.
    pub async fn write(self: &Arc<Self>, patch: Patch) -> Result<(), OverlayError> {
        let blocks = patch.blocks();
        let written = self.write_patch(patch).await;
        self.stats.writes.increment();
        let counter = &self.stats.written_blocks;
        self.stats.changed(&written, &blocks, counter);
        written
    }

    async fn write_patch(self: &Arc<Self>, patch: Patch) -> Result<(), OverlayError> {
        let guard = self.alone(patch.blocks()).await?;
        let this = Arc::clone(self);
        blocking(move || {
            let outcome = this.write_alone(&patch);
            drop(guard);
            outcome
        })
        .await
    }

    /// Makes whole blocks read as zeros.
    ///
    /// # Errors
    ///
    /// When the file system is full, or the overlay is out of use.
    pub async fn discard(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), OverlayError> {
        let discarded = self.discard_blocks(blocks.clone()).await;
        let counter = &self.stats.discarded_blocks;
        self.stats.changed(&discarded, &blocks, counter);
        discarded
    }

    async fn discard_blocks(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), OverlayError> {
        let guard = self.alone(blocks.clone()).await?;
        let this = Arc::clone(self);
        blocking(move || {
            this.reserve(1, 0)?;
            let record = Record::Zeros {
                block: blocks.start,
                count: blocks.end - blocks.start,
            };
            this.note([Entry::Record(record)])?;
            this.ledger().discard(&blocks);
            drop(guard);
            Ok(())
        })
        .await
    }

    /// Waits until nobody else uses the file and none of `blocks` is in flight.
    async fn alone(
        self: &Arc<Self>,
        blocks: Range<u64>,
    ) -> Result<OwnedRwLockWriteGuard<()>, OverlayError> {
        loop {
            self.check_in_use()?;
            let mut landed = self.landed.subscribe();
            let guard = Arc::clone(&self.io).write_owned().await;
            let (flying, n_dirty) = {
                let ledger = self.ledger();
                (ledger.is_flying(&blocks), ledger.n_dirty())
            };
            let noted = self.journal.as_ref().map_or(0, Journal::n_entries);
            if !flying && n_dirty < DIRTY_MAX && noted < ENTRIES_MAX {
                // What flew when it failed may be on the disk, and the log may point to it.
                self.check_in_use()?;
                return Ok(guard);
            }
            drop(guard);
            if flying {
                // The sender lives as long as we do.
                let _ = landed.changed().await;
            } else {
                self.sync().await?;
            }
        }
    }

    fn check_in_use(&self) -> Result<(), OverlayError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(OverlayError::OutOfUse {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    fn write_alone(&self, patch: &Patch) -> Result<(), OverlayError> {
        let blocks = patch.blocks();
        let bytes = self.whole_blocks(patch)?;
        let n_blocks = usize::try_from(blocks.end - blocks.start).unwrap_or(usize::MAX);
        self.reserve(n_blocks, HEADROOM_BYTES)?;
        let places = self.ledger().place(blocks.clone());
        let sums: Vec<_> = bytes
            .chunks_exact(BLOCK_LEN)
            .map(|block| checksum(self.seed, block))
            .collect();
        self.note_patch(&places, &sums)?;
        let mut sums = &sums[..];
        for (side, run) in places {
            let part = &bytes[within(&blocks, &run)];
            let (of_run, rest) = sums.split_at(part.len() / BLOCK_LEN);
            let (written, outcome) = self.write_blocks(side, run.start, part);
            let n_written = written / BLOCK_LEN;
            self.ledger()
                .note_written(side, run.start, &of_run[..n_written]);
            if let Err(error) = outcome {
                let block = run.start + n_written as u64;
                let count = blocks.end - block;
                self.note([Entry::Undone { block, count }])
                    .inspect_err(|_| self.broken.store(true, Ordering::Relaxed))?;
                return Err(self.failed("write to", error));
            }
            sums = rest;
        }
        Ok(())
    }

    /// Notes that blocks are about to be written to `places`, with these checksums one after another.
    fn note_patch(&self, places: &[(Side, Range<u64>)], sums: &[u64]) -> Result<(), OverlayError> {
        if self.journal.is_none() {
            return Ok(());
        }
        let blocks = places
            .iter()
            .flat_map(|(side, run)| run.clone().map(|block| (*side, block)));
        let records = blocks.zip(sums).map(|((side, block), sum)| Record::Data {
            block,
            side,
            sum: *sum,
        });
        let entries = std::iter::once(Entry::Patch).chain(records.map(Entry::Record));
        self.note(entries)
    }

    /// Notes what a process after this one has to know, if there may be one.
    fn note(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(), OverlayError> {
        let Some(journal) = &self.journal else {
            return Ok(());
        };
        let noted = journal.note(entries);
        noted.map_err(|error| self.failed("keep the journal of", error))
    }

    /// Writes whole blocks; returns how many bytes of whole blocks were written before an error.
    fn write_blocks(&self, side: Side, first: u64, bytes: &[u8]) -> (usize, io::Result<()>) {
        let place = self.layout.place(side, first);
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], place + done as u64) {
                Ok(0) => {
                    return (
                        done / BLOCK_LEN * BLOCK_LEN,
                        Err(io::ErrorKind::WriteZero.into()),
                    );
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (done / BLOCK_LEN * BLOCK_LEN, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// The bytes of a patch with what else is in the blocks that it touches.
    fn whole_blocks(&self, patch: &Patch) -> Result<Bytes, OverlayError> {
        let blocks = patch.blocks();
        let length = within(&blocks, &blocks).end;
        if patch.bytes.len() == length {
            return Ok(patch.bytes.clone());
        }
        let mut whole = BytesMut::zeroed(length);
        for block in patch.partial() {
            let runs = self.ledger().look_up(block..block + 1);
            let Some(run) = runs.first() else { continue };
            let old = match run.content {
                Content::Base => patch.base_block(block),
                Content::Zeros | Content::Data { .. } => self.read_run(run)?,
            };
            let at = within(&blocks, &(block..block + 1)).start;
            whole[at..at + old.len()].copy_from_slice(&old);
        }
        let at = usize::try_from(patch.offset % BLOCK).expect("it is below 4096");
        whole[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        Ok(whole.freeze())
    }

    /// The bytes of a run that is in the file, or of zeros; none for the image's own.
    fn read_run(&self, run: &Run) -> Result<Bytes, OverlayError> {
        let length = within(&run.blocks, &run.blocks).end;
        let (side, sums) = match &run.content {
            Content::Base => return Ok(Bytes::new()),
            Content::Zeros => return Ok(BytesMut::zeroed(length).freeze()),
            Content::Data { side, sums } => (*side, sums),
        };
        let mut bytes = BytesMut::zeroed(length);
        self.file
            .read_exact_at(&mut bytes, self.layout.place(side, run.blocks.start))
            .map_err(|error| self.failed("read", error))?;
        self.stats.read_blocks.add(sums.len() as u64);
        for ((block, content), sum) in run.blocks.clone().zip(bytes.chunks(BLOCK_LEN)).zip(sums) {
            if checksum(self.seed, content) != *sum {
                return Err(OverlayError::Checksum {
                    block,
                    path: self.path.clone(),
                });
            }
        }
        Ok(bytes.freeze())
    }

    fn failed(&self, attempt: Attempt, source: io::Error) -> OverlayError {
        OverlayError::io(attempt, &self.path, source)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    const fn is_data(&self) -> bool {
        matches!(self.content, Content::Data { .. })
    }
}

impl Patch {
    /// What the image has in `block`.
    fn base_block(&self, block: u64) -> Bytes {
        let found = self.base.iter().find(|(number, _)| *number == block);
        let (_, bytes) =
            found.expect("whoever writes a part of a block asked whether it needs this");
        bytes.clone()
    }
}

/// Where the bytes of `run` are in those of `blocks`.
fn within(blocks: &Range<u64>, run: &Range<u64>) -> Range<usize> {
    let at = |block: u64| {
        usize::try_from((block - blocks.start) * BLOCK).expect("requests are far below 4 GiB")
    };
    at(run.start)..at(run.end)
}

/// File operations that may block at once; the runtime has as many threads for them.
pub const THREADS: usize = 8;

static TURNS: Semaphore = Semaphore::const_new(THREADS);

/// Runs a file operation where it may block, even if nobody waits for it any more. What waits for a turn may hold
/// locks: what has one waits for none of them.
async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> Result<T, OverlayError> + Send + 'static,
) -> Result<T, OverlayError> {
    let operating = match TURNS.try_acquire() {
        Ok(turn) => in_turn(turn, operation),
        Err(_) => tokio::spawn(async move {
            // Nobody closes the semaphore.
            match TURNS.acquire().await {
                Ok(turn) => in_turn(turn, operation)
                    .await
                    .unwrap_or(Err(OverlayError::Panicked)),
                Err(_) => Err(OverlayError::Panicked),
            }
        }),
    };
    operating.await.unwrap_or(Err(OverlayError::Panicked))
}

/// Begins a file operation; its turn ends with it.
fn in_turn<T: Send + 'static>(
    turn: SemaphorePermit<'static>,
    operation: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || {
        let done = operation();
        drop(turn);
        done
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Where operations stay until it is opened.
    #[derive(Default)]
    struct Gate {
        is_open: Mutex<bool>,
        opened: Condvar,
        inside: AtomicUsize,
        most: AtomicUsize,
    }

    impl Gate {
        fn pass(&self) {
            let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(inside, Ordering::SeqCst);
            let mut is_open = self.is_open.lock().unwrap();
            while !*is_open {
                is_open = self.opened.wait(is_open).unwrap();
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }

        fn open(&self) {
            *self.is_open.lock().unwrap() = true;
            self.opened.notify_all();
        }
    }

    #[tokio::test]
    async fn operations_that_hang_have_so_many_threads_and_the_others_go_on_in_the_end() {
        let gate = Arc::new(Gate::default());
        let operations = (0..3 * THREADS).map(|number| {
            let gate = Arc::clone(&gate);
            tokio::spawn(blocking(move || {
                gate.pass();
                Ok(number)
            }))
        });
        let operations: Vec<_> = operations.collect();
        while gate.inside.load(Ordering::SeqCst) < THREADS {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.most.load(Ordering::SeqCst), THREADS);
        gate.open();
        for (number, operation) in operations.into_iter().enumerate() {
            assert_eq!(operation.await.unwrap().unwrap(), number);
        }
        assert_eq!(gate.most.load(Ordering::SeqCst), THREADS);
    }

    #[tokio::test]
    async fn an_operation_that_panics_is_an_error_and_gives_its_turn_back() {
        for _ in 0..2 * THREADS {
            let failed = blocking(|| -> Result<(), _> { panic!("a test") }).await;
            assert!(matches!(failed, Err(OverlayError::Panicked)));
        }
        assert_eq!(blocking(|| Ok(7)).await.unwrap(), 7);
    }
}
