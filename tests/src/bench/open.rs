//! P13: how long until the first byte of a disk is there, and how long what describes a disk is.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::Bench;
use super::disks::{Reader, pinned};
use super::full_cache;
use super::index::Index;
use super::line::{FAR, LOCAL};
use super::report::Section;
use super::site::Site;
use super::table::{Row, Series, Unit};
use super::turns::{Course, Sample, bytes, lines, peers};
use crate::replay::Read;
use crate::require;

/// The first block of the disk.
const FIRST: [Read; 1] = [Read {
    offset: 0,
    length: 4096,
}];

/// P13.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn first_byte(bench: &Bench<'_>) -> Result<Section> {
    let mut section = Section {
        notes: vec![
            "the first 4 KiB of the disk, from the start of the process".to_owned(),
            full_cache::NOTE.to_owned(),
        ],
        ..Section::default()
    };
    for kind in lines(bench, &[FAR, LOCAL]) {
        let course = Course::new(bench, &kind)?;
        let mut ours = Vec::new();
        let mut others: Vec<(String, Vec<Sample>)> = Vec::new();
        others.push(("curl of that block".to_owned(), Vec::new()));
        let peers = peers(bench);
        others.extend(
            peers
                .iter()
                .map(|peer| (peer.title().to_owned(), Vec::new())),
        );
        for _ in 0..bench.repeats() {
            ours.push(course.replay(bench, Reader::Packed, &FIRST)?);
            let mut samples = vec![curl(bench, &course)?];
            for peer in &peers {
                samples.push(course.replay(bench, *peer, &FIRST)?);
            }
            for ((_, all), sample) in others.iter_mut().zip(samples) {
                all.push(sample);
            }
        }
        let round_trips = ours.iter().map(|_| kind.rtt().as_secs_f64());
        if kind.conditions.is_some() {
            let seconds = ours.iter().map(|sample| sample.seconds);
            section.rows.push(Row::new(
                kind.title,
                Unit::Seconds,
                Series::new(Reader::Packed.title(), seconds),
                Series::new("one round trip", round_trips),
            ));
        }
        let seconds = |name: &str, samples: &[Sample]| {
            Series::new(name, samples.iter().map(|sample| sample.seconds))
        };
        section.rows.extend(others.iter().map(|(name, samples)| {
            let ours = seconds(Reader::Packed.title(), &ours);
            Row::new(kind.title, Unit::Seconds, ours, seconds(name, samples))
        }));
    }
    section.rows.extend(full_cache::rows(bench)?);
    section.rows.push(index(bench)?);
    Ok(section)
}

/// What describes all of the disk, beside the index that casync makes of it.
fn index(bench: &Bench<'_>) -> Result<Row> {
    let ours = Index::of(&bench.site.store, Site::PLAIN)?.bytes_per_gib();
    let (name, theirs) = match casync_index(bench)? {
        Some(bytes) => ("casync's index", bytes),
        None => ("that GiB itself: there was no casync", bytes(1 << 30)),
    };
    Ok(Row::new(
        "index of 1 GiB of disk",
        Unit::Bytes,
        Series::new("region table and pages", [ours]),
        Series::new(name, [theirs]),
    ))
}

/// Returns the bytes of casync's index for each GiB.
fn casync_index(bench: &Bench<'_>) -> Result<Option<f64>> {
    if require::find("casync").is_none() || bench.options.quick {
        return Ok(None);
    }
    let scratch = bench.site.scratch()?;
    let index = scratch.path().join("index.caibx");
    let status = Command::new("casync")
        .arg("make")
        .arg(format!(
            "--store={}",
            scratch.path().join("store").display()
        ))
        .arg(&index)
        .arg(bench.site.image())
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "casync ended with {status}");
    let length = bytes(std::fs::metadata(index)?.len());
    Ok(Some(length * bytes(1 << 30) / bytes(bench.site.length)))
}

fn curl(bench: &Bench<'_>, course: &Course) -> Result<Sample> {
    let mut command = pinned(bench.client_cpu(), "curl".as_ref());
    command
        .args([
            "--silent",
            "--show-error",
            "--fail",
            "--output",
            "/dev/null",
        ])
        .args(["--range", "0-4095"])
        .arg(format!(
            "{}{}",
            course.servers.files(),
            bench.site.raw_name()
        ));
    course.run(&mut command, "curl of that block")
}
