//! Logs that were cut, damaged or made up.

use std::convert::Infallible;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SEED: u64 = 99;
const N_BLOCKS: u64 = 1000;

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        (0..N_BLOCKS, 1..N_BLOCKS).prop_map(|(block, count)| Record::Zeros {
            block,
            count: count.min(N_BLOCKS - block)
        }),
        (0..N_BLOCKS, any::<bool>(), any::<u64>()).prop_map(|(block, a, sum)| Record::Data {
            block,
            side: if a { Side::A } else { Side::B },
            sum
        }),
    ]
}

/// A log: a checkpoint in parts, then changes. Returns where each batch ends, too.
fn encode(parts: &[Vec<Record>], n_checkpoint: usize) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for (number, records) in parts.iter().enumerate() {
        let kind = match number + 1 {
            n if n < n_checkpoint => Kind::Part,
            n if n == n_checkpoint => Kind::Checkpoint,
            _ => Kind::Change,
        };
        let batch = Batch {
            kind,
            generation: 5,
            sequence: number as u64,
            records: records.clone(),
        };
        bytes.extend(batch.encode(SEED));
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn read_back(bytes: &[u8]) -> Result<(Option<Log>, Vec<Record>), LogError<Infallible>> {
    let mut found = Vec::new();
    let read = |at: u64, out: &mut [u8]| {
        let rest = bytes.get(usize::try_from(at).unwrap()..).unwrap_or(&[]);
        let count = rest.len().min(out.len());
        out.fill(0);
        out[..count].copy_from_slice(&rest[..count]);
        Ok(())
    };
    let log = walk(SEED, N_BLOCKS, LOG_LEAST_BYTES, read, |records| {
        found.extend_from_slice(records);
    })?;
    Ok((log, found))
}

proptest! {
    /// What was appended is read, in order.
    #[test]
    fn a_log_is_read_as_it_was_written(parts in vec(vec(record(), 0..400), 1..8), n in 1..8_usize) {
        let (bytes, _) = encode(&parts, n.min(parts.len()));
        let (log, found) = read_back(&bytes).unwrap();
        let log = log.unwrap();
        prop_assert_eq!((log.generation, log.sequence), (5, parts.len() as u64));
        prop_assert_eq!(log.end, bytes.len() as u64);
        prop_assert_eq!(found, parts.concat());
    }

    /// Wherever a crash cuts it, a log is the batches before the cut; without its checkpoint it is none.
    #[test]
    fn a_cut_log_is_the_whole_batches_before_the_cut(
        parts in vec(vec(record(), 1..400), 2..6), n in 1..4_usize, cut: prop::sample::Index, garbage: u8,
    ) {
        let n = n.min(parts.len());
        let (mut bytes, ends) = encode(&parts, n);
        let cut = cut.index(bytes.len());
        let whole = ends.iter().filter(|end| **end <= cut).count();
        bytes.truncate(cut);
        bytes.resize(cut + 3000, garbage);
        let (log, found) = read_back(&bytes).unwrap();
        // Padding is no part of a batch: one that lacks only that may count.
        let got = log.map_or(0, |log| usize::try_from(log.sequence).unwrap());
        prop_assert!(got == whole || got == whole + 1 || (got == 0 && whole < n));
        if got >= n {
            prop_assert_eq!(found, parts[..got].concat());
        } else {
            prop_assert!(log.is_none());
        }
    }

    /// A flipped bit anywhere is never read as something else: it is noticed, or it cut the last batch.
    #[test]
    fn a_flipped_bit_never_changes_a_record(
        parts in vec(vec(record(), 1..300), 2..6), bit: prop::sample::Index,
    ) {
        let (mut bytes, ends) = encode(&parts, 1);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        let used = HEADER_BYTES + parts[hit].len() * RECORD_BYTES;
        let start = if hit == 0 { 0 } else { ends[hit - 1] };
        let padding = bit / 8 - start >= used;
        match read_back(&bytes) {
            Err(_) => prop_assert!(hit + 1 < parts.len() && !padding),
            Ok((None, _)) => prop_assert!(hit == 0 && !padding),
            Ok((Some(_), found)) if padding => prop_assert_eq!(found, parts.concat()),
            Ok((Some(_), found)) => {
                prop_assert_eq!(hit + 1, parts.len());
                prop_assert_eq!(found, parts[..hit].concat());
            }
        }
    }

    /// Any bytes are a log, none, or damage; never a panic.
    #[test]
    fn any_bytes_are_judged(bytes in vec(any::<u8>(), 0..10_000)) {
        let _ = read_back(&bytes);
    }
}

#[test]
fn a_record_about_no_block_of_the_disk_is_damage() {
    let wrong = [
        Record::Zeros { block: 0, count: 0 },
        Record::Zeros {
            block: 1,
            count: N_BLOCKS,
        },
        Record::Zeros {
            block: 1,
            count: u64::MAX,
        },
        Record::Data {
            block: N_BLOCKS,
            side: Side::A,
            sum: 0,
        },
    ];
    for record in wrong {
        let (bytes, _) = encode(&[vec![record]], 1);
        assert!(read_back(&bytes).is_err(), "{record:?}");
    }
}
