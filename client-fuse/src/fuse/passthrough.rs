//! Opens of the disk: served by us, or by the kernel from the cache file.
//!
//! What is decided is in [`passthrough`](crate::passthrough); here are the kernel's words for it. One
//! backing of an inode is registered while anybody has it open; the kernel wants no flag of caching
//! beside it.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};

use crate::passthrough::{Lender, Openings};

/// The cache lies on a file system of its own, not on a stack of several (overlayfs, another FUSE); then others may
/// stack on ours.
const STACK_DEPTH: u32 = 1;

/// The kernel counts opens, not handles: all of the disk have one.
const HANDLE: FileHandle = FileHandle(0);

/// Who has the disk open, and how it is read.
#[derive(Debug, Default)]
pub(super) struct DiskOpens {
    /// `None`: we serve always.
    lender: Option<Arc<Lender>>,
    openings: Mutex<Openings<Backing>>,
}

/// What the kernel reads, until this is dropped: first the backing, then the lock on the file.
#[derive(Debug)]
struct Backing {
    id: BackingId,
    _file: File,
}

impl DiskOpens {
    /// Lets the kernel read while `lender` allows it.
    pub(super) fn with(lender: Arc<Lender>) -> Self {
        Self {
            lender: Some(lender),
            openings: Mutex::default(),
        }
    }

    /// Asks the kernel whether it can; only if it may ever come to that.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        let Some(lender) = self.lender.as_ref().filter(|lender| lender.may_open()) else {
            return;
        };
        let can = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        lender.tell_kernel(can);
    }

    /// Answers an open of the disk.
    pub(super) fn open(&self, reply: ReplyOpen) {
        // Held until the kernel has the answer: the next one must be like it.
        let mut openings = self.openings();
        let lender = self.lender.as_ref();
        let backing = openings.open(|| {
            let lender = lender?;
            let file = lender.lend()?;
            match reply.open_backing(&file) {
                Ok(id) => Some(Backing { id, _file: file }),
                Err(error) => {
                    lender.refused(&error);
                    None
                }
            }
        });
        match backing {
            Some(backing) => {
                if let Some(lender) = lender {
                    lender.passed();
                }
                reply.opened_passthrough(HANDLE, FopenFlags::empty(), &backing.id);
            }
            None => reply.opened(HANDLE, FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    /// Notes that an open has ended.
    pub(super) fn close(&self) {
        let mut openings = self.openings();
        openings.close();
        if let Some(lender) = self
            .lender
            .as_ref()
            .filter(|_| openings.backing().is_none())
        {
            lender.closed();
        }
    }

    fn openings(&self) -> MutexGuard<'_, Openings<Backing>> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
