//! Who may sign changes: rotations, thresholds, thieves, and processes that die half-way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_store::trust::TrustError;
use image_store::trust::keys::{ROLES, RoleType};
use image_store::trust::root::{RootDocument, RootError};
use image_store::trust::rotate::RootPublished;
use image_store::{KeyRing, Store, StoreError};

use tough::{ExpirationEnforcement, FilesystemTransport, RepositoryLoader};
use url::Url;

use crate::killer::{Mortal, Side, Trigger};
use crate::minimum::{minimum_of, offered};
use crate::{Scratch, disk, publication, publish, read_back, ring, signer, write};

/// Machines that trust the first root still see this image.
async fn opens_from_the_first_root(scratch: &Scratch, trusted: &[u8]) -> bool {
    let store = Store::open(&scratch.root()).await.unwrap();
    let Ok(current) = store.current(trusted).await else {
        return false;
    };
    let names = store.names_of(&current).await.unwrap();
    names.names.keys().any(|name| name.as_str() == "a")
}

/// A store with one image, and its first root.
pub(crate) async fn store_with_image(scratch: &Scratch) -> (Store, Vec<u8>) {
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 2)).await.unwrap();
    let trusted = ring(&store).root().unwrap();
    (store, trusted)
}

/// The next root, in which new keys of the ring stand for the old ones of these roles.
async fn replaced(store: &Store, ring: &KeyRing, roles: &[RoleType]) -> RootDocument {
    let (current, mut next) = signer(ring).next_root(store).await.unwrap();
    for role in roles {
        next.add(*role, &ring.make(*role).unwrap().public).unwrap();
        next.remove(*role, current.rule(*role).keys[0]).unwrap();
    }
    ring.sign_root(&mut next).await.unwrap();
    next
}

pub(crate) async fn rotate(store: &Store, ring: &KeyRing, roles: &[RoleType]) {
    let next = replaced(store, ring, roles).await;
    let published = signer(ring).publish_root(store, &next).await.unwrap();
    assert_eq!(published, RootPublished::Now);
    let past = signer(ring).past_roots(store, &next).await.unwrap();
    assert_eq!(
        ring.retire_removed(&past, &next).unwrap().len(),
        roles.len()
    );
}

fn refusal(result: Result<RootPublished, StoreError>) -> RootError {
    match result {
        Err(StoreError::Trust(TrustError::Rule(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_machine_with_the_first_root_follows_every_rotation() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let ring = ring(&store);
    for (version, roles) in [
        (2, &[RoleType::Timestamp][..]),
        (3, &[RoleType::Targets, RoleType::Snapshot]),
        (4, &[RoleType::Root]),
        (5, &ROLES),
    ] {
        rotate(&store, &ring, roles).await;
        assert!(opens_from_the_first_root(&scratch, &trusted).await);
        let current = store.current(&trusted).await.unwrap();
        assert_eq!(current.root.signed.version.get(), version);
        publish(&store, &format!("v{version}"), &disk(9, 2))
            .await
            .unwrap();
        signer(&ring).refresh(&store).await.unwrap();
        assert_eq!(read_back(&scratch.root(), "a").await, disk(1, 2));
    }
    assert_eq!(ring.held().unwrap().len(), ROLES.len());
}

#[tokio::test]
async fn a_root_that_changes_no_online_key_signs_nothing_again() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    let before = scratch.files().len();
    rotate(&store, &ring(&store), &[RoleType::Root]).await;
    assert_eq!(scratch.files().len(), before + 1);
}

#[tokio::test]
async fn what_a_stolen_key_signs_after_its_rotation_is_refused() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let thief = scratch.copy();
    let online = [RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];
    rotate(&store, &ring(&store), &online).await;
    // The thief publishes so often that every number is higher than ours.
    let copy = thief.store().await;
    for number in 0..5 {
        publish(&copy, "evil", &disk(100 + number, 2))
            .await
            .unwrap();
    }
    let root = scratch.root();
    for (path, bytes) in thief.files() {
        let to = root.join(path.strip_prefix(thief.root()).unwrap());
        if !to.exists() || to.ends_with("timestamp.json") {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, bytes).unwrap();
        }
    }
    assert!(matches!(
        store.current(&trusted).await,
        Err(StoreError::Trust(TrustError::Load(_)))
    ));
}

/// Lets a machine look at the store, which remembers in `memory` what it saw before.
async fn look(scratch: &Scratch, trusted: &[u8], memory: &Path) -> Result<(), String> {
    let url = |name| Url::from_directory_path(scratch.root().join(name)).unwrap();
    RepositoryLoader::new(&trusted, url("metadata"), url("targets"))
        .transport(FilesystemTransport)
        .datastore(memory)
        .expiration_enforcement(ExpirationEnforcement::Unsafe)
        .load()
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_machine_that_a_thief_sent_far_ahead_comes_back_after_the_rotation() {
    for roles in [
        &[RoleType::Timestamp][..],
        &[RoleType::Snapshot],
        &[RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp],
    ] {
        let scratch = Scratch::new();
        let (store, trusted) = store_with_image(&scratch).await;
        let thief = scratch.copy();
        let copy = thief.store().await;
        for number in 0..4 {
            publish(&copy, "evil", &disk(100 + number, 2))
                .await
                .unwrap();
        }
        let memory = tempfile::tempdir().unwrap();
        let sees = async |scratch| look(scratch, &trusted, memory.path()).await;
        sees(&thief).await.unwrap();
        let behind = sees(&scratch).await.unwrap_err();
        assert!(behind.contains("version"), "{behind}");
        rotate(&store, &ring(&store), roles).await;
        sees(&scratch).await.unwrap();
        publish(&store, "b", &disk(3, 2)).await.unwrap();
        sees(&scratch).await.unwrap();
    }
}

/// A ring in a directory of its own, with a root key.
fn holder(scratch: &Scratch, name: &str) -> KeyRing {
    let directory = scratch.root().with_file_name(name);
    let ring = KeyRing::open_or_empty(&directory).unwrap();
    ring.make(RoleType::Root).unwrap();
    ring
}

/// Makes the root one of three holders, two of whom must sign: ours, and these.
async fn two_of_three(store: &Store, others: [&KeyRing; 2]) {
    let ring = ring(store);
    let (_, mut next) = signer(&ring).next_root(store).await.unwrap();
    for other in others {
        next.add(RoleType::Root, &other.held().unwrap()[0].public)
            .unwrap();
    }
    next.set_threshold(RoleType::Root, 2.try_into().unwrap())
        .unwrap();
    let mut copy = next.clone();
    ring.sign_root(&mut next).await.unwrap();
    let refused = refusal(signer(&ring).publish_root(store, &next).await);
    assert!(
        matches!(
            refused,
            RootError::TooFewSignatures {
                valid: 1,
                by: 2,
                ..
            }
        ),
        "one of two new: {refused}"
    );
    others[0].sign_root(&mut copy).await.unwrap();
    next.merge(&copy).unwrap();
    signer(&ring).publish_root(store, &next).await.unwrap();
}

#[tokio::test]
async fn two_of_three_holders_change_the_root_whichever_two() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let (bob, carol) = (holder(&scratch, "bob"), holder(&scratch, "carol"));
    two_of_three(&store, [&bob, &carol]).await;
    let ring = ring(&store);
    for pair in [[&bob, &carol], [&ring, &carol], [&bob, &ring]] {
        let (_, mut next) = signer(&ring).next_root(&store).await.unwrap();
        for holder in pair {
            // Each gets a file and gives one back.
            let mut file = RootDocument::decode(&next.encode().unwrap()).unwrap();
            holder.sign_root(&mut file).await.unwrap();
            next = file;
        }
        signer(&ring).publish_root(&store, &next).await.unwrap();
        assert!(opens_from_the_first_root(&scratch, &trusted).await);
    }
    publish(&store, "b", &disk(3, 2)).await.unwrap();
}

#[tokio::test]
async fn too_few_signatures_change_nothing() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    let (bob, carol) = (holder(&scratch, "bob"), holder(&scratch, "carol"));
    two_of_three(&store, [&bob, &carol]).await;
    let ring = ring(&store);
    let before = scratch.files();
    // One signature twice, and one of a stranger, are still one.
    let mut next = replaced(&store, &ring, &[RoleType::Targets]).await;
    ring.sign_root(&mut next).await.unwrap();
    holder(&scratch, "stranger")
        .sign_root(&mut next)
        .await
        .unwrap();
    assert!(matches!(
        refusal(signer(&ring).publish_root(&store, &next).await),
        RootError::TooFewSignatures {
            valid: 1,
            threshold: 2,
            ..
        }
    ));
    assert!(scratch.files() == before, "the store changed");
}

#[tokio::test]
async fn a_root_that_only_its_own_keys_signed_is_refused_by_all() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let ring = ring(&store);
    let thief = holder(&scratch, "thief");
    let (current, mut next) = signer(&ring).next_root(&store).await.unwrap();
    next.add(RoleType::Root, &thief.held().unwrap()[0].public)
        .unwrap();
    next.remove(RoleType::Root, current.rule(RoleType::Root).keys[0])
        .unwrap();
    thief.sign_root(&mut next).await.unwrap();
    let before = scratch.files();
    assert!(matches!(
        refusal(signer(&ring).publish_root(&store, &next).await),
        RootError::TooFewSignatures {
            valid: 0,
            by: 1,
            ..
        }
    ));
    assert!(scratch.files() == before, "the store changed");
    // Machines refuse it, too, if it is put there by force.
    let path = scratch.root().join("metadata/2.root.json");
    std::fs::write(&path, next.encode().unwrap()).unwrap();
    assert!(store.current(&trusted).await.is_err());
    std::fs::remove_file(path).unwrap();
    assert!(opens_from_the_first_root(&scratch, &trusted).await);
}

#[tokio::test]
async fn a_root_that_skips_a_version_or_comes_too_late_is_refused() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    let ring = ring(&store);
    let late = replaced(&store, &ring, &[RoleType::Targets]).await;
    let first = replaced(&store, &ring, &[]).await;
    let text = String::from_utf8(first.encode().unwrap()).unwrap();
    let skipping = text.replace("\"version\": 2", "\"version\": 3");
    let mut skipping = RootDocument::decode(skipping.as_bytes()).unwrap();
    ring.sign_root(&mut skipping).await.unwrap();
    let refused = |result| matches!(refusal(result), RootError::Version { .. });
    assert!(refused(signer(&ring).publish_root(&store, &skipping).await));
    signer(&ring).publish_root(&store, &first).await.unwrap();
    assert!(refused(signer(&ring).publish_root(&store, &late).await));
    let again = signer(&ring).publish_root(&store, &first).await.unwrap();
    assert_eq!(again, RootPublished::Before);
}

#[tokio::test]
async fn a_changed_draft_loses_its_signatures_and_an_unsound_one_is_refused() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    let ring = ring(&store);
    let mut next = replaced(&store, &ring, &[RoleType::Targets]).await;
    assert_eq!(next.signers().len(), 1);
    next.set_threshold(RoleType::Targets, 2.try_into().unwrap())
        .unwrap();
    assert_eq!(next.signers().len(), 0);
    assert!(matches!(
        next.check_sound(),
        Err(RootError::TooFewKeys {
            threshold: 2,
            keys: 1,
            ..
        })
    ));
    ring.sign_root(&mut next).await.unwrap();
    assert!(matches!(
        refusal(signer(&ring).publish_root(&store, &next).await),
        RootError::TooFewKeys { .. }
    ));
}

#[tokio::test]
async fn with_a_lost_key_one_root_is_refused_and_two_do_it() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let ring = ring(&store);
    let lost = ring.held().unwrap().remove(1);
    std::fs::remove_file(&lost.path).unwrap();
    let before = scratch.files();
    let at_once = replaced(&store, &ring, &[RoleType::Targets]).await;
    assert!(matches!(
        refusal(signer(&ring).publish_root(&store, &at_once).await),
        RootError::Unbridged { role } if role == "targets"
    ));
    assert!(scratch.files() == before, "the store changed");
    let (_, mut adds) = signer(&ring).next_root(&store).await.unwrap();
    adds.add(RoleType::Targets, &ring.held().unwrap()[1].public)
        .unwrap();
    ring.sign_root(&mut adds).await.unwrap();
    signer(&ring).publish_root(&store, &adds).await.unwrap();
    assert!(opens_from_the_first_root(&scratch, &trusted).await);
    let (_, mut removes) = signer(&ring).next_root(&store).await.unwrap();
    removes.remove(RoleType::Targets, lost.id()).unwrap();
    ring.sign_root(&mut removes).await.unwrap();
    signer(&ring).publish_root(&store, &removes).await.unwrap();
    assert!(opens_from_the_first_root(&scratch, &trusted).await);
    publish(&store, "b", &disk(3, 2)).await.unwrap();
}

#[tokio::test]
async fn the_timestamp_key_alone_refreshes_and_publishes_nothing() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let server = scratch.root().with_file_name("server-keys");
    let ring = ring(&store);
    std::fs::create_dir(&server).unwrap();
    for name in ["root.json", "timestamp.der"] {
        std::fs::copy(ring.directory().join(name), server.join(name)).unwrap();
    }
    let server = KeyRing::open(&server).unwrap();
    let before = store.current(&trusted).await.unwrap();
    let mut later = signer(&server);
    later.now += 1000 * 24 * 60 * 60;
    let expiries = later.refresh(&store).await.unwrap();
    let after = store.current(&trusted).await.unwrap();
    assert_eq!(after.snapshot, before.snapshot);
    assert_eq!(after.expiries(), expiries);
    assert!(expiries.timestamp > before.expiries().timestamp);
    let before = scratch.files();
    let written = write(&store, &disk(5, 2)).await.unwrap();
    let publication = publication("b", written);
    let refused = publication.commit(&store, &signer(&server)).await;
    let message = refused.unwrap_err().to_string();
    assert!(message.starts_with("too few targets keys are here: 0 of the 1"));
    let metadata = |path: &&PathBuf| path.parent().unwrap().ends_with("metadata");
    let after = scratch.files();
    assert!(
        before
            .keys()
            .filter(metadata)
            .eq(after.keys().filter(metadata))
    );
    assert!(opens_from_the_first_root(&scratch, &trusted).await);
}

#[tokio::test]
async fn a_refresh_signs_targets_again_only_when_half_their_time_is_over() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let ring = ring(&store);
    let before = store.current(&trusted).await.unwrap();
    signer(&ring).refresh(&store).await.unwrap();
    let soon = store.current(&trusted).await.unwrap();
    assert_eq!(soon.targets, before.targets);
    assert!(soon.timestamp.signed.version > before.timestamp.signed.version);
    let mut later = signer(&ring);
    later.now += later.lifetimes.targets.as_secs() / 2 + 1;
    let expiries = later.refresh(&store).await.unwrap();
    assert_eq!(
        expiries.targets,
        later.now + later.lifetimes.targets.as_secs()
    );
    let renewed = store.current(&trusted).await.unwrap();
    assert_eq!(
        renewed.targets.signed.targets,
        before.targets.signed.targets
    );
}

/// Lets `act` die at its k-th change of the store, for each k, on both sides of the change; hands
/// each store that is left to `check`, and returns how many there were.
pub(crate) async fn at_each_change<A: AsyncFn(Store, KeyRing)>(
    scratch: &Scratch,
    act: A,
    check: impl AsyncFn(&Scratch),
) -> usize {
    let mut left = 0;
    for at in 1.. {
        for side in [Side::Before, Side::After] {
            let copy = scratch.copy();
            let store = Store::open(&copy.root()).await.unwrap();
            let keys = ring(&store);
            let trigger = Trigger::new(at, side);
            let wrapped = trigger.clone();
            let mortal = store.wrapped(|inner| {
                Arc::new(Mortal {
                    inner,
                    trigger: wrapped,
                })
            });
            let finished = tokio::select! {
                () = act(mortal, keys) => true,
                () = trigger.dead.notified() => false,
            };
            check(&copy).await;
            if finished {
                return left;
            }
            left += 1;
        }
    }
    left
}

#[tokio::test]
async fn a_rotation_that_dies_anywhere_leaves_a_store_that_opens_and_can_be_rotated() {
    let scratch = Scratch::new();
    let (store, trusted) = store_with_image(&scratch).await;
    let next = replaced(&store, &ring(&store), &ROLES).await;
    let act = async |store: Store, ring: KeyRing| {
        signer(&ring).publish_root(&store, &next).await.unwrap();
    };
    let check = async |left: &Scratch| {
        assert!(opens_from_the_first_root(left, &trusted).await);
        let store = Store::open(&left.root()).await.unwrap();
        let told = minimum_of(&left.root()).unwrap();
        assert!(told.judge(&offered(&store).await).is_ok());
        let ring = ring(&store);
        signer(&ring).publish_root(&store, &next).await.unwrap();
        assert!(opens_from_the_first_root(left, &trusted).await);
        publish(&store, "b", &disk(3, 2)).await.unwrap();
    };
    // Targets, snapshot, timestamp, root, least versions; before and after each.
    assert_eq!(at_each_change(&scratch, act, check).await, 10);
}
