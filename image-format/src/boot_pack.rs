//! Boot packs: the working set of a boot in one object, in the order in which a boot reads it.
//!
//! A boot pack is a head, then frames. The head lists the chunks: name, place on the disk, place in
//! an ordinary pack; their order is the order of the stream. A frame is the plain bytes of the next
//! few chunks, compressed together as one zstd frame, or raw where that is not shorter. Offsets are
//! not stored where they follow from lengths, so a head has one encoding.
//!
//! The manifest names the head by digest and length besides the whole object, so that a reader can
//! verify it before the rest arrives; a frame is verified by the digests of its chunks. Whoever
//! holds a [`Head`] may use its numbers without care. Layout: docs/FORMAT.md, "Boot pack".

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

use crate::chunk::{CHUNK_BLOCKS_MAX, Chunk, ChunkId};
use crate::codec::{DecodeError, Reader};
use crate::digest::{Digest, DigestMismatch, ObjectMismatch, ObjectRef};
use crate::frame::{self, UnpackError};
use crate::geometry::{BLOCK_BYTES, DISK_BYTES_MAX, REGION_BLOCKS, blocks_for, regions_for};
use crate::manifest::BootPack;
use crate::pack::{PACK_BYTES_MAX, PACK_HEADER_BYTES};
use crate::page::Entry;

const MAGIC: &[u8; 8] = b"CIRCBOOT";
const WHAT: &str = "boot pack";
const HEADER_BYTES: usize = 24;
const PACK_ENTRY_BYTES: usize = 36;
const FRAME_ENTRY_BYTES: usize = 12;
const CHUNK_ENTRY_BYTES: usize = 50;

/// The most chunks of a boot pack: at the usual 28 KiB each some 900 MB, many times a boot.
pub const BOOT_CHUNKS_MAX: usize = 32_768;

/// The most frames: 1 GiB of plain bytes.
pub const BOOT_FRAMES_MAX: usize = 1024;

/// The most plain bytes of a frame: 1 MiB, the length of the longest chunk. Two thirds of what one
/// stream over everything saves is saved by frames of this length, and a reader that needs one chunk
/// waits for some 300 KiB at most.
pub const FRAME_PLAIN_BYTES_MAX: u32 = CHUNK_BLOCKS_MAX * BLOCK_BYTES;

/// The longest head: each chunk in a pack of its own.
pub const HEAD_BYTES_MAX: usize = HEADER_BYTES
    + BOOT_FRAMES_MAX * FRAME_ENTRY_BYTES
    + BOOT_CHUNKS_MAX * (PACK_ENTRY_BYTES + CHUNK_ENTRY_BYTES);

/// The longest boot pack: no frame is longer than its plain bytes.
pub const BOOT_PACK_BYTES_MAX: u64 =
    HEAD_BYTES_MAX as u64 + BOOT_FRAMES_MAX as u64 * FRAME_PLAIN_BYTES_MAX as u64;

/// The level that frames are compressed with unless the publisher says otherwise: packed once, sent
/// at every boot, and readers decode all levels at the same speed.
pub const LEVEL_DEFAULT: i32 = 19;

/// A chunk of a disk: where it is there, and where its stored bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedChunk {
    /// Which region of the disk.
    pub region: u32,
    /// The chunk, as the index page of that region describes it; its pack number means nothing here.
    pub entry: Entry,
    /// The pack that holds it.
    pub pack: ObjectRef,
}

impl PlacedChunk {
    /// Returns the first block, counted from the start of the disk.
    pub const fn first_block(&self) -> u64 {
        self.region as u64 * REGION_BLOCKS as u64 + self.entry.block as u64
    }
}

/// One frame of a boot pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where its stored bytes are in the boot pack.
    pub stored: Range<u64>,
    /// How many bytes it unpacks to; as many as are stored means raw.
    pub plain_bytes: u32,
    /// Which chunks of the head it holds, one behind the other.
    pub chunks: Range<usize>,
}

/// The decoded head of a boot pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    packs: Vec<ObjectRef>,
    frames: Vec<Frame>,
    /// Each with its region.
    chunks: Vec<(u32, Entry)>,
}

/// Why bytes are not the head of the boot pack that a manifest names.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum HeadError {
    #[error(transparent)]
    Object(#[from] ObjectMismatch),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Why stored bytes are not a frame of a boot pack.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum FrameError {
    #[error("frame {frame} of the boot pack does not unpack")]
    Unpack { frame: usize, source: UnpackError },
    #[error("frame {frame} of the boot pack is corrupt")]
    Corrupt {
        frame: usize,
        source: DigestMismatch,
    },
}

impl BootPack {
    /// Verifies and decodes the head of this boot pack, which is for a disk of `disk_length` bytes.
    ///
    /// # Errors
    /// The bytes are not the head named, or the head does not fit the object or the disk.
    pub fn open(&self, bytes: &[u8], disk_length: u64) -> Result<Head, HeadError> {
        self.head.verify(bytes)?;
        let head = Head::decode(bytes)?;
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason).into());
        if head.object_length() != self.object.length {
            return bad("its frames do not fill it");
        }
        let blocks = blocks_for(disk_length);
        if head
            .chunks()
            .any(|chunk| chunk.first_block() + u64::from(chunk.entry.blocks) > blocks)
        {
            return bad("a chunk lies behind the end of the disk");
        }
        Ok(head)
    }
}

impl Head {
    /// Returns the chunks, in the order of the stream.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = PlacedChunk> {
        self.chunks.iter().map(|chunk| self.placed(chunk))
    }

    /// Returns the frames, in the order of the stream.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Returns the chunks of a frame.
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn chunks_of(&self, frame: usize) -> impl ExactSizeIterator<Item = PlacedChunk> {
        self.chunks[self.frames[frame].chunks.clone()]
            .iter()
            .map(|chunk| self.placed(chunk))
    }

    fn placed(&self, &(region, entry): &(u32, Entry)) -> PlacedChunk {
        PlacedChunk {
            region,
            entry,
            pack: self.packs[usize::from(entry.pack)],
        }
    }

    /// Returns the length of the head in bytes.
    pub fn length(&self) -> u64 {
        length(self.packs.len(), self.frames.len(), self.chunks.len()) as u64
    }

    /// Returns the length of the whole boot pack in bytes.
    pub fn object_length(&self) -> u64 {
        self.frames
            .last()
            .map_or_else(|| self.length(), |frame| frame.stored.end)
    }

    /// Unpacks a frame from its stored bytes and verifies each of its chunks.
    ///
    /// # Errors
    /// The bytes are not that frame, or one of its chunks is not what its name says.
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn decode_frame(&self, frame: usize, stored: &[u8]) -> Result<Vec<Chunk>, FrameError> {
        let verify = |plain: &[u8]| {
            let mut rest = plain;
            let chunks = self.chunks_of(frame).map(|chunk| {
                // A frame is as long as its chunks together; `check` holds that.
                let (bytes, behind) = rest.split_at(chunk.entry.plain_len());
                rest = behind;
                // A copy: one chunk that is kept must not keep the whole frame.
                Chunk::verify(chunk.entry.chunk, Bytes::copy_from_slice(bytes))
                    .map_err(|source| FrameError::Corrupt { frame, source })
            });
            chunks.collect()
        };
        frame::unpacked(self.frames[frame].plain_bytes as usize, stored, verify)
            .map_err(|source| FrameError::Unpack { frame, source })?
    }

    /// Builds a head of `chunks`, in the order of the stream, packed into frames of these stored
    /// lengths by the [`plan_frames`] of them.
    ///
    /// # Errors
    /// What was given does not make a valid boot pack.
    pub fn build(chunks: &[PlacedChunk], stored: &[u32]) -> Result<Self, DecodeError> {
        Self::build_planned(chunks, &plan_frames(chunks), stored)
    }

    /// The same with frames that `plan` makes of the chunks.
    ///
    /// # Errors
    /// As there.
    pub fn build_planned(
        chunks: &[PlacedChunk],
        plan: &[Range<usize>],
        stored: &[u32],
    ) -> Result<Self, DecodeError> {
        let mut packs = Vec::new();
        let mut numbers = HashMap::new();
        let mut listed = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let number = *numbers.entry(chunk.pack).or_insert_with(|| {
                packs.push(chunk.pack);
                packs.len() - 1
            });
            let pack = u16::try_from(number)
                .map_err(|_| DecodeError::invalid(WHAT, "it lists too much"))?;
            listed.push((
                chunk.region,
                Entry {
                    pack,
                    ..chunk.entry
                },
            ));
        }
        let divided = plan.iter().flat_map(Clone::clone).eq(0..chunks.len());
        if plan.len() != stored.len() || !divided {
            return Err(DecodeError::invalid(WHAT, "its frames are not as planned"));
        }
        let mut head = Self {
            packs,
            frames: Vec::new(),
            chunks: listed,
        };
        let lengths = plan.iter().zip(stored).map(|(chunks, stored)| {
            let plain = chunks.clone().map(|chunk| head.chunks[chunk].1.plain_len());
            (chunks.len(), *stored, plain.sum::<usize>())
        });
        let lengths: Vec<_> = lengths.collect();
        let start = length(head.packs.len(), lengths.len(), head.chunks.len());
        head.frames = frames(start as u64, lengths.into_iter());
        head.check()?;
        Ok(head)
    }

    /// Decodes a head.
    ///
    /// # Errors
    /// The bytes are no head, or not the one encoding of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes, HEAD_BYTES_MAX)?;
        reader.magic(MAGIC)?;
        reader.version_1()?;
        reader.zero_u16()?;
        let mut count = |max: usize| match reader.u32()? as usize {
            count if count <= max => Ok(count),
            _ => Err(DecodeError::invalid(WHAT, "it lists too much")),
        };
        let n_packs = count(BOOT_CHUNKS_MAX)?;
        let n_frames = count(BOOT_FRAMES_MAX)?;
        let n_chunks = count(BOOT_CHUNKS_MAX)?;
        match bytes.len().cmp(&length(n_packs, n_frames, n_chunks)) {
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
        let lengths = (0..n_frames)
            .map(|_| {
                let chunks = reader.u32()? as usize;
                Ok((chunks, reader.u32()?, reader.u32()? as usize))
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        let chunks = (0..n_chunks)
            .map(|_| read_chunk(&mut reader))
            .collect::<Result<Vec<_>, _>>()?;
        reader.end()?;
        let head = Self {
            packs,
            frames: frames(bytes.len() as u64, lengths.into_iter()),
            chunks,
        };
        head.check()?;
        Ok(head)
    }

    /// Encodes the head. [`Head::decode`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        let count = |n: usize| {
            u32::try_from(n)
                .expect("a boot pack has at most 32,768 of anything")
                .to_le_bytes()
        };
        let short = |n: u32| {
            u16::try_from(n)
                .expect("a region has 16,384 blocks")
                .to_le_bytes()
        };
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&count(self.packs.len()));
        out.extend_from_slice(&count(self.frames.len()));
        out.extend_from_slice(&count(self.chunks.len()));
        for pack in &self.packs {
            let length = u32::try_from(pack.length).expect("a pack has at most 64 MiB");
            out.extend_from_slice(pack.digest.as_bytes());
            out.extend_from_slice(&length.to_le_bytes());
        }
        for frame in &self.frames {
            let stored = u32::try_from(frame.stored.end - frame.stored.start)
                .expect("a frame has at most 1 MiB");
            out.extend_from_slice(&count(frame.chunks.len()));
            out.extend_from_slice(&stored.to_le_bytes());
            out.extend_from_slice(&frame.plain_bytes.to_le_bytes());
        }
        for (region, entry) in &self.chunks {
            out.extend_from_slice(&region.to_le_bytes());
            out.extend_from_slice(&short(entry.block));
            out.extend_from_slice(&short(entry.blocks));
            out.extend_from_slice(entry.chunk.as_bytes());
            out.extend_from_slice(&entry.pack.to_le_bytes());
            out.extend_from_slice(&entry.offset.to_le_bytes());
            out.extend_from_slice(&entry.length.to_le_bytes());
        }
        out
    }

    /// Checks all that a head promises.
    fn check(&self) -> Result<(), DecodeError> {
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason));
        if self.chunks.is_empty() {
            return bad("it lists no chunk");
        }
        if self.chunks.len() > BOOT_CHUNKS_MAX || self.frames.len() > BOOT_FRAMES_MAX {
            return bad("it lists too much");
        }
        self.check_packs()?;
        self.check_frames()?;
        let (mut next_pack, mut seen) = (0, HashSet::new());
        for (region, entry) in &self.chunks {
            if entry.blocks == 0
                || entry.blocks > CHUNK_BLOCKS_MAX
                || entry.block >= REGION_BLOCKS
                || entry.end() > REGION_BLOCKS
                || u64::from(*region) >= regions_for(DISK_BYTES_MAX)
            {
                return bad("a chunk has no place on a disk");
            }
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
            if !seen.insert(entry.chunk) {
                return bad("a chunk is listed twice");
            }
        }
        if usize::from(next_pack) != self.packs.len() {
            return bad("a pack is listed and not used");
        }
        self.check_overlap()
    }

    fn check_packs(&self) -> Result<(), DecodeError> {
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason));
        let mut digests = HashSet::new();
        for pack in &self.packs {
            if pack.length > u64::from(PACK_BYTES_MAX) {
                return bad("a pack is too long");
            }
            if !digests.insert(pack.digest) {
                return bad("a pack is listed twice");
            }
        }
        Ok(())
    }

    /// Checks that the frames hold just the chunks, in order.
    fn check_frames(&self) -> Result<(), DecodeError> {
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason));
        let mut next = 0;
        for frame in &self.frames {
            let Some(chunks) = self.chunks.get(frame.chunks.clone()) else {
                return bad("a frame holds chunks that are not listed");
            };
            let plain: u64 = chunks
                .iter()
                .map(|(_, entry)| u64::from(entry.blocks) * u64::from(BLOCK_BYTES))
                .sum();
            if chunks.is_empty() || plain != u64::from(frame.plain_bytes) {
                return bad("a frame is not as long as its chunks");
            }
            if frame.plain_bytes > FRAME_PLAIN_BYTES_MAX {
                return bad("a frame is too long");
            }
            let stored = frame.stored.end - frame.stored.start;
            if stored == 0 || stored > u64::from(frame.plain_bytes) {
                return bad("a frame has an impossible stored length");
            }
            next = frame.chunks.end;
        }
        if next != self.chunks.len() {
            return bad("a chunk is in no frame");
        }
        Ok(())
    }

    /// Checks that no two chunks share a block of the disk.
    fn check_overlap(&self) -> Result<(), DecodeError> {
        let mut places: Vec<_> = self
            .chunks
            .iter()
            .map(|(region, entry)| (*region, entry.block, entry.end()))
            .collect();
        places.sort_unstable();
        let overlap = |pair: &[(u32, u32, u32)]| pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1;
        if places.windows(2).any(overlap) {
            return Err(DecodeError::invalid(WHAT, "chunks overlap on the disk"));
        }
        Ok(())
    }
}

/// The length of a head with that many packs, frames and chunks.
const fn length(packs: usize, frames: usize, chunks: usize) -> usize {
    HEADER_BYTES
        + packs * PACK_ENTRY_BYTES
        + frames * FRAME_ENTRY_BYTES
        + chunks * CHUNK_ENTRY_BYTES
}

/// Divides chunks into frames, each as long as [`FRAME_PLAIN_BYTES_MAX`] allows.
pub fn plan_frames(chunks: &[PlacedChunk]) -> Vec<Range<usize>> {
    let (mut frames, mut start, mut plain) = (Vec::new(), 0, 0);
    for (number, chunk) in chunks.iter().enumerate() {
        let bytes = chunk.entry.plain_len();
        if number > start && plain + bytes > FRAME_PLAIN_BYTES_MAX as usize {
            frames.push(start..number);
            (start, plain) = (number, 0);
        }
        plain += bytes;
    }
    if start < chunks.len() {
        frames.push(start..chunks.len());
    }
    frames
}

/// Puts `chunks` into frames as [`plan_frames`] does, but none that holds both chunks that are `known` and others: who has
/// what is known fetches the frames of the others, and nothing twice. Returns the chunks in their new order, and the frames,
/// each where its first chunk was. Where that would make too many frames, nothing is set apart.
pub fn plan_frames_apart(
    chunks: &[PlacedChunk],
    known: impl Fn(&ChunkId) -> bool,
) -> (Vec<PlacedChunk>, Vec<Range<usize>>) {
    let is_known = |number: &usize| known(&chunks[*number].entry.chunk);
    let (old, new): (Vec<usize>, Vec<usize>) = (0..chunks.len()).partition(is_known);
    let mut apart: Vec<Vec<usize>> = Vec::new();
    for numbers in [old, new] {
        let kind: Vec<_> = numbers.iter().map(|number| chunks[*number]).collect();
        let frames = plan_frames(&kind).into_iter();
        apart.extend(frames.map(|frame| numbers[frame].to_vec()));
    }
    if apart.len() > BOOT_FRAMES_MAX {
        return (chunks.to_vec(), plan_frames(chunks));
    }
    apart.sort_unstable();
    let mut at = 0;
    let frames = apart.iter().map(|frame| {
        at += frame.len();
        at - frame.len()..at
    });
    let frames = frames.collect();
    let order = apart.into_iter().flatten();
    (order.map(|number| chunks[number]).collect(), frames)
}

/// Lines frames up behind `start`: of each the number of chunks, stored and plain bytes.
fn frames(start: u64, lengths: impl Iterator<Item = (usize, u32, usize)>) -> Vec<Frame> {
    let (mut at, mut chunk) = (start, 0_usize);
    lengths
        .map(|(chunks, stored, plain)| {
            let frame = Frame {
                stored: at..at + u64::from(stored),
                // What does not fit is refused by `check`: no frame is that long.
                plain_bytes: u32::try_from(plain).unwrap_or(u32::MAX),
                chunks: chunk..chunk + chunks,
            };
            (at, chunk) = (frame.stored.end, frame.chunks.end);
            frame
        })
        .collect()
}

fn read_chunk(reader: &mut Reader<'_>) -> Result<(u32, Entry), DecodeError> {
    let region = reader.u32()?;
    let entry = Entry {
        block: u32::from(reader.u16()?),
        blocks: u32::from(reader.u16()?),
        chunk: ChunkId::from_bytes(reader.array()?),
        pack: reader.u16()?,
        offset: reader.u32()?,
        length: reader.u32()?,
    };
    Ok((region, entry))
}

#[cfg(test)]
mod tests;
