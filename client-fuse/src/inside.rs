//! What can be seen of a mount from outside: one snapshot of all counters, and of what is there now.
//!
//! It is `.circular/stats.json` in the mount ([`fs`](crate::fs)), the metrics that Prometheus fetches
//! ([`exposition`], [`serve`]), and, with what is under way, what SIGUSR1 brings into the log ([`dump`]).
//! [`names`] says what each number means. Nothing here changes anything, and nothing waits for the
//! network.

use std::time::Duration;

use serde::Serialize;

use crate::fetch::Source;
use crate::overlay::layered::Layered;
use crate::overlay::{OverlayNow, OverlayStats};
use crate::panics;
use crate::stats::Stats;
use crate::waits::Reads;

pub mod dump;
pub mod exposition;
pub mod names;
pub mod serve;

/// All numbers of a mount.
#[derive(Debug, Serialize)]
pub struct Snapshot<'a> {
    #[serde(flatten)]
    counters: &'a Stats,
    evictions: Evictions,
    overlay: OverlayCounts<'a>,
    task_panics: u64,
    now: Now,
}

/// What made room for something else.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Evictions {
    memory_chunks: u64,
    memory_bytes: u64,
    disk_segments: u64,
    disk_bytes: u64,
}

/// What the overlay did; without one, nothing.
#[derive(Debug)]
struct OverlayCounts<'a>(Option<&'a OverlayStats>);

impl Serialize for OverlayCounts<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(stats) => stats.serialize(serializer),
            None => OverlayStats::default().serialize(serializer),
        }
    }
}

/// What is there now, and goes up and down.
#[derive(Clone, Copy, Debug, Serialize)]
struct Now {
    uptime_us: u64,
    reads_under_way: usize,
    oldest_read_us: u64,
    requests_under_way: usize,
    oldest_request_us: u64,
    memory_bytes: usize,
    memory_max_bytes: usize,
    disk_bytes: u64,
    disk_max_bytes: u64,
    line_round_trip_us: u64,
    line_bytes_per_second: u64,
    boot_pack_frames: usize,
    boot_pack_frames_left: usize,
    overlay_dirty_bytes: u64,
    overlay_written_bytes: u64,
    overlay_stale_bytes: u64,
    overlay_file_bytes: u64,
    overlay_is_out_of_use: u8,
    version_is_withdrawn: u8,
}

impl<'a> Snapshot<'a> {
    /// Looks at `disk`, which is mounted since `uptime`. Asks the file system what files occupy.
    #[must_use]
    pub fn of<S: Source>(
        disk: &'a Layered<S>,
        stats: &'a Stats,
        reads: &Reads,
        uptime: Duration,
    ) -> Self {
        let overlay = disk.overlay_file();
        Self {
            counters: stats,
            evictions: evictions(disk),
            overlay: OverlayCounts(overlay.map(|overlay| overlay.stats())),
            task_panics: panics::count(),
            now: now(disk, reads, uptime),
        }
    }
}

fn evictions<S: Source>(disk: &Layered<S>) -> Evictions {
    let caches = disk.base().chunks().caches();
    let memory = caches.memory.dropped();
    let (mut disk_segments, mut disk_bytes) = (0, 0);
    if let Some(evicted) = caches.disk.evicted() {
        disk_segments = evicted.segments.count();
        disk_bytes = evicted.bytes.count();
    }
    Evictions {
        memory_chunks: memory.values,
        memory_bytes: memory.bytes,
        disk_segments,
        disk_bytes,
    }
}

fn now<S: Source>(disk: &Layered<S>, reads: &Reads, uptime: Duration) -> Now {
    let chunks = disk.base().chunks();
    let (fetcher, caches) = (chunks.fetcher(), chunks.caches());
    let (reads_under_way, oldest_read) = reads.pressure();
    let (requests_under_way, oldest_request) = fetcher.underway().pressure();
    let line = fetcher.line();
    let (boot_pack_frames, boot_pack_frames_left) = chunks.boot_pack_frames();
    let overlay = disk.overlay_file().map(|overlay| overlay.now());
    let OverlayNow {
        dirty_bytes,
        written_bytes,
        stale_bytes,
        file_bytes,
        is_out_of_use,
    } = overlay.unwrap_or_default();
    Now {
        uptime_us: microseconds(uptime),
        reads_under_way,
        oldest_read_us: microseconds(oldest_read),
        requests_under_way,
        oldest_request_us: microseconds(oldest_request),
        memory_bytes: caches.memory.bytes(),
        memory_max_bytes: caches.memory.bytes_max(),
        disk_bytes: caches.disk.bytes(),
        disk_max_bytes: caches.disk.bytes_max().unwrap_or(0),
        line_round_trip_us: microseconds(line.round_trip),
        line_bytes_per_second: line.rate,
        boot_pack_frames,
        boot_pack_frames_left,
        overlay_dirty_bytes: dirty_bytes,
        overlay_written_bytes: written_bytes,
        overlay_stale_bytes: stale_bytes,
        overlay_file_bytes: file_bytes,
        overlay_is_out_of_use: u8::from(is_out_of_use),
        version_is_withdrawn: u8::from(fetcher.stats().withdrawn.count() > 0),
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
