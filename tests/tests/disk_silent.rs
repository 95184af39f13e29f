//! The disk of a cache that says nothing any more: to what is written, or to anything. Nobody who reads from the mount
//! may wait for it longer than it takes to notice.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use circular_tests::file_system::FileSystem;
use circular_tests::images::{noise, sparse};
use circular_tests::mount::{Mount, Options};
use circular_tests::require::{self, Need};
use circular_tests::served::{MIB, disk, is_right, served};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

/// A file system to which writes hang, until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn now(system: &FileSystem) -> Result<Self> {
        fsfreeze("--freeze", system.path())?;
        Ok(Self(system.path().to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fsfreeze("--unfreeze", &self.0);
    }
}

fn fsfreeze(what: &str, path: &Path) -> Result<()> {
    let status = Command::new("fsfreeze").arg(what).arg(path).status()?;
    ensure!(status.success(), "fsfreeze ended with {status}");
    Ok(())
}

/// What [`is_right`] does, by a reader for each MiB, all at once: more than may wait for a disk.
fn is_right_for_all(path: &Path, expected: &[u8]) -> Result<()> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let read = |number: usize, expected: &[u8]| -> Result<()> {
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, (number * MIB) as u64)?;
        ensure!(found == expected, "MiB {number} is wrong");
        Ok(())
    };
    thread::scope(|scope| {
        let parts = expected.chunks(MIB).enumerate();
        let readers = parts.map(|(number, expected)| {
            let read = &read;
            scope.spawn(move || read(number, expected))
        });
        let readers: Vec<_> = readers.collect();
        for reader in readers {
            match reader.join() {
                Ok(read) => read?,
                Err(_) => bail!("a reader panicked"),
            }
        }
        Ok(())
    })
}

/// Waits until something is so, for a minute at most.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if is_so() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the client said `part` as often as `times`, and no more often.
fn has_said(mount: &mut Mount, part: &str, times: usize) -> Result<()> {
    wait_until(|| mount.output().matches(part).count() >= times);
    let said = mount.output();
    ensure!(
        said.matches(part).count() == times,
        "not {times} times `{part}`: {said}"
    );
    Ok(())
}

#[test]
fn disk_goes_on_without_a_cache_whose_disk_hangs() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let bytes = disk(24 * MIB);
    let (store, server) = served(&bytes)?;
    let system = FileSystem::in_file(&store.beside("disk"), 64 << 20)?;
    let cache = system.path().join("cache");
    let mut mount = Mount::start_with(&store, server.url(), "test:1", &options(cache))?;
    is_right(&mount.disk(), &bytes[..4 * MIB])?;

    let frozen = Frozen::now(&system)?;
    // Each of them brings something that is to be written, which hangs more threads than there are for it.
    is_right_for_all(&mount.disk(), &bytes)?;
    has_said(&mut mount, "does not answer;", 1)?;
    is_right_for_all(&mount.disk(), &bytes)?;
    drop(frozen);
    has_said(&mut mount, "answers again", 1)?;
    is_right(&mount.disk(), &bytes)?;
    is_right(&mount.disk(), &bytes)?;
    // It is used again, too: nothing is fetched.
    drop(server);
    is_right(&mount.disk(), &bytes)?;
    ensure!(mount.stop()?.success(), "the client does not end well");
    Ok(())
}

/// What the files below `directory` occupy.
fn occupied(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => occupied(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[test]
fn disk_is_pinned_in_the_end_though_the_disk_of_its_cache_hangs_meanwhile() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let bytes = disk(192 * MIB);
    let (store, server) = served(&bytes)?;
    let system = FileSystem::in_file(&store.beside("disk"), 768 << 20)?;
    let cache = system.path().join("cache");
    let mut options = options(cache.clone());
    options.arguments.push("--pin".to_owned());
    let mut mount = Mount::start_with(&store, server.url(), "test:1", &options)?;
    wait_until(|| occupied(&cache) > 4 << 20);
    ensure!(
        occupied(&cache) > 4 << 20,
        "nothing is brought into the cache"
    );
    let frozen = Frozen::now(&system)?;
    has_said(&mut mount, "does not answer;", 1)?;
    // Longer than any number of rounds that find nothing takes.
    thread::sleep(Duration::from_secs(5));
    drop(frozen);
    has_said(&mut mount, "all of the disk is in the cache", 1)?;
    let said = mount.output();
    ensure!(!said.contains("not all of the disk"), "{said}");
    drop(server);
    is_right(&mount.disk(), &bytes)?;
    ensure!(mount.stop()?.success(), "the client does not end well");
    Ok(())
}

/// A mount whose cache is there, with next to no memory: what is read is read from the disk of the cache.
fn options(cache: PathBuf) -> Options {
    Options {
        cache: Some(cache),
        arguments: ["--memory-cache", "1M", "--no-passthrough"]
            .map(str::to_owned)
            .to_vec(),
        ..Options::default()
    }
}

/// An ext4 on a disk that one of our own mounts shows: when that stops, so does whatever is asked of it, by all that
/// sync this machine too. A test with it runs alone.
struct Shown {
    system: FileSystem,
    under: Mount,
    _server: Server,
    _store: TestStore,
}

impl Shown {
    fn begin() -> Result<Self> {
        let (store, server) = served(&vec![0; 96 * MIB])?;
        let overlay = store.beside("overlay");
        let overlay = overlay.to_str().context("test paths are plain")?;
        let options = Options {
            arguments: vec!["--overlay".to_owned(), overlay.to_owned()],
            ..Options::default()
        };
        let under = Mount::start_with(&store, server.url(), "test:1", &options)?;
        let system = FileSystem::on(&under.disk(), &store.beside("tree"))?;
        Ok(Self {
            system,
            under,
            _server: server,
            _store: store,
        })
    }

    fn stop(&self) -> Result<Stopped> {
        let stopped = Stopped(Pid::from_raw(self.under.id().try_into()?));
        kill(stopped.0, Signal::SIGSTOP)?;
        let process = stopped.0;
        thread::spawn(move || {
            thread::sleep(STOPPED_MAX);
            kill(process, Signal::SIGCONT)
        });
        Ok(stopped)
    }
}

/// A process that does nothing, until this is dropped, or for as long as a test may take: whatever hangs then does not
/// keep the machine.
struct Stopped(Pid);

/// How long that is.
const STOPPED_MAX: Duration = Duration::from_secs(120);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Has the kernel write all, and forget what it read of the files below `directory`.
fn forget(directory: &Path) -> Result<()> {
    sync();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else {
            let file = File::open(path)?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

#[test]
fn disk_goes_on_without_a_cache_whose_disk_answers_nothing() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let bytes = disk(24 * MIB);
    let (store, server) = served(&bytes)?;
    let shown = Shown::begin()?;
    let cache = shown.system.path().join("cache");
    let options = options(cache.clone());
    let mut mount = Mount::start_with(&store, server.url(), "test:1", &options)?;
    // Two thirds are there, and read from there.
    is_right(&mount.disk(), &bytes[..16 * MIB])?;
    is_right(&mount.disk(), &bytes[..16 * MIB])?;

    forget(&cache)?;
    let stopped = shown.stop()?;
    is_right_for_all(&mount.disk(), &bytes)?;
    has_said(&mut mount, "does not answer;", 1)?;
    is_right_for_all(&mount.disk(), &bytes)?;
    // One that begins meanwhile has no cache, and ends all the same.
    let other = Mount::start_with(&store, server.url(), "test:1", &options)?;
    is_right_for_all(&other.disk(), &bytes)?;
    ensure!(
        other.stop()?.success(),
        "one without a cache does not end well"
    );
    drop(stopped);
    has_said(&mut mount, "answers again", 1)?;
    is_right(&mount.disk(), &bytes)?;
    is_right(&mount.disk(), &bytes)?;
    drop(server);
    is_right(&mount.disk(), &bytes)?;

    // One that ends meanwhile is not mounted any more; its process may be held by what it writes there.
    forget(&cache)?;
    let stopped = shown.stop()?;
    let disk = mount.disk();
    mount.terminate()?;
    wait_until(|| !disk.exists());
    ensure!(!disk.exists(), "it is mounted still");
    drop(stopped);
    ensure!(mount.wait()?.success(), "the client does not end well");
    Ok(())
}

#[test]
fn disk_in_a_tree_goes_on_without_a_cache_whose_disk_answers_nothing() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let bytes = disk(24 * MIB);
    let (store, server) = served(&bytes)?;
    let (image, other) = (store.beside("other"), noise(8, 8 * MIB));
    sparse(&image, other.len() as u64, &[(0, other.clone())])?;
    store.publish(&image, "other:1")?;
    let shown = Shown::begin()?;
    let cache = shown.system.path().join("cache");
    let mut tree = Mount::tree(&store, server.url(), &options(cache.clone()))?;
    let disk = tree.disk_of("test", "1");
    is_right(&disk, &bytes[..16 * MIB])?;
    is_right(&disk, &bytes[..16 * MIB])?;

    forget(&cache)?;
    let stopped = shown.stop()?;
    is_right_for_all(&disk, &bytes)?;
    has_said(&mut tree, "does not answer;", 1)?;
    // An image can be opened meanwhile, too.
    is_right_for_all(&tree.disk_of("other", "1"), &other)?;
    is_right_for_all(&disk, &bytes)?;
    drop(stopped);
    has_said(&mut tree, "answers again", 1)?;
    is_right(&disk, &bytes)?;
    is_right(&disk, &bytes)?;
    is_right(&tree.disk_of("other", "1"), &other)?;
    ensure!(tree.stop()?.success(), "the client does not end well");
    Ok(())
}
