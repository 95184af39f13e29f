//! P14: reading all of a disk lazily, beside downloading all of it compressed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::disks::{Reader, pinned};
use super::line::{LOCAL, NEAR};
use super::report::Section;
use super::site::runs;
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, Sample, bytes, lines};
use crate::replay::Read;

/// Bytes of one read of its data.
const STEP: usize = 1 << 20;

/// The compressed disk on nginx.
const COMPRESSED: &str = "disk.raw.zst";

/// P14.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn sequential(bench: &Bench<'_>) -> Result<Section> {
    let compressed = bench.site.www().join(COMPRESSED);
    let status = Command::new("zstd")
        .args(["-3", "-T2", "--quiet", "--force"])
        .arg(bench.site.image())
        .arg("-o")
        .arg(&compressed)
        .status()
        .context("cannot run zstd")?;
    ensure!(status.success(), "zstd ended with {status}");
    let mut section = Section {
        notes: vec!["both are compared with the image by `cmp` as they come".to_owned()],
        ..Section::default()
    };
    let reads = data(&bench.site.image())?;
    for kind in lines(bench, &[LOCAL, NEAR]) {
        let course = Course::new(bench, &kind)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            ours.push(lazily(bench, &course)?);
            theirs.push(downloaded(bench, &course)?);
        }
        let row = |unit, pick: fn(&Sample) -> f64| {
            Row::new(
                kind.title,
                unit,
                Series::new(Reader::Plain.title(), ours.iter().map(pick)),
                Series::new("curl to zstd -d", theirs.iter().map(pick)),
            )
        };
        section
            .rows
            .push(row(Unit::Seconds, |sample| sample.seconds).marked(Mark::AtMost(1.0)));
        section.rows.push(row(Unit::Bytes, |sample| sample.wire));
        section.rows.extend(speed(bench, &course, &reads)?);
    }
    std::fs::remove_file(compressed)?;
    Ok(section)
}

/// How much of the line is used while the data of the disk, without its holes, is read in order.
fn speed(bench: &Bench<'_>, course: &Course, reads: &[Read]) -> Result<Vec<Row>> {
    let kind = &course.kind;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        let lazy = course.replay(bench, Reader::Plain, reads)?;
        plain.push(course.download(bench, lazy.wire)?);
        ours.push(lazy);
    }
    let rate = |name: &str, samples: &[Sample]| {
        let rates = samples.iter().map(|sample| sample.wire / sample.seconds);
        Series::new(name, rates)
    };
    let row = |other| {
        let ours = rate("its data in order, as it was on the line", &ours);
        Row::new(kind.title, Unit::BytesPerSecond, ours, other)
    };
    let mut rows = vec![row(rate("one download of as many bytes", &plain))];
    if let Some(line) = kind.conditions.and_then(|line| line.rate) {
        let line = bytes(line.bytes_in(Duration::from_secs(1)));
        let line = Series::new("the rate of the line", plain.iter().map(|_| line));
        rows.push(match kind.name == LOCAL.name {
            true => row(line).marked(Mark::AtLeast(0.9)),
            false => row(line),
        });
    }
    Ok(rows)
}

/// Returns reads of all that is no hole in a file, in order.
pub(super) fn data(image: &Path) -> Result<Vec<Read>> {
    let mut reads = Vec::new();
    for run in runs(image)? {
        let mut offset = run.start;
        while offset < run.end {
            let length = usize::try_from(run.end - offset)?.min(STEP);
            reads.push(Read { offset, length });
            offset += length as u64;
        }
    }
    Ok(reads)
}

fn lazily(bench: &Bench<'_>, course: &Course) -> Result<Sample> {
    let scratch = bench.site.scratch()?;
    course.settle()?;
    let wire = course.line.wire()?;
    let since = Instant::now();
    let shown = Reader::Plain.show(
        bench.site,
        &course.servers,
        course.line.client(),
        scratch.path(),
        bench.client_cpu(),
    )?;
    let mut command = pinned(bench.client_cpu(), "cmp".as_ref());
    command.arg(shown.disk()).arg(bench.site.image());
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("cannot run cmp")?;
    let seconds = since.elapsed().as_secs_f64();
    ensure!(status.success(), "the disk differs from the image");
    let wire = bytes(course.line.wire()? - wire);
    super::say(&format!("     lazily {seconds:.3} s {:.2} MB", wire / 1e6));
    Ok(Sample {
        seconds,
        wire,
        ..Sample::default()
    })
}

fn downloaded(bench: &Bench<'_>, course: &Course) -> Result<Sample> {
    let mut command = pinned(bench.client_cpu(), "bash".as_ref());
    command
        .args([
            "-c",
            "set -o pipefail; curl --silent --show-error --fail \"$1\" | zstd -dc | cmp - \"$2\"",
            "bash",
        ])
        .arg(format!("{}{COMPRESSED}", course.servers.files()))
        .arg(bench.site.image());
    course.run(&mut command, "curl to zstd -d")
}
