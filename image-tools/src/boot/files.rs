//! Kernel and initramfs as QEMU gets them: copies that were verified, where nobody changes them.

use std::io;
use std::path::PathBuf;

use image_format::manifest::Boot;
use image_store::{Store, StoreError};
use tempfile::TempDir;
use tokio::fs;

/// Why kernel and initramfs cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BootFilesError {
    #[error(
        "the {what} cannot be taken from the store; `circular publish --mend` with the image puts it back"
    )]
    Store {
        what: &'static str,
        source: StoreError,
    },
    #[error("cannot copy kernel and initramfs to a temporary directory")]
    Copy(#[from] io::Error),
}

/// Verified copies; gone when this is dropped.
#[derive(Debug)]
pub struct BootFiles(TempDir);

impl BootFiles {
    /// Copies what `boot` names, each checked against its digest.
    ///
    /// # Errors
    /// One of them is missing or damaged, or cannot be copied.
    pub async fn copy(store: &Store, boot: &Boot) -> Result<Self, BootFilesError> {
        let files = Self(TempDir::with_prefix("circular-boot-")?);
        for (what, object, path) in [
            ("kernel", &boot.kernel, files.kernel()),
            ("initramfs", &boot.initramfs, files.initramfs()),
        ] {
            let bytes = store.object(object).await;
            let bytes = bytes.map_err(|source| BootFilesError::Store { what, source })?;
            fs::write(path, bytes).await?;
        }
        Ok(files)
    }

    /// Returns where the kernel is.
    pub fn kernel(&self) -> PathBuf {
        self.0.path().join("kernel")
    }

    /// Returns where the initramfs is.
    pub fn initramfs(&self) -> PathBuf {
        self.0.path().join("initramfs")
    }
}
