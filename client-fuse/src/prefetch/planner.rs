//! Decides which frame of a boot pack to fetch next; fetches nothing itself.
//!
//! A [`Planner`] is told what happened and answers with what to do. It owns no clock, no task and no
//! socket, so a unit test can reach every schedule it can produce.
//!
//! Frames go in the order of the boot. One that a guest waits for goes first, beside what is in
//! flight and whatever the bounds say. Otherwise a few are in flight at once; while guests fetch from
//! ordinary packs, which are then what the boot waits for, only one is: enough that the line does not
//! fall idle. None begins that the caches have no room for.
//!
//! Each frame is fetched at most once: it waits, is in flight, is done.

use std::collections::VecDeque;

use crate::fetch::lanes::Priority;
use crate::fetch::line::Estimate;

/// What one more request costs, in bytes that could be received meanwhile: see
/// [`PlanLimits::of`](crate::fetch::plan::PlanLimits::of).
const REQUEST_BYTES: u64 = 32 << 10;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch this frame.
    Fetch {
        /// Its number.
        frame: usize,
        /// Whether a guest waits for it.
        priority: Priority,
    },
    /// Ask again when something has happened.
    Wait,
    /// All frames are done.
    Finished,
}

/// What else goes on.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// Requests under way that guests wait for and that no frame carries.
    pub guest_requests: usize,
    /// Plain bytes that the caches have room for.
    pub room_bytes: u64,
    /// Frames to fetch ahead at once; see [`frames_max`].
    pub frames_max: usize,
}

/// The usual length of a frame.
const FRAME_BYTES: u64 = 300 << 10;

/// Frames that keep receiving and decoding both busy, and the most whose memory is worth it.
const FRAMES: std::ops::RangeInclusive<u64> = 4..=8;

/// How many frames at once fill `line`: twice what is on its way in a round trip, so that those in
/// the slow start of their connection do not leave it idle.
#[must_use]
pub fn frames_max(line: Estimate) -> usize {
    let frames = line.bytes_per_round_trip().saturating_mul(2) / FRAME_BYTES;
    let frames = (frames + 1).clamp(*FRAMES.start(), *FRAMES.end());
    usize::try_from(frames).unwrap_or(1)
}

/// How to fetch what is missing of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nothing is missing.
    Nothing,
    /// As the frame.
    Frame,
    /// As ranges of ordinary packs.
    Ranges,
}

/// Chooses the cheaper way: the frame of `frame_bytes`, or ranges of these lengths.
#[must_use]
pub fn route(frame_bytes: u64, ranges: impl Iterator<Item = u64>) -> Route {
    let (count, bytes) = ranges.fold((0, 0), |(count, sum), bytes| {
        (count + 1, bytes.saturating_add(sum))
    });
    if count == 0 {
        Route::Nothing
    } else if bytes.saturating_add(count * REQUEST_BYTES)
        < frame_bytes.saturating_add(REQUEST_BYTES)
    {
        Route::Ranges
    } else {
        Route::Frame
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight,
    Done,
}

/// The frames of one boot pack.
#[derive(Debug)]
pub struct Planner {
    /// Each with its plain bytes.
    frames: Vec<(State, u64)>,
    /// Frames that guests wait for, first come first served.
    urgent: VecDeque<usize>,
    /// All before this one are no longer waiting.
    next: usize,
    n_in_flight: usize,
}

impl Planner {
    /// Frames of these plain lengths.
    #[must_use]
    pub fn new(plain_bytes: impl Iterator<Item = u64>) -> Self {
        Self {
            frames: plain_bytes.map(|bytes| (State::Waiting, bytes)).collect(),
            urgent: VecDeque::new(),
            next: 0,
            n_in_flight: 0,
        }
    }

    /// Whether `frame` is on its way or will be.
    #[must_use]
    pub fn will_bring(&self, frame: usize) -> bool {
        self.state(frame) != State::Done
    }

    /// Notes that a guest waits for `frame`; returns whether it will come.
    pub fn want(&mut self, frame: usize) -> bool {
        if self.state(frame) == State::Waiting && !self.urgent.contains(&frame) {
            self.urgent.push_back(frame);
        }
        self.will_bring(frame)
    }

    /// Decides what to do next; a frame that is to be fetched counts as in flight from then on.
    pub fn next(&mut self, pressure: Pressure) -> Step {
        while let Some(frame) = self.urgent.pop_front() {
            if self.state(frame) == State::Waiting {
                return self.fetch(frame, Priority::Guest);
            }
        }
        while self.next < self.frames.len() && self.state(self.next) != State::Waiting {
            self.next += 1;
        }
        let Some((_, plain_bytes)) = self.frames.get(self.next) else {
            return if self.n_in_flight == 0 {
                Step::Finished
            } else {
                Step::Wait
            };
        };
        let window = if pressure.guest_requests > 0 {
            1
        } else {
            pressure.frames_max
        };
        if self.n_in_flight >= window || *plain_bytes > pressure.room_bytes {
            return Step::Wait;
        }
        self.fetch(self.next, Priority::Ahead)
    }

    fn fetch(&mut self, frame: usize, priority: Priority) -> Step {
        self.frames[frame].0 = State::InFlight;
        self.n_in_flight += 1;
        Step::Fetch { frame, priority }
    }

    /// Notes that `frame` came, or that it will not come.
    pub fn done(&mut self, frame: usize) {
        if self.state(frame) == State::InFlight {
            self.n_in_flight -= 1;
        }
        if let Some((state, _)) = self.frames.get_mut(frame) {
            *state = State::Done;
        }
    }

    fn state(&self, frame: usize) -> State {
        self.frames
            .get(frame)
            .map_or(State::Done, |(state, _)| *state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const CALM: Pressure = Pressure {
        guest_requests: 0,
        room_bytes: u64::MAX,
        frames_max: 3,
    };

    fn planner(frames: usize) -> Planner {
        Planner::new(std::iter::repeat_n(1 << 20, frames))
    }

    fn ahead(frame: usize) -> Step {
        Step::Fetch {
            frame,
            priority: Priority::Ahead,
        }
    }

    #[test]
    fn frames_go_in_order_a_few_at_once() {
        let mut planner = planner(4);
        for frame in 0..3 {
            assert_eq!(planner.next(CALM), ahead(frame));
        }
        assert_eq!(planner.next(CALM), Step::Wait);
        planner.done(1);
        assert_eq!(planner.next(CALM), ahead(3));
        for frame in [0, 2, 3] {
            planner.done(frame);
        }
        assert_eq!(planner.next(CALM), Step::Finished);
    }

    #[test]
    fn a_frame_that_a_guest_waits_for_overtakes() {
        let mut planner = planner(9);
        for frame in 0..3 {
            assert_eq!(planner.next(CALM), ahead(frame));
        }
        assert!(planner.want(7) && planner.want(7) && planner.want(0));
        let urgent = Step::Fetch {
            frame: 7,
            priority: Priority::Guest,
        };
        let full = Pressure {
            room_bytes: 0,
            ..CALM
        };
        assert_eq!(planner.next(full), urgent);
        assert_eq!(planner.next(CALM), Step::Wait);
        planner.done(7);
        assert!(!planner.want(7), "it was here: it does not come again");
    }

    #[test]
    fn guests_and_full_caches_hold_the_stream_back() {
        let mut planner = planner(4);
        let guests = Pressure {
            guest_requests: 2,
            ..CALM
        };
        let full = Pressure {
            room_bytes: (1 << 20) - 1,
            ..CALM
        };
        assert_eq!(planner.next(full), Step::Wait);
        assert_eq!(planner.next(guests), ahead(0));
        assert_eq!(planner.next(guests), Step::Wait);
        assert_eq!(planner.next(CALM), ahead(1));
    }

    #[test]
    fn the_cheaper_way_is_taken() {
        let frame = 300 << 10;
        assert_eq!(route(frame, [].into_iter()), Route::Nothing);
        assert_eq!(route(frame, [8 << 10].into_iter()), Route::Ranges);
        assert_eq!(route(frame, [299 << 10].into_iter()), Route::Ranges);
        assert_eq!(route(frame, [400 << 10].into_iter()), Route::Frame);
        assert_eq!(route(frame, [1 << 10; 11].into_iter()), Route::Frame);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Next(usize, u64),
        Want(usize),
        Done(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..3_usize, 0..3_u64).prop_map(|(guests, room)| Event::Next(guests, room << 20)),
            (0..12_usize).prop_map(Event::Want),
            (0..12_usize).prop_map(Event::Done),
        ]
    }

    proptest! {
        /// Whatever happens: no frame is fetched twice, none that a guest wants is forgotten, the
        /// window and the room hold for what nobody waits for, and all comes to an end.
        #[test]
        fn any_schedule_is_sound(events in vec(event(), 0..200)) {
            let mut planner = planner(10);
            let (mut fetched, mut in_flight, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
            for event in events {
                match event {
                    Event::Want(frame) => {
                        let comes = planner.want(frame);
                        prop_assert_eq!(comes, planner.will_bring(frame));
                        if comes && !fetched.contains(&frame) {
                            wanted.push(frame);
                        }
                    }
                    Event::Done(frame) => {
                        if let Some(at) = in_flight.iter().position(|one| *one == frame) {
                            in_flight.swap_remove(at);
                            planner.done(frame);
                        }
                    }
                    Event::Next(guest_requests, room_bytes) => {
                        let pressure = Pressure { guest_requests, room_bytes, frames_max: 3 };
                        if let Step::Fetch { frame, priority } = planner.next(pressure) {
                            prop_assert!(!fetched.contains(&frame), "{frame} is fetched twice");
                            prop_assert_eq!(priority == Priority::Guest, wanted.contains(&frame));
                            if priority == Priority::Ahead {
                                prop_assert!(in_flight.len() < 3 && room_bytes >= 1 << 20);
                                prop_assert!(guest_requests == 0 || in_flight.is_empty());
                            }
                            fetched.push(frame);
                            in_flight.push(frame);
                            wanted.retain(|one| *one != frame);
                        } else {
                            prop_assert!(wanted.is_empty(), "a guest waits and nothing is done");
                        }
                    }
                }
            }
            for _ in 0..40 {
                match planner.next(CALM) {
                    Step::Fetch { frame, .. } => in_flight.push(frame),
                    Step::Wait => in_flight.drain(..).for_each(|frame| planner.done(frame)),
                    Step::Finished => break,
                }
            }
            prop_assert_eq!(planner.next(CALM), Step::Finished);
            prop_assert!((0..10).all(|frame| !planner.will_bring(frame)));
        }
    }
}
