//! Trust on first use: asked for, remembered, and never given twice.

use super::{
    Anchor, Arc, MemorySource, OpenError, Path, Release, Store, Trust, TrustError, contents, fs,
    open_store, refusal, trust, try_open,
};

fn with(anchor: Anchor, store: &Store, state: &Path) -> Trust {
    Trust {
        anchor,
        ..trust(store, state)
    }
}

#[tokio::test]
async fn the_first_root_is_remembered_and_another_is_refused_later() {
    let state = tempfile::tempdir().unwrap();
    let (store, impostor) = (super::store(), super::store());
    let first_use = with(Anchor::FirstUse, &store, state.path());
    open_store(&store, &first_use).await.unwrap();
    let remembered = with(Anchor::Remembered, &store, state.path());
    for trust in [&first_use, &remembered] {
        let error = refusal(&impostor, trust).await;
        assert!(matches!(error, TrustError::Signature { .. }), "{error}");
        let source = MemorySource::new(&Arc::new(store.clone()));
        try_open(&source, trust).await.unwrap();
        let asked = |path: &str| source.requests().iter().any(|r| r.path == path);
        assert!(!asked("metadata/1.root.json"));
    }
}

#[tokio::test]
async fn a_first_use_follows_new_keys_and_notices_a_rollback() {
    let state = tempfile::tempdir().unwrap();
    let old = super::store();
    let first_use = with(Anchor::FirstUse, &old, state.path());
    open_store(&old, &first_use).await.unwrap();
    let mut publisher = old.publisher.clone();
    publisher.rotate(&["root", "targets"]);
    let new = old.signed(&publisher, Release::number(2));
    open_store(&new, &first_use).await.unwrap();
    let back = old.signed(&publisher, Release::number(1));
    let error = refusal(&back, &first_use).await;
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
}

#[tokio::test]
async fn a_first_use_that_fails_is_no_first_use() {
    let state = tempfile::tempdir().unwrap();
    let (store, impostor) = (super::store(), super::store());
    let first_use = with(Anchor::FirstUse, &store, state.path());
    let mut broken = impostor.clone();
    broken
        .files
        .insert("metadata/1.targets.json".to_owned(), "{}".into());
    refusal(&broken, &first_use).await;
    assert!(contents(state.path()).is_empty());
    open_store(&store, &first_use).await.unwrap();
}

#[tokio::test]
async fn nobody_is_trusted_unasked() {
    let state = tempfile::tempdir().unwrap();
    let store = super::store();
    let nobody = with(Anchor::Remembered, &store, state.path());
    let told = "nothing says whom to trust for http://store/: give --root root.json (the publisher has it beside the signing keys), or --trust-on-first-use";
    for state in [nobody.state.clone(), None] {
        let nobody = Trust {
            state,
            ..nobody.clone()
        };
        let source = MemorySource::new(&Arc::new(store.clone()));
        let error = try_open(&source, &nobody).await.unwrap_err();
        assert_eq!(error.to_string(), told);
        assert!(source.requests().is_empty());
    }
}

#[tokio::test]
async fn a_first_use_without_a_memory_is_refused() {
    let store = super::store();
    let trust = Trust {
        state: None,
        ..with(Anchor::FirstUse, &store, Path::new("/"))
    };
    let error = refusal(&store, &trust).await;
    assert!(matches!(error, TrustError::NoMemory), "{error}");
}

#[tokio::test]
async fn a_first_root_is_number_one() {
    let state = tempfile::tempdir().unwrap();
    let mut store = super::store();
    store.publisher.rotate(&[]);
    let second = store.publisher.roots[1].clone();
    store
        .files
        .insert("metadata/1.root.json".to_owned(), second);
    let first_use = with(Anchor::FirstUse, &store, state.path());
    let error = refusal(&store, &first_use).await;
    assert!(matches!(error, TrustError::Mismatch { .. }), "{error}");
    store.files.remove("metadata/1.root.json");
    let error = open_store(&store, &first_use).await.unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    assert!(fs::read_dir(state.path()).unwrap().next().is_none());
}
