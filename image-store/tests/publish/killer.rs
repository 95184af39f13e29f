//! A back end that dies at the k-th change: what was asked for until then is done, nothing after.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::Notify;
use tough::async_trait;

/// On which side of the k-th change the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It was not done.
    Before,
    /// It was done, but nobody heard.
    After,
}

/// Counts changes, and dies at one.
#[derive(Debug)]
pub(crate) struct Trigger {
    count: AtomicUsize,
    at: usize,
    side: Side,
    /// What cannot be written.
    refused: Option<&'static str>,
    pub(crate) dead: Notify,
}

impl Trigger {
    pub(crate) fn new(at: usize, side: Side) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            at,
            side,
            refused: None,
            dead: Notify::new(),
        })
    }

    /// Never dies, but cannot write the file at this path.
    pub(crate) fn refusing(path: &'static str) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            at: usize::MAX,
            side: Side::Before,
            refused: Some(path),
            dead: Notify::new(),
        })
    }

    /// Makes one change, or dies.
    async fn step<T>(&self, change: impl Future<Output = T>) -> T {
        let fatal = self.count.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        if fatal && self.side == Side::Before {
            self.die().await;
        }
        let done = change.await;
        if fatal {
            self.die().await;
        }
        done
    }

    /// Says that the process is dead, and never returns: whoever waits is dropped.
    async fn die(&self) {
        self.dead.notify_one();
        std::future::pending::<()>().await;
    }
}

/// A back end around another one.
#[derive(Debug)]
pub(crate) struct Mortal {
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) trigger: Arc<Trigger>,
}

impl std::fmt::Display for Mortal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mortal {}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if self.trigger.refused == Some(location.as_ref()) {
            let (store, source) = ("mortal", "the disk is full".into());
            return Err(object_store::Error::Generic { store, source });
        }
        let change = self.inner.put_opts(location, payload, options);
        self.trigger.step(change).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let change = self.inner.put_multipart_opts(location, options);
        let inner = self.trigger.step(change).await?;
        let trigger = self.trigger.clone();
        Ok(Box::new(MortalUpload { inner, trigger }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, trigger) = (self.inner.clone(), self.trigger.clone());
        locations
            .then(move |location| {
                let (inner, trigger) = (inner.clone(), trigger.clone());
                async move {
                    let one = futures_util::stream::iter([location]).boxed();
                    let mut deleted = inner.delete_stream(one);
                    let done = trigger.step(deleted.next()).await;
                    done.expect("an answer for each location")
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.trigger
            .step(self.inner.copy_opts(from, to, options))
            .await
    }

    async fn rename_opts(
        &self,
        from: &Path,
        to: &Path,
        options: object_store::RenameOptions,
    ) -> Result<()> {
        self.trigger
            .step(self.inner.rename_opts(from, to, options))
            .await
    }
}

#[derive(Debug)]
struct MortalUpload {
    inner: Box<dyn MultipartUpload>,
    trigger: Arc<Trigger>,
}

#[async_trait]
impl MultipartUpload for MortalUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, trigger) = (self.inner.put_part(data), self.trigger.clone());
        async move { trigger.step(part).await }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.trigger.step(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.trigger.step(self.inner.abort()).await
    }
}
