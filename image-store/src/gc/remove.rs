//! Takes versions out of catalogues: a signed commit. Their files stay until they are collected.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use image_format::catalogue::Catalogue;
use image_format::{ImageName, ImageRef, Tag, Version};

use super::Mode;
use super::former::wait_anew;
use crate::boot_files;
use crate::lock::CommitLock;
use crate::publication::put_target;
use crate::store::{Store, StoreError};
use crate::trust::keys::KeyError;
use crate::trust::sign::Signer;
use crate::trust::{Current, Names};

/// Which versions of a name go. A version that goes never comes back under its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// These; none may have a tag.
    Versions(Vec<Version>),
    /// All of them, and their tags.
    All,
    /// Those that are neither among the newest, nor young, nor have a tag.
    Old(Keep),
}

/// Which versions stay: whatever one of these says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest.
    pub newest: Option<NonZeroUsize>,
    /// Those published at this time (seconds since 1970) or later.
    pub since: Option<u64>,
}

/// Why versions cannot be removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum RemoveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("image `{name}` has no version {version}; nothing was removed")]
    Unknown { name: ImageName, version: Version },
    #[error(
        "the tag `{tag}` points to version {version} of `{name}`, so it stays; nothing was removed. Move the tag first, or remove the whole image with --all"
    )]
    Tagged {
        name: ImageName,
        version: Version,
        tag: Tag,
    },
    #[error("removed, but the boot scripts could not be written: publish `{name}` again")]
    BootFiles {
        name: ImageName,
        source: Box<StoreError>,
    },
}

impl Removal {
    /// Decides which versions of a catalogue go.
    ///
    /// # Errors
    /// One that was asked for is not there, or has a tag.
    pub fn plan(&self, catalogue: &Catalogue) -> Result<Vec<Version>, RemoveError> {
        let tag_of = |version: Version| {
            let mut tags = catalogue.tags.iter();
            tags.find(|(_, to)| **to == version).map(|(tag, _)| tag)
        };
        match self {
            Self::All => Ok(catalogue.versions.keys().copied().collect()),
            Self::Versions(versions) => {
                for version in versions {
                    let (name, version) = (catalogue.name.clone(), *version);
                    if !catalogue.versions.contains_key(&version) {
                        return Err(RemoveError::Unknown { name, version });
                    }
                    if let Some(tag) = tag_of(version) {
                        let tag = tag.clone();
                        return Err(RemoveError::Tagged { name, version, tag });
                    }
                }
                Ok(versions.clone())
            }
            Self::Old(Keep {
                newest: None,
                since: None,
            }) => Ok(Vec::new()),
            Self::Old(keep) => {
                let newest = keep.newest.map_or(0, NonZeroUsize::get);
                let young = |created| keep.since.is_some_and(|since| created >= since);
                let old = catalogue.versions.iter().rev().skip(newest);
                let mut old: Vec<_> = old
                    .filter(|(version, entry)| tag_of(**version).is_none() && !young(entry.created))
                    .map(|(version, _)| *version)
                    .collect();
                old.reverse();
                Ok(old)
            }
        }
    }
}

/// Removes versions, all in one commit; returns what was removed, or would be.
///
/// # Errors
/// A version is not there or has a tag, or the store cannot be written; then nothing was removed.
pub async fn remove(
    store: &Store,
    signer: &Signer<'_>,
    wanted: impl Fn(&ImageName) -> Option<Removal>,
    mode: Mode,
) -> Result<Vec<ImageRef>, RemoveError> {
    let _lock = CommitLock::acquire(store).await?;
    let current = signer.current(store).await?;
    let mut names = store.names_of(&current).await?;
    let mut removed = Vec::new();
    let mut changed = BTreeMap::new();
    for name in names.names.keys() {
        let Some(removal) = wanted(name) else {
            continue;
        };
        let before = store.catalogue(&names, name).await?;
        let versions = removal.plan(&before)?;
        if versions.is_empty() {
            continue;
        }
        let mut after = before.clone();
        for version in versions {
            after.remove(version);
            removed.push(ImageRef::from(name.clone()).pinned(version));
        }
        changed.insert(name.clone(), (before, after));
    }
    if changed.is_empty() || mode == Mode::DryRun {
        return Ok(removed);
    }
    signer
        .check_can_publish(&current)
        .map_err(StoreError::from)?;
    let removing = make_current(store, signer, &current, &mut names, &changed);
    if let Err(error) = removing.await {
        put_back(store, signer, &changed).await;
        return Err(error.into());
    }
    for (name, (_, after)) in changed {
        boot_files::write(store, signer, &names, &after)
            .await
            .map_err(|error| RemoveError::BootFiles {
                name,
                source: Box::new(error),
            })?;
    }
    Ok(removed)
}

/// A catalogue before and after.
type Change = (Catalogue, Catalogue);

/// Commits these changes.
async fn make_current(
    store: &Store,
    signer: &Signer<'_>,
    current: &Current,
    names: &mut Names,
    changed: &BTreeMap<ImageName, Change>,
) -> Result<(), StoreError> {
    let mut set = Vec::new();
    for (name, (before, after)) in changed {
        let target = put_target(store, name.to_file_safe(), after.encode()).await?;
        names.names.insert(name.clone(), target.1);
        set.push(target);
        wait_anew(store, before, after).await?;
    }
    for (name, (before, after)) in changed {
        // A script must not outlive its version: it would boot into nothing.
        let gone = before
            .tags
            .keys()
            .filter(|tag| !after.tags.contains_key(*tag));
        for tag in gone {
            boot_files::forget(store, name, tag).await?;
        }
    }
    signer.advance(store, current, &set).await
}

/// Writes the boot scripts of what is current again, after a removal that failed: what was not removed boots.
async fn put_back(store: &Store, signer: &Signer<'_>, changed: &BTreeMap<ImageName, Change>) {
    let attempt = async {
        let current = signer.current(store).await?;
        let names = store.names_of(&current).await?;
        let mut there = Vec::new();
        for name in changed
            .keys()
            .filter(|name| names.names.contains_key(*name))
        {
            there.push(store.catalogue(&names, name).await?);
        }
        let there: Vec<_> = there.iter().collect();
        boot_files::of_catalogues(store, &names, &there).await
    };
    if let Err(error) = attempt.await {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(
            error,
            "boot scripts that were removed could not be written again"
        );
    }
}

#[cfg(test)]
mod tests {
    use image_format::catalogue::VersionEntry;
    use image_format::{Digest, ObjectRef};

    use super::*;

    /// Versions 1 to 5, published at 10, 20, …; `latest` is 5, `stable` is 2.
    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::empty("debian".parse().unwrap());
        for number in 1..=5 {
            let entry = VersionEntry {
                manifest: ObjectRef::of(b"manifest"),
                revision: 1,
                created: number * 10,
                disk: Digest::of(b"disk"),
                content: Digest::of(b"content"),
                length: 4096,
                bootable: false,
            };
            catalogue.versions.insert(version(number), entry);
        }
        catalogue.tags.insert(Tag::latest(), version(5));
        catalogue.tags.insert("stable".parse().unwrap(), version(2));
        catalogue
    }

    fn version(number: u64) -> Version {
        number.to_string().parse().unwrap()
    }

    fn old(newest: usize, since: Option<u64>) -> Vec<u64> {
        let newest = NonZeroUsize::new(newest);
        let planned = Removal::Old(Keep { newest, since }).plan(&catalogue());
        planned.unwrap().iter().map(|v| v.number()).collect()
    }

    #[test]
    fn the_newest_the_young_and_the_tagged_stay() {
        assert_eq!(old(1, None), [1, 3, 4]);
        assert_eq!(old(2, None), [1, 3]);
        assert_eq!(old(9, None), [0; 0]);
        assert_eq!(old(0, Some(31)), [1, 3]);
        assert_eq!(old(3, Some(40)), [1]);
        assert_eq!(old(0, None), [0; 0]);
    }

    #[test]
    fn a_version_with_a_tag_goes_only_with_the_whole_image() {
        let plan = |removal: Removal| removal.plan(&catalogue());
        assert!(matches!(
            plan(Removal::Versions(vec![version(1), version(2)])),
            Err(RemoveError::Tagged { .. })
        ));
        assert!(matches!(
            plan(Removal::Versions(vec![version(6)])),
            Err(RemoveError::Unknown { .. })
        ));
        let some = plan(Removal::Versions(vec![version(1), version(4)])).unwrap();
        assert_eq!(some, [version(1), version(4)]);
        assert_eq!(plan(Removal::All).unwrap().len(), 5);
    }
}
