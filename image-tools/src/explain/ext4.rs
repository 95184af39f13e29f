//! Walks an ext4 file system once and says what each of its blocks is for.
//!
//! The reader of file contents that publishing uses does not tell where they lie, so this one reads
//! the metadata itself: group descriptors, inodes, extents or block lists, and directories for the
//! names. Layout: the kernel's Documentation/filesystems/ext4. A journal that was not replayed is not
//! looked at. What makes no sense is left out of the map; nothing here trusts the image.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use super::disk::Disk;
use super::map::Owner;

mod layout;

use layout::{Extent, Inode, Kind, Layout, u16_at, u32_at};

/// Inode of the root directory.
const ROOT: u32 = 2;

/// Inode that holds blocks for more group descriptors.
const RESIZE: u32 = 7;

/// Deepest directory whose path is spelled out.
const DEPTH_MAX: usize = 128;

/// Levels of an extent tree or a block list; the format has 5 and 3.
const LEVELS_MAX: u32 = 5;

/// Most bytes of a directory that are looked through.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// Blocks beyond twice those of the file system that may be used: those of one that is damaged could be without an end.
const BUDGET_MORE: u64 = 1 << 16;

/// Why a file system cannot be walked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum Ext4Error {
    #[error("cannot read the disk")]
    Read(#[from] io::Error),
    #[error("the ext4 file system has a superblock that makes no sense")]
    Superblock,
    #[error(
        "the ext4 file system keeps its group descriptors apart (meta_bg), which is not known here"
    )]
    MetaGroups,
    #[error("the ext4 file system is longer than the disk that it is on")]
    Cut,
    #[error("the ext4 file system gives its blocks to several owners")]
    Shared,
    #[error("the ext4 file system has more than {most} files and parts of files")]
    Many { most: usize },
}

/// Bytes of a disk, and whose they are.
pub type Span = (Range<u64>, Owner);

/// What the ext4 file systems of a disk use, and why some say nothing.
pub type Walked = (Vec<Span>, Vec<(String, Ext4Error)>);

/// Lists what all ext4 file systems of `disk` use. Where there are several, paths begin with the partition.
/// The spans of a file are in the order of the file. A file system with more than `most` spans says nothing: their
/// paths take memory.
///
/// # Errors
/// The disk cannot be read.
pub fn walk_all(disk: &mut Disk, most: usize) -> io::Result<Walked> {
    let volumes = disk.ext4_volumes()?;
    let (mut spans, mut failed) = (Vec::new(), Vec::new());
    for (number, offset) in &volumes {
        let prefix = match volumes.len() {
            1 => String::new(),
            _ => format!("partition {number}: "),
        };
        match walk_up_to(disk, *offset, &prefix, most) {
            Ok(more) => spans.extend(more),
            Err(error) => failed.push((prefix, error)),
        }
    }
    spans.retain(|(bytes, _)| !bytes.is_empty());
    Ok((spans, failed))
}

/// Lists the byte ranges of `disk` that the ext4 file system at `offset` uses; paths begin with `prefix`.
///
/// # Errors
/// The disk cannot be read, or the file system is of a kind that is not known.
pub fn walk(disk: &mut Disk, offset: u64, prefix: &str) -> Result<Vec<Span>, Ext4Error> {
    walk_up_to(disk, offset, prefix, usize::MAX)
}

fn walk_up_to(
    disk: &mut Disk,
    offset: u64,
    prefix: &str,
    most: usize,
) -> Result<Vec<Span>, Ext4Error> {
    let superblock = disk.read(offset + 1024, 1024)?;
    let layout = Layout::decode(&superblock)?;
    let there = disk.length().saturating_sub(offset) / layout.block_bytes;
    if layout.blocks > there {
        return Err(Ext4Error::Cut);
    }
    let mut walk = Walk {
        disk,
        offset,
        layout,
        used: Vec::new(),
        most,
        budget: layout.blocks.saturating_mul(2).saturating_add(BUDGET_MORE),
        inodes: HashMap::new(),
        names: HashMap::new(),
    };
    walk.groups()?;
    walk.names()?;
    Ok(walk.finish(prefix))
}

/// What blocks are used for.
#[derive(Clone, Debug)]
enum Use {
    Inode(u32, Part),
    System(String),
}

/// What of an inode a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Content,
    Extents,
    Attributes,
}

struct Walk<'a> {
    disk: &'a mut Disk,
    offset: u64,
    layout: Layout,
    /// Blocks of inodes, and of the file system itself.
    used: Vec<(Range<u64>, Use)>,
    /// How many of them there may be.
    most: usize,
    /// How many blocks may still be: each has one owner, but for attributes that several files share.
    budget: u64,
    inodes: HashMap<u32, Kind>,
    /// Where an inode is named first: directory and name.
    names: HashMap<u32, (u32, String)>,
}

impl Walk<'_> {
    fn block(&mut self, block: u64) -> io::Result<Vec<u8>> {
        self.blocks(block, 1)
    }

    fn blocks(&mut self, first: u64, count: u64) -> io::Result<Vec<u8>> {
        let bytes = self.layout.block_bytes;
        let at = first
            .checked_mul(bytes)
            .and_then(|at| at.checked_add(self.offset));
        let length = usize::try_from(count.saturating_mul(bytes)).unwrap_or(usize::MAX);
        self.disk
            .read(at.ok_or(io::ErrorKind::UnexpectedEof)?, length)
    }

    fn is_there(&self, blocks: &Range<u64>) -> bool {
        blocks.start > 0 && blocks.start < blocks.end && blocks.end <= self.layout.blocks
    }

    fn system(&mut self, blocks: Range<u64>, what: String) {
        self.used.push((blocks, Use::System(what)));
    }

    fn spend(&mut self, blocks: &Range<u64>) -> Result<(), Ext4Error> {
        let left = self.budget.checked_sub(blocks.end - blocks.start);
        self.budget = left.ok_or(Ext4Error::Shared)?;
        Ok(())
    }

    /// Notes blocks of an inode.
    fn owned(&mut self, blocks: Range<u64>, number: u32, part: Part) -> Result<(), Ext4Error> {
        self.spend(&blocks)?;
        if let Some((last, Use::Inode(owner, of))) = self.used.last_mut()
            && (*owner, *of, last.end) == (number, part, blocks.start)
        {
            last.end = blocks.end;
        } else if self.used.len() < self.most {
            self.used.push((blocks, Use::Inode(number, part)));
        } else {
            return Err(Ext4Error::Many { most: self.most });
        }
        Ok(())
    }

    fn groups(&mut self) -> Result<(), Ext4Error> {
        let layout = self.layout;
        let first = layout.first_block;
        self.used
            .push((0..first + 1, Use::System("superblock".to_owned())));
        let table = self.blocks(first + 1, layout.descriptor_blocks())?;
        for group in 0..layout.groups {
            let start = first + u64::from(group) * layout.group_blocks;
            if layout.has_copy(group) {
                let what = match group {
                    0 => "group descriptors".to_owned(),
                    _ => format!("copy of superblock and group descriptors in group {group}"),
                };
                let blocks = 1 + layout.descriptor_blocks() + layout.reserved_blocks;
                let from = start + u64::from(group == 0);
                self.system(from..start + blocks, what);
            }
            let at = group as usize * layout.descriptor_bytes;
            let descriptor = layout.descriptor(table.get(at..).unwrap_or_default());
            let bitmap = descriptor.block_bitmap;
            self.system(bitmap..bitmap + 1, format!("block bitmap of group {group}"));
            let bitmap = descriptor.inode_bitmap;
            self.system(bitmap..bitmap + 1, format!("inode bitmap of group {group}"));
            let inodes = descriptor.inode_table;
            let blocks = inodes..inodes.saturating_add(layout.inode_table_blocks());
            if !self.is_there(&blocks) {
                continue;
            }
            self.spend(&blocks)?;
            self.system(blocks, format!("inode table of group {group}"));
            self.inode_table(group, inodes, descriptor.inodes_used)?;
        }
        Ok(())
    }

    fn inode_table(&mut self, group: u32, table: u64, used: u32) -> Result<(), Ext4Error> {
        let layout = self.layout;
        let inodes_a_block =
            u32::try_from(layout.block_bytes / layout.inode_bytes as u64).unwrap_or(1);
        for (block, first) in (0..used)
            .step_by(inodes_a_block.max(1) as usize)
            .enumerate()
        {
            let bytes = self.block(table + block as u64)?;
            for (slot, bytes) in (first..used).zip(bytes.chunks_exact(layout.inode_bytes)) {
                let number = group
                    .checked_mul(layout.group_inodes)
                    .and_then(|first| first.checked_add(slot + 1))
                    .ok_or(Ext4Error::Superblock)?;
                if let Some(inode) = Inode::decode(bytes) {
                    self.inode(number, &inode)?;
                }
            }
        }
        Ok(())
    }

    fn inode(&mut self, number: u32, inode: &Inode) -> Result<(), Ext4Error> {
        if number == RESIZE {
            return Ok(());
        }
        if self.is_there(&(inode.attributes..inode.attributes + 1)) {
            let blocks = inode.attributes..inode.attributes + 1;
            self.owned(blocks, number, Part::Attributes)?;
        }
        self.inodes.insert(number, inode.kind);
        if inode.is_inline {
            return Ok(());
        }
        match inode.has_extents {
            true => self.extents(number, &inode.root, LEVELS_MAX),
            false => self.block_list(number, &inode.root),
        }
    }

    fn extents(&mut self, number: u32, node: &[u8], levels: u32) -> Result<(), Ext4Error> {
        for extent in Extent::all(node) {
            match extent {
                Extent::Leaf(blocks) if self.is_there(&blocks) => {
                    self.owned(blocks, number, Part::Content)?;
                }
                Extent::Node(block) if levels > 0 && self.is_there(&(block..block + 1)) => {
                    self.owned(block..block + 1, number, Part::Extents)?;
                    let node = self.block(block)?;
                    self.extents(number, &node, levels - 1)?;
                }
                Extent::Leaf(_) | Extent::Node(_) => {}
            }
        }
        Ok(())
    }

    /// The way of ext2 and ext3: twelve blocks, then blocks that list blocks.
    fn block_list(&mut self, number: u32, root: &[u8]) -> Result<(), Ext4Error> {
        self.listed(number, root.get(..48).unwrap_or_default(), 0)?;
        for (level, slot) in (1..).zip([48, 52, 56]) {
            self.listed(number, root.get(slot..slot + 4).unwrap_or_default(), level)?;
        }
        Ok(())
    }

    fn listed(&mut self, number: u32, list: &[u8], level: u32) -> Result<(), Ext4Error> {
        for slot in (0..list.len()).step_by(4) {
            let block = u64::from(u32_at(list, slot));
            if !self.is_there(&(block..block + 1)) {
                continue;
            }
            let part = if level == 0 {
                Part::Content
            } else {
                Part::Extents
            };
            self.owned(block..block + 1, number, part)?;
            if level > 0 {
                let list = self.block(block)?;
                self.listed(number, &list, level - 1)?;
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Result<(), Ext4Error> {
        let is_directory = |number: &u32| self.inodes.get(number) == Some(&Kind::Directory);
        let directories: Vec<(Range<u64>, u32)> = (self.used.iter())
            .filter_map(|(blocks, owner)| match owner {
                Use::Inode(number, Part::Content) if is_directory(number) => {
                    Some((blocks.clone(), *number))
                }
                _ => None,
            })
            .collect();
        let most = DIRECTORY_BYTES_MAX / self.layout.block_bytes;
        for (blocks, directory) in directories {
            for block in blocks.take(usize::try_from(most).unwrap_or(usize::MAX)) {
                let bytes = self.block(block)?;
                for (number, name) in entries(&bytes) {
                    self.names.entry(number).or_insert((directory, name));
                }
            }
        }
        Ok(())
    }

    fn path(&self, mut number: u32, prefix: &str) -> String {
        let mut words = Vec::new();
        while number != ROOT && words.len() < DEPTH_MAX {
            match self.names.get(&number) {
                Some((directory, name)) => {
                    words.push(name.as_str());
                    number = *directory;
                }
                None => return format!("{prefix}<inode {number}>/{}", reversed(words)),
            }
        }
        format!("{prefix}/{}", reversed(words))
    }

    fn finish(self, prefix: &str) -> Vec<Span> {
        let bytes = self.layout.block_bytes;
        let owner = |number: u32, part: Part| {
            if number == self.layout.journal {
                return Owner::Metadata("journal".to_owned());
            }
            let path = self.path(number, prefix);
            match (part, self.inodes.get(&number)) {
                (Part::Content, Some(Kind::Directory)) => Owner::Directory(path),
                (Part::Content, _) => Owner::File(path),
                (Part::Extents, _) => Owner::Extents(path),
                (Part::Attributes, _) => Owner::Attributes(path),
            }
        };
        let place = |blocks: &Range<u64>| {
            self.offset + blocks.start * bytes..self.offset + blocks.end * bytes
        };
        (self.used.iter())
            .map(|(blocks, used)| {
                let owner = match used {
                    Use::Inode(number, part) => owner(*number, *part),
                    Use::System(what) => Owner::Metadata(format!("{prefix}{what}")),
                };
                (place(blocks), owner)
            })
            .collect()
    }
}

fn reversed(words: Vec<&str>) -> String {
    words.into_iter().rev().collect::<Vec<_>>().join("/")
}

/// The entries of a block of a directory; an index of hashes looks like an empty one.
fn entries(block: &[u8]) -> impl Iterator<Item = (u32, String)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = block.get(at..)?;
            let (number, length) = (u32_at(rest, 0), usize::from(u16_at(rest, 4)));
            if length < 8 {
                return None;
            }
            at += length;
            let name_length = usize::from(*rest.get(6)?);
            let name = rest.get(8..8 + name_length)?;
            if number != 0 && name != b"." && name != b".." && !name.is_empty() {
                return Some((number, String::from_utf8_lossy(name).into_owned()));
            }
        }
    })
}
