//! Writes the boot files of a store: the menu, and a script and a hint for each tag of the name
//! published.

use image_format::boot_script::{self, MenuItem};
use image_format::catalogue::{Catalogue, VersionEntry};
use image_format::hint::{Hint, hint_path};
use image_format::{ImageRef, Tag};

use crate::store::{Store, StoreError};
use crate::trust::Names;

/// Writes what follows from `catalogue`, just committed, and `names`.
pub(crate) async fn write(
    store: &Store,
    names: &Names,
    catalogue: &Catalogue,
) -> Result<(), StoreError> {
    for (tag, version) in &catalogue.tags {
        let entry = &catalogue.versions[version];
        let reference = tagged(catalogue, tag);
        let boot = match entry.bootable {
            true => store.manifest(&entry.manifest).await?.boot,
            false => None,
        };
        let mut paths = vec![boot_script::script_path(&reference)];
        if boot_script::is_default_tag(tag) {
            paths.push(boot_script::script_path(&catalogue.name.clone().into()));
        }
        for path in paths {
            match &boot {
                Some(boot) => {
                    let text = boot_script::script(&reference.pinned(*version), boot);
                    store.replace(&path, text.into()).await?;
                }
                None => store.remove(&path).await?,
            }
        }
        write_hints(store, names, &reference, entry).await?;
    }
    let text = menu(store, names).await?;
    store.replace(boot_script::MENU_PATH, text.into()).await
}

/// Writes what clients fetch ahead when they open `reference`.
async fn write_hints(
    store: &Store,
    names: &Names,
    reference: &ImageRef,
    entry: &VersionEntry,
) -> Result<(), StoreError> {
    let Some(catalogue) = names.names.get(&reference.name) else {
        return Ok(());
    };
    let hint = Hint {
        format: 1,
        catalogue: *catalogue,
        manifest: entry.manifest,
        disk: entry.disk,
    };
    let mut paths = vec![hint_path(reference)];
    if reference
        .tag
        .as_ref()
        .is_some_and(boot_script::is_default_tag)
    {
        paths.push(hint_path(&reference.name.clone().into()));
    }
    for path in paths {
        store.replace(&path, hint.encode().into()).await?;
    }
    Ok(())
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
