//! Damage of every kind, at any time: a miss, and the right bytes again once they are fetched.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const CHUNKS: u8 = 12;

/// A cache of some chunks, with them.
pub(super) fn filled(directory: &Path) -> (DiskCache, Vec<(Place, Chunk)>) {
    let cache = open(directory, None).unwrap();
    let chunks: Vec<_> = (0..CHUNKS)
        .map(|number| chunk(u32::from(number) * 6, 5, number * 2))
        .collect();
    for (place, chunk) in &chunks {
        assert!(cache.fill(place, chunk) > 0);
    }
    (cache, chunks)
}

/// Reads every chunk: it is right or missing. What is missing is filled in and read again, as after
/// a fetch. Returns how many were missing.
pub(super) fn check(cache: &DiskCache, chunks: &[(Place, Chunk)]) -> usize {
    let mut missing = 0;
    for (place, chunk) in chunks {
        match cache.read(place) {
            Cached::Chunk(found) => assert_eq!(found.bytes(), chunk.bytes()),
            Cached::Copied(found) => {
                assert_eq!(found.bytes(), chunk.bytes());
                cache.fill(place, chunk);
            }
            Cached::Miss | Cached::Rejected => {
                missing += 1;
                if cache.fill(place, chunk) > 0 {
                    assert!(matches!(cache.read(place), Cached::Chunk(_)));
                }
            }
        }
    }
    missing
}

fn raw(directory: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(file(directory))
        .unwrap()
}

#[test]
fn a_flipped_bit_anywhere_is_a_miss_offline_and_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let (mut cache, chunks) = filled(directory.path());
    let raw = raw(directory.path());
    let (mut flips, mut missing) = (0, 0);
    for at in (0..u64::from(CHUNKS) * 6 * 4096).step_by(1531) {
        let mut byte = [0];
        raw.read_exact_at(&mut byte, at).unwrap();
        if byte == [0] {
            continue; // a hole between two chunks
        }
        byte[0] ^= 1 << (at % 8);
        raw.write_all_at(&byte, at).unwrap();
        flips += 1;
        if flips % 3 == 0 {
            drop(cache);
            cache = open(directory.path(), None).unwrap();
        }
        missing += check(&cache, &chunks);
    }
    assert!(flips > 100);
    assert_eq!(missing, flips, "each flip is found, and nothing else is");
}

type Damage = fn(&Path, &[(Place, Chunk)]);

/// What is done to a file of chunks, and how many are then missing.
const DAMAGES: [(&str, Damage, usize); 7] = [
    (
        "torn write",
        |path, chunks| {
            let place = &chunks[3].0;
            raw(path)
                .write_all_at(&[7; 4096], place.disk_offset() + 8192)
                .unwrap();
        },
        1,
    ),
    (
        "a hole in a chunk",
        |path, chunks| {
            let start = chunks[5].0.disk_offset() + 4096;
            sparse::punch(&raw(path), start..start + 4096).unwrap();
        },
        1,
    ),
    (
        "all punched",
        |path, _| sparse::punch(&raw(path), 0..1 << 20).unwrap(),
        12,
    ),
    (
        "two chunks swapped",
        |path, chunks| {
            let raw = raw(path);
            raw.write_all_at(chunks[1].1.bytes(), chunks[2].0.disk_offset())
                .unwrap();
            raw.write_all_at(chunks[2].1.bytes(), chunks[1].0.disk_offset())
                .unwrap();
        },
        2,
    ),
    (
        "another file in its place",
        |path, _| {
            fs::write(file(path), vec![9; 300_000]).unwrap();
        },
        12,
    ),
    (
        "an empty file in its place",
        |path, _| {
            fs::remove_file(file(path)).unwrap();
            fs::write(file(path), b"").unwrap();
        },
        12,
    ),
    (
        "longer and shifted",
        |path, _| {
            let mut bytes = fs::read(file(path)).unwrap();
            bytes.splice(0..0, [1; 4096]);
            fs::write(file(path), bytes).unwrap();
        },
        12,
    ),
];

#[test]
fn a_file_torn_truncated_punched_or_swapped_is_missed_where_it_was_hit() {
    for (what, damage, expected) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let (cache, chunks) = filled(directory.path());
        // Without the table of hints, which would find what was only moved.
        fs::remove_file(directory.path().join("disks-v1/chunks.hints")).unwrap();
        drop(cache);
        damage(directory.path(), &chunks);
        let cache = open(directory.path(), None).unwrap();
        assert_eq!(check(&cache, &chunks), expected, "{what}");
        assert_eq!(check(&cache, &chunks), 0, "{what}: it heals");
    }
}

#[test]
fn damaged_hints_and_recency_are_as_none() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path());
    cache.save();
    drop(cache);
    let disks = directory.path().join("disks-v1");
    for entry in fs::read_dir(&disks).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|it| it == "use" || it == "hints")
        {
            let mut bytes = fs::read(&path).unwrap();
            bytes
                .iter_mut()
                .step_by(3)
                .for_each(|byte| *byte = byte.wrapping_add(91));
            fs::write(&path, bytes).unwrap();
        }
    }
    let cache = open(directory.path(), None).unwrap();
    assert_eq!(check(&cache, &chunks), 0);
}

#[test]
fn a_directory_that_is_removed_in_use_ends_filling_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path());
    fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(check(&cache, &chunks), 0, "the file is still open");
    let mut filled = 0;
    for number in 0..200 {
        let (place, chunk) = chunk_in(1, number * 64, 64, 1);
        filled += cache.fill(&place, &chunk);
    }
    assert!(filled <= 16 << 20, "no more than was granted: {filled}");
    cache.save();
    assert!(!directory.path().exists(), "nothing is made again");
}

#[test]
fn a_directory_that_cannot_be_written_is_no_cache() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("disks-v1"), "a file in its place").unwrap();
    assert!(open(directory.path(), None).is_err());
    let sealed = tempfile::tempdir().unwrap();
    fs::set_permissions(sealed.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if !nix::unistd::geteuid().is_root() {
        assert!(open(sealed.path(), None).is_err());
    }
}

#[test]
fn files_of_others_and_of_other_formats_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let disks = directory.path().join("disks-v1");
    fs::create_dir_all(directory.path().join("disks-v0")).unwrap();
    fs::create_dir(&disks).unwrap();
    let strangers = [
        disks.join("notes.txt"),
        disks.join("12.raw"),
        directory.path().join("disks-v0/x.raw"),
    ];
    for stranger in &strangers {
        fs::write(stranger, vec![1; 100_000]).unwrap();
    }
    let cache = open(directory.path(), Some(256 << 10)).unwrap();
    for number in 0..40 {
        let (place, chunk) = chunk_in(number, 0, 8, 3);
        cache.fill(&place, &chunk);
    }
    for stranger in &strangers {
        assert_eq!(fs::read(stranger).unwrap(), vec![1; 100_000]);
    }
}
