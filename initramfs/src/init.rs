//! The first process of a machine that boots over the network.
//!
//! A boot is a row of steps, each in a module of its own:
//!
//! 1. `mounts` puts /proc, /sys, /dev and /run in place; [`cmdline`] reads what is wanted.
//! 2. `drivers` loads kernel modules: those of every boot, then those that devices ask for.
//! 3. [`network`] brings an interface up, by `ip=` or DHCP.
//! 4. `clock` sets a clock that was never set; `client` starts `circular-mount`, which serves the image as one file, and stays.
//! 5. `disk` makes a loop device of that file and hides the file; `mounts` finds the root on
//!    it and lays an overlay in memory on top.
//! 6. [`handover`] tells the booted system to leave the network alone.
//! 7. `switch_root` frees the initramfs and becomes the image's own init.
//!
//! What can be decided without acting is decided in modules that only take and give values
//! ([`cmdline`], [`address`], [`base_url`], [`userinfo`], [`root`], parts of [`network`] and [`handover`]); tests reach
//! those. All that can go wrong is a [`BootError`]; [`failure`] says what happens then. Nothing waits in silence.
//!
//! Absent on purpose: udev, fsck, LVM, persistent writes.

use std::{convert::Infallible, fs, io};

use self::{
    cmdline::{CommandLine, OnFailure},
    drivers::Drivers,
    failure::BootError,
    log::Log,
    network::Lease,
};
use crate::{layout, record::BuildRecord};

pub mod address;
pub mod base_url;
mod cache;
mod client;
mod clock;
pub mod cmdline;
pub mod command;
mod disk;
mod drivers;
pub mod failure;
pub mod handover;
mod log;
mod mounts;
pub mod network;
pub mod root;
mod switch_root;
mod sys;
pub mod trace;
pub mod userinfo;

/// Boots the machine. Returns never: it becomes another program, or stays and says why not.
pub fn run() -> ! {
    let mounted = mounts::mount_kernel_file_systems();
    let log = Log::open();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let line = CommandLine::parse(&line);
    let on_failure = line.on_failure();
    let outcome = mounted.and_then(|()| boot(&log, &line, on_failure));
    let Err(error) = outcome;
    failure::stop(&log, &error, on_failure)
}

fn boot(log: &Log, line: &CommandLine, on_failure: OnFailure) -> Result<Infallible, BootError> {
    let settings = line.settings()?;
    log.info(&format!(
        "booting {} from {}",
        settings.image, settings.base_url
    ));
    let record = read_record()?;
    let mut drivers = Drivers::open(&record.kernel_release)?;
    drivers.load_all(&record.load)?;
    let mut lease = Lease::of(network::bring_up(log, &mut drivers, &settings)?);
    clock::set_if_unset(log);
    let cache_is_on_disk = cache::prepare(log, &mut drivers, &settings)?;
    let client = client::start(log, &settings, cache_is_on_disk, on_failure, &mut lease)?;
    let disk = disk::attach(&client.disk())?;
    let image = client.hide();
    let recorded = record.root.as_deref().map(str::parse).transpose();
    let recorded = recorded.map_err(BootError::RecordedRoot)?;
    let root = disk.find_root(settings.root.as_ref(), recorded.as_ref())?;
    mounts::mount_root(log, &mut drivers, &root, &settings)?;
    let network = lease.into_network();
    handover::prepare(log, &settings, network.as_ref(), image);
    switch_root::switch(log, &settings)
}

fn read_record() -> Result<BuildRecord, BootError> {
    let record = fs::read(layout::BUILD_RECORD)
        .and_then(|bytes| BuildRecord::decode(&bytes).map_err(io::Error::from))
        .map_err(BootError::Record)?;
    let running = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(BootError::Record)?;
    let running = running.trim_end();
    if running != record.kernel_release {
        return Err(BootError::WrongKernel {
            built: record.kernel_release,
            running: running.to_owned(),
        });
    }
    Ok(record)
}
