//! The structures of an ext4 file system, as far as they say where things lie. Pure: every number is
//! read within bounds, and one that is not there counts as 0.

use std::ops::Range;

use super::Ext4Error;

/// Smallest and largest block, as powers of two over 1 KiB.
const BLOCK_POWER_MAX: u32 = 6;

/// More groups than 16 TiB with the usual blocks have.
const GROUPS_MAX: u64 = 1 << 20;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let field = bytes.get(at..at + 2).and_then(|it| it.try_into().ok());
    field.map_or(0, u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
    field.map_or(0, u32::from_le_bytes)
}

/// A number in two halves.
fn wide(bytes: &[u8], low: usize, high: usize) -> u64 {
    u64::from(u32_at(bytes, low)) | u64::from(u32_at(bytes, high)) << 32
}

/// What the superblock says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) block_bytes: u64,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) groups: u32,
    pub(super) group_blocks: u64,
    pub(super) group_inodes: u32,
    pub(super) inode_bytes: usize,
    pub(super) descriptor_bytes: usize,
    /// Kept behind the descriptors, for more of them.
    pub(super) reserved_blocks: u64,
    pub(super) journal: u32,
    is_wide: bool,
    counts_unused: bool,
    copies: Copies,
}

/// Which groups have a copy of the superblock.
#[derive(Clone, Copy, Debug)]
enum Copies {
    All,
    Powers,
    Listed([u32; 2]),
}

/// What the descriptor of a group says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    /// Inodes of the group up to the last one that was ever used.
    pub(super) inodes_used: u32,
}

impl Layout {
    pub(super) fn decode(superblock: &[u8]) -> Result<Self, Ext4Error> {
        let [compatible, incompatible, read_only] = [92, 96, 100].map(|at| u32_at(superblock, at));
        let has = |features: u32, feature: u32| features & feature != 0;
        if has(incompatible, 0x10) {
            return Err(Ext4Error::MetaGroups);
        }
        let is_wide = has(incompatible, 0x80);
        let blocks = match is_wide {
            true => wide(superblock, 4, 336),
            false => u64::from(u32_at(superblock, 4)),
        };
        let group_blocks = u64::from(u32_at(superblock, 32));
        let first_block = u64::from(u32_at(superblock, 20));
        let power = u32_at(superblock, 24);
        let described = usize::from(u16_at(superblock, 254));
        let layout = Self {
            block_bytes: 1024 << power.min(BLOCK_POWER_MAX),
            blocks,
            first_block,
            groups: 0,
            group_blocks,
            group_inodes: u32_at(superblock, 40),
            inode_bytes: match u32_at(superblock, 76) {
                0 => 128,
                _ => usize::from(u16_at(superblock, 88)),
            },
            descriptor_bytes: if is_wide { described.max(64) } else { 32 },
            reserved_blocks: u64::from(u16_at(superblock, 206)),
            journal: u32_at(superblock, 224),
            is_wide,
            counts_unused: has(read_only, 0x10 | 0x400),
            copies: match (has(compatible, 0x200), has(read_only, 1)) {
                (true, _) => Copies::Listed([588, 592].map(|at| u32_at(superblock, at))),
                (false, true) => Copies::Powers,
                (false, false) => Copies::All,
            },
        };
        let groups = blocks.saturating_sub(first_block).checked_div(group_blocks);
        let groups = groups.map(|_| blocks.saturating_sub(first_block).div_ceil(group_blocks));
        let inodes_fit = (128..=layout.block_bytes).contains(&(layout.inode_bytes as u64))
            && layout.inode_bytes.is_power_of_two();
        let bitmap_bits = layout.block_bytes * 8;
        match groups {
            Some(groups @ 1..=GROUPS_MAX)
                if power <= BLOCK_POWER_MAX
                    && inodes_fit
                    && first_block <= 1
                    && u64::from(layout.group_inodes) <= bitmap_bits
                    && layout.descriptor_bytes <= 1024 =>
            {
                let groups = u32::try_from(groups).map_err(|_| Ext4Error::Superblock)?;
                Ok(Self { groups, ..layout })
            }
            _ => Err(Ext4Error::Superblock),
        }
    }

    /// Blocks of the table of descriptors.
    pub(super) fn descriptor_blocks(&self) -> u64 {
        let bytes = u64::from(self.groups) * self.descriptor_bytes as u64;
        bytes.div_ceil(self.block_bytes)
    }

    /// Blocks of the inodes of one group.
    pub(super) fn inode_table_blocks(&self) -> u64 {
        let bytes = u64::from(self.group_inodes) * self.inode_bytes as u64;
        bytes.div_ceil(self.block_bytes)
    }

    /// Tells whether `group` begins with a superblock, the first one or a copy.
    pub(super) fn has_copy(&self, group: u32) -> bool {
        let is_power = |base: u32| {
            let mut rest = group;
            while rest.is_multiple_of(base) {
                rest /= base;
            }
            rest == 1
        };
        group == 0
            || match self.copies {
                Copies::All => true,
                Copies::Powers => group == 1 || [3, 5, 7].into_iter().any(is_power),
                Copies::Listed(groups) => groups.contains(&group),
            }
    }

    pub(super) fn descriptor(&self, bytes: &[u8]) -> Descriptor {
        let place = |low| match self.is_wide {
            true => wide(bytes, low, low + 32),
            false => u64::from(u32_at(bytes, low)),
        };
        let high = if self.is_wide { u16_at(bytes, 50) } else { 0 };
        let unused = u32::from(u16_at(bytes, 28)) | u32::from(high) << 16;
        let inodes_used = match self.counts_unused {
            // No inode of the group was ever used.
            true if u16_at(bytes, 18) & 1 != 0 => 0,
            true => self.group_inodes.saturating_sub(unused),
            false => self.group_inodes,
        };
        let most = self.blocks;
        Descriptor {
            block_bitmap: place(0).min(most),
            inode_bitmap: place(4).min(most),
            inode_table: place(8).min(most),
            inodes_used,
        }
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Other,
}

/// What an inode says about blocks.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) has_extents: bool,
    /// It has no blocks: what it holds lies in the inode.
    pub(super) is_inline: bool,
    /// The root of its extents, or its list of blocks.
    pub(super) root: [u8; 60],
    /// Block of extended attributes, or 0.
    pub(super) attributes: u64,
}

impl Inode {
    /// Decodes an inode; none if it is not in use.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (mode, links) = (u16_at(bytes, 0), u16_at(bytes, 26));
        if mode == 0 || links == 0 {
            return None;
        }
        let flags = u32_at(bytes, 32);
        let has_extents = flags & 0x8_0000 != 0;
        let format = mode & 0xf000;
        let is_short_link = format == 0xa000 && !has_extents && u32_at(bytes, 4) < 60;
        let is_file = matches!(format, 0x4000 | 0x8000 | 0xa000);
        Some(Self {
            kind: match format {
                0x4000 => Kind::Directory,
                _ => Kind::Other,
            },
            has_extents,
            is_inline: flags & 0x1000_0000 != 0 || is_short_link || !is_file,
            root: bytes.get(40..100)?.try_into().ok()?,
            attributes: u64::from(u32_at(bytes, 104)) | u64::from(u16_at(bytes, 118)) << 32,
        })
    }
}

/// An entry of a node of an extent tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Blocks of the file.
    Leaf(Range<u64>),
    /// Where the next node is.
    Node(u64),
}

impl Extent {
    /// The entries of a node; none where it is none.
    pub(super) fn all(node: &[u8]) -> Vec<Self> {
        if u16_at(node, 0) != 0xf30a {
            return Vec::new();
        }
        let (count, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        let entries = node.get(12..).unwrap_or_default().chunks_exact(12);
        let entry = |bytes: &[u8]| match depth {
            0 => {
                let start = u64::from(u32_at(bytes, 8)) | u64::from(u16_at(bytes, 6)) << 32;
                // Blocks that are taken and not written yet count from 32,768 on.
                let length = match u16_at(bytes, 4) {
                    length @ 0..=0x8000 => u64::from(length),
                    length => u64::from(length) - 0x8000,
                };
                Self::Leaf(start..start + length)
            }
            _ => Self::Node(u64::from(u32_at(bytes, 4)) | u64::from(u16_at(bytes, 8)) << 32),
        };
        entries.take(count).map(entry).collect()
    }
}
