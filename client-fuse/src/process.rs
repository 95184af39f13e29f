//! What the process does to itself: becomes a daemon, and becomes fit to carry a root disk.
//!
//! All of it happens before the first thread starts: a fork keeps only the thread that forks, and
//! what a thread may do under memory pressure is inherited from the one that started it.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid,
};

use crate::config::Style;

/// What a supervisor reads from `--ready-fd`.
const READY: &[u8] = b"READY\n";

/// `prctl` option of Linux 5.6: our memory needs must not wait for I/O that waits for us.
const PR_SET_IO_FLUSHER: i32 = 57;

/// Which process we are after [`detach`].
#[derive(Debug)]
pub enum Side {
    /// The one that goes on to mount.
    Mounting(Readiness),
    /// The one that the shell waits for: it only has to exit with this code.
    Waiting(u8),
}

/// Tells whoever waits that the mount serves.
#[derive(Debug)]
pub struct Readiness {
    /// Read by the waiting process.
    parent: Option<OwnedFd>,
    /// Read by a supervisor.
    supervisor: Option<OwnedFd>,
}

/// Forks, if this is to be a daemon. The first process then waits until the second one is ready or
/// has failed; the second one keeps the terminal until then, for its messages and for Ctrl-C.
///
/// # Errors
///
/// When the system refuses a process or a descriptor.
pub fn detach(style: Style, ready_fd: Option<i32>) -> io::Result<Side> {
    let supervisor = ready_fd.map(inherited).transpose()?;
    if style == Style::Foreground {
        return Ok(Side::Mounting(Readiness {
            parent: None,
            supervisor,
        }));
    }
    let (receiver, sender) = pipe()?;
    #[expect(unsafe_code, reason = "there is no other way to become a daemon")]
    // SAFETY: no thread but this one exists yet, so the child finds every lock free.
    let side = unsafe { fork() }?;
    match side {
        ForkResult::Child => Ok(Side::Mounting(Readiness {
            parent: Some(sender),
            supervisor,
        })),
        ForkResult::Parent { child } => {
            drop(sender);
            await_child(receiver, child).map(Side::Waiting)
        }
    }
}

/// Waits for the word that the child is ready, or for its end.
fn await_child(receiver: OwnedFd, child: Pid) -> io::Result<u8> {
    let mut word = Vec::new();
    std::fs::File::from(receiver)
        .take(READY.len() as u64)
        .read_to_end(&mut word)?;
    if word == READY {
        return Ok(0);
    }
    match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => Ok(u8::try_from(code).unwrap_or(1)),
        _ => Ok(1),
    }
}

/// Takes over a descriptor that our parent opened for us.
fn inherited(fd: i32) -> io::Result<OwnedFd> {
    if fd <= 2 || nix::fcntl::fcntl(borrow(fd), nix::fcntl::FcntlArg::F_GETFD).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("--ready-fd {fd} is not an open descriptor"),
        ));
    }
    #[expect(unsafe_code, reason = "an inherited descriptor has only a number")]
    // SAFETY: it is open, and it was handed to us for this: nothing else in this process uses it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned)
}

fn borrow<'a>(fd: i32) -> std::os::fd::BorrowedFd<'a> {
    #[expect(unsafe_code, reason = "to ask whether a number is an open descriptor")]
    // SAFETY: it is only asked about; -1, the one value not allowed, is excluded by the caller.
    unsafe {
        std::os::fd::BorrowedFd::borrow_raw(fd)
    }
}

impl Readiness {
    /// Says so to all who wait, and lets go of the terminal if this is a daemon.
    ///
    /// # Errors
    ///
    /// When the terminal cannot be let go of. That nobody waits any more is not an error.
    pub fn announce(self) -> io::Result<()> {
        if let Some(supervisor) = self.supervisor {
            let _ = std::fs::File::from(supervisor).write_all(READY);
        }
        if let Some(parent) = self.parent {
            leave_terminal(Style::Daemon)?;
            let _ = std::fs::File::from(parent).write_all(READY);
        }
        Ok(())
    }
}

/// Lets go of the terminal and of the directory in which the command line was typed, if this is a
/// daemon or serves one.
///
/// # Errors
///
/// When the system refuses.
pub fn leave_terminal(style: Style) -> io::Result<()> {
    if style == Style::Foreground {
        return Ok(());
    }
    setsid()?;
    chdir("/")?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    dup2_stderr(null.as_fd())?;
    Ok(())
}

/// Blocks of memory from this length on go back to the system when they are freed. With less, each chunk
/// pays for fresh pages; with more, what is freed stays: 2 MiB are 2 % faster, for 9 MB more.
pub const MMAP_THRESHOLD_BYTES: i32 = 128 << 10;

/// Keeps the heap close to what is in use. Chunks come and go on all threads; with an arena for
/// each of them, and freed chunks kept in it, a 64 MiB cache took 108 MB of memory; so, 81 MB. There
/// is one arena: nobody waits for it, because blocks are few and large.
pub fn bound_heap() {
    #[expect(unsafe_code, reason = "the allocator has no other controls")]
    // SAFETY: called before any other thread exists; both settings only steer later allocations.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
    }
}

/// Makes sure that the name of the process begins with `@`: systemd does not kill such a process
/// when the machine changes from the initramfs to its root, or shuts down. Starts itself anew if not.
///
/// # Errors
///
/// When it cannot start itself.
pub fn take_storage_name() -> io::Result<()> {
    let mut args = std::env::args_os();
    if args
        .next()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"@"))
    {
        return Ok(());
    }
    Err(Command::new("/proc/self/exe")
        .arg0("@circular-mount")
        .args(args)
        .exec())
}

/// Prepares to serve the disk that the rest of the system lives on. Whatever the system refuses is
/// logged and done without: a container allows little of it and needs little of it.
pub fn harden() {
    let warn = |what: &str, outcome: io::Result<()>| {
        if let Err(error) = outcome {
            tracing::warn!(%error, "cannot {what}");
        }
    };
    warn(
        "ask to be spared when memory is short",
        std::fs::write("/proc/self/oom_score_adj", "-1000"),
    );
    warn("become an I/O flusher", become_io_flusher());
    lock_memory();
}

/// Keeps what is in memory there. Of all that [`harden`] does, only this is not inherited by a worker.
pub fn lock_memory() {
    // On fault only: with every page of every stack and buffer resident it would take 200 MB.
    let on_fault = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    if let Err(error) = mlockall(all) {
        tracing::warn!(%error, "cannot lock memory");
    }
}

fn become_io_flusher() -> io::Result<()> {
    #[expect(unsafe_code, reason = "nix does not know this option")]
    // SAFETY: the option takes four numbers and touches no memory of ours.
    let outcome = unsafe { nix::libc::prctl(PR_SET_IO_FLUSHER, 1_u64, 0_u64, 0_u64, 0_u64) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
