//! The bodies of the fuzz targets, callable on stable: whatever decodes encodes to the same bytes.

use crate::boot_pack::Head;
use crate::chunk::{CHUNK_BLOCKS_MAX, ChunkId};
use crate::geometry::BLOCK_LEN;
use crate::page::Page;
use crate::profile::Profile;
use crate::reference::ImageRef;
use crate::region_table::LeafTable;
use crate::trace::Trace;
use crate::{catalogue, frame, manifest, marker, region_table};

/// Any bytes as an index page.
///
/// # Panics
/// If a page has two encodings.
pub fn page(data: &[u8]) {
    if let Ok(page) = Page::decode(data) {
        assert_eq!(page.encode(), data, "page has two encodings");
    }
}

/// Any bytes as a boot pack: two bytes that say how long the head is, the head, and the stored bytes
/// of its first frame.
///
/// # Panics
/// If a head has two encodings, or a frame gives chunks that are not those of the head.
pub fn boot_pack(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (bytes, stored) = rest.split_at(length);
    let Ok(head) = Head::decode(bytes) else {
        return;
    };
    assert_eq!(head.encode(), bytes, "boot pack has two encodings");
    if let Ok(chunks) = head.decode_frame(0, stored) {
        let named = head.chunks_of(0).map(|chunk| chunk.entry.chunk);
        let got = chunks.iter().map(|chunk| ChunkId::of(chunk.bytes()));
        assert!(named.eq(got), "a chunk that is not what its name says");
    }
}

/// Any bytes as a trace and as a profile.
///
/// # Panics
/// If what was accepted does not decode from its own encoding.
pub fn profile(data: &[u8]) {
    if let Ok(trace) = Trace::decode(data) {
        let profile = Profile::merge(trace.header.disk, None, &[trace]);
        assert_eq!(Profile::decode(&profile.encode()).ok(), Some(profile));
    }
    if let Ok(profile) = Profile::decode(data) {
        assert_eq!(Profile::decode(&profile.encode()).ok(), Some(profile));
    }
}

/// Any bytes as a region table and as a leaf of one.
///
/// # Panics
/// If a leaf has two encodings.
pub fn region_table(data: &[u8]) {
    if let Ok(table) = region_table::RegionTable::decode(data) {
        let _ = table.lookup(table.n_regions());
    }
    if let Ok(leaf) = LeafTable::decode_any(data) {
        assert_eq!(leaf.encode(), data, "leaf has two encodings");
    }
}

/// Any bytes as each of the JSON documents: what is accepted round-trips by value.
///
/// # Panics
/// If what was accepted does not decode from its own encoding.
pub fn documents(data: &[u8]) {
    if let Ok(manifest) = manifest::Manifest::decode(data) {
        assert_eq!(
            manifest::Manifest::decode(&manifest.encode()).ok(),
            Some(manifest)
        );
    }
    if let Ok(catalogue) = catalogue::Catalogue::decode_any(data) {
        assert_eq!(
            catalogue::Catalogue::decode_any(&catalogue.encode()).ok(),
            Some(catalogue)
        );
    }
    if let Ok(list) = catalogue::ChunkIndexList::decode(data) {
        assert_eq!(
            catalogue::ChunkIndexList::decode(&list.encode()).ok(),
            Some(list)
        );
    }
    let _ = marker::Marker::decode(data);
}

/// Any bytes as the stored form of a chunk.
///
/// # Panics
/// If bytes are accepted that are not the chunk asked for.
pub fn frame(data: &[u8]) {
    let id = ChunkId::of(data);
    for blocks in [1, 2, CHUNK_BLOCKS_MAX as usize] {
        if let Ok(chunk) = frame::decode(id, blocks * BLOCK_LEN, data) {
            assert_eq!(
                ChunkId::of(chunk.bytes()),
                id,
                "a chunk that is not what its name says"
            );
        }
    }
}

/// Any text as an image reference: one spelling, and a safe form that leads back.
///
/// # Panics
/// If there are two spellings, or the safe form is not safe.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<ImageRef>() {
        assert_eq!(reference.to_string(), text, "reference has two spellings");
        let safe = reference.to_file_safe();
        assert!(
            !safe.contains(['/', ':', '%']) && !safe.contains(".."),
            "unsafe form {safe}"
        );
        assert_eq!(ImageRef::from_file_safe(&safe), Ok(reference));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        /// No bytes make a decoder panic.
        #[test]
        fn any_bytes(data in vec(any::<u8>(), 0..600), magic in 0..5_usize) {
            let magic: &[u8] = [&b""[..], b"CIRCPAGE\x01\0", b"CIRCRGNT\x01\0", b"CIRCRGNL\x01\0", b"\x4a\0CIRCBOOT\x01\0\0\0"][magic];
            let data = [magic, &data].concat();
            super::page(&data);
            super::boot_pack(&data);
            super::profile(&data);
            super::region_table(&data);
            super::documents(&data);
            super::frame(&data);
            super::reference(&data);
        }
    }
}
