//! A publisher in memory: its keys, and metadata signed with them; also what it would never sign.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::num::NonZeroU64;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use futures_util::FutureExt;
use image_format::digest::ObjectRef;
use jiff::Timestamp;
use tough::editor::signed::SignedRole;
use tough::key_source::KeySource;
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role, RoleKeys, RoleType, Root, Snapshot, Target, Targets,
};
use tough::sign::{Sign, parse_keypair};
use tough::{TargetName, async_trait};

const SPEC: &str = "1.0.0";

/// When this publisher's metadata expires, unless told otherwise.
pub(crate) const LATE: &str = "2999-01-01T00:00:00Z";

/// A key pair.
#[derive(Clone, Debug)]
pub(crate) struct Key(Arc<[u8]>);

impl Key {
    pub(crate) fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        Self(pair.to_pkcs8().unwrap().as_ref().into())
    }
}

type Failure = Box<dyn Error + Send + Sync>;

#[async_trait]
impl KeySource for Key {
    async fn as_sign(&self) -> Result<Box<dyn Sign>, Failure> {
        Ok(Box::new(parse_keypair(&self.0)?))
    }

    async fn write(&self, _: &str, _: &str) -> Result<(), Failure> {
        Err("kept in memory".into())
    }
}

/// One key a role.
#[derive(Clone, Debug)]
pub(crate) struct Keys(pub(crate) BTreeMap<&'static str, Key>);

impl Keys {
    fn new() -> Self {
        Self(ROLES.map(|(name, _)| (name, Key::new())).into())
    }

    /// Makes a new key for a role.
    pub(crate) fn renew(&mut self, role: &'static str) {
        self.0.insert(role, Key::new());
    }

    fn sources(&self) -> Vec<Box<dyn KeySource>> {
        let keys = self.0.values();
        keys.map(|key| Box::new(key.clone()) as Box<dyn KeySource>)
            .collect()
    }
}

pub(crate) const ROLES: [(&str, RoleType); 4] = [
    ("root", RoleType::Root),
    ("targets", RoleType::Targets),
    ("snapshot", RoleType::Snapshot),
    ("timestamp", RoleType::Timestamp),
];

/// Numbers and dates of what is signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(crate) targets: u64,
    pub(crate) snapshot: u64,
    pub(crate) timestamp: u64,
    /// Role that expires at another date than the others.
    pub(crate) expires: (&'static str, &'static str),
}

impl Release {
    pub(crate) const fn number(number: u64) -> Self {
        Self {
            targets: number,
            snapshot: number,
            timestamp: number,
            expires: ("", LATE),
        }
    }

    fn expires(&self, role: &str) -> Timestamp {
        let (other, date) = self.expires;
        let date = if role == other { date } else { LATE };
        date.parse().unwrap()
    }
}

/// Who signs for a store.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    pub(crate) keys: Keys,
    root: Root,
    /// All root documents so far.
    pub(crate) roots: Vec<Bytes>,
}

impl Publisher {
    pub(crate) fn new() -> Self {
        Self::with_root_until(LATE)
    }

    pub(crate) fn with_root_until(expires: &str) -> Self {
        let keys = Keys::new();
        let root = root(1, &keys, expires);
        let signed = sign(root.clone(), &root, &keys);
        let roots = vec![signed.buffer().clone().into()];
        Self { keys, root, roots }
    }

    /// Makes a next root, signed with the old root key and the new one.
    pub(crate) fn rotate(&mut self, roles: &[&'static str]) {
        let old = (self.keys.clone(), self.root.clone());
        for role in roles {
            self.keys.renew(role);
        }
        let next = self.root.version.get() + 1;
        self.root = root(next, &self.keys, LATE);
        let by_old = sign(self.root.clone(), &old.1, &old.0);
        let signed = sign(self.root.clone(), &self.root, &self.keys)
            .add_old_signatures(by_old.signed().signatures.clone())
            .unwrap();
        self.roots.push(signed.buffer().clone().into());
    }

    /// Signs metadata that offers these targets, and returns its files.
    pub(crate) fn sign(
        &self,
        release: Release,
        objects: &[(String, ObjectRef)],
    ) -> HashMap<String, Bytes> {
        let mut files = HashMap::new();
        for (number, bytes) in self.roots.iter().enumerate() {
            files.insert(format!("metadata/{}.root.json", number + 1), bytes.clone());
        }
        let mut put = |name: String, bytes: &Vec<u8>| {
            files.insert(format!("metadata/{name}"), bytes.clone().into());
        };
        let mut targets = Targets::new(
            SPEC.to_owned(),
            number(release.targets),
            release.expires("targets"),
        );
        targets.delegations = None;
        for (name, object) in objects {
            let name = TargetName::new(name).unwrap();
            targets.targets.insert(name, target(object));
        }
        let targets = sign(targets, &self.root, &self.keys);
        put(
            format!("{}.targets.json", release.targets),
            targets.buffer(),
        );
        let mut snapshot = Snapshot::new(
            SPEC.to_owned(),
            number(release.snapshot),
            release.expires("snapshot"),
        );
        snapshot
            .meta
            .insert("targets.json".to_owned(), metafile(&targets));
        let snapshot = sign(snapshot, &self.root, &self.keys);
        put(
            format!("{}.snapshot.json", release.snapshot),
            snapshot.buffer(),
        );
        let mut timestamp = tough::schema::Timestamp::new(
            SPEC.to_owned(),
            number(release.timestamp),
            release.expires("timestamp"),
        );
        timestamp
            .meta
            .insert("snapshot.json".to_owned(), metafile(&snapshot));
        let timestamp = sign(timestamp, &self.root, &self.keys);
        put("timestamp.json".to_owned(), timestamp.buffer());
        files
    }
}

fn root(version: u64, keys: &Keys, expires: &str) -> Root {
    let mut root = Root {
        spec_version: SPEC.to_owned(),
        consistent_snapshot: true,
        version: number(version),
        expires: expires.parse().unwrap(),
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (name, role) in ROLES {
        let key = parse_keypair(&keys.0[name].0).unwrap().tuf_key();
        let id = key.key_id().unwrap();
        root.keys.insert(id.clone(), key);
        let role_keys = RoleKeys {
            keyids: vec![id],
            threshold: NonZeroU64::MIN,
            _extra: HashMap::new(),
        };
        root.roles.insert(role, role_keys);
    }
    root
}

/// Signs at once: keys in memory wait for nothing.
fn sign<T: Role + serde::Serialize>(role: T, root: &Root, keys: &Keys) -> SignedRole<T> {
    let holder = KeyHolder::Root(root.clone());
    let sources = keys.sources();
    let random = SystemRandom::new();
    let signed = SignedRole::new(role, &holder, &sources, &random).now_or_never();
    signed.unwrap().unwrap()
}

fn number(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn hashes(sha256: &[u8]) -> Hashes {
    Hashes {
        sha256: sha256.to_vec().into(),
        _extra: HashMap::new(),
    }
}

fn metafile<T: Role + serde::Serialize>(signed: &SignedRole<T>) -> Metafile {
    Metafile {
        length: Some(*signed.length()),
        hashes: Some(hashes(signed.sha256())),
        version: signed.signed().signed.version(),
        _extra: HashMap::new(),
    }
}

fn target(object: &ObjectRef) -> Target {
    Target {
        length: object.length,
        hashes: hashes(object.digest.as_bytes()),
        custom: HashMap::new(),
        _extra: HashMap::new(),
    }
}
