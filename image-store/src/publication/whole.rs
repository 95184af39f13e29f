//! Finds out whether all that a published disk needs is there.

use std::collections::HashSet;

use image_format::manifest::Manifest;
use image_format::{DecodeError, Digest, ObjectRef};

use super::PublishError;
use crate::reader::{ImageReader, ReadError};
use crate::store::{Store, StoreError};

/// Tells whether tables, pages and packs of a disk are there. Packs are looked at, not read;
/// those in `lost` were read before, and count as gone.
pub(super) async fn is_whole(
    store: &Store,
    manifest: &Manifest,
    lost: &HashSet<Digest>,
) -> Result<bool, PublishError> {
    let packs = match packs(store, manifest).await {
        Ok(packs) => packs,
        Err(ReadError::Store(error)) if !error.is_damage() => return Err(error.into()),
        // A newer version of this program wrote it, and reads it: nothing to replace by what this one knows.
        Err(ReadError::Table { source } | ReadError::Index { source, .. })
            if matches!(source, DecodeError::Version { .. }) =>
        {
            let path = manifest.disk.regions.digest.object_path();
            return Err(StoreError::Decode { path, source }.into());
        }
        Err(_) => return Ok(false),
    };
    if packs.iter().any(|pack| lost.contains(&pack.digest)) {
        return Ok(false);
    }
    let gone: Result<Vec<_>, StoreError> = store.lacking(packs).await;
    Ok(gone?.is_empty())
}

async fn packs(store: &Store, manifest: &Manifest) -> Result<HashSet<ObjectRef>, ReadError> {
    let reader = ImageReader::open(store.clone(), manifest).await?;
    let mut packs = HashSet::new();
    for region in 0..reader.n_regions() {
        if let Some(page) = reader.page(region).await? {
            packs.extend(page.packs());
        }
    }
    Ok(packs)
}
