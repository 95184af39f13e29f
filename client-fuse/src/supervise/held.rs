//! The mount as the supervisor holds it: made once, never read from where workers read themselves.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{Filesystem, KernelConfig, Request, Session};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{self, Offer};
use crate::config::Access;
use crate::fuse;
use crate::mount::MountError;
use crate::mount::spot::{Left, Spot};

/// A mount.
#[derive(Debug)]
pub(super) struct Held {
    spot: Spot,
    offer: Offer,
    /// Never dropped: that would unmount, also in a process that was only forked off this one, and
    /// whatever is mounted there by then.
    session: ManuallyDrop<Session<Witness>>,
}

impl Held {
    /// Mounts, so that the disk can be written to or not.
    pub(super) fn mount(
        path: &Path,
        access: Access,
        is_written: bool,
        name: &str,
    ) -> Result<Self, MountError> {
        let refused = |source| MountError::Refused {
            path: path.to_owned(),
            source,
        };
        let seen = Arc::new(Mutex::new(None));
        let witness = Witness {
            is_written,
            seen: Arc::clone(&seen),
        };
        let mut config = fuse::session_config();
        config.mount_options = fuse::mount_options(is_written, name);
        config.acl = fuse::acl(access);
        let session = Session::new(witness, path, &config).map_err(refused)?;
        let spot = Spot::of(path);
        let offer = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let offer = offer.ok_or_else(|| refused(io::Error::other("the kernel said nothing")))?;
        Ok(Self {
            spot,
            offer,
            session: ManuallyDrop::new(session),
        })
    }

    /// What the kernel offered when the mount began.
    pub(super) const fn offer(&self) -> Offer {
        self.offer
    }

    /// The kernel's end of it.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }

    /// Unmounts, or detaches what is in use. Returns whether the mount is gone.
    pub(super) fn unmount(&self) -> bool {
        // Where its connection was aborted, it is over, and there still.
        (self.is_over() && !self.spot.is_there()) || self.spot.unmount() == Left::Gone
    }

    /// Whether the kernel is done with it.
    pub(super) fn is_over(&self) -> bool {
        let mut device = [PollFd::new(self.device(), PollFlags::empty())];
        let polled = poll(&mut device, PollTimeout::ZERO);
        let events = device[0].revents().unwrap_or(PollFlags::empty());
        polled.is_ok() && events.contains(PollFlags::POLLERR)
    }

    /// Has the kernel send again what was read and not answered.
    pub(super) fn resend(&self) -> io::Result<()> {
        nix::unistd::write(self.device(), &wire::resend())?;
        Ok(())
    }
}

/// Sees what the kernel offers, and wants of it what every worker will want.
#[derive(Debug)]
struct Witness {
    is_written: bool,
    seen: Arc<Mutex<Option<Offer>>>,
}

impl Filesystem for Witness {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let version = config.kernel_abi();
        // To ask for too much is the way to be told the most; the value stays.
        let most = config.set_max_readahead(u32::MAX);
        let offer = Offer {
            major: version.0,
            minor: version.1,
            max_readahead: most.unwrap_or_else(|most| most),
            flags: config.capabilities().bits(),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        let bounded = self.is_written.then_some(fuse::SUPERVISED_WRITE_BYTES);
        fuse::negotiate(config, bounded);
        Ok(())
    }
}
