//! Root documents: who may sign what. Pure: made, changed, merged and judged here, nothing written.
//!
//! A root follows another if its version is the next one, if it is signed by a threshold of the root
//! keys of both, and if nobody is locked out by it: each role has as many keys as its threshold asks
//! for. Until then it is a draft: a file that goes from holder to holder, each adding a signature.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use tough::schema::{RoleKeys, RoleType, Root, Signature, Signed};

use super::ROLE_BYTES_MAX;
use super::keys::ROLES;
use super::public_key::{KeyId, PublicKey};

/// Fewest digits by which a key is named on a command line.
const ID_DIGITS_MIN: usize = 4;

/// Why a root document cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum RootError {
    #[error("it is no root document")]
    Decode(#[source] serde_json::Error),
    #[error("a root document has at most {ROLE_BYTES_MAX} bytes: name fewer keys")]
    TooLong,
    #[error("the root is not sound: {reason}")]
    Unsound { reason: &'static str },
    #[error(
        "{role} needs {threshold} signatures, but would have only {keys} key(s): say --threshold, or add a key"
    )]
    TooFewKeys {
        role: String,
        threshold: u64,
        keys: usize,
    },
    #[error(
        "root version {version} does not follow version {current}, the current one: begin again with `circular root new`"
    )]
    Version { version: u64, current: u64 },
    #[error(
        "root version {version} is signed with {valid} of the {threshold} keys needed of root version {by}: let its holders run `circular root sign`; nothing was changed"
    )]
    TooFewSignatures {
        version: u64,
        valid: usize,
        threshold: u64,
        by: u64,
    },
    #[error("another root version {version} has just been published: look at `circular root show`")]
    Taken { version: u64 },
    #[error("the root has expired already: begin again with `circular root new`")]
    Expired,
    #[error("key {id} signs {role} already")]
    Already { role: String, id: KeyId },
    #[error("no {role} key begins with `{text}`; it has: {known}")]
    NoSuchKey {
        role: String,
        text: String,
        known: String,
    },
    #[error("`{text}` names several {role} keys: give more digits (at least {ID_DIGITS_MIN})")]
    Ambiguous { role: String, text: String },
    #[error("the files are not copies of one root: they may differ in signatures only")]
    Different,
    #[error("the root versions are used up")]
    Numbers,
    #[error(
        "too few {role} keys are here to sign what both roots accept, so that machines could not open the store for a while; nothing was changed. If a {role} key is lost, publish a root that adds the new key first, and another one that removes the lost key"
    )]
    Unbridged { role: String },
    #[error(
        "too few {role} keys are here: {held} of the {threshold} needed; say where they are with --keys DIR, or replace what is lost with `circular key rotate {role}`"
    )]
    KeyElsewhere {
        role: String,
        held: usize,
        threshold: u64,
    },
}

/// A root document, with the signatures collected so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDocument(Signed<Root>);

/// Who may sign one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRule {
    /// The role.
    pub role: RoleType,
    /// How many of the keys must sign.
    pub threshold: u64,
    /// The keys.
    pub keys: Vec<KeyId>,
}

impl From<Signed<Root>> for RootDocument {
    fn from(root: Signed<Root>) -> Self {
        Self(root)
    }
}

impl RootDocument {
    /// Decodes a root, or a draft of one.
    ///
    /// # Errors
    /// It is too long, no root, or not sound.
    pub fn decode(bytes: &[u8]) -> Result<Self, RootError> {
        if bytes.len() as u64 > ROLE_BYTES_MAX {
            return Err(RootError::TooLong);
        }
        let document = Self(serde_json::from_slice(bytes).map_err(RootError::Decode)?);
        document.check_sound()?;
        Ok(document)
    }

    /// Encodes the document.
    ///
    /// # Errors
    /// It names so many keys that readers would refuse it.
    ///
    /// # Panics
    /// Never: a root document can be written as JSON.
    pub fn encode(&self) -> Result<Vec<u8>, RootError> {
        let mut bytes = serde_json::to_vec_pretty(&self.0).expect("a root can be encoded");
        bytes.push(b'\n');
        match bytes.len() as u64 > ROLE_BYTES_MAX {
            true => Err(RootError::TooLong),
            false => Ok(bytes),
        }
    }

    /// Begins the root after `current`: the same keys and thresholds, no signature yet.
    ///
    /// # Errors
    /// There is no higher version.
    pub fn after(current: &Root, expires: jiff::Timestamp) -> Result<Self, RootError> {
        let mut root = current.clone();
        root.version = root.version.checked_add(1).ok_or(RootError::Numbers)?;
        root.expires = expires;
        Ok(Self(Signed {
            signed: root,
            signatures: Vec::new(),
        }))
    }

    /// Returns the version.
    pub fn version(&self) -> u64 {
        self.0.signed.version.get()
    }

    /// Returns when the root expires: seconds since 1970-01-01 00:00 UTC.
    pub fn expires(&self) -> u64 {
        u64::try_from(self.0.signed.expires.as_second()).unwrap_or(0)
    }

    /// Returns who may sign what.
    pub fn rules(&self) -> Vec<RoleRule> {
        ROLES.into_iter().map(|role| self.rule(role)).collect()
    }

    /// Returns who may sign `role`.
    pub fn rule(&self, role: RoleType) -> RoleRule {
        rule(&self.0.signed, role)
    }

    /// Tells whether the key may sign anything.
    pub fn names(&self, id: &KeyId) -> bool {
        self.rules().iter().any(|rule| rule.keys.contains(id))
    }

    /// Returns the keys that signed it, as far as they are root keys of this root.
    pub fn signers(&self) -> Vec<KeyId> {
        valid_signers(&self.0.signed, &self.0)
    }

    /// Returns the root keys of `earlier` that signed this root.
    pub fn signers_of(&self, earlier: &Self) -> Vec<KeyId> {
        valid_signers(&earlier.0.signed, &self.0)
    }

    /// Returns what is signed.
    pub(super) const fn root(&self) -> &Root {
        &self.0.signed
    }

    /// Lets a key sign for `role`. Signatures made before no longer fit, and go.
    ///
    /// # Errors
    /// It does already.
    pub fn add(&mut self, role: RoleType, key: &PublicKey) -> Result<(), RootError> {
        let id = key.id();
        if self.rule(role).keys.contains(&id) {
            let role = role.to_string();
            return Err(RootError::Already { role, id });
        }
        self.0.signed.keys.insert(id.to_decoded(), key.to_key());
        self.role_mut(role)?.keyids.push(id.to_decoded());
        Ok(())
    }

    /// Lets a key sign for `role` no longer. Signatures made before no longer fit, and go.
    ///
    /// # Errors
    /// It did not.
    pub fn remove(&mut self, role: RoleType, id: KeyId) -> Result<(), RootError> {
        let id = id.to_decoded();
        self.role_mut(role)?.keyids.retain(|known| *known != id);
        let roles = &self.0.signed.roles;
        if !roles.values().any(|keys| keys.keyids.contains(&id)) {
            self.0.signed.keys.remove(&id);
        }
        Ok(())
    }

    /// Sets how many keys of `role` must sign. Signatures made before no longer fit, and go.
    ///
    /// # Errors
    /// The root has no such role.
    pub fn set_threshold(
        &mut self,
        role: RoleType,
        threshold: NonZeroU64,
    ) -> Result<(), RootError> {
        self.role_mut(role)?.threshold = threshold;
        Ok(())
    }

    /// Sets when the root expires. Signatures made before no longer fit, and go.
    pub fn set_expires(&mut self, expires: jiff::Timestamp) {
        self.0.signatures.clear();
        self.0.signed.expires = expires;
    }

    /// Finds the key of `role` whose identifier begins with `text`.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, role: RoleType, text: &str) -> Result<KeyId, RootError> {
        let keys = self.rule(role).keys;
        let mut found = keys.iter().filter(|id| id.to_string().starts_with(text));
        match (found.next(), found.next()) {
            (Some(id), None) if text.len() >= ID_DIGITS_MIN => Ok(*id),
            (None, _) => Err(RootError::NoSuchKey {
                role: role.to_string(),
                text: text.to_owned(),
                known: keys.iter().map(KeyId::short).collect::<Vec<_>>().join(", "),
            }),
            _ => Err(RootError::Ambiguous {
                role: role.to_string(),
                text: text.to_owned(),
            }),
        }
    }

    /// Takes the signatures of a copy that another holder signed.
    ///
    /// # Errors
    /// It is no copy.
    pub fn merge(&mut self, copy: &Self) -> Result<(), RootError> {
        if self.0.signed != copy.0.signed {
            return Err(RootError::Different);
        }
        self.take_signatures(&copy.0.signatures);
        Ok(())
    }

    /// Takes signatures; a newer one of the same key replaces the older.
    pub(super) fn take_signatures(&mut self, signatures: &[Signature]) {
        let fresh = |kept: &Signature| !signatures.iter().any(|new| new.keyid == kept.keyid);
        self.0.signatures.retain(fresh);
        self.0.signatures.extend_from_slice(signatures);
    }

    /// Returns the document with those signatures only that count, in a settled order.
    #[must_use]
    pub fn trimmed(&self, current: &Self) -> Self {
        let mut counting: BTreeSet<_> = self.signers().into_iter().collect();
        counting.extend(self.signers_of(current));
        let mut trimmed = self.clone();
        let id = |signature: &Signature| KeyId::decoded(&signature.keyid);
        let counts = |signature: &Signature| id(signature).is_some_and(|id| counting.contains(&id));
        trimmed.0.signatures.retain(counts);
        trimmed.0.signatures.sort_by_key(id);
        trimmed
    }

    /// Checks that this root may follow `current` at the time `now`, in seconds since 1970.
    ///
    /// # Errors
    /// It may not; the message says what is missing.
    pub fn check_follows(&self, current: &Self, now: u64) -> Result<(), RootError> {
        self.check_sound()?;
        let version = self.version();
        if current.version().checked_add(1) != Some(version) {
            let current = current.version();
            return Err(RootError::Version { version, current });
        }
        if self.expires() <= now {
            return Err(RootError::Expired);
        }
        for judge in [current, self] {
            let valid = self.signers_of(judge).len();
            let threshold = judge.rule(RoleType::Root).threshold;
            if (valid as u64) < threshold {
                return Err(RootError::TooFewSignatures {
                    version,
                    valid,
                    threshold,
                    by: judge.version(),
                });
            }
        }
        Ok(())
    }

    /// Checks that the root locks nobody out, and names only keys of the kind that is used here.
    ///
    /// # Errors
    /// It does.
    pub fn check_sound(&self) -> Result<(), RootError> {
        let unsound = |reason| Err(RootError::Unsound { reason });
        let root = &self.0.signed;
        if !root.consistent_snapshot {
            return unsound("it asks for snapshots that are not consistent");
        }
        if !root.spec_version.starts_with("1.") {
            return unsound("it follows another version of the TUF specification");
        }
        let sound = |key| PublicKey::checked(key).is_some();
        if !root.keys.values().all(sound) {
            return unsound("one of its keys is no ed25519 key");
        }
        for role in ROLES {
            let Some(keys) = root.roles.get(&role) else {
                return unsound("a role is missing");
            };
            let distinct: BTreeSet<_> = keys.keyids.iter().collect();
            if distinct.len() != keys.keyids.len() {
                return unsound("a role lists a key twice");
            }
            if !keys.keyids.iter().all(|id| root.keys.contains_key(id)) {
                return unsound("a role lists a key that it does not hold");
            }
            if (distinct.len() as u64) < keys.threshold.get() {
                return Err(RootError::TooFewKeys {
                    role: role.to_string(),
                    threshold: keys.threshold.get(),
                    keys: distinct.len(),
                });
            }
        }
        Ok(())
    }

    fn role_mut(&mut self, role: RoleType) -> Result<&mut RoleKeys, RootError> {
        self.0.signatures.clear();
        let roles = &mut self.0.signed.roles;
        roles.get_mut(&role).ok_or(RootError::Unsound {
            reason: "a role is missing",
        })
    }
}

/// Returns who may sign `role`; nobody, if the root does not say.
pub(super) fn rule(root: &Root, role: RoleType) -> RoleRule {
    let keys = root.roles.get(&role);
    RoleRule {
        role,
        threshold: keys.map_or(1, |keys| keys.threshold.get()),
        keys: keys
            .into_iter()
            .flat_map(|keys| &keys.keyids)
            .filter_map(KeyId::decoded)
            .collect(),
    }
}

/// Returns the root keys of `judge` that signed `document`. Each signature is held against the
/// library's own rule, alone and with a threshold of one.
fn valid_signers(judge: &Root, document: &Signed<Root>) -> Vec<KeyId> {
    let mut judge = judge.clone();
    if let Some(keys) = judge.roles.get_mut(&RoleType::Root) {
        keys.threshold = NonZeroU64::MIN;
    }
    let mut signers = BTreeSet::new();
    for signature in &document.signatures {
        let alone = Signed {
            signed: document.signed.clone(),
            signatures: vec![signature.clone()],
        };
        if judge.verify_role(&alone).is_ok() {
            signers.extend(KeyId::decoded(&signature.keyid));
        }
    }
    signers.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::of(&[number; 32])
    }

    /// A root with one key for each role, and a signature that is none.
    fn root() -> RootDocument {
        let mut root = RootDocument(Signed {
            signed: Root {
                spec_version: "1.0.0".to_owned(),
                consistent_snapshot: true,
                version: NonZeroU64::MIN,
                expires: jiff::Timestamp::UNIX_EPOCH,
                keys: HashMap::new(),
                roles: HashMap::new(),
                _extra: HashMap::new(),
            },
            signatures: Vec::new(),
        });
        for (number, role) in (100..).zip(ROLES) {
            let rule = RoleKeys {
                keyids: Vec::new(),
                threshold: NonZeroU64::MIN,
                _extra: HashMap::new(),
            };
            root.0.signed.roles.insert(role, rule);
            root.add(role, &key(number)).unwrap();
        }
        root.take_signatures(&[Signature {
            keyid: key(100).id().to_decoded(),
            sig: vec![0; 64].into(),
        }]);
        root
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Add(RoleType, u8),
        Remove(RoleType, u8),
        Threshold(RoleType, u64),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let role = || proptest::sample::select(&ROLES[..]);
        prop_oneof![
            (role(), 0..6_u8).prop_map(|(role, key)| Edit::Add(role, key)),
            (role(), 0..6_u8).prop_map(|(role, key)| Edit::Remove(role, key)),
            (role(), 1..4_u64).prop_map(|(role, threshold)| Edit::Threshold(role, threshold)),
        ]
    }

    proptest! {
        /// Whatever is changed, no signature outlives it; what is sound comes back from a file,
        /// and what would lock somebody out never does.
        #[test]
        fn what_locks_nobody_out_comes_back_and_nothing_else(
            edits in proptest::collection::vec(edit(), 1..12),
        ) {
            let mut root = root();
            for edit in edits {
                let done = match edit {
                    Edit::Add(role, number) => root.add(role, &key(number)),
                    Edit::Remove(role, number) => root.remove(role, key(number).id()),
                    Edit::Threshold(role, k) => root.set_threshold(role, k.try_into().unwrap()),
                };
                prop_assert!(done.is_err() || root.0.signatures.is_empty());
            }
            let enough = |rule: &RoleRule| rule.keys.len() as u64 >= rule.threshold;
            let sound = root.rules().iter().all(enough);
            let file = root.encode().unwrap();
            match RootDocument::decode(&file) {
                Ok(decoded) => prop_assert!(sound && decoded == root),
                Err(error) => {
                    let too_few = matches!(error, RootError::TooFewKeys { .. });
                    prop_assert!(!sound && too_few);
                }
            }
            let named: BTreeSet<_> = root.rules().into_iter().flat_map(|rule| rule.keys).collect();
            prop_assert_eq!(named.len(), root.0.signed.keys.len(), "no key without a role");
        }
    }

    #[test]
    fn a_key_is_found_by_its_first_digits() {
        let mut root = root();
        let known = key(101).id();
        let role = RoleType::Targets;
        assert_eq!(root.find(role, &known.short()).unwrap(), known);
        assert_eq!(root.find(role, &known.to_string()).unwrap(), known);
        assert!(matches!(
            root.find(role, "zz"),
            Err(RootError::NoSuchKey { .. })
        ));
        root.add(role, &key(1)).unwrap();
        assert!(matches!(
            root.find(role, ""),
            Err(RootError::Ambiguous { .. })
        ));
        assert!(matches!(
            root.find(role, &known.to_string()[..3]),
            Err(RootError::Ambiguous { .. })
        ));
    }

    #[test]
    fn what_readers_would_not_take_is_not_sound() {
        let unsound = |change: fn(&mut Root)| {
            let mut root = root();
            change(&mut root.0.signed);
            assert!(matches!(root.check_sound(), Err(RootError::Unsound { .. })));
        };
        root().check_sound().unwrap();
        unsound(|root| root.consistent_snapshot = false);
        unsound(|root| root.spec_version = "2.0.0".to_owned());
        unsound(|root| drop(root.roles.remove(&RoleType::Snapshot)));
        unsound(|root| drop(root.keys.remove(&key(100).id().to_decoded())));
        unsound(|root| {
            for rule in root.roles.values_mut() {
                rule.keyids.extend(rule.keyids.clone());
            }
        });
        let long = vec![b' '; usize::try_from(ROLE_BYTES_MAX).unwrap() + 1];
        assert!(matches!(
            RootDocument::decode(&long),
            Err(RootError::TooLong)
        ));
    }
}
