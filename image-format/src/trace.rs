//! Traces: which chunks one run of a machine read, in the order of first touch, and when.
//!
//! A trace is lines of JSON: first a header, then one line for each chunk when it is first touched.
//! A recorder may be killed at any time, so bytes behind the last line break are ignored. Traces are
//! merged into a [`profile`](crate::profile). Layout: docs/FORMAT.md, "Trace".

use std::collections::HashSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::chunk::{CHUNK_BLOCKS_MAX, ChunkId};
use crate::codec::{self, DecodeError};
use crate::digest::Digest;
use crate::geometry::{BLOCK_BYTES, DISK_BYTES_MAX};
use crate::reference::ImageRef;

/// The most first touches of a trace: at the usual 28 KiB each 1.8 GB of disk.
pub const TOUCHES_MAX: usize = 65_536;

/// The longest line, its end included.
pub const LINE_BYTES_MAX: usize = 512;

/// The longest trace: a line takes some 210 bytes.
pub const TRACE_BYTES_MAX: usize = 16 << 20;

const WHAT: &str = "trace";

/// The first line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this format; 1.
    pub circular_trace: u32,
    /// The image that was read, with its version.
    pub image: ImageRef,
    /// The disk of that version.
    pub disk: Digest,
    /// The boot pack that the client had to fetch from, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_pack: Option<Digest>,
}

/// The first touch of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// When a reader asked for it: microseconds since the recording began.
    pub asked: u64,
    /// When it was there.
    pub served: u64,
    /// Where it lies: its first block, counted from the start of the disk.
    pub block: u64,
    /// How many blocks it has.
    pub blocks: u32,
    /// Which chunk.
    pub chunk: ChunkId,
    /// What of it was read, and where it came from; older recorders do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<ReadPart>,
}

/// The part of a chunk that its first reader wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadPart {
    /// Where it came from.
    pub from: Origin,
    /// Its first block, counted from the start of the disk.
    pub block: u64,
    /// How many blocks it has.
    pub blocks: u32,
}

/// Where a chunk was, or what brought it, when a reader asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// In memory: something had brought it before.
    Memory,
    /// In the disk cache.
    Disk,
    /// On its way already, for another reader or ahead of readers.
    Flight,
    /// The reader waited for the boot pack to bring it.
    BootPack,
    /// It was fetched for this reader.
    Demand,
    /// Wherever it was: most of the time went by before the index page had said which chunk it is.
    Index,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Of what.
    pub header: Header,
    /// What was touched, in the order in which it was asked for; each chunk once.
    pub touches: Vec<Touch>,
}

impl Header {
    /// Makes the header of a trace of `image`, whose disk is `disk`.
    pub const fn new(image: ImageRef, disk: Digest) -> Self {
        Self {
            circular_trace: 1,
            image,
            disk,
            boot_pack: None,
        }
    }
}

impl Touch {
    /// The blocks of the chunk, counted from the start of the disk.
    pub fn chunk_blocks(&self) -> Range<u64> {
        self.block..self.block.saturating_add(u64::from(self.blocks))
    }

    /// The blocks that were read of it; all of them, where that is not told.
    pub fn read_blocks(&self) -> Range<u64> {
        match self.read {
            Some(read) => read.block..read.block.saturating_add(u64::from(read.blocks)),
            None => self.chunk_blocks(),
        }
    }
}

impl Trace {
    /// Decodes a trace; a last line that is not complete is ignored.
    ///
    /// # Errors
    /// The bytes are no trace, or one with impossible numbers.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut lines = lines(WHAT, bytes, TRACE_BYTES_MAX)?;
        let header: Header = match lines.next() {
            Some(line) => codec::json(WHAT, line, LINE_BYTES_MAX)?,
            None => return Err(DecodeError::Truncated { what: WHAT }),
        };
        if header.circular_trace != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(header.circular_trace),
            });
        }
        let (mut touches, mut seen) = (Vec::new(), HashSet::new());
        for line in lines {
            let touch: Touch = codec::json(WHAT, line, LINE_BYTES_MAX)?;
            if !is_place(touch.block, touch.blocks) {
                return Err(DecodeError::invalid(WHAT, "a chunk has no place on a disk"));
            }
            if touch.served < touch.asked {
                return Err(DecodeError::invalid(
                    WHAT,
                    "a chunk came before it was asked for",
                ));
            }
            let (chunk, read) = (touch.chunk_blocks(), touch.read_blocks());
            if read.is_empty() || read.start < chunk.start || read.end > chunk.end {
                return Err(DecodeError::invalid(
                    WHAT,
                    "what was read of a chunk is not in it",
                ));
            }
            if touches.len() == TOUCHES_MAX {
                return Err(DecodeError::invalid(WHAT, "it lists too much"));
            }
            if seen.insert(touch.chunk) {
                touches.push(touch);
            }
        }
        touches.sort_by_key(|touch: &Touch| touch.asked);
        Ok(Self { header, touches })
    }
}

/// Encodes one line, its end included.
pub fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(value).expect("our lines have string keys and no failing serializer");
    line.push(b'\n');
    line
}

/// The complete lines of a document of at most `max` bytes.
pub(crate) fn lines<'a>(
    what: &'static str,
    bytes: &'a [u8],
    max: usize,
) -> Result<impl Iterator<Item = &'a [u8]>, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong {
            what,
            max: max as u64,
        });
    }
    Ok(bytes
        .split_inclusive(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_suffix(b"\n")))
}

/// Tells whether some disk may have a chunk there.
pub(crate) fn is_place(block: u64, blocks: u32) -> bool {
    let disk_blocks = DISK_BYTES_MAX / u64::from(BLOCK_BYTES);
    (1..=CHUNK_BLOCKS_MAX).contains(&blocks) && block <= disk_blocks - u64::from(blocks)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header::new("lab/debian:12@3".parse().unwrap(), Digest::of(b"disk"))
    }

    fn touch(number: u64) -> Touch {
        Touch {
            asked: number * 10,
            served: number * 10 + 7,
            block: number * 8,
            blocks: 8,
            chunk: ChunkId::of(&number.to_le_bytes()),
            read: (!number.is_multiple_of(3)).then_some(ReadPart {
                from: Origin::BootPack,
                block: number * 8 + 3,
                blocks: 5,
            }),
        }
    }

    fn encoded(touches: &[Touch]) -> Vec<u8> {
        let mut bytes = line(&header());
        bytes.extend(touches.iter().flat_map(line));
        bytes
    }

    proptest! {
        /// A trace cut anywhere is the trace of what was complete by then; its order is that of asking.
        #[test]
        fn a_cut_trace_is_a_shorter_trace(numbers in vec(0..1000_u64, 0..40), at in any::<prop::sample::Index>()) {
            let touches: Vec<_> = numbers.iter().copied().map(touch).collect();
            let bytes = encoded(&touches);
            let first = line(&header()).len();
            let cut = first + at.index(bytes.len() - first + 1);
            let trace = Trace::decode(&bytes[..cut]).unwrap();
            prop_assert_eq!(&trace.header, &header());
            prop_assert!(trace.touches.windows(2).all(|pair| pair[0].asked < pair[1].asked));
            prop_assert!(trace.touches.iter().all(|touch| touches.contains(touch)));
            prop_assert!(bytes.split_inclusive(|b| *b == b'\n').all(|line| line.len() <= LINE_BYTES_MAX));
        }
    }

    /// Recorders of before told less, and their traces are as good for a profile.
    #[test]
    fn a_line_without_details_is_a_touch_of_the_whole_chunk() {
        let plain = Touch {
            read: None,
            ..touch(1)
        };
        let bytes = encoded(&[plain]);
        assert!(!String::from_utf8_lossy(&bytes).contains("read"));
        let trace = Trace::decode(&bytes).unwrap();
        assert_eq!(trace.touches, [plain]);
        assert_eq!(trace.touches[0].read_blocks(), 8..16);
        assert_eq!(touch(1).read_blocks(), 11..16);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let good = touch(1);
        let reading = |block, blocks| Touch {
            read: Some(ReadPart {
                from: Origin::Demand,
                block,
                blocks,
            }),
            ..good
        };
        for bad in [
            Touch { blocks: 0, ..good },
            Touch {
                blocks: 257,
                ..good
            },
            Touch {
                block: u64::MAX,
                ..good
            },
            Touch { served: 3, ..good },
            reading(8, 9),
            reading(8, 0),
            reading(7, 2),
            reading(u64::MAX, 2),
        ] {
            assert!(Trace::decode(&encoded(&[bad])).is_err(), "{bad:?}");
        }
        assert!(Trace::decode(b"").is_err());
        assert!(Trace::decode(b"hello\n").is_err());
        let newer = Header {
            circular_trace: 2,
            ..header()
        };
        assert!(matches!(
            Trace::decode(&line(&newer)),
            Err(DecodeError::Version { .. })
        ));
    }
}
