//! Files that are read again when they change: tokens, certificates.
//!
//! Whether they changed is asked when they are used, by what `stat` tells of them; there is no
//! watcher that could have died. Files that became unusable are said once in the log, and what they
//! held before stays in use: a slip in an editor locks nobody out.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest file: a table of tokens, or a chain of certificates.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ReloadError {
    #[error("cannot read `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is longer than {FILE_BYTES_MAX} bytes", .path.display())]
    TooLong { path: PathBuf },
    #[error("cannot use {what}")]
    Content {
        what: String,
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Turns the bytes of the files, in their order, into what is used.
type Decode<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, Box<dyn Error + Send + Sync>> + Send + Sync>;

/// What some files mean now.
pub(crate) struct Reloaded<T> {
    paths: Vec<PathBuf>,
    decode: Decode<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    stamps: Vec<Option<Stamp>>,
    value: Arc<T>,
}

impl<T> Reloaded<T> {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// They cannot be used: a server does not start with such files.
    pub(crate) fn open(
        paths: Vec<PathBuf>,
        decode: impl Fn(&[Vec<u8>]) -> Result<T, Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Result<Self, ReloadError> {
        let decode: Decode<T> = Box::new(decode);
        let stamps = stamps(&paths);
        let value = Arc::new(read(&paths, &decode)?);
        Ok(Self {
            paths,
            decode,
            state: Mutex::new(State { stamps, value }),
        })
    }

    /// Returns what the files mean, read again if they changed. Blocks.
    pub(crate) fn current(&self) -> Arc<T> {
        // Before they are read: a change after that is seen the next time.
        let now = stamps(&self.paths);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stamps != now {
            state.stamps = now;
            self.read_into(&mut state);
        }
        Arc::clone(&state.value)
    }

    /// Reads the files again, whether or not they seem to have changed. Blocks.
    pub(crate) fn reload(&self) {
        let now = stamps(&self.paths);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stamps = now;
        self.read_into(&mut state);
    }

    fn read_into(&self, state: &mut State<T>) {
        match read(&self.paths, &self.decode) {
            Ok(value) => {
                state.value = Arc::new(value);
                tracing::info!("read {} again", names(&self.paths));
            }
            Err(error) => {
                let cause = error.source().map(|cause| format!(": {cause}"));
                let cause = cause.unwrap_or_default();
                tracing::error!("{error}{cause}; what was read before stays in use");
            }
        }
    }
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// Tells one content of a file from another, as far as that goes without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp {
            file: (meta.dev(), meta.ino()),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    };
    paths.iter().map(stamp).collect()
}

fn read<T>(paths: &[PathBuf], decode: &Decode<T>) -> Result<T, ReloadError> {
    let read = paths.iter().map(|path| read_bounded(path));
    let bytes: Vec<_> = read.collect::<Result<_, _>>()?;
    decode(&bytes).map_err(|source| ReloadError::Content {
        what: names(paths),
        source,
    })
}

/// Reads a file of bounded length. Blocks.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, ReloadError> {
    let failed = |source| ReloadError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe would be waited for, by everybody who asks for what it holds.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let path = path.to_owned();
        return Err(ReloadError::TooLong { path });
    }
    Ok(bytes)
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    names.join(" with ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<Reloaded<u32>, ReloadError> {
        Reloaded::open(vec![path.to_owned()], |bytes| {
            Ok(std::str::from_utf8(&bytes[0])?.trim().parse()?)
        })
    }

    #[test]
    fn a_change_is_seen_and_a_broken_one_keeps_the_old() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("number");
        assert!(matches!(number(&path), Err(ReloadError::Read { .. })));
        fs::write(&path, "1").unwrap();
        let file = number(&path).unwrap();
        assert_eq!(*file.current(), 1);
        for (text, expected) in [("22", 22), ("broken", 22), ("333", 333)] {
            fs::write(&path, text).unwrap();
            assert_eq!(*file.current(), expected, "{text}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(*file.current(), 333);
        fs::write(&path, "4").unwrap();
        assert_eq!(*file.current(), 4);
    }

    #[test]
    fn asked_to_it_reads_files_that_seem_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("number");
        fs::write(&path, "1").unwrap();
        let file = number(&path).unwrap();
        fs::write(&path, "2").unwrap();
        file.reload();
        assert_eq!(*file.current(), 2);
    }

    #[test]
    fn what_is_endless_or_no_file_is_refused_and_never_waited_for() {
        let zero = number(Path::new("/dev/zero"));
        assert!(matches!(zero, Err(ReloadError::Read { .. })));
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("number");
        let file = File::create(&path).unwrap();
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(number(&path), Err(ReloadError::TooLong { .. })));
        fs::write(&path, "1").unwrap();
        let reloaded = number(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mode = nix::sys::stat::Mode::S_IRUSR;
        nix::unistd::mkfifo(&path, mode).unwrap();
        assert_eq!(*reloaded.current(), 1);
    }
}
