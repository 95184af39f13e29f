//! The log of an overlay: batches of records, each behind the other, from a checkpoint on.

use super::checksum;
use crate::codec::{DecodeError, Reader};
use crate::geometry::BLOCK_BYTES;
use crate::overlay::Side;

const MAGIC: &[u8; 8] = b"CIRCBTCH";
const WHAT: &str = "log of the overlay";
const BLOCK: u64 = BLOCK_BYTES as u64;

const HEADER_BYTES: usize = 56;
const RECORD_BYTES: usize = 16;

/// The most records in a batch: 2 MiB of them.
pub const RECORDS_MAX: usize = 1 << 17;

/// The longest batch, in bytes: a multiple of a block.
const BATCH_BYTES_MAX: u64 =
    (HEADER_BYTES as u64 + (RECORDS_MAX * RECORD_BYTES) as u64).next_multiple_of(BLOCK);

/// A log has room for this beside what the size of the disk asks for: a checkpoint of a small disk
/// and many batches of one record each, which take a block.
pub const LOG_LEAST_BYTES: u64 = 64 << 20;

const ZEROS: u8 = 0;
const DATA_A: u8 = 1;
const DATA_B: u8 = 2;
/// A record's first word is a block number below, and a kind above.
const KIND_SHIFT: u32 = 56;

/// One fact of the map. Later ones override earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// These blocks read as zeros.
    Zeros {
        /// The first of them.
        block: u64,
        /// How many, at least 1.
        count: u64,
    },
    /// This block is in the file.
    Data {
        /// Its number on the disk.
        block: u64,
        /// Which of its two places.
        side: Side,
        /// Of its 4096 bytes.
        sum: u64,
    },
}

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of a checkpoint that goes on in the next batch.
    Part,
    /// The last part of a checkpoint.
    Checkpoint,
    /// What changed since the batch before.
    Change,
}

/// Records that count together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What it is for.
    pub kind: Kind,
    /// Of the log: one more than that of the log before.
    pub generation: u64,
    /// Its number in the log, from 0.
    pub sequence: u64,
    /// At most [`RECORDS_MAX`].
    pub records: Vec<Record>,
}

impl Record {
    fn encode(self, out: &mut Vec<u8>) {
        let (kind, block, word) = match self {
            Self::Zeros { block, count } => (ZEROS, block, count),
            Self::Data { block, side, sum } => match side {
                Side::A => (DATA_A, block, sum),
                Side::B => (DATA_B, block, sum),
            },
        };
        out.extend_from_slice(&(block | u64::from(kind) << KIND_SHIFT).to_le_bytes());
        out.extend_from_slice(&word.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>, n_blocks: u64) -> Result<Self, DecodeError> {
        let (first, word) = (reader.u64()?, reader.u64()?);
        let block = first & ((1 << KIND_SHIFT) - 1);
        let data = |side| Self::Data {
            block,
            side,
            sum: word,
        };
        let (record, count) = match first.to_le_bytes()[7] {
            ZEROS => (Self::Zeros { block, count: word }, word),
            DATA_A => (data(Side::A), 1),
            DATA_B => (data(Side::B), 1),
            _ => return Err(DecodeError::invalid(WHAT, "there is no such record")),
        };
        let inside = block.checked_add(count).is_some_and(|end| end <= n_blocks);
        if count == 0 || !inside {
            let reason = "a record is about no block of the disk";
            return Err(DecodeError::invalid(WHAT, reason));
        }
        Ok(record)
    }
}

impl Batch {
    /// How many bytes of a log a batch of `n_records` takes: whole blocks.
    #[must_use]
    pub const fn encoded_bytes(n_records: usize) -> u64 {
        (HEADER_BYTES as u64 + (n_records * RECORD_BYTES) as u64).next_multiple_of(BLOCK)
    }

    /// Encodes the batch, padded with zeros to whole blocks.
    ///
    /// # Panics
    /// If it has more than [`RECORDS_MAX`] records.
    pub fn encode(&self, seed: u64) -> Vec<u8> {
        assert!(self.records.len() <= RECORDS_MAX, "the writer counts them");
        let mut records = Vec::with_capacity(self.records.len() * RECORD_BYTES);
        for record in &self.records {
            record.encode(&mut records);
        }
        let kind: u64 = match self.kind {
            Kind::Part => 0,
            Kind::Checkpoint => 1,
            Kind::Change => 2,
        };
        let mut out = MAGIC.to_vec();
        for word in [
            kind,
            self.generation,
            self.sequence,
            self.records.len() as u64,
            checksum(seed, &records),
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let sum = checksum(seed, &out);
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        out
    }
}

/// The front of a batch, which says how long it is.
#[derive(Debug)]
struct Front {
    kind: Kind,
    generation: u64,
    sequence: u64,
    n_records: usize,
    records_sum: u64,
}

impl Front {
    /// Reads one; none begins here if the bytes do not match their checksum.
    fn decode(seed: u64, bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (content, sum) = bytes.split_last_chunk::<8>()?;
        if content.get(..8)? != MAGIC || *sum != checksum(seed, content).to_le_bytes() {
            return None;
        }
        let word = |number: usize| {
            let bytes = content.get(8 * number..8 * number + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let kind = match word(1)? {
            0 => Kind::Part,
            1 => Kind::Checkpoint,
            2 => Kind::Change,
            _ => return None,
        };
        Some(Self {
            kind,
            generation: word(2)?,
            sequence: word(3)?,
            n_records: usize::try_from(word(4)?)
                .ok()
                .filter(|count| *count <= RECORDS_MAX)?,
            records_sum: word(5)?,
        })
    }
}

/// Where the next batch of a log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Of this log.
    pub generation: u64,
    /// Of the next batch.
    pub sequence: u64,
    /// Where the next batch begins, counted from the start of the log.
    pub end: u64,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum LogError<E> {
    #[error("the log of the overlay cannot be read")]
    Read(#[source] E),
    #[error(transparent)]
    Damaged(#[from] DecodeError),
}

/// Reads a log from its start and shows each batch of records to `visit`, in order.
///
/// `read` fills a buffer with the bytes at a place in the log, which has `log_bytes` bytes. Returns
/// `None`, after showing whatever there was, when no complete checkpoint begins here. A batch that
/// was cut by a crash ends the log; it never counted.
///
/// # Errors
/// Reading fails; or a batch is damaged and one behind it is not, so that it did count once.
pub fn walk<E>(
    seed: u64,
    n_blocks: u64,
    log_bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut visit: impl FnMut(&[Record]),
) -> Result<Option<Log>, LogError<E>> {
    let mut log: Option<Log> = None;
    let mut complete = false;
    let mut at = 0;
    while let Some(front) = front_at(seed, log_bytes, at, &mut read)? {
        let expected = log.map_or((front.generation, 0), |log| (log.generation, log.sequence));
        let fits = complete == (front.kind == Kind::Change);
        if (front.generation, front.sequence) != expected || !fits {
            break;
        }
        let Some(records) = records_of(seed, &front, at, n_blocks, &mut read)? else {
            break;
        };
        visit(&records);
        complete |= front.kind == Kind::Checkpoint;
        at += Batch::encoded_bytes(front.n_records);
        log = Some(Log {
            generation: front.generation,
            sequence: front.sequence + 1,
            end: at,
        });
    }
    let Some(log) = log.filter(|_| complete) else {
        return Ok(None);
    };
    // What a crash cut is the last batch, so nothing that belongs to the log begins behind it.
    let until = (at + BATCH_BYTES_MAX + BLOCK).min(log_bytes);
    while at < until {
        if let Some(front) = front_at(seed, log_bytes, at, &mut read)?
            && front.generation == log.generation
            && front.sequence > log.sequence
        {
            let reason = "a batch in the middle does not match its checksum";
            return Err(DecodeError::invalid(WHAT, reason).into());
        }
        at += BLOCK;
    }
    Ok(Some(log))
}

fn front_at<E>(
    seed: u64,
    log_bytes: u64,
    at: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<Front>, LogError<E>> {
    if at + BLOCK > log_bytes {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    read(at, &mut bytes).map_err(LogError::Read)?;
    let front = Front::decode(seed, &bytes);
    Ok(front.filter(|front| at + Batch::encoded_bytes(front.n_records) <= log_bytes))
}

/// The records behind `front`; `None` if not all of them were written.
fn records_of<E>(
    seed: u64,
    front: &Front,
    at: u64,
    n_blocks: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<Vec<Record>>, LogError<E>> {
    let mut bytes = vec![0; front.n_records * RECORD_BYTES];
    read(at + HEADER_BYTES as u64, &mut bytes).map_err(LogError::Read)?;
    if checksum(seed, &bytes) != front.records_sum {
        return Ok(None);
    }
    let mut reader = Reader::new(WHAT, &bytes, RECORDS_MAX * RECORD_BYTES)?;
    let records = (0..front.n_records).map(|_| Record::decode(&mut reader, n_blocks));
    Ok(Some(records.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests;
