//! Marks all that the current metadata leads to.

use std::collections::HashSet;

use image_format::catalogue::{Catalogue, catalogue_path, target_path};
use image_format::manifest::Manifest;
use image_format::{Digest, ImageName, ImageRef, ObjectRef, links};

use crate::gc::GcError;
use crate::gc::files::FileKind;
use crate::reader::{ImageReader, ReadError};
use crate::store::{Store, StoreError};
use crate::trust::{CHUNK_INDEXES_TARGET, Current, METADATA_DIRECTORY};

/// What is referred to. Marks are only ever added: what two states of a store need is kept.
#[derive(Debug, Default)]
pub(super) struct Marks {
    objects: HashSet<Digest>,
    /// Paths of targets and metadata.
    files: HashSet<String>,
    /// Versions and tables whose objects are all marked.
    done: HashSet<Digest>,
}

impl Marks {
    /// Tells whether a file is referred to.
    pub(super) fn hold(&self, path: &str, kind: FileKind) -> bool {
        match kind {
            FileKind::Object(digest) => self.objects.contains(&digest),
            FileKind::Target | FileKind::Metadata => self.files.contains(path),
            FileKind::Staging => false,
        }
    }

    /// Marks what `current` leads to; what was marked before costs nothing.
    ///
    /// # Errors
    /// Something that may refer to other things cannot be read.
    pub(super) async fn add(&mut self, store: &Store, current: &Current) -> Result<(), GcError> {
        for (version, role) in [
            (current.snapshot.signed.version, "snapshot"),
            (current.targets.signed.version, "targets"),
        ] {
            self.files
                .insert(format!("{METADATA_DIRECTORY}/{version}.{role}.json"));
        }
        if let Some(list) = current.chunk_index_list() {
            self.files
                .insert(target_path(CHUNK_INDEXES_TARGET, &list.digest));
        }
        let names = store.names_of(current).await?;
        self.mark(&names.chunk_indexes);
        for (name, catalogue) in &names.names {
            self.add_name(store, name, catalogue).await?;
        }
        Ok(())
    }

    async fn add_name(
        &mut self,
        store: &Store,
        name: &ImageName,
        object: &ObjectRef,
    ) -> Result<(), GcError> {
        let path = catalogue_path(name, &object.digest);
        if self.files.contains(&path) {
            return Ok(());
        }
        let bytes = store.target(&path, object).await?;
        let decode = |source| StoreError::Decode {
            path: path.clone(),
            source,
        };
        let catalogue = Catalogue::decode(&bytes, name).map_err(decode)?;
        self.mark(&links::objects_in(&bytes).map_err(decode)?);
        for (version, entry) in &catalogue.versions {
            if !self.done.insert(entry.manifest.digest) {
                continue;
            }
            self.add_version(store, &entry.manifest)
                .await
                .map_err(|source| GcError::Image {
                    reference: ImageRef::from(name.clone()).pinned(*version),
                    source: Box::new(source),
                })?;
        }
        self.files.insert(path);
        Ok(())
    }

    /// Marks a target or a file of metadata.
    pub(super) fn add_file(&mut self, path: String) {
        self.files.insert(path);
    }

    /// Marks what the manifest `object` leads to, and itself.
    ///
    /// # Errors
    /// It cannot be read, or what it leads to.
    pub(super) async fn add_version(
        &mut self,
        store: &Store,
        object: &ObjectRef,
    ) -> Result<(), ReadError> {
        self.objects.insert(object.digest);
        let bytes = store.object(object).await?;
        let decode = |source| StoreError::Decode {
            path: object.digest.object_path(),
            source,
        };
        let manifest = Manifest::decode(&bytes).map_err(decode)?;
        self.mark(&links::objects_in(&bytes).map_err(decode)?);
        if !self.done.insert(manifest.disk.regions.digest) {
            return Ok(());
        }
        let reader = ImageReader::open(store.clone(), &manifest).await?;
        for region in 0..reader.n_regions() {
            self.objects.extend(reader.leaf_digest(region));
            let Some(page) = reader.page_digest(region).await? else {
                continue;
            };
            if self.objects.insert(page)
                && let Some(page) = reader.page(region).await?
            {
                self.mark(page.packs());
            }
        }
        Ok(())
    }

    fn mark<'a>(&mut self, objects: impl IntoIterator<Item = &'a ObjectRef>) {
        let digests = objects.into_iter().map(|object| object.digest);
        self.objects.extend(digests);
    }
}
