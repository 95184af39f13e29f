//! Boots a published version in QEMU, as a machine without a disk would.
//!
//! `circular-server` serves the store on a port of the loopback, QEMU starts kernel and initramfs of
//! the version. What the machine reads comes back over its second serial line, as it is noted: that
//! needs nothing of the machine but its kernel, and whatever becomes of the boot, the trace of it is here.

pub mod files;
pub mod machine;
pub mod programs;
pub mod screen;
pub mod server;
pub mod stop;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why a version cannot be booted here.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BootError {
    #[error("{program} is missing, beside this program and in PATH: {cure}")]
    Missing {
        program: &'static str,
        cure: &'static str,
    },
    #[error("cannot run {}", .program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("circular-server ended before it served the store: {said}")]
    Server { said: String },
    #[error("ended by a signal; the machine is off")]
    Stopped,
    #[error("cannot follow the machine")]
    Follow(#[source] io::Error),
    #[error("QEMU failed ({status}); it says why above")]
    Failed { status: ExitStatus },
    #[error("{what}; the last that the machine said:\n{said}")]
    Machine { what: String, said: String },
}
