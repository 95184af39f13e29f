//! Stores objects: each under the digest of its bytes, unless it is there and whole.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use bytes::Bytes;
use image_format::digest::Hasher;
use image_format::{Digest, ObjectRef};
use object_store::{ObjectStoreExt as _, WriteMultipart};

use crate::store::{Store, StoreError, access, object_path};
use crate::trust::{METADATA_DIRECTORY, TARGETS_DIRECTORY};

/// Where objects lie, in directories by the first byte of their digests.
const OBJECTS_DIRECTORY: &str = "objects";

/// How much of a temporary file is read and written at once.
const FILE_PART_BYTES: usize = 1024 * 1024;

impl Store {
    /// Makes the names of these objects, and of all targets, last through a power cut. Who found a file need not have
    /// written it, and whoever did may not have come that far. On a server it is the server that does so.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub(crate) async fn sync_directories(
        &self,
        objects: impl IntoIterator<Item = Digest>,
    ) -> Result<(), StoreError> {
        if self.staged.is_some() {
            return Ok(());
        }
        let root = self.root.clone();
        let directory = |object: Digest| {
            let path = object.object_path();
            path.rsplit_once('/')
                .map(|(directory, _)| directory.to_owned())
        };
        let directories: BTreeSet<String> = objects.into_iter().filter_map(directory).collect();
        let syncing = tokio::task::spawn_blocking(move || sync_below(&root, &directories));
        let synced = syncing
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)));
        synced.map_err(|source| StoreError::Directory {
            path: self.root.clone(),
            source,
        })
    }

    /// Stores an object, unless it is there already.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_object(&self, bytes: Bytes) -> Result<ObjectRef, StoreError> {
        let object = ObjectRef::of(&bytes);
        self.put_named(object, bytes).await?;
        Ok(object)
    }

    /// Stores an object whose name was computed before.
    pub(crate) async fn put_named(
        &self,
        object: ObjectRef,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let path = object.digest.object_path();
        match self.held().verify_object(&object).await {
            Ok(()) => {
                self.note_held(&path);
                Ok(())
            }
            Err(StoreError::Missing { .. }) => self.create(&path, bytes).await.map(drop),
            // The right bytes replace it: publishing an image again mends what it can.
            Err(StoreError::Damaged { .. } | StoreError::Unreadable { .. }) => {
                self.replace(&path, bytes).await
            }
            unreadable => unreadable,
        }
    }

    /// Stores the content of `file`, from its start, as an object, part by part.
    pub(crate) async fn put_file(&self, mut file: File) -> Result<ObjectRef, StoreError> {
        let temporary = |source| StoreError::Temporary { source };
        let (mut hasher, mut length) = (Hasher::new(), 0);
        let mut part = vec![0; FILE_PART_BYTES];
        file.rewind().map_err(temporary)?;
        loop {
            let count = file.read(&mut part).map_err(temporary)?;
            if count == 0 {
                break;
            }
            hasher.update(&part[..count]);
            length += count as u64;
        }
        let digest = hasher.finish();
        let path = digest.object_path();
        let failed = |source| access(&path, source);
        let upload = self
            .backend
            .put_multipart(&object_path(&path))
            .await
            .map_err(failed)?;
        let mut upload = WriteMultipart::new(upload);
        file.rewind().map_err(temporary)?;
        loop {
            let count = file.read(&mut part).map_err(temporary)?;
            if count == 0 {
                break;
            }
            upload.wait_for_capacity(2).await.map_err(failed)?;
            upload.write(&part[..count]);
        }
        upload.finish().await.map_err(failed)?;
        Ok(ObjectRef { digest, length })
    }
}

/// Syncs these directories of a store, those of targets and metadata, and what holds them.
fn sync_below(root: &Path, directories: &BTreeSet<String>) -> io::Result<()> {
    let sync = |path: &Path| match File::open(path) {
        Ok(directory) => directory.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    for directory in directories {
        sync(&root.join(directory))?;
    }
    for directory in [OBJECTS_DIRECTORY, TARGETS_DIRECTORY, METADATA_DIRECTORY] {
        sync(&root.join(directory))?;
    }
    sync(root)
}
