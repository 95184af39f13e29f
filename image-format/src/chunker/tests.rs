//! What the chunker promises, as laws and as cases.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Cuts a region whole: (first block, blocks) of each chunk.
fn cut_all(params: &ChunkerParams, region: &[u8]) -> Vec<(usize, usize)> {
    let (mut at, mut chunks) = (0, Vec::new());
    while at * BLOCK_LEN < region.len() {
        match params.cut(&region[at * BLOCK_LEN..], End::Region) {
            Cut::Zero { blocks } => at += blocks,
            Cut::Chunk { blocks } => {
                chunks.push((at, blocks));
                at += blocks;
            }
            Cut::More => panic!("More at the end of a region"),
        }
    }
    chunks
}

/// Cuts the same region as a reader with a window of `window` blocks would.
fn cut_windowed(params: &ChunkerParams, region: &[u8], window: usize) -> Vec<(usize, usize)> {
    let total = region.len() / BLOCK_LEN;
    let (mut at, mut have, mut chunks) = (0, 0, Vec::new());
    while at < total {
        have = have.max(at + 1).min(total);
        let end = if have == total {
            End::Region
        } else {
            End::Unknown
        };
        match params.cut(&region[at * BLOCK_LEN..have * BLOCK_LEN], end) {
            Cut::Zero { blocks } => at += blocks,
            Cut::Chunk { blocks } => {
                chunks.push((at, blocks));
                at += blocks;
            }
            Cut::More => have = (have + window).min(total),
        }
    }
    chunks
}

/// Blocks of a few kinds: zero, with a zero tail, full.
fn region(blocks: &[(u8, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; blocks.len() * BLOCK_LEN];
    for (block, (kind, seed)) in bytes.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(blocks) {
        let fill = match kind {
            0 => 0,
            1 => 1000,
            _ => BLOCK_LEN,
        };
        for (at, byte) in block[..fill].iter_mut().enumerate() {
            let mixed = (u64::from(*seed) << 20 | at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            *byte = mixed.to_le_bytes()[5] | 1;
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Chunks and zero runs cover the region; no chunk is too long or holds a zero block.
    #[test]
    fn chunks_cover_all_but_zero_blocks(blocks in vec((0..4_u8, any::<u32>()), 1..200)) {
        let bytes = region(&blocks);
        let params = ChunkerParams::DEFAULT;
        let mut covered = vec![false; blocks.len()];
        for (first, length) in cut_all(&params, &bytes) {
            prop_assert!(length <= params.max_blocks as usize);
            covered[first..first + length].iter_mut().for_each(|seen| *seen = true);
        }
        let expected: Vec<_> = blocks.iter().map(|(kind, _)| *kind != 0).collect();
        prop_assert_eq!(covered, expected);
    }

    /// How the data arrives does not change where it is cut.
    #[test]
    fn windows_do_not_move_cuts(blocks in vec((0..8_u8, any::<u32>()), 1..200), window in 1..70_usize) {
        let bytes = region(&blocks);
        let params = ChunkerParams::DEFAULT;
        prop_assert_eq!(cut_all(&params, &bytes), cut_windowed(&params, &bytes, window));
    }

    /// Content behind a hole is cut the same wherever on the disk it lies.
    #[test]
    fn cuts_move_with_the_content(blocks in vec((1..8_u8, any::<u32>()), 1..100), shift in 1..50_usize) {
        let bytes = region(&blocks);
        let mut moved = vec![0; shift * BLOCK_LEN];
        moved.extend_from_slice(&bytes);
        let params = ChunkerParams::DEFAULT;
        let expected: Vec<_> = cut_all(&params, &bytes).iter().map(|(at, n)| (at + shift, *n)).collect();
        prop_assert_eq!(cut_all(&params, &moved), expected);
    }
}

#[test]
fn a_zero_tail_ends_a_chunk_only_from_the_minimum_on() {
    let bytes = region(&[(1, 1), (1, 2), (1, 3)]);
    assert_eq!(cut_all(&ChunkerParams::DEFAULT, &bytes), [(0, 2), (2, 1)]);
}

#[test]
fn parameters_out_of_bounds_are_refused() {
    let good = ChunkerParams::DEFAULT;
    assert!(good.check().is_ok());
    for bad in [
        ChunkerParams {
            min_blocks: 0,
            ..good
        },
        ChunkerParams {
            min_blocks: 65,
            ..good
        },
        ChunkerParams {
            max_blocks: 257,
            ..good
        },
        ChunkerParams {
            mask_bits: 64,
            ..good
        },
        ChunkerParams {
            tail_bytes: 4097,
            ..good
        },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}

#[test]
fn is_zero_sees_every_byte() {
    let mut bytes = vec![0; 4096 + 17];
    assert!(is_zero(&bytes));
    for at in [0, 63, 64, 4095, 4112] {
        bytes[at] = 1;
        assert!(!is_zero(&bytes), "{at}");
        bytes[at] = 0;
    }
}
