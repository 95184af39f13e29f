//! Finds the waiting in a trace. Pure: times in, times out.

use std::fmt;
use std::ops::Range;

use image_format::trace::{Origin, Touch, Trace};
use serde::Serialize;

/// Why a reader had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The image had no boot pack when it was recorded.
    NoBootPack,
    /// The boot pack does not list it.
    NotInBootPack,
    /// The boot pack lists it, but it was asked for before it was there.
    BootPackLate,
    /// It came from the disk cache.
    DiskCache,
    /// The index page that names it was not there.
    IndexPage,
    /// It was in memory: the machine had no time for it.
    Busy,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBootPack => "no boot pack",
            Self::NotInBootPack => "not in the boot pack",
            Self::BootPackLate => "in the boot pack, but came late",
            Self::DiskCache => "read from the disk cache",
            Self::IndexPage => "its index page was missing",
            Self::Busy => "was in memory; the machine was busy",
        })
    }
}

/// What is known of the boot pack at the time of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// There was none.
    Nothing,
    /// There was one, and it lists the chunk or does not.
    Listed(bool),
    /// There was one, and what it listed is not known any more.
    Unknown,
}

/// Says why the reader of `touch` had to wait.
pub fn cause(touch: &Touch, foreseen: Foreseen) -> Cause {
    match (touch.read.map(|read| read.from), foreseen) {
        (Some(Origin::Index), _) => Cause::IndexPage,
        (Some(Origin::Memory), _) => Cause::Busy,
        (Some(Origin::Disk), _) => Cause::DiskCache,
        (Some(Origin::BootPack), _) | (_, Foreseen::Listed(true)) => Cause::BootPackLate,
        (_, Foreseen::Nothing) => Cause::NoBootPack,
        (_, Foreseen::Listed(false) | Foreseen::Unknown) => Cause::NotInBootPack,
    }
}

/// A read that had to wait for something that nobody had read before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall<'a> {
    /// When it asked and when it was served, in microseconds.
    pub waited: Range<u64>,
    /// What of it came last or was not there: everything but what was in memory, unless all was.
    pub touches: Vec<&'a Touch>,
}

/// Returns the reads of `trace` that waited for at least `least` microseconds, as they asked.
pub fn stalls(trace: &Trace, least: u64) -> Vec<Stall<'_>> {
    let slow = |touch: &&Touch| touch.served - touch.asked >= least;
    let mut touches: Vec<&Touch> = trace.touches.iter().filter(slow).collect();
    // What one read touched has the same times.
    touches.sort_by_key(|touch| (touch.asked, touch.served, touch.block));
    let reads =
        touches.chunk_by(|one, other| (one.asked, one.served) == (other.asked, other.served));
    reads
        .map(|touches| {
            let was_there =
                |touch: &Touch| touch.read.is_some_and(|read| read.from == Origin::Memory);
            let mut missing = touches.to_vec();
            missing.retain(|touch| !was_there(touch));
            Stall {
                waited: touches[0].asked..touches[0].served,
                touches: if missing.is_empty() {
                    touches.to_vec()
                } else {
                    missing
                },
            }
        })
        .collect()
}

/// Returns how long at least one of `spans` lasted: times at which several did count once.
pub fn covered(spans: impl IntoIterator<Item = Range<u64>>) -> u64 {
    let mut spans: Vec<_> = spans.into_iter().collect();
    spans.sort_by_key(|span| span.start);
    let (mut sum, mut end) = (0, 0);
    for span in spans {
        sum += span.end.saturating_sub(span.start.max(end));
        end = end.max(span.end);
    }
    sum
}

#[cfg(test)]
mod tests {
    use image_format::trace::{Header, ReadPart};
    use image_format::{ChunkId, Digest};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn touch(block: u64, times: Range<u64>, from: Origin) -> Touch {
        Touch {
            asked: times.start,
            served: times.end,
            block,
            blocks: 1,
            chunk: ChunkId::of(&block.to_le_bytes()),
            read: Some(ReadPart {
                from,
                block,
                blocks: 1,
            }),
        }
    }

    fn trace(touches: Vec<Touch>) -> Trace {
        let header = Header::new("a@1".parse().unwrap(), Digest::of(b"disk"));
        Trace { header, touches }
    }

    proptest! {
        /// As many microseconds as lie in some span.
        #[test]
        fn time_is_counted_once(spans in vec((0..100_u64, 0..20_u64), 0..10)) {
            let spans: Vec<_> = spans.into_iter().map(|(start, length)| start..start + length).collect();
            let counted = (0..120).filter(|at| spans.iter().any(|span| span.contains(at))).count();
            prop_assert_eq!(covered(spans), counted as u64);
        }

        /// Each touch that waited is in one stall, unless something else of the same read is to blame.
        #[test]
        fn every_wait_is_told_once(times in vec((0..50_u64, 0..9_u64, 0..2_u8), 0..30), least in 0..9_u64) {
            let touches: Vec<_> = (0..).zip(&times).map(|(block, (asked, waited, there))| {
                let from = if *there == 1 { Origin::Memory } else { Origin::Demand };
                touch(block, *asked..asked + waited, from)
            }).collect();
            let trace = trace(touches);
            let stalls = stalls(&trace, least);
            prop_assert!(stalls.windows(2).all(|pair| pair[0].waited.start <= pair[1].waited.start));
            for touch in &trace.touches {
                let told = stalls.iter().filter(|stall| stall.touches.contains(&touch)).count();
                let waited = touch.asked..touch.served;
                let blamed = stalls.iter().any(|stall| stall.waited == waited);
                prop_assert_eq!(blamed, waited.end - waited.start >= least);
                prop_assert!(told <= 1);
                if touch.read.unwrap().from == Origin::Demand {
                    prop_assert_eq!(told == 1, blamed);
                }
            }
        }
    }

    #[test]
    fn what_was_in_memory_is_not_to_blame_for_what_was_not() {
        let trace = trace(vec![
            touch(1, 5..90, Origin::Memory),
            touch(2, 5..90, Origin::Demand),
            touch(3, 20..70, Origin::Memory),
            touch(4, 20..21, Origin::Demand),
        ]);
        let stalls = stalls(&trace, 10);
        let blamed: Vec<Vec<u64>> = (stalls.iter())
            .map(|stall| stall.touches.iter().map(|touch| touch.block).collect())
            .collect();
        assert_eq!(blamed, [vec![2], vec![3]]);
    }

    #[test]
    fn a_cause_follows_from_where_it_was_and_what_was_foreseen() {
        let of = |from, foreseen| cause(&touch(1, 0..1, from), foreseen);
        assert_eq!(of(Origin::Demand, Foreseen::Nothing), Cause::NoBootPack);
        assert_eq!(of(Origin::Flight, Foreseen::Nothing), Cause::NoBootPack);
        assert_eq!(
            of(Origin::Demand, Foreseen::Listed(false)),
            Cause::NotInBootPack
        );
        assert_eq!(
            of(Origin::Demand, Foreseen::Listed(true)),
            Cause::BootPackLate
        );
        assert_eq!(of(Origin::BootPack, Foreseen::Unknown), Cause::BootPackLate);
        assert_eq!(of(Origin::Demand, Foreseen::Unknown), Cause::NotInBootPack);
        assert_eq!(of(Origin::Disk, Foreseen::Listed(true)), Cause::DiskCache);
        assert_eq!(of(Origin::Memory, Foreseen::Listed(true)), Cause::Busy);
        assert_eq!(of(Origin::Index, Foreseen::Nothing), Cause::IndexPage);
    }
}
