//! Reads partition tables: GPT, and MBR with its logical partitions.
//!
//! A [`Scan`] says which bytes of the disk it needs next, and takes them; whoever has the disk reads
//! them. A usual table is in the first [`HEAD_BYTES`].
//!
//! A table is not trusted: it may come from whoever wrote the disk. Every partition that is listed has
//! a length and lies on the disk; they may overlap, because nothing goes wrong then. Bounds: 256
//! entries of a GPT, which are one read of at most 1 MiB; 100 logical partitions (as Linux has it),
//! each read of 512 bytes at another place within the extended one. Checksums are not looked at:
//! that the bytes are those of the disk is known already, or is no question for a table.

use std::ops::Range;

mod mbr;

/// The first read of a [`Scan`]: a GPT header and 128 entries lie in the first 34 sectors of 512
/// bytes, or in the first 6 of 4096.
pub const HEAD_BYTES: usize = 64 * 1024;

/// More than any tool writes; the usual table has 128.
const ENTRIES_MAX: usize = 256;

/// One entry of a partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, counted from 1, as in `/dev/loop0p1`; logical ones begin with 5.
    pub number: u32,
    /// What `PARTUUID=` compares with, lower case.
    pub uuid: String,
    /// What `PARTLABEL=` compares with; MBR has none.
    pub name: Option<String>,
    /// GPT type GUID, lower case; MBR has none.
    pub type_guid: Option<String>,
    /// Offset of its first byte on the disk.
    pub offset: u64,
    /// Its length in bytes, never 0; it ends on the disk.
    pub length: u64,
}

/// Finds the partitions of a disk, read by read.
#[derive(Debug)]
pub struct Scan {
    disk_length: u64,
    next: Next,
    found: Vec<Partition>,
}

/// What a scan waits for.
#[derive(Debug)]
enum Next {
    Head,
    Gpt(Gpt),
    Logical(mbr::Chain),
    Nothing,
}

/// Where the entries of a GPT are.
#[derive(Clone, Debug)]
struct Gpt {
    sector_bytes: u64,
    entry_bytes: usize,
    entries: Range<u64>,
}

impl Scan {
    /// Begins with a disk of `disk_length` bytes.
    pub const fn new(disk_length: u64) -> Self {
        Self {
            disk_length,
            next: Next::Head,
            found: Vec::new(),
        }
    }

    /// The bytes of the disk that are needed next; `None`: none are, any more.
    pub fn wanted(&self) -> Option<Range<u64>> {
        let range = match &self.next {
            Next::Head => 0..HEAD_BYTES as u64,
            Next::Gpt(gpt) => gpt.entries.clone(),
            Next::Logical(chain) => chain.wanted()?,
            Next::Nothing => return None,
        };
        Some(range.start..range.end.min(self.disk_length))
    }

    /// Takes the bytes that were [`Self::wanted`]. Where there are fewer, what lacks is not looked at.
    pub fn feed(&mut self, bytes: &[u8]) {
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Head => self.take_head(bytes),
            Next::Gpt(gpt) => self.take_entries(&gpt, bytes),
            Next::Logical(mut chain) => {
                let logical = chain.take(bytes);
                self.found
                    .extend(logical.into_iter().filter_map(|it| it.on(self.disk_length)));
                self.follow(chain);
            }
            Next::Nothing => {}
        }
    }

    /// What was found, in the order of the table.
    pub fn finish(self) -> Vec<Partition> {
        self.found
    }

    fn take_head(&mut self, head: &[u8]) {
        // As Linux has it: without the entry that protects it, a GPT is what somebody left behind.
        let gpt = [512, 4096]
            .into_iter()
            .filter(|_| mbr::protects_a_gpt(head))
            .find_map(|sector_bytes| gpt(head, sector_bytes));
        if let Some(gpt) = gpt {
            let within = |at: u64| usize::try_from(at).ok();
            let here = within(gpt.entries.start)
                .zip(within(gpt.entries.end))
                .and_then(|(start, end)| head.get(start..end));
            match here {
                Some(entries) => self.take_entries(&gpt, entries),
                None if gpt.entries.start < self.disk_length => self.next = Next::Gpt(gpt),
                None => {}
            }
            return;
        }
        let Some((primary, chain)) = mbr::read(head) else {
            return;
        };
        self.found
            .extend(primary.into_iter().filter_map(|it| it.on(self.disk_length)));
        if let Some(chain) = chain {
            self.follow(chain);
        }
    }

    /// Goes on with a chain, unless it ends, or leads behind the disk.
    fn follow(&mut self, chain: mbr::Chain) {
        let on_disk = |link: Range<u64>| link.end <= self.disk_length;
        if chain.wanted().is_some_and(on_disk) {
            self.next = Next::Logical(chain);
        }
    }

    fn take_entries(&mut self, gpt: &Gpt, bytes: &[u8]) {
        let entries = bytes.chunks_exact(gpt.entry_bytes).zip(1..);
        let found =
            entries.filter_map(|(entry, number)| gpt_entry(entry, number, gpt.sector_bytes));
        // As Linux has it: one that ends behind the disk is none.
        self.found
            .extend(found.filter(|it| it.offset + it.length <= self.disk_length));
    }
}

/// Lists the partitions of a disk of `disk_length` bytes that `read` reads; empty if there is no
/// table.
///
/// # Errors
/// Those of `read`.
pub fn partitions<E>(
    disk_length: u64,
    mut read: impl FnMut(Range<u64>) -> Result<Vec<u8>, E>,
) -> Result<Vec<Partition>, E> {
    let mut scan = Scan::new(disk_length);
    while let Some(wanted) = scan.wanted() {
        scan.feed(&read(wanted)?);
    }
    Ok(scan.finish())
}

/// How much of a disk says how long its sectors are, in bytes.
pub const SECTOR_HEAD_BYTES: usize = 8192;

/// How long the sectors of the disk are that begins with `head`, in bytes, if its GPT counts others than those of 512: it says
/// that by where it begins.
pub fn unusual_sector_bytes(head: &[u8]) -> Option<u32> {
    let is_gpt = |bytes| gpt(head, bytes).is_some();
    (mbr::protects_a_gpt(head) && !is_gpt(512) && is_gpt(4096)).then_some(4096)
}

fn gpt(head: &[u8], sector_bytes: usize) -> Option<Gpt> {
    let header = head.get(sector_bytes..)?;
    if header.get(..8)? != b"EFI PART" {
        return None;
    }
    let count = usize::try_from(u32_at(header, 80)?).ok()?.min(ENTRIES_MAX);
    let entry_bytes = usize::try_from(u32_at(header, 84)?).ok()?;
    if !(128..=4096).contains(&entry_bytes) {
        return None;
    }
    let sector_bytes = sector_bytes as u64;
    let start = u64_at(header, 72)?.checked_mul(sector_bytes)?;
    Some(Gpt {
        sector_bytes,
        entry_bytes,
        entries: start..start.checked_add((count * entry_bytes) as u64)?,
    })
}

fn gpt_entry(entry: &[u8], number: u32, sector_bytes: u64) -> Option<Partition> {
    let type_guid = guid_at(entry, 0)?;
    if entry.get(..16)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let offset = first.checked_mul(sector_bytes)?;
    let length = sectors.checked_mul(sector_bytes)?;
    offset.checked_add(length)?;
    Some(Partition {
        number,
        uuid: guid_at(entry, 16)?,
        name: utf16_name(entry.get(56..128)?),
        type_guid: Some(type_guid),
        offset,
        length,
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

/// A GUID on disk has its first three fields in little-endian order.
fn guid_at(bytes: &[u8], offset: usize) -> Option<String> {
    let guid: &[u8; 16] = bytes.get(offset..)?.first_chunk()?;
    let first = u32_at(guid, 0)?;
    let second = u16::from_le_bytes([guid[4], guid[5]]);
    let third = u16::from_le_bytes([guid[6], guid[7]]);
    let tail: String = guid[10..]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Some(format!(
        "{first:08x}-{second:04x}-{third:04x}-{:02x}{:02x}-{tail}",
        guid[8], guid[9]
    ))
}

fn utf16_name(bytes: &[u8]) -> Option<String> {
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|unit| *unit != 0);
    let name: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// "0fc63daf-8483-4772-8e79-3d69d8477de4", Linux file system data, as it lies on disk.
    const LINUX_DATA: [u8; 16] = [
        0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d,
        0xe4,
    ];

    fn put(disk: &mut [u8], offset: usize, bytes: &[u8]) {
        disk[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// The partitions of the disk that begins with `head` and has zeros behind it.
    fn partitions(head: &[u8]) -> Vec<Partition> {
        on_disk(head, 1 << 40)
    }

    fn on_disk(head: &[u8], length: u64) -> Vec<Partition> {
        let read = |range: Range<u64>| {
            let at = |at: u64| usize::try_from(at).unwrap().min(head.len());
            let mut bytes = head[at(range.start)..at(range.end)].to_vec();
            bytes.resize(usize::try_from(range.end - range.start).unwrap(), 0);
            Ok::<_, std::convert::Infallible>(bytes)
        };
        let Ok(found) = super::partitions(length, read);
        found
    }

    fn gpt_disk(sector: usize) -> Vec<u8> {
        let mut disk = vec![0; HEAD_BYTES];
        put(
            &mut disk,
            446 + 4,
            &[0xee, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        );
        put(&mut disk, 510, &[0x55, 0xaa]);
        put(&mut disk, sector, b"EFI PART");
        put(&mut disk, sector + 72, &2_u64.to_le_bytes());
        put(&mut disk, sector + 80, &128_u32.to_le_bytes());
        put(&mut disk, sector + 84, &128_u32.to_le_bytes());
        let third = 2 * sector + 2 * 128;
        put(&mut disk, third, &LINUX_DATA);
        put(&mut disk, third + 16, &[0x11; 16]);
        put(&mut disk, third + 32, &2048_u64.to_le_bytes());
        put(&mut disk, third + 40, &4095_u64.to_le_bytes());
        put(&mut disk, third + 56, &[b'r', 0, b'o', 0, b'o', 0, b't', 0]);
        disk
    }

    #[test]
    fn a_gpt_entry_keeps_its_number_when_others_are_empty() {
        let found = partitions(&gpt_disk(512));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].number, 3);
        assert_eq!(found[0].uuid, "11111111-1111-1111-1111-111111111111");
        assert_eq!(found[0].name.as_deref(), Some("root"));
        let linux_data = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        assert_eq!(found[0].type_guid.as_deref(), Some(linux_data));
        assert_eq!((found[0].offset, found[0].length), (1 << 20, 1 << 20));
    }

    #[test]
    fn a_gpt_says_how_long_sectors_are() {
        let head = |sector| gpt_disk(sector)[..SECTOR_HEAD_BYTES].to_vec();
        assert_eq!(unusual_sector_bytes(&head(512)), None);
        assert_eq!(unusual_sector_bytes(&head(4096)), Some(4096));
        assert_eq!(unusual_sector_bytes(&[0; SECTOR_HEAD_BYTES]), None);
        assert_eq!(unusual_sector_bytes(b"short"), None);
    }

    #[test]
    fn a_gpt_that_nothing_protects_was_left_behind() {
        let mut disk = gpt_disk(512);
        put(
            &mut disk,
            446 + 4,
            &[0x83, 0, 0, 0, 0, 8, 0, 0, 16, 0, 0, 0],
        );
        let found = partitions(&disk);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, found[0].offset), (1, 2048 * 512));
        put(&mut disk, 510, &[0, 0]);
        assert!(partitions(&disk).is_empty());
    }

    #[test]
    fn a_gpt_of_4096_byte_sectors_is_found() {
        assert_eq!(partitions(&gpt_disk(4096))[0].offset, 2048 * 4096);
    }

    #[test]
    fn a_gpt_entry_that_ends_beyond_any_disk_is_left_out() {
        let mut disk = gpt_disk(512);
        let last = 1_u64 << 55;
        put(&mut disk, 1024 + 256 + 32, &(last - 9).to_le_bytes());
        put(&mut disk, 1024 + 256 + 40, &last.to_le_bytes());
        assert!(partitions(&disk).is_empty());
    }

    #[test]
    fn a_partition_that_ends_behind_the_disk_is_none() {
        let disk = gpt_disk(512);
        assert_eq!(on_disk(&disk, 2 << 20).len(), 1);
        assert_eq!(on_disk(&disk, (2 << 20) - 512), []);
    }

    #[test]
    fn entries_behind_the_head_are_read_there() {
        let mut disk = gpt_disk(512);
        let entries = disk.split_off(1024);
        disk.resize(HEAD_BYTES, 0);
        put(&mut disk, 512 + 72, &1000_u64.to_le_bytes());
        disk.resize(512_000, 0);
        disk.extend(entries);
        assert_eq!(partitions(&disk)[0].number, 3);
        assert_eq!(on_disk(&disk, 500_000), [], "they are behind the disk");
    }

    #[test]
    fn no_count_of_entries_is_too_large_to_ask_for() {
        let mut disk = gpt_disk(512);
        put(&mut disk, 512 + 80, &u32::MAX.to_le_bytes());
        put(&mut disk, 512 + 84, &4096_u32.to_le_bytes());
        let mut scan = Scan::new(u64::MAX);
        scan.feed(&disk);
        assert_eq!(scan.wanted(), Some(1024..1024 + (1 << 20)));
    }

    #[test]
    fn a_disk_without_a_table_has_no_partitions() {
        assert!(partitions(&vec![0; HEAD_BYTES]).is_empty());
        assert!(partitions(&[]).is_empty());
    }

    proptest! {
        /// Any header fields: an answer, never a panic.
        #[test]
        fn partitions_never_panics(fields in prop::collection::vec(any::<u8>(), 24), cut in 0..HEAD_BYTES) {
            let mut disk = gpt_disk(512);
            disk[584..608].copy_from_slice(&fields);
            for found in on_disk(&disk[..cut], cut as u64) {
                prop_assert!(found.length > 0 && found.offset + found.length <= cut as u64);
            }
            let _ = partitions(&disk[..cut]);
        }
    }
}
