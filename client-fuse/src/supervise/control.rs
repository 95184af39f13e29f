//! What supervisor and worker say to each other: short messages, some with descriptors, on a socket
//! that keeps messages apart.
//!
//! ```text
//! worker                                   supervisor
//!   Ready (first: what it opened)  ─────►
//!                                  ◄─────  Take (what the kernel offered; its descriptor)
//!   Agreed (to what)               ─────►
//!                                  ◄─────  Go, once no other worker serves
//!   Beat, again and again          ─────►
//!   Serving                        ─────►
//!                                  ◄─────  End
//! ```
//!
//! The two may be of different versions of this program. Whatever one of them does not know is an
//! error: the supervisor then goes on with the program that it is itself. A supervisor of a version that
//! knows of no beats gets none ([`Seat`](super::seat::Seat)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    send, sendmsg, socketpair,
};

use super::wire::Offer;
use crate::overlay;

/// Longest message: an address and a reference, to name the mount by.
const BYTES_MAX: usize = 8192;

/// Most descriptors with one message.
const FDS_MAX: usize = 3;

/// What the first worker leaves to those after it.
#[derive(Debug)]
pub(super) struct Kept {
    /// The image, as it opened it.
    pub(super) opened: OwnedFd,
    /// What a disk that is written to has beside that.
    pub(super) overlay: Option<overlay::Kept>,
}

impl Kept {
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let overlay = self.overlay.as_ref();
        Ok(Self {
            opened: self.opened.try_clone()?,
            overlay: overlay.map(overlay::Kept::try_clone).transpose()?,
        })
    }

    /// All of it, in the order of [`Self::of`].
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let overlay = self.overlay.iter();
        let overlay = overlay.flat_map(|overlay| [overlay.file.as_fd(), overlay.journal.as_fd()]);
        std::iter::once(self.opened.as_fd()).chain(overlay)
    }

    /// From its descriptors; `None` if they are too many or too few.
    pub(super) fn of(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let opened = descriptors.next()?;
        let overlay = match (descriptors.next(), descriptors.next()) {
            (None, _) => None,
            (Some(file), Some(journal)) => Some(overlay::Kept { file, journal }),
            (Some(_), None) => return None,
        };
        descriptors
            .next()
            .is_none()
            .then_some(Self { opened, overlay })
    }
}

/// What a worker tells.
#[derive(Debug)]
pub(super) enum Report {
    /// It can serve. The first worker names the mount and hands over what it opened.
    Ready(Option<(String, Kept)>),
    /// It answered the kernel's offer so.
    Agreed(Vec<u8>),
    /// It serves.
    Serving,
    /// It gets on ([`watch`](super::watch)).
    Beat,
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// This is the mount.
    Take(Take),
    /// It is yours now.
    Go,
    /// Keep what you have to keep, and end.
    End,
}

/// A mount, as it is handed to a worker.
#[derive(Debug)]
pub(super) struct Take {
    /// What the kernel offered when it began.
    pub(super) offer: Offer,
    /// The kernel's end of the mount.
    pub(super) device: OwnedFd,
    /// Where requests come from, if not from there.
    pub(super) requests: Option<OwnedFd>,
}

/// Kind, body and descriptors.
type Message = (u8, Vec<u8>, Vec<OwnedFd>);

/// One end of the line.
#[derive(Debug)]
pub(super) struct Control(OwnedFd);

impl Control {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = messages()?;
        Ok((Self(one), Self(other)))
    }

    /// The end that a descriptor is.
    pub(super) const fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(super) fn report(&self, report: &Report) -> io::Result<()> {
        match report {
            Report::Ready(None) => self.send(b'r', &[], &[]),
            Report::Ready(Some((name, kept))) => {
                let fds: Vec<_> = kept.descriptors().collect();
                self.send(b'r', name.as_bytes(), &fds)
            }
            Report::Agreed(answer) => self.send(b'a', answer, &[]),
            Report::Serving => self.send(b's', &[], &[]),
            Report::Beat => self.beat(),
        }
    }

    /// Tells that it gets on; an error where there is no room for that: it need not be heard.
    pub(super) fn beat(&self) -> io::Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.0.as_raw_fd(), b"b", flags)?;
        Ok(())
    }

    /// The next report; `None` when the worker is gone.
    pub(super) fn reported(&self) -> io::Result<Option<Report>> {
        let Some((kind, body, fds)) = self.receive()? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            b'r' if fds.is_empty() => Report::Ready(None),
            b'r' => {
                let name = String::from_utf8(body).map_err(|_| unknown())?;
                let kept = Kept::of(fds).ok_or_else(unknown)?;
                Report::Ready(Some((name, kept)))
            }
            b'a' => Report::Agreed(body),
            b's' => Report::Serving,
            b'b' => Report::Beat,
            _ => return Err(unknown()),
        }))
    }

    pub(super) fn order(&self, order: &Order) -> io::Result<()> {
        match order {
            Order::Take(take) => {
                let fds: Vec<_> = std::iter::once(take.device.as_fd())
                    .chain(take.requests.as_ref().map(AsFd::as_fd))
                    .collect();
                self.send(b't', &take.offer.encode(), &fds)
            }
            Order::Go => self.send(b'g', &[], &[]),
            Order::End => self.send(b'e', &[], &[]),
        }
    }

    /// The next order; `None` when the supervisor is gone.
    pub(super) fn ordered(&self) -> io::Result<Option<Order>> {
        let Some((kind, body, fds)) = self.receive()? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            b't' => {
                let mut fds = fds.into_iter();
                Order::Take(Take {
                    offer: Offer::decode(&body).ok_or_else(unknown)?,
                    device: fds.next().ok_or_else(unknown)?,
                    requests: fds.next(),
                })
            }
            b'g' => Order::Go,
            b'e' => Order::End,
            _ => return Err(unknown()),
        }))
    }

    fn send(&self, kind: u8, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[] } else { &rights[..] };
        let kind = [kind];
        let parts = [IoSlice::new(&kind), IoSlice::new(body)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &parts,
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Option<Message>> {
        let mut body = vec![0; BYTES_MAX];
        let mut rights = nix::cmsg_space!([RawFd; FDS_MAX]);
        let (length, fds) = loop {
            let mut parts = [IoSliceMut::new(&mut body)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message =
                match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut rights), flags) {
                    Err(nix::errno::Errno::EINTR) => continue,
                    // A process that died with messages unread.
                    Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
                    message => message?,
                };
            let fds = received(message.cmsgs()?);
            if message.flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(unknown());
            }
            break (message.bytes, fds);
        };
        body.truncate(length);
        if body.is_empty() {
            return Ok(None);
        }
        let kind = body.remove(0);
        Ok(Some((kind, body, fds)))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A pair of sockets that keep messages apart.
pub(super) fn messages() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    );
    Ok(pair?)
}

fn received(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let numbers = messages.flat_map(|message| match message {
        ControlMessageOwned::ScmRights(numbers) => numbers,
        _ => Vec::new(),
    });
    numbers.map(own).collect()
}

fn own(number: RawFd) -> OwnedFd {
    #[expect(unsafe_code, reason = "a received descriptor has only a number")]
    // SAFETY: the kernel made it for this message; nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fd
}

fn unknown() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "supervisor and worker do not understand each other",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_with_its_descriptors() {
        let (supervisor, worker) = Control::pair().unwrap();
        let (device, requests) = messages().unwrap();
        let offer = Offer {
            major: 7,
            minor: 31,
            max_readahead: 4096,
            flags: 1,
        };
        let requests = Some(requests);
        let take = Take {
            offer,
            device,
            requests,
        };
        supervisor.order(&Order::Take(take)).unwrap();
        let Some(Order::Take(take)) = worker.ordered().unwrap() else {
            panic!("it was told to take the mount");
        };
        assert_eq!(take.offer, offer);
        // The two ends belong together.
        let sent = nix::unistd::write(&take.device, b"x").unwrap();
        assert_eq!(
            sent,
            nix::unistd::read(take.requests.unwrap(), &mut [0; 8]).unwrap()
        );
        let opened = take.device;
        let kept = Kept {
            opened: opened.try_clone().unwrap(),
            overlay: None,
        };
        let ready = Report::Ready(Some((String::from("name"), kept)));
        worker.report(&ready).unwrap();
        let Some(Report::Ready(Some((name, kept)))) = supervisor.reported().unwrap() else {
            panic!("it is ready");
        };
        assert_eq!((name.as_str(), kept.overlay.is_none()), ("name", true));
        let kept = Kept {
            opened: opened.try_clone().unwrap(),
            overlay: Some(overlay::Kept {
                file: opened.try_clone().unwrap(),
                journal: opened,
            }),
        };
        let ready = Report::Ready(Some((String::new(), kept.try_clone().unwrap())));
        worker.report(&ready).unwrap();
        let Some(Report::Ready(Some((_, kept)))) = supervisor.reported().unwrap() else {
            panic!("it is ready");
        };
        assert_eq!(kept.descriptors().count(), 3);
        worker.report(&Report::Ready(None)).unwrap();
        let report = supervisor.reported().unwrap();
        assert!(matches!(report, Some(Report::Ready(None))));
        // Nobody waits for a supervisor that does not listen.
        while worker.beat().is_ok() {}
        let report = supervisor.reported().unwrap();
        assert!(matches!(report, Some(Report::Beat)));
        drop(worker);
        while supervisor.reported().unwrap().is_some() {}
        assert!(supervisor.reported().unwrap().is_none());
    }
}
