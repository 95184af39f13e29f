//! Says which chunks a range of the disk is made of; fetches nothing.

use std::ops::Range;

use image_format::geometry::BlockRun;
use image_format::page::Page;
use image_format::{BLOCK_BYTES, REGION_BYTES};

use crate::place::Place;

/// A part of the disk that one thing supplies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// This many zero bytes.
    Zeros(usize),
    /// Bytes of a chunk.
    Part(Part),
}

/// Some bytes of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The chunk.
    pub place: Place,
    /// Which of its bytes.
    pub within: Range<usize>,
}

/// What of the bytes `want` lies in `run`, in order. `page` describes the run's region; `None`: a hole.
///
/// The pieces together are exactly as long as what `want` and the run have in common.
pub fn pieces(run: BlockRun, page: Option<&Page>, want: &Range<u64>) -> Vec<Piece> {
    let run_end = run.offset() + u64::from(run.end - run.first) * u64::from(BLOCK_BYTES);
    let (mut at, end) = (want.start.max(run.offset()), want.end.min(run_end));
    let mut pieces = Vec::new();
    let entries = page.map_or(&[][..], |page| page.overlapping(run.first, run.end));
    for (page, entry) in page
        .into_iter()
        .flat_map(|page| entries.iter().map(move |entry| (page, entry)))
    {
        let place = Place::new(run.region, *entry, page.pack(entry));
        let chunk = place.on_disk();
        if chunk.start >= end || chunk.end <= at {
            continue;
        }
        if chunk.start > at {
            pieces.push(Piece::Zeros(length(at..chunk.start)));
            at = chunk.start;
        }
        let stop = chunk.end.min(end);
        let within = length(chunk.start..at)..length(chunk.start..stop);
        pieces.push(Piece::Part(Part { place, within }));
        at = stop;
    }
    if at < end {
        pieces.push(Piece::Zeros(length(at..end)));
    }
    pieces
}

/// The length of a range inside one region.
fn length(range: Range<u64>) -> usize {
    debug_assert!(range.end - range.start <= REGION_BYTES);
    usize::try_from(range.end - range.start).expect("a region is 64 MiB")
}

#[cfg(test)]
mod tests {
    use image_format::chunk::ChunkId;
    use image_format::digest::{Digest, ObjectRef};
    use image_format::geometry::runs;
    use image_format::page::{Location, PageBuilder};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A page with a chunk for each (gap before it, blocks).
    fn page(chunks: &[(u32, u32)]) -> Option<Page> {
        let pack = ObjectRef {
            digest: Digest::of(b"pack"),
            length: 1 << 25,
        };
        let (mut builder, mut block) = (PageBuilder::default(), 0);
        for (number, (gap, blocks)) in (0_u32..).zip(chunks) {
            block += gap;
            let location = Location {
                pack,
                offset: 8 + number,
                length: 1,
            };
            builder.push(block, *blocks, ChunkId::of(&number.to_le_bytes()), location);
            block += blocks;
        }
        builder.finish().unwrap()
    }

    /// The number of the chunk that owns each byte, by the page alone; `None` in holes.
    fn owner(page: Option<&Page>, offset: u64) -> Option<ChunkId> {
        let block = u32::try_from(offset % REGION_BYTES / u64::from(BLOCK_BYTES)).unwrap();
        page?
            .overlapping(block, block + 1)
            .first()
            .map(|entry| entry.chunk)
    }

    #[test]
    fn a_hole_is_one_run_of_zeros() {
        let run = runs(100, 5000).next().unwrap();
        assert_eq!(pieces(run, None, &(100..5100)), [Piece::Zeros(5000)]);
    }

    proptest! {
        /// The pieces are the range: as long, and each byte from the chunk that owns it.
        #[test]
        fn pieces_cover_the_range(
            chunks in vec((0..5_u32, 1..20_u32), 0..20),
            (offset, len) in (0..3_000_000_u64, 1..600_000_u64),
        ) {
            let page = page(&chunks);
            let want = offset..offset + len;
            let mut at = offset;
            for run in runs(offset, len) {
                for piece in pieces(run, page.as_ref(), &want) {
                    let (length, id) = match piece {
                        Piece::Zeros(count) => (count as u64, None),
                        Piece::Part(part) => {
                            prop_assert_eq!(part.place.disk_offset() + part.within.start as u64, at);
                            prop_assert!(part.within.end as u64 <= part.place.plain_bytes());
                            ((part.within.end - part.within.start) as u64, Some(part.place.id()))
                        }
                    };
                    prop_assert!(length > 0);
                    prop_assert_eq!(owner(page.as_ref(), at), id);
                    prop_assert_eq!(owner(page.as_ref(), at + length - 1), id);
                    at += length;
                }
            }
            prop_assert_eq!(at, want.end);
        }
    }
}
