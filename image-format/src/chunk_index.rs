//! The chunk index: which chunks a store already has, and where.
//!
//! Each publish adds one immutable, sorted index of the chunks that it added; publishers search
//! them so that no publish reads all pages of the store. Entries are of fixed width and sorted by
//! digest, so a search needs two or three small reads of the file, whatever its size: this module
//! says which ([`Header::guess`]) and what they mean; it reads nothing itself.
//! Layout: docs/FORMAT.md, "Chunk index".

use crate::chunk::ChunkId;
use crate::codec::{DecodeError, Reader};
use crate::digest::{Digest, ObjectRef};
use crate::pack::{PACK_BYTES_MAX, PACK_HEADER_BYTES};
use crate::page::Location;

const MAGIC: &[u8; 8] = b"CIRCCIDX";
const WHAT: &str = "chunk index";
const PACK_ENTRY_BYTES: u64 = 36;

/// Bytes in front of the list of packs.
pub const HEADER_BYTES: usize = 24;

/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 44;

/// The most packs of one index: 16 TiB of packs.
pub const PACKS_MAX: u32 = 1 << 20;

/// The most entries of one index.
pub const ENTRIES_MAX: u64 = 1 << 32;

/// Where the parts of an index file lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How many packs are listed.
    pub n_packs: u32,
    /// How many chunks are listed.
    pub n_entries: u64,
}

impl Header {
    /// Decodes the first [`HEADER_BYTES`] of a file of `file_len` bytes.
    ///
    /// # Errors
    /// It is no chunk index, or not of that length.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes, HEADER_BYTES)?;
        reader.magic(MAGIC)?;
        reader.version_1()?;
        reader.zero_u16()?;
        let header = Self {
            n_packs: reader.u32()?,
            n_entries: reader.u64()?,
        };
        reader.end()?;
        if header.n_packs > PACKS_MAX || header.n_entries > ENTRIES_MAX {
            return Err(DecodeError::invalid(WHAT, "it lists too much"));
        }
        if header.file_len() != file_len {
            return Err(DecodeError::invalid(
                WHAT,
                "its length does not fit its counts",
            ));
        }
        Ok(header)
    }

    /// Encodes the header.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&self.n_packs.to_le_bytes());
        out.extend_from_slice(&self.n_entries.to_le_bytes());
        out
    }

    /// Returns the length of the whole file in bytes.
    pub const fn file_len(&self) -> u64 {
        self.entries_offset() + self.n_entries * ENTRY_BYTES as u64
    }

    /// Returns where the list of packs ends and the entries begin.
    pub const fn entries_offset(&self) -> u64 {
        HEADER_BYTES as u64 + self.n_packs as u64 * PACK_ENTRY_BYTES
    }

    /// Returns where entry `index` begins.
    pub const fn entry_offset(&self, index: u64) -> u64 {
        self.entries_offset() + index * ENTRY_BYTES as u64
    }

    /// Guesses where `chunk` is listed: digests are spread evenly, so their first eight bytes tell
    /// within a few dozen entries.
    pub fn guess(&self, chunk: ChunkId) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *chunk.as_bytes();
        let prefix = u128::from(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        let index = (prefix * u128::from(self.n_entries)) >> 64;
        u64::try_from(index).expect("a fraction of n_entries")
    }
}

/// Decodes the list of packs of an index with this header.
///
/// # Errors
/// It is damaged.
pub fn decode_packs(header: &Header, bytes: &[u8]) -> Result<Vec<ObjectRef>, DecodeError> {
    let max = usize::try_from(header.entries_offset()).unwrap_or(usize::MAX);
    let mut reader = Reader::new(WHAT, bytes, max)?;
    let packs = (0..header.n_packs)
        .map(|_| {
            let pack = ObjectRef {
                digest: Digest::from_bytes(reader.array()?),
                length: u64::from(reader.u32()?),
            };
            if pack.length > u64::from(PACK_BYTES_MAX) {
                return Err(DecodeError::invalid(WHAT, "a pack is too long"));
            }
            Ok(pack)
        })
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(packs)
}

/// Encodes one entry of the list of packs.
///
/// # Panics
/// If the pack is longer than any pack is.
pub fn encode_pack(pack: &ObjectRef) -> Vec<u8> {
    let length = u32::try_from(pack.length).expect("a pack has at most 64 MiB");
    [pack.digest.as_bytes().as_slice(), &length.to_le_bytes()].concat()
}

/// One chunk of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The chunk.
    pub chunk: ChunkId,
    /// Which of the index's packs it lies in.
    pub pack: u32,
    /// Where in it the stored bytes begin.
    pub offset: u32,
    /// How many there are.
    pub length: u32,
}

impl IndexEntry {
    /// Decodes an entry of [`ENTRY_BYTES`].
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let (chunk, rest) = bytes.split_at(32);
        let field = |at: usize| rest[at..at + 4].try_into().expect("four bytes");
        Self {
            chunk: ChunkId::from_bytes(chunk.try_into().expect("32 bytes")),
            pack: u32::from_le_bytes(field(0)),
            offset: u32::from_le_bytes(field(4)),
            length: u32::from_le_bytes(field(8)),
        }
    }

    /// Encodes the entry.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[..32].copy_from_slice(self.chunk.as_bytes());
        out[32..36].copy_from_slice(&self.pack.to_le_bytes());
        out[36..40].copy_from_slice(&self.offset.to_le_bytes());
        out[40..].copy_from_slice(&self.length.to_le_bytes());
        out
    }

    /// Returns where the chunk lies, given the packs of its index.
    ///
    /// # Errors
    /// The entry names a place that no pack has.
    pub fn location(&self, packs: &[ObjectRef]) -> Result<Location, DecodeError> {
        let pack = packs.get(self.pack as usize).ok_or(DecodeError::invalid(
            WHAT,
            "a chunk lies in a pack that is not listed",
        ))?;
        let end = u64::from(self.offset) + u64::from(self.length);
        if self.offset < PACK_HEADER_BYTES || self.length == 0 || end > pack.length {
            return Err(DecodeError::invalid(WHAT, "a chunk lies outside its pack"));
        }
        Ok(Location {
            pack: *pack,
            offset: self.offset,
            length: self.length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_entry_round_trip() {
        let header = Header {
            n_packs: 3,
            n_entries: 1000,
        };
        assert_eq!(
            Header::decode(&header.encode(), header.file_len()).unwrap(),
            header
        );
        assert!(Header::decode(&header.encode(), header.file_len() + 1).is_err());
        let entry = IndexEntry {
            chunk: ChunkId::of(b"x"),
            pack: 2,
            offset: 8,
            length: 99,
        };
        assert_eq!(IndexEntry::decode(&entry.encode()), entry);
    }

    #[test]
    fn guesses_stay_inside() {
        let header = Header {
            n_packs: 1,
            n_entries: 7,
        };
        assert_eq!(header.guess(ChunkId::from_bytes([0; 32])), 0);
        assert_eq!(header.guess(ChunkId::from_bytes([0xff; 32])), 6);
    }

    #[test]
    fn an_entry_outside_its_pack_is_refused() {
        let packs = [ObjectRef {
            digest: Digest::of(b""),
            length: 100,
        }];
        let entry = |pack, offset, length| IndexEntry {
            chunk: ChunkId::of(b"x"),
            pack,
            offset,
            length,
        };
        assert!(entry(0, 8, 92).location(&packs).is_ok());
        for bad in [
            entry(1, 8, 1),
            entry(0, 7, 1),
            entry(0, 8, 93),
            entry(0, 8, 0),
        ] {
            assert!(bad.location(&packs).is_err(), "{bad:?}");
        }
    }
}
