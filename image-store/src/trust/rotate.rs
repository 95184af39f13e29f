//! Publishes the next root, so that no moment passes in which a machine cannot open the store.
//!
//! Machines believe the newest root that they find, and then want the timestamp signed as that root
//! says. So what is current is first signed by the keys of both roots, and only then the new root is
//! written, with the next number: whoever stops in between leaves a store that the old root accepts,
//! and that the new one would accept too. Where the old key is lost this cannot be, and the root is
//! refused; two roots, one that adds a key and one that removes the lost one, do the same.

use std::collections::HashMap;
use std::num::NonZeroU64;

use tough::key_source::{KeySource, LocalKeySource};
use tough::schema::{KeyHolder, RoleKeys, RoleType, Root};

use super::keys::{HeldKey, KeyError, KeyRing};
use super::public_key::KeyId;
use super::resign::first_refused;
use super::root::{RootDocument, RootError};
use super::sign::{Signer, sign};
use super::{METADATA_DIRECTORY, TrustError};
use crate::boot_files;
use crate::lock::CommitLock;
use crate::store::{Created, Store, StoreError};

/// What became of a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootPublished {
    /// It is the current one now.
    Now,
    /// It was before.
    Before,
}

impl KeyRing {
    /// Signs a root with every root key of the ring; returns which they are.
    ///
    /// # Errors
    /// The ring has no root key.
    pub async fn sign_root(&self, document: &mut RootDocument) -> Result<Vec<KeyId>, TrustError> {
        let held = self.held()?.into_iter();
        let held: Vec<_> = held.filter(|key| key.role == RoleType::Root).collect();
        if held.is_empty() {
            return Err(KeyError::NoKey {
                role: RoleType::Root.to_string(),
                path: self.directory().to_owned(),
            }
            .into());
        }
        let sources: Vec<Box<dyn KeySource>> = held
            .iter()
            .map(|key| {
                let path = key.path.clone();
                Box::new(LocalKeySource { path }) as Box<dyn KeySource>
            })
            .collect();
        let holder = KeyHolder::Root(stand_in(document.root(), &held));
        let signed = sign(document.root().clone(), &holder, &sources).await?;
        document.take_signatures(&signed.signed().signatures);
        Ok(held.iter().map(HeldKey::id).collect())
    }

    /// Puts those keys away that an earlier root named and `current` does not.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn retire_removed(
        &self,
        past: &[RootDocument],
        current: &RootDocument,
    ) -> Result<Vec<HeldKey>, KeyError> {
        let mut removed = self.held()?;
        removed.retain(|key| {
            let id = key.id();
            past.iter().any(|root| root.names(&id)) && !current.names(&id)
        });
        for key in &removed {
            self.retire(key)?;
        }
        Ok(removed)
    }
}

/// A root whose root keys are those that are here, whether it or an earlier one names them: one
/// holder cannot tell.
fn stand_in(root: &Root, held: &[HeldKey]) -> Root {
    let mut stand_in = root.clone();
    let keys = held.iter();
    stand_in
        .keys
        .extend(keys.map(|key| (key.id().to_decoded(), key.public.to_key())));
    let root_keys = RoleKeys {
        keyids: held.iter().map(|key| key.id().to_decoded()).collect(),
        threshold: NonZeroU64::MIN,
        _extra: HashMap::new(),
    };
    stand_in.roles.insert(RoleType::Root, root_keys);
    stand_in
}

impl Signer<'_> {
    /// Begins the root after the current one, which is returned too, with a fresh lifetime.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn next_root(
        &self,
        store: &Store,
    ) -> Result<(RootDocument, RootDocument), StoreError> {
        let current = self.current(store).await?.root;
        let expires = self.expires(self.lifetimes.root);
        let next = RootDocument::after(&current.signed, expires).map_err(TrustError::from)?;
        Ok((current.into(), next))
    }

    /// Reads every root that the store ever had, the first one first: only to know which keys were
    /// trusted once.
    ///
    /// # Errors
    /// One is missing, or cannot be read.
    pub async fn past_roots(
        &self,
        store: &Store,
        current: &RootDocument,
    ) -> Result<Vec<RootDocument>, StoreError> {
        let mut past = Vec::new();
        for version in 1..=current.version() {
            let bytes = store.root_version(version).await?;
            past.push(RootDocument::decode(&bytes).map_err(TrustError::from)?);
        }
        Ok(past)
    }

    /// Makes `document` the current root of the store, if it is signed as it must be.
    ///
    /// # Errors
    /// It does not follow the current root, the keys that bridge both are not here, or the store
    /// cannot be written; then the current root stays in force.
    ///
    /// # Cancel safety
    /// Dropped before it ends, either root is current, and machines can open the store.
    pub async fn publish_root(
        &self,
        store: &Store,
        document: &RootDocument,
    ) -> Result<RootPublished, StoreError> {
        let _lock = CommitLock::acquire(store).await?;
        let current = self.current(store).await?;
        if current.root.signed == *document.root() {
            // Whoever published it may have been killed before this.
            boot_files::write_minimum(store, self).await?;
            return Ok(RootPublished::Before);
        }
        let before = RootDocument::from(current.root.clone());
        document
            .check_follows(&before, self.now)
            .map_err(TrustError::from)?;
        let trimmed = document.trimmed(&before);
        let bytes = trimmed.encode().map_err(TrustError::from)?;
        let (old, new) = (&current.root.signed, trimmed.root());
        if let Some(role) = first_refused(new, &current) {
            self.resign(store, &current, &[old, new], role).await?;
        }
        let path = format!("{METADATA_DIRECTORY}/{}.root.json", document.version());
        match store.create(&path, bytes.into()).await? {
            Created::Yes => {
                self.note(store).await;
                boot_files::write_minimum(store, self).await?;
                Ok(RootPublished::Now)
            }
            // It came after the current root was read, from somebody who does not take the lock.
            Created::Existed => {
                let version = document.version();
                Err(TrustError::from(RootError::Taken { version }).into())
            }
        }
    }
}
