//! Attacks by name, as the TUF specification (1.0, section 1.5.2) lists them, some of them with
//! stolen keys; and what keys that change must not break.
//!
//! | attack | tests |
//! | --- | --- |
//! | arbitrary software | `tamper`, `the_root_of_another_store_opens_nothing` |
//! | rollback | `rollback_…` here and in [`super`], `rollback_below_what_was_told_is_refused` |
//! | indefinite freeze | `freeze_…` in [`super`], `a_mirror_that_is_frozen_or_went_back_blocks_no_good_one` |
//! | endless data | the column `Endless` of `tamper` |
//! | slow retrieval | `slow_retrieval_ends_though_the_line_is_never_silent` |
//! | extraneous dependencies | none: an image depends on nothing |
//! | mix and match | `mix_and_match_of_states_is_refused` |
//! | wrong software | the column `Swap` of `tamper`; a catalogue and a manifest say whose they are |
//! | malicious mirrors | the second half of each cell of `tamper`, `mirrors` |
//! | vulnerability to key compromise | `key_compromise_…`, `fast_forward_…` |

use image_format::digest::Digest;
use image_format::minimum;
use tough::schema::{RoleType, Root, Signed};

use super::{
    Arc, MemorySource, Minimum, Release, Store, Trust, TrustError, contents, open_store, refusal,
    store, trust, try_open,
};

fn assert_rollback(error: &TrustError, role: &str) {
    let begin = format!("rollback: the store offers {role} metadata");
    assert!(error.to_string().starts_with(&begin), "{error}");
}

fn assert_bad_signature(error: &TrustError) {
    assert!(matches!(error, TrustError::Signature { .. }), "{error}");
}

/// Stolen keys for timestamp and snapshot sign that which was there before as new.
#[tokio::test]
async fn rollback_of_parts_under_a_new_timestamp_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let store = store();
    let trust = trust(&store, state.path());
    let at = |targets, snapshot, timestamp| {
        let numbers = Release {
            targets,
            snapshot,
            timestamp,
            ..Release::number(1)
        };
        store.signed(&store.publisher, numbers)
    };
    open_store(&at(5, 5, 5), &trust).await.unwrap();
    assert_rollback(&refusal(&at(5, 4, 6), &trust).await, "snapshot");
    assert_rollback(&refusal(&at(4, 6, 6), &trust).await, "targets");
    open_store(&at(5, 5, 6), &trust).await.unwrap();
}

/// Whoever tidies up locks takes no memory away.
#[tokio::test]
async fn what_was_seen_is_known_without_its_lock() {
    let state = tempfile::tempdir().unwrap();
    let old = store();
    let trust = trust(&old, state.path());
    let new = old.signed(&old.publisher, Release::number(2));
    open_store(&new, &trust).await.unwrap();
    for entry in std::fs::read_dir(state.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path().join("lock")).unwrap();
    }
    assert_rollback(&refusal(&old, &trust).await, "timestamp");
}

/// An old snapshot under a new timestamp, and the other way round.
#[tokio::test]
async fn mix_and_match_of_states_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let old = store();
    let new = old.signed(&old.publisher, Release::number(2));
    let trust = trust(&old, state.path());
    let mut mixed = new.clone();
    let snapshot = old.files["metadata/1.snapshot.json"].clone();
    mixed
        .files
        .insert("metadata/2.snapshot.json".to_owned(), snapshot);
    let error = refusal(&mixed, &trust).await;
    assert!(matches!(error, TrustError::Mismatch { .. }), "{error}");
    let mut mixed = new;
    let timestamp = old.files["metadata/timestamp.json"].clone();
    mixed
        .files
        .insert("metadata/timestamp.json".to_owned(), timestamp);
    let error = refusal(&mixed, &trust).await;
    assert!(matches!(error, TrustError::Fetch { .. }), "{error}");
    assert!(contents(state.path()).is_empty());
}

/// A thief of the timestamp key uses up the numbers; new keys make the store usable again, and what
/// they sign does not go back either (specification, 5.3.11).
#[tokio::test]
async fn fast_forward_is_undone_by_new_keys() {
    for role in ["timestamp", "snapshot"] {
        let state = tempfile::tempdir().unwrap();
        let honest = store();
        let trust = trust(&honest, state.path());
        let ahead = Release {
            targets: 1,
            ..Release::number(u64::MAX - 1)
        };
        open_store(&honest.signed(&honest.publisher, ahead), &trust)
            .await
            .unwrap();
        let again = honest.signed(&honest.publisher, Release::number(2));
        assert_rollback(&refusal(&again, &trust).await, "timestamp");
        let mut publisher = honest.publisher.clone();
        publisher.rotate(&[role]);
        for number in [3, 4] {
            let mended = honest.signed(&publisher, Release::number(number));
            open_store(&mended, &trust).await.unwrap();
        }
        let back = honest.signed(&publisher, Release::number(3));
        assert_rollback(&refusal(&back, &trust).await, "timestamp");
        // A client that is given the first root anew at each start must not forget either.
        assert_rollback(&refusal(&back, &trust).await, "timestamp");
    }
}

/// All keys changed, twice.
fn rotated() -> (Store, Store) {
    let first = store();
    let mut publisher = first.publisher.clone();
    for _ in 0..2 {
        publisher.rotate(&["root", "targets", "snapshot", "timestamp"]);
    }
    let third = first.signed(&publisher, Release::number(2));
    (first, third)
}

#[tokio::test]
async fn a_client_with_the_first_root_follows_to_the_third() {
    let state = tempfile::tempdir().unwrap();
    let (first, third) = rotated();
    let trust = trust(&first, state.path());
    for asked in [&["2", "3", "4"][..], &["4"]] {
        let source = MemorySource::new(&Arc::new(third.clone()));
        try_open(&source, &trust).await.unwrap();
        let requests = source.requests();
        let roots: Vec<_> = requests
            .iter()
            .filter_map(|request| request.path.strip_suffix(".root.json"))
            .collect();
        let expected: Vec<_> = asked.iter().map(|n| format!("metadata/{n}")).collect();
        assert_eq!(roots, expected);
    }
}

#[tokio::test]
async fn key_compromise_ends_with_a_new_root_that_cannot_be_skipped() {
    let state = tempfile::tempdir().unwrap();
    let (first, third) = rotated();
    let trust = trust(&first, state.path());
    let mut skipping = third.clone();
    let root = third.files["metadata/3.root.json"].clone();
    skipping
        .files
        .insert("metadata/2.root.json".to_owned(), root);
    assert_bad_signature(&refusal(&skipping, &trust).await);
    // The old keys' metadata beside the new roots.
    let mut stolen = third.clone();
    for (path, bytes) in &first.files {
        stolen.files.insert(path.clone(), bytes.clone());
    }
    assert_bad_signature(&refusal(&stolen, &trust).await);
    assert!(contents(state.path()).is_empty());
    open_store(&third, &trust).await.unwrap();
    // Who hides the new roots has only the old keys to sign with.
    assert_bad_signature(&refusal(&first, &trust).await);
}

/// A machine without a memory was told at its start what there was at least.
#[tokio::test]
async fn rollback_below_what_was_told_is_refused() {
    let store = store();
    let at = |number| store.signed(&store.publisher, Release::number(number));
    let trust = |minimum| Trust {
        state: None,
        minimum: Some(minimum),
        ..trust(&store, "/nowhere".as_ref())
    };
    let minimum = Minimum {
        root: 1,
        timestamp: 5,
        snapshot: 5,
        targets: 5,
        keys: None,
        written: None,
    };
    open_store(&at(5), &trust(minimum)).await.unwrap();
    open_store(&at(6), &trust(minimum)).await.unwrap();
    let told = refusal(&at(4), &trust(minimum)).await.to_string();
    let begin = "rollback: the store offers timestamp metadata of version 4, but this machine was told to take none below 5";
    assert!(told.starts_with(begin), "{told}");
    for (minimum, role) in [
        (Minimum { root: 2, ..minimum }, "root"),
        (
            Minimum {
                snapshot: 6,
                ..minimum
            },
            "snapshot",
        ),
        (
            Minimum {
                targets: 6,
                ..minimum
            },
            "targets",
        ),
    ] {
        let error = refusal(&at(5), &trust(minimum)).await;
        assert!(
            matches!(&error, TrustError::BelowMinimum(below) if below.role == role),
            "{error}"
        );
    }
}

/// The keys of a root, as a minimum names them.
fn keys_of(root: &[u8]) -> Digest {
    let root: Signed<Root> = serde_json::from_slice(root).unwrap();
    let ids = |role| &root.signed.roles[&role].keyids[..];
    minimum::keys(ids(RoleType::Timestamp), ids(RoleType::Snapshot))
}

/// What a machine was told while a thief had used up the numbers, or before keys changed, is not
/// held against what other keys sign; but no root goes back, and no other number.
#[tokio::test]
async fn what_was_told_before_new_keys_locks_no_machine_out() {
    let honest = store();
    let trust = |minimum| Trust {
        state: None,
        minimum: Some(minimum),
        ..trust(&honest, "/nowhere".as_ref())
    };
    let told = |root, number, bytes: &[u8]| Minimum {
        root,
        timestamp: number,
        snapshot: number,
        targets: number,
        keys: Some(keys_of(bytes)),
        written: None,
    };
    let ahead = told(1, u64::MAX - 1, &honest.publisher.roots[0]);
    let refused = |error: &TrustError, at| {
        let TrustError::BelowMinimum(below) = error else {
            panic!("{error}");
        };
        assert_eq!(below.role, at);
    };
    refused(&refusal(&honest, &trust(ahead)).await, "timestamp");
    for role in ["timestamp", "snapshot"] {
        let mut publisher = honest.publisher.clone();
        publisher.rotate(&["root"]);
        let renewed = honest.signed(&publisher, Release::number(2));
        refused(&refusal(&renewed, &trust(ahead)).await, "timestamp");
        publisher.rotate(&[role]);
        let mended = honest.signed(&publisher, Release::number(3));
        open_store(&mended, &trust(ahead)).await.unwrap();
        let now = told(3, 3, &publisher.roots[2]);
        open_store(&mended, &trust(now)).await.unwrap();
        refused(&refusal(&renewed, &trust(now)).await, "root");
        let back = honest.signed(&publisher, Release::number(2));
        refused(&refusal(&back, &trust(now)).await, "timestamp");
    }
}
