//! Unpacks chunks from frames of the boot pack that are kept, instead of fetching them once more.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use image_format::chunk::Chunk;
use tokio::sync::Semaphore;

use super::Chunks;
use crate::cache::Caches;
use crate::fetch::Source;
use crate::fetch::fetcher::Wanted;
use crate::place::Place;
use crate::prefetch::BootStream;
use crate::stats::Stats;

/// What waits at once to be written to the disk cache for guests: parts of frames, and chunks of other versions.
const FILLS_MAX: usize = 8;

static FILLS: Semaphore = Semaphore::const_new(FILLS_MAX);

impl<S: Source> Chunks<S> {
    /// Whether the chunk at `place` is in a frame that is kept.
    pub(super) fn is_kept(&self, place: &Place) -> bool {
        let frame = self.boot.get().and_then(|boot| boot.frame_of(&place.id()));
        frame.is_some_and(|frame| self.caches.frames.holds(frame))
    }

    /// Begins to unpack what of `wanted` is in frames that are kept; returns the rest.
    pub(super) fn unpack_kept(&self, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let Some(boot) = self.boot.get() else {
            return wanted;
        };
        let mut left = Vec::new();
        let mut frames: HashMap<usize, Vec<Wanted>> = HashMap::new();
        for wanted in wanted {
            match boot.frame_of(&wanted.place.id()) {
                Some(frame) => frames.entry(frame).or_default().push(wanted),
                None => left.push(wanted),
            }
        }
        for (frame, wanted) in frames {
            match self.caches.frames.find(frame) {
                Some(stored) => self.unpack(boot, frame, stored, wanted),
                None => left.extend(wanted),
            }
        }
        left
    }

    /// Unpacks a frame, and delivers what is wanted of it. The rest of it goes into memory: what was read
    /// together once will be again.
    fn unpack(&self, boot: &Arc<BootStream>, frame: usize, stored: Bytes, wanted: Vec<Wanted>) {
        let head = Arc::clone(boot.head());
        let (caches, stats) = (Arc::clone(&self.caches), Arc::clone(&self.stats));
        let fetcher = Arc::clone(&self.fetcher);
        self.tasks.spawn(async move {
            let decode = move || head.decode_frame(frame, &stored);
            let chunks = match fetcher.decode(decode).await {
                Ok(Ok(chunks)) => chunks,
                // It was verified when it came: memory fails. Who waits asks again, and elsewhere.
                Ok(Err(error)) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::warn!(error = cause, "a kept frame is of no use; it is forgotten");
                    return caches.frames.forget(frame);
                }
                Err(error) => {
                    tracing::error!(%error, "a kept frame was given up; it is forgotten");
                    return caches.frames.forget(frame);
                }
            };
            let mut wanted: HashMap<_, _> = wanted
                .into_iter()
                .map(|wanted| (wanted.place.id(), wanted))
                .collect();
            let mut landed = Vec::new();
            for chunk in chunks {
                caches.memory.keep(chunk.clone());
                if let Some(wanted) = wanted.remove(&chunk.id()) {
                    wanted.landing.deliver(Ok(chunk.clone()));
                    landed.push((wanted.place, chunk));
                }
            }
            stats.boot_pack.unpacked_chunks.add(landed.len() as u64);
            fill_if_few(&caches, &stats, landed).await;
        });
    }
}

/// Writes chunks to the disk cache, unless it is behind with many: these are in memory, and can be had again.
pub(super) async fn fill_if_few(caches: &Arc<Caches>, stats: &Stats, landed: Vec<(Place, Chunk)>) {
    if let Ok(_turn) = FILLS.try_acquire()
        && let Some(filling) = caches.fill(landed)
    {
        let filled = filling.end().await;
        stats.disk_fill_bytes.add(filled.unwrap_or(0));
    }
}
