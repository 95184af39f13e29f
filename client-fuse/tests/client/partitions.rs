//! Partitions as files beside the disk, over a real mount: tables that are right, and tables that are
//! meant to hurt.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use image_format::pack::PACK_MAGIC;
use nix::libc::{EIO, EROFS};
use nix::mount::umount;

use crate::mount::{Mounted, assert_ok, can_mount, mount, mount_dir};
use crate::server::{Manner, serve};
use crate::store::{Store, mixed_disk};
use crate::supervise::{Supervised, WAYS};

const SECTOR: usize = 512;

/// Blocks of the disks here: 12 MB.
const BLOCKS: usize = 3000;

/// A disk whose content says nothing of a table.
fn blank_head() -> Vec<u8> {
    let mut disk = mixed_disk(BLOCKS, 0);
    disk[..64 << 10].fill(0);
    disk
}

/// Writes a GPT with entries `(slot, first sector, last sector)`, and the MBR that protects it.
fn put_gpt(disk: &mut [u8], entries: &[(usize, u64, u64)]) {
    put_mbr(disk, 0, &[(0, 0xee, 1, u32::MAX)]);
    disk[SECTOR..SECTOR + 8].copy_from_slice(b"EFI PART");
    for (at, value) in [(72, 2_u32), (80, 128), (84, 128)] {
        disk[SECTOR + at..][..4].copy_from_slice(&value.to_le_bytes());
    }
    for (slot, first, last) in entries {
        let entry = &mut disk[2 * SECTOR + slot * 128..][..128];
        entry[..32].fill(0x11);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
}

/// Writes entries `(slot, kind, first sector, sectors)` of an MBR, or a link of its chain.
fn put_mbr(disk: &mut [u8], sector: usize, entries: &[(usize, u8, u32, u32)]) {
    let table = &mut disk[sector * SECTOR..][..SECTOR];
    table[446..510].fill(0);
    for (slot, kind, first, sectors) in entries {
        let entry = &mut table[446 + slot * 16..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
}

fn mounted(store: Store, extra: &[&str]) -> Mounted {
    let store = Arc::new(store);
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    assert_ok(&mount(&base, &mounted, extra));
    mounted
}

/// The names of partitions that are listed.
fn listed(mounted: &Mounted) -> Vec<String> {
    let entries = fs::read_dir(mounted.point()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('p'))
        .collect();
    names.sort_unstable();
    names
}

fn partition(mounted: &Mounted, name: &str) -> PathBuf {
    mounted.point().join(name)
}

/// Checks that exactly these partitions are there, `(name, first sector, sectors)`, and read as the
/// disk does.
fn assert_partitions(mounted: &Mounted, disk: &[u8], expected: &[(&str, usize, usize)]) {
    let names: Vec<_> = expected.iter().map(|(name, ..)| *name).collect();
    assert_eq!(listed(mounted), names);
    for (name, first, sectors) in expected {
        let path = partition(mounted, name);
        let slice = &disk[first * SECTOR..][..sectors * SECTOR];
        assert_eq!(fs::metadata(&path).unwrap().len(), slice.len() as u64);
        assert!(fs::read(&path).unwrap() == slice, "{name}");
    }
    assert!(fs::read(mounted.disk()).unwrap() == disk);
}

#[test]
fn partitions_are_files_beside_the_disk() {
    if !can_mount() {
        return;
    }
    let mut disk = blank_head();
    put_gpt(
        &mut disk,
        &[(0, 2048, 4095), (2, 4099, 20_000), (127, 20_001, 20_001)],
    );
    let mounted = mounted(Store::of(disk.clone()), &[]);
    let expected = [
        ("p1.raw", 2048, 2048),
        ("p128.raw", 20_001, 1),
        ("p3.raw", 4099, 15_902),
    ];
    assert_partitions(&mounted, &disk, &expected);
    for missing in ["p2.raw", "p0.raw", "p01.raw", "p4.raw", "p1"] {
        let found = fs::metadata(partition(&mounted, missing));
        assert_eq!(
            found.unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "{missing}"
        );
    }
    let path = partition(&mounted, "p3.raw");
    let write = fs::File::options().write(true).open(&path);
    assert_eq!(write.unwrap_err().raw_os_error(), Some(EROFS));
    // A read over its end does not see what comes after it on the disk.
    let file = fs::File::open(path).unwrap();
    let end = 15_902 * SECTOR as u64;
    assert_eq!(file.read_at(&mut [0; 4096], end - 100).unwrap(), 100);
    assert_eq!(file.read_at(&mut [0; 4096], end).unwrap(), 0);
    assert_eq!(file.read_at(&mut [0; 4096], u64::MAX >> 1).unwrap_or(0), 0);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = mounted.point();
    let line = mounts
        .lines()
        .find(|line| line.contains(point.to_str().unwrap()));
    assert!(line.unwrap().contains(" fuse.circular "), "{line:?}");
}

#[test]
fn logical_partitions_are_files_too() {
    if !can_mount() {
        return;
    }
    let mut disk = blank_head();
    put_mbr(
        &mut disk,
        0,
        &[(0, 0x83, 63, 1000), (1, 0x05, 2000, 10_000)],
    );
    put_mbr(
        &mut disk,
        2000,
        &[(0, 0x83, 63, 500), (1, 0x05, 4000, 3000)],
    );
    put_mbr(&mut disk, 6000, &[(0, 0x82, 63, 2900)]);
    let mounted = mounted(Store::of(disk.clone()), &[]);
    let expected = [
        ("p1.raw", 63, 1000),
        ("p5.raw", 2063, 500),
        ("p6.raw", 6063, 2900),
    ];
    assert_partitions(&mounted, &disk, &expected);
}

#[test]
fn a_hostile_table_harms_nobody() {
    if !can_mount() {
        return;
    }
    let sectors = BLOCKS * 8;
    // A chain that leads back to itself, one that leaves the disk, entries behind it.
    let mut looping = blank_head();
    let last = u32::MAX;
    put_mbr(
        &mut looping,
        0,
        &[
            (0, 0x83, last, last),
            (1, 0x05, 2000, last),
            (2, 0x83, 100, last),
        ],
    );
    put_mbr(&mut looping, 2000, &[(0, 0x83, 1, 1), (1, 0x05, 50, 100)]);
    put_mbr(&mut looping, 2050, &[(0, 0x83, 1, 2), (1, 0x05, 0, 100)]);
    let of_loop = [
        ("p3.raw", 100, sectors - 100),
        ("p5.raw", 2001, 1),
        ("p6.raw", 2051, 2),
    ];
    // A table of four thousand million entries somewhere, and of entries that wrap around.
    let mut wrapping = blank_head();
    let over = u64::MAX / 512;
    put_gpt(
        &mut wrapping,
        &[
            (0, 40, over),
            (1, u64::MAX, u64::MAX),
            (2, 50, 40),
            (3, 0, 0),
        ],
    );
    wrapping[SECTOR + 80..][..4].fill(0xff);
    let mut far = blank_head();
    put_gpt(&mut far, &[(0, 40, 50)]);
    far[SECTOR + 72..][..8].fill(0xff);
    let noise = {
        let mut disk = mixed_disk(BLOCKS, 0);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    };
    for (disk, expected) in [
        (looping, &of_loop[..]),
        (wrapping, &[("p4.raw", 0, 1)]),
        (far, &[]),
        (noise, &[]),
        (b"\x55\xaa".repeat(100), &[]),
    ] {
        let mounted = mounted(Store::of(disk.clone()), &[]);
        assert_partitions(&mounted, &disk, expected);
    }
}

#[test]
fn a_partition_shows_what_is_written_to_the_disk() {
    if !can_mount() {
        return;
    }
    let mut disk = blank_head();
    put_gpt(&mut disk, &[(0, 2048, 4095), (1, 4096, 8191)]);
    let store = Arc::new(Store::of(disk.clone()));
    let place = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    let overlay = place.directory.path().join("overlay");
    let with_overlay = ["--overlay", overlay.to_str().unwrap()];
    assert_ok(&mount(&base, &place, &with_overlay));
    let both = [("p1.raw", 2048, 2048), ("p2.raw", 4096, 4096)];
    assert_partitions(&place, &disk, &both);
    let open = || fs::File::options().write(true).open(place.disk()).unwrap();
    let mut write = |at: usize, bytes: &[u8]| {
        open().write_all_at(bytes, at as u64).unwrap();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    };
    write(2047 * SECTOR, &[0x77; 5000]);
    // The table goes: what is a file stays while it is mounted.
    write(2 * SECTOR + 128, &[0; 128]);
    assert_partitions(&place, &disk, &both);
    let opened = fs::File::options()
        .write(true)
        .open(partition(&place, "p1.raw"));
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(EROFS));
    umount(&place.point()).unwrap();
    drop(nix::fcntl::Flock::lock(
        fs::File::open(&overlay).unwrap(),
        nix::fcntl::FlockArg::LockExclusive,
    ));
    assert_ok(&mount(&base, &place, &with_overlay));
    assert_partitions(&place, &disk, &both[..1]);
}

#[test]
fn a_table_that_cannot_be_read_hides_partitions_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let mut disk = blank_head();
    put_gpt(&mut disk, &[(0, 2048, 4095)]);
    let mut store = Store::of(disk);
    store
        .files
        .retain(|_, bytes| !bytes.starts_with(PACK_MAGIC));
    let mounted = mounted(store, &[]);
    assert_eq!(listed(&mounted), [""; 0]);
    assert!(mounted.disk().exists() && mounted.point().join("disk.vmdk").exists());
    let found = fs::metadata(partition(&mounted, "p1.raw"));
    assert_eq!(found.unwrap_err().raw_os_error(), Some(EIO));
}

#[test]
fn a_partition_outlives_the_worker_that_read_the_table() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let mut disk = blank_head();
        put_mbr(&mut disk, 0, &[(0, 0x83, 2048, 4096)]);
        let store = Arc::new(Store::of(disk));
        let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[way]);
        let path = partition(&supervised.mounted, "p1.raw");
        let opened = fs::File::open(&path).unwrap();
        supervised.kill_worker();
        supervised.wait_for_restarts(1);
        // Nobody has looked for its name since, and none of it is in the kernel's cache.
        let partition = &store.disk[2048 * SECTOR..][..4096 * SECTOR];
        let mut bytes = vec![0; partition.len()];
        opened.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == partition, "{way}");
        supervised.kill_worker();
        supervised.wait_for_restarts(2);
        assert_eq!(fs::metadata(&path).unwrap().len(), partition.len() as u64);
        assert_eq!(opened.metadata().unwrap().len(), partition.len() as u64);
        drop(opened);
        supervised.end();
    }
}
