//! The ledger against a model of the file, of the log, and of what a crash would leave.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const N_BLOCKS: u64 = 200;

/// What a log would say.
type Map = BTreeMap<u64, Option<(Side, u64)>>;

#[derive(Clone, Debug)]
enum Op {
    Write { start: u64, len: u64 },
    Discard { start: u64, len: u64 },
    Begin,
    Finish,
    Revert,
    GiveBack,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let range =
        (0..N_BLOCKS, 1..90_u64).prop_map(|(start, len)| (start, len.min(N_BLOCKS - start)));
    prop_oneof![
        8 => range.clone().prop_map(|(start, len)| Op::Write { start, len }),
        3 => range.prop_map(|(start, len)| Op::Discard { start, len }),
        3 => Just(Op::Begin),
        3 => Just(Op::Finish),
        1 => Just(Op::Revert),
        1 => Just(Op::GiveBack),
        1 => Just(Op::Restart),
    ]
}

/// A ledger beside what it has to be.
#[derive(Default)]
struct Both {
    ledger: Ledger,
    /// What is on each side of the file.
    file: BTreeMap<(Side, u64), u64>,
    now: Map,
    durable: Map,
    flying: Option<Map>,
    next_sum: u64,
}

fn apply(map: &mut Map, records: &[Record]) {
    for record in records {
        match *record {
            Record::Zeros { block, count } => map.extend((block..block + count).map(|b| (b, None))),
            Record::Data { block, side, sum } => {
                map.insert(block, Some((side, sum)));
            }
        }
    }
}

impl Both {
    /// The sides that a reader of the file as it is, or as it will be, follows.
    fn pointed_to(&self) -> BTreeSet<(Side, u64)> {
        [Some(&self.durable), self.flying.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|map| {
                map.iter()
                    .filter_map(|(b, at)| at.map(|(side, _)| (side, *b)))
            })
            .collect()
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write { start, len } => self.write(start..start + len),
            Op::Discard { start, len } => {
                if !self.ledger.is_flying(&(start..start + len)) {
                    self.ledger.discard(&(start..start + len));
                    self.now
                        .extend((start..start + len).map(|block| (block, None)));
                }
            }
            Op::Begin if self.flying.is_none() => {
                let records = self.ledger.begin();
                let mut flying = self.durable.clone();
                apply(&mut flying, &records);
                assert_eq!(flying, self.now, "a batch leads to what is");
                let mut whole = Map::new();
                apply(&mut whole, &self.ledger.checkpoint());
                assert_eq!(whole, self.now, "and so does a checkpoint");
                self.flying = Some(flying);
            }
            Op::Finish => {
                if let Some(flying) = self.flying.take() {
                    self.ledger.finish();
                    self.durable = flying;
                }
            }
            Op::Revert => {
                self.flying = None;
                self.ledger.revert();
            }
            Op::GiveBack => {
                let pointed_to = self.pointed_to();
                for (side, block) in self
                    .ledger
                    .take_stale()
                    .into_iter()
                    .flat_map(|(side, run)| run.map(move |block| (side, block)))
                {
                    assert!(!pointed_to.contains(&(side, block)), "given back in use");
                    self.file.remove(&(side, block));
                }
            }
            Op::Restart => {
                let mut records = Vec::new();
                for (block, at) in &self.durable {
                    records.push(match *at {
                        None => Record::Zeros {
                            block: *block,
                            count: 1,
                        },
                        Some((side, sum)) => Record::Data {
                            block: *block,
                            side,
                            sum,
                        },
                    });
                }
                self.ledger = Ledger::default();
                records.iter().for_each(|record| self.ledger.replay(record));
                self.now = self.durable.clone();
                self.flying = None;
            }
            Op::Begin => {}
        }
    }

    fn write(&mut self, blocks: Range<u64>) {
        if self.ledger.is_flying(&blocks) {
            return;
        }
        let pointed_to = self.pointed_to();
        let mut next = blocks.start;
        for (side, run) in self.ledger.place(blocks.clone()) {
            assert_eq!(run.start, next);
            next = run.end;
            let sums: Vec<_> = run.clone().map(|block| self.next_sum + block).collect();
            for (block, sum) in run.clone().zip(&sums) {
                assert!(!pointed_to.contains(&(side, block)), "overwritten in use");
                self.file.insert((side, block), *sum);
                self.now.insert(block, Some((side, *sum)));
            }
            self.ledger.note_written(side, run.start, &sums);
        }
        assert_eq!(next, blocks.end);
        self.next_sum += N_BLOCKS;
    }

    fn check(&self) {
        let mut found = Map::new();
        for run in self.ledger.look_up(0..N_BLOCKS) {
            match run.content {
                Content::Base => {}
                Content::Zeros => found.extend(run.blocks.map(|block| (block, None))),
                Content::Data { side, sums } => {
                    found.extend(run.blocks.zip(sums).map(|(b, sum)| (b, Some((side, sum)))));
                }
            }
        }
        assert_eq!(found, self.now);
        for (block, at) in [&self.now, &self.durable].into_iter().flatten() {
            if let Some((side, sum)) = at {
                assert_eq!(self.file.get(&(*side, *block)), Some(sum), "block {block}");
            }
        }
        let written = self.now.values().flatten().count();
        assert_eq!(self.ledger.n_written(), written as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Nothing that the log points to is overwritten or given back; what is read is what was written.
    #[test]
    fn what_the_log_points_to_is_never_touched(ops in vec(op(), 1..60)) {
        let mut both = Both::default();
        for op in &ops {
            both.run(op);
            both.check();
        }
        both.run(&Op::Finish);
        both.run(&Op::Begin);
        both.run(&Op::Finish);
        prop_assert_eq!(both.ledger.n_dirty(), 0);
        both.run(&Op::GiveBack);
        both.check();
    }
}
