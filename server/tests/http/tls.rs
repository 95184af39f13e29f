//! HTTPS: both protocols, certificates that change, clients that do not finish their handshake.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rcgen::{CertifiedKey, KeyPair};
use server::Drained;
use server::config::TlsFiles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Site, noise};

/// A new certificate for `localhost`, and its key.
fn pair() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

/// Writes a new certificate and its key; returns the certificate.
fn certify(scratch: &Path) -> (TlsFiles, String) {
    let pair = pair();
    (write(scratch, &pair), pair.cert.pem())
}

fn write(scratch: &Path, pair: &CertifiedKey<KeyPair>) -> TlsFiles {
    let files = TlsFiles {
        certificate: scratch.join("cert.pem"),
        key: scratch.join("key.pem"),
    };
    // The key first: until the certificate is there too, the old pair is in use.
    std::fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();
    std::fs::write(&files.certificate, pair.cert.pem()).unwrap();
    files
}

struct TlsSite {
    site: Site,
    certificate: String,
}

impl TlsSite {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut server::Config)) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        image_store::Store::open_or_create(&scratch.path().join("store"))
            .await
            .unwrap();
        let (files, certificate) = certify(scratch.path());
        let site = Site::start_in(scratch, |config| {
            config.tls = Some(files);
            config.listen_plain = vec!["127.0.0.1:0".parse().unwrap()];
            change(config);
        })
        .await;
        Self { site, certificate }
    }

    fn scratch(&self) -> PathBuf {
        self.site.scratch.path().to_owned()
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.site.address.port())
    }

    /// Asks with a client that trusts this certificate only.
    async fn ask(&self, certificate: &str, path: &str) -> reqwest::Result<reqwest::Response> {
        client(certificate, |builder| builder)
            .get(self.url(path))
            .send()
            .await
    }

    async fn healthy(&self, certificate: &str) -> bool {
        let got = self.ask(certificate, "/healthz").await;
        got.is_ok_and(|got| got.status() == 200)
    }
}

fn client(
    certificate: &str,
    change: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> reqwest::Client {
    let certificate = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
    let builder = reqwest::Client::builder().tls_certs_only([certificate]);
    change(builder).build().unwrap()
}

#[tokio::test]
async fn https_speaks_both_protocols() {
    let tls = TlsSite::start().await;
    let bytes = noise(3_000_000, 1);
    let (path, _) = tls.site.put(bytes.clone()).await;
    let both = client(&tls.certificate, |builder| builder);
    let old = client(&tls.certificate, reqwest::ClientBuilder::http1_only);
    for (client, version) in [
        (both, reqwest::Version::HTTP_2),
        (old, reqwest::Version::HTTP_11),
    ] {
        let got = client.get(tls.url(&path)).send().await.unwrap();
        assert_eq!((got.status().as_u16(), got.version()), (200, version));
        assert!(got.bytes().await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn plain_http_is_there_beside_it_where_asked_for() {
    let tls = TlsSite::start().await;
    let plain = format!("http://{}/healthz", tls.site.addresses[1]);
    assert_eq!(reqwest::get(plain).await.unwrap().status(), 200);
    let page = tls
        .ask(&tls.certificate, "/")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        page.contains("href=\"/boot.ipxe\">https://localhost:"),
        "{page}"
    );
}

#[tokio::test]
async fn plain_http_to_the_tls_port_is_dropped() {
    let tls = TlsSite::start().await;
    let mut stream = TcpStream::connect(tls.site.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(tls.healthy(&tls.certificate).await);
}

#[tokio::test]
async fn a_new_certificate_is_used_from_the_next_connection_on() {
    let tls = TlsSite::start().await;
    let kept = client(&tls.certificate, |builder| builder);
    let ask = || kept.get(tls.url("/healthz")).send();
    assert_eq!(ask().await.unwrap().status(), 200);
    let (_, new) = certify(&tls.scratch());
    assert!(tls.healthy(&new).await);
    assert!(!tls.healthy(&tls.certificate).await);
    // The connection that was there goes on.
    assert_eq!(ask().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_begin_while_the_pair_changes_are_all_served() {
    const ASKING: usize = 4;
    let tls = TlsSite::start().await;
    let pairs: Vec<_> = std::iter::repeat_with(pair).take(20).collect();
    let trusted = pairs.iter().map(|pair| pair.cert.pem());
    let trusted = trusted.chain([tls.certificate.clone()]);
    let trusted = trusted.map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
    // Each request has a connection of its own.
    let builder = reqwest::Client::builder().tls_certs_only(trusted);
    let client = builder.http1_only().pool_max_idle_per_host(0);
    let client = client.build().unwrap();
    let is_over = AtomicBool::new(false);
    let asking = join_all((0..ASKING).map(|_| async {
        let mut served = 0;
        while !is_over.load(Ordering::Relaxed) {
            let got = client.get(tls.url("/healthz")).send().await;
            assert_eq!(got.unwrap().status(), 200, "after {served}");
            served += 1;
        }
        served
    }));
    let changing = async {
        for pair in &pairs {
            write(&tls.scratch(), pair);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (served, ()) = tokio::join!(asking, changing);
    assert!(served.iter().all(|served| *served > 0), "{served:?}");
    let newest = pairs.last().unwrap().cert.pem();
    assert!(tls.healthy(&newest).await && !tls.healthy(&tls.certificate).await);
}

#[tokio::test]
async fn a_broken_pair_keeps_the_old() {
    let tls = TlsSite::start().await;
    let (certificate, key) = (
        tls.scratch().join("cert.pem"),
        tls.scratch().join("key.pem"),
    );
    let other = pair();
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    assert!(tls.healthy(&tls.certificate).await, "the key of another");
    std::fs::write(&key, "garbage").unwrap();
    assert!(tls.healthy(&tls.certificate).await, "no key");
    std::fs::remove_file(&certificate).unwrap();
    assert!(tls.healthy(&tls.certificate).await, "no certificate");
    std::fs::write(&certificate, "").unwrap();
    std::fs::write(&key, good).unwrap();
    assert!(tls.healthy(&tls.certificate).await, "an empty certificate");
    let (_, new) = certify(&tls.scratch());
    assert!(tls.healthy(&new).await, "a good one again");
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_stops_the_start() {
    let scratch = tempfile::tempdir().unwrap();
    let (files, _) = certify(scratch.path());
    std::fs::write(&files.key, "garbage").unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let mut config = server::Config::new(scratch.path().to_owned(), listen);
    config.tls = Some(files);
    let error = server::Server::bind(config).await.unwrap_err().to_string();
    assert!(
        error.contains("cert.pem") && error.contains("key.pem"),
        "{error}"
    );
}

#[tokio::test]
async fn idle_handshakes_are_in_nobodys_way() {
    let tls = TlsSite::start().await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(tls.site.address).await.unwrap());
    }
    assert!(tls.healthy(&tls.certificate).await);
    drop(idle);
}

#[tokio::test]
async fn handshakes_count_as_connections_and_end_in_time() {
    let tls = TlsSite::start_with(|config| {
        config.limits.connections = NonZeroUsize::MIN;
        config.limits.head_timeout = Duration::from_millis(200);
    })
    .await;
    let mut silent = TcpStream::connect(tls.site.address).await.unwrap();
    // Only served once the silent one is given up.
    assert!(tls.healthy(&tls.certificate).await);
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_handshake() {
    let mut tls = TlsSite::start().await;
    let _silent = TcpStream::connect(tls.site.address).await.unwrap();
    assert!(tls.healthy(&tls.certificate).await);
    assert_eq!(tls.site.stop().await.unwrap(), Drained::All);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_trusts_it_with_its_certificate_only() {
    let tls = TlsSite::start().await;
    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "60",
        ]);
        curl.args(arguments).arg(tls.url("/healthz")).output()
    };
    let certificate = tls.scratch().join("cert.pem");
    let certificate = certificate.to_str().unwrap();
    let Ok(got) = curl(&["--cacert", certificate]) else {
        println!("skipped: no curl");
        return;
    };
    assert_eq!(got.stdout, b"ok\n", "{got:?}");
    let stranger = curl(&[]).unwrap();
    assert!(!stranger.status.success() && stranger.stdout.is_empty());
}
