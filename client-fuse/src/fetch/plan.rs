//! Joins wanted chunks into range requests; fetches nothing itself.
//!
//! Neighbours on the disk are neighbours in the pack, so one range usually brings a whole run. A
//! request is bounded by what it brings and by what that unpacks to, so that bytes in flight are
//! bounded, a broken connection costs little, and several requests can share the line.

use std::ops::Range;
use std::time::Duration;

use image_format::digest::ObjectRef;

use crate::fetch::line::Estimate;
use crate::place::Place;

/// Chunks of one pack that one range request brings.
#[derive(Debug)]
pub struct RangeRequest<W> {
    /// The object.
    pub pack: ObjectRef,
    /// The bytes to ask for: from the first wanted one to the last.
    pub range: Range<u64>,
    /// What is wanted of them, in the order in which it arrives.
    pub wanted: Vec<W>,
    /// Length of all that is wanted once it is unpacked.
    pub plain_bytes: u64,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Unwanted bytes between two chunks that are cheaper to receive than to ask around.
    pub gap_bytes_max: u64,
    /// Most bytes of one answer: at 100 Mbit/s a third of a second.
    pub range_bytes_max: u64,
    /// Most unpacked bytes of one answer.
    pub plain_bytes_max: u64,
}

/// What a request costs a server and us: 150 us, in which the line could bring something else.
const REQUEST_TIME: Duration = Duration::from_micros(150);

/// What a request and the head of its answer cost the line.
const REQUEST_BYTES: u64 = 700;

/// A gap of more than this brings chunks that nobody wants in the memory of everybody.
const GAP_BYTES_MAX: u64 = 256 << 10;

impl PlanLimits {
    /// The limits for `line` where at most `connections` requests are under way at once.
    ///
    /// One more request takes its headers, the time of a server, and for a round trip one of the
    /// connections: a gap pays that the line brings in this time. At 100 Mbit/s and 50 ms with 32
    /// connections that is 22 KB, at 1 Gbit/s and 1 ms the same.
    #[must_use]
    pub fn of(line: Estimate, connections: u16) -> Self {
        let time = REQUEST_TIME + line.round_trip / u32::from(connections.max(1));
        Self {
            gap_bytes_max: (REQUEST_BYTES + line.bytes_in(time)).min(GAP_BYTES_MAX),
            range_bytes_max: 4 << 20,
            plain_bytes_max: 4 << 20,
        }
    }
}

/// Something that wants a chunk.
pub trait Wants {
    /// Where the chunk is.
    fn place(&self) -> &Place;
}

impl Wants for Place {
    fn place(&self) -> &Place {
        self
    }
}

/// Joins `wanted` into as few requests as the limits allow.
///
/// Each chunk is in exactly one request. Chunks longer than a limit get a request of their own.
#[must_use]
pub fn coalesce<W: Wants>(mut wanted: Vec<W>, limits: PlanLimits) -> Vec<RangeRequest<W>> {
    wanted.sort_by_key(|want| {
        let place = want.place();
        (
            *place.pack().digest.as_bytes(),
            place.stored().start,
            place.stored().end,
        )
    });
    let mut requests: Vec<RangeRequest<W>> = Vec::new();
    for want in wanted {
        match requests
            .last_mut()
            .filter(|request| request.takes(want.place(), limits))
        {
            Some(request) => request.push(want),
            None => requests.push(RangeRequest::of(want)),
        }
    }
    requests
}

impl<W: Wants> RangeRequest<W> {
    fn of(want: W) -> Self {
        let place = *want.place();
        Self {
            pack: place.pack(),
            range: place.stored(),
            plain_bytes: place.plain_bytes(),
            wanted: vec![want],
        }
    }

    fn takes(&self, place: &Place, limits: PlanLimits) -> bool {
        let stored = place.stored();
        self.pack == place.pack()
            && stored.start <= self.range.end + limits.gap_bytes_max
            && stored.end.max(self.range.end) - self.range.start <= limits.range_bytes_max
            && self.plain_bytes + place.plain_bytes() <= limits.plain_bytes_max
    }

    fn push(&mut self, want: W) {
        self.range.end = self.range.end.max(want.place().stored().end);
        self.plain_bytes += want.place().plain_bytes();
        self.wanted.push(want);
    }

    /// Shrinks the range to what is still wanted, after some of it was delivered.
    pub fn shrink(&mut self) {
        let stored = || self.wanted.iter().map(|want| want.place().stored());
        let start = stored().map(|range| range.start).min();
        let end = stored().map(|range| range.end).max();
        self.range = start.unwrap_or(self.range.end)..end.unwrap_or(self.range.end);
    }
}

#[cfg(test)]
mod tests;
