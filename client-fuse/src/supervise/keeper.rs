//! The supervisor: one thread that waits.
//!
//! It holds the mount, starts workers, and decides who has the mount. It never reads the disk, and
//! needs no file once the first worker serves.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::control::{Kept, Order, Report, Take};
use super::held::Held;
use super::pace::Pace;
use super::relay::Relay;
use super::seat::Seat;
use super::watch::Watch;
use super::worker::{Code, End, Forked, Stage, Start, Worker, start};
use crate::config::{Access, Config, Role, Supervision};
use crate::mount::Mountpoint;
use crate::process::Readiness;

mod wait;

/// How long a worker that another one replaces may take to keep what it has to keep.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often a worker is started only to bring to disk what was written, when the mount is gone or given up.
const LAST_TRIES: u32 = 5;

/// How long a worker may take to prepare; it waits for no server.
const PREPARATION: Duration = Duration::from_secs(30);

/// Where requests are passed on, those that write would be copied twice more.
const RELAY_WRITES_NOT: &str = "a disk that is written to is supervised where the kernel sends again what a dead worker had taken: Linux 6.9 or later, and not --supervise=relay; leave out --supervise, or --overlay";

/// Which process we are in the end.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The supervisor, whose work is done.
    Done(ExitCode),
    /// A worker.
    Worker(Seat),
}

/// The supervisor.
pub(super) struct Keeper {
    supervisor: Pid,
    role: Role,
    access: Access,
    always_relay: bool,
    /// Whether the disk is written to.
    is_written: bool,
    mountpoint: Mountpoint,
    /// Where the command line was typed, if that is known.
    directory: Option<PathBuf>,
    /// Where this program lies, or what lies there by now.
    program: Option<PathBuf>,
    signals: SignalFd,
    /// The signals that were let through before.
    mask: SigSet,
    readiness: Option<Readiness>,
    held: Option<Held>,
    relay: Option<Relay>,
    kept: Option<Kept>,
    /// What the kernel was answered when the mount began.
    agreed: Option<Vec<u8>>,
    /// The worker that has the mount.
    current: Option<Worker>,
    /// One that prepares for it.
    next: Option<Worker>,
    began: Instant,
    pace: Pace,
    /// Whether the one that has the mount gets on.
    watch: Watch,
    silence_max: Duration,
    /// When to start a worker, if there is none.
    due: Option<Instant>,
    /// When a worker that was told to end is ended.
    farewell: Option<Instant>,
    /// When a worker that prepares is given up.
    limit: Option<Instant>,
    restarts: u64,
    /// How often a worker may still be started to bring to disk what was written.
    last_tries: u32,
    /// Whether the mount was detached; the next signal ends all.
    detached: bool,
    ending: bool,
}

impl Keeper {
    pub(super) fn new(
        config: &Config,
        mountpoint: &Mountpoint,
        readiness: Readiness,
    ) -> io::Result<Self> {
        let mut caught = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ] {
            caught.add(signal);
        }
        let mask = caught.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self {
            supervisor: nix::unistd::getpid(),
            role: config.process.role,
            access: config.mount.access,
            always_relay: config.process.supervision == Supervision::Relay,
            is_written: config.overlay.is_some(),
            mountpoint: mountpoint.clone(),
            directory: std::env::current_dir().ok(),
            program: std::env::current_exe().ok(),
            signals: SignalFd::with_flags(&caught, flags)?,
            mask,
            readiness: Some(readiness),
            held: None,
            relay: None,
            kept: None,
            agreed: None,
            current: None,
            next: None,
            began: Instant::now(),
            pace: Pace::new(),
            watch: Watch::new(config.process.silence_max),
            silence_max: config.process.silence_max,
            due: Some(Instant::now()),
            farewell: None,
            limit: None,
            restarts: 0,
            last_tries: LAST_TRIES,
            detached: false,
            ending: false,
        })
    }

    /// Keeps a worker at work until the mount is gone. Returns in each worker, too.
    pub(super) fn run(mut self) -> anyhow::Result<Outcome> {
        let outcome = self.keep();
        let is_worker = matches!(outcome, Ok(Outcome::Worker(_)));
        if !is_worker && nix::unistd::getpid() == self.supervisor {
            self.leave_nothing();
        }
        outcome
    }

    /// What is left when the supervisor ends: a mount only if it could not be made to work.
    fn leave_nothing(&mut self) {
        for worker in [&self.next, &self.current].into_iter().flatten() {
            worker.signal(Signal::SIGKILL);
        }
        if let Some(held) = &self.held {
            held.unmount();
        }
    }

    fn keep(&mut self) -> anyhow::Result<Outcome> {
        loop {
            if self.due.is_some_and(|due| due <= Instant::now())
                && let Some(seat) = self.start(&Code::Own)?
            {
                return Ok(Outcome::Worker(seat));
            }
            let events = self.wait()?;
            if events.requests || events.kernel {
                self.carry()?;
            }
            if events.signals
                && let Some(seat) = self.heed_signals()?
            {
                return Ok(Outcome::Worker(seat));
            }
            if events.current {
                self.hear_current();
            }
            if events.next {
                self.hear_next()?;
            }
            self.look();
            if let Some(code) = self.reap()? {
                return Ok(Outcome::Done(ExitCode::from(code)));
            }
        }
    }

    /// Starts a worker beside the one that there may be. Returns its seat in the new process.
    fn start(&mut self, code: &Code) -> anyhow::Result<Option<Seat>> {
        self.due = None;
        let started = start(&Start {
            code,
            role: self.role,
            kept: self.kept.as_ref(),
            restarts: self.restarts + u64::from(self.current.is_some()),
            is_file: self.mountpoint.is_file(),
            mask: &self.mask,
            directory: self.directory.as_deref(),
            silence_max: self.silence_max,
        });
        match started {
            Ok(Forked::Worker(seat)) => return Ok(Some(seat)),
            Ok(Forked::Neither(error)) => return Err(error).context("cannot begin as a worker"),
            Ok(Forked::Supervisor(worker)) => {
                self.next = Some(worker);
                // The first one may have to wait for a store.
                self.limit = self.agreed.is_some().then(|| Instant::now() + PREPARATION);
            }
            Err(error) if self.agreed.is_some() => {
                tracing::error!(%error, "cannot start a worker; trying again");
                if self.current.is_none() {
                    self.pause();
                }
            }
            Err(error) => return Err(error).context("cannot start a worker"),
        }
        Ok(None)
    }

    /// Passes requests and answers on, if that is our business.
    fn carry(&mut self) -> anyhow::Result<()> {
        let (Some(relay), Some(held)) = (&mut self.relay, self.held.as_ref()) else {
            return Ok(());
        };
        relay
            .hear(held.device())
            .context("cannot hear the worker")?;
        relay
            .pass_on(held.device())
            .context("cannot take requests from the kernel")
    }

    fn heed_signals(&mut self) -> anyhow::Result<Option<Seat>> {
        while let Some(info) = self.signals.read_signal().context("cannot read signals")? {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                Ok(Signal::SIGUSR2) => {
                    if let Some(seat) = self.upgrade()? {
                        return Ok(Some(seat));
                    }
                }
                // What is under way is the worker's to say.
                Ok(signal @ Signal::SIGUSR1) => match &self.current {
                    Some(worker) => worker.signal(signal),
                    None => tracing::info!("no worker serves yet: there is no state to tell"),
                },
                Ok(signal) if signal != Signal::SIGCHLD => self.end(signal),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Has a worker of the program that lies where this one lay take over.
    fn upgrade(&mut self) -> anyhow::Result<Option<Seat>> {
        let serving = self.current.is_some() && self.agreed.is_some();
        match &self.program {
            Some(program) if serving && self.next.is_none() => {
                tracing::info!(program = %program.display(), "handing the mount over");
                self.start(&Code::At(program.clone()))
            }
            _ => {
                tracing::warn!("no hand-over now: no worker serves, or another one prepares");
                Ok(None)
            }
        }
    }

    /// A signal that ends mounts.
    fn end(&mut self, signal: Signal) {
        let signal_name = signal.as_str();
        let Some(held) = self.held.as_ref() else {
            // The worker says so and ends; or it does not, as that of a root disk.
            if let Some(next) = &self.next {
                next.signal(signal);
            }
            return;
        };
        if self.role == Role::RootDisk {
            tracing::info!(
                signal = signal_name,
                "not ending: this is a root disk (unmount it to end)"
            );
        } else if self.detached {
            tracing::warn!(
                signal = signal_name,
                "ending while the mount is still used; its users will see errors"
            );
            self.ending = true;
            if let Some(next) = &self.next {
                next.signal(Signal::SIGKILL);
            }
            self.dismiss();
        } else {
            tracing::info!(signal = signal_name, "unmounting");
            self.detached = !held.unmount();
        }
    }

    /// Tells the worker that has the mount to end.
    fn dismiss(&mut self) {
        if let Some(current) = &self.current {
            // One that does not hear it is ended when the time is over; unless what was written would be lost.
            let _ = current.control.order(&Order::End);
            let is_followed = self.next.is_some() && !self.ending;
            if is_followed || !self.is_written {
                self.farewell = Some(Instant::now() + FAREWELL);
            }
        }
    }

    fn hear_current(&mut self) {
        let Some(current) = &mut self.current else {
            return;
        };
        match current.control.reported() {
            Ok(Some(Report::Serving)) => {
                let (pid, restarts) = (current.pid(), self.restarts);
                if let Some(readiness) = self.readiness.take() {
                    if let Err(error) = readiness.announce() {
                        tracing::error!(%error, "cannot leave the terminal");
                    }
                } else {
                    tracing::info!(worker = pid, restarts, "serving again");
                }
                if self.ending {
                    self.dismiss();
                }
            }
            Ok(Some(Report::Beat)) => self.watch.heard(self.began.elapsed()),
            Ok(None) => current.fall_silent(),
            Ok(Some(_)) | Err(_) => current.signal(Signal::SIGKILL),
        }
    }

    fn hear_next(&mut self) -> anyhow::Result<()> {
        let Some(mut next) = self.next.take() else {
            return Ok(());
        };
        let heard = match (next.stage, next.control.reported()) {
            (_, Ok(None)) => {
                next.fall_silent();
                Ok(())
            }
            (Stage::Starting, Ok(Some(Report::Ready(first)))) => self.offer(&mut next, first),
            (Stage::Offered, Ok(Some(Report::Agreed(answer)))) => {
                next.stage = Stage::Waiting;
                self.limit = None;
                self.agree(&answer)
            }
            (_, Ok(Some(_))) => Err(anyhow::anyhow!("it says what it should not")),
            (_, Err(error)) => Err(error.into()),
        };
        let first = self.agreed.is_none();
        match heard {
            Err(error) if first => return Err(error),
            Err(error) => {
                let cause: &dyn std::error::Error = error.as_ref();
                tracing::error!(
                    error = cause,
                    worker = next.pid(),
                    "a worker cannot take over"
                );
                next.signal(Signal::SIGKILL);
                self.next = Some(next);
                return Ok(());
            }
            Ok(()) => {}
        }
        let waits = next.stage == Stage::Waiting;
        self.next = Some(next);
        match (waits, self.current.is_some()) {
            (true, true) => self.dismiss(),
            (true, false) => self.promote(),
            (false, _) => {}
        }
        Ok(())
    }

    /// Offers the mount to a worker that can serve it; the first one has it made.
    fn offer(&mut self, worker: &mut Worker, first: Option<(String, Kept)>) -> anyhow::Result<()> {
        if let Some((name, kept)) = first
            && self.held.is_none()
        {
            let held = Held::mount(self.mountpoint.path(), self.access, self.is_written, &name)?;
            if self.always_relay || !held.offer().can_resend() {
                if self.is_written {
                    // Nobody has the mount yet.
                    held.unmount();
                    anyhow::bail!(RELAY_WRITES_NOT);
                }
                self.relay = Some(Relay::new(held.device())?);
            }
            self.held = Some(held);
            self.kept = Some(kept);
        }
        let held = self.held.as_ref().context("it was no first worker")?;
        let mut requests = None;
        if self.relay.is_some() {
            let (ours, theirs) = Relay::line()?;
            worker.line = Some(ours);
            requests = Some(theirs);
        }
        worker.control.order(&Order::Take(Take {
            offer: held.offer(),
            device: held.device().try_clone_to_owned()?,
            requests,
        }))?;
        worker.stage = Stage::Offered;
        Ok(())
    }

    /// A worker must have agreed to just what the first one did: the kernel was told that.
    fn agree(&mut self, answer: &[u8]) -> anyhow::Result<()> {
        match &self.agreed {
            None => self.agreed = Some(answer.to_vec()),
            Some(agreed) => anyhow::ensure!(
                agreed == answer,
                "it wants the kernel to behave otherwise than it does; unmount and mount again for that"
            ),
        }
        Ok(())
    }

    /// Gives the mount to the worker that waits for it.
    fn promote(&mut self) {
        let waits = |worker: &mut Worker| worker.stage == Stage::Waiting;
        let (Some(mut worker), Some(held)) = (self.next.take_if(waits), self.held.as_ref()) else {
            return;
        };
        match (&mut self.relay, worker.line.take()) {
            (Some(relay), Some(line)) => relay.attach(line),
            _ => {
                // Nothing is sent again the first time, for nothing was ever read.
                if let Err(error) = held.resend() {
                    tracing::error!(%error, "the kernel does not send again what was under way");
                }
            }
        }
        worker.stage = Stage::Serving;
        self.watch.begin(worker.beats, self.began.elapsed());
        // If it does not hear that, it is dead, and the next one will.
        let _ = worker.control.order(&Order::Go);
        self.current = Some(worker);
    }

    /// Notices who has ended. Returns the exit code when there is nothing more to do.
    fn reap(&mut self) -> anyhow::Result<Option<u8>> {
        if self.farewell.is_some_and(|at| at <= Instant::now()) {
            self.farewell = None;
            if let Some(current) = &self.current {
                tracing::warn!(worker = current.pid(), "it does not end; killing it");
                current.signal(Signal::SIGKILL);
            }
        }
        if self.limit.is_some_and(|at| at <= Instant::now()) {
            self.limit = None;
            if let Some(next) = &self.next {
                tracing::error!(worker = next.pid(), "it does not get ready; killing it");
                next.signal(Signal::SIGKILL);
            }
        }
        if let Some(end) = self.next.as_ref().and_then(Worker::ended)
            && let Some(next) = self.next.take()
        {
            if self.agreed.is_none() {
                return first_ended(end).map(Some);
            }
            self.next_ended(&next, end);
        }
        if let Some(end) = self.current.as_ref().and_then(Worker::ended)
            && let Some(current) = self.current.take()
            && let Some(code) = self.current_ended(&current, end)?
        {
            return Ok(Some(code));
        }
        let idle = self.current.is_none() && self.next.is_none();
        let last_one_comes = self.is_written && self.due.is_some();
        let over = self.held.as_ref().is_some_and(Held::is_over) || self.ending;
        // Of a disk that is written to, the last worker says itself that all of it is on disk.
        Ok((idle && over && !last_one_comes).then_some(u8::from(self.is_written)))
    }

    /// Whether another worker is started though nobody needs the mount any more: what the last one took is not on disk
    /// yet.
    fn owes(&mut self, worker: i32, end: End) -> bool {
        let owes = self.is_written && end != End::Exited(0) && self.last_tries > 0;
        if owes {
            self.last_tries -= 1;
            self.restarts += 1;
            self.due = Some(Instant::now());
            tracing::error!(worker, %end, "the worker ended before what was written was on disk; starting another for that");
        }
        owes
    }

    /// One that was to take over has ended before it did.
    fn next_ended(&mut self, next: &Worker, end: End) {
        if self.current.is_some() {
            tracing::error!(worker = next.pid(), %end, "no hand-over; the mount stays with the worker that has it");
            return;
        }
        if self.held.as_ref().is_some_and(Held::is_over) || self.ending {
            self.owes(next.pid(), end);
            return;
        }
        let after = self.pause();
        tracing::error!(worker = next.pid(), %end, ?after, "a worker ended before it served; starting another");
    }

    /// The one that had the mount has ended. Returns the exit code, if the mount is gone, too.
    fn current_ended(&mut self, current: &Worker, end: End) -> anyhow::Result<Option<u8>> {
        let replaced = self.farewell.take().is_some();
        self.watch.end();
        let Some(held) = self.held.as_ref() else {
            return Ok(None);
        };
        let left = match &mut self.relay {
            Some(relay) => Some(
                relay
                    .detach(held.device())
                    .context("cannot hear the worker")?,
            ),
            None => None,
        };
        if self.readiness.is_some() {
            // It never served: whoever waits is told how it ended.
            return first_ended(end).map(Some);
        }
        if held.is_over() || self.ending {
            if self.owes(current.pid(), end) {
                return Ok(None);
            }
            return Ok(Some(match end {
                End::Exited(code) => code,
                End::Killed(_) => u8::from(self.is_written),
            }));
        }
        self.restarts += 1;
        if replaced && self.next.is_some() {
            self.promote();
            return Ok(None);
        }
        let after = if self.next.is_some() {
            Duration::ZERO
        } else {
            self.pause()
        };
        let (worker, restarts) = (current.pid(), self.restarts);
        tracing::error!(worker, %end, restarts, left, ?after, "the worker ended; readers wait for another");
        self.promote();
        Ok(None)
    }

    /// Has another worker started as soon as it is time; returns how long that takes.
    fn pause(&mut self) -> Duration {
        let after = self.pace.died(self.began.elapsed());
        self.due = Some(Instant::now() + after);
        after
    }
}

/// The first worker has said itself what is wrong, if it could.
fn first_ended(end: End) -> anyhow::Result<u8> {
    match end {
        End::Exited(code) => Ok(code),
        End::Killed(signal) => anyhow::bail!("the worker was ended by {signal} before it served"),
    }
}
