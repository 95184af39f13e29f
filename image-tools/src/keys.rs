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

/// Where the keys are.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Signing")]
pub struct RingArgs {
    /// Directory of the signing keys [default: ~/.config/circular/keys/STORE]
    #[arg(long, value_name = "DIR", env = "CIRCULAR_KEYS")]
    keys: Option<PathBuf>,
}

/// Options of whatever signs.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Signing")]
pub struct KeyArgs {
    #[command(flatten)]
    ring: RingArgs,
    /// Days until the root expires, from when it is made
    ///
    /// Past that, no machine opens the store. Long by default: renewing it (`circular root renew`)
    /// needs the root key, which is best kept where it is hard to get at.
    #[arg(long, value_name = "DAYS", default_value_t = days(Lifetimes::DEFAULT.root), value_parser = clap::value_parser!(u32).range(DAYS))]
    root_days: u32,
    /// Days until targets and snapshot expire, if nobody publishes
    ///
    /// They say what is offered; what bounds how long an old state can be passed off as the newest
    /// is the timestamp. So these only need to outlast the time between two publishes.
    #[arg(long, value_name = "DAYS", default_value_t = days(Lifetimes::DEFAULT.targets), value_parser = clap::value_parser!(u32).range(DAYS))]
    targets_days: u32,
    /// Days until the timestamp expires, if nobody publishes or refreshes
    ///
    /// Somebody between store and machine can hide what is newer for so long. Short means less of
    /// that, and that `circular refresh` must run as often: with 7 days, once a day from a timer.
    #[arg(long, value_name = "DAYS", default_value_t = days(Lifetimes::DEFAULT.timestamp), value_parser = clap::value_parser!(u32).range(DAYS))]
    timestamp_days: u32,
}

/// From a day to a hundred years: a date in TUF has a year of four digits.
const DAYS: std::ops::RangeInclusive<i64> = 1..=36_500;

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
            root: span(self.root_days),
            targets: span(self.targets_days),
            timestamp: span(self.timestamp_days),
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
        let directory = self.ring.directory_of(&root)?;
        check_outside(&directory, store)?;
        let ring = KeyRing::open(&directory)
            .with_context(|| format!("cannot sign for the store `{}`", store.root().display()))?;
        check_belongs(&ring, &root, store)?;
        Ok(Some(ring.remembering()))
    }

    /// Opens the keys of a store that was signed before.
    ///
    /// # Errors
    /// It was not, or the keys are not where they should be.
    pub async fn open_signed(&self, store: &Store) -> anyhow::Result<KeyRing> {
        match self.open(store).await? {
            Some(ring) => Ok(ring),
            None => bail!(
                "`{}` was never signed: `circular publish` or `circular init` does it",
                store.root().display()
            ),
        }
    }

    /// Opens keys that were made before their store.
    ///
    /// # Errors
    /// Nobody said where they are, or there are none.
    pub fn open_made(&self) -> anyhow::Result<KeyRing> {
        let directory = self.ring.keys.as_ref().context("no keys were named")?;
        let ring = KeyRing::open(directory)?;
        ring.root()?;
        Ok(ring.remembering())
    }

    /// Makes keys and their first root, for a store that is still to be made.
    ///
    /// # Errors
    /// There are keys already, or they cannot be written.
    pub async fn make_root(&self) -> anyhow::Result<KeyRing> {
        if let Some(directory) = &self.ring.keys {
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
        if let Some(directory) = &self.ring.keys {
            check_outside(directory, store)?;
            // Keys made before their store are used as they are.
            let ring = match KeyRing::open(directory) {
                Err(KeyError::Missing { .. }) => KeyRing::generate(directory)?,
                ring => ring?.complete()?,
            }
            .remembering();
            let (Established::Now(root) | Established::Before(root)) =
                self.signer(&ring).establish(store).await?;
            check_belongs(&ring, &root, store)?;
            return Ok(ring);
        }
        let (base, fresh) = fresh_directory()?;
        let ring = KeyRing::generate(&fresh)?;
        let root = self.signer(&ring).keep_first_root().await?;
        // In their place before the store has that root: whoever finds it there finds the keys.
        let ring = keep_fresh(&base, &fresh, &root)?;
        match self.signer(&ring).establish(store).await? {
            Established::Now(_) => Ok(ring),
            Established::Before(_) => {
                let _ = std::fs::remove_dir_all(ring.directory());
                self.open_signed(store)
                    .await
                    .context("another publisher has just signed the store")
            }
        }
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

impl RingArgs {
    /// Returns where the keys are of the store with this first root.
    fn directory_of(&self, root: &[u8]) -> anyhow::Result<PathBuf> {
        match &self.keys {
            Some(directory) => Ok(directory.clone()),
            None => Ok(default_directory()?.join(store_id(root))),
        }
    }

    /// Returns where the keys are; the store is asked only if nobody says.
    ///
    /// # Errors
    /// Nobody says, and there is no signed store.
    pub async fn directory(&self, store: &Path) -> anyhow::Result<PathBuf> {
        if let Some(directory) = &self.keys {
            return Ok(directory.clone());
        }
        match Store::open(store).await?.root_if_signed().await? {
            Some(root) => self.directory_of(&root),
            None => bail!(
                "`{}` was never signed: say where the keys are with --keys DIR",
                store.display()
            ),
        }
    }

    /// Opens the keys, whichever store they are for.
    ///
    /// # Errors
    /// There are none.
    pub async fn open(&self, store: &Path) -> anyhow::Result<KeyRing> {
        Ok(KeyRing::open(&self.directory(store).await?)?)
    }
}

/// Checks that keys do not lie where everybody can fetch them: a store is served as it is.
fn check_outside(keys: &Path, store: &Store) -> anyhow::Result<()> {
    // Keys that are still to be made lie where the directory above them is.
    let there = keys.ancestors().find_map(|path| {
        let path = if path == Path::new("") {
            Path::new(".")
        } else {
            path
        };
        path.canonicalize().ok()
    });
    let root = store.root().canonicalize();
    if let (Some(there), Ok(root)) = (there, root)
        && there.starts_with(root)
    {
        bail!(
            "the keys would lie in the store, `{}`, and be served to everybody: say where else with --keys DIR. Keys that were served are stolen: see circular key rotate",
            keys.display()
        );
    }
    Ok(())
}

fn check_belongs(ring: &KeyRing, root: &[u8], store: &Store) -> anyhow::Result<()> {
    if ring.root()?[..] != root[..] {
        bail!(
            "the keys in `{}` are those of another store than `{}`",
            ring.directory().display(),
            store.root().display()
        );
    }
    Ok(())
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
    Ok(KeyRing::open(&directory)?.remembering())
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
