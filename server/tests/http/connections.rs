//! Connections: both protocols, old and hostile clients, shutdown.

use std::num::NonZeroUsize;
use std::time::Duration;

use server::Drained;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Site, noise};

#[tokio::test]
async fn http2_with_prior_knowledge_is_served() {
    let site = Site::start().await;
    let bytes = noise(3_000_000, 1);
    let (path, _) = site.put(bytes.clone()).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let ask = |range: &'static str| client.get(site.url(&path)).header("range", range).send();
    let (whole, part) = tokio::join!(client.get(site.url(&path)).send(), ask("bytes=5-9"));
    let (whole, part) = (whole.unwrap(), part.unwrap());
    assert_eq!(whole.version(), reqwest::Version::HTTP_2);
    assert_eq!(whole.content_length(), Some(3_000_000));
    assert_eq!(part.status(), 206);
    assert_eq!(&part.bytes().await.unwrap()[..], &bytes[5..10]);
    assert!(whole.bytes().await.unwrap() == bytes);
}

#[tokio::test]
async fn a_connection_is_used_for_many_requests() {
    let site = Site::start().await;
    let (path, _) = site.put(&b"bytes"[..]).await;
    let one = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let last = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let got = site.say(&format!("{one}{one}{last}")).await;
    assert_eq!(got.text().matches("HTTP/1.1 200 OK").count(), 2, "{got:?}");
}

#[tokio::test]
async fn http_1_0_without_a_host_is_served() {
    let site = Site::start().await;
    let (path, _) = site.put(&b"bytes"[..]).await;
    let got = site.say(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    assert_eq!(
        (got.status, got.text(), got.header("content-length")),
        (200, "bytes", "5")
    );
}

#[tokio::test]
async fn a_request_with_a_body_is_refused_and_the_connection_ends() {
    let site = Site::start().await;
    let (path, _) = site.put(&b"bytes"[..]).await;
    for framing in [
        "Content-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let smuggled = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let got = site
            .say(&format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\n{framing}{smuggled}"
            ))
            .await;
        assert_eq!(
            (got.status, got.header("connection")),
            (400, "close"),
            "{framing:?}"
        );
        assert!(!got.text().contains("HTTP/1.1 200"), "{got:?}");
    }
}

#[tokio::test]
async fn a_head_of_more_than_16_kib_is_refused() {
    let site = Site::start().await;
    let long = "x".repeat(20_000);
    let got = site.ask("GET", "/healthz", &[("X-Long", &long)]).await;
    assert_eq!(got.status, 431);
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let site = Site::start().await;
    for text in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/1.1\r\nA B: x\r\n\r\n",
    ] {
        assert_eq!(site.say(text).await.status, 400, "{text:?}");
    }
    assert_eq!(site.ask("GET", "/healthz", &[]).await.status, 200);
}

#[tokio::test]
async fn a_client_that_sends_its_head_for_ever_is_dropped_while_others_are_served() {
    let site =
        Site::start_with(|config| config.limits.head_timeout = Duration::from_millis(300)).await;
    let mut silent = TcpStream::connect(site.address).await.unwrap();
    let mut slow = TcpStream::connect(site.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n")
        .await
        .unwrap();
    assert_eq!(site.ask("GET", "/healthz", &[]).await.status, 200);
    // Both end without an answer; a server that waited for ever would hang the test.
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    assert_eq!(site.ask("GET", "/healthz", &[]).await.status, 200);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_their_turn() {
    let site = Site::start_with(|config| config.limits.connections = NonZeroUsize::MIN).await;
    let first = TcpStream::connect(site.address).await.unwrap();
    let second = site.ask("GET", "/healthz", &[]);
    let (second, ()) = tokio::join!(second, async { drop(first) });
    assert_eq!(second.status, 200);
}

/// One connection, and the two answers that it has begun and does not take: its own, and the only one
/// that all share.
async fn two_answers_begun(site: &Site) -> (reqwest::Client, [reqwest::Response; 2]) {
    let (path, _) = site.put(noise(32 << 20, 1)).await;
    let client = reqwest::Client::builder().http2_prior_knowledge();
    let client = client.build().unwrap();
    let one = client.get(site.url(&path)).send().await.unwrap();
    let other = client.get(site.url(&path)).send().await.unwrap();
    (client, [one, other])
}

#[tokio::test]
async fn answers_over_the_limit_wait_for_their_turn() {
    let site = Site::start_with(|config| config.limits.answers = NonZeroUsize::MIN).await;
    let (client, [one, other]) = two_answers_begun(&site).await;
    let third = client.get(site.url("/healthz")).send();
    let (third, ()) = tokio::join!(third, async { drop(one) });
    assert_eq!(third.unwrap().status(), 200);
    drop(other);
}

#[tokio::test]
async fn a_client_that_takes_none_of_its_answers_is_in_nobodys_way() {
    let site = Site::start_with(|config| config.limits.answers = NonZeroUsize::MIN).await;
    let (_client, _answers) = two_answers_begun(&site).await;
    for _ in 0..2 {
        assert_eq!(site.ask("GET", "/healthz", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn shutdown_lets_a_running_download_finish() {
    let mut site = Site::start().await;
    let bytes = noise(32 << 20, 1);
    let (path, _) = site.put(bytes.clone()).await;
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = vec![0; 4096];
    stream.read_exact(&mut got).await.unwrap();
    let stopped = site.stop();
    stream.read_to_end(&mut got).await.unwrap();
    assert!(got.ends_with(&bytes));
    assert_eq!(stopped.await.unwrap(), Drained::All);
    assert!(TcpStream::connect(site.address).await.is_err());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let mut site =
        Site::start_with(|config| config.limits.drain_timeout = Duration::from_millis(100)).await;
    let (path, _) = site.put(noise(32 << 20, 1)).await;
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 4096]).await.unwrap();
    assert_eq!(site.stop().await.unwrap(), Drained::Dropped(1));
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_shutdown() {
    let mut site = Site::start().await;
    let _silent = TcpStream::connect(site.address).await.unwrap();
    let mut idle = TcpStream::connect(site.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    idle.read_exact(&mut [0; 15]).await.unwrap();
    assert_eq!(site.stop().await.unwrap(), Drained::All);
}
