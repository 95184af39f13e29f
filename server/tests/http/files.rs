//! The files of a store: what is served, how, and what is not.

use crate::support::{Site, noise};

const IMMUTABLE: &str = "public, max-age=31536000, immutable";

#[tokio::test]
async fn an_object_is_served_whole_with_all_its_headers() {
    let site = Site::start().await;
    let bytes = noise(700_000, 1);
    let (path, object) = site.put(bytes.clone()).await;
    let got = site.ask("GET", &path, &[]).await;
    assert_eq!(got.status, 200);
    assert!(got.body == bytes);
    let etag = format!("\"{}\"", object.digest);
    #[rustfmt::skip]
    let headers = [
        ("content-length", "700000"), ("accept-ranges", "bytes"), ("etag", &etag),
        ("content-type", "application/octet-stream"), ("cache-control", IMMUTABLE),
        ("transfer-encoding", ""),
    ];
    for (name, value) in headers {
        assert_eq!(got.header(name), value, "{name}");
    }
    assert!(!got.header("last-modified").is_empty() && !got.header("date").is_empty());
}

#[tokio::test]
async fn a_head_is_the_get_without_its_body() {
    let site = Site::start().await;
    let (path, _) = site.put(noise(5000, 1)).await;
    let head = site.ask("HEAD", &path, &[]).await;
    assert_eq!((head.status, head.header("content-length")), (200, "5000"));
    assert!(head.body.is_empty());
}

#[tokio::test]
async fn each_kind_of_file_has_its_type_and_its_time_to_live() {
    let site = Site::start().await;
    let target = format!("targets/{}.lab,debian", "ab".repeat(32));
    #[rustfmt::skip]
    let table = [
        ("metadata/timestamp.json",   "application/json",          "no-cache"),
        ("metadata/3.snapshot.json",  "application/json",          IMMUTABLE),
        ("circular.json",             "application/json",          "no-cache"),
        (target.as_str(),             "application/octet-stream",  IMMUTABLE),
        ("boot.ipxe",                 "text/plain; charset=utf-8", "no-cache"),
        ("boot/lab,debian=12@3.ipxe", "text/plain; charset=utf-8", "no-cache"),
    ];
    for (path, content_type, caching) in table {
        site.write(path, path);
        let got = site.ask("GET", &format!("/{path}"), &[]).await;
        assert_eq!((got.status, got.text()), (200, path));
        assert_eq!(got.header("content-type"), content_type, "{path}");
        assert_eq!(got.header("cache-control"), caching, "{path}");
        let etag = got.header("etag");
        let again = site
            .ask("GET", &format!("/{path}"), &[("If-None-Match", etag)])
            .await;
        assert_eq!((again.status, again.header("etag")), (304, etag), "{path}");
        assert_eq!(again.header("cache-control"), caching, "{path}");
        assert!(again.body.is_empty());
    }
}

#[tokio::test]
async fn ranges_are_slices_of_the_file() {
    let site = Site::start().await;
    let bytes = noise(600_000, 1);
    let (path, _) = site.put(bytes.clone()).await;
    #[rustfmt::skip]
    let table = [
        ("bytes=0-0",              206, &bytes[..1],          "bytes 0-0/600000"),
        ("bytes=1000-599998",      206, &bytes[1000..599_999], "bytes 1000-599998/600000"),
        ("bytes=599000-",          206, &bytes[599_000..],    "bytes 599000-599999/600000"),
        ("bytes=-7",               206, &bytes[599_993..],    "bytes 599993-599999/600000"),
        ("bytes=600000-",          416, b"no such range\n",   "bytes */600000"),
        ("bytes=u-u",              200, &bytes[..],           ""),
    ];
    for (range, status, body, content_range) in table {
        let got = site.ask("GET", &path, &[("Range", range)]).await;
        assert_eq!(
            (got.status, got.header("content-range")),
            (status, content_range),
            "{range}"
        );
        assert!(got.body == body, "{range}");
        assert_eq!(
            got.header("content-length"),
            body.len().to_string(),
            "{range}"
        );
    }
}

#[tokio::test]
async fn several_ranges_come_as_multipart_with_a_length() {
    let site = Site::start().await;
    let (path, _) = site.put(&b"0123456789abcdef"[..]).await;
    let got = site.ask("GET", &path, &[("Range", "bytes=0-1,-2")]).await;
    assert_eq!(got.status, 206);
    assert_eq!(got.header("content-length"), got.body.len().to_string());
    let boundary = got
        .header("content-type")
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let parts: Vec<&str> = got.text().split(&format!("--{boundary}")).collect();
    assert_eq!(parts.len(), 4);
    assert!(
        parts[1].ends_with("Content-Range: bytes 0-1/16\r\n\r\n01\r\n"),
        "{parts:?}"
    );
    assert!(
        parts[2].ends_with("Content-Range: bytes 14-15/16\r\n\r\nef\r\n"),
        "{parts:?}"
    );
}

#[tokio::test]
async fn what_is_no_part_of_a_store_is_not_found_and_not_kept() {
    let site = Site::start().await;
    std::fs::write(site.scratch.path().join("canary"), "secret").unwrap();
    site.write("metadata/2.root.json", "{}");
    let link = site.scratch.path().join("store/metadata/1.link.json");
    std::os::unix::fs::symlink("../../canary", &link).unwrap();
    assert_eq!(std::fs::read(link).unwrap(), b"secret");
    site.write(".lock", "");
    site.write("other.txt", "x");
    let object = format!("/objects/ab/{}", "ab".repeat(32));
    for path in [
        "/metadata/1.link.json",
        "/canary",
        "/../canary",
        "/%2e%2e/canary",
        "/boot/..%2f..%2fcanary",
        "/boot",
        "/.lock",
        "/other.txt",
        "/objects/",
        "/metadata/9.root.json",
        "//boot.ipxe",
        "/boot.ipxe%00",
        object.as_str(),
        "/raw/x/disk.raw",
    ] {
        let got = site.ask("GET", path, &[]).await;
        assert_eq!(
            (got.status, got.header("cache-control")),
            (404, "no-store"),
            "{path}"
        );
        assert_eq!(
            got.header("content-length"),
            got.body.len().to_string(),
            "{path}"
        );
        assert!(!got.text().contains("secret"), "{path}");
    }
}

#[tokio::test]
async fn only_get_and_head_are_allowed() {
    let site = Site::start().await;
    let (path, _) = site.put(&b"bytes"[..]).await;
    for method in [
        "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "MKCOL",
    ] {
        let got = site.ask(method, &path, &[]).await;
        assert_eq!(
            (got.status, got.header("allow")),
            (405, "GET, HEAD"),
            "{method}"
        );
    }
    assert_eq!(site.ask("GET", &path, &[]).await.text(), "bytes");
}

#[tokio::test]
async fn a_query_is_ignored() {
    let site = Site::start().await;
    site.write("boot.ipxe", "#!ipxe\n");
    let got = site
        .ask("GET", "/boot.ipxe?mac=52-54-00-12-34-56", &[])
        .await;
    assert_eq!((got.status, got.text()), (200, "#!ipxe\n"));
}

#[tokio::test]
async fn health_says_why_not() {
    let site = Site::start().await;
    let got = site.ask("GET", "/healthz", &[]).await;
    assert_eq!(
        (got.status, got.text(), got.header("cache-control")),
        (200, "ok\n", "no-store")
    );
    site.write("circular.json", "{}");
    let got = site.ask("GET", "/healthz", &[]).await;
    assert_eq!(got.status, 503);
    std::fs::remove_file(site.scratch.path().join("store/circular.json")).unwrap();
    let got = site.ask("GET", "/healthz", &[]).await;
    assert_eq!(
        (got.status, got.text()),
        (503, "the store has no circular.json\n")
    );
}

#[tokio::test]
async fn a_directory_that_is_no_store_is_refused_with_the_cure() {
    let scratch = tempfile::tempdir().unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let config = server::Config::new(scratch.path().to_owned(), listen);
    let error = server::Server::bind(config).await.unwrap_err().to_string();
    assert!(error.contains("circular publish"), "{error}");
}
