//! What is taken of a proposal, and what is refused, on a store in a directory.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use image_format::minimum::MINIMUM_PATH;
use tough::editor::signed::SignedRole;
use tough::schema::{KeyHolder, RoleType};

use super::*;
use crate::trust::keys::KeyRing;
use crate::trust::sign::{Lifetimes, Signer};

const NOW: u64 = 1_700_000_000;

fn signer(keys: &KeyRing) -> Signer<'_> {
    Signer {
        keys,
        lifetimes: Lifetimes::DEFAULT,
        now: NOW,
    }
}

/// A store and the one that follows it, both without images.
struct Pair {
    scratch: tempfile::TempDir,
    keys: KeyRing,
    origin: Store,
    store: Store,
}

impl Pair {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let keys = KeyRing::generate(&scratch.path().join("keys")).unwrap();
        let origin = Store::open_or_create(&scratch.path().join("origin")).await;
        let store = Store::open_or_create(&scratch.path().join("store")).await;
        let (origin, store) = (origin.unwrap(), store.unwrap());
        signer(&keys).establish(&origin).await.unwrap();
        let pair = Self {
            scratch,
            keys,
            origin,
            store,
        };
        let accepted = pair.accept(&pair.proposal(1, &[])).await.unwrap();
        assert_eq!((accepted.timestamp, accepted.boot_files), (1, true));
        pair
    }

    fn root(&self) -> Vec<u8> {
        self.keys.root().unwrap()
    }

    async fn accept(&self, proposal: &Proposal) -> Result<Accepted, AcceptError> {
        accept(&self.store, Some(&self.root()), proposal, NOW).await
    }

    /// Proposes the origin's metadata of this number, and these roots.
    fn proposal(&self, number: u64, roots: &[&[u8]]) -> Proposal {
        let number = NonZeroU64::new(number).unwrap();
        let files = [
            ProposedFile::Timestamp,
            ProposedFile::Targets(number),
            ProposedFile::Snapshot(number),
        ];
        let read = |file: ProposedFile| {
            let bytes = std::fs::read(self.origin.root().join(file.path())).unwrap();
            (file, Bytes::from(bytes))
        };
        let roots = (2..).zip(roots).map(|(number, root)| {
            let file = ProposedFile::Root(NonZeroU64::new(number).unwrap());
            (file, Bytes::copy_from_slice(root))
        });
        let current = std::fs::read(self.store.root().join(TIMESTAMP_PATH));
        Proposal {
            follows: current.ok().map(|bytes| Digest::of(&bytes)),
            files: files.into_iter().map(read).chain(roots).collect(),
            removes: [].into(),
        }
    }

    /// Makes root 2, in which `timestamp` signs timestamps, and lets the origin follow it.
    async fn rotate(&self, by: &KeyRing, timestamp: &KeyRing) -> Vec<u8> {
        let mut current = self.origin.current(&self.root()).await.unwrap();
        let before = current.root.signed.clone();
        let mut root = before.clone();
        root.version = NonZeroU64::new(2).unwrap();
        let key = timestamp.source(RoleType::Timestamp).as_sign().await;
        let key = key.unwrap().tuf_key();
        let id = key.key_id().unwrap();
        root.keys.insert(id.clone(), key);
        root.roles.get_mut(&RoleType::Timestamp).unwrap().keyids = vec![id];
        let holder = match by == &self.keys {
            true => KeyHolder::Root(before),
            false => KeyHolder::Root(self.strange_root(by).await),
        };
        let sources = [by.source(RoleType::Root)];
        let signed = SignedRole::new(root, &holder, &sources, &SystemRandom::new()).await;
        let bytes = signed.unwrap().buffer().clone();
        current.root = serde_json::from_slice(&bytes).unwrap();
        let mixed = self.scratch.path().join("mixed");
        copy_keys(&self.keys, &mixed, timestamp);
        let ring = KeyRing::open(&mixed).unwrap();
        let followed = signer(&ring).advance(&self.origin, &current, &[]).await;
        followed.unwrap();
        bytes
    }

    async fn strange_root(&self, keys: &KeyRing) -> Root {
        let other = Store::open_or_create(&self.scratch.path().join("other")).await;
        let other = other.unwrap();
        signer(keys).establish(&other).await.unwrap();
        let current = other.current(&keys.root().unwrap()).await.unwrap();
        current.root.signed
    }

    fn other_keys(&self) -> KeyRing {
        KeyRing::generate(&self.scratch.path().join("other-keys")).unwrap()
    }
}

fn copy_keys(keys: &KeyRing, to: &Path, timestamp: &KeyRing) {
    std::fs::create_dir(to).unwrap();
    let copy = |from: PathBuf, name: &str| std::fs::copy(from, to.join(name)).unwrap();
    for name in ["root.der", "targets.der", "snapshot.der"] {
        copy(keys.directory().join(name), name);
    }
    copy(timestamp.directory().join("timestamp.der"), "timestamp.der");
}

#[tokio::test]
async fn a_new_root_and_what_its_keys_sign_are_taken_together() {
    let pair = Pair::new().await;
    let other = pair.other_keys();
    let root = pair.rotate(&pair.keys, &other).await;
    let without = pair.accept(&pair.proposal(2, &[])).await;
    assert!(matches!(
        without,
        Err(AcceptError::Refused(RefusedBecause::Trust(_)))
    ));
    let accepted = pair.accept(&pair.proposal(2, &[&root])).await.unwrap();
    assert_eq!(accepted.timestamp, 2);
    let current = pair.store.current(&pair.root()).await.unwrap();
    assert_eq!(current.root.signed.version.get(), 2);
    // Machines that boot from here are told, though no catalogue changed.
    let initrd = std::fs::read(pair.store.root().join(MINIMUM_PATH)).unwrap();
    let initrd = String::from_utf8(initrd).unwrap();
    assert!(
        initrd.contains("\"root\": 2,\n  \"timestamp\": 2,"),
        "{initrd}"
    );
    assert!(initrd.contains(&format!("\"written\": {NOW}")), "{initrd}");
}

#[tokio::test]
async fn a_root_commit_that_was_killed_before_its_timestamp_is_taken_again() {
    let pair = Pair::new().await;
    let other = pair.other_keys();
    let root = pair.rotate(&pair.keys, &other).await;
    let proposal = pair.proposal(2, &[&root]);
    std::fs::write(pair.store.root().join("metadata/2.root.json"), &root).unwrap();
    assert!(pair.store.current(&pair.root()).await.is_err());
    assert_eq!(pair.accept(&proposal).await.unwrap().timestamp, 2);
    assert!(pair.store.current(&pair.root()).await.is_ok());
}

#[tokio::test]
async fn a_root_that_a_stranger_signed_is_not_taken() {
    let pair = Pair::new().await;
    let stranger = pair.other_keys();
    let root = pair.rotate(&stranger, &stranger).await;
    let refused = pair.accept(&pair.proposal(2, &[&root])).await;
    assert!(matches!(
        refused,
        Err(AcceptError::Refused(RefusedBecause::Trust(_)))
    ));
    let left = pair.store.root().join("metadata/2.root.json");
    assert!(!left.exists());
    assert!(pair.store.current(&pair.root()).await.is_ok());
}

#[tokio::test]
async fn a_root_alone_is_taken_while_the_rest_stays_valid() {
    let pair = Pair::new().await;
    let root = pair.rotate(&pair.keys, &pair.keys).await;
    let mut proposal = pair.proposal(2, &[&root]);
    proposal
        .files
        .retain(|file, _| matches!(file, ProposedFile::Root(_)));
    assert_eq!(pair.accept(&proposal).await.unwrap().timestamp, 1);
    let current = pair.store.current(&pair.root()).await.unwrap();
    assert_eq!(current.root.signed.version.get(), 2);
}

/// Stopped after any number of its writes, a commit has changed what is current or has not; sent
/// again, it is done.
#[tokio::test]
async fn a_commit_that_was_killed_anywhere_can_be_sent_again() {
    let first = Pair::new().await;
    let root = first.rotate(&first.keys, &first.other_keys()).await;
    let proposal = first.proposal(2, &[&root]);
    let order = [
        ProposedFile::Targets(NonZeroU64::new(2).unwrap()),
        ProposedFile::Snapshot(NonZeroU64::new(2).unwrap()),
        ProposedFile::Root(NonZeroU64::new(2).unwrap()),
        ProposedFile::Timestamp,
    ];
    let path = |file: &ProposedFile| first.store.root().join(file.path());
    let old = std::fs::read(path(&ProposedFile::Timestamp)).unwrap();
    for written in 0..=order.len() {
        for file in &order[..written] {
            std::fs::write(path(file), &proposal.files[file]).unwrap();
        }
        assert_eq!(
            first.accept(&proposal).await.unwrap().timestamp,
            2,
            "{written}"
        );
        for file in &order[..3] {
            std::fs::remove_file(path(file)).unwrap();
        }
        std::fs::write(path(&ProposedFile::Timestamp), &old).unwrap();
    }
}

/// The first root is the last file of a first commit: without it, nobody can open the store.
#[tokio::test]
async fn a_first_commit_that_was_killed_before_its_root_comes_to_its_end() {
    let pair = Pair::new().await;
    let path = pair.store.root().join(FIRST_ROOT_PATH);
    let first = Proposal {
        follows: None,
        ..pair.proposal(1, &[])
    };
    let mut with_root = first.clone();
    let number = ProposedFile::Root(NonZeroU64::MIN);
    with_root.files.insert(number, pair.root().into());
    for proposal in [first, with_root] {
        std::fs::remove_file(&path).unwrap();
        assert_eq!(pair.accept(&proposal).await.unwrap().timestamp, 1);
        assert_eq!(std::fs::read(&path).unwrap(), pair.root());
    }
    let (own, other) = (pair.root(), pair.other_keys());
    signer(&other)
        .establish(
            &Store::open_or_create(&pair.scratch.path().join("other"))
                .await
                .unwrap(),
        )
        .await
        .unwrap();
    assert!(
        !end_first_commit(&pair.store, &own.clone().into())
            .await
            .unwrap()
    );
    std::fs::remove_file(&path).unwrap();
    let strange = other.root().unwrap();
    assert!(
        !end_first_commit(&pair.store, &strange.into())
            .await
            .unwrap()
    );
    assert!(!path.exists(), "it is not that one that was lost");
    assert!(
        end_first_commit(&pair.store, &own.clone().into())
            .await
            .unwrap()
    );
    assert_eq!(std::fs::read(&path).unwrap(), own);
}
