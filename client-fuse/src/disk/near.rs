//! Answers reads whose bytes are at hand, in the thread that asks: no task, no other thread.
//!
//! At hand is what was verified in this run and is in the page cache of the cache file, or in the
//! memory cache. Whatever would have to be waited for, in the network or on a disk, is not.
//!
//! Copies of a byte on its way, with the kernel's own into the reader's page as the last:
//!
//! | from | copies |
//! | --- | --- |
//! | the kernel's passthrough | none of ours, none into a reply |
//! | the memory cache, one chunk | the reply |
//! | the memory cache, several chunks | into one buffer (a reply of fuser takes one slice), the reply |
//! | the cache file | from the page cache, the reply |
//! | the network | from the socket, out of zstd, into the cache file; then as from the memory cache |

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use image_format::geometry::runs;

use super::plan::{self, Part, Piece};
use super::{Disk, Parts};
use crate::cache::disk::Wait;
use crate::fetch::Source;
use crate::waits::Layer;

/// Bytes that were at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Near {
    /// This part of the buffer.
    Buffer(Range<usize>),
    /// These.
    Bytes(Bytes),
}

impl<S: Source> Disk<S> {
    /// The `len` bytes at `offset`, fewer at the end of the disk, if they are at hand; `buffer` is
    /// overwritten. `None`: [`Disk::read`] has to find them.
    #[must_use]
    pub fn read_near(&self, offset: u64, len: u32, buffer: &mut Vec<u8>) -> Option<Near> {
        let end = offset.saturating_add(u64::from(len)).min(self.length);
        // Who records wants to know of each read what it is made of.
        if offset >= end || self.recorder.is_some() {
            return None;
        }
        let (range, began) = (offset..end, Instant::now());
        let disk = &self.parts.chunks.caches().disk;
        let (near, layer) = match disk.read_sealed(&range, buffer, Wait::No) {
            Some(within) => {
                self.stats.disk_hits.increment();
                (Near::Buffer(within), Layer::Disk)
            }
            None => (self.read_memory(&range, buffer)?, Layer::Memory),
        };
        self.stats.reads.increment();
        self.stats.read_bytes.add(end - offset);
        self.stats.read_wait.of(layer).record(began.elapsed());
        Some(near)
    }

    fn read_memory(&self, range: &Range<u64>, buffer: &mut Vec<u8>) -> Option<Near> {
        let pieces = self.parts.plan_near(range)?;
        let parts: Vec<Part> = pieces.iter().filter_map(Piece::part).cloned().collect();
        let found = self.parts.chunks.find_in_memory(&parts)?;
        if !self.parts.chunks.are_foreseen(&parts) {
            self.read_ahead(range);
        }
        if let ([Piece::Part(_)], [bytes]) = (&pieces[..], &found[..]) {
            return Some(Near::Bytes(bytes.clone()));
        }
        let mut found = found.into_iter();
        buffer.clear();
        for piece in pieces {
            match piece {
                Piece::Zeros(count) => buffer.resize(buffer.len() + count, 0),
                Piece::Part(_) => buffer.extend_from_slice(&found.next().unwrap_or_default()),
            }
        }
        Some(Near::Buffer(0..buffer.len()))
    }
}

impl<S: Source> Parts<S> {
    /// What `range` is made of, if all of the index that says so is here.
    fn plan_near(&self, range: &Range<u64>) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        for run in runs(range.start, range.end - range.start) {
            let page = self.pages.at_hand(run.region)?;
            pieces.extend(plan::pieces(run, page.as_deref(), range));
        }
        Some(pieces)
    }
}
