//! A mount that outlives the process that serves it: what a reader sees when that process dies.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use nix::libc::{ENOTCONN, ESTALE, O_DIRECT};
use nix::mount::umount;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mount::{Mounted, assert_ok, can_mount, mount, mount_dir, program, supervise};
use crate::server::{Manner, serve};
use crate::store::{Random, Store, mixed_disk};

mod fio;
mod hang;
mod written;

/// Both ways in which requests get to the worker.
pub(crate) const WAYS: [&str; 2] = ["--supervise", "--supervise=relay"];

const BLOCK: usize = 4096;

/// A mount in the foreground, its supervisor a child of the test.
pub(crate) struct Supervised {
    pub(crate) mounted: Mounted,
    child: Child,
}

impl Supervised {
    pub(crate) fn new(store: &Arc<Store>, base: &str, extra: &[&str]) -> Self {
        Self::of(
            Path::new(env!("CARGO_BIN_EXE_circular-mount")),
            store,
            base,
            extra,
        )
    }

    fn of(binary: &Path, store: &Arc<Store>, base: &str, extra: &[&str]) -> Self {
        let mounted = mount_dir(store);
        let like = program(base, &mounted, &mounted.point(), extra);
        let mut command = Command::new(binary);
        command
            .args(like.get_args())
            .args([
                "--foreground",
                "--no-cache",
                "--deadline",
                "0",
                "--log-file",
            ])
            .arg(mounted.directory.path().join("log"))
            .env_remove("CIRCULAR_CACHE");
        let child = supervise(command);
        Self { mounted, child }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.mounted.directory.path().join("log")).unwrap()
    }

    /// The processes that the supervisor has, oldest first.
    fn workers(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let list = fs::read_to_string(path).unwrap_or_default();
        list.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    /// Kills the worker and waits until another process is in its place.
    pub(crate) fn kill_worker(&self) {
        let worker = wait_for(|| self.workers().last().copied());
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        wait_for(|| {
            self.workers()
                .iter()
                .any(|pid| *pid != worker)
                .then_some(())
        });
    }

    /// The counters; whoever reads them while the worker dies has to begin anew.
    fn stats(&self) -> String {
        let path = self.mounted.point().join(".circular/stats.json");
        wait_for(|| match fs::read_to_string(&path) {
            Err(error) if error.raw_os_error() == Some(ESTALE) => None,
            read => Some(read.unwrap()),
        })
    }

    /// Waits until `n` workers are gone and another one serves.
    pub(crate) fn wait_for_restarts(&self, n: usize) {
        let count = format!("\"restarts\": {n},");
        wait_for(|| self.stats().contains(&count).then_some(()));
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Unmounts; all processes are gone then, and nobody complains.
    pub(crate) fn end(self) -> String {
        umount(&self.mounted.point()).unwrap();
        self.ended()
    }

    /// Waits until all processes of a mount are gone that was unmounted.
    fn ended(mut self) -> String {
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.log());
        self.log()
    }
}

/// Waits until there is something; whoever hangs here is ended by the test runner.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look() {
            return found;
        }
        std::thread::yield_now();
    }
}

fn store(blocks: usize) -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(blocks, 0)))
}

/// Memory for direct reads.
#[repr(align(4096))]
struct Pages([u8; 64 * BLOCK]);

/// Reads at random, past the kernel's cache, until told to stop; compares every byte. Returns how many
/// reads it was, or stops at the first error.
fn read_at_random(
    path: &Path,
    disk: &[u8],
    seed: u64,
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(path)?;
    let mut random = Random(seed);
    let mut below = |n: usize| usize::try_from(random.next() % n as u64).unwrap();
    let mut pages = Box::new(Pages([0; 64 * BLOCK]));
    while !stop.load(Ordering::Relaxed) {
        let blocks = disk.len() / BLOCK;
        let at = below(blocks) * BLOCK;
        let len = (1 + below(64)) * BLOCK;
        let len = len.min(disk.len() - at);
        file.read_exact_at(&mut pages.0[..len], at as u64)?;
        if pages.0[..len] != disk[at..at + len] {
            return Err(std::io::Error::other(format!("wrong bytes at {at}, {len}")));
        }
        done.fetch_add(1, Ordering::Relaxed);
        // Others than reads pass, too.
        fs::metadata(path)?;
    }
    Ok(())
}

/// Kills the worker `kills` times under readers, each time after all got on.
fn readers_see_no_error_through(kills: usize, way: &str) {
    let store = store(1500);
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[way]);
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let path = supervised.mounted.disk();
    let status = fs::read_to_string(format!("/proc/{}/status", supervised.pid())).unwrap();
    assert!(
        status.contains("Threads:\t1\n"),
        "only a process of one thread can fork"
    );
    std::thread::scope(|scope| {
        let (path, store, stop, done) = (&path, &store, &stop, &done);
        let readers: Vec<_> = (0..4)
            .map(|seed| scope.spawn(move || read_at_random(path, &store.disk, seed, stop, done)))
            .collect();
        let alive = || readers.iter().all(|reader| !reader.is_finished());
        for _ in 0..kills {
            let before = done.load(Ordering::Relaxed);
            while alive() && done.load(Ordering::Relaxed) < before + 20 {
                std::thread::yield_now();
            }
            if !alive() {
                break;
            }
            supervised.kill_worker();
        }
        let before = done.load(Ordering::Relaxed);
        while alive() && done.load(Ordering::Relaxed) < before + 20 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            let outcome = reader.join().unwrap();
            outcome.unwrap_or_else(|error| panic!("{error}: {}", supervised.log()));
        }
    });
    supervised.wait_for_restarts(kills);
    println!(
        "{way}: {kills} kills, {} reads",
        done.load(Ordering::Relaxed)
    );
    let log = supervised.end();
    assert_eq!(
        log.matches("the worker ended; readers wait").count(),
        kills,
        "{log}"
    );
}

#[test]
fn fifty_deaths_of_the_worker_are_fifty_pauses() {
    if can_mount() {
        readers_see_no_error_through(50, WAYS[0]);
    }
}

#[test]
fn fifty_deaths_are_as_many_pauses_where_requests_are_passed_on() {
    if can_mount() {
        readers_see_no_error_through(50, WAYS[1]);
    }
}

/// Stands before a server, and keeps every connection waiting while it is shut.
pub(crate) struct Gatehouse {
    pub(crate) address: String,
    shut: Arc<(Mutex<bool>, Condvar)>,
    waiting: Arc<AtomicUsize>,
}

impl Gatehouse {
    pub(crate) fn before(base: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let server = base
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let (shut, waiting) = (
            Arc::<(Mutex<bool>, Condvar)>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (state, count) = (Arc::clone(&shut), Arc::clone(&waiting));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).unwrap();
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (state, count) = (Arc::clone(&state), Arc::clone(&count));
                std::thread::spawn(move || carry(client, server, Some((&*state, &*count))));
                std::thread::spawn(move || carry(back.0, back.1, None));
            }
        });
        Self {
            address,
            shut,
            waiting,
        }
    }

    pub(crate) fn set_shut(&self, shut: bool) {
        *self.shut.0.lock().unwrap() = shut;
        self.shut.1.notify_all();
    }

    /// Requests that waited here so far.
    pub(crate) fn waited(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

type Shut<'a> = (&'a (Mutex<bool>, Condvar), &'a AtomicUsize);

fn carry(mut from: TcpStream, mut to: TcpStream, shut: Option<Shut<'_>>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if let Some(((shut, opened), count)) = shut {
            let mut shut = shut.lock().unwrap();
            if *shut {
                count.fetch_add(1, Ordering::Relaxed);
            }
            while *shut {
                shut = opened.wait(shut).unwrap();
            }
        }
        if to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_read_that_waits_for_the_server_outlives_three_workers() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let store = store(600);
        let gatehouse = Gatehouse::before(&serve(&store, Manner::Right));
        let supervised = Supervised::new(&store, &gatehouse.address, &[way]);
        let image = supervised.mounted.point().join(".circular/image.json");
        let before = fs::read(&image).unwrap();
        let mut waited = gatehouse.waited();
        gatehouse.set_shut(true);
        let path = supervised.mounted.disk();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..8)
                .map(|part| {
                    let (path, store) = (&path, &store);
                    scope.spawn(move || {
                        let (at, mut bytes) = (part * (200 << 10), vec![0; 150 << 10]);
                        let read = File::open(path)
                            .unwrap()
                            .read_exact_at(&mut bytes, at as u64);
                        read.is_ok() && bytes == store.disk[at..at + bytes.len()]
                    })
                })
                .collect();
            for deaths in 1..=3 {
                // Reads are under way at the server when the worker dies. (Counted before its death, what it
                // asked last may count for the next one; counted later, that one may have asked for all.)
                wait_for(|| (gatehouse.waited() > waited).then_some(()));
                waited = gatehouse.waited();
                supervised.kill_worker();
                supervised.wait_for_restarts(deaths);
            }
            // Whatever the worker knows without the server, it still knows: which disk this is, too.
            assert_eq!(fs::read(&image).unwrap(), before);
            gatehouse.set_shut(false);
            assert!(
                readers.into_iter().all(|reader| reader.join().unwrap()),
                "{way}"
            );
        });
        supervised.end();
    }
}

#[test]
fn a_boot_pack_that_is_kept_is_kept_by_the_next_worker_too() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(Store::booting(mixed_disk(2000, 0), 3));
    let pack = store.boot_pack.unwrap();
    let words = [WAYS[0], "--keep-boot-pack", "64M"];
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &words);
    let kept = format!("\"kept_bytes\": {},", pack.object.length - pack.head.length);
    for deaths in 1..=2 {
        wait_for(|| supervised.stats().contains(&kept).then_some(()));
        supervised.kill_worker();
        supervised.wait_for_restarts(deaths);
    }
    wait_for(|| supervised.stats().contains(&kept).then_some(()));
    supervised.end();
}

#[test]
fn a_worker_that_always_dies_is_followed_by_others_and_the_mount_ends_cleanly() {
    if !can_mount() {
        return;
    }
    let store = store(300);
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[WAYS[0]]);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for worker in supervised.workers() {
                    let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
                }
            }
        });
        // More than follow each other at once.
        let slow = "starting another";
        wait_for(|| (supervised.log().matches(slow).count() > 65).then_some(()));
        supervised.signal(Signal::SIGTERM);
        wait_for(|| (!supervised.mounted.is_mounted()).then_some(()));
        ended.store(true, Ordering::Relaxed);
    });
    let Supervised { mut child, .. } = supervised;
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_supervised_mount_ends_by_signal_and_when_it_is_killed_with_its_worker() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let store = store(300);
        let base = serve(&store, Manner::Right);
        // In use: the first signal detaches, the second ends.
        let mut supervised = Supervised::new(&store, &base, &[way]);
        let disk = File::open(supervised.mounted.disk()).unwrap();
        supervised.signal(Signal::SIGTERM);
        wait_for(|| (!supervised.mounted.is_mounted()).then_some(()));
        let mut bytes = [0; BLOCK];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        supervised.signal(Signal::SIGINT);
        assert_eq!(supervised.child.wait().unwrap().code(), Some(0));
        drop(disk);
        // Whoever kills the process that was started means the mount.
        let mut supervised = Supervised::new(&store, &base, &[way]);
        supervised.child.kill().unwrap();
        supervised.child.wait().unwrap();
        wait_for(|| {
            // To look at it would not do: the kernel remembers.
            let opened = File::open(supervised.mounted.disk());
            opened
                .is_err_and(|error| error.raw_os_error() == Some(ENOTCONN))
                .then_some(())
        });
    }
}

#[test]
fn a_supervised_mount_goes_to_the_background_and_says_why_it_cannot_be() {
    if !can_mount() {
        return;
    }
    let store = store(300);
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    assert_ok(&mount(&base, &mounted, &["--supervise"]));
    assert!(fs::read(mounted.disk()).unwrap() == store.disk);
    umount(&mounted.point()).unwrap();
    let refused = mount(&format!("{base}elsewhere/"), &mounted, &["--supervise"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("is no store").count(), 1, "{said}");
    assert!(!mounted.is_mounted());
}

#[test]
fn a_disk_that_is_a_file_is_taken_over_as_one() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let store = store(300);
        let mounted = mount_dir(&store);
        let point = mounted.directory.path().join("disk");
        File::create(&point).unwrap();
        let base = serve(&store, Manner::Right);
        let command = program(&base, &mounted, &point, &[way, "-f", "--no-cache"]);
        let mut supervised = Supervised {
            child: supervise(command),
            mounted,
        };
        supervised.kill_worker();
        assert!(fs::read(&point).unwrap() == store.disk);
        umount(&point).unwrap();
        assert_eq!(supervised.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_snapshot_of_the_counters_of_a_dead_worker_is_stale() {
    if !can_mount() {
        return;
    }
    let store = store(300);
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[WAYS[0]]);
    let path = supervised.mounted.point().join(".circular/stats.json");
    let (begun, fresh) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    let mut bytes = [0; 16];
    begun.read_exact_at(&mut bytes, 0).unwrap();
    supervised.kill_worker();
    supervised.wait_for_restarts(1);
    let stale = begun.read_exact_at(&mut bytes, 16).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(ESTALE));
    let mut text = vec![0; 1 << 16];
    let length = fresh.read_at(&mut text, 0).unwrap();
    assert!(String::from_utf8_lossy(&text[..length]).contains("\"restarts\": 1,"));
    drop((begun, fresh));
    supervised.end();
}

#[test]
fn a_recording_ends_with_the_worker_that_made_it() {
    if !can_mount() {
        return;
    }
    let store = store(300);
    let traces = tempfile::tempdir().unwrap();
    let trace = traces.path().join("trace");
    let extra = ["--supervise", "--record", trace.to_str().unwrap()];
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &extra);
    assert!(fs::read(supervised.mounted.disk()).unwrap() == store.disk);
    supervised.kill_worker();
    supervised.wait_for_restarts(1);
    let log = supervised.end();
    assert!(
        log.contains("what is read from now on is not recorded"),
        "{log}"
    );
    image_format::trace::Trace::decode(&fs::read(trace).unwrap()).unwrap();
}

/// How often the worker was started again, as its metrics say; `None`: nobody serves them.
fn restarts_told(socket: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"GET /stats.json HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let stats: serde_json::Value = serde_json::from_str(body).ok()?;
    stats["restarts"].as_u64()
}

/// Puts `content` where `path` is, as a package manager does.
fn replace(path: &Path, content: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, path).unwrap();
}

#[test]
fn a_mount_is_handed_over_to_another_program_unless_that_does_not_work() {
    if !can_mount() {
        return;
    }
    let programs = tempfile::tempdir().unwrap();
    let binary: PathBuf = programs.path().join("circular-mount");
    let content = fs::read(env!("CARGO_BIN_EXE_circular-mount")).unwrap();
    for way in WAYS {
        replace(&binary, &content);
        let store = store(1500);
        let base = serve(&store, Manner::Right);
        let socket = programs.path().join("metrics");
        let metrics = format!("--metrics=unix:{}", socket.display());
        let supervised = Supervised::of(&binary, &store, &base, &[way, &metrics]);
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let path = supervised.mounted.disk();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_at_random(&path, &store.disk, 7, &stop, &done));
            // One that ends at once.
            replace(&binary, b"#!/bin/sh\nexit 3\n");
            let worker = supervised.workers();
            supervised.signal(Signal::SIGUSR2);
            wait_for(|| supervised.log().contains("no hand-over").then_some(()));
            assert_eq!(supervised.workers(), worker);
            replace(&binary, &content);
            supervised.signal(Signal::SIGUSR2);
            supervised.wait_for_restarts(1);
            let new = fs::metadata(&binary).unwrap().ino();
            let [worker] = supervised.workers()[..] else {
                panic!("one worker");
            };
            assert_eq!(
                fs::metadata(format!("/proc/{worker}/exe")).unwrap().ino(),
                new
            );
            // The worker before had the place where metrics are served.
            wait_for(|| restarts_told(&socket).filter(|told| *told == 1));
            // After that, the next death is followed as ever.
            supervised.kill_worker();
            supervised.wait_for_restarts(2);
            wait_for(|| restarts_told(&socket).filter(|told| *told == 2));
            let before = done.load(Ordering::Relaxed);
            while !reader.is_finished() && done.load(Ordering::Relaxed) < before + 20 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            let outcome = reader.join().unwrap();
            outcome.unwrap_or_else(|error| panic!("{error}: {}", supervised.log()));
        });
        supervised.end();
    }
}
