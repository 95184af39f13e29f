//! What the program takes of a machine while it is used: memory, whatever is read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::mount::{assert_ok, can_mount, mount, mount_dir};
use crate::server::{Manner, serve};
use crate::store::{Store, mixed_disk};

/// What the client may use beside its caches.
const OWN_KIB_MAX: u64 = 32 << 10;

/// The process that has `point` on its command line.
fn process_at(point: &Path) -> String {
    let point = point.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut names = processes.map(|process| process.file_name().into_string().unwrap());
    names
        .find(|pid| {
            let told = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            pid.parse::<u32>().is_ok() && String::from_utf8_lossy(&told).contains(point)
        })
        .expect("the mount has a process")
}

/// The most memory that a process had at once.
fn peak_kib(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let mut words = line.unwrap().split_whitespace();
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_is_bounded_while_several_read_all_of_a_disk() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(Store::of(mixed_disk(14_000, 0)));
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    assert_ok(&mount(
        &base,
        &mounted,
        &["--memory-cache", "8M", "--cache-size", "0"],
    ));
    let pid = process_at(&mounted.point());
    let piece = 1 << 20;
    let pieces = store.disk.len() / piece;
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (store, disk) = (Arc::clone(&store), File::open(mounted.disk()).unwrap());
            scope.spawn(move || {
                let mut bytes = vec![0; piece];
                for step in 0..pieces {
                    let at = (reader * pieces / 6 + step) % pieces * piece;
                    disk.read_exact_at(&mut bytes, at as u64).unwrap();
                    assert!(bytes == store.disk[at..at + piece], "at {at}");
                }
            });
        }
    });
    let peak = peak_kib(&pid);
    println!("{peak} KiB at most");
    assert!(
        peak <= OWN_KIB_MAX + (8 << 10),
        "{peak} KiB with a cache of 8 MiB"
    );
}
