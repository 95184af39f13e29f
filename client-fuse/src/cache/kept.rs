//! The boot pack, kept as it came: frames in memory, still compressed, for as long as the mount lives.
//!
//! What the other caches let go of is unpacked again from here, without any server: a machine with little
//! memory whose server is gone still has what its boot and its end read.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Stored frames of one boot pack, by their number: all of them, or, where the boot pack is longer than
/// the bound, none.
#[derive(Debug)]
pub struct KeptFrames {
    bytes_max: u64,
    frames: Mutex<HashMap<usize, Bytes>>,
}

impl KeptFrames {
    /// None yet; those of a boot pack of at most `bytes_max` bytes may be kept.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            frames: Mutex::default(),
        }
    }

    /// Most bytes of a boot pack that is kept; 0: none is.
    #[must_use]
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether a boot pack of this length is kept.
    #[must_use]
    pub const fn fits(&self, object_bytes: u64) -> bool {
        object_bytes <= self.bytes_max
    }

    /// Keeps a frame, which was verified.
    pub fn keep(&self, frame: usize, stored: Bytes) {
        self.frames().insert(frame, stored);
    }

    /// The stored bytes of a frame.
    #[must_use]
    pub fn find(&self, frame: usize) -> Option<Bytes> {
        self.frames().get(&frame).cloned()
    }

    /// Whether a frame is here.
    #[must_use]
    pub fn holds(&self, frame: usize) -> bool {
        self.frames().contains_key(&frame)
    }

    /// Forgets a frame, because it is not what it was.
    pub fn forget(&self, frame: usize) {
        self.frames().remove(&frame);
    }

    fn frames(&self) -> MutexGuard<'_, HashMap<usize, Bytes>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
