//! The bytes of a disk, wherever it is, for a reader that jumps about in it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use image_format::partition::partitions;
use image_store::ImageReader;
use initramfs::FileSystem;
use initramfs::filesystem::{HEAD_BYTES, Superblock};
use tokio::runtime::Handle;

/// What is fetched and kept at once. A file system's metadata lies close together.
const WINDOW_BYTES: u64 = 1 << 20;

/// Windows kept: 64 MiB. When they are all in use, they are all dropped.
const WINDOWS_MAX: usize = 64;

/// Where the bytes come from.
#[derive(Debug)]
enum Source {
    File(File),
    Store(Box<ImageReader>, Handle),
}

/// A disk that is read in windows. The calls block.
#[derive(Debug)]
pub struct Disk {
    source: Source,
    length: u64,
    windows: HashMap<u64, Bytes>,
}

impl Disk {
    /// Reads from a raw disk file.
    ///
    /// # Errors
    /// Its length cannot be told.
    pub fn of_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::new(Source::File(file), length))
    }

    /// Reads from a store; to be used on a thread that may block, not on one of `runtime`'s own.
    pub fn of_store(reader: ImageReader, runtime: Handle) -> Self {
        let length = reader.length();
        Self::new(Source::Store(Box::new(reader), runtime), length)
    }

    fn new(source: Source, length: u64) -> Self {
        Self {
            source,
            length,
            windows: HashMap::new(),
        }
    }

    /// Returns its length in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Returns `len` bytes at `offset`.
    ///
    /// # Errors
    /// The disk cannot be read, or ends before.
    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = offset.checked_add(len as u64);
        let end = end
            .filter(|end| *end <= self.length)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut at, mut out) = (offset, Vec::new());
        while at < end {
            let window = self.window(at / WINDOW_BYTES)?;
            let start = at / WINDOW_BYTES * WINDOW_BYTES;
            let stop = end.min(start + WINDOW_BYTES);
            let within = index(at - start)..index(stop - start);
            let part = window.get(within).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.extend_from_slice(part);
            at = stop;
        }
        Ok(out)
    }

    fn window(&mut self, number: u64) -> io::Result<Bytes> {
        if let Some(window) = self.windows.get(&number) {
            return Ok(window.clone());
        }
        let start = number * WINDOW_BYTES;
        let length = index(WINDOW_BYTES.min(self.length.saturating_sub(start)));
        let window = match &self.source {
            Source::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)?;
                bytes.into()
            }
            Source::Store(reader, runtime) => runtime
                .block_on(reader.read(start, length))
                .map_err(io::Error::other)?,
        };
        if self.windows.len() == WINDOWS_MAX {
            self.windows.clear();
        }
        self.windows.insert(number, window.clone());
        Ok(window)
    }

    /// Returns where the disk's ext4 file systems begin, in bytes; each with the number of its
    /// partition, and 0 for the whole disk.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn ext4_volumes(&mut self) -> io::Result<Vec<(u32, u64)>> {
        if self.is_ext4(0)? {
            return Ok(vec![(0, 0)]);
        }
        let found = partitions(self.length, |range| {
            self.read(range.start, index(range.end - range.start))
        })?;
        let mut volumes = Vec::new();
        for partition in found {
            if self.is_ext4(partition.offset)? {
                volumes.push((partition.number, partition.offset));
            }
        }
        Ok(volumes)
    }

    fn is_ext4(&mut self, offset: u64) -> io::Result<bool> {
        let head = self.head(offset, HEAD_BYTES)?;
        let found = Superblock::detect(&head);
        Ok(found.is_some_and(|found| found.filesystem == FileSystem::Ext4))
    }

    /// Returns `len` bytes at `offset`, or what there is.
    fn head(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = self.length.saturating_sub(offset);
        self.read(offset, index(left.min(len as u64)))
    }
}

/// A length within a window or a buffer.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_spans_windows_is_put_together() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32)
            .map(|at| (at >> 8).to_le_bytes()[0])
            .collect();
        file.write_all_at(&bytes, 0).unwrap();
        let mut disk = Disk::of_file(file).unwrap();
        for (offset, len) in [
            (0, 10),
            (1_048_570, 20),
            (1_000_000, 2_000_000),
            (3_000_000, 0),
        ] {
            let expected = &bytes[offset..offset + len];
            assert_eq!(disk.read(offset as u64, len).unwrap(), expected);
        }
        assert!(disk.read(2_999_999, 2).is_err());
        assert!(disk.read(u64::MAX, 2).is_err());
        assert_eq!(disk.ext4_volumes().unwrap(), []);
    }
}
