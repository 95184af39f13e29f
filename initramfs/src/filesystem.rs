//! Which file system is this? Told from its first bytes; nothing is mounted to find out.
//!
//! [`Superblock::detect`] wants the first [`HEAD_BYTES`] of a disk or partition and reads only
//! type, UUID and label. The offsets are those of the on-disk formats; every access is checked,
//! for the bytes may be anything.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How much of a device [`Superblock::detect`] looks at: btrfs keeps its superblock at 64 KiB.
pub const HEAD_BYTES: usize = 64 * 1024 + 4096;

/// A file system that can be the root of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext2, ext3 and ext4: one driver for the three.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// EROFS.
    Erofs,
    /// SquashFS.
    Squashfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Ext4,
        Self::Xfs,
        Self::Btrfs,
        Self::Erofs,
        Self::Squashfs,
    ];

    /// Returns the name that `mount -t` takes; the kernel module has the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }

    /// Returns the mount options without which a read-only disk is refused or written to.
    ///
    /// A journal or a log that was not replayed cannot be replayed on a disk that nobody can write (btrfs: Linux 5.9);
    /// XFS besides refuses a second file system with the UUID of a local one.
    pub fn read_only_options(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["noload"],
            Self::Xfs => &["norecovery", "nouuid"],
            Self::Btrfs => &["rescue=nologreplay"],
            Self::Erofs | Self::Squashfs => &[],
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file system name that is not one of [`FileSystem::ALL`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("file system `{0}` is not supported (ext4, xfs, btrfs, erofs, squashfs are)")]
pub struct UnknownFileSystem(String);

impl FromStr for FileSystem {
    type Err = UnknownFileSystem;

    fn from_str(name: &str) -> Result<Self, UnknownFileSystem> {
        match name {
            "ext2" | "ext3" => Ok(Self::Ext4),
            _ => Self::ALL
                .into_iter()
                .find(|filesystem| filesystem.name() == name)
                .ok_or_else(|| UnknownFileSystem(name.to_owned())),
        }
    }
}

/// What the head of a file system says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Its type.
    pub filesystem: FileSystem,
    /// Its UUID, lower case with dashes; SquashFS has none.
    pub uuid: Option<String>,
    /// Its label, if it has one.
    pub label: Option<String>,
}

/// Where a format keeps what we want to know.
struct Format {
    filesystem: FileSystem,
    magic: (usize, &'static [u8]),
    uuid: Option<usize>,
    /// Offset and size of the label.
    label: Option<(usize, usize)>,
}

const FORMATS: [Format; 5] = [
    Format {
        filesystem: FileSystem::Xfs,
        magic: (0, b"XFSB"),
        uuid: Some(32),
        label: Some((108, 12)),
    },
    Format {
        filesystem: FileSystem::Squashfs,
        magic: (0, b"hsqs"),
        uuid: None,
        label: None,
    },
    Format {
        filesystem: FileSystem::Erofs,
        magic: (1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
        uuid: Some(1024 + 48),
        label: Some((1024 + 64, 16)),
    },
    Format {
        filesystem: FileSystem::Btrfs,
        magic: (65_536 + 64, b"_BHRfS_M"),
        uuid: Some(65_536 + 32),
        label: Some((65_536 + 299, 256)),
    },
    // Last: its magic is only two bytes long.
    Format {
        filesystem: FileSystem::Ext4,
        magic: (1024 + 56, &[0x53, 0xef]),
        uuid: Some(1024 + 104),
        label: Some((1024 + 120, 16)),
    },
];

impl Superblock {
    /// Recognises the file system that starts with `head`; `head` may be shorter than
    /// [`HEAD_BYTES`] if the device is.
    pub fn detect(head: &[u8]) -> Option<Self> {
        let format = FORMATS.iter().find(|format| {
            let (offset, magic) = format.magic;
            bytes_at(head, offset, magic.len()) == Some(magic)
        })?;
        Some(Self {
            filesystem: format.filesystem,
            uuid: format.uuid.and_then(|at| uuid_at(head, at)),
            label: format.label.and_then(|(at, size)| label_at(head, at, size)),
        })
    }
}

fn bytes_at(head: &[u8], offset: usize, size: usize) -> Option<&[u8]> {
    head.get(offset..)?.get(..size)
}

fn uuid_at(head: &[u8], offset: usize) -> Option<String> {
    let bytes = bytes_at(head, offset, 16)?;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

fn label_at(head: &[u8], offset: usize, size: usize) -> Option<String> {
    let bytes = bytes_at(head, offset, size)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(size);
    let label = std::str::from_utf8(&bytes[..end]).ok()?;
    (!label.is_empty()).then(|| label.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: [u8; 16] = [
        0x3f, 0x1a, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xff,
    ];

    fn head_with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn ext4_is_known_by_type_uuid_and_label() {
        let head = head_with(&[
            (1080, &[0x53, 0xef]),
            (1128, &UUID),
            (1144, b"cloudimg-rootfs"),
        ]);
        let found = Superblock::detect(&head).unwrap();
        assert_eq!(found.filesystem, FileSystem::Ext4);
        assert_eq!(
            found.uuid.as_deref(),
            Some("3f1a0001-0203-0405-0607-08090a0b0cff")
        );
        assert_eq!(found.label.as_deref(), Some("cloudimg-rootfs"));
    }

    #[test]
    fn each_other_format_is_known_by_its_magic() {
        for (filesystem, offset, magic) in [
            (FileSystem::Xfs, 0, &b"XFSB"[..]),
            (FileSystem::Squashfs, 0, b"hsqs"),
            (FileSystem::Erofs, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
            (FileSystem::Btrfs, 65_600, b"_BHRfS_M"),
        ] {
            let found = Superblock::detect(&head_with(&[(offset, magic)])).unwrap();
            assert_eq!(found.filesystem, filesystem);
            assert_eq!(found.label, None);
        }
    }

    #[test]
    fn an_empty_disk_has_no_file_system() {
        assert_eq!(Superblock::detect(&head_with(&[])), None);
        assert_eq!(Superblock::detect(&[]), None);
    }

    #[test]
    fn every_name_parses_to_itself() {
        for filesystem in FileSystem::ALL {
            assert_eq!(filesystem.name().parse(), Ok(filesystem));
        }
        assert_eq!("ext3".parse(), Ok(FileSystem::Ext4));
        assert!("vfat".parse::<FileSystem>().is_err());
    }

    proptest! {
        /// Any head of any length: an answer, never a panic.
        #[test]
        fn detect_never_panics(mut head in prop::collection::vec(any::<u8>(), 0..2048), magic in any::<bool>()) {
            if magic && head.len() > 1082 { head[1080..1082].copy_from_slice(&[0x53, 0xef]); }
            let _ = Superblock::detect(&head);
        }
    }
}
