//! A server that speaks the upload protocol over a directory, as simply as can be, writes down what
//! it was asked, and fails where a test wants it to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use image_format::{Digest, marker};
use image_tools::remote::protocol::{COMMIT_PATH, Commit, MISSING_PATH, Missing, Question};
use tokio::net::TcpListener;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<BoxBody<Bytes, Error>>;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is answered with this status and not done.
    Status(u16),
    /// The connection breaks after this many bytes of its body.
    HangUp(usize),
    /// It is done; the connection breaks before the answer.
    LoseAnswer,
    /// The body of its answer breaks after this many bytes.
    CutAnswer(usize),
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Bytes of its body that arrived.
    pub(crate) bytes: u64,
    /// How it was answered; 0 if it was not.
    pub(crate) status: u16,
}

/// Decides what goes wrong, given the number of a request, its method and its path.
type Faults = Box<dyn Fn(usize, &Method, &str) -> Option<Fault> + Send>;

/// What happens before a commit is looked at: another publisher may be faster.
type BeforeCommit = Box<dyn FnOnce() + Send>;

struct State {
    root: PathBuf,
    token: Option<String>,
    asked: Mutex<Vec<Asked>>,
    faults: Mutex<Faults>,
    before_commit: Mutex<Option<BeforeCommit>>,
    /// One commit at a time.
    commits: Mutex<()>,
}

/// The running server.
pub(crate) struct UploadServer {
    state: Arc<State>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for UploadServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl UploadServer {
    /// Serves `root`, a store or an empty directory, to whoever has the token.
    pub(crate) async fn start(root: &Path, token: Option<&str>) -> Self {
        fs::create_dir_all(root).unwrap();
        let marker_path = root.join(marker::MARKER_PATH);
        if !marker_path.exists() {
            fs::write(marker_path, marker::Marker::DEFAULT.encode()).unwrap();
        }
        let state = Arc::new(State {
            root: root.to_owned(),
            token: token.map(|token| format!("Bearer {token}")),
            asked: Mutex::default(),
            faults: Mutex::new(Box::new(|_, _, _| None)),
            before_commit: Mutex::default(),
            commits: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            state,
            address,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Returns what was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }

    /// Lets go wrong from now on what `faults` says; requests are counted from 1 again.
    pub(crate) fn fail(
        &self,
        faults: impl Fn(usize, &Method, &str) -> Option<Fault> + Send + 'static,
    ) {
        self.asked();
        *self.state.faults.lock().unwrap() = Box::new(faults);
    }

    pub(crate) fn before_commit(&self, run: impl FnOnce() + Send + 'static) {
        *self.state.before_commit.lock().unwrap() = Some(Box::new(run));
    }
}

/// Answers a request, or breaks the connection.
async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Error> {
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/').to_owned();
    let number = {
        let mut asked = state.asked.lock().unwrap();
        asked.push(Asked {
            method: parts.method.clone(),
            path: path.clone(),
            bytes: 0,
            status: 0,
        });
        asked.len()
    };
    let note = |bytes: u64, status: u16| {
        // A test may have taken the list meanwhile.
        if let Some(asked) = state.asked.lock().unwrap().get_mut(number - 1) {
            (asked.bytes, asked.status) = (bytes, status);
        }
    };
    let fault = state.faults.lock().unwrap()(number, &parts.method, &path);
    if let Some(Fault::Status(status)) = fault {
        note(0, status);
        return Ok(text(StatusCode::from_u16(status)?, "as the test wants it"));
    }
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        content.extend_from_slice(frame?.data_ref().map_or(&[][..], |part| part));
        note(content.len() as u64, 0);
        if matches!(fault, Some(Fault::HangUp(after)) if content.len() >= after) {
            return Err("the test hangs up".into());
        }
    }
    if matches!(fault, Some(Fault::HangUp(_))) {
        return Err("the test hangs up".into());
    }
    let authorized = match &state.token {
        None => true,
        Some(token) => parts
            .headers
            .get(AUTHORIZATION)
            .is_some_and(|sent| sent == token),
    };
    let done = match (&parts.method, path.as_str()) {
        (&Method::GET | &Method::HEAD, _) => read(&state.root, &parts, &path),
        _ if !authorized => text(StatusCode::UNAUTHORIZED, "no token, or another one"),
        (&Method::POST, MISSING_PATH) => missing(&state.root, &content),
        (&Method::POST, COMMIT_PATH) => {
            let run = state.before_commit.lock().unwrap().take();
            if let Some(run) = run {
                run();
            }
            let _turn = state.commits.lock().unwrap();
            commit(&state.root, &content)
        }
        (&Method::PUT, _) => put(&state.root, &parts, &path, &content),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "no such method"),
    };
    match fault {
        Some(Fault::LoseAnswer) => return Err("the test loses the answer".into()),
        Some(Fault::CutAnswer(after)) => return Ok(cut(done, after).await),
        _ => {}
    }
    note(content.len() as u64, done.status().as_u16());
    Ok(done)
}

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, Error> {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn text(status: StatusCode, error: &str) -> Answer {
    json(status, &serde_json::json!({ "error": error }))
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    let mut answer = Response::new(full(serde_json::to_vec(value).unwrap()));
    *answer.status_mut() = status;
    answer
}

/// Sends the head of an answer, part of its body, and then breaks off.
async fn cut(answer: Answer, after: usize) -> Answer {
    let (mut head, body) = answer.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    head.headers.insert(CONTENT_LENGTH, bytes.len().into());
    let first = bytes.slice(..after.min(bytes.len()));
    let frames: [Result<Frame<Bytes>, Error>; 2] = [
        Ok(Frame::data(first)),
        Err("the test cuts the answer".into()),
    ];
    Response::from_parts(head, BoxBody::new(StreamBody::new(stream::iter(frames))))
}

fn read(root: &Path, head: &hyper::http::request::Parts, path: &str) -> Answer {
    let Ok(bytes) = fs::read(root.join(path)) else {
        return text(StatusCode::NOT_FOUND, "no such file");
    };
    let range = head.headers.get(RANGE).map(|range| {
        let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let last: usize = last.parse().unwrap();
        first.parse().unwrap()..(last + 1).min(bytes.len())
    });
    let Some(range) = range else {
        return Response::new(full(bytes));
    };
    let value = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
    let mut answer = Response::new(full(bytes[range].to_vec()));
    *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    answer
        .headers_mut()
        .insert(CONTENT_RANGE, value.parse().unwrap());
    answer
}

fn missing(root: &Path, body: &[u8]) -> Answer {
    let question: Question = serde_json::from_slice(body).unwrap();
    let missing = Missing {
        missing: question
            .objects
            .into_iter()
            .filter(|digest| !root.join(digest.object_path()).exists())
            .collect(),
        missing_targets: question
            .targets
            .into_iter()
            .filter(|name| !root.join("targets").join(name).exists())
            .collect(),
    };
    json(StatusCode::OK, &missing)
}

fn put(root: &Path, head: &hyper::http::request::Parts, path: &str, body: &[u8]) -> Answer {
    let name = path.rsplit('/').next().unwrap();
    let length = head.headers.get(CONTENT_LENGTH);
    if length.is_none_or(|length| length.to_str().unwrap() != body.len().to_string()) {
        return text(StatusCode::LENGTH_REQUIRED, "no length");
    }
    if Digest::of(body).to_string() != name[..64] {
        return text(StatusCode::UNPROCESSABLE_ENTITY, "another digest");
    }
    let file = root.join(path);
    if file.exists() {
        return json(StatusCode::OK, &());
    }
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    replace(&file, body);
    json(StatusCode::CREATED, &())
}

/// Writes a file in one step, as the real server does: others read it meanwhile.
fn replace(path: &Path, bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    fs::write(&file, bytes).unwrap();
    file.persist(path).unwrap();
}

fn commit(root: &Path, body: &[u8]) -> Answer {
    let Commit { follows, files, .. } = serde_json::from_slice(body).unwrap();
    let metadata = root.join("metadata");
    fs::create_dir_all(&metadata).unwrap();
    let current = fs::read(metadata.join("timestamp.json"));
    if current.ok().map(|bytes| Digest::of(&bytes)) != follows {
        return text(StatusCode::CONFLICT, "the store has other metadata by now");
    }
    // Only what the new state consists of, and one step at a time.
    if files
        .keys()
        .filter(|name| name.ends_with(".targets.json"))
        .count()
        != 1
    {
        return text(StatusCode::UNPROCESSABLE_ENTITY, "more files than are used");
    }
    let numbered: BTreeMap<_, _> = files
        .iter()
        .filter(|(name, _)| *name != "timestamp.json")
        .collect();
    for (name, content) in numbered {
        let file = metadata.join(name);
        if fs::read(&file).is_ok_and(|there| there != content.as_bytes()) {
            return text(StatusCode::CONFLICT, "the number is taken");
        }
        replace(&file, content.as_bytes());
    }
    replace(
        &metadata.join("timestamp.json"),
        files["timestamp.json"].as_bytes(),
    );
    let answer = serde_json::json!({ "timestamp": 1, "boot_files": true });
    json(StatusCode::OK, &answer)
}
