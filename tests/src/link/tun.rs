//! TUN devices: what the kernel sends out of one is read from a file, what is written there arrives.
//!
//! Each packet is preceded by a header of ten bytes that says how it is to be cut into segments and whether
//! its checksum is still to be made (`struct virtio_net_hdr`). It is passed on unread but for the two numbers
//! that tell how many bytes the segments are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_ulong};

/// `TUNSETIFF` and `TUNSETOFFLOAD` of `linux/if_tun.h`.
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;

/// `IFF_TUN | IFF_NO_PI | IFF_VNET_HDR`: IP packets, no header but the one below.
const FLAGS: u16 = 0x0001 | 0x1000 | 0x4000;

/// `TUN_F_CSUM | TUN_F_TSO4`: checksums and segments may be left to whoever receives.
const SEGMENTATION: c_int = 0x01 | 0x02;

/// Bytes of the header before each packet.
const HEADER: usize = 10;

/// The longest packet with its header.
pub const PACKET_MAX: usize = HEADER + 65_536;

/// What a device leaves to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: packets are at most as long as the MTU.
    Off,
    /// Checksums and TCP segmentation: packets are up to 64 KiB long.
    Segmentation,
}

/// `struct ifreq`, as far as these calls look.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A device of the namespace in which it was opened. It is gone when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes the device `name` in the namespace of the running thread.
    ///
    /// # Errors
    /// There is no `/dev/net/tun`, or no right to make a device.
    pub fn open(name: &str, offload: Offload) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("cannot open /dev/net/tun")?;
        let mut request = Request {
            name: [0; 16],
            flags: FLAGS,
            rest: [0; 22],
        };
        // One byte stays zero: the kernel wants an end.
        ensure!(name.len() < request.name.len(), "{name} is too long a name");
        for (to, from) in request.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let offload = match offload {
            Offload::Off => 0,
            Offload::Segmentation => SEGMENTATION,
        };
        attach(&file, &mut request, offload)
            .with_context(|| format!("cannot make the device {name}"))?;
        Ok(Self { file })
    }

    /// Returns the next packet with its header in `buffer`, if one waits.
    ///
    /// # Errors
    /// The device is gone.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(buffer.get(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets a packet with its header arrive.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[expect(unsafe_code, reason = "no crate that is here makes TUN devices")]
fn attach(file: &File, request: &mut Request, offload: c_int) -> nix::Result<()> {
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` of 40 bytes, which `Request` is, and keeps no
    // pointer to it.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, std::ptr::from_mut(request)) };
    Errno::result(made)?;
    // SAFETY: TUNSETOFFLOAD takes a number and touches no memory.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, offload) };
    Errno::result(set).map(drop)
}

/// Returns how many bytes a packet with its header is on a line: its own, and the headers of all but
/// the first of its segments.
pub fn line_bytes(packet: &[u8]) -> u64 {
    let word = |at: usize| {
        let bytes = packet.get(at..at + 2).and_then(|two| two.try_into().ok());
        u64::from(bytes.map_or(0, u16::from_ne_bytes))
    };
    let bytes = packet.len().saturating_sub(HEADER) as u64;
    let (headers, segment) = (word(2), word(4));
    let whole = packet.get(1).is_none_or(|kind| *kind == 0) || segment == 0;
    if whole {
        return bytes;
    }
    let segments = bytes.saturating_sub(headers).div_ceil(segment).max(1);
    bytes + (segments - 1) * headers
}

#[cfg(test)]
mod tests {
    use super::{HEADER, line_bytes};

    /// A packet of `length` bytes that is to be cut (kind, header bytes, segment bytes).
    fn packet(length: usize, kind: u8, headers: u16, segment: u16) -> Vec<u8> {
        let mut packet = vec![0, kind];
        packet.extend(headers.to_ne_bytes());
        packet.extend(segment.to_ne_bytes());
        packet.resize(HEADER + length, 0);
        packet
    }

    #[test]
    fn a_packet_of_one_segment_is_as_long_as_it_is() {
        assert_eq!(line_bytes(&packet(1500, 0, 0, 0)), 1500);
        assert_eq!(line_bytes(&packet(1500, 1, 52, 1448)), 1500);
        assert_eq!(line_bytes(&[]), 0);
    }

    #[test]
    fn each_further_segment_has_its_own_header() {
        assert_eq!(line_bytes(&packet(52 + 1449, 1, 52, 1448)), 1501 + 52);
        assert_eq!(line_bytes(&packet(52 + 14_480, 1, 52, 1448)), 15_000);
    }
}
