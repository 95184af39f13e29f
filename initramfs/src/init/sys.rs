//! System calls that no crate in use wraps, each behind a safe function.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use nix::libc;

/// Gives the kernel a module to load.
#[expect(
    unsafe_code,
    reason = "no wrapper of finit_module without another feature of nix"
)]
pub(super) fn load_module(module: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, the parameters are a C string, and the kernel keeps neither.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes `command` start in a session of its own, out of reach of the console's signals.
#[expect(unsafe_code, reason = "the only way to run code between fork and exec")]
pub(super) fn in_own_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid is async-signal-safe and touches no memory of this process.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) }
}

/// Sets the clock, in seconds since 1970-01-01 00:00 UTC.
#[expect(
    unsafe_code,
    reason = "no wrapper of clock_settime without another feature of nix"
)]
pub(super) fn set_clock(seconds: i64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    // SAFETY: the kernel reads `time` during the call only.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) })
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const BLKRASET: libc::c_ulong = 0x1262;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// How a loop device reads its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Io {
    /// Past the page cache of the file: nothing is kept in memory twice.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// Asks for the number of a loop device that nobody uses.
#[expect(unsafe_code, reason = "nix has no loop device requests")]
pub(super) fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Makes `device` the disk whose content is `file`: read-only, with its partitions, in sectors of so many bytes, or of 512.
#[expect(unsafe_code, reason = "nix has no loop device requests")]
pub(super) fn configure_loop_device(
    device: &File,
    file: &File,
    io: Io,
    sector_bytes: Option<u32>,
) -> io::Result<()> {
    let direct = match io {
        Io::Direct => LO_FLAGS_DIRECT_IO,
        Io::Buffered => 0,
    };
    let config = LoopConfig {
        fd: descriptor(file.as_raw_fd())?,
        block_size: sector_bytes.unwrap_or(0),
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_PARTSCAN | direct,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` has the layout that the request reads, and outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
}

/// Sets how far a block device reads ahead, in sectors of 512 bytes.
#[expect(unsafe_code, reason = "nix has no request for read-ahead")]
pub(super) fn set_read_ahead(device: &File, sectors: u32) -> io::Result<()> {
    // SAFETY: the argument is a number, no pointer.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKRASET, libc::c_ulong::from(sectors)) })
}

fn descriptor(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_those_of_the_kernel() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
