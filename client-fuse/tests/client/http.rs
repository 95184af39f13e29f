//! What is taken from an HTTP server and what is not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use client_fuse::config::NetworkConfig;
use client_fuse::config::proxies::Proxies;
use client_fuse::fetch::http::HttpSource;
use client_fuse::fetch::http::identity::Identity;
use client_fuse::fetch::resolve::{Lookup, Resolver};
use client_fuse::fetch::retry::Fault;
use client_fuse::fetch::{Freshness, Part, Request, Source, SourceError};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use image_format::digest::ObjectRef;

use crate::access;
use crate::server::{Manner, serve};
use crate::stack::IMPATIENT;
use crate::store::{Store, mixed_disk};

pub(crate) fn network() -> NetworkConfig {
    NetworkConfig {
        connections: 4,
        timeout: Duration::from_secs(10),
        retry: IMPATIENT,
        retry_open: IMPATIENT,
        proxies: Proxies::default(),
    }
}

/// The path of a file of about `bytes` bytes, and the file.
fn file(store: &Store, large: bool) -> (String, Bytes) {
    let mut files: Vec<_> = store.files.iter().collect();
    files.sort_by_key(|(path, bytes)| (bytes.len(), (*path).clone()));
    let (path, bytes) = if large {
        files[files.len() - 1]
    } else {
        files[0]
    };
    assert_eq!(bytes.len() > 1 << 20, large);
    (path.clone(), bytes.clone())
}

async fn get(base: &str, path: &str, part: Part) -> Result<Vec<u8>, SourceError> {
    let source = HttpSource::new(base.parse().unwrap(), &network()).unwrap();
    let body = source
        .open(Request {
            path: path.to_owned(),
            part,
            freshness: Freshness::Any,
        })
        .await?;
    body.try_fold(Vec::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    })
    .await
}

fn range(bytes: &Bytes, start: u64, end: u64) -> Part {
    Part::Range {
        range: start..end,
        object_bytes: bytes.len() as u64,
    }
}

fn store() -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(900, 0)))
}

#[tokio::test]
async fn whole_files_and_ranges_come_as_they_are() {
    let store = store();
    let base = serve(&store, Manner::Right);
    let (path, bytes) = file(&store, true);
    assert_eq!(get(&base, &path, Part::Whole).await.unwrap(), bytes);
    assert_eq!(
        get(&base, &path, range(&bytes, 100, 70_000)).await.unwrap(),
        bytes[100..70_000]
    );
}

#[tokio::test]
async fn a_server_without_ranges_will_do_for_small_objects_only() {
    let store = store();
    let base = serve(&store, Manner::IgnoresRanges);
    let (path, bytes) = file(&store, false);
    assert_eq!(
        get(&base, &path, range(&bytes, 3, 20)).await.unwrap(),
        bytes[3..20]
    );
    let (path, bytes) = file(&store, true);
    let error = get(&base, &path, range(&bytes, 3, 20)).await.unwrap_err();
    assert!(matches!(error, SourceError::NoRanges { .. }), "{error}");
}

#[tokio::test]
async fn wrong_answers_are_refused_by_kind() {
    let store = store();
    let (path, bytes) = file(&store, true);
    for (manner, fault) in [
        (Manner::WrongRange, Fault::Wrong),
        (Manner::Encoded, Fault::Wrong),
        (Manner::Truncates, Fault::Transient),
        (Manner::RedirectLoop, Fault::Permanent),
        (Manner::RedirectToFile, Fault::Permanent),
        (Manner::Unavailable, Fault::Transient),
    ] {
        let base = serve(&store, manner);
        let error = get(&base, &path, range(&bytes, 10, 50_000))
            .await
            .unwrap_err();
        assert_eq!(error.fault(), fault, "{manner:?}: {error}");
    }
}

#[tokio::test]
async fn a_missing_file_is_told_apart() {
    let base = serve(&store(), Manner::Right);
    let error = get(&base, &ObjectRef::of(b"").digest.object_path(), Part::Whole)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn a_redirect_is_followed() {
    let store = store();
    let base = serve(&store, Manner::RedirectOnce);
    let (path, bytes) = file(&store, true);
    assert_eq!(
        get(&base, &path, range(&bytes, 0, 9)).await.unwrap(),
        bytes[..9]
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/", gone.local_addr().unwrap());
    drop(gone);
    let error = get(&base, "circular.json", Part::Whole).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Transient);
}

#[tokio::test]
async fn a_server_that_says_when_to_come_back_is_heard() {
    for (told, seconds) in [
        ("7", Some(7)),
        ("Sun, 06 Nov 1994 08:49:57 GMT", Some(20)),
        ("soon", None),
    ] {
        let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n";
        let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        let (base, _) = access::serve(format!("{head}{date}Retry-After: {told}\r\n\r\n"));
        let error = get(&base, "circular.json", Part::Whole).await.unwrap_err();
        let SourceError::Status { retry_after, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(retry_after, seconds.map(Duration::from_secs), "{told}");
    }
}

/// A source for a store that is called `store.test`, at whatever address `lookup` says.
fn named(port: u16, lookup: Lookup) -> HttpSource {
    let base = format!("http://store.test:{port}/").parse().unwrap();
    let resolver = Resolver::of(lookup);
    HttpSource::resolving(base, &network(), &Identity::default(), &resolver).unwrap()
}

async fn status_of(source: &HttpSource) -> Result<(), SourceError> {
    let request = Request {
        path: "metadata/timestamp.json".to_owned(),
        part: Part::Whole,
        freshness: Freshness::Any,
    };
    source.open(request).await.map(drop)
}

/// A listener that answers every connection once, until `open` is false.
fn listen(address: &str, port: u16, open: &Arc<AtomicBool>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, port)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (answered, open) = (Arc::new(AtomicUsize::new(0)), Arc::clone(open));
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if !open.load(Ordering::Relaxed) {
                return;
            }
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            count.fetch_add(1, Ordering::Relaxed);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer);
        }
    });
    (port, answered)
}

/// The server moves to another address, which only the name server knows.
#[tokio::test]
async fn a_server_that_moves_to_another_address_is_found_there() {
    let (open, new_open) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicBool::new(true)),
    );
    let (port, old) = listen("127.0.0.1", 0, &open);
    let (_, new) = listen("127.0.0.2", port, &new_open);
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&has_moved);
    let lookup = move |name: &str| {
        assert_eq!(name, "store.test");
        let last = 1 + u8::from(moved.load(Ordering::Relaxed));
        Ok(vec![SocketAddr::from(([127, 0, 0, last], 0))])
    };
    let source = named(port, Arc::new(lookup));
    status_of(&source).await.unwrap();
    assert_eq!(old.load(Ordering::Relaxed), 1);
    has_moved.store(true, Ordering::Relaxed);
    open.store(false, Ordering::Relaxed);
    // What waits in the queue of the old one ends with it.
    drop(std::net::TcpStream::connect(("127.0.0.1", port)));
    while status_of(&source).await.is_err() {}
    assert_eq!(new.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_name_that_is_not_found_is_a_fault_that_may_pass() {
    let source = named(80, Arc::new(|_| Err(std::io::Error::other("no answer"))));
    let error = status_of(&source).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    let told = format!("{:#}", anyhow::Error::from(error));
    assert!(
        told.contains("store.test") && told.contains("no answer"),
        "{told}"
    );
}

/// A server that says yes to everything, and the number of connections that it has taken.
fn counting() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    // Nobody has an answer before as many have asked: each has a connection of its own.
    let all_asked = Arc::new(Barrier::new(DIALED));
    std::thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            counted.fetch_add(1, Ordering::SeqCst);
            let all_asked = Arc::clone(&all_asked);
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        all_asked.wait();
                        let yes = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        (&stream).write_all(yes).unwrap();
                    }
                }
            });
        }
    });
    (base, taken)
}

const DIALED: usize = 3;

#[tokio::test]
async fn connections_opened_ahead_carry_what_is_asked_next() {
    let (base, taken) = counting();
    let source = HttpSource::new(base.parse().unwrap(), &network()).unwrap();
    source.dial(DIALED).await;
    assert_eq!(taken.load(Ordering::SeqCst), DIALED);
    let asked = (0..DIALED).map(|_| {
        source.open(Request {
            path: "file".to_owned(),
            part: Part::Whole,
            freshness: Freshness::Any,
        })
    });
    for body in join_all(asked).await {
        let parts: Vec<Bytes> = body.unwrap().try_collect().await.unwrap();
        assert!(parts.is_empty());
    }
    assert_eq!(taken.load(Ordering::SeqCst), DIALED, "none was opened anew");
}
