//! Signing keys: a directory of files, one a role, outside the store.
//!
//! Each file is an ed25519 key pair as PKCS#8 DER (RFC 8410), mode 0600. The directory also holds
//! `root.json`, the first root: what clients are given to trust.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use tough::key_source::{KeySource, LocalKeySource};
use tough::schema::RoleType;

/// The roles, in the order of a root document. Each has a key of its own.
pub const ROLES: [RoleType; 4] = [
    RoleType::Root,
    RoleType::Targets,
    RoleType::Snapshot,
    RoleType::Timestamp,
];

/// What the trusted root is called beside the keys.
const ROOT_FILE: &str = "root.json";

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum KeyError {
    #[error("there are keys in `{}` already; they are not written over", .path.display())]
    Exists { path: PathBuf },
    #[error("no signing keys in `{}`: say where they are with --keys DIR (or CIRCULAR_KEYS)", .path.display())]
    Missing { path: PathBuf },
    #[error("cannot use `{}`", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the system gave no random numbers")]
    Random,
    #[error("`{}` can be read by others: chmod 600 it, and think about who may have read it", .path.display())]
    Open { path: PathBuf },
}

/// A directory of signing keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRing {
    directory: PathBuf,
}

impl KeyRing {
    /// Makes a new key for each role.
    ///
    /// # Errors
    /// The directory has keys already, or cannot be written.
    pub fn generate(directory: &Path) -> Result<Self, KeyError> {
        let ring = Self {
            directory: directory.to_owned(),
        };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| KeyError::File { path, source }
        };
        if ROLES.iter().any(|role| ring.path(*role).exists()) {
            return Err(KeyError::Exists {
                path: directory.to_owned(),
            });
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed(directory))?;
        for role in ROLES {
            let key = Ed25519KeyPair::generate()
                .and_then(|pair| pair.to_pkcs8().map_err(|_| aws_lc_rs::error::Unspecified))
                .map_err(|_| KeyError::Random)?;
            let path = ring.path(role);
            write_new(&path, key.as_ref(), 0o600).map_err(failed(&path))?;
        }
        Ok(ring)
    }

    /// Takes the keys in `directory`.
    ///
    /// # Errors
    /// There are none, or others can read them.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let ring = Self {
            directory: directory.to_owned(),
        };
        if ring.present().next().is_none() {
            return Err(KeyError::Missing {
                path: directory.to_owned(),
            });
        }
        for path in ring.present() {
            let meta = fs::metadata(&path).map_err(|source| KeyError::File {
                path: path.clone(),
                source,
            })?;
            if meta.permissions().mode() & 0o077 != 0 {
                return Err(KeyError::Open { path });
            }
        }
        Ok(ring)
    }

    /// Returns where the keys are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the keys, for signing. Roles whose key is kept elsewhere are left out.
    pub fn sources(&self) -> Vec<Box<dyn KeySource>> {
        self.present()
            .map(|path| Box::new(LocalKeySource { path }) as Box<dyn KeySource>)
            .collect()
    }

    /// Returns the key of one role.
    pub fn source(&self, role: RoleType) -> Box<dyn KeySource> {
        Box::new(LocalKeySource {
            path: self.path(role),
        })
    }

    /// Keeps the root that clients shall trust beside the keys.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_root(&self, root: &[u8]) -> Result<PathBuf, KeyError> {
        let path = self.directory.join(ROOT_FILE);
        write_new(&path, root, 0o644).map_err(|source| KeyError::File {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Returns the root kept beside the keys.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn root(&self) -> Result<Vec<u8>, KeyError> {
        let path = self.directory.join(ROOT_FILE);
        fs::read(&path).map_err(|source| KeyError::File { path, source })
    }

    fn present(&self) -> impl Iterator<Item = PathBuf> {
        ROLES
            .iter()
            .map(|role| self.path(*role))
            .filter(|path| path.is_file())
    }

    fn path(&self, role: RoleType) -> PathBuf {
        self.directory.join(format!("{role}.der"))
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
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
    fn a_directory_without_keys_is_no_key_ring() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            KeyRing::open(directory.path()),
            Err(KeyError::Missing { .. })
        ));
    }
}
