//! What may be believed of a store: its signed metadata, held against a root that was trusted before.
//!
//! `metadata/` is a TUF repository (The Update Framework, specification 1.0): root → timestamp →
//! snapshot → targets, and one target for each image name, its catalogue. What comes out of here is
//! a digest for each name; from there on everything is checked by digest.
//!
//! - [`anchor`]: which root to begin with
//! - [`transport`]: the metadata files, bounded, for `tough`, which checks signatures and versions
//! - [`state`]: what was seen before, so that nothing older is taken
//! - [`minimum`]: the same for a machine that remembers nothing
//! - [`expiry`]: whether it is still valid
//! - `mirrors`: which server's metadata is taken, where there are several
//! - `offline`: what is taken when no server can be reached
//!
//! Verify first, keep after: `tough` works in a directory made for one try. Only when everything is
//! in order does what it found replace what is remembered (what CVE-2025-2888 got wrong).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_format::digest::{Digest, ObjectRef};
use image_format::minimum::Reach;
use image_format::reference::ImageName;
use jiff::Timestamp;
use tempfile::TempDir;
use tough::schema::{Root, Signed, Target, Targets};
use tough::{ExpirationEnforcement, Limits, Repository, RepositoryLoader};
use url::Url;

use crate::cache::desk::patiently;
use crate::config::{BaseUrl, Expiry};
use crate::fetch::Source;
use crate::fetch::fetcher::{Attempts, Fetcher};

pub mod anchor;
pub mod error;
pub mod expiry;
pub mod minimum;
mod mirrors;
mod offline;
pub mod state;
pub mod transport;

use anchor::First;
use expiry::Verdict;
use offline::Kept;
use state::{FirstUse, Order, Seen, State};
use transport::MetadataTransport;

pub use anchor::Anchor;
pub use error::TrustError;
pub use minimum::Minimum;

/// The longest `targets.json`: some 4,000 names.
pub const TARGETS_BYTES_MAX: u64 = 1024 * 1024;

/// The longest root, timestamp or snapshot: dozens of keys and signatures.
pub const ROLE_BYTES_MAX: u64 = 64 * 1024;

/// The bounds of what is read before it is trusted. A machine may have missed as many roots as the
/// specification suggests.
const LIMITS: Limits = Limits {
    max_root_size: ROLE_BYTES_MAX,
    max_targets_size: TARGETS_BYTES_MAX,
    max_timestamp_size: ROLE_BYTES_MAX,
    max_snapshot_size: ROLE_BYTES_MAX,
    max_root_updates: 1024,
};

/// Whom to trust, and how far.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The root to begin with.
    pub anchor: Anchor,
    /// Directory in which is remembered what was seen; `None`: nothing is.
    pub state: Option<PathBuf>,
    /// What is known not to be new any more; `None`: nothing is.
    pub minimum: Option<Minimum>,
    /// What to make of metadata that is out of date.
    pub expiry: Expiry,
    /// The time.
    pub now: Timestamp,
}

/// What the signed metadata vouches for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// The catalogue of each name.
    pub names: BTreeMap<ImageName, ObjectRef>,
}

/// Where trust in a store begins: what is known of it before its metadata is asked for.
#[derive(Debug)]
pub struct Beginning {
    first: First,
    /// Where what is seen is remembered.
    state: Option<State>,
    /// What was seen.
    seen: Seen,
}

/// Finds out where trust in the store at `base` begins. Asks the store for nothing, but for its
/// first root where that is to be trusted.
///
/// # Errors
///
/// When nothing says whom to trust, or what was seen cannot be read.
pub async fn begin<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    base: &BaseUrl,
    trust: &Trust,
) -> Result<Beginning, TrustError> {
    let first = anchor::find(fetcher, base, trust).await?;
    let directory = trust.state.as_ref();
    let state = directory.map(|directory| State::of(directory, &first.root));
    let seen = match state.clone() {
        Some(state) => blocking(move || state.read()).await?,
        None => Seen::default(),
    };
    Ok(Beginning { first, state, seen })
}

/// Loads the metadata of a store and checks it.
///
/// # Errors
///
/// Says what is wrong with which part of it, and what to do.
pub async fn load<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    beginning: Beginning,
    trust: &Trust,
) -> Result<Trusted, TrustError> {
    let Beginning { first, state, seen } = beginning;
    let basis = Basis {
        root: seen.root.as_ref().unwrap_or(&first.root),
        memory: state.as_ref().map(State::directory),
        seen: &seen,
        trust,
    };
    let kept = Kept::of(&first.root);
    let found = mirrors::find(fetcher, &basis, &kept).await?;
    tell(found.verdict, trust);
    if let (Some(minimum), Some(reach)) = (&trust.minimum, found.reach) {
        minimum::tell(minimum, reach);
    }
    let repository = found.repository;
    if let Some(state) = state {
        let order = Order::of(repository.root(), repository.timestamp());
        blocking(move || {
            state.keep(order, found.scratch.path())?;
            let remember = |first_use: FirstUse| first_use.remember(&first.root);
            first.first_use.map_or(Ok(()), remember)
        })
        .await?;
    }
    Ok(Trusted::of(&repository.targets().signed))
}

/// The same, once, and remembers nothing of it.
///
/// # Errors
///
/// Says what is wrong with which part of it.
pub async fn peek<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    beginning: Beginning,
    trust: &Trust,
) -> Result<Trusted, TrustError> {
    let Beginning { first, seen, .. } = beginning;
    let basis = Basis {
        root: seen.root.as_ref().unwrap_or(&first.root),
        memory: None,
        seen: &seen,
        trust,
    };
    let found = mirrors::find(fetcher, &basis, &Kept::unused(&first.root)).await?;
    Ok(Trusted::of(&found.repository.targets().signed))
}

/// What metadata is held against.
struct Basis<'a> {
    /// The newest root that is trusted.
    root: &'a Vec<u8>,
    /// What was seen before.
    seen: &'a Seen,
    /// Where that is remembered.
    memory: Option<&'a Path>,
    trust: &'a Trust,
}

/// Metadata that is in order but perhaps out of date.
struct Found {
    repository: Repository,
    /// Where `tough` left the documents.
    scratch: TempDir,
    verdict: Verdict,
    /// How far the minimum reached, if there is one.
    reach: Option<Reach>,
}

impl Basis<'_> {
    /// Has `tough` check everything but dates, once. `attempts` learns of progress.
    async fn check<S: Source>(
        &self,
        transport: &MetadataTransport<S>,
        attempts: &mut Attempts<'_>,
    ) -> Result<Found, TrustError> {
        let metadata = Url::parse(transport::METADATA).expect("a constant");
        let root: Signed<Root> = serde_json::from_slice(self.root).map_err(TrustError::Root)?;
        let next_root = root.signed.version.get().saturating_add(1);
        transport.prefetch(next_root).await;
        // A new one for each try: a failed one may leave what must not be believed.
        let scratch = self.seen.unpack()?;
        let load = RepositoryLoader::new(self.root, metadata.clone(), metadata)
            .transport(transport.clone())
            .limits(LIMITS)
            .datastore(scratch.path())
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .load();
        let repository = Box::pin(load).await.map_err(|error| {
            let failure = transport.fail();
            if failure.progressed {
                attempts.progressed();
            }
            match failure.unfetched {
                Some((file, source)) => TrustError::Fetch { file, source },
                None => TrustError::of(error, self.memory),
            }
        })?;
        let minimum = self.trust.minimum.as_ref();
        let reach = minimum.map(|minimum| minimum::check(minimum, &repository));
        let reach = reach.transpose().inspect_err(|_| transport.doubt())?;
        let verdict = verdict(&repository, self.trust);
        if let (Verdict::Expired { role, on }, Expiry::Enforce) = (verdict, self.trust.expiry) {
            transport.doubt();
            return Err(TrustError::Expired { role, on });
        }
        Ok(Found {
            repository,
            scratch,
            verdict,
            reach,
        })
    }
}

/// Judges the dates. They are held against one clock, [`Trust::now`], and all four of them before
/// anything is kept or used; `tough` would do the same, but could not say which date it was.
fn verdict(repository: &Repository, trust: &Trust) -> Verdict {
    let expirations = [
        ("root", repository.root().signed.expires),
        ("timestamp", repository.timestamp().signed.expires),
        ("snapshot", repository.snapshot().signed.expires),
        ("targets", repository.targets().signed.expires),
    ];
    expiry::judge(trust.now, &expirations)
}

/// Says what of the dates is to be known of metadata that is used.
fn tell(verdict: Verdict, trust: &Trust) {
    match verdict {
        Verdict::Valid => {}
        Verdict::NoClock => tracing::warn!(
            now = %trust.now,
            "the clock is not set: whether the store's metadata is out of date cannot be told"
        ),
        Verdict::Expired { role, on } => tracing::warn!(
            role,
            expired = %on,
            "the store's metadata is out of date: newer versions may be kept from this machine"
        ),
    }
}

impl Trusted {
    /// Takes the targets that are images; a store may have others, which are not for clients.
    fn of(targets: &Targets) -> Self {
        let image = |(name, target): (&tough::TargetName, &Target)| {
            let image = ImageName::from_file_safe(name.raw()).ok()?;
            let digest: &[u8] = &target.hashes.sha256;
            let digest = Digest::from_bytes(digest.try_into().ok()?);
            let length = target.length;
            Some((image, ObjectRef { digest, length }))
        };
        Self {
            names: targets.targets.iter().filter_map(image).collect(),
        }
    }
}

/// Runs what waits for the disk or a lock where it may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TrustError> + Send + 'static,
) -> Result<T, TrustError> {
    let mut working = tokio::task::spawn_blocking(work);
    let worked = match patiently(&mut working).await {
        Some(worked) => worked,
        None => {
            tracing::warn!(
                "still waiting for the directory that remembers which versions were seen; its disk does not answer"
            );
            working.await
        }
    };
    worked.unwrap_or_else(|error| {
        Err(TrustError::State {
            attempt: "use",
            path: PathBuf::from("the state directory"),
            source: std::io::Error::other(error),
        })
    })
}

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
///
/// When it cannot be read, or is longer.
pub fn read_bounded(path: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("it is longer than {bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}
