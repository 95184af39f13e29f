//! Publishing over HTTP: what is stored, what is not, and what an interrupted upload leaves.

use std::path::Path;
use std::process::Command;

use image_format::Digest;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::publisher::{Publisher, post, put, upload_site, upload_site_in};
use crate::support::{PUBLISH, READ, Site, UNKNOWN, bearer, noise};

fn object_path(bytes: &[u8]) -> String {
    format!("/{}", Digest::of(bytes).object_path())
}

#[tokio::test]
async fn a_disk_published_over_http_is_served() {
    let site = upload_site().await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    let (first, second) = (noise(300_001, 1), noise(200_000, 2));
    publisher.publish("lab/debian:12", &first).await;
    let got = publisher.push(&site).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.json(), json!({"timestamp": 2, "boot_files": true}));
    assert_eq!(got.header("cache-control"), "no-store");
    let raw = "/raw/lab,debian=12/disk.raw";
    assert!(site.ask("GET", raw, &[]).await.body == first);
    assert_eq!(site.ask("GET", "/boot.ipxe", &[]).await.status, 200);

    publisher.publish("lab/debian:12", &second).await;
    publisher.publish("other", &first).await;
    let got = publisher.push(&site).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(site.ask("GET", raw, &[]).await.body == second);
    assert!(site.ask("GET", "/raw/other/disk.raw", &[]).await.body == first);
    let root = site.ask("GET", "/metadata/1.root.json", &[]).await;
    assert_eq!(root.body, publisher.keys.root().unwrap());
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_can_be_sent_again() {
    let site = upload_site().await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    publisher.publish("a", &noise(100_000, 1)).await;
    publisher.upload(&site, |_| false).await;
    let commit = publisher.commit(&site);
    let (once, before) = (commit.send(&site).await, site.tree());
    let again = commit.send(&site).await;
    assert_eq!((once.status, again.status), (200, 200), "{}", again.text());
    assert_eq!(once.json(), again.json());
    assert!(site.tree() == before);
}

#[tokio::test]
async fn without_a_token_for_it_nothing_is_stored() {
    let site = upload_site().await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    publisher.publish("a", &noise(100_000, 1)).await;
    let before = site.tree();
    let uploads = publisher.uploads();
    let target = uploads.iter().find(|path| path.starts_with("targets"));
    let object = uploads.iter().find(|path| path.starts_with("objects"));
    let (target, object) = (target.unwrap(), object.unwrap());
    let commit = publisher.commit(&site).json().to_string();
    let basic = "Basic eDpjaXJjdWxhcl91bmtub3du";
    for (method, path, body) in [
        ("PUT", format!("/{object}"), publisher.read(object)),
        ("PUT", format!("/{target}"), publisher.read(target)),
        ("POST", "/upload/missing".to_owned(), b"{}".to_vec()),
        ("POST", "/upload/commit".to_owned(), commit.into_bytes()),
    ] {
        for (value, expected) in [
            (None, 401),
            (Some(bearer(UNKNOWN)), 401),
            (Some(basic.to_owned()), 401),
            (Some(PUBLISH.to_owned()), 401),
            (Some(bearer(READ)), 403),
        ] {
            let line = value.as_deref().map(|value| ("Authorization", value));
            let lines: Vec<_> = line.into_iter().collect();
            let got = site.send(method, &path, &lines, &body).await;
            assert_eq!(got.status, expected, "{method} {path} {value:?}");
            assert_eq!(got.header("cache-control"), "no-store");
            assert!(got.json()["error"].is_string());
            let challenge = got.headers("www-authenticate");
            match expected {
                401 => assert_eq!(challenge, ["Bearer realm=\"circular\""]),
                _ => assert!(challenge.is_empty()),
            }
        }
    }
    assert!(site.tree() == before, "the store changed");
}

#[tokio::test]
async fn a_server_that_takes_no_uploads_allows_no_method_for_them() {
    let site = Site::start().await;
    let before = site.tree();
    let path = object_path(b"bytes");
    for (method, path) in [
        ("PUT", &*path),
        ("POST", "/upload/missing"),
        ("POST", "/upload/commit"),
    ] {
        let lines = [("Authorization", &*bearer(PUBLISH))];
        let got = site.send(method, path, &lines, b"bytes").await;
        assert_eq!((got.status, got.header("allow")), (405, "GET, HEAD"));
    }
    assert!(site.tree() == before);
}

#[tokio::test]
async fn other_methods_are_told_what_is_allowed() {
    let site = upload_site().await;
    let object = object_path(b"bytes");
    for (method, path, allow) in [
        ("DELETE", &*object, "GET, HEAD, PUT"),
        ("GET", "/upload/commit", "POST"),
        ("PUT", "/metadata/timestamp.json", "GET, HEAD"),
        ("PUT", "/boot.ipxe", "GET, HEAD"),
        ("PUT", "/circular.json", "GET, HEAD"),
    ] {
        let lines = [("Authorization", &*bearer(PUBLISH))];
        let got = site.send(method, path, &lines, b"bytes").await;
        assert_eq!((got.status, got.header("allow")), (405, allow), "{path}");
    }
}

#[tokio::test]
async fn an_object_is_stored_once_and_only_as_what_it_is() {
    let site = upload_site().await;
    let bytes = noise(3_000_000, 1);
    let path = object_path(&bytes);
    let before = site.tree();
    let got = put(&site, &path, &bytes[1..]).await;
    assert_eq!(got.status, 422, "{}", got.text());
    assert!(site.tree() == before, "wrong bytes were stored");
    assert_eq!(put(&site, &path, &bytes).await.status, 201);
    assert!(site.ask("GET", &path, &[]).await.body == bytes);
    assert_eq!(put(&site, &path, &bytes).await.status, 200);
    // Cut short behind the server's back: the right bytes mend it.
    let file = site.scratch.path().join("store").join(&path[1..]);
    std::fs::write(&file, b"short").unwrap();
    assert_eq!(put(&site, &path, &bytes).await.status, 201);
    assert!(std::fs::read(&file).unwrap() == bytes);
    let empty = object_path(b"");
    assert_eq!(put(&site, &empty, b"").await.status, 201);
}

#[tokio::test]
async fn an_object_needs_a_length_and_has_a_bound() {
    let site = upload_site().await;
    let before = site.tree();
    let object = object_path(b"bytes");
    let target = format!("/targets/{}.a", Digest::of(b"bytes"));
    let head = |path: &str, line: &str| {
        let token = bearer(PUBLISH);
        format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n{line}Connection: close\r\n\r\n"
        )
    };
    for (path, line, expected) in [
        (&object, "", 411),
        (&object, "Transfer-Encoding: chunked\r\n", 411),
        (&object, "Content-Length: 4294967297\r\n", 413),
        (&target, "Content-Length: 1048577\r\n", 413),
    ] {
        let got = site.say(&head(path, line)).await;
        assert_eq!(got.status, expected, "{path} {line}");
    }
    assert!(site.tree() == before);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let site = upload_site().await;
    let before = site.tree();
    let bytes = noise(2_000_000, 1);
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
        object_path(&bytes),
        bearer(PUBLISH),
        bytes.len()
    );
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..1_500_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"));
    assert!(site.tree() == before);
    // Gone without a word: the server notices at its next read, and what it held goes with it.
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..1_500_000]).await.unwrap();
    nix::sys::socket::setsockopt(
        &stream,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .unwrap();
    drop(stream);
    while site.tree() != before {
        tokio::task::yield_now().await;
    }
    assert_eq!(put(&site, &object_path(&bytes), &bytes).await.status, 201);
}

#[tokio::test]
async fn a_client_that_sends_no_more_is_given_up() {
    let scratch = tempfile::tempdir().unwrap();
    let tokens = Site::tokens(scratch.path());
    let site = Site::start_in(scratch, |config| {
        config.tokens = Some(tokens);
        config.upload = Some(server::config::UploadRoot::OfStore);
        config.limits.upload_stall_timeout = std::time::Duration::from_millis(100);
    })
    .await;
    let before = site.tree();
    let got = site
        .say(&format!(
            "PUT {} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Length: 5\r\n\r\nby",
            object_path(b"bytes"),
            bearer(PUBLISH)
        ))
        .await;
    assert_eq!(got.status, 408);
    assert!(site.tree() == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_object_from_many_at_once_is_stored_whole() {
    let site = std::sync::Arc::new(upload_site().await);
    let bytes = noise(2_000_000, 1);
    let path = object_path(&bytes);
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let (site, bytes, path) = (site.clone(), bytes.clone(), path.clone());
            tokio::spawn(async move { put(&site, &path, &bytes).await.status })
        })
        .collect();
    let mut stored = 0;
    for sender in senders {
        match sender.await.unwrap() {
            200 => {}
            201 => stored += 1,
            status => panic!("{status}"),
        }
    }
    assert!(stored >= 1);
    assert!(site.ask("GET", &path, &[]).await.body == bytes);
    let staging = site.scratch.path().join("store/.upload");
    assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0);
}

#[tokio::test]
async fn the_server_says_what_it_lacks_in_the_order_of_the_question() {
    let site = upload_site().await;
    let digest = |text: &[u8]| Digest::of(text).to_string();
    put(&site, &object_path(b"two"), b"two").await;
    let target = format!("/targets/{}.a", digest(b"catalogue"));
    put(&site, &target, b"catalogue").await;
    let objects = json!({"objects": [digest(b"three"), digest(b"two"), digest(b"one")]});
    let got = post(&site, "/upload/missing", &objects).await;
    assert_eq!(
        got.json(),
        json!({"missing": [digest(b"three"), digest(b"one")]})
    );
    let there = format!("{}.a", digest(b"catalogue"));
    let lacks = format!("{}.b", digest(b"catalogue"));
    let both = json!({"objects": [], "targets": [lacks, there]});
    let got = post(&site, "/upload/missing", &both).await;
    assert_eq!(
        got.json(),
        json!({"missing": [], "missing_targets": [lacks]})
    );
    let many = json!({"objects": vec![digest(b"x"); 10_001]});
    let got = post(&site, "/upload/missing", &many).await;
    assert_eq!(got.status, 413);
}

#[tokio::test]
async fn what_is_being_uploaded_is_never_served() {
    let site = upload_site().await;
    let aside = site.scratch.path().join("store/.upload/put-x");
    std::fs::write(aside, "bytes").unwrap();
    for path in ["/.upload/put-x", "/%2eupload/put-x", "/.upload/"] {
        assert_eq!(site.ask("GET", path, &[]).await.status, 404, "{path}");
    }
}

/// Mounts a small file system; says why if that is not possible here.
fn mount_small(directory: &Path) -> bool {
    std::fs::create_dir_all(directory).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]);
    let mounted = mount.arg(directory).output();
    let mounted = mounted.is_ok_and(|output| output.status.success());
    let required = std::env::var("CIRCULAR_REQUIRE").unwrap_or_default();
    assert!(
        mounted || !required.split(',').any(|word| word == "mount"),
        "CIRCULAR_REQUIRE has mount, but nothing can be mounted here"
    );
    mounted
}

#[tokio::test]
async fn a_full_disk_is_said_and_what_was_published_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("store");
    if !mount_small(&store) {
        println!("skipped: cannot mount a tmpfs");
        return;
    }
    let unmount = scopeguard(move || {
        let _ = Command::new("umount").arg("-l").arg(&store).status();
    });
    let site = upload_site_in(scratch).await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    let disk = noise(300_000, 1);
    publisher.publish("a", &disk).await;
    assert_eq!(publisher.push(&site).await.status, 200);
    let before = site.tree();
    let large = noise(8_000_000, 2);
    let got = put(&site, &object_path(&large), &large).await;
    assert_eq!(got.status, 507, "{}", got.text());
    assert!(site.tree() == before, "a refused object left something");
    // What is left of the disk goes, so that a commit cannot write its metadata.
    publisher.publish("b", &noise(300_000, 3)).await;
    publisher.upload(&site, |_| false).await;
    let mut filler = 3_900_000;
    while filler > 0 {
        let bytes = noise(filler, 4);
        if put(&site, &object_path(&bytes), &bytes).await.status != 201 {
            filler /= 2;
        }
    }
    let got = publisher.commit(&site).send(&site).await;
    assert_eq!(got.status, 507, "{}", got.text());
    assert!(site.ask("GET", "/raw/a/disk.raw", &[]).await.body == disk);
    assert_eq!(site.ask("GET", "/raw/b/disk.raw", &[]).await.status, 404);
    drop(unmount);
}

/// Runs something on drop.
fn scopeguard(act: impl FnOnce()) -> impl Drop {
    struct Guard<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Guard<F> {
        fn drop(&mut self) {
            if let Some(act) = self.0.take() {
                act();
            }
        }
    }
    Guard(Some(act))
}
