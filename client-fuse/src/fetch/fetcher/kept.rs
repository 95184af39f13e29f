//! Files of the store that a former run kept: asked before the network where a digest names them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{Expect, Fetcher, Whole};
use crate::cache::desk;
use crate::cache::documents::{Documents, Name};
use crate::fetch::Source;

/// Documents that wait for the disk, or are written. What is more is not kept: it would take memory for as long as the
/// disk is slow, and is a page for 64 MiB of disk at most.
const QUEUED_MAX: usize = 64;

static QUEUE: Semaphore = Semaphore::const_new(QUEUED_MAX);

impl<S: Source> Fetcher<S> {
    /// The same, with documents that were kept before.
    #[must_use]
    pub fn with_documents(self, documents: Arc<Documents>) -> Self {
        Self { documents, ..self }
    }

    /// What was kept.
    pub(crate) const fn documents(&self) -> &Arc<Documents> {
        &self.documents
    }

    /// The file, verified, if it was kept.
    pub(crate) async fn recall(&self, whole: &Whole) -> Option<Bytes> {
        self.recall_document(name(whole)?, whole.bytes_max()).await
    }

    /// The document `name`, if it was kept.
    pub(crate) async fn recall_document(&self, name: Name, bytes_max: u64) -> Option<Bytes> {
        if !self.documents.is_on() {
            return None;
        }
        let documents = Arc::clone(&self.documents);
        desk::ask(move || documents.find(name, bytes_max))
            .await
            .flatten()
    }

    /// Keeps a file that was fetched and verified.
    pub(crate) fn keep(&self, whole: &Whole, bytes: &Bytes) {
        if let Some(name) = name(whole) {
            self.keep_document(name, bytes.clone());
        }
    }

    /// Keeps a file, waits until it is, and returns whether it can be found again.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it ends by itself.
    pub(crate) async fn keep_now(&self, whole: &Whole, bytes: Bytes) -> bool {
        let (Some(name), bytes_max) = (name(whole), whole.bytes_max()) else {
            return false;
        };
        let documents = Arc::clone(&self.documents);
        let keeping = desk::ask(move || {
            documents.keep(name, &bytes);
            documents.find(name, bytes_max).is_some()
        });
        keeping.await == Some(true)
    }

    /// Keeps a document, in the background, unless [`QUEUED_MAX`] others are about to be kept.
    pub(crate) fn keep_document(&self, name: Name, bytes: Bytes) {
        if !self.documents.is_on() {
            return;
        }
        let Ok(place) = QUEUE.try_acquire() else {
            tracing::debug!(?name, "too many documents wait for the disk of the cache");
            return;
        };
        let documents = Arc::clone(&self.documents);
        drop(desk::start(move || {
            documents.keep(name, &bytes);
            drop(place);
        }));
    }
}

/// What a file is kept as: only what a digest names is.
const fn name(whole: &Whole) -> Option<Name> {
    match whole.expect {
        Expect::Object(object) => Some(Name::Whole(object.digest)),
        Expect::Digest(digest, _) => Some(Name::Whole(digest)),
        Expect::Fixed(_) | Expect::Bound(_) | Expect::Optional(_) => None,
    }
}
