//! Revises a published version: another boot pack, or none, for the same disk.
//!
//! The order is that of a publish: objects first, then manifest, catalogue, signed metadata. The
//! version and its disk stay; the tags do not move.

use image_format::ImageRef;
use image_format::catalogue::VersionEntry;
use image_format::manifest::{BootPack, Manifest};

use crate::boot_files;
use crate::catalogue_change::CatalogueChange;
use crate::lock::CommitLock;
use crate::publication::PublishError;
use crate::store::Store;
use crate::trust::sign::Signer;

/// Why a version was not revised.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ReviseError {
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(
        "the boot pack of {reference} was changed by somebody else meanwhile; nothing was changed. Try again"
    )]
    Changed { reference: ImageRef },
}

/// A new revision of a version.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Which version, pinned.
    pub reference: ImageRef,
    /// The boot pack that the version is expected to have.
    pub before: Option<BootPack>,
    /// The boot pack that it is to have; its objects are in the store.
    pub after: Option<BootPack>,
}

impl Revision {
    /// Commits the revision and returns the new manifest.
    ///
    /// # Errors
    /// The version has another boot pack by now, or the store cannot be read or written.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the revision is visible or not, never in part.
    pub async fn commit(self, store: &Store, signer: &Signer<'_>) -> Result<Manifest, ReviseError> {
        let name = &self.reference.name;
        let publish = |error: crate::StoreError| ReviseError::Publish(error.into());
        let _lock = CommitLock::acquire(store).await.map_err(publish)?;
        let current = signer.current(store).await.map_err(publish)?;
        let mut names = store.names_of(&current).await.map_err(publish)?;
        let mut catalogue = store.catalogue(&names, name).await.map_err(publish)?;
        let resolved = catalogue.resolve(&self.reference);
        let (version, entry) = resolved.map_err(|error| publish(error.into()))?;
        let mut manifest = store.manifest(&entry.manifest).await.map_err(publish)?;
        if manifest.boot_pack != self.before {
            let reference = self.reference.pinned(version);
            return Err(ReviseError::Changed { reference });
        }
        if manifest.boot_pack == self.after {
            return Ok(manifest);
        }
        // They were written before the lock was taken; a sweep may have taken them since.
        let pack = self.after.iter();
        let objects = pack.flat_map(|pack| [pack.object, pack.profile]);
        let gone = store.lacking(objects).await.map_err(publish)?;
        if !gone.is_empty() {
            return Err(PublishError::Gone { objects: gone }.into());
        }
        manifest.boot_pack = self.after;
        manifest.revision = manifest.revision.saturating_add(1);
        let object = store.put_object(manifest.encode().into()).await;
        let entry = VersionEntry {
            manifest: object.map_err(publish)?,
            revision: manifest.revision,
            ..*entry
        };
        let before = catalogue.clone();
        catalogue.versions.insert(version, entry);
        CatalogueChange::encode(&before, &catalogue)?
            .commit(store, signer, &current, &mut names, Vec::new())
            .await?;
        boot_files::write(store, signer, &names, &catalogue)
            .await
            .map_err(|source| PublishError::BootFiles { source })?;
        Ok(manifest)
    }
}
