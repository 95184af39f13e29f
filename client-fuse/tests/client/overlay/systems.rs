//! What others do to a written disk: file systems, fio, kills and power cuts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use image_format::overlay::{Layout, Side};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::directory;
use super::mounted::{Place, kill_9, run};
use crate::mount::{can_mount, has};
use crate::store::Random;

/// A loop device that is let go of when the test ends.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        let file = file.to_str().unwrap();
        Self(run("losetup", &["--find", "--show", file]))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A mounted file system that is detached when the test ends.
struct Tree(PathBuf);

impl Tree {
    fn mount(device: &str, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        mount(
            Some(device),
            &at,
            Some("ext4"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let words = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes());
    words.collect()
}

#[test]
fn a_file_system_on_a_written_disk_outlives_kill_9() {
    if !can_mount() || !has("losetup") {
        return;
    }
    let place = Place::new(6000);
    let at = place.mounted.directory.path().join("tree");
    let client = place.mount_child(&place.overlay);
    let device = Loop::over(&place.mounted.disk());
    run("mkfs.ext4", &["-q", &device.0]);
    let tree = Tree::mount(&device.0, at.clone());
    for number in 0..40 {
        fs::write(at.join(format!("{number}")), noise(number, 100_000)).unwrap();
    }
    for number in (0..40).step_by(3) {
        fs::remove_file(at.join(format!("{number}"))).unwrap();
    }
    run("fstrim", &[at.to_str().unwrap()]);
    run("sync", &["--file-system", at.to_str().unwrap()]);
    fs::write(at.join("not synced"), noise(99, 1_000_000)).unwrap();
    kill_9(client);
    drop((tree, device));
    umount2(&place.mounted.point(), MntFlags::MNT_DETACH).unwrap();

    let client = place.mount_child(&place.overlay);
    let device = Loop::over(&place.mounted.disk());
    // Exit code 1 would say that something had to be mended; a journal that is replayed is 0.
    run("e2fsck", &["-p", &device.0]);
    run("e2fsck", &["-f", "-n", &device.0]);
    let tree = Tree::mount(&device.0, at.clone());
    for number in 0..40 {
        let found = fs::read(at.join(format!("{number}"))).ok();
        let expected = (number % 3 != 0).then(|| noise(number, 100_000));
        assert!(found == expected, "file {number}");
    }
    drop((tree, device));
    place.unmount();
    drop(client);
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !can_mount() || !has("fio") {
        return;
    }
    let place = Place::new(2048);
    place.mount();
    let file = format!("--filename={}", place.mounted.disk().display());
    let size = format!("--size={}", place.store.disk.len());
    let common = [
        "--name=verify",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--allow_file_create=0",
        "--randseed=7",
        "--io_size=2m",
        &file,
        &size,
    ];
    let ways: [&[&str]; 3] = [
        // Parts of blocks, through the page cache.
        &[
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--blockalign=512",
            "--fsync=32",
        ],
        &[
            "--rw=randrw",
            "--bs=4k",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=16",
        ],
        &["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--fsync=64"],
    ];
    for way in ways {
        run("fio", &[&common[..], way].concat());
    }
    let before = fs::read(place.mounted.disk()).unwrap();
    place.unmount();
    place.wait_until_free();
    place.mount();
    assert!(
        fs::read(place.mounted.disk()).unwrap() == before,
        "after a restart"
    );
}

/// Blocks that the writer of the power cuts writes in each round, all with the number of the round.
const ROUND_BLOCKS: u64 = 50;

/// How often the power is cut; `overlay::model` has a hundred more, without a file system below.
const CUTS: u64 = 24;

#[test]
fn a_power_cut_leaves_what_was_synced() {
    if !can_mount() || !has("losetup") {
        return;
    }
    let directory = directory();
    let backing = directory.path().join("backing");
    fs::File::create(&backing)
        .unwrap()
        .set_len(48 << 20)
        .unwrap();
    run("mkfs.ext4", &["-q", "-F", backing.to_str().unwrap()]);
    let device = Loop::over(&backing);
    let tree = Tree::mount(&device.0, directory.path().join("tree"));
    let place = Place::new(600);
    let client = place.mount_child(&tree.0.join("overlay"));
    let copies = cut_while_written(&place, &client, &backing);
    place.unmount();
    drop(client);
    for (copy, acknowledged) in copies {
        // As at power-on, the journal of the file system is replayed.
        let device = Loop::over(&copy);
        let tree = Tree::mount(&device.0, directory.path().join("again"));
        check_after_cut(&place, &tree.0.join("overlay"), acknowledged);
        umount(&tree.0).unwrap();
    }
    drop((tree, device));
}

/// Writes and syncs in rounds; stops the client now and then, and copies the device that its overlay
/// is on. Returns the copies, each with the last round that was synced before it.
fn cut_while_written(place: &Place, client: &Child, backing: &Path) -> Vec<(PathBuf, u64)> {
    let (synced, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let disk = place.open();
    let write_rounds = || {
        for round in 1_u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            for block in 0..ROUND_BLOCKS {
                let bytes = round.to_le_bytes().repeat(512);
                disk.write_all_at(&bytes, block * 8192).unwrap();
            }
            disk.sync_data().unwrap();
            synced.store(round, Ordering::Relaxed);
        }
    };
    let process = Pid::from_raw(i32::try_from(client.id()).unwrap());
    let cut = |number: u64| {
        let (seen, more) = (synced.load(Ordering::Relaxed), 1 + number % 3);
        while synced.load(Ordering::Relaxed) < seen + more {
            std::thread::yield_now();
        }
        kill(process, Signal::SIGSTOP).unwrap();
        wait_until_stopped(process);
        let round = synced.load(Ordering::Relaxed);
        let copy = backing.with_extension(number.to_string());
        copy_at_once(backing, &copy);
        kill(process, Signal::SIGCONT).unwrap();
        (copy, round)
    };
    std::thread::scope(|scope| {
        scope.spawn(write_rounds);
        let copies = (0..CUTS).map(cut).collect();
        stop.store(true, Ordering::Relaxed);
        copies
    })
}

/// Waits until no thread of a process runs that was told to stop: it is up to each of them when it hears of it, and on a
/// busy machine the others go on for long.
fn wait_until_stopped(process: Pid) {
    let runs = |thread: &fs::DirEntry| {
        // One that has ended meanwhile does not run either.
        let status = fs::read_to_string(thread.path().join("status"));
        status.is_ok_and(|status| !status.contains("\nState:\tT"))
    };
    let threads = || fs::read_dir(format!("/proc/{process}/task")).unwrap();
    while threads().map(Result::unwrap).any(|thread| runs(&thread)) {
        std::thread::yield_now();
    }
}

/// Copies a file as it is at one moment: the kernel may still be writing to it what others wrote before.
fn copy_at_once(from: &Path, to: &Path) {
    while {
        fs::copy(from, to).unwrap();
        fs::read(from).unwrap() != fs::read(to).unwrap()
    } {}
}

/// All blocks are of one round, which is not older than the last one that was synced.
fn check_after_cut(place: &Place, overlay: &Path, synced: u64) {
    let mut client = place.mount_child(overlay);
    let disk = place.open();
    let mut rounds = Vec::new();
    for block in 0..ROUND_BLOCKS {
        let mut bytes = [0; 4096];
        if let Err(error) = disk.read_exact_at(&mut bytes, block * 8192) {
            panic!(
                "block {}: {error}; the overlay has there {:?}",
                2 * block,
                rounds_of(overlay, 2 * block)
            );
        }
        let (words, _) = bytes.as_chunks::<8>();
        assert!(
            words.iter().all(|word| *word == words[0]),
            "a block is torn"
        );
        rounds.push(u64::from_le_bytes(words[0]));
    }
    rounds.dedup();
    assert!(
        rounds.len() == 1 && rounds[0] >= synced,
        "round {synced} was synced, left are {rounds:?}"
    );
    drop(disk);
    place.unmount();
    assert!(client.wait().unwrap().success());
}

/// What is in the two places of a block of the overlay: the round that wrote it, if it is of one.
fn rounds_of(overlay: &Path, block: u64) -> [Option<u64>; 2] {
    let layout = Layout::of(600 * 4096);
    [Side::A, Side::B].map(|side| {
        let mut bytes = [0; 4096];
        let file = fs::File::open(overlay).unwrap();
        file.read_exact_at(&mut bytes, layout.place(side, block))
            .unwrap();
        let (words, _) = bytes.as_chunks::<8>();
        let whole = words.iter().all(|word| *word == words[0]);
        whole.then(|| u64::from_le_bytes(words[0]))
    })
}

/// After a sync that failed, the kernel shows what it could not write. Here a batch of the log is in its memory, and zeros
/// are on the disk.
#[test]
fn a_batch_that_never_reached_the_disk_is_not_continued() {
    if !can_mount() || !has("losetup") || !has("debugfs") {
        return;
    }
    let directory = directory();
    let backing = directory.path().join("backing");
    let file = fs::File::create(&backing).unwrap();
    file.set_len(48 << 20).unwrap();
    run(
        "mkfs.ext4",
        &["-q", "-F", "-b", "4096", backing.to_str().unwrap()],
    );
    let device = Loop::over(&backing);
    let tree = Tree::mount(&device.0, directory.path().join("tree"));
    let overlay = tree.0.join("overlay");
    let place = Place::new(600);
    let write = |block: u64, byte: u8| {
        let client = place.mount_child(&overlay);
        let disk = place.open();
        disk.write_all_at(&[byte; 4096], block * 4096).unwrap();
        disk.sync_data().unwrap();
        kill_9(client);
        drop(disk);
        umount2(&place.mounted.point(), MntFlags::MNT_DETACH).unwrap();
    };
    write(1, 1);
    write(2, 2);
    lose_last_batch(&overlay, &device.0);
    write(3, 3);
    let cached = fs::File::open(&overlay).unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&cached, 0, 0, advice).unwrap();
    let mut client = place.mount_child(&overlay);
    let disk = place.open();
    let mut found = [0; 3 * 4096];
    disk.read_exact_at(&mut found, 4096).unwrap();
    assert!(found[..4096] == [1; 4096] && found[8192..] == [3; 4096]);
    assert!(
        found[4096..8192] == place.store.disk[8192..12_288],
        "it is lost"
    );
    drop(disk);
    place.unmount();
    assert!(client.wait().unwrap().success());
    drop((tree, device));
}

/// Overwrites the last batch of the log on `device` with zeros, below the file system.
fn lose_last_batch(overlay: &Path, device: &str) {
    let file = fs::File::open(overlay).unwrap();
    file.sync_all().unwrap();
    let is_used = |at: &u64| {
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, *at).unwrap();
        page != [0; 4096]
    };
    let log = Layout::of(600 * 4096).log(1);
    let last = log.step_by(4096).filter(is_used).last().unwrap();
    let bmap = format!("bmap /overlay {}", last / 4096);
    let block: u64 = run("debugfs", &["-R", &bmap, device]).parse().unwrap();
    let raw = fs::File::options().write(true).open(device).unwrap();
    raw.write_all_at(&[0; 4096], block * 4096).unwrap();
    raw.sync_all().unwrap();
    assert!(is_used(&last), "the kernel still shows it");
}
