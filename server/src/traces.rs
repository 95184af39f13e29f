//! Takes recorded boots from machines: opt-in, bounded, and nothing is ever changed that is there.
//!
//! Whoever may read the store may leave a trace, for a machine that boots has no other right. So
//! nothing is kept but what was read as a trace and written anew; the server makes the names; and
//! what all of them together may take is little. Somebody looks at them before `circular profile add`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request};
use hyper::body::Body as HttpBody;
use image_format::trace::{self, TRACE_BYTES_MAX, Trace};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::config::Limits;
use crate::upload::protocol::{Reply, UploadError};
use crate::upload::{discard, receive, turn};

/// Where traces are sent.
pub(crate) const PATH: &str = "/traces";

/// Most files in the directory. When they are there, somebody has to take some away.
const FILES_MAX: usize = 1000;

/// Most bytes of them: 1,000 boots of a small system.
const BYTES_MAX: u64 = 256 << 20;

/// Traces that are read into memory at once.
const TURNS: usize = 2;

/// Names tried for one trace; others of the same second have those before.
const NAMES_MAX: u32 = 10_000;

/// A directory for traces.
#[derive(Debug)]
pub(crate) struct Traces {
    directory: Arc<Mutex<PathBuf>>,
    turns: Arc<Semaphore>,
    stall_timeout: Duration,
}

impl Traces {
    /// Takes traces into `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn open(directory: &Path, limits: &Limits) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: Arc::new(Mutex::new(directory.canonicalize()?)),
            turns: Arc::new(Semaphore::new(TURNS)),
            stall_timeout: limits.upload_stall_timeout,
        })
    }

    /// Takes the trace that a request brings.
    ///
    /// # Errors
    /// It is refused, and nothing was kept.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let (head, mut body) = request.into_parts();
        let answer = match head.method {
            Method::POST => self.take(&mut body).await,
            _ => Err(UploadError::Method("POST")),
        };
        discard(&head.headers, body);
        answer
    }

    async fn take<B>(&self, body: &mut B) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let _turn = turn(&self.turns).await?;
        let bytes = receive::document(body, TRACE_BYTES_MAX as u64, self.stall_timeout).await?;
        let directory = Arc::clone(&self.directory);
        let keep = move || {
            let trace = Trace::decode(&bytes).map_err(UploadError::Trace)?;
            if trace.touches.is_empty() {
                return Err(UploadError::EmptyTrace);
            }
            drop(bytes);
            let directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
            store(&directory, &trace)
        };
        spawn_blocking(keep).await??;
        Ok(Reply::Stored)
    }
}

/// Writes `trace` under a name of its own, if there is room. Called by one at a time.
fn store(directory: &Path, trace: &Trace) -> Result<(), UploadError> {
    let mut bytes = trace::line(&trace.header);
    bytes.extend(trace.touches.iter().flat_map(trace::line));
    let (files, taken) = taken(directory).map_err(UploadError::Write)?;
    if files >= FILES_MAX || taken.saturating_add(bytes.len() as u64) > BYTES_MAX {
        return Err(UploadError::TracesFull);
    }
    place(directory, trace, &bytes).map_err(UploadError::Write)
}

/// How many files there are, and how many bytes they have.
fn taken(directory: &Path) -> io::Result<(usize, u64)> {
    let (mut files, mut bytes) = (0, 0_u64);
    for entry in fs::read_dir(directory)? {
        files += 1;
        bytes = bytes.saturating_add(entry?.metadata()?.len());
    }
    Ok((files, bytes))
}

fn place(directory: &Path, trace: &Trace, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(".trace-")
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let image = trace.header.image.to_file_safe();
    for number in 0..NAMES_MAX {
        let path = directory.join(format!("{image}.{now}-{number}.trace"));
        match file.persist_noclobber(path) {
            Ok(_) => return Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => file = error.file,
            Err(error) => return Err(error.error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use image_format::trace::{Header, Touch};
    use image_format::{ChunkId, Digest};

    use super::*;

    fn trace() -> Trace {
        let touch = Touch {
            asked: 0,
            served: 1,
            block: 0,
            blocks: 1,
            chunk: ChunkId::of(b"chunk"),
            read: None,
        };
        Trace {
            header: Header::new("lab/a@1".parse().unwrap(), Digest::of(b"disk")),
            touches: vec![touch],
        }
    }

    #[test]
    fn a_trace_never_replaces_another() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            store(directory.path(), &trace()).unwrap();
        }
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(files.len(), 20);
        for file in files {
            let file = file.unwrap();
            assert!(file.file_name().to_str().unwrap().starts_with("lab,a@1."));
            assert_eq!(
                Trace::decode(&fs::read(file.path()).unwrap()).unwrap(),
                trace()
            );
        }
    }

    #[test]
    fn a_full_directory_takes_no_more() {
        let many = tempfile::tempdir().unwrap();
        for number in 0..FILES_MAX {
            fs::write(many.path().join(number.to_string()), "").unwrap();
        }
        let large = tempfile::tempdir().unwrap();
        let file = fs::File::create(large.path().join("large")).unwrap();
        file.set_len(BYTES_MAX).unwrap();
        for directory in [many, large] {
            let before = taken(directory.path()).unwrap();
            let refused = store(directory.path(), &trace()).unwrap_err();
            assert!(matches!(refused, UploadError::TracesFull));
            assert_eq!(refused.status(), 507);
            assert_eq!(taken(directory.path()).unwrap(), before);
        }
    }
}
