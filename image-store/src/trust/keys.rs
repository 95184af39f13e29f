//! Signing keys: a directory of files outside the store, a key ring.
//!
//! ```text
//! KEYS/root.json            the first root of the store: what clients are given to trust
//! KEYS/ROLE.der             a key of a role
//! KEYS/ROLE.<16 digits>.der a further key of that role, by the first digits of its identifier
//! KEYS/seen.json            what was seen of the store, see [`seen`](super::seen)
//! KEYS/retired/             keys that the store trusts no longer
//! ```
//!
//! Each key file is an ed25519 key pair as PKCS#8 DER (RFC 8410), mode 0600. A ring need not have a
//! key for each role: what is not needed every day may lie elsewhere.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use tough::key_source::{KeySource, LocalKeySource};
pub use tough::schema::RoleType;

use super::public_key::{KeyId, PublicKey};

/// The roles, in the order of a root document. Each has keys of its own.
pub const ROLES: [RoleType; 4] = [
    RoleType::Root,
    RoleType::Targets,
    RoleType::Snapshot,
    RoleType::Timestamp,
];

/// What the trusted root is called beside the keys.
const ROOT_FILE: &str = "root.json";

/// Where keys go that are trusted no longer.
const RETIRED: &str = "retired";

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum KeyError {
    #[error("there are keys in `{}` already; they are not written over", .path.display())]
    Exists { path: PathBuf },
    #[error("no signing keys in `{}`: say where they are with --keys DIR (or CIRCULAR_KEYS)", .path.display())]
    Missing { path: PathBuf },
    #[error("no {role} key in `{}`", .path.display())]
    NoKey { role: String, path: PathBuf },
    #[error("cannot use `{}`", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("`{}` is no ed25519 key in PKCS#8", .path.display())]
    Format {
        path: PathBuf,
        source: aws_lc_rs::error::KeyRejected,
    },
    #[error("the system gave no random numbers")]
    Random,
    #[error("`{}` can be read by others: chmod 600 it, and think about who may have read it", .path.display())]
    Open { path: PathBuf },
}

/// A directory of signing keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRing {
    directory: PathBuf,
    /// Whether it is kept beside the keys what was seen of the store.
    remembers: bool,
}

/// A key that a ring has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// What it signs.
    pub role: RoleType,
    /// Its public half.
    pub public: PublicKey,
    /// Its file.
    pub path: PathBuf,
}

impl HeldKey {
    /// Returns the name of the key.
    pub fn id(&self) -> KeyId {
        self.public.id()
    }
}

impl KeyRing {
    /// Makes a new key for each role.
    ///
    /// # Errors
    /// The directory has keys already, or cannot be written.
    pub fn generate(directory: &Path) -> Result<Self, KeyError> {
        let ring = Self {
            directory: directory.to_owned(),
            remembers: false,
        };
        if !ring.files()?.is_empty() {
            return Err(KeyError::Exists {
                path: directory.to_owned(),
            });
        }
        for role in ROLES {
            ring.make(role)?;
        }
        Ok(ring)
    }

    /// Takes the keys in `directory`.
    ///
    /// # Errors
    /// There are none, or others can read them.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let ring = Self::open_or_empty(directory)?;
        match ring.files()?.is_empty() {
            false => Ok(ring),
            true => Err(KeyError::Missing {
                path: directory.to_owned(),
            }),
        }
    }

    /// Takes the keys in `directory`, which may have none, or not be there yet.
    ///
    /// # Errors
    /// Others can read them.
    pub fn open_or_empty(directory: &Path) -> Result<Self, KeyError> {
        let ring = Self {
            directory: directory.to_owned(),
            remembers: false,
        };
        for (_, path) in ring.files()? {
            let meta = fs::metadata(&path).map_err(failed(&path))?;
            if meta.permissions().mode() & 0o077 != 0 {
                return Err(KeyError::Open { path });
            }
        }
        Ok(ring)
    }

    /// Makes the keys that a ring without a root lacks: making it was cut short.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn complete(self) -> Result<Self, KeyError> {
        if !self.directory.join(ROOT_FILE).exists() {
            let held = self.files()?;
            let missing = |role: &RoleType| !held.iter().any(|(has, _)| has == role);
            for role in ROLES.into_iter().filter(missing) {
                self.make(role)?;
            }
        }
        Ok(self)
    }

    /// Makes a new key for a role, beside those that the ring has.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn make(&self, role: RoleType) -> Result<HeldKey, KeyError> {
        make_directory(&self.directory)?;
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?;
        let private = pair.to_pkcs8().map_err(|_| KeyError::Random)?;
        let public = PublicKey::of(pair.public_key().as_ref());
        let mut path = self.directory.join(format!("{role}.der"));
        if path.exists() {
            path = self.further(role, &public.id());
        }
        write_new(&path, private.as_ref(), 0o600).map_err(failed(&path))?;
        Ok(HeldKey { role, public, path })
    }

    /// Returns the keys of the ring, in the order of the roles.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn held(&self) -> Result<Vec<HeldKey>, KeyError> {
        let held = |(role, path): (RoleType, PathBuf)| {
            let private = fs::read(&path).map_err(failed(&path))?;
            let pair = Ed25519KeyPair::from_pkcs8(&private).map_err(|source| KeyError::Format {
                path: path.clone(),
                source,
            })?;
            let public = PublicKey::of(pair.public_key().as_ref());
            Ok(HeldKey { role, public, path })
        };
        self.files()?.into_iter().map(held).collect()
    }

    /// Puts a key away that the store trusts no longer. It stays in `retired/`: a store that is put
    /// back from a backup may need it once more.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn retire(&self, key: &HeldKey) -> Result<(), KeyError> {
        let retired = self.directory.join(RETIRED);
        make_directory(&retired)?;
        let path = retired.join(format!("{}.{}.der", key.role, key.id().short()));
        fs::rename(&key.path, &path).map_err(failed(&path))
    }

    /// Has this ring remember what it saw of the store, and sign nothing on top of an older state.
    #[must_use]
    pub fn remembering(self) -> Self {
        Self {
            remembers: true,
            ..self
        }
    }

    pub(super) const fn remembers(&self) -> bool {
        self.remembers
    }

    /// Returns where the keys are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the keys, for signing. Those that are kept elsewhere are left out.
    pub fn sources(&self) -> Vec<Box<dyn KeySource>> {
        let files = self.files().unwrap_or_default().into_iter();
        files.map(|(_, path)| source(path)).collect()
    }

    /// Returns the first key of one role.
    pub fn source(&self, role: RoleType) -> Box<dyn KeySource> {
        source(self.directory.join(format!("{role}.der")))
    }

    /// Keeps the root that clients shall trust beside the keys.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_root(&self, root: &[u8]) -> Result<PathBuf, KeyError> {
        let path = self.directory.join(ROOT_FILE);
        write_new(&path, root, 0o644).map_err(failed(&path))?;
        Ok(path)
    }

    /// Returns the root kept beside the keys.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn root(&self) -> Result<Vec<u8>, KeyError> {
        let path = self.directory.join(ROOT_FILE);
        fs::read(&path).map_err(failed(&path))
    }

    /// Lists the files of keys by role, the first key of each first.
    fn files(&self) -> Result<Vec<(RoleType, PathBuf)>, KeyError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&self.directory))?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed(&self.directory))?.file_name();
            if let Some((place, further)) = name.to_str().and_then(key_file) {
                files.push((place, further.to_owned(), self.directory.join(&name)));
            }
        }
        files.sort();
        let files = files.into_iter();
        Ok(files.map(|(place, _, path)| (ROLES[place], path)).collect())
    }

    fn further(&self, role: RoleType, id: &KeyId) -> PathBuf {
        self.directory.join(format!("{role}.{}.der", id.short()))
    }
}

/// Tells which role (its place in [`ROLES`]) the key file of this name is for, and which further
/// key it is.
fn key_file(name: &str) -> Option<(usize, &str)> {
    let stem = name.strip_suffix(".der")?;
    let (role, further) = stem.split_once('.').unwrap_or((stem, ""));
    let place = ROLES.iter().position(|known| known.to_string() == role)?;
    let digits = further.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named = stem == role || further.len() == 16;
    (digits && named).then_some((place, further))
}

fn source(path: PathBuf) -> Box<dyn KeySource> {
    Box::new(LocalKeySource { path })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::File { path, source }
}

fn make_directory(directory: &Path) -> Result<(), KeyError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed(directory))
}

/// Writes a file that must not exist, for good: it is there as a whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_private_and_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        let ring = KeyRing::generate(&keys).unwrap();
        assert_eq!(ring.sources().len(), ROLES.len());
        assert!(matches!(
            KeyRing::generate(&keys),
            Err(KeyError::Exists { .. })
        ));
        assert_eq!(KeyRing::open(&keys).unwrap(), ring);
        let root = keys.join("root.der");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(KeyRing::open(&keys), Err(KeyError::Open { path }) if path == root));
    }

    #[test]
    fn a_ring_that_was_cut_short_is_completed_and_one_with_a_root_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        KeyRing::generate(&keys).unwrap();
        let kept = fs::read(keys.join("root.der")).unwrap();
        for role in ["snapshot", "timestamp"] {
            fs::remove_file(keys.join(format!("{role}.der"))).unwrap();
        }
        let ring = KeyRing::open(&keys).unwrap().complete().unwrap();
        assert_eq!(ring.sources().len(), ROLES.len());
        assert_eq!(fs::read(keys.join("root.der")).unwrap(), kept);
        ring.keep_root(b"{}").unwrap();
        fs::remove_file(keys.join("root.der")).unwrap();
        let ring = KeyRing::open(&keys).unwrap().complete().unwrap();
        assert_eq!(ring.sources().len(), ROLES.len() - 1);
    }

    #[test]
    fn a_directory_without_keys_is_no_key_ring() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            KeyRing::open(directory.path()),
            Err(KeyError::Missing { .. })
        ));
    }

    #[test]
    fn a_ring_has_further_keys_of_a_role_and_puts_them_away() {
        let directory = tempfile::tempdir().unwrap();
        let ring = KeyRing::generate(&directory.path().join("keys")).unwrap();
        let further = ring.make(RoleType::Targets).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&further.path), mode(ring.directory())),
            (0o600, 0o700)
        );
        let roles = |ring: &KeyRing| -> Vec<_> {
            let held = ring.held().unwrap().into_iter();
            held.map(|key| key.role.to_string()).collect()
        };
        assert_eq!(
            roles(&ring),
            ["root", "targets", "targets", "snapshot", "timestamp"]
        );
        assert!(ring.held().unwrap().contains(&further));
        ring.retire(&further).unwrap();
        assert_eq!(roles(&ring), ["root", "targets", "snapshot", "timestamp"]);
        fs::write(ring.directory().join("targets.json"), "").unwrap();
        fs::write(ring.directory().join("targets.x.der"), "").unwrap();
        assert_eq!(ring.held().unwrap().len(), 4);
    }
}
