//! Any bytes as a boot pack, and as what one is made from.

use std::ops::Range;

use crate::boot_pack::{FRAME_PLAIN_BYTES_MAX, Head};
use crate::chunk::ChunkId;
use crate::geometry::{DISK_BYTES_MAX, blocks_for};
use crate::profile::Profile;
use crate::trace::Trace;

/// Any bytes as a boot pack: two bytes that say how long the head is, the head, and the stored bytes
/// of its first frame.
///
/// # Panics
/// If a head has two encodings, its frames leave gaps, or a frame gives chunks that are not those of
/// the head.
pub fn boot_pack(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (bytes, stored) = rest.split_at(length);
    let Ok(head) = Head::decode(bytes) else {
        return;
    };
    assert_eq!(head.encode(), bytes, "boot pack has two encodings");
    assert_eq!(head.length(), bytes.len() as u64);
    frames(&head);
    chunks(&head);
    if let Ok(chunks) = head.decode_frame(0, stored) {
        let named = head.chunks_of(0).map(|chunk| chunk.entry.chunk);
        let got = chunks.iter().map(|chunk| ChunkId::of(chunk.bytes()));
        assert!(named.eq(got), "a chunk that is not what its name says");
    }
}

/// The frames follow one another, in the stream and in the list of chunks.
fn frames(head: &Head) {
    let (mut stored, mut chunk) = (head.length(), 0);
    for (number, frame) in head.frames().iter().enumerate() {
        assert_eq!(frame.stored.start, stored, "a gap between frames");
        assert_eq!(frame.chunks.start, chunk, "a chunk in no frame");
        assert!(frame.plain_bytes <= FRAME_PLAIN_BYTES_MAX);
        let held = head.chunks_of(number);
        let plain: usize = held.map(|chunk| chunk.entry.plain_len()).sum();
        assert_eq!(
            plain, frame.plain_bytes as usize,
            "a frame of another length"
        );
        (stored, chunk) = (frame.stored.end, frame.chunks.end);
    }
    assert_eq!(stored, head.object_length());
    assert_eq!(chunk, head.chunks().len());
}

/// Each chunk has a place of its own on some disk, and lies within its pack.
fn chunks(head: &Head) {
    let mut places: Vec<Range<u64>> = Vec::new();
    for chunk in head.chunks() {
        let end = u64::from(chunk.entry.offset) + u64::from(chunk.entry.length);
        assert!(end <= chunk.pack.length, "chunk outside its pack");
        let first = chunk.first_block();
        places.push(first..first + u64::from(chunk.entry.blocks));
    }
    places.sort_unstable_by_key(|place| place.start);
    let apart = |pair: &[Range<u64>]| pair[0].end <= pair[1].start;
    assert!(places.windows(2).all(apart), "chunks overlap");
    let last = places.last().map_or(0, |place| place.end);
    assert!(last <= blocks_for(DISK_BYTES_MAX), "chunk outside any disk");
}

/// Any bytes as a trace and as a profile.
///
/// # Panics
/// If what was accepted does not decode from its own encoding.
pub fn profile(data: &[u8]) {
    if let Ok(trace) = Trace::decode(data) {
        let profile = Profile::merge(trace.header.disk, None, &[trace]);
        assert_eq!(Profile::decode(&profile.encode()).ok(), Some(profile));
    }
    if let Ok(profile) = Profile::decode(data) {
        assert_eq!(Profile::decode(&profile.encode()).ok(), Some(profile));
    }
}
