//! Names, tags and versions as directories.
//!
//! The signed names are read when the mount begins, and again when somebody looks and what is known
//! is older than [`REFRESH_AFTER`]; if that fails, what was known goes on to count. Catalogues are
//! fetched when their names are looked into.
//!
//! A directory may be several things at once: `lab/debian` is where the tags of an image of that name
//! are, the tag `debian` of an image `lab`, and on the way to an image `lab/debian/arm`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image_format::catalogue::Catalogue;
use image_format::digest::{Digest, ObjectRef};
use image_format::reference::{ImageName, ImageRef, Tag, Version};
use lru::LruCache;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::images::Pinned;
use crate::config::BaseUrl;
use crate::fetch::Source;
use crate::fetch::fetcher::Fetcher;
use crate::open::{self, OpenError};
use crate::trust::{self, Trust, Trusted};

/// How old what is known of names and tags may be when somebody looks.
pub const REFRESH_AFTER: Duration = Duration::from_secs(300);

/// Catalogues kept; one of a hundred versions takes 50 KB.
const CATALOGUES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("it is not 0");

/// The names of a store.
#[derive(Debug)]
pub struct Names<S> {
    fetcher: Arc<Fetcher<S>>,
    base: BaseUrl,
    trust: Trust,
    known: AsyncMutex<Known>,
    catalogues: Mutex<LruCache<Digest, Arc<Catalogue>>>,
}

/// What the metadata said, and when.
#[derive(Debug)]
struct Known {
    names: Arc<BTreeMap<ImageName, ObjectRef>>,
    at: Instant,
}

impl<S: Source> Names<S> {
    /// Reads the names of the store at `base`.
    ///
    /// # Errors
    ///
    /// When its metadata cannot be had or believed.
    pub async fn load(
        fetcher: Arc<Fetcher<S>>,
        base: BaseUrl,
        trust: Trust,
    ) -> Result<Self, OpenError> {
        let trusted = load(&fetcher, &base, &trust).await?;
        Ok(Self {
            fetcher,
            base,
            trust,
            known: AsyncMutex::new(Known {
                names: Arc::new(trusted.names),
                at: Instant::now(),
            }),
            catalogues: Mutex::new(LruCache::new(CATALOGUES_MAX)),
        })
    }

    /// The names, not much older than [`REFRESH_AFTER`] if the store can be reached.
    pub(super) async fn current(&self) -> Arc<BTreeMap<ImageName, ObjectRef>> {
        let mut known = self.known.lock().await;
        if known.at.elapsed() > REFRESH_AFTER {
            let trust = Trust {
                now: jiff::Timestamp::now(),
                ..self.trust.clone()
            };
            match load(&self.fetcher, &self.base, &trust).await {
                Ok(trusted) => known.names = Arc::new(trusted.names),
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::warn!(
                        error = cause,
                        "what images there are is as it was; the store cannot be asked"
                    );
                }
            }
            // A store that fails is asked as seldom as one that does not.
            known.at = Instant::now();
        }
        Arc::clone(&known.names)
    }

    /// Whether there is a directory at `path`.
    pub(super) async fn is_directory(&self, path: &str) -> Result<bool, Arc<OpenError>> {
        let names = self.current().await;
        if path.is_empty() || leads_on(&names, path) || named(&names, path).is_some() {
            return Ok(true);
        }
        Ok(self.pinned(path).await?.is_some())
    }

    /// The directories in that at `path`, but for versions, which are there and not listed.
    pub(super) async fn directories(&self, path: &str) -> Result<BTreeSet<String>, Arc<OpenError>> {
        let names = self.current().await;
        let mut found = next_words(&names, path);
        if let Some((name, object)) = named(&names, path) {
            let catalogue = self.catalogue(name, object).await?;
            found.extend(catalogue.tags.keys().map(|tag| tag.as_str().to_owned()));
        }
        Ok(found)
    }

    /// The image whose files are in the directory at `path`.
    pub(super) async fn pinned(&self, path: &str) -> Result<Option<Arc<Pinned>>, Arc<OpenError>> {
        let Some((parent, leaf)) = path.rsplit_once('/') else {
            return Ok(None);
        };
        let names = self.current().await;
        let Some((name, object)) = named(&names, parent) else {
            return Ok(None);
        };
        let Some(leaf) = Leaf::parse(leaf) else {
            return Ok(None);
        };
        let catalogue = self.catalogue(name, object).await?;
        let version = match &leaf {
            Leaf::Tag(tag) => catalogue.tags.get(tag).copied(),
            Leaf::Version(version) => Some(*version),
        };
        let entry = version.and_then(|version| Some((version, *catalogue.versions.get(&version)?)));
        Ok(entry.map(|(version, entry)| {
            let reference = ImageRef {
                name: name.clone(),
                tag: None,
                version: Some(version),
            };
            Arc::new(Pinned::new(reference, version, entry))
        }))
    }

    async fn catalogue(
        &self,
        name: &ImageName,
        object: ObjectRef,
    ) -> Result<Arc<Catalogue>, Arc<OpenError>> {
        let kept = |catalogues: &Self| {
            let mut kept = catalogues
                .catalogues
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            kept.get(&object.digest).map(Arc::clone)
        };
        // One catalogue has one name in it: its digest says which.
        if let Some(catalogue) = kept(self).filter(|catalogue| catalogue.name == *name) {
            return Ok(catalogue);
        }
        let fetched = open::catalogue(&self.fetcher, name, object).await;
        let catalogue = Arc::new(fetched.map_err(|error| {
            let cause: &dyn std::error::Error = &error;
            tracing::error!(%name, error = cause, "the tags of an image cannot be read");
            Arc::new(error)
        })?);
        let mut kept = self
            .catalogues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.put(object.digest, Arc::clone(&catalogue));
        Ok(catalogue)
    }
}

async fn load<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    base: &BaseUrl,
    trust: &Trust,
) -> Result<Trusted, OpenError> {
    let told = |error: trust::TrustError| OpenError::of_trust(error, base);
    let beginning = trust::begin(fetcher, base, trust).await.map_err(told)?;
    trust::load(fetcher, beginning, trust).await.map_err(told)
}

/// The last word of the path of an image's directory.
#[derive(Debug, PartialEq, Eq)]
enum Leaf {
    Tag(Tag),
    Version(Version),
}

impl Leaf {
    fn parse(word: &str) -> Option<Self> {
        match word.strip_prefix('@') {
            Some(version) => version.parse().ok().map(Self::Version),
            None => word.parse().ok().map(Self::Tag),
        }
    }
}

/// The path of `name` in the directory at `path`.
#[must_use]
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    }
}

/// The image of exactly that name.
fn named<'a>(
    names: &'a BTreeMap<ImageName, ObjectRef>,
    path: &str,
) -> Option<(&'a ImageName, ObjectRef)> {
    let name: ImageName = path.parse().ok()?;
    names
        .get_key_value(&name)
        .map(|(name, object)| (name, *object))
}

/// What of each name that begins with `path` comes after it.
fn rests<'a>(
    names: &'a BTreeMap<ImageName, ObjectRef>,
    path: &'a str,
) -> impl Iterator<Item = &'a str> {
    names.keys().filter_map(move |name| {
        if path.is_empty() {
            return Some(name.as_str());
        }
        name.as_str().strip_prefix(path)?.strip_prefix('/')
    })
}

/// Whether there are names below `path`.
fn leads_on(names: &BTreeMap<ImageName, ObjectRef>, path: &str) -> bool {
    rests(names, path).next().is_some()
}

/// The words that come next in names below `path`.
fn next_words(names: &BTreeMap<ImageName, ObjectRef>, path: &str) -> BTreeSet<String> {
    rests(names, path)
        .filter_map(|rest| rest.split('/').next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeMap<ImageName, ObjectRef> {
        let named = |name: &&str| (name.parse().unwrap(), ObjectRef::of(name.as_bytes()));
        list.iter().map(named).collect()
    }

    #[test]
    fn names_become_directories() {
        let names = names(&["debian", "lab/debian", "lab/debian/arm", "laboratory"]);
        let next = |path| next_words(&names, path).into_iter().collect::<Vec<_>>();
        assert_eq!(next(""), ["debian", "lab", "laboratory"]);
        assert_eq!(next("lab"), ["debian"]);
        assert_eq!(next("lab/debian"), ["arm"]);
        assert!(next("debian").is_empty() && next("la").is_empty());
        assert!(leads_on(&names, "lab") && !leads_on(&names, "labo"));
        assert!(named(&names, "lab/debian").is_some() && named(&names, "lab").is_none());
    }

    #[test]
    fn a_leaf_is_a_tag_or_a_version() {
        assert_eq!(Leaf::parse("@3"), Some(Leaf::Version("3".parse().unwrap())));
        assert_eq!(Leaf::parse("12"), Some(Leaf::Tag("12".parse().unwrap())));
        for wrong in ["@", "@0", "@03", ".Trash", "..", ""] {
            assert_eq!(Leaf::parse(wrong), None, "{wrong}");
        }
    }
}
