//! Serves the metrics over HTTP, on an address or a socket that was named. Off unless it was.
//!
//! It answers `GET /metrics` for Prometheus and `GET /stats.json` for `circular-mount top`, one request
//! a connection, and refuses all else. The server of hyper would add its whole HTTP/1 state machine to
//! a program that each boot downloads, for two fixed answers; this takes a head of at most 4 KiB, reads
//! two words of it, and closes.
//!
//! Nothing is asked for a token, and nothing that is served is secret; who may connect is decided by
//! the address. A port alone is that of this machine only.
//!
//! Bounds: connections at once, bytes of a head, and how long a client may take.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::exposition;

/// A monitor needs one; those above wait.
const CONNECTIONS_MAX: usize = 8;

/// A request for metrics has some hundred bytes.
const HEAD_BYTES_MAX: usize = 4 << 10;

/// The longest that a client may take for all of it.
const CLIENT_MAX: Duration = Duration::from_secs(10);

/// Between two tries when the system has no connection for us.
const PAUSE: Duration = Duration::from_millis(200);

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On a TCP port.
    Tcp(SocketAddr),
    /// On a Unix socket.
    Unix(PathBuf),
}

/// Text that is no [`Address`].
#[derive(Debug, thiserror::Error)]
#[error(
    "not a place to serve metrics at: give PORT (of this machine only), ADDRESS:PORT or unix:PATH"
)]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(path)
                .filter(|path| !path.is_empty())
                .map(|path| Self::Unix(path.into()))
                .ok_or(AddressError);
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| AddressError)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What can be asked for.
pub trait Metrics: Send + Sync + 'static {
    /// The text for Prometheus.
    fn exposition(&self) -> String;
    /// The same numbers as in `.circular/stats.json`.
    fn stats(&self) -> String;
}

/// A place at which nobody is answered yet.
#[derive(Debug)]
pub struct Bound {
    /// Removed at the end, before another one can take its place.
    path: Option<SocketFile>,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket in the file system, which goes with its server.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it before us wanted the same.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bound {
    /// Takes the place. A socket that a killed mount has left is replaced.
    ///
    /// # Errors
    ///
    /// When it is taken, or cannot be had.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Tcp(address) => Self {
                listener: Listener::Tcp(TcpListener::bind(address).await?),
                path: None,
            },
            Address::Unix(path) => {
                let path = std::path::absolute(path)?;
                let listener = match UnixListener::bind(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        remove_stale(&path)?;
                        UnixListener::bind(&path)?
                    }
                    outcome => outcome?,
                };
                Self {
                    listener: Listener::Unix(listener),
                    path: Some(SocketFile(path)),
                }
            }
        })
    }

    /// Where it is, with the port that the system chose for port 0.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok().map(Address::Tcp),
            Listener::Unix(_) => Some(Address::Unix(self.path.as_ref()?.0.clone())),
        }
    }

    /// Begins to answer, for as long as `metrics` are there and what is returned is kept.
    #[must_use]
    pub fn serve(self, metrics: Weak<impl Metrics>) -> Serving {
        let Self { listener, path } = self;
        let serving = tokio::spawn(async move { listener.serve(metrics).await });
        Serving {
            task: serving.abort_handle(),
            _path: path,
        }
    }
}

/// Metrics that are served; when this is dropped, no more, and the socket is gone.
#[derive(Debug)]
pub struct Serving {
    task: AbortHandle,
    _path: Option<SocketFile>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    async fn serve(&self, metrics: Weak<impl Metrics>) {
        let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // It is never closed.
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
                return;
            };
            let client = match self.accept().await {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection for metrics");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(metrics) = metrics.upgrade() else {
                return;
            };
            tokio::spawn(async move {
                let answered = tokio::time::timeout(CLIENT_MAX, converse(client, &*metrics));
                if !matches!(answered.await, Ok(Ok(()))) {
                    tracing::debug!("a client that asked for metrics went away");
                }
                drop(turn);
            });
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Client>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why: &str| io::Error::new(io::ErrorKind::AddrInUse, why.to_owned());
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(in_use("there is a file that is no socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Err(in_use("somebody serves there already")),
    }
}

/// Whoever asks.
trait Client: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Client for T {}

async fn converse(mut client: Box<dyn Client>, metrics: &impl Metrics) -> io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !is_whole(&head) && head.len() < HEAD_BYTES_MAX {
        let got = client.read(&mut part).await?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&part[..got]);
    }
    client.write_all(&answer(&head, metrics)).await?;
    client.shutdown().await
}

fn is_whole(head: &[u8]) -> bool {
    let ends = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
    ends(b"\r\n\r\n") || ends(b"\n\n")
}

/// The answer to a request that begins with `head`.
fn answer(head: &[u8], metrics: &impl Metrics) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default().trim_end();
    let words: Vec<&str> = line.split(' ').collect();
    let (method, target) = match &words[..] {
        [method, target, version] if version.starts_with("HTTP/1.") => (*method, *target),
        _ => return reply("400 Bad Request", TEXT, "this is no HTTP request\n", true),
    };
    if !is_whole(head) {
        let status = "431 Request Header Fields Too Large";
        return reply(status, TEXT, "the head is too long\n", true);
    }
    let with_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return reply("405 Method Not Allowed\r\nAllow: GET, HEAD", TEXT, "", true),
    };
    match target.split('?').next() {
        Some("/metrics") => reply(
            "200 OK",
            exposition::CONTENT_TYPE,
            &metrics.exposition(),
            with_body,
        ),
        Some("/stats.json") => reply("200 OK", "application/json", &metrics.stats(), with_body),
        _ => reply(
            "404 Not Found",
            TEXT,
            "there is /metrics and /stats.json\n",
            with_body,
        ),
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn reply(status: &str, kind: &str, body: &str, with_body: bool) -> Vec<u8> {
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        text.push_str(body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Fixed;

    impl Metrics for Fixed {
        fn exposition(&self) -> String {
            "circular_reads_total 1\n".to_owned()
        }

        fn stats(&self) -> String {
            "{}\n".to_owned()
        }
    }

    fn status(head: &str) -> String {
        let answer = String::from_utf8(answer(head.as_bytes(), &Fixed)).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_port_alone_is_that_of_this_machine() {
        let of = |text: &str| text.parse::<Address>().map(|it| it.to_string()).ok();
        assert_eq!(of("9184").unwrap(), "127.0.0.1:9184");
        assert_eq!(of("10.0.0.1:9184").unwrap(), "10.0.0.1:9184");
        assert_eq!(of("[::1]:9184").unwrap(), "[::1]:9184");
        assert_eq!(of("unix:/run/c.sock").unwrap(), "unix:/run/c.sock");
        for wrong in ["", "unix:", "99999", "host:80", "/run/c.sock", ":9184"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_things_can_be_asked_for() {
        let end = "Host: a\r\n\r\n";
        assert_eq!(
            status(&format!("GET /metrics HTTP/1.1\r\n{end}")),
            "HTTP/1.1 200 OK"
        );
        assert_eq!(
            status(&format!("GET /stats.json HTTP/1.0\r\n{end}")),
            "HTTP/1.1 200 OK"
        );
        assert_eq!(
            status(&format!("HEAD /metrics?a=b HTTP/1.1\r\n{end}")),
            "HTTP/1.1 200 OK"
        );
        for (line, code) in [
            ("GET / HTTP/1.1", "404"),
            ("POST /metrics HTTP/1.1", "405"),
            ("GET /metrics", "400"),
            ("GET  /metrics HTTP/1.1", "400"),
            ("GET /metrics HTTP/2", "400"),
        ] {
            let status = status(&format!("{line}\r\n{end}"));
            assert!(status.contains(code), "{line}: {status}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "b".repeat(HEAD_BYTES_MAX));
        assert!(status(&long).contains("431"));
    }

    proptest! {
        /// Whatever comes, there is one answer, as long as it says.
        #[test]
        fn an_answer_is_as_long_as_it_says(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            let answer = String::from_utf8(answer(&head, &Fixed)).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let length = format!("Content-Length: {}\r\n", body.len());
            prop_assert!(head.contains(&length));
        }
    }
}
