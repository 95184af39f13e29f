//! What `circular-mount` was told to do, checked: one struct a component, units in the types.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use image_format::reference::ImageRef;
use tracing::level_filters::LevelFilter;
use url::Url;

use crate::fetch::retry::RetryPolicy;
use crate::inside::serve::Address;

pub mod proxies;

use proxies::Proxies;

/// All of a run.
#[derive(Debug)]
pub struct Config {
    /// The store, with a path that ends in a slash.
    pub base: BaseUrl,
    /// Other servers of the same store, in the order in which they are to be asked.
    pub mirrors: Vec<BaseUrl>,
    /// Who the servers must be, and who we are to them.
    pub identity: IdentityConfig,
    /// The image.
    pub reference: ImageRef,
    /// What to do with it.
    pub purpose: Purpose,
    /// The mount.
    pub mount: MountConfig,
    /// Whom to trust.
    pub trust: TrustConfig,
    /// The network.
    pub network: NetworkConfig,
    /// The disk cache; `None`: off.
    pub disk_cache: Option<DiskCacheConfig>,
    /// Most bytes of verified chunks in the memory cache. A reader in a tight corner can go down to 1 MiB.
    pub memory_cache: ByteSize,
    /// Longest boot pack whose frames are kept in memory as they came; 0: none.
    pub keep_boot_pack: ByteSize,
    /// How often a cache file that the kernel may read itself is verified anew; `None`: it never may.
    pub passthrough: Option<Duration>,
    /// How often to look whether the store still has the version that is shown; `None`: never.
    pub look_every: Option<Duration>,
    /// File that keeps what is written to the disk; `None`: the disk is read-only.
    pub overlay: Option<PathBuf>,
    /// Socket to export the disk on, by NBD, instead of mounting it.
    pub nbd: Option<PathBuf>,
    /// What to do with a trace of first touches.
    pub record: Option<RecordConfig>,
    /// Where to serve metrics; `None`: nowhere.
    pub metrics: Option<Address>,
    /// The life of the process.
    pub process: ProcessConfig,
}

/// What to do with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Show it, and fetch what is read.
    Mount,
    /// The same, and fetch the rest whenever no reader waits.
    MountAndPin,
    /// Fetch all of it, and end.
    Fetch,
    /// Show all images of the store; the reference says nothing.
    MountAll,
}

/// Where a trace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordConfig {
    /// The file, or serial line, to write it to.
    pub file: PathBuf,
    /// Where to send it when the machine has come up; not checked yet, because a machine whose root
    /// this is boots with a wrong address too.
    pub send_to: Option<String>,
    /// The machine has come up when nothing new was read for so long.
    pub quiet: Duration,
}

/// How often to look whether the store still has the version that is shown: a hundred times and more before
/// what a removed version needs is collected (30 days), for one small request each time.
pub const LOOK_SECONDS: u64 = 6 * 3600;

/// Default of [`Config::passthrough`], in seconds: a day.
pub const VERIFY_SECONDS: u64 = 86_400;

/// Where and for whom to mount.
#[derive(Debug)]
pub struct MountConfig {
    /// An empty directory or file.
    pub mountpoint: PathBuf,
    /// Whether users other than the mounting one may read.
    pub access: Access,
    /// What the system is to say is mounted; `None`: the image, with its version.
    pub source: Option<String>,
}

/// Who may read the mounted files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The user who mounted; FUSE's own default.
    Owner,
    /// Everybody; a hypervisor that runs as its own user needs it.
    Everybody,
}

/// Whom to trust with what the disk contains.
#[derive(Clone, Debug)]
pub struct TrustConfig {
    /// Where trust begins.
    pub root: RootConfig,
    /// Directory that remembers what was seen, so that nothing older is taken later; made if it is
    /// missing. `None`: nothing is remembered.
    pub state: Option<PathBuf>,
    /// File with the least versions of metadata to take.
    pub minimum: Option<PathBuf>,
    /// What to make of metadata that is out of date.
    pub expiry: Expiry,
}

/// Where trust begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootConfig {
    /// With the root document in this file.
    File(PathBuf),
    /// With whatever root the store shows first; it is remembered.
    FirstUse,
    /// With what was remembered of a first use; nothing else was said.
    Remembered,
}

/// What to make of metadata that is out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Nothing is opened: somebody may keep newer versions from us.
    Enforce,
    /// It is logged. Right where nobody sets a clock, or where not to boot is worse than to boot
    /// what may be old.
    Warn,
}

impl FromStr for Expiry {
    type Err = ExpiryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "warn" => Ok(Self::Warn),
            _ => Err(ExpiryError),
        }
    }
}

/// Text that does not say what to make of metadata that is out of date.
#[derive(Debug, thiserror::Error)]
#[error("not one of: enforce, warn")]
pub struct ExpiryError;

/// How to talk to the server.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Most requests under way at once, half of them for what nobody waits for yet. As many are used
    /// as the line needs; 32 fill 100 Mbit/s at 50 ms with ranges of 20 KB.
    pub connections: u16,
    /// Longest silence before a connection counts as stalled.
    pub timeout: Duration,
    /// How long readers wait for a server that fails.
    pub retry: RetryPolicy,
    /// The same while opening the image: whoever types a wrong address wants to know soon.
    pub retry_open: RetryPolicy,
    /// Proxies on the way.
    pub proxies: Proxies,
}

impl NetworkConfig {
    /// Default of [`Self::connections`].
    pub const CONNECTIONS: u16 = 32;
    /// Default of [`Self::timeout`]: long against any round trip, short against a boot.
    pub const TIMEOUT_SECONDS: u64 = 10;
    /// Opening gives up on a silent server after this long.
    pub const RETRY_OPEN: RetryPolicy = RetryPolicy::until(Some(Duration::from_secs(5)));
}

/// Who the servers must be, and who we are to them.
#[derive(Clone, Debug, Default)]
pub struct IdentityConfig {
    /// Whose word counts for the certificate of an https server.
    pub authorities: Authorities,
    /// File with the token that a private store wants.
    pub token: Option<PathBuf>,
}

/// Whose word counts for the certificate of an https server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authorities {
    /// That of whom the system trusts.
    #[default]
    System,
    /// Of these too; a file of certificates in PEM.
    SystemAnd(PathBuf),
    /// Of these only.
    Only(PathBuf),
}

/// Where to keep fetched chunks on disk, and how many.
#[derive(Clone, Debug)]
pub struct DiskCacheConfig {
    /// Directory; made if it is missing.
    pub directory: PathBuf,
    /// Most bytes on disk over all images in the directory; `None`: half of what the file system
    /// has free at the start, at most [`Self::BYTES_MAX`].
    pub bytes_max: Option<ByteSize>,
}

impl DiskCacheConfig {
    /// Default bound: a few whole server images; small against today's smallest disks.
    pub const BYTES_MAX: ByteSize = ByteSize(10 << 30);
}

/// How the process lives.
#[derive(Debug)]
pub struct ProcessConfig {
    /// Foreground or background.
    pub style: Style,
    /// Whether the mount is to carry a root file system.
    pub role: Role,
    /// What happens to the mount when the process that serves it dies.
    pub supervision: Supervision,
    /// Without a sign of life for so long, a worker hangs.
    pub silence_max: Duration,
    /// Descriptor that gets "READY\n" when the mount serves.
    pub ready_fd: Option<i32>,
    /// Where log lines go when not to the standard error stream.
    pub log_file: Option<PathBuf>,
    /// What is logged.
    pub log_level: LevelFilter,
}

/// Foreground or background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Stay attached to the terminal.
    Foreground,
    /// Return to the shell when the mount serves.
    Daemon,
}

/// What happens to the mount when the process that serves it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// It is gone.
    Off,
    /// Another process takes over; requests go straight to it where the kernel can send them again.
    Auto,
    /// The same, and all requests pass through the supervisor, as they must with older kernels.
    Relay,
}

impl FromStr for Supervision {
    type Err = SupervisionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "relay" => Ok(Self::Relay),
            _ => Err(SupervisionError),
        }
    }
}

/// Text that does not say how to supervise.
#[derive(Debug, thiserror::Error)]
#[error("not one of: auto, relay, off")]
pub struct SupervisionError;

/// What depends on the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A disk among others; the process may be ended like any other.
    Plain,
    /// The root disk of this machine, mounted from its initramfs: the process must outlive
    /// `switch_root`, the kill spree at shutdown, and any outage of the server.
    RootDisk,
}

/// The address of a store: http or https, with a host, without user and password, its path ending
/// in a slash. It may be shown to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(Url);

impl BaseUrl {
    /// The address of `path` in the store.
    ///
    /// # Errors
    ///
    /// When `path` is no relative reference; no path that this crate makes is.
    pub fn join(&self, path: &str) -> Result<Url, url::ParseError> {
        self.0.join(path)
    }

    /// The address itself.
    #[must_use]
    pub const fn as_url(&self) -> &Url {
        &self.0
    }

    /// The address without the slash at its end: that of a document.
    #[must_use]
    pub fn without_slash(&self) -> Url {
        let mut url = self.0.clone();
        url.set_path(self.0.path().trim_end_matches('/'));
        url
    }
}

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut url = Url::parse(text)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BaseUrlError::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BaseUrlError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BaseUrlError::Query);
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why text is not the address of a store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BaseUrlError {
    #[error("not an address like http://host:8080/")]
    Parse(#[from] url::ParseError),
    #[error("a store is reached by http:// or https://, not {0}:")]
    Scheme(String),
    #[error("the address of a store has no '?' or '#' part")]
    Query,
    #[error(
        "an address is no place for a password: everybody can see it. Put the token into a file and give that with --token-file"
    )]
    Credentials,
}

/// A number of bytes; written as `4096`, `64M` or `10G` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

    /// As a length in memory; saturates.
    #[must_use]
    pub fn to_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..]
            .to_ascii_uppercase()
            .trim_end_matches("IB")
        {
            "" | "B" => 0,
            unit => {
                Self::UNITS
                    .iter()
                    .find(|(c, _)| unit == c.to_string())
                    .ok_or(ByteSizeError)?
                    .1
            }
        };
        let number: u64 = digits.parse().map_err(|_| ByteSizeError)?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or(ByteSizeError)
    }
}

/// The shortest exact form.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in Self::UNITS {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Text that is not a number of bytes.
#[derive(Debug, thiserror::Error)]
#[error("not a number of bytes like 4096, 64M or 10G")]
pub struct ByteSizeError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units() {
        let parse = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("64M"), Some(64 << 20));
        assert_eq!(parse("10GiB"), Some(10 << 30));
        assert_eq!(parse("1k"), Some(1024));
        for wrong in ["", "M", "-1", "1X", "1.5G", "99999999T", "1é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_base_url_gets_its_slash() {
        let base: BaseUrl = "http://host:8080/store".parse().unwrap();
        assert_eq!(
            base.join("objects/ab/cd").unwrap().as_str(),
            "http://host:8080/store/objects/ab/cd"
        );
    }

    #[test]
    fn other_schemes_are_refused() {
        for wrong in [
            "file:///etc/passwd",
            "ftp://host/",
            "host:8080",
            "",
            "http://host/?a=b",
            "http://x:secret@host/",
            "http://secret@host/",
        ] {
            assert!(wrong.parse::<BaseUrl>().is_err(), "{wrong}");
        }
    }

    proptest! {
        /// Every size survives being written and read.
        #[test]
        fn sizes_round_trip(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }
    }
}
