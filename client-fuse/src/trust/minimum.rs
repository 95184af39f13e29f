//! Holds metadata against the least versions that this machine was told to take.

pub use image_format::minimum::{MINIMUM_BYTES_MAX, Minimum};

use image_format::minimum::{Offered, Reach, keys};
use tough::Repository;
use tough::schema::{RoleType, Root};

use super::TrustError;

/// Checks that verified metadata is not below the minimum.
pub(super) fn check(minimum: &Minimum, repository: &Repository) -> Result<Reach, TrustError> {
    let root = &repository.root().signed;
    let offered = Offered {
        root: root.version.get(),
        timestamp: repository.timestamp().signed.version.get(),
        snapshot: repository.snapshot().signed.version.get(),
        targets: repository.targets().signed.version.get(),
        keys: keys(
            &key_ids(root, RoleType::Timestamp),
            &key_ids(root, RoleType::Snapshot),
        ),
    };
    minimum.judge(&offered).map_err(TrustError::BelowMinimum)
}

fn key_ids(root: &Root, role: RoleType) -> Vec<&[u8]> {
    let keys = root.roles.get(&role).into_iter();
    keys.flat_map(|keys| &keys.keyids)
        .map(|id| &id[..])
        .collect()
}

/// Says how far the minimum reached, so that whoever looks can tell that there was one.
pub(super) fn tell(minimum: &Minimum, reach: Reach) {
    let Minimum {
        root,
        timestamp,
        snapshot,
        targets,
        ..
    } = minimum;
    match reach {
        Reach::All => tracing::info!(
            root,
            timestamp,
            snapshot,
            targets,
            "the store's metadata is not older than this machine was told"
        ),
        Reach::RootOnly => tracing::warn!(
            root,
            "the store's keys were replaced since this machine was told what is too old: only its root is known not to be"
        ),
    }
}
