//! Traces of boots: taken where that was asked for, and only what is a trace.

use std::fs;

use image_format::trace::{self, Header, Touch, Trace};
use image_format::{ChunkId, Digest};

use crate::support::{READ, Site, bearer};

fn trace_bytes() -> Vec<u8> {
    let header = Header::new("lab/a:1@1".parse().unwrap(), Digest::of(b"disk"));
    let mut bytes = trace::line(&header);
    bytes.extend(trace::line(&Touch {
        asked: 0,
        served: 1,
        block: 0,
        blocks: 1,
        chunk: ChunkId::of(b"chunk"),
        read: None,
    }));
    bytes
}

async fn site() -> Site {
    let scratch = tempfile::tempdir().unwrap();
    image_store::Store::open_or_create(&scratch.path().join("store"))
        .await
        .unwrap();
    let directory = scratch.path().join("traces");
    Site::start_in(scratch, |config| config.traces = Some(directory)).await
}

fn kept(site: &Site) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(site.scratch.path().join("traces")).unwrap();
    entries
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

#[tokio::test]
async fn a_boot_leaves_its_trace_and_nothing_else_is_taken() {
    let site = site().await;
    let sent = trace_bytes();
    // What follows the last line break is not kept, nor are fields that mean nothing.
    let odd = [&sent[..sent.len() - 2], b",\"x\":1}\nhalf a li"].concat();
    for (body, status) in [
        (sent.clone(), 201),
        (odd, 201),
        (b"hello\n".to_vec(), 422),
        (
            trace_bytes()
                .split_inclusive(|b| *b == b'\n')
                .next()
                .unwrap()
                .to_vec(),
            422,
        ),
        (vec![b'\n'; (16 << 20) + 1], 413),
    ] {
        let got = site.send("POST", "/traces", &[], &body).await;
        assert_eq!(got.status, status, "{}", got.text());
    }
    assert_eq!(kept(&site), [sent.clone(), sent.clone()]);
    assert!(Trace::decode(&kept(&site)[0]).is_ok());
    let got = site.ask("GET", "/traces", &[]).await;
    assert_eq!((got.status, got.header("allow")), (405, "POST"));
    let got = site.send("PUT", "/traces", &[], &sent).await;
    assert_eq!(got.status, 405);
}

#[tokio::test]
async fn traces_are_taken_only_where_that_was_asked_for() {
    let site = Site::start().await;
    let got = site.send("POST", "/traces", &[], &trace_bytes()).await;
    assert_eq!(got.status, 405);
}

#[tokio::test]
async fn a_private_store_takes_traces_from_those_who_may_read() {
    let scratch = tempfile::tempdir().unwrap();
    image_store::Store::open_or_create(&scratch.path().join("store"))
        .await
        .unwrap();
    let (directory, tokens) = (scratch.path().join("traces"), Site::tokens(scratch.path()));
    let site = Site::start_in(scratch, |config| {
        config.traces = Some(directory);
        config.tokens = Some(tokens);
        config.private = true;
    })
    .await;
    let got = site.send("POST", "/traces", &[], &trace_bytes()).await;
    assert_eq!(got.status, 401);
    assert!(kept(&site).is_empty());
    let token = bearer(READ);
    let lines = [("authorization", token.as_str())];
    let got = site.send("POST", "/traces", &lines, &trace_bytes()).await;
    assert_eq!(got.status, 201, "{}", got.text());
    assert_eq!(kept(&site).len(), 1);
}
