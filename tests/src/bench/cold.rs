//! P1, P2: a recorded boot, replayed from nothing. P12: what the boot pack brought that nobody read.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context, Result};

use super::Bench;
use super::disks::Reader;
use super::line::{FAR, Kind, LOCAL, LOOPBACK, LOSSY, NEAR, SLOW};
use super::report::Section;
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, Sample, bytes, lines, peers};

/// What the time may be of one download of the same bytes, over the Internet; five round trips come on top.
const BOUND: f64 = 1.3;

/// Round trips on top.
const BOUND_ROUNDS: f64 = 5.0;

/// What the time may be of one download of the same bytes, in a local network.
const BOUND_LOCAL: f64 = 2.5;

/// The turns of one line.
struct Turns {
    packed: Vec<Sample>,
    download: Vec<Sample>,
    plain: Vec<Sample>,
    peers: Vec<(Reader, Vec<Sample>)>,
}

/// P1.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn internet(bench: &Bench<'_>) -> Result<Section> {
    section(bench, &lines(bench, &[FAR, NEAR, SLOW, LOSSY]))
}

/// P2.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn local(bench: &Bench<'_>) -> Result<Section> {
    section(bench, &lines(bench, &[LOCAL, LOOPBACK]))
}

fn section(bench: &Bench<'_>, kinds: &[Kind]) -> Result<Section> {
    let reads = &bench.site.reads;
    let length: u64 = reads.iter().map(|read| read.length as u64).sum();
    let mut section = Section {
        notes: vec![format!(
            "{} reads, {:.1} MB, {} in flight, no think time, past the page cache; the boot pack is of {} boot",
            reads.len(),
            bytes(length) / 1e6,
            bench.options.in_flight,
            if bench.site.knows_the_reads {
                "the very same"
            } else {
                "another"
            }
        )],
        ..Section::default()
    };
    for kind in kinds {
        let course = Course::new(bench, kind)?;
        section.notes.push(course.check(bench)?);
        let turns = turns(bench, &course)?;
        section.rows.extend(rows(kind, &turns));
    }
    Ok(section)
}

fn turns(bench: &Bench<'_>, course: &Course) -> Result<Turns> {
    let reads = &bench.site.reads;
    let mut turns = Turns {
        packed: Vec::new(),
        download: Vec::new(),
        plain: Vec::new(),
        peers: peers(bench)
            .into_iter()
            .map(|peer| (peer, Vec::new()))
            .collect(),
    };
    for _ in 0..bench.repeats() {
        let packed = course.replay(bench, Reader::Packed, reads)?;
        turns.download.push(course.download(bench, packed.wire)?);
        turns.packed.push(packed);
        turns
            .plain
            .push(course.replay(bench, Reader::Plain, reads)?);
        for (peer, samples) in &mut turns.peers {
            samples.push(course.replay(bench, *peer, reads)?);
        }
    }
    Ok(turns)
}

fn seconds(name: &str, samples: &[Sample]) -> Series {
    Series::new(name, samples.iter().map(|sample| sample.seconds))
}

fn wire(name: &str, samples: &[Sample]) -> Series {
    Series::new(name, samples.iter().map(|sample| sample.wire))
}

fn rows(kind: &Kind, turns: &Turns) -> Vec<Row> {
    let row = |ours, other| Row::new(kind.title, Unit::Seconds, ours, other);
    let packed = || seconds(Reader::Packed.title(), &turns.packed);
    let plain = || seconds(Reader::Plain.title(), &turns.plain);
    let mut rows = vec![row(
        packed(),
        seconds("one download of as many bytes", &turns.download),
    )];
    match kind.conditions {
        Some(_) if kind.name == LOCAL.name => {
            for row in &mut rows {
                row.mark = Some(Mark::AtMost(BOUND_LOCAL));
            }
        }
        Some(line) => {
            let top = BOUND_ROUNDS * line.rtt.as_secs_f64();
            let bound = turns
                .download
                .iter()
                .map(|sample| BOUND * sample.seconds + top);
            let bound = Series::new(
                format!("{BOUND} × that download + {BOUND_ROUNDS} RTT"),
                bound,
            );
            rows.push(row(packed(), bound).marked(Mark::AtMost(1.0)));
        }
        None => {}
    }
    for (peer, samples) in &turns.peers {
        rows.push(row(packed(), seconds(peer.title(), samples)));
    }
    if let Some(best) = best(&turns.peers) {
        rows.push(row(packed(), best.clone()).marked(Mark::AtMost(0.2)));
        rows.push(row(plain(), best).marked(Mark::AtMost(0.25)));
    }
    rows.push(row(plain(), packed()));
    rows.push(Row::new(
        kind.title,
        Unit::Bytes,
        wire(Reader::Packed.title(), &turns.packed),
        wire(Reader::Plain.title(), &turns.plain),
    ));
    rows
}

/// Returns the best of the others in each turn.
fn best(peers: &[(Reader, Vec<Sample>)]) -> Option<Series> {
    let turns = peers.iter().map(|(_, samples)| samples.len()).min()?;
    let fastest = |turn: usize| {
        let times = peers.iter().filter_map(|(_, samples)| samples.get(turn));
        times
            .map(|sample| sample.seconds)
            .fold(f64::INFINITY, f64::min)
    };
    Some(Series::new("the best of them", (0..turns).map(fastest)))
}

/// P12.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn ahead(bench: &Bench<'_>) -> Result<Section> {
    let course = Course::new(bench, &lines(bench, &[FAR]).first().copied().unwrap_or(FAR))?;
    let pack = boot_pack_bytes(bench)?;
    let mut samples = Vec::new();
    for _ in 0..bench.repeats() {
        samples.push(course.replay(bench, Reader::Packed, &bench.site.reads)?);
    }
    let stat = |name: &'static str| {
        let figures = samples
            .iter()
            .map(move |sample| sample.stats[name].as_f64().unwrap_or(f64::NAN));
        Series::new(name, figures)
    };
    let place = course.kind.title;
    let packs = samples.iter().map(|_| pack);
    Ok(Section {
        notes: vec![
            "`ahead_bytes` and `ahead_used_bytes` are plain bytes, from `.circular/stats.json`"
                .to_owned(),
        ],
        rows: vec![
            Row::new(
                place,
                Unit::Bytes,
                stat("ahead_used_bytes"),
                stat("ahead_bytes"),
            ),
            Row::new(
                place,
                Unit::Bytes,
                wire("on the line", &samples),
                Series::new("boot pack", packs),
            )
            .marked(Mark::AtMost(1.1)),
        ],
        ..Section::default()
    })
}

/// Returns the length of the longest boot pack of the store.
fn boot_pack_bytes(bench: &Bench<'_>) -> Result<f64> {
    let mut longest = None;
    for object in bench.site.store.objects()? {
        let mut magic = Vec::new();
        File::open(&object.path)?.take(8).read_to_end(&mut magic)?;
        if magic == b"CIRCBOOT" {
            longest = longest.max(Some(object.bytes));
        }
    }
    longest.map(bytes).context("the store has no boot pack")
}
