//! The disk that a mount shows: the image, or the image under an overlay.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use image_format::BLOCK_BYTES;
use tokio::runtime::Handle;

use super::ledger::{Content, Run};
use super::{FLUSH_AFTER, Overlay, OverlayError, Patch};
use crate::disk::{Disk, ReadError};
use crate::fetch::Source;
use crate::tasks::Tasks;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A disk that can be written to, if it has an overlay.
#[derive(Debug)]
pub struct Layered<S> {
    base: Disk<S>,
    top: Option<Top>,
}

#[derive(Debug)]
struct Top {
    overlay: Arc<Overlay>,
    /// Syncs now and then; ends with us.
    _flusher: Tasks,
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
}

impl<S: Source> Layered<S> {
    /// The image itself.
    #[must_use]
    pub const fn read_only(base: Disk<S>) -> Self {
        Self { base, top: None }
    }

    /// The image under `overlay`, which is synced now and then by a task on `runtime`.
    #[must_use]
    pub fn writable(base: Disk<S>, overlay: Arc<Overlay>, runtime: Handle) -> Self {
        let flusher = Tasks::new(runtime);
        flusher.spawn(keep_flushing(Arc::downgrade(&overlay)));
        Self {
            base,
            top: Some(Top {
                overlay,
                _flusher: flusher,
            }),
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
        self.top.is_some()
    }

    /// When it was last written to, if it can be.
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        self.top.as_ref().map(|top| top.overlay.modified())
    }

    /// Reads `len` bytes at `offset`, fewer at the end of the disk and none behind it.
    ///
    /// # Errors
    ///
    /// When they cannot be had; never returns a byte that was not checked.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, LayeredError> {
        let end = offset.saturating_add(u64::from(len)).min(self.length());
        let Some(top) = self.top.as_ref().filter(|_| offset < end) else {
            return Ok(self.base.read(offset, len).await?);
        };
        let runs = top
            .overlay
            .read(offset / BLOCK..end.div_ceil(BLOCK))
            .await?;
        if let [(run, _)] = &runs[..]
            && run.content == Content::Base
        {
            return Ok(self.base.read(offset, len).await?);
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
            Content::Base => self.base.read(start, length).await?,
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
                let bytes = self.base.read(block * BLOCK, BLOCK_BYTES).await?;
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
        match &self.top {
            Some(top) => Ok(top.overlay.sync().await?),
            None => Ok(()),
        }
    }

    fn overlay(&self) -> Result<&Arc<Overlay>, LayeredError> {
        let top = self.top.as_ref().ok_or(LayeredError::ReadOnly)?;
        Ok(&top.overlay)
    }
}

/// Bounds what a killed process loses that nobody synced.
async fn keep_flushing(overlay: Weak<Overlay>) {
    loop {
        tokio::time::sleep(FLUSH_AFTER).await;
        let Some(overlay) = overlay.upgrade() else {
            return;
        };
        if let Err(error) = overlay.sync().await {
            let cause: &dyn std::error::Error = &error;
            tracing::warn!(error = cause, "what was written is not durable yet");
        }
    }
}
