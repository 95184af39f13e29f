//! P5: reading what is in the disk cache already, beside a local file and beside a FUSE file system that does nothing.
//!
//! A cache that has all of the disk is read by the kernel itself (passthrough), one that lacks some of it by us. What is
//! read is data: a hole costs nobody anything. Every subject is compared with the image before it is measured, up to the
//! end of what is read.

mod subject;

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::subject::{Cached, Subject};
use super::Bench;
use super::line::LOOPBACK;
use super::report::Section;
use super::site::{copy_sparse, drop_caches, runs};
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, bytes};
use crate::{binaries, require};

/// A way to read, as fio knows it.
#[derive(Debug)]
struct Way {
    title: &'static str,
    arguments: &'static [&'static str],
    /// Whether it goes on for as long as it is told.
    timed: bool,
    unit: Unit,
    /// Below `jobs[0].read`.
    figure: &'static str,
}

const WAYS: &[Way] = &[
    Way {
        title: "1 MiB after another, the page cache of mounts dropped",
        arguments: &["--rw=read", "--bs=1M", "--invalidate=1"],
        timed: false,
        unit: Unit::BytesPerSecond,
        figure: "bw_bytes",
    },
    Way {
        title: "4 KiB anywhere, past the page cache, one at a time",
        arguments: &["--rw=randread", "--bs=4k", "--direct=1"],
        timed: true,
        unit: Unit::PerSecond,
        figure: "iops",
    },
    Way {
        title: "4 KiB anywhere, past the page cache, 16 at once",
        arguments: &[
            "--rw=randread",
            "--bs=4k",
            "--direct=1",
            "--numjobs=16",
            "--thread",
            "--group_reporting",
        ],
        timed: true,
        unit: Unit::PerSecond,
        figure: "iops",
    },
];

/// How long the ways last that are timed; with `--quick`, which measures nothing.
const RUNTIME: [&str; 2] = ["3s", "200ms"];

/// What is read starts and ends at multiples of this.
const STEP: u64 = 1 << 20;

/// Of a disk that is not all in the cache, it has all up to the first 7 of 8 parts of the data that are read elsewhere.
const PART: u64 = 8;

/// What the issue wants of a whole cache beside a local file, and of a part beside the least of FUSE.
const WHOLE: Mark = Mark::AtLeast(0.95);
const PARTIAL: Mark = Mark::AtLeast(0.7);

const LOOPED_WHOLE: (&str, Mark) = ("whole, loop device", WHOLE);
const LOOPED_PART: (&str, Mark) = ("in part, loop device", PARTIAL);

/// What the rows are about.
const NOTES: [&str; 6] = [
    "whole: all of the disk is in the disk cache, was verified, and is read by the kernel (passthrough)",
    "in part: the disk cache has the disk up to the end of the first 7/8 of those data, which are what is read, and lacks the rest; served by us (`--no-passthrough`)",
    "all files lie in memory (tmpfs): what is dropped before each run, or passed by, is the page cache of what is mounted and of loop devices, and a local file has none but itself",
    "the local file is the cache file itself, read directly: which memory a file lies in makes a tenth of the speed",
    "nothing is pinned to a CPU, because no server has anything to do: pinned, most of a read through a loop device is on which CPU the kernel's worker runs",
    "every subject was compared with the image before, up to the end of what is read; for the first touch, an earlier mount of that cache",
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
    let mut section = Section {
        notes: NOTES.map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let longest = longest_run(&bench.site.image())?;
    section.notes.insert(0, told(longest.as_ref()));
    let run = longest.unwrap_or(0..bench.site.length);
    let part = first_of(&run);
    let fill = |name: &str, length, span| {
        Cached::fill(bench, &course, &scratch.path().join(name), length, span)
    };
    let whole = fill("whole", bench.site.length, run.clone())?;
    let partly = fill("part", part.end, part)?;
    let file = Subject::file("local file", &whole.file()?, run.clone());
    let bare = match binaries::host("examples/bare_fuse") {
        Ok(program) => Some(subject::bare(bench, &program, &local, scratch.path(), run)?),
        Err(error) => {
            section.notes.push(format!("no FUSE beside it: {error}"));
            None
        }
    };
    if let Some(bare) = &bare {
        section.rows.push(first_touch(bench, &whole, bare)?);
    }
    let passed = passed(&mut section, &whole)?;
    let served = partly.mount(&["--no-passthrough"])?;
    if let Some(passed) = &passed {
        compare(bench, &mut section, "whole", passed, &file, WHOLE)?;
        passed.ensure_passed()?;
    }
    if let Some(bare) = &bare {
        compare(bench, &mut section, "in part", &served, bare, PARTIAL)?;
    }
    loops(
        bench,
        &mut section,
        [passed.as_ref(), Some(&file)],
        LOOPED_WHOLE,
    )?;
    loops(
        bench,
        &mut section,
        [Some(&served), bare.as_ref()],
        LOOPED_PART,
    )?;
    Ok(section)
}

/// Returns the longest run of data of a disk, if one has 1 MiB.
fn longest_run(image: &Path) -> Result<Option<Range<u64>>> {
    Ok(runs(image)?
        .into_iter()
        .map(|run| run.start.next_multiple_of(STEP)..run.end / STEP * STEP)
        .filter(|run| !run.is_empty())
        .max_by_key(|run| run.end - run.start))
}

/// Returns the first 7 of 8 parts of `run`.
fn first_of(run: &Range<u64>) -> Range<u64> {
    let part = (run.end - run.start) / PART * (PART - 1) / STEP * STEP;
    run.start..run.end.min(run.start + part.max(STEP))
}

/// Says what is read.
fn told(longest: Option<&Range<u64>>) -> String {
    match longest {
        Some(run) => format!(
            "fio reads data alone, the longest run without a hole: {:.1} MB at {:.1} MB",
            bytes(run.end - run.start) / 1e6,
            bytes(run.start) / 1e6
        ),
        None => "fio reads the disk with its holes: no run of data has 1 MiB".to_owned(),
    }
}

/// Adds the same rows behind loop devices, if there are both subjects.
fn loops(
    bench: &Bench<'_>,
    section: &mut Section,
    subjects: [Option<&Subject>; 2],
    (place, mark): (&str, Mark),
) -> Result<()> {
    let [Some(ours), Some(theirs)] = subjects else {
        return Ok(());
    };
    if require::find("losetup").is_none() {
        section.notes.push(format!("{place}: there was no losetup"));
        return Ok(());
    }
    let (ours, theirs) = (ours.looped()?, theirs.looped()?);
    compare(bench, section, place, &ours, &theirs, mark)
}

/// The disk as the kernel reads it itself; `None`, and a note, where it does not.
fn passed(section: &mut Section, whole: &Cached<'_>) -> Result<Option<Subject>> {
    let mounted = whole.mount(&[])?;
    let Some(reason) = mounted.wait_until_passed()? else {
        return Ok(Some(mounted));
    };
    let note = format!("the kernel did not read the cache file itself (passthrough {reason})");
    section.notes.push(note);
    Ok(None)
}

/// Reads what a new mount has not verified yet: once for each turn.
fn first_touch(bench: &Bench<'_>, whole: &Cached<'_>, bare: &Subject) -> Result<Row> {
    let way = WAYS.first().context("there are ways")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        let mounted = whole.mount(&["--no-passthrough"])?;
        ours.push(fio(bench, &mounted, way)?);
        theirs.push(fio(bench, bare, way)?);
    }
    Ok(Row::new(
        format!("whole, first touch: {}", way.title),
        way.unit,
        Series::new("circular-mount", ours),
        Series::new(bare.name(), theirs),
    ))
}

/// Adds a row for each way, of the bytes that both are read of.
fn compare(
    bench: &Bench<'_>,
    section: &mut Section,
    place: &str,
    ours: &Subject,
    theirs: &Subject,
    mark: Mark,
) -> Result<()> {
    let end = ours.span().end.min(theirs.span().end);
    let span = ours.span().start..end;
    for subject in [ours, theirs] {
        compare_bytes(subject.path(), &bench.site.image(), end)?;
    }
    for way in WAYS {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            first.push(fio(bench, &ours.limited(span.clone()), way)?);
            second.push(fio(bench, &theirs.limited(span.clone()), way)?);
        }
        let row = Row::new(
            format!("{place}: {}", way.title),
            way.unit,
            Series::new(ours.name(), first),
            Series::new(theirs.name(), second),
        );
        section.rows.push(row.marked(mark));
    }
    Ok(())
}

fn compare_bytes(disk: &Path, image: &Path, length: u64) -> Result<()> {
    let mut command = Command::new("cmp");
    command.args(["--bytes", &length.to_string()]);
    let status = command.args([disk, image]).status()?;
    ensure!(
        status.success(),
        "{} differs from the image",
        disk.display()
    );
    Ok(())
}

fn fio(bench: &Bench<'_>, subject: &Subject, way: &Way) -> Result<f64> {
    drop_caches()?;
    let span = subject.span();
    let mut command = Command::new("fio");
    command
        .args([
            "--name=read",
            "--readonly",
            "--output-format=json",
            "--ioengine=psync",
        ])
        .arg(format!("--filename={}", subject.path().display()))
        .arg(format!("--offset={}", span.start))
        .arg(format!("--size={}", span.end - span.start))
        .args(way.arguments);
    if way.timed {
        let runtime = RUNTIME[usize::from(bench.options.quick)];
        command.args(["--time_based", &format!("--runtime={runtime}")]);
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.context("cannot run fio")?;
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
    let name = subject.name();
    super::say(&format!("     {name:<32} {:<50} {figure:.0}", way.title));
    Ok(figure)
}
