//! Sparse files: where they have data, and how it is taken away.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use image_format::BLOCK_BYTES;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{O_CLOEXEC, O_TMPFILE};
use nix::unistd::{Whence, lseek};

/// Whether a file in `directory` has holes, tells where, and can be given some: writes blocks amid
/// a hole, finds them, reads one and takes it away.
///
/// # Errors
///
/// When that cannot be tried.
pub(super) fn self_test(directory: &Path) -> io::Result<bool> {
    const AT: u64 = 512 << 10;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(O_TMPFILE | O_CLOEXEC)
        .open(directory)?;
    let block = [0xA5; BLOCK_BYTES as usize];
    file.set_len(1 << 20)?;
    file.write_all_at(&block, AT)?;
    let data = next_data(&file, 0)?;
    let mut back = [0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut back, AT)?;
    if data.is_none_or(|data| data == 0 || data > AT) || back != block {
        return Ok(false);
    }
    match punch(&file, AT..AT + u64::from(BLOCK_BYTES)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(false),
        Err(error) => return Err(error),
    }
    file.read_exact_at(&mut back, AT)?;
    Ok(back == [0; BLOCK_BYTES as usize])
}

/// The first byte at or behind `from` that is not in a hole.
pub(super) fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, Whence::SeekData)
}

/// The parts of `range` that are not in holes: two system calls for each.
pub(super) fn data_in(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut position = range.start;
    while position < range.end {
        let Some(data) = next_data(file, position)?.filter(|data| *data < range.end) else {
            break;
        };
        let hole = seek(file, data, Whence::SeekHole)?.unwrap_or(range.end);
        found.push(data..hole.min(range.end));
        position = hole.max(data + 1);
    }
    Ok(found)
}

/// Gives the bytes of `range` back to the file system; they read as zeros from then on.
pub(super) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (signed(range.start)?, signed(range.end - range.start)?);
    Ok(fallocate(file, flags, start, len)?)
}

/// The position of the file is not used by anybody; only what is answered counts.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    match lseek(file, signed(from)?, whence) {
        Ok(found) => Ok(Some(u64::try_from(found).map_err(io::Error::other)?)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(io::Error::other)
}
