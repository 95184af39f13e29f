//! Images as flat files, and the page that lists them.

use image_format::Digest;

use crate::support::{Site, noise};

/// Data, a hole, data again, and an end that is no whole block: 3,000,001 bytes.
fn disk(seed: u64) -> Vec<u8> {
    let mut flat = noise(3_000_001, seed);
    flat[1_000_000..2_000_000].fill(0);
    flat
}

#[tokio::test]
async fn a_raw_view_is_the_flat_file() {
    let site = Site::start().await;
    let flat = disk(1);
    site.publish("lab/debian:12", &flat).await;
    let path = "/raw/lab,debian=12/disk.raw";
    let got = site.ask("GET", path, &[]).await;
    assert_eq!((got.status, got.header("content-length")), (200, "3000001"));
    assert!(got.body == flat);
    let head = site.ask("HEAD", path, &[]).await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, "3000001")
    );
    for (start, end) in [
        (0, 512),
        (999_000, 1_001_000),
        (4095, 4097),
        (1_500_000, 1_500_001),
        (2_999_999, 3_000_001),
    ] {
        let range = format!("bytes={start}-{}", end - 1);
        let got = site.ask("GET", path, &[("Range", &range)]).await;
        assert_eq!(got.status, 206, "{range}");
        assert!(got.body == flat[start..end], "{range}");
    }
}

#[tokio::test]
async fn a_pinned_view_may_be_kept_and_a_tag_may_move() {
    let site = Site::start().await;
    site.publish("debian", &disk(1)).await;
    let tagged = site.ask("HEAD", "/raw/debian/disk.raw", &[]).await;
    let pinned = site.ask("HEAD", "/raw/debian@1/disk.raw", &[]).await;
    assert_eq!(tagged.header("cache-control"), "no-cache");
    assert_eq!(
        pinned.header("cache-control"),
        "public, max-age=31536000, immutable"
    );
    assert_eq!(tagged.header("etag"), pinned.header("etag"));
    let lines = [("If-None-Match", tagged.header("etag"))];
    assert_eq!(
        site.ask("GET", "/raw/debian/disk.raw", &lines).await.status,
        304
    );
    let second = disk(2);
    site.publish("debian", &second).await;
    let moved = site.ask("GET", "/raw/debian/disk.raw", &lines).await;
    assert_eq!(moved.status, 200);
    assert!(moved.body == second);
    assert!(site.ask("GET", "/raw/debian@1/disk.raw", &[]).await.body == disk(1));
}

#[tokio::test]
async fn what_was_not_published_is_not_found_and_says_what_there_is() {
    let site = Site::start().await;
    site.publish("debian:12", &disk(1)).await;
    for (path, expected) in [
        ("/raw/ubuntu/disk.raw", "no image `ubuntu`"),
        ("/raw/debian=13/disk.raw", "no tag `13`"),
        ("/raw/debian@9/disk.raw", "no version 9"),
    ] {
        let got = site.ask("GET", path, &[]).await;
        assert_eq!(
            (got.status, got.header("cache-control")),
            (404, "no-store"),
            "{path}"
        );
        assert!(got.text().contains(expected), "{}", got.text());
    }
}

#[tokio::test]
async fn damage_cuts_the_answer_short_and_never_shows_wrong_bytes() {
    let site = Site::start().await;
    let flat = disk(1);
    site.publish("debian", &flat).await;
    damage_the_end_of_the_pack(&site);
    let got = site.ask("GET", "/raw/debian/disk.raw", &[]).await;
    assert_eq!((got.status, got.header("content-length")), (200, "3000001"));
    assert!(got.body.len() < flat.len() && got.body == flat[..got.body.len()]);
    let got = site
        .ask("GET", "/raw/debian/disk.raw", &[("Range", "bytes=0-511")])
        .await;
    assert!(got.body == flat[..512]);
}

/// Flips a bit in the largest object, some way before its end.
fn damage_the_end_of_the_pack(site: &Site) {
    let objects = site.scratch.path().join("store/objects");
    let files = std::fs::read_dir(objects).unwrap().flat_map(|prefix| {
        let prefix = prefix.unwrap().path();
        std::fs::read_dir(prefix)
            .unwrap()
            .map(|file| file.unwrap().path())
    });
    let pack = files
        .max_by_key(|file| file.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    std::fs::write(pack, bytes).unwrap();
}

#[tokio::test]
async fn the_page_lists_every_image_with_the_address_that_was_asked() {
    let site = Site::start().await;
    assert!(
        site.ask("GET", "/", &[])
            .await
            .text()
            .contains("circular publish")
    );
    site.publish("lab/debian:12", &disk(1)).await;
    let got = site.ask("GET", "/", &[]).await;
    assert_eq!(
        (got.status, got.header("content-type")),
        (200, "text/html; charset=utf-8")
    );
    assert!(
        got.text()
            .contains("circular-mount --root root.json http://x/ lab/debian:12 /mnt"),
        "{}",
        got.text()
    );
}

#[tokio::test]
async fn every_published_object_is_served_under_its_digest() {
    let site = Site::start().await;
    let published = site.publish("debian", &disk(1)).await;
    let regions = published.manifest.disk.regions;
    let got = site
        .ask("GET", &format!("/{}", regions.digest.object_path()), &[])
        .await;
    assert_eq!(Digest::of(&got.body), regions.digest);
    assert_eq!(
        site.ask("GET", "/metadata/timestamp.json", &[])
            .await
            .status,
        200
    );
    assert!(
        site.ask("GET", "/boot.ipxe", &[])
            .await
            .text()
            .starts_with("#!ipxe")
    );
}
