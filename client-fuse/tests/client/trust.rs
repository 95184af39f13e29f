//! What a client believes: nothing that does not chain to its root, nothing old, nothing mixed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use client_fuse::cache::Caches;
use client_fuse::config::Expiry;
use client_fuse::fetch::Freshness;
use client_fuse::fetch::fetcher::Fetcher;
use client_fuse::open::{OpenError, OpenImage, open};
use client_fuse::stats::Stats;
use client_fuse::trust::{Anchor, Minimum, Trust, TrustError};

use crate::counts::OPENING;
use crate::publisher::{Publisher, Release};
use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{IMPATIENT, Setup, start};
use crate::store::{Store, mixed_disk};

mod attacks;
mod first_use;
mod mirrors;
mod tamper;

/// Opens `lab/debian:12`.
async fn try_open(source: &MemorySource, trust: &Trust) -> Result<OpenImage, OpenError> {
    let caches = Arc::new(Caches::none());
    let stats = Arc::new(Stats::default());
    let fetcher = Arc::new(Fetcher::new(source.clone(), 8, IMPATIENT, caches, stats));
    let base = "http://store/".parse().unwrap();
    open(&fetcher, &base, &"lab/debian:12".parse().unwrap(), trust).await
}

/// Opens an image of a store that serves what it has.
async fn open_store(store: &Store, trust: &Trust) -> Result<OpenImage, OpenError> {
    try_open(&MemorySource::new(&Arc::new(store.clone())), trust).await
}

/// Why it cannot be opened, if that is a matter of trust.
async fn refusal(store: &Store, trust: &Trust) -> TrustError {
    match open_store(store, trust).await {
        Err(OpenError::Trust(error)) => error,
        other => panic!("not refused for lack of trust: {other:?}"),
    }
}

/// Trust in the first root of `store`, with a memory.
fn trust(store: &Store, state: &Path) -> Trust {
    Trust {
        state: Some(state.to_owned()),
        ..MemorySource::new(&Arc::new(store.clone())).trust()
    }
}

fn store() -> Store {
    Store::of(mixed_disk(60, 5))
}

/// Every file below `directory`, and what is in it.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test]
async fn opening_costs_one_request_a_file() {
    let source = MemorySource::new(&Arc::new(store()));
    try_open(&source, &source.trust()).await.unwrap();
    let asked = source.requests();
    assert_eq!(asked.len(), OPENING);
    let metadata: BTreeMap<_, _> = asked
        .iter()
        .filter_map(|request| {
            let name = request.path.strip_prefix("metadata/")?;
            Some((name, request.freshness))
        })
        .collect();
    use Freshness::{Any, Revalidate};
    let expected = [
        ("1.snapshot.json", Any),
        ("1.targets.json", Any),
        ("2.root.json", Revalidate),
        ("timestamp.json", Revalidate),
    ];
    assert_eq!(metadata, expected.into());
}

#[tokio::test]
async fn metadata_that_came_wrong_is_asked_for_again_past_every_cache() {
    let store = Arc::new(store());
    for path in ["timestamp", "1.snapshot", "1.targets"] {
        let path = format!("metadata/{path}.json");
        let (tampered, flipped) = (path.clone(), AtomicBool::new(false));
        let faults: Faults = Arc::new(move |_, request| {
            let flip = request.path == tampered && !flipped.swap(true, Ordering::Relaxed);
            if flip { Fault::Flip } else { Fault::None }
        });
        let source = MemorySource::faulty(&store, faults);
        try_open(&source, &source.trust()).await.unwrap();
        let mut asked = source.requests();
        asked.retain(|request| request.path == path);
        assert_eq!(asked.len(), 2, "{path}");
        assert_eq!(asked[1].freshness, Freshness::Revalidate);
        // A timestamp that does not fit may be signed by the keys of a root that came meanwhile.
        let others = usize::from(path.ends_with("timestamp.json"));
        assert_eq!(source.requests().len(), OPENING + 1 + others, "{path}");
    }
}

#[tokio::test]
async fn a_next_root_that_cannot_be_had_is_not_passed_over() {
    let store = Arc::new(store());
    for fault in [Fault::Refuse, Fault::Unavailable] {
        let faults: Faults = Arc::new(move |_, request| {
            let root = request.path.ends_with("root.json");
            if root { fault } else { Fault::None }
        });
        let source = MemorySource::faulty(&store, faults);
        let error = try_open(&source, &source.trust()).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot fetch the store's root metadata");
    }
}

#[tokio::test]
async fn rollback_of_a_whole_store_is_refused_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let old = store();
    let new = old.signed(&old.publisher, Release::number(2));
    let trust = trust(&old, &directory.path().join("state"));
    open_store(&new, &trust).await.unwrap();
    let setup = Setup {
        cache: Some(&cache),
        ..Setup::DEFAULT
    };
    let stack = start(&MemorySource::new(&Arc::new(new.clone())), setup).await;
    stack.disk.read(0, 4096).await.unwrap();
    drop(stack);
    // What waits to be written is written still, though nobody has the disk any more.
    while cache.exists() {
        let _ = fs::remove_dir_all(&cache);
    }
    for _ in 0..2 {
        let told = refusal(&old, &trust).await.to_string();
        let begin = "rollback: the store offers timestamp metadata of version 1, but version 2 was";
        assert!(told.starts_with(begin), "{told}");
        assert!(
            told.contains(&*directory.path().to_string_lossy()),
            "{told}"
        );
    }
    open_store(&new, &trust).await.unwrap();
    let forgetful = Trust {
        state: None,
        ..trust
    };
    open_store(&old, &forgetful).await.unwrap();
}

#[tokio::test]
async fn what_was_seen_is_kept_only_after_all_of_it_was_checked() {
    let directory = tempfile::tempdir().unwrap();
    let honest = store();
    let trust = trust(&honest, directory.path());
    // A good timestamp and snapshot of version 9, and targets that somebody changed.
    let mut bad = honest.signed(&honest.publisher, Release::number(9));
    let targets = "metadata/9.targets.json";
    bad.files.insert(targets.to_owned(), "{}".into());
    let error = refusal(&bad, &trust).await;
    assert!(matches!(error, TrustError::Mismatch { .. }), "{error}");
    assert_eq!(contents(directory.path()), BTreeMap::new());
    open_store(&honest, &trust).await.unwrap();
    let names: Vec<_> = contents(directory.path()).into_keys().collect();
    let ends = ["lock", "root.json", "snapshot.json", "targets.json"];
    for (name, end) in names.iter().zip(ends) {
        assert!(name.ends_with(end), "{names:?}");
    }
    assert_eq!(names.len(), 5, "{names:?}");
}

/// One mount saw the old store and is still checking when another one has seen the new store.
#[tokio::test]
async fn a_slow_mount_does_not_take_back_what_a_quick_one_saw() {
    let directory = tempfile::tempdir().unwrap();
    let old = store();
    let new = old.signed(&old.publisher, Release::number(2));
    let trust = trust(&old, directory.path());
    let meanwhile = trust.clone();
    let faults: Faults = Arc::new(move |_, request| {
        if request.path.ends_with("targets.json") {
            let (new, trust) = (new.clone(), meanwhile.clone());
            let open = move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(open_store(&new, &trust)).unwrap();
            };
            std::thread::spawn(open).join().unwrap();
        }
        Fault::None
    });
    let slow = MemorySource::faulty(&Arc::new(old.clone()), faults);
    try_open(&slow, &trust).await.unwrap();
    let error = refusal(&old, &trust).await;
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_memory_is_told_and_not_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = store();
    let trust = trust(&store, directory.path());
    open_store(&store, &trust).await.unwrap();
    for path in contents(directory.path()).into_keys() {
        if path.ends_with("lock") {
            continue;
        }
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let error = refusal(&store, &trust).await;
        assert!(matches!(error, TrustError::Memory { .. }), "{error}");
        fs::write(&path, good).unwrap();
    }
    open_store(&store, &trust).await.unwrap();
}

#[tokio::test]
async fn a_memory_that_cannot_be_written_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let store = store();
    let error = refusal(&store, &trust(&store, &file)).await;
    assert!(matches!(error, TrustError::State { .. }), "{error}");
    assert!(error.to_string().contains("--no-state"), "{error}");
}

#[tokio::test]
async fn stores_with_other_roots_have_memories_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (store(), store());
    let newer = one.signed(&one.publisher, Release::number(7));
    open_store(&newer, &trust(&one, directory.path()))
        .await
        .unwrap();
    open_store(&other, &trust(&other, directory.path()))
        .await
        .unwrap();
}

#[tokio::test]
async fn freeze_is_noticed_when_metadata_is_out_of_date() {
    let past = "2026-12-01T00:00:00Z";
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let until = if role == "root" {
            past
        } else {
            crate::publisher::LATE
        };
        let publisher = Publisher::with_root_until(until);
        let release = Release {
            expires: (role, past),
            ..Release::number(1)
        };
        let frozen = store().signed(&publisher, release);
        let directory = tempfile::tempdir().unwrap();
        let enforce = trust(&frozen, directory.path());
        let told = refusal(&frozen, &enforce).await.to_string();
        let begin = format!("the store's {role} metadata expired on {past}");
        assert!(told.starts_with(&begin), "{told}");
        assert_eq!(contents(directory.path()), BTreeMap::new());
        let warn = Trust {
            expiry: Expiry::Warn,
            ..enforce.clone()
        };
        open_store(&frozen, &warn).await.unwrap();
        let no_clock = Trust {
            now: "1970-01-01T00:01:00Z".parse().unwrap(),
            ..enforce
        };
        open_store(&frozen, &no_clock).await.unwrap();
    }
}

#[tokio::test]
async fn the_root_of_another_store_opens_nothing() {
    let (one, other) = (store(), store());
    let directory = tempfile::tempdir().unwrap();
    let error = refusal(&one, &trust(&other, directory.path())).await;
    assert!(error.to_string().starts_with("bad signature"), "{error}");
    assert_eq!(contents(directory.path()), BTreeMap::new());
}

#[tokio::test]
async fn a_root_that_is_none_is_told() {
    let store = store();
    let mut root = store.first_root();
    let given = |root: &[u8]| Trust {
        anchor: Anchor::Given(root.to_vec()),
        ..MemorySource::new(&Arc::new(store.clone())).trust()
    };
    let error = refusal(&store, &given(b"-----BEGIN PUBLIC KEY-----")).await;
    assert!(matches!(error, TrustError::Root(_)), "{error}");
    tamper::flip(&mut root);
    let error = refusal(&store, &given(&root)).await;
    assert!(matches!(error, TrustError::RootSignature(_)), "{error}");
}
