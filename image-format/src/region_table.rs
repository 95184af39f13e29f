//! The region table: one page digest for each region of the disk, or a hole.
//!
//! Its digest is the **disk digest**: it names the content of a disk for ever. Disks of up to
//! [`DIRECT_REGIONS_MAX`] regions (64 GiB) have one table; longer ones a root table of leaf
//! tables, fetched when they are first touched, so that opening a disk of any size moves little.
//! Layout: docs/FORMAT.md, "Region table".

use crate::codec::{DecodeError, Reader};
use crate::digest::{DIGEST_BYTES, Digest};
use crate::geometry::{DISK_BYTES_MAX, regions_for};

const ROOT_MAGIC: &[u8; 8] = b"CIRCRGNT";
const LEAF_MAGIC: &[u8; 8] = b"CIRCRGNL";
const ROOT: &str = "region table";
const LEAF: &str = "leaf of a region table";
const ROOT_HEADER_BYTES: usize = 24;
const LEAF_HEADER_BYTES: usize = 16;

/// The most regions of a table with one level, and of a leaf: 1,024 are 64 GiB and 32 KiB of table.
pub const DIRECT_REGIONS_MAX: u32 = 1024;

/// The most leaves of a table.
pub const LEAVES_MAX: u32 = 4096;

/// The longest region table, in bytes.
pub const TABLE_BYTES_MAX: usize = ROOT_HEADER_BYTES + LEAVES_MAX as usize * DIGEST_BYTES;

/// The longest leaf, in bytes.
pub const LEAF_BYTES_MAX: usize = LEAF_HEADER_BYTES + DIRECT_REGIONS_MAX as usize * DIGEST_BYTES;

/// In the bytes, a hole is a digest of zeros (no bytes are known to have it).
const HOLE: [u8; DIGEST_BYTES] = [0; DIGEST_BYTES];

/// Where the index of a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The region is all zeros.
    Hole,
    /// In this page.
    Page(Digest),
    /// The leaf table with this digest tells: ask it for `slot`.
    Leaf {
        /// Names the leaf.
        leaf: Digest,
        /// Which leaf it is, counted from 0.
        number: u32,
        /// Which of its regions to ask for.
        slot: u32,
    },
}

/// The decoded table that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionTable {
    disk_length: u64,
    slots: Vec<Option<Digest>>,
}

/// A decoded leaf of a table with two levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafTable {
    slots: Vec<Option<Digest>>,
}

/// A region table as it is stored: the table, and the leaves that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedTable {
    /// The bytes of the table; their digest is the disk digest.
    pub root: Vec<u8>,
    /// The bytes of its leaves; empty for disks of up to 64 GiB.
    pub leaves: Vec<Vec<u8>>,
}

impl RegionTable {
    /// Encodes the table of a disk of `disk_length` bytes with these pages, one slot a region.
    ///
    /// # Panics
    /// If the number of pages is not that of the disk's regions, or the disk is empty or longer
    /// than [`DISK_BYTES_MAX`].
    pub fn encode(disk_length: u64, pages: &[Option<Digest>]) -> EncodedTable {
        assert!(
            disk_length > 0 && disk_length <= DISK_BYTES_MAX,
            "the disk's length was checked"
        );
        assert_eq!(
            pages.len() as u64,
            regions_for(disk_length),
            "one page or hole for each region"
        );
        if pages.len() <= DIRECT_REGIONS_MAX as usize {
            return EncodedTable {
                root: encode_root(disk_length, pages),
                leaves: Vec::new(),
            };
        }
        let mut leaves = Vec::new();
        let slots: Vec<_> = pages
            .chunks(DIRECT_REGIONS_MAX as usize)
            .map(|part| {
                part.iter().any(Option::is_some).then(|| {
                    let leaf = encode_leaf(part);
                    let digest = Digest::of(&leaf);
                    leaves.push(leaf);
                    digest
                })
            })
            .collect();
        EncodedTable {
            root: encode_root(disk_length, &slots),
            leaves,
        }
    }

    /// Decodes a table.
    ///
    /// # Errors
    /// The bytes are no region table.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(ROOT, bytes, TABLE_BYTES_MAX)?;
        reader.magic(ROOT_MAGIC)?;
        reader.version_1()?;
        reader.zero_u16()?;
        let count = reader.u32()?;
        let disk_length = reader.u64()?;
        if disk_length == 0 || disk_length > DISK_BYTES_MAX {
            return Err(DecodeError::invalid(
                ROOT,
                "the disk has an impossible length",
            ));
        }
        if u64::from(count) != n_slots(disk_length) {
            return Err(DecodeError::invalid(
                ROOT,
                "the number of slots does not fit the disk's length",
            ));
        }
        let slots = read_slots(&mut reader, count)?;
        reader.end()?;
        Ok(Self { disk_length, slots })
    }

    /// Encodes the table as it was decoded.
    pub fn bytes(&self) -> Vec<u8> {
        encode_root(self.disk_length, &self.slots)
    }

    /// Returns the length of the disk in bytes.
    pub const fn disk_length(&self) -> u64 {
        self.disk_length
    }

    /// Returns how many regions the disk has.
    pub fn n_regions(&self) -> u32 {
        u32::try_from(regions_for(self.disk_length)).expect("bounded by DISK_BYTES_MAX")
    }

    /// Tells whether the table has leaves.
    fn has_leaves(&self) -> bool {
        self.n_regions() > DIRECT_REGIONS_MAX
    }

    /// Returns the leaves: number and digest of each that is not all hole. None for short disks.
    pub fn leaves(&self) -> impl Iterator<Item = (u32, Digest)> {
        let slots = if self.has_leaves() {
            &self.slots[..]
        } else {
            &[]
        };
        (0..)
            .zip(slots)
            .filter_map(|(number, slot)| slot.map(|digest| (number, digest)))
    }

    /// Tells where the index of `region` is. Regions past the end are holes.
    pub fn lookup(&self, region: u32) -> Lookup {
        let at = |index: u32| self.slots.get(index as usize).copied().flatten();
        if !self.has_leaves() {
            return at(region).map_or(Lookup::Hole, Lookup::Page);
        }
        let number = region / DIRECT_REGIONS_MAX;
        at(number).map_or(Lookup::Hole, |leaf| Lookup::Leaf {
            leaf,
            number,
            slot: region % DIRECT_REGIONS_MAX,
        })
    }

    /// Returns how many slots the leaf `number` must have.
    pub fn leaf_slots(&self, number: u32) -> u32 {
        let before = number.saturating_mul(DIRECT_REGIONS_MAX);
        self.n_regions()
            .saturating_sub(before)
            .min(DIRECT_REGIONS_MAX)
    }
}

impl LeafTable {
    /// Decodes the leaf `number` of `table`.
    ///
    /// # Errors
    /// The bytes are no leaf, or not one of this length.
    pub fn decode(bytes: &[u8], table: &RegionTable, number: u32) -> Result<Self, DecodeError> {
        let leaf = Self::decode_any(bytes)?;
        if leaf.slots.len() == table.leaf_slots(number) as usize {
            Ok(leaf)
        } else {
            Err(DecodeError::invalid(
                LEAF,
                "the number of slots does not fit its place",
            ))
        }
    }

    /// Decodes a leaf whose place is not known.
    ///
    /// # Errors
    /// The bytes are no leaf.
    pub fn decode_any(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(LEAF, bytes, LEAF_BYTES_MAX)?;
        reader.magic(LEAF_MAGIC)?;
        reader.version_1()?;
        reader.zero_u16()?;
        let count = reader.u32()?;
        if count > DIRECT_REGIONS_MAX {
            return Err(DecodeError::invalid(LEAF, "it has too many slots"));
        }
        let slots = read_slots(&mut reader, count)?;
        reader.end()?;
        if slots.iter().all(Option::is_none) {
            return Err(DecodeError::invalid(LEAF, "all of it is a hole"));
        }
        Ok(Self { slots })
    }

    /// Returns the page of the region in `slot`, or `None` for a hole.
    pub fn page(&self, slot: u32) -> Option<Digest> {
        self.slots.get(slot as usize).copied().flatten()
    }

    /// Encodes the leaf. [`LeafTable::decode_any`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        encode_leaf(&self.slots)
    }
}

const fn n_slots(disk_length: u64) -> u64 {
    let regions = regions_for(disk_length);
    if regions <= DIRECT_REGIONS_MAX as u64 {
        regions
    } else {
        regions.div_ceil(DIRECT_REGIONS_MAX as u64)
    }
}

fn read_slots(reader: &mut Reader<'_>, count: u32) -> Result<Vec<Option<Digest>>, DecodeError> {
    (0..count)
        .map(|_| {
            let bytes = reader.array()?;
            Ok((bytes != HOLE).then(|| Digest::from_bytes(bytes)))
        })
        .collect()
}

fn write_slots(out: &mut Vec<u8>, slots: &[Option<Digest>]) {
    for slot in slots {
        out.extend_from_slice(slot.as_ref().map_or(&HOLE, |digest| digest.as_bytes()));
    }
}

fn write_head(out: &mut Vec<u8>, magic: &[u8; 8], count: usize) {
    let count = u32::try_from(count).expect("at most 4,096 slots");
    out.extend_from_slice(magic);
    out.extend_from_slice(&1_u16.to_le_bytes());
    out.extend_from_slice(&0_u16.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
}

fn encode_root(disk_length: u64, slots: &[Option<Digest>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROOT_HEADER_BYTES + slots.len() * DIGEST_BYTES);
    write_head(&mut out, ROOT_MAGIC, slots.len());
    out.extend_from_slice(&disk_length.to_le_bytes());
    write_slots(&mut out, slots);
    out
}

fn encode_leaf(slots: &[Option<Digest>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(LEAF_HEADER_BYTES + slots.len() * DIGEST_BYTES);
    write_head(&mut out, LEAF_MAGIC, slots.len());
    write_slots(&mut out, slots);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::REGION_BYTES;

    fn pages(n: u64, every: u64) -> Vec<Option<Digest>> {
        (0..n)
            .map(|at| (at % every == 0).then(|| Digest::of(&at.to_le_bytes())))
            .collect()
    }

    /// Looks a region up as a reader does, through root and leaf.
    fn find(table: &EncodedTable, region: u32) -> Option<Digest> {
        let root = RegionTable::decode(&table.root).unwrap();
        match root.lookup(region) {
            Lookup::Hole => None,
            Lookup::Page(page) => Some(page),
            Lookup::Leaf { leaf, number, slot } => {
                let bytes = table
                    .leaves
                    .iter()
                    .find(|bytes| Digest::of(bytes) == leaf)
                    .unwrap();
                LeafTable::decode(bytes, &root, number).unwrap().page(slot)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]

        /// Whatever the number of levels, each region has the page it was given.
        #[test]
        fn every_region_is_found(n in 1..3000_u64, every in 1..2000_u64, less in 0..REGION_BYTES) {
            let pages = pages(n, every);
            let table = RegionTable::encode(n * REGION_BYTES - less, &pages);
            for (region, page) in (0..).zip(&pages) {
                prop_assert_eq!(find(&table, region), *page);
            }
        }
    }

    #[test]
    fn a_sparse_tebibyte_has_a_small_table() {
        let regions = (1_u64 << 40) / REGION_BYTES;
        let table = RegionTable::encode(1 << 40, &pages(regions, regions));
        assert_eq!((table.root.len(), table.leaves.len()), (24 + 16 * 32, 1));
    }

    #[test]
    fn impossible_tables_are_refused() {
        let good = RegionTable::encode(3 * REGION_BYTES, &pages(3, 2)).root;
        assert!(RegionTable::decode(&good).is_ok());
        assert!(RegionTable::decode(&good[..good.len() - 1]).is_err());
        let mut other_length = good.clone();
        other_length[16..24].copy_from_slice(&(9 * REGION_BYTES).to_le_bytes());
        assert!(RegionTable::decode(&other_length).is_err());
        let mut newer = good;
        newer[8] = 2;
        assert!(matches!(
            RegionTable::decode(&newer),
            Err(DecodeError::Version { version: 2, .. })
        ));
    }
}
