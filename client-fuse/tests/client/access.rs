//! Redirects and tokens over real connections: what is followed, and who gets to see the token.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use client_fuse::config::IdentityConfig;
use client_fuse::fetch::fetcher::{Expect, Fetcher, Whole};
use client_fuse::fetch::http::HttpSource;
use client_fuse::fetch::http::identity::Identity;
use client_fuse::fetch::retry::{Fault, RetryPolicy};
use client_fuse::fetch::{Freshness, Part, Request, Source, SourceError};
use client_fuse::stats::Stats;

use crate::http::network;
use crate::stack::no_caches;

pub(crate) const TOKEN: &str = "circular_0123456789abcdef";

/// Heads of requests, in the order in which they came.
pub(crate) type Heads = Arc<Mutex<Vec<String>>>;

/// A server that gives every request the same answer and keeps their heads.
pub(crate) fn serve(answer: String) -> (String, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let heads = Heads::default();
    let kept = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, kept) = (answer.clone(), Arc::clone(&kept));
            std::thread::spawn(move || connection(stream, &answer, &kept));
        }
    });
    (address, heads)
}

fn connection(stream: TcpStream, answer: &str, kept: &Heads) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    loop {
        let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        if head.is_empty() {
            return;
        }
        kept.lock().unwrap().push(head.join("\n"));
        if out.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

pub(crate) fn status(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
}

fn to(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
}

pub(crate) fn with_token() -> (tempfile::TempDir, Identity) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    let identity = Identity::load(&IdentityConfig {
        token: Some(path),
        ..IdentityConfig::default()
    });
    (directory, identity.unwrap())
}

async fn ask(base: &str, identity: &Identity) -> Result<(), SourceError> {
    let source = HttpSource::with(base.parse().unwrap(), &network(), identity).unwrap();
    let request = Request {
        path: "metadata/timestamp.json".to_owned(),
        part: Part::Whole,
        freshness: Freshness::Any,
    };
    source.open(request).await.map(drop)
}

fn shows_token(heads: &Heads) -> Vec<bool> {
    let heads = heads.lock().unwrap();
    let shown = |head: &String| head.contains(&format!("authorization: Bearer {TOKEN}"));
    heads.iter().map(shown).collect()
}

pub(crate) fn told(error: &SourceError) -> String {
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

#[tokio::test]
async fn a_token_is_shown_to_the_store_and_its_mirrors() {
    let (_directory, identity) = with_token();
    let (base, heads) = serve(status("200 OK"));
    let (other, others) = serve(status("200 OK"));
    let source = HttpSource::with(base.parse().unwrap(), &network(), &identity).unwrap();
    for source in [source.mirror(other.parse().unwrap()), source] {
        let request = Request {
            path: "metadata/timestamp.json".to_owned(),
            part: Part::Whole,
            freshness: Freshness::Any,
        };
        drop(source.open(request).await.unwrap());
    }
    assert_eq!(shows_token(&heads), [true]);
    assert_eq!(shows_token(&others), [true]);
    ask(&base, &Identity::default()).await.unwrap();
    assert_eq!(shows_token(&heads), [true, false]);
}

/// The other address is the same host under another port, and under another name.
#[tokio::test]
async fn a_redirect_takes_no_token_to_another_address() {
    let (_directory, identity) = with_token();
    let (elsewhere, heads) = serve(status("200 OK"));
    let by_name = elsewhere.replace("127.0.0.1", "localhost");
    for target in [elsewhere, by_name] {
        let (base, asked) = serve(to(&format!("{target}metadata/timestamp.json")));
        ask(&base, &identity).await.unwrap();
        assert_eq!(shows_token(&asked), [true]);
    }
    assert_eq!(shows_token(&heads), [false, false]);
}

#[tokio::test]
async fn a_redirect_within_the_store_takes_the_token_along() {
    let (_directory, identity) = with_token();
    let (base, heads) = serve(to("/metadata/timestamp.json"));
    let error = ask(&base, &identity).await.unwrap_err();
    assert_eq!(shows_token(&heads), [true; 4]);
    assert_eq!(error.fault(), Fault::Permanent);
    let told = told(&error);
    assert!(told.contains("more than 3 redirects in a row"), "{told}");
}

#[tokio::test]
async fn a_redirect_leads_only_where_the_web_is() {
    let (inside, heads) = serve(status("200 OK"));
    let port = inside.rsplit(':').next().unwrap();
    for (target, expected) in [
        ("file:///etc/passwd", "HTTP status 302"),
        (
            "http://169.254.169.254/latest/",
            "of this machine or of its link",
        ),
        (&format!("ftp://127.0.0.1:{port}"), "neither http nor https"),
    ] {
        let (base, _) = serve(to(target));
        let error = ask(&base, &Identity::default()).await.unwrap_err();
        let told = told(&error);
        assert!(told.contains(expected), "{target}: {told}");
        assert_eq!(error.fault(), Fault::Permanent, "{target}");
    }
    assert!(heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_private_store_is_told_at_once_and_never_waited_for() {
    let (_directory, identity) = with_token();
    for code in ["401 Unauthorized", "403 Forbidden"] {
        let (base, heads) = serve(status(code));
        for (identity, expected) in [
            (Identity::default(), "give one with --token-file"),
            (identity.clone(), "does not take the token of --token-file"),
        ] {
            let source = HttpSource::with(base.parse().unwrap(), &network(), &identity).unwrap();
            // The patience of a root disk.
            let policy = RetryPolicy::until(None);
            let stats = Arc::new(Stats::default());
            let fetcher = Fetcher::new(source, 4, policy, no_caches(), Arc::clone(&stats));
            let whole = Whole {
                path: "metadata/timestamp.json".to_owned(),
                expect: Expect::Bound(100),
            };
            let counter = &stats.fetched.metadata_bytes;
            let error = fetcher.whole(&whole, counter).await.unwrap_err();
            let told = error.to_string();
            assert!(told.contains(expected), "{told}");
            assert!(!told.contains(TOKEN), "{told}");
        }
        assert_eq!(heads.lock().unwrap().len(), 2, "asked once each");
        let (elsewhere, _) = serve(to(&format!("{base}metadata/timestamp.json")));
        let told = told(&ask(&elsewhere, &identity).await.unwrap_err());
        assert!(told.contains("a token is not taken along"), "{told}");
    }
}

/// Some storage says 403 where there is nothing, so as not to tell what there is.
#[tokio::test]
async fn a_next_root_that_is_forbidden_is_none() {
    let (base, _) = serve(status("403 Forbidden"));
    let source = HttpSource::new(base.parse().unwrap(), &network()).unwrap();
    let stats = Arc::new(Stats::default());
    let policy = RetryPolicy::until(None);
    let fetcher = Fetcher::new(source, 4, policy, no_caches(), Arc::clone(&stats));
    let whole = Whole {
        path: "metadata/2.root.json".to_owned(),
        expect: Expect::Optional(100),
    };
    let counter = &stats.fetched.metadata_bytes;
    let error = fetcher.whole(&whole, counter).await.unwrap_err();
    assert!(error.is_missing_or_forbidden(), "{error}");
}
