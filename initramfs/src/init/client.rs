//! Starts the client, which serves the image as a file, and sees to it that it comes up.
//!
//! The client outlives this process's time as init: its name begins with `@`, so that systemd
//! spares it when it ends all others, and everything it needs is open before the root changes.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    mount::{MntFlags, umount2},
    poll::{PollFd, PollFlags, poll},
    sys::statvfs::statvfs,
    unistd::pipe2,
};

use super::{
    cache::CACHE,
    cmdline::{Cache, OnFailure, Settings},
    failure::{self, BootError},
    log::Log,
    network::Lease,
    sys,
    userinfo::Token,
};
use crate::layout;

/// Where the client mounts the image.
const MOUNT_POINT: &str = "/circular/disk";
/// The client keeps this part of the machine's memory full of chunks at most. What it drops is in its cache on
/// [`CACHE`], or with the server; what programs lack is nowhere.
const MEMORY_CACHE_PART: u64 = 16;
/// Enough for the chunks that some readers wait for.
const MEMORY_CACHE_MIN: u64 = 4 << 20;
/// As much as a client takes by itself.
const MEMORY_CACHE_MAX: u64 = 64 << 20;
/// A boot pack that is no longer than this part of memory (nor than [`MEMORY_CACHE_MAX`]) stays in memory, compressed:
/// what the machine's boot and its end read is there when its server is not.
const KEPT_PART: u64 = 8;
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often to say that the client is not ready yet.
const PROGRESS_MILLIS: u16 = 10_000;

/// A client that serves.
#[derive(Debug)]
pub(super) struct Client;

impl Client {
    /// Returns the file that is the image's disk.
    pub(super) fn disk(&self) -> PathBuf {
        PathBuf::from(MOUNT_POINT).join("disk.raw")
    }

    /// Takes the mount out of sight once a loop device holds the disk, and returns what the client
    /// says about the image. A mount that systemd can see, it unmounts by force at shutdown,
    /// which ends the client while the root still needs it.
    pub(super) fn hide(self) -> Option<Vec<u8>> {
        let image = fs::read(format!("{MOUNT_POINT}/.circular/image.json")).ok();
        unmount();
        image
    }
}

/// Starts the client and waits until it serves; tries again for ever when it ends before.
///
/// # Errors
/// Fails if there is no client to start.
pub(super) fn start(
    log: &Log,
    settings: &Settings,
    cache_is_on_disk: bool,
    on_failure: OnFailure,
    lease: &mut Lease,
) -> Result<Client, BootError> {
    if let Some(token) = &settings.token {
        keep_token(log, token).map_err(BootError::Token)?;
    }
    let mut pause = Duration::from_secs(1);
    let mut offer_shell = on_failure.shell;
    loop {
        match try_once(log, settings, cache_is_on_disk, lease).map_err(BootError::Client)? {
            None => return Ok(Client),
            Some(status) => log.error(&format!(
                "the client ended before it served the disk ({status}); its messages are above"
            )),
        }
        unmount();
        if std::mem::take(&mut offer_shell) {
            failure::shell(log);
        }
        log.info(&format!(
            "starting the client again in {} s",
            pause.as_secs()
        ));
        thread::sleep(pause);
        lease.renew_if_due(log);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Keeps the token that came with the address for the client; one that is there is there on purpose.
fn keep_token(log: &Log, token: &Token) -> io::Result<()> {
    let mut options = fs::File::options();
    match options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(layout::TOKEN)
    {
        Ok(mut file) => file.write_all(token.secret().as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            log.info("the token of the initrd is used, not that of the address");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// A mount left by a client that ended would be in the way of the next; most often there is none.
fn unmount() {
    let _ = umount2(MOUNT_POINT, MntFlags::MNT_DETACH);
}

/// Starts the client; returns `None` once it serves, or how it ended.
fn try_once(
    log: &Log,
    settings: &Settings,
    cache_is_on_disk: bool,
    lease: &mut Lease,
) -> io::Result<Option<ExitStatus>> {
    let (ready, ready_writer) = pipe2(OFlag::O_CLOEXEC)?;
    // The client inherits this end; ours must go, or the pipe would not close with the client.
    fcntl(&ready_writer, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let child = spawn(settings, cache_is_on_disk, ready_writer.as_raw_fd());
    drop(ready_writer);
    let mut child = child?;
    if wait_until_ready(log, settings, ready, lease)? {
        let pid = child.id();
        log.info(&format!("the client serves the disk (process {pid})"));
        spare_at_shutdown(log, pid);
        return Ok(None);
    }
    child.wait().map(Some)
}

fn spawn(settings: &Settings, cache_is_on_disk: bool, ready_fd: RawFd) -> io::Result<Child> {
    let mut command = Command::new(layout::CLIENT);
    command
        .arg0("@circular-mount")
        .args(["--initramfs", "--foreground"])
        .args(["--root", layout::TRUSTED_ROOT]);
    for (option, path) in [
        ("--ca", layout::AUTHORITIES),
        ("--token-file", layout::TOKEN),
        ("--minimum", layout::MINIMUM),
    ] {
        if Path::new(path).exists() {
            command.args([option, path]);
        }
    }
    match settings.cache {
        Cache::Memory(_) | Cache::Disk(_) => {
            let size = cache_bytes()?.to_string();
            command.args(["--cache", CACHE, "--cache-size", &size])
        }
        Cache::Off => command.arg("--no-cache"),
    };
    if let Ok(memory) = fs::read_to_string("/proc/meminfo") {
        let size = memory_cache_bytes(&memory).to_string();
        command.args(["--memory-cache", &size]);
        // A local disk has room for what was read, and keeps it.
        if !cache_is_on_disk {
            let size = part_of_memory(&memory, KEPT_PART).to_string();
            command.args(["--keep-boot-pack", &size]);
        }
    }
    if let Some(seconds) = settings.deadline {
        command.args(["--deadline", &seconds.to_string()]);
    }
    for mirror in &settings.mirrors {
        command.args(["--mirror", mirror]);
    }
    if let Some(proxy) = &settings.proxy {
        command.args(["--proxy", proxy]);
    }
    if let Some(record) = &settings.record {
        command.args(record.options(&settings.base_url));
    }
    command
        .args(["--ready-fd", &ready_fd.to_string()])
        .args([&settings.base_url, &settings.image])
        .arg(MOUNT_POINT)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Log::for_child())
        .stderr(Log::for_child());
    sys::in_own_session(&mut command).spawn()
}

/// How much memory the client may keep full of chunks in a machine of which /proc/meminfo says this.
fn memory_cache_bytes(meminfo: &str) -> u64 {
    part_of_memory(meminfo, MEMORY_CACHE_PART).max(MEMORY_CACHE_MIN)
}

/// One of so many parts of the memory of such a machine, in bytes.
fn part_of_memory(meminfo: &str, parts: u64) -> u64 {
    let total = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()
    });
    let part = total.map_or(MEMORY_CACHE_MAX, |kib| (kib << 10) / parts);
    part.min(MEMORY_CACHE_MAX)
}

/// What the client keeps its files in, below the directory of the cache.
const CACHE_ROOMS: [&str; 3] = ["disks-v1", "documents-v1", "metadata-v1"];

/// Nearly all of the place that is free, or is the cache's already, is for chunks; the rest is for the cache's own notes, and on
/// a disk for whoever else keeps data there.
fn cache_bytes() -> io::Result<u64> {
    let place = statvfs(CACHE)?;
    let free = place.blocks_available() * place.fragment_size();
    let used: u64 = CACHE_ROOMS
        .iter()
        .map(|room| occupied(&Path::new(CACHE).join(room)))
        .sum();
    Ok((free + used) / 10 * 9)
}

/// What the files of a directory take on disk; nothing, if there is no such directory.
fn occupied(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.metadata().ok());
    files.map(|file| file.blocks() * 512).sum()
}

/// Says whether the client got ready; it did not if it closed the pipe without a word.
fn wait_until_ready(
    log: &Log,
    settings: &Settings,
    ready: OwnedFd,
    lease: &mut Lease,
) -> io::Result<bool> {
    loop {
        let mut pipe = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
        match poll(&mut pipe, PROGRESS_MILLIS) {
            Ok(0) => {
                log.info(&format!("waiting for the store at {}", settings.base_url));
                lease.renew_if_due(log);
            }
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut word = [0; 6];
    let mut ready = fs::File::from(ready);
    Ok(ready.read_exact(&mut word).is_ok() && word == *b"READY\n")
}

/// sysvinit's way to be told what not to end; systemd looks at the name.
fn spare_at_shutdown(log: &Log, pid: u32) {
    let directory = "/run/sendsigs.omit.d";
    let written = fs::create_dir_all(directory)
        .and_then(|()| fs::write(format!("{directory}/circular"), format!("{pid}\n")));
    if let Err(error) = written {
        log.warn(&format!("cannot write {directory}/circular: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_files_of_a_directory_take_is_added_up() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(occupied(&directory.path().join("none")), 0);
        let sparse = fs::File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        fs::write(directory.path().join("some"), vec![7; 40_000]).unwrap();
        sparse.sync_all().unwrap();
        let bytes = occupied(directory.path());
        assert!((40_000..100_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_small_machine_keeps_less_in_memory() {
        let of =
            |mib: u64| memory_cache_bytes(&format!("MemTotal: {} kB\nMemFree: 1 kB\n", mib << 10));
        assert_eq!(of(32), MEMORY_CACHE_MIN);
        assert_eq!(of(256), 16 << 20);
        assert_eq!(of(65_536), MEMORY_CACHE_MAX);
        assert_eq!(memory_cache_bytes("what is this"), MEMORY_CACHE_MAX);
        assert_eq!(part_of_memory("MemTotal: 262144 kB\n", KEPT_PART), 32 << 20);
    }
}
