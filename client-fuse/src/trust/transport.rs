//! Lets `tough` read the metadata of a store through the [`Fetcher`], each file once.
//!
//! A name that `tough` asks for is parsed into a [`File`] before anything is asked of the network.
//! What came is kept for as long as the opening takes: a file that turned out wrong is asked for
//! again without asking again for those before it, which were found right.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use super::{ROLE_BYTES_MAX, TARGETS_BYTES_MAX};
use crate::fetch::fetcher::{Expect, Fetcher, Whole};
use crate::fetch::retry::RetryPolicy;
use crate::fetch::{FetchError, Source};

/// What stands for the metadata of the store in URLs that never leave this process.
pub(super) const METADATA: &str = "circular-store:///metadata/";

/// A file of metadata. Clients ask for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `N.root.json`
    Root(u64),
    /// `timestamp.json`, the one that changes.
    Timestamp,
    /// `N.snapshot.json`
    Snapshot(u64),
    /// `N.targets.json`
    Targets(u64),
}

impl File {
    /// Parses the name of a file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == "timestamp.json" {
            return Some(Self::Timestamp);
        }
        let (number, role) = name.split_once('.')?;
        let number: u64 = number.parse().ok()?;
        let file = match role {
            "root.json" => Self::Root(number),
            "snapshot.json" => Self::Snapshot(number),
            "targets.json" => Self::Targets(number),
            _ => return None,
        };
        (file.to_string() == name).then_some(file)
    }

    /// What it is called in messages.
    #[must_use]
    pub const fn role(self) -> &'static str {
        match self {
            Self::Root(_) => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot(_) => "snapshot",
            Self::Targets(_) => "targets",
        }
    }

    /// The request for it: what has a number never changes, but a next root may not exist yet.
    fn whole(self) -> Whole {
        let expect = match self {
            Self::Root(_) => Expect::Optional(self.bytes_max()),
            Self::Timestamp => Expect::Bound(self.bytes_max()),
            Self::Snapshot(_) | Self::Targets(_) => return self.fixed(),
        };
        self.request(expect)
    }

    /// The request for a file that exists and never changes.
    pub(super) fn fixed(self) -> Whole {
        self.request(Expect::Fixed(self.bytes_max()))
    }

    fn request(self, expect: Expect) -> Whole {
        Whole {
            path: format!("metadata/{self}"),
            expect,
        }
    }

    const fn bytes_max(self) -> u64 {
        match self {
            Self::Root(_) | Self::Timestamp | Self::Snapshot(_) => ROLE_BYTES_MAX,
            Self::Targets(_) => TARGETS_BYTES_MAX,
        }
    }
}

/// The name of the file.
impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp => f.write_str("timestamp.json"),
            Self::Root(number) | Self::Snapshot(number) | Self::Targets(number) => {
                write!(f, "{number}.{}.json", self.role())
            }
        }
    }
}

/// The metadata files of one store, for one opening. Clones share what came.
pub(super) struct MetadataTransport<S> {
    fetcher: Arc<Fetcher<S>>,
    answers: Arc<Mutex<Answers>>,
}

/// What came so far.
#[derive(Debug, Default)]
struct Answers {
    /// In the order in which it was asked for; `None`: there is no such file.
    known: Vec<(File, Option<Bytes>)>,
    /// The file that turned out wrong, and how often it has come.
    suspect: Option<(File, u32)>,
    /// What could not be had.
    failure: Option<(File, FetchError)>,
}

impl<S: Source> MetadataTransport<S> {
    pub(super) fn new(fetcher: &Arc<Fetcher<S>>) -> Self {
        Self {
            fetcher: Arc::clone(fetcher),
            answers: Arc::default(),
        }
    }

    /// The file that could not be had, if that is why loading failed.
    pub(super) fn take_failure(&self) -> Option<(File, FetchError)> {
        self.answers().failure.take()
    }

    /// Forgets the last file, which turned out wrong, so that it is asked for again, past every
    /// HTTP cache. Returns whether that is worth it.
    pub(super) fn ask_again(&self) -> bool {
        let mut answers = self.answers();
        let Some((file, _)) = answers.known.pop() else {
            return false;
        };
        let tries = match answers.suspect {
            Some((suspect, tries)) if suspect == file => tries + 1,
            _ => 1,
        };
        answers.suspect = Some((file, tries));
        tries < RetryPolicy::WRONG_TRIES
    }

    /// The file: as it came before, or as it comes now; `None`: there is none.
    async fn get(&self, file: File) -> Result<Option<Bytes>, FetchError> {
        let request = {
            let answers = self.answers();
            if let Some((_, known)) = answers.known.iter().find(|(known, _)| *known == file) {
                return Ok(known.clone());
            }
            match answers.suspect {
                Some((suspect, _)) if suspect == file && !matches!(file, File::Root(_)) => {
                    file.request(Expect::Bound(file.bytes_max()))
                }
                _ => file.whole(),
            }
        };
        let counter = &self.fetcher.stats().fetched.metadata_bytes;
        let answer = match self.fetcher.whole(&request, counter).await {
            Ok(bytes) => Some(bytes),
            Err(error) if error.is_missing() && matches!(file, File::Root(_)) => None,
            Err(error) => return Err(error),
        };
        self.answers().known.push((file, answer.clone()));
        Ok(answer)
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl<S: Source> Transport for MetadataTransport<S> {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let missing = || TransportError::new(TransportErrorKind::FileNotFound, url.as_str());
        let name = url.as_str().strip_prefix(METADATA);
        let file = name.and_then(File::parse).ok_or_else(missing)?;
        let answer = match self.get(file).await {
            Ok(answer) => Ok(answer.ok_or_else(missing)?),
            Err(error) => {
                self.answers().failure = Some((file, error.clone()));
                let kind = TransportErrorKind::Other;
                Err(TransportError::new_with_cause(kind, url.as_str(), error))
            }
        };
        // An error goes into the body: at its place before that, `tough` takes every error for the
        // answer that there is no newer root.
        Ok(Box::pin(stream::iter([answer])))
    }
}

impl<S> Clone for MetadataTransport<S> {
    fn clone(&self) -> Self {
        Self {
            fetcher: Arc::clone(&self.fetcher),
            answers: Arc::clone(&self.answers),
        }
    }
}

impl<S> fmt::Debug for MetadataTransport<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataTransport").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_metadata_files_are_asked_for() {
        assert_eq!(File::parse("12.root.json"), Some(File::Root(12)));
        for wrong in [
            "root.json",
            "01.root.json",
            "+1.root.json",
            "1.delegated.json",
            "1.root.json/../..",
            "../timestamp.json",
            "99999999999999999999.root.json",
            "1.timestamp.json",
            "",
        ] {
            assert_eq!(File::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        /// A file has one name.
        #[test]
        fn names_round_trip(number: u64) {
            for file in [File::Root(number), File::Snapshot(number), File::Targets(number), File::Timestamp] {
                prop_assert_eq!(File::parse(&file.to_string()), Some(file));
            }
        }
    }
}
