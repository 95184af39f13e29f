//! How slow an answer may be: a server that sends a byte now and then is as good as one that is silent.
//!
//! The source ends a connection that is silent. What trickles would keep a reader waiting for ever
//! (TUF calls it slow retrieval), so every answer must also bring [`BYTES_PER_SECOND_MIN`] on
//! average, once [`GRACE`] is over.

use std::time::Duration;

use tokio::time::Instant;

use crate::fetch::FetchError;

/// Less than any line over which a disk can be used: eight requests at once over 64 kbit/s.
pub const BYTES_PER_SECOND_MIN: u64 = 1024;

/// For connecting, redirects, a server that has to look, and a line that hangs for a moment.
pub const GRACE: Duration = Duration::from_secs(30);

/// The pace of one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    began: Instant,
}

impl Pace {
    /// The request goes out now.
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    /// Until when more must have come, after `got` bytes.
    pub(crate) fn until(&self, got: u64) -> Instant {
        self.began + GRACE + Duration::from_secs(got / BYTES_PER_SECOND_MIN)
    }

    /// The error when it did not.
    pub(crate) fn too_slow(&self, path: String, got: u64) -> FetchError {
        FetchError::Slow {
            path,
            got,
            seconds: self.began.elapsed().as_secs(),
        }
    }
}
