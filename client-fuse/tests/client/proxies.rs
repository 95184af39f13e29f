//! What goes through an HTTP proxy, and what the proxy gets to see.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use client_fuse::config::proxies::Proxies;
use client_fuse::config::{Authorities, IdentityConfig, NetworkConfig};
use client_fuse::fetch::http::HttpSource;
use client_fuse::fetch::http::identity::Identity;
use client_fuse::fetch::retry::Fault;
use client_fuse::fetch::{Freshness, Part, Request, Source, SourceError};

use crate::access::{Heads, TOKEN, serve, status, told, with_token};
use crate::http::network;
use crate::tls::Authority;

/// A network behind the proxy at `url`.
fn behind(url: &str, except: &str) -> NetworkConfig {
    let proxy = Some(url.parse().unwrap());
    NetworkConfig {
        proxies: Proxies {
            http: proxy.clone(),
            https: proxy,
            except: except.to_owned(),
        },
        ..network()
    }
}

async fn ask(base: &str, network: &NetworkConfig, identity: &Identity) -> Result<(), SourceError> {
    let source = HttpSource::with(base.parse().unwrap(), network, identity).unwrap();
    let request = Request {
        path: "metadata/timestamp.json".to_owned(),
        part: Part::Whole,
        freshness: Freshness::Any,
    };
    source.open(request).await.map(drop)
}

/// A proxy that connects to where it is told, and keeps the heads of requests.
fn tunnel() -> (String, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = Heads::new(Mutex::default());
    let kept = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || connect(&stream, &kept));
        }
    });
    (url, heads)
}

fn connect(client: &TcpStream, kept: &Heads) {
    let mut reader = BufReader::with_capacity(1, client);
    let lines = reader.by_ref().lines().map_while(Result::ok);
    let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    kept.lock().unwrap().push(head.join("\n"));
    let target = head[0].split(' ').nth(1).unwrap();
    let server = TcpStream::connect(target).unwrap();
    (&mut &*client)
        .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
        .unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ = std::io::copy(&mut &server, &mut &*client);
}

fn heads(kept: &Heads) -> Vec<String> {
    kept.lock().unwrap().clone()
}

#[tokio::test]
async fn an_http_store_is_asked_through_the_proxy_which_sees_the_token() {
    let (proxy, seen) = serve(status("200 OK"));
    let (_directory, identity) = with_token();
    // A name that only the proxy knows.
    let base = "http://store.invalid:8080/s/";
    ask(base, &behind(&proxy, ""), &identity).await.unwrap();
    let seen = heads(&seen);
    assert_eq!(seen.len(), 1);
    let line = "GET http://store.invalid:8080/s/metadata/timestamp.json HTTP/1.1\n";
    assert!(seen[0].starts_with(line), "{}", seen[0]);
    assert!(seen[0].contains(TOKEN));
    assert!(!seen[0].to_lowercase().contains("proxy-authorization"));
}

#[tokio::test]
async fn an_https_store_is_asked_through_a_tunnel_which_sees_its_name_only() {
    let authority = Authority::new("ours");
    let base = authority.serve("127.0.0.1", 2999).await;
    let (directory, _) = with_token();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let identity = Identity::load(&IdentityConfig {
        authorities: Authorities::Only(ca),
        token: Some(directory.path().join("token")),
    });
    let (proxy, seen) = tunnel();
    let network = behind(&proxy.replace("//", "//me:secret@"), "");
    ask(&base, &network, &identity.unwrap()).await.unwrap();
    let seen = heads(&seen);
    assert_eq!(seen.len(), 1);
    let address = base.trim_start_matches("https://").trim_end_matches('/');
    assert!(
        seen[0].starts_with(&format!("CONNECT {address} ")),
        "{}",
        seen[0]
    );
    assert!(!seen[0].contains(TOKEN));
    // me:secret
    assert!(seen[0].contains("Basic bWU6c2VjcmV0"), "{}", seen[0]);
}

#[tokio::test]
async fn hosts_that_are_excepted_are_asked_without_the_proxy() {
    let (proxy, seen) = serve(status("200 OK"));
    let (base, asked) = serve(status("200 OK"));
    let nobody = Identity::default();
    for (except, through) in [
        ("127.0.0.1", 0),
        ("10.1.2.3, 127.0.0.0/8", 0),
        ("elsewhere.example", 1),
    ] {
        ask(&base, &behind(&proxy, except), &nobody).await.unwrap();
        let n = std::mem::take(&mut *seen.lock().unwrap()).len();
        assert_eq!(n, through, "{except}");
    }
    assert_eq!(heads(&asked).len(), 2);
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_is_told_by_name_and_without_one() {
    let (proxy, seen) = serve(status("407 Proxy Authentication Required"));
    let network = behind(&proxy.replace("//", "//me:wrong@"), "");
    let error = ask("http://store.invalid/", &network, &Identity::default()).await;
    let error = error.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent);
    let told = told(&error);
    assert!(told.contains("http_proxy"), "{told}");
    assert!(!told.contains("wrong"), "{told}");
    // me:wrong
    assert!(heads(&seen)[0].contains("Basic bWU6d3Jvbmc="));
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_a_fault_of_the_line() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let error = ask(
        "http://store.invalid/",
        &behind(&proxy, ""),
        &Identity::default(),
    )
    .await;
    assert_eq!(error.unwrap_err().fault(), Fault::Transient);
}
