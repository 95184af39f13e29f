//! The proxy's faults, as an HTTP client meets them: each at the request that the plan names, and only there.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use circular_tests::images;
use circular_tests::images::{noise, sparse};
use circular_tests::mount::Mount;
use circular_tests::proxy::Proxy;
use circular_tests::proxy::faults::{Fault, Rule};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;

const LENGTH: usize = 300_000;

/// Asks for `path` on a connection of its own and returns all that comes until its end, or until nothing has come
/// for a while.
fn ask(proxy: &Proxy, path: &str) -> Result<(Vec<u8>, Option<ErrorKind>)> {
    let address = proxy
        .url()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let (mut all, mut piece) = (Vec::new(), vec![0; 65_536]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok((all, None)),
            Ok(length) => all.extend_from_slice(&piece[..length]),
            Err(error) => return Ok((all, Some(error.kind()))),
        }
    }
}

/// Returns status and body of an answer.
fn parts(answer: &[u8]) -> Result<(&[u8], &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.context("no end of the head")? + 4);
    Ok((head.get(9..12).context("no status")?, body))
}

/// A store with one file that is not signed, and its bytes.
fn served() -> Result<(TestStore, Server, Vec<u8>)> {
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, 1 << 20, &[(0, noise(1, LENGTH))])?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let object = store
        .objects()?
        .into_iter()
        .max_by_key(|object| object.bytes);
    let bytes = std::fs::read(object.context("no object")?.path)?;
    Ok((store, server, bytes))
}

fn path_of(store: &TestStore) -> Result<String> {
    let object = store
        .objects()?
        .into_iter()
        .max_by_key(|object| object.bytes);
    let path = object.context("no object")?.path;
    Ok(format!("/{}", path.strip_prefix(store.path())?.display()))
}

#[test]
fn each_fault_meets_its_request_and_no_other() -> Result<()> {
    let (store, server, bytes) = served()?;
    let path = path_of(&store)?;
    let faults = [
        Fault::Status(503),
        Fault::Reset(1000),
        Fault::Truncate(1000),
        Fault::Stall(1000),
        Fault::Corrupt(1000),
    ];
    let rules = (2..)
        .zip(faults)
        .map(|(nth, fault)| Rule::new("/objects/", nth, fault));
    let proxy = Proxy::start_with(server.url(), rules.collect())?;

    let whole = ask(&proxy, &path)?;
    ensure!(
        parts(&whole.0)? == (&b"200"[..], bytes.as_slice()),
        "the first answer is not as it was"
    );
    let refused = ask(&proxy, &path)?;
    ensure!(parts(&refused.0)? == (&b"503"[..], &b""[..]), "{refused:?}");
    let reset = ask(&proxy, &path)?;
    ensure!(
        reset.1 == Some(ErrorKind::ConnectionReset),
        "ended with {:?}",
        reset.1
    );
    let truncated = ask(&proxy, &path)?;
    ensure!(
        truncated.1.is_none() && parts(&truncated.0)?.1 == &bytes[..1000],
        "{:?}",
        truncated.1
    );
    let stalled = ask(&proxy, &path)?;
    ensure!(
        stalled.1 == Some(ErrorKind::WouldBlock),
        "ended with {:?}",
        stalled.1
    );
    ensure!(
        parts(&stalled.0)?.1 == &bytes[..1000],
        "other bytes before the stall"
    );
    let corrupt = ask(&proxy, &path)?;
    let differing = parts(&corrupt.0)?
        .1
        .iter()
        .zip(&bytes)
        .filter(|(one, other)| one != other)
        .count();
    ensure!(differing == 1, "{differing} bytes differ");
    let whole = ask(&proxy, &path)?;
    ensure!(
        parts(&whole.0)?.1 == bytes.as_slice(),
        "the last answer is not as it was"
    );
    Ok(())
}

#[test]
fn a_mount_reads_right_through_a_server_that_fails_each_way_once() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, 16 << 20, &[(1 << 20, noise(2, 8 << 20))])?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let faults = [
        Fault::Corrupt(100),
        Fault::Reset(0),
        Fault::Truncate(5000),
        Fault::Status(503),
        Fault::Reset(20_000),
    ];
    // The first objects are what opening takes; these are pages and chunks.
    let rules = (4..)
        .zip(faults)
        .map(|(nth, fault)| Rule::new("/objects/", nth, fault));
    let proxy = Proxy::start_with(server.url(), rules.collect())?;
    let mount = Mount::start(&store, proxy.url(), "test:1")?;
    ensure!(
        images::sha256(&mount.disk())? == images::sha256(&image)?,
        "the disk differs"
    );
    Ok(())
}
