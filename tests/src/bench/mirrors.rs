//! P15, the other half: of four servers one is dead, one sends wrong bytes, one is slow, and one is good. What is lost
//! beside that one alone?

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::Bench;
use super::disks::{Reader, Shown, mount};
use super::line::NEAR;
use super::servers::Servers;
use super::site::Site;
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, bytes, lines};
use super::whole::data;
use crate::replay::{self, Plan};

/// What the rows are about.
pub const NOTE: &str = "four servers: the first is stopped from the start, the second is an nginx with a store in which each 16 KiB of all packs has a wrong bit, the third is an nginx that sends 256 KiB of each answer in a second, the fourth is ours; the first eighth of the data is read before the clock starts";

/// What is read before the clock starts: one part in so many.
const BEFORE: usize = 8;

/// Reads all data in order, from four servers and from the best of them.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn rows(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let kind = lines(bench, &[NEAR]).first().copied().unwrap_or(NEAR);
    let course = Course::new(bench, &kind)?;
    let cpu = bench.server_cpu();
    let (mut dead, dead_url) = Servers::mirror(bench.site, &course.line, cpu)?;
    let (_damaged, damaged_url, _store) = Servers::damaged(bench.site, &course.line, cpu)?;
    let (_slow, slow_url, _own) = Servers::slow(bench.site, &course.line, cpu)?;
    dead.signal(Signal::SIGSTOP)?;
    let best = course.servers.store();
    let (mut four, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        let servers = [dead_url.as_str(), &damaged_url, &slow_url, best];
        four.push(throughput(bench, &course, &servers)?);
        alone.push(throughput(bench, &course, &[best])?);
    }
    dead.signal(Signal::SIGCONT)?;
    let title = format!(
        "{}: of four servers one is dead, one damaged and one slow",
        kind.title
    );
    let row = Row::new(
        title,
        Unit::BytesPerSecond,
        Series::new("Circular, no boot pack: its data in order", four),
        Series::new("the same from the fourth alone", alone),
    );
    Ok(vec![row.marked(Mark::AtLeast(0.9))])
}

/// Returns the plain bytes a second that a client of these servers shows.
fn throughput(bench: &Bench<'_>, course: &Course, servers: &[&str]) -> Result<f64> {
    let scratch = bench.site.scratch()?;
    course.settle()?;
    let cpu = bench.client_cpu();
    let (mut command, disk) = mount(bench.site, servers[0], Site::PLAIN, scratch.path(), cpu)?;
    for mirror in &servers[1..] {
        command.args(["--mirror", mirror]);
    }
    let side = course.line.client();
    let shown = Shown::start(&mut command, &disk, bench.site.length, Some(side))?;
    let reads = data(&bench.site.image())?;
    let (before, timed) = reads.split_at(reads.len() / BEFORE);
    let read = |reads| {
        let plan = Plan {
            reads,
            in_flight: bench.options.in_flight,
            since: Instant::now(),
            stall: Duration::from_secs(1),
            cpu,
        };
        replay::replay(shown.disk(), &bench.site.image(), &plan)
    };
    read(before)?;
    let outcome = read(timed)?;
    let rate = bytes(outcome.bytes) / outcome.time.as_secs_f64();
    super::say(&format!(
        "     {:<24} {} servers {:>8.1} MB/s",
        Reader::Plain.title(),
        servers.len(),
        rate / 1e6
    ));
    Ok(rate)
}
