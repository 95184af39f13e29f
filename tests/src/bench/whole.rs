//! P14: reading all of a disk lazily, beside downloading all of it compressed.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::disks::{Reader, pinned};
use super::line::{LOCAL, NEAR};
use super::report::Section;
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, Sample, bytes, lines};

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
    }
    std::fs::remove_file(compressed)?;
    Ok(section)
}

fn lazily(bench: &Bench<'_>, course: &Course) -> Result<Sample> {
    let scratch = bench.site.scratch()?;
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
