//! Makes room in the cache directory: takes data out of files that nobody else uses.
//!
//! A file is used by whoever holds a shared lock on it. Only under the lock of the directory does
//! anybody ask for an exclusive one, and only for as long as it evicts; so a mount can give up its
//! shared lock for that moment without losing it. A mount takes data out of its own file too, as long as it is the only
//! one that has it and does not want it [whole](super::whole). What it reads at that moment it reads as a hole: a miss.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use image_format::BLOCK_BYTES;
use image_format::digest::Digest;
use nix::fcntl::{Flock, FlockArg};

use super::CacheFile;
use crate::cache::desk;
use crate::cache::directory::{Directory, DirectoryLock, Room, open_ours};
use crate::cache::policy::{self, Candidate, SEGMENT_BYTES};
use crate::cache::recency::{RECENCY_BYTES_MAX, Recency};
use crate::cache::sparse;
use crate::trust::read_bounded;

/// A file that nobody mounts, locked so that it stays so.
#[derive(Debug)]
pub(in crate::cache) struct Idle {
    /// The file.
    pub(in crate::cache) file: Flock<File>,
    /// Where it is.
    pub(in crate::cache) path: PathBuf,
    /// What it is the disk of.
    pub(in crate::cache) disk: Digest,
}

impl Idle {
    /// Locks the file at `path`; `None`: somebody mounts it, or it is of no use. The caller holds the
    /// lock of the directory.
    pub(in crate::cache) fn lock(path: &Path, disk: Digest) -> Option<Self> {
        let file = open_ours(path, true).ok()?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        Some(Self {
            file,
            path: path.to_owned(),
            disk,
        })
    }

    /// Removes the file and what is known of it.
    pub(in crate::cache) fn remove(&self, directory: &Directory) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        match fs::remove_file(directory.recency(&self.disk)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A segment of one of the files: which file, which segment.
type Key = (usize, u32);

impl CacheFile {
    /// Frees at least `need` bytes, if as much can go, and returns how many.
    pub(super) fn evict(&self, _lock: &DirectoryLock, need: u64) -> io::Result<u64> {
        let mut idle = Vec::new();
        let busy = desk::begin();
        self.directory.each(Room::Disks, |name, path, _| {
            if let Some(disk) = Directory::disk_of(name).filter(|disk| *disk != self.disk) {
                idle.extend(Idle::lock(path, disk));
            }
        })?;
        let alone =
            !self.is_wanted_whole() && self.file.relock(FlockArg::LockExclusiveNonblock).is_ok();
        drop(busy);
        let freed = self.evict_from(&idle, alone, need);
        self.file.relock(FlockArg::LockShared)?;
        freed
    }

    fn evict_from(&self, idle: &[Idle], alone: bool, need: u64) -> io::Result<u64> {
        let mut candidates: Vec<Candidate<Key>> = Vec::new();
        for (number, idle) in idle.iter().enumerate() {
            let saved = self.directory.recency(&idle.disk);
            let busy = desk::begin();
            let saved = read_bounded(&saved, RECENCY_BYTES_MAX).ok();
            drop(busy);
            let recency = saved.and_then(|saved| Recency::decode(&saved));
            let recency = recency.unwrap_or_else(Recency::new);
            let present = segments(&idle.file)?;
            let unknown = changed_at(&idle.file)?;
            candidates.extend(of_file(number, unknown, &present, &recency));
        }
        let own = idle.len();
        if alone {
            // The disk is asked before the lock is taken: readers want it, too.
            let (present, unknown) = (segments(&self.file)?, changed_at(&self.file)?);
            let of_own = of_file(own, unknown, &present, &self.recency());
            candidates.extend(of_own);
        }
        let order = policy::order(candidates, self.directory.disks_max());
        let freed = policy::evict(&order, need, |(number, segment)| {
            let bytes = segment_bytes(*segment);
            self.evicted.segments.increment();
            match idle.get(*number) {
                Some(idle) => punch(&idle.file, bytes),
                None => {
                    let block = u64::from(BLOCK_BYTES);
                    let blocks = bytes.start / block..bytes.end / block;
                    self.proof.doubt();
                    self.known().present.remove(blocks);
                    self.recency().forget(*segment);
                    let punched = punch(&self.file, bytes);
                    // A verification may have begun and ended in between.
                    self.proof.doubt();
                    punched
                }
            }
        })?;
        self.evicted.bytes.add(freed);
        for idle in idle {
            if next_data(&idle.file, 0)?.is_none() {
                let _busy = desk::begin();
                idle.remove(&self.directory)?;
            }
        }
        tracing::debug!(freed, files = idle.len(), alone, "made room in the cache");
        Ok(freed)
    }
}

fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    let _busy = desk::begin();
    sparse::next_data(file, from)
}

/// The segments of a file that have data.
fn segments(file: &File) -> io::Result<HashSet<u32>> {
    let mut present = HashSet::new();
    let mut position = 0;
    // One question for each segment that has data: some ten thousand for 10 GiB.
    while let Some(data) = next_data(file, position)? {
        let segment = data / SEGMENT_BYTES;
        present.insert(u32::try_from(segment).map_err(io::Error::other)?);
        position = (segment + 1) * SEGMENT_BYTES;
    }
    Ok(present)
}

/// What no run has told of was filled in at the last write, or before.
fn changed_at(file: &File) -> io::Result<u32> {
    let _busy = desk::begin();
    Ok(u32::try_from(file.metadata()?.mtime()).unwrap_or(0))
}

/// What could be taken out of a file whose segments with data are `present`.
fn of_file(
    number: usize,
    unknown: u32,
    present: &HashSet<u32>,
    recency: &Recency,
) -> Vec<Candidate<Key>> {
    let candidates = recency.candidates(present, unknown);
    let candidates = candidates.map(|candidate| Candidate {
        key: (number, candidate.key),
        used_at: candidate.used_at,
        boot: candidate.boot,
    });
    candidates.collect()
}

const fn segment_bytes(segment: u32) -> std::ops::Range<u64> {
    let start = segment as u64 * SEGMENT_BYTES;
    start..start + SEGMENT_BYTES
}

/// Takes data away and returns how much less the file occupies.
fn punch(file: &File, bytes: std::ops::Range<u64>) -> io::Result<u64> {
    let _busy = desk::begin();
    let occupied = || -> io::Result<u64> { Ok(file.metadata()?.blocks() * 512) };
    let before = occupied()?;
    sparse::punch(file, bytes)?;
    Ok(before.saturating_sub(occupied()?))
}
