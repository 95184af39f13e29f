//! P13: how long until the first byte of a disk is there.

use anyhow::Result;

use super::Bench;
use super::disks::{Reader, pinned};
use super::line::{FAR, LOCAL};
use super::report::Section;
use super::table::{Row, Series, Unit};
use super::turns::{Course, Sample, lines, peers};
use crate::replay::Read;

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
        notes: vec!["the first 4 KiB of the disk, from the start of the process".to_owned()],
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
        let seconds = |name: &str, samples: &[Sample]| {
            Series::new(name, samples.iter().map(|sample| sample.seconds))
        };
        section.rows.extend(others.iter().map(|(name, samples)| {
            let ours = seconds(Reader::Packed.title(), &ours);
            Row::new(kind.title, Unit::Seconds, ours, seconds(name, samples))
        }));
    }
    Ok(section)
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
