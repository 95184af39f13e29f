//! Joins the stalls of a boot with what lies where on its disk.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use image_format::trace::{Touch, Trace};
use image_format::{BLOCK_BYTES, ChunkId, ImageRef};
use serde::Serialize;

use super::map::{DiskMap, Owner};
use super::stalls::{self, Cause, Foreseen, covered};
use crate::ui;

/// Files of one stall that are named; further ones are counted.
const OWNERS_SHOWN: usize = 3;

/// What is known of the boot pack that a recorded client had.
#[derive(Clone, Debug)]
pub enum BootPackThen {
    /// There was none.
    Absent,
    /// It lists these.
    Listed(HashSet<ChunkId>),
    /// It was another one than the image has today.
    Replaced,
}

/// A boot, explained.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was booted.
    pub image: ImageRef,
    /// Chunks that were touched.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
    /// From the first question to the last answer.
    pub boot_micros: u64,
    /// Shorter waits are left out.
    pub least_micros: u64,
    /// The time in which at least one reader waited.
    pub stalled_micros: u64,
    /// Each wait, in the order of asking.
    pub stalls: Vec<StallReport>,
    /// By file; where several waited at once, that time counts for each.
    pub by_file: Vec<Share<Owner>>,
    /// By cause, likewise.
    pub by_cause: Vec<Share<Cause>>,
}

/// One wait.
#[derive(Debug, Serialize)]
pub struct StallReport {
    /// Since the recording began.
    pub asked_micros: u64,
    /// How long it took.
    pub micros: u64,
    /// Why, and for what.
    pub causes: Vec<Cause>,
    /// Whose blocks they are, most bytes first.
    pub owners: Vec<Owner>,
}

/// What one file or cause has to answer for.
#[derive(Debug, Serialize)]
pub struct Share<T> {
    /// Which.
    pub of: T,
    /// The time in which at least one reader waited for it.
    pub micros: u64,
    /// How many waits.
    pub stalls: usize,
    /// Why; of a cause, itself.
    pub causes: Vec<Cause>,
}

/// Waits of one file or cause while they are collected.
type Collected<T> = BTreeMap<T, (Vec<Range<u64>>, Vec<Cause>)>;

impl Report {
    /// Explains `trace`, leaving out waits of less than `least` microseconds.
    pub fn new(trace: &Trace, boot_pack: &BootPackThen, map: &DiskMap, least: u64) -> Self {
        let foreseen = |touch: &Touch| match boot_pack {
            BootPackThen::Absent => Foreseen::Nothing,
            BootPackThen::Listed(chunks) => Foreseen::Listed(chunks.contains(&touch.chunk)),
            BootPackThen::Replaced => Foreseen::Unknown,
        };
        let found = stalls::stalls(trace, least);
        let (mut files, mut causes) = (Collected::new(), Collected::new());
        let mut reports = Vec::new();
        for stall in &found {
            let mut report = StallReport {
                asked_micros: stall.waited.start,
                micros: stall.waited.end - stall.waited.start,
                causes: Vec::new(),
                owners: Vec::new(),
            };
            for touch in &stall.touches {
                let cause = stalls::cause(touch, foreseen(touch));
                add(&mut report.causes, cause);
                for owner in owners(map, touch) {
                    collect(&mut files, &owner, &stall.waited, cause);
                    add(&mut report.owners, owner);
                }
            }
            for cause in &report.causes {
                collect(&mut causes, cause, &stall.waited, *cause);
            }
            reports.push(report);
        }
        let touches = &trace.touches;
        let end = touches.iter().map(|touch| touch.served).max();
        let start = touches.iter().map(|touch| touch.asked).min();
        Self {
            image: trace.header.image.clone(),
            chunks: touches.len(),
            bytes: (touches.iter())
                .map(|touch| u64::from(touch.blocks) * u64::from(BLOCK_BYTES))
                .sum(),
            boot_micros: end.unwrap_or(0) - start.unwrap_or(0),
            least_micros: least,
            stalled_micros: covered(found.iter().map(|stall| stall.waited.clone())),
            stalls: reports,
            by_file: shares(files),
            by_cause: shares(causes),
        }
    }

    /// Writes it for people: `shown` of the stalls and of the files, the longest.
    pub fn text(&self, shown: usize) -> String {
        let mut out = format!(
            "{}: {} in {} chunks were read in {}; in {} of that, somebody waited for at least {}\n",
            self.image,
            ui::size(self.bytes),
            self.chunks,
            seconds(self.boot_micros),
            seconds(self.stalled_micros),
            millis(self.least_micros),
        );
        if self.stalls.is_empty() {
            return out;
        }
        self.timeline(&mut out, shown);
        let _ = writeln!(out, "\nBy file (several may be waited for at once)");
        for share in self.by_file.iter().take(shown) {
            let _ = writeln!(
                out,
                "{}  {}{}",
                share.text(),
                share.of,
                reasons(&share.causes)
            );
        }
        rest(&mut out, self.by_file.len(), shown);
        let _ = writeln!(out, "\nBy cause");
        for share in &self.by_cause {
            let _ = writeln!(out, "{}  {}", share.text(), share.of);
        }
        out
    }

    fn timeline(&self, out: &mut String, shown: usize) {
        let mut waits: Vec<u64> = self.stalls.iter().map(|stall| stall.micros).collect();
        waits.sort_unstable_by(|one, other| other.cmp(one));
        let least = waits
            .get(shown)
            .map_or(0, |longest_left_out| longest_left_out + 1);
        let _ = writeln!(out, "\n     asked     waited");
        let told = self.stalls.iter().filter(|stall| stall.micros >= least);
        for stall in told.clone() {
            let names = stall
                .owners
                .iter()
                .take(OWNERS_SHOWN)
                .map(ToString::to_string);
            let mut names = names.collect::<Vec<_>>().join(", ");
            if let more @ 1.. = stall.owners.len().saturating_sub(OWNERS_SHOWN) {
                let _ = write!(names, " and {more} more");
            }
            let _ = writeln!(
                out,
                "{:>10} {:>10}  {names}{}",
                seconds(stall.asked_micros),
                millis(stall.micros),
                reasons(&stall.causes)
            );
        }
        rest(out, self.stalls.len(), told.count());
    }
}

impl<T> Share<T> {
    fn text(&self) -> String {
        let times = if self.stalls == 1 { "time " } else { "times" };
        format!("{:>10} {:>6} {times}", seconds(self.micros), self.stalls)
    }
}

fn rest(out: &mut String, all: usize, shown: usize) {
    if let more @ 1.. = all.saturating_sub(shown) {
        let _ = writeln!(out, "{more:>10} more: --top 0 shows all");
    }
}

fn reasons(causes: &[Cause]) -> String {
    let causes: Vec<String> = causes.iter().map(ToString::to_string).collect();
    format!("  ({})", causes.join("; "))
}

fn seconds(micros: u64) -> String {
    format!("{:.3} s", Duration::from_micros(micros).as_secs_f64())
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

/// Whose the blocks are that were read.
fn owners(map: &DiskMap, touch: &Touch) -> Vec<Owner> {
    let (read, bytes) = (touch.read_blocks(), u64::from(BLOCK_BYTES));
    let owners = map.owners(&(read.start * bytes..read.end * bytes));
    match owners.is_empty() {
        true => vec![Owner::Unknown],
        false => owners.into_iter().map(|(owner, _)| owner.clone()).collect(),
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, one: T) {
    if !list.contains(&one) {
        list.push(one);
    }
}

fn collect<T: Clone + Ord>(all: &mut Collected<T>, of: &T, waited: &Range<u64>, cause: Cause) {
    let (waits, causes) = all.entry(of.clone()).or_default();
    // Several touches of one read are one wait.
    if waits.last() != Some(waited) {
        waits.push(waited.clone());
    }
    add(causes, cause);
}

fn shares<T: Ord>(all: Collected<T>) -> Vec<Share<T>> {
    let mut shares: Vec<_> = (all.into_iter())
        .map(|(of, (waits, causes))| Share {
            of,
            stalls: waits.len(),
            micros: covered(waits),
            causes,
        })
        .collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.micros));
    shares
}
