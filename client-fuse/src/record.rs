//! Records what is read first: a line in a trace for each chunk that a reader touches for the first
//! time, with the times at which it was asked for and came.
//!
//! Only reads count, not what is fetched ahead of them. Lines are collected in memory and written by
//! a thread of their own every few seconds and at the end; a process that is killed loses those of
//! the last seconds. An error ends the recording, with one line in the log, and never reaches a
//! reader.
//!
//! Bounds: [`TOUCHES_MAX`] chunks, 2 MiB for their names and at most 10 MiB for lines not yet written.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image_format::ChunkId;
use image_format::trace::{self, Header, TOUCHES_MAX, Touch};

use crate::place::Place;

/// How often lines are written: a boot takes longer, and a disk is not kept busy by it.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// A file that is to hold a trace; the clock of the recording starts when it is made.
#[derive(Debug)]
pub struct TraceFile {
    file: File,
    path: PathBuf,
    began: Instant,
}

impl TraceFile {
    /// Makes the file, over an older one.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            path: path.to_owned(),
            began: Instant::now(),
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
    ended: bool,
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

    /// Notes that a reader asked for these chunks at `asked` and has them now.
    pub fn note<'a>(&self, asked: Instant, places: impl Iterator<Item = &'a Place>) {
        let since = |at: Instant| {
            let micros = at.saturating_duration_since(self.began).as_micros();
            u64::try_from(micros).unwrap_or(u64::MAX)
        };
        let asked = since(asked);
        let served = since(Instant::now()).max(asked);
        let mut noted = self.shared.noted();
        for place in places {
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
            });
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

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
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
                .wait_timeout_while(self.noted(), WRITE_EVERY, |noted| !noted.ended)
                .unwrap_or_else(PoisonError::into_inner);
            let (lines, ended) = (std::mem::take(&mut noted.lines), noted.ended);
            drop(noted);
            if let Err(error) = file.file.write_all(&lines) {
                tracing::warn!(trace = %file.path.display(), %error, "cannot write the trace; it ends here");
                return;
            }
            if ended {
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
        recorder.note(second, [place(2), place(3)].iter());
        recorder.note(first, [place(1), place(2)].iter());
        drop(recorder);
        let trace = Trace::decode(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(trace.header, header);
        let blocks: Vec<_> = trace.touches.iter().map(|touch| touch.block).collect();
        assert_eq!(blocks, [8, 16, 24]);
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
        recorder.note(Instant::now(), [place(1)].iter());
        recorder.end();
        recorder.note(Instant::now(), [place(2)].iter());
    }
}
