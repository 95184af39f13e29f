//! Puts the client's cache in place: in memory, or on a local disk, which has it at the next boot too.
//!
//! What is on that disk is believed no more than what a server sends, and a machine whose disk is gone
//! boots without it.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    cmdline::{Cache, CacheDisk, Settings, TmpfsSize},
    disk,
    drivers::Drivers,
    failure::BootError,
    log::Log,
    mounts,
};

/// Where the client keeps what it fetched.
pub(super) const CACHE: &str = "/circular/cache";

/// A disk that is not there after this long, drivers loaded, will not come.
const DISK_WAIT: Duration = Duration::from_secs(10);

/// Between two looks for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Devices that are no disks of the machine.
const NO_DISKS: [&str; 4] = ["loop", "ram", "zram", "fd"];

/// Mounts what the cache is to lie on, if there is to be one, and returns whether that is a disk.
///
/// # Errors
/// There is not even memory for it.
pub(super) fn prepare(
    log: &Log,
    drivers: &mut Drivers,
    settings: &Settings,
) -> Result<bool, BootError> {
    match &settings.cache {
        Cache::Off => Ok(false),
        Cache::Memory(size) => mounts::mount_memory(CACHE, size, "0700").map(|()| false),
        Cache::Disk(wanted) => match mount_disk(log, drivers, wanted) {
            Ok(device) => {
                log.info(&format!("the cache is on {device}"));
                Ok(true)
            }
            Err(error) => {
                log.error(&format!(
                    "circular.cache={wanted}: {error}; the cache is in memory this time"
                ));
                mounts::mount_memory(CACHE, &TmpfsSize::for_cache(), "0700").map(|()| false)
            }
        },
    }
}

fn mount_disk(log: &Log, drivers: &mut Drivers, wanted: &CacheDisk) -> io::Result<String> {
    let until = Instant::now() + DISK_WAIT;
    let (device, filesystem) = loop {
        drivers.load_for_devices(log);
        match find(wanted) {
            Some(found) => break found,
            None if Instant::now() < until => thread::sleep(PAUSE),
            None => {
                return Err(io::Error::other(
                    "there is no such disk with a file system, or its driver is not in the initramfs (publish with --driver)",
                ));
            }
        }
    };
    drivers.load(filesystem).map_err(io::Error::other)?;
    mounts::mount_cache(&device, CACHE, filesystem)?;
    Ok(device)
}

/// The device that is wanted, and the file system on it.
fn find(wanted: &CacheDisk) -> Option<(String, &'static str)> {
    let devices = match wanted {
        CacheDisk::Device(path) => vec![path.clone()],
        CacheDisk::Uuid(_) | CacheDisk::Label(_) => local_devices(),
    };
    devices.into_iter().find_map(|device| {
        let superblock = disk::superblock(&device).ok().flatten()?;
        let is_it = match wanted {
            CacheDisk::Device(_) => true,
            CacheDisk::Uuid(uuid) => superblock.uuid.as_ref() == Some(uuid),
            CacheDisk::Label(label) => superblock.label.as_ref() == Some(label),
        };
        is_it.then(|| (device, superblock.filesystem.name()))
    })
}

/// Disks of the machine and their partitions.
fn local_devices() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/block") else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let names = names.filter(|name| !NO_DISKS.iter().any(|kind| name.starts_with(kind)));
    let mut devices: Vec<String> = names
        .map(|name| format!("/dev/{name}"))
        .filter(|device| Path::new(device).exists())
        .collect();
    devices.sort_unstable();
    devices
}
