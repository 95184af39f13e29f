//! Metadata that is not made current: whatever was, still is.

use image_format::Digest;
use image_store::{Lifetimes, Signer};
use serde_json::json;

use crate::publisher::{Commit, Publisher, post, upload_site};
use crate::support::{Answer, Site, noise};

/// A server with one image, published over HTTP, and its publisher with a second one at hand.
async fn published() -> (Site, Publisher) {
    let site = upload_site().await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    publisher.publish("a", &noise(100_000, 1)).await;
    let got = publisher.push(&site).await;
    assert_eq!(got.status, 200, "{}", got.text());
    publisher.publish("b", &noise(100_000, 2)).await;
    (site, publisher)
}

/// Checks that a commit is refused with a reason that says this, and changes nothing.
async fn refused(site: &Site, commit: &Commit, status: u16, reason: &str) -> Answer {
    let before = site.tree();
    let got = commit.send(site).await;
    assert_eq!(got.status, status, "{reason}: {}", got.text());
    let error = got.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains(reason), "{error}");
    assert!(site.tree() == before, "the store changed: {error}");
    got
}

#[tokio::test]
async fn garbage_keeps_the_old() {
    let (site, publisher) = published().await;
    publisher.upload(&site, |_| false).await;
    let good = publisher.commit(&site);
    let with = |name: &str, text: &str| {
        let mut commit = good.clone();
        commit.files.insert(name.to_owned(), text.to_owned());
        commit
    };
    let timestamp = &good.files["timestamp.json"];
    let flip = |text: &str| match text.strip_prefix('0') {
        Some(rest) => format!("1{rest}"),
        None => format!("0{}", &text[1..]),
    };
    let signature = timestamp.find("\"sig\"").unwrap();
    let at = signature + timestamp[signature + 5..].find('"').unwrap() + 6;
    let forged = format!("{}{}", &timestamp[..at], flip(&timestamp[at..]));
    #[rustfmt::skip]
    let table = [
        (with("timestamp.json", "garbage"),             "not signed as the trusted root demands"),
        (with("timestamp.json", "{}"),                  "not signed as the trusted root demands"),
        (with("timestamp.json", &forged),               "not signed as the trusted root demands"),
        (with("3.targets.json", "{}"),                  "not signed as the trusted root demands"),
        (with("3.snapshot.json", "{}"),                 "not signed as the trusted root demands"),
        (with("2.root.json", "{}"),                     "not signed as the trusted root demands"),
        (with("9.targets.json", "{}"),                  "nothing leads to `9.targets.json`"),
        (with("9.root.json", "{}"),                     "nothing leads to `9.root.json`"),
        (with("../../secret", "{}"),                    "no metadata has the name"),
        (with("../objects/x", "{}"),                    "no metadata has the name"),
        (with("/etc/passwd", "{}"),                     "no metadata has the name"),
        (with("01.root.json", "{}"),                    "no metadata has the name"),
        (with("9.root.json", &"x".repeat(65_537)),      "has more than 65536 bytes"),
        (with("circular.json", "{}"),                   "`circular.json` cannot be used"),
    ];
    for (commit, reason) in table {
        refused(&site, &commit, 422, reason).await;
    }
    let got = good.send(&site).await;
    assert_eq!(got.status, 200, "{}", got.text());
}

#[tokio::test]
async fn what_is_no_commit_is_refused() {
    let (site, publisher) = published().await;
    let before = site.tree();
    let good = publisher.commit(&site);
    let many: std::collections::BTreeMap<_, _> = (1..=65)
        .map(|number| (format!("{number}.root.json"), "{}"))
        .collect();
    for (body, status) in [
        (json!([]), 422),
        (json!({"files": good.files, "follow": null}), 422),
        (json!({"follows": "x", "files": good.files}), 422),
        (json!({"follows": good.follows, "files": {}}), 422),
        (json!({"follows": good.follows, "files": many}), 422),
        (
            json!({"follows": null, "files": {}, "removes": "x".repeat(9 << 20)}),
            413,
        ),
    ] {
        let got = post(&site, "/upload/commit", &body).await;
        assert_eq!(got.status, status, "{}", got.text());
    }
    assert!(site.tree() == before);
}

#[tokio::test]
async fn only_keys_of_the_trusted_root_count() {
    let (site, _) = published().await;
    let scratch = site.scratch.path();
    let stranger = Publisher::new(&scratch.join("stranger"), &scratch.join("other-keys")).await;
    for seed in 3..6 {
        stranger.publish("a", &noise(100_000, seed)).await;
    }
    stranger.upload(&site, |_| false).await;
    let commit = stranger.commit(&site);
    refused(
        &site,
        &commit,
        422,
        "not signed as the trusted root demands",
    )
    .await;
}

#[tokio::test]
async fn nothing_goes_back() {
    let (site, publisher) = published().await;
    let old = publisher.commit(&site);
    publisher.publish("c", &noise(100_000, 3)).await;
    assert_eq!(publisher.push(&site).await.status, 200);
    publisher.publish("d", &noise(100_000, 4)).await;
    assert_eq!(publisher.push(&site).await.status, 200);
    let follows = publisher.commit(&site).follows;
    let replayed = Commit { follows, ..old };
    refused(
        &site,
        &replayed,
        422,
        "timestamp version 3 does not follow version 5",
    )
    .await;
}

#[tokio::test]
async fn everything_that_new_metadata_leads_to_must_be_there() {
    let (site, publisher) = published().await;
    publisher.publish("b:2", &noise(400_000, 5)).await;
    let there = site.tree();
    let there = |path: &str| there.keys().any(|file| file.ends_with(path));
    let new: Vec<_> = publisher.uploads();
    let new: Vec<_> = new.iter().filter(|path| !there(path)).collect();
    let targets = new.iter().filter(|path| path.starts_with("targets"));
    assert!(targets.count() >= 2 && new.len() >= 8, "{new:?}");
    publisher.upload(&site, |_| false).await;
    // The catalogue of `b` before `b:2` is one that nothing leads to any more.
    let commit = publisher.commit(&site);
    let mut needed = 0;
    for path in new {
        let file = site.scratch.path().join("store").join(path);
        let bytes = std::fs::read(&file).unwrap();
        for damaged in [None, Some(&bytes[1..])] {
            match damaged {
                None => std::fs::remove_file(&file).unwrap(),
                Some(damaged) => std::fs::write(&file, damaged).unwrap(),
            }
            if is_needed(&publisher, path).await {
                refused(&site, &commit, 422, "is not all there").await;
                needed += 1;
            }
        }
        std::fs::write(&file, bytes).unwrap();
    }
    assert!(needed >= 16, "{needed}");
    assert_eq!(commit.send(&site).await.status, 200);
}

/// Whether what is current leads to a file; a publish leaves behind what the next one replaces.
async fn is_needed(publisher: &Publisher, path: &str) -> bool {
    let store = publisher.store().await;
    let current = store
        .current(&publisher.keys.root().unwrap())
        .await
        .unwrap();
    let names = store.names_of(&current).await.unwrap();
    let targets = names.names.values().copied();
    let targets: Vec<_> = targets.chain(current.chunk_index_list()).collect();
    let listed = targets
        .iter()
        .any(|object| path.contains(&object.digest.to_string()));
    listed || path.starts_with("objects")
}

#[tokio::test]
async fn a_name_goes_only_if_that_was_meant() {
    let (site, _) = published().await;
    let other = Publisher::of(&site, "another-origin").await;
    other.publish("z", &noise(100_000, 7)).await;
    other.publish("z", &noise(100_000, 8)).await;
    other.upload(&site, |_| false).await;
    let mut commit = other.commit(&site);
    refused(&site, &commit, 422, "`a` is gone").await;
    commit.removes = vec!["a".to_owned()];
    let got = commit.send(&site).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(site.ask("GET", "/raw/a/disk.raw", &[]).await.status, 404);
    assert_eq!(site.ask("GET", "/raw/z/disk.raw", &[]).await.status, 200);
}

#[tokio::test]
async fn a_version_stays_the_disk_that_it_was() {
    let (site, _) = published().await;
    let other = Publisher::of(&site, "another-origin").await;
    other.publish("a", &noise(100_000, 7)).await;
    other.publish("b", &noise(100_000, 8)).await;
    other.upload(&site, |_| false).await;
    let commit = other.commit(&site);
    refused(&site, &commit, 422, "version 1 of `a` is another disk").await;
}

#[tokio::test]
async fn metadata_that_has_expired_is_refused() {
    let (site, publisher) = published().await;
    let signer = Signer {
        keys: &publisher.keys,
        lifetimes: Lifetimes::DEFAULT,
        now: 1_000_000_000,
    };
    signer.refresh(&publisher.store().await).await.unwrap();
    publisher.upload(&site, |_| false).await;
    refused(
        &site,
        &publisher.commit(&site),
        422,
        "timestamp metadata has expired",
    )
    .await;
}

#[tokio::test]
async fn who_signed_on_top_of_something_else_signs_again() {
    let (site, publisher) = published().await;
    publisher.upload(&site, |_| false).await;
    let good = publisher.commit(&site);
    for follows in [None, Some(Digest::of(b"something else").to_string())] {
        let stale = Commit {
            follows,
            ..good.clone()
        };
        let got = refused(&site, &stale, 409, "sign again").await;
        assert_eq!(got.json()["code"], "conflict");
    }
    let taken = site.scratch.path().join("store/metadata/3.targets.json");
    std::fs::write(&taken, "left by a publish that was killed").unwrap();
    let got = refused(&site, &good, 409, "`3.targets.json`").await;
    assert_eq!(got.json()["code"], "taken");
    assert_eq!(got.json()["files"], json!(["3.targets.json"]));
    std::fs::remove_file(taken).unwrap();
    assert_eq!(good.send(&site).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_publishers_at_once_exactly_one_wins() {
    let site = upload_site().await;
    let base = Publisher::of(&site, "base").await;
    base.publish("base", &noise(100_000, 1)).await;
    assert_eq!(base.push(&site).await.status, 200);
    let mut commits = Vec::new();
    for number in 0..4 {
        let name = format!("publisher{number}");
        let scratch = site.scratch.path();
        let copy = std::process::Command::new("cp")
            .arg("-a")
            .args([scratch.join("base"), scratch.join(&name)])
            .status();
        assert!(copy.unwrap().success());
        let publisher = Publisher::of(&site, &name).await;
        publisher.publish(&name, &noise(100_000, 10 + number)).await;
        publisher.upload(&site, |_| false).await;
        commits.push(publisher.commit(&site));
    }
    let sent = commits.iter().map(|commit| commit.send(&site));
    let answers = futures_util::future::join_all(sent).await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409]);
    let winner = answers.iter().position(|answer| answer.status == 200);
    let raw = format!("/raw/publisher{}/disk.raw", winner.unwrap());
    assert_eq!(site.ask("GET", &raw, &[]).await.status, 200);
    assert_eq!(site.ask("GET", "/raw/base/disk.raw", &[]).await.status, 200);
}

#[tokio::test]
async fn a_new_store_takes_the_root_that_the_server_was_given() {
    let site = upload_site().await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    publisher.publish("a", &noise(100_000, 1)).await;
    publisher.upload(&site, |_| false).await;
    let mut commit = publisher.commit(&site);
    let root = String::from_utf8(publisher.keys.root().unwrap()).unwrap();
    let root_file = "1.root.json".to_owned();
    commit.files.insert(root_file.clone(), format!("{root} "));
    refused(&site, &commit, 422, "`1.root.json` is not the root").await;
    commit.files.insert(root_file, root);
    let got = commit.send(&site).await;
    assert_eq!(got.status, 200, "{}", got.text());
}

#[tokio::test]
async fn a_new_store_without_a_root_takes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let tokens = Site::tokens(scratch.path());
    let site = Site::start_in(scratch, |config| {
        config.tokens = Some(tokens);
        config.upload = Some(server::config::UploadRoot::OfStore);
    })
    .await;
    let publisher = Publisher::of(&site, "elsewhere").await;
    publisher.publish("a", &noise(100_000, 1)).await;
    publisher.upload(&site, |_| false).await;
    refused(&site, &publisher.commit(&site), 422, "--upload-root").await;
}
