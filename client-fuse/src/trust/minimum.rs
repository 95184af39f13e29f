//! The least versions of metadata that a machine without a memory takes.
//!
//! A machine that boots from the network remembers nothing from one boot to the next, so whoever
//! starts it says what there was when that was written: `/etc/circular/minimum.json` in an initrd.

use serde::{Deserialize, Serialize};
use tough::Repository;

use super::TrustError;

/// The longest document of this kind, in bytes.
pub const MINIMUM_BYTES_MAX: u64 = 4096;

/// The least version of each role, as JSON: `{"root":1,"timestamp":7,"snapshot":7,"targets":7}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of the roles are the docs")]
pub struct Minimum {
    pub root: u64,
    pub timestamp: u64,
    pub snapshot: u64,
    pub targets: u64,
}

impl Minimum {
    /// Checks that metadata is not below it.
    pub(super) fn check(&self, repository: &Repository) -> Result<(), TrustError> {
        let roles = [
            ("root", repository.root().signed.version, self.root),
            (
                "timestamp",
                repository.timestamp().signed.version,
                self.timestamp,
            ),
            (
                "snapshot",
                repository.snapshot().signed.version,
                self.snapshot,
            ),
            ("targets", repository.targets().signed.version, self.targets),
        ];
        for (role, offered, minimum) in roles {
            let offered = offered.get();
            if offered < minimum {
                return Err(TrustError::BelowMinimum {
                    role,
                    offered,
                    minimum,
                });
            }
        }
        Ok(())
    }
}
