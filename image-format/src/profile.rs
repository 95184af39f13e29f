//! Profiles: what several runs of an image read, merged; and how a profile is carried over to
//! another version of the image. Pure: traces and index pages in, chunks in order out.
//!
//! A profile lists every chunk that some run touched, in the median of the positions at which the
//! runs touched it, with the number of runs that did. What one run of three or more touched alone is
//! noise: it stays in the profile, because a later run may touch it again, but no boot pack has it.
//!
//! On another version's disk ([`Placement`]) a chunk is looked for by its name first; where it is
//! gone, the chunks that now lie at its place on the disk stand in for it, or where its file went to, if
//! somebody knows ([`StandIn`]). Layout: docs/FORMAT.md, "Profile".

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::slice;

use serde::{Deserialize, Serialize};

use crate::boot_pack::{BOOT_CHUNKS_MAX, BOOT_FRAMES_MAX, PlacedChunk, plan_frames};
use crate::chunk::ChunkId;
use crate::codec::{self, DecodeError};
use crate::digest::Digest;
use crate::geometry::{BLOCK_BYTES, runs};
use crate::page::Page;
use crate::trace::{self, LINE_BYTES_MAX, TOUCHES_MAX, Trace};

/// The longest profile: a line takes some 130 bytes.
pub const PROFILE_BYTES_MAX: usize = 16 << 20;

/// The most runs that a profile counts.
pub const RUNS_MAX: u32 = 1 << 20;

/// From so many runs on, what only one of them touched is noise.
const RUNS_THAT_TELL_NOISE: u32 = 3;

/// What stands in may take as much, and a quarter, more than what it stands in for: the parts of a chunk may have gone to
/// many others, in each version anew.
const ROOM_BYTES: u64 = 4 << 20;

const WHAT: &str = "profile";

/// The first line of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// Version of this format; 1.
    circular_profile: u32,
    disk: Digest,
    runs: u32,
}

/// A chunk that runs touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Its first block, counted from the start of the disk.
    pub block: u64,
    /// How many blocks it has.
    pub blocks: u32,
    /// How many runs touched it.
    pub runs: u32,
}

impl Touched {
    /// Returns its plain bytes.
    pub const fn bytes(&self) -> u64 {
        self.blocks as u64 * BLOCK_BYTES as u64
    }
}

/// How steadily runs touch a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steadiness {
    /// Every run did.
    Always,
    /// More than one run did, or one of two.
    Mostly,
    /// One run of three or more did: noise.
    Once,
}

/// What several runs touched, in the order in which they did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The disk.
    pub disk: Digest,
    /// How many runs were merged.
    pub runs: u32,
    /// What they touched, each chunk once.
    pub touched: Vec<Touched>,
}

impl Profile {
    /// Merges traces, of the same disk or of several, into the profile of `disk`; and into `before`,
    /// the profile that there was. The most that a profile holds are the first touches.
    pub fn merge(disk: Digest, before: Option<&Self>, traces: &[Trace]) -> Self {
        let mut merging: HashMap<ChunkId, (Touched, Vec<(usize, u32)>)> = HashMap::new();
        let mut add = |touched: Touched, position: usize| {
            let (sum, positions) = merging
                .entry(touched.chunk)
                .or_insert_with(|| (Touched { runs: 0, ..touched }, Vec::new()));
            sum.runs = sum.runs.saturating_add(touched.runs).min(RUNS_MAX);
            positions.push((position, touched.runs));
        };
        for (position, touched) in before.iter().flat_map(|old| old.touched.iter().enumerate()) {
            add(*touched, position);
        }
        for (position, touch) in traces
            .iter()
            .flat_map(|trace| trace.touches.iter().enumerate())
        {
            let touched = Touched {
                chunk: touch.chunk,
                block: touch.block,
                blocks: touch.blocks,
                runs: 1,
            };
            add(touched, position);
        }
        let mut merged: Vec<_> = merging
            .into_values()
            .map(|(touched, positions)| (median(positions), touched))
            .collect();
        merged.sort_unstable_by_key(|(median, touched)| (*median, touched.block, touched.chunk));
        merged.truncate(TOUCHES_MAX);
        let traces = u32::try_from(traces.len()).unwrap_or(RUNS_MAX);
        Self {
            disk,
            runs: before
                .map_or(0, |before| before.runs)
                .saturating_add(traces)
                .min(RUNS_MAX),
            touched: merged.into_iter().map(|(_, touched)| touched).collect(),
        }
    }

    /// Returns how steadily runs touch a chunk of this profile.
    pub const fn steadiness(&self, touched: &Touched) -> Steadiness {
        if touched.runs >= self.runs {
            Steadiness::Always
        } else if touched.runs == 1 && self.runs >= RUNS_THAT_TELL_NOISE {
            Steadiness::Once
        } else {
            Steadiness::Mostly
        }
    }

    /// Decodes a profile.
    ///
    /// # Errors
    /// The bytes are no profile, or one with impossible numbers.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason));
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            return Err(DecodeError::Truncated { what: WHAT });
        }
        let mut lines = trace::lines(WHAT, bytes, PROFILE_BYTES_MAX)?;
        let header: Header = match lines.next() {
            Some(line) => codec::json(WHAT, line, LINE_BYTES_MAX)?,
            None => return Err(DecodeError::Truncated { what: WHAT }),
        };
        if header.circular_profile != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(header.circular_profile),
            });
        }
        if header.runs == 0 || header.runs > RUNS_MAX {
            return bad("it has an impossible number of runs");
        }
        let (mut touched, mut seen) = (Vec::new(), HashSet::new());
        for line in lines {
            let next: Touched = codec::json(WHAT, line, LINE_BYTES_MAX)?;
            if !trace::is_place(next.block, next.blocks) {
                return bad("a chunk has no place on a disk");
            }
            if next.runs == 0 || next.runs > header.runs {
                return bad("a chunk was touched in an impossible number of runs");
            }
            if !seen.insert(next.chunk) {
                return bad("a chunk is listed twice");
            }
            if touched.len() == TOUCHES_MAX {
                return bad("it lists too much");
            }
            touched.push(next);
        }
        Ok(Self {
            disk: header.disk,
            runs: header.runs,
            touched,
        })
    }

    /// Encodes the profile. [`Profile::decode`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        let header = Header {
            circular_profile: 1,
            disk: self.disk,
            runs: self.runs,
        };
        let mut bytes = trace::line(&header);
        bytes.extend(self.touched.iter().flat_map(trace::line));
        bytes
    }
}

/// The median of positions, each counted as often as its weight says; the lower of two.
fn median(mut positions: Vec<(usize, u32)>) -> usize {
    positions.sort_unstable();
    let weight = |positions: &[(usize, u32)]| -> u64 {
        positions.iter().map(|(_, weight)| u64::from(*weight)).sum()
    };
    let half = weight(&positions).div_ceil(2);
    let before = (1..=positions.len()).find(|count| weight(&positions[..*count]) >= half);
    before.map_or(0, |count| positions[count - 1].0)
}

/// What stands in on another disk for a chunk of a profile, where somebody knows what it was a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// Where that is now, in bytes of the disk; nowhere, if it is gone.
    pub bytes: Vec<Range<u64>>,
    /// Whether it stands in for the chunk even if that is on the disk still: nobody reads it there any more.
    pub instead: bool,
}

/// Stand-ins, for chunks of a profile.
pub type StandIns = HashMap<ChunkId, StandIn>;

/// Looks for the chunks of a profile on a disk, given its index page by page.
#[derive(Debug)]
pub struct Placement<'a> {
    profile: &'a Profile,
    stand_ins: &'a StandIns,
    by_chunk: HashMap<ChunkId, usize>,
    /// What of each region is looked at, in its blocks, and for which touched chunk.
    looked_at: HashMap<u32, Vec<(Range<u32>, usize)>>,
    /// Where each was found by its name.
    found: Vec<Option<PlacedChunk>>,
    /// What lies where a stand-in of each is looked for.
    there: Vec<Vec<PlacedChunk>>,
}

/// How much of a profile was found on a disk, in bytes of what it lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// The chunk itself is there.
    pub by_content_bytes: u64,
    /// What lies where its file is now stands in for the chunk.
    pub by_path_bytes: u64,
    /// The chunk is gone; what lies at its place stands in for it.
    pub by_position_bytes: u64,
    /// The chunk is gone, and so is its file, or its place is a hole.
    pub lost_bytes: u64,
}

impl Carried {
    /// Returns the bytes that the profile lists.
    pub const fn total_bytes(&self) -> u64 {
        self.by_content_bytes + self.by_path_bytes + self.by_position_bytes + self.lost_bytes
    }
}

/// A profile that was carried over to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// It, in terms of that disk.
    pub profile: Profile,
    /// What a boot pack for it holds, in order: all but noise, as far as the bounds allow.
    pub boot_set: Vec<PlacedChunk>,
    /// How much was found.
    pub carried: Carried,
}

impl<'a> Placement<'a> {
    /// Begins with nothing found. Without a stand-in, what lies at the place of a chunk is its stand-in.
    pub fn new(profile: &'a Profile, stand_ins: &'a StandIns) -> Self {
        let touched = &profile.touched;
        let mut looked_at: HashMap<u32, Vec<_>> = HashMap::new();
        for (number, touched) in touched.iter().enumerate() {
            let start = touched.block * u64::from(BLOCK_BYTES);
            let own = start..start + touched.bytes();
            let known = stand_ins.get(&touched.chunk);
            let bytes = match known {
                Some(stand_in) => &stand_in.bytes[..],
                None => slice::from_ref(&own),
            };
            let all = bytes
                .iter()
                .flat_map(|bytes| runs(bytes.start, bytes.end.saturating_sub(bytes.start)));
            for run in all {
                let looked_at = looked_at.entry(run.region).or_default();
                looked_at.push((run.first..run.end, number));
            }
        }
        Self {
            profile,
            stand_ins,
            by_chunk: (touched.iter().enumerate())
                .map(|(number, touched)| (touched.chunk, number))
                .collect(),
            looked_at,
            found: vec![None; touched.len()],
            there: vec![Vec::new(); touched.len()],
        }
    }

    /// Looks through the page of `region`.
    pub fn page(&mut self, region: u32, page: &Page) {
        let placed = |entry| PlacedChunk {
            region,
            entry,
            pack: page.pack(&entry),
        };
        for entry in page.entries() {
            let Some(&number) = self.by_chunk.get(&entry.chunk) else {
                continue;
            };
            let (candidate, touched) = (placed(*entry), &self.profile.touched[number]);
            // Of several places, the one that was touched; else the first.
            if self.found[number].is_none() || candidate.first_block() == touched.block {
                self.found[number] = Some(candidate);
            }
        }
        for (blocks, number) in self.looked_at.get(&region).into_iter().flatten() {
            let entries = page.overlapping(blocks.start, blocks.end);
            self.there[*number].extend(entries.iter().map(|entry| placed(*entry)));
        }
    }

    fn stand_in(&self, number: usize) -> Option<&'a StandIn> {
        self.stand_ins.get(&self.profile.touched[number].chunk)
    }

    /// Whether something else is read now instead of the chunk with this number.
    fn is_replaced(&self, number: usize) -> bool {
        self.stand_in(number)
            .is_some_and(|stand_in| stand_in.instead)
    }

    /// Returns what was found on the disk, which is `disk`.
    pub fn finish(self, disk: Digest) -> Placed {
        let mut carried = Carried::default();
        let mut listed: HashMap<ChunkId, usize> = HashMap::new();
        let mut placed: Vec<(PlacedChunk, u32)> = Vec::new();
        // Of what several touched chunks lead to, nobody knows whether the same runs touched them.
        let mut list = |chunk: PlacedChunk, runs: u32| match listed.get(&chunk.entry.chunk) {
            Some(&number) => {
                let known: &mut u32 = &mut placed[number].1;
                *known = runs.max(*known);
                false
            }
            None => {
                listed.insert(chunk.entry.chunk, placed.len());
                placed.push((chunk, runs));
                true
            }
        };
        let mut room = ROOM_BYTES;
        for (number, touched) in self.profile.touched.iter().enumerate() {
            let bytes = touched.bytes();
            if let Some(chunk) = self.found[number].filter(|_| !self.is_replaced(number)) {
                carried.by_content_bytes += bytes;
                list(chunk, touched.runs);
                continue;
            }
            match (&self.there[number][..], self.stand_in(number)) {
                ([], _) => carried.lost_bytes += bytes,
                (_, Some(_)) => carried.by_path_bytes += bytes,
                (_, None) => carried.by_position_bytes += bytes,
            }
            // What was touched itself keeps its own place in the order.
            let has_its_own = |chunk: &PlacedChunk| {
                let own = self.by_chunk.get(&chunk.entry.chunk);
                own.is_some_and(|own| !self.is_replaced(*own))
            };
            room += bytes + bytes / 4;
            for chunk in self.there[number].iter().filter(|it| !has_its_own(it)) {
                let taken = chunk.entry.plain_len() as u64;
                if taken <= room && list(*chunk, touched.runs) {
                    room -= taken;
                }
            }
        }
        placed.truncate(TOUCHES_MAX);
        let profile = Profile {
            disk,
            runs: self.profile.runs,
            touched: placed.iter().map(touched_at).collect(),
        };
        Placed {
            boot_set: boot_set(&profile, &placed),
            profile,
            carried,
        }
    }
}

fn touched_at((chunk, runs): &(PlacedChunk, u32)) -> Touched {
    Touched {
        chunk: chunk.entry.chunk,
        block: chunk.first_block(),
        blocks: chunk.entry.blocks,
        runs: *runs,
    }
}

/// All of `placed` but noise, within the bounds of a boot pack.
fn boot_set(profile: &Profile, placed: &[(PlacedChunk, u32)]) -> Vec<PlacedChunk> {
    let mut set: Vec<_> = placed
        .iter()
        .filter(|placed| profile.steadiness(&touched_at(placed)) != Steadiness::Once)
        .map(|(chunk, _)| *chunk)
        .take(BOOT_CHUNKS_MAX)
        .collect();
    if let Some(beyond) = plan_frames(&set).get(BOOT_FRAMES_MAX) {
        set.truncate(beyond.start);
    }
    set
}

#[cfg(test)]
mod tests;
