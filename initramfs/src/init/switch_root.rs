//! Leaves the initramfs for good: frees its memory and becomes the image's init.
//!
//! The client keeps running in what is left behind: an empty tree with the mounts of cache,
//! root and overlay in it, which no other process can see.

use std::{
    convert::Infallible,
    env, fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{self, statfs},
    unistd::{chdir, chroot},
};

use super::{
    cmdline::Settings,
    failure::BootError,
    handover::new_root::NewRoot,
    log::Log,
    mounts::{KERNEL_FILE_SYSTEMS, NEW_ROOT},
};
use crate::layout;

/// Becomes the init of the image.
///
/// # Errors
/// Fails if the image has none, before anything is lost; later failures are the kernel's.
pub(super) fn switch(log: &Log, settings: &Settings) -> Result<Infallible, BootError> {
    let failed =
        |step: &'static str| move |source: io::Error| BootError::SwitchRoot { step, source };
    let root = NewRoot::open(Path::new(NEW_ROOT)).map_err(failed("cannot open the new root"))?;
    let program = find_program(&root, settings.init.as_deref())?;
    drop(root);
    log.info(&format!("starting {program}"));
    for path in KERNEL_FILE_SYSTEMS {
        move_mount(path, &format!("{NEW_ROOT}{path}"))
            .map_err(failed("cannot move /dev, /proc, /sys and /run"))?;
    }
    if let Err(error) = free_initramfs() {
        log.warn(&format!("cannot free the memory of the initramfs: {error}"));
    }
    chdir(NEW_ROOT).map_err(|error| failed("cannot enter it")(error.into()))?;
    move_mount(".", "/").map_err(failed("cannot move it to /"))?;
    chroot(".").map_err(|error| failed("cannot make it the root")(error.into()))?;
    chdir("/").map_err(|error| failed("cannot enter it")(error.into()))?;
    // What the kernel did not know on its command line, it handed to us, for init.
    let error = Command::new(&program).args(env::args_os().skip(1)).exec();
    Err(failed("cannot start its init")(error))
}

fn find_program(root: &NewRoot, asked: Option<&str>) -> Result<String, BootError> {
    let candidates: Vec<&str> = match asked {
        Some(program) => vec![program],
        None => layout::INITS.to_vec(),
    };
    let found = candidates.iter().find(|program| root.is_program(program));
    found
        .map(|program| (*program).to_owned())
        .ok_or_else(|| BootError::NoInit {
            tried: candidates.join(", "),
        })
}

fn move_mount(from: &str, to: &str) -> io::Result<()> {
    let nothing: Option<&str> = None;
    Ok(mount(Some(from), to, nothing, MsFlags::MS_MOVE, nothing)?)
}

/// Deletes all files of the initramfs; other mounts are not entered.
fn free_initramfs() -> io::Result<()> {
    let kind = statfs("/")?.filesystem_type();
    let in_memory = [statfs::TMPFS_MAGIC, statfs::FsType(RAMFS_MAGIC)].contains(&kind);
    // Only what the kernel unpacked into memory is ever deleted.
    if !in_memory || !Path::new("/init").exists() {
        return Ok(());
    }
    let device = fs::symlink_metadata("/")?.dev();
    delete_below(Path::new("/"), device, &KEPT.map(Path::new))
}

/// What the client asks name servers by, for a server that moves to another address.
const KEPT: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

/// From linux/magic.h.
const RAMFS_MAGIC: nix::libc::__fsword_t = 0x8584_58f6;

fn delete_below(directory: &Path, device: u64, kept: &[&Path]) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device || kept.contains(&path.as_path()) {
            continue;
        }
        if metadata.is_dir() {
            delete_below(&path, device, kept)?;
            // Stays if something is mounted or kept below it.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_all_that_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("etc/ssl")).unwrap();
        fs::create_dir(root.join("bin")).unwrap();
        for file in ["etc/resolv.conf", "etc/ssl/certs", "bin/client", "init"] {
            fs::write(root.join(file), file).unwrap();
        }
        let kept = root.join("etc/resolv.conf");
        let device = fs::symlink_metadata(root).unwrap().dev();
        delete_below(root, device, &[&kept, &root.join("etc/hosts")]).unwrap();
        let left = |directory: &Path| fs::read_dir(directory).unwrap().count();
        assert_eq!((left(root), left(&root.join("etc"))), (1, 1));
        assert_eq!(fs::read(&kept).unwrap(), b"etc/resolv.conf");
    }
}
