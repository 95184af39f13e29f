//! The back end itself: the work directory over the server.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use image_format::Digest;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tough::async_trait;

use super::{RemoteError, Staged};
use crate::trust::{METADATA_DIRECTORY, ROLE_BYTES_MAX, TIMESTAMP_PATH};

/// What this back end is called in errors.
const STAGED: &str = "staged store";

impl Display for Staged {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(STAGED)
    }
}

impl Staged {
    async fn get_remote(
        &self,
        location: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let path = location.as_ref();
        let not_found = || object_store::Error::NotFound {
            path: path.to_owned(),
            source: "neither staged nor on the server".into(),
        };
        if options.head {
            let length = self.remote.length(path).await.map_err(failed)?;
            let length = length.ok_or_else(not_found)?;
            return Ok(result(location, length, 0..length, stream::empty().boxed()));
        }
        let range = match options.range {
            None => None,
            Some(object_store::GetRange::Bounded(range)) => Some(range),
            Some(_) => return Err(unsupported("ranges without an end")),
        };
        let file = self.remote.open(path, range).await.map_err(failed)?;
        let file = file.ok_or_else(not_found)?;
        let mut bytes = file.bytes.map_err(failed).boxed();
        if path == TIMESTAMP_PATH && file.length <= ROLE_BYTES_MAX {
            // Metadata signed from now on follows this one; the server commits it on top of no other.
            let parts: Vec<Bytes> = bytes.try_collect().await?;
            self.seen().timestamp = Some(Digest::of(&parts.concat()));
            bytes = stream::iter(parts.into_iter().map(Ok)).boxed();
        }
        Ok(result(location, file.length, file.range, bytes))
    }
}

fn result(
    location: &ObjectPath,
    size: u64,
    range: Range<u64>,
    bytes: BoxStream<'static, object_store::Result<Bytes>>,
) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(bytes),
        meta: ObjectMeta {
            location: location.clone(),
            last_modified: Default::default(),
            size,
            e_tag: None,
            version: None,
        },
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    }
}

fn failed(error: RemoteError) -> object_store::Error {
    object_store::Error::Generic {
        store: STAGED,
        source: error.into(),
    }
}

fn unsupported(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: STAGED.to_owned(),
    }
}

#[async_trait]
impl ObjectStore for Staged {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let path = location.as_ref();
        // A number that the server has used is taken. Whatever else is created is named by its
        // digest: the server has the same bytes, or none.
        if matches!(options.mode, PutMode::Create)
            && path.starts_with(METADATA_DIRECTORY)
            && self.remote.length(path).await.map_err(failed)?.is_some()
        {
            return Err(object_store::Error::AlreadyExists {
                path: path.to_owned(),
                source: "the server has it".into(),
            });
        }
        self.note(path);
        self.work.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.note(location.as_ref());
        self.work.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        match self.work.get_opts(location, options.clone()).await {
            Err(object_store::Error::NotFound { .. }) => self.get_remote(location, options).await,
            held => held,
        }
    }

    /// Deletes what is staged; nothing is ever deleted on the server.
    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.work.delete_stream(locations)
    }

    /// Lists what is staged: a server lists nothing.
    fn list(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.work.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        self.work.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        _: &ObjectPath,
        _: &ObjectPath,
        _: CopyOptions,
    ) -> object_store::Result<()> {
        futures_util::future::ready(Err(unsupported("copying")))
            .boxed()
            .await
    }
}
