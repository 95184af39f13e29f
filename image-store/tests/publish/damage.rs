//! Files of a store that rot, are cut short, or go away.

use std::path::Path;

use image_store::PublishedAs;
use image_store::publication::PublishError;

use crate::{Scratch, disk, publish, read, read_back};

type Spoil = fn(&Path, Vec<u8>);

/// Ways in which a file is spoilt.
const DAMAGES: [(&str, Spoil); 4] = [
    ("flipped", |path, mut bytes| {
        if let Some(middle) = bytes.len().checked_div(2).filter(|at| *at < bytes.len()) {
            bytes[middle] ^= 0x10;
        }
        std::fs::write(path, bytes).unwrap();
    }),
    ("truncated", |path, bytes| {
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("longer", |path, mut bytes| {
        bytes.push(b'x');
        std::fs::write(path, bytes).unwrap();
    }),
    ("gone", |path, _| std::fs::remove_file(path).unwrap()),
];

fn is_kind(bytes: &[u8], magic: &[u8]) -> bool {
    bytes.starts_with(magic)
}

#[tokio::test]
async fn whatever_is_damaged_no_wrong_byte_comes_back() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "one", &disk(1, 5)).await.unwrap();
    publish(&store, "two", &[disk(1, 2), disk(3, 5)].concat())
        .await
        .unwrap();
    let mut refused = 0;
    for (path, bytes) in scratch.files() {
        for (damage, spoil) in DAMAGES {
            spoil(&path, bytes.clone());
            for (name, expected) in [
                ("one", disk(1, 5)),
                ("two", [disk(1, 2), disk(3, 5)].concat()),
            ] {
                match read(&scratch.root(), &name.parse().unwrap()).await {
                    Ok(got) => assert!(got == expected, "{name}, {} {damage}", path.display()),
                    Err(_) => refused += 1,
                }
            }
            std::fs::write(&path, &bytes).unwrap();
        }
    }
    assert!(refused > 20, "{refused} reads were refused");
}

#[tokio::test]
async fn publishing_again_mends_pages_and_tables() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 5)).await.unwrap();
    for (path, bytes) in scratch.files() {
        if !is_kind(&bytes, b"CIRCPAGE") && !is_kind(&bytes, b"CIRCRGNT") {
            continue;
        }
        for (damage, spoil) in DAMAGES {
            spoil(&path, bytes.clone());
            let (again, _) = publish(&store, "a", &disk(1, 5)).await.unwrap();
            assert_eq!(again.published_as, PublishedAs::Unchanged);
            let got = read_back(&scratch.root(), "a").await;
            assert!(got == disk(1, 5), "{} {damage}", path.display());
        }
    }
}

#[tokio::test]
async fn a_damaged_chunk_index_stops_no_publish_and_is_mended() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 5)).await.unwrap();
    let (index, bytes) = scratch
        .files()
        .into_iter()
        .find(|(_, bytes)| is_kind(bytes, b"CIRCCIDX"))
        .unwrap();
    for (damage, spoil) in DAMAGES {
        spoil(&index, bytes.clone());
        let (again, _) = publish(&store, "a", &disk(1, 5)).await.unwrap();
        assert_eq!(again.published_as, PublishedAs::Unchanged, "{damage}");
        assert_eq!(std::fs::read(&index).unwrap(), bytes, "{damage}");
    }
}

#[tokio::test]
async fn a_publish_that_needs_a_pack_that_is_gone_says_so() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 5)).await.unwrap();
    let (pack, _) = scratch
        .files()
        .into_iter()
        .find(|(_, bytes)| is_kind(bytes, b"CIRCPACK"))
        .unwrap();
    std::fs::remove_file(pack).unwrap();
    let refused = publish(&store, "b", &disk(1, 5)).await;
    assert!(matches!(refused, Err(PublishError::Gone { .. })));
    assert_eq!(store.names().await.unwrap().names.len(), 1);
}

#[tokio::test]
async fn a_damaged_catalogue_harms_its_own_name_only() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "one", &disk(1, 2)).await.unwrap();
    let (catalogue, _) = scratch
        .files()
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|name| name == "one"))
        .unwrap();
    std::fs::write(catalogue, b"{}").unwrap();
    publish(&store, "two", &disk(3, 2)).await.unwrap();
    assert_eq!(read_back(&scratch.root(), "two").await, disk(3, 2));
    assert!(publish(&store, "one", &disk(5, 2)).await.is_err());
}
