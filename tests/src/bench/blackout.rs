//! P15: the servers stop for two seconds in the middle of a boot. How long is the longest read?

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;

use super::Bench;
use super::disks::Reader;
use super::line::FAR;
use super::report::Section;
use super::table::{Row, Series, Unit};
use super::turns::{Course, lines};
use crate::replay::{self, Plan};

/// From the appearance of the disk to the stop.
const BEFORE: Duration = Duration::from_millis(300);

/// From there to going on.
const BLACKOUT: Duration = Duration::from_secs(2);

/// P15.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn longest_read(bench: &Bench<'_>) -> Result<Section> {
    let mut course = Course::new(bench, &lines(bench, &[FAR]).first().copied().unwrap_or(FAR))?;
    let peer = Some(Reader::NbdkitRetry).filter(|peer| peer.is_here() && !bench.options.quick);
    let (mut ours, mut theirs, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        ours.push(turn(bench, &mut course, Reader::Plain)?);
        if let Some(peer) = peer {
            theirs.push(turn(bench, &mut course, peer)?);
        }
        stops.push(BLACKOUT.as_secs_f64());
    }
    let title = course.kind.title;
    let row = |other| {
        let ours = Series::new(Reader::Plain.title(), ours.iter().copied());
        Row::new(title, Unit::Seconds, ours, other)
    };
    let mut rows = vec![row(Series::new("the blackout", stops))];
    rows.extend(peer.map(|peer| row(Series::new(peer.title(), theirs))));
    Ok(Section {
        notes: vec![
            "both servers are stopped (`SIGSTOP`) for 2 s, 0.3 s after the disk has appeared"
                .to_owned(),
        ],
        rows,
        ..Section::default()
    })
}

/// Returns the longest read of a boot with a blackout in it, in seconds.
fn turn(bench: &Bench<'_>, course: &mut Course, reader: Reader) -> Result<f64> {
    let scratch = bench.site.scratch()?;
    let client = course.line.client();
    let shown = reader.show(
        bench.site,
        &course.servers,
        client,
        scratch.path(),
        bench.client_cpu(),
    )?;
    let plan = Plan {
        reads: &bench.site.reads,
        in_flight: bench.options.in_flight,
        since: Instant::now(),
        stall: Duration::from_secs(1),
        cpu: bench.client_cpu(),
    };
    let servers = &mut course.servers;
    let outcome = thread::scope(|scope| {
        let blackout = scope.spawn(|| {
            thread::sleep(BEFORE);
            servers.signal(Signal::SIGSTOP)?;
            thread::sleep(BLACKOUT);
            servers.signal(Signal::SIGCONT)
        });
        let outcome = replay::replay(shown.disk(), &bench.site.image(), &plan);
        let ended = blackout
            .join()
            .map_err(|_| anyhow!("the blackout panicked"));
        ended?.and(outcome)
    })?;
    let longest = outcome.longest.as_secs_f64();
    super::say(&format!("     {:<24} {longest:>8.3} s", reader.title()));
    Ok(longest)
}
