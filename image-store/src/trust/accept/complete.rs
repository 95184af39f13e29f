//! Whether a store has everything that a catalogue leads to.
//!
//! What is small (manifest, region table, leaves, pages) is read and held against its digest; what
//! is large (packs, kernel, initramfs) must be there with its length: an object was checked against
//! its digest when it came, and every client checks it again.

use std::collections::HashSet;

use image_format::catalogue::{Catalogue, VersionEntry};
use image_format::content::ContentHasher;
use image_format::digest::ObjectMismatch;
use image_format::geometry::REGION_BLOCKS;
use image_format::manifest::Manifest;
use image_format::page::{PAGE_BYTES_MAX, Page};
use image_format::region_table::{LEAF_BYTES_MAX, LeafTable, Lookup, RegionTable};
use image_format::{DecodeError, Digest, ImageRef, ObjectRef, Version};

use crate::reader::{ImageReader, ReadError};
use crate::store::{Store, StoreError};

/// Tells whether the disk of a version, which is all there, has the content that its catalogue says.
///
/// # Errors
/// The store cannot be read.
pub(super) async fn has_content(store: &Store, entry: &VersionEntry) -> Result<bool, StoreError> {
    let manifest = store.manifest(&entry.manifest).await?;
    match content(store, &manifest).await {
        Ok(content) => Ok(content == entry.content),
        Err(ReadError::Store(error)) if !error.is_damage() => Err(error),
        Err(_) => Ok(false),
    }
}

async fn content(store: &Store, manifest: &Manifest) -> Result<Digest, ReadError> {
    let reader = ImageReader::open(store.clone(), manifest).await?;
    let mut hasher = ContentHasher::default();
    for region in 0..reader.n_regions() {
        let Some(page) = reader.page(region).await? else {
            continue;
        };
        for entry in page.entries() {
            let block = u64::from(region) * u64::from(REGION_BLOCKS) + u64::from(entry.block);
            hasher.push(block, entry.blocks, entry.chunk);
        }
    }
    Ok(hasher.finish(manifest.disk.length))
}

/// Follows references through one store; each object is looked at once.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    store: &'a Store,
    seen: HashSet<ObjectRef>,
    pages: HashSet<Digest>,
}

impl<'a> Walk<'a> {
    /// Has seen nothing yet.
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            store,
            seen: HashSet::new(),
            pages: HashSet::new(),
        }
    }

    /// The objects that were looked at.
    pub(super) fn looked_at(&self) -> impl Iterator<Item = Digest> {
        let seen = self.seen.iter().map(|object| object.digest);
        seen.chain(self.pages.iter().copied())
    }

    /// Checks every version of `after` that `before` does not have just so.
    ///
    /// # Errors
    /// Something is missing, damaged, or not what it is listed as.
    pub(super) async fn catalogue(
        &mut self,
        before: &Catalogue,
        after: &Catalogue,
    ) -> Result<(), StoreError> {
        for (version, entry) in &after.versions {
            if before.versions.get(version) != Some(entry) {
                let reference = ImageRef::from(after.name.clone()).pinned(*version);
                self.version(&reference, *version, entry).await?;
            }
        }
        Ok(())
    }

    /// Checks the chunk indexes of a list.
    ///
    /// # Errors
    /// One is missing, or has another length.
    pub(super) async fn chunk_indexes(&mut self, list: &[ObjectRef]) -> Result<(), StoreError> {
        for index in list {
            self.exists(index).await?;
        }
        Ok(())
    }

    async fn version(
        &mut self,
        reference: &ImageRef,
        version: Version,
        entry: &VersionEntry,
    ) -> Result<(), StoreError> {
        let manifest = self
            .store
            .listed_manifest(reference, version, entry)
            .await?;
        for object in manifest.objects() {
            self.exists(&object).await?;
        }
        self.disk(&manifest).await
    }

    async fn disk(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        let regions = &manifest.disk.regions;
        let table = RegionTable::decode(&self.store.object(regions).await?)
            .map_err(unusable(&regions.digest))?;
        if table.disk_length() != manifest.disk.length {
            let source = DecodeError::Invalid {
                what: "region table",
                reason: "it is that of a disk of another length",
            };
            return Err(unusable(&regions.digest)(source));
        }
        let leaves: Vec<_> = table.leaves().collect();
        for (number, digest) in leaves {
            let bytes = self.store.object_at_most(&digest, LEAF_BYTES_MAX).await?;
            let leaf = LeafTable::decode(&bytes, &table, number).map_err(unusable(&digest))?;
            for slot in 0..table.leaf_slots(number) {
                if let Some(page) = leaf.page(slot) {
                    self.page(&page).await?;
                }
            }
        }
        for region in 0..table.n_regions() {
            match table.lookup(region) {
                Lookup::Page(page) => self.page(&page).await?,
                Lookup::Hole => {}
                // All of them were looked through above.
                Lookup::Leaf { .. } => break,
            }
        }
        Ok(())
    }

    async fn page(&mut self, digest: &Digest) -> Result<(), StoreError> {
        if !self.pages.insert(*digest) {
            return Ok(());
        }
        let bytes = self.store.object_at_most(digest, PAGE_BYTES_MAX).await?;
        let page = Page::decode(&bytes).map_err(unusable(digest))?;
        for pack in page.packs() {
            self.exists(pack).await?;
        }
        Ok(())
    }

    async fn exists(&mut self, object: &ObjectRef) -> Result<(), StoreError> {
        if self.seen.contains(object) {
            return Ok(());
        }
        let path = object.digest.object_path();
        match self.store.object_length(&object.digest).await? {
            None => Err(StoreError::Missing { path }),
            Some(length) if length != object.length => Err(StoreError::Damaged {
                path,
                source: ObjectMismatch::Length {
                    digest: object.digest,
                    expected: object.length,
                    actual: length,
                },
            }),
            Some(_) => {
                self.seen.insert(*object);
                Ok(())
            }
        }
    }
}

fn unusable(digest: &Digest) -> impl FnOnce(DecodeError) -> StoreError + use<> {
    let path = digest.object_path();
    move |source| StoreError::Decode { path, source }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use image_format::ChunkId;
    use image_format::chunker::ChunkerParams;
    use image_format::geometry::BLOCK_LEN;
    use image_format::manifest::Disk;

    use super::*;
    use crate::writer::{ImageWriter, Prepared};

    /// Stores a disk of two blocks, in two regions.
    async fn disk(store: &Store, seed: u8) -> Disk {
        let mut writer = ImageWriter::new(store.clone(), Arc::default());
        for block in [3, u64::from(REGION_BLOCKS) + 5] {
            let plain = [vec![seed; BLOCK_LEN - 8], block.to_le_bytes().to_vec()].concat();
            let (chunk, prepared) = (ChunkId::of(&plain), Prepared::Encoded(plain));
            writer.push(block, 1, chunk, prepared).await.unwrap();
        }
        let length = 2 * u64::from(REGION_BLOCKS) * BLOCK_LEN as u64;
        writer.finish(length).await.unwrap().disk
    }

    /// Stores a manifest of `disk`; returns what a catalogue says of it.
    async fn listed(store: &Store, disk: Disk) -> VersionEntry {
        let manifest = Manifest {
            format: 1,
            name: "a".parse().unwrap(),
            version: "1".parse().unwrap(),
            revision: 1,
            disk,
            chunker: ChunkerParams::DEFAULT,
            boot: None,
            boot_pack: None,
            index_delta: None,
        };
        VersionEntry {
            manifest: store.put_object(manifest.encode().into()).await.unwrap(),
            revision: 1,
            created: 0,
            disk: disk.regions.digest,
            content: disk.content,
            length: disk.length,
            bootable: false,
        }
    }

    #[tokio::test]
    async fn content_is_what_pages_have_and_not_what_a_publisher_says() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(scratch.path()).await.unwrap();
        let (one, other) = (disk(&store, 1).await, disk(&store, 2).await);
        let right = listed(&store, one).await;
        assert!(has_content(&store, &right).await.unwrap());
        let claimed = Disk {
            content: one.content,
            ..other
        };
        let wrong = listed(&store, claimed).await;
        assert!(!has_content(&store, &wrong).await.unwrap());
    }
}
