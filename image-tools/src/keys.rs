//! Where signing keys are kept: in a directory of the publisher, never in the store.
//!
//! Keys belong to one store. If nobody says where they are, they are in a directory that is named
//! by the digest of the store's first root, below the publisher's configuration.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use image_format::Digest;
use image_store::trust::keys::KeyError;
use image_store::trust::sign::Established;
use image_store::{KeyRing, Lifetimes, Signer, Store};

/// Options of whatever signs.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Signing")]
pub struct KeyArgs {
    /// Directory of the signing keys [default: ~/.config/circular/keys/STORE]
    #[arg(long, value_name = "DIR", env = "CIRCULAR_KEYS")]
    keys: Option<PathBuf>,
    /// Days until targets and snapshot expire, if nobody publishes
    #[arg(long, value_name = "DAYS", default_value_t = days(Lifetimes::DEFAULT.targets))]
    targets_days: u32,
    /// Days until the timestamp expires, if nobody publishes or refreshes
    #[arg(long, value_name = "DAYS", default_value_t = days(Lifetimes::DEFAULT.timestamp))]
    timestamp_days: u32,
}

const DAY_SECONDS: u64 = 24 * 60 * 60;

fn days(span: Duration) -> u32 {
    u32::try_from(span.as_secs() / DAY_SECONDS).unwrap_or(u32::MAX)
}

/// Returns the time: seconds since 1970-01-01 00:00 UTC.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl KeyArgs {
    /// Returns how long what is signed lasts.
    pub fn lifetimes(&self) -> Lifetimes {
        let span = |days: u32| Duration::from_secs(u64::from(days) * DAY_SECONDS);
        Lifetimes {
            targets: span(self.targets_days),
            timestamp: span(self.timestamp_days),
            ..Lifetimes::DEFAULT
        }
    }

    /// Opens the keys of `store`; a store that was never signed gets new ones, and `told` hears
    /// where they are.
    ///
    /// # Errors
    /// The keys are not where they should be, or cannot be made.
    pub async fn open_or_make(
        &self,
        store: &Store,
        told: impl FnOnce(&Path),
    ) -> anyhow::Result<KeyRing> {
        match self.open(store).await? {
            Some(ring) => Ok(ring),
            None => {
                let ring = self.make(store).await?;
                told(ring.directory());
                Ok(ring)
            }
        }
    }

    /// Opens the keys of `store`, if it was ever signed.
    ///
    /// # Errors
    /// The keys are not where they should be.
    pub async fn open(&self, store: &Store) -> anyhow::Result<Option<KeyRing>> {
        let Some(root) = store.root_if_signed().await? else {
            return Ok(None);
        };
        let directory = match &self.keys {
            Some(directory) => directory.clone(),
            None => default_directory()?.join(store_id(&root)),
        };
        let ring = KeyRing::open(&directory)
            .with_context(|| format!("cannot sign for the store `{}`", store.root().display()))?;
        if ring.root()?[..] != root[..] {
            bail!(
                "the keys in `{}` are those of another store than `{}`",
                directory.display(),
                store.root().display()
            );
        }
        Ok(Some(ring))
    }

    /// Opens keys that were made before their store.
    ///
    /// # Errors
    /// Nobody said where they are, or there are none.
    pub fn open_made(&self) -> anyhow::Result<KeyRing> {
        let directory = self.keys.as_ref().context("no keys were named")?;
        let ring = KeyRing::open(directory)?;
        ring.root()?;
        Ok(ring)
    }

    /// Makes keys and their first root, for a store that is still to be made.
    ///
    /// # Errors
    /// There are keys already, or they cannot be written.
    pub async fn make_root(&self) -> anyhow::Result<KeyRing> {
        if let Some(directory) = &self.keys {
            let ring = KeyRing::generate(directory)?;
            self.signer(&ring).keep_first_root().await?;
            return Ok(ring);
        }
        let (base, fresh) = fresh_directory()?;
        let ring = KeyRing::generate(&fresh)?;
        let root = self.signer(&ring).keep_first_root().await?;
        keep_fresh(&base, &fresh, &root)
    }

    /// Makes keys for a store that was never signed, and signs it.
    ///
    /// # Errors
    /// There are keys already, or the store cannot be written.
    pub async fn make(&self, store: &Store) -> anyhow::Result<KeyRing> {
        if let Some(directory) = &self.keys {
            // Keys made before their store are used as they are.
            let ring = match KeyRing::open(directory) {
                Err(KeyError::Missing { .. }) => KeyRing::generate(directory)?,
                ring => ring?,
            };
            self.signer(&ring).establish(store).await?;
            return Ok(ring);
        }
        let (base, fresh) = fresh_directory()?;
        let ring = KeyRing::generate(&fresh)?;
        let root = match self.signer(&ring).establish(store).await? {
            Established::Now(root) => root,
            Established::Before(_) => {
                let _ = std::fs::remove_dir_all(&fresh);
                return match self.open_default(store).await? {
                    Some(ring) => Ok(ring),
                    None => bail!("the store lost its root meanwhile"),
                };
            }
        };
        keep_fresh(&base, &fresh, &root)
    }

    /// Opens the keys that another publisher of this user made in the same moment.
    async fn open_default(&self, store: &Store) -> anyhow::Result<Option<KeyRing>> {
        let root = store.first_root().await?;
        let directory = default_directory()?.join(store_id(&root));
        let ring = KeyRing::open(&directory).with_context(|| {
            format!(
                "another publisher has just signed the store `{}`",
                store.root().display()
            )
        })?;
        Ok(Some(ring))
    }

    /// Returns a signer with these keys.
    pub fn signer<'a>(&self, ring: &'a KeyRing) -> Signer<'a> {
        Signer {
            keys: ring,
            lifetimes: self.lifetimes(),
            now: now(),
        }
    }
}

/// Returns where keys are kept, and a new directory there: keys make the root that names theirs, so
/// they are moved once it is known.
fn fresh_directory() -> anyhow::Result<(PathBuf, PathBuf)> {
    let base = default_directory()?;
    std::fs::create_dir_all(&base).with_context(|| format!("cannot make `{}`", base.display()))?;
    let fresh = base.join(format!(".new-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&fresh);
    Ok((base, fresh))
}

fn keep_fresh(base: &Path, fresh: &Path, root: &[u8]) -> anyhow::Result<KeyRing> {
    let directory = base.join(store_id(root));
    std::fs::rename(fresh, &directory).with_context(|| {
        format!(
            "cannot move the new keys from `{}` to `{}`",
            fresh.display(),
            directory.display()
        )
    })?;
    Ok(KeyRing::open(&directory)?)
}

/// Names a store by its first root.
fn store_id(root: &[u8]) -> String {
    Digest::of(root).to_string()[..16].to_owned()
}

fn default_directory() -> anyhow::Result<PathBuf> {
    let directory = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let config =
        directory("XDG_CONFIG_HOME").or_else(|| directory("HOME").map(|home| home.join(".config")));
    match config {
        Some(config) => Ok(config.join("circular").join("keys")),
        None => bail!("no home directory to keep signing keys in: say where with --keys DIR"),
    }
}
