//! Lets `tough` read the metadata of one mirror through the [`Fetcher`], each file once.
//!
//! `tough` asks for one file after the other. What it will ask for is fetched before, together
//! ([`MetadataTransport::prefetch`]): the next root beside the timestamp, then the snapshot that the
//! timestamp names beside the targets of the same number, which is what publishers give them. It is
//! checked in order nevertheless, and a wrong guess costs a request.
//!
//! A name that `tough` asks for is parsed into a [`File`] before anything is asked of the network.
//! What came is kept for as long as the opening takes: a file that turned out wrong is asked for
//! again without asking again for those before it, which were found right.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use tough::schema::{Signed, Timestamp};
use tough::{Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use super::{ROLE_BYTES_MAX, TARGETS_BYTES_MAX};
use crate::fetch::fetcher::{Expect, Fetcher, Whole};
use crate::fetch::mirrors::MirrorId;
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

/// The metadata files of one mirror, for one opening. Clones share what came.
pub(super) struct MetadataTransport<S> {
    fetcher: Arc<Fetcher<S>>,
    mirror: MirrorId,
    answers: Arc<Mutex<Answers>>,
    /// Whether what is not known is not there: nobody is asked.
    closed: bool,
}

/// An answer; `None`: there is no such file.
type Answer = Result<Option<Bytes>, FetchError>;

/// What came so far.
#[derive(Debug, Default)]
struct Answers {
    known: Vec<(File, Answer)>,
    /// The file that `tough` read last: if something is wrong, it is this.
    last: Option<File>,
    /// Files that came wrong before.
    suspects: Vec<File>,
}

/// How a try ended.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// The file that could not be had; `None`: one came wrong.
    pub(super) unfetched: Option<(File, FetchError)>,
    /// Whether this file never failed before, so that those before it are done with.
    pub(super) progressed: bool,
}

impl<S: Source> MetadataTransport<S> {
    pub(super) fn new(fetcher: &Arc<Fetcher<S>>, mirror: MirrorId) -> Self {
        Self {
            fetcher: Arc::clone(fetcher),
            mirror,
            answers: Arc::default(),
            closed: false,
        }
    }

    /// These files and no others, whatever the mirror has.
    pub(super) fn of_files(
        fetcher: &Arc<Fetcher<S>>,
        mirror: MirrorId,
        files: Vec<(File, Bytes)>,
    ) -> Self {
        let known = files
            .into_iter()
            .map(|(file, bytes)| (file, Ok(Some(bytes))));
        let answers = Answers {
            known: known.collect(),
            ..Answers::default()
        };
        Self {
            answers: Arc::new(Mutex::new(answers)),
            closed: true,
            ..Self::new(fetcher, mirror)
        }
    }

    /// The files that came, of those that `wanted` names.
    pub(super) fn files(&self, wanted: impl Fn(File) -> bool) -> Vec<(File, Bytes)> {
        let answers = self.answers();
        let came = answers.known.iter().filter(|(file, _)| wanted(*file));
        let came = came.filter_map(|(file, answer)| {
            let bytes = answer.as_ref().ok()?.as_ref()?;
            Some((*file, bytes.clone()))
        });
        came.collect()
    }

    /// Fetches what `tough` is going to ask for when it is given the root before `next_root`.
    pub(super) async fn prefetch(&self, next_root: u64) {
        let (_, timestamp) =
            futures_util::join!(self.get(File::Root(next_root)), self.get(File::Timestamp));
        let Ok(Some(timestamp)) = timestamp else {
            return;
        };
        if let Some(number) = snapshot_number(&timestamp) {
            // What could not be had is kept too: `tough` is told when it asks.
            let (_, ()) = futures_util::join!(
                self.get(File::Snapshot(number)),
                self.guess(File::Targets(number))
            );
        }
    }

    /// Ends a try that failed: forgets the file that was read last, which must be the wrong one, so
    /// that the next try asks for it again, past every HTTP cache.
    pub(super) fn fail(&self) -> Failure {
        let mut answers = self.answers();
        let Some(last) = answers.last.take() else {
            return Failure::default();
        };
        let of_last = answers.known.iter().find(|(file, _)| *file == last);
        let unfetched = of_last.and_then(|(_, answer)| answer.as_ref().err().cloned());
        answers.known.retain(|(_, answer)| answer.is_ok());
        Failure {
            unfetched: unfetched.map(|error| (last, error)),
            progressed: answers.suspect(last),
        }
    }

    /// Who is asked.
    pub(super) const fn mirror(&self) -> MirrorId {
        self.mirror
    }

    /// Forgets what could not be had, so that it is asked for again.
    pub(super) fn forget_failures(&self) {
        self.answers().known.retain(|(_, answer)| answer.is_ok());
    }

    /// Forgets the timestamp, which is out of date.
    pub(super) fn doubt(&self) {
        self.answers().suspect(File::Timestamp);
    }

    /// The file: as it came before, or as it comes now.
    async fn get(&self, file: File) -> Answer {
        let request = {
            let answers = self.answers();
            if let Some((_, known)) = answers.known.iter().find(|(known, _)| *known == file) {
                return known.clone();
            }
            if self.closed {
                return Ok(None);
            }
            let suspect = answers.suspects.contains(&file) && !matches!(file, File::Root(_));
            if suspect {
                file.request(Expect::Bound(file.bytes_max()))
            } else {
                file.whole()
            }
        };
        let counter = &self.fetcher.stats().fetched.metadata_bytes;
        let freshness = request.freshness();
        let fetched = self
            .fetcher
            .whole_of(self.mirror, &request, freshness, counter);
        let answer = match fetched.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if request.is_answered_by(&error) => Ok(None),
            Err(error) => Err(error),
        };
        self.answers().known.push((file, answer.clone()));
        answer
    }

    /// Asks for a file that may not exist.
    async fn guess(&self, file: File) {
        let known = |answers: &Answers| answers.known.iter().any(|(known, _)| *known == file);
        if self.closed || known(&self.answers()) || self.answers().suspects.contains(&file) {
            return;
        }
        let counter = &self.fetcher.stats().fetched.metadata_bytes;
        let request = file.whole();
        let glance = self.fetcher.glance_at(self.mirror, &request, counter);
        if let Some(bytes) = glance.await {
            self.answers().known.push((file, Ok(Some(bytes))));
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers {
    /// Forgets a file. Returns whether it is the first time.
    fn suspect(&mut self, suspect: File) -> bool {
        // A timestamp that does not fit may be newer than the answer that there is no newer root.
        let doubtful = |file: &File, answer: &Answer| {
            *file == suspect || (suspect == File::Timestamp && matches!(answer, Ok(None)))
        };
        self.known.retain(|(file, answer)| !doubtful(file, answer));
        let first = !self.suspects.contains(&suspect);
        if first {
            self.suspects.push(suspect);
        }
        first
    }
}

/// The number of the snapshot that a timestamp names; nothing is believed of it yet.
fn snapshot_number(timestamp: &[u8]) -> Option<u64> {
    let timestamp: Signed<Timestamp> = serde_json::from_slice(timestamp).ok()?;
    let snapshot = timestamp.signed.meta.get("snapshot.json")?;
    Some(snapshot.version.get())
}

#[async_trait]
impl<S: Source> Transport for MetadataTransport<S> {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let missing = || TransportError::new(TransportErrorKind::FileNotFound, url.as_str());
        let name = url.as_str().strip_prefix(METADATA);
        let file = name.and_then(File::parse).ok_or_else(missing)?;
        self.answers().last = Some(file);
        let answer = match self.get(file).await {
            Ok(answer) => Ok(answer.ok_or_else(missing)?),
            Err(error) => {
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
            mirror: self.mirror,
            answers: Arc::clone(&self.answers),
            closed: self.closed,
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
