//! P5: reading what is in the disk cache already, beside a local file.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Bench;
use super::disks::{Reader, pinned};
use super::line::LOOPBACK;
use super::report::Section;
use super::site::{copy_sparse, drop_caches};
use super::table::{Mark, Row, Series, Unit};
use super::turns::Course;
use crate::require;

/// A way to read, as fio knows it.
struct Way {
    title: &'static str,
    arguments: &'static [&'static str],
    unit: Unit,
    /// Below `jobs[0].read`.
    figure: &'static str,
}

const WAYS: &[Way] = &[
    Way {
        title: "1 MiB after another, from nothing in the page cache",
        arguments: &["--rw=read", "--bs=1M", "--invalidate=1"],
        unit: Unit::BytesPerSecond,
        figure: "bw_bytes",
    },
    Way {
        title: "4 KiB anywhere, past the page cache, one at a time",
        arguments: &[
            "--rw=randread",
            "--bs=4k",
            "--direct=1",
            "--time_based",
            "--runtime=3",
        ],
        unit: Unit::PerSecond,
        figure: "iops",
    },
    Way {
        title: "4 KiB anywhere, past the page cache, 16 at once",
        arguments: &[
            "--rw=randread",
            "--bs=4k",
            "--direct=1",
            "--time_based",
            "--runtime=3",
            "--numjobs=16",
            "--thread",
            "--group_reporting",
        ],
        unit: Unit::PerSecond,
        figure: "iops",
    },
];

/// P5.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn cache(bench: &Bench<'_>) -> Result<Section> {
    if require::find("fio").is_none() {
        return Ok(Section {
            notes: vec!["there was no fio".to_owned()],
            ..Section::default()
        });
    }
    let course = Course::new(bench, &LOOPBACK)?;
    let scratch = bench.site.scratch()?;
    let local = scratch.path().join("local.raw");
    copy_sparse(&bench.site.image(), &local)?;
    let show = || {
        Reader::Plain.show(
            bench.site,
            &course.servers,
            course.line.client(),
            scratch.path(),
            bench.client_cpu(),
        )
    };
    let fill = |disk: &Path| -> Result<()> {
        let status = Command::new("cmp")
            .arg(disk)
            .arg(bench.site.image())
            .status()?;
        ensure!(status.success(), "the disk differs from the image");
        Ok(())
    };
    // The first time everything is fetched, the second time all that the cache has is verified.
    let shown = show()?;
    fill(shown.disk())?;
    drop(shown);
    std::fs::remove_dir(scratch.path().join("mnt"))?;
    let shown = show()?;
    fill(shown.disk())?;
    let mut section = Section {
        notes: vec![
            "the disk cache has all of the image, and was verified once by this mount".to_owned(),
        ],
        ..Section::default()
    };
    for way in WAYS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            drop_caches()?;
            ours.push(fio(bench, shown.disk(), way)?);
            drop_caches()?;
            theirs.push(fio(bench, &local, way)?);
        }
        let row = Row::new(
            way.title,
            way.unit,
            Series::new("circular-mount", ours),
            Series::new("local file", theirs),
        );
        section.rows.push(row.marked(Mark::AtLeast(0.95)));
    }
    Ok(section)
}

fn fio(bench: &Bench<'_>, disk: &Path, way: &Way) -> Result<f64> {
    let mut command = pinned(bench.client_cpu(), "fio".as_ref());
    command
        .args([
            "--name=read",
            "--readonly",
            "--output-format=json",
            "--ioengine=psync",
        ])
        .arg(format!("--filename={}", disk.display()))
        .args(way.arguments)
        .stdin(Stdio::null());
    let output = command.output().context("cannot run fio")?;
    ensure!(
        output.status.success(),
        "fio: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    // It may say something first.
    let start = text.find('{').unwrap_or_default();
    let found: Value = serde_json::from_str(text.get(start..).unwrap_or_default())
        .context("fio printed no JSON")?;
    let figure = found["jobs"][0]["read"][way.figure]
        .as_f64()
        .context("fio measured nothing")?;
    super::say(&format!("     {:<50} {figure:.0}", way.title));
    Ok(figure)
}
