//! Requests that change the disk: each becomes a task that replies when it is done.

use std::sync::Arc;

use bytes::Bytes;
use fuser::{Errno, ReplyEmpty, ReplyWrite};
use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

use super::Adapter;
use crate::fetch::Source;
use crate::overlay::OverlayError;
use crate::overlay::layered::LayeredError;

/// What a reader or writer of the disk is told.
///
/// - the image cannot be read there: `EIO`
/// - the overlay is damaged there, cannot be read or synced: `EIO`
/// - the file system of the overlay is full: `ENOSPC`
/// - there is no overlay: `EROFS`
/// - all of a write is behind the end of the disk: `EFBIG`
pub(super) fn errno(error: &LayeredError) -> Errno {
    match error {
        LayeredError::Base(_) => Errno::EIO,
        LayeredError::Overlay(OverlayError::Full { .. }) => Errno::ENOSPC,
        LayeredError::Overlay(_) | LayeredError::NotYet => Errno::EIO,
        LayeredError::ReadOnly => Errno::EROFS,
        LayeredError::PastTheEnd => Errno::EFBIG,
    }
}

/// What a request to allocate, of `mode`, asks for.
fn is_discard(mode: i32) -> bool {
    let zeros = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
    mode & zeros != 0 && mode & !(zeros | FALLOC_FL_KEEP_SIZE) == 0
}

impl<S: Source> Adapter<S> {
    pub(super) fn write_disk(&self, offset: u64, bytes: Bytes, reply: ReplyWrite) {
        let fs = Arc::clone(&self.fs);
        self.tasks.spawn(async move {
            let size = bytes.len();
            match fs.disk().write(offset, bytes).await {
                Ok(count) => reply.written(count),
                Err(error) => {
                    log(&error, offset, size as u64, "a write fails");
                    reply.error(errno(&error));
                }
            }
        });
    }

    /// Discards; there is nothing else to allocate on a disk.
    pub(super) fn allocate_on_disk(&self, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        if !is_discard(mode) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if mode & FALLOC_FL_KEEP_SIZE == 0
            && offset.saturating_add(length) > self.fs.disk().length()
        {
            return reply.error(Errno::EFBIG);
        }
        let fs = Arc::clone(&self.fs);
        self.tasks.spawn(async move {
            match fs.disk().discard(offset, length).await {
                Ok(()) => reply.ok(),
                Err(error) => {
                    log(&error, offset, length, "a discard fails");
                    reply.error(errno(&error));
                }
            }
        });
    }

    pub(super) fn sync_disk(&self, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.tasks.spawn(async move {
            match fs.disk().sync().await {
                Ok(()) => reply.ok(),
                Err(error) => {
                    log(&error, 0, fs.disk().length(), "a sync fails");
                    reply.error(errno(&error));
                }
            }
        });
    }
}

fn log(error: &LayeredError, offset: u64, size: u64, what: &str) {
    let cause: &dyn std::error::Error = error;
    tracing::error!(offset, size, error = cause, "{what}");
}
