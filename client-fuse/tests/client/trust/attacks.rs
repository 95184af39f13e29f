//! Attacks by name, as the TUF specification lists them, some of them with stolen keys; and what
//! keys that change must not break.

use super::{
    Arc, MemorySource, Release, Store, TrustError, contents, open_store, refusal, store, trust,
    try_open,
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
async fn old_parts_signed_as_new_are_a_rollback() {
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

/// An old snapshot under a new timestamp, and the other way round.
#[tokio::test]
async fn states_that_never_were_together_are_refused() {
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
/// they sign does not go back either.
#[tokio::test]
async fn numbers_that_were_used_up_are_forgotten_with_the_stolen_key() {
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
async fn no_root_is_skipped_and_no_old_key_signs() {
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
