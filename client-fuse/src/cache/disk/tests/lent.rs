//! Parts that are read without their chunk, and a whole file that others read without us.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::fcntl::FlockArg;

use super::damage::filled;
use super::*;

/// A disk of whole blocks.
const EVEN_BYTES: u64 = 100 * 4096;

fn open_even(directory: &Path) -> DiskCache {
    DiskCache::open(&config(directory, None), digest(), EVEN_BYTES).unwrap()
}

fn raw(directory: &Path) -> File {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .open(file(directory))
        .unwrap()
}

fn sealed(cache: &DiskCache, range: Range<u64>, wait: Wait) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    let within = cache.read_sealed(&range, &mut buffer, wait)?;
    Some(buffer[within].to_vec())
}

#[test]
fn what_was_verified_in_this_run_is_read_in_parts() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path());
    let (place, chunk) = &chunks[2];
    let start = place.disk_offset();
    assert_eq!(sealed(&cache, start..start + 9, Wait::Yes), None);
    assert!(matches!(cache.read(place), Cached::Chunk(_)));
    for within in [0..9, 4095..4097, 5000..20_480, 0..20_480] {
        let range = start + within.start as u64..start + within.end as u64;
        let expected = &chunk.bytes()[within.clone()];
        assert_eq!(sealed(&cache, range, Wait::No).as_deref(), Some(expected));
        assert_eq!(cache.read_part(place, &within).unwrap(), expected);
    }
    let behind = start + 5 * 4096;
    assert_eq!(sealed(&cache, start..behind + 1, Wait::Yes), None);
    drop(cache);
    let cache = open(directory.path(), None).unwrap();
    assert_eq!(
        sealed(&cache, start..start + 9, Wait::Yes),
        None,
        "another run"
    );
}

#[test]
fn a_bit_that_flips_in_a_part_is_never_read() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path());
    let raw = raw(directory.path());
    for (number, (place, chunk)) in chunks.iter().enumerate() {
        assert!(matches!(cache.read(place), Cached::Chunk(_)));
        let at = number * 1789 % chunk.bytes().len();
        let flipped = chunk.bytes()[at] ^ (1 << (number % 8));
        raw.write_all_at(&[flipped], place.disk_offset() + at as u64)
            .unwrap();
        assert_eq!(cache.read_part(place, &(at..at + 1)), None);
        let other = (at + 4096) % chunk.bytes().len();
        assert!(cache.read_part(place, &(other..other + 1)).is_some());
        assert!(matches!(cache.read(place), Cached::Rejected));
        assert!(cache.fill(place, chunk) > 0);
        assert!(cache.read_part(place, &(at..at + 1)).is_some(), "mended");
    }
}

/// Proves the file; nothing is wrong with it.
fn prove(cache: &DiskCache, chunks: &[(Place, Chunk)]) {
    let pass = cache.begin_pass().unwrap();
    let mut at = 0;
    for (place, _) in chunks {
        let chunk = place.on_disk();
        assert!(cache.check(place));
        assert!(cache.check_hole(&(at..chunk.start)));
        at = chunk.end;
    }
    assert!(cache.check_hole(&(at..EVEN_BYTES)));
    assert!(cache.conclude(&pass));
}

fn filled_even(directory: &Path) -> (DiskCache, Vec<(Place, Chunk)>) {
    drop(open_even(directory));
    let (cache, chunks) = filled(directory);
    drop(cache);
    (open_even(directory), chunks)
}

#[test]
fn a_file_is_lent_once_it_is_proven_and_until_it_is_doubted() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled_even(directory.path());
    assert!(cache.lend().unwrap().is_none());
    prove(&cache, &chunks);
    assert!(cache.lend().unwrap().is_some());
    let (place, chunk) = &chunks[4];
    raw(directory.path())
        .write_all_at(&[1], place.disk_offset() + 5000)
        .unwrap();
    assert!(matches!(cache.read(place), Cached::Rejected));
    assert!(cache.lend().unwrap().is_none(), "a chunk does not match");
    cache.fill(place, chunk);
    assert!(cache.lend().unwrap().is_none(), "nobody looked again");
    prove(&cache, &chunks);
    assert!(cache.lend().unwrap().is_some());
    assert!(matches!(cache.read(place), Cached::Chunk(_)));
    let (at, byte) = (place.disk_offset() + 5000, chunk.bytes()[5000]);
    raw(directory.path()).write_all_at(&[!byte], at).unwrap();
    assert_eq!(sealed(&cache, at..at + 1, Wait::No), None);
    assert!(cache.lend().unwrap().is_none(), "a part does not match");
    raw(directory.path()).write_all_at(&[byte], at).unwrap();
    prove(&cache, &chunks);
    let pass = cache.begin_pass().unwrap();
    raw(directory.path())
        .write_all_at(&[1], EVEN_BYTES - 4096)
        .unwrap();
    assert!(!cache.check_hole(&(EVEN_BYTES - 8192..EVEN_BYTES)));
    assert!(!cache.conclude(&pass), "a hole was not empty");
    prove(&cache, &chunks);
    let path = file(directory.path());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    assert!(cache.lend().unwrap().is_none(), "others may write");
    assert!(cache.begin_pass().is_none());
}

#[test]
fn a_longer_file_than_the_disk_is_never_lent() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, _) = filled(directory.path());
    assert!(cache.begin_pass().is_none());
}

#[test]
fn what_is_lent_keeps_all_its_data_for_as_long_as_anybody_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled_even(directory.path());
    prove(&cache, &chunks);
    let occupied = || fs::metadata(file(directory.path())).unwrap().blocks();
    let before = occupied();
    let make_room = || cache.file().unwrap().make_room(1 << 30);
    let lent = cache.lend().unwrap().unwrap();
    // What the kernel has of it: another reference to the same description.
    let kernels = lent.try_clone().unwrap();
    drop(lent);
    assert!(!make_room() && occupied() == before);
    let all = Flock::lock(raw(directory.path()), FlockArg::LockExclusiveNonblock);
    assert!(all.is_err(), "nor may anybody else");
    drop(kernels);
    make_room();
    assert!(occupied() < before);
    assert!(cache.lend().unwrap().is_none(), "what went is not proven");
}
