//! The rules for new metadata that need no store: versions, expiry, shape, names of files.

use std::num::NonZeroU64;

use bytes::Bytes;
use image_format::Version;
use image_format::catalogue::{Catalogue, VersionEntry};
use tough::schema::{Role, Root, Signed};

use super::RefusedBecause;
use super::proposal::{Proposal, ProposedFile};
use crate::trust::{Current, TrustError};

/// The first root of a store is what whoever trusts on first use believes: it is the very one that
/// the server was given, not one that the publisher sent.
pub(super) fn first_root(trusted: &Bytes, proposal: &Proposal) -> Result<Bytes, RefusedBecause> {
    let signed: Signed<Root> = serde_json::from_slice(trusted).map_err(TrustError::Root)?;
    if signed.signed.version != NonZeroU64::MIN {
        return Err(RefusedBecause::NotFirstRoot);
    }
    match proposal.files.get(&ProposedFile::Root(NonZeroU64::MIN)) {
        Some(root) if root != trusted => Err(RefusedBecause::OtherRoot),
        _ => Ok(trusted.clone()),
    }
}

/// Checks what holds for any metadata of a store.
pub(super) fn shape(after: &Current, now: u64) -> Result<(), RefusedBecause> {
    if !after.root.signed.consistent_snapshot {
        return Err(RefusedBecause::NotConsistent);
    }
    let delegations = after.targets.signed.delegations.as_ref();
    if delegations.is_some_and(|delegations| !delegations.roles.is_empty()) {
        return Err(RefusedBecause::Delegations);
    }
    fn expiry<R: Role>(role: &Signed<R>) -> i64 {
        role.signed.expires().as_second()
    }
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    for (role, expires) in [
        ("root", expiry(&after.root)),
        ("timestamp", expiry(&after.timestamp)),
        ("snapshot", expiry(&after.snapshot)),
        ("targets", expiry(&after.targets)),
    ] {
        if expires <= now {
            return Err(RefusedBecause::Expired { role });
        }
    }
    Ok(())
}

/// Refuses files that the checks above did not reach: what is stored under a number stays there.
pub(super) fn all_used(
    new: &[ProposedFile],
    after: &Current,
    first_root_is_new: bool,
) -> Result<(), RefusedBecause> {
    let newest = after.root.signed.version;
    let used = |file: &ProposedFile| match *file {
        ProposedFile::Root(NonZeroU64::MIN) => first_root_is_new,
        ProposedFile::Root(number) => number <= newest,
        ProposedFile::Snapshot(number) => number == after.snapshot.signed.version,
        ProposedFile::Targets(number) => number == after.targets.signed.version,
        ProposedFile::Timestamp | ProposedFile::Marker => true,
    };
    match new.iter().find(|file| !used(file)) {
        Some(file) => Err(RefusedBecause::Unused { file: *file }),
        None => Ok(()),
    }
}

/// Nothing goes back, and a new timestamp goes forward.
pub(super) fn versions(
    before: &Current,
    after: &Current,
    proposal: &Proposal,
    again: bool,
) -> Result<(), RefusedBecause> {
    let timestamp_is_new = !again && proposal.files.contains_key(&ProposedFile::Timestamp);
    let (old, new) = (before, after);
    for (role, current, proposed, least_step) in [
        ("root", old.root.signed.version, new.root.signed.version, 0),
        (
            "timestamp",
            old.timestamp.signed.version,
            new.timestamp.signed.version,
            u64::from(timestamp_is_new),
        ),
        (
            "snapshot",
            old.snapshot.signed.version,
            new.snapshot.signed.version,
            0,
        ),
        (
            "targets",
            old.targets.signed.version,
            new.targets.signed.version,
            0,
        ),
    ] {
        let (current, proposed) = (current.get(), proposed.get());
        if proposed < current.saturating_add(least_step) {
            return Err(RefusedBecause::Older {
                role,
                current,
                proposed,
            });
        }
    }
    Ok(())
}

/// Returns the versions whose chunks lie elsewhere than before.
pub(super) fn moved<'a>(
    before: &'a Catalogue,
    after: &'a Catalogue,
) -> impl Iterator<Item = (&'a Version, &'a VersionEntry)> {
    after.versions.iter().filter(|(version, entry)| {
        let before = before.versions.get(version);
        before.is_some_and(|before| before.disk != entry.disk)
    })
}

/// A version, once published, names the same disk for ever; where its chunks lie may change, if some were lost and stored
/// again.
pub(super) fn disks(before: &Catalogue, after: &Catalogue) -> Result<(), RefusedBecause> {
    let other = before.versions.iter().find(|(version, entry)| {
        let after = after.versions.get(version);
        after.is_some_and(|after| (after.content, after.length) != (entry.content, entry.length))
    });
    match other {
        Some((version, _)) => Err(RefusedBecause::OtherDisk {
            name: before.name.clone(),
            version: *version,
        }),
        None => Ok(()),
    }
}
