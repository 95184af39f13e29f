//! The least versions that machines are told to take: never more than the store offers, and no less
//! after any change of it.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use cpio::newc::Reader;
use image_format::minimum::{Below, MINIMUM_IN_GUEST, MINIMUM_PATH, Minimum, Offered, Reach, keys};
use image_store::gc::remove::{Removal, remove};
use image_store::gc::{GcConfig, Mode, collect};
use image_store::trust::keys::RoleType;
use image_store::{KeyRing, Retagging, Store, TagChange};

use crate::roots::{rotate, store_with_image};
use crate::{Scratch, disk, publish, ring, signer};

/// Reads the initrd of the store at `root` as a kernel does, if there is one.
pub(crate) fn minimum_of(root: &Path) -> Option<Minimum> {
    let initrd = std::fs::read(root.join(MINIMUM_PATH)).ok()?;
    let mut rest = &initrd[..];
    loop {
        let mut file = Reader::new(rest).unwrap();
        if format!("/{}", file.entry().name()) == MINIMUM_IN_GUEST {
            let mut document = Vec::new();
            file.read_to_end(&mut document).unwrap();
            return Some(Minimum::decode(&document).unwrap());
        }
        rest = file.finish().unwrap();
    }
}

/// What the store offers to machines that trust its first root.
pub(crate) async fn offered(store: &Store) -> Offered {
    let trusted = ring(store).root().unwrap();
    let current = store.current(&trusted).await.unwrap();
    let root = &current.root.signed;
    Offered {
        root: root.version.get(),
        timestamp: current.timestamp.signed.version.get(),
        snapshot: current.snapshot.signed.version.get(),
        targets: current.targets.signed.version.get(),
        keys: keys(
            &root.roles[&RoleType::Timestamp].keyids,
            &root.roles[&RoleType::Snapshot].keyids,
        ),
    }
}

/// Checks that the initrd says just what the store offers.
async fn assert_current(store: &Store, what: &str) {
    let minimum = minimum_of(store.root()).unwrap();
    let Offered {
        root,
        timestamp,
        snapshot,
        targets,
        keys,
    } = offered(store).await;
    let expected = Minimum {
        root,
        timestamp,
        snapshot,
        targets,
        keys: Some(keys),
        written: Some(1_700_000_000),
    };
    assert_eq!(minimum, expected, "{what}");
}

async fn retag(store: &Store, ring: &KeyRing, tag: &str, change: TagChange) {
    let retagging = Retagging {
        name: "a".parse().unwrap(),
        tag: tag.parse().unwrap(),
        change,
    };
    retagging.commit(store, &signer(ring)).await.unwrap();
}

/// Removes all of `b`, and deletes what only it needed.
async fn remove_and_sweep(store: &Store, ring: &KeyRing) {
    let wanted = |name: &image_format::ImageName| (name.as_str() == "b").then_some(Removal::All);
    let removed = remove(store, &signer(ring), wanted, Mode::Sweep).await;
    assert_eq!(removed.unwrap().len(), 1);
    assert_current(store, "remove").await;
    let before = offered(store).await;
    let config = GcConfig {
        grace: Duration::ZERO,
        mode: Mode::Sweep,
    };
    for _ in 0..2 {
        collect(store, &signer(ring), config).await.unwrap();
    }
    let after = offered(store).await;
    assert!(after.timestamp > before.timestamp, "an index was rewritten");
    assert_current(store, "collect").await;
}

#[tokio::test]
async fn the_least_versions_are_those_of_the_store_after_every_change() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    assert_current(&store, "publish").await;
    publish(&store, "b", &disk(3, 2)).await.unwrap();
    assert_current(&store, "another publish").await;
    let ring = ring(&store);
    let to = "a@1".parse().unwrap();
    retag(&store, &ring, "stable", TagChange::Set { to }).await;
    assert_current(&store, "tag").await;
    retag(&store, &ring, "stable", TagChange::Delete).await;
    assert_current(&store, "a deleted tag").await;
    remove_and_sweep(&store, &ring).await;
    signer(&ring).refresh(&store).await.unwrap();
    assert_current(&store, "refresh").await;
    rotate(&store, &ring, &[RoleType::Timestamp]).await;
    assert_current(&store, "a rotation").await;
    rotate(&store, &ring, &[RoleType::Root]).await;
    assert_current(&store, "a root that changes no other key").await;
}

#[tokio::test]
async fn a_publish_of_what_is_there_brings_back_lost_least_versions() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    std::fs::remove_file(scratch.root().join(MINIMUM_PATH)).unwrap();
    publish(&store, "a", &disk(1, 2)).await.unwrap();
    assert_current(&store, "the same publish").await;
}

/// A thief used up numbers, and what machines were told then is still on some local disk.
#[tokio::test]
async fn what_a_machine_was_told_locks_it_out_of_no_store_that_was_repaired() {
    for role in [RoleType::Timestamp, RoleType::Snapshot] {
        let scratch = Scratch::new();
        let (store, _) = store_with_image(&scratch).await;
        let thief = scratch.copy();
        let copy = thief.store().await;
        for number in 0..4 {
            publish(&copy, "evil", &disk(100 + number, 2))
                .await
                .unwrap();
        }
        let told = minimum_of(&thief.root()).unwrap();
        let judged = told.judge(&offered(&store).await);
        assert!(
            matches!(
                judged,
                Err(Below {
                    role: "timestamp",
                    ..
                })
            ),
            "{judged:?}"
        );
        let before = offered(&store).await;
        rotate(&store, &ring(&store), &[role]).await;
        assert_eq!(told.judge(&offered(&store).await), Ok(Reach::RootOnly));
        let repaired = minimum_of(&scratch.root()).unwrap();
        let judged = repaired.judge(&before);
        assert!(
            matches!(judged, Err(Below { role: "root", .. })),
            "{judged:?}"
        );
    }
}
