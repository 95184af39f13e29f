//! Reads the kernel command line into [`Settings`].
//!
//! | parameter | meaning |
//! | --- | --- |
//! | `circular.image=NAME[:TAG][@VERSION]` | the image to boot |
//! | `circular.boot=URL` | address of the boot script; the store is where it lies |
//! | `circular.url=URL` | address of the store, instead |
//! | `circular.mirror=URL` | another server of the same store; may be given several times |
//! | `circular.proxy=URL` | HTTP proxy on the way to all of them |
//! | `circular.cache=tmpfs[:size=SIZE]`, `none`, `/dev/NAME`, `UUID=…`, `LABEL=…` | where fetched chunks are kept (25 % of memory) |
//! | `circular.overlay=tmpfs[:size=SIZE]` | room for what the booted system writes (50 % of memory) |
//! | `circular.deadline=SECONDS` | how long a read waits for a server that is gone before it fails; 0, the default, is for ever |
//! | `circular.record`, `=server`, `=URL`, `=/dev/DEVICE` | record what this boot reads: to a file in /run, and to a server; or to a serial line |
//! | `circular.debug` | offer a shell when the boot fails |
//! | `ip=`, `BOOTIF=` | see [`address`](super::address) |
//! | `root=` | see [`RootSpec`]; asked for only where what the publisher recorded is not right |
//! | `rootfstype=`, `rootflags=`, `init=`, `panic=` | as for the kernel |
//!
//! A password in the address of the store (`http://x:TOKEN@host/`) is its token, see [`userinfo`].
//!
//! Parameters that are not ours are passed over in silence: the line is shared with the kernel, systemd
//! and others. The last of several equal ones counts, as it does for the kernel.

use std::{str::FromStr, time::Duration};

use super::{
    address::{AddressError, Addressing, MacAddress, MacAddressError},
    base_url::{self, BaseUrlError},
    root::{RootSpec, RootSpecError},
    trace::Record,
    userinfo::{self, Token},
};
use crate::filesystem::FileSystem;

mod cache;

pub use cache::{Cache, CacheDisk};

/// Longer than any sensible reference.
const IMAGE_BYTES_MAX: usize = 512;

/// What a boot needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the store is; ends in `/`.
    pub base_url: String,
    /// Other servers of the same store; each ends in `/`.
    pub mirrors: Vec<String>,
    /// HTTP proxy on the way to all of them.
    pub proxy: Option<String>,
    /// The token of a private store, if its address had one.
    pub token: Option<Token>,
    /// Which image to boot, as the client takes it.
    pub image: String,
    /// Where fetched chunks are kept.
    pub cache: Cache,
    /// How large the writes of the booted system may grow.
    pub overlay: TmpfsSize,
    /// How many seconds a read waits for a server that is gone; 0: for ever. `None`: as the client likes it.
    pub deadline: Option<u32>,
    /// How the network is configured.
    pub addressing: Addressing,
    /// The interface that the firmware booted from.
    pub boot_interface: Option<MacAddress>,
    /// Which part of the disk is the root, if it is said.
    pub root: Option<RootSpec>,
    /// Its file system, if it is said.
    pub filesystem: Option<FileSystem>,
    /// Mount options for it.
    pub root_flags: Vec<String>,
    /// The program to become in the end.
    pub init: Option<String>,
    /// Whether and where to record what the boot reads.
    pub record: Option<Record>,
}

/// The size of a tmpfs, as `mount -o size=` takes it: bytes with `k`, `m` or `g`, or percent of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TmpfsSize(String);

impl TmpfsSize {
    /// Returns the text for `size=`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A quarter of memory: with the half that the overlay may take, a quarter is left for programs.
    pub(super) fn for_cache() -> Self {
        Self::of_memory(25)
    }

    /// `percent` of the machine's memory.
    fn of_memory(percent: u8) -> Self {
        Self(format!("{percent}%"))
    }
}

impl FromStr for TmpfsSize {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let refused = || SettingsError::Size(text.to_owned());
        let number = text.trim_end_matches(['k', 'm', 'g', 'K', 'M', 'G', '%']);
        let units = text.len() - number.len();
        let value: u64 = number.parse().map_err(|_| refused())?;
        let percent = text.ends_with('%');
        if units > 1 || value == 0 || (percent && value > 100) {
            return Err(refused());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Why the command line cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum SettingsError {
    #[error("circular.image= is missing: say which image to boot")]
    NoImage,
    #[error("circular.image={0:?} is not an image reference")]
    Image(String),
    #[error("neither circular.boot= nor circular.url= is there: say where the store is")]
    NoStore,
    #[error(transparent)]
    BaseUrl(#[from] BaseUrlError),
    #[error(
        "circular.mirror= has a password in it: the token of circular.boot= or circular.url= goes to every mirror"
    )]
    MirrorPassword,
    #[error("circular.proxy= has a password in it, which every user of this machine could read")]
    ProxyPassword,
    #[error("circular.deadline={0} is no number of seconds; 0 is for ever")]
    Deadline(String),
    #[error("size `{0}` is neither bytes (as in 512m, 2g) nor percent of memory (as in 50%)")]
    Size(String),
    #[error("{key}={value} is unknown ({known})")]
    Choice {
        key: &'static str,
        value: String,
        known: &'static str,
    },
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    BootInterface(#[from] MacAddressError),
    #[error(transparent)]
    Root(#[from] RootSpecError),
}

/// What to do when a boot fails; told from any command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnFailure {
    /// Whether to offer a shell.
    pub shell: bool,
    /// Whether to reboot, and how long to show the message before.
    pub reboot_after: Option<Duration>,
}

/// A command line, cut into parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    parameters: Vec<(String, Option<String>)>,
}

impl CommandLine {
    /// Cuts a command line as the kernel does: at blanks outside double quotes, which are taken
    /// off; what follows `--` belongs to init.
    pub fn parse(line: &str) -> Self {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in line.chars() {
            match (character, words.last_mut()) {
                ('"', _) => quoted = !quoted,
                (blank, _) if blank.is_whitespace() && !quoted => words.push(String::new()),
                (other, Some(word)) => word.push(other),
                (_, None) => {}
            }
        }
        let ours = words.into_iter().take_while(|word| word != "--");
        let parameter = |word: String| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        Self {
            parameters: ours
                .filter(|word| !word.is_empty())
                .map(parameter)
                .collect(),
        }
    }

    /// The value of the last `key=VALUE` that is not empty.
    fn value(&self, key: &str) -> Option<&str> {
        self.values(key).last()
    }

    /// The values of all `key=VALUE` that are not empty.
    fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        let named = self.parameters.iter().filter(move |(name, _)| name == key);
        let values = named.filter_map(|(_, value)| value.as_deref());
        values.filter(|value| !value.is_empty())
    }

    fn has(&self, key: &str) -> bool {
        let mut parameters = self.parameters.iter();
        parameters.any(|(name, value)| name == key && value.as_deref() != Some("0"))
    }

    /// Reads what to do when the boot fails.
    pub fn on_failure(&self) -> OnFailure {
        let panic = self
            .value("panic")
            .and_then(|text| text.parse::<i64>().ok());
        let reboot_after = panic.filter(|seconds| *seconds != 0).map(|seconds| {
            // A negative number is the kernel's "at once".
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        });
        OnFailure {
            shell: self.has("circular.debug"),
            reboot_after,
        }
    }

    /// Reads the settings of a boot.
    ///
    /// # Errors
    /// Fails if something is missing or makes no sense; the message names the parameter.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let (base_url, token) = self.base_url()?;
        Ok(Settings {
            base_url,
            mirrors: self.mirrors()?,
            proxy: self.proxy()?,
            token,
            image: self.image()?,
            cache: self.cache()?,
            overlay: self.overlay()?,
            deadline: self.deadline()?,
            addressing: match self.value("ip") {
                Some(text) => text.parse()?,
                None => Addressing::DEFAULT,
            },
            boot_interface: self
                .value("BOOTIF")
                .map(MacAddress::of_bootif)
                .transpose()?,
            root: self.value("root").map(str::parse).transpose()?,
            filesystem: self.filesystem(),
            root_flags: self.root_flags(),
            init: self.value("init").map(str::to_owned),
            record: self.record(),
        })
    }

    /// The store, and the token that is in its address, or in that of the boot script.
    fn base_url(&self) -> Result<(String, Option<Token>), SettingsError> {
        let script = self.value("circular.boot").map(userinfo::split);
        let Some(url) = self.value("circular.url") else {
            let (script, token) = script.ok_or(SettingsError::NoStore)?;
            return Ok((base_url::of_boot_script(&script)?, token));
        };
        let (url, token) = userinfo::split(url);
        let base_url = base_url::given(&url)?;
        Ok((
            base_url,
            token.or_else(|| script.and_then(|(_, token)| token)),
        ))
    }

    fn mirrors(&self) -> Result<Vec<String>, SettingsError> {
        let mirror = |url| match userinfo::split(url) {
            (url, None) => Ok(base_url::given(&url)?),
            (_, Some(_)) => Err(SettingsError::MirrorPassword),
        };
        self.values("circular.mirror").map(mirror).collect()
    }

    fn proxy(&self) -> Result<Option<String>, SettingsError> {
        let proxy = |url| match userinfo::split(url) {
            (shown, None) if shown == url => Ok(base_url::given(url)?),
            _ => Err(SettingsError::ProxyPassword),
        };
        self.value("circular.proxy").map(proxy).transpose()
    }

    /// A recording that cannot be had is no reason not to boot: what makes no sense is passed on, and
    /// the client logs it.
    fn record(&self) -> Option<Record> {
        match self.value("circular.record") {
            None => self.has("circular.record").then_some(Record::File),
            Some("0") => None,
            Some("1") => Some(Record::File),
            Some("server") => Some(Record::Server),
            Some(value) if value.starts_with("/dev/") => Some(Record::Line(value.to_owned())),
            Some(value) => Some(Record::Url(value.to_owned())),
        }
    }

    fn image(&self) -> Result<String, SettingsError> {
        let image = self.value("circular.image").ok_or(SettingsError::NoImage)?;
        let plain = image.bytes().all(|byte| byte.is_ascii_graphic());
        // A leading dash would be an option to the client.
        if plain && image.len() <= IMAGE_BYTES_MAX && !image.starts_with('-') {
            Ok(image.to_owned())
        } else {
            Err(SettingsError::Image(image.to_owned()))
        }
    }

    /// A part of memory unless said otherwise.
    fn cache(&self) -> Result<Cache, SettingsError> {
        match self.value("circular.cache") {
            None => Ok(Cache::Memory(TmpfsSize::for_cache())),
            Some("none" | "off") => Ok(Cache::Off),
            Some(value) => match CacheDisk::parse(value) {
                Some(disk) => Ok(Cache::Disk(disk)),
                None => {
                    let size = tmpfs("circular.cache", Cache::TAKEN, value)?;
                    Ok(Cache::Memory(size.unwrap_or_else(TmpfsSize::for_cache)))
                }
            },
        }
    }

    /// Half of memory unless said otherwise, which is also what the kernel gives a tmpfs.
    fn overlay(&self) -> Result<TmpfsSize, SettingsError> {
        let value = self.value("circular.overlay").unwrap_or("tmpfs");
        let size = tmpfs("circular.overlay", "tmpfs, tmpfs:size=SIZE", value)?;
        Ok(size.unwrap_or_else(|| TmpfsSize::of_memory(50)))
    }

    fn deadline(&self) -> Result<Option<u32>, SettingsError> {
        let seconds = |text: &str| {
            text.parse()
                .map_err(|_| SettingsError::Deadline(text.to_owned()))
        };
        self.value("circular.deadline").map(seconds).transpose()
    }

    /// The kernel allows a list; the first that we know counts.
    fn filesystem(&self) -> Option<FileSystem> {
        let names = self.value("rootfstype")?;
        names.split(',').find_map(|name| name.parse().ok())
    }

    /// The root is read-only and the overlay is not, whatever is said.
    fn root_flags(&self) -> Vec<String> {
        let flags = self.value("rootflags").unwrap_or("").split(',');
        flags
            .filter(|flag| !matches!(*flag, "" | "ro" | "rw" | "defaults"))
            .map(str::to_owned)
            .collect()
    }
}

fn tmpfs(
    key: &'static str,
    known: &'static str,
    value: &str,
) -> Result<Option<TmpfsSize>, SettingsError> {
    match value.strip_prefix("tmpfs") {
        Some("") => Ok(None),
        Some(options) if options.starts_with(":size=") => {
            options[":size=".len()..].parse().map(Some)
        }
        _ => {
            let value = value.to_owned();
            Err(SettingsError::Choice { key, value, known })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::init::address::Method;

    const LEAST: &str = "circular.boot=http://h:8080/boot.ipxe circular.image=debian:12@3";

    fn settings(more: &str) -> Result<Settings, SettingsError> {
        CommandLine::parse(&format!("{LEAST} {more}")).settings()
    }

    #[test]
    fn two_parameters_are_enough() {
        let settings = settings("quiet console=ttyS0 initrd=initrd.img").unwrap();
        assert_eq!(settings.base_url, "http://h:8080/");
        assert_eq!(settings.image, "debian:12@3");
        assert_eq!(settings.cache, Cache::Memory(TmpfsSize("25%".to_owned())));
        assert_eq!(settings.overlay.as_str(), "50%");
        assert_eq!(settings.deadline, None);
        assert_eq!(settings.addressing.method, Method::Dhcp);
        assert_eq!(settings.root, None);
    }

    #[test]
    fn each_parameter_lands_in_its_setting() {
        let settings = settings(
            "circular.url=http://other/store circular.cache=none circular.overlay=tmpfs:size=2g circular.deadline=90 \
             root=LABEL=r rootfstype=auto,xfs rootflags=ro,subvol=@ init=/bin/sh BOOTIF=01-52-54-00-00-00-01",
        )
        .unwrap();
        assert_eq!(settings.base_url, "http://other/store/");
        assert_eq!(settings.cache, Cache::Off);
        assert_eq!(settings.overlay.as_str(), "2g");
        assert_eq!(settings.deadline, Some(90));
        assert_eq!(settings.root, Some(RootSpec::Label("r".to_owned())));
        assert_eq!(settings.filesystem, Some(FileSystem::Xfs));
        assert_eq!(settings.root_flags, ["subvol=@"]);
        assert_eq!(settings.init.as_deref(), Some("/bin/sh"));
        assert!(settings.boot_interface.is_some());
    }

    #[test]
    fn a_password_in_an_address_becomes_the_token_and_is_shown_nowhere() {
        let token = |line: &str| {
            let line = CommandLine::parse(&format!("circular.image=a {line}"));
            let settings = line.settings().unwrap();
            assert!(!format!("{settings:?}").contains("SECRET"));
            assert!(settings.base_url.ends_with("//h/s/"));
            settings.token.map(|token| token.secret().to_owned())
        };
        let script = "circular.boot=http://x:SECRET@h/s/boot.ipxe";
        assert_eq!(token(script).as_deref(), Some("SECRET"));
        let url = "circular.url=https://h/s";
        assert_eq!(token(&format!("{script} {url}")).as_deref(), Some("SECRET"));
        let own = "circular.url=https://x:SECRET2@h/s/";
        assert_eq!(
            token(&format!("{script} {own}")).as_deref(),
            Some("SECRET2")
        );
        assert_eq!(token(url), None);
        for line in [
            "circular.boot=tftp://x:SECRET@h/boot.ipxe",
            "circular.boot=http://x:SECRET@h/other",
            "circular.url=x:SECRET@h",
            "circular.url=http://x:SECRET@/",
            "circular.url=http://h/ circular.mirror=http://x:SECRET@m/",
        ] {
            let line = CommandLine::parse(&format!("circular.image=a {line}"));
            let error = line.settings().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn mirrors_are_all_taken_in_their_order() {
        let mirrors = |more: &str| settings(more).map(|settings| settings.mirrors);
        assert_eq!(mirrors("").unwrap(), [""; 0]);
        let line = "circular.mirror=http://b circular.mirror= circular.mirror=https://a/s/";
        assert_eq!(mirrors(line).unwrap(), ["http://b/", "https://a/s/"]);
        assert!(mirrors("circular.mirror=ftp://b/").is_err());
    }

    #[test]
    fn a_proxy_is_taken_without_a_password() {
        let proxy = |more: &str| settings(more).map(|settings| settings.proxy);
        assert_eq!(proxy("").unwrap(), None);
        let wanted = Some("http://p:3128/".to_owned());
        assert_eq!(proxy("circular.proxy=http://p:3128").unwrap(), wanted);
        assert!(proxy("circular.proxy=socks5://p").is_err());
        for secret in ["http://me:SECRET@p:3128", "http://SECRET@p", "me:SECRET@p"] {
            let error = proxy(&format!("circular.proxy={secret}")).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn the_last_of_equals_counts_and_empty_ones_do_not() {
        let settings =
            settings("circular.image=b circular.image=c circular.image= BOOTIF=").unwrap();
        assert_eq!(settings.image, "c");
        assert_eq!(settings.boot_interface, None);
    }

    #[test]
    fn quotes_hold_blanks_together() {
        let line = CommandLine::parse("a=\"b c\" \"d=e f\" root=\"LABEL=x y\"");
        assert_eq!(line.value("a"), Some("b c"));
        assert_eq!(line.value("d"), Some("e f"));
        assert_eq!(line.value("root"), Some("LABEL=x y"));
    }

    #[test]
    fn what_follows_two_dashes_belongs_to_init() {
        let settings = settings("-- circular.image=other --help").unwrap();
        assert_eq!(settings.image, "debian:12@3");
    }

    #[test]
    fn missing_and_odd_parameters_are_named() {
        let error = |line: &str| CommandLine::parse(line).settings().unwrap_err().to_string();
        assert!(error("").contains("circular.boot="));
        assert!(error("circular.url=http://h/").contains("circular.image="));
        for (more, named) in [
            ("circular.image=--help", "circular.image"),
            ("circular.cache=/dev/../sda", "circular.cache"),
            ("circular.cache=UUID=", "circular.cache"),
            ("circular.cache=sda", "circular.cache"),
            ("circular.overlay=tmpfs:size=lots", "lots"),
            ("circular.deadline=soon", "circular.deadline=soon"),
            ("circular.deadline=-1", "circular.deadline=-1"),
            ("circular.url=ftp://h/", "ftp://h/"),
            ("ip=10.0.0.1.2:", "ip="),
            ("root=/dev/nfs", "root="),
        ] {
            let error = settings(more).unwrap_err().to_string();
            assert!(error.contains(named), "{more}: {error}");
        }
    }

    #[test]
    fn a_boot_is_recorded_only_when_that_is_asked_for() {
        let record = |more: &str| settings(more).unwrap().record;
        assert_eq!(record(""), None);
        assert_eq!(record("circular.record=0"), None);
        assert_eq!(record("circular.record"), Some(Record::File));
        assert_eq!(record("circular.record=1"), Some(Record::File));
        assert_eq!(record("circular.record=server"), Some(Record::Server));
        let line = Record::Line("/dev/ttyS1".to_owned());
        assert_eq!(record("circular.record=/dev/ttyS1"), Some(line));
        // Whatever it is, the machine boots.
        let odd = Record::Url("--help".to_owned());
        assert_eq!(record("circular.record=--help"), Some(odd));
    }

    #[test]
    fn sizes_are_bytes_or_percent() {
        for good in ["1", "512m", "2G", "50%", "100%"] {
            assert_eq!(good.parse::<TmpfsSize>().unwrap().as_str(), good);
        }
        for bad in ["", "0", "m", "2mm", "101%", "-1", "1,mode=777", "5%m"] {
            assert!(bad.parse::<TmpfsSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn failure_is_shown_until_told_otherwise() {
        let on_failure = |line: &str| CommandLine::parse(line).on_failure();
        assert_eq!(on_failure(""), OnFailure::default());
        assert_eq!(on_failure("panic=0"), OnFailure::default());
        let debug = on_failure("circular.debug panic=10");
        assert!(debug.shell);
        assert_eq!(debug.reboot_after, Some(Duration::from_secs(10)));
        assert_eq!(on_failure("panic=-1").reboot_after, Some(Duration::ZERO));
        assert!(!on_failure("circular.debug=0").shell);
    }

    proptest! {
        /// Any line: settings or an error, never a panic.
        #[test]
        fn any_line_is_answered(line in "([a-z.]{0,8}(ip|root|circular.cache|BOOTIF)?=?[0-9a-z:=,\"% -]{0,20} ){0,6}") {
            let line = CommandLine::parse(&format!("{LEAST} {line}"));
            let _ = (line.settings(), line.on_failure());
        }
    }
}
