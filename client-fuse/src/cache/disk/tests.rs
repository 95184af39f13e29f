//! What the cache file promises: the chunk or a miss, whatever happened to the file.

use image_format::chunk::ChunkId;
use image_format::digest::{Digest, ObjectRef};
use image_format::page::Entry;

use std::ops::Range;
use std::path::Path;

use super::*;
use crate::config::{ByteSize, DiskCacheConfig};

mod bound;
mod damage;
mod lent;
mod shared;
mod systems;

const DISK_BYTES: u64 = 100 * 4096 + 7;

fn digest() -> Digest {
    Digest::of(b"disk")
}

fn config(directory: &Path, bytes_max: Option<u64>) -> DiskCacheConfig {
    DiskCacheConfig {
        directory: directory.to_owned(),
        bytes_max: bytes_max.map(ByteSize),
    }
}

fn open(directory: &Path, bytes_max: Option<u64>) -> Result<DiskCache, CacheError> {
    DiskCache::open(&config(directory, bytes_max), digest(), DISK_BYTES)
}

fn file(directory: &Path) -> PathBuf {
    directory.join("disks-v1").join(format!("{}.raw", digest()))
}

/// A chunk of `blocks` blocks at `block`, with its place.
fn chunk(block: u32, blocks: u32, seed: u8) -> (Place, Chunk) {
    chunk_in(0, block, blocks, seed)
}

fn chunk_in(region: u32, block: u32, blocks: u32, seed: u8) -> (Place, Chunk) {
    let block_bytes: Vec<u8> = (0..BLOCK_BYTES)
        .map(|i| u8::try_from(i % 251).unwrap() | 1)
        .collect();
    let mut bytes = block_bytes.repeat(usize::try_from(blocks).unwrap());
    // In every sector, so that a torn block is neither the old one nor the new one.
    bytes[..4096]
        .iter_mut()
        .step_by(512)
        .for_each(|byte| *byte = seed);
    let chunk = Chunk::verify(ChunkId::of(&bytes), bytes.into()).unwrap();
    let pack = ObjectRef {
        digest: Digest::of(b"pack"),
        length: 1 << 20,
    };
    let entry = Entry {
        block,
        blocks,
        chunk: chunk.id(),
        pack: 0,
        offset: 8,
        length: 100,
    };
    (Place::new(region, entry, pack), chunk)
}

/// The bytes `within` the chunk, if the cache has them.
fn read(cache: &DiskCache, place: &Place, within: Range<usize>) -> Option<Bytes> {
    match cache.read(place) {
        Cached::Chunk(chunk) | Cached::Copied(chunk) => Some(chunk.bytes().slice(within)),
        Cached::Miss | Cached::Rejected => None,
    }
}

#[test]
fn what_is_filled_is_found_now_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (place, chunk) = chunk(3, 4, 0x55);
    let cache = open(directory.path(), None).unwrap();
    assert!(!cache.may_hold(&place));
    assert_eq!(cache.fill(&place, &chunk), 4 * 4096);
    assert_eq!(cache.fill(&place, &chunk), 0, "it is there already");
    for cache in [cache, open(directory.path(), None).unwrap()] {
        for within in [0..16_384, 0..1, 4095..4097, 5000..5001, 16_383..16_384] {
            assert_eq!(
                read(&cache, &place, within.clone()).unwrap(),
                chunk.bytes()[within]
            );
        }
    }
}

#[test]
fn the_last_block_of_an_odd_disk_has_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (place, chunk) = chunk(100, 1, 3);
    let cache = open(directory.path(), None).unwrap();
    cache.fill(&place, &chunk);
    assert_eq!(read(&cache, &place, 0..7).unwrap(), chunk.bytes()[..7]);
}

#[test]
fn damage_is_a_rejected_chunk_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let (place, chunk) = chunk(3, 4, 0x55);
    open(directory.path(), None).unwrap().fill(&place, &chunk);
    let raw = File::options()
        .write(true)
        .open(file(directory.path()))
        .unwrap();
    raw.write_all_at(b"\xff", place.disk_offset() + 9000)
        .unwrap();
    let cache = open(directory.path(), None).unwrap();
    assert!(matches!(cache.read(&place), Cached::Rejected));
    assert!(matches!(cache.read(&place), Cached::Miss));
    assert_eq!(cache.fill(&place, &chunk), 4 * 4096);
    assert_eq!(read(&cache, &place, 0..16_384).unwrap(), chunk.bytes());
}

#[test]
fn a_chunk_of_another_place_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let ((place, chunk), (other, _)) = (chunk(3, 4, 1), chunk(3, 4, 2));
    let cache = open(directory.path(), None).unwrap();
    cache.fill(&place, &chunk);
    assert!(matches!(cache.read(&other), Cached::Rejected));
}

#[test]
fn a_zero_block_is_a_miss_even_after_verification() {
    let directory = tempfile::tempdir().unwrap();
    let (place, chunk) = chunk(3, 4, 0x55);
    let cache = open(directory.path(), None).unwrap();
    cache.fill(&place, &chunk);
    assert!(read(&cache, &place, 0..10).is_some());
    let raw = File::options()
        .write(true)
        .open(file(directory.path()))
        .unwrap();
    raw.write_all_at(&[0; 4096], place.disk_offset() + 4096)
        .unwrap();
    assert!(read(&cache, &place, 5000..6000).is_none());
}

#[test]
fn a_file_of_a_wrong_length_is_made_right_and_its_holes_are_misses() {
    let directory = tempfile::tempdir().unwrap();
    let ((near, a), (far, b)) = (chunk(3, 4, 1), chunk(50, 4, 2));
    let cache = open(directory.path(), None).unwrap();
    cache.fill(&near, &a);
    cache.fill(&far, &b);
    drop(cache);
    for length in [52 * 4096, 1 << 30] {
        File::options()
            .write(true)
            .open(file(directory.path()))
            .unwrap()
            .set_len(length)
            .unwrap();
        let cache = open(directory.path(), None).unwrap();
        assert_eq!(read(&cache, &near, 0..100).unwrap(), a.bytes()[..100]);
        assert!(read(&cache, &far, 0..16_384).is_none());
    }
}

#[test]
fn truncation_while_it_is_used_switches_the_cache_off() {
    let directory = tempfile::tempdir().unwrap();
    let (place, chunk) = chunk(3, 4, 1);
    let cache = open(directory.path(), None).unwrap();
    cache.fill(&place, &chunk);
    File::options()
        .write(true)
        .open(file(directory.path()))
        .unwrap()
        .set_len(0)
        .unwrap();
    assert!(read(&cache, &place, 0..100).is_none());
    assert!(!cache.may_hold(&place));
    assert_eq!(cache.fill(&place, &chunk), 0);
}

#[test]
fn two_mounts_share_a_file_and_an_exclusive_holder_keeps_others_out() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (
        open(directory.path(), None).unwrap(),
        open(directory.path(), None).unwrap(),
    );
    let (place, chunk) = chunk(3, 4, 1);
    assert!(first.fill(&place, &chunk) > 0);
    assert_eq!(second.fill(&place, &chunk), 0, "it is there already");
    assert!(read(&first, &place, 0..9).is_some() && read(&second, &place, 0..9).is_some());
    drop((first, second));
    let raw = File::open(file(directory.path())).unwrap();
    let _exclusive = Flock::lock(raw, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    assert!(matches!(
        open(directory.path(), None),
        Err(CacheError::Locked { .. })
    ));
}

#[test]
fn odd_things_in_the_way_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("disks-v1")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", file(directory.path())).unwrap();
    assert!(
        matches!(open(directory.path(), None), Err(CacheError::Io { .. })),
        "a link is not followed"
    );
    std::fs::remove_file(file(directory.path())).unwrap();
    std::fs::create_dir(file(directory.path())).unwrap();
    assert!(open(directory.path(), None).is_err());
    let in_the_way = directory.path().join("file");
    std::fs::write(&in_the_way, "").unwrap();
    assert!(open(&in_the_way, None).is_err());
}

#[test]
fn a_cache_that_is_off_has_nothing_and_takes_nothing() {
    let (place, chunk) = chunk(3, 4, 1);
    let cache = DiskCache::off();
    assert_eq!(cache.fill(&place, &chunk), 0);
    assert!(!cache.may_hold(&place) && matches!(cache.read(&place), Cached::Miss));
}
