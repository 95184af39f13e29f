//! Whether the store still has the version that is shown, looked at now and then.
//!
//! `circular remove` and `circular gc --keep` take versions away; their files follow after a grace period
//! (30 days, unless the publisher says otherwise). A machine that runs on such a version says so once and
//! brings all of it into its cache, as `--pin` does, so that it can run on when the files are gone.
//!
//! A look is one small request while nothing changes in the store, and none is made again where nobody
//! answers. It remembers nothing: what is kept to begin without a server, or to notice one that goes back,
//! stays that of the version that is shown. [`judge`] and [`pause`] are pure.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use image_format::catalogue::Catalogue;
use image_format::digest::Digest;
use image_format::reference::{ImageRef, Version};

use crate::config::BaseUrl;
use crate::disk::pin::{Filler, PinError};
use crate::fetch::Source;
use crate::fetch::fetcher::{Expect, Fetcher, Whole};
use crate::open::{self, OpenError};
use crate::trust::{self, ROLE_BYTES_MAX, Trust};

/// How the version that is shown stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there, and what was asked for.
    Current,
    /// It is there, and the tag that was asked for leads to this one now.
    Superseded(Version),
    /// It was removed.
    Withdrawn,
    /// What the server shows is older than the version.
    Stale,
}

/// Judges `version`, which was found by `reference`, by the catalogue of its name; `None`: there is no such
/// name any more.
#[must_use]
pub fn judge(reference: &ImageRef, version: Version, catalogue: Option<&Catalogue>) -> Standing {
    let Some(catalogue) = catalogue else {
        return Standing::Withdrawn;
    };
    if !catalogue.versions.contains_key(&version) {
        return if version < catalogue.next_version() {
            Standing::Withdrawn
        } else {
            Standing::Stale
        };
    }
    let is_pinned = reference.version.is_some() && reference.tag.is_none();
    let tagged = catalogue.tags.get(&reference.tag_or_latest()).copied();
    match tagged.filter(|tagged| !is_pinned && *tagged != version) {
        Some(other) => Standing::Superseded(other),
        None => Standing::Current,
    }
}

/// How long to wait for the next look: `every` on average, and not in step with other machines. `random` is
/// any number.
#[must_use]
pub fn pause(every: Duration, random: u32) -> Duration {
    every / 2 + every.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// What looks.
#[derive(Debug)]
pub struct Lookout<S> {
    /// Asks the store: patient for a moment only, with no cache and no memory of documents.
    pub fetcher: Arc<Fetcher<S>>,
    /// The store.
    pub base: BaseUrl,
    /// Whom to trust.
    pub trust: Trust,
    /// What was asked for.
    pub reference: ImageRef,
    /// What is shown.
    pub version: Version,
    /// Bytes of it that are no holes.
    pub data: u64,
    /// How often to look.
    pub every: Duration,
}

impl<S: Source> Lookout<S> {
    /// Looks until the version is withdrawn; then brings it into the cache.
    pub async fn run(self, filler: Filler<S>) {
        let (mut judged, mut told) = (None, None);
        loop {
            self.wait().await;
            match self.look(&mut judged).await {
                Ok(Some(Standing::Withdrawn)) => return self.keep(&filler).await,
                Ok(Some(Standing::Superseded(newer))) if told != Some(newer) => {
                    told = Some(newer);
                    tracing::info!(shown = %self.version, tagged = %newer, "the tag leads to another version now; this mount stays as it is");
                }
                Ok(_) => {}
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::debug!(
                        error = cause,
                        "whether the version is still there is not known"
                    );
                }
            }
        }
    }

    async fn wait(&self) {
        // The seed of a hasher is random; to spread looks needs no better chance than that.
        let random = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
        tokio::time::sleep(pause(self.every, random)).await;
    }

    /// Looks once. `judged` is the timestamp by which it was judged last: while that is the same, nothing
    /// has changed. `None`: nothing new is known.
    async fn look(&self, judged: &mut Option<Digest>) -> Result<Option<Standing>, OpenError> {
        let timestamp = Whole {
            path: String::from("metadata/timestamp.json"),
            expect: Expect::Bound(ROLE_BYTES_MAX),
        };
        let counter = &self.fetcher.stats().fetched.metadata_bytes;
        let Some(bytes) = self.fetcher.glance(&timestamp, counter).await else {
            return Ok(None);
        };
        let digest = Digest::of(&bytes);
        if *judged == Some(digest) {
            return Ok(None);
        }
        let trust = Trust {
            now: jiff::Timestamp::now(),
            ..self.trust.clone()
        };
        // A root disk that was switched to has no directory for what passes by.
        let _ = std::fs::create_dir_all(std::env::temp_dir());
        let told = |error| OpenError::of_trust(error, &self.base);
        let beginning = trust::begin(&self.fetcher, &self.base, &trust).await;
        let trusted = trust::peek(&self.fetcher, beginning.map_err(told)?, &trust).await;
        let name = &self.reference.name;
        let catalogue = match trusted.map_err(told)?.names.get(name) {
            Some(object) => Some(open::catalogue(&self.fetcher, name, *object).await?),
            None => None,
        };
        let standing = judge(&self.reference, self.version, catalogue.as_ref());
        // With one server what was glanced at is what was judged; with several it may be of another.
        *judged = self.fetcher.has_one_server().then_some(digest);
        Ok(Some(standing))
    }

    /// Brings all of the version into the cache, and says so, or says that it cannot.
    async fn keep(&self, filler: &Filler<S>) {
        self.fetcher.stats().withdrawn.increment();
        let (image, data) = (self.reference.pinned(self.version), self.data);
        if let Err(error) = filler.has_room(data) {
            let cause: &dyn std::error::Error = &error;
            tracing::warn!(%image, error = cause, "this version was removed from the store, and the cache cannot keep all of it: when its files are collected, what is not cached cannot be read. Mount a newer version before that");
            return;
        }
        tracing::warn!(%image, data, "this version was removed from the store: bringing all of it into the cache before its files are collected");
        let mut is_told = false;
        loop {
            match filler.fill(data, |_| {}).await {
                Ok(()) => {
                    tracing::info!(%image, "all of the disk is in the cache: it can be read without the store");
                    return;
                }
                Err(error) => Self::tell_incomplete(&error, &mut is_told),
            }
            self.wait().await;
        }
    }

    fn tell_incomplete(error: &PinError, is_told: &mut bool) {
        let cause: &dyn std::error::Error = error;
        if std::mem::replace(is_told, true) {
            tracing::debug!(error = cause, "still not all of the disk is in the cache");
        } else {
            tracing::warn!(
                error = cause,
                "not all of the disk is in the cache; it is tried again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use image_format::catalogue::VersionEntry;
    use image_format::digest::ObjectRef;
    use proptest::prelude::*;

    use super::*;

    fn number(n: u64) -> Version {
        n.to_string().parse().unwrap()
    }

    /// One with these versions, the last of which has the tag.
    fn catalogue(versions: &[u64], highest: Option<u64>) -> Catalogue {
        let digest = Digest::of(b"");
        let entry = VersionEntry {
            manifest: ObjectRef { digest, length: 1 },
            revision: 1,
            created: 0,
            disk: digest,
            content: digest,
            length: 1,
            bootable: false,
        };
        let last = number(versions[versions.len() - 1]);
        Catalogue {
            format: 1,
            name: "debian".parse().unwrap(),
            tags: [("12".parse().unwrap(), last)].into(),
            versions: versions.iter().map(|n| (number(*n), entry)).collect(),
            highest: highest.map(number),
        }
    }

    #[test]
    fn a_version_is_withdrawn_if_the_catalogue_had_it_and_has_it_no_more() {
        let judge = |reference: &str, shown, catalogue: Option<&Catalogue>| {
            judge(&reference.parse().unwrap(), number(shown), catalogue)
        };
        let both = catalogue(&[1, 2], None);
        assert_eq!(judge("debian:12", 2, Some(&both)), Standing::Current);
        let moved = Standing::Superseded(number(2));
        assert_eq!(judge("debian:12", 1, Some(&both)), moved);
        assert_eq!(judge("debian@1", 1, Some(&both)), Standing::Current);
        assert_eq!(judge("debian:12@1", 1, Some(&both)), moved);
        // A tag that is gone is no reason to do anything.
        assert_eq!(judge("debian:11", 1, Some(&both)), Standing::Current);
        let without = catalogue(&[2], None);
        assert_eq!(judge("debian:12", 1, Some(&without)), Standing::Withdrawn);
        let last = catalogue(&[1], Some(2));
        assert_eq!(judge("debian:12", 2, Some(&last)), Standing::Withdrawn);
        assert_eq!(judge("debian:12", 1, None), Standing::Withdrawn);
        // A mirror that lags behind does not have it yet.
        let before = catalogue(&[1], None);
        assert_eq!(judge("debian:12", 2, Some(&before)), Standing::Stale);
    }

    proptest! {
        /// Looks are neither in step nor far from as often as they were asked for.
        #[test]
        fn looks_are_spread(seconds in 1_u64..1_000_000, random: u32) {
            let every = Duration::from_secs(seconds);
            let pause = pause(every, random);
            prop_assert!(pause >= every / 2 && pause <= every * 3 / 2 + Duration::from_millis(1));
        }
    }
}
