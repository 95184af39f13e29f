//! Passes requests on to the worker, where the kernel cannot send them twice.
//!
//! Only requests and short answers pass here: some hundred bytes for each. What a reader reads the
//! worker writes to the kernel itself, and then says that it did, by an error number that is no
//! answer. So a read costs two changes of process more, and not one more copy of its data.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send};

use super::control::messages;
use super::ledger::Ledger;
use super::wire::{Answered, Asked, MESSAGE_BYTES_MAX, destroy};
use crate::fuse::THREADS;

/// The kernel wants room for the largest write, though no disk that is supervised is written to.
const REQUEST_BYTES_MAX: usize = (16 << 20) + 4096;

/// What a worker says of a request that it answered itself. Were it taken for an answer by mistake, a
/// reader would see an error, never a wrong byte.
pub(crate) const ANSWERED_ITSELF: i32 = nix::libc::EALREADY;

/// Stands between the kernel and the worker.
#[derive(Debug)]
pub(super) struct Relay {
    ledger: Ledger,
    /// Only what requests need of it is ever touched.
    buffer: Vec<u8>,
    worker: Option<OwnedFd>,
    /// Whether the kernel is done with the mount.
    over: bool,
}

impl Relay {
    /// Nothing is under way. Reading from `device` does not wait from now on.
    pub(super) fn new(device: BorrowedFd<'_>) -> io::Result<Self> {
        without_waiting(device)?;
        let mut buffer = vec![0; REQUEST_BYTES_MAX];
        // Memory for it is found now, not while a request is in the kernel's hands.
        buffer[..MESSAGE_BYTES_MAX].fill(1);
        Ok(Self {
            ledger: Ledger::default(),
            buffer,
            worker: None,
            over: false,
        })
    }

    /// A line for a worker, which gets the end that is returned second.
    pub(super) fn line() -> io::Result<(OwnedFd, OwnedFd)> {
        let (ours, theirs) = messages()?;
        without_waiting(ours.as_fd())?;
        Ok((ours, theirs))
    }

    /// Goes on with a worker. What another one left unanswered comes first.
    pub(super) fn attach(&mut self, worker: OwnedFd) {
        self.worker = Some(worker);
    }

    /// The worker is gone; what it said last still counts. Returns how many requests it left.
    pub(super) fn detach(&mut self, device: BorrowedFd<'_>) -> io::Result<usize> {
        let heard = self.hear(device);
        self.worker = None;
        let left = self.ledger.worker_gone();
        heard.map(|()| left)
    }

    /// The worker's line, if there is one.
    pub(super) fn worker(&self) -> Option<BorrowedFd<'_>> {
        self.worker.as_ref().map(AsFd::as_fd)
    }

    /// Whether there is something to pass on that the line had no room for.
    pub(super) fn is_behind(&self) -> bool {
        self.ledger.to_send().is_some()
    }

    /// Whether requests can be taken from the kernel.
    pub(super) fn is_open(&self) -> bool {
        self.worker.is_some() && !self.over && !self.ledger.is_full()
    }

    /// Takes what the kernel has and passes on what the line takes.
    pub(super) fn pass_on(&mut self, device: BorrowedFd<'_>) -> io::Result<()> {
        while self.is_open() {
            match nix::unistd::read(device, &mut self.buffer) {
                Ok(length) => {
                    let request = &self.buffer[..length];
                    let asked = Asked::of(request).ok_or(io::ErrorKind::InvalidData)?;
                    self.ledger.arrived(asked, request);
                }
                Err(Errno::EAGAIN) => break,
                // A request that nobody waits for any more.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(Errno::ENODEV) => {
                    self.over = true;
                    self.farewell();
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some(worker) = &self.worker else {
            return Ok(());
        };
        while let Some(request) = self.ledger.to_send() {
            match send(worker.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => self.ledger.sent(),
                Err(Errno::EINTR) => {}
                // No room; or it is gone, which will be noticed.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Takes what the worker says and gives the kernel its answers.
    pub(super) fn hear(&mut self, device: BorrowedFd<'_>) -> io::Result<()> {
        let Some(worker) = &self.worker else {
            return Ok(());
        };
        loop {
            let message = &mut self.buffer[..MESSAGE_BYTES_MAX];
            let length = match recv(worker.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::EAGAIN | Errno::ECONNRESET) => return Ok(()),
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let answer = &self.buffer[..length];
            let Some(answered) = Answered::of(answer) else {
                tracing::error!(length, "the worker said what is no answer");
                continue;
            };
            self.ledger.answered(answered.unique);
            if answered.error != -ANSWERED_ITSELF {
                // Refused if nobody waits for it any more.
                let _ = nix::unistd::write(device, answer);
            }
        }
    }

    /// Lets the worker's threads end as they do when the kernel tells them.
    fn farewell(&self) {
        if let Some(worker) = &self.worker {
            for _ in 0..THREADS {
                let _ = send(worker.as_raw_fd(), &destroy(), MsgFlags::MSG_NOSIGNAL);
            }
        }
    }
}

fn without_waiting(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
