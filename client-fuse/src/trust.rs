//! What may be believed of a store: its signed metadata, held against a root that was trusted before.
//!
//! `metadata/` is a TUF repository (The Update Framework, specification 1.0): root → timestamp →
//! snapshot → targets, and one target for each image name, its catalogue. What comes out of here is
//! a digest for each name; from there on everything is checked by digest.
//!
//! - [`anchor`]: which root to begin with
//! - [`transport`]: the metadata files, bounded, for `tough`, which checks signatures and versions
//! - [`state`]: what was seen before, so that nothing older is taken
//! - [`expiry`]: whether it is still valid
//!
//! Verify first, keep after: `tough` works in a directory made for one try. Only when everything is
//! in order does what it found replace what is remembered (what CVE-2025-2888 got wrong).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_format::digest::{Digest, ObjectRef};
use image_format::reference::ImageName;
use jiff::Timestamp;
use tempfile::TempDir;
use tough::schema::{Target, Targets};
use tough::{ExpirationEnforcement, Limits, Repository, RepositoryLoader};
use url::Url;

use crate::config::{BaseUrl, Expiry};
use crate::fetch::Source;
use crate::fetch::fetcher::Fetcher;

pub mod anchor;
pub mod error;
pub mod expiry;
pub mod state;
pub mod transport;

pub use anchor::Anchor;
pub use error::TrustError;
use expiry::Verdict;
use state::{Order, Seen, State};
use transport::MetadataTransport;

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

/// Loads the metadata of the store at `base` and checks it.
///
/// # Errors
///
/// Says what is wrong with which part of it, and what to do.
pub async fn load<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    base: &BaseUrl,
    trust: &Trust,
) -> Result<Trusted, TrustError> {
    let first = anchor::find(fetcher, base, trust).await?;
    let state = trust.state.as_ref().map(|directory| {
        let state = State::of(directory, &first.root);
        (state, first.first_use.clone())
    });
    let seen = match &state {
        Some((state, _)) => {
            let state = state.clone();
            blocking(move || state.read()).await?
        }
        None => Seen::default(),
    };
    let transport = MetadataTransport::new(fetcher);
    let root = seen.root.as_ref().unwrap_or(&first.root);
    let memory = state.as_ref().map(|(state, _)| state.directory());
    let (repository, scratch) = check(root, &seen, &transport, memory).await?;
    judge(&repository, trust)?;
    if let Some((state, first_use)) = state {
        let order = Order::of(repository.root(), repository.timestamp());
        blocking(move || {
            state.keep(order, scratch.path())?;
            first_use.map_or(Ok(()), |first_use| first_use.remember(&first.root))
        })
        .await?;
    }
    Ok(Trusted::of(&repository.targets().signed))
}

/// Has `tough` check everything but dates. What came wrong is asked for again, past every HTTP
/// cache, as often as any wrong answer is. `memory` is where it is remembered what was `seen`.
async fn check<S: Source>(
    root: &Vec<u8>,
    seen: &Seen,
    transport: &MetadataTransport<S>,
    memory: Option<&Path>,
) -> Result<(Repository, TempDir), TrustError> {
    let metadata = Url::parse(transport::METADATA).expect("a constant");
    loop {
        // A new one for each try: a failed one may leave what must not be believed.
        let scratch = seen.unpack()?;
        let load = RepositoryLoader::new(root, metadata.clone(), metadata.clone())
            .transport(transport.clone())
            .limits(LIMITS)
            .datastore(scratch.path())
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .load();
        let error = match Box::pin(load).await {
            Ok(repository) => return Ok((repository, scratch)),
            Err(error) => error,
        };
        if let Some((file, source)) = transport.take_failure() {
            return Err(TrustError::Fetch { file, source });
        }
        if !transport.ask_again() {
            return Err(TrustError::of(error, memory));
        }
        tracing::debug!(%error, "asking for metadata again");
    }
}

/// Decides on the dates. They are held against one clock, [`Trust::now`], and all four of them
/// before anything is kept or used; `tough` would do the same, but could not say which date it was.
fn judge(repository: &Repository, trust: &Trust) -> Result<(), TrustError> {
    let expirations = [
        ("root", repository.root().signed.expires),
        ("timestamp", repository.timestamp().signed.expires),
        ("snapshot", repository.snapshot().signed.expires),
        ("targets", repository.targets().signed.expires),
    ];
    match (expiry::judge(trust.now, &expirations), trust.expiry) {
        (Verdict::Valid, _) => {}
        (Verdict::NoClock, _) => tracing::warn!(
            now = %trust.now,
            "the clock is not set: whether the store's metadata is out of date cannot be told"
        ),
        (Verdict::Expired { role, on }, Expiry::Warn) => tracing::warn!(
            role,
            expired = %on,
            "the store's metadata is out of date: newer versions may be kept from this machine"
        ),
        (Verdict::Expired { role, on }, Expiry::Enforce) => {
            return Err(TrustError::Expired { role, on });
        }
    }
    Ok(())
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
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
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
