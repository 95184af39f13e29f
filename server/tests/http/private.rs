//! Stores that only those can read who have a token.

use image_format::Digest;

use crate::support::{PUBLISH, READ, Site, UNKNOWN, bearer, noise};

async fn private_site() -> Site {
    let scratch = tempfile::tempdir().unwrap();
    image_store::Store::open_or_create(&scratch.path().join("store"))
        .await
        .unwrap();
    let tokens = Site::tokens(scratch.path());
    Site::start_in(scratch, |config| {
        config.tokens = Some(tokens);
        config.private = true;
    })
    .await
}

#[tokio::test]
async fn a_private_store_is_read_with_a_token_only() {
    let site = private_site().await;
    let (object, _) = site.put(&b"bytes"[..]).await;
    site.publish("a", &noise(10_000, 1)).await;
    let basic = "Basic eDpjaXJjdWxhcl9yZWFk";
    for path in [
        "/",
        "/circular.json",
        "/boot.ipxe",
        "/metadata/timestamp.json",
        "/raw/a/disk.raw",
        &object,
    ] {
        for value in [bearer(READ), bearer(PUBLISH), basic.to_owned()] {
            let got = site.ask("GET", path, &[("Authorization", &value)]).await;
            assert_eq!(got.status, 200, "{path} {value}");
            let caching = got.header("cache-control");
            assert!(caching.starts_with("private, "), "{path}: {caching}");
            assert!(!caching.contains("public"), "{path}: {caching}");
        }
        for lines in [vec![], vec![("Authorization", bearer(UNKNOWN))]] {
            let lines: Vec<_> = lines
                .iter()
                .map(|(name, value)| (*name, &**value))
                .collect();
            let got = site.ask("GET", path, &lines).await;
            assert_eq!(got.status, 401, "{path}");
            assert_eq!(
                got.headers("www-authenticate"),
                ["Bearer realm=\"circular\"", "Basic realm=\"circular\""]
            );
            assert_eq!(got.header("cache-control"), "private, no-store");
        }
    }
}

#[tokio::test]
async fn what_a_private_store_lacks_is_nobodys_business() {
    let site = private_site().await;
    for path in ["/nothing", "/raw/nothing/disk.raw", "/boot/nothing.ipxe"] {
        assert_eq!(site.ask("GET", path, &[]).await.status, 401, "{path}");
        let token = bearer(READ);
        let got = site.ask("GET", path, &[("Authorization", &token)]).await;
        assert_eq!(got.status, 404, "{path}");
    }
    assert_eq!(site.ask("PUT", "/", &[]).await.status, 401);
}

#[tokio::test]
async fn health_stays_open() {
    let site = private_site().await;
    let got = site.ask("GET", "/healthz", &[]).await;
    assert_eq!((got.status, got.text()), (200, "ok\n"));
}

#[tokio::test]
async fn a_public_store_asks_nobody_for_a_token() {
    let site = Site::start().await;
    site.write("boot.ipxe", "#!ipxe\n");
    let token = bearer(UNKNOWN);
    let got = site
        .ask("GET", "/boot.ipxe", &[("Authorization", &token)])
        .await;
    assert_eq!((got.status, got.header("cache-control")), (200, "no-cache"));
}

#[tokio::test]
async fn a_token_goes_with_its_line_and_a_broken_table_changes_nothing() {
    let site = private_site().await;
    let table = site.scratch.path().join("tokens");
    let status = async |token: &str| {
        let token = bearer(token);
        let lines = [("Authorization", &*token)];
        site.ask("GET", "/circular.json", &lines).await.status
    };
    assert_eq!((status(READ).await, status(UNKNOWN).await), (200, 401));
    std::fs::write(&table, "read nonsense\n").unwrap();
    assert_eq!((status(READ).await, status(UNKNOWN).await), (200, 401));
    let line = format!("read {} new\n", Digest::of(UNKNOWN.as_bytes()));
    std::fs::write(&table, line).unwrap();
    assert_eq!((status(READ).await, status(UNKNOWN).await), (401, 200));
    std::fs::write(&table, "# nobody\n").unwrap();
    assert_eq!((status(READ).await, status(UNKNOWN).await), (401, 401));
}

#[tokio::test]
async fn a_table_that_cannot_be_read_stops_the_start() {
    let scratch = tempfile::tempdir().unwrap();
    let table = scratch.path().join("tokens");
    std::fs::write(&table, "read x\n").unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let mut config = server::Config::new(scratch.path().to_owned(), listen);
    config.tokens = Some(table);
    let error = server::Server::bind(config).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("line 1 is not"), "{error}: {cause}");
}
