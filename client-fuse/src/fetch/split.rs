//! Cuts the body of a range request into the wanted chunks while it arrives; knows no network.

use bytes::{Buf, Bytes, BytesMut};

use crate::fetch::plan::Wants;

/// Receives the bytes of a range and gives out what is complete.
#[derive(Debug)]
pub struct Splitter<W> {
    /// Not yet complete, the next one last.
    waiting: Vec<W>,
    /// Bytes received that may still be wanted.
    buffer: BytesMut,
    /// Where in the pack the buffer begins.
    position: u64,
}

impl<W: Wants> Splitter<W> {
    /// Expects a body that begins at byte `start` of the pack; `wanted` in the order of the plan.
    #[must_use]
    pub fn new(start: u64, mut wanted: Vec<W>) -> Self {
        wanted.reverse();
        Self {
            waiting: wanted,
            buffer: BytesMut::new(),
            position: start,
        }
    }

    /// Takes in bytes and returns what they complete, each with its stored bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<(W, Bytes)> {
        self.buffer.extend_from_slice(bytes);
        let mut complete = Vec::new();
        while let Some(want) = self.waiting.pop() {
            let stored = want.place().stored();
            self.skip_to(stored.start);
            let length = usize::try_from(stored.end - stored.start).unwrap_or(usize::MAX);
            if self.position < stored.start || self.buffer.len() < length {
                self.waiting.push(want);
                break;
            }
            complete.push((want, self.take(stored.end, length)));
        }
        complete
    }

    /// What did not arrive.
    #[must_use]
    pub fn into_waiting(mut self) -> Vec<W> {
        self.waiting.reverse();
        self.waiting
    }

    /// Forgets what lies before `start`; chunks are taken in the order of their starts.
    fn skip_to(&mut self, start: u64) {
        let gap = usize::try_from(start.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let gap = gap.min(self.buffer.len());
        self.buffer.advance(gap);
        self.position += gap as u64;
    }

    /// The next `length` bytes, without a copy unless a later chunk shares them: only a strange
    /// index lets chunks overlap in a pack, and it must still be read right.
    fn take(&mut self, end: u64, length: usize) -> Bytes {
        if self
            .waiting
            .last()
            .is_none_or(|next| next.place().stored().start >= end)
        {
            self.position += length as u64;
            self.buffer.split_to(length).freeze()
        } else {
            Bytes::copy_from_slice(&self.buffer[..length])
        }
    }
}
