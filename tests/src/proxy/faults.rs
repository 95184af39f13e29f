//! Faults above TCP, by plan: which request meets which fault is decided by counting, never by chance.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

/// What happens to one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another status and an empty body; the server is not asked.
    Status(u16),
    /// The connection is reset behind so many bytes of the body.
    Reset(u64),
    /// The connection is closed behind so many bytes of the body, which said that it is longer.
    Truncate(u64),
    /// Nothing comes behind so many bytes of the body, and the connection stays.
    Stall(u64),
    /// One bit of that byte of the body is another.
    Corrupt(u64),
    /// So many bytes of the body come in a second.
    Slow(u64),
}

/// Which requests meet a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Requests whose path begins with this count.
    pub path: String,
    /// Which of these it is, from 1 on.
    pub nth: u64,
    /// What the answer to it meets.
    pub fault: Fault,
}

impl Rule {
    /// Says what the `nth` request for a path that begins with `path` meets.
    pub fn new(path: &str, nth: u64, fault: Fault) -> Self {
        Self {
            path: path.to_owned(),
            nth,
            fault,
        }
    }
}

/// Rules, and how many requests each has seen.
#[derive(Debug, Default)]
pub struct Plan {
    rules: Mutex<Vec<(Rule, u64)>>,
}

impl Plan {
    /// Makes a plan that has seen nothing yet.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules: Mutex::new(rules.into_iter().map(|rule| (rule, 0)).collect()),
        }
    }

    /// Counts a request and returns what it meets: the fault of the first rule that names it.
    pub fn next(&self, path: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut met = None;
        for (rule, seen) in rules.iter_mut() {
            if path.starts_with(&rule.path) {
                *seen += 1;
                if *seen == rule.nth {
                    met = met.or(Some(rule.fault));
                }
            }
        }
        met
    }
}

/// What to do with a piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Pass these bytes on, after a pause.
    Pass(Bytes, Duration),
    /// Pass these bytes on, then do what ends the body.
    Last(Bytes, End),
}

/// How a body ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection is reset.
    Reset,
    /// The connection is closed.
    Close,
    /// Nothing more comes.
    Silence,
}

impl Fault {
    /// Decides about the `piece` of a body behind `passed` bytes of it.
    pub fn step(self, passed: u64, mut piece: Bytes) -> Step {
        let end = match self {
            Self::Status(_) => return Step::Pass(piece, Duration::ZERO),
            Self::Slow(rate) => {
                let nanos =
                    u128::from(piece.len() as u64) * 1_000_000_000 / u128::from(rate.max(1));
                let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
                return Step::Pass(piece, pause);
            }
            Self::Corrupt(at) => {
                let place = at
                    .checked_sub(passed)
                    .and_then(|place| usize::try_from(place).ok());
                let mut bytes = BytesMut::from(piece.as_ref());
                if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
                    *byte ^= 1;
                }
                return Step::Pass(bytes.freeze(), Duration::ZERO);
            }
            Self::Reset(after) => (after, End::Reset),
            Self::Truncate(after) => (after, End::Close),
            Self::Stall(after) => (after, End::Silence),
        };
        let (after, end) = end;
        let left = usize::try_from(after.saturating_sub(passed)).unwrap_or(usize::MAX);
        match left < piece.len() {
            true => Step::Last(piece.split_to(left), end),
            false => Step::Pass(piece, Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::{prop_assert_eq, proptest};

    use super::{End, Fault, Plan, Rule, Step};

    /// Sends a body in `pieces` and returns what comes out, and how it ended if not by itself.
    fn send(fault: Fault, pieces: &[Vec<u8>]) -> (Vec<u8>, Option<End>) {
        let (mut out, mut passed) = (Vec::new(), 0);
        for piece in pieces {
            match fault.step(passed, Bytes::from(piece.clone())) {
                Step::Pass(bytes, _) => out.extend(bytes),
                Step::Last(bytes, end) => {
                    out.extend(bytes);
                    return (out, Some(end));
                }
            }
            passed += piece.len() as u64;
        }
        (out, None)
    }

    proptest! {
        /// However a body is cut into pieces, a fault strikes at the same byte.
        #[test]
        fn a_fault_strikes_at_its_byte((pieces, at) in (vec(vec(any::<u8>(), 1..50), 1..9), 0..300_usize)) {
            let body = pieces.concat();
            let cut = body.len().min(at);
            let early = (at < body.len()).then_some(End::Close);
            let place = at as u64;
            prop_assert_eq!(send(Fault::Truncate(place), &pieces), (body[..cut].to_vec(), early));
            let mut flipped = body.clone();
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= 1;
            }
            prop_assert_eq!(send(Fault::Corrupt(place), &pieces), (flipped, None));
            prop_assert_eq!(send(Fault::Slow(1000), &pieces), (body, None));
        }
    }

    #[test]
    fn a_slow_body_takes_its_time() {
        let step = Fault::Slow(1000).step(0, Bytes::from_static(&[0; 250]));
        assert!(matches!(step, Step::Pass(_, pause) if pause == Duration::from_millis(250)));
    }

    #[test]
    fn only_requests_of_the_rule_count() {
        let plan = Plan::new(vec![
            Rule::new("/objects/", 2, Fault::Status(503)),
            Rule::new("/", 3, Fault::Stall(0)),
        ]);
        let asked = ["/objects/a", "/metadata", "/objects/b", "/objects/c"];
        let met = asked.map(|path| plan.next(path));
        // The third request is the second of the first rule, which stands first.
        assert_eq!(met, [None, None, Some(Fault::Status(503)), None]);
    }
}
