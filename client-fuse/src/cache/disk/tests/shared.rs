//! Chunks that several versions have, and chunks that a disk has twice.

use super::*;

fn open_as(directory: &Path, name: &[u8]) -> DiskCache {
    DiskCache::open(
        &config(directory, Some(64 << 20)),
        Digest::of(name),
        1 << 30,
    )
    .unwrap()
}

/// The same chunk at another place.
fn moved(chunk: &(Place, Chunk), region: u32, block: u32) -> Place {
    let entry = Entry {
        block,
        blocks: u32::try_from(chunk.0.plain_bytes() / 4096).unwrap(),
        chunk: chunk.1.id(),
        pack: 0,
        offset: 8,
        length: 100,
    };
    Place::new(region, entry, chunk.0.pack())
}

#[test]
fn a_chunk_of_another_version_is_copied_and_not_fetched() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (
        open_as(directory.path(), b"old"),
        open_as(directory.path(), b"new"),
    );
    let chunk = chunk(3, 4, 1);
    old.fill(&chunk.0, &chunk.1);
    let place = moved(&chunk, 2, 77);
    assert!(!new.may_hold(&place));
    assert!(matches!(new.read(&place), Cached::Copied(found) if found.bytes() == chunk.1.bytes()));
    new.fill(&place, &chunk.1);
    assert!(
        matches!(new.read(&place), Cached::Chunk(_)),
        "now it is at its own place"
    );
    let mended = open_as(directory.path(), b"mended");
    assert!(mended.obtain(&place) && mended.may_hold(&place));
}

#[test]
fn a_chunk_that_a_disk_has_twice_is_found_at_both_places() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open_as(directory.path(), b"disk");
    let chunk = chunk(3, 4, 1);
    cache.fill(&chunk.0, &chunk.1);
    let twin = moved(&chunk, 5, 9);
    assert!(matches!(cache.read(&twin), Cached::Copied(_)));
    assert!(
        !cache.may_hold(&twin),
        "who reads does not wait for a write"
    );
    assert!(cache.obtain(&twin));
    assert!(matches!(cache.read(&twin), Cached::Chunk(_)));
}

#[test]
fn a_chunk_that_rotted_at_its_place_is_found_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (
        open_as(directory.path(), b"old"),
        open_as(directory.path(), b"new"),
    );
    let chunk = chunk(3, 4, 1);
    new.fill(&chunk.0, &chunk.1);
    old.fill(&chunk.0, &chunk.1);
    let path = Directory::existing(directory.path().to_owned()).disk(&Digest::of(b"new"));
    let raw = File::options().write(true).open(path).unwrap();
    raw.write_all_at(b"rot", chunk.0.disk_offset() + 5).unwrap();
    assert!(matches!(new.read(&chunk.0), Cached::Copied(_)));
    new.fill(&chunk.0, &chunk.1);
    assert!(
        matches!(new.read(&chunk.0), Cached::Chunk(_)),
        "it is mended"
    );
}

#[test]
fn a_hint_that_is_wrong_is_a_miss() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (
        open_as(directory.path(), b"old"),
        open_as(directory.path(), b"new"),
    );
    let chunk = chunk(3, 4, 1);
    old.fill(&chunk.0, &chunk.1);
    let path = Directory::existing(directory.path().to_owned()).disk(&Digest::of(b"old"));
    for damage in [0, 1, 2] {
        let raw = File::options().write(true).open(&path).unwrap();
        match damage {
            0 => raw.write_all_at(b"rot", chunk.0.disk_offset() + 5).unwrap(),
            1 => sparse::punch(&raw, 0..1 << 20).unwrap(),
            _ => raw.set_len(0).unwrap(),
        }
        assert!(matches!(new.read(&chunk.0), Cached::Miss));
        assert!(!new.obtain(&chunk.0));
    }
    assert!(
        new.is_on(),
        "what is wrong with another file does not end this cache"
    );
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let later = open_as(directory.path(), b"later");
    assert!(matches!(later.read(&chunk.0), Cached::Miss));
}
