//! What a page promises, as laws and as cases.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A page with a chunk for each (gap before it, blocks, which of four packs).
fn page_of(chunks: &[(u32, u32, u8)]) -> Page {
    let mut builder = PageBuilder::default();
    let mut block = 0;
    for (at, (gap, blocks, pack)) in chunks.iter().enumerate() {
        block += gap;
        let place = Location {
            pack: ObjectRef {
                digest: Digest::of(&[*pack]),
                length: u64::from(PACK_BYTES_MAX),
            },
            offset: PACK_HEADER_BYTES + u32::try_from(at).unwrap() * 1000,
            length: blocks * 1000,
        };
        builder.push(block, *blocks, ChunkId::of(&at.to_le_bytes()), place);
        block += blocks;
    }
    builder.finish().unwrap().unwrap()
}

proptest! {
    /// Each page has one encoding, and decodes from it.
    #[test]
    fn round_trip(chunks in vec((0..9_u32, 1..65_u32, 0..4_u8), 1..200)) {
        let page = page_of(&chunks);
        prop_assert_eq!(Page::decode(&page.encode()).unwrap(), page);
    }

    /// `overlapping` finds the entries that a linear search finds.
    #[test]
    fn overlapping_is_a_search(
        chunks in vec((0..9_u32, 1..65_u32, 0..4_u8), 1..100),
        (first, len) in (0..8000_u32, 0..500_u32),
    ) {
        let page = page_of(&chunks);
        let end = first + len;
        let expected: Vec<_> = page.entries().iter()
            .filter(|e| len > 0 && e.block < end && e.end() > first).copied().collect();
        prop_assert_eq!(page.overlapping(first, end), &expected[..]);
    }
}

/// Every single-byte change of a small page is refused, or decodes to a page with that encoding.
#[test]
fn no_change_of_a_byte_is_overlooked() {
    let good = page_of(&[(0, 2, 0), (3, 5, 1)]).encode();
    for at in 0..good.len() {
        for value in 0..=255 {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Ok(page) = Page::decode(&bytes) {
                assert_eq!(page.encode(), bytes);
            }
        }
    }
    for cut in 0..good.len() {
        assert!(Page::decode(&good[..cut]).is_err());
    }
    let mut long = good;
    long.push(0);
    assert!(matches!(
        Page::decode(&long),
        Err(DecodeError::Trailing { .. })
    ));
}

#[test]
fn a_region_without_chunks_has_no_page() {
    assert!(PageBuilder::default().finish().unwrap().is_none());
}
