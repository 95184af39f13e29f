//! Index pages: where the chunks of one region lie.
//!
//! A page names the packs it refers to, then lists the chunks in the order of the disk. What it
//! does not list is a hole. [`Page::decode`] accepts one encoding only and checks every number, so
//! whoever holds a [`Page`] may use its entries without care. Layout: docs/FORMAT.md, "Page".

use std::collections::HashMap;

use crate::chunk::{CHUNK_BLOCKS_MAX, ChunkId};
use crate::codec::{DecodeError, Reader};
use crate::digest::{Digest, ObjectRef};
use crate::geometry::{BLOCK_BYTES, REGION_BLOCKS};
use crate::pack::{PACK_BYTES_MAX, PACK_HEADER_BYTES};

const MAGIC: &[u8; 8] = b"CIRCPAGE";
const WHAT: &str = "index page";
const HEADER_BYTES: usize = 16;
const PACK_ENTRY_BYTES: usize = 36;
const ENTRY_BYTES: usize = 46;

/// The longest page: every block a chunk in a pack of its own.
pub const PAGE_BYTES_MAX: usize =
    HEADER_BYTES + REGION_BLOCKS as usize * (PACK_ENTRY_BYTES + ENTRY_BYTES);

/// One chunk of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First block, relative to the region.
    pub block: u32,
    /// Blocks, 1 to [`CHUNK_BLOCKS_MAX`].
    pub blocks: u32,
    /// The name of the chunk.
    pub chunk: ChunkId,
    /// Which pack of the page ([`Page::pack`]).
    pub pack: u16,
    /// Where in the pack its stored bytes begin.
    pub offset: u32,
    /// How many bytes are stored; as many as the plain length means raw.
    pub length: u32,
}

impl Entry {
    /// Returns one past the last block, relative to the region.
    pub const fn end(&self) -> u32 {
        self.block + self.blocks
    }

    /// Returns the length of the chunk's plain bytes.
    pub const fn plain_len(&self) -> usize {
        (self.blocks * BLOCK_BYTES) as usize
    }
}

/// The decoded index of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    packs: Vec<ObjectRef>,
    entries: Vec<Entry>,
}

impl Page {
    /// Returns the chunks, in the order of the disk.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the packs referred to.
    pub fn packs(&self) -> &[ObjectRef] {
        &self.packs
    }

    /// Returns the pack in which the chunk of `entry`, an entry of this page, lies.
    ///
    /// # Panics
    /// If `entry` is of another page with more packs.
    pub fn pack(&self, entry: &Entry) -> ObjectRef {
        self.packs[usize::from(entry.pack)]
    }

    /// Returns the chunks that have blocks in `first .. end`, relative to the region; none for an
    /// empty range.
    pub fn overlapping(&self, first: u32, end: u32) -> &[Entry] {
        if first >= end {
            return &[];
        }
        let from = self.entries.partition_point(|entry| entry.end() <= first);
        let to = self.entries.partition_point(|entry| entry.block < end);
        self.entries.get(from..to).unwrap_or_default()
    }

    /// Decodes a page.
    ///
    /// # Errors
    /// The bytes are no page, or not the one encoding of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes, PAGE_BYTES_MAX)?;
        reader.magic(MAGIC)?;
        reader.version_1()?;
        let (n_packs, n_entries) = (reader.u16()?, reader.u16()?);
        reader.zero_u16()?;
        let wanted = HEADER_BYTES
            + usize::from(n_packs) * PACK_ENTRY_BYTES
            + usize::from(n_entries) * ENTRY_BYTES;
        match bytes.len().cmp(&wanted) {
            std::cmp::Ordering::Less => return Err(DecodeError::Truncated { what: WHAT }),
            std::cmp::Ordering::Greater => return Err(DecodeError::Trailing { what: WHAT }),
            std::cmp::Ordering::Equal => {}
        }
        let packs = (0..n_packs)
            .map(|_| {
                Ok(ObjectRef {
                    digest: Digest::from_bytes(reader.array()?),
                    length: u64::from(reader.u32()?),
                })
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        let entries = (0..n_entries)
            .map(|_| read_entry(&mut reader))
            .collect::<Result<Vec<_>, DecodeError>>()?;
        reader.end()?;
        let page = Self { packs, entries };
        page.check()?;
        Ok(page)
    }

    /// Checks all that a page promises.
    fn check(&self) -> Result<(), DecodeError> {
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason));
        if self.entries.is_empty() {
            return bad("it lists no chunk");
        }
        if self
            .packs
            .iter()
            .any(|pack| pack.length > u64::from(PACK_BYTES_MAX))
        {
            return bad("a pack is too long");
        }
        let (mut next_block, mut next_pack) = (0, 0);
        for entry in &self.entries {
            if entry.block < next_block {
                return bad("chunks overlap or are out of order");
            }
            if entry.blocks == 0 || entry.blocks > CHUNK_BLOCKS_MAX || entry.end() > REGION_BLOCKS {
                return bad("a chunk has no place in the region");
            }
            next_block = entry.end();
            if entry.pack > next_pack {
                return bad("packs are not listed in the order of their first use");
            }
            if entry.pack == next_pack {
                next_pack += 1;
            }
            let Some(pack) = self.packs.get(usize::from(entry.pack)) else {
                return bad("a chunk lies in a pack that is not listed");
            };
            let end = u64::from(entry.offset) + u64::from(entry.length);
            if entry.offset < PACK_HEADER_BYTES || end > pack.length {
                return bad("a chunk lies outside its pack");
            }
            if entry.length == 0 || entry.length as usize > entry.plain_len() {
                return bad("a chunk has an impossible stored length");
            }
        }
        if usize::from(next_pack) != self.packs.len() {
            return bad("a pack is listed and not used");
        }
        let mut digests: Vec<_> = self.packs.iter().map(|pack| pack.digest).collect();
        digests.sort_unstable();
        if digests.windows(2).any(|pair| pair[0] == pair[1]) {
            return bad("a pack is listed twice");
        }
        Ok(())
    }

    /// Encodes the page. [`Page::decode`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        let count = |n: usize| u16::try_from(n).expect("a region has at most 16,384 blocks");
        let mut out = Vec::with_capacity(
            HEADER_BYTES + self.packs.len() * PACK_ENTRY_BYTES + self.entries.len() * ENTRY_BYTES,
        );
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&count(self.packs.len()).to_le_bytes());
        out.extend_from_slice(&count(self.entries.len()).to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        for pack in &self.packs {
            let length = u32::try_from(pack.length).expect("a pack has at most 64 MiB");
            out.extend_from_slice(pack.digest.as_bytes());
            out.extend_from_slice(&length.to_le_bytes());
        }
        for entry in &self.entries {
            out.extend_from_slice(&count(entry.block as usize).to_le_bytes());
            out.extend_from_slice(&count(entry.blocks as usize).to_le_bytes());
            out.extend_from_slice(entry.chunk.as_bytes());
            out.extend_from_slice(&entry.pack.to_le_bytes());
            out.extend_from_slice(&entry.offset.to_le_bytes());
            out.extend_from_slice(&entry.length.to_le_bytes());
        }
        out
    }
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, DecodeError> {
    Ok(Entry {
        block: u32::from(reader.u16()?),
        blocks: u32::from(reader.u16()?),
        chunk: ChunkId::from_bytes(reader.array()?),
        pack: reader.u16()?,
        offset: reader.u32()?,
        length: reader.u32()?,
    })
}

/// Where the stored bytes of a chunk lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pack, with its whole length.
    pub pack: ObjectRef,
    /// Where in it they begin.
    pub offset: u32,
    /// How many there are.
    pub length: u32,
}

/// Collects the chunks of one region into a page.
#[derive(Debug, Default)]
pub struct PageBuilder {
    packs: Vec<ObjectRef>,
    numbers: HashMap<Digest, u16>,
    entries: Vec<Entry>,
}

impl PageBuilder {
    /// Appends the chunk at `block`, relative to the region; chunks come in the order of the disk.
    ///
    /// # Panics
    /// After more than 16,384 chunks, which no region has.
    pub fn push(&mut self, block: u32, blocks: u32, chunk: ChunkId, place: Location) {
        let packs = &mut self.packs;
        let pack = *self.numbers.entry(place.pack.digest).or_insert_with(|| {
            packs.push(place.pack);
            u16::try_from(packs.len() - 1).expect("a region has at most 16,384 chunks")
        });
        self.entries.push(Entry {
            block,
            blocks,
            chunk,
            pack,
            offset: place.offset,
            length: place.length,
        });
    }

    /// Returns the page, or `None` for a region that is all hole.
    ///
    /// # Errors
    /// What was pushed does not make a valid page.
    pub fn finish(self) -> Result<Option<Page>, DecodeError> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let page = Page {
            packs: self.packs,
            entries: self.entries,
        };
        page.check()?;
        Ok(Some(page))
    }
}

#[cfg(test)]
mod tests;
