//! Counters of each server, and of what was done where one of them failed.

use std::sync::{Arc, OnceLock};

use serde::{Serialize, Serializer};

use super::Counter;

/// What one server did.
#[derive(Debug, Serialize)]
pub struct MirrorStats {
    /// What it is called: its address.
    pub name: String,
    /// Requests to it, failed ones included.
    pub requests: Counter,
    /// Bytes of bodies that it sent.
    pub bytes: Counter,
    /// Requests that failed.
    pub failures: Counter,
}

impl MirrorStats {
    /// Nothing yet.
    #[must_use]
    pub fn of(name: String) -> Self {
        Self {
            name,
            requests: Counter::default(),
            bytes: Counter::default(),
            failures: Counter::default(),
        }
    }
}

/// The servers, in the order in which they were given; none before the first fetch.
#[derive(Debug, Default)]
pub struct ByMirror(OnceLock<Vec<Arc<MirrorStats>>>);

impl ByMirror {
    /// Says which servers there are; the first word counts.
    pub(crate) fn name(&self, mirrors: Vec<Arc<MirrorStats>>) {
        // The same servers again: opening and serving use them one after the other.
        let _ = self.0.set(mirrors);
    }

    /// Those that there are.
    #[must_use]
    pub fn all(&self) -> &[Arc<MirrorStats>] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}

impl Serialize for ByMirror {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.all().iter().map(AsRef::as_ref))
    }
}

/// What was done where an answer did not come.
#[derive(Debug, Default, Serialize)]
pub struct FaultStats {
    /// Second requests for what the first let a guest wait for far longer than usual.
    pub hedges: Counter,
    /// Bytes that these brought.
    pub hedge_bytes: Counter,
    /// Second requests where nothing came any more.
    pub rescues: Counter,
    /// Bytes that came twice because of either.
    pub twice_bytes: Counter,
    /// Times at which readers waited because no server answered.
    pub stalls: Counter,
    /// How long these were, together, in milliseconds; one that goes on does not count yet.
    pub stalled_ms: Counter,
    /// Tries that went on at another mirror.
    pub failovers: Counter,
    /// Small requests that told how fast another mirror is, or whether it is back.
    pub looks: Counter,
    /// Bytes that these brought, which nobody used.
    pub look_bytes: Counter,
}
