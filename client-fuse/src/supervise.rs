//! A mount that outlives the process that serves it.
//!
//! ```text
//! kernel ══ /dev/fuse ══ worker      serves: all of this crate but this module
//!              ║            │ control
//!              ╚═══════ supervisor   holds the mount, starts workers; one thread, no disk, no network
//! ```
//!
//! The [keeper] is the process that was started, before it has any thread. It forks the worker, and
//! another one when that dies: nothing is executed and no file is needed, so that it works after
//! `switch_root`. Each worker begins its FUSE session on a socket, on which it is told what the kernel
//! said when the mount began ([`wire::Offer`]), and gets the kernel's descriptor in the place of that
//! socket when it is its turn ([gate]). From then on requests and answers go straight between kernel
//! and worker.
//!
//! What a dead worker had read and not answered, Linux 6.9 and later sends again when asked. For older
//! kernels the supervisor reads the requests itself and passes them on ([relay]), because one that is
//! never answered hangs for ever, which is worse than an error.
//!
//! A hand-over to the program of another version is the same, begun by SIGUSR2: the worker that
//! prepares is executed rather than forked, and the old one is ended only when the new one is ready.
//!
//! A worker that hangs is as good as dead: one from which no beat comes ([watch]) is killed, and followed
//! like any other.
//!
//! Decisions are pure: [pace] (when the next worker starts), [watch] (whether one hangs), [ledger] (what
//! is unanswered), [wire].
//! What was written to a disk and not synced is in its file and in a journal that the supervisor holds, too
//! ([`crate::overlay::journal`]): the next worker takes both over when it has the mount to itself, right before it serves.

use std::process::ExitCode;

use anyhow::Context;

use crate::config::{Config, Supervision};
use crate::mount::Mountpoint;
use crate::process::Readiness;

mod beat;
mod control;
pub(crate) mod gate;
mod held;
mod keeper;
pub mod ledger;
pub mod opened;
pub mod pace;
pub(crate) mod relay;
pub mod seat;
pub mod watch;
pub mod wire;
mod worker;

use keeper::{Keeper, Outcome};
use seat::Seat;

/// How a process that serves a mount stands.
#[derive(Debug)]
pub enum Stand {
    /// It has the mount for itself, and tells that it serves.
    Alone(Readiness),
    /// It is the worker of a supervisor.
    Supervised(Seat),
}

/// Which process we are after [`begin`].
#[derive(Debug)]
pub enum Side {
    /// One that goes on to serve.
    Working(Stand),
    /// The supervisor; the mount is gone, and it only has to exit with this code.
    Done(ExitCode),
}

/// Becomes the supervisor, if there is to be one; returns in each worker, and in the supervisor when
/// the mount is gone. There must be no thread yet but this one.
///
/// # Errors
///
/// When the first worker or the mount cannot be made, or the supervisor cannot go on.
pub fn begin(
    config: &Config,
    mountpoint: &Mountpoint,
    readiness: Readiness,
) -> anyhow::Result<Side> {
    if config.process.supervision == Supervision::Off {
        return Ok(Side::Working(Stand::Alone(readiness)));
    }
    let keeper = Keeper::new(config, mountpoint, readiness).context("cannot supervise")?;
    Ok(match keeper.run()? {
        Outcome::Worker(seat) => Side::Working(Stand::Supervised(seat)),
        Outcome::Done(code) => Side::Done(code),
    })
}
