//! Takes metadata that a publisher signed elsewhere: checks all of it, then makes it current.
//!
//! The publisher is believed nothing. Whatever it sends, what is current stays current until new
//! metadata chains to a root that was trusted before, goes forward, takes away no name in silence,
//! and leads to nothing that the store lacks.
//!
//! Everything happens under the commit lock. Order: targets, snapshot, roots, `timestamp.json` (the
//! switch), the first root of a new store, boot files. Killed before the switch, the old metadata
//! stays in force; the numbered files that it may leave behind lead nowhere.

mod check;
mod complete;
mod proposal;
mod refused;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use image_format::catalogue::Catalogue;
use image_format::marker::Marker;
use image_format::{Digest, ImageName, ObjectRef};
use object_store::ObjectStoreExt as _;
use tough::schema::{Root, Signed};

use super::load::{Overlay, load_over};
use super::{
    CHUNK_INDEXES_TARGET, Current, FIRST_ROOT_PATH, Names, ROLE_BYTES_MAX, TIMESTAMP_PATH,
    TrustError,
};
use crate::boot_files;
use crate::gc::former::{all_wait_anew, wait_anew};
use crate::lock::CommitLock;
use crate::store::{Store, StoreError, object_path};
use complete::Walk;
pub use proposal::{FILES_MAX, PROPOSAL_BYTES_MAX, Proposal, ProposedFile, REMOVES_MAX};
pub use refused::{AcceptError, RefusedBecause};

/// What was made current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The version of the timestamp.
    pub timestamp: u64,
    /// Whether the boot files were written; if not, the log says why, and the next publish tries
    /// again.
    pub boot_files: bool,
}

/// Checks that these bytes can be trusted as a root: that they are one, signed as it says itself.
///
/// # Errors
/// They are not.
pub fn check_root(bytes: &[u8]) -> Result<(), TrustError> {
    let root: Signed<Root> = serde_json::from_slice(bytes).map_err(TrustError::Root)?;
    let verified = root.signed.verify_role(&root);
    verified.map_err(|error| TrustError::Schema(Box::new(error)))
}

/// Ends a first commit that was killed before its last file, or found the disk full there: without its first root a
/// store can be opened by nobody. Returns whether that was so.
///
/// # Errors
/// The store cannot be read or written.
pub async fn end_first_commit(store: &Store, trusted_root: &Bytes) -> Result<bool, StoreError> {
    let lacks_root = async || {
        let root = read(store, FIRST_ROOT_PATH, ROLE_BYTES_MAX).await?;
        let timestamp = read(store, TIMESTAMP_PATH, ROLE_BYTES_MAX).await?;
        Ok::<_, StoreError>(root.is_none() && timestamp.is_some())
    };
    // Without the lock, which others may hold for long.
    if !lacks_root().await? {
        return Ok(false);
    }
    let _lock = CommitLock::acquire(store).await?;
    let is_first = || {
        let root = serde_json::from_slice::<Signed<Root>>(trusted_root);
        root.is_ok_and(|root| root.signed.version == NonZeroU64::MIN)
    };
    // What is current must be that root's; otherwise it is another one that was lost.
    if !lacks_root().await? || !is_first() || store.current(trusted_root).await.is_err() {
        return Ok(false);
    }
    store.create(FIRST_ROOT_PATH, trusted_root.clone()).await?;
    Ok(true)
}

/// Checks `proposal` against `trusted_root` and makes it current.
///
/// `trusted_root` defaults to the first root of the store; a store that has none yet needs one.
/// `now` is in seconds since 1970-01-01 00:00 UTC. Sent again after it was accepted, a proposal is
/// accepted again: a publisher that did not hear the answer can ask once more.
///
/// # Errors
/// See [`AcceptError`]; then nothing that was current has changed.
///
/// # Cancel safety
/// Dropped before it ends, the proposal is current or not, never in part; boot files may be old.
pub async fn accept(
    store: &Store,
    trusted_root: Option<&[u8]>,
    proposal: &Proposal,
    now: u64,
) -> Result<Accepted, AcceptError> {
    let _lock = CommitLock::acquire(store).await?;
    let first_root = read(store, FIRST_ROOT_PATH, ROLE_BYTES_MAX).await?;
    let trusted: Bytes = match (trusted_root, &first_root) {
        (Some(root), _) => Bytes::copy_from_slice(root),
        (None, Some(root)) => root.clone(),
        (None, None) => return Err(RefusedBecause::NoRoot.into()),
    };
    let standing = Standing::read(store, proposal).await?;
    let timestamp = read(store, TIMESTAMP_PATH, ROLE_BYTES_MAX).await?;
    let again = standing.has_all && timestamp.is_some();
    if !again && timestamp.as_deref().map(Digest::of) != proposal.follows {
        return Err(AcceptError::Conflict);
    }
    if !standing.taken.is_empty() {
        let files = standing.taken;
        return Err(AcceptError::Taken { files });
    }
    let before = match &timestamp {
        Some(_) => Some(load_before(store, &trusted, proposal).await?),
        None => None,
    };
    let overlay = proposal
        .files
        .iter()
        .map(|(file, bytes)| (object_path(&file.path()), Some(bytes.clone())));
    let overlay: Overlay = Arc::new(overlay.collect());
    let after = load_over(store.backend().clone(), overlay, &trusted)
        .await
        .map_err(|error| match error {
            // That is nothing against the proposal.
            error @ TrustError::Temporary(_) => StoreError::Trust(error).into(),
            error => AcceptError::Refused(error.into()),
        })?;
    let first_root = match first_root {
        Some(_) => None,
        None => Some(check::first_root(&trusted, proposal)?),
    };
    check::shape(&after, now)?;
    check::all_used(&standing.new, &after, first_root.is_some())?;
    if let Some(before) = &before {
        check::versions(before, &after, proposal, again)?;
    }
    let changed = match again {
        true => all(store, &after).await?,
        false => changes(store, before.as_ref(), &after, proposal).await?,
    };
    if !again {
        for (before, after) in &changed {
            wait_anew(store, before, after).await?;
        }
    }
    write(store, proposal, first_root).await?;
    let names = after.names(Vec::new()).map_err(RefusedBecause::from)?;
    let written = write_boot_files(store, &after, &names, &changed, now).await;
    if let Err(error) = &written {
        let error: &dyn std::error::Error = error;
        tracing::warn!(error, "new metadata is current, its boot files are not");
    }
    Ok(Accepted {
        timestamp: after.timestamp.signed.version.get(),
        boot_files: written.is_ok(),
    })
}

/// What a store has under the names of a proposal.
struct Standing {
    /// The numbered files that are there, with other bytes.
    taken: Vec<ProposedFile>,
    /// The numbered files that are not there.
    new: Vec<ProposedFile>,
    /// Whether all files are there just as proposed: the proposal was accepted before.
    has_all: bool,
}

impl Standing {
    async fn read(store: &Store, proposal: &Proposal) -> Result<Self, StoreError> {
        let mut standing = Self {
            taken: Vec::new(),
            new: Vec::new(),
            has_all: true,
        };
        for (file, bytes) in &proposal.files {
            match read(store, &file.path(), file.bytes_max()).await? {
                Some(there) if there == bytes => continue,
                Some(_) if file.is_numbered() => standing.taken.push(*file),
                // Written last: a commit that got no further was accepted.
                None if *file == ProposedFile::Root(NonZeroU64::MIN) => {
                    standing.new.push(*file);
                    continue;
                }
                None if file.is_numbered() => standing.new.push(*file),
                _ => {}
            }
            standing.has_all = false;
        }
        Ok(standing)
    }
}

/// Reads a file of at most `max` bytes; one that is longer is cut there.
async fn read(store: &Store, path: &str, max: u64) -> Result<Option<Bytes>, StoreError> {
    let failed = |source| StoreError::Access {
        path: path.to_owned(),
        source,
    };
    let path = object_path(path);
    let length = match store.backend().head(&path).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    if length == 0 {
        return Ok(Some(Bytes::new()));
    }
    // One byte more than may be tells a longer file from the longest.
    let range = 0..length.min(max.saturating_add(1));
    let bytes = store.backend().get_range(&path, range).await;
    bytes.map(Some).map_err(failed)
}

/// Loads what is current.
///
/// A commit of new roots that was killed before its timestamp leaves roots that do not fit what is
/// current. If the same roots are proposed again, what is current is judged without them.
async fn load_before(
    store: &Store,
    trusted: &[u8],
    proposal: &Proposal,
) -> Result<Current, StoreError> {
    let failed = match store.current(trusted).await {
        Ok(current) => return Ok(current),
        Err(error) => error,
    };
    let roots = proposal.files.keys();
    let hidden: BTreeMap<_, _> = roots
        .filter(|file| matches!(file, ProposedFile::Root(_)))
        .map(|file| (object_path(&file.path()), None))
        .collect();
    if hidden.is_empty() {
        return Err(failed);
    }
    load_over(store.backend().clone(), Arc::new(hidden), trusted)
        .await
        .map_err(|_| failed)
}

/// A catalogue before and after.
type Change = (Catalogue, Catalogue);

/// Finds which catalogues change, and checks that no name is lost and that what is new is complete.
async fn changes(
    store: &Store,
    before: Option<&Current>,
    after: &Current,
    proposal: &Proposal,
) -> Result<Vec<Change>, AcceptError> {
    let old = before.map(Current::catalogues).transpose();
    let old = old.map_err(StoreError::from)?.unwrap_or_default();
    let new = after.catalogues().map_err(RefusedBecause::from)?;
    let (old_names, names) = (offers(&old), offers(&new));
    let mut walk = Walk::new(store);
    let mut changed = Vec::new();
    for name in old.keys().filter(|name| !new.contains_key(name)) {
        let target = name.to_file_safe();
        if !proposal.removes.contains(name.as_str()) && !proposal.removes.contains(&target) {
            let name = name.to_string();
            return Err(RefusedBecause::Vanished { name }.into());
        }
        if let Some(gone) = former(store, &old_names, name).await? {
            changed.push((gone, Catalogue::empty(name.clone())));
        }
    }
    for (name, object) in &new {
        if old.get(name) == Some(object) {
            continue;
        }
        let refused = |source| incomplete(name.as_str(), source);
        let catalogue = store.catalogue(&names, name).await.map_err(refused)?;
        let before = match old.contains_key(name) {
            // One that is damaged is compared with no longer; then all of the new one is checked.
            true => former(store, &old_names, name).await?,
            false => None,
        };
        let before = before.unwrap_or_else(|| Catalogue::empty(name.clone()));
        check::disks(&before, &catalogue)?;
        walk.catalogue(&before, &catalogue).await.map_err(refused)?;
        for (version, entry) in check::moved(&before, &catalogue) {
            if !complete::has_content(store, entry).await? {
                let (name, version) = (name.clone(), *version);
                return Err(RefusedBecause::OtherDisk { name, version }.into());
            }
        }
        changed.push((before, catalogue));
    }
    check_chunk_indexes(store, &mut walk, before, after, proposal).await?;
    store.sync_directories(walk.looked_at()).await?;
    Ok(changed)
}

/// Reads a catalogue that is about to be replaced; `None`: it is damaged, and nobody knows what it let live.
async fn former(
    store: &Store,
    names: &Names,
    name: &ImageName,
) -> Result<Option<Catalogue>, StoreError> {
    match store.catalogue(names, name).await {
        Ok(catalogue) => Ok(Some(catalogue)),
        Err(error) if error.is_damage() => {
            all_wait_anew(store).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns all catalogues that can be read, as if they were new.
async fn all(store: &Store, current: &Current) -> Result<Vec<Change>, AcceptError> {
    let catalogues = current.catalogues().map_err(RefusedBecause::from)?;
    let names = offers(&catalogues);
    let mut all = Vec::new();
    for name in catalogues.keys() {
        if let Ok(catalogue) = store.catalogue(&names, name).await {
            all.push((Catalogue::empty(name.clone()), catalogue));
        }
    }
    Ok(all)
}

fn offers(names: &BTreeMap<ImageName, ObjectRef>) -> Names {
    Names {
        names: names.clone(),
        chunk_indexes: Vec::new(),
    }
}

async fn check_chunk_indexes(
    store: &Store,
    walk: &mut Walk<'_>,
    before: Option<&Current>,
    after: &Current,
    proposal: &Proposal,
) -> Result<(), AcceptError> {
    let old = before.and_then(Current::chunk_index_list);
    let refused = |source| incomplete(CHUNK_INDEXES_TARGET, source);
    match after.chunk_index_list() {
        None if old.is_some() && !proposal.removes.contains(CHUNK_INDEXES_TARGET) => {
            let name = CHUNK_INDEXES_TARGET.to_owned();
            Err(RefusedBecause::Vanished { name }.into())
        }
        list if old != list => {
            let names = store.names_of(after).await.map_err(refused)?;
            let indexes = &names.chunk_indexes;
            walk.chunk_indexes(indexes).await.map_err(refused)
        }
        _ => Ok(()),
    }
}

/// Tells what the publisher left out from what the server cannot read.
fn incomplete(name: &str, source: StoreError) -> AcceptError {
    match source {
        StoreError::Missing { .. }
        | StoreError::Damaged { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Decode { .. }
        | StoreError::OtherManifest { .. } => RefusedBecause::Incomplete {
            name: name.to_owned(),
            source: Box::new(source),
        }
        .into(),
        source => source.into(),
    }
}

async fn write(
    store: &Store,
    proposal: &Proposal,
    first_root: Option<Bytes>,
) -> Result<(), AcceptError> {
    let first = ProposedFile::Root(NonZeroU64::MIN);
    if let Some(marker) = proposal.files.get(&ProposedFile::Marker) {
        write_marker(store, marker, first_root.is_some()).await?;
    }
    // In the order of `ProposedFile`: targets, snapshot, roots.
    for (file, bytes) in proposal.numbered().filter(|(file, _)| *file != first) {
        // Where it exists, its bytes are these: that was checked under the lock.
        store.create(&file.path(), bytes.clone()).await?;
    }
    if let Some(timestamp) = proposal.files.get(&ProposedFile::Timestamp) {
        store.replace(TIMESTAMP_PATH, timestamp.clone()).await?;
    }
    // Last, as the first publish beside a store does: a store without it is still new.
    if let Some(root) = first_root {
        store.create(FIRST_ROOT_PATH, root).await?;
    }
    Ok(())
}

/// The marker is not signed, so it only comes with the first metadata.
async fn write_marker(store: &Store, marker: &Bytes, is_new: bool) -> Result<(), AcceptError> {
    let file = ProposedFile::Marker;
    let decoded =
        Marker::decode(marker).map_err(|source| RefusedBecause::Marker { file, source })?;
    if is_new && decoded != *store.marker() {
        store.replace(&file.path(), marker.clone()).await?;
    }
    Ok(())
}

async fn write_boot_files(
    store: &Store,
    current: &Current,
    names: &Names,
    changed: &[Change],
    now: u64,
) -> Result<(), StoreError> {
    boot_files::write_minimum_of(store, current, now).await?;
    if changed.is_empty() {
        return Ok(());
    }
    for (before, after) in changed {
        for tag in before
            .tags
            .keys()
            .filter(|tag| !after.tags.contains_key(*tag))
        {
            boot_files::forget(store, &before.name, tag).await?;
        }
    }
    let changed: Vec<_> = changed.iter().map(|(_, after)| after).collect();
    boot_files::of_catalogues(store, names, &changed).await
}

#[cfg(test)]
mod tests;
