//! Goes on without a server: by the signed metadata that it sent last, as far as that is still good.
//!
//! What is kept are the files as they came, beside the cache of chunks. They are checked as if they
//! came over the network: signatures, versions against what was seen, dates. So a cache that somebody
//! else can write can show nothing that a mirror could not show too.
//!
//! A server that answers is asked first, always. Only when none could be reached, for as long as
//! opening waits anyway or [`PATIENCE`], is it done without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_format::digest::Digest;
use tokio::time::Instant;
use tough::schema::{Root, Signed};

use super::expiry::Verdict;
use super::transport::{File, MetadataTransport};
use super::{Basis, Found, TrustError};
use crate::cache::desk;
use crate::fetch::Source;
use crate::fetch::fetcher::Fetcher;

/// A server that restarts is back before this.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The files of one store: they are kept by its first root.
pub(super) struct Kept {
    store: String,
    began: Instant,
    /// Whether it was found not to be in order, or is not to be used.
    refused: AtomicBool,
}

impl Kept {
    /// Those of the store with this first root.
    pub(super) fn of(first_root: &[u8]) -> Self {
        Self {
            store: Digest::of(first_root).to_string()[..16].to_owned(),
            began: Instant::now(),
            refused: AtomicBool::new(false),
        }
    }

    /// The same, of which nothing is used: it is to be learned what servers say now, and kept.
    pub(super) fn unused(first_root: &[u8]) -> Self {
        let kept = Self::of(first_root);
        kept.refused.store(true, Ordering::Relaxed);
        kept
    }

    /// Whether it is time to do without a server that cannot be reached for this reason.
    pub(super) fn is_due(&self, error: &TrustError) -> bool {
        error.is_outage() && self.began.elapsed() >= PATIENCE
    }

    /// The metadata that was kept, if it is in order.
    pub(super) async fn find<S: Source>(
        &self,
        fetcher: &Arc<Fetcher<S>>,
        basis: &Basis<'_>,
    ) -> Option<Found> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let (documents, store) = (Arc::clone(fetcher.documents()), self.store.clone());
        let reading =
            move || documents.metadata(&store, super::TARGETS_BYTES_MAX.max(super::ROLE_BYTES_MAX));
        let files = desk::ask(reading).await?;
        let files: Vec<_> = files
            .into_iter()
            .filter_map(|(name, bytes)| Some((File::parse(&name)?, bytes)))
            .collect();
        if files.is_empty() {
            return None;
        }
        let mirror = *fetcher.mirrors().order().first()?;
        let transport = MetadataTransport::of_files(fetcher, mirror, files);
        match basis.check(&transport, &mut fetcher.attempts()).await {
            Ok(found) => {
                tracing::warn!(
                    "no server can be reached: going by the metadata that it sent last; newer versions are not noticed"
                );
                Some(found)
            }
            Err(error) => {
                self.refused.store(true, Ordering::Relaxed);
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(
                    error = cause,
                    "no server can be reached, and the metadata that it sent last will not do"
                );
                None
            }
        }
    }

    /// Keeps what a server sent, now that it was found right; what is replaced goes.
    pub(super) fn keep<S: Source>(
        &self,
        fetcher: &Arc<Fetcher<S>>,
        transport: &MetadataTransport<S>,
        found: &Found,
    ) {
        let documents = Arc::clone(fetcher.documents());
        if !documents.is_on() || matches!(found.verdict, Verdict::Expired { .. }) {
            return;
        }
        let current = [
            File::Timestamp,
            File::Snapshot(found.repository.snapshot().signed.version.get()),
            File::Targets(found.repository.targets().signed.version.get()),
        ];
        let root: &Signed<Root> = found.repository.root();
        let root_max = root.signed.version.get();
        let is_good = move |file: File| match file {
            File::Root(number) => number <= root_max,
            file => current.contains(&file),
        };
        let files = transport.files(is_good);
        let store = self.store.clone();
        drop(desk::start(move || {
            for (file, bytes) in files {
                documents.keep_metadata(&store, &file.to_string(), &bytes);
            }
            documents.forget_metadata(&store, |name| {
                File::parse(name).is_none_or(|file| !is_good(file))
            });
        }));
    }
}
