//! Decides which mirror is asked, and which of the others is looked at; knows no clock and no network.
//!
//! Whoever answers right goes before whoever fails, and that before whoever lied. Among equals the
//! faster goes first ([`Score`]), but not for a little: another one takes over when it is a quarter
//! faster, and one that was given earlier comes back when it is not slower than a tenth. Mirrors of
//! which nothing is known stand in the order in which they were given.
//!
//! One is used at a time. A mirror that fills the line is as good as two, and one that does not is
//! slower than another by its own measure, which then takes over.

use std::time::Duration;

use super::MirrorId;
use super::score::Score;
use crate::fetch::retry::Blame;

/// How a mirror did so far; the better goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answers, or was not asked yet.
    Good,
    /// It did not answer when it was last asked, or had not what others may have.
    Failing,
    /// It sent wrong bytes.
    Quarantined,
}

/// Less is not worth another connection.
const WORTH: Duration = Duration::from_millis(2);

/// One answer says too little about a mirror: it pays for the new connection.
const ANSWERS_MIN: u32 = 2;

/// How soon a mirror is looked at again at first.
const LOOK_FIRST: Duration = Duration::from_secs(1);

/// The longest time between two looks at a mirror.
const LOOK_LAST: Duration = Duration::from_secs(300);

/// When a mirror is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    due: Duration,
    step: Duration,
}

impl Look {
    const AT_ONCE: Self = Self {
        due: Duration::ZERO,
        step: LOOK_FIRST,
    };

    const fn soon(now: Duration) -> Self {
        Self {
            due: now.saturating_add(LOOK_FIRST),
            step: LOOK_FIRST,
        }
    }

    fn taken(&mut self, now: Duration) {
        self.due = now.saturating_add(self.step);
        self.step = (self.step * 2).min(LOOK_LAST);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    standing: Standing,
    score: Score,
    look: Look,
    /// Whether one looks at it now.
    is_looked_at: bool,
}

/// Decides which mirror is asked next. Moments are times since any beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    mirrors: Vec<Mirror>,
    /// Who is asked first.
    first: usize,
}

impl Ranking {
    /// A ranking of `n` mirrors, at least one, of which nothing is known.
    #[must_use]
    pub fn of(n: usize) -> Self {
        let unknown = Mirror {
            standing: Standing::Good,
            score: Score::default(),
            look: Look::AT_ONCE,
            is_looked_at: false,
        };
        Self {
            mirrors: vec![unknown; n.max(1)],
            first: 0,
        }
    }

    /// All mirrors, the one to ask first at the front.
    #[must_use]
    pub fn order(&self) -> Vec<MirrorId> {
        let mut order: Vec<usize> = (0..self.mirrors.len()).collect();
        order.sort_by_key(|number| {
            let standing = self.mirrors[*number].standing;
            let cost = self.cost(*number).unwrap_or(Duration::MAX);
            (standing, *number != self.first, cost, *number)
        });
        order.into_iter().map(MirrorId).collect()
    }

    /// Who is asked first.
    #[must_use]
    pub const fn first(&self) -> MirrorId {
        MirrorId(self.first)
    }

    /// The best mirror that was not `tried`.
    #[must_use]
    pub fn next(&self, tried: &[MirrorId]) -> Option<MirrorId> {
        let mut order = self.order().into_iter();
        order.find(|mirror| !tried.contains(mirror))
    }

    /// Another mirror that answers, for a request that `mirror` lets wait.
    #[must_use]
    pub fn other(&self, mirror: MirrorId) -> Option<MirrorId> {
        let good = |other: &MirrorId| *other != mirror && self.standing(*other) == Standing::Good;
        self.order().into_iter().find(good)
    }

    /// Where a mirror stands.
    #[must_use]
    pub fn standing(&self, mirror: MirrorId) -> Standing {
        let mirror = self.mirrors.get(mirror.0);
        mirror.map_or(Standing::Good, |mirror| mirror.standing)
    }

    /// How fast a mirror is.
    #[must_use]
    pub fn score(&self, mirror: MirrorId) -> Option<&Score> {
        self.mirrors.get(mirror.0).map(|mirror| &mirror.score)
    }

    /// Notes that a mirror failed. Returns its new standing, if that is another one.
    pub fn failed(&mut self, mirror: MirrorId, blame: Blame, now: Duration) -> Option<Standing> {
        let mirror = self.mirrors.get_mut(mirror.0)?;
        let standing = mirror.standing.max(match blame {
            Blame::Unable => Standing::Failing,
            Blame::Lying => Standing::Quarantined,
        });
        if mirror.standing == standing {
            return None;
        }
        mirror.standing = standing;
        mirror.look = Look::soon(now);
        self.settle();
        Some(standing)
    }

    /// Notes that a mirror answered right. What sent wrong bytes once is not believed to mend.
    pub fn answered(&mut self, mirror: MirrorId, now: Duration) {
        if let Some(mirror) = self.mirrors.get_mut(mirror.0)
            && mirror.standing == Standing::Failing
        {
            mirror.standing = Standing::Good;
            mirror.look = Look::soon(now);
            self.settle();
        }
    }

    /// Lets `note` change what is known of the speed of a mirror. Returns who is asked first from now
    /// on, if that is another one.
    pub fn measured(
        &mut self,
        mirror: MirrorId,
        note: impl FnOnce(&mut Score),
    ) -> Option<MirrorId> {
        note(&mut self.mirrors.get_mut(mirror.0)?.score);
        self.settle()
    }

    /// A mirror that is to be looked at now, though it is not the first: a small request that nobody
    /// waits for tells how fast it is, or whether it is back. Liars are not looked at. Of several it is the one that was due
    /// first; one that does not answer keeps nobody from a look at another.
    #[must_use]
    pub fn due(&self, now: Duration) -> Option<MirrorId> {
        let others = self.mirrors.iter().enumerate();
        let is_due = |(number, mirror): &(usize, &Mirror)| {
            *number != self.first
                && mirror.standing != Standing::Quarantined
                && !mirror.is_looked_at
                && mirror.look.due <= now
        };
        let first = others
            .filter(is_due)
            .min_by_key(|(_, mirror)| mirror.look.due);
        first.map(|(number, _)| MirrorId(number))
    }

    /// Notes that a mirror is looked at from now on.
    pub fn looked_at(&mut self, mirror: MirrorId, now: Duration) {
        if let Some(mirror) = self.mirrors.get_mut(mirror.0) {
            mirror.look.taken(now);
            mirror.is_looked_at = true;
        }
    }

    /// Notes that the look at a mirror is over.
    pub fn was_looked_at(&mut self, mirror: MirrorId) {
        if let Some(mirror) = self.mirrors.get_mut(mirror.0) {
            mirror.is_looked_at = false;
        }
    }

    /// What a usual request would take of a mirror. One of which only the pace is not known may be
    /// as fast as the fastest.
    fn cost(&self, number: usize) -> Option<Duration> {
        let paces = self.mirrors.iter().filter_map(|mirror| mirror.score.pace());
        self.mirrors[number].score.cost(paces.min().unwrap_or(0))
    }

    /// Finds who is asked first from now on. Returns it if it is another one.
    fn settle(&mut self) -> Option<MirrorId> {
        let best = self.mirrors.iter().map(|mirror| mirror.standing).min()?;
        let among = |number: &usize| self.mirrors[*number].standing == best;
        let candidates: Vec<usize> = (0..self.mirrors.len()).filter(among).collect();
        let mut first = if candidates.contains(&self.first) {
            self.first
        } else {
            *candidates.first()?
        };
        for other in candidates {
            if self.takes_over(other, first) {
                first = other;
            }
        }
        (std::mem::replace(&mut self.first, first) != first).then_some(MirrorId(first))
    }

    /// Whether `other` is to be asked first instead of `first`.
    fn takes_over(&self, other: usize, first: usize) -> bool {
        match (self.cost(other), self.cost(first)) {
            (None, None) => other < first,
            (Some(cost), Some(now)) if other < first => cost <= now + now / 10 + WORTH,
            (Some(cost), Some(now)) => {
                let known = self.mirrors[other].score.answers() >= ANSWERS_MIN;
                known && cost + cost / 4 + WORTH < now
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
