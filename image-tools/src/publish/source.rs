//! Reads the data of a disk image and cuts it into chunks; holes are skipped, not read.
//!
//! Where the file system of the publisher knows holes (`SEEK_DATA`, `SEEK_HOLE`) they cost nothing;
//! zero blocks elsewhere are found by the chunker. Both ways give the same chunks: cuts depend on
//! content only, never on how the file happens to be stored.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use image_format::chunker::{ChunkerParams, Cut, End};
use image_format::geometry::{BLOCK_BYTES, BLOCK_LEN, DISK_BYTES_MAX, REGION_BYTES};
use nix::errno::Errno;
use nix::libc::O_EXCL;
use nix::unistd::{Whence, lseek};

/// Bytes read at once. A chunk may begin in one window and end in the next.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// Why a disk image cannot be published.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum SourceError {
    #[error("cannot open `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}` is a directory: give a disk image file or a block device", .path.display())]
    Directory { path: PathBuf },
    #[error("`{}` is in use: it is mounted, or another program has it for itself. Unmount it, or publish a snapshot of it", .path.display())]
    InUse { path: PathBuf },
    #[error("`{}` is neither a file nor a block device", .path.display())]
    Kind { path: PathBuf },
    #[error("`{}` is empty: there is no disk in it", .path.display())]
    Empty { path: PathBuf },
    #[error("`{}` is longer than 256 TiB", .path.display())]
    TooLong { path: PathBuf },
    #[error("`{}` looks like a {format} image, which is not read directly: convert it with `qemu-img convert -O raw`, or say --raw if these bytes are the disk", .path.display())]
    Format { path: PathBuf, format: &'static str },
    #[error("cannot read `{}` at byte {offset}", .path.display())]
    Read {
        path: PathBuf,
        offset: u64,
        source: io::Error,
    },
    #[error("`{}` changed while it was read; nothing was published: stop what writes to it and try again", .path.display())]
    Changed { path: PathBuf },
}

/// An open disk image.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    length: u64,
    stamp: Stamp,
}

/// What changes when a file is written to.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: (i64, i64),
}

/// Whether a file that looks like another image format is taken as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Refuse it: the bytes of a qcow2 file are hardly meant as a disk.
    Refuse,
    /// Publish its bytes.
    TakeAsRaw,
}

impl Source {
    /// Opens the raw disk image, or block device, at `path`.
    ///
    /// # Errors
    /// It is not there, not readable, empty, or another kind of image.
    pub fn open(path: &Path, probe: Probe) -> Result<Self, SourceError> {
        let path = path.to_owned();
        let open = |source| SourceError::Open {
            path: path.clone(),
            source,
        };
        // Asked before it is opened: a pipe would be waited for.
        let kind = std::fs::metadata(&path).map_err(open)?.file_type();
        if kind.is_fifo() || kind.is_socket() {
            return Err(SourceError::Kind { path });
        }
        let mut options = OpenOptions::new();
        options.read(true);
        if kind.is_block_device() {
            // Who writes to it leaves no trace that could be looked for afterwards.
            options.custom_flags(O_EXCL);
        }
        let file = options.open(&path).map_err(|error| {
            match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EBUSY => SourceError::InUse { path: path.clone() },
                _ => open(error),
            }
        })?;
        let meta = file.metadata().map_err(open)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return Err(SourceError::Directory { path });
        }
        let length = if kind.is_block_device() {
            lseek(&file, 0, Whence::SeekEnd)
                .map_err(|errno| open(errno.into()))?
                .unsigned_abs()
        } else if kind.is_file() {
            meta.len()
        } else {
            return Err(SourceError::Kind { path });
        };
        if length == 0 {
            return Err(SourceError::Empty { path });
        }
        if length > DISK_BYTES_MAX {
            return Err(SourceError::TooLong { path });
        }
        let source = Self {
            stamp: stamp(&file).map_err(open)?,
            path,
            file,
            length,
        };
        match source.foreign_format()? {
            Some(format) if probe == Probe::Refuse => Err(SourceError::Format {
                path: source.path,
                format,
            }),
            _ => Ok(source),
        }
    }

    /// Returns where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Returns the length of the disk in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Recognizes images that are not raw disks by their first bytes.
    fn foreign_format(&self) -> Result<Option<&'static str>, SourceError> {
        const MAGICS: [(&[u8], &str); 10] = [
            (b"QFI\xfb", "qcow2"),
            (b"KDMV", "VMDK"),
            (b"# Disk DescriptorFile", "VMDK"),
            (b"vhdxfile", "VHDX"),
            (b"conectix", "VHD"),
            (b"<<< ", "VDI"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"BZh", "bzip2"),
        ];
        let mut head = [0; 64];
        let count = self.length.min(head.len() as u64);
        let head = &mut head[..usize::try_from(count).unwrap_or(0)];
        self.read_at(head, 0)?;
        Ok(MAGICS
            .iter()
            .find(|(magic, _)| head.starts_with(magic))
            .map(|(_, format)| *format))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), SourceError> {
        self.file
            .read_exact_at(out, offset)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => SourceError::Changed {
                    path: self.path.clone(),
                },
                _ => SourceError::Read {
                    path: self.path.clone(),
                    offset,
                    source,
                },
            })
    }

    /// Checks that nobody wrote to the image since it was opened.
    ///
    /// # Errors
    /// Somebody did.
    pub fn check_unchanged(&self) -> Result<(), SourceError> {
        // Opening it makes an NFS client ask its server what another machine did to the file. It may be gone by now.
        let _ = File::open(&self.path);
        match stamp(&self.file) {
            Ok(now) if now == self.stamp => Ok(()),
            _ => Err(SourceError::Changed {
                path: self.path.clone(),
            }),
        }
    }

    /// Returns the next run of data at or after `from`, in whole blocks; `None` at the end.
    ///
    /// The run ends at a block that is a hole as a whole.
    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, SourceError> {
        let block = u64::from(BLOCK_BYTES);
        let Some(start) = self.seek(from, Whence::SeekData)? else {
            return Ok(None);
        };
        let mut end = start;
        loop {
            end = self.seek(end, Whence::SeekHole)?.unwrap_or(self.length);
            end = end.next_multiple_of(block).min(self.length);
            // Data that goes on right behind a hole within one block belongs to the same run.
            match self.seek(end, Whence::SeekData)? {
                Some(next) if next / block * block == end && end < self.length => end = next,
                _ => return Ok(Some((start / block * block).max(from)..end)),
            }
        }
    }

    fn seek(&self, from: u64, whence: Whence) -> Result<Option<u64>, SourceError> {
        if from >= self.length {
            return Ok(None);
        }
        let offset = i64::try_from(from).unwrap_or(i64::MAX);
        match lseek(&self.file, offset, whence) {
            Ok(found) => Ok(Some(found.unsigned_abs())),
            Err(Errno::ENXIO) => Ok(None),
            // Block devices and some file systems know no holes: all is data.
            Err(Errno::EINVAL | Errno::ENOTSUP) => Ok(match whence {
                Whence::SeekData => Some(from),
                _ => None,
            }),
            Err(errno) => Err(SourceError::Read {
                path: self.path.clone(),
                offset: from,
                source: errno.into(),
            }),
        }
    }

    /// Returns how many bytes must be read: all but the holes.
    ///
    /// # Errors
    /// The file cannot be searched.
    pub fn data_bytes(&self) -> Result<u64, SourceError> {
        let (mut at, mut sum) = (0, 0);
        while let Some(run) = self.next_data(at)? {
            sum += run.end - run.start;
            at = run.end;
        }
        Ok(sum)
    }

    /// Reads and cuts the whole disk; hands out its chunks in order, a window at a time, until
    /// `sink` says that nobody wants more.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn cut(
        &self,
        params: &ChunkerParams,
        mut sink: impl FnMut(Batch) -> Wanted,
    ) -> Result<(), SourceError> {
        let mut at = 0;
        while let Some(run) = self.next_data(at)? {
            at = run.end;
            let mut start = run.start;
            while start < run.end {
                let end = run.end.min((start / REGION_BYTES + 1) * REGION_BYTES);
                if self.cut_run(params, start..end, &mut sink)? == Wanted::No {
                    return Ok(());
                }
                start = end;
            }
        }
        Ok(())
    }

    /// Cuts a run of data within one region, at whose ends chunks end.
    fn cut_run(
        &self,
        params: &ChunkerParams,
        run: Range<u64>,
        sink: &mut impl FnMut(Batch) -> Wanted,
    ) -> Result<Wanted, SourceError> {
        let (mut read_to, mut carry) = (run.start, Bytes::new());
        while read_to < run.end {
            let fresh = usize::try_from(run.end - read_to)
                .unwrap_or(usize::MAX)
                .min(WINDOW_BYTES);
            let padded = fresh.next_multiple_of(BLOCK_LEN);
            let mut window = BytesMut::zeroed(carry.len() + padded);
            window[..carry.len()].copy_from_slice(&carry);
            self.read_at(&mut window[carry.len()..carry.len() + fresh], read_to)?;
            let base = read_to - carry.len() as u64;
            read_to += fresh as u64;
            let end = if read_to == run.end {
                End::Region
            } else {
                End::Unknown
            };
            let mut rest = window.freeze();
            let mut batch = Batch {
                fresh_bytes: fresh as u64,
                chunks: Vec::new(),
            };
            let mut block = base / u64::from(BLOCK_BYTES);
            while !rest.is_empty() {
                match params.cut(&rest, end) {
                    Cut::More => break,
                    Cut::Zero { blocks } => {
                        block += blocks as u64;
                        rest = rest.split_off(blocks * BLOCK_LEN);
                    }
                    Cut::Chunk { blocks } => {
                        let behind = rest.split_off(blocks * BLOCK_LEN);
                        batch.chunks.push(CutChunk { block, plain: rest });
                        block += blocks as u64;
                        rest = behind;
                    }
                }
            }
            carry = rest;
            if sink(batch) == Wanted::No {
                return Ok(Wanted::No);
            }
        }
        Ok(Wanted::Yes)
    }
}

/// Whether whoever takes batches wants another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Go on.
    Yes,
    /// Stop: something failed further down.
    No,
}

/// A chunk as it was cut.
#[derive(Clone, Debug)]
pub struct CutChunk {
    /// Its first block on the disk.
    pub block: u64,
    /// Its plain bytes, a whole number of blocks.
    pub plain: Bytes,
}

/// The chunks that ended in one window.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Bytes of the image read for it, for progress.
    pub fresh_bytes: u64,
    /// The chunks, in the order of the disk.
    pub chunks: Vec<CutChunk>,
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let meta = file.metadata()?;
    // A block device has no useful times; its length is checked by reading it.
    let modified = match meta.file_type().is_file() {
        true => (meta.mtime(), meta.mtime_nsec()),
        false => (0, 0),
    };
    Ok(Stamp {
        length: meta.len(),
        modified,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn cut(source: &Source) -> Vec<(u64, Bytes)> {
        let mut chunks = Vec::new();
        let sink = |batch: Batch| {
            chunks.extend(
                batch
                    .chunks
                    .into_iter()
                    .map(|chunk| (chunk.block, chunk.plain)),
            );
            Wanted::Yes
        };
        source.cut(&ChunkerParams::DEFAULT, sink).unwrap();
        chunks
    }

    /// Writes pieces of noise at offsets, with holes between them; `dense` fills the holes.
    fn image(pieces: &[(u64, usize)], length: u64, dense: bool) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        if dense {
            file.write_all(&vec![0; usize::try_from(length).unwrap()])
                .unwrap();
        }
        file.as_file().set_len(length).unwrap();
        for (offset, len) in pieces {
            let noise: Vec<u8> = (0..*len)
                .map(|at| (at * 31 + at / 251).to_le_bytes()[0] | 1)
                .collect();
            let keep = usize::try_from(length.saturating_sub(*offset))
                .unwrap()
                .min(*len);
            file.as_file()
                .write_all_at(&noise[..keep], *offset)
                .unwrap();
        }
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Sparse or dense, the same content is cut the same, and the chunks are the content.
        #[test]
        fn holes_do_not_move_cuts(
            pieces in proptest::collection::vec((0..5_000_000_u64, 1..600_000_usize), 1..5),
            length in 1..6_000_000_u64,
        ) {
            let (sparse, dense) = (image(&pieces, length, false), image(&pieces, length, true));
            let sparse = Source::open(sparse.path(), Probe::Refuse).unwrap();
            let dense = Source::open(dense.path(), Probe::Refuse).unwrap();
            let chunks = cut(&sparse);
            prop_assert_eq!(&chunks, &cut(&dense));
            let mut flat = vec![0; usize::try_from(length).unwrap().next_multiple_of(BLOCK_LEN)];
            let mut expected = flat.clone();
            dense.read_at(&mut expected[..usize::try_from(length).unwrap()], 0).unwrap();
            for (block, plain) in chunks {
                let at = usize::try_from(block).unwrap() * BLOCK_LEN;
                flat[at..at + plain.len()].copy_from_slice(&plain);
            }
            prop_assert!(flat == expected);
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let open = |path: &Path| Source::open(path, Probe::Refuse).unwrap_err().to_string();
        assert!(open(Path::new("/nowhere/x.raw")).starts_with("cannot open `/nowhere/x.raw`"));
        assert!(open(Path::new("/")).contains("is a directory"));
        assert!(open(Path::new("/dev/null")).contains("neither a file"));
        let scratch = tempfile::tempdir().unwrap();
        let pipe = scratch.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(open(&pipe).contains("neither a file"));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(open(empty.path()).contains("is empty"));
        let mut qcow = tempfile::NamedTempFile::new().unwrap();
        qcow.write_all(b"QFI\xfb and more").unwrap();
        assert!(open(qcow.path()).contains("qcow2"));
        assert!(Source::open(qcow.path(), Probe::TakeAsRaw).is_ok());
    }

    #[test]
    fn a_change_while_reading_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"before").unwrap();
        let source = Source::open(file.path(), Probe::Refuse).unwrap();
        source.check_unchanged().unwrap();
        file.write_all(b"after").unwrap();
        assert!(matches!(
            source.check_unchanged(),
            Err(SourceError::Changed { .. })
        ));
    }
}
