//! The disk that a mount shows: the image, or the image under an overlay.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use image_format::BLOCK_BYTES;

use super::ledger::{Content, Run};
use super::{Overlay, OverlayError, Patch};
use crate::disk::near::Near;
use crate::disk::{Disk, ReadError};
use crate::fetch::Source;

mod extents;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A disk that can be written to, if it has an overlay.
#[derive(Debug)]
pub struct Layered<S> {
    base: Disk<S>,
    /// Empty until it is taken over from a process before this one.
    overlay: Option<OnceLock<Arc<Overlay>>>,
}

/// Why such a disk cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum LayeredError {
    #[error(transparent)]
    Base(#[from] ReadError),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error("the disk is read-only; mount with --overlay FILE to write to it")]
    ReadOnly,
    #[error("the disk ends before that")]
    PastTheEnd,
    #[error("the overlay of the disk was not taken over yet")]
    NotYet,
}

impl<S: Source> Layered<S> {
    /// The image itself.
    #[must_use]
    pub const fn read_only(base: Disk<S>) -> Self {
        Self {
            base,
            overlay: None,
        }
    }

    /// The image under `overlay`.
    #[must_use]
    pub fn writable(base: Disk<S>, overlay: Arc<Overlay>) -> Self {
        Self {
            base,
            overlay: Some(OnceLock::from(overlay)),
        }
    }

    /// The image under an overlay that another process may still have: [`Self::take_over`] comes before any reader.
    #[must_use]
    pub const fn writable_later(base: Disk<S>) -> Self {
        Self {
            base,
            overlay: Some(OnceLock::new()),
        }
    }

    /// Puts the disk under `overlay`, once.
    pub fn take_over(&self, overlay: Arc<Overlay>) {
        if let Some(slot) = &self.overlay {
            // There is one already then, of the same disk.
            let _ = slot.set(overlay);
        }
    }

    /// The length in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.base.length()
    }

    /// Whether it can be written to.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.overlay.is_some()
    }

    /// The image.
    pub(crate) const fn base(&self) -> &Disk<S> {
        &self.base
    }

    /// The overlay, if there is one.
    pub(crate) fn overlay_file(&self) -> Option<&Arc<Overlay>> {
        self.overlay.as_ref()?.get()
    }

    /// When it was last written to, if it can be.
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        self.overlay_file().map(|overlay| overlay.modified())
    }

    /// What is read, if it is at hand; see [`Disk::read_near`]. What an overlay has never is.
    #[must_use]
    pub fn read_near(&self, offset: u64, len: u32, buffer: &mut Vec<u8>) -> Option<Near> {
        match self.overlay {
            None => self.base.read_near(offset, len, buffer),
            Some(_) => None,
        }
    }

    /// Reads `len` bytes at `offset`, fewer at the end of the disk and none behind it.
    ///
    /// # Errors
    ///
    /// When they cannot be had; never returns a byte that was not checked.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, LayeredError> {
        let end = offset.saturating_add(u64::from(len)).min(self.length());
        if self.overlay.is_none() || offset >= end {
            return Ok(self.base.read(offset, len).await?);
        }
        let outcome = match self.overlay() {
            Ok(overlay) => self.read_over(overlay, offset..end).await,
            Err(error) => Err(error),
        };
        self.base.count(&outcome);
        outcome
    }

    /// The bytes of `range`, which is no longer than what is read at once.
    async fn read_over(
        &self,
        overlay: &Arc<Overlay>,
        range: Range<u64>,
    ) -> Result<Bytes, LayeredError> {
        let Range { start: offset, end } = range;
        let runs = overlay.read(offset / BLOCK..end.div_ceil(BLOCK)).await?;
        if let [(run, _)] = &runs[..]
            && run.content == Content::Base
        {
            let length = u32::try_from(end - offset).unwrap_or(u32::MAX);
            return Ok(self.base.read_part(offset, length).await?);
        }
        let parts = runs
            .into_iter()
            .map(|(run, bytes)| self.part(run, bytes, offset..end));
        let parts = futures_util::future::try_join_all(parts).await?;
        if let [only] = &parts[..] {
            return Ok(only.clone());
        }
        let mut out = BytesMut::new();
        for part in parts {
            out.extend_from_slice(&part);
        }
        Ok(out.freeze())
    }

    /// The bytes of `run` that are in `range`.
    async fn part(&self, run: Run, bytes: Bytes, range: Range<u64>) -> Result<Bytes, LayeredError> {
        let start = (run.blocks.start * BLOCK).max(range.start);
        let end = (run.blocks.end * BLOCK).min(range.end);
        let length = u32::try_from(end - start).unwrap_or(u32::MAX);
        let skip = usize::try_from(start - run.blocks.start * BLOCK).unwrap_or(usize::MAX);
        Ok(match run.content {
            Content::Base => self.base.read_part(start, length).await?,
            Content::Zeros => BytesMut::zeroed(length as usize).freeze(),
            Content::Data { .. } => bytes.slice(skip..skip + length as usize),
        })
    }

    /// Writes `bytes` at `offset` and returns how many there was room for. Where blocks are written
    /// in part, the rest of them may have to be fetched first.
    ///
    /// # Errors
    ///
    /// When there is no overlay, no room in it, or the rest of a block cannot be had.
    pub async fn write(&self, offset: u64, mut bytes: Bytes) -> Result<u32, LayeredError> {
        let overlay = self.overlay()?;
        let room = self.length().saturating_sub(offset);
        bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let count = u32::try_from(bytes.len()).map_err(|_| LayeredError::PastTheEnd)?;
        if count == 0 {
            return Err(LayeredError::PastTheEnd);
        }
        let mut patch = Patch {
            offset,
            bytes,
            disk_length: self.length(),
            base: Vec::new(),
        };
        let partial: Vec<u64> = patch.partial().collect();
        for block in partial {
            if overlay.needs_base(block) {
                let bytes = self.base.read_part(block * BLOCK, BLOCK_BYTES).await?;
                patch.base.push((block, bytes));
            }
        }
        overlay.write(patch).await?;
        Ok(count)
    }

    /// Makes `len` bytes at `offset` read as zeros and gives their space back. What lies behind the
    /// end of the disk is left alone.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), LayeredError> {
        let overlay = self.overlay()?;
        let end = offset.saturating_add(len).min(self.length());
        if offset >= end {
            return Ok(());
        }
        let last = if end == self.length() {
            end.div_ceil(BLOCK)
        } else {
            end / BLOCK
        };
        let whole = offset.div_ceil(BLOCK)..last;
        if whole.is_empty() {
            return self.write_zeros(offset..end).await;
        }
        self.write_zeros(offset..whole.start * BLOCK).await?;
        self.write_zeros(whole.end * BLOCK..end).await?;
        Ok(overlay.discard(whole).await?)
    }

    /// Writes zeros to less than two blocks.
    async fn write_zeros(&self, range: Range<u64>) -> Result<(), LayeredError> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or_default();
        if length > 0 {
            self.write(range.start, BytesMut::zeroed(length).freeze())
                .await?;
        }
        Ok(())
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    ///
    /// When it cannot be said that it is.
    pub async fn sync(&self) -> Result<(), LayeredError> {
        match self.overlay {
            Some(_) => Ok(self.overlay()?.sync().await?),
            None => Ok(()),
        }
    }

    fn overlay(&self) -> Result<&Arc<Overlay>, LayeredError> {
        let slot = self.overlay.as_ref().ok_or(LayeredError::ReadOnly)?;
        slot.get().ok_or(LayeredError::NotYet)
    }
}
