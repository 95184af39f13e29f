//! Which requests were passed to the worker and not answered yet. Pure.
//!
//! Kept by a supervisor that passes requests on, because the kernel does not send them twice. When a
//! worker dies, all that it left unanswered goes to the next one, in the order in which it came, before
//! anything newer. A request may so be done twice: of a disk that nobody writes to, that harms nothing.

use std::collections::{BTreeMap, HashMap};

use super::wire::Asked;

/// Most requests that are kept. The kernel keeps the others: it has some dozens under way unless
/// thousands of processes read at once.
pub const REQUESTS_MAX: usize = 4096;

/// The requests that wait for the worker or for its answer.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By number of arrival. Those from `unsent` on were not passed to this worker yet.
    requests: BTreeMap<u64, Kept>,
    by_unique: HashMap<u64, u64>,
    unsent: u64,
    next: u64,
}

#[derive(Debug)]
struct Kept {
    asked: Asked,
    bytes: Vec<u8>,
}

impl Ledger {
    /// Whether no more requests can be taken for now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.requests.len() >= REQUESTS_MAX
    }

    /// Takes a request from the kernel.
    pub fn arrived(&mut self, asked: Asked, bytes: &[u8]) {
        let number = self.next;
        self.next += 1;
        if asked.wants_answer {
            self.by_unique.insert(asked.unique, number);
        }
        let bytes = bytes.to_vec();
        self.requests.insert(number, Kept { asked, bytes });
    }

    /// What to pass to the worker next.
    #[must_use]
    pub fn to_send(&self) -> Option<&[u8]> {
        let next = self.requests.range(self.unsent..).next();
        next.map(|(_, kept)| &kept.bytes[..])
    }

    /// It was passed to the worker.
    pub fn sent(&mut self) {
        let Some((number, kept)) = self.requests.range(self.unsent..).next() else {
            return;
        };
        let (number, wants_answer) = (*number, kept.asked.wants_answer);
        self.unsent = number + 1;
        if !wants_answer {
            self.requests.remove(&number);
        }
    }

    /// A request was answered. Returns whether it had waited for that.
    pub fn answered(&mut self, unique: u64) -> bool {
        let number = self.by_unique.remove(&unique);
        number.is_some_and(|number| self.requests.remove(&number).is_some())
    }

    /// The worker is gone: all that is unanswered is for the next one. Returns how many requests it
    /// had been passed.
    pub fn worker_gone(&mut self) -> usize {
        let passed = self.requests.range(..self.unsent).count();
        self.unsent = 0;
        passed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn asked(unique: u64) -> Asked {
        // Like the kernel's, every seventh wants nothing back.
        Asked {
            unique,
            wants_answer: !unique.is_multiple_of(7),
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Arrive,
        Send,
        /// One of those that were passed on, by its place among them.
        Answer(usize),
        Die,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Arrive),
            4 => Just(Step::Send),
            3 => any::<usize>().prop_map(Step::Answer),
            1 => Just(Step::Die),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: each worker is passed each unanswered request once, in
        /// the order of arrival; none that was answered; and with a last worker that lives, all are.
        #[test]
        fn nothing_is_lost_and_nothing_answered_is_asked_again(steps in prop::collection::vec(step(), 0..300)) {
            let mut ledger = Ledger::default();
            let (mut arrived, mut answered, mut last) = (0_u64, BTreeSet::new(), None);
            let mut passed = Vec::new();
            let send = |ledger: &mut Ledger, passed: &mut Vec<u64>, last: &mut Option<u64>, answered: &BTreeSet<u64>| {
                let Some(bytes) = ledger.to_send() else { return false };
                let unique = u64::from_ne_bytes(bytes.try_into().unwrap());
                assert!(!answered.contains(&unique), "it was answered before");
                assert!(last.is_none_or(|last| last < unique), "in the order of arrival");
                *last = Some(unique);
                ledger.sent();
                if asked(unique).wants_answer { passed.push(unique) }
                true
            };
            for step in steps {
                match step {
                    Step::Arrive => {
                        arrived += 1;
                        ledger.arrived(asked(arrived), &arrived.to_ne_bytes());
                    }
                    Step::Send => { send(&mut ledger, &mut passed, &mut last, &answered); }
                    Step::Answer(_) if passed.is_empty() => prop_assert!(!ledger.answered(u64::MAX)),
                    Step::Answer(which) => {
                        let unique = passed.remove(which % passed.len());
                        prop_assert!(ledger.answered(unique));
                        prop_assert!(!ledger.answered(unique));
                        answered.insert(unique);
                    }
                    Step::Die => {
                        prop_assert_eq!(ledger.worker_gone(), passed.len());
                        passed.clear();
                        last = None;
                    }
                }
            }
            ledger.worker_gone();
            (passed, last) = (Vec::new(), None);
            while send(&mut ledger, &mut passed, &mut last, &answered) {}
            let missing = (1..=arrived).filter(|unique| asked(*unique).wants_answer && !answered.contains(unique));
            prop_assert_eq!(passed.clone(), missing.collect::<Vec<_>>());
            for unique in passed {
                prop_assert!(ledger.answered(unique));
            }
            prop_assert!(ledger.requests.is_empty() && ledger.by_unique.is_empty());
        }
    }
}
