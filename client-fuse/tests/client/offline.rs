//! Without a server: what the cache directory has is opened and read, as far as it can be believed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use client_fuse::fetch::Request;
use client_fuse::trust::Trust;

use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{Setup, Stack, start, try_start};
use crate::store::{Store, mixed_disk};

fn store() -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(900, 77)))
}

/// A server that nobody reaches.
fn gone(store: &Arc<Store>) -> MemorySource {
    MemorySource::faulty(store, Arc::new(|_, _| Fault::Refuse))
}

/// Caches in `cache`, nothing in memory.
fn on_disk(cache: &Path) -> Setup<'_> {
    Setup {
        memory_bytes: 0,
        cache: Some(cache),
        ..Setup::DEFAULT
    }
}

/// Reads the whole disk and compares it.
async fn read_all(stack: &Stack, store: &Store) {
    for offset in (0..store.disk.len() as u64).step_by(100_000) {
        let bytes = stack.disk.read(offset, 100_000).await.unwrap();
        assert!(bytes[..] == *store.flat(offset, 100_000), "at {offset}");
    }
}

/// Fills `cache` with all that there is; documents are written in the background, and there when
/// they are found.
async fn fill(store: &Arc<Store>, cache: &Path, trust: &Trust) {
    let source = MemorySource::new(store);
    let stack = try_start(&source, on_disk(cache), trust).await.unwrap();
    read_all(&stack, store).await;
    drop(stack);
    for _ in 0..2000 {
        let documents = fs::read_dir(cache.join("documents-v1")).unwrap().count();
        let metadata = fs::read_dir(cache.join("metadata-v1")).unwrap().count();
        if documents >= 4 && metadata >= 3 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("catalogue, manifest, table, page and metadata are kept");
}

fn is_timestamp(request: &Request) -> bool {
    request.path == "metadata/timestamp.json"
}

#[tokio::test(flavor = "multi_thread")]
async fn with_everything_cached_no_server_is_needed() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let trust = MemorySource::new(&store).trust();
    fill(&store, cache.path(), &trust).await;
    let stack = start(&gone(&store), on_disk(cache.path())).await;
    read_all(&stack, &store).await;
    assert_eq!(stack.stats.chunks.count(), 0);
    assert_eq!(stack.stats.fetched.page_bytes.count(), 0);
}

/// A server that lost its power: nobody refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let trust = MemorySource::new(&store).trust();
    fill(&store, cache.path(), &trust).await;
    let silent = MemorySource::faulty(&store, Arc::new(|_, _| Fault::Silent));
    let stack = start(&silent, on_disk(cache.path())).await;
    read_all(&stack, &store).await;
    assert_eq!(stack.stats.chunks.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_is_asked_first() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let source = MemorySource::new(&store);
    fill(&store, cache.path(), &source.trust()).await;
    let stack = start(&source, on_disk(cache.path())).await;
    read_all(&stack, &store).await;
    assert!(source.requests().iter().any(is_timestamp));
    let objects = |request: &&Request| request.path.starts_with("objects/");
    assert_eq!(
        source.requests().iter().filter(objects).count(),
        0,
        "the rest is here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_wrong_is_not_taken_for_one_that_is_gone() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let trust = MemorySource::new(&store).trust();
    fill(&store, cache.path(), &trust).await;
    for fault in [Fault::Flip, Fault::Missing] {
        let wrong: Faults = Arc::new(move |_, request| {
            if is_timestamp(request) {
                fault
            } else {
                Fault::None
            }
        });
        let source = MemorySource::faulty(&store, wrong);
        assert!(
            try_start(&source, on_disk(cache.path()), &trust)
                .await
                .is_err()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_metadata_that_expired_opens_nothing_unless_told() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let trust = MemorySource::new(&store).trust();
    fill(&store, cache.path(), &trust).await;
    let later = Trust {
        now: "3001-01-01T00:00:00Z".parse().unwrap(),
        ..trust
    };
    let source = gone(&store);
    assert!(
        try_start(&source, on_disk(cache.path()), &later)
            .await
            .is_err()
    );
    let warned = Trust {
        expiry: client_fuse::config::Expiry::Warn,
        ..later
    };
    let stack = try_start(&source, on_disk(cache.path()), &warned)
        .await
        .unwrap();
    read_all(&stack, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_metadata_of_others_damaged_or_missing_opens_nothing() {
    let (store, other) = (store(), store());
    let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let trust = MemorySource::new(&store).trust();
    fill(&store, caches[0].path(), &trust).await;
    fill(&other, caches[1].path(), &MemorySource::new(&other).trust()).await;
    let foreign = try_start(&gone(&store), on_disk(caches[1].path()), &trust).await;
    assert!(foreign.is_err(), "signed by somebody else");
    for (directory, damage) in [
        ("metadata-v1", true),
        ("metadata-v1", false),
        ("documents-v1", true),
    ] {
        let cache = tempfile::tempdir().unwrap();
        fill(&store, cache.path(), &trust).await;
        for entry in fs::read_dir(cache.path().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if damage {
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&path, bytes).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
        let opened = try_start(&gone(&store), on_disk(cache.path()), &trust).await;
        assert!(opened.is_err(), "{directory} {damage}");
        let stack = start(&MemorySource::new(&store), on_disk(cache.path())).await;
        read_all(&stack, &store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_metadata_is_held_against_what_was_seen() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let state = tempfile::tempdir().unwrap();
    let trust = Trust {
        state: Some(state.path().to_owned()),
        ..MemorySource::new(&store).trust()
    };
    fill(&store, cache.path(), &trust).await;
    try_start(&gone(&store), on_disk(cache.path()), &trust)
        .await
        .unwrap();
    let release = crate::publisher::Release::number(9);
    let newer = Arc::new(store.signed(&store.publisher, release));
    let elsewhere = tempfile::tempdir().unwrap();
    let seen = try_start(
        &MemorySource::new(&newer),
        on_disk(elsewhere.path()),
        &trust,
    )
    .await;
    seen.unwrap();
    let old = try_start(&gone(&store), on_disk(cache.path()), &trust).await;
    assert!(
        old.is_err(),
        "the cache shows what is older than what was seen"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_that_flip_while_the_cache_is_used_are_never_read() {
    use std::os::unix::fs::FileExt as _;

    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let source = MemorySource::new(&store);
    let stack = start(&source, on_disk(cache.path())).await;
    read_all(&stack, &store).await;
    let path = cache
        .path()
        .join("disks-v1")
        .join(format!("{}.raw", store.disk_digest));
    let raw = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    for round in 0..8_u64 {
        for at in (round * 977..store.disk.len() as u64).step_by(50_021) {
            let mut byte = [0];
            raw.read_exact_at(&mut byte, at).unwrap();
            raw.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
        }
        read_all(&stack, &store).await;
    }
    assert!(stack.stats.disk_rejects.count() > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_version_fetches_only_what_the_one_before_did_not_have() {
    let (old, cache) = (store(), tempfile::tempdir().unwrap());
    let stack = start(&MemorySource::new(&old), on_disk(cache.path())).await;
    read_all(&stack, &old).await;
    drop(stack);
    // Something was inserted, so that all that follows is elsewhere.
    let mut disk = mixed_disk(900, 77);
    let inserted: Vec<u8> = (0..40 * 4096_u32)
        .map(|i| u8::try_from(i % 249).unwrap() | 1)
        .collect();
    let at = 300 * 4096;
    disk.splice(at..at, inserted);
    let new = Arc::new(Store::of(disk));
    let stack = start(&MemorySource::new(&new), on_disk(cache.path())).await;
    read_all(&stack, &new).await;
    let (fetched, all) = (stack.stats.chunks.count(), new.n_chunks);
    assert!(fetched * 5 < all, "{fetched} of {all} were fetched");
    assert!(stack.stats.disk_copies.count() > 0);
    // The same disk, mended: published anew by others, with packs of its own.
    let mended = Arc::new(Store::booting(new.disk.clone(), 3));
    let stack = start(&MemorySource::new(&mended), on_disk(cache.path())).await;
    read_all(&stack, &mended).await;
    assert_eq!(stack.stats.chunks.count(), 0);
}
