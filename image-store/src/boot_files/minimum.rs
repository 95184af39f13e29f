//! Makes the initrd with the least versions of metadata: a `newc` archive of one file, not compressed.
//!
//! Its length is a whole number of 512-byte blocks. What a boot loader puts behind it therefore begins
//! where a kernel looks for the next archive, whether or not the loader aligns it.

use std::io::{self, Write as _};

use cpio::newc::{Builder, ModeFileType, trailer};
use image_format::minimum::{self, MINIMUM_IN_GUEST, Minimum};
use tough::schema::{RoleType, Root};

use crate::trust::Current;

/// What archives are padded to.
const BLOCK_BYTES: usize = 512;

/// Says which versions are current, and since when at most.
pub(super) fn of(current: &Current, now: u64) -> Minimum {
    let root = &current.root.signed;
    Minimum {
        root: root.version.get(),
        timestamp: current.timestamp.signed.version.get(),
        snapshot: current.snapshot.signed.version.get(),
        targets: current.targets.signed.version.get(),
        keys: Some(minimum::keys(
            &key_ids(root, RoleType::Timestamp),
            &key_ids(root, RoleType::Snapshot),
        )),
        written: i64::try_from(now).ok(),
    }
}

fn key_ids(root: &Root, role: RoleType) -> Vec<&[u8]> {
    let keys = root.roles.get(&role).into_iter();
    keys.flat_map(|keys| &keys.keyids)
        .map(|id| &id[..])
        .collect()
}

/// Makes the initrd. Equal minimums make equal bytes.
///
/// # Panics
/// Never: memory can be written.
pub(super) fn initrd(minimum: &Minimum) -> Vec<u8> {
    let mut archive = archive(&minimum.encode()).expect("memory can be written");
    let bytes = archive.len().next_multiple_of(BLOCK_BYTES);
    archive.resize(bytes, 0);
    archive
}

/// The file, after the directories that it lies in: a kernel makes none by itself.
fn archive(document: &[u8]) -> io::Result<Vec<u8>> {
    let path = MINIMUM_IN_GUEST.trim_start_matches('/');
    let directories = path.match_indices('/').map(|(end, _)| &path[..end]);
    let mut out = Vec::new();
    let mut ino = 0;
    for directory in directories {
        ino += 1;
        let entry = Builder::new(directory).ino(ino).mode(0o755).nlink(2);
        let entry = entry.set_mode_file_type(ModeFileType::Directory);
        out = entry.write(out, 0).finish()?;
    }
    let entry = Builder::new(path).ino(ino + 1).mode(0o600);
    let entry = entry.set_mode_file_type(ModeFileType::Regular);
    let length = u32::try_from(document.len()).map_err(io::Error::other)?;
    let mut file = entry.write(out, length);
    file.write_all(document)?;
    trailer(file.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use cpio::newc::Reader;
    use image_format::Digest;
    use proptest::prelude::*;

    use super::*;

    /// Path, mode and content of an entry.
    type Unpacked = (String, u32, Vec<u8>);

    /// Reads an archive as a kernel does; returns its entries, and what is left.
    fn unpack(archive: &[u8]) -> (Vec<Unpacked>, &[u8]) {
        let mut found = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = Reader::new(rest).unwrap();
            let (path, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            let is_last = reader.entry().is_trailer();
            rest = reader.finish().unwrap();
            if is_last {
                return (found, rest);
            }
            found.push((path, mode, content));
        }
    }

    proptest! {
        /// Whatever the numbers, the archive has the file in its directories, and ends with a block.
        #[test]
        fn the_initrd_has_the_minimum_and_ends_where_the_next_one_may_begin(
            numbers in prop::array::uniform4(1..u64::MAX), written in prop::option::of(0..i64::MAX),
        ) {
            let [root, timestamp, snapshot, targets] = numbers;
            let keys = written.map(|_| Digest::of(b"keys"));
            let minimum = Minimum { root, timestamp, snapshot, targets, keys, written };
            let initrd = initrd(&minimum);
            prop_assert_eq!(initrd.len() % BLOCK_BYTES, 0);
            let (entries, rest) = unpack(&initrd);
            prop_assert!(rest.iter().all(|byte| *byte == 0));
            let [etc, circular, file] = &entries[..] else { panic!("{entries:?}") };
            prop_assert_eq!((etc.0.as_str(), etc.1), ("etc", 0o040_755));
            prop_assert_eq!((circular.0.as_str(), circular.1), ("etc/circular", 0o040_755));
            prop_assert_eq!((file.0.as_str(), file.1), ("etc/circular/minimum.json", 0o100_600));
            prop_assert_eq!(Minimum::decode(&file.2).unwrap(), minimum);
        }
    }
}
