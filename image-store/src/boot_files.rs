//! Writes the boot files of a store: the menu, the least versions of metadata, and a script and a hint
//! for each tag of the name published.

mod minimum;

use image_format::boot_script::{self, MenuItem};
use image_format::catalogue::Catalogue;
use image_format::hint::{Hint, hint_path};
use image_format::minimum::MINIMUM_PATH;
use image_format::{ImageName, ImageRef, Tag};

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
    of_tags(store, names, catalogue).await?;
    write_menu(store, names).await
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

/// Writes script and hint of each tag of `catalogue`, which `names` lists.
pub(crate) async fn of_tags(
    store: &Store,
    names: &Names,
    catalogue: &Catalogue,
) -> Result<(), StoreError> {
    for (tag, version) in &catalogue.tags {
        let entry = &catalogue.versions[version];
        let pinned = tagged(&catalogue.name, tag).pinned(*version);
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
        let hint = names.names.get(&catalogue.name).map(|catalogue| Hint {
            format: 1,
            catalogue: *catalogue,
            manifest: entry.manifest,
            disk: entry.disk,
            boot_pack,
        });
        for reference in references(&catalogue.name, tag) {
            let path = boot_script::script_path(&reference);
            match &boot {
                Some(boot) => {
                    let text = boot_script::script(&pinned, boot);
                    store.replace(&path, text.into()).await?;
                }
                None => store.remove(&path).await?,
            }
            if let Some(hint) = &hint {
                let path = hint_path(&reference);
                store.replace(&path, hint.encode().into()).await?;
            }
        }
    }
    Ok(())
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
pub(crate) async fn write_menu(store: &Store, names: &Names) -> Result<(), StoreError> {
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
