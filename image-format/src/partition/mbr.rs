//! MBR: four entries, and a chain of logical partitions in an extended one.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Partition, u32_at};

const SECTOR_BYTES: u64 = 512;

/// As many links of a chain are followed; Linux stops there, too.
const LINKS_MAX: usize = 100;

/// Linux numbers logical partitions from here on.
const FIRST_LOGICAL: u32 = 5;

/// An entry that keeps old tools away from a GPT; if that cannot be read there is no table, as Linux
/// has it.
const PROTECTS_GPT: u8 = 0xee;

/// An entry, in sectors.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

impl Entry {
    /// Whether it holds a chain of logical partitions rather than data.
    const fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    const fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    /// As a partition; an MBR entry has no UUID of its own: the kernel makes one of disk signature
    /// and number.
    fn named(self, signature: u32, number: u32) -> Partition {
        Partition {
            number,
            uuid: format!("{signature:08x}-{number:02x}"),
            name: None,
            type_guid: None,
            offset: self.first * SECTOR_BYTES,
            length: self.sectors * SECTOR_BYTES,
        }
    }
}

impl Partition {
    /// The part of it that is on a disk of `disk_length` bytes, as Linux has it.
    pub(super) fn on(mut self, disk_length: u64) -> Option<Self> {
        self.length = self.length.min(disk_length.saturating_sub(self.offset));
        (self.length > 0).then_some(self)
    }
}

/// The four entries of a sector that ends as a table does. Numbers have 32 bits in it, so that no
/// sum of a few of them is too large.
fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    if sector.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let entry = |slot: usize| {
        let entry = sector.get(446 + slot * 16..)?.get(..16)?;
        let used = Entry {
            kind: entry[4],
            first: u32_at(entry, 8)?.into(),
            sectors: u32_at(entry, 12)?.into(),
        };
        // A boot sector ends like a table: of a file system, it has code or text here.
        matches!(entry[0], 0 | 0x80).then_some(used)
    };
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

/// Whether the table in `head` says that the disk has a GPT.
pub(super) fn protects_a_gpt(head: &[u8]) -> bool {
    entries(head).is_some_and(|entries| entries.iter().any(|entry| entry.kind == PROTECTS_GPT))
}

/// The partitions of the table in `head`, and where logical ones begin; `None`: there is no table.
pub(super) fn read(head: &[u8]) -> Option<(Vec<Partition>, Option<Chain>)> {
    let signature = u32_at(head, 440)?;
    let entries = entries(head)?;
    if entries.iter().any(|entry| entry.kind == PROTECTS_GPT) {
        return None;
    }
    let used = || entries.into_iter().zip(1..).filter(|(it, _)| it.is_used());
    let primary = used().filter(|(entry, _)| !entry.is_extended());
    let primary = primary.map(|(entry, number)| entry.named(signature, number));
    let extended = used().find(|(entry, _)| entry.is_extended());
    let chain = extended.map(|(entry, _)| Chain::new(signature, entry));
    Some((primary.collect(), chain))
}

/// A chain of logical partitions that is being followed.
#[derive(Debug)]
pub(super) struct Chain {
    signature: u32,
    /// The extended partition, in sectors. All links lie in it.
    extended: Range<u64>,
    /// The sector of the next link; `None`: the chain ends.
    link: Option<u64>,
    seen: BTreeSet<u64>,
    number: u32,
}

impl Chain {
    fn new(signature: u32, extended: Entry) -> Self {
        Self {
            signature,
            extended: extended.first..extended.first + extended.sectors,
            link: Some(extended.first),
            seen: BTreeSet::new(),
            number: FIRST_LOGICAL,
        }
    }

    /// The bytes of the next link; `None`: the chain ends.
    pub(super) fn wanted(&self) -> Option<Range<u64>> {
        let start = self.link? * SECTOR_BYTES;
        Some(start..start + SECTOR_BYTES)
    }

    /// Takes a link, and returns what it has: one partition, as a rule.
    pub(super) fn take(&mut self, sector: &[u8]) -> Vec<Partition> {
        let Some((here, entries)) = self.link.take().zip(entries(sector)) else {
            return Vec::new();
        };
        self.seen.insert(here);
        let mut found = Vec::new();
        for (slot, entry) in entries.into_iter().enumerate() {
            if !entry.is_used() || entry.is_extended() {
                continue;
            }
            // Places of data count from the link.
            let data = Entry {
                first: here + entry.first,
                ..entry
            };
            let inside =
                data.first >= self.extended.start && data.first + data.sectors <= self.extended.end;
            // Only two slots have a meaning; some tools wrote what is none into the others.
            if slot < 2 || inside {
                found.push(data.named(self.signature, self.number));
                self.number += 1;
            }
        }
        let next = entries
            .into_iter()
            .find(|it| it.is_used() && it.is_extended());
        // Places of links count from the extended partition.
        let next = next.map(|link| self.extended.start + link.first);
        self.link = next.filter(|next| {
            self.extended.contains(next) && !self.seen.contains(next) && self.seen.len() < LINKS_MAX
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::{Scan, partitions};
    use super::*;

    /// A disk of zeros with entries `(sector, slot, kind, first, sectors)`.
    fn disk(sectors: usize, entries: &[(usize, usize, u8, u32, u32)]) -> Vec<u8> {
        let mut disk = vec![0; sectors * 512];
        disk[440..444].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
        for (sector, slot, kind, first, length) in entries {
            let table = &mut disk[sector * 512..][..512];
            let entry = &mut table[446 + slot * 16..][..16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&first.to_le_bytes());
            entry[12..16].copy_from_slice(&length.to_le_bytes());
            table[510..].copy_from_slice(&[0x55, 0xaa]);
        }
        disk
    }

    fn found(disk: &[u8]) -> Vec<Partition> {
        let read = |range: Range<u64>| {
            let at = |at: u64| usize::try_from(at).unwrap();
            Ok::<_, Infallible>(disk[at(range.start)..at(range.end)].to_vec())
        };
        let Ok(found) = partitions(disk.len() as u64, read);
        found
    }

    /// Number, first sector and sectors of each.
    fn places(disk: &[u8]) -> Vec<(u32, u64, u64)> {
        let place = |it: Partition| (it.number, it.offset / 512, it.length / 512);
        found(disk).into_iter().map(place).collect()
    }

    #[test]
    fn an_entry_is_named_by_disk_signature_and_number() {
        let found = found(&disk(3000, &[(0, 1, 0x83, 2048, 16)]));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, &*found[0].uuid), (2, "deadbeef-02"));
        assert_eq!((found[0].offset, found[0].length), (1 << 20, 8192));
    }

    #[test]
    fn logical_partitions_are_found_along_the_chain() {
        let disk = disk(
            4000,
            &[
                (0, 0, 0x83, 100, 100),
                (0, 1, 0x05, 1000, 2000),
                (1000, 0, 0x83, 10, 50),
                (1000, 1, 0x05, 500, 300),
                (1500, 0, 0x82, 20, 70),
                (1500, 1, 0x05, 1200, 300),
                (2200, 0, 0x83, 1, 5),
            ],
        );
        let expected = [(1, 100, 100), (5, 1010, 50), (6, 1520, 70), (7, 2201, 5)];
        assert_eq!(places(&disk), expected);
    }

    #[test]
    fn a_chain_that_leads_back_ends() {
        let disk = disk(
            4000,
            &[
                (0, 0, 0x05, 1000, 2000),
                (1000, 0, 0x83, 10, 50),
                (1000, 1, 0x05, 500, 300),
                (1500, 0, 0x83, 20, 70),
                (1500, 1, 0x05, 0, 300),
            ],
        );
        assert_eq!(places(&disk), [(5, 1010, 50), (6, 1520, 70)]);
    }

    #[test]
    fn a_chain_has_as_many_links_as_linux_follows() {
        let links = (0..200_usize).flat_map(|link| {
            let next = u32::try_from(link + 1).unwrap();
            [
                (1000 + link, 0, 0x83, 1000, 1),
                (1000 + link, 1, 0x05, next, 1),
            ]
        });
        let entries: Vec<_> = [(0, 0, 0x0f, 1000, 2000)]
            .into_iter()
            .chain(links)
            .collect();
        assert_eq!(places(&disk(4000, &entries)).len(), LINKS_MAX);
    }

    #[test]
    fn what_ends_behind_the_disk_is_cut_there() {
        let entries = [
            (0, 0, 0x83, 900, 1000),
            (0, 1, 0x83, 1000, 1),
            (0, 2, 0x83, u32::MAX, u32::MAX),
            (0, 3, 0x05, u32::MAX, u32::MAX),
        ];
        assert_eq!(places(&disk(1000, &entries)), [(1, 900, 100)]);
    }

    #[test]
    fn the_boot_sector_of_a_file_system_is_no_table() {
        let mut disk = disk(3000, &[(0, 0, 0x83, 2048, 16)]);
        disk[446 + 32..446 + 48].copy_from_slice(b"error, press key");
        assert_eq!(found(&disk), []);
    }

    #[test]
    fn what_protects_a_gpt_is_no_table() {
        let entries = [(0, 0, 0x83, 100, 100), (0, 1, 0xee, 1, 2999)];
        assert_eq!(found(&disk(3000, &entries)), []);
    }

    proptest! {
        /// Any tables anywhere: an end, after a bounded number of reads, and partitions on the disk.
        #[test]
        fn any_chain_ends(
            entries in prop::collection::vec(
                (0..64_usize, 0..4_usize, prop::sample::select(vec![0x05_u8, 0x83, 0]), 0..80_u32, 0..80_u32),
                0..60,
            ),
        ) {
            let disk = disk(64, &entries);
            let (mut scan, mut reads) = (Scan::new(disk.len() as u64), 0);
            while let Some(wanted) = scan.wanted() {
                prop_assert!(wanted.end <= disk.len() as u64);
                let wanted = usize::try_from(wanted.start).unwrap()..usize::try_from(wanted.end).unwrap();
                scan.feed(&disk[wanted]);
                reads += 1;
                prop_assert!(reads <= 1 + LINKS_MAX);
            }
            for it in scan.finish() {
                prop_assert!(it.length > 0 && it.offset + it.length <= disk.len() as u64);
            }
        }
    }
}
