//! How much may be filled in: granted in steps, counted anew for each.
//!
//! Invariant: what all files of the directory occupy and what all mounts were granted is at most the
//! bound, whenever nobody holds the lock of the directory. Each mount fills in no more than it was
//! granted. What counts is what the file system says that files occupy; and, of a mount, what it reserved but has
//! perhaps not written yet.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, TryLockError};

use image_format::BLOCK_BYTES;
use nix::errno::Errno;

use super::CacheFile;
use crate::cache::desk;
use crate::cache::directory::{DirectoryLock, Grant, Patience, Used};
use crate::cache::hints::NOTE_BYTES;

/// Granted at once, at most: some hundred chunks.
const STEP_BYTES_MAX: u64 = 16 << 20;

/// Freed at once, at most: looking for what may go takes some milliseconds.
const FREE_BYTES_MAX: u64 = 256 << 20;

/// Fills that are passed over after there was no room, before it is looked for again.
const PAUSE: u32 = 255;

/// The same after an error that is none of room: it may pass, too.
const PAUSE_AFTER_ERROR: u32 = 1 << 14;

/// What a mount may fill in.
#[derive(Debug, Default)]
pub(super) struct Budget {
    left: u64,
    /// What others know of it; made when it is first needed.
    grant: Option<Grant>,
    /// Fills to pass over.
    pause: u32,
    /// Whether somebody else was looking for room, the last time that we wanted to.
    is_busy: bool,
    /// Whether the log already says that there is no room.
    told: bool,
}

/// Whether there is room for more, as far as anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There may be.
    Some,
    /// There was none.
    None,
    /// Another process was looking.
    Busy,
}

/// Bytes that may be written, until this is dropped.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    cache: &'a CacheFile,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.cache.unwritten.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// How looking for room ended.
enum Found {
    Room(u64),
    Nothing,
    /// Somebody else is looking.
    Busy,
}

impl CacheFile {
    /// Takes `bytes` of what may be filled in, making room if there is none; `None`: there is none to be had now.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Reserved<'_>> {
        let mut budget = self.budget();
        if budget.left < bytes {
            if budget.pause > 0 {
                budget.pause -= 1;
                return None;
            }
            match self.refill(&mut budget, bytes) {
                Ok(Found::Room(granted)) => budget.left = granted,
                Ok(Found::Busy) => {
                    budget.is_busy = true;
                    return None;
                }
                Ok(Found::Nothing) => {
                    budget.is_busy = false;
                    budget.pause = PAUSE;
                    if !std::mem::replace(&mut budget.told, true) {
                        tracing::info!(cache = %self.path.display(), "the disk cache is full, and nothing in it can go; it serves what it has (see --cache-size)");
                    }
                    return None;
                }
                Err(error) => {
                    drop(budget);
                    self.stop_filling(&error);
                    return None;
                }
            }
        }
        budget.left -= bytes;
        budget.is_busy = false;
        self.unwritten.fetch_add(bytes, Ordering::AcqRel);
        Some(Reserved { cache: self, bytes })
    }

    /// What may be filled in without pushing out what was filled in last. Does not block: while somebody makes room
    /// it is what it was.
    pub(super) fn room_bytes(&self) -> u64 {
        let budget = match self.budget.try_lock() {
            Ok(budget) => budget,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.room.load(Ordering::Relaxed),
        };
        let room = match budget.pause {
            0 => budget.left.max(self.directory.disks_max() / 2),
            _ => budget.left,
        };
        self.room.store(room, Ordering::Relaxed);
        room
    }

    /// What looking for room came to the last time. Does not block: while somebody looks, there may be.
    pub(super) fn room(&self) -> Room {
        let budget = match self.budget.try_lock() {
            Ok(budget) => budget,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Room::Some,
        };
        match (budget.is_busy, budget.pause) {
            (true, _) => Room::Busy,
            (false, 0) => Room::Some,
            (false, _) => Room::None,
        }
    }

    /// Looks for room for a block, though there was none a moment ago.
    pub(super) fn look_for_room(&self) {
        self.budget().pause = 0;
        let bytes = u64::from(BLOCK_BYTES) + NOTE_BYTES;
        if let Some(reserved) = self.reserve(bytes) {
            // It counts as unwritten until it is in the budget again.
            self.budget().left += bytes;
            drop(reserved);
        }
    }

    /// Ends filling for a long while; what is there is served.
    pub(super) fn stop_filling(&self, error: &io::Error) {
        let mut budget = self.budget();
        budget.left = 0;
        budget.pause = match is_full(error) {
            // Others may make room.
            true => PAUSE,
            false => PAUSE_AFTER_ERROR,
        };
        if !std::mem::replace(&mut budget.told, true) {
            tracing::warn!(cache = %self.path.display(), %error, "cannot keep more in the disk cache; it serves what it has");
        }
    }

    /// Makes room on a file system that is full though the bound is not reached.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        let made = || -> io::Result<bool> {
            let Some(lock) = self.lock()? else {
                return Ok(false);
            };
            Ok(self.evict(&lock, bytes)? >= bytes)
        };
        made().unwrap_or(false)
    }

    /// Counts what there is, makes room if need be, and takes a part of it.
    fn refill(&self, budget: &mut Budget, bytes: u64) -> io::Result<Found> {
        let Some(lock) = self.lock()? else {
            return Ok(Found::Busy);
        };
        // From here on the old grant says nothing.
        budget.left = 0;
        // Before files are counted: what is written meanwhile counts twice, and not never.
        let unwritten = self.unwritten.load(Ordering::Acquire);
        let bytes_max = self.directory.disks_max();
        let step = bytes.max(STEP_BYTES_MAX.min(bytes_max / 64));
        let grant = match budget.grant.take() {
            Some(grant) => grant,
            None => {
                let _busy = desk::begin();
                self.directory.grant()?
            }
        };
        // It stays ours, whatever fails: what was reserved of it counts with others until it is written.
        let grant = budget.grant.insert(grant);
        let count = || {
            let _busy = desk::begin();
            self.directory.used(Some(grant.path()))
        };
        let free = |used: Used| bytes_max.saturating_sub(used.disks + used.granted + unwritten);
        let mut room = free(count()?);
        if room < step {
            let need = FREE_BYTES_MAX.min(bytes_max / 32).max(step);
            self.evict(&lock, need - room.min(need))?;
            room = free(count()?);
        }
        let granted = room.min(step);
        let found = if granted < bytes {
            Found::Nothing
        } else {
            Found::Room(granted)
        };
        let _busy = desk::begin();
        let granted = match found {
            Found::Room(granted) => granted,
            Found::Nothing | Found::Busy => 0,
        };
        grant.say(granted + unwritten)?;
        Ok(found)
    }

    fn lock(&self) -> io::Result<Option<DirectoryLock>> {
        let _busy = desk::begin();
        self.directory.lock(Patience::Short)
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a write failed for want of room only.
pub(super) fn is_full(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::ENOSPC as i32) || code == Some(Errno::EDQUOT as i32)
}
