//! Disks that are written to while the workers that serve them die: nothing that was written is lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{EIO, ENOSPC, O_DIRECT};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Supervised, store, wait_for};
use crate::mount::{assert_ok, can_mount, mount, mount_dir, program};
use crate::overlay::directory;
use crate::server::{Manner, serve};
use crate::store::{Random, Store};

/// Who writes at once, each to a part of the disk of its own.
const WRITERS: usize = 4;

/// Longest write or read.
const LEN_MAX: usize = 200_000;

/// A mounted disk with an overlay in memory, and a supervisor.
struct Place {
    store: Arc<Store>,
    base: String,
    overlay: PathBuf,
    supervised: Supervised,
    _directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self::on(directory())
    }

    /// With the overlay in `directory`.
    fn on(directory: tempfile::TempDir) -> Self {
        let store = store(1500);
        let base = serve(&store, Manner::Right);
        let overlay = directory.path().join("overlay");
        let extra = ["--supervise", "--overlay", overlay.to_str().unwrap()];
        let supervised = Supervised::new(&store, &base, &extra);
        Self {
            store,
            base,
            overlay,
            supervised,
            _directory: directory,
        }
    }

    /// Unmounts, and mounts again as anybody would: what is on the disk then.
    fn end(self) -> (Vec<u8>, String) {
        nix::mount::umount(&self.supervised.mounted.point()).unwrap();
        self.ended()
    }

    /// The same of what is unmounted already.
    fn ended(self) -> (Vec<u8>, String) {
        let log = self.supervised.ended();
        let mounted = mount_dir(&self.store);
        let overlay = self.overlay.to_str().unwrap();
        assert_ok(&mount(&self.base, &mounted, &["--overlay", overlay]));
        let found = std::fs::read(mounted.disk()).unwrap();
        nix::mount::umount(&mounted.point()).unwrap();
        (found, log)
    }
}

/// Writes, reads, discards and syncs in a part of the disk, past the kernel's cache, until told to stop; `model` is what has
/// to be there, all the time.
fn work(
    path: &Path,
    start: usize,
    model: &mut [u8],
    seed: u64,
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)?;
    let mut random = Random(seed);
    let mut below = |n: usize| usize::try_from(random.next() % n as u64).unwrap();
    while !stop.load(Ordering::Relaxed) {
        // Blocks, parts of them, and what lies across their edges.
        let grain = [1, 512, 4096][below(3)];
        let at = below(model.len()) / grain * grain;
        let most = [grain, 20_000, LEN_MAX][below(3)];
        let len = (1 + below(most)).next_multiple_of(grain);
        let part = at..model.len().min(at + len);
        let place = (start + part.start) as u64;
        match below(10) {
            0..5 => {
                let fill = below(256).to_le_bytes()[0];
                let bytes = vec![fill; part.len()];
                file.write_all_at(&bytes, place)?;
                model[part].fill(fill);
            }
            5..8 => {
                let mut bytes = vec![0; part.len()];
                file.read_exact_at(&mut bytes, place)?;
                if bytes != model[part.clone()] {
                    return Err(io::Error::other(format!("wrong bytes at {place}, {len}")));
                }
            }
            8 => {
                let flags =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let signed = |number: usize| i64::try_from(number).unwrap();
                fallocate(&file, flags, signed(start + part.start), signed(part.len()))?;
                model[part].fill(0);
            }
            _ => file.sync_data()?,
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Has writers at work while `fail` does its worst, step by step, each after all got on. Returns what has to be on the disk.
fn through(place: &Place, steps: usize, mut fail: impl FnMut(usize)) -> Vec<u8> {
    let mut model = place.store.disk.clone();
    let path = place.supervised.mounted.disk();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let share = model.len() / WRITERS;
    std::thread::scope(|scope| {
        let writers = model.chunks_mut(share).enumerate();
        let writers: Vec<_> = writers
            .map(|(number, part)| {
                let (path, stop, done) = (&path, &stop, &done);
                scope.spawn(move || work(path, number * share, part, number as u64, stop, done))
            })
            .collect();
        let get_on = || {
            let before = done.load(Ordering::Relaxed);
            let alive = || writers.iter().all(|writer| !writer.is_finished());
            while alive() && done.load(Ordering::Relaxed) < before + 40 {
                std::thread::yield_now();
            }
        };
        for step in 0..steps {
            get_on();
            fail(step);
        }
        get_on();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let outcome = writer.join().unwrap();
            outcome.unwrap_or_else(|error| panic!("{error}: {}", place.supervised.log()));
        }
    });
    println!("{steps} steps, {} operations", done.load(Ordering::Relaxed));
    model
}

#[test]
fn fifty_deaths_of_the_worker_lose_nothing_that_was_written() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let model = through(&place, 50, |_| place.supervised.kill_worker());
    place.supervised.wait_for_restarts(50);
    let (found, log) = place.end();
    assert!(found == model, "what was written is there: {log}");
    let deaths = log.matches("the worker ended; readers wait").count();
    assert_eq!(deaths, 50, "{log}");
}

#[test]
fn a_disk_that_is_written_to_is_handed_over_with_what_was_written() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let model = through(&place, 6, |step| {
        place.supervised.signal(Signal::SIGUSR2);
        place.supervised.wait_for_restarts(2 * step + 1);
        place.supervised.kill_worker();
        place.supervised.wait_for_restarts(2 * step + 2);
    });
    let (found, log) = place.end();
    assert!(found == model, "what was written is there: {log}");
    assert_eq!(log.matches("handing the mount over").count(), 6, "{log}");
}

/// Nobody needs the mount any more, but what was written has to get to the disk.
#[test]
fn a_worker_that_dies_when_its_mount_ends_is_followed_by_one_that_syncs() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut model = place.store.disk.clone();
    let file = File::options()
        .write(true)
        .open(place.supervised.mounted.disk());
    let file = file.unwrap();
    file.write_all_at(&[7; 100_000], 5000).unwrap();
    model[5000..105_000].fill(7);
    drop(file);
    let [worker] = place.supervised.workers()[..] else {
        panic!("one worker");
    };
    let worker = Pid::from_raw(worker);
    kill(worker, Signal::SIGSTOP).unwrap();
    umount2(&place.supervised.mounted.point(), MntFlags::MNT_DETACH).unwrap();
    kill(worker, Signal::SIGKILL).unwrap();
    let (found, log) = place.ended();
    assert!(found == model, "what was written is there: {log}");
    assert!(log.contains("starting another for that"), "{log}");
}

/// A file that somebody has cut off is no overlay any more: errors, for what is not there will not come; and no good end.
#[test]
fn an_overlay_that_cannot_be_taken_over_is_errors_and_not_a_hang() {
    if !can_mount() {
        return;
    }
    let Place {
        mut supervised,
        overlay,
        _directory,
        ..
    } = Place::new();
    let disk = supervised.mounted.disk();
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(disk);
    let file = file.unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    File::options()
        .write(true)
        .open(&overlay)
        .unwrap()
        .set_len(4096)
        .unwrap();
    supervised.kill_worker();
    let read = file.read_exact_at(&mut [0; 4096], 0).unwrap_err();
    assert_eq!(read.raw_os_error(), Some(EIO));
    let written = file.write_all_at(&[8; 4096], 0).unwrap_err();
    assert_eq!(written.raw_os_error(), Some(EIO));
    drop(file);
    nix::mount::umount(&supervised.mounted.point()).unwrap();
    assert_eq!(supervised.child.wait().unwrap().code(), Some(1));
    let log = supervised.log();
    assert!(log.contains("the disk gives errors from now on"), "{log}");
    // Others tried as well, before it was given up.
    assert_eq!(log.matches("starting another for that").count(), 5, "{log}");
}

/// A write that had no room was not made, and the next worker knows that.
#[test]
fn a_full_disk_and_deaths_lose_nothing_that_was_written() {
    if !can_mount() {
        return;
    }
    let small = directory();
    let size = Some("size=4m");
    nix::mount::mount(
        Some("none"),
        small.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        size,
    )
    .unwrap();
    let point = small.path().to_owned();
    let place = Place::on(small);
    let mut model = place.store.disk.clone();
    let mut disk = File::options();
    let disk = disk.read(true).write(true).custom_flags(O_DIRECT);
    let file = disk.open(place.supervised.mounted.disk()).unwrap();
    let mut random = Random(1);
    let (mut refused, mut deaths) = (0, 0);
    for step in 0..400_u64 {
        let at = usize::try_from(random.next()).unwrap() % 370 * 16_384;
        let bytes = vec![step.to_le_bytes()[0]; 16_384];
        match file.write_at(&bytes, at as u64) {
            Ok(count) => model[at..at + count].fill(bytes[0]),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(ENOSPC));
                refused += 1;
                // What a refused write did write may be there, whole blocks of it.
                file.read_exact_at(&mut model[at..at + 16_384], at as u64)
                    .unwrap();
            }
        }
        if step % 50 == 0 {
            file.sync_all().unwrap();
        }
        if step % 37 == 0 {
            place.supervised.kill_worker();
            deaths += 1;
            let mut found = vec![0; model.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == model, "step {step}, {refused} refused");
        }
    }
    assert!(refused > 10, "{refused} writes were refused");
    place.supervised.wait_for_restarts(deaths);
    drop(file);
    let (found, _) = place.end();
    assert!(found == model);
    umount2(&point, MntFlags::MNT_DETACH).unwrap();
}

/// Between two workers, too, the overlay is that of this mount.
#[test]
fn nobody_else_gets_the_overlay_of_a_supervised_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let is_free = || {
        let file = File::open(&place.overlay).unwrap();
        let lock = nix::fcntl::FlockArg::LockExclusiveNonblock;
        nix::fcntl::Flock::lock(file, lock).is_ok()
    };
    assert!(!is_free());
    for restarts in 1..4 {
        place.supervised.kill_worker();
        assert!(!is_free());
        place.supervised.wait_for_restarts(restarts);
        place.supervised.signal(Signal::SIGUSR1);
        assert!(!is_free());
    }
    let Place {
        supervised,
        overlay,
        _directory,
        ..
    } = place;
    supervised.end();
    let file = File::open(&overlay).unwrap();
    wait_for(|| {
        let lock = nix::fcntl::FlockArg::LockExclusiveNonblock;
        nix::fcntl::Flock::lock(file.try_clone().unwrap(), lock).ok()
    });
}

#[test]
fn what_is_written_is_not_passed_on_by_a_supervisor() {
    if !can_mount() {
        return;
    }
    let store = store(16);
    let directory = directory();
    let overlay = directory.path().join("overlay");
    let mounted = mount_dir(&store);
    let extra = [
        "--supervise=relay",
        "--overlay",
        overlay.to_str().unwrap(),
        "--foreground",
        "--no-cache",
    ];
    let base = serve(&store, Manner::Right);
    let mut command = program(&base, &mounted, &mounted.point(), &extra);
    let refused = command.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("leave out --supervise, or --overlay"),
        "{said}"
    );
    // Nothing is mounted there.
    let is_there = std::fs::read_dir(mounted.point()).map(Iterator::count);
    assert!(matches!(is_there, Ok(0)), "{is_there:?}");
}
