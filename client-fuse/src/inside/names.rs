//! What each number means, in the words of `docs/OBSERVABILITY.md`; a test holds the two together.

/// Histograms that differ in one word.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Their path in `stats.json`, without that word.
    pub path: &'static str,
    /// What the word is called in Prometheus.
    pub label: &'static str,
    /// What they measure.
    pub meaning: &'static str,
}

/// All families of histograms.
pub const FAMILIES: &[Family] = &[
    Family {
        path: "read_wait",
        label: "layer",
        meaning: "How long guests waited for their reads, from the kernel's request to the reply, by what they waited for last.",
    },
    Family {
        path: "request_wait",
        label: "part",
        meaning: "How long HTTP requests took.",
    },
];

/// Each number by its path in `stats.json`.
pub const NAMES: &[(&str, &str)] = &[
    (
        "restarts",
        "Processes that served the mount before this one; all else counts what this one did.",
    ),
    ("reads", "Reads of the disk by the kernel."),
    ("read_bytes", "Bytes that they returned."),
    ("read_errors", "Reads that ended in an error."),
    (
        "read_wait.memory",
        "Reads that waited for nothing: what they read was in memory, or a hole.",
    ),
    (
        "read_wait.overlay",
        "Reads that waited for the file of the overlay.",
    ),
    ("read_wait.disk", "Reads that waited for the disk cache."),
    (
        "read_wait.index",
        "Reads that waited for a page of the index.",
    ),
    (
        "read_wait.flight",
        "Reads that waited for a chunk that was on its way already.",
    ),
    (
        "read_wait.boot_pack",
        "Reads that waited for a frame of the boot pack.",
    ),
    (
        "read_wait.demand",
        "Reads that waited for a chunk that was fetched for them.",
    ),
    ("read_wait.failed", "Reads that ended in an error."),
    ("memory_hits", "Pieces of chunks found in the memory cache."),
    ("disk_hits", "Pieces of chunks found in the disk cache."),
    (
        "disk_copies",
        "Of these, pieces of chunks that another version, or another place of the disk, had.",
    ),
    ("misses", "Pieces of chunks that had to be fetched."),
    (
        "shared_fetches",
        "Of these, pieces that another reader or read-ahead was fetching already.",
    ),
    (
        "disk_rejects",
        "Pieces of the disk cache that did not match their digest and were fetched anew.",
    ),
    ("disk_fill_bytes", "Bytes written to the disk cache."),
    (
        "request_wait.head",
        "From the request to the head of its answer.",
    ),
    (
        "request_wait.whole",
        "From the request to the end of its body, for those that came whole.",
    ),
    ("requests", "HTTP requests, failed ones included."),
    ("retries", "Requests that were tried again."),
    (
        "fetched.metadata_bytes",
        "Bytes received of signed metadata, catalogue and manifest.",
    ),
    ("fetched.table_bytes", "Bytes received of region tables."),
    (
        "fetched.page_bytes",
        "Bytes received of pages of the index.",
    ),
    (
        "fetched.index_delta_bytes",
        "Bytes received of index deltas.",
    ),
    ("fetched.boot_pack_bytes", "Bytes received of boot packs."),
    (
        "fetched.chunk_bytes",
        "Bytes received of packs: chunks as stored, and the small gaps between them.",
    ),
    ("chunks", "Chunks fetched and verified."),
    (
        "duplicate_chunks",
        "Chunks that were fetched although memory held them; always 0.",
    ),
    ("ahead_chunks", "Chunks that read-ahead asked for."),
    (
        "ahead_bytes",
        "Plain bytes that were asked for ahead of any reader, by read-ahead or the boot pack.",
    ),
    (
        "ahead_used_bytes",
        "Of these, bytes of chunks that were read later; the others were fetched in vain so far.",
    ),
    (
        "ahead.stream_bytes",
        "Plain bytes that were asked for ahead of a sequential reader.",
    ),
    (
        "ahead.stream_used_bytes",
        "Of these, bytes of chunks that were read later.",
    ),
    (
        "ahead.neighbour_bytes",
        "Plain bytes that were asked for beside what a reader lacked.",
    ),
    (
        "ahead.neighbour_used_bytes",
        "Of these, bytes of chunks that were read later.",
    ),
    (
        "boot_pack.listed_chunks",
        "Chunks that the head of the boot pack lists; 0 until the head is there.",
    ),
    (
        "boot_pack.frames",
        "Frames of the boot pack that were fetched.",
    ),
    (
        "boot_pack.frames_by_ranges",
        "Frames whose missing chunks were fetched from ordinary packs.",
    ),
    ("boot_pack.framed_chunks", "Chunks that came in frames."),
    (
        "boot_pack.repeated_chunks",
        "Chunks that came in frames although they were here, or on their way, before.",
    ),
    (
        "boot_pack.kept_bytes",
        "Stored bytes of frames of the boot pack that are kept in memory.",
    ),
    (
        "boot_pack.unpacked_chunks",
        "Chunks that were unpacked once more from frames that are kept.",
    ),
    (
        "boot_pack.damaged",
        "Heads and frames of the boot pack that were of no use.",
    ),
    (
        "index_delta.pages",
        "Pages of the index that were made from those of the version before.",
    ),
    (
        "index_delta.damaged",
        "Index deltas and patches that were of no use.",
    ),
    (
        "verify_failures",
        "Objects and chunks that did not match their digest.",
    ),
    (
        "faults.hedges",
        "Second requests for what the first let a guest wait for far longer than usual.",
    ),
    ("faults.hedge_bytes", "Bytes that these brought."),
    (
        "faults.rescues",
        "Second requests where nothing came any more.",
    ),
    (
        "faults.twice_bytes",
        "Bytes that came twice because of either.",
    ),
    (
        "faults.stalls",
        "Times at which readers waited because no server answered.",
    ),
    (
        "faults.stalled_ms",
        "How long these were, together; one that goes on does not count yet.",
    ),
    ("faults.failovers", "Tries that went on at another mirror."),
    (
        "faults.looks",
        "Small requests that told how fast another mirror is, or whether it is back.",
    ),
    (
        "faults.look_bytes",
        "Bytes that these brought, which nobody used.",
    ),
    (
        "mirrors.requests",
        "Requests to a server, failed ones included.",
    ),
    ("mirrors.bytes", "Bytes of bodies that a server sent."),
    ("mirrors.failures", "Requests to a server that failed."),
    (
        "evictions.memory_chunks",
        "Chunks that the memory cache dropped to make room.",
    ),
    ("evictions.memory_bytes", "Bytes of these chunks."),
    (
        "evictions.disk_segments",
        "Segments of 1 MiB that this mount took out of the cache directory to make room.",
    ),
    (
        "evictions.disk_bytes",
        "Bytes that the files of the cache directory occupy less by that.",
    ),
    ("overlay.writes", "Writes to the disk."),
    (
        "overlay.written_blocks",
        "Blocks of 4096 bytes that they wrote; one written in part counts.",
    ),
    (
        "overlay.write_failures",
        "Writes and discards that failed in the overlay.",
    ),
    (
        "overlay.read_blocks",
        "Blocks that were read from the overlay.",
    ),
    ("overlay.discarded_blocks", "Blocks that were discarded."),
    (
        "overlay.syncs",
        "Syncs, by the kernel or every few seconds, that ended well.",
    ),
    (
        "overlay.commits",
        "Batches of the overlay's log that are on disk, checkpoints included.",
    ),
    (
        "overlay.commit_failures",
        "Syncs that failed: what was written is not on disk yet.",
    ),
    (
        "task_panics",
        "Mistakes in this program that ended a task; the log has the place of each.",
    ),
    ("now.uptime_us", "Since the mount began to serve."),
    (
        "now.reads_under_way",
        "Reads of the disk that are not answered yet.",
    ),
    (
        "now.oldest_read_us",
        "How long the oldest of them waits; 0: there is none.",
    ),
    ("now.requests_under_way", "HTTP requests under way."),
    (
        "now.oldest_request_us",
        "How long the oldest of them is under way; 0: there is none.",
    ),
    (
        "now.memory_bytes",
        "Bytes of memory that the chunks in the memory cache take.",
    ),
    ("now.memory_max_bytes", "The most there may be."),
    (
        "now.disk_bytes",
        "Bytes that the file of this disk occupies in the cache directory.",
    ),
    (
        "now.disk_max_bytes",
        "The most that all disks in the directory may; 0: the disk cache is off for good.",
    ),
    (
        "now.line_round_trip_us",
        "The shortest wait for an answer, of late; 0: not known yet.",
    ),
    (
        "now.line_bytes_per_second",
        "The highest rate of the line, of late; a guess until it is known.",
    ),
    (
        "now.boot_pack_frames",
        "Frames of the boot pack; 0: there is none, or its head is not here.",
    ),
    (
        "now.boot_pack_frames_left",
        "Frames that are on their way or still to come.",
    ),
    (
        "now.overlay_dirty_bytes",
        "Bytes that were written, and that no sync has begun to bring to disk.",
    ),
    (
        "now.overlay_written_bytes",
        "Bytes of the disk that the overlay has.",
    ),
    (
        "now.overlay_stale_bytes",
        "Bytes of the overlay's file that nothing points to any more.",
    ),
    (
        "now.overlay_file_bytes",
        "Bytes that the file of the overlay occupies.",
    ),
    (
        "now.overlay_is_out_of_use",
        "1: the overlay takes no more writes, because nobody can say what is on disk.",
    ),
    (
        "now.version_is_withdrawn",
        "1: the version that is shown was removed from the store, as the last look found.",
    ),
    (
        "passthrough.state",
        "Whether the kernel reads the cache file without asking: `on`, `ready` for the next open, or why not.",
    ),
    (
        "passthrough.opens",
        "Opens of the disk whose reads the kernel serves itself; they are in no other count.",
    ),
    (
        "passthrough.passes",
        "Verifications of the whole cache file.",
    ),
    (
        "passthrough.mended",
        "Chunks and holes of the cache file that were wrong then, and were mended.",
    ),
];

/// What the number at `path` means.
#[must_use]
pub fn meaning(path: &str) -> Option<&'static str> {
    let found = NAMES.iter().find(|(name, _)| *name == path);
    found.map(|(_, meaning)| *meaning)
}
