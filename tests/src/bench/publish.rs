//! P6, P7: making what is served.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Bench;
use super::memory::high_water;
use super::report::Section;
use super::site::runs;
use super::table::{Mark, Row, Series, Unit};
use super::turns::bytes;
use crate::{binaries, require};

/// How often the memory of a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Who makes something of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Circular,
    Casync,
    QemuImg,
    Zstd,
}

impl Maker {
    const PEERS: [Self; 3] = [Self::Casync, Self::QemuImg, Self::Zstd];

    fn title(self) -> &'static str {
        match self {
            Self::Circular => "circular publish",
            Self::Casync => "casync make",
            Self::QemuImg => "qemu-img convert -c, zstd",
            Self::Zstd => "zstd -3 -T2",
        }
    }

    fn is_here(self) -> bool {
        let program = match self {
            Self::Circular => return true,
            Self::Casync => "casync",
            Self::QemuImg => "qemu-img",
            Self::Zstd => "zstd",
        };
        require::find(program).is_some()
    }

    /// What ours has to take of its time at most.
    fn mark(self) -> Option<Mark> {
        match self {
            Self::Casync => Some(Mark::AtMost(1.0 / 6.0)),
            Self::QemuImg => Some(Mark::AtMost(1.0)),
            Self::Circular | Self::Zstd => None,
        }
    }

    /// Returns what makes `image` into something below `out`, where an earlier version may be.
    fn command(self, image: &Path, out: &Path) -> Result<Command> {
        let mut command = match self {
            Self::Circular => {
                let mut command = Command::new(binaries::host("circular")?);
                command
                    .arg("publish")
                    .arg(image)
                    .args(["bench:1", "--no-boot", "--json", "--store"])
                    .arg(out.join("store"))
                    .env("CIRCULAR_KEYS", out.join("keys"));
                command
            }
            Self::Casync => {
                let mut command = Command::new("casync");
                let store = format!("--store={}", out.join("store").display());
                command
                    .args(["make", &store])
                    .arg(out.join("index.caibx"))
                    .arg(image);
                command
            }
            Self::QemuImg => {
                let mut command = Command::new("qemu-img");
                command
                    .args([
                        "convert",
                        "-c",
                        "-f",
                        "raw",
                        "-O",
                        "qcow2",
                        "-o",
                        "compression_type=zstd",
                    ])
                    .arg(image)
                    .arg(out.join("disk.qcow2"));
                command
            }
            Self::Zstd => {
                let mut command = Command::new("zstd");
                command
                    .args(["-3", "-T2", "-q", "-f"])
                    .arg(image)
                    .arg("-o")
                    .arg(out.join("disk.zst"));
                command
            }
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }
}

/// What making something took.
#[derive(Clone, Copy, Debug)]
struct Made {
    seconds: f64,
    memory: f64,
    stored: f64,
}

/// P6.
///
/// # Errors
/// A subject fails.
pub fn first(bench: &Bench<'_>) -> Result<Section> {
    let image = bench.site.image();
    let scratch = bench.site.scratch()?;
    let data = scratch.path().join("data");
    copy_data(&image, &data)?;
    let peers: Vec<Maker> = Maker::PEERS
        .into_iter()
        .filter(|peer| peer.is_here())
        .collect();
    let mut ours = Vec::new();
    let mut again = Vec::new();
    let mut hashed = Vec::new();
    let mut theirs: Vec<Vec<Made>> = vec![Vec::new(); peers.len()];
    for _ in 0..bench.repeats() {
        let out = bench.site.scratch()?;
        ours.push(make(Maker::Circular, &image, &out)?);
        again.push(make(Maker::Circular, &image, &out)?);
        let mut command = Command::new("sha256sum");
        hashed.push(run(command.arg(&data).stdout(Stdio::null()), "sha256sum")?.0);
        for (peer, made) in peers.iter().zip(&mut theirs) {
            made.push(make(*peer, &image, &bench.site.scratch()?)?);
        }
    }
    let mut section = Section {
        notes: vec![
            "from memory to memory; memory is the highest seen (`VmHWM`)".to_owned(),
            "`sha256sum` is of a copy of the data without the holes, made before: both read and hash the same bytes"
                .to_owned(),
        ],
        ..Section::default()
    };
    let row = |place: &str, unit, peer: Maker, made: &[Made], pick: fn(&Made) -> f64| {
        Row::new(
            place,
            unit,
            Series::new(Maker::Circular.title(), ours.iter().map(pick)),
            Series::new(peer.title(), made.iter().map(pick)),
        )
    };
    for (peer, made) in peers.iter().zip(&theirs) {
        let mut time = row("time", Unit::Seconds, *peer, made, |made| made.seconds);
        time.mark = peer.mark();
        section.rows.push(time);
        section
            .rows
            .push(row("stored", Unit::Bytes, *peer, made, |made| made.stored));
        section
            .rows
            .push(row("memory", Unit::Bytes, *peer, made, |made| made.memory));
    }
    section.rows.push(
        Row::new(
            "the same once more",
            Unit::Seconds,
            Series::new(
                Maker::Circular.title(),
                again.iter().map(|made| made.seconds),
            ),
            Series::new("sha256sum of the data, without holes", hashed),
        )
        .marked(Mark::AtMost(1.0)),
    );
    Ok(section)
}

/// Copies what is no hole in a file, one run after the other, to a file that has no holes.
fn copy_data(from: &Path, to: &Path) -> Result<()> {
    let (mut image, mut data) = (File::open(from)?, File::create(to)?);
    for run in runs(from)? {
        image.seek(SeekFrom::Start(run.start))?;
        let length = run.end - run.start;
        let copied = io::copy(&mut image.by_ref().take(length), &mut data)?;
        ensure!(copied == length, "{} has become shorter", from.display());
    }
    Ok(())
}

/// P7.
///
/// # Errors
/// A subject fails, or there is no second version.
pub fn second(bench: &Bench<'_>) -> Result<Section> {
    let Some(second) = &bench.options.second else {
        return Ok(Section {
            notes: vec!["there was no second version".to_owned()],
            ..Section::default()
        });
    };
    let copied = bench.site.scratch()?;
    let (image, newer) = (bench.site.image(), copied.path().join("newer.raw"));
    super::site::copy_sparse(second, &newer)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let has_peer = Maker::Casync.is_here();
    for _ in 0..bench.repeats() {
        ours.push(update(bench, Maker::Circular, &image, &newer)?);
        if has_peer {
            theirs.push(update(bench, Maker::Casync, &image, &newer)?);
        }
    }
    let row = |place: &str, unit, pick: fn(&Made) -> f64| {
        Row::new(
            place,
            unit,
            Series::new(Maker::Circular.title(), ours.iter().map(pick)),
            Series::new(Maker::Casync.title(), theirs.iter().map(pick)),
        )
    };
    Ok(Section {
        notes: vec!["the same files, laid out anew by another mkfs; stored is what the second version added".to_owned()],
        rows: match has_peer {
            true => vec![
                row("time", Unit::Seconds, |made| made.seconds),
                row("stored", Unit::Bytes, |made| made.stored),
            ],
            false => Vec::new(),
        },
        ..Section::default()
    })
}

/// Returns what the second version takes where the first one is.
fn update(bench: &Bench<'_>, maker: Maker, image: &Path, newer: &Path) -> Result<Made> {
    let out = bench.site.scratch()?;
    let first = make(maker, image, &out)?;
    let second = make(maker, newer, &out)?;
    Ok(Made {
        stored: second.stored - first.stored,
        ..second
    })
}

fn make(maker: Maker, image: &Path, out: &TempDir) -> Result<Made> {
    let mut command = maker.command(image, out.path())?;
    let (seconds, memory) = run(&mut command, maker.title())?;
    let stored = bytes(size_of(out.path())?);
    super::say(&format!(
        "     {:<26} {seconds:>8.3} s {:>8.1} MB stored, {:.1} MB of memory",
        maker.title(),
        stored / 1e6,
        memory / 1e6
    ));
    Ok(Made {
        seconds,
        memory,
        stored,
    })
}

/// Runs a command and returns how long it took, in seconds, and its highest memory, in bytes.
fn run(command: &mut Command, name: &str) -> Result<(f64, f64)> {
    let since = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let watched = child.id();
    let watcher = thread::spawn(move || {
        let mut highest = 0;
        // An ended process has no memory, and then this ends too.
        while let Ok(memory) = high_water(watched) {
            highest = highest.max(memory);
            thread::sleep(LOOK);
        }
        highest
    });
    let status = child.wait()?;
    let seconds = since.elapsed().as_secs_f64();
    ensure!(status.success(), "{name} ended with {status}");
    Ok((seconds, bytes(watcher.join().unwrap_or_default())))
}

/// Returns the bytes of all files below a directory.
fn size_of(directory: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        total += match entry.file_type()?.is_dir() {
            true => size_of(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(total)
}
