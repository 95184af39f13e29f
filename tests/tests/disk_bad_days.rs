//! What a mounted disk lives through on the machine that it is mounted on: caches that fill up, turn read-only, rot or
//! vanish; a disk under its overlay that fails; many readers at once; the part of a root disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use circular_tests::file_system::FileSystem;
use circular_tests::images::noise;
use circular_tests::mount::{Mount, Options};
use circular_tests::random::Random;
use circular_tests::require::{self, Need};
use circular_tests::served::{MIB, disk, is_right, served};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use nix::libc::{EIO, EROFS};
use nix::mount::{MntFlags, umount2};
use serde_json::Value;

/// What becomes of a cache while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Small,
    FilledByOthers,
    ReadOnly,
    Rotten,
    Truncated,
    Punched,
    Foreign,
    Removed,
}

const TROUBLES: [Trouble; 8] = [
    Trouble::Small,
    Trouble::FilledByOthers,
    Trouble::ReadOnly,
    Trouble::Rotten,
    Trouble::Truncated,
    Trouble::Punched,
    Trouble::Foreign,
    Trouble::Removed,
];

impl Trouble {
    /// Happens to the cache at `path` on `system`.
    fn strike(self, system: &FileSystem, path: &Path) -> Result<()> {
        match self {
            Self::Small => {}
            Self::FilledByOthers => drop(system.fill()?),
            Self::ReadOnly => {
                // As the kernel does when it finds the file system damaged.
                let device = system.device().context("it is on a device")?;
                let device = device.file_name().context("a device has a name")?;
                let trigger = Path::new("/sys/fs/ext4").join(device);
                fs::write(trigger.join("trigger_fs_error"), "1")?;
            }
            Self::Rotten => {
                let (file, mut random) = (raw(path)?, Random::new(9));
                for at in (0..file.metadata()?.len()).step_by(30_000) {
                    let at = at + random.below(29_000);
                    let mut byte = [0];
                    if file.read_at(&mut byte, at)? == 1 {
                        file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at)?;
                    }
                }
            }
            Self::Truncated => raw(path)?.set_len(3_000_000)?,
            Self::Punched => {
                let both = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                    | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
                nix::fcntl::fallocate(&raw(path)?, both, 1_000_000, 5_000_000)?;
            }
            Self::Foreign => {
                let length = raw(path)?.metadata()?.len();
                let foreign = noise(99, usize::try_from(length)?);
                raw(path)?.write_all_at(&foreign, 0)?;
            }
            Self::Removed => fs::remove_dir_all(path)?,
        }
        Ok(())
    }
}

/// The file of the only disk in a cache.
fn raw(cache: &Path) -> Result<File> {
    for entry in fs::read_dir(cache.join("disks-v1"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "raw") {
            return Ok(OpenOptions::new().read(true).write(true).open(path)?);
        }
    }
    bail!("no disk is cached in {}", cache.display())
}

#[test]
fn disk_is_right_whatever_becomes_of_its_cache() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    // One that the kernel may come to read from the cache by itself, and one that it may not.
    for length in [16 * MIB, 16 * MIB + 1234] {
        survives_all(&disk(length)).with_context(|| format!("{length} bytes"))?;
    }
    Ok(())
}

fn survives_all(bytes: &[u8]) -> Result<()> {
    let (store, server) = served(bytes)?;
    for trouble in TROUBLES {
        let size = if trouble == Trouble::Small {
            "5m"
        } else {
            "60m"
        };
        let path = store.beside(&format!("{trouble:?}"));
        let memory = FileSystem::in_memory(&path, size)?;
        let system = match trouble {
            Trouble::ReadOnly => FileSystem::in_file(&memory.path().join("disk"), 50 << 20)?,
            _ => memory,
        };
        survives(trouble, &system, &store, &server, bytes)
            .with_context(|| format!("{trouble:?}"))?;
    }
    Ok(())
}

/// Reads half of the disk into the cache, lets it meet its trouble, and reads all of the disk; then the same offline.
fn survives(
    trouble: Trouble,
    system: &FileSystem,
    store: &TestStore,
    server: &Server,
    bytes: &[u8],
) -> Result<()> {
    let cache = system.path().join("cache");
    let options = Options {
        cache: Some(cache.clone()),
        arguments: ["--memory-cache", "1M", "--verify-every", "1"]
            .map(str::to_owned)
            .to_vec(),
        ..Options::default()
    };
    let mut mount = Mount::start_with(store, server.url(), "test:1", &options)?;
    is_right(&mount.disk(), &bytes[..9 * MIB])?;
    trouble.strike(system, &cache)?;
    is_right(&mount.disk(), bytes)?;
    is_right(&mount.disk(), bytes)?;
    let said = mount.output();
    ensure!(!said.contains("ERROR"), "{said}");
    let complaints = said.lines().filter(|line| line.contains("WARN")).count();
    ensure!(complaints < 3, "the log is full of it: {said}");
    ensure!(mount.stop()?.success(), "the client does not end well");
    if !matches!(
        trouble,
        Trouble::ReadOnly | Trouble::Removed | Trouble::Small
    ) {
        trouble.strike(system, &cache)?;
    }
    let mount = Mount::start_with(store, server.url(), "test:1", &options)?;
    is_right(&mount.disk(), bytes).context("mounted again")?;
    ensure!(mount.stop()?.success(), "the client does not end well");
    Ok(())
}

fn writable(store: &TestStore, url: &str, overlay: &Path, more: &[&str]) -> Result<Mount> {
    let overlay = overlay.to_str().context("test paths are plain")?;
    let arguments = [&["--overlay", overlay], more].concat();
    let options = Options {
        arguments: arguments.into_iter().map(str::to_owned).collect(),
        ..Options::default()
    };
    Mount::start_with(store, url, "test:1", &options)
}

fn open(mount: &Mount) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(mount.disk())
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn disk_whose_overlay_cannot_be_synced_takes_no_more_writes_until_it_is_mounted_again() -> Result<()>
{
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let mut bytes = disk(16 * MIB);
    let (store, server) = served(&bytes)?;
    // A disk that promises more than the memory that it is in: what is new on it can be made to fail.
    let memory = FileSystem::in_memory(&store.beside("memory"), "24m")?;
    let tree = FileSystem::in_file(&memory.path().join("disk"), 100 << 20)?;
    let overlay = tree.path().join("overlay");

    let mount = writable(&store, server.url(), &overlay, &[])?;
    let file = open(&mount)?;
    let synced = noise(1, MIB);
    file.write_all_at(&synced, 0)?;
    file.sync_all()?;
    bytes[..MIB].copy_from_slice(&synced);
    // From now on, blocks that were never written cannot be.
    let filler = memory.fill()?;
    let lost = noise(2, 6 * MIB);
    file.write_all_at(&lost, MIB as u64)?;
    ensure!(
        errno(file.sync_all()) == Some(EIO),
        "the sync does not fail"
    );
    ensure!(
        errno(file.write_all_at(&[1], 0)) == Some(EIO),
        "a write is taken"
    );
    ensure!(
        errno(file.sync_all()) == Some(EIO),
        "the next sync says that all is well"
    );
    // The disk is well again, but nobody knows what is on it.
    fs::remove_file(filler)?;
    ensure!(
        errno(file.write_all_at(&[1], 0)) == Some(EIO),
        "a write is taken"
    );
    drop(file);
    is_right(&mount.disk(), &bytes[..MIB]).context("what was synced")?;
    let ended = mount.stop()?;
    ensure!(ended.code() == Some(1), "the client ended with {ended}");

    let mount = writable(&store, server.url(), &overlay, &[])?;
    let file = open(&mount)?;
    let mut found = vec![0; 7 * MIB];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found[..MIB] == synced, "what was synced is gone");
    // What was not synced is there or not, block by block of one write.
    let either = |at: usize| {
        let block = &found[at..at + 4096];
        block == &bytes[at..at + 4096] || block == &lost[at - MIB..at - MIB + 4096]
    };
    ensure!(
        (MIB..7 * MIB).step_by(4096).all(either),
        "a block is neither"
    );
    file.write_all_at(&lost, MIB as u64)?;
    file.sync_all()?;
    bytes[MIB..7 * MIB].copy_from_slice(&lost);
    drop(file);
    is_right(&mount.disk(), &bytes)?;
    ensure!(mount.stop()?.success(), "the client does not end well");
    Ok(())
}

/// Unmounts as somebody at the machine does.
fn unmount(mount: Mount) -> Result<()> {
    let point = mount.disk().parent().map(PathBuf::from);
    umount2(
        &point.context("a disk lies in its mount")?,
        MntFlags::empty(),
    )?;
    ensure!(mount.wait()?.success(), "the client does not end well");
    Ok(())
}

#[test]
fn disk_of_a_root_is_written_with_an_overlay_only_and_outlives_signals() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let mut bytes = disk(3 * MIB);
    let (store, server) = served(&bytes)?;
    let arguments = vec!["--initramfs".to_owned()];
    let options = Options {
        arguments,
        ..Options::default()
    };
    let mount = Mount::start_with(&store, server.url(), "test:1", &options)?;
    ensure!(errno(open(&mount)) == Some(EROFS), "it can be written");
    is_right(&mount.disk(), &bytes)?;
    unmount(mount)?;

    let overlay = store.beside("overlay");
    let mut mount = writable(&store, server.url(), &overlay, &["--initramfs"])?;
    let file = open(&mount)?;
    file.write_all_at(b"this root is written to", 1_000_000)?;
    bytes[1_000_000..1_000_023].copy_from_slice(b"this root is written to");
    mount.terminate()?;
    file.write_all_at(b"still", 2_000_000)?;
    bytes[2_000_000..2_000_005].copy_from_slice(b"still");
    file.sync_all()?;
    drop(file);
    is_right(&mount.disk(), &bytes)?;
    unmount(mount)?;

    let mount = writable(&store, server.url(), &overlay, &["--initramfs"])?;
    is_right(&mount.disk(), &bytes)?;
    unmount(mount)
}

/// What the client may use beside its caches.
const OWN_KIB_MAX: u64 = 32 << 10;

#[test]
fn disk_with_many_readers_and_a_cold_cache_fetches_no_chunk_twice_in_bounded_memory() -> Result<()>
{
    const READERS: usize = 24;
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let bytes = disk(48 * MIB);
    let (store, server) = served(&bytes)?;
    let options = Options {
        cache: Some(store.beside("cache")),
        arguments: ["--memory-cache", "16M"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mount = Mount::start_with(&store, server.url(), "test:1", &options)?;
    let path = mount.disk();
    let read = |reader: usize| -> Result<()> {
        let (file, piece) = (File::open(&path)?, MIB / 2);
        let (mut found, n) = (vec![0; piece], bytes.len() / piece);
        // A few go through the disk together; the others begin elsewhere.
        for step in 0..n {
            let at = (reader / 4 * n / (READERS / 4) + step) % n * piece;
            file.read_exact_at(&mut found, at as u64)?;
            ensure!(found == bytes[at..at + piece], "wrong bytes at {at}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| scope.spawn(move || read(reader)))
            .collect();
        let ended = readers
            .into_iter()
            .map(|reader| reader.join().expect("it does not panic"));
        ended.collect::<Result<()>>()
    })?;
    let about = path
        .parent()
        .context("a disk lies in its mount")?
        .join(".circular");
    let stats: Value = serde_json::from_slice(&fs::read(about.join("stats.json"))?)?;
    let duplicates = &stats["duplicate_chunks"];
    let fetched = stats["chunks"].as_u64().context("it counts chunks")?;
    ensure!(
        duplicates == 0 && fetched > 100,
        "{fetched} chunks: {stats}"
    );
    let peak = peak_kib(mount.id())?;
    println!("{peak} KiB at most");
    ensure!(
        peak <= OWN_KIB_MAX + (16 << 10),
        "{peak} KiB with a cache of 16 MiB"
    );
    ensure!(mount.stop()?.success(), "the client does not end well");
    Ok(())
}

/// The most memory that a process had at once.
fn peak_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("the kernel tells")?.parse()?)
}
