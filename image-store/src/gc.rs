//! Deletes what nothing refers to any more, in two phases.
//!
//! What is unreferenced is first written, with the time, into a list beside the store's files;
//! what was in that list for the grace period, and is unreferenced still, is deleted. So a client
//! that opened a version before it was removed, and a publisher that has written objects but not
//! committed yet, have that long to finish.
//!
//! - [`remove`]: takes versions out of catalogues: only that makes anything unreferenced
//! - `mark`: finds all that the current metadata leads to
//! - `files`: finds the files that could be deleted, by their names
//! - [`list`]: what waits, since when; what is due
//! - `former`: what a commit lets go of waits from then on
//!
//! Invariants:
//! - What cannot be read leads nobody knows where: then nothing is deleted.
//! - A file whose name is not one of the store's is never deleted, nor is a root, nor a boot file.
//! - Chunk indexes forget the chunks of a pack, in a signed commit, before the pack is deleted.
//! - All that happens under the commit lock, and a publish looks under that lock whether all that
//!   it refers to is there: it never refers to what was deleted, however short the grace period.
//!
//! The marks of a store of 16 TiB in packs are a million digests, some 50 MB.

mod files;
pub(crate) mod former;
pub mod list;
mod mark;
pub mod remove;

use std::collections::BTreeMap;
use std::time::Duration;

use image_format::{ImageRef, ObjectRef};

use crate::boot_files;
use crate::gc::files::{FileKind, StoreFile};
use crate::gc::mark::Marks;
use crate::index::IndexError;
use crate::lock::CommitLock;
use crate::publication::{PublishError, put_index_list};
use crate::reader::ReadError;
use crate::store::{Store, StoreError};
use crate::trust::Current;
use crate::trust::keys::KeyError;
use crate::trust::sign::Signer;

/// How long what is unreferenced waits before it is deleted, unless somebody says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why nothing can be deleted.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum GcError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "cannot tell what {reference} needs, so nothing was deleted: publish its image again with --mend, or remove that version"
    )]
    Image {
        reference: ImageRef,
        source: Box<ReadError>,
    },
    #[error("cannot list the files of the store, so nothing was deleted")]
    Files { source: std::io::Error },
    #[error("cannot rewrite the chunk index")]
    Indexes { source: Box<PublishError> },
    #[error("cannot merge the chunk indexes")]
    Merge(#[from] IndexError),
}

/// Whether anything is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Delete what is due.
    Sweep,
    /// Only say what would be done.
    DryRun,
}

/// How to collect.
#[derive(Clone, Copy, Debug)]
pub struct GcConfig {
    /// How long what is unreferenced waits. Shorter than a publish takes makes that publish store
    /// again what was deleted under it; shorter than a boot takes breaks that boot.
    pub grace: Duration,
    /// Whether anything is changed.
    pub mode: Mode,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What was deleted, or would be: paths in the store, and bytes.
    pub deleted: BTreeMap<String, u64>,
    /// Files that wait, and are unreferenced still.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
}

/// Lists what nothing refers to, and deletes what was listed for long enough.
///
/// # Errors
/// Something that may refer to files cannot be read, or the store cannot be written.
///
/// # Cancel safety
/// Dropped before it ends, it has deleted a part of what was due; the next run goes on.
pub async fn collect(
    store: &Store,
    signer: &Signer<'_>,
    config: GcConfig,
) -> Result<Collected, GcError> {
    let root = signer.keys.root()?;
    // Most of the marking is done before publishers have to wait.
    let before = signer.current(store).await?;
    let mut marks = Marks::default();
    marks.add(store, &before).await?;
    let _lock = CommitLock::acquire(store).await?;
    let current = signer.current(store).await?;
    marks.add(store, &current).await?;
    let (unreferenced, mut marks) = files::unreferenced(store, marks).await?;
    let list = list::read(store).await?;
    let next = list.next(
        unreferenced.keys().map(String::as_str),
        signer.now,
        config.grace,
    );
    let due = next.due.iter().map(|path| (path, unreferenced[path]));
    let mut due: BTreeMap<&String, StoreFile> = due.collect();
    if config.mode == Mode::Sweep {
        if forget_packs(store, signer, &current, due.values()).await? {
            // The new index and its list may be ones that there were before, and were to go.
            marks.add(store, &store.current(&root).await?).await?;
            due.retain(|path, file| !marks.hold(path, file.kind));
        }
        for (path, file) in &due {
            delete(store, path, file).await?;
        }
        if next.list != list {
            let encoded = next.list.encode();
            store.replace(list::LIST_PATH, encoded.into()).await?;
        }
    }
    let waiting = next.list.waiting.keys();
    Ok(Collected {
        waiting: waiting.len() as u64,
        waiting_bytes: waiting.map(|path| unreferenced[path].bytes).sum(),
        deleted: due
            .into_iter()
            .map(|(path, file)| (path.clone(), file.bytes))
            .collect(),
    })
}

/// Rewrites the chunk indexes without what lies in packs about to be deleted; tells whether there
/// was anything to rewrite.
async fn forget_packs<'a>(
    store: &Store,
    signer: &Signer<'_>,
    current: &Current,
    due: impl Iterator<Item = &'a StoreFile>,
) -> Result<bool, GcError> {
    let names = store.names_of(current).await?;
    let failed = |error| GcError::Indexes {
        source: Box::new(error),
    };
    let mut indexes = store
        .chunk_indexes(&names.chunk_indexes)
        .await
        .map_err(failed)?;
    indexes.exclude(due.filter_map(|file| match file.kind {
        FileKind::Object(digest) => Some(digest),
        _ => None,
    }));
    if !indexes.lead_to_excluded() {
        return Ok(false);
    }
    let merged: ObjectRef = store.put_file(indexes.merge()?).await?;
    let target = put_index_list(store, vec![merged]).await?;
    signer.advance(store, current, &[target]).await?;
    boot_files::write_minimum(store, signer).await?;
    Ok(true)
}

async fn delete(store: &Store, path: &str, file: &StoreFile) -> Result<(), GcError> {
    match file.kind {
        // The back end does not show such files: they are its own.
        FileKind::Staging => match std::fs::remove_file(store.root().join(path)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(GcError::Files { source })
            }
            _ => Ok(()),
        },
        _ => Ok(store.remove(path).await?),
    }
}
