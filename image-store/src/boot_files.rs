//! Writes the boot scripts of a store: the menu, and a script for each tag of the name published.

use image_format::boot_script::{self, MenuItem};
use image_format::catalogue::Catalogue;
use image_format::{ImageRef, Tag};

use crate::store::{Store, StoreError};
use crate::trust::Names;

/// Writes what follows from `catalogue`, just committed, and `names`.
pub(crate) async fn write(
    store: &Store,
    names: &Names,
    catalogue: &Catalogue,
) -> Result<(), StoreError> {
    scripts(store, catalogue).await?;
    write_menu(store, names).await
}

/// Writes the script of each tag of `catalogue`.
pub(crate) async fn scripts(store: &Store, catalogue: &Catalogue) -> Result<(), StoreError> {
    for (tag, version) in &catalogue.tags {
        let entry = &catalogue.versions[version];
        let reference = tagged(catalogue, tag);
        let boot = match entry.bootable {
            true => store.manifest(&entry.manifest).await?.boot,
            false => None,
        };
        for path in paths(catalogue, tag) {
            match &boot {
                Some(boot) => {
                    let text = boot_script::script(&reference.pinned(*version), boot);
                    store.replace(&path, text.into()).await?;
                }
                None => store.remove(&path).await?,
            }
        }
    }
    Ok(())
}

/// Removes the scripts of the tags that `before` has and `after` has not.
pub(crate) async fn forget(
    store: &Store,
    before: &Catalogue,
    after: &Catalogue,
) -> Result<(), StoreError> {
    for tag in before.tags.keys() {
        if !after.tags.contains_key(tag) {
            for path in paths(before, tag) {
                store.remove(&path).await?;
            }
        }
    }
    Ok(())
}

/// Writes the menu.
pub(crate) async fn write_menu(store: &Store, names: &Names) -> Result<(), StoreError> {
    let text = menu(store, names).await?;
    store.replace(boot_script::MENU_PATH, text.into()).await
}

/// Where the script of a tag lies; that of the default tag under the bare name too.
fn paths(catalogue: &Catalogue, tag: &Tag) -> Vec<String> {
    let mut paths = vec![boot_script::script_path(&tagged(catalogue, tag))];
    if boot_script::is_default_tag(tag) {
        paths.push(boot_script::script_path(&catalogue.name.clone().into()));
    }
    paths
}

fn tagged(catalogue: &Catalogue, tag: &Tag) -> ImageRef {
    ImageRef {
        name: catalogue.name.clone(),
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
                reference: tagged(&catalogue, tag),
                label: format!("version {version}"),
            });
        }
    }
    Ok(boot_script::menu(&items, newest.1))
}
