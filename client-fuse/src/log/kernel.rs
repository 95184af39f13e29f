//! The kernel's log as a place for lines: records with a priority, of a length that it takes, and not
//! so many that they push out everybody else's.
//!
//! `/dev/kmsg` takes a record with each write, of at most some 950 bytes; more is refused as a whole.
//! So long lines are cut into several records. Its buffer is small and shared with the kernel, and what
//! fails may fail thousands of times a second; so lines above a rate are left out, and how many were is
//! said once there is room. What is left out of the log is counted all the same, in `stats.json`.
//!
//! A kernel that was not told otherwise (`printk.devkmsg=on`, which systemd tells it) takes no more than 10
//! records in 5 s of anybody, and says itself how many it has left out.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::inside::dump;

/// Bytes of a line in one record: with priority and name it is below what every kernel takes.
const PART_BYTES_MAX: usize = 900;

/// Lines that may come at once: those of a start, or of a server that goes and comes back.
const BURST: u32 = 50;

/// After that, a line may come as often as this.
const EVERY: Duration = Duration::from_millis(500);

/// Decides which lines are written: some at once, then so many a second. Moments are times since any
/// beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// How many may come now.
    left: u32,
    /// Since when the next one is earned.
    since: Duration,
    /// Lines that were left out since the last that was written.
    left_out: u64,
}

impl Limit {
    /// Nothing was written yet.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self {
            left: BURST,
            since: Duration::ZERO,
            left_out: 0,
        }
    }

    /// Whether a line may be written `now`. `Some`: it may, and so many were left out before it.
    pub(super) fn admit(&mut self, now: Duration) -> Option<u64> {
        let earned = now.saturating_sub(self.since).as_nanos() / EVERY.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = if self.left == BURST {
                now
            } else {
                self.since + EVERY * earned
            };
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        if self.left == BURST {
            self.since = now;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes each line as a record of the kernel's log, or as several.
#[derive(Clone, Debug)]
pub(super) struct KernelLog(Arc<Log>);

#[derive(Debug)]
struct Log {
    file: File,
    began: Instant,
    limit: Mutex<Limit>,
}

/// Where one line goes.
#[derive(Debug)]
pub(super) struct Record {
    log: Arc<Log>,
    priority: u8,
    /// Whether somebody asked for just this line.
    is_asked_for: bool,
}

impl KernelLog {
    /// Lines go to `file`, which is `/dev/kmsg`.
    #[must_use]
    pub(super) fn to(file: File) -> Self {
        Self(Arc::new(Log {
            file,
            began: Instant::now(),
            limit: Mutex::default(),
        }))
    }

    fn record(&self, level: Level, is_asked_for: bool) -> Record {
        Record {
            log: Arc::clone(&self.0),
            priority: priority(level),
            is_asked_for,
        }
    }
}

/// The priority of the kernel for `level`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl<'a> MakeWriter<'a> for KernelLog {
    type Writer = Record;

    fn make_writer(&'a self) -> Record {
        self.record(Level::INFO, false)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Record {
        self.record(*meta.level(), meta.target() == dump::TARGET)
    }
}

impl Write for Record {
    /// Takes all of a line, whether or not it is written: a log that is full is no reason to fail.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let now = self.log.began.elapsed();
        if !self.is_asked_for {
            let mut limit = self
                .log
                .limit
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match limit.admit(now) {
                None => return Ok(line.len()),
                Some(0) => {}
                Some(n) => {
                    let said = format!("{n} lines were left out, not to flood the kernel's log");
                    self.log.put(priority(Level::WARN), said.as_bytes());
                }
            }
        }
        for part in parts(line) {
            self.log.put(self.priority, part);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Writes one record. A record is what one write call brings.
    fn put(&self, priority: u8, part: &[u8]) {
        let mut record = format!("<{priority}>circular-mount: ").into_bytes();
        record.extend_from_slice(part);
        // There is nobody else to tell.
        let _ = (&self.file).write_all(&record);
    }
}

/// Cuts a line into parts that fit, between characters, and before a word if there is one near.
fn parts(line: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut rest) = (Vec::new(), line);
    while rest.len() > PART_BYTES_MAX {
        let window = &rest[..PART_BYTES_MAX];
        let space = window.iter().rposition(u8::is_ascii_whitespace);
        let start = |at: &usize| rest[*at] & 0xC0 != 0x80;
        let cut = space
            .filter(|at| *at > PART_BYTES_MAX / 2)
            .or_else(|| (1..=PART_BYTES_MAX).rev().find(start))
            .unwrap_or(PART_BYTES_MAX);
        let (part, behind) = rest.split_at(cut);
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// A log whose records are what comes out of the socket, one a datagram, as in the kernel.
    fn log() -> (KernelLog, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (KernelLog::to(File::from(OwnedFd::from(ours))), theirs)
    }

    fn records(socket: &UnixDatagram) -> Vec<String> {
        let mut bytes = vec![0; 4096];
        std::iter::from_fn(|| {
            let len = socket.recv(&mut bytes).ok()?;
            Some(String::from_utf8(bytes[..len].to_vec()).unwrap())
        })
        .collect()
    }

    #[test]
    fn a_line_is_a_record_with_the_priority_of_its_level() {
        let (log, socket) = log();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_level(false)
            .without_time()
            .with_writer(log);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::error!(offset = 5, "a read fails");
            tracing::warn!("the server fails");
            tracing::info!("serving");
            tracing::debug!("a miss");
        });
        let expected = [
            "<3>circular-mount: a read fails offset=5\n",
            "<4>circular-mount: the server fails\n",
            "<6>circular-mount: serving\n",
            "<7>circular-mount: a miss\n",
        ];
        assert_eq!(records(&socket), expected);
    }

    #[test]
    fn a_line_that_is_too_long_for_a_record_is_several() {
        let (log, socket) = log();
        let line = format!("{}\n", "é".repeat(2000));
        let mut record = log.record(Level::ERROR, false);
        record.write_all(line.as_bytes()).unwrap();
        let records = records(&socket);
        assert_eq!(records.len(), 5);
        let parts = records.iter().map(|record| {
            assert!(record.len() <= 950);
            record.strip_prefix("<3>circular-mount: ").unwrap()
        });
        assert_eq!(parts.collect::<String>(), line);
    }

    #[test]
    fn a_flood_is_left_out_and_that_is_said() {
        let (log, socket) = log();
        let fail = || {
            let mut record = log.record(Level::ERROR, false);
            record.write_all(b"a read fails\n").unwrap();
            records(&socket).len()
        };
        let burst: usize = (0..BURST).map(|_| fail()).sum();
        assert_eq!(burst, BURST as usize);
        for _ in 0..1000 {
            // A slow machine would earn one now and then.
            log.0.limit.lock().unwrap().left = 0;
            fail();
        }
        log.record(Level::INFO, true)
            .write_all(b"asked for\n")
            .unwrap();
        assert_eq!(records(&socket), ["<6>circular-mount: asked for\n"]);
        let mut limit = log.0.limit.lock().unwrap();
        (limit.left, limit.left_out) = (1, 7);
        drop(limit);
        log.record(Level::INFO, false)
            .write_all(b"serving\n")
            .unwrap();
        let said = "<4>circular-mount: 7 lines were left out, not to flood the kernel's log";
        assert_eq!(records(&socket), [said, "<6>circular-mount: serving\n"]);
    }

    proptest! {
        /// Whenever lines come, no stretch of time has more than a burst and what it has earned, and
        /// every line is written or counted as left out.
        #[test]
        fn no_stretch_has_more_than_its_share(steps in vec(0..3000_u64, 1..400)) {
            let (mut limit, mut now) = (Limit::new(), Duration::ZERO);
            let (mut written, mut told): (Vec<Duration>, u64) = (Vec::new(), 0);
            for step in &steps {
                // Most lines come close to each other.
                now += Duration::from_millis(if step % 3 == 0 { *step } else { step % 20 });
                if let Some(left_out) = limit.admit(now) {
                    written.push(now);
                    told += left_out;
                }
            }
            prop_assert_eq!(written.len() as u64 + told + limit.left_out, steps.len() as u64);
            for (first, from) in written.iter().enumerate() {
                for (last, until) in written.iter().enumerate().skip(first) {
                    let earned = (*until - *from).as_nanos() / EVERY.as_nanos() + 1;
                    prop_assert!((last - first) as u128 <= u128::from(BURST) + earned);
                }
            }
        }

        /// Parts fit, are cut between characters, and together are the line.
        #[test]
        fn parts_are_the_line(line in "[a-zé \\n]{0,4000}") {
            let parts = parts(line.as_bytes());
            prop_assert!(parts.iter().all(|part| part.len() <= PART_BYTES_MAX));
            prop_assert!(parts.iter().all(|part| std::str::from_utf8(part).is_ok()));
            prop_assert_eq!(parts.concat(), line.as_bytes());
        }
    }
}
