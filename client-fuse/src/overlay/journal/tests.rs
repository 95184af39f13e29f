//! What the next process makes of a journal, and that a journal takes no more memory than it needs.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::overlay::ledger::Content;

const N_BLOCKS: u64 = 64;

/// A log that goes on with the batch of this number.
const fn log(sequence: u64) -> Log {
    Log {
        generation: 3,
        sequence,
        end: 8192,
    }
}

const fn batch(sequence: u64) -> Entry {
    Entry::Batch {
        generation: 3,
        sequence,
    }
}

const fn data(block: u64, sum: u64) -> Entry {
    let side = Side::A;
    Entry::Record(Record::Data { block, side, sum })
}

fn sum_of(ledger: &Ledger, block: u64) -> Option<u64> {
    match &ledger.look_up(block..block + 1)[0].content {
        Content::Data { sums, .. } => Some(sums[0]),
        Content::Base | Content::Zeros => None,
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    let run = (0..N_BLOCKS).prop_flat_map(|block| (Just(block), 1..=N_BLOCKS - block));
    let side = prop_oneof![Just(Side::A), Just(Side::B)];
    prop_oneof![
        (0..N_BLOCKS, side, any::<u64>())
            .prop_map(|(block, side, sum)| Entry::Record(Record::Data { block, side, sum })),
        run.clone()
            .prop_map(|(block, count)| Entry::Record(Record::Zeros { block, count })),
        run.prop_map(|(block, count)| Entry::Undone { block, count }),
        Just(Entry::Patch),
        (0..1_u64 << 56, any::<u64>()).prop_map(|(generation, sequence)| Entry::Batch {
            generation,
            sequence
        }),
        Just(Entry::Broken),
        Just(Entry::Taking),
    ]
}

proptest! {
    #[test]
    fn what_is_noted_is_found_by_the_next_process(
        parts in vec(vec(entry(), 0..40), 0..6),
        forgotten in any::<prop::sample::Index>(),
        cut in 0..16_usize,
    ) {
        let journal = Journal::new().unwrap();
        for part in &parts {
            journal.note(part.iter().copied()).unwrap();
        }
        let all = parts.concat();
        let n = forgotten.index(all.len() + 1);
        journal.forget_first(n);
        prop_assert_eq!(journal.n_entries(), (all.len() - n) as u64);
        // A copy that was cut within an entry.
        let end = journal.ends().end;
        journal.file.write_all_at(&vec![0xff; cut], end).unwrap();
        let (next, found) = Journal::of(journal.kept().unwrap(), N_BLOCKS).unwrap();
        prop_assert_eq!(&found, &all[n..]);
        next.note([Entry::Patch]).unwrap();
        let (_, found) = Journal::of(next.kept().unwrap(), N_BLOCKS).unwrap();
        prop_assert_eq!(found.len(), all.len() - n + 1);
        prop_assert_eq!(found.last(), Some(&Entry::Patch));
    }

    #[test]
    fn whatever_is_in_the_memory_is_refused_or_replayed(
        bytes in vec(any::<u8>(), 0..400),
        start in prop_oneof![Just(ENTRIES_AT), any::<u64>()],
    ) {
        let journal = Journal::new().unwrap();
        journal.file.write_all_at(&bytes, ENTRIES_AT).unwrap();
        journal.file.write_all_at(&start.to_le_bytes(), 8).unwrap();
        if let Ok((_, entries)) = Journal::of(journal.kept().unwrap(), N_BLOCKS) {
            let _ = replay(&entries, &log(1), &mut Ledger::default());
        }
    }
}

#[test]
fn the_last_write_counts_as_far_as_it_was_made_and_those_before_it_do() {
    let mut ledger = Ledger::default();
    let entries = [
        Entry::Patch,
        data(1, 10),
        data(2, 20),
        Entry::Patch,
        data(2, 21),
        data(3, 30),
    ];
    let rest = replay(&entries, &log(7), &mut ledger);
    assert_eq!(rest.landed, 0);
    assert_eq!(rest.unsure, [(2, Side::A, 21), (3, Side::A, 30)]);
    assert_eq!(
        [1, 2, 3].map(|block| sum_of(&ledger, block)),
        [Some(10), Some(20), None]
    );
    assert_eq!(ledger.n_dirty(), 2);
}

#[test]
fn what_was_not_written_does_not_count() {
    let mut ledger = Ledger::default();
    let undone = Entry::Undone { block: 2, count: 5 };
    let entries = [
        Entry::Patch,
        data(1, 10),
        data(2, 20),
        data(3, 30),
        undone,
        Entry::Patch,
    ];
    let rest = replay(&entries, &log(7), &mut ledger);
    assert!(rest.unsure.is_empty());
    assert_eq!(
        [1, 2, 3].map(|block| sum_of(&ledger, block)),
        [Some(10), None, None]
    );
}

#[test]
fn a_batch_that_is_on_disk_has_what_was_noted_before_it() {
    let entries = [
        Entry::Patch,
        data(1, 10),
        batch(7),
        Entry::Patch,
        data(2, 20),
        Entry::Patch,
    ];
    // It is not there: both are dirty. Nor is the one after it, of which nothing was said.
    let mut ledger = Ledger::default();
    let rest = replay(&entries, &log(7), &mut ledger);
    assert_eq!((rest.landed, ledger.n_dirty()), (0, 2));
    // It is: the log went on, or a checkpoint of the next generation is there.
    let checkpoint = Log {
        generation: 4,
        ..log(1)
    };
    for log in [log(8), checkpoint] {
        let mut ledger = Ledger::default();
        let rest = replay(&entries, &log, &mut ledger);
        assert_eq!((rest.landed, ledger.n_dirty()), (3, 1));
        assert_eq!(sum_of(&ledger, 2), Some(20));
    }
}

#[test]
fn a_batch_that_fails_again_and_again_takes_no_memory() {
    let journal = Journal::new().unwrap();
    journal.note([Entry::Patch, data(1, 10)]).unwrap();
    let place = journal.begin_batch(&log(7)).unwrap();
    assert_eq!(journal.begin_batch(&log(7)).unwrap(), place);
    assert_eq!(journal.n_entries(), 3);
    journal.note([Entry::Patch]).unwrap();
    assert!(journal.begin_batch(&log(7)).unwrap() > place);
    journal.clear();
    assert_eq!(journal.n_entries(), 0);
}

#[test]
fn the_memory_of_what_is_forgotten_is_given_back() {
    let journal = Journal::new().unwrap();
    for number in 0..200 {
        journal
            .note((0..256).map(|block| data(block % N_BLOCKS, number)))
            .unwrap();
        journal.clear();
    }
    let occupied = journal
        .file
        .metadata()
        .map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
    // 800 KiB were noted; the first page stays, and the last.
    assert!(occupied.unwrap() <= 3 * 4096);
}

#[test]
fn that_nobody_knows_what_is_on_disk_is_not_forgotten() {
    let entries = [Entry::Broken, batch(6), Entry::Patch];
    assert!(replay(&entries, &log(7), &mut Ledger::default()).is_broken);
}

#[test]
fn whoever_takes_over_makes_no_write_sure_and_is_noticed_if_it_dies_at_that() {
    let entries = [Entry::Patch, data(1, 10), Entry::Broken, Entry::Taking];
    let mut ledger = Ledger::default();
    let rest = replay(&entries, &log(7), &mut ledger);
    assert_eq!((rest.unsure.len(), rest.was_syncing), (1, true));
    // It lived: what it noted after that says so.
    let undone = Entry::Undone { block: 1, count: 1 };
    let entries = [
        Entry::Patch,
        data(1, 10),
        Entry::Taking,
        undone,
        Entry::Patch,
    ];
    let rest = replay(&entries, &log(7), &mut ledger);
    assert!(rest.unsure.is_empty() && !rest.was_syncing);
    assert_eq!(sum_of(&ledger, 1), None);
}

#[test]
fn a_batch_that_was_under_way_is_one_of_which_only_the_bytes_tell() {
    let entries = [Entry::Patch, data(1, 10), batch(7), Entry::Patch];
    let of = |sequence| replay(&entries, &log(sequence), &mut Ledger::default());
    assert!(of(7).was_syncing);
    assert!(!of(8).was_syncing);
}

/// It had more when that was noted: what is gone of it was on disk.
#[test]
fn a_log_that_has_less_than_it_had_is_broken_and_nothing_is_dropped() {
    let entries = [Entry::Patch, data(1, 10), batch(7), Entry::Patch];
    let mut ledger = Ledger::default();
    let rest = replay(&entries, &log(6), &mut ledger);
    assert!(rest.is_broken);
    assert_eq!((rest.landed, ledger.n_dirty()), (0, 1));
}
