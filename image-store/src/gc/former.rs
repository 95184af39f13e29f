//! What a commit ceases to refer to has its grace period from then on.
//!
//! A file that was listed as unreferenced once, and was needed again since, is taken off the list by the next run
//! that sees it needed. If it is let go before there was such a run, it would be due at once: whoever lets go of
//! it takes it off the list.

use std::collections::BTreeMap;

use image_format::ObjectRef;
use image_format::catalogue::{Catalogue, catalogue_path};

use super::files::FileKind;
use super::list::{self, LIST_PATH, WaitingList};
use super::mark::Marks;
use crate::store::{Store, StoreError};

/// Takes off the list what `before` leads to and `after` does not. To be called under the commit lock, before `after`
/// is current. What cannot be read leads nobody knows where: then the list is begun anew.
///
/// # Errors
/// The list cannot be read or written.
pub(crate) async fn wait_anew(
    store: &Store,
    before: &Catalogue,
    after: &Catalogue,
) -> Result<(), StoreError> {
    // The list of a server's store is the server's.
    if store.staged().is_some() || before == after {
        return Ok(());
    }
    let old = list::read(store).await?;
    if old.waiting.is_empty() {
        return Ok(());
    }
    let mut marks = Marks::default();
    let encoded = ObjectRef::of(&before.encode());
    marks.add_file(catalogue_path(&before.name, &encoded.digest));
    let mut next = old.clone();
    for (version, entry) in &before.versions {
        if after.versions.get(version) == Some(entry) {
            continue;
        }
        match marks.add_version(store, &entry.manifest).await {
            Ok(()) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, name = %before.name, %version, "cannot tell what it needed: all that waits to be deleted waits anew");
                next.waiting = BTreeMap::new();
            }
        }
    }
    let is_held = |path: &str| FileKind::of(path).is_some_and(|kind| marks.hold(path, kind));
    next.waiting.retain(|path, _| !is_held(path));
    match next == old {
        true => Ok(()),
        false => write(store, &next).await,
    }
}

/// Has all that waits wait anew.
///
/// # Errors
/// The list cannot be read or written.
pub(crate) async fn all_wait_anew(store: &Store) -> Result<(), StoreError> {
    match list::read(store).await?.waiting.is_empty() {
        true => Ok(()),
        false => write(store, &WaitingList::default()).await,
    }
}

async fn write(store: &Store, list: &WaitingList) -> Result<(), StoreError> {
    store.replace(LIST_PATH, list.encode().into()).await
}
