//! Which bytes of the disk are in holes: read from the index, without fetching a chunk.

use std::ops::Range;

use image_format::geometry::runs;

use super::plan::{self, Piece};
use super::{Disk, ReadError};
use crate::fetch::Source;

/// Pages looked at for one answer: 1 GiB of a disk without large holes.
const PAGES_MAX: usize = 16;

/// Extents in one answer.
const EXTENTS_MAX: usize = 4096;

/// Some neighbouring bytes that are all in a hole, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many, never 0.
    pub length: u64,
    /// Whether they are zeros that nothing stores.
    pub is_hole: bool,
}

/// Neighbouring extents, of which no two that touch are alike.
#[derive(Debug, Default)]
pub(crate) struct Extents(Vec<Extent>);

impl Extents {
    pub(crate) fn push(&mut self, length: u64, is_hole: bool) {
        match self.0.last_mut() {
            Some(last) if last.is_hole == is_hole => last.length += length,
            _ if length > 0 => self.0.push(Extent { length, is_hole }),
            _ => {}
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= EXTENTS_MAX
    }

    pub(crate) fn finish(mut self) -> Vec<Extent> {
        self.0.truncate(EXTENTS_MAX);
        self.0
    }
}

impl<S: Source> Disk<S> {
    /// The extents from `range.start` on: all of `range`, or as much of it as is known without too
    /// much work, but at least one, where `range` has bytes on the disk.
    ///
    /// # Errors
    ///
    /// When the index cannot be had.
    ///
    /// # Cancel safety
    ///
    /// As [`Self::read`].
    pub async fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ReadError> {
        let range = range.start..range.end.min(self.length);
        let mut extents = Extents::default();
        let mut n_pages = 0;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        for run in runs(range.start, range.end - range.start) {
            if n_pages >= PAGES_MAX || extents.is_full() {
                break;
            }
            let page = self.parts.pages.page(run.region).await?;
            n_pages += usize::from(page.is_some());
            for piece in plan::pieces(run, page.as_deref(), &range) {
                match piece {
                    Piece::Zeros(count) => extents.push(count as u64, true),
                    Piece::Part(part) => extents.push(part.within.len() as u64, false),
                }
            }
        }
        Ok(extents.finish())
    }
}
