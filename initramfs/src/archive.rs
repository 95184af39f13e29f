//! Turns a [`Tree`] into the bytes that a kernel unpacks: `newc` cpio, then zstd.
//!
//! The same tree gives the same bytes, always: entries in the order of the tree, owner 0,
//! time 0, inode numbers counted from 1, one compression thread.

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::tree::{Node, Tree};

/// The smallest result that is still quick enough for a publish: a few seconds for 20 MB.
const ZSTD_LEVEL: i32 = 19;

/// 8 MiB. The kernel's decompressor takes up to 128 MiB, but must allocate the window while
/// the archive still lies in memory; more than 8 MiB gains nothing on an archive of this size.
const WINDOW_LOG: u32 = 23;

/// Writes `tree` as a `newc` archive.
///
/// # Errors
/// Fails if `out` does, or if a file is 4 GiB or larger, which the format cannot say.
pub fn write_cpio<W: Write>(tree: &Tree, mut out: W) -> io::Result<W> {
    for ((path, node), ino) in tree.nodes().zip(1_u32..) {
        let entry = Builder::new(path).ino(ino);
        let (entry, content): (Builder, &[u8]) = match node {
            Node::Directory => {
                let entry = entry.mode(0o755).nlink(2);
                (entry.set_mode_file_type(ModeFileType::Directory), &[])
            }
            Node::File { bytes, mode } => {
                let entry = entry.mode(*mode & 0o7777);
                (entry.set_mode_file_type(ModeFileType::Regular), bytes)
            }
            Node::Symlink { target } => {
                let entry = entry.mode(0o777);
                let entry = entry.set_mode_file_type(ModeFileType::Symlink);
                (entry, target.as_bytes())
            }
            Node::CharDevice { major, minor } => {
                let entry = entry.mode(0o600).rdev_major(*major).rdev_minor(*minor);
                (entry.set_mode_file_type(ModeFileType::Char), &[])
            }
        };
        let length = u32::try_from(content.len()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("/{path} is too large for a cpio archive"),
            )
        })?;
        let mut writer = entry.write(out, length);
        writer.write_all(content)?;
        out = writer.finish()?;
    }
    trailer(out)
}

/// Compresses an archive so that the kernel can unpack it (Linux 5.9 and later).
///
/// # Errors
/// Fails only if memory runs out inside the compressor.
pub fn compress(archive: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
    compressor.window_log(WINDOW_LOG)?;
    compressor.include_checksum(true)?;
    compressor.compress(archive)
}

/// Whether `packed` unpacks to `archive`. What is longer is not unpacked any further.
#[must_use]
pub fn is_packed_in(archive: &[u8], packed: &[u8]) -> bool {
    zstd::bulk::decompress(packed, archive.len()).is_ok_and(|unpacked| unpacked == archive)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::newc::Reader;

    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.add_file("/init", "program", 0o755).unwrap();
        tree.add_symlink("/bin/sh", "busybox").unwrap();
        let console = Node::CharDevice { major: 5, minor: 1 };
        tree.add("/dev/console", console).unwrap();
        tree
    }

    /// Reads an archive back as (path, mode, content).
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = Reader::new(rest).unwrap();
            let (path, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            if reader.entry().is_trailer() {
                return found;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((path, mode, content));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn what_unpacks_to_the_same_is_the_same_however_it_was_packed() {
        let archive = write_cpio(&sample(), Vec::new()).unwrap();
        let mut longer = archive.clone();
        longer.push(0);
        for level in [1, ZSTD_LEVEL] {
            let packed = |bytes: &[u8]| zstd::bulk::compress(bytes, level).unwrap();
            assert!(is_packed_in(&archive, &packed(&archive)));
            assert!(!is_packed_in(&archive, &packed(&longer)));
            assert!(!is_packed_in(&longer, &packed(&archive)));
            assert!(!is_packed_in(&archive, &packed(&archive)[1..]));
        }
        assert!(!is_packed_in(&archive, &[]));
    }

    #[test]
    fn an_archive_reads_back_as_the_tree() {
        let archive = write_cpio(&sample(), Vec::new()).unwrap();
        let expected = [
            ("bin", 0o040_755, ""),
            ("bin/sh", 0o120_777, "busybox"),
            ("dev", 0o040_755, ""),
            ("dev/console", 0o020_600, ""),
            ("init", 0o100_755, "program"),
        ];
        let expected = expected.map(|(path, mode, text)| (path.to_owned(), mode, text.into()));
        assert_eq!(entries(&archive), expected);
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let archive = |tree: &Tree| compress(&write_cpio(tree, Vec::new()).unwrap()).unwrap();
        assert_eq!(archive(&sample()), archive(&sample()));
    }

    #[test]
    fn the_frame_decodes_within_the_promised_window() {
        let archive = vec![7; 20 << 20];
        let frame = compress(&archive).unwrap();
        let mut decoder = zstd::stream::read::Decoder::new(&frame[..]).unwrap();
        decoder.window_log_max(WINDOW_LOG).unwrap();
        assert_eq!(io::copy(&mut decoder, &mut io::sink()).unwrap(), 20 << 20);
    }
}
