//! A worker as a process: started from this program or another one, ended, reaped.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};

use super::control::{Control, Kept};
use super::seat::{Seat, VARIABLE, WATCHED};
use crate::config::Role;

/// Which program a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// That of the supervisor: it is in memory, and needs no file.
    Own,
    /// What is at this path now.
    At(PathBuf),
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It opens what it needs.
    Starting,
    /// It was told what the mount is.
    Offered,
    /// It agreed, and waits for its turn.
    Waiting,
    /// It has the mount.
    Serving,
}

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    pid: Pid,
    pub(super) control: Control,
    pub(super) stage: Stage,
    /// Our end of the line on which it gets requests, until it has the mount.
    pub(super) line: Option<OwnedFd>,
    /// Whether it will say no more.
    silent: bool,
    /// Whether it is known to send beats, because it is the program that we are.
    pub(super) beats: bool,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Killed(Signal),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "{signal}"),
        }
    }
}

/// Which process we are after [`start`].
pub(super) enum Forked {
    /// The supervisor.
    Supervisor(Worker),
    /// The worker.
    Worker(Seat),
    /// A new process that cannot become the worker.
    Neither(io::Error),
}

/// What a new process begins with.
pub(super) struct Start<'a> {
    pub(super) code: &'a Code,
    pub(super) role: Role,
    pub(super) kept: Option<&'a Kept>,
    pub(super) restarts: u64,
    /// Whether the disk itself is mounted, not a directory.
    pub(super) is_file: bool,
    /// The signals that it must be able to get.
    pub(super) mask: &'a SigSet,
    /// Where the command line was typed.
    pub(super) directory: Option<&'a Path>,
    /// What silence of it is too long.
    pub(super) silence_max: Duration,
}

/// Starts a worker.
///
/// # Errors
///
/// When there can be no process.
pub(super) fn start(start: &Start<'_>) -> io::Result<Forked> {
    let (ours, theirs) = Control::pair()?;
    let supervisor = nix::unistd::getpid();
    #[expect(unsafe_code, reason = "a worker that needs no file can only be forked")]
    // SAFETY: the supervisor has no thread but this one, so the child finds every lock free.
    let side = unsafe { fork() }?;
    if let ForkResult::Parent { child: pid } = side {
        return Ok(Forked::Supervisor(Worker {
            pid,
            control: ours,
            stage: Stage::Starting,
            line: None,
            silent: false,
            beats: *start.code == Code::Own,
        }));
    }
    drop(ours);
    Ok(begin(start, supervisor, theirs).unwrap_or_else(Forked::Neither))
}

/// Goes on in the new process.
fn begin(start: &Start<'_>, supervisor: Pid, control: Control) -> io::Result<Forked> {
    if start.role == Role::Plain {
        // Whoever kills the process that was started means the mount.
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != supervisor {
            return Err(io::Error::other("the supervisor is gone"));
        }
    }
    start.mask.thread_set_mask()?;
    if let Some(directory) = start.directory {
        // Relative paths of the command line are meant from there. If it is gone, so are they.
        let _ = std::env::set_current_dir(directory);
    }
    let kept = start.kept.map(Kept::try_clone).transpose()?;
    match (start.code, kept) {
        (Code::At(path), Some(kept)) => Err(become_program(path, &control, &kept, start)),
        (_, kept) => Ok(Forked::Worker(Seat::new(
            control,
            kept,
            start.restarts,
            start.is_file,
            Some(start.silence_max),
        ))),
    }
}

/// Becomes the program at `path`, with the same command line. Returns only if it cannot.
fn become_program(path: &Path, control: &Control, kept: &Kept, start: &Start<'_>) -> io::Error {
    for fd in std::iter::once(control.as_fd()).chain(kept.descriptors()) {
        if let Err(error) = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())) {
            return error.into();
        }
    }
    let mut numbers = kept.descriptors().map(|fd| i64::from(fd.as_raw_fd()));
    let control = i64::from(control.as_fd().as_raw_fd());
    let opened = numbers.next().unwrap_or(-1);
    let restarts = i64::try_from(start.restarts).unwrap_or(i64::MAX);
    // What an overlay has comes last: a version that knows of none does not understand it, and takes nothing over.
    let told = [control, opened, restarts, i64::from(start.is_file)];
    let told: Vec<_> = told
        .into_iter()
        .chain(numbers)
        .map(|number| number.to_string())
        .collect();
    let mut args = std::env::args_os();
    Command::new(path)
        .arg0(args.next().unwrap_or_default())
        .args(args)
        .env(VARIABLE, told.join(":"))
        .env(WATCHED, start.silence_max.as_millis().to_string())
        .exec()
}

impl Worker {
    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<End> {
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(End::Exited(u8::try_from(code).unwrap_or(1))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(End::Killed(signal)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => None,
            // Somebody else has reaped it.
            Err(_) => Some(End::Exited(1)),
        }
    }

    /// What to wait for to hear it, until it has said its last.
    pub(super) fn line_to_hear(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (!self.silent).then(|| (self.control.as_fd(), PollFlags::POLLIN))
    }

    /// It will say no more; its end is noticed otherwise.
    pub(super) const fn fall_silent(&mut self) {
        self.silent = true;
    }

    /// Whether a debugger has it, as far as that can be told: who looks at it may take his time.
    pub(super) fn is_traced(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended; that will be noticed.
        let _ = kill(self.pid, signal);
    }

    pub(super) const fn pid(&self) -> i32 {
        self.pid.as_raw()
    }
}
