//! Brings over what is staged: asks what the server lacks, sends that, then commits.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image_format::hint::{HINT_BYTES_MAX, Hint, hint_path};
use image_format::{Digest, ImageRef, ObjectRef};
use image_store::trust::{ROLE_BYTES_MAX, TARGETS_BYTES_MAX, TIMESTAMP_PATH};
use image_store::{Staged, StoreError};
use indicatif::ProgressBar;
use serde::de::DeserializeOwned;

use super::error::HttpError;
use super::http::Http;
use super::protocol::{
    ANSWER_BYTES_MAX, COMMIT_BYTES_MAX, COMMIT_PATH, Commit, Committed, MISSING_PATH, Missing,
    QUESTION_FILES_MAX, Question,
};

/// Files sent at once: enough to fill a line while one of them is synced to the server's disk.
const PARALLEL: usize = 4;

/// Why what is staged did not get to the server.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum UploadError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("`{path}` is gone from the work directory: publish again")]
    Gone { path: String },
    #[error("the metadata has more than {COMMIT_BYTES_MAX} bytes; the server takes no more")]
    TooLong,
}

/// What an upload came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Files that the server lacked.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the server made visible; nothing if there was nothing to change.
    pub committed: Option<Landed>,
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    /// It is visible, and the boot files are those of the new state.
    Whole,
    /// It is visible; the server could not write the boot files.
    WithoutBootFiles,
    /// It is visible; the answer that says so was lost.
    Unconfirmed,
}

/// A file to be sent: its path in the store and in the work directory, and its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSend {
    path: String,
    length: u64,
}

/// Returns those of these objects that the server lacks.
///
/// # Errors
/// The server does not answer, or not to what it was asked.
pub(super) async fn missing_objects(
    http: &Http,
    objects: &[Digest],
) -> Result<Vec<Digest>, HttpError> {
    let mut missing = Vec::new();
    for objects in objects.chunks(QUESTION_FILES_MAX) {
        let question = Question {
            objects: objects.to_vec(),
            targets: Vec::new(),
        };
        missing.extend(ask(http, &question).await?.missing);
    }
    Ok(missing)
}

async fn missing_targets(http: &Http, targets: &[String]) -> Result<Vec<String>, HttpError> {
    let mut missing = Vec::new();
    for targets in targets.chunks(QUESTION_FILES_MAX) {
        let question = Question {
            objects: Vec::new(),
            targets: targets.to_vec(),
        };
        missing.extend(ask(http, &question).await?.missing_targets);
    }
    Ok(missing)
}

async fn ask(http: &Http, question: &Question) -> Result<Missing, HttpError> {
    let body = serde_json::to_vec(question).expect("plain values can be written");
    let answer = http
        .post(MISSING_PATH, body.into(), ANSWER_BYTES_MAX)
        .await?;
    decode(http, MISSING_PATH, &answer)
}

fn decode<T: DeserializeOwned>(http: &Http, path: &str, answer: &[u8]) -> Result<T, HttpError> {
    serde_json::from_slice(answer).map_err(|_| HttpError::Answer {
        url: http.url().file(path).to_string(),
        reason: "it is not what the upload protocol says",
    })
}

/// Finds out which of the staged files the server lacks.
///
/// # Errors
/// The work directory cannot be read, or the server does not answer.
pub async fn plan(http: &Http, staged: &Staged, work: &Path) -> Result<Vec<ToSend>, UploadError> {
    let objects: BTreeMap<Digest, String> = staged
        .objects()
        .into_iter()
        .filter_map(|path| Some((path.rsplit('/').next()?.parse().ok()?, path)))
        .collect();
    let digests: Vec<_> = objects.keys().copied().collect();
    let mut missing: Vec<String> = missing_objects(http, &digests)
        .await?
        .iter()
        .filter_map(|digest| objects.get(digest).cloned())
        .collect();
    let targets: BTreeMap<String, String> = staged
        .targets()
        .await?
        .into_iter()
        .filter_map(|path| Some((path.rsplit('/').next()?.to_owned(), path)))
        .collect();
    let names: Vec<_> = targets.keys().cloned().collect();
    let missing_targets = missing_targets(http, &names).await?;
    missing.extend(
        missing_targets
            .iter()
            .filter_map(|name| targets.get(name).cloned()),
    );
    missing
        .into_iter()
        .map(|path| match work.join(&path).metadata() {
            Ok(meta) => Ok(ToSend {
                path,
                length: meta.len(),
            }),
            Err(_) => Err(UploadError::Gone { path }),
        })
        .collect()
}

/// Sends these files, a few at once. What was sent before an error stays on the server.
///
/// # Errors
/// The server does not take one.
pub async fn send(
    http: &Http,
    work: &Path,
    files: &[ToSend],
    bar: &ProgressBar,
) -> Result<Uploaded, UploadError> {
    stream::iter(files)
        .map(Ok)
        .try_for_each_concurrent(PARALLEL, async |file| {
            http.put(&file.path, &work.join(&file.path), file.length, bar)
                .await
        })
        .await?;
    Ok(Uploaded {
        files: files.len() as u64,
        bytes: total(files),
        committed: None,
    })
}

/// Returns how many bytes these files have.
pub fn total(files: &[ToSend]) -> u64 {
    files.iter().map(|file| file.length).sum()
}

/// Makes the staged metadata visible, on top of that which it follows.
///
/// # Errors
/// The server does not take it; [`HttpError::Conflict`] if it has other metadata by now.
pub async fn commit(http: &Http, staged: &Staged) -> Result<Option<Landed>, UploadError> {
    let mut files = BTreeMap::new();
    for path in staged.metadata().await? {
        let bytes = read_staged(staged, &path).await?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        files.insert(name, String::from_utf8_lossy(&bytes).into_owned());
    }
    if files.is_empty() {
        return Ok(None);
    }
    match post(http, staged, files).await {
        // A commit whose answer was lost conflicts with itself when it is sent again.
        Err(UploadError::Http(error))
            if error.is_transient() || matches!(error, HttpError::Conflict { .. }) =>
        {
            match has_landed(http, staged).await {
                Ok(true) => Ok(Some(Landed::Unconfirmed)),
                _ => Err(error.into()),
            }
        }
        landed => landed.map(Some),
    }
}

/// Has the server write its boot files if those of `reference` are not of `manifest`, which is what it leads to: an
/// earlier commit did not come that far. `None`: nothing was to be done.
///
/// # Errors
/// The server cannot be asked.
pub async fn mend_boot_files(
    http: &Http,
    staged: &Staged,
    reference: &ImageRef,
    manifest: &ObjectRef,
) -> Result<Option<Landed>, UploadError> {
    // The server writes hints when it has written all else.
    let hint = http.read(&hint_path(reference), HINT_BYTES_MAX).await?;
    let hint = hint.and_then(|hint| Hint::decode(&hint).ok());
    if hint.is_some_and(|hint| hint.manifest == *manifest) {
        return Ok(None);
    }
    let max = usize::try_from(ROLE_BYTES_MAX).unwrap_or(usize::MAX);
    let Some(timestamp) = http.read(TIMESTAMP_PATH, max).await? else {
        return Ok(None);
    };
    // What is current already, sent once more, has all boot files written.
    let timestamp = String::from_utf8_lossy(&timestamp).into_owned();
    let files = BTreeMap::from([("timestamp.json".to_owned(), timestamp)]);
    match post(http, staged, files).await {
        // Another publisher was faster; with that commit the server writes boot files, too.
        Err(UploadError::Http(HttpError::Conflict { .. })) => Ok(None),
        landed => landed.map(Some),
    }
}

async fn post(
    http: &Http,
    staged: &Staged,
    files: BTreeMap<String, String>,
) -> Result<Landed, UploadError> {
    let commit = Commit {
        follows: staged.follows(),
        files,
        removes: Vec::new(),
    };
    let body = serde_json::to_vec(&commit).expect("plain values can be written");
    if body.len() > COMMIT_BYTES_MAX {
        return Err(UploadError::TooLong);
    }
    let answer = http
        .post(COMMIT_PATH, body.into(), ANSWER_BYTES_MAX)
        .await?;
    let committed: Committed = decode(http, COMMIT_PATH, &answer)?;
    Ok(match committed.boot_files {
        true => Landed::Whole,
        false => Landed::WithoutBootFiles,
    })
}

/// Tells whether the server shows the staged metadata already.
async fn has_landed(http: &Http, staged: &Staged) -> Result<bool, UploadError> {
    let ours = read_staged(staged, TIMESTAMP_PATH).await?;
    let max = usize::try_from(ROLE_BYTES_MAX).unwrap_or(usize::MAX);
    let theirs = http.read(TIMESTAMP_PATH, max).await?;
    Ok(theirs.is_some_and(|theirs| theirs == ours))
}

async fn read_staged(staged: &Staged, path: &str) -> Result<bytes::Bytes, UploadError> {
    let max = usize::try_from(TARGETS_BYTES_MAX).unwrap_or(usize::MAX);
    let gone = || UploadError::Gone {
        path: path.to_owned(),
    };
    staged.read_held(path, max).await?.ok_or_else(gone)
}
