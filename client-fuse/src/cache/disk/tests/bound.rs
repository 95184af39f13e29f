//! The bound over all files, and what makes room for what.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::cache::memory::MemoryCache;
use crate::cache::{Caches, keep_recency};

const MIB: u64 = 1 << 20;

/// A disk of 64 GiB, all hole.
const LARGE: u64 = 64 << 30;

fn open_disk(directory: &Path, name: &[u8], bytes_max: u64) -> DiskCache {
    DiskCache::open(&config(directory, Some(bytes_max)), Digest::of(name), LARGE).unwrap()
}

/// A chunk of 256 KiB that is alone in its segment.
fn large(number: u32) -> (Place, Chunk) {
    chunk_in(
        number / 60,
        number % 60 * 256,
        64,
        u8::try_from(number % 251).unwrap(),
    )
}

/// What all files of the directory occupy.
fn occupied(directory: &Path) -> u64 {
    let used = Directory::existing(directory.to_owned())
        .used(None)
        .unwrap();
    used.disks + used.documents
}

fn holds(cache: &DiskCache, number: u32) -> bool {
    matches!(cache.read(&large(number).0), Cached::Chunk(_))
}

fn fill(cache: &DiskCache, number: u32) -> bool {
    let (place, chunk) = large(number);
    cache.fill(&place, &chunk) > 0
}

#[test]
fn what_was_unused_for_longest_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open_disk(directory.path(), b"a", 16 * MIB);
    cache.prize(std::iter::empty());
    for number in 0..200 {
        assert!(fill(&cache, number), "{number}");
        assert!(holds(&cache, 0), "what is used stays, at {number}");
        assert!(occupied(directory.path()) <= 16 * MIB);
    }
    assert!(holds(&cache, 199) && holds(&cache, 190));
    assert!(!holds(&cache, 1) && !holds(&cache, 100));
    // Each chunk is alone in its segment, and what is not there any more was counted.
    let evicted = cache.evicted().unwrap();
    let gone = (0..200).filter(|number| !holds(&cache, *number)).count() as u64;
    assert_eq!(evicted.segments.count(), gone);
    assert!(evicted.bytes.count() >= gone * (256 << 10));
    assert!(cache.bytes() >= (200 - gone) * (256 << 10) && cache.bytes() <= 16 * MIB);
}

#[test]
fn the_boot_set_outlives_what_is_newer() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open_disk(directory.path(), b"a", 16 * MIB);
    cache.prize([large(3).0, large(4).0].into_iter());
    for number in 0..200 {
        assert!(fill(&cache, number));
    }
    assert!(holds(&cache, 3) && holds(&cache, 4));
    assert!(!holds(&cache, 5));
}

#[test]
fn recency_survives_a_restart_and_a_kill() {
    for killed in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let cache = open_disk(directory.path(), b"a", 16 * MIB);
        cache.prize(std::iter::empty());
        for number in 0..40 {
            assert!(fill(&cache, number));
        }
        assert!(holds(&cache, 0));
        if killed {
            assert!(cache.save_news(), "as now and then in a run");
            assert!(!cache.save_news(), "nothing was used since");
        } else {
            cache.save();
        }
        drop(cache);
        let cache = open_disk(directory.path(), b"a", 16 * MIB);
        for number in 100..130 {
            assert!(fill(&cache, number));
            assert!(occupied(directory.path()) <= 16 * MIB);
        }
        assert!(holds(&cache, 0), "what was used last stays");
        assert!(!holds(&cache, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_used_is_saved_without_an_end_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open_disk(directory.path(), b"a", 16 * MIB);
    let saved = Directory::existing(directory.path().to_owned()).recency(&Digest::of(b"a"));
    assert!(fill(&disk, 0) && !saved.exists());
    let memory = MemoryCache::new(0);
    let caches = Arc::new(Caches::of(memory, disk));
    let keeping = tokio::spawn(keep_recency(Arc::downgrade(&caches)));
    while !saved.exists() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drop(caches);
    keeping.await.unwrap();
}

#[test]
fn disks_that_nobody_mounts_make_room_and_those_that_somebody_mounts_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let (idle, busy) = (
        open_disk(directory.path(), b"idle", 16 * MIB),
        open_disk(directory.path(), b"busy", 16 * MIB),
    );
    for number in 0..20 {
        assert!(fill(&idle, number) && fill(&busy, 500 + number));
    }
    idle.save();
    drop(idle);
    let cache = open_disk(directory.path(), b"new", 16 * MIB);
    for number in 1000..1200 {
        fill(&cache, number);
        assert!(occupied(directory.path()) <= 16 * MIB);
    }
    assert!((0..20).all(|number| holds(&busy, 500 + number)));
    assert!(holds(&cache, 1199));
    let gone = Directory::existing(directory.path().to_owned());
    assert!(
        !gone.disk(&Digest::of(b"idle")).exists(),
        "nothing is left of it"
    );
    assert!(!gone.recency(&Digest::of(b"idle")).exists());
}

#[test]
fn of_two_mounts_of_one_disk_neither_takes_from_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let first = open_disk(directory.path(), b"a", 8 * MIB);
    let second = open_disk(directory.path(), b"a", 8 * MIB);
    let kept = (0..100).filter(|number| fill(&first, *number)).count();
    let more = (500..600).filter(|number| fill(&second, *number)).count();
    assert!(kept > 5 && more < 100, "{kept} {more}");
    assert!(occupied(directory.path()) <= 8 * MIB);
    assert!(
        (0..5).all(|number| holds(&second, number)),
        "what one has filled in the other reads"
    );
    drop(second);
    let later = (1000..1600).filter(|number| fill(&first, *number)).count();
    assert!(later > 30, "alone, it makes room again: {later}");
}

#[test]
fn opening_a_full_cache_looks_at_nothing_that_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open_disk(directory.path(), b"a", 64 * MIB);
    for number in 0..150 {
        fill(&cache, number);
    }
    cache.save();
    drop(cache);
    let cache = open_disk(directory.path(), b"a", 64 * MIB);
    let mapped = || cache.file().unwrap().known().mapped.len();
    assert_eq!(mapped(), 0);
    assert!(holds(&cache, 61) && holds(&cache, 62));
    assert_eq!(
        mapped(),
        1,
        "a region is looked at when it is first asked for"
    );
}

#[test]
fn a_disk_that_is_wanted_whole_comes_whole_and_gives_nothing_for_the_rest_of_itself() {
    let directory = tempfile::tempdir().unwrap();
    let old = open_disk(directory.path(), b"old", 16 * MIB);
    for number in 0..20 {
        assert!(fill(&old, number));
    }
    old.save();
    drop(old);
    std::thread::sleep(Duration::from_millis(1100));
    let newer = open_disk(directory.path(), b"newer", 16 * MIB);
    newer.prize((500..530).map(|number| large(number).0));
    for number in 500..530 {
        assert!(fill(&newer, number));
    }
    newer.save();
    drop(newer);
    let disk = open_disk(directory.path(), b"old", 16 * MIB);
    let whole = disk.want_whole();
    for number in 20..50 {
        assert!(fill(&disk, number), "{number}");
        assert!(occupied(directory.path()) <= 16 * MIB);
    }
    assert!((0..50).all(|number| holds(&disk, number)), "all is there");
    // What is more than the bound holds finds no room, and costs nothing of the rest.
    let all = (50..100).all(|number| fill(&disk, number));
    assert!(!all && disk.room() == Room::None);
    assert!((0..50).all(|number| holds(&disk, number)));
    drop(whole);
    disk.look_for_room();
    assert!(fill(&disk, 200), "now what is old makes room");
}

#[test]
fn what_is_reserved_and_not_written_yet_counts_for_every_mount() {
    let directory = tempfile::tempdir().unwrap();
    let mounts = [b"a", b"b"].map(|name| open_disk(directory.path(), name, 8 * MIB));
    let reserve = |bytes| mounts[0].file().unwrap().reserve(bytes).unwrap();
    let reserved = [(); 12].map(|()| reserve(256 << 10));
    for number in 0..40 {
        for mount in &mounts {
            fill(mount, number);
        }
        assert!(occupied(directory.path()) <= 5 * MIB, "at {number}");
    }
    drop(reserved);
    mounts.iter().for_each(DiskCache::look_for_room);
    for number in 40..80 {
        fill(&mounts[1], number);
    }
    assert!(occupied(directory.path()) > 6 * MIB);
}

#[test]
fn a_dead_mount_leaves_its_grant_to_others() {
    let directory = tempfile::tempdir().unwrap();
    drop(open_disk(directory.path(), b"a", 8 * MIB));
    let grant = directory.path().join("disks-v1/1.grant");
    fs::write(&grant, format!("{:020}", 8 * MIB)).unwrap();
    let cache = open_disk(directory.path(), b"a", 8 * MIB);
    assert!(fill(&cache, 1));
    assert!(!grant.exists());
    fs::write(&grant, format!("{:020}", 8 * MIB)).unwrap();
    let held = File::open(&grant).unwrap();
    let _held = Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let other = open_disk(directory.path(), b"b", 8 * MIB);
    assert!(
        !fill(&other, 2),
        "all of it was granted to somebody who lives"
    );
}

/// What may happen to a directory of two disks.
#[derive(Clone, Debug)]
enum Op {
    Fill(usize, u32),
    Read(usize, u32),
    Reopen(usize),
    Save(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let disk = 0..2_usize;
    prop_oneof![
        8 => (disk.clone(), 0..80_u32).prop_map(|(disk, number)| Op::Fill(disk, number)),
        4 => (disk.clone(), 0..80_u32).prop_map(|(disk, number)| Op::Read(disk, number)),
        1 => disk.clone().prop_map(Op::Reopen),
        1 => disk.prop_map(Op::Save),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// In any order of fills, reads and restarts of two mounts the bound holds, what was filled in
    /// last is there, and what is read is right.
    #[test]
    fn the_bound_holds_over_two_mounts(ops in vec(op(), 1..100), bound in 3..12_u64) {
        let directory = tempfile::tempdir().unwrap();
        let names = [b"a", b"b"];
        let mut caches = names.map(|name| Some(open_disk(directory.path(), name, bound * MIB)));
        for op in ops {
            match op {
                Op::Fill(disk, number) => {
                    let cache = caches[disk].as_ref().unwrap();
                    if fill(cache, number) {
                        prop_assert!(holds(cache, number));
                    }
                }
                Op::Read(disk, number) => {
                    let (place, chunk) = large(number);
                    if let Cached::Chunk(found) = caches[disk].as_ref().unwrap().read(&place) {
                        prop_assert_eq!(found.bytes(), chunk.bytes());
                    }
                }
                Op::Reopen(disk) => {
                    caches[disk] = None;
                    caches[disk] = Some(open_disk(directory.path(), names[disk], bound * MIB));
                }
                Op::Save(disk) => caches[disk].as_ref().unwrap().save(),
            }
            prop_assert!(occupied(directory.path()) <= bound * MIB);
        }
    }
}
