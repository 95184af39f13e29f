//! The command line: what may be typed, checked into a [`Config`]. The environment ends here.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser};
use image_format::reference::ImageRef;
use tracing::level_filters::LevelFilter;

use crate::app;
use crate::config::proxies::{Proxies, ProxyUrl};
use crate::config::{
    Access, Authorities, BaseUrl, ByteSize, Config, DiskCacheConfig, Expiry, IdentityConfig,
    LOOK_SECONDS, MountConfig, NetworkConfig, ProcessConfig, Purpose, RecordConfig, Role,
    RootConfig, Style, Supervision, TrustConfig, VERIFY_SECONDS,
};
use crate::fetch::retry::RetryPolicy;
use crate::fstab::{self, Call};
use crate::inside::serve::Address;

pub mod cache;
pub mod top;
mod tree;

const EXAMPLES: &str = "\
Examples:
  circular-mount --root root.json http://host:8080/ debian:12 /mnt
  circular-mount fetch --root root.json http://host:8080/ debian:12
  circular-mount cache stat        (also: verify, clear)
  circular-mount top               (what the mounts of this machine do)
  losetup --find --show --partscan --read-only /mnt/disk.raw
  umount /mnt        (or, not being root: fusermount3 -u /mnt)
  circular-mount --root root.json --overlay mine.overlay http://host:8080/ debian:12 /mnt
  circular-mount tree --root root.json http://host:8080/ /mnt      (all images: /mnt/debian/12/disk.raw)
  circular-mount --root root.json --nbd /run/debian.sock http://host:8080/ debian:12

In fstab, with a link /sbin/mount.fuse.circular to this program:
  http://host:8080/#debian:12  /mnt  fuse.circular  root=/etc/circular/root.json,_netdev  0 0
  (an option NAME=VALUE stands for --NAME VALUE)

Exit codes: 0 done, 1 failed, 2 wrong usage";

/// Mount a published image as a disk file, fetched as it is read
#[derive(Debug, Parser)]
#[command(name = "circular-mount", bin_name = "circular-mount", version, after_help = EXAMPLES)]
pub struct Args {
    /// Address of the store
    #[arg(value_name = "URL")]
    pub url: BaseUrl,
    /// Image to mount
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    pub image: ImageRef,
    /// Empty directory to mount on, in which the disk appears as disk.raw; or empty file, which
    /// becomes the disk itself
    #[arg(value_name = "MOUNTPOINT", required_unless_present_any = ["fetch", "nbd"])]
    pub mountpoint: Option<PathBuf>,
    /// Whether all images are shown: `circular-mount tree`
    #[arg(skip)]
    pub all: bool,

    /// Make the disk writable: keep what is written to it in this file, made if it is missing. The
    /// file takes as much space as was written, and stays with the version of the image that it
    /// began with; a disk that was synced is safe in it, whatever happens. One mount at a time
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,
    /// Export the disk on this unix socket, by the NBD protocol, instead of mounting it: read-only,
    /// or with --overlay. For hypervisors, as nbd+unix:///?socket=PATH
    #[arg(long, value_name = "PATH", conflicts_with_all = ["mountpoint", "fetch", "initramfs", "supervise"])]
    pub nbd: Option<PathBuf>,
    /// What the system is to say is mounted; mount.fuse.circular repeats what fstab says
    #[arg(long, hide = true)]
    pub source: Option<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Let other users read the disk
    #[arg(long)]
    pub allow_other: bool,
    /// Write "READY" to this open descriptor when the mount serves
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<i32>,
    /// Have a second process hold the mount, so that another one takes over when the process that serves
    /// it dies: readers wait, and see no error. On SIGUSR2 it hands the mount over to the program that
    /// lies where this one lay. `relay`: pass all requests through that process, as is done anyway where
    /// the kernel is older than 6.9; a disk that is written to (--overlay) needs that kernel
    /// [default: off; with --initramfs and without --overlay: auto]
    #[arg(long, value_name = "auto|relay|off", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub supervise: Option<Supervision>,
    /// Without a sign of life for so many milliseconds, a worker hangs; for tests
    #[arg(long, hide = true, value_name = "MS", default_value_t = 30_000,
          value_parser = clap::value_parser!(u64).range(1000..))]
    pub silence_max_ms: u64,
    /// Carry the root disk of this machine: never give up, never be killed, log to the kernel
    #[arg(long)]
    pub initramfs: bool,

    /// Trusted root: root.json, which the publisher has beside the signing keys
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_ROOT",
        help_heading = "Trust",
        conflicts_with = "trust_on_first_use"
    )]
    pub root: Option<PathBuf>,
    /// Trust the first root that the store shows, and no other from then on
    #[arg(long, help_heading = "Trust", conflicts_with = "no_state")]
    pub trust_on_first_use: bool,
    /// Directory that remembers what was seen, to notice when a store goes back in time
    /// [default: /var/lib/circular for root, else ~/.local/state/circular; with --initramfs: none]
    #[arg(
        long,
        value_name = "DIR",
        env = "CIRCULAR_STATE",
        help_heading = "Trust",
        conflicts_with = "no_state"
    )]
    pub state: Option<PathBuf>,
    /// Remember nothing
    #[arg(long, help_heading = "Trust")]
    pub no_state: bool,
    /// Take no metadata below the versions in this file, like
    /// {"root":1,"timestamp":7,"snapshot":7,"targets":7}; for machines that remember nothing.
    /// The publisher writes it for machines that boot, in boot/minimum.img
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    pub minimum: Option<PathBuf>,
    /// What to make of signed metadata that is out of date: refuse it, because newer versions may be
    /// kept from this machine, or log that. The time is that of this machine's clock, never of a server
    /// [default: enforce; with --initramfs: warn, because a machine may have no clock, and one that does
    /// not boot is worse than one that boots what may be old]
    #[arg(long, value_name = "enforce|warn", help_heading = "Trust")]
    pub expiry: Option<Expiry>,

    /// Directory of the disk cache; one on a tmpfs keeps it in memory. Several mounts may share it
    /// [default: /var/cache/circular for root, else ~/.cache/circular; with --initramfs: none]
    #[arg(
        long,
        value_name = "DIR",
        env = "CIRCULAR_CACHE",
        help_heading = "Caches",
        conflicts_with = "no_cache"
    )]
    pub cache: Option<PathBuf>,
    /// Keep nothing on disk
    #[arg(long, help_heading = "Caches")]
    pub no_cache: bool,
    /// Most bytes of all disks in the cache directory [default: half of the free space, at most 10G]
    #[arg(
        long,
        value_name = "BYTES",
        env = "CIRCULAR_CACHE_SIZE",
        help_heading = "Caches"
    )]
    pub cache_size: Option<ByteSize>,
    /// Fetch all of the image into the disk cache, whenever no reader waits
    #[arg(long, help_heading = "Caches", conflicts_with = "no_cache")]
    pub pin: bool,
    /// Fetch all of the image into the disk cache and end, without mounting; `circular-mount fetch` is
    /// the same
    #[arg(long, help_heading = "Caches", conflicts_with_all = ["no_cache", "mountpoint", "pin", "record", "overlay", "initramfs", "metrics", "supervise"])]
    pub fetch: bool,
    /// Answer each read of the disk ourselves, and verify it. Else the kernel reads the cache file
    /// itself once all of the disk is in it and was verified, which is as fast as a local file: from
    /// the first open of a disk that nobody has open, if root mounted it read-only
    #[arg(long, help_heading = "Caches")]
    pub no_passthrough: bool,
    /// How often a cache file that the kernel may read itself is verified anew, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = VERIFY_SECONDS, help_heading = "Caches",
          value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub verify_every: u64,
    /// How often to look whether the store still has the version that is shown, in seconds; 0: never. If
    /// it was removed, all of it is brought into the cache, as with --pin, before its files are collected
    #[arg(long, value_name = "SECONDS", default_value_t = LOOK_SECONDS, help_heading = "Caches",
          value_parser = clap::value_parser!(u64).range(..=31_536_000))]
    pub look_every: u64,
    /// Most bytes of memory for chunks that were used lately
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(64 << 20), help_heading = "Caches")]
    pub memory_cache: ByteSize,
    /// Longest boot pack to keep in memory as it came, compressed, beside the chunks that were used lately:
    /// what a boot reads is then at hand for as long as the mount lives, without a server too; 0: none. A tree keeps none
    #[arg(long, value_name = "BYTES", default_value_t = ByteSize(0), help_heading = "Caches")]
    pub keep_boot_pack: ByteSize,

    /// Another server of the same store, asked when those before it fail, send something wrong or are
    /// slower; may be given several times. None of them is trusted
    #[arg(long = "mirror", value_name = "URL", help_heading = "Network")]
    pub mirrors: Vec<BaseUrl>,
    /// HTTP proxy on the way to all servers [default: what http_proxy, https_proxy and all_proxy say in
    /// the environment]; hosts that no_proxy lists there are reached without. A proxy sees what an http
    /// store is asked and shows, the token too; of https it sees the names. It is trusted with nothing else
    #[arg(long, value_name = "URL", help_heading = "Network")]
    pub proxy: Option<ProxyUrl>,
    /// Certificate authorities for https, in PEM, beside those of the system
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_CA",
        help_heading = "Network"
    )]
    pub ca: Option<PathBuf>,
    /// Take the word of no other authority than those of --ca
    #[arg(long, requires = "ca", help_heading = "Network")]
    pub ca_only: bool,
    /// File with the token that a private store wants; it is sent to URL and to each --mirror, and
    /// to nobody else
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_TOKEN_FILE",
        help_heading = "Network"
    )]
    pub token_file: Option<PathBuf>,
    /// Most requests at once; fewer are used where the line needs fewer
    #[arg(long, value_name = "N", default_value_t = NetworkConfig::CONNECTIONS, help_heading = "Network",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: u16,
    /// Longest silence of a connection, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = NetworkConfig::TIMEOUT_SECONDS, help_heading = "Network",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Longest time that a reader waits for a failing server, in seconds, then it gets an error; 0: for ever
    /// [default: 60; with --initramfs: 0]
    #[arg(long, value_name = "SECONDS", help_heading = "Network")]
    pub deadline: Option<u64>,

    /// File to record what is read first in, for `circular profile add`
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    pub record: Option<PathBuf>,
    /// Address to send what was recorded to (HTTP POST), once nothing new is read any more; that ends
    /// the recording. `circular-server --traces` takes it at /traces
    #[arg(
        long,
        value_name = "URL",
        requires = "record",
        help_heading = "Logging"
    )]
    pub record_to: Option<String>,
    /// How long nothing new must be read before it is sent, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20, help_heading = "Logging",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub record_quiet: u64,
    /// Serve metrics to Prometheus at /metrics (HTTP) on this TCP port of this machine, this address, or
    /// this Unix socket; nobody is asked who he is
    #[arg(
        long,
        value_name = "PORT|ADDRESS:PORT|unix:PATH",
        help_heading = "Logging"
    )]
    pub metrics: Option<Address>,
    /// Least important lines to log
    #[arg(long, value_name = "off|error|warn|info|debug|trace", env = "CIRCULAR_LOG",
          default_value_t = LevelFilter::INFO, help_heading = "Logging")]
    pub log_level: LevelFilter,
    /// File to append log lines to; a daemon without one is silent once it serves
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_LOG_FILE",
        help_heading = "Logging"
    )]
    pub log_file: Option<PathBuf>,
}

/// All that may be typed, for manual pages and completion.
#[must_use]
pub fn command() -> clap::Command {
    // These two have the options of a mount, as far as they mean something there.
    let fetch = fetching(Args::command()).name("fetch");
    let tree = tree::command(Args::command()).name("tree");
    Args::command()
        .subcommand(cache::CacheArgs::command())
        .subcommand(fetch)
        .subcommand(top::TopArgs::command())
        .subcommand(tree)
        .subcommand_negates_reqs(true)
}

/// The command line of a mount, for filling the cache.
fn fetching(command: clap::Command) -> clap::Command {
    command
        .bin_name("circular-mount fetch")
        .about("Bring all of an image into the disk cache, and check it")
        .after_help("")
        .mut_arg("mountpoint", |mountpoint| mountpoint.hide(true))
}

/// Parses, runs, and says what went wrong.
pub fn main() -> ExitCode {
    let mut typed = match fstab::translate(std::env::args_os().collect()) {
        Ok(Call::Run(typed)) => typed,
        Ok(Call::Pretend) => return ExitCode::SUCCESS,
        Err(error) => return failed(&error.into()),
    };
    match typed.get(1).and_then(|word| word.to_str()) {
        Some("cache") => return cache::main(&typed[1..]),
        Some("top") => return top::main(&typed[1..]),
        Some("fetch") => typed[1] = "--fetch".into(),
        _ => {}
    }
    let args = match tree::parse(typed) {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to be done when even this cannot be written.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let proxies = Proxies::of(args.proxy.clone(), |name| std::env::var(name).ok());
    let mut config = args.into_config(Directories::of_user());
    config.network.proxies = match proxies {
        Ok(proxies) => proxies,
        Err(error) => return failed(&error.into()),
    };
    app::run(&config).unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // In one write: in an initramfs the stream is the kernel's log, where each is a record.
    let line = format!("circular-mount: {error:#}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    ExitCode::FAILURE
}

impl Args {
    /// Checks what was typed together. `defaults` are used when no directories were given.
    #[must_use]
    pub fn into_config(self, defaults: Directories) -> Config {
        let role = role(self.initramfs);
        let retry = patience(self.deadline, role);
        let retry_open = match role {
            Role::RootDisk => retry,
            Role::Plain => NetworkConfig::RETRY_OPEN,
        };
        // The file system of an initramfs is memory: a cache is used there only when it is asked for.
        // What it remembered would be forgotten at the next boot.
        let defaults = match role {
            Role::Plain => defaults,
            Role::RootDisk => Directories::default(),
        };
        let cache = self.cache.or(defaults.cache).filter(|_| !self.no_cache);
        let state = self.state.or(defaults.state).filter(|_| !self.no_state);
        let supervision = supervision(self.supervise, role, self.overlay.is_some());
        let record = recording(self.record, self.record_to, self.record_quiet);
        Config {
            mirrors: others(self.mirrors, &self.url),
            base: self.url,
            identity: IdentityConfig {
                authorities: authorities(self.ca, self.ca_only),
                token: self.token_file,
            },
            reference: self.image,
            purpose: purpose(self.fetch, self.pin, self.all),
            mount: MountConfig {
                mountpoint: self.mountpoint.unwrap_or_default(),
                access: readers(self.allow_other),
                source: self.source,
            },
            trust: TrustConfig {
                root: trusted_root(self.root, self.trust_on_first_use),
                state,
                minimum: self.minimum,
                expiry: self.expiry.unwrap_or(match role {
                    Role::Plain => Expiry::Enforce,
                    Role::RootDisk => Expiry::Warn,
                }),
            },
            network: NetworkConfig {
                connections: self.connections,
                timeout: Duration::from_secs(self.timeout),
                retry,
                retry_open,
                proxies: Proxies::default(),
            },
            disk_cache: cache.map(|directory| DiskCacheConfig {
                directory,
                bytes_max: self.cache_size,
            }),
            memory_cache: self.memory_cache,
            keep_boot_pack: self.keep_boot_pack,
            // What a machine boots from is open as long as it runs: nothing would come of it.
            passthrough: (role == Role::Plain && !self.no_passthrough)
                .then_some(Duration::from_secs(self.verify_every)),
            look_every: (self.look_every > 0).then_some(Duration::from_secs(self.look_every)),
            overlay: self.overlay,
            nbd: self.nbd,
            record,
            metrics: self.metrics,
            process: ProcessConfig {
                style: style(self.foreground),
                role,
                supervision,
                silence_max: Duration::from_millis(self.silence_max_ms),
                ready_fd: self.ready_fd,
                log_file: self.log_file,
                log_level: self.log_level,
            },
        }
    }
}

fn trusted_root(file: Option<PathBuf>, trust_on_first_use: bool) -> RootConfig {
    match file {
        Some(file) => RootConfig::File(file),
        None if trust_on_first_use => RootConfig::FirstUse,
        None => RootConfig::Remembered,
    }
}

const fn role(initramfs: bool) -> Role {
    if initramfs {
        Role::RootDisk
    } else {
        Role::Plain
    }
}

/// The mirrors beside `base`, each once: a server that is named twice is no second one.
fn others(mirrors: Vec<BaseUrl>, base: &BaseUrl) -> Vec<BaseUrl> {
    let mut others: Vec<BaseUrl> = Vec::new();
    for mirror in mirrors {
        if mirror != *base && !others.contains(&mirror) {
            others.push(mirror);
        }
    }
    others
}

/// A root disk outlives the process that serves it, unless it is written to.
fn supervision(asked: Option<Supervision>, role: Role, is_written: bool) -> Supervision {
    let default = match (role, is_written) {
        (Role::RootDisk, false) => Supervision::Auto,
        _ => Supervision::Off,
    };
    asked.unwrap_or(default)
}

const fn style(foreground: bool) -> Style {
    if foreground {
        Style::Foreground
    } else {
        Style::Daemon
    }
}

const fn purpose(fetch: bool, pin: bool, all: bool) -> Purpose {
    match (fetch, pin) {
        _ if all => Purpose::MountAll,
        (true, _) => Purpose::Fetch,
        (false, true) => Purpose::MountAndPin,
        (false, false) => Purpose::Mount,
    }
}

const fn readers(others_too: bool) -> Access {
    if others_too {
        Access::Everybody
    } else {
        Access::Owner
    }
}

/// How long readers wait for a server that fails, in seconds; 0: for ever.
fn patience(deadline: Option<u64>, role: Role) -> RetryPolicy {
    match (deadline, role) {
        (Some(0), _) | (None, Role::RootDisk) => RetryPolicy::until(None),
        (Some(seconds), _) => RetryPolicy::until(Some(Duration::from_secs(seconds))),
        (None, Role::Plain) => RetryPolicy::DEFAULT,
    }
}

fn recording(file: Option<PathBuf>, send_to: Option<String>, quiet: u64) -> Option<RecordConfig> {
    file.map(|file| RecordConfig {
        file,
        send_to,
        quiet: Duration::from_secs(quiet),
    })
}

fn authorities(file: Option<PathBuf>, only: bool) -> Authorities {
    match (file, only) {
        (None, _) => Authorities::System,
        (Some(file), false) => Authorities::SystemAnd(file),
        (Some(file), true) => Authorities::Only(file),
    }
}

/// Directories for when nothing was said.
#[derive(Debug, Default)]
pub struct Directories {
    /// Of the disk cache.
    pub cache: Option<PathBuf>,
    /// Of what was seen of stores.
    pub state: Option<PathBuf>,
}

impl Directories {
    /// Those of the user that runs this.
    fn of_user() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self {
                cache: Some(PathBuf::from("/var/cache/circular")),
                state: Some(PathBuf::from("/var/lib/circular")),
            };
        }
        let directory = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = |name, below_home| {
            let base =
                directory(name).or_else(|| directory("HOME").map(|home| home.join(below_home)));
            base.map(|base| base.join("circular"))
        };
        Self {
            cache: base("XDG_CACHE_HOME", ".cache"),
            state: base("XDG_STATE_HOME", ".local/state"),
        }
    }
}

#[cfg(test)]
mod tests;
