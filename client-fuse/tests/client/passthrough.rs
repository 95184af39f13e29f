//! A whole cache file that the kernel reads itself, over real mounts. Skipped where it cannot.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::libc::O_DIRECT;
use serde_json::Value;

use crate::mount::{Mounted, assert_ok, can_mount, has, mount_dir, program};
use crate::server::{Manner, serve};
use crate::store::{Store, mixed_disk};

const READY: &str = "ready";
const ON: &str = "on";

fn store(blocks: usize) -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(blocks, 0)))
}

/// Mounts with the cache in `cache`.
fn mount(base: &str, mounted: &Mounted, cache: &Path, extra: &[&str]) {
    let mut command = program(base, mounted, &mounted.point(), extra);
    command.arg("--cache").arg(cache).stdin(Stdio::null());
    assert_ok(&command.output().unwrap());
}

fn umount(mounted: &Mounted, cache: &Path, store: &Store) {
    assert_ok(
        &Command::new("umount")
            .arg(mounted.point())
            .output()
            .unwrap(),
    );
    // The process is gone when nobody has a lock on the file.
    File::open(cache_file(cache, store))
        .unwrap()
        .lock()
        .unwrap();
}

fn cache_file(cache: &Path, store: &Store) -> PathBuf {
    cache
        .join("disks-v1")
        .join(format!("{}.raw", store.disk_digest))
}

fn stats(mounted: &Mounted) -> Value {
    let path = mounted.point().join(".circular/stats.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn state(mounted: &Mounted) -> String {
    let stats = stats(mounted);
    stats["passthrough"]["state"].as_str().unwrap().to_owned()
}

fn count(mounted: &Mounted, pointer: &str) -> u64 {
    stats(mounted).pointer(pointer).unwrap().as_u64().unwrap()
}

/// Waits until the state is `wanted`; false: the kernel or the file system cannot.
fn becomes(mounted: &Mounted, wanted: &str) -> bool {
    loop {
        let state = state(mounted);
        if state.contains("cannot") {
            println!("skipped: no FUSE passthrough here");
            return false;
        }
        if state == wanted {
            return true;
        }
        std::thread::yield_now();
    }
}

/// Reads all of the disk, and says how many reads we were asked for.
fn reads_while(mounted: &Mounted, store: &Store, file: &File) -> u64 {
    let before = count(mounted, "/reads");
    let mut bytes = vec![0; store.disk.len() + 4096];
    let mut length = 0;
    while let read @ 1.. = file.read_at(&mut bytes[length..], length as u64).unwrap() {
        length += read;
    }
    assert_eq!(length, store.disk.len());
    assert!(bytes[..length] == store.disk, "the disk reads differently");
    count(mounted, "/reads") - before
}

#[test]
fn a_whole_verified_cache_file_is_read_by_the_kernel() {
    if !can_mount() {
        return;
    }
    let store = store(3000);
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = mounted.directory.path().join("cache");
    mount(&base, &mounted, &cache, &["--pin"]);
    if !becomes(&mounted, READY) {
        return;
    }
    let disk = mounted.disk();
    let first = File::open(&disk).unwrap();
    assert_eq!(state(&mounted), ON);
    assert_eq!(reads_while(&mounted, &store, &first), 0);
    let direct = File::options()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(&disk);
    assert_eq!(
        reads_while(&mounted, &store, &File::open(&disk).unwrap()),
        0
    );
    drop(first);
    assert_eq!(state(&mounted), ON, "one of three is closed");
    drop(direct.unwrap());
    while state(&mounted) != READY {
        std::thread::yield_now();
    }
    assert_eq!(count(&mounted, "/passthrough/opens"), 3);
    let again = File::open(&disk).unwrap();
    assert_eq!(reads_while(&mounted, &store, &again), 0);
    // The lock on the file is there as long as the file is open.
    drop(again);
    umount(&mounted, &cache, &store);
}

#[test]
fn a_cache_file_that_lacks_something_is_served_until_it_is_whole_and_closed() {
    if !can_mount() {
        return;
    }
    let store = store(3000);
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = mounted.directory.path().join("cache");
    mount(&base, &mounted, &cache, &[]);
    let first = File::open(mounted.disk()).unwrap();
    first.read_exact_at(&mut [0; 4096], 0).unwrap();
    assert!(state(&mounted).starts_with("off: "));
    assert!(reads_while(&mounted, &store, &first) > 0);
    // Now all of it is there; but the kernel wants all opens of a file to be of one kind.
    if !becomes(&mounted, READY) {
        return;
    }
    let second = File::open(mounted.disk()).unwrap();
    assert_eq!(count(&mounted, "/passthrough/opens"), 0);
    drop(first);
    let mut byte = [0];
    second.read_exact_at(&mut byte, 4096).unwrap();
    assert_eq!(byte[0], store.disk[4096]);
    drop(second);
    loop {
        let third = File::open(mounted.disk()).unwrap();
        if state(&mounted) == ON {
            assert_eq!(reads_while(&mounted, &store, &third), 0);
            break;
        }
    }
}

#[test]
fn what_rotted_before_the_mount_is_found_and_mended() {
    if !can_mount() {
        return;
    }
    // The end of the disk is a hole.
    let mut disk = mixed_disk(2000, 0);
    disk.resize(2100 * 4096, 0);
    let store = Arc::new(Store::of(disk));
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = mounted.directory.path().join("cache");
    mount(&base, &mounted, &cache, &["--pin"]);
    if !becomes(&mounted, READY) {
        return;
    }
    umount(&mounted, &cache, &store);
    let file = cache_file(&cache, &store);
    let raw = File::options().read(true).write(true).open(&file).unwrap();
    let at = store.disk.iter().position(|byte| *byte != 0).unwrap() as u64 + 77;
    let mut byte = [0];
    raw.read_exact_at(&mut byte, at).unwrap();
    raw.write_all_at(&[byte[0] ^ 4], at).unwrap();
    raw.write_all_at(b"rot", 2050 * 4096).unwrap();
    mount(&base, &mounted, &cache, &[]);
    assert!(becomes(&mounted, READY));
    assert_eq!(count(&mounted, "/passthrough/mended"), 2);
    assert_eq!(count(&mounted, "/chunks"), 1, "one is fetched");
    let open = File::open(mounted.disk()).unwrap();
    assert_eq!(reads_while(&mounted, &store, &open), 0);
    assert!(fs::read(&file).unwrap() == store.disk);
}

#[test]
fn what_rots_while_the_kernel_reads_is_mended_at_the_next_verification() {
    if !can_mount() {
        return;
    }
    let store = store(1000);
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = mounted.directory.path().join("cache");
    mount(&base, &mounted, &cache, &["--pin", "--verify-every", "1"]);
    if !becomes(&mounted, READY) {
        return;
    }
    let open = File::open(mounted.disk()).unwrap();
    assert_eq!(reads_while(&mounted, &store, &open), 0);
    let file = cache_file(&cache, &store);
    let raw = File::options().write(true).open(&file).unwrap();
    let at = store.disk.iter().position(|byte| *byte != 0).unwrap() as u64;
    raw.write_all_at(&[store.disk[usize::try_from(at).unwrap()] ^ 1], at)
        .unwrap();
    while count(&mounted, "/passthrough/mended") == 0 {
        std::thread::yield_now();
    }
    while fs::read(&file).unwrap() != store.disk {
        std::thread::yield_now();
    }
    assert_eq!(
        reads_while(&mounted, &store, &open),
        0,
        "it is open as it was"
    );
    drop(open);
    assert!(becomes(&mounted, READY), "and verified again");
}

#[test]
fn nobody_takes_data_out_of_a_file_that_the_kernel_reads() {
    if !can_mount() {
        return;
    }
    let (kept, other) = (store(2000), store(2001));
    let mounted = mount_dir(&kept);
    let cache = mounted.directory.path().join("cache");
    // Room for one of them, and not for two.
    let size = (kept.disk.len() * 3 / 2).to_string();
    let extra = ["--cache-size", &*size];
    mount(
        &serve(&kept, Manner::Right),
        &mounted,
        &cache,
        &[&extra[..], &["--pin"]].concat(),
    );
    if !becomes(&mounted, READY) {
        return;
    }
    let open = File::open(mounted.disk()).unwrap();
    let file = cache_file(&cache, &kept);
    let occupied = fs::metadata(&file).unwrap().blocks();
    let neighbour = mount_dir(&other);
    mount(&serve(&other, Manner::Right), &neighbour, &cache, &extra);
    assert!(fs::read(neighbour.disk()).unwrap() == other.disk);
    assert_eq!(fs::metadata(&file).unwrap().blocks(), occupied);
    assert_eq!(reads_while(&mounted, &kept, &open), 0);
    // The neighbour did want room: it takes it when the file is nobody's.
    assert!(state(&neighbour).contains("not all of the disk"));
    drop(open);
    umount(&mounted, &cache, &kept);
    umount(&neighbour, &cache, &other);
    mount(
        &serve(&other, Manner::Right),
        &neighbour,
        &cache,
        &[&extra[..], &["--pin"]].concat(),
    );
    assert!(becomes(&neighbour, READY));
    assert!(!file.exists() || fs::metadata(&file).unwrap().blocks() < occupied);
}

#[test]
fn an_empty_file_is_read_by_the_kernel_too() {
    if !can_mount() {
        return;
    }
    let store = store(700);
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = mounted.directory.path().join("cache");
    mount(&base, &mounted, &cache, &["--pin"]);
    if !becomes(&mounted, READY) {
        return;
    }
    umount(&mounted, &cache, &store);
    let point = mounted.directory.path().join("disk.img");
    fs::write(&point, "").unwrap();
    let mut command = program(&base, &mounted, &point, &["--cache"]);
    assert_ok(&command.arg(&cache).stdin(Stdio::null()).output().unwrap());
    // There are no counters to look at. A file with a lock of its own is open in the kernel.
    let locks = || {
        let inode = fs::metadata(cache_file(&cache, &store)).unwrap().ino();
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let ours = locks
            .lines()
            .filter(|line| line.contains(&format!(":{inode} ")));
        ours.count()
    };
    loop {
        let file = File::open(&point).unwrap();
        let mut bytes = vec![0; store.disk.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == store.disk);
        if locks() == 2 {
            break;
        }
    }
    while locks() != 1 {
        std::thread::yield_now();
    }
    nix::mount::umount(&point).unwrap();
}

#[test]
fn where_it_may_not_be_the_disk_is_served_and_the_reason_told() {
    if !can_mount() {
        return;
    }
    let even = store(300);
    let odd = Arc::new(Store::of(mixed_disk(300, 512)));
    let mounted = mount_dir(&even);
    let path = |name| mounted.directory.path().join(name).display().to_string();
    let (overlay, trace) = (path("overlay"), path("trace"));
    for (store, extra, reason) in [
        (&even, &["--no-passthrough"][..], "--no-passthrough"),
        (&even, &["--overlay", &overlay], "can be written to"),
        (&even, &["--record", &trace], "recorded"),
        (&even, &["--no-cache"], "no disk cache"),
        (&odd, &[], "no multiple of 4096"),
    ] {
        let mounted = mount_dir(store);
        let mut command = program(
            &serve(store, Manner::Right),
            &mounted,
            &mounted.point(),
            extra,
        );
        if !extra.contains(&"--no-cache") {
            command.args(["--pin", "--cache"]);
            command.arg(mounted.directory.path().join("cache"));
        }
        assert_ok(&command.stdin(Stdio::null()).output().unwrap());
        assert!(state(&mounted).contains(reason), "{}", state(&mounted));
        let open = File::open(mounted.disk()).unwrap();
        assert!(reads_while(&mounted, store, &open) > 0);
        assert_eq!(count(&mounted, "/passthrough/opens"), 0);
    }
}

#[test]
fn a_disk_that_has_chunks_twice_is_whole_when_it_was_read() {
    if !can_mount() {
        return;
    }
    let half = mixed_disk(1500, 0);
    let store = Arc::new(Store::of([&half[..], &half].concat()));
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = mounted.directory.path().join("cache");
    mount(&base, &mounted, &cache, &[]);
    // The second half comes from memory.
    assert!(fs::read(mounted.disk()).unwrap() == store.disk);
    if becomes(&mounted, READY) {
        let file = File::open(mounted.disk()).unwrap();
        assert_eq!(reads_while(&mounted, &store, &file), 0);
    }
    umount(&mounted, &cache, &store);
}

/// A file system whose disk can die.
struct Dying {
    backing: PathBuf,
    device: String,
    mounted: PathBuf,
}

impl Dying {
    fn mount(directory: &Path) -> Self {
        let [backing, mounted] = ["dying", "mnt"].map(|name| directory.join(name));
        File::create(&backing).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&mounted).unwrap();
        let name = backing.to_str().unwrap();
        run("mkfs.ext4", &["-q", name]);
        let attach = ["--direct-io=on", "--find", "--show", name];
        let device = run("losetup", &attach);
        run("mount", &[&device, mounted.to_str().unwrap()]);
        Self {
            backing,
            device,
            mounted,
        }
    }

    /// Everything behind the first bytes is lost.
    fn lose(&self) {
        nix::unistd::sync();
        let backing = File::options().write(true).open(&self.backing).unwrap();
        backing.set_len(1 << 20).unwrap();
        let device = File::open(&self.device).unwrap();
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&device, 0, 0, advice).unwrap();
    }
}

impl Drop for Dying {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.mounted, nix::mount::MntFlags::MNT_DETACH);
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    assert_ok(&output);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_disk_that_dies_ends_the_verification_and_nothing_is_fetched_for_it() {
    if !can_mount() || !has("mkfs.ext4") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let dying = Dying::mount(directory.path());
    let store = store(3000);
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let cache = dying.mounted.join("cache");
    mount(&base, &mounted, &cache, &["--verify-every", "1"]);
    drop(fs::read(mounted.disk()).unwrap());
    if becomes(&mounted, READY) {
        let requests = count(&mounted, "/requests");
        dying.lose();
        assert!(becomes(&mounted, "off: the cache file is not verified"));
        assert_eq!(count(&mounted, "/requests"), requests);
        let file = File::open(mounted.disk()).unwrap();
        reads_while(&mounted, &store, &file);
    }
    run("umount", &[mounted.point().to_str().unwrap()]);
}
