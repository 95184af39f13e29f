//! Signs what is current again, with nothing changed but lifetimes and keys.
//!
//! Targets, snapshot and timestamp name each other by digest, so that signing one again means to
//! sign those after it too. Which one comes first is decided by what expires, or by which keys
//! changed; a ring with nothing but the timestamp key can still renew the timestamp.

use std::num::NonZeroU64;
use std::time::Duration;

use tough::schema::{KeyHolder, RoleType, Root, Snapshot, Timestamp};

use super::keys::HeldKey;
use super::root::{self, RootDocument, RootError};
use super::sign::{Signer, metafile, next, sign, write_numbered};
use super::{Current, TARGETS_BYTES_MAX, TIMESTAMP_PATH, TrustError};
use crate::boot_files;
use crate::lock::CommitLock;
use crate::store::{Created, Store, StoreError};

/// What is signed again for each first role.
const ORDER: [RoleType; 3] = [RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];

/// When signed metadata expires: seconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiries {
    /// Who may sign.
    pub root: u64,
    /// What is offered.
    pub targets: u64,
    /// Which targets are current.
    pub snapshot: u64,
    /// Which snapshot is current.
    pub timestamp: u64,
}

impl Current {
    /// Returns when each role's metadata expires.
    pub fn expiries(&self) -> Expiries {
        let seconds = |time: jiff::Timestamp| u64::try_from(time.as_second()).unwrap_or(0);
        Expiries {
            root: seconds(self.root.signed.expires),
            targets: seconds(self.targets.signed.expires),
            snapshot: seconds(self.snapshot.signed.expires),
            timestamp: seconds(self.timestamp.signed.expires),
        }
    }
}

impl Signer<'_> {
    /// Signs the current metadata again, so that it lasts longer: the timestamp always, targets and
    /// snapshot once half of their time has passed, if their keys are here. Returns when it all
    /// expires now.
    ///
    /// # Errors
    /// The timestamp key is missing, or the store cannot be written.
    pub async fn refresh(&self, store: &Store) -> Result<Expiries, StoreError> {
        let _lock = CommitLock::acquire(store).await?;
        let root = self.keys.root().map_err(TrustError::from)?;
        let current = self.current(store).await?;
        let held = self.keys.held().map_err(TrustError::from)?;
        let from = self.due(&current, &held);
        self.resign(store, &current, &[&current.root.signed], from)
            .await?;
        boot_files::write_minimum(store, self).await?;
        Ok(store.current(&root).await?.expiries())
    }

    /// Decides where a refresh begins.
    fn due(&self, current: &Current, held: &[HeldKey]) -> RoleType {
        let due = |expires: u64, lifetime: Duration| {
            let left = expires.saturating_sub(self.now);
            // One that lasts longer than is wished for now is shortened.
            left <= lifetime.as_secs() / 2 || left > lifetime.as_secs()
        };
        let expiries = current.expiries();
        let wanted = [
            (RoleType::Targets, expiries.targets),
            (RoleType::Snapshot, expiries.snapshot),
        ];
        let roots = [&current.root.signed];
        wanted
            .into_iter()
            .find(|(role, expires)| {
                due(*expires, self.lifetimes.targets) && missing_key(&roots, *role, held).is_none()
            })
            .map_or(RoleType::Timestamp, |(role, _)| role)
    }

    /// Signs the metadata of `from` and of what names it again, so that each of `roots` accepts it.
    ///
    /// # Errors
    /// Too few keys are here, and nothing was written; or the store cannot be written, and
    /// `current` stays in force.
    pub(super) async fn resign(
        &self,
        store: &Store,
        current: &Current,
        roots: &[&Root],
        from: RoleType,
    ) -> Result<(), StoreError> {
        let held = self.keys.held().map_err(TrustError::from)?;
        if let Some(error) = missing_key(roots, from, &held) {
            return Err(TrustError::from(error).into());
        }
        let holder = KeyHolder::Root(union(roots));
        let snapshot = match from {
            RoleType::Timestamp => None,
            _ => Some(self.snapshot_again(store, current, &holder, from).await?),
        };
        let mut timestamp = Timestamp::new(
            current.timestamp.signed.spec_version.clone(),
            next(current.timestamp.signed.version)?,
            self.expires(self.lifetimes.timestamp),
        );
        timestamp.meta = current.timestamp.signed.meta.clone();
        if let Some(meta) = snapshot {
            timestamp.meta.insert("snapshot.json".to_owned(), meta);
        }
        let timestamp = sign(timestamp, &holder, &self.keys.sources()).await?;
        store
            .replace(TIMESTAMP_PATH, timestamp.buffer().clone().into())
            .await?;
        self.note(store).await;
        Ok(())
    }

    async fn snapshot_again(
        &self,
        store: &Store,
        current: &Current,
        holder: &KeyHolder,
        from: RoleType,
    ) -> Result<tough::schema::Metafile, StoreError> {
        let keys = self.keys.sources();
        let mut snapshot = Snapshot::new(
            current.snapshot.signed.spec_version.clone(),
            next(current.snapshot.signed.version)?,
            self.expires(self.lifetimes.targets),
        );
        snapshot.meta = current.snapshot.signed.meta.clone();
        if from == RoleType::Targets {
            let mut targets = current.targets.signed.clone();
            targets.version = next(targets.version)?;
            targets.expires = self.expires(self.lifetimes.targets);
            let signed = loop {
                let signed = sign(targets.clone(), holder, &keys).await?;
                if *signed.length() > TARGETS_BYTES_MAX {
                    return Err(TrustError::Full.into());
                }
                match write_numbered(store, &signed).await? {
                    Created::Yes => break signed,
                    Created::Existed => targets.version = next(targets.version)?,
                }
            };
            snapshot
                .meta
                .insert("targets.json".to_owned(), metafile(&signed));
        }
        loop {
            let signed = sign(snapshot.clone(), holder, &keys).await?;
            match write_numbered(store, &signed).await? {
                Created::Yes => return Ok(metafile(&signed)),
                Created::Existed => snapshot.version = next(snapshot.version)?,
            }
        }
    }
}

/// Returns which of the roles from `from` on cannot be signed as each of `roots` demands with the
/// keys that are here.
pub(super) fn missing_key(roots: &[&Root], from: RoleType, held: &[HeldKey]) -> Option<RootError> {
    let first = ORDER.iter().position(|role| *role == from).unwrap_or(0);
    for role in &ORDER[first..] {
        for root in roots {
            let rule = root::rule(root, *role);
            let here = rule.keys.iter().filter(|id| holds(held, id)).count();
            if (here as u64) >= rule.threshold {
                continue;
            }
            let (role, threshold) = (role.to_string(), rule.threshold);
            return Some(match roots.len() {
                1 => RootError::KeyElsewhere {
                    role,
                    held: here,
                    threshold,
                },
                _ => RootError::Unbridged { role },
            });
        }
    }
    None
}

fn holds(held: &[HeldKey], id: &super::public_key::KeyId) -> bool {
    held.iter().any(|key| key.id() == *id)
}

/// Returns a stand-in for several roots, by which every key of any of them signs.
fn union(roots: &[&Root]) -> Root {
    let mut union = roots[0].clone();
    for root in roots {
        union.keys.extend(root.keys.clone());
        for (role, keys) in &root.roles {
            let Some(all) = union.roles.get_mut(role) else {
                continue;
            };
            for id in &keys.keyids {
                if !all.keyids.contains(id) {
                    all.keyids.push(id.clone());
                }
            }
            // Whether enough keys are here was checked for each root alone.
            all.threshold = NonZeroU64::MIN;
        }
    }
    union
}

impl Signer<'_> {
    /// Checks that every key is here that a publish needs.
    ///
    /// # Errors
    /// One is not.
    pub(crate) fn check_can_publish(&self, current: &Current) -> Result<(), TrustError> {
        let held = self.keys.held()?;
        match missing_key(&[&current.root.signed], RoleType::Targets, &held) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Checks that the root `new` could be published after `old`: that every key is here to sign
    /// what is current as both ask.
    ///
    /// # Errors
    /// One is not, or the store cannot be read.
    pub async fn check_bridge(
        &self,
        store: &Store,
        old: &RootDocument,
        new: &RootDocument,
    ) -> Result<(), StoreError> {
        let current = self.current(store).await?;
        let held = self.keys.held().map_err(TrustError::from)?;
        let refused = first_refused(new.root(), &current);
        match refused.and_then(|role| missing_key(&[old.root(), new.root()], role, &held)) {
            Some(error) => Err(TrustError::from(error).into()),
            None => Ok(()),
        }
    }
}

/// Returns the first role whose current metadata `root` does not accept.
pub(super) fn first_refused(root: &Root, current: &Current) -> Option<RoleType> {
    let accepted = [
        root.verify_role(&current.targets).is_ok(),
        root.verify_role(&current.snapshot).is_ok(),
        root.verify_role(&current.timestamp).is_ok(),
    ];
    let first = accepted.iter().position(|accepted| !accepted)?;
    Some(ORDER[first])
}
