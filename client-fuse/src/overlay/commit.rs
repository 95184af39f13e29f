//! Makes what was written durable: data first, then the batch of the log that points to it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use image_format::overlay::{Batch, HEADER_BYTES, Kind, Log, RECORDS_MAX, Record};
use nix::fcntl::{FallocateFlags, fallocate};
use tokio::sync::OwnedRwLockReadGuard;

use super::journal::{Entry, Journal};
use super::{BLOCK, FLUSH_AFTER, Overlay, OverlayError, Space, blocking};

/// Bytes that nothing points to are given back when there are as many blocks of them: 64 MiB.
const STALE_MAX: u64 = 16_384;

/// Writes leave as much room in the log to discards: a disk that is full can be emptied.
pub(super) const HEADROOM_BYTES: u64 = 64 << 10;

/// So many entries of a journal are not worth a look at whether they are of use.
const TIDY_ENTRIES: u64 = 1024;

/// The log takes its place on disk in steps of this, ahead of the batches.
const RESERVE_BYTES: u64 = 1 << 20;

impl Overlay {
    /// Makes all that was written durable.
    ///
    /// # Errors
    ///
    /// When there is no room for the log: everything stays readable and dirty, and the next sync tries
    /// again. When the system cannot say what is on disk: the overlay takes no more writes.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it ends by itself.
    pub async fn sync(self: &Arc<Self>) -> Result<(), OverlayError> {
        let mut log = Arc::clone(&self.log).lock_owned().await;
        self.check_in_use()?;
        let mut least = STALE_MAX;
        if self.ledger().n_dirty() > 0 {
            let this = Arc::clone(self);
            // A write finds out what is in flight and then writes: no batch may begin between.
            let still = Arc::clone(&self.io).read_owned().await;
            let discarded;
            (log, discarded) = blocking(move || {
                let unwinding = Unwinding(&this);
                let outcome = this.commit(&mut log, still);
                drop(unwinding);
                this.landed.send_replace(());
                outcome.map(|discarded| (log, discarded))
            })
            .await
            .inspect_err(|_| self.stats.commit_failures.increment())?;
            self.stats.commits.increment();
            if discarded {
                least = 1;
            }
        }
        self.tidy_journal().await;
        self.give_back(least).await?;
        drop(log);
        self.stats.syncs.increment();
        Ok(())
    }

    /// Syncs for the last time and gives back what the file has too much.
    ///
    /// # Errors
    ///
    /// As [`Self::sync`].
    pub async fn close(self: &Arc<Self>) -> Result<(), OverlayError> {
        self.sync().await?;
        self.give_back(1).await
    }

    /// Writes a batch of all that is dirty, or a checkpoint where that is better. Nobody writes until it
    /// has begun: for so long it keeps `still`. Returns whether something was discarded.
    fn commit(&self, log: &mut Log, still: OwnedRwLockReadGuard<()>) -> Result<bool, OverlayError> {
        let (records, map) = {
            let mut ledger = self.ledger();
            let records = ledger.begin();
            let least = Batch::encoded_bytes(0) + ledger.n_records() * 16;
            let too_long = log.end > self.checkpoint_bytes.max(2 * least);
            let due = too_long || records.len() > RECORDS_MAX;
            let map = due.then(|| ledger.checkpoint());
            (records, map)
        };
        let noted = self.journal.as_ref();
        let noted = noted.map(|journal| journal.begin_batch(log)).transpose();
        let noted = noted.map_err(|error| {
            self.ledger().revert();
            self.failed("keep the journal of", error)
        })?;
        drop(still);
        self.durable()?;
        if let Some(map) = map {
            if let Some(next) = self.write_checkpoint(log, &map)? {
                *log = next;
                let discarded = self.landed_at(*log, noted);
                self.keep_headroom();
                return Ok(discarded);
            }
            tracing::warn!(overlay = %self.path.display(), "no room to shorten the log of the overlay; it grows");
        }
        let batch = Batch {
            kind: Kind::Change,
            generation: log.generation,
            sequence: log.sequence,
            records,
        };
        let area = self.layout.log(log.generation);
        if batch.records.len() > RECORDS_MAX
            || area.start + log.end + Batch::encoded_bytes(batch.records.len()) > area.end
        {
            self.ledger().revert();
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(self.failed("extend the log of", full));
        }
        let bytes = batch.encode(self.seed);
        if let Err(error) = self.file.write_all_at(&bytes, area.start + log.end) {
            // A batch that is not all there does not count: it can be written again.
            self.ledger().revert();
            return Err(self.failed("write to the log of", error));
        }
        self.durable()?;
        log.sequence += 1;
        log.end += bytes.len() as u64;
        Ok(self.landed_at(*log, noted))
    }

    /// Notes that the log ends there, on disk. Returns whether something was discarded.
    fn landed_at(&self, log: Log, noted: Option<u64>) -> bool {
        let mut space = self.space();
        if space.log.generation != log.generation {
            space.reserved = log.end;
        }
        space.log = log;
        drop(space);
        if let (Some(journal), Some(place)) = (&self.journal, noted) {
            journal.forget(place);
        }
        self.ledger().finish()
    }

    /// Forgets what is noted of writes that failed, while nothing is dirty.
    async fn tidy_journal(self: &Arc<Self>) {
        let is_long = |journal: &&Journal| journal.n_entries() > TIDY_ENTRIES;
        let Some(journal) = self.journal.as_ref().filter(is_long) else {
            return;
        };
        let _still = Arc::clone(&self.io).read_owned().await;
        if self.ledger().n_dirty() == 0 {
            journal.clear();
        }
    }

    /// Writes the whole map to the other log and erases this one; `None` if there was no room.
    fn write_checkpoint(&self, log: &Log, map: &[Record]) -> Result<Option<Log>, OverlayError> {
        let generation = log.generation + 1;
        let area = self.layout.log(generation);
        let mut next = Log {
            generation,
            sequence: 0,
            end: 0,
        };
        for batch in checkpoint_batches(generation, map) {
            let bytes = batch.encode(self.seed);
            let fits = area.start + next.end + bytes.len() as u64 <= area.end;
            let written = fits
                && self
                    .file
                    .write_all_at(&bytes, area.start + next.end)
                    .is_ok();
            if !written {
                self.forget(area);
                return Ok(None);
            }
            next.end += bytes.len() as u64;
            next.sequence += 1;
        }
        self.durable()?;
        // Only one log may be continued: the older one must never be taken for the newest again.
        let old = self.layout.log(log.generation);
        if let Err(error) = erase(&self.file, old.start) {
            return Err(self.break_off("erase the old log of", error));
        }
        self.durable()?;
        self.forget(old);
        Ok(Some(next))
    }

    /// Waits until the file's content is on disk. If the system fails at that, it may have dropped
    /// what was not written and say nothing of it the next time: nothing may be built on it.
    fn durable(&self) -> Result<(), OverlayError> {
        self.file
            .sync_data()
            .map_err(|error| self.break_off("sync", error))
    }

    pub(super) fn break_off(&self, attempt: &'static str, error: io::Error) -> OverlayError {
        self.broken.store(true, Ordering::Relaxed);
        // Best effort: a worker after this one that does not know it finds out itself what is on disk.
        let _ = self.note([Entry::Broken]);
        self.ledger().revert();
        tracing::error!(overlay = %self.path.display(), %error, "cannot {attempt} the overlay; it takes no more writes, and what was not synced may be lost");
        OverlayError::Io {
            attempt,
            path: self.path.clone(),
            source: error,
        }
    }

    /// Makes sure that the log has its place on disk for `n_more` records beside the dirty ones, and `headroom` bytes, so
    /// that a disk which fills up refuses a write, and not the sync of one that it took.
    pub(super) fn reserve(&self, n_more: usize, headroom: u64) -> Result<(), OverlayError> {
        self.reserve_by(RESERVE_BYTES, n_more, headroom)
    }

    fn reserve_by(&self, step: u64, n_more: usize, headroom: u64) -> Result<(), OverlayError> {
        let n_dirty = self.ledger().n_dirty();
        let mut space = self.space();
        // What is in flight moves the end when it lands; it is at most as much as may be dirty.
        let batch = Batch::encoded_bytes(n_dirty.saturating_add(n_more).min(RECORDS_MAX));
        let area = self.layout.log(space.log.generation);
        let needed = space.log.end + 2 * batch + headroom;
        if needed.min(area.end - area.start) <= space.reserved {
            return Ok(());
        }
        let extend = |step: u64| {
            let until = needed.next_multiple_of(step).min(area.end - area.start);
            let place = area.start + space.reserved..area.start + until;
            allocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, &place).map(|()| until)
        };
        // Of the last megabyte that is free, no more is taken than is needed.
        let extended = extend(step).or_else(|_| extend(BLOCK));
        space.reserved = extended.map_err(|error| self.failed("extend the log of", error))?;
        Ok(())
    }

    /// Takes the room that discards may need, if it is there: others may take it before anybody writes.
    pub(super) fn keep_headroom(&self) {
        if let Err(error) = self.reserve_by(BLOCK, 0, HEADROOM_BYTES) {
            tracing::debug!(%error, "no room for the log of discards");
        }
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the file system back what nothing points to, if that is `least` blocks or more.
    async fn give_back(self: &Arc<Self>, least: u64) -> Result<(), OverlayError> {
        if self.ledger().n_stale() < least {
            return Ok(());
        }
        let guard = Arc::clone(&self.io).write_owned().await;
        let this = Arc::clone(self);
        blocking(move || {
            let stale = this.ledger().take_stale();
            for (side, run) in stale {
                let start = this.layout.place(side, run.start);
                this.forget(start..start + (run.end - run.start) * BLOCK);
            }
            drop(guard);
            Ok(())
        })
        .await
    }

    /// Makes a hole in the file. A file system that cannot costs space, nothing else.
    fn forget(&self, place: Range<u64>) {
        if let Err(error) = punch(&self.file, &place) {
            tracing::debug!(overlay = %self.path.display(), %error, "cannot give space back");
        }
    }
}

/// A batch that is being written. Should that panic, nobody can say what is on disk; and nobody may
/// wait for it any more.
struct Unwinding<'a>(&'a Overlay);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
            let _ = self.0.note([Entry::Broken]);
            self.0.ledger().revert();
            self.0.landed.send_replace(());
        }
    }
}

/// Syncs now and then, for as long as the overlay is used: that bounds what a killed process loses
/// when nobody else syncs.
pub async fn keep_flushed(overlay: Weak<Overlay>) {
    let mut failed = false;
    loop {
        tokio::time::sleep(FLUSH_AFTER).await;
        let Some(overlay) = overlay.upgrade() else {
            return;
        };
        let synced = overlay.sync().await;
        if let Err(error) = &synced
            && !failed
        {
            let cause: &dyn std::error::Error = error;
            tracing::warn!(error = cause, "what was written is not durable yet");
        }
        failed = synced.is_err();
    }
}

/// The batches of a checkpoint.
pub(super) fn checkpoint_batches(generation: u64, map: &[Record]) -> impl Iterator<Item = Batch> {
    let n_batches = map.len().div_ceil(RECORDS_MAX).max(1);
    (0..n_batches).map(move |number| Batch {
        kind: if number + 1 == n_batches {
            Kind::Checkpoint
        } else {
            Kind::Part
        },
        generation,
        sequence: number as u64,
        records: map
            .chunks(RECORDS_MAX)
            .nth(number)
            .unwrap_or_default()
            .to_vec(),
    })
}

/// Overwrites the start of a log, so that none begins there.
pub(super) fn erase(file: &File, start: u64) -> io::Result<()> {
    file.write_all_at(&[0; HEADER_BYTES], start)
}

/// Makes a hole.
pub(super) fn punch(file: &File, place: &Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, flags, place)
}

fn allocate(file: &File, flags: FallocateFlags, place: &Range<u64>) -> io::Result<()> {
    let signed = |number: u64| i64::try_from(number).map_err(io::Error::other);
    fallocate(
        file,
        flags,
        signed(place.start)?,
        signed(place.end - place.start)?,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use image_format::digest::Digest;

    use super::*;
    use crate::overlay::{Base, Patch};

    /// An overlay of a small disk.
    fn open(directory: &tempfile::TempDir) -> Arc<Overlay> {
        let base = Base {
            disk: Digest::of(b"a disk"),
            length: 16 * BLOCK,
            reference: "lab/debian:12@1".to_owned(),
        };
        Overlay::open(&directory.path().join("overlay"), &base).unwrap()
    }

    /// The first block, all of it this byte.
    fn patch(byte: u8) -> Patch {
        Patch {
            offset: 0,
            bytes: Bytes::from(vec![byte; 4096]),
            disk_length: 16 * BLOCK,
            base: Vec::new(),
        }
    }

    /// The log may point to what it would overwrite: nobody knows how much of the batch is on the disk.
    #[tokio::test]
    async fn who_waited_to_write_when_a_sync_failed_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let overlay = open(&directory);
        overlay.write(patch(7)).await.unwrap();
        let reading = Arc::clone(&overlay.io).read_owned().await;
        let writer = Arc::clone(&overlay);
        let writing = tokio::spawn(async move { writer.write(patch(8)).await });
        // There is one thread: it waits for the reader after that.
        tokio::task::yield_now().await;
        assert!(overlay.io.try_read().is_err(), "it waits");
        drop(overlay.ledger().begin());
        let failed = overlay.break_off("sync", io::Error::other("injected"));
        assert!(matches!(failed, OverlayError::Io { .. }));
        drop(reading);
        let refused = writing.await.unwrap();
        assert!(
            matches!(refused, Err(OverlayError::OutOfUse { .. })),
            "{refused:?}"
        );
        let read = overlay.read(0..1).await.unwrap();
        assert_eq!(read[0].1[..], [7; 4096]);
    }

    #[tokio::test]
    async fn a_sync_that_panics_ends_writing_and_leaves_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let overlay = open(&directory);
        overlay.write(patch(7)).await.unwrap();
        let syncing = Arc::clone(&overlay);
        let panicked = tokio::task::spawn_blocking::<_, ()>(move || {
            let _unwinding = Unwinding(&syncing);
            drop(syncing.ledger().begin());
            panic!("injected");
        });
        assert!(panicked.await.is_err());
        let refused = overlay.write(patch(7)).await;
        assert!(
            matches!(refused, Err(OverlayError::OutOfUse { .. })),
            "{refused:?}"
        );
        let read = overlay.read(0..1).await.unwrap();
        assert_eq!(read[0].1[..], [7; 4096]);
        assert!(overlay.now().is_out_of_use);
        assert_eq!(overlay.stats().write_failures.count(), 1);
    }
}
