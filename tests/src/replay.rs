//! Replays the reads of a boot against a disk, and compares every byte with the image.
//!
//! A list of reads is text: a line for each, `OFFSET LENGTH` in bytes, in the order of asking; what follows `#`
//! is a comment. There is no think time: a read is asked for as soon as one of those in flight has returned.
//!
//! Reads go past the page cache where the disk allows that (`O_DIRECT`), so each is exactly what the list says.
//! What they returned is kept and compared when the clock has stopped.

pub mod record;

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// What memory and place on the disk of a read past the page cache must be a multiple of.
const ALIGNMENT: usize = 4096;

/// The longest read that a list may have; QEMU's longest is 2 MiB.
const LENGTH_MAX: usize = 64 << 20;

/// One read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// From the start of the disk, in bytes.
    pub offset: u64,
    /// In bytes.
    pub length: usize,
}

/// Reads a list of reads.
///
/// # Errors
/// A line is not two numbers, or asks for nothing or for more than 64 MiB.
pub fn parse(text: &str) -> Result<Vec<Read>> {
    let lines = text.lines().enumerate().map(|(at, line)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        (at + 1, line)
    });
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| {
            let numbers = line.split_once(' ').and_then(|(offset, length)| {
                Some((offset.parse().ok()?, length.trim().parse().ok()?))
            });
            let (offset, length) =
                numbers.with_context(|| format!("line {at} is not OFFSET LENGTH: {line:?}"))?;
            ensure!(
                (1..=LENGTH_MAX).contains(&length),
                "line {at} asks for {length} bytes"
            );
            Ok(Read { offset, length })
        })
        .collect()
}

/// Writes a list of reads.
pub fn format(reads: &[Read]) -> String {
    reads.iter().fold(String::new(), |mut text, read| {
        // A string takes everything.
        let _ = writeln!(text, "{} {}", read.offset, read.length);
        text
    })
}

/// How a replay goes.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// What to read, in this order.
    pub reads: &'a [Read],
    /// Reads at once.
    pub in_flight: usize,
    /// Since when the seconds count.
    pub since: Instant,
    /// A read that takes longer is a stall.
    pub stall: Duration,
    /// The CPU that reads; `None`: any.
    pub cpu: Option<usize>,
}

/// What a replay took.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// From [`Plan::since`] to the return of the last read.
    pub time: Duration,
    /// From [`Plan::since`] to the return of the first read.
    pub first: Duration,
    /// Bytes read.
    pub bytes: u64,
    /// Reads that took longer than [`Plan::stall`].
    pub stalls: usize,
    /// The longest read.
    pub longest: Duration,
    /// Whether the page cache was passed by.
    pub direct: bool,
}

impl Outcome {
    /// Returns it as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "seconds": self.time.as_secs_f64(),
            "first_seconds": self.first.as_secs_f64(),
            "bytes": self.bytes,
            "stalls": self.stalls,
            "longest_seconds": self.longest.as_secs_f64(),
            "direct": self.direct,
        })
    }
}

/// A read that has returned.
struct Done {
    read: Read,
    began: Duration,
    ended: Duration,
    buffer: Aligned,
}

/// Reads from `disk` as `plan` says, then compares with `image`.
///
/// # Errors
/// A read fails or returns other bytes than `image` has there.
pub fn replay(disk: &Path, image: &Path, plan: &Plan<'_>) -> Result<Outcome> {
    let (file, direct) =
        open(disk).with_context(|| format!("cannot open the disk {}", disk.display()))?;
    let next = AtomicUsize::new(0);
    let done = thread::scope(|scope| {
        let readers: Vec<_> = (0..plan.in_flight.max(1))
            .map(|_| scope.spawn(|| reader(&file, plan, &next)))
            .collect();
        let mut done = Vec::new();
        for reader in readers {
            done.extend(reader.join().map_err(|_| anyhow!("a reader panicked"))??);
        }
        Ok::<_, anyhow::Error>(done)
    })?;
    compare(&done, image)?;
    let took = |done: &Done| done.ended.saturating_sub(done.began);
    Ok(Outcome {
        time: done.iter().map(|done| done.ended).max().unwrap_or_default(),
        first: done.iter().map(|done| done.ended).min().unwrap_or_default(),
        bytes: done.iter().map(|done| done.read.length as u64).sum(),
        stalls: done.iter().filter(|done| took(done) > plan.stall).count(),
        longest: done.iter().map(took).max().unwrap_or_default(),
        direct,
    })
}

/// Opens a disk so that nothing is read ahead of what is asked for.
fn open(disk: &Path) -> io::Result<(File, bool)> {
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk);
    match direct {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = File::open(disk)?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
            Ok((file, false))
        }
        Err(error) => Err(error),
    }
}

/// Does what nobody else has begun, until nothing is left.
fn reader(file: &File, plan: &Plan<'_>, next: &AtomicUsize) -> Result<Vec<Done>> {
    plan.cpu.map_or(Ok(()), crate::link::pin)?;
    let mut done = Vec::new();
    while let Some(&read) = plan.reads.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut buffer = Aligned::new(read.length);
        let began = plan.since.elapsed();
        file.read_exact_at(buffer.bytes_mut(), read.offset)
            .with_context(|| format!("cannot read {} at {}", read.length, read.offset))?;
        let ended = plan.since.elapsed();
        done.push(Done {
            read,
            began,
            ended,
            buffer,
        });
    }
    Ok(done)
}

fn compare(done: &[Done], image: &Path) -> Result<()> {
    let context = || format!("cannot read the image {}", image.display());
    let file = File::open(image).with_context(context)?;
    let mut expected = Vec::new();
    for done in done {
        expected.resize(done.read.length, 0);
        file.read_exact_at(&mut expected, done.read.offset)
            .with_context(context)?;
        ensure!(
            done.buffer.bytes() == expected.as_slice(),
            "{} bytes at {} differ from the image",
            done.read.length,
            done.read.offset
        );
    }
    Ok(())
}

/// Memory that starts where a read past the page cache may put its bytes.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        // Where it cannot be told, the kernel will say so.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            memory,
            start,
            length,
        }
    }

    fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.length)
            .unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.length)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::collection::vec;
    use proptest::prelude::Strategy;
    use proptest::{prop_assert_eq, proptest};

    use super::{Plan, Read, format, parse, replay};
    use crate::images::{noise, sparse};

    fn reads() -> impl Strategy<Value = Vec<Read>> {
        let read = (0..1_u64 << 50, 1..1_usize << 21);
        vec(
            read.prop_map(|(offset, length)| Read { offset, length }),
            0..50,
        )
    }

    proptest! {
        /// A list that was written is read as it was.
        #[test]
        fn a_list_reads_as_it_was_written(reads in reads()) {
            prop_assert_eq!(parse(&format(&reads)).unwrap(), reads);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["1", "1 x", "-1 5", "5 0", "0 999999999"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(parse("# none\n\n").unwrap(), []);
    }

    #[test]
    fn a_disk_that_differs_in_one_byte_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (image, disk) = (
            directory.path().join("image"),
            directory.path().join("disk"),
        );
        let mut bytes = noise(5, 1 << 20);
        sparse(&image, 1 << 20, &[(0, bytes.clone())]).unwrap();
        bytes[700_000] ^= 1;
        sparse(&disk, 1 << 20, &[(0, bytes)]).unwrap();
        let before = [4096, 500_000 / 4096 * 4096].map(|offset| Read {
            offset,
            length: 8192,
        });
        let across = [Read {
            offset: 0,
            length: 1 << 20,
        }];
        let plan = |reads| Plan {
            reads,
            in_flight: 3,
            since: Instant::now(),
            stall: Duration::from_secs(1),
            cpu: None,
        };
        let outcome = replay(&disk, &image, &plan(&before)).unwrap();
        assert_eq!(outcome.bytes, 16384);
        assert!(outcome.first <= outcome.time && outcome.stalls == 0);
        assert!(replay(&disk, &image, &plan(&across)).is_err());
    }
}
