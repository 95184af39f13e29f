//! Checks whether objects that something refers to are there, and whole.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image_format::digest::{Hasher, ObjectMismatch};
use image_format::{Digest, DigestMismatch, ObjectRef};
use object_store::ObjectStoreExt as _;

use crate::store::{Store, StoreError, access, object_path, unread};
use crate::writer::WrittenDisk;

/// How many objects are asked for at once, only to see whether they are there.
const HEADS_AT_ONCE: usize = 16;

/// How many objects are read at once: more threads hash no faster than disks read.
const READS_AT_ONCE: usize = 4;

impl Store {
    /// Reads a whole object of any length part by part, only to check it against its reference.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub async fn verify_object(&self, object: &ObjectRef) -> Result<(), StoreError> {
        let path = object.digest.object_path();
        let result = self
            .backend()
            .get(&object_path(&path))
            .await
            .map_err(|source| unread(&path, source))?;
        let (mut hasher, mut length) = (Hasher::new(), 0);
        let mut parts = result.into_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|source| unread(&path, source))?;
            length += part.len() as u64;
            hasher.update(&part);
        }
        let damaged = |source| StoreError::Damaged {
            path: path.clone(),
            source,
        };
        if length != object.length {
            return Err(damaged(ObjectMismatch::Length {
                digest: object.digest,
                expected: object.length,
                actual: length,
            }));
        }
        let (expected, actual) = (object.digest, hasher.finish());
        if actual != expected {
            return Err(damaged(DigestMismatch { expected, actual }.into()));
        }
        Ok(())
    }

    /// Returns the length of an object, or `None` if there is none.
    ///
    /// # Errors
    /// The back end cannot tell.
    pub async fn object_length(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = digest.object_path();
        match self.backend().head(&object_path(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(access(&path, source)),
        }
    }

    /// Returns those of `objects` that are not there, or have another length.
    ///
    /// # Errors
    /// The back end cannot tell.
    pub(crate) async fn gone(
        &self,
        objects: impl IntoIterator<Item = ObjectRef>,
    ) -> Result<Vec<ObjectRef>, StoreError> {
        stream::iter(objects)
            .map(|object| async move {
                let length = self.object_length(&object.digest).await?;
                Ok((length != Some(object.length)).then_some(object))
            })
            .buffer_unordered(HEADS_AT_ONCE)
            .try_filter_map(|gone| std::future::ready(Ok(gone)))
            .try_collect()
            .await
    }

    /// Reads `objects` and returns those that are missing or damaged.
    ///
    /// # Errors
    /// One cannot be read for another reason.
    pub async fn damaged(
        &self,
        objects: impl IntoIterator<Item = ObjectRef>,
    ) -> Result<Vec<ObjectRef>, StoreError> {
        stream::iter(objects)
            .map(|object| async move {
                match self.verify_object(&object).await {
                    Ok(()) => Ok(None),
                    Err(error) if error.is_damage() => Ok(Some(object)),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|damaged| std::future::ready(Ok(damaged)))
            .try_collect()
            .await
    }
}

impl WrittenDisk {
    /// Returns the packs of earlier publishes that the disk relies on.
    pub fn known_packs(&self) -> impl Iterator<Item = ObjectRef> + use<'_> {
        self.known_packs.iter().copied()
    }
}
