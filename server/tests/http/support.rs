//! A store in a temporary directory, a server on it, and clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use image_format::chunker::{ChunkerParams, Cut, End};
use image_format::frame::Encoder;
use image_format::{ChunkId, Digest, ObjectRef, REGION_BYTES};
use image_store::{
    ChunkIndexes, ImageWriter, KeyRing, Known, Lifetimes, Prepared, Publication, Published, Signer,
    Store,
};
use server::access_log::AccessLog;
use server::{Config, Drained, Server};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A token to read.
pub(crate) const READ: &str = "circular_read";

/// A token to publish.
pub(crate) const PUBLISH: &str = "circular_publish";

/// A token that no server knows.
pub(crate) const UNKNOWN: &str = "circular_unknown";

/// The value of an `Authorization` header.
pub(crate) fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// A running server and its store; stops on drop.
pub(crate) struct Site {
    pub(crate) scratch: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) addresses: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Drained>>,
}

impl Site {
    /// Serves a new store with the default limits.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Serves a new store as `change` says.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Store::open_or_create(&scratch.path().join("store"))
            .await
            .unwrap();
        Self::start_in(scratch, change).await
    }

    /// Serves what is, or will be, in `store` of a directory.
    pub(crate) async fn start_in(scratch: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let root = scratch.path().join("store");
        let mut config = Config::new(root, vec!["127.0.0.1:0".parse().unwrap()]);
        config.access_log = AccessLog::Off;
        change(&mut config);
        let server = Server::bind(config).await.unwrap();
        let address = server.local_addr();
        let addresses = server.local_addrs().to_vec();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            scratch,
            address,
            addresses,
            stop: Some(stop),
            running: Some(running),
        }
    }

    /// Asks the server to stop; the handle says how that went.
    pub(crate) fn stop(&mut self) -> JoinHandle<Drained> {
        drop(self.stop.take());
        self.running.take().unwrap()
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(&self.scratch.path().join("store"))
            .await
            .unwrap()
    }

    /// Adds an object; returns its path.
    pub(crate) async fn put(&self, bytes: impl Into<Bytes>) -> (String, ObjectRef) {
        let object = self.store().await.put_object(bytes.into()).await.unwrap();
        (format!("/{}", object.digest.object_path()), object)
    }

    /// Writes a file of the store by hand.
    pub(crate) fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.scratch.path().join("store").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Publishes a disk, chunk by chunk.
    pub(crate) async fn publish(&self, reference: &str, flat: &[u8]) -> Published {
        publish(&self.store().await, &self.ring(), reference, flat).await
    }

    /// The keys of the store, made when they are first used.
    pub(crate) fn ring(&self) -> KeyRing {
        ring(&self.scratch.path().join("keys"))
    }

    /// The table of the tokens that tests use: `READ` and `PUBLISH`.
    pub(crate) fn tokens(scratch: &Path) -> PathBuf {
        let path = scratch.join("tokens");
        let line =
            |token: &str, scope| format!("{scope} {} {scope}r\n", Digest::of(token.as_bytes()));
        let table = line(READ, "read") + &line(PUBLISH, "publish");
        std::fs::write(&path, table).unwrap();
        path
    }

    /// Every file of the store but its lock, by its path.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.scratch.path().join("store"), &mut files);
        files.retain(|path, _| !path.ends_with(".lock"));
        files
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a request with header lines; the answer is not redirected, not decoded.
    pub(crate) async fn ask(&self, method: &str, path: &str, lines: &[(&str, &str)]) -> Answer {
        let head: String = lines
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        self.say(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{head}Connection: close\r\n\r\n"
        ))
        .await
    }

    /// Sends a request with a body; the answer may come before all of it was taken.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        lines: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let head: String = lines
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{head}Connection: close\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let (mut from, mut to) = stream.split();
        let mut bytes = Vec::new();
        let write = async {
            let _ = to.write_all(head.as_bytes()).await;
            let _ = to.write_all(body).await;
        };
        let (_, _) = tokio::join!(write, from.read_to_end(&mut bytes));
        Answer::parse(&bytes)
    }

    /// Sends these very bytes and reads to the end of the connection.
    pub(crate) async fn say(&self, text: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // A connection that is cut short may end in a reset; what came before counts.
        let _ = stream.read_to_end(&mut bytes).await;
        Answer::parse(&bytes)
    }
}

/// Publishes a disk beside a store, chunk by chunk.
pub(crate) async fn publish(
    store: &Store,
    ring: &KeyRing,
    reference: &str,
    flat: &[u8],
) -> Published {
    let mut writer = ImageWriter::new(store.clone(), Arc::new(ChunkIndexes::default()));
    let mut encoder = Encoder::new(1).unwrap();
    let padded = flat.len().next_multiple_of(4096);
    let mut disk = flat.to_vec();
    disk.resize(padded, 0);
    let region_bytes = usize::try_from(REGION_BYTES).unwrap();
    let mut block = 0;
    for region in disk.chunks(region_bytes) {
        let mut rest = region;
        while !rest.is_empty() {
            let blocks = match ChunkerParams::DEFAULT.cut(rest, End::Region) {
                Cut::Zero { blocks } => blocks,
                Cut::Chunk { blocks } => {
                    let plain = &rest[..blocks * 4096];
                    let encoded = Prepared::Encoded(encoder.encode(plain).unwrap());
                    let n_blocks = u32::try_from(blocks).unwrap();
                    let chunk = ChunkId::of(plain);
                    writer.push(block, n_blocks, chunk, encoded).await.unwrap();
                    blocks
                }
                Cut::More => unreachable!("the region ends here"),
            };
            rest = &rest[blocks * 4096..];
            block += blocks as u64;
        }
    }
    let publication = Publication {
        reference: reference.parse().unwrap(),
        created: 0,
        written: writer.finish(flat.len() as u64).await.unwrap(),
        chunker: ChunkerParams::DEFAULT,
        boot: None,
        boot_pack: None,
        index_delta: None,
        known: Known::Published,
    };
    let signer = signer(ring);
    signer.establish(store).await.unwrap();
    publication.commit(store, &signer).await.unwrap()
}

/// The keys in a directory, made when they are first used.
pub(crate) fn ring(keys: &Path) -> KeyRing {
    match keys.exists() {
        true => KeyRing::open(keys).unwrap(),
        false => KeyRing::generate(keys).unwrap(),
    }
}

/// Signs with these keys, for as long as a store is used.
pub(crate) fn signer(ring: &KeyRing) -> Signer<'_> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Signer {
        keys: ring,
        lifetimes: Lifetimes::DEFAULT,
        now: now.unwrap().as_secs(),
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            files.insert(path, bytes);
        }
    }
}

/// What came over the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("no end of the head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// Returns the value of a header, or an empty one.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }

    /// Returns the values of a header.
    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let named = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value).collect()
    }

    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Bytes that do not compress and do not repeat, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next)
        .take(length.div_ceil(8))
        .flatten()
        .collect();
    bytes.truncate(length);
    bytes
}
