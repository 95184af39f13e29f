//! Writes the boot files of a store: the menu, the least versions of metadata, and a script and a hint
//! for each tag of the name published.

mod minimum;

use image_format::boot_script::{self, MenuItem};
use image_format::catalogue::Catalogue;
use image_format::hint::{HINT_BYTES_MAX, Hint, hint_path};
use image_format::minimum::MINIMUM_PATH;
use image_format::{ImageName, ImageRef, Tag, Version};

use crate::store::{Store, StoreError};
use crate::trust::sign::Signer;
use crate::trust::{Current, Names, TrustError};

/// Writes what follows from `catalogue`, just committed by `signer`, and `names`.
pub(crate) async fn write(
    store: &Store,
    signer: &Signer<'_>,
    names: &Names,
    catalogue: &Catalogue,
) -> Result<(), StoreError> {
    // The scripts load it.
    write_minimum(store, signer).await?;
    of_catalogues(store, names, &[catalogue]).await
}

/// Writes the least versions that machines shall take: those that are current after what `signer` did.
///
/// Whoever is killed before this leaves lower ones, which the next change of the metadata mends.
pub(crate) async fn write_minimum(store: &Store, signer: &Signer<'_>) -> Result<(), StoreError> {
    // A server writes the boot files of its store itself.
    if store.staged().is_some() {
        return Ok(());
    }
    let root = signer.keys.root().map_err(TrustError::from)?;
    let current = store.current(&root).await?;
    write_minimum_of(store, &current, signer.now).await
}

/// Writes the versions of `current` as the least that machines shall take, at the time `now` in seconds
/// since 1970.
pub(crate) async fn write_minimum_of(
    store: &Store,
    current: &Current,
    now: u64,
) -> Result<(), StoreError> {
    let bytes = minimum::initrd(&minimum::of(current, now));
    store.replace(MINIMUM_PATH, bytes.into()).await
}

/// Writes script and hint of each tag of `catalogues`, which `names` lists, and the menu. Hints come last: where the hint
/// of a tag is there, all is.
///
/// # Errors
/// The first one. What can be written is, all the same: damage to one version is no reason to leave machines of another
/// one without a script.
pub(crate) async fn of_catalogues(
    store: &Store,
    names: &Names,
    catalogues: &[&Catalogue],
) -> Result<(), StoreError> {
    let (mut outcome, mut hints) = (Ok(()), Vec::new());
    for catalogue in catalogues {
        for tag in catalogue.tags.keys() {
            match of_tag(store, names, catalogue, tag).await {
                Ok(hint) => hints.extend(hint.map(|hint| (&catalogue.name, tag, hint))),
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::warn!(error = cause, name = %catalogue.name, %tag, "its boot script could not be written");
                    outcome = outcome.and(Err(error));
                }
            }
        }
    }
    write_menu(store, names).await?;
    for (name, tag, hint) in hints {
        for reference in references(name, tag) {
            let path = hint_path(&reference);
            outcome = outcome.and(store.replace(&path, hint.encode().into()).await);
        }
    }
    outcome
}

/// Writes the scripts of a tag; returns its hint.
async fn of_tag(
    store: &Store,
    names: &Names,
    catalogue: &Catalogue,
    tag: &Tag,
) -> Result<Option<Hint>, StoreError> {
    let version = catalogue.tags[tag];
    let entry = &catalogue.versions[&version];
    let pinned = tagged(&catalogue.name, tag).pinned(version);
    let manifest = match store.manifest(&entry.manifest).await {
        Ok(manifest) => Some(manifest),
        Err(error) if entry.bootable => return Err(error),
        // All that it is needed for is a better hint.
        Err(error) => {
            tracing::warn!(%error, %tag, "its hint names no boot pack");
            None
        }
    };
    let boot_pack = manifest.as_ref().and_then(|manifest| manifest.boot_pack);
    let boot = manifest.and_then(|manifest| manifest.boot);
    for reference in references(&catalogue.name, tag) {
        let path = boot_script::script_path(&reference);
        match &boot {
            Some(boot) => {
                let text = boot_script::script(&pinned, boot);
                store.replace(&path, text.into()).await?;
            }
            None => store.remove(&path).await?,
        }
    }
    let listed = names.names.get(&catalogue.name);
    Ok(listed.map(|catalogue| Hint {
        format: 1,
        catalogue: *catalogue,
        manifest: entry.manifest,
        disk: entry.disk,
        boot_pack,
    }))
}

/// Returns the newest version that a hint for a tag of `catalogue` names, as far as there is one and it can be read.
pub(crate) async fn hinted(store: &Store, catalogue: &Catalogue, tag: &Tag) -> Option<Version> {
    let mut hinted = None;
    for reference in references(&catalogue.name, tag) {
        let path = hint_path(&reference);
        let bytes = store.file_at_most(&path, HINT_BYTES_MAX).await;
        let hint = bytes.ok().and_then(|bytes| Hint::decode(&bytes).ok());
        let version = hint.and_then(|hint| {
            let mut versions = catalogue.versions.iter();
            versions.find(|(_, entry)| entry.manifest == hint.manifest)
        });
        hinted = hinted.max(version.map(|(version, _)| *version));
    }
    hinted
}

/// Removes script and hint of a tag that is gone.
pub(crate) async fn forget(store: &Store, name: &ImageName, tag: &Tag) -> Result<(), StoreError> {
    for reference in references(name, tag) {
        store.remove(&boot_script::script_path(&reference)).await?;
        store.remove(&hint_path(&reference)).await?;
    }
    Ok(())
}

/// Writes the menu.
async fn write_menu(store: &Store, names: &Names) -> Result<(), StoreError> {
    let text = menu(store, names).await?;
    store.replace(boot_script::MENU_PATH, text.into()).await
}

/// What leads to a tag; to the default one the bare name, too.
fn references(name: &ImageName, tag: &Tag) -> Vec<ImageRef> {
    let mut references = vec![tagged(name, tag)];
    if boot_script::is_default_tag(tag) {
        references.push(name.clone().into());
    }
    references
}

fn tagged(name: &ImageName, tag: &Tag) -> ImageRef {
    ImageRef {
        name: name.clone(),
        tag: Some(tag.clone()),
        version: None,
    }
}

/// Lists every tag that can be booted, as far as its catalogue can be read; the one published last is the default.
async fn menu(store: &Store, names: &Names) -> Result<String, StoreError> {
    let mut items = Vec::new();
    let mut newest = (0, 0);
    for name in names.names.keys() {
        let catalogue = match store.catalogue(names, name).await {
            Ok(catalogue) => catalogue,
            // Damage to one image is no reason to fail the publish of another, visible by now.
            Err(error) => {
                tracing::warn!(%name, %error, "left out of the boot menu");
                continue;
            }
        };
        for (tag, version) in &catalogue.tags {
            let entry = &catalogue.versions[version];
            if !entry.bootable {
                continue;
            }
            newest = newest.max((entry.created, items.len()));
            items.push(MenuItem {
                reference: tagged(&catalogue.name, tag),
                label: format!("version {version}"),
            });
        }
    }
    Ok(boot_script::menu(&items, newest.1))
}
