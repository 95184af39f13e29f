//! P1, P2: a recorded boot, replayed from nothing. P12: what the boot pack brought that nobody read.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context, Result};

use super::Bench;
use super::disks::Reader;
use super::index::Index;
use super::line::{FAR, Kind, LOCAL, LOOPBACK, LOSSY, NEAR, SLOW};
use super::report::Section;
use super::site::Site;
use super::table::{Mark, Row, Series, Spread, Unit};
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
            "{} reads, {:.1} MB, {} in flight, no think time, past the page cache; {}",
            reads.len(),
            bytes(length) / 1e6,
            bench.options.in_flight,
            bench.site.learned
        )],
        ..Section::default()
    };
    let index = Index::of(&bench.site.store, Site::PLAIN)?;
    let touched = bytes(index.touched(reads).values().sum());
    for kind in kinds {
        let course = Course::new(bench, kind)?;
        section.notes.push(course.check(bench)?);
        let turns = turns(bench, &course)?;
        section.rows.extend(rows(kind, &turns, touched));
    }
    Ok(section)
}

fn turns(bench: &Bench<'_>, course: &Course) -> Result<Turns> {
    let reads = &bench.site.reads;
    let mut turns = Turns {
        packed: Vec::new(),
        download: Vec::new(),
        plain: Vec::new(),
        peers: peers_on(bench, &course.kind)
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

/// Returns the others to measure on a line: all of them where marks are set, the best of them where a boot takes it
/// minutes.
fn peers_on(bench: &Bench<'_>, kind: &Kind) -> Vec<Reader> {
    let slow = [NEAR, SLOW, LOSSY].iter().any(|it| it.name == kind.name);
    let mut peers = peers(bench);
    peers.retain(|peer| !slow || *peer == Reader::NbdkitCache);
    peers
}

fn seconds(name: &str, samples: &[Sample]) -> Series {
    Series::new(name, samples.iter().map(|sample| sample.seconds))
}

fn wire(name: &str, samples: &[Sample]) -> Series {
    Series::new(name, samples.iter().map(|sample| sample.wire))
}

fn rows(kind: &Kind, turns: &Turns, touched: f64) -> Vec<Row> {
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
        let (mut packed, mut plain) = (row(packed(), best.clone()), row(plain(), best));
        packed.mark = kind.conditions.map(|_| Mark::AtMost(0.2));
        plain.mark = (kind.name == FAR.name).then_some(Mark::AtMost(0.25));
        rows.extend([packed, plain]);
    }
    rows.push(row(plain(), packed()));
    let touched = turns.plain.iter().map(|_| touched);
    rows.push(
        Row::new(
            kind.title,
            Unit::Bytes,
            wire(Reader::Plain.title(), &turns.plain),
            Series::new("the chunks that are read, as stored", touched),
        )
        .marked(Mark::AtMost(2.0)),
    );
    rows.push(Row::new(
        kind.title,
        Unit::Bytes,
        wire(Reader::Packed.title(), &turns.packed),
        wire(Reader::Plain.title(), &turns.plain),
    ));
    rows
}

/// Returns the best of the others, by its median.
fn best(peers: &[(Reader, Vec<Sample>)]) -> Option<Series> {
    let all = peers.iter().map(|(peer, samples)| {
        let name = format!("the best of them: {}", peer.title());
        seconds(&name, samples)
    });
    let median = |series: &Series| Spread::of(&series.figures).median;
    all.min_by(|one, other| median(one).total_cmp(&median(other)))
}

/// P12.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn ahead(bench: &Bench<'_>) -> Result<Section> {
    let course = Course::new(bench, &lines(bench, &[FAR]).first().copied().unwrap_or(FAR))?;
    let pack = boot_pack_bytes(bench)?;
    let (mut packed, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        packed.push(course.replay(bench, Reader::Packed, &bench.site.reads)?);
        plain.push(course.replay(bench, Reader::Plain, &bench.site.reads)?);
    }
    let place = course.kind.title;
    let unused = |name: &str, samples: &[Sample]| {
        let (all, used) = ("/ahead_bytes", "/ahead_used_bytes");
        let unused = figures(samples, |sample| stat(sample, all) - stat(sample, used));
        Row::new(
            place,
            Unit::Bytes,
            Series::new(format!("{name}: ahead of a reader and never read"), unused),
            Series::new(
                "all that was asked for ahead",
                figures(samples, |it| stat(it, all)),
            ),
        )
    };
    let outside = |sample: &Sample| stat(sample, "/fetched/chunk_bytes");
    let chunks = |sample: &Sample| outside(sample) + stat(sample, "/fetched/boot_pack_bytes");
    let described = |sample: &Sample| {
        let kinds = [
            "metadata_bytes",
            "table_bytes",
            "page_bytes",
            "index_delta_bytes",
        ];
        let bytes = kinds.map(|kind| stat(sample, &format!("/fetched/{kind}")));
        pack + bytes.iter().sum::<f64>()
    };
    Ok(Section {
        notes: vec![
            "what was asked for ahead is counted in plain bytes, the rest as it came (`.circular/stats.json`)"
                .to_owned(),
            bench.site.learned.clone(),
        ],
        rows: vec![
            unused(Reader::Packed.title(), &packed),
            unused(Reader::Plain.title(), &plain),
            Row::new(
                place,
                Unit::Bytes,
                Series::new("chunks that the boot pack lacked", figures(&packed, outside)),
                Series::new("all chunks", figures(&packed, chunks)),
            ),
            Row::new(
                place,
                Unit::Bytes,
                wire("on the line", &packed),
                Series::new("boot pack, metadata and index", figures(&packed, described)),
            )
            .marked(Mark::AtMost(1.1)),
        ],
        ..Section::default()
    })
}

fn figures(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(figure).collect()
}

/// Returns a figure that a client of ours told; not a number if it did not.
fn stat(sample: &Sample, pointer: &str) -> f64 {
    let found = sample.stats.pointer(pointer);
    found
        .and_then(serde_json::Value::as_f64)
        .unwrap_or(f64::NAN)
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
