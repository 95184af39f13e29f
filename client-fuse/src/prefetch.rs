//! The boot pack, streamed: what a boot will read, fetched before it does.
//!
//! A [`BootStream`] is the state that readers and the stream share: which frame brings which chunk,
//! who waits for what, and the [`planner`]. It fetches nothing itself; [`crate::chunks::boot`] does.
//!
//! A chunk that is missing is boarded like any other ([`crate::flight`]): its landing is held here
//! until its frame has come. A guest that leads a flight for a chunk of a frame that is still to come
//! leaves its landing here too, and the frame moves to the front. So each chunk has one flight, and no
//! chunk is fetched from two places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image_format::boot_pack::Head;
use image_format::{ChunkId, ObjectRef};
use tokio::sync::Notify;

use crate::fetch::fetcher::Wanted;
use crate::fetch::fetcher::part::ObjectPart;
use crate::fetch::lanes::{Hurry, Priority};
use crate::prefetch::planner::{Planner, Pressure, Step};

pub mod ledger;
pub mod neighbours;
pub mod planner;

/// A boot pack whose head is here.
#[derive(Debug)]
pub struct BootStream {
    object: ObjectRef,
    head: Arc<Head>,
    frame_of: HashMap<ChunkId, usize>,
    state: Mutex<State>,
    bell: Notify,
}

#[derive(Debug)]
struct State {
    planner: Planner,
    /// Landings of chunks whose frames are still to come.
    held: HashMap<usize, Vec<Held>>,
    /// Of each frame in flight: who can be told that a guest waits.
    hurries: HashMap<usize, Arc<Hurry>>,
    /// Whether frames are worth fetching.
    trusted: bool,
}

/// A chunk that a frame is to bring.
#[derive(Debug)]
pub struct Held {
    /// The chunk.
    pub wanted: Wanted,
    /// Whether a guest led its flight.
    pub priority: Priority,
}

impl BootStream {
    /// The boot pack `object`, of which this is the head.
    #[must_use]
    pub fn new(object: ObjectRef, head: Head) -> Self {
        let frame_of = (0..head.frames().len())
            .flat_map(|frame| head.chunks_of(frame).map(move |chunk| (chunk, frame)))
            .map(|(chunk, frame)| (chunk.entry.chunk, frame))
            .collect();
        let lengths = head
            .frames()
            .iter()
            .map(|frame| u64::from(frame.plain_bytes));
        let state = State {
            planner: Planner::new(lengths),
            held: HashMap::new(),
            hurries: HashMap::new(),
            trusted: true,
        };
        Self {
            object,
            frame_of,
            state: Mutex::new(state),
            head: Arc::new(head),
            bell: Notify::new(),
        }
    }

    /// The head.
    #[must_use]
    pub const fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// The bytes of the object that are a frame.
    #[must_use]
    pub fn part(&self, frame: usize) -> ObjectPart {
        let frame = &self.head.frames()[frame];
        ObjectPart {
            object: self.object,
            range: frame.stored.clone(),
            plain_bytes: u64::from(frame.plain_bytes),
        }
    }

    /// How many frames there are, and how many of them are on their way or still to come.
    #[must_use]
    pub fn frames(&self) -> (usize, usize) {
        let all = self.head.frames().len();
        let state = self.state();
        let to_come = |frame: &usize| state.planner.will_bring(*frame);
        (all, (0..all).filter(to_come).count())
    }

    /// The length of the boot pack in bytes.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        self.object.length
    }

    /// The frame that `chunk` is in.
    #[must_use]
    pub fn frame_of(&self, chunk: &ChunkId) -> Option<usize> {
        self.frame_of.get(chunk).copied()
    }

    /// Whether the boot pack lists `chunk`.
    #[must_use]
    pub fn lists(&self, chunk: &ChunkId) -> bool {
        self.frame_of.contains_key(chunk)
    }

    /// Whether `chunk` is in a frame that is still to come.
    #[must_use]
    pub fn will_bring(&self, chunk: &ChunkId) -> bool {
        self.frame_of
            .get(chunk)
            .is_some_and(|frame| self.state().planner.will_bring(*frame))
    }

    /// Takes a chunk that a guest waits for, if a frame will bring it; else gives it back.
    #[must_use]
    pub fn take(&self, wanted: Wanted) -> Option<Wanted> {
        let Some(&frame) = self.frame_of.get(&wanted.place.id()) else {
            return Some(wanted);
        };
        let mut state = self.state();
        if !state.planner.want(frame) {
            return Some(wanted);
        }
        if let Some(hurry) = state.hurries.get(&frame) {
            hurry.call();
        }
        let priority = Priority::Guest;
        let held = state.held.entry(frame).or_default();
        held.push(Held { wanted, priority });
        drop(state);
        self.bell.notify_one();
        None
    }

    /// Holds what `frame`, which is about to be fetched, is to bring; `hurry` speeds it up.
    pub fn hold(&self, frame: usize, wanted: Vec<Wanted>, hurry: &Arc<Hurry>) {
        let mut state = self.state();
        state.hurries.insert(frame, Arc::clone(hurry));
        let held = state.held.entry(frame).or_default();
        // A guest may have come since it was decided to fetch the frame.
        if held.iter().any(|held| held.priority == Priority::Guest) {
            hurry.call();
        }
        held.extend(wanted.into_iter().map(|wanted| Held {
            wanted,
            priority: Priority::Ahead,
        }));
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self, pressure: Pressure) -> Step {
        self.state().planner.next(pressure)
    }

    /// Takes what is held of a frame; more may come until it is finished.
    #[must_use]
    pub fn held(&self, frame: usize) -> Vec<Held> {
        self.state().held.remove(&frame).unwrap_or_default()
    }

    /// Says that `frame` came or will not come, and returns what is held of it.
    #[must_use]
    pub fn finish(&self, frame: usize) -> Vec<Held> {
        let mut state = self.state();
        state.planner.done(frame);
        state.hurries.remove(&frame);
        let held = state.held.remove(&frame).unwrap_or_default();
        drop(state);
        self.bell.notify_one();
        held
    }

    /// Whether frames are worth fetching.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.state().trusted
    }

    /// Says that a frame was of no use: from now on chunks come from ordinary packs. Returns whether
    /// that is news.
    pub fn distrust(&self) -> bool {
        std::mem::replace(&mut self.state().trusted, false)
    }

    /// Waits until there may be something to do.
    pub async fn called(&self) {
        self.bell.notified().await;
    }

    /// Says that there is room again.
    pub fn call(&self) {
        self.bell.notify_one();
    }

    /// Gives everything up: nothing comes any more, and who waits asks again elsewhere.
    pub fn close(&self) {
        for frame in 0..self.head.frames().len() {
            drop(self.finish(frame));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use image_format::boot_pack::PlacedChunk;
    use image_format::page::Entry;

    use super::*;
    use crate::flight::{Boarding, Flights};
    use crate::place::Place;

    /// A boot pack of one frame with two chunks.
    fn stream() -> (BootStream, [Place; 2]) {
        let pack = ObjectRef {
            length: 1 << 20,
            ..ObjectRef::of(b"pack")
        };
        let chunk = |number: u32| PlacedChunk {
            region: 0,
            entry: Entry {
                block: number * 4,
                blocks: 4,
                chunk: ChunkId::of(&number.to_le_bytes()),
                pack: 0,
                offset: 8 + number * 100,
                length: 100,
            },
            pack,
        };
        let chunks = [chunk(0), chunk(1)];
        let head = Head::build(&chunks, &[150]).unwrap();
        let places = [Place::of(&chunks[0]), Place::of(&chunks[1])];
        (BootStream::new(ObjectRef::of(b"boot pack"), head), places)
    }

    fn wanted(place: Place) -> Wanted {
        match Flights::new().board(place.id(), &Arc::new(Hurry::new())) {
            Boarding::Lead(landing, _) => Wanted { place, landing },
            Boarding::Follow(_) => panic!("nobody else boards"),
        }
    }

    const CALM: Pressure = Pressure {
        guest_requests: 0,
        room_bytes: u64::MAX,
        frames_max: 4,
    };

    #[test]
    fn a_guest_that_comes_while_its_frame_is_about_to_be_fetched_hurries_it() {
        let (boot, [first, second]) = stream();
        let decided = boot.next(CALM);
        assert!(matches!(
            decided,
            Step::Fetch {
                frame: 0,
                priority: Priority::Ahead
            }
        ));
        assert!(boot.take(wanted(first)).is_none(), "the frame brings it");
        let hurry = Arc::new(Hurry::new());
        boot.hold(0, vec![wanted(second)], &hurry);
        assert!(hurry.is_called());
        let held = boot.held(0);
        let guests = held.iter().filter(|held| held.priority == Priority::Guest);
        assert_eq!((held.len(), guests.count()), (2, 1));
    }

    #[test]
    fn a_frame_that_nobody_waits_for_takes_its_time() {
        let (boot, [first, second]) = stream();
        assert!(matches!(boot.next(CALM), Step::Fetch { frame: 0, .. }));
        let hurry = Arc::new(Hurry::new());
        boot.hold(0, vec![wanted(first)], &hurry);
        assert!(!hurry.is_called());
        assert!(boot.take(wanted(second)).is_none());
        assert!(hurry.is_called(), "once a guest waits, it is told");
        drop(boot.finish(0));
        assert!(boot.take(wanted(first)).is_some(), "nothing comes any more");
    }
}
