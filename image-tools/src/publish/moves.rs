//! Finds where the files went that boots read of one disk, on the disk of the next version. Pure.
//!
//! A program that was compiled anew has other chunks, and apt writes it elsewhere; its path is the same. So a chunk
//! of the profile stands for the parts of files that lie in it, and the same parts of the files with these paths on the
//! other disk stand in for it. A new kernel brings a new directory of modules: those are read instead of the old ones,
//! which may be there still.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use image_format::BLOCK_BYTES;
use image_format::profile::{Profile, StandIn, StandIns, Touched};

use crate::explain::ext4::Span;
use crate::explain::map::Owner;

/// Directories in which each kernel has one, named after its release.
const MODULES: &str = "/lib/modules/";

/// Returns the stand-ins of what `profile` has, which is of a disk with `old` on it, on a disk with `new` on it; the
/// spans of a file are in the order of the file. What belongs to no file has none: its place is as good. Nothing has
/// one if no file is on both disks: those of one of them are called otherwise.
pub(super) fn stand_ins(profile: &Profile, old: &[Span], new: &[Span]) -> StandIns {
    let old = Places::of(old);
    let spans = old.in_order();
    let parts = |touched: &Touched| {
        let start = touched.block * u64::from(BLOCK_BYTES);
        let bytes = start..start + touched.bytes();
        (touched.chunk, overlapping(&spans, bytes))
    };
    let touched: Vec<_> = profile.touched.iter().map(parts).collect();
    let new = Places::of(new);
    if !old
        .0
        .keys()
        .any(|owner| matches!(owner, Owner::File(_)) && new.0.contains_key(owner))
    {
        return StandIns::new();
    }
    let new_spans = new.in_order();
    let read = touched.iter().flat_map(|(_, parts)| parts);
    let kernels = Kernels::new(read.map(|part| part.owner), &old, &new);
    let stand_in = |parts: &[Part<'_>]| {
        let mut bytes = Vec::new();
        let (mut is_known, mut instead) = (false, false);
        for part in parts {
            match part.owner {
                Owner::Metadata(_) | Owner::Unknown => bytes.push(part.bytes.clone()),
                owner => {
                    let successor = kernels.successor(owner);
                    let now = new.part(successor.as_ref().unwrap_or(owner), &part.within);
                    // What lies where nothing is any more was only not overwritten yet.
                    let is_left = || overlapping(&new_spans, part.bytes.clone()).is_empty();
                    instead |= successor.is_some() || (!now.is_empty() && is_left());
                    is_known = true;
                    bytes.extend(now);
                }
            }
        }
        is_known.then_some(StandIn { bytes, instead })
    };
    let known = touched
        .iter()
        .filter_map(|(chunk, parts)| Some((*chunk, stand_in(parts)?)));
    known.collect()
}

/// Where everything on a disk lies: of each owner the spans, and where in what the owner has each begins.
struct Places<'a>(HashMap<&'a Owner, Vec<(u64, Range<u64>)>>);

/// A span: where it is on the disk, whose, and where in what that has.
type Placed<'a> = (Range<u64>, &'a Owner, u64);

/// What of an owner lies in a chunk.
struct Part<'a> {
    owner: &'a Owner,
    /// Where in what the owner has.
    within: Range<u64>,
    /// Where on the disk.
    bytes: Range<u64>,
}

impl<'a> Places<'a> {
    fn of(spans: &'a [Span]) -> Self {
        let mut places: HashMap<&Owner, Vec<(u64, Range<u64>)>> = HashMap::new();
        for (bytes, owner) in spans {
            let of_owner = places.entry(owner).or_default();
            let before = of_owner
                .last()
                .map_or(0, |(before, last)| before + (last.end - last.start));
            of_owner.push((before, bytes.clone()));
        }
        Self(places)
    }

    /// All spans in the order of the disk.
    fn in_order(&self) -> Vec<Placed<'a>> {
        let spans = |(owner, spans): (&&'a Owner, &Vec<(u64, Range<u64>)>)| -> Vec<Placed<'a>> {
            let placed = spans
                .iter()
                .map(|(before, bytes)| (bytes.clone(), *owner, *before));
            placed.collect()
        };
        let mut all: Vec<_> = self.0.iter().flat_map(spans).collect();
        all.sort_unstable_by_key(|(bytes, _, _)| (bytes.start, bytes.end));
        all
    }

    /// Where `within` of what `owner` has lies here, as far as there is so much.
    fn part(&self, owner: &Owner, within: &Range<u64>) -> Vec<Range<u64>> {
        let spans = self.0.get(owner).map_or(&[][..], |spans| &spans[..]);
        let end = |(before, bytes): &(u64, Range<u64>)| before + (bytes.end - bytes.start);
        let from = spans.partition_point(|span| end(span) <= within.start);
        let there = spans[from..]
            .iter()
            .take_while(|(before, _)| *before < within.end);
        let part = |(before, bytes): &(u64, Range<u64>)| {
            let from = within.start.max(*before) - before;
            let to = within.end.min(before + (bytes.end - bytes.start)) - before;
            bytes.start + from..bytes.start + to
        };
        there.map(part).collect()
    }

    /// The releases of the kernels that have modules here.
    fn releases(&self) -> BTreeSet<&'a str> {
        self.0.keys().filter_map(|owner| release(owner)).collect()
    }
}

/// What of `spans` lies in `bytes`. Spans of a file system do not overlap; where they do, one of a sort may be missed.
fn overlapping<'a>(spans: &[Placed<'a>], bytes: Range<u64>) -> Vec<Part<'a>> {
    let from = spans.partition_point(|(span, _, _)| span.end <= bytes.start);
    let there = spans[from..]
        .iter()
        .take_while(|(span, _, _)| span.start < bytes.end);
    let part = |(span, owner, before): &Placed<'a>| {
        let shared = span.start.max(bytes.start)..span.end.min(bytes.end);
        let within = before + (shared.start - span.start)..before + (shared.end - span.start);
        Part {
            owner,
            within,
            bytes: shared,
        }
    };
    there
        .filter(|(span, _, _)| span.end > bytes.start)
        .map(part)
        .collect()
}

/// Which kernel's modules are read instead of which.
struct Kernels(HashMap<String, String>);

impl Kernels {
    /// Of the kernels whose modules were `read`, each is succeeded by the newest of its flavour that only the new disk
    /// has; by none, if it is there still and there is no newer one.
    fn new<'a>(read: impl Iterator<Item = &'a Owner>, old: &Places<'_>, new: &Places<'_>) -> Self {
        let (had, has) = (old.releases(), new.releases());
        let successor = |release: &str| {
            let is_alike = |other: &&&str| flavour(other) == flavour(release);
            let newest = |a: &&&str, b: &&&str| by_version(a, b);
            let fresh = has.difference(&had).filter(is_alike).max_by(newest)?;
            let is_newer = by_version(fresh, release) == Ordering::Greater;
            (is_newer || !has.contains(release)).then(|| (*fresh).to_owned())
        };
        let read: BTreeSet<&str> = read.filter_map(release).collect();
        let succeeded = read
            .into_iter()
            .filter_map(|release| Some((release.to_owned(), successor(release)?)));
        Self(succeeded.collect())
    }

    /// What has the role of `owner` on the new disk, if that is another kernel's.
    fn successor(&self, owner: &Owner) -> Option<Owner> {
        let (before, after) = (release(owner)?, self.0.get(release(owner)?)?);
        let renamed = |path: &String| {
            let old = format!("{MODULES}{before}");
            path.replacen(&old, &format!("{MODULES}{after}"), 1)
        };
        Some(match owner {
            Owner::File(path) => Owner::File(renamed(path)),
            Owner::Directory(path) => Owner::Directory(renamed(path)),
            Owner::Extents(path) => Owner::Extents(renamed(path)),
            Owner::Attributes(path) => Owner::Attributes(renamed(path)),
            Owner::Metadata(_) | Owner::Unknown => return None,
        })
    }
}

/// The release of the kernel whose modules these are.
fn release(owner: &Owner) -> Option<&str> {
    let (Owner::File(path)
    | Owner::Directory(path)
    | Owner::Extents(path)
    | Owner::Attributes(path)) = owner
    else {
        return None;
    };
    let (_, rest) = path.split_once(MODULES)?;
    let release = rest.split('/').next()?;
    // A file beside them is none.
    (!release.is_empty() && (rest.contains('/') || matches!(owner, Owner::Directory(_))))
        .then_some(release)
}

/// The letters of a release: `cloudamd` of `6.1.0-57-cloud-amd64`.
fn flavour(release: &str) -> String {
    release
        .chars()
        .filter(|letter| letter.is_alphabetic())
        .collect()
}

/// Compares the numbers in two releases, one after another.
fn by_version(one: &str, other: &str) -> Ordering {
    let numbers = |release: &str| -> Vec<u64> {
        let words = release.split(|letter: char| !letter.is_ascii_digit());
        words.filter_map(|word| word.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other))
}

#[cfg(test)]
mod tests {
    use image_format::chunk::ChunkId;
    use image_format::digest::Digest;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn id(number: u64) -> ChunkId {
        ChunkId::of(&number.to_le_bytes())
    }

    /// A profile of chunks of 4 blocks, with these numbers.
    fn profile(numbers: &[u64]) -> Profile {
        let touched = numbers.iter().map(|number| Touched {
            chunk: id(*number),
            block: number * 4,
            blocks: 4,
            runs: 1,
        });
        Profile {
            disk: Digest::of(b"disk"),
            runs: 1,
            touched: touched.collect(),
        }
    }

    fn file(path: &str) -> Owner {
        Owner::File(path.to_owned())
    }

    fn span(blocks: Range<u64>, owner: Owner) -> Span {
        (blocks.start * BLOCK..blocks.end * BLOCK, owner)
    }

    /// The first block of each range, and the one behind its last.
    fn blocks(stand_in: &StandIn) -> Vec<(u64, u64)> {
        let blocks = |bytes: &Range<u64>| (bytes.start / BLOCK, bytes.end / BLOCK);
        stand_in.bytes.iter().map(blocks).collect()
    }

    #[test]
    fn parts_of_files_are_found_where_their_files_are() {
        let old = [
            span(0..2, Owner::Metadata("superblock".to_owned())),
            span(2..4, file("/bin/a")),
            // Its second piece lies before the first.
            span(12..16, file("/bin/b")),
            span(4..8, file("/bin/b")),
            span(16..20, file("/gone")),
        ];
        let new = [
            span(40..42, file("/bin/b")),
            span(50..60, file("/bin/b")),
            span(30..31, file("/bin/a")),
        ];
        let found = stand_ins(&profile(&[0, 1, 3, 4, 5]), &old, &new);
        let at = |number| blocks(&found[&id(number)]);
        // `a` is shorter now; what the file system keeps for itself stays where it is.
        assert_eq!(at(0), [(0, 2), (30, 31)]);
        assert_eq!(at(1), [(52, 56)]);
        assert_eq!(at(3), [(40, 42), (50, 52)]);
        assert_eq!(at(4), []);
        assert!(!found.contains_key(&id(5)), "it belongs to nothing");
    }

    #[test]
    fn what_is_left_where_nothing_is_any_more_is_not_read() {
        let old = [span(0..4, file("/bin/a")), span(4..8, file("/bin/b"))];
        // Both moved; over what was left of `b` somebody wrote.
        let new = [
            span(20..24, file("/bin/a")),
            span(4..6, file("/bin/c")),
            span(30..34, file("/bin/b")),
        ];
        let found = stand_ins(&profile(&[0, 1]), &old, &new);
        assert!(found[&id(0)].instead && !found[&id(1)].instead);
    }

    #[test]
    fn where_all_paths_are_others_nothing_is_known() {
        let old = [span(0..4, file("/bin/a"))];
        let new = [span(0..4, file("partition 2: /bin/a"))];
        assert!(stand_ins(&profile(&[0]), &old, &new).is_empty());
        assert!(stand_ins(&profile(&[0]), &old, &[]).is_empty());
    }

    #[test]
    fn the_modules_of_the_next_kernel_are_read_instead() {
        let module = |release: &str| file(&format!("/usr/lib/modules/{release}/kernel/fuse.ko"));
        let program = || span(40..44, file("/bin/a"));
        let old = [span(0..4, module("6.1.0-9-cloud-amd64")), program()];
        let both = [
            program(),
            span(0..4, module("6.1.0-9-cloud-amd64")),
            span(20..24, module("6.1.0-10-cloud-amd64")),
            span(30..34, module("6.1.0-11-amd64")),
        ];
        let found = stand_ins(&profile(&[0]), &old, &both);
        assert_eq!(blocks(&found[&id(0)]), [(20, 24)]);
        assert!(found[&id(0)].instead);
        // Back again: the newer one is there still, or is gone.
        let found = stand_ins(&profile(&[5]), &both, &both);
        assert!(!found[&id(5)].instead);
        let newer = [&both[0], &both[2], &both[3]].map(Clone::clone);
        let found = stand_ins(&profile(&[5]), &newer, &old);
        assert_eq!(blocks(&found[&id(5)]), [(0, 4)]);
        assert!(found[&id(5)].instead);
    }

    proptest! {
        /// A disk like the one before has everything where it was.
        #[test]
        fn nothing_moves_by_itself(pieces in vec((0..5_usize, 1..9_u64, 0..3_u64), 1..20)) {
            let mut at = 0;
            let spans: Vec<Span> = pieces.iter().map(|(owner, length, gap)| {
                let from = at + gap;
                at = from + length;
                span(from..at, file(&format!("/{owner}")))
            }).collect();
            let numbers: Vec<u64> = (0..at.div_ceil(4)).collect();
            let found = stand_ins(&profile(&numbers), &spans, &spans);
            for number in numbers {
                let own = number * 4 * BLOCK..(number + 1) * 4 * BLOCK;
                let mut bytes = found.get(&id(number)).map_or(Vec::new(), |it| it.bytes.clone());
                bytes.sort_by_key(|bytes| bytes.start);
                let expected: Vec<_> = spans.iter()
                    .map(|(bytes, _)| bytes.start.max(own.start)..bytes.end.min(own.end))
                    .filter(|bytes| bytes.start < bytes.end)
                    .collect();
                prop_assert_eq!(bytes, expected);
            }
        }
    }
}
