//! Uses a part of a disk in one of the ways that disks are used, and holds each read against the model.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::libc::O_DIRECT;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::Round;
use super::model::{Model, Wrong};
use crate::random::Random;

/// What direct I/O wants everything to be a multiple of.
const ALIGNMENT: usize = 4096;

/// The most bytes of one operation.
const BYTES_MAX: u64 = 300_000;

/// How a disk is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As a file, through the page cache.
    Cached,
    /// As a file, past the page cache.
    Direct,
    /// As a block device over it, past the page cache of both.
    Device,
}

/// Uses a part of a disk, round after round.
#[derive(Debug)]
pub struct Worker {
    name: String,
    way: Way,
    /// Where the part begins, in the disk.
    start: u64,
    random: Random,
    model: Model,
}

/// How an operation ended, other than well.
enum Failure {
    Wrong(Wrong),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::Error> for Failure {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

impl Worker {
    /// Takes the part of a disk that begins at `start` and holds `bytes`.
    pub fn new(way: Way, start: u64, bytes: Vec<u8>, seed: u64) -> Self {
        Self {
            name: format!("{way:?} at {start}"),
            way,
            start,
            random: Random::new(seed),
            model: Model::new(bytes),
        }
    }

    /// Returns how the disk is used.
    pub const fn way(&self) -> Way {
        self.way
    }

    /// Returns where the part is on the disk.
    pub const fn part(&self) -> Range<u64> {
        self.start..self.start + self.model.len() as u64
    }

    /// Works on what is at `path` (the disk; for a device, the device that is just this part) until the
    /// round is over.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn work(&mut self, path: &Path, round: &Round) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if self.way != Way::Cached {
            options.custom_flags(O_DIRECT);
        }
        let file = options.open(path)?;
        while !round.is_over() {
            let began = Instant::now();
            let outcome = self.step(&file, round);
            let took = began.elapsed();
            let mut report = round.report();
            report.operations += 1;
            match outcome {
                Ok(compared) => {
                    report.compared += compared as u64;
                    report.longest = report.longest.max(took);
                }
                Err(Failure::Wrong(wrong)) => report.wrong.push(format!("{}: {wrong}", self.name)),
                Err(Failure::Io(_)) if round.is_doomed() => break,
                Err(Failure::Io(error)) => {
                    let name = &self.name;
                    report
                        .errors
                        .push(format!("{name}: {error} after {took:?}"));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Holds the part, as it is on the disk at `path` after an orderly end, against the model.
    pub fn check(&mut self, disk: &File, round: &Round) {
        self.judge(disk, round, |model, found| {
            model.synced();
            model.check(0, found)
        });
    }

    /// Holds the part, as it is on the disk at `path` after a crash, against the model, and goes on from it.
    pub fn recover(&mut self, disk: &File, round: &Round) {
        self.judge(disk, round, |model, found| model.recover(found).map(|_| ()));
    }

    fn judge(
        &mut self,
        disk: &File,
        round: &Round,
        hold: impl FnOnce(&mut Model, &[u8]) -> Result<(), Wrong>,
    ) {
        let mut found = vec![0; self.model.len()];
        let began = Instant::now();
        let read = disk.read_exact_at(&mut found, self.start);
        let mut report = round.report();
        report.longest = report.longest.max(began.elapsed());
        report.compared += found.len() as u64;
        let name = &self.name;
        match read {
            Err(error) => report
                .errors
                .push(format!("{name}, mounted again: {error}")),
            Ok(()) => {
                if let Err(wrong) = hold(&mut self.model, &found) {
                    report.wrong.push(format!("{name}, mounted again: {wrong}"));
                }
            }
        }
    }

    /// Makes one operation; returns how many bytes were compared.
    fn step(&mut self, file: &File, round: &Round) -> Result<usize, Failure> {
        let range = self.range();
        match self.random.below(100) {
            0..38 => self.read(file, range),
            38..46 if self.way != Way::Device => self.map(file, range, round),
            46..84 => self.write(file, range),
            84..92 => self.discard(file, range),
            92..98 => {
                file.sync_data()?;
                self.model.synced();
                Ok(0)
            }
            _ => {
                file.sync_all()?;
                self.model.synced();
                Ok(0)
            }
        }
    }

    /// Where the part begins, in what is open.
    const fn offset(&self) -> u64 {
        match self.way {
            Way::Cached | Way::Direct => self.start,
            Way::Device => 0,
        }
    }

    /// Some bytes of the part: often a few, sometimes many, often on the edges of blocks.
    fn range(&mut self) -> Range<usize> {
        let grain = match self.way {
            Way::Cached => self.random.pick(&[1, 512, 4096, 4096]),
            Way::Direct | Way::Device => ALIGNMENT,
        };
        let most = self.random.pick(&[5000, 40_000, BYTES_MAX]);
        let start = self.random.index(self.model.len()) / grain * grain;
        let length =
            (1 + self.random.index(usize::try_from(most).unwrap_or(1))).next_multiple_of(grain);
        start..(start + length).min(self.model.len())
    }

    fn read(&mut self, file: &File, range: Range<usize>) -> Result<usize, Failure> {
        let at = self.offset() + range.start as u64;
        if self.way == Way::Cached && self.random.once_in(2) {
            // What the kernel keeps would not come from the client again.
            let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            posix_fadvise(file, signed(at), signed(range.len() as u64), advice)?;
        }
        let mut buffer = Aligned::new(range.len());
        file.read_exact_at(buffer.bytes(), at)?;
        self.hold(&range, buffer.bytes())
    }

    #[expect(unsafe_code, reason = "there is no other way to read a map")]
    fn map(&mut self, file: &File, range: Range<usize>, round: &Round) -> Result<usize, Failure> {
        let _nobody_pulls_it_away = round.mapping();
        if round.is_doomed() {
            return Ok(0);
        }
        let at = self.offset() + range.start as u64;
        let skip = usize::try_from(at % ALIGNMENT as u64).unwrap_or_default();
        let length = NonZeroUsize::new(skip + range.len()).unwrap_or(NonZeroUsize::MIN);
        let begin = i64::try_from(at - skip as u64).unwrap_or(i64::MAX);
        // SAFETY: nobody else knows of this map; it lies within the file, whose length never changes.
        let map = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                begin,
            )
        }?;
        // SAFETY: that many bytes are mapped; they are copied before anything else is written.
        let bytes = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<u8>(), length.get()) };
        let found = bytes[skip..].to_vec();
        // SAFETY: nothing points into it any more.
        unsafe { munmap(map, length.get()) }?;
        self.hold(&range, &found)
    }

    fn hold(&self, range: &Range<usize>, found: &[u8]) -> Result<usize, Failure> {
        let checked = self.model.check(range.start, found);
        checked.map_err(Failure::Wrong)?;
        Ok(found.len())
    }

    fn write(&mut self, file: &File, range: Range<usize>) -> Result<usize, Failure> {
        let mut buffer = Aligned::new(range.len());
        let mut value = self.random.next();
        for word in buffer.bytes().chunks_mut(8) {
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
            value = value.wrapping_add(1);
        }
        self.model.begin(range.start, buffer.bytes().to_vec());
        file.write_all_at(buffer.bytes(), self.offset() + range.start as u64)?;
        self.model.end();
        Ok(0)
    }

    fn discard(&mut self, file: &File, range: Range<usize>) -> Result<usize, Failure> {
        self.model.begin(range.start, vec![0; range.len()]);
        let (at, length) = (self.offset() + range.start as u64, range.len() as u64);
        if self.way == Way::Device {
            discard(file, at, length)?;
        } else {
            let both = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            fallocate(file, both, signed(at), signed(length))?;
        }
        self.model.end();
        Ok(0)
    }
}

nix::ioctl_write_ptr_bad!(
    /// From linux/fs.h: BLKDISCARD.
    block_discard,
    nix::request_code_none!(0x12, 119),
    [u64; 2]
);

#[expect(
    unsafe_code,
    reason = "a device is told to discard by a system call only"
)]
fn discard(device: &File, at: u64, length: u64) -> nix::Result<()> {
    // SAFETY: the call reads two numbers and touches no memory of ours.
    unsafe { block_discard(device.as_raw_fd(), &[at, length]) }?;
    Ok(())
}

/// Bytes whose place in memory direct I/O takes.
struct Aligned {
    room: Vec<u8>,
    skip: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let room = vec![0; length + ALIGNMENT];
        let skip = room.as_ptr().align_offset(ALIGNMENT);
        Self { room, skip, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.skip..self.skip + self.length]
    }
}
