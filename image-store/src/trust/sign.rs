//! Signs what a store offers next: targets, snapshot, timestamp; and the first root.
//!
//! Numbered files are only ever created. A publish that was killed may have left some behind, so a
//! number that is taken is passed over; gaps are fine (TUF only asks that versions grow).

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use image_format::ObjectRef;
use serde::Serialize;
use tough::TargetName;
use tough::editor::signed::SignedRole;
use tough::key_source::KeySource;
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role, RoleKeys, RoleType, Root, Signed, Snapshot, Target, Targets,
    Timestamp,
};

use super::keys::{KeyRing, ROLES};
use super::{
    Current, FIRST_ROOT_PATH, METADATA_DIRECTORY, TARGETS_BYTES_MAX, TIMESTAMP_PATH, TrustError,
};
use crate::lock::CommitLock;
use crate::store::{Created, Store, StoreError};

/// The version of the specification that the metadata follows.
const SPEC_VERSION: &str = "1.0.0";

/// How long metadata stays valid, each from its signing.
///
/// Short lengths limit how long somebody between store and client can hide a newer version (a
/// freeze); they also stop clients when nobody signs in time. `circular refresh` signs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// The root: who may sign. Changing it needs the root key.
    pub root: Duration,
    /// Targets and snapshot: renewed by every publish.
    pub targets: Duration,
    /// The timestamp: renewed by every publish, and by `circular refresh`.
    pub timestamp: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Lifetimes {
    /// Ten years, two years, half a year: a store that is published to twice a year never expires,
    /// and a freeze is noticed within one term.
    pub const DEFAULT: Self = Self {
        root: DAY.saturating_mul(3650),
        targets: DAY.saturating_mul(730),
        timestamp: DAY.saturating_mul(180),
    };
}

/// Signs for one store.
#[derive(Debug)]
pub struct Signer<'a> {
    /// The keys.
    pub keys: &'a KeyRing,
    /// How long what is signed stays valid.
    pub lifetimes: Lifetimes,
    /// Now: seconds since 1970-01-01 00:00 UTC.
    pub now: u64,
}

impl Signer<'_> {
    pub(super) fn expires(&self, lifetime: Duration) -> jiff::Timestamp {
        let seconds = self.now.saturating_add(lifetime.as_secs());
        i64::try_from(seconds)
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .unwrap_or(jiff::Timestamp::MAX)
    }

    /// Makes the first root: each role has the one key in the ring, and a threshold of one.
    ///
    /// # Errors
    /// A key is missing.
    async fn first_root(&self) -> Result<Vec<u8>, TrustError> {
        let mut root = Root {
            spec_version: SPEC_VERSION.to_owned(),
            consistent_snapshot: true,
            version: NonZeroU64::MIN,
            expires: self.expires(self.lifetimes.root),
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        for role in ROLES {
            let key = self
                .keys
                .source(role)
                .as_sign()
                .await
                .map_err(|source| TrustError::Key {
                    role: role.to_string(),
                    source,
                })?
                .tuf_key();
            let id = key
                .key_id()
                .map_err(|error| TrustError::Encode(Box::new(error)))?;
            root.keys.insert(id.clone(), key);
            root.roles.insert(
                role,
                RoleKeys {
                    keyids: vec![id],
                    threshold: NonZeroU64::MIN,
                    _extra: HashMap::new(),
                },
            );
        }
        let holder = KeyHolder::Root(root.clone());
        Ok(sign(root, &holder, &[self.keys.source(RoleType::Root)])
            .await?
            .buffer()
            .clone())
    }

    /// Makes the store a signed one: writes its first, empty metadata, and last its first root, which
    /// is also kept beside the keys. Does nothing if the store is signed already.
    ///
    /// # Errors
    /// The store lost its root, or cannot be written.
    pub async fn establish(&self, store: &Store) -> Result<Established, StoreError> {
        let _lock = CommitLock::acquire(store).await?;
        if let Some(root) = store.root_if_signed().await? {
            return Ok(Established::Before(root.to_vec()));
        }
        self.check_unseen()?;
        let root = self.keep_first_root().await?;
        let signed: Signed<Root> = serde_json::from_slice(&root).map_err(TrustError::Root)?;
        self.begin(store, &signed.signed).await?;
        store.create(FIRST_ROOT_PATH, root.clone().into()).await?;
        Ok(Established::Now(root))
    }

    /// Makes the first root, for a store that is still to be made, and keeps it beside the keys.
    /// Keys that were made before their store, or whose first publish was killed, have one already.
    ///
    /// # Errors
    /// A key is missing, or the root cannot be kept.
    pub async fn keep_first_root(&self) -> Result<Vec<u8>, TrustError> {
        if let Ok(root) = self.keys.root() {
            return Ok(root);
        }
        let root = self.first_root().await?;
        self.keys.keep_root(&root)?;
        Ok(root)
    }

    /// Signs and writes the first, empty metadata of a store with this root.
    ///
    /// # Errors
    /// The keys are not those of the root, or the store cannot be written.
    async fn begin(&self, store: &Store, root: &Root) -> Result<(), StoreError> {
        let mut targets = Targets::new(
            SPEC_VERSION.to_owned(),
            NonZeroU64::MIN,
            self.expires(self.lifetimes.targets),
        );
        targets.delegations = None;
        let before = NonZeroU64::MIN;
        self.write(store, root, targets, before, before).await
    }

    /// Signs and writes metadata that follows `current`, with these targets set to new objects;
    /// with none, it only lasts longer.
    ///
    /// # Errors
    /// A key is missing, or the store cannot be written; then `current` stays in force.
    pub async fn advance(
        &self,
        store: &Store,
        current: &Current,
        set: &[(String, ObjectRef)],
    ) -> Result<(), StoreError> {
        self.check_can_publish(current)?;
        let mut targets = current.targets.signed.clone();
        let snapshot = current.snapshot.signed.version;
        // One number for both, so that clients can ask for both at once.
        targets.version = next(targets.version.max(snapshot))?;
        targets.expires = self.expires(self.lifetimes.targets);
        for (name, object) in set {
            targets.targets.insert(target_name(name)?, target(object));
        }
        let snapshot = targets.version;
        let timestamp = next(current.timestamp.signed.version)?;
        self.write(store, &current.root.signed, targets, snapshot, timestamp)
            .await
    }

    async fn write(
        &self,
        store: &Store,
        root: &Root,
        mut targets: Targets,
        snapshot_version: NonZeroU64,
        timestamp_version: NonZeroU64,
    ) -> Result<(), StoreError> {
        let holder = KeyHolder::Root(root.clone());
        let keys = self.keys.sources();
        let targets = loop {
            let signed = sign(targets.clone(), &holder, &keys).await?;
            // Readers refuse what is longer, so it must not become current.
            if *signed.length() > TARGETS_BYTES_MAX {
                return Err(TrustError::Full.into());
            }
            match write_numbered(store, &signed).await? {
                Created::Yes => break signed,
                Created::Existed => targets.version = next(targets.version)?,
            }
        };
        let mut snapshot = Snapshot::new(
            SPEC_VERSION.to_owned(),
            snapshot_version.max(targets.signed().signed.version),
            self.expires(self.lifetimes.targets),
        );
        snapshot
            .meta
            .insert("targets.json".to_owned(), metafile(&targets));
        let snapshot = loop {
            let signed = sign(snapshot.clone(), &holder, &keys).await?;
            match write_numbered(store, &signed).await? {
                Created::Yes => break signed,
                Created::Existed => snapshot.version = next(snapshot.version)?,
            }
        };
        let mut timestamp = Timestamp::new(
            SPEC_VERSION.to_owned(),
            timestamp_version,
            self.expires(self.lifetimes.timestamp),
        );
        timestamp
            .meta
            .insert("snapshot.json".to_owned(), metafile(&snapshot));
        let timestamp = sign(timestamp, &holder, &keys).await?;
        store
            .replace(TIMESTAMP_PATH, timestamp.buffer().clone().into())
            .await?;
        self.note(store).await;
        Ok(())
    }
}

/// Whether a store was signed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Established {
    /// It was; this is its first root.
    Before(Vec<u8>),
    /// It is now; this is its first root.
    Now(Vec<u8>),
}

pub(super) async fn sign<T: Role + Serialize>(
    role: T,
    holder: &KeyHolder,
    keys: &[Box<dyn KeySource>],
) -> Result<SignedRole<T>, TrustError> {
    SignedRole::new(role, holder, keys, &SystemRandom::new())
        .await
        .map_err(|error| TrustError::Sign(Box::new(error)))
}

/// Writes `N.role.json`, unless that number is taken.
pub(super) async fn write_numbered<T: Role + Serialize>(
    store: &Store,
    signed: &SignedRole<T>,
) -> Result<Created, StoreError> {
    let path = format!(
        "{METADATA_DIRECTORY}/{}",
        signed.signed().signed.filename(true)
    );
    store.create(&path, signed.buffer().clone().into()).await
}

pub(super) fn metafile<T: Role + Serialize>(signed: &SignedRole<T>) -> Metafile {
    Metafile {
        length: Some(*signed.length()),
        hashes: Some(Hashes {
            sha256: signed.sha256().to_vec().into(),
            _extra: HashMap::new(),
        }),
        version: signed.signed().signed.version(),
        _extra: HashMap::new(),
    }
}

fn target(object: &ObjectRef) -> Target {
    Target {
        length: object.length,
        hashes: Hashes {
            sha256: object.digest.as_bytes().to_vec().into(),
            _extra: HashMap::new(),
        },
        custom: HashMap::new(),
        _extra: HashMap::new(),
    }
}

fn target_name(name: &str) -> Result<TargetName, TrustError> {
    TargetName::new(name).map_err(|error| TrustError::Sign(Box::new(error)))
}

pub(super) fn next(version: NonZeroU64) -> Result<NonZeroU64, TrustError> {
    version.checked_add(1).ok_or(TrustError::Numbers)
}
