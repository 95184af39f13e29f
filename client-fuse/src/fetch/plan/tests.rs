//! Laws of joining chunks into requests, and of cutting bodies into chunks again.

use image_format::chunk::ChunkId;
use image_format::digest::{Digest, ObjectRef};
use image_format::page::Entry;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fetch::split::Splitter;

const LIMITS: PlanLimits = PlanLimits {
    gap_bytes_max: 50,
    range_bytes_max: 1000,
    plain_bytes_max: 40 * 4096,
};

fn place(pack: u8, offset: u32, length: u32) -> Place {
    let pack = ObjectRef {
        digest: Digest::of(&[pack]),
        length: 1 << 20,
    };
    let chunk = ChunkId::of(&[offset.to_le_bytes(), length.to_le_bytes()].concat());
    Place::new(
        0,
        Entry {
            block: 0,
            blocks: 1 + length / 64,
            chunk,
            pack: 0,
            offset,
            length,
        },
        pack,
    )
}

fn places() -> impl Strategy<Value = Vec<Place>> {
    vec((0..3_u8, 8..5000_u32, 1..300_u32), 0..60).prop_map(|all| {
        all.into_iter()
            .map(|(pack, offset, length)| place(pack, offset, length))
            .collect()
    })
}

#[test]
fn neighbours_and_small_gaps_are_one_request() {
    let wanted = vec![
        place(0, 200, 100),
        place(0, 8, 100),
        place(0, 108, 92),
        place(0, 340, 10),
    ];
    let requests = coalesce(wanted, LIMITS);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].range, 8..350);
    assert_eq!(requests[0].wanted.len(), 4);
}

#[test]
fn a_large_gap_or_another_pack_is_another_request() {
    assert_eq!(
        coalesce(vec![place(0, 8, 100), place(0, 159, 10)], LIMITS).len(),
        2
    );
    assert_eq!(
        coalesce(vec![place(0, 8, 100), place(1, 108, 10)], LIMITS).len(),
        2
    );
}

#[test]
fn a_chunk_above_the_limit_goes_alone() {
    let requests = coalesce(vec![place(0, 8, 5000), place(0, 5008, 10)], LIMITS);
    assert_eq!(
        requests
            .iter()
            .map(|request| request.range.clone())
            .collect::<Vec<_>>(),
        [8..5008, 5008..5018]
    );
}

#[test]
fn nothing_wanted_is_no_request() {
    assert!(coalesce(Vec::<Place>::new(), LIMITS).is_empty());
}

proptest! {
    /// Each wanted chunk is in one request, whose range has its bytes; requests keep their limits.
    #[test]
    fn requests_cover_what_is_wanted(wanted in places()) {
        let requests = coalesce(wanted.clone(), LIMITS);
        let mut got: Vec<Place> = requests.iter().flat_map(|request| request.wanted.clone()).collect();
        let key = |place: &Place| (*place.pack().digest.as_bytes(), place.stored().start, place.stored().end);
        let mut all = wanted;
        all.sort_by_key(key);
        got.sort_by_key(key);
        prop_assert_eq!(got, all);
        for request in &requests {
            for want in &request.wanted {
                prop_assert_eq!(want.pack(), request.pack);
                prop_assert!(request.range.start <= want.stored().start && want.stored().end <= request.range.end);
            }
            let single = request.wanted.len() == 1;
            prop_assert!(single || request.range.end - request.range.start <= LIMITS.range_bytes_max);
            prop_assert!(single || request.plain_bytes <= LIMITS.plain_bytes_max);
        }
    }

    /// Requests for chunks that do not overlap do not overlap either.
    #[test]
    fn requests_do_not_overlap(lengths in vec((1..300_u32, 0..120_u32), 1..60)) {
        let mut offset = 8;
        let wanted: Vec<_> = lengths.iter().map(|(length, gap)| {
            let place = place(0, offset, *length);
            offset += length + gap;
            place
        }).collect();
        for pair in coalesce(wanted, LIMITS).windows(2) {
            prop_assert!(pair[0].range.end <= pair[1].range.start);
        }
    }

    /// However a body is divided, the splitter gives each chunk its bytes, as soon as they are there.
    #[test]
    fn splitting_is_slicing(wanted in places(), step in 1..700_usize, cut in 0..6000_usize) {
        let pack: Vec<u8> = (0..8000_u32).map(|i| u8::try_from(i * 7 % 256).unwrap()).collect();
        for request in coalesce(wanted, LIMITS) {
            let at = |at: u64| usize::try_from(at).unwrap();
            let body = &pack[at(request.range.start)..at(request.range.end)];
            let body = &body[..cut.min(body.len())];
            let there = request.range.start + body.len() as u64;
            let n_wanted = request.wanted.len();
            let mut splitter = Splitter::new(request.range.start, request.wanted);
            let got: Vec<_> = body.chunks(step).flat_map(|part| splitter.push(part)).collect();
            for (place, bytes) in &got {
                prop_assert_eq!(&bytes[..], &pack[at(place.stored().start)..at(place.stored().end)]);
            }
            let waiting = splitter.into_waiting();
            prop_assert_eq!(got.len() + waiting.len(), n_wanted);
            prop_assert!(waiting.first().is_none_or(|place| place.stored().end > there));
        }
    }
}
