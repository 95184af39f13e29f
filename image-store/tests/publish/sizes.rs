//! How long signed metadata gets: machines fetch it at every boot.

use image_format::catalogue::{CATALOGUE_BYTES_MAX, Catalogue, VersionEntry};
use image_format::{Digest, ObjectRef, Tag, Version};

use crate::{Scratch, ring, signer};

/// What must stay cheap to open.
const NAMES: u64 = 1000;
const VERSIONS: u64 = 100;

/// A machine that boots fetches all of it, even where it wants one name.
const TARGETS_BYTES: usize = 300_000;

/// A catalogue of [`VERSIONS`] versions, each with a tag of its own, as `name`.
fn catalogue(name: &str) -> Catalogue {
    let mut catalogue = Catalogue::empty(name.parse().unwrap());
    for number in 1..=VERSIONS {
        let version: Version = number.to_string().parse().unwrap();
        let object = |what: &str| ObjectRef {
            digest: Digest::of(format!("{what} {name} {number}").as_bytes()),
            length: 1500,
        };
        let entry = VersionEntry {
            manifest: object("manifest"),
            revision: 1,
            created: 1_700_000_000 + number * 86_400,
            disk: object("disk").digest,
            content: object("content").digest,
            length: 64 << 30,
            bootable: true,
        };
        catalogue.versions.insert(version, entry);
        let tag = format!("2026-01-01-{number}");
        catalogue.tags.insert(tag.parse().unwrap(), version);
        catalogue.tags.insert(Tag::latest(), version);
    }
    catalogue
}

#[tokio::test]
async fn a_thousand_names_with_a_hundred_versions_are_signed_in_300_kilobytes() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let ring = ring(&store);
    let mut targets = Vec::new();
    let mut longest = 0;
    for number in 0..NAMES {
        // The longest names that there are.
        let catalogue = catalogue(&format!("{number:0>42}/{number:0>42}/{number:0>42}"));
        let bytes = catalogue.encode();
        longest = longest.max(bytes.len());
        Catalogue::decode(&bytes, &catalogue.name).unwrap();
        targets.push((catalogue.name.to_file_safe(), ObjectRef::of(&bytes)));
    }
    let root = store.first_root().await.unwrap();
    let current = store.current(&root).await.unwrap();
    signer(&ring)
        .advance(&store, &current, &targets)
        .await
        .unwrap();

    let current = store.current(&root).await.unwrap();
    assert_eq!(current.catalogues().unwrap().len(), targets.len());
    let length_of = |role: &str| {
        let files = scratch.files();
        let newest = files.iter().filter(|(path, _)| path.ends_with(role));
        newest.map(|(_, bytes)| bytes.len()).max().unwrap()
    };
    let version = current.targets.signed.version;
    let signed = length_of(&format!("{version}.targets.json"));
    println!("targets.json: {signed} bytes, a catalogue: {longest} bytes");
    assert!(signed < TARGETS_BYTES, "targets.json has {signed} bytes");
    assert!(
        longest < CATALOGUE_BYTES_MAX,
        "a catalogue has {longest} bytes"
    );
}
