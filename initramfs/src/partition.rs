//! Reads partition tables, GPT and MBR, from the head of a disk.
//!
//! The kernel makes the partition devices; this only says which number has which PARTUUID,
//! name or type, which older kernels do not tell (`PARTUUID` in `uevent` is from Linux 6.12).
//!
//! Bounds: tables of up to 256 entries that lie within the bytes given. Logical MBR
//! partitions are not followed.

/// How much of a disk [`partitions`] needs: a GPT header and 128 entries lie in the first
/// 34 sectors of 512 bytes, or in the first 6 of 4096.
pub const HEAD_BYTES: usize = 64 * 1024;

/// More than any tool writes; the usual table has 128.
const ENTRIES_MAX: usize = 256;

/// One entry of a partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, counted from 1, as in `/dev/loop0p1`.
    pub number: u32,
    /// What `PARTUUID=` compares with, lower case.
    pub uuid: String,
    /// What `PARTLABEL=` compares with; MBR has none.
    pub name: Option<String>,
    /// GPT type GUID, lower case; MBR has none.
    pub type_guid: Option<String>,
    /// Offset of its first byte on the disk.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Lists the partitions of the disk that begins with `head`; empty if there is no table.
pub fn partitions(head: &[u8]) -> Vec<Partition> {
    [512, 4096]
        .into_iter()
        .find_map(|sector_bytes| gpt(head, sector_bytes))
        .or_else(|| mbr(head))
        .unwrap_or_default()
}

fn gpt(head: &[u8], sector_bytes: usize) -> Option<Vec<Partition>> {
    let header = head.get(sector_bytes..)?;
    if header.get(..8)? != b"EFI PART" {
        return None;
    }
    let first = usize::try_from(u64_at(header, 72)?).ok()?;
    let start = first.checked_mul(sector_bytes)?;
    let count = usize::try_from(u32_at(header, 80)?).ok()?.min(ENTRIES_MAX);
    let entry_bytes = usize::try_from(u32_at(header, 84)?).ok()?;
    if !(128..=4096).contains(&entry_bytes) {
        return None;
    }
    let entries = head.get(start..)?.chunks_exact(entry_bytes).take(count);
    Some(
        entries
            .zip(1..)
            .filter_map(|(entry, number)| gpt_entry(entry, number, sector_bytes))
            .collect(),
    )
}

fn gpt_entry(entry: &[u8], number: u32, sector_bytes: usize) -> Option<Partition> {
    let type_guid = guid_at(entry, 0)?;
    if entry.get(..16)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let sector_bytes = u64::try_from(sector_bytes).ok()?;
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

/// An MBR entry has no UUID of its own: the kernel makes one of disk signature and number.
fn mbr(head: &[u8]) -> Option<Vec<Partition>> {
    if head.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let signature = u32_at(head, 440)?;
    let entries = head.get(446..510)?.chunks_exact(16);
    Some(
        entries
            .zip(1_u32..)
            .filter_map(|(entry, number)| {
                let kind = *entry.get(4)?;
                let (first, sectors) = (u32_at(entry, 8)?, u32_at(entry, 12)?);
                (kind != 0 && sectors != 0).then(|| Partition {
                    number,
                    uuid: format!("{signature:08x}-{number:02x}"),
                    name: None,
                    type_guid: None,
                    offset: u64::from(first) * 512,
                    length: u64::from(sectors) * 512,
                })
            })
            .collect(),
    )
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

    fn gpt_disk(sector: usize) -> Vec<u8> {
        let mut disk = vec![0; HEAD_BYTES];
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
    fn an_mbr_entry_is_named_by_disk_signature_and_number() {
        let mut disk = vec![0; 512];
        put(&mut disk, 440, &0xdead_beef_u32.to_le_bytes());
        disk[446 + 16 + 4] = 0x83;
        put(&mut disk, 446 + 16 + 8, &2048_u32.to_le_bytes());
        put(&mut disk, 446 + 16 + 12, &16_u32.to_le_bytes());
        put(&mut disk, 510, &[0x55, 0xaa]);
        let found = partitions(&disk);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uuid, "deadbeef-02");
        assert_eq!((found[0].offset, found[0].length), (1 << 20, 8192));
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
            let _ = partitions(&disk[..cut]);
        }
    }
}
