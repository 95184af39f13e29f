//! Fetches catalogue, manifest, region table and the head of the boot pack while the signed metadata is still being
//! checked.
//!
//! What they will be is said by the store's [`Hint`], which nobody believes: whatever came is used
//! only where the signed way asks for the very digest that it has. A store without hints, or with
//! wrong ones, costs a round trip for each step instead, and one request that leads nowhere.

use std::sync::Arc;

use bytes::Bytes;
use image_format::digest::Digest;
use image_format::hint::{HINT_BYTES_MAX, Hint, hint_path};
use image_format::reference::ImageRef;
use image_format::region_table::TABLE_BYTES_MAX;
use tokio::task::JoinHandle;

use super::catalogue_file;
use crate::fetch::Source;
use crate::fetch::fetcher::{Expect, Fetcher, Whole};
use crate::stats::{Counter, Stats};

/// What is on its way; dropped, it ends.
pub(super) struct Ahead {
    /// The hint, and then what it names.
    asked: Option<Task<Vec<Coming>>>,
    coming: Vec<Coming>,
}

/// The head of a boot pack that may be on its way, verified as what the hint named. Dropped, its fetch ends.
#[derive(Debug)]
pub struct EarlyHead(Task<Option<Bytes>>);

impl EarlyHead {
    /// Its bytes; `None`: they did not come.
    pub(crate) async fn bytes(self) -> Option<Bytes> {
        self.0.join().await?
    }
}

/// A file that is on its way.
struct Coming {
    digest: Digest,
    bytes: Task<Option<Bytes>>,
}

impl Ahead {
    /// Asks for the hint, and for what it names as soon as it is there.
    pub(super) fn start<S: Source>(fetcher: &Arc<Fetcher<S>>, reference: &ImageRef) -> Self {
        let (fetcher, reference) = (Arc::clone(fetcher), reference.clone());
        let asked = Task::of(async move {
            let whole = Whole {
                path: hint_path(&reference),
                expect: Expect::Optional(HINT_BYTES_MAX as u64),
            };
            let counter = &fetcher.stats().fetched.metadata_bytes;
            let hint = fetcher.glance(&whole, counter).await;
            match hint.map(|bytes| Hint::decode(&bytes)) {
                Some(Ok(hint)) => coming(&fetcher, &reference, &hint),
                _ => Vec::new(),
            }
        });
        Self {
            asked: Some(asked),
            coming: Vec::new(),
        }
    }

    /// The file that `digest` names, if it came or is on its way.
    pub(super) async fn take(&mut self, digest: &Digest) -> Option<Bytes> {
        // Asked for before everything else: if it is not there yet, it is not worth waiting for.
        if let Some(asked) = self.asked.take()
            && asked.0.is_finished()
        {
            self.coming = asked.join().await.unwrap_or_default();
        }
        self.find(digest)?.join().await?
    }

    /// The head of a boot pack that `digest` names, if it came or is on its way. Does not wait for it.
    pub(super) fn take_head(&mut self, digest: &Digest) -> Option<EarlyHead> {
        self.find(digest).map(EarlyHead)
    }

    fn find(&mut self, digest: &Digest) -> Option<Task<Option<Bytes>>> {
        let found = self.coming.iter().position(|it| it.digest == *digest)?;
        Some(self.coming.swap_remove(found).bytes)
    }
}

fn coming<S: Source>(fetcher: &Arc<Fetcher<S>>, reference: &ImageRef, hint: &Hint) -> Vec<Coming> {
    let fetch = |digest, whole: Whole, counter: fn(&Stats) -> &Counter| {
        let fetcher = Arc::clone(fetcher);
        let bytes = async move {
            let counter = counter(fetcher.stats());
            fetcher.glance(&whole, counter).await
        };
        Coming {
            digest,
            bytes: Task::of(bytes),
        }
    };
    let metadata: fn(&Stats) -> &Counter = |stats| &stats.fetched.metadata_bytes;
    let catalogue = catalogue_file(&reference.name, hint.catalogue);
    let table = Whole::of(hint.disk, TABLE_BYTES_MAX);
    let head = hint.boot_pack.map(|pack| {
        let fetcher = Arc::clone(fetcher);
        Coming {
            digest: pack.head.digest,
            bytes: Task::of(async move { fetcher.glance_head(&pack).await }),
        }
    });
    let described = [
        fetch(hint.catalogue.digest, catalogue, metadata),
        fetch(hint.manifest.digest, Whole::object(hint.manifest), metadata),
        fetch(hint.disk, table, |stats| &stats.fetched.table_bytes),
    ];
    // Last: an opening can do without it.
    described.into_iter().chain(head).collect()
}

/// A task that ends when nobody wants its outcome.
#[derive(Debug)]
struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    fn of(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Its outcome; `None`: it failed.
    async fn join(mut self) -> Option<T> {
        (&mut self.0).await.ok()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
