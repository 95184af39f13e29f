//! Profiles: merging counts, carrying over accounts for every byte.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::digest::ObjectRef;
use crate::page::{Location, PageBuilder};
use crate::trace::{self, Touch};

fn id(number: u64) -> ChunkId {
    ChunkId::of(&number.to_le_bytes())
}

fn disk() -> Digest {
    Digest::of(b"disk")
}

/// A run that touched the chunks of these numbers, each at the place of its number.
fn run(numbers: &[u64]) -> Trace {
    let touch = |(at, &number): (u64, &u64)| Touch {
        asked: at,
        served: at + 1,
        block: number * 4,
        blocks: 4,
        chunk: id(number),
        read: None,
    };
    Trace {
        header: trace::Header::new("a@1".parse().unwrap(), disk()),
        touches: (0..).zip(numbers).map(touch).collect(),
    }
}

/// The page of the first region of a disk, with the chunks of these numbers at 4 blocks each.
fn page(numbers: &[Option<u64>]) -> Option<Page> {
    let mut builder = PageBuilder::default();
    let place = Location {
        pack: ObjectRef {
            digest: Digest::of(b"pack"),
            length: 1 << 20,
        },
        offset: 8,
        length: 4,
    };
    for (at, number) in (0..).zip(numbers) {
        if let Some(number) = number {
            builder.push(at * 4, 4, id(*number), place);
        }
    }
    builder.finish().unwrap()
}

fn place(profile: &Profile, numbers: &[Option<u64>]) -> Placed {
    place_with(profile, &StandIns::new(), numbers)
}

fn place_with(profile: &Profile, stand_ins: &StandIns, numbers: &[Option<u64>]) -> Placed {
    let mut placement = Placement::new(profile, stand_ins);
    if let Some(page) = page(numbers) {
        placement.page(0, &page);
    }
    placement.finish(Digest::of(b"other disk"))
}

fn order(placed: &Placed) -> Vec<ChunkId> {
    placed
        .boot_set
        .iter()
        .map(|chunk| chunk.entry.chunk)
        .collect()
}

#[test]
fn chunks_stand_where_most_runs_touched_them() {
    let runs = [run(&[1, 2, 3]), run(&[2, 1, 3]), run(&[1, 2, 3, 4])];
    let profile = Profile::merge(disk(), None, &runs);
    let ids: Vec<_> = profile
        .touched
        .iter()
        .map(|touched| touched.chunk)
        .collect();
    assert_eq!(ids, [id(1), id(2), id(3), id(4)]);
    let steadiness: Vec<_> = profile
        .touched
        .iter()
        .map(|touched| profile.steadiness(touched))
        .collect();
    use Steadiness::{Always, Once};
    assert_eq!(steadiness, [Always, Always, Always, Once]);
    let all: Vec<_> = (0..5).map(Some).collect();
    assert_eq!(order(&place(&profile, &all)), [id(1), id(2), id(3)]);
}

#[test]
fn of_two_runs_nothing_is_noise() {
    let profile = Profile::merge(disk(), None, &[run(&[1]), run(&[2])]);
    assert!(
        profile
            .touched
            .iter()
            .all(|touched| profile.steadiness(touched) == Steadiness::Mostly)
    );
}

#[test]
fn a_profile_that_grows_is_as_one_merged_at_once() {
    let runs = [run(&[1, 2]), run(&[1, 2, 3]), run(&[1, 2, 5])];
    let first = Profile::merge(disk(), None, &runs[..2]);
    assert_eq!(
        Profile::merge(disk(), Some(&first), &runs[2..]),
        Profile::merge(disk(), None, &runs)
    );
}

#[test]
fn what_moved_is_found_by_name_and_what_changed_by_place() {
    let profile = Profile::merge(disk(), None, &[run(&[0, 1, 2, 3])]);
    // 0 moved, 1 stayed, in place of 2 is 9, in place of 3 a hole.
    let placed = place(&profile, &[Some(8), Some(1), Some(9), None, Some(0)]);
    assert_eq!(order(&placed), [id(0), id(1), id(9)]);
    let bytes = 4 * u64::from(BLOCK_BYTES);
    assert_eq!(
        placed.carried,
        Carried {
            by_content_bytes: 2 * bytes,
            by_position_bytes: bytes,
            lost_bytes: bytes,
            ..Carried::default()
        }
    );
    assert_eq!(placed.profile.touched[0].block, 16);
    assert_eq!(
        Profile::decode(&placed.profile.encode()).unwrap(),
        placed.profile
    );
}

#[test]
fn who_knows_where_files_went_finds_what_is_read_now() {
    let profile = Profile::merge(disk(), None, &[run(&[0, 1, 2, 3, 4])]);
    let chunk = 4 * u64::from(BLOCK_BYTES);
    let at = |numbers: &[u64]| -> Vec<_> {
        let bytes = numbers
            .iter()
            .map(|number| number * chunk..(number + 1) * chunk);
        bytes.collect()
    };
    let stand_in = |numbers: &[u64], instead| StandIn {
        bytes: at(numbers),
        instead,
    };
    // The file of 0 is at 5 now; that of 1 is read at 6 and 7 instead, though 1 is there; that of 2 is gone.
    let stand_ins = StandIns::from([
        (id(0), stand_in(&[5], false)),
        (id(1), stand_in(&[6, 7], true)),
        (id(2), stand_in(&[], false)),
        (id(4), stand_in(&[0], false)),
    ]);
    let numbers = [9, 1, 8, 3, 4, 10, 11, 1].map(Some);
    let placed = place_with(&profile, &stand_ins, &numbers);
    // At 7 is 1, of which nobody says any more that it is read at its own place; at 3 is 3, and 4 is where it was.
    assert_eq!(order(&placed), [id(10), id(11), id(1), id(3), id(4)]);
    let expected = Carried {
        by_content_bytes: 2 * chunk,
        by_path_bytes: 2 * chunk,
        lost_bytes: chunk,
        ..Carried::default()
    };
    assert_eq!(placed.carried, expected);
}

#[test]
fn noise_stays_noise_however_many_of_its_parts_lie_together() {
    let runs = [run(&[1, 2]), run(&[1]), run(&[1]), run(&[1, 3])];
    let profile = Profile::merge(disk(), None, &runs);
    let block = u64::from(BLOCK_BYTES);
    let parts = |number: u64| StandIn {
        bytes: (0..4)
            .map(|at| (number * 4 + at) * block..(number * 4 + at + 1) * block)
            .collect(),
        instead: false,
    };
    // All of 2, and of 3, which one run touched, is in the same chunk now.
    let stand_ins = StandIns::from([(id(2), parts(5)), (id(3), parts(5))]);
    let numbers = [None, Some(1), None, None, None, Some(9)];
    let placed = place_with(&profile, &stand_ins, &numbers);
    assert_eq!(order(&placed), [id(1)]);
    let counted: Vec<_> = placed.profile.touched.iter().map(|it| it.runs).collect();
    assert_eq!(counted, [4, 1]);
}

#[test]
fn what_stands_in_does_not_grow_without_a_bound() {
    let profile = Profile::merge(disk(), None, &[run(&[0])]);
    let everywhere = StandIn {
        bytes: std::iter::once(0..1 << 30).collect(),
        instead: false,
    };
    let stand_ins = StandIns::from([(id(0), everywhere)]);
    let numbers: Vec<_> = (100..1100).map(Some).collect();
    let placed = place_with(&profile, &stand_ins, &numbers);
    let bytes: u64 = placed.profile.touched.iter().map(Touched::bytes).sum();
    assert!(bytes > ROOM_BYTES / 2 && bytes <= ROOM_BYTES + (64 << 10));
}

#[test]
fn what_is_no_profile_is_refused() {
    let good = Profile::merge(disk(), None, &[run(&[1, 2])]);
    let spoil: [fn(&mut Profile); 6] = [
        |p| p.runs = 0,
        |p| p.runs = RUNS_MAX + 1,
        |p| p.touched[0].runs = 0,
        |p| p.touched[0].runs = 2,
        |p| p.touched[0].blocks = 0,
        |p| p.touched[0].chunk = p.touched[1].chunk,
    ];
    for (row, change) in spoil.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(Profile::decode(&bad.encode()).is_err(), "row {row}");
    }
    let bytes = good.encode();
    assert!(Profile::decode(&bytes[..bytes.len() - 1]).is_err());
    assert!(Profile::decode(b"").is_err());
}

proptest! {
    /// Merging loses no chunk, counts each run once, and does not depend on the order of the runs.
    #[test]
    fn merging_counts(runs in vec(prop::collection::hash_set(0..30_u64, 0..20), 1..5)) {
        let mut traces: Vec<_> = runs.iter().map(|set| run(&set.iter().copied().collect::<Vec<_>>())).collect();
        let profile = Profile::merge(disk(), None, &traces);
        prop_assert_eq!(&Profile::decode(&profile.encode()).unwrap(), &profile);
        for number in 0..30 {
            let touched = profile.touched.iter().find(|touched| touched.chunk == id(number));
            let count = runs.iter().filter(|set| set.contains(&number)).count();
            prop_assert_eq!(touched.map_or(0, |touched| touched.runs as usize), count);
        }
        traces.reverse();
        prop_assert_eq!(&Profile::merge(disk(), None, &traces), &profile);
    }

    /// On the disk that was touched, all is found by name; on any disk, all bytes are accounted for
    /// and what is found lies on the disk, each chunk once.
    #[test]
    fn all_is_accounted_for(
        touched in prop::collection::hash_set(0..40_u64, 1..30),
        other in vec(prop::option::of(0..60_u64), 0..60),
        stand_ins in vec((0..1_u64 << 34, 0..1_u64 << 21, any::<bool>()), 0..30),
    ) {
        let numbers: Vec<_> = touched.into_iter().collect();
        let profile = Profile::merge(disk(), None, &[run(&numbers)]);
        let own: Vec<_> = (0..40).map(Some).collect();
        let at_home = place(&profile, &own);
        prop_assert_eq!(&at_home.profile.touched, &profile.touched);
        prop_assert_eq!(at_home.carried.by_content_bytes, at_home.carried.total_bytes());
        let placed = place(&profile, &other);
        let bytes = numbers.len() as u64 * 4 * u64::from(BLOCK_BYTES);
        prop_assert_eq!(placed.carried.total_bytes(), bytes);
        let anywhere = |(&number, bytes): (&u64, &(u64, u64, bool))| {
            let (start, length, instead) = *bytes;
            (id(number), StandIn { bytes: std::iter::once(start..start + length).collect(), instead })
        };
        let stand_ins = numbers.iter().zip(&stand_ins).map(anywhere).collect();
        let with = place_with(&profile, &stand_ins, &other);
        prop_assert_eq!(with.carried.total_bytes(), bytes);
        let ids: HashSet<_> = order(&with).into_iter().collect();
        prop_assert_eq!(ids.len(), with.boot_set.len());
        let ids: HashSet<_> = order(&placed).into_iter().collect();
        prop_assert_eq!(ids.len(), placed.boot_set.len());
        for chunk in &placed.boot_set {
            let at = usize::try_from(chunk.first_block() / 4).unwrap();
            prop_assert_eq!(other[at].map(id), Some(chunk.entry.chunk));
        }
    }
}
