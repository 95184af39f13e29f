//! P15: the servers stop for two seconds in the middle of a boot, or one of two is gone for good. How long is the longest
//! read?

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Bench;
use super::disks::{Reader, Shown, mount};
use super::line::FAR;
use super::mirrors;
use super::report::Section;
use super::servers::Servers;
use super::site::Site;
use super::table::{Row, Series, Unit};
use super::turns::{Course, lines};
use crate::replay::{self, Plan};

/// From the appearance of the disk to the stop.
const BEFORE: Duration = Duration::from_millis(300);

/// From there to going on.
const BLACKOUT: Duration = Duration::from_secs(2);

/// Who has not read all by then waits for ever, and is ended. To read all of it takes a peer a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// What happens in the middle of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Both servers stand still for [`BLACKOUT`].
    Blackout,
    /// Nothing, and there is a mirror.
    Nothing,
    /// The first of two servers stands still for the rest of the boot: no connection is refused, nothing answers.
    Death,
}

/// P15.
///
/// # Errors
/// A subject fails or shows other bytes.
pub fn longest_read(bench: &Bench<'_>) -> Result<Section> {
    let mut course = Course::new(bench, &lines(bench, &[FAR]).first().copied().unwrap_or(FAR))?;
    let (_mirror, mirror) = Servers::mirror(bench.site, &course.line, bench.server_cpu())?;
    let mirror = Some(mirror.as_str());
    let peer = Some(Reader::NbdkitRetry).filter(|peer| peer.is_here() && !bench.options.quick);
    let (mut ours, mut theirs, mut calm, mut dead) = (vec![], vec![], vec![], vec![]);
    for _ in 0..bench.repeats() {
        let plain = Reader::Plain;
        ours.push(turn(bench, &mut course, plain, None, Fault::Blackout)?);
        if let Some(peer) = peer {
            match turn(bench, &mut course, peer, None, Fault::Blackout) {
                Ok(seconds) => theirs.push(seconds),
                Err(error) => super::say(&format!("     {}: {error:#}", peer.title())),
            }
        }
        calm.push(turn(bench, &mut course, plain, mirror, Fault::Nothing)?);
        dead.push(turn(bench, &mut course, plain, mirror, Fault::Death)?);
    }
    let title = course.kind.title;
    let blackout = BLACKOUT.as_secs_f64();
    let trip = course.kind.rtt().as_secs_f64().max(f64::EPSILON);
    let seconds = |name: &str, figures: &[f64]| Series::new(name, figures.iter().copied());
    let trips = |name: &str, figures: &[f64], less: f64| {
        let trips = figures.iter().map(move |seconds| (seconds - less) / trip);
        Series::new(name, trips)
    };
    let (our, after) = (Reader::Plain.title(), "longest read, less the blackout");
    let place = format!("{title}: blackout of 2 s");
    let stops = vec![blackout; ours.len()];
    let mut rows = vec![Row::new(
        &place,
        Unit::Seconds,
        seconds(our, &ours),
        seconds("the blackout", &stops),
    )];
    if let Some(peer) = peer {
        rows.push(Row::new(
            &place,
            Unit::Seconds,
            seconds(our, &ours),
            seconds(peer.title(), &theirs),
        ));
        rows.push(Row::new(
            &place,
            Unit::RoundTrips,
            trips(&format!("{our}: {after}"), &ours, blackout),
            trips(&format!("{}: {after}", peer.title()), &theirs, blackout),
        ));
    }
    rows.push(Row::new(
        format!("{title}: the first of two servers dies"),
        Unit::RoundTrips,
        trips(&format!("{our}: longest read"), &dead, 0.0),
        trips("the same while both live", &calm, 0.0),
    ));
    rows.extend(mirrors::rows(bench)?);
    Ok(Section {
        notes: vec![
            format!("both servers are stopped (`SIGSTOP`) for 2 s, 0.3 s after the disk has appeared; a peer that waits for ever then is ended after {} s, and has no figure for that turn", PATIENCE.as_secs()),
            "a dead server is one that is stopped for the rest of the boot: it refuses nothing and answers nothing".to_owned(),
            mirrors::NOTE.to_owned(),
        ],
        rows,
        ..Section::default()
    })
}

/// Returns the longest read of a boot with a fault in it, in seconds.
fn turn(
    bench: &Bench<'_>,
    course: &mut Course,
    reader: Reader,
    mirror: Option<&str>,
    fault: Fault,
) -> Result<f64> {
    let scratch = bench.site.scratch()?;
    let (side, cpu) = (course.line.client(), bench.client_cpu());
    course.settle()?;
    let shown = match mirror {
        None => reader.show(bench.site, &course.servers, side, scratch.path(), cpu)?,
        Some(mirror) => {
            let (mut command, disk) = mount(
                bench.site,
                course.servers.store(),
                Site::PLAIN,
                scratch.path(),
                cpu,
            )?;
            command.args(["--mirror", mirror]);
            Shown::start(&mut command, &disk, bench.site.length, Some(side))?
        }
    };
    let plan = Plan {
        reads: &bench.site.reads,
        in_flight: bench.options.in_flight,
        since: Instant::now(),
        stall: Duration::from_secs(1),
        cpu,
    };
    let servers = &mut course.servers;
    let (over, is_over) = mpsc::channel::<()>();
    let id = i32::try_from(shown.id())?;
    let outcome = thread::scope(|scope| {
        scope.spawn(move || {
            if is_over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
        });
        let fault = scope.spawn(|| {
            thread::sleep(BEFORE);
            match fault {
                Fault::Nothing => Ok(()),
                Fault::Death => servers.signal_ours(Signal::SIGSTOP),
                Fault::Blackout => {
                    servers.signal(Signal::SIGSTOP)?;
                    thread::sleep(BLACKOUT);
                    servers.signal(Signal::SIGCONT)
                }
            }
        });
        let outcome = replay::replay(shown.disk(), &bench.site.image(), &plan);
        drop(over);
        fault
            .join()
            .map_err(|_| anyhow!("what stops servers panicked"))?
            .and(outcome)
    });
    course.servers.signal_ours(Signal::SIGCONT)?;
    let longest = outcome?.longest.as_secs_f64();
    super::say(&format!(
        "     {:<24} {fault:?} {longest:>8.3} s",
        reader.title()
    ));
    Ok(longest)
}
