//! Publishing to a server that works.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use image_store::PublishedAs;
use image_tools::remote::upload::Landed;

use crate::server::UploadServer;
use crate::{AT_ONCE, Bench, ONCE, files, puts};

#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_sent_once_and_the_disk_is_the_same() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 24);
    let (published, uploaded) = bench
        .publish("work", ONCE, &image, "lab/debian:12")
        .await
        .unwrap();
    assert_eq!(published.reference.to_string(), "lab/debian:12@1");
    assert_eq!(uploaded.committed, Some(Landed::Whole));
    let asked = bench.server.asked();
    let sent: u64 = puts(&asked).iter().map(|put| put.bytes).sum();
    assert_eq!(
        sent,
        bench.served_bytes("objects") + bench.served_bytes("targets")
    );
    assert_eq!(sent, uploaded.bytes);
    assert!(puts(&asked).iter().all(|put| put.status == 201));
    bench.assert_served("lab/debian:12", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_again_sends_nothing() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 3);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    bench.server.asked();
    let (published, uploaded) = bench.publish("work", ONCE, &image, "debian").await.unwrap();
    assert_eq!(published.published_as, PublishedAs::Unchanged);
    assert_eq!((uploaded.files, uploaded.committed), (0, None));
    assert_eq!(puts(&bench.server.asked()).len(), 0);
    // A tag that is new moves metadata only: the catalogue.
    let (_, uploaded) = bench
        .publish("elsewhere", ONCE, &image, "debian:stable")
        .await
        .unwrap();
    assert_eq!(
        (uploaded.files, uploaded.committed),
        (1, Some(Landed::Whole))
    );
    let asked = bench.server.asked();
    assert!(puts(&asked)[0].path.starts_with("targets/"), "{asked:?}");
    bench.assert_served("debian:stable", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_new_in_an_image_is_sent() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 24);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    let mut bytes = fs::read(&image).unwrap();
    bytes[5_000_000] ^= 1;
    let changed = bench.path("changed");
    fs::write(&changed, bytes).unwrap();
    // With an empty work directory too: the chunk index comes from the server.
    for (work, reference) in [("work", "debian"), ("elsewhere", "other")] {
        let (_, uploaded) = bench
            .publish(work, ONCE, &changed, reference)
            .await
            .unwrap();
        assert!(uploaded.bytes < 2 << 20, "{uploaded:?}");
        bench.assert_served(reference, &changed).await;
    }
    bench.assert_served("debian@1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_directory_keeps_only_chunk_indexes_of_what_is_published() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 20);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    let kept = files(&bench.path("work").join("objects"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    let index = fs::read(kept.keys().next().unwrap()).unwrap();
    assert!(index.starts_with(b"CIRCCIDX"));
    assert_eq!(files(&bench.path("work").join("metadata")).len(), 0);
    assert_eq!(files(&bench.path("work").join("targets")).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_at_the_same_time_lose_nothing() {
    let bench = Bench::new().await;
    let images: Vec<_> = (0..4)
        .map(|number| bench.image(&format!("disk-{number}"), number, 2))
        .collect();
    let publishes = images.iter().enumerate().map(|(number, image)| {
        let bench = &bench;
        async move {
            let (work, name) = (format!("work-{number}"), format!("disk-{number}"));
            // Two publish under one name, with tags of their own.
            let tagged = match number {
                0 | 1 => format!("disk:{number}"),
                _ => name,
            };
            bench.publish(&work, AT_ONCE, image, &tagged).await.unwrap();
            tagged
        }
    });
    let references = futures_util::future::join_all(publishes).await;
    for (reference, image) in references.iter().zip(&images) {
        bench.assert_served(reference, image).await;
    }
}

/// What a user types.
fn circular(bench: &Bench, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_circular"))
        .args(args)
        .current_dir(bench.directory.path())
        .env_remove("CIRCULAR_STORE")
        .env_remove("CIRCULAR_KEYS")
        .env_remove("CIRCULAR_TOKEN_FILE")
        .env("XDG_CONFIG_HOME", bench.path("config"))
        .env("XDG_CACHE_HOME", bench.path("cache"))
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_new_keys_to_a_published_image_on_the_command_line() {
    let bench = Bench::with_token(Some("circular_secret")).await;
    let image = bench.image("disk", 1, 2);
    let url = bench.server.url();
    let made = circular(&bench, &["init", "--root-only", "--keys", "made"]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(bench.path("made/root.json").exists() && !bench.path("store").exists());
    let publish = |more: &[&str]| {
        let args = ["publish", "disk", "debian", "--no-boot", "--to", &url];
        circular(&bench, &[&args, more].concat())
    };
    let no_keys = publish(&[]);
    assert!(
        stderr(&no_keys).contains("init --root-only"),
        "{}",
        stderr(&no_keys)
    );
    let no_token = publish(&["--keys", "made"]);
    assert!(
        stderr(&no_token).contains("--token-file"),
        "{}",
        stderr(&no_token)
    );
    fs::write(bench.path("token"), "circular_secreT\n").unwrap();
    let wrong = publish(&["--keys", "made", "--token-file", "token"]);
    assert!(
        stderr(&wrong).contains("does not know the token"),
        "{}",
        stderr(&wrong)
    );
    assert_eq!(bench.served_bytes("objects"), 0);
    fs::write(bench.path("token"), "circular_secret\n").unwrap();
    fs::set_permissions(bench.path("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let done = publish(&["--keys", "made", "--token-file", "token", "--json"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stderr(&done).contains("others can read the token"));
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(summary["server"], url.as_str());
    assert!(
        summary["uploaded_bytes"].as_u64().unwrap() > 2 << 20,
        "{summary}"
    );
    for output in [no_keys, no_token, wrong, done] {
        let said = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8_lossy(&said).contains("circular_secre"));
    }
    let exported = circular(&bench, &["export", "debian", "copy", "--store", "served"]);
    assert!(exported.status.success(), "{}", stderr(&exported));
    assert!(fs::read(bench.path("copy")).unwrap() == fs::read(image).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_on_a_server_is_signed_again() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 1);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    let timestamp = bench.path("served/metadata/timestamp.json");
    let before = fs::read(&timestamp).unwrap();
    let refreshed = circular(
        &bench,
        &["refresh", "--to", &bench.server.url(), "--keys", "keys"],
    );
    assert!(refreshed.status.success(), "{}", stderr(&refreshed));
    assert_ne!(fs::read(timestamp).unwrap(), before);
    bench.assert_served("debian", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_store_are_refused() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 1);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    let other = UploadServer::start(&bench.path("served"), None).await;
    circular(&bench, &["init", "--root-only", "--keys", "made"]);
    let refused = circular(
        &bench,
        &[
            "publish",
            "disk",
            "debian",
            "--no-boot",
            "--to",
            &other.url(),
            "--keys",
            "made",
        ],
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("those of another store"),
        "{}",
        stderr(&refused)
    );
}
