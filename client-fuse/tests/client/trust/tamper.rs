//! The tamper matrix: each file of the way to a disk, damaged in each way.

use bytes::Bytes;
use image_format::digest::ObjectRef;

use super::{
    Arc, Fault, Faults, MemorySource, Publisher, Release, Store, contents, mixed_disk, open_store,
    trust, try_open,
};

/// What is tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Root,
    Timestamp,
    Snapshot,
    Targets,
    Catalogue,
    Manifest,
    Table,
}

const FILES: [File; 7] = [
    File::Root,
    File::Timestamp,
    File::Snapshot,
    File::Targets,
    File::Catalogue,
    File::Manifest,
    File::Table,
];

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Flip,
    Truncate,
    Extend,
    Endless,
    /// The same file of another store, signed well by its publisher.
    Foreign,
    /// The same file as it was one version ago, signed well.
    Old,
}

const DAMAGES: [Damage; 6] = [
    Damage::Flip,
    Damage::Truncate,
    Damage::Extend,
    Damage::Endless,
    Damage::Foreign,
    Damage::Old,
];

/// The documented error.
fn outcome(file: File, damage: Damage) -> &'static str {
    use Damage::{Endless, Extend, Flip, Foreign, Old, Truncate};
    use File::{Catalogue, Manifest, Root, Snapshot, Table, Targets, Timestamp};
    match (file, damage) {
        (Root, Endless) => "cannot fetch the store's root metadata",
        (Timestamp, Endless) => "cannot fetch the store's timestamp metadata",
        (Snapshot, Endless) => "cannot fetch the store's snapshot metadata",
        (Targets, Endless) => "cannot fetch the store's targets metadata",
        (Root, Truncate | Extend) => "the store's root metadata is damaged",
        (Timestamp, Truncate | Extend) => "the store's timestamp metadata is damaged",
        (Root, Flip | Foreign) => "bad signature: the store's root metadata",
        (Timestamp, Flip | Foreign) => "bad signature: the store's timestamp metadata",
        (Timestamp, Old) => "rollback: the store offers timestamp metadata of version 1",
        (Root, Old) => "the store's 2.root.json is not what",
        (Snapshot, _) => "the store's 2.snapshot.json is not what",
        (Targets, _) => "the store's 2.targets.json is not what",
        (Catalogue, _) => "cannot fetch the catalogue",
        (Manifest, _) => "cannot fetch the manifest",
        (Table, _) => "cannot fetch the region table",
    }
}

/// A disk, published by `publisher` as its release number 1 or 2.
fn published(publisher: &Publisher, number: u64, blocks: usize) -> Store {
    let disk = Store::of(mixed_disk(blocks, 0));
    disk.signed(publisher, Release::number(number))
}

/// Where a file of release `number` is.
fn path(store: &Store, file: File, number: u64) -> String {
    let json =
        |path: &str| -> serde_json::Value { serde_json::from_slice(&store.files[path]).unwrap() };
    let object = |value: &serde_json::Value| {
        let object: ObjectRef = serde_json::from_value(value.clone()).unwrap();
        object.digest.object_path()
    };
    let (name, catalogue) = &store.targets[0];
    let catalogue = image_format::catalogue::target_path(name, &catalogue.digest);
    let manifest = || object(&json(&catalogue)["versions"]["1"]["manifest"]);
    match file {
        File::Root => format!("metadata/{number}.root.json"),
        File::Timestamp => "metadata/timestamp.json".to_owned(),
        File::Snapshot => format!("metadata/{number}.snapshot.json"),
        File::Targets => format!("metadata/{number}.targets.json"),
        File::Catalogue => catalogue,
        File::Manifest => manifest(),
        File::Table => object(&json(&manifest())["disk"]["regions"]),
    }
}

/// Changes one bit: of the date of expiry, if there is one.
pub(super) fn flip(bytes: &mut [u8]) {
    let label = b"\"expires\": \"2";
    let date = bytes.windows(label.len()).position(|at| at == label);
    let at = date.map_or(bytes.len() / 2, |at| at + label.len());
    bytes[at] ^= 1;
}

/// What is there in place of `good`.
fn tampered(damage: Damage, good: &Bytes, foreign: &Bytes, old: &Bytes) -> Bytes {
    let mut bytes = good.to_vec();
    match damage {
        Damage::Flip => flip(&mut bytes),
        Damage::Truncate => bytes.truncate(good.len() / 2),
        Damage::Extend => bytes.extend_from_slice(b"{}"),
        Damage::Endless => {}
        Damage::Foreign => return foreign.clone(),
        Damage::Old => return old.clone(),
    }
    bytes.into()
}

#[tokio::test]
async fn nothing_that_was_tampered_with_is_opened() {
    let (mut publisher, mut stranger) = (Publisher::new(), Publisher::new());
    let old = published(&publisher, 1, 50);
    publisher.rotate(&[]);
    stranger.rotate(&[]);
    let honest = published(&publisher, 2, 60);
    let foreign = published(&stranger, 2, 70);
    for file in FILES {
        for damage in DAMAGES {
            let at = path(&honest, file, 2);
            let instead = tampered(
                damage,
                &honest.files[&at],
                &foreign.files[&path(&foreign, file, 2)],
                &old.files[&path(&old, file, 1)],
            );
            check(&honest, &at, instead, damage, outcome(file, damage)).await;
        }
    }
}

/// Opens a store in which one file is another one; it fails as told, and leaves no trace.
async fn check(honest: &Store, at: &str, instead: Bytes, damage: Damage, told: &str) {
    let state = tempfile::tempdir().unwrap();
    let trust = trust(honest, state.path());
    // What was seen matters for what is signed well but old; a root that was seen is not asked for.
    if !at.ends_with("root.json") {
        open_store(honest, &trust).await.unwrap();
    }
    let before = contents(state.path());
    let mut bad = honest.clone();
    assert_ne!(
        bad.files.insert(at.to_owned(), instead.clone()),
        (damage != Damage::Endless).then_some(instead)
    );
    let tampered = at.to_owned();
    let faults: Faults = Arc::new(move |_, request| {
        let endless = damage == Damage::Endless && request.path == tampered;
        if endless { Fault::Endless } else { Fault::None }
    });
    let source = MemorySource::faulty(&Arc::new(bad), faults);
    let error = try_open(&source, &trust).await.unwrap_err().to_string();
    assert!(error.starts_with(told), "{at} {damage:?}: {error}");
    assert_eq!(contents(state.path()), before, "{at} {damage:?}");
    open_store(honest, &trust).await.unwrap();
}
