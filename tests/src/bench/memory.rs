//! P11: memory of a client, at its highest; [`super::idle`] has that of servers.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::Bench;
use super::disks::{Reader, Shown, mount};
use super::line::LOOPBACK;
use super::report::Section;
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, bytes};
use crate::images::{noise, sparse};
use crate::replay::{self, Plan, Read};

/// Bytes of one read when all of the disk is.
const STEP: usize = 1 << 20;

/// What a client may have: 32 MiB, and the memory cache that it has if nothing else is said.
const BOUND: u64 = (32 + 64) << 20;

/// Pieces of data of the disks that differ in size only, each as long as one read.
const PIECES: u64 = 64;

/// P11.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn client(bench: &Bench<'_>) -> Result<Section> {
    let course = Course::new(bench, &LOOPBACK)?;
    let peer = [Reader::NbdkitCache]
        .into_iter()
        .find(|peer| peer.is_here());
    let mut rows = Vec::new();
    let whole: Vec<Read> = (0..bench.site.length)
        .step_by(STEP)
        .map(|offset| {
            let left = usize::try_from(bench.site.length - offset).unwrap_or(STEP);
            Read {
                offset,
                length: left.min(STEP),
            }
        })
        .collect();
    let none: &[Read] = &[];
    let mut tasks = vec![
        ("mounted", none),
        ("after the boot", bench.site.reads.as_slice()),
    ];
    if !bench.options.quick {
        tasks.push(("after reading all of it", &whole));
    }
    for (place, reads) in tasks {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            ours.push(highest(bench, &course, Reader::Packed, reads)?);
            if let Some(peer) = peer {
                theirs.push(highest(bench, &course, peer, reads)?);
            }
        }
        let ours = Series::new("circular-mount", ours);
        let other = match peer {
            Some(_) => Series::new("nbdkit and nbdfuse, no memory cache", theirs),
            None => ours.clone(),
        };
        let bound = ours.figures.iter().map(|_| bytes(BOUND));
        let bound = Series::new("32 MiB and its memory cache", bound);
        rows.push(Row::new(place, Unit::Bytes, ours.clone(), other));
        rows.push(Row::new(place, Unit::Bytes, ours, bound).marked(Mark::AtMost(1.0)));
    }
    rows.push(sizes(bench, &course)?);
    drop(course);
    rows.push(super::idle::servers(bench)?);
    Ok(Section {
        notes: vec![
            "highest resident memory (`VmHWM`) of clients, that of servers when all their connections are idle (`VmRSS`); our client has a memory cache of 64 MiB".to_owned(),
        ],
        rows,
        ..Section::default()
    })
}

/// Returns the most memory that the processes of a reader had.
fn highest(bench: &Bench<'_>, course: &Course, reader: Reader, reads: &[Read]) -> Result<f64> {
    let scratch = bench.site.scratch()?;
    let shown = reader.show(
        bench.site,
        &course.servers,
        course.line.client(),
        scratch.path(),
        bench.client_cpu(),
    )?;
    let highest = read_all(bench, &shown, &bench.site.image(), reads)?;
    super::say(&format!(
        "     {:<24} {:.1} MB",
        reader.title(),
        bytes(highest) / 1e6
    ));
    Ok(bytes(highest))
}

/// Compares a large disk with a small one that has the same in it, all of which is read.
fn sizes(bench: &Bench<'_>, course: &Course) -> Result<Row> {
    let made = bench.site.scratch()?;
    let mut series = Vec::new();
    for (name, gib) in [("large:1", 200), ("small:1", 2)] {
        let image = made.path().join(name);
        let places = (0..PIECES).map(|piece| piece * (gib << 30) / PIECES);
        let pieces: Vec<_> = places.map(|place| (place, noise(place, STEP))).collect();
        sparse(&image, gib << 30, &pieces)?;
        bench.site.store.publish(&image, name)?;
        let reads: Vec<Read> = pieces
            .iter()
            .map(|(offset, bytes)| Read {
                offset: *offset,
                length: bytes.len(),
            })
            .collect();
        let mut figures = Vec::new();
        for _ in 0..bench.repeats() {
            let scratch = bench.site.scratch()?;
            let cpu = bench.client_cpu();
            let (mut command, disk) = mount(
                bench.site,
                course.servers.store(),
                name,
                scratch.path(),
                cpu,
            )?;
            let side = Some(course.line.client());
            let shown = Shown::start(&mut command, &disk, gib << 30, side)?;
            figures.push(bytes(read_all(bench, &shown, &image, &reads)?));
        }
        series.push(Series::new(format!("a disk of {gib} GiB"), figures));
    }
    let [large, small] = <[Series; 2]>::try_from(series).map_err(|_| anyhow!("there are two"))?;
    Ok(
        Row::new("64 MiB in 64 places, all read", Unit::Bytes, large, small)
            .marked(Mark::AtMost(1.1)),
    )
}

/// Reads, and returns the highest memory of who shows the disk.
fn read_all(bench: &Bench<'_>, shown: &Shown, image: &Path, reads: &[Read]) -> Result<u64> {
    // Piece by piece: what is read is kept until it has been compared.
    for reads in reads.chunks(64) {
        let plan = Plan {
            reads,
            in_flight: bench.options.in_flight,
            since: Instant::now(),
            stall: Duration::from_secs(1),
            cpu: bench.client_cpu(),
        };
        replay::replay(shown.disk(), image, &plan)?;
    }
    high_water(shown.id())
}

/// Returns the highest resident memory of a process and of its children, in bytes.
///
/// # Errors
/// It is gone.
pub fn high_water(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .context("the kernel does not tell the memory of a process")?;
    let mut total = own << 10;
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            total += high_water(child.parse()?)?;
        }
    }
    Ok(total)
}
