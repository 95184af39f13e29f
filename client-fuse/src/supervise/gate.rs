//! Holds the threads of a FUSE session until the session has its mount.
//!
//! A session begins on a socket, on which it is sent what the kernel said when the mount began. Each
//! of its threads then reads one more request from there, which only waits at this gate. When all of
//! them wait, none of them reads, and the descriptor that they read from can be replaced by that of
//! the mount. And each has touched its buffer: a kernel that has to find memory for it in the moment
//! in which the process is killed would fail the request instead of keeping it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What stands between the kernel and a worker that is handed a mount.
#[derive(Debug)]
pub(crate) struct Behind {
    /// Holds requests until the mount is handed over.
    pub(crate) gate: Arc<Gate>,
    /// Where data goes if requests pass through the supervisor.
    pub(crate) device: Option<Arc<OwnedFd>>,
}

/// Lets nobody pass until it is opened.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Requests that came through.
    taken: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    open: bool,
}

impl Gate {
    /// Waits until it is open.
    pub(crate) fn pass(&self) {
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.open {
            state = self.wait(state);
        }
    }

    /// Counts a request that a thread took.
    pub(crate) fn take(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were, but for what fuser answers itself.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Waits until `n` wait.
    pub(super) fn gather(&self, n: usize) {
        let mut state = self.state();
        while state.waiting < n {
            state = self.wait(state);
        }
    }

    /// Lets all pass.
    pub(super) fn open(&self) {
        self.state().open = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the descriptor `number` another name of `file`; nobody may be reading from it.
pub(super) fn replace(number: RawFd, file: &impl AsFd) -> io::Result<()> {
    let file = file.as_fd().as_raw_fd();
    #[expect(
        unsafe_code,
        reason = "the session owns the number and has no way to exchange what it names"
    )]
    // SAFETY: the number stays open and stays owned by the session; the call touches no memory.
    let outcome = unsafe { nix::libc::dup3(file, number, nix::libc::O_CLOEXEC) };
    if outcome == number {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
