//! Mounts what a boot mounts: the kernel's own file systems, memory, the root, the overlay.

use std::{fs, io};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{
    cmdline::{Settings, TmpfsSize},
    drivers::Drivers,
    failure::BootError,
    log::Log,
    root::Candidate,
};

/// The root of the image, read-only.
const LOWER: &str = "/circular/lower";
/// What the booted system writes.
const WRITES: &str = "/circular/writes";
/// The root of the booted system: the one over the other.
pub(super) const NEW_ROOT: &str = "/sysroot";

/// The file systems that are moved into the booted system.
pub(super) const KERNEL_FILE_SYSTEMS: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];

/// Mounts /proc, /sys, /dev and /run as systemd would.
pub(super) fn mount_kernel_file_systems() -> Result<(), BootError> {
    let secure = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let closed = secure | MsFlags::MS_NOEXEC;
    for (kind, target, flags, options) in [
        ("proc", "/proc", closed, None),
        ("sysfs", "/sys", closed, None),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=0755")),
        ("tmpfs", "/run", secure, Some("mode=0755,size=20%")),
    ] {
        match mount(Some(kind), target, Some(kind), flags, options) {
            // The kernel may have been built to mount /dev by itself.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(source) => return Err(BootError::Mount { target, source }),
        }
    }
    create("/run/circular")
}

fn create(target: &'static str) -> Result<(), BootError> {
    fs::create_dir_all(target).map_err(|error| BootError::Mount {
        target,
        source: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    })
}

/// Mounts a tmpfs: unlike the initramfs itself it has a bound, and holes where nothing was written.
pub(super) fn mount_memory(
    target: &'static str,
    size: &TmpfsSize,
    mode: &str,
) -> Result<(), BootError> {
    let options = format!("mode={mode},size={}", size.as_str());
    let kind = Some("tmpfs");
    mount(
        kind,
        target,
        kind,
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(|source| BootError::Mount { target, source })
}

/// Mounts the file system on `device`, to write to it, and to run nothing from it. Whom its directories are open to is
/// left as it is, for it may have other data; the client keeps its own to itself.
pub(super) fn mount_cache(device: &str, target: &str, filesystem: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    mount(Some(device), target, Some(filesystem), flags, None::<&str>)?;
    Ok(())
}

/// Mounts the root read-only and the overlay over it.
pub(super) fn mount_root(
    log: &Log,
    drivers: &mut Drivers,
    root: &Candidate,
    settings: &Settings,
) -> Result<(), BootError> {
    let device = root.device.clone();
    let found = root
        .superblock
        .as_ref()
        .map(|superblock| superblock.filesystem);
    let Some(filesystem) = settings.filesystem.or(found) else {
        return Err(BootError::UnknownRoot { device });
    };
    let filesystem_name = filesystem.name();
    drivers.load(filesystem_name)?;
    let fixed = filesystem.read_only_options().iter().copied();
    let given = settings.root_flags.iter().map(String::as_str);
    let options = fixed.chain(given).collect::<Vec<_>>().join(",");
    let flags = MsFlags::MS_RDONLY;
    mount(
        Some(device.as_str()),
        LOWER,
        Some(filesystem_name),
        flags,
        Some(options.as_str()),
    )
    .map_err(|source| BootError::Root {
        device: device.clone(),
        filesystem: filesystem_name,
        options,
        source,
    })?;
    log.info(&format!("the root is {filesystem} on {device}"));
    mount_memory(WRITES, &settings.overlay, "0755")?;
    create("/circular/writes/upper")?;
    create("/circular/writes/work")?;
    let options = format!("lowerdir={LOWER},upperdir={WRITES}/upper,workdir={WRITES}/work");
    let kind = Some("overlay");
    mount(
        kind,
        NEW_ROOT,
        kind,
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|source| BootError::Mount {
        target: NEW_ROOT,
        source,
    })
}
