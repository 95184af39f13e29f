//! The bodies of the fuzz targets in `tests/fuzz`, callable on stable: whatever decodes keeps its
//! promises, and encodes to the same bytes.
//!
//! Each takes any bytes and panics where a decoder accepted what it should not have. They run under
//! a fuzzer, over the saved corpus (`tests/tests/fuzz_corpus.rs`), and here on random bytes.

mod boot_pack;
mod documents;

pub use boot_pack::{boot_pack, profile};
pub use documents::documents;

use crate::chunk::{CHUNK_BLOCKS_MAX, ChunkId};
use crate::chunk_index::{self, ENTRY_BYTES, HEADER_BYTES, IndexEntry};
use crate::digest::{DIGEST_BYTES, Digest, ObjectRef};
use crate::frame::{self, FrameError};
use crate::geometry::{BLOCK_LEN, REGION_BLOCKS};
use crate::index_delta::{PatchError, Patches};
use crate::page::{Location, PAGE_BYTES_MAX, Page, PageBuilder};
use crate::reference::{ImageName, ImageRef};
use crate::region_table::{DIRECT_REGIONS_MAX, LeafTable, Lookup, RegionTable};

/// The longest file name of the file systems that stores and caches lie on.
const FILE_NAME_LEN_MAX: usize = 255;

/// Any bytes as an index page: what is accepted lies within its region and its packs.
///
/// # Panics
/// If a page has two encodings, or an entry leads outside.
pub fn page(data: &[u8]) {
    let Ok(page) = Page::decode(data) else {
        return;
    };
    assert_eq!(page.encode(), data, "page has two encodings");
    let mut next = 0;
    for entry in page.entries() {
        assert!(entry.block >= next, "chunks overlap");
        assert!(
            (1..=CHUNK_BLOCKS_MAX).contains(&entry.blocks),
            "chunk too long"
        );
        assert!(entry.end() <= REGION_BLOCKS, "chunk outside its region");
        let end = u64::from(entry.offset) + u64::from(entry.length);
        assert!(end <= page.pack(entry).length, "chunk outside its pack");
        assert_eq!(page.overlapping(entry.block, entry.end()), [*entry]);
        next = entry.end();
    }
    assert_eq!(page.overlapping(0, REGION_BLOCKS), page.entries());
}

/// Any bytes as an index delta, each patch for one page: what it gives is what it is asked for, or nothing.
///
/// # Panics
/// If a patch gives another page, or one that is too long.
pub fn index_delta(data: &[u8]) {
    let Ok(patches) = Patches::decode(data.to_vec().into()) else {
        return;
    };
    let base = fuzz_page(7);
    let regions: Vec<u32> = patches.regions().collect();
    assert!(regions.is_sorted(), "patches are out of order");
    for region in regions {
        // Nobody knows the digest of what a fuzzer made; the refusal tells what it would be.
        let asked = Digest::of(b"another page");
        let Err(PatchError::OtherPage(mismatch)) = patches.page(region, &asked, &base) else {
            continue;
        };
        let made = patches.page(region, &mismatch.actual, &base);
        let made = made.expect("the same bytes unpack again");
        let made = made.expect("there is a patch");
        assert!(made.len() <= PAGE_BYTES_MAX, "too long for a page");
        assert_eq!(Digest::of(&made), mismatch.actual);
    }
}

/// The page that patches of the corpus are for, and with another `seed` one that they make of it.
///
/// # Panics
/// Never.
pub fn fuzz_page(seed: u8) -> Vec<u8> {
    let mut builder = PageBuilder::default();
    let pack = ObjectRef {
        digest: Digest::of(b"pack"),
        length: 100_000,
    };
    for block in 0..9_u8 {
        let name = if block == 5 { seed } else { block };
        let place = Location {
            pack,
            offset: 8 + u32::from(block) * 1000,
            length: 1000,
        };
        builder.push(u32::from(block), 1, ChunkId::of(&[name]), place);
    }
    let page = builder.finish().expect("it is well-formed");
    page.expect("it has chunks").encode()
}

/// Any bytes as a region table, and as a leaf of one.
///
/// # Panics
/// If a table or leaf has two encodings, or a region two places.
pub fn region_table(data: &[u8]) {
    if let Ok(table) = RegionTable::decode(data) {
        root_table(data, &table);
    }
    if let Ok(leaf) = LeafTable::decode_any(data) {
        assert_eq!(leaf.encode(), data, "leaf has two encodings");
    }
}

fn root_table(data: &[u8], table: &RegionTable) {
    let regions = table.n_regions();
    if regions <= DIRECT_REGIONS_MAX {
        let page = |region| match table.lookup(region) {
            Lookup::Page(page) => Some(page),
            Lookup::Hole => None,
            Lookup::Leaf { .. } => panic!("a short disk has no leaves"),
        };
        let pages: Vec<_> = (0..regions).map(page).collect();
        let encoded = RegionTable::encode(table.disk_length(), &pages);
        assert_eq!(encoded.root, data, "region table has two encodings");
        assert_eq!(table.lookup(regions), Lookup::Hole, "a page past the end");
        return;
    }
    let mut slots = vec![None; regions.div_ceil(DIRECT_REGIONS_MAX) as usize];
    for (number, leaf) in table.leaves() {
        let at = Lookup::Leaf {
            leaf,
            number,
            slot: 0,
        };
        assert_eq!(table.lookup(number * DIRECT_REGIONS_MAX), at);
        assert!(table.leaf_slots(number) > 0, "a leaf past the end");
        slots[number as usize] = Some(leaf);
    }
    let mut encoded = Vec::new();
    for slot in &slots {
        encoded.extend_from_slice(
            slot.as_ref()
                .map_or(&[0; DIGEST_BYTES], |leaf| leaf.as_bytes()),
        );
    }
    assert!(data.ends_with(&encoded), "region table has two encodings");
}

/// Any bytes as a whole chunk index.
///
/// # Panics
/// If an index has two encodings, or an entry leads outside.
pub fn chunk_index(data: &[u8]) {
    let Some((head, rest)) = data.split_at_checked(HEADER_BYTES) else {
        return;
    };
    let Ok(header) = chunk_index::Header::decode(head, data.len() as u64) else {
        return;
    };
    assert_eq!(header.encode(), head, "header has two encodings");
    let packs_len = data.len()
        - HEADER_BYTES
        - usize::try_from(header.n_entries).expect("counted above") * ENTRY_BYTES;
    let (packs, entries) = rest.split_at(packs_len);
    let Ok(packs_list) = chunk_index::decode_packs(&header, packs) else {
        return;
    };
    let encoded: Vec<u8> = packs_list
        .iter()
        .flat_map(chunk_index::encode_pack)
        .collect();
    assert_eq!(encoded, packs, "list of packs has two encodings");
    for bytes in entries.as_chunks::<ENTRY_BYTES>().0 {
        let entry = IndexEntry::decode(bytes);
        assert_eq!(entry.encode(), *bytes, "entry has two encodings");
        assert!(header.guess(entry.chunk) < header.n_entries);
        if let Ok(place) = entry.location(&packs_list) {
            let end = u64::from(place.offset) + u64::from(place.length);
            assert!(end <= place.pack.length, "chunk outside its pack");
        }
    }
}

/// Any bytes as the stored form of a chunk: one byte that says how many blocks it has, then the
/// frame.
///
/// # Panics
/// If bytes are accepted that are not the chunk asked for, or not of its length.
pub fn frame(data: &[u8]) {
    let Some((blocks, stored)) = data.split_first() else {
        return;
    };
    let plain_len = (usize::from(*blocks) + 1) * BLOCK_LEN;
    // Nobody knows the digest of a frame that a fuzzer made; the refusal tells what it would be.
    let asked = ChunkId::of(b"another chunk");
    let Err(FrameError::Corrupt { source, .. }) = frame::decode(asked, plain_len, stored) else {
        return;
    };
    let id = ChunkId::from_bytes(*source.actual.as_bytes());
    let chunk = frame::decode(id, plain_len, stored).expect("the same bytes decode again");
    assert_eq!(chunk.bytes().len(), plain_len, "chunk of another length");
    assert_eq!(ChunkId::of(chunk.bytes()), id, "not what its name says");
}

/// Any text as an image reference: one spelling, and a safe form that leads back.
///
/// # Panics
/// If there are two spellings, or the safe form is not safe.
pub fn image_reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<ImageRef>() {
        assert_eq!(reference.to_string(), text, "reference has two spellings");
        let safe = reference.to_file_safe();
        assert_file_safe(&safe);
        assert_eq!(ImageRef::from_file_safe(&safe).as_ref(), Ok(&reference));
        let name = reference.name.to_file_safe();
        assert_eq!(ImageName::from_file_safe(&name), Ok(reference.name));
    }
    if let Ok(reference) = ImageRef::from_file_safe(text) {
        assert_eq!(
            reference.to_file_safe(),
            text,
            "safe form has two spellings"
        );
    }
    if let Ok(name) = ImageName::from_file_safe(text) {
        assert_eq!(name.to_file_safe(), text, "safe name has two spellings");
    }
}

/// Asserts that `safe` may be a file name beside others, with room for a digest and an ending.
fn assert_file_safe(safe: &str) {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-,=@".contains(&byte);
    assert!(safe.bytes().all(allowed), "unsafe form {safe}");
    assert!(!safe.contains(".."), "unsafe form {safe}");
    assert!(safe.len() <= FILE_NAME_LEN_MAX - ".ipxe".len());
    assert!(
        safe.bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
    );
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    const MAGICS: [&[u8]; 7] = [
        b"",
        b"CIRCPAGE\x01\0",
        b"CIRCRGNT\x01\0",
        b"CIRCRGNL\x01\0",
        b"CIRCCIDX\x01\0",
        b"CIRCIDLT\x01\0\0\0\x01\0\0\0",
        b"\x80\0CIRCBOOT\x01\0",
    ];

    proptest! {
        /// No bytes make a decoder panic.
        #[test]
        fn any_bytes(data in vec(any::<u8>(), 0..600), magic in 0..MAGICS.len()) {
            let data = [MAGICS[magic], &data].concat();
            super::page(&data);
            super::boot_pack(&data);
            super::profile(&data);
            super::region_table(&data);
            super::index_delta(&data);
            super::chunk_index(&data);
            super::documents(&data);
            super::frame(&data);
            super::image_reference(&data);
        }
    }
}
