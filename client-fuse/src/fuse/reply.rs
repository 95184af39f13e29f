//! Answers to reads: through fuser, or past the supervisor.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{Errno, ReplyData};

use crate::supervise::relay::ANSWERED_ITSELF;
use crate::supervise::wire;

/// Where the answer to a read goes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) reply: ReplyData,
    pub(super) unique: u64,
    /// Past the supervisor, if requests come through it.
    pub(super) device: Option<Arc<OwnedFd>>,
}

impl Reply {
    pub(super) fn data(self, bytes: &[u8]) {
        match self.device {
            None => self.reply.data(bytes),
            Some(device) => self.reply.error(answer_itself(&device, self.unique, bytes)),
        }
    }

    pub(super) fn error(self, error: Errno) {
        self.reply.error(error);
    }
}

/// Gives the kernel the data of a read past the supervisor; returns what tells the latter so.
fn answer_itself(device: &OwnedFd, unique: u64, bytes: &[u8]) -> Errno {
    let Some(head) = wire::data_head(unique, bytes.len()) else {
        return Errno::EIO;
    };
    let parts = [IoSlice::new(&head), IoSlice::new(bytes)];
    match nix::sys::uio::writev(device, &parts) {
        // ENOENT: the worker before us had answered, and died before it said so.
        Ok(_) | Err(nix::errno::Errno::ENOENT) => Errno::from_i32(ANSWERED_ITSELF),
        Err(error) => {
            tracing::error!(%error, "an answer does not reach the kernel");
            Errno::EIO
        }
    }
}
