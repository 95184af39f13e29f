//! Whether a worker that lives also works. Pure.
//!
//! A worker sends a beat every now and then, by a task of its runtime: where the runtime stands still, or
//! the whole process does, none comes. Neither does it where the threads that take requests from the kernel
//! stand still: [`Pulse`] has none sent then. A worker that waits for a server, for however long, beats.
//!
//! [`Watch`] is the supervisor's side. To kill what would have gone on is worse than to wait, so the
//! bound is far above what a machine that is short of memory or processor makes of a beat. Time that passed
//! for nobody (the machine slept, the supervisor was stopped too) does not count, and who does not know of
//! beats, because it is an older version, is not waited for.

use std::time::Duration;

/// Without a beat for so long a worker hangs. Far longer than a process that gets on is kept from a task
/// of some microseconds by swapping or by a busy processor, and shorter than people or their tools wait
/// before they reset a machine whose root does not answer.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Beats in that time: one that is late, or is not sent, means nothing.
pub const BEATS: u32 = 6;

/// What a supervisor knows of the worker that has the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What is too long.
    limit: Duration,
    /// When a beat came last; `None`: none is expected.
    heard: Option<Duration>,
    /// When the supervisor looked last.
    looked: Duration,
}

impl Watch {
    /// Nobody is watched yet; silence of `limit` will be too long.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            heard: None,
            looked: Duration::ZERO,
        }
    }

    /// Begins with a worker at `now`, on any clock that never goes back and stands still while the machine
    /// sleeps. Where it is not known that it `beats`, it is watched from its first beat on.
    pub fn begin(&mut self, beats: bool, now: Duration) {
        self.heard = beats.then_some(now);
        self.looked = now;
    }

    /// A beat came.
    pub fn heard(&mut self, now: Duration) {
        self.heard = Some(now);
        self.looked = now;
    }

    /// Nobody is watched any more.
    pub const fn end(&mut self) {
        self.heard = None;
    }

    /// When to look next, if somebody is watched.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.heard.map(|_| self.looked + self.limit / BEATS)
    }

    /// Looks at `now`: returns for how long the worker was silent, if that is too long.
    pub fn look(&mut self, now: Duration) -> Option<Duration> {
        let heard = self.heard?;
        let since = now.saturating_sub(self.looked);
        self.looked = now;
        if since > self.limit / BEATS * 2 {
            // Whoever should have looked long ago did not run itself, and what was sent waits to be read.
            self.heard = Some(now);
            return None;
        }
        let silent = now.saturating_sub(heard);
        (silent >= self.limit).then_some(silent)
    }
}

/// The worker's side: whether the threads that take requests get on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Requests that were taken until the last look, if one waited then.
    waiting_at: Option<u64>,
}

impl Pulse {
    /// Looks: `waits` says whether a request of the kernel waits to be taken, `taken` how many were so far.
    /// Returns whether to send a beat: not if one waited the last time too, and none was taken since.
    pub fn look(&mut self, waits: bool, taken: u64) -> bool {
        let stands_still = waits && self.waiting_at == Some(taken);
        self.waiting_at = waits.then_some(taken);
        !stands_still
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: Duration = Duration::from_secs(5);

    /// Looks when it is due until `end`; returns when it was found to hang.
    fn look_until(watch: &mut Watch, end: Duration) -> Option<Duration> {
        while let Some(due) = watch.due().filter(|due| *due <= end) {
            if watch.look(due).is_some() {
                return Some(due);
            }
        }
        None
    }

    #[test]
    fn a_worker_that_is_silent_for_too_long_hangs_and_one_that_beats_never_does() {
        let mut watch = Watch::new(SILENCE_MAX);
        watch.begin(true, LOOK);
        for n in 1..10_000 {
            watch.heard(LOOK * n);
            assert_eq!(look_until(&mut watch, LOOK * n + SILENCE_MAX / 2), None);
        }
        let last = LOOK * 9_999;
        let hangs = look_until(&mut watch, last + SILENCE_MAX * 2).unwrap();
        assert!(hangs >= last + SILENCE_MAX && hangs <= last + SILENCE_MAX + LOOK);
        watch.end();
        assert_eq!(watch.due(), None);
    }

    #[test]
    fn an_older_worker_that_knows_of_no_beats_is_not_watched() {
        let mut watch = Watch::new(SILENCE_MAX);
        watch.begin(false, Duration::ZERO);
        assert_eq!((watch.due(), watch.look(SILENCE_MAX * 9)), (None, None));
        // One that does is, from then on.
        watch.heard(LOOK);
        assert!(look_until(&mut watch, SILENCE_MAX * 2).is_some());
    }

    #[test]
    fn time_in_which_the_supervisor_did_not_run_is_not_held_against_the_worker() {
        let mut watch = Watch::new(SILENCE_MAX);
        watch.begin(true, Duration::ZERO);
        let woken = Duration::from_secs(3600);
        assert_eq!(watch.look(woken), None);
        assert_eq!(look_until(&mut watch, woken + SILENCE_MAX - LOOK), None);
        assert!(look_until(&mut watch, woken + SILENCE_MAX).is_some());
    }

    #[test]
    fn threads_that_take_no_request_though_one_waits_stop_the_pulse() {
        let mut pulse = Pulse::default();
        // Nothing to do, much to do, and something left to do each time.
        assert!(pulse.look(false, 0) && pulse.look(false, 0));
        assert!(pulse.look(true, 0) && pulse.look(true, 9) && pulse.look(true, 10));
        assert!(!pulse.look(true, 10) && !pulse.look(true, 10));
        assert!(pulse.look(true, 11) && pulse.look(false, 11) && pulse.look(true, 11));
    }

    proptest! {
        /// Whatever happens when, nobody is found to hang before the bound is over since his last beat.
        #[test]
        fn nobody_hangs_too_soon(steps in prop::collection::vec((0_u64..20_000, any::<bool>()), 1..200)) {
            let mut watch = Watch::new(SILENCE_MAX);
            watch.begin(true, Duration::ZERO);
            let (mut now, mut heard) = (Duration::ZERO, Duration::ZERO);
            for (ms, beats) in steps {
                now += Duration::from_millis(ms);
                if beats {
                    heard = now;
                    watch.heard(now);
                } else if let Some(silent) = watch.look(now) {
                    prop_assert!(silent >= SILENCE_MAX && silent <= now - heard);
                }
            }
        }
    }
}
