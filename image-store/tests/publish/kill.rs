//! Kills what changes a store at every single change, on either side of it. Whatever was visible
//! before is so after, bit for bit; what was begun is done by doing it again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image_store::gc::remove::{Keep, Removal, remove};
use image_store::gc::{GcConfig, Mode, collect};
use image_store::{KeyRing, Store};

use crate::killer::{Mortal, Side, Trigger};
use crate::minimum::{minimum_of, offered};
use crate::{
    Scratch, boot_stored, disk, publication, publish, read, read_back, ring, signer, write,
    write_without,
};

/// What is done to a store, and what it leaves.
struct Case {
    /// What the store shows before, which no kill takes away.
    before: &'static [(&'static str, u8)],
    /// What it shows when it was done.
    after: &'static [(&'static str, u8)],
    /// At least so many changes are made.
    changes: usize,
}

/// The disk of a version in a [`Case`]: those with neighbouring seeds share chunks.
fn content(seed: u8) -> Vec<u8> {
    [disk(201, 3), disk(seed, 3)].concat()
}

/// Does it, dying at each change in turn; after each death checks the store, and does it again.
async fn at_each_change(
    case: &Case,
    prepared: &Scratch,
    operation: impl AsyncFn(Store) -> Result<(), String>,
) {
    let both = [Side::Before, Side::After].map(async |side| {
        let mut at = 1;
        while dies(case, prepared, &operation, at, side).await {
            at += 1;
        }
        assert!(at > case.changes, "{side:?}: only {} changes", at - 1);
    });
    futures_util::future::join_all(both).await;
}

async fn dies(
    case: &Case,
    prepared: &Scratch,
    operation: &impl AsyncFn(Store) -> Result<(), String>,
    at: usize,
    side: Side,
) -> bool {
    let scratch = prepared.copy();
    let trigger = Trigger::new(at, side);
    let mortal = |inner| -> Arc<dyn object_store::ObjectStore> {
        let trigger = trigger.clone();
        Arc::new(Mortal { inner, trigger })
    };
    let store = Store::open(&scratch.root()).await.unwrap().wrapped(mortal);
    let died = tokio::select! {
        biased;
        () = trigger.dead.notified() => true,
        done = operation(store) => {
            done.unwrap();
            false
        }
    };
    let what = format!("killed {side:?} change {at}");
    check(&scratch.root(), case.before, &what).await;
    if died {
        let store = Store::open(&scratch.root()).await.unwrap();
        operation(store)
            .await
            .unwrap_or_else(|error| panic!("{what}, again: {error}"));
    }
    check(&scratch.root(), case.after, &what).await;
    died
}

/// Reads all that must be there as a stranger does, with the metadata held against the root that
/// was kept beside the keys.
async fn check(root: &Path, shown: &[(&str, u8)], what: &str) {
    let store = Store::open(root).await.unwrap();
    if !shown.is_empty() {
        let trusted = KeyRing::open(&root.with_file_name("keys")).unwrap().root();
        store
            .current(&trusted.unwrap())
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    if let Some(told) = minimum_of(root) {
        let judged = told.judge(&offered(&store).await);
        assert!(
            judged.is_ok(),
            "{what}: machines are locked out: {judged:?}"
        );
    }
    for (reference, seed) in shown {
        let got = read(root, &reference.parse().unwrap()).await;
        assert!(
            got.as_ref() == Ok(&content(*seed)),
            "{what}: {reference}: {:?}",
            got.err()
        );
    }
}

async fn publish_one(store: &Store, reference: &str, seed: u8) -> Result<(), String> {
    let done = publish(store, reference, &content(seed)).await;
    done.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_first_publish_dies_at_each_change() {
    let scratch = Scratch::new();
    let store = Store::open_or_create(&scratch.root()).await.unwrap();
    KeyRing::generate(&scratch.root().with_file_name("keys")).unwrap();
    drop(store);
    let case = Case {
        before: &[],
        after: &[("a", 1), ("a@1", 1)],
        changes: 15,
    };
    at_each_change(&case, &scratch, async |store| {
        let ring = ring(&store);
        let signed = signer(&ring).establish(&store).await;
        signed.map_err(|error| error.to_string())?;
        publish_one(&store, "a", 1).await
    })
    .await;
}

#[tokio::test]
async fn a_second_version_dies_at_each_change() {
    let scratch = Scratch::new();
    publish(&scratch.store().await, "a", &content(1))
        .await
        .unwrap();
    let case = Case {
        before: &[("a@1", 1)],
        after: &[("a@1", 1), ("a@2", 3), ("a", 3)],
        changes: 12,
    };
    at_each_change(&case, &scratch, async |store| {
        publish_one(&store, "a", 3).await
    })
    .await;
}

#[tokio::test]
async fn a_revision_dies_at_each_change() {
    let scratch = Scratch::new();
    publish(&scratch.store().await, "a", &content(1))
        .await
        .unwrap();
    let case = Case {
        before: &[("a@1", 1), ("a", 1)],
        after: &[("a@1", 1), ("a", 1), ("a:boots", 1)],
        changes: 8,
    };
    at_each_change(&case, &scratch, async |store| {
        let mut bootable = publication("a:boots", write(&store, &content(1)).await.unwrap());
        bootable.boot = Some(boot_stored(&store).await);
        let ring = ring(&store);
        let done = bootable.commit(&store, &signer(&ring)).await;
        let published = done.map_err(|error| error.to_string())?;
        assert_eq!(published.manifest.revision, 2);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_publish_that_merges_chunk_indexes_dies_at_each_change() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    for number in 0..16 {
        publish_one(&store, &format!("i{number}"), number * 2 + 1)
            .await
            .unwrap();
    }
    let case = Case {
        before: &[("i0", 1), ("i7", 15), ("i15", 31)],
        after: &[("i0", 1), ("i15", 31), ("new", 51)],
        changes: 14,
    };
    at_each_change(&case, &scratch, async |store| {
        publish_one(&store, "new", 51).await?;
        assert_eq!(store.names().await.unwrap().chunk_indexes.len(), 1);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_publish_that_mends_dies_at_each_change() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let written = write(&store, &content(1)).await.unwrap();
    let ring_kept = ring(&store);
    publication("a", written)
        .commit(&store, &signer(&ring_kept))
        .await
        .unwrap();
    publish_one(&store, "b", 3).await.unwrap();
    let lost = write(&store, &content(1)).await.unwrap();
    let lost = lost.known_packs().next().unwrap();
    std::fs::remove_file(scratch.root().join(lost.digest.object_path())).unwrap();
    let case = Case {
        before: &[],
        after: &[("b", 3), ("b@1", 3)],
        changes: 12,
    };
    at_each_change(&case, &scratch, async |store| {
        let gone = [lost.digest];
        let written = write_without(&store, &content(3), &gone, <[u8]>::to_vec)
            .await
            .unwrap();
        let ring = ring(&store);
        let done = publication("b", written)
            .commit(&store, &signer(&ring))
            .await;
        done.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

const SWEEP: GcConfig = GcConfig {
    grace: Duration::ZERO,
    mode: Mode::Sweep,
};

#[tokio::test]
async fn removing_and_collecting_die_at_each_change() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    for seed in [1, 3, 5] {
        publish_one(&store, "a", seed).await.unwrap();
    }
    publish_one(&store, "b", 7).await.unwrap();
    let case = Case {
        before: &[("a@3", 5), ("a", 5), ("b", 7)],
        after: &[("a@3", 5), ("a", 5), ("b", 7)],
        changes: 15,
    };
    at_each_change(&case, &scratch, async |store| {
        let ring = ring(&store);
        let keep = Keep {
            newest: Some(std::num::NonZeroUsize::MIN),
            since: None,
        };
        let old = |_: &_| Some(Removal::Old(keep));
        let removed = remove(&store, &signer(&ring), old, Mode::Sweep).await;
        removed.map_err(|error| error.to_string())?;
        let done = collect(&store, &signer(&ring), SWEEP).await;
        done.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_sweep_left_known_is_there() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    for seed in [1, 3] {
        publish_one(&store, "a", seed).await.unwrap();
    }
    let prepared = ring(&store);
    let first = |_: &_| Some(Removal::Versions(vec!["1".parse().unwrap()]));
    remove(&store, &signer(&prepared), first, Mode::Sweep)
        .await
        .unwrap();
    for side in [Side::Before, Side::After] {
        for at in 1.. {
            let scratch = scratch.copy();
            let trigger = Trigger::new(at, side);
            let (inner, mortal) = (Store::open(&scratch.root()).await.unwrap(), trigger.clone());
            let store = inner.wrapped(|inner| {
                Arc::new(Mortal {
                    inner,
                    trigger: mortal,
                })
            });
            let ring = ring(&store);
            let signer = signer(&ring);
            let died = tokio::select! {
                biased;
                () = trigger.dead.notified() => true,
                done = collect(&store, &signer, SWEEP) => {
                    done.unwrap();
                    false
                }
            };
            // The chunks of the version that went are known or not: never known and gone.
            let store = Store::open(&scratch.root()).await.unwrap();
            publish_one(&store, "back", 1).await.unwrap();
            assert_eq!(
                read_back(&scratch.root(), "back").await,
                content(1),
                "{side:?} {at}"
            );
            if !died {
                assert!(at > 5, "{at}");
                break;
            }
        }
    }
}
