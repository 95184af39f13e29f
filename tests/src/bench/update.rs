//! P8: booting again, and booting the next version, with what the last boot has left in the cache, or with all of the last
//! version there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::Bench;
use super::disks::Reader;
use super::index::{Chunks, Index};
use super::line::{FAR, LOOPBACK};
use super::report::Section;
use super::site::{Site, copy_sparse, reads_of};
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, bytes, lines, stats_of};
use crate::replay::{self, Plan, Read};

/// A boot: who shows which disk, and what is read of it.
struct Boot<'a> {
    reader: Reader,
    image: &'a Path,
    reads: &'a [Read],
}

/// What a boot took.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    wire: f64,
    seconds: f64,
    /// Bytes of metadata and index, as the client counted them.
    described: f64,
}

/// P8.
///
/// # Errors
/// A boot fails or shows other bytes.
pub fn boots(bench: &Bench<'_>) -> Result<Section> {
    let Some(second) = &bench.options.second else {
        return Ok(Section {
            notes: vec!["there was no second version".to_owned()],
            ..Section::default()
        });
    };
    let [_, reads] = reads_of(second, bench.options.second_reads.as_ref())?;
    let copied = bench.site.scratch()?;
    let newer = copied.path().join("newer.raw");
    copy_sparse(second, &newer)?;
    bench.site.store.publish(&newer, Site::UPDATED)?;
    let old = Boot {
        reader: Reader::Packed,
        image: &bench.site.image(),
        reads: &bench.site.reads,
    };
    let new = Boot {
        reader: Reader::Updated,
        image: &newer,
        reads: &reads,
    };
    let whole = all_cached(bench)?;
    let course = Course::new(bench, &lines(bench, &[FAR]).first().copied().unwrap_or(FAR))?;
    let mut turns = Turns::default();
    for _ in 0..bench.repeats() {
        let scratch = bench.site.scratch()?;
        turns
            .first
            .push(boot(bench, &course, &old, scratch.path())?);
        let nothing = Boot { reads: &[], ..old };
        let mounted = boot(bench, &course, &nothing, scratch.path())?;
        turns.mounted.push(mounted);
        turns
            .again
            .push(boot(bench, &course, &old, scratch.path())?);
        turns
            .updated
            .push(boot(bench, &course, &new, scratch.path())?);
        let empty = bench.site.scratch()?;
        turns.fresh.push(boot(bench, &course, &new, empty.path())?);
        let full = bench.site.scratch()?;
        copy_cache(whole.path(), full.path())?;
        turns.full.push(boot(bench, &course, &new, full.path())?);
    }
    let new_bytes = new_bytes(bench, &reads)?;
    Ok(Section {
        notes: vec![
            "the next version is the same files, laid out anew by another mkfs; its boot pack was carried over".to_owned(),
            "bytes of chunks are those of a pack; what is on the line has metadata, index, HTTP and TCP with it".to_owned(),
        ],
        rows: [
            turns.bytes(course.kind.title, new_bytes),
            turns.times(course.kind.title),
        ]
        .concat(),
        ..Section::default()
    })
}

/// Kinds of boots.
const FIRST: &str = "first boot";
const AGAIN: &str = "the same once more";
const NEXT: &str = "the next version, the last one booted";
const FULL: &str = "the next version, all of the last one cached";
const FRESH: &str = "the next version, nothing cached";

/// The boots of each kind.
#[derive(Default)]
struct Turns {
    first: Vec<Took>,
    mounted: Vec<Took>,
    again: Vec<Took>,
    updated: Vec<Took>,
    fresh: Vec<Took>,
    full: Vec<Took>,
}

impl Turns {
    fn bytes(&self, title: &str, [not_booted, not_there]: [f64; 2]) -> Vec<Row> {
        let wire =
            |name: &str, boots: &[Took]| Series::new(name, boots.iter().map(|boot| boot.wire));
        let chunks =
            |name: &str, bytes: f64| Series::new(name, self.first.iter().map(move |_| bytes));
        let described = |name: &str, boots: &[Took], bytes: f64| {
            let all = boots.iter().map(move |boot| boot.described + bytes);
            Series::new(name, all)
        };
        let row = |unit, ours, other| Row::new(title, unit, ours, other);
        vec![
            row(
                Unit::Bytes,
                wire(AGAIN, &self.again),
                wire(FIRST, &self.first),
            ),
            row(
                Unit::Bytes,
                wire(AGAIN, &self.again),
                wire("mounted, nothing read", &self.mounted),
            )
            .marked(Mark::AtMost(1.1)),
            row(
                Unit::Bytes,
                wire(FULL, &self.full),
                chunks("what it reads of chunks that the last one lacks", not_there),
            )
            .marked(Mark::AtMost(1.1)),
            row(
                Unit::Bytes,
                wire(FULL, &self.full),
                described("the same, with metadata and index", &self.full, not_there),
            ),
            row(
                Unit::Bytes,
                wire(NEXT, &self.updated),
                chunks(
                    "what it reads of chunks that the last boot did not",
                    not_booted,
                ),
            )
            .marked(Mark::AtMost(1.1)),
            row(
                Unit::Bytes,
                wire(NEXT, &self.updated),
                described(
                    "the same, with metadata and index",
                    &self.updated,
                    not_booted,
                ),
            ),
            row(
                Unit::Bytes,
                wire(NEXT, &self.updated),
                wire(FRESH, &self.fresh),
            ),
        ]
    }

    fn times(&self, title: &str) -> Vec<Row> {
        let row = |ours: (&str, &[Took]), other: (&str, &[Took])| {
            let seconds = |(name, boots): (&str, &[Took])| {
                Series::new(name, boots.iter().map(|boot| boot.seconds))
            };
            Row::new(title, Unit::Seconds, seconds(ours), seconds(other))
        };
        vec![
            row((AGAIN, &self.again), (FIRST, &self.first)),
            row((NEXT, &self.updated), (FRESH, &self.fresh)),
        ]
    }
}

/// Returns the bytes, as stored, of the chunks that `reads` of the next version touch: of those that a boot of the last
/// version does not touch, and of those that the last version does not have.
fn new_bytes(bench: &Bench<'_>, reads: &[Read]) -> Result<[f64; 2]> {
    let store = &bench.site.store;
    let last = Index::of(store, Site::PACKED)?;
    let touched = Index::of(store, Site::UPDATED)?.touched(reads);
    let new = |old: Chunks| {
        let new = touched.iter().filter(|(chunk, _)| !old.contains_key(chunk));
        bytes(new.map(|(_, bytes)| bytes).sum())
    };
    Ok([new(last.touched(&bench.site.reads)), new(last.all())])
}

/// Returns a directory with a cache that has all of the last version.
fn all_cached(bench: &Bench<'_>) -> Result<TempDir> {
    let course = Course::new(bench, &LOOPBACK)?;
    let scratch = bench.site.scratch()?;
    let shown = Reader::Packed.show(
        bench.site,
        &course.servers,
        course.line.client(),
        scratch.path(),
        bench.client_cpu(),
    )?;
    let mut command = Command::new("cmp");
    let status = command.arg(shown.disk()).arg(bench.site.image()).status()?;
    ensure!(status.success(), "the disk differs from the image");
    drop(shown);
    Ok(scratch)
}

/// Copies the cache of one client for another.
fn copy_cache(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .args(["--archive", "--sparse=always"])
        .args([from.join("cache"), to.join("cache")])
        .status()?;
    ensure!(status.success(), "cannot copy the cache");
    Ok(())
}

/// Boots with what is cached in `scratch`.
fn boot(bench: &Bench<'_>, course: &Course, boot: &Boot<'_>, scratch: &Path) -> Result<Took> {
    course.settle()?;
    let wire = course.line.wire()?;
    let since = Instant::now();
    let client = course.line.client();
    let shown = boot.reader.show(
        bench.site,
        &course.servers,
        client,
        scratch,
        bench.client_cpu(),
    )?;
    let plan = Plan {
        reads: boot.reads,
        in_flight: bench.options.in_flight,
        since,
        stall: Duration::from_secs(1),
        cpu: bench.client_cpu(),
    };
    let outcome = replay::replay(shown.disk(), boot.image, &plan)?;
    let wire = bytes(course.line.wire()? - wire);
    let seconds = outcome.time.as_secs_f64();
    let stats = stats_of(shown.disk());
    let kinds = [
        "metadata_bytes",
        "table_bytes",
        "page_bytes",
        "index_delta_bytes",
    ];
    let described = kinds.map(|kind| stats["fetched"][kind].as_f64().unwrap_or(f64::NAN));
    let described = described.iter().sum();
    super::say(&format!(
        "     {:<24} {seconds:>8.3} s {:>9.2} MB",
        boot.reader.title(),
        wire / 1e6
    ));
    let mountpoint = shown.disk().parent().map(Path::to_owned);
    drop(shown);
    // The next one makes it anew.
    mountpoint.map_or(Ok(()), fs::remove_dir)?;
    Ok(Took {
        wire,
        seconds,
        described,
    })
}
