//! Whom https believes, against a real TLS server with certificates made on the spot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use client_fuse::config::{Authorities, IdentityConfig};
use client_fuse::fetch::http::HttpSource;
use client_fuse::fetch::http::identity::Identity;
use client_fuse::fetch::{Freshness, Part, Request, Source};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::http::network;

/// Somebody who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A server with a certificate for `host` that ends with `until`.
    pub(crate) async fn serve(&self, host: &str, until: i32) -> String {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not like the certificate closes.
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let _ = stream.read(&mut [0; 4096]).await;
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                    let _ = stream.write_all(answer).await;
                    let _ = stream.flush().await;
                });
            }
        });
        address
    }
}

fn identity(authorities: Authorities) -> Identity {
    let config = IdentityConfig {
        authorities,
        token: None,
    };
    Identity::load(&config).unwrap()
}

fn file(directory: &Path, pem: &[&str]) -> PathBuf {
    let path = directory.join("ca.pem");
    std::fs::write(&path, pem.concat()).unwrap();
    path
}

/// What a server says, or why not.
async fn ask(base: &str, identity: &Identity) -> Result<(), String> {
    let source = HttpSource::with(base.parse().unwrap(), &network(), identity);
    let source = source.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    let request = Request {
        path: "metadata/timestamp.json".to_owned(),
        part: Part::Whole,
        freshness: Freshness::Any,
    };
    let opened = source.open(request).await;
    opened
        .map(drop)
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

#[tokio::test]
async fn only_certificates_of_authorities_that_were_named_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let base = ours.serve("127.0.0.1", 2999).await;

    let told = ask(&base, &Identity::default()).await.unwrap_err();
    assert!(told.contains("--ca FILE"), "{told}");
    let wrong = Authorities::Only(file(directory.path(), &[&others.pem]));
    let told = ask(&base, &identity(wrong)).await.unwrap_err();
    assert!(told.contains("UnknownIssuer"), "{told}");

    let both = file(directory.path(), &[&others.pem, &ours.pem]);
    for authorities in [
        Authorities::SystemAnd(both.clone()),
        Authorities::Only(both),
    ] {
        ask(&base, &identity(authorities)).await.unwrap();
    }
}

#[tokio::test]
async fn certificates_that_expired_or_are_of_another_host_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new("ours");
    let file = file(directory.path(), &[&ours.pem]);
    for (host, until, expected) in [
        ("127.0.0.1", 2020, "certificate expired"),
        ("other.example", 2999, "not valid for name"),
    ] {
        let base = ours.serve(host, until).await;
        for authorities in [
            Authorities::SystemAnd(file.clone()),
            Authorities::Only(file.clone()),
        ] {
            let told = ask(&base, &identity(authorities)).await.unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }
}
