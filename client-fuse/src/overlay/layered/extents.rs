//! Which bytes of a disk with an overlay are in holes.

use std::ops::Range;

use super::{BLOCK, Layered, LayeredError};
use crate::disk::extents::{Extent, Extents};
use crate::fetch::Source;
use crate::overlay::ledger::Content;

/// Bytes looked at for one answer: the map of an overlay is asked block by block.
const BYTES_MAX: u64 = 256 << 20;

impl<S: Source> Layered<S> {
    /// The extents from `range.start` on: all of `range`, or as much of it as is known without too
    /// much work, but at least one, where `range` has bytes on the disk.
    ///
    /// # Errors
    ///
    /// When the index of the image cannot be had.
    pub async fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, LayeredError> {
        if self.overlay.is_none() {
            return Ok(self.base.extents(range).await?);
        }
        let overlay = self.overlay()?;
        let end = range.end.min(self.length());
        let range = range.start..end.min(range.start.saturating_add(BYTES_MAX));
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let runs = overlay.ledger().look_up(blocks);
        let mut extents = Extents::default();
        for run in runs {
            if extents.is_full() {
                break;
            }
            let start = (run.blocks.start * BLOCK).max(range.start);
            let run_end = (run.blocks.end * BLOCK).min(range.end);
            match run.content {
                Content::Zeros => extents.push(run_end - start, true),
                Content::Data { .. } => extents.push(run_end - start, false),
                Content::Base => {
                    let found = self.base.extents(start..run_end).await?;
                    let known: u64 = found.iter().map(|extent| extent.length).sum();
                    for extent in found {
                        extents.push(extent.length, extent.is_hole);
                    }
                    if known < run_end - start {
                        break;
                    }
                }
            }
        }
        Ok(extents.finish())
    }
}
