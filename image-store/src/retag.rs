//! Moves and deletes tags: a signed change of one catalogue. No version comes or goes.
//!
//! What a tag becomes is decided on the catalogue alone; then it is committed as a publish is.

use image_format::catalogue::{Catalogue, ResolveError};
use image_format::{ImageName, ImageRef, Tag, Version};

use crate::boot_files;
use crate::catalogue_change::CatalogueChange;
use crate::lock::CommitLock;
use crate::publication::PublishError;
use crate::store::{Store, StoreError};
use crate::trust::sign::Signer;

/// Why a tag cannot be changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum RetagError {
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("`{name}:{tag}` is at version {version}, the oldest there is: nothing lies before it")]
    Oldest {
        name: ImageName,
        tag: Tag,
        version: Version,
    },
    #[error(
        "version {to} is newer than {version}, where `{name}:{tag}` is: that is no rollback; `circular tag {name}@{to} {tag}` moves it"
    )]
    Forward {
        name: ImageName,
        tag: Tag,
        version: Version,
        to: Version,
    },
    #[error(
        "the tag is changed, but not all boot scripts could be written; to write them, run {again}"
    )]
    BootFiles {
        again: String,
        source: Box<StoreError>,
    },
}

/// What shall become of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagChange {
    /// It points where this reference of the same name leads, and is made if need be.
    Set {
        /// Where to.
        to: ImageRef,
    },
    /// It goes back to an older version; to the one before, if none is named.
    RollBack {
        /// Where to.
        to: Option<Version>,
    },
    /// It goes away. Its version stays.
    Delete,
}

/// A change of one tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retagging {
    /// Of which image.
    pub name: ImageName,
    /// Which tag.
    pub tag: Tag,
    /// What shall become of it.
    pub change: TagChange,
}

/// Where a tag pointed, and where it points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retagged {
    /// Before; `None`: there was no such tag.
    pub before: Option<Version>,
    /// Now; `None`: there is no such tag.
    pub after: Option<Version>,
    /// Whether this ended a rollback that had been cut short, and did nothing else.
    pub ended: bool,
}

impl Retagging {
    /// Commits the change.
    ///
    /// # Errors
    /// There is no such name, tag or version, or the store cannot be written.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the tag is changed or not; what boots is that of the tag before, or
    /// of the tag now.
    pub async fn commit(&self, store: &Store, signer: &Signer<'_>) -> Result<Retagged, RetagError> {
        let _lock = CommitLock::acquire(store).await?;
        let current = signer.current(store).await?;
        let mut names = store.names_of(&current).await?;
        let before = store.catalogue(&names, &self.name).await?;
        let mut after = before.clone();
        let applied = match self.cut_short(store, &before).await {
            Some(at) => Ok(Retagged {
                before: Some(at),
                after: Some(at),
                ended: true,
            }),
            None => self.apply(&mut after),
        };
        let again = self.again(after.tags.get(&self.tag).copied());
        let scripts = |source| RetagError::BootFiles {
            again: again.clone(),
            source: Box::new(source),
        };
        if !after.tags.contains_key(&self.tag) && applied.is_err() {
            // A deletion that was cut short left scripts of a tag that is gone.
            boot_files::forget(store, &self.name, &self.tag)
                .await
                .map_err(scripts)?;
        }
        let retagged = applied?;
        if after != before {
            CatalogueChange::encode(&before, &after)?
                .commit(store, signer, &current, &mut names, Vec::new())
                .await?;
        }
        if retagged.after.is_none() {
            boot_files::forget(store, &self.name, &self.tag)
                .await
                .map_err(scripts)?;
        }
        boot_files::write(store, signer, &names, &after)
            .await
            .map_err(scripts)?;
        Ok(retagged)
    }

    /// Tells whether a rollback to the version before was committed already, and did not come to its boot files: to do
    /// it again would be to go back by one version more. Returns where the tag is.
    async fn cut_short(&self, store: &Store, catalogue: &Catalogue) -> Option<Version> {
        if self.change != (TagChange::RollBack { to: None }) {
            return None;
        }
        let at = catalogue.tags.get(&self.tag).copied()?;
        let hinted = boot_files::hinted(store, catalogue, &self.tag).await?;
        // Of one that is damaged there will be no boot files: who wants to go back, wants to go further.
        let manifest = store.manifest(&catalogue.versions[&at].manifest).await;
        (hinted > at && manifest.is_ok()).then_some(at)
    }

    /// What ends this change, of a tag that is at version `at` by it: to roll back again would be to go back further.
    fn again(&self, at: Option<Version>) -> String {
        match (&self.change, at) {
            (TagChange::RollBack { .. }, Some(at)) => {
                format!("`circular rollback {}:{} --to {at}`", self.name, self.tag)
            }
            _ => "the same again".to_owned(),
        }
    }

    /// Changes the catalogue.
    fn apply(&self, catalogue: &mut Catalogue) -> Result<Retagged, RetagError> {
        let before = catalogue.tags.get(&self.tag).copied();
        let after = match &self.change {
            TagChange::Set { to } => Some(catalogue.resolve(to)?.0),
            TagChange::RollBack { to } => Some(self.older(catalogue, *to)?),
            TagChange::Delete => {
                catalogue.resolve(&self.reference())?;
                None
            }
        };
        match after {
            Some(version) => catalogue.tags.insert(self.tag.clone(), version),
            None => catalogue.tags.remove(&self.tag),
        };
        Ok(Retagged {
            before,
            after,
            ended: false,
        })
    }

    /// Finds the version to go back to.
    fn older(&self, catalogue: &Catalogue, to: Option<Version>) -> Result<Version, RetagError> {
        let (version, _) = catalogue.resolve(&self.reference())?;
        let (name, tag) = (self.name.clone(), self.tag.clone());
        let Some(to) = to else {
            let older = catalogue.versions.range(..version).next_back();
            return older
                .map(|(older, _)| *older)
                .ok_or(RetagError::Oldest { name, tag, version });
        };
        catalogue.resolve(&self.reference().pinned(to))?;
        match to > version {
            true => Err(RetagError::Forward {
                name,
                tag,
                version,
                to,
            }),
            false => Ok(to),
        }
    }

    fn reference(&self) -> ImageRef {
        ImageRef {
            name: self.name.clone(),
            tag: Some(self.tag.clone()),
            version: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use image_format::catalogue::VersionEntry;
    use image_format::{Digest, ObjectRef};

    use super::*;

    /// Versions 1, 3 and 4; version 2 was collected. `latest` is at 4.
    fn catalogue() -> Catalogue {
        let entry = VersionEntry {
            content: Digest::of(b"content"),
            manifest: ObjectRef::of(b"manifest"),
            revision: 1,
            created: 0,
            disk: Digest::of(b"disk"),
            length: 4096,
            bootable: false,
        };
        let mut catalogue = Catalogue::empty("a".parse().unwrap());
        for version in ["1", "3", "4"] {
            catalogue.versions.insert(version.parse().unwrap(), entry);
        }
        catalogue.tags.insert(Tag::latest(), "4".parse().unwrap());
        catalogue
    }

    /// Applies a change to `latest`; returns where it points then.
    fn apply(catalogue: &mut Catalogue, change: TagChange) -> Result<Option<u64>, RetagError> {
        let retagging = Retagging {
            name: "a".parse().unwrap(),
            tag: Tag::latest(),
            change,
        };
        let after = retagging.apply(catalogue)?.after;
        Ok(after.map(Version::number))
    }

    #[test]
    fn a_rollback_goes_to_the_version_before_until_there_is_none() {
        let mut catalogue = catalogue();
        let back = || TagChange::RollBack { to: None };
        assert_eq!(apply(&mut catalogue, back()).unwrap(), Some(3));
        assert_eq!(apply(&mut catalogue, back()).unwrap(), Some(1));
        assert!(matches!(
            apply(&mut catalogue, back()),
            Err(RetagError::Oldest { .. })
        ));
        assert_eq!(catalogue.versions.len(), 3);
    }

    #[test]
    fn a_rollback_never_goes_forward_nor_to_a_version_that_is_gone() {
        let mut catalogue = catalogue();
        let back = |to: &str| TagChange::RollBack {
            to: Some(to.parse().unwrap()),
        };
        assert!(apply(&mut catalogue, back("2")).is_err());
        assert_eq!(apply(&mut catalogue, back("1")).unwrap(), Some(1));
        assert!(matches!(
            apply(&mut catalogue, back("3")),
            Err(RetagError::Forward { .. })
        ));
    }

    #[test]
    fn a_tag_is_set_by_version_or_by_tag_and_deleted_once() {
        let mut catalogue = catalogue();
        let set = |to: &str| TagChange::Set {
            to: to.parse().unwrap(),
        };
        assert_eq!(apply(&mut catalogue, set("a@3")).unwrap(), Some(3));
        assert_eq!(apply(&mut catalogue, set("a:latest")).unwrap(), Some(3));
        assert!(apply(&mut catalogue, set("a@9")).is_err());
        assert_eq!(apply(&mut catalogue, TagChange::Delete).unwrap(), None);
        assert!(apply(&mut catalogue, TagChange::Delete).is_err());
    }
}
