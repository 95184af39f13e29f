//! Opens an overlay file: makes it, or finds out what it has.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use image_format::DecodeError;
use image_format::digest::Digest;
use image_format::overlay::{
    HEADER_BYTES, Header, Layout, Log, LogError, SECOND_HEADER, Side, checksum, walk,
};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use nix::libc::O_CLOEXEC;
use nix::unistd::{Whence, lseek};
use tokio::sync::{RwLock, watch};

use super::commit::{checkpoint_batches, erase, punch};
use super::journal::{Entry, Journal, replay};
use super::ledger::Ledger;
use super::{BLOCK_LEN, Overlay, OverlayError, OverlayStats, Space};

/// The log of a small overlay may get this long before a checkpoint replaces it: a thousand syncs.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// What a new file may take on disk: more means that holes are not holes.
const EMPTY_BYTES_MAX: u64 = 1 << 20;

/// The disk under an overlay.
#[derive(Clone, Debug)]
pub struct Base {
    /// Names its content.
    pub disk: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Its reference, with the version; for people.
    pub reference: String,
}

impl Overlay {
    /// Opens the overlay of `base` in the file at `path`, which is made if it is missing or empty.
    /// Blocks on the disk, for as long as reading the log takes.
    ///
    /// # Errors
    ///
    /// When the file is in use, belongs to another disk, is damaged, or no overlay.
    pub fn open(path: &Path, base: &Base) -> Result<Arc<Self>, OverlayError> {
        Self::open_with(path, base, CHECKPOINT_BYTES)
    }

    /// As [`Self::open`]; a log longer than `checkpoint_bytes` may be replaced.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn open_with(
        path: &Path,
        base: &Base,
        checkpoint_bytes: u64,
    ) -> Result<Arc<Self>, OverlayError> {
        let begun = begin(path, base)?;
        Ok(begun.overlay(path, checkpoint_bytes, None))
    }

    /// As [`Self::open`], for a process after which another one may go on ([`Self::resume`]) with what is returned beside it.
    ///
    /// # Errors
    ///
    /// The same; or when there is no memory for the journal.
    pub fn open_to_hand_on(path: &Path, base: &Base) -> Result<(Arc<Self>, Kept), OverlayError> {
        Self::open_to_hand_on_with(path, base, CHECKPOINT_BYTES)
    }

    /// As [`Self::open_to_hand_on`]; a log longer than `checkpoint_bytes` may be replaced.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn open_to_hand_on_with(
        path: &Path,
        base: &Base,
        checkpoint_bytes: u64,
    ) -> Result<(Arc<Self>, Kept), OverlayError> {
        let begun = begin(path, base)?;
        let keep = || -> io::Result<(Journal, Kept)> {
            let journal = Journal::new()?;
            let file = begun.file.try_clone()?.into();
            let kept = journal.kept()?;
            Ok((
                journal,
                Kept {
                    file,
                    journal: kept,
                },
            ))
        };
        let (journal, kept) =
            keep().map_err(|error| OverlayError::io("keep the journal of", path, error))?;
        let mut overlay = begun;
        // The lock is that of whoever holds the mount, and outlives this process.
        std::mem::forget(overlay.lock.take());
        Ok((overlay.overlay(path, checkpoint_bytes, Some(journal)), kept))
    }

    /// Goes on where a process ended that had the overlay of `base`, at `path` then: with all that it wrote. That process
    /// must be gone.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn resume(kept: Kept, path: &Path, base: &Base) -> Result<Arc<Self>, OverlayError> {
        Self::resume_with(kept, path, base, CHECKPOINT_BYTES)
    }

    /// As [`Self::resume`]; a log longer than `checkpoint_bytes` may be replaced.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn resume_with(
        kept: Kept,
        path: &Path,
        base: &Base,
        checkpoint_bytes: u64,
    ) -> Result<Arc<Self>, OverlayError> {
        let at = |attempt| move |source| OverlayError::io(attempt, path, source);
        let file = File::from(kept.file);
        // It is that of all descriptors of the mount: a take-over that fails must not give it back.
        std::mem::forget(lock(file.try_clone().map_err(at("lock"))?, path)?);
        let layout = Layout::of(base.length);
        let (journal, entries) =
            Journal::of(kept.journal, layout.n_blocks()).map_err(at("take over"))?;
        if entries.last() != Some(&Entry::Taking) {
            journal.note([Entry::Taking]).map_err(at("take over"))?;
        }
        // What cannot be synced is lost, and noticed by its checksums. There is nothing better to show.
        let believed = believe_the_disk(&file);
        let mut begun = look(file, path, base, layout)?;
        let cut = cut_off(&begun.file, &begun.layout, &begun.log);
        let rest = replay(&entries, &begun.log, &mut begun.ledger);
        let is_safe = believed.is_ok() && cut.is_ok() && !rest.is_broken;
        if is_safe {
            journal.forget_first(rest.landed);
        }
        let overlay = begun.overlay(path, checkpoint_bytes, Some(journal));
        overlay.settle(&rest.unsure)?;
        let lost = rest.was_syncing && !overlay.all_dirty_is_there();
        match believed.and(cut) {
            Err(error) => drop(overlay.break_off("sync", error)),
            Ok(()) if lost => {
                let error =
                    io::Error::other("what a sync should have brought to disk is not there");
                drop(overlay.break_off("go on with", error));
            }
            Ok(()) => overlay.broken.store(!is_safe, Ordering::Relaxed),
        }
        if let Err(error) = overlay.reserve(0, 0) {
            let cause: &dyn std::error::Error = &error;
            tracing::warn!(
                error = cause,
                "what was written before may not become durable"
            );
        }
        Ok(overlay)
    }

    /// Finds out which blocks of the last write the file has. One that cannot be read cannot be read later either, whatever it
    /// is taken for.
    fn settle(&self, unsure: &[(u64, Side, u64)]) -> Result<(), OverlayError> {
        let mut bytes = vec![0; BLOCK_LEN];
        for (block, side, sum) in unsure {
            let place = self.layout.place(*side, *block);
            let read = self.file.read_exact_at(&mut bytes, place);
            if read.is_err() || checksum(self.seed, &bytes) == *sum {
                self.ledger().note_written(*side, *block, &[*sum]);
            } else {
                let (block, count) = (*block, 1);
                self.note([Entry::Undone { block, count }])?;
            }
        }
        Ok(())
    }

    /// Whether all blocks that are dirty can be read and match their checksums: a process that dies while a sync fails takes the
    /// error with it, which the kernel tells once.
    fn all_dirty_is_there(&self) -> bool {
        let dirty = self.ledger().dirty_blocks();
        let mut bytes = vec![0; BLOCK_LEN];
        dirty.into_iter().all(|(block, side, sum)| {
            let place = self.layout.place(side, block);
            let read = self.file.read_exact_at(&mut bytes, place);
            read.is_ok() && checksum(self.seed, &bytes) == sum
        })
    }
}

/// What a process leaves to one after it, so that it goes on with an overlay.
#[derive(Debug)]
pub struct Kept {
    /// The file, with its lock.
    pub file: OwnedFd,
    /// What is not on disk yet.
    pub journal: OwnedFd,
}

impl Kept {
    /// The same once more.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            journal: self.journal.try_clone()?,
        })
    }
}

/// A file of which it is known what it has.
struct Begun {
    file: File,
    /// Given back when it is dropped.
    lock: Option<Flock<File>>,
    layout: Layout,
    seed: u64,
    ledger: Ledger,
    log: Log,
}

impl Begun {
    fn overlay(self, path: &Path, checkpoint_bytes: u64, journal: Option<Journal>) -> Arc<Overlay> {
        let log = self.log;
        let overlay = Overlay {
            file: self.file,
            _lock: self.lock,
            path: path.to_owned(),
            layout: self.layout,
            seed: self.seed,
            checkpoint_bytes,
            journal,
            space: Mutex::new(Space {
                log,
                reserved: log.end,
            }),
            log: Arc::new(tokio::sync::Mutex::new(log)),
            io: Arc::new(RwLock::new(())),
            ledger: Mutex::new(self.ledger),
            landed: watch::Sender::new(()),
            broken: AtomicBool::new(false),
            stats: OverlayStats::default(),
        };
        overlay.keep_headroom();
        Arc::new(overlay)
    }
}

/// Opens the file at `path`, which is made if it is missing or empty.
fn begin(path: &Path, base: &Base) -> Result<Begun, OverlayError> {
    let at = |attempt| move |source| OverlayError::io(attempt, path, source);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_CLOEXEC)
        .open(path)
        .map_err(at("open"))?;
    if !file.metadata().map_err(at("look at"))?.is_file() {
        return Err(OverlayError::NotAFile {
            path: path.to_owned(),
        });
    }
    let locked = lock(file.try_clone().map_err(at("lock"))?, path)?;
    believe_the_disk(&file).map_err(at("read what is on disk of"))?;
    let layout = Layout::of(base.length);
    if is_new(&file, &layout).map_err(at("look at"))? {
        create(&file, path, base, &layout)?;
    }
    let mut begun = look(file, path, base, layout)?;
    begun.lock = Some(locked);
    clean_up(&begun.file, &begun.layout, &begun.log).map_err(at("clean up"))?;
    Ok(begun)
}

/// Finds out what a file has that is an overlay.
fn look(file: File, path: &Path, base: &Base, layout: Layout) -> Result<Begun, OverlayError> {
    let header = read_header(&file, path)?;
    if (header.disk, header.disk_length) != (base.disk, base.length) {
        return Err(OverlayError::OtherBase {
            path: path.to_owned(),
            base: header.base,
            disk: header.disk.to_string(),
        });
    }
    let length = file.metadata();
    let length = length.map_err(|error| OverlayError::io("look at", path, error))?;
    if length.len() < layout.file_bytes() {
        return Err(OverlayError::Damaged {
            path: path.to_owned(),
            reason: "it is shorter than it was",
        });
    }
    let (ledger, log) = recover(&file, path, header.seed, &layout)?;
    Ok(Begun {
        file,
        lock: None,
        layout,
        seed: header.seed,
        ledger,
        log,
    })
}

fn lock(file: File, path: &Path) -> Result<Flock<File>, OverlayError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OverlayError::Locked {
            path: path.to_owned(),
        },
        _ => OverlayError::io("lock", path, errno.into()),
    })
}

/// Makes sure that what is read of the file is what a machine would find that was switched on again. After a sync that
/// failed, the kernel takes what it could not write for written, and shows it for as long as it has it in memory: a log that
/// is continued behind such a batch would have a gap.
fn believe_the_disk(file: &File) -> io::Result<()> {
    let synced = file.sync_all();
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    synced
}

/// Whether nothing was ever kept in the file: it is empty, or whoever made it did not get as far as
/// the header, which comes last. A file of somebody else that begins with zeros is none of ours.
fn is_new(file: &File, layout: &Layout) -> io::Result<bool> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(true);
    }
    if length != layout.file_bytes() {
        return Ok(false);
    }
    let seek = |from: u64, whence| -> io::Result<Option<u64>> {
        match lseek(file, i64::try_from(from).map_err(io::Error::other)?, whence) {
            Ok(at) => Ok(Some(at.unsigned_abs())),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    };
    // All that there may be is the first batch of the first log.
    let log = layout.log(1).start;
    let Some(start) = seek(0, Whence::SeekData)? else {
        return Ok(true);
    };
    if start != log {
        return Ok(false);
    }
    let end = seek(start, Whence::SeekHole)?.unwrap_or(length);
    Ok(end <= log + EMPTY_BYTES_MAX && seek(end, Whence::SeekData)?.is_none())
}

/// Makes an overlay with nothing in it. The header comes last: without it there is none.
fn create(file: &File, path: &Path, base: &Base, layout: &Layout) -> Result<(), OverlayError> {
    let at = |attempt| move |source| OverlayError::io(attempt, path, source);
    let header = Header {
        disk: base.disk,
        disk_length: base.length,
        // Randomly keyed, so its hash of nothing is a random number.
        seed: RandomState::new().hash_one(()),
        base: base.reference.clone(),
    };
    file.set_len(layout.file_bytes())
        .map_err(at("set the length of"))?;
    for generation in [0, 1] {
        if punch(file, &layout.log(generation)).is_err() {
            return Err(OverlayError::NotSparse {
                path: path.to_owned(),
            });
        }
    }
    for batch in checkpoint_batches(1, &[]) {
        file.write_all_at(&batch.encode(header.seed), layout.log(1).start)
            .map_err(at("write to"))?;
    }
    file.sync_all().map_err(at("sync"))?;
    if file.metadata().map_err(at("look at"))?.blocks() * 512 > EMPTY_BYTES_MAX {
        return Err(OverlayError::NotSparse {
            path: path.to_owned(),
        });
    }
    write_header(file, &header, &[0, SECOND_HEADER]).map_err(at("write to"))?;
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(directory.unwrap_or_else(|| Path::new(".")))
        .and_then(|directory| directory.sync_all())
        .map_err(at("sync the directory of"))
}

fn write_header(file: &File, header: &Header, places: &[u64]) -> io::Result<()> {
    let bytes = header.encode();
    for place in places {
        file.write_all_at(&bytes, *place)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Reads the header, from its second copy if it must be, and mends a copy that is damaged.
fn read_header(file: &File, path: &Path) -> Result<Header, OverlayError> {
    let at = |attempt| move |source| OverlayError::io(attempt, path, source);
    let read = |place| -> io::Result<Result<Header, DecodeError>> {
        let mut bytes = vec![0; HEADER_BYTES];
        let found = file.read_at(&mut bytes, place)?;
        Ok(Header::decode(&bytes[..found]))
    };
    let first = read(0).map_err(at("read"))?;
    let second = read(SECOND_HEADER).map_err(at("read"))?;
    let (header, bad) = match (first, second) {
        (Ok(first), Ok(second)) if first == second => return Ok(first),
        (Ok(_), Ok(_)) => {
            return Err(OverlayError::Damaged {
                path: path.to_owned(),
                reason: "its two headers differ",
            });
        }
        (Ok(header), Err(_)) => (header, SECOND_HEADER),
        (Err(_), Ok(header)) => (header, 0),
        (Err(source), Err(_)) => {
            return Err(OverlayError::Header {
                path: path.to_owned(),
                source,
            });
        }
    };
    tracing::warn!(overlay = %path.display(), "a copy of the header is damaged; it is written again from the other one");
    write_header(file, &header, &[bad]).map_err(at("write to"))?;
    Ok(header)
}

/// Reads the newer of the logs.
fn recover(
    file: &File,
    path: &Path,
    seed: u64,
    layout: &Layout,
) -> Result<(Ledger, Log), OverlayError> {
    let mut found: Option<(Ledger, Log)> = None;
    for parity in [0, 1] {
        let area = layout.log(parity);
        let mut ledger = Ledger::default();
        let log = walk(
            seed,
            layout.n_blocks(),
            area.end - area.start,
            |at, bytes| file.read_exact_at(bytes, area.start + at),
            |records| records.iter().for_each(|record| ledger.replay(record)),
        );
        let log = log.map_err(|error| match error {
            LogError::Read(source) => OverlayError::io("read the log of", path, source),
            LogError::Damaged(source) => OverlayError::Log {
                path: path.to_owned(),
                source,
            },
        })?;
        let newest = found.as_ref().map_or(0, |(_, log)| log.generation);
        if let Some(log) = log.filter(|log| log.generation % 2 == parity && log.generation > newest)
        {
            found = Some((ledger, log));
        }
    }
    let Some((ledger, log)) = found else {
        return Err(OverlayError::Damaged {
            path: path.to_owned(),
            reason: "neither of its logs begins as one",
        });
    };
    Ok((ledger, log))
}

/// Removes what a crash may have left: a batch that was cut, and the log before this one.
fn clean_up(file: &File, layout: &Layout, log: &Log) -> io::Result<()> {
    let area = layout.log(log.generation);
    // The tail first: where a batch was cut, none may seem to follow it. And a file system that is full has room then.
    punch(file, &(area.start + log.end..area.end))?;
    erase_old(file, layout, log)
}

/// Removes what the death of a process may have left: as [`clean_up`], but the log keeps the room on disk that it had, on
/// which writes rely that were taken. A batch that was cut has its start, and nothing behind the cut.
fn cut_off(file: &File, layout: &Layout, log: &Log) -> io::Result<()> {
    let area = layout.log(log.generation);
    let mut start = [0; HEADER_BYTES];
    let at = area.start + log.end;
    if at + HEADER_BYTES as u64 <= area.end {
        file.read_exact_at(&mut start, at)?;
        if start != [0; HEADER_BYTES] {
            erase(file, at)?;
        }
    }
    erase_old(file, layout, log)
}

/// Removes the log before this one.
fn erase_old(file: &File, layout: &Layout, log: &Log) -> io::Result<()> {
    let old = layout.log(log.generation + 1);
    let mut start = [0; HEADER_BYTES];
    file.read_exact_at(&mut start, old.start)?;
    // Mostly it is a hole already, and to write there needs room.
    if start != [0; HEADER_BYTES] {
        erase(file, old.start)?;
    }
    punch(file, &old)?;
    file.sync_data()
}
