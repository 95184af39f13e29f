//! What the server is told: checked values, no environment, no defaults but [`Limits::DEFAULT`].

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::access_log::AccessLog;

/// What to serve, where, and how much at once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory that holds the store.
    pub store: PathBuf,
    /// The addresses to listen on, with TLS if there is a certificate; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The addresses to listen on without TLS, whether or not there is a certificate.
    pub listen_plain: Vec<SocketAddr>,
    /// Certificate and key.
    pub tls: Option<TlsFiles>,
    /// The table of tokens.
    pub tokens: Option<PathBuf>,
    /// Whether reading needs a token too.
    pub private: bool,
    /// Whether whoever has a token for it can publish.
    pub upload: Option<UploadRoot>,
    /// The directory for traces of boots, if they are taken.
    pub traces: Option<PathBuf>,
    /// Whether each request is logged.
    pub access_log: AccessLog,
    /// The bounds.
    pub limits: Limits,
}

impl Config {
    /// Serves `store` on `listen` with the default limits and an access log.
    #[must_use]
    pub fn new(store: PathBuf, listen: Vec<SocketAddr>) -> Self {
        Self {
            store,
            listen,
            listen_plain: Vec::new(),
            tls: None,
            tokens: None,
            private: false,
            upload: None,
            traces: None,
            access_log: AccessLog::On,
            limits: Limits::DEFAULT,
        }
    }
}

/// The PEM files of TLS; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, its chain after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What uploaded metadata must chain to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadRoot {
    /// The first root of the store itself.
    OfStore,
    /// The root in this file: what a store that is new needs.
    File(PathBuf),
}

/// The bounds on what strangers may make the server hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the listen queue of the kernel, they are not refused.
    pub connections: NonZeroUsize,
    /// Answers at once, over all connections, beside the one that each may always have: bounds the
    /// memory and the open files that HTTP/2 clients can make the server hold, and leaves others
    /// alone. More wait, see [`Limits::ADMISSION_TIMEOUT`].
    pub answers: NonZeroUsize,
    /// How long a request head may take to arrive, and a connection may sit idle.
    pub head_timeout: Duration,
    /// How long a client may take no byte of an answer before its connection is closed.
    pub stall_timeout: Duration,
    /// How long a client may send no byte of a body that it announced.
    pub upload_stall_timeout: Duration,
    /// How long answers may go on after shutdown was asked for.
    pub drain_timeout: Duration,
}

impl Limits {
    /// - 1024 connections: more machines than boot at once from a server with a 10 Gbit/s link.
    /// - 1024 answers, so that with one for each connection there are 2048. Each has a piece of at
    ///   most 256 KiB in hand: 512 MiB at the very most, where every client stalls at the worst
    ///   moment.
    /// - 60 s: longer than the pauses of a client between reads, short enough that idle
    ///   connections do not use up the 1024.
    /// - 120 s: a guest that is paused or swapping may take no byte for a while. It only has
    ///   to connect again if it does for longer.
    /// - 120 s again for what clients send: the same pause, the other way.
    /// - 30 s: an object of 16 MiB at 5 Mbit/s.
    pub const DEFAULT: Self = Self {
        connections: NonZeroUsize::new(1024).expect("not zero"),
        answers: NonZeroUsize::new(1024).expect("not zero"),
        head_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(120),
        upload_stall_timeout: Duration::from_secs(120),
        drain_timeout: Duration::from_secs(30),
    };

    /// How long a request waits for its turn before it is answered with 503: shorter than the
    /// command time-out of iPXE, 15 s.
    pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);

    /// Bodies that are stored at once; more wait like requests do. Each has at most two pieces of
    /// 256 KiB in hand.
    pub const UPLOADS_MAX: usize = 32;

    /// Questions, and commits, that are read into memory at once, each of at most 8 MiB. Commits wait
    /// for each other anyway, and for publishers beside the store.
    pub const UPLOAD_DOCUMENTS_MAX: usize = 4;

    /// Most bytes of a request head; more is answered with 431. A head of ours has under 1 KiB.
    pub const HEAD_BYTES_MAX: u32 = 16 << 10;

    /// Most answers at once on one HTTP/2 connection.
    pub const STREAMS_MAX: u32 = 64;
}
