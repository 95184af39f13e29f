//! What can end a boot, what to do about it, and what happens then.

use std::{io, process::Command, thread, time::Duration};

use nix::{errno::Errno, sys::reboot};

use super::{
    cmdline::{OnFailure, SettingsError},
    command::CommandError,
    log::Log,
    root::RootSpecError,
};
use crate::layout;

/// Why a boot ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BootError {
    #[error("cannot mount {target}")]
    Mount { target: &'static str, source: Errno },
    #[error("the kernel command line cannot be used")]
    Settings(#[from] SettingsError),
    #[error("cannot read {path}", path = layout::BUILD_RECORD)]
    Record(#[source] io::Error),
    #[error("{path} cannot be used", path = layout::BUILD_RECORD)]
    RecordedRoot(#[source] RootSpecError),
    #[error("this initramfs is for kernel {built}, but {running} is running")]
    WrongKernel { built: String, running: String },
    #[error("cannot read the module index of {release}")]
    ModuleIndex { release: String, source: io::Error },
    #[error("cannot load the kernel module {name}")]
    Module { name: String, source: io::Error },
    #[error("no network interface appeared in {seconds} s (there are: {found})")]
    NoInterface { seconds: u64, found: String },
    #[error("cannot configure the network interface {device}")]
    Interface {
        device: String,
        source: CommandError,
    },
    #[error("cannot keep the token of the store in {path}", path = layout::TOKEN)]
    Token(#[source] io::Error),
    #[error("cannot start {path}", path = layout::CLIENT)]
    Client(#[source] io::Error),
    #[error("cannot make a loop device of the image: {step}")]
    Loop {
        step: &'static str,
        source: io::Error,
    },
    #[error("cannot read {device}")]
    Read { device: String, source: io::Error },
    #[error("no root file system fits; the disk has: {}", found.join("; "))]
    NoRoot { found: Vec<String> },
    #[error("{device} has no file system that is known")]
    UnknownRoot { device: String },
    #[error("cannot mount the root {device} as {filesystem} ({options})")]
    Root {
        device: String,
        filesystem: &'static str,
        options: String,
        source: Errno,
    },
    #[error("the image has no program to start (looked for {tried})")]
    NoInit { tried: String },
    #[error("cannot switch to the image's root: {step}")]
    SwitchRoot {
        step: &'static str,
        source: io::Error,
    },
}

impl BootError {
    /// Says what failed, and why.
    pub(super) fn chain(&self) -> String {
        let mut message = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        message
    }

    /// Says what whoever reads the console can do.
    fn cure(&self) -> &'static str {
        match self {
            Self::Mount { .. } => "the kernel may lack a file system that every distribution's has",
            Self::Settings(_) => "correct the parameter in the boot script",
            Self::Record(_) | Self::RecordedRoot(_) | Self::ModuleIndex { .. } => {
                "the initramfs is damaged: publish the image again"
            }
            Self::WrongKernel { .. } => {
                "kernel and initramfs must be of the same publish: load both from one boot script"
            }
            Self::Module { .. } => {
                "the module may be of another kernel build: publish the image again"
            }
            Self::NoInterface { .. } => {
                "its driver is not in the initramfs: publish with --driver; or correct ip= and BOOTIF="
            }
            Self::Interface { .. } => "check ip= on the kernel command line",
            Self::Token(_) | Self::Client(_) => "the initramfs is damaged: publish the image again",
            Self::Loop { .. } | Self::Read { .. } => "look at the client's messages above",
            Self::NoRoot { .. } => "name one of them with root=",
            Self::UnknownRoot { .. } => "name another with root=, or its type with rootfstype=",
            Self::Root { .. } => {
                "check the file system before publishing; see the kernel's messages above"
            }
            Self::NoInit { .. } => {
                "name it with init=; or the wrong partition is the root: set root=; or the root is a subvolume of a btrfs: set rootflags=subvol=NAME"
            }
            Self::SwitchRoot { .. } => "see the kernel's messages above",
        }
    }
}

/// How often a machine that stands still says so.
const REMINDER: Duration = Duration::from_secs(60);

/// Ends a boot that failed: a shell if one is wanted, then a reboot if one is wanted, else stands
/// still and says why, again and again.
pub(super) fn stop(log: &Log, error: &BootError, on_failure: OnFailure) -> ! {
    let message = error.chain();
    let say = || {
        log.error(&format!("boot failed: {message}"));
        log.error(&format!("what to do: {}", error.cure()));
    };
    say();
    if on_failure.shell {
        shell(log);
    }
    if let Some(delay) = on_failure.reboot_after {
        log.error(&format!("rebooting in {} s (panic=)", delay.as_secs()));
        thread::sleep(delay);
        let refused = reboot::reboot(reboot::RebootMode::RB_AUTOBOOT);
        log.error(&format!("cannot reboot: {refused:?}"));
    }
    loop {
        thread::sleep(REMINDER);
        say();
        if on_failure.shell {
            shell(log);
        }
    }
}

/// Opens a shell on the console and waits until it is left.
pub(super) fn shell(log: &Log) {
    log.warn("circular.debug: this is a shell in the initramfs; leave it with `exit` to go on");
    let shell = Command::new(layout::BUSYBOX)
        .args(["setsid", "cttyhack", "sh"])
        .env("PATH", "/bin")
        .env("PS1", "circular# ")
        .status();
    if let Err(error) = shell {
        log.error(&format!("cannot start a shell: {error}"));
    }
}
