//! Which part of the disk is the root: reads `root=`, and picks among what is there.
//!
//! Pure. The disk is the image's, on whatever loop device; device names of other machines
//! (`/dev/vda1`) are taken for the number of the partition that they mean.

use std::str::FromStr;

use image_format::partition::Partition;

use crate::filesystem::Superblock;

/// GPT types that say "this is the root": the Discoverable Partitions Specification's types for
/// x86-64 and 64-bit ARM.
const ROOT_TYPES: [&str; 2] = [
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "b921b045-1df0-41c3-af44-4c6f280d3fae",
];

/// Says which part of the disk is the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSpec {
    /// All of it.
    WholeDisk,
    /// The partition of this number.
    Number(u32),
    /// `PARTUUID=`, lower case.
    PartitionUuid(String),
    /// `PARTLABEL=`
    PartitionName(String),
    /// `UUID=` of the file system, lower case.
    Uuid(String),
    /// `LABEL=` of the file system.
    Label(String),
}

/// A `root=` that names no part of a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("root={0} names no part of the image's disk")]
pub struct RootSpecError(String);

impl FromStr for RootSpec {
    type Err = RootSpecError;

    fn from_str(text: &str) -> Result<Self, RootSpecError> {
        let refused = || RootSpecError(text.to_owned());
        if let Some(name) = text.strip_prefix("/dev/") {
            return match name.strip_prefix("disk/") {
                Some(link) => by_link(link),
                None => by_device(name),
            }
            .ok_or_else(refused);
        }
        let (key, value) = text.split_once('=').ok_or_else(refused)?;
        by_key(key, value.trim_matches('"')).ok_or_else(refused)
    }
}

fn by_key(key: &str, value: &str) -> Option<RootSpec> {
    if value.is_empty() || value.contains('/') {
        return None;
    }
    Some(match key {
        "PARTUUID" => RootSpec::PartitionUuid(value.to_ascii_lowercase()),
        "PARTLABEL" => RootSpec::PartitionName(value.to_owned()),
        "UUID" => RootSpec::Uuid(value.to_ascii_lowercase()),
        "LABEL" => RootSpec::Label(value.to_owned()),
        _ => return None,
    })
}

fn by_link(link: &str) -> Option<RootSpec> {
    let (directory, value) = link.split_once('/')?;
    let key = directory.strip_prefix("by-")?.to_ascii_uppercase();
    by_key(&key, value)
}

/// `vda1`, `sda`, `nvme0n1p2`, `loop0p1`: disks whose name ends in a digit put a `p` before
/// the number of the partition.
fn by_device(name: &str) -> Option<RootSpec> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = |text: &str| match text.parse() {
        Ok(0) | Err(_) => None,
        Ok(number) => Some(RootSpec::Number(number)),
    };
    let stem = name.trim_end_matches(|character: char| character.is_ascii_digit());
    let tail = &name[stem.len()..];
    let letters = ["sd", "vd", "xvd", "hd"];
    if let Some(disk) = letters.iter().find_map(|kind| stem.strip_prefix(kind)) {
        let lettered = !disk.is_empty() && disk.bytes().all(|byte| byte.is_ascii_lowercase());
        return match tail {
            _ if !lettered => None,
            "" => Some(RootSpec::WholeDisk),
            _ => number(tail),
        };
    }
    let numbered = ["nvme", "mmcblk", "loop", "nbd"];
    let disk = numbered.iter().find_map(|kind| name.strip_prefix(kind))?;
    let (disk, partition) = match disk.split_once('p') {
        Some((disk, partition)) => (disk, Some(partition)),
        None => (disk, None),
    };
    if !disk.split('n').all(digits) {
        return None;
    }
    partition.map_or(Some(RootSpec::WholeDisk), number)
}

/// A device that could be the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its path, such as `/dev/loop0p1`.
    pub device: String,
    /// Its entry in the partition table; `None` is the whole disk.
    pub partition: Option<Partition>,
    /// The file system on it, if it is a known one.
    pub superblock: Option<Superblock>,
}

impl Candidate {
    fn is(&self, spec: &RootSpec) -> bool {
        let partition = self.partition.as_ref();
        let superblock = self.superblock.as_ref();
        match spec {
            RootSpec::WholeDisk => partition.is_none(),
            RootSpec::Number(number) => partition.is_some_and(|part| part.number == *number),
            RootSpec::PartitionUuid(uuid) => partition.is_some_and(|part| part.uuid == *uuid),
            RootSpec::PartitionName(name) => {
                partition.is_some_and(|part| part.name.as_ref() == Some(name))
            }
            RootSpec::Uuid(uuid) => superblock.is_some_and(|fs| fs.uuid.as_ref() == Some(uuid)),
            RootSpec::Label(label) => superblock.is_some_and(|fs| fs.label.as_ref() == Some(label)),
        }
    }

    /// Describes the candidate in a line, for someone who must find out why none fits.
    pub fn describe(&self) -> String {
        let mut text = self.device.clone();
        if let Some(partition) = &self.partition {
            text.push_str(&format!(" PARTUUID={}", partition.uuid));
            if let Some(name) = &partition.name {
                text.push_str(&format!(" PARTLABEL={name}"));
            }
        }
        match &self.superblock {
            Some(found) => {
                text.push_str(&format!(" {}", found.filesystem));
                for (key, value) in [("UUID", &found.uuid), ("LABEL", &found.label)] {
                    if let Some(value) = value {
                        text.push_str(&format!(" {key}={value}"));
                    }
                }
            }
            None => text.push_str(" (no known file system)"),
        }
        text
    }
}

/// Picks the root among `candidates`.
///
/// What the command line asks for decides, then what the publisher recorded; without either
/// the whole disk if it has a file system, a partition of a root type, or the only partition with
/// a file system.
pub fn choose<'a>(
    asked: Option<&RootSpec>,
    recorded: Option<&RootSpec>,
    candidates: &'a [Candidate],
) -> Option<&'a Candidate> {
    if let Some(spec) = asked.or(recorded) {
        return candidates.iter().find(|candidate| candidate.is(spec));
    }
    let known = || {
        candidates
            .iter()
            .filter(|candidate| candidate.superblock.is_some())
    };
    let typed = |candidate: &&Candidate| {
        let partition = candidate.partition.as_ref();
        let type_guid = partition.and_then(|part| part.type_guid.as_deref());
        type_guid.is_some_and(|guid| ROOT_TYPES.contains(&guid))
    };
    let only = || match known().collect::<Vec<_>>()[..] {
        [only] => Some(only),
        _ => None,
    };
    known()
        .find(|candidate| candidate.partition.is_none())
        .or_else(|| known().find(typed))
        .or_else(only)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filesystem::FileSystem;

    fn candidate(number: u32, type_guid: &str, filesystem: Option<FileSystem>) -> Candidate {
        Candidate {
            device: format!("/dev/loop0p{number}"),
            partition: Some(Partition {
                number,
                uuid: format!("uuid-{number}"),
                name: Some(format!("name {number}")),
                type_guid: Some(type_guid.to_owned()),
                offset: 0,
                length: 0,
            }),
            superblock: filesystem.map(|filesystem| Superblock {
                filesystem,
                uuid: Some(format!("fs-{number}")),
                label: Some(format!("label{number}")),
            }),
        }
    }

    fn whole(filesystem: Option<FileSystem>) -> Candidate {
        Candidate {
            device: "/dev/loop0".to_owned(),
            partition: None,
            ..candidate(9, "", filesystem)
        }
    }

    const EXT4: Option<FileSystem> = Some(FileSystem::Ext4);

    #[test]
    fn every_way_to_name_a_root_is_read() {
        for (text, spec) in [
            ("PARTUUID=AB-1", RootSpec::PartitionUuid("ab-1".to_owned())),
            ("UUID=Ab-1", RootSpec::Uuid("ab-1".to_owned())),
            ("LABEL=Root", RootSpec::Label("Root".to_owned())),
            ("LABEL=\"a b\"", RootSpec::Label("a b".to_owned())),
            ("PARTLABEL=r", RootSpec::PartitionName("r".to_owned())),
            ("/dev/disk/by-label/r", RootSpec::Label("r".to_owned())),
            (
                "/dev/disk/by-partuuid/A",
                RootSpec::PartitionUuid("a".to_owned()),
            ),
            ("/dev/vda", RootSpec::WholeDisk),
            ("/dev/sda12", RootSpec::Number(12)),
            ("/dev/xvda1", RootSpec::Number(1)),
            ("/dev/nvme0n1", RootSpec::WholeDisk),
            ("/dev/nvme0n1p3", RootSpec::Number(3)),
            ("/dev/loop0p1", RootSpec::Number(1)),
            ("/dev/mmcblk0p2", RootSpec::Number(2)),
        ] {
            assert_eq!(text.parse(), Ok(spec), "{text}");
        }
    }

    #[test]
    fn what_names_no_part_of_the_disk_is_refused() {
        for text in [
            "",
            "LABEL=",
            "/dev/nfs",
            "/dev/ram0",
            "/dev/mapper/vg-root",
            "/dev/vda0",
            "live:http://h/",
            "PARTUUID=a/PARTNROFF=1",
            "/dev/nvmep1",
            "/dev/sd1",
        ] {
            assert!(text.parse::<RootSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_beats_the_record() {
        let candidates = [whole(None), candidate(1, "", EXT4), candidate(2, "", EXT4)];
        let (one, two) = (RootSpec::Number(1), RootSpec::Label("label2".to_owned()));
        let chosen = choose(Some(&two), Some(&one), &candidates).unwrap();
        assert_eq!(chosen.device, "/dev/loop0p2");
        let chosen = choose(None, Some(&one), &candidates).unwrap();
        assert_eq!(chosen.device, "/dev/loop0p1");
    }

    #[test]
    fn an_unkept_wish_is_not_guessed_away() {
        let candidates = [candidate(1, "", EXT4)];
        assert_eq!(choose(Some(&RootSpec::Number(2)), None, &candidates), None);
    }

    #[test]
    fn without_a_wish_the_only_or_typed_file_system_is_the_root() {
        let chosen = |candidates: &[Candidate]| {
            choose(None, None, candidates).map(|found| found.device.clone())
        };
        let loop0 = Some("/dev/loop0".to_owned());
        assert_eq!(chosen(&[whole(EXT4), candidate(1, "", EXT4)]), loop0);
        let second = Some("/dev/loop0p2".to_owned());
        let typed = candidate(2, ROOT_TYPES[0], EXT4);
        assert_eq!(
            chosen(&[whole(None), candidate(1, "", EXT4), typed]),
            second
        );
        assert_eq!(
            chosen(&[candidate(1, "", None), candidate(2, "", EXT4)]),
            second
        );
        assert_eq!(
            chosen(&[candidate(1, "", EXT4), candidate(2, "", EXT4)]),
            None
        );
    }

    #[test]
    fn a_description_says_all_that_root_can_name() {
        let text = candidate(1, "", EXT4).describe();
        let expected = "/dev/loop0p1 PARTUUID=uuid-1 PARTLABEL=name 1 ext4 UUID=fs-1 LABEL=label1";
        assert_eq!(text, expected);
    }

    proptest! {
        /// Any text: an answer, never a panic.
        #[test]
        fn parsing_never_panics(text in "(/dev/)?[a-z0-9=/\"-]{0,20}") {
            let _ = text.parse::<RootSpec>();
        }
    }
}
