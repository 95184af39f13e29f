//! The disk on a unix socket, by the NBD protocol: for hypervisors that would rather have that than a
//! file.
//!
//! What is said is decided in [`handshake`] and [`transmission`], which do no I/O; `connection` reads
//! and writes. All connections see one disk without a cache of their own, so a flush on one of them
//! is one of all.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections; on each, `connection::REQUESTS_MAX` requests and
//! [`transmission::PAYLOAD_BYTES_MAX`] bytes at once. Whoever may open the socket is trusted as far
//! as whoever may open a mounted disk.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{Mode, umask};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::config::Access;
use crate::fetch::Source;
use crate::fs::ImageFs;
use crate::mount::signals::Signals;

mod connection;
pub mod handshake;
pub mod transmission;

use connection::Connection;
use handshake::Described;
use transmission::{PAYLOAD_BYTES_MAX, flags};

/// Connections at once; a client that copies a disk uses four.
pub const CONNECTIONS_MAX: usize = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum NbdError {
    #[error("somebody serves on {} already", path.display())]
    Taken { path: PathBuf },
    #[error("{} is there and no socket; name another --nbd", path.display())]
    NoSocket { path: PathBuf },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// A socket that listens; removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: what is at the path later may be somebody else's.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Listens at `path`; what a process that was killed left there is taken away.
    ///
    /// # Errors
    ///
    /// When somebody listens there, or it cannot be done.
    pub async fn listen(path: &Path, access: Access) -> Result<Self, NbdError> {
        let path = path.to_owned();
        if let Ok(found) = fs::symlink_metadata(&path) {
            if !found.file_type().is_socket() {
                return Err(NbdError::NoSocket { path });
            }
            if UnixStream::connect(&path).await.is_ok() {
                return Err(NbdError::Taken { path });
            }
        }
        let listen = || -> io::Result<(UnixListener, fs::Metadata)> {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Nobody else may connect before the mode is what it shall be.
            let before = umask(Mode::from_bits_truncate(0o177));
            let listener = UnixListener::bind(&path);
            umask(before);
            let listener = listener?;
            if access == Access::Everybody {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
            }
            Ok((listener, fs::symlink_metadata(&path)?))
        };
        match listen() {
            Ok((listener, found)) => Ok(Self {
                listener,
                path,
                identity: Some((found.dev(), found.ino())),
            }),
            Err(source) => Err(NbdError::Listen { path, source }),
        }
    }

    /// Serves `export` until a signal comes.
    pub async fn serve<S: Source>(self, export: Export<S>, signals: &mut Signals) {
        let export = Arc::new(export);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an NBD connection failed");
                    }
                    continue;
                }
                signal = signals.next() => {
                    tracing::info!(signal, "ending the export");
                    break;
                }
            };
            match accepted {
                Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                    tracing::warn!(
                        most = CONNECTIONS_MAX,
                        "an NBD client too many is sent away"
                    );
                }
                Ok((stream, _)) => {
                    let connection = Connection::new(Arc::clone(&export));
                    connections.spawn(connection.run(stream));
                }
                Err(error) => {
                    // Out of descriptors, for example: those who are here go on.
                    tracing::error!(%error, "an NBD client cannot be let in");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        // Whoever waits for an answer sees an end instead; what was written goes to the overlay.
        connections.shutdown().await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path).ok();
        if found.map(|found| (found.dev(), found.ino())) == self.identity {
            // At worst it stays, and the next one takes it away.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A disk, and what clients are told of it.
#[derive(Debug)]
pub struct Export<S> {
    fs: Arc<ImageFs<S>>,
    described: Described,
}

impl<S: Source> Export<S> {
    /// The disk of `fs`, which is called `name`.
    #[must_use]
    pub fn new(fs: Arc<ImageFs<S>>, name: &str) -> Self {
        let disk = fs.disk();
        let can = flags::HAS_FLAGS | flags::SEND_DF | flags::CAN_MULTI_CONN;
        let may = if disk.is_writable() {
            flags::SEND_FLUSH | flags::SEND_FUA | flags::SEND_TRIM | flags::SEND_WRITE_ZEROES
        } else {
            flags::READ_ONLY
        };
        let described = Described {
            name: name.to_owned(),
            description: format!("Circular image {name}"),
            length: disk.length(),
            flags: can | may,
            block_sizes: [1, image_format::BLOCK_BYTES, PAYLOAD_BYTES_MAX],
        };
        Self { fs, described }
    }
}
