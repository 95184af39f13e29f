//! Records what is read first: a line in a trace for each chunk that a reader touches for the first
//! time, with the times at which it was asked for and came, and where it came from.
//!
//! Only reads count, not what is fetched ahead of them. Lines are collected in memory and written by
//! a thread of their own every few seconds and at the end; a process that is killed loses those of
//! the last seconds. An error ends the recording, with one line in the log, and never reaches a
//! reader.
//!
//! The file may be a serial line: whoever is at its other end has the trace even if this machine
//! never comes up. [`send`] brings a trace to a server. Neither touches the disk that is recorded:
//! what is needed is open before the disk is there, and a file of an initramfs lies in memory.
//!
//! Bounds: [`TOUCHES_MAX`] chunks, 2 MiB for their names and at most 14 MiB for lines not yet written.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image_format::trace::{self, Header, Origin, ReadPart, TOUCHES_MAX, TRACE_BYTES_MAX, Touch};
use image_format::{BLOCK_BYTES, ChunkId};
use nix::libc::O_NOCTTY;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::disk::plan::Part;

pub mod send;

/// How often lines are written: a boot takes longer, and a disk is not kept busy by it.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// The same for a line, which no disk has to do with, and whose machine may be switched off any time.
const SAY_EVERY: Duration = Duration::from_millis(100);

/// A file that is to hold a trace; the clock of the recording starts when it is made.
#[derive(Debug)]
pub struct TraceFile {
    file: File,
    path: PathBuf,
    began: Instant,
    every: Duration,
}

impl TraceFile {
    /// A second hand on the file, to send what will be in it.
    fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Makes the file, over an older one; or opens the line, and lets every byte pass as it is.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        // Of a serial line, a process without a terminal would become the one to hang up with it.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.custom_flags(O_NOCTTY).open(path)?;
        let is_line = file.is_terminal();
        if is_line {
            let mut raw = tcgetattr(&file)?;
            cfmakeraw(&mut raw);
            tcsetattr(&file, SetArg::TCSANOW, &raw)?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            began: Instant::now(),
            every: if is_line { SAY_EVERY } else { WRITE_EVERY },
        })
    }
}

/// Writes a trace. What was noted is in the file when it is [ended](Self::end) or dropped.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    noted: Mutex<Noted>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Noted {
    seen: HashSet<ChunkId>,
    lines: Vec<u8>,
    /// When a chunk was first touched, and when one was last touched for the first time.
    touched: Option<Range<Instant>>,
    ended: bool,
    /// The writer will write no more.
    written: bool,
}

impl Recorder {
    /// Begins a trace in `file`.
    ///
    /// # Errors
    ///
    /// When its first line cannot be written, or there can be no thread.
    pub fn start(mut file: TraceFile, header: &Header) -> io::Result<Self> {
        file.file.write_all(&trace::line(header))?;
        let shared = Arc::new(Shared {
            noted: Mutex::default(),
            ended: Condvar::new(),
        });
        let began = file.began;
        let writing = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || writing.write_until_ended(file))?;
        Ok(Self {
            began,
            shared,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Looks at what is written to `file`, a second hand on it.
    fn watch(&self, file: File) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
            file,
        }
    }

    /// Notes that a reader asked for these parts of chunks at `asked`, that the index had named them
    /// at `planned`, and that the reader has them now.
    pub fn note<'a>(
        &self,
        asked: Instant,
        planned: Instant,
        parts: impl Iterator<Item = (&'a Part, Origin)>,
    ) {
        let since = |at: Instant| {
            let micros = at.saturating_duration_since(self.began).as_micros();
            u64::try_from(micros).unwrap_or(u64::MAX)
        };
        let now = Instant::now();
        let (asked, planned, served) = (since(asked), since(planned), since(now));
        let (planned, served) = (planned.max(asked), served.max(asked));
        let on_index = planned - asked > (served - asked) / 2;
        let mut noted = self.shared.noted();
        if noted.ended {
            return;
        }
        for (part, from) in parts {
            let place = &part.place;
            if noted.seen.len() >= TOUCHES_MAX || !noted.seen.insert(place.id()) {
                continue;
            }
            let blocks = place.blocks();
            let line = trace::line(&Touch {
                asked,
                served,
                block: blocks.start,
                blocks: u32::try_from(blocks.end - blocks.start).unwrap_or(u32::MAX),
                chunk: place.id(),
                read: Some(ReadPart {
                    from: if on_index { Origin::Index } else { from },
                    ..wanted(part)
                }),
            });
            let first = noted.touched.as_ref().map_or(now, |touched| touched.start);
            noted.touched = Some(first..now);
            noted.lines.extend(line);
        }
    }

    /// Writes what was noted until now, and returns when it is in the file. What is noted later is
    /// not written: whoever waits for the end does not wait for all who can still note.
    pub fn end(&self) {
        self.shared.noted().ended = true;
        self.shared.ended.notify_all();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // It logs what goes wrong itself.
            let _ = writer.join();
        }
    }
}

/// The blocks of the disk that a part of a chunk lies in.
fn wanted(part: &Part) -> ReadPart {
    let block = BLOCK_BYTES as usize;
    let blocks = part.within.start / block..part.within.end.div_ceil(block);
    ReadPart {
        from: Origin::Demand,
        block: part.place.blocks().start + blocks.start as u64,
        blocks: u32::try_from(blocks.len()).unwrap_or(u32::MAX),
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Looks at a trace while it is written, and ends it.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    file: File,
}

impl Watch {
    /// Since when chunks are touched, and since when no other one was; `None`: none was yet.
    fn touched(&self) -> Option<(Duration, Duration)> {
        let touched = self.shared.noted().touched.clone()?;
        Some((touched.start.elapsed(), touched.end.elapsed()))
    }

    /// Ends the recording: nothing more is noted.
    fn end(&self) {
        self.shared.noted().ended = true;
        self.shared.ended.notify_all();
    }

    /// Whether all that was noted is in the file.
    fn is_written(&self) -> bool {
        self.shared.noted().written
    }

    /// What the file has. It is read through what was opened at the start: by now its name may lead
    /// elsewhere.
    fn contents(&self) -> io::Result<Vec<u8>> {
        let length = self.file.metadata()?.len();
        let length = usize::try_from(length).map_or(TRACE_BYTES_MAX, |it| it.min(TRACE_BYTES_MAX));
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

impl Shared {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_until_ended(&self, mut file: TraceFile) {
        loop {
            let (mut noted, _) = self
                .ended
                .wait_timeout_while(self.noted(), file.every, |noted| !noted.ended)
                .unwrap_or_else(PoisonError::into_inner);
            let (lines, ended) = (std::mem::take(&mut noted.lines), noted.ended);
            drop(noted);
            let outcome = file.file.write_all(&lines);
            if let Err(error) = &outcome {
                tracing::warn!(trace = %file.path.display(), %error, "cannot write the trace; it ends here");
            }
            if ended || outcome.is_err() {
                let mut noted = self.noted();
                *noted = Noted {
                    touched: noted.touched.take(),
                    ended: true,
                    written: true,
                    ..Noted::default()
                };
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use image_format::page::Entry;
    use image_format::trace::Trace;
    use image_format::{Digest, ObjectRef};

    use super::*;
    use crate::place::Place;

    fn part(number: u32) -> (Part, Origin) {
        let place = place(number);
        let within = 4096 + 5..2 * 4096 + 1;
        (Part { place, within }, Origin::Disk)
    }

    fn place(number: u32) -> Place {
        let entry = Entry {
            block: number * 8,
            blocks: 8,
            chunk: ChunkId::of(&number.to_le_bytes()),
            pack: 0,
            offset: 8,
            length: 1,
        };
        Place::new(0, entry, ObjectRef::of(b"pack"))
    }

    #[test]
    fn a_trace_has_each_chunk_once_in_the_order_of_asking() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let header = Header::new("lab/debian:12@1".parse().unwrap(), Digest::of(b"disk"));
        let file = TraceFile::create(&path).unwrap();
        let (first, second) = (Instant::now(), Instant::now() + Duration::from_millis(1));
        let recorder = Recorder::start(file, &header).unwrap();
        let note = |asked, numbers: [u32; 2]| {
            let parts = numbers.map(part);
            let parts = parts.iter().map(|(part, from)| (part, *from));
            recorder.note(asked, asked, parts);
        };
        note(second, [2, 3]);
        note(first, [1, 2]);
        drop(recorder);
        let trace = Trace::decode(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(trace.header, header);
        let blocks: Vec<_> = trace.touches.iter().map(|touch| touch.block).collect();
        assert_eq!(blocks, [8, 16, 24]);
        let read = ReadPart {
            from: Origin::Disk,
            block: 9,
            blocks: 2,
        };
        assert_eq!(trace.touches[0].read, Some(read));
    }

    #[test]
    fn a_trace_that_cannot_be_written_stops_no_reader() {
        let header = Header::new("a@1".parse().unwrap(), Digest::of(b"disk"));
        let full = TraceFile::create(Path::new("/dev/full")).unwrap();
        assert!(Recorder::start(full, &header).is_err());
        assert!(TraceFile::create(Path::new("/no/such/directory/trace")).is_err());

        // One that takes the first line, and then no more.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let other_end = {
            let path = path.clone();
            std::thread::spawn(move || File::open(path).unwrap())
        };
        let breaking = TraceFile::create(&path).unwrap();
        let other_end = other_end.join().unwrap();
        let recorder = Recorder::start(breaking, &header).unwrap();
        drop(other_end);
        let now = Instant::now();
        let (touch, from) = part(1);
        recorder.note(now, now, [(&touch, from)].into_iter());
        recorder.end();
        recorder.note(now, now, [(&touch, from)].into_iter());
    }
}
