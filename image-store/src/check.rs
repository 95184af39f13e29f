//! Checks whether objects that something refers to are there, and whole.

use std::io;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image_format::digest::{Hasher, ObjectMismatch};
use image_format::{Digest, DigestMismatch, ObjectRef};
use object_store::ObjectStoreExt as _;

use crate::store::{Store, StoreError, access, object_path};
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

/// Why a file was not read. What a disk has lost is gone: file systems with checksums of their own say so where others
/// would show other bytes.
pub(crate) fn unread(path: &str, source: object_store::Error) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    while let Some(error) = cause {
        let code = error.downcast_ref::<io::Error>();
        if let Some(code) = code.and_then(io::Error::raw_os_error)
            && LOST.contains(&code)
        {
            return StoreError::Unreadable {
                path: path.to_owned(),
                source: io::Error::from_raw_os_error(code),
            };
        }
        cause = error.source();
    }
    access(path, source)
}

/// What Linux says of data that a disk cannot give back: `EIO`, `EBADMSG`, `EUCLEAN`.
const LOST: [i32; 3] = [5, 74, 117];

#[cfg(test)]
mod tests {
    use image_format::marker::Marker;

    use super::*;
    use crate::store::decode;

    #[derive(Debug, thiserror::Error)]
    #[error("unable to read data from file")]
    struct Outer {
        source: io::Error,
    }

    /// As the local back end says it, whose errors are its own.
    fn read_failed(code: i32) -> StoreError {
        let source = io::Error::from_raw_os_error(code);
        let error = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(Outer { source }),
        };
        unread("objects/ab/cd", error)
    }

    #[test]
    fn what_a_disk_has_lost_is_damage_and_what_it_does_not_give_is_none() {
        for lost in LOST {
            assert!(read_failed(lost).is_damage(), "{lost}");
        }
        // EACCES, ENFILE: nothing to replace.
        for other in [13, 23] {
            assert!(!read_failed(other).is_damage(), "{other}");
        }
    }

    #[test]
    fn a_file_of_a_newer_format_is_no_damage() {
        let newer = image_format::DecodeError::Version {
            what: "manifest",
            version: 2,
        };
        assert!(!decode("targets/manifest")(newer).is_damage());
        let garbled = Marker::decode(b"garbled").unwrap_err();
        assert!(decode("targets/manifest")(garbled).is_damage());
    }
}
