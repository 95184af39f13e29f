//! A store on a server, as far as `image-store` knows it: what is staged, and what is believed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, StreamExt as _};
use image_format::{Digest, ObjectRef};
use image_store::trust::TIMESTAMP_PATH;
use image_store::{KeyRing, Lifetimes, Remote, RemoteError, RemoteFile, Signer, Store, StoreError};
use tempfile::TempDir;

/// A server that is a directory, and writes down what was read.
#[derive(Debug, Default)]
struct Directory {
    root: PathBuf,
    read: Mutex<Vec<String>>,
}

impl Directory {
    fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.read.lock().unwrap().push(path.to_owned());
        fs::read(self.root.join(path)).ok()
    }
}

impl Remote for Directory {
    fn open<'a>(
        &'a self,
        path: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<Option<RemoteFile>, RemoteError>> {
        async move {
            let Some(bytes) = self.file(path) else {
                return Ok(None);
            };
            let length = bytes.len() as u64;
            let range = range.map_or(0..length, |range| range.start..range.end.min(length));
            let at = |position: u64| usize::try_from(position).unwrap();
            let part = Bytes::from(bytes).slice(at(range.start)..at(range.end));
            Ok(Some(RemoteFile {
                length,
                range,
                bytes: stream::iter([Ok(part)]).boxed(),
            }))
        }
        .boxed()
    }

    fn length<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Option<u64>, RemoteError>> {
        async move { Ok(self.file(path).map(|bytes| bytes.len() as u64)) }.boxed()
    }

    fn missing<'a>(
        &'a self,
        objects: &'a [Digest],
    ) -> BoxFuture<'a, Result<Vec<Digest>, RemoteError>> {
        let lacks = |digest: &&Digest| !self.root.join(digest.object_path()).exists();
        let missing = objects.iter().filter(lacks).copied().collect();
        async { Ok(missing) }.boxed()
    }
}

/// A store with signed metadata and one object, behind a server.
struct Bench {
    directory: TempDir,
    keys: KeyRing,
    remote: Arc<Directory>,
}

impl Bench {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyRing::generate(&directory.path().join("keys")).unwrap();
        let root = directory.path().join("served");
        let store = Store::open_or_create(&root).await.unwrap();
        signer(&keys).establish(&store).await.unwrap();
        fs::create_dir(directory.path().join("work")).unwrap();
        let remote = Arc::new(Directory {
            root,
            ..Directory::default()
        });
        Self {
            directory,
            keys,
            remote,
        }
    }

    fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    async fn open(&self) -> Store {
        Store::open_staged(&self.work(), self.remote.clone())
            .await
            .unwrap()
    }

    /// Puts an object on the server.
    fn serve(&self, bytes: &[u8]) -> ObjectRef {
        let object = ObjectRef::of(bytes);
        let path = self.remote.root.join(object.digest.object_path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        object
    }

    fn read(&self) -> BTreeSet<String> {
        self.remote.read.lock().unwrap().drain(..).collect()
    }
}

fn signer(keys: &KeyRing) -> Signer<'_> {
    Signer {
        keys,
        lifetimes: Lifetimes::DEFAULT,
        now: 1_800_000_000,
    }
}

fn is_file(directory: &Path, path: &str) -> bool {
    directory.join(path).is_file()
}

#[tokio::test]
async fn writes_stay_here_and_reads_find_both() {
    let bench = Bench::new().await;
    let theirs = bench.serve(b"theirs");
    let store = bench.open().await;
    let ours = store.put_object(Bytes::from_static(b"ours")).await.unwrap();
    assert_eq!(&store.object(&ours).await.unwrap()[..], b"ours");
    assert_eq!(&store.object(&theirs).await.unwrap()[..], b"theirs");
    assert_eq!(
        &store.object_range(&theirs.digest, 2..4).await.unwrap()[..],
        b"ei"
    );
    let ours_path = ours.digest.object_path();
    assert!(is_file(&bench.work(), &ours_path) && !is_file(&bench.remote.root, &ours_path));
    assert_eq!(store.staged().unwrap().objects(), [ours_path]);
}

#[tokio::test]
async fn an_object_is_not_fetched_to_find_out_that_it_is_there() {
    let bench = Bench::new().await;
    let object = bench.serve(b"a pack, long to fetch");
    let store = bench.open().await;
    bench.read();
    let put = Bytes::from_static(b"a pack, long to fetch");
    assert_eq!(store.put_object(put.clone()).await.unwrap(), object);
    assert_eq!(bench.read(), BTreeSet::new());
    // A second run finds it in the work directory, and still means to publish it.
    let store = bench.open().await;
    store.put_object(put).await.unwrap();
    let path = object.digest.object_path();
    assert_eq!(store.staged().unwrap().objects(), [path]);
}

#[tokio::test]
async fn damaged_bytes_of_a_server_are_refused_and_not_kept() {
    let bench = Bench::new().await;
    let object = bench.serve(b"right");
    let path = object.digest.object_path();
    for wrong in [&b"wrong"[..], b"longer than it should be", b""] {
        fs::write(bench.remote.root.join(&path), wrong).unwrap();
        let store = bench.open().await;
        let refused = store.object(&object).await;
        assert!(
            matches!(
                refused,
                Err(StoreError::Damaged { .. } | StoreError::Decode { .. })
            ),
            "{refused:?}"
        );
        // As a chunk index, it is left out, and what it knows is stored again.
        store.chunk_indexes(&[object]).await.unwrap();
        assert!(!is_file(&bench.work(), &path));
    }
}

#[tokio::test]
async fn what_the_server_says_reaches_the_message() {
    let bench = Bench::new().await;
    let error = Store::open_staged(&bench.work(), Arc::new(OnFire))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the server is on fire");
}

/// A server that answers nothing.
#[derive(Debug)]
struct OnFire;

impl Remote for OnFire {
    fn open<'a>(
        &'a self,
        _: &'a str,
        _: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<Option<RemoteFile>, RemoteError>> {
        async { Err(RemoteError("the server is on fire".into())) }.boxed()
    }

    fn length<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<u64>, RemoteError>> {
        async { Err(RemoteError("the server is on fire".into())) }.boxed()
    }

    fn missing<'a>(&'a self, _: &'a [Digest]) -> BoxFuture<'a, Result<Vec<Digest>, RemoteError>> {
        async { Err(RemoteError("the server is on fire".into())) }.boxed()
    }
}

#[tokio::test]
async fn signed_metadata_follows_what_was_read_last_and_takes_free_numbers() {
    let bench = Bench::new().await;
    let store = bench.open().await;
    let root = bench.keys.root().unwrap();
    // A number that a publisher used and died.
    fs::write(bench.remote.root.join("metadata/2.targets.json"), "{}").unwrap();
    // Targets that last longer than is wished for now are signed again, and all that names them.
    let refresher = Signer {
        lifetimes: Lifetimes {
            targets: Lifetimes::DEFAULT.timestamp,
            ..Lifetimes::DEFAULT
        },
        ..signer(&bench.keys)
    };
    refresher.refresh(&store).await.unwrap();
    let staged = store.staged().unwrap();
    let timestamp = fs::read(bench.remote.root.join(TIMESTAMP_PATH)).unwrap();
    assert_eq!(staged.follows(), Some(Digest::of(&timestamp)));
    let metadata = staged.metadata().await.unwrap();
    assert_eq!(
        metadata,
        [
            "metadata/2.snapshot.json",
            "metadata/3.targets.json",
            TIMESTAMP_PATH
        ]
    );
    // Reading the staged state changes nothing; dropping it leads back to the server's.
    let next = store.current(&root).await.unwrap();
    assert_eq!(next.timestamp.signed.version.get(), 2);
    assert_eq!(staged.follows(), Some(Digest::of(&timestamp)));
    staged.drop_metadata().await.unwrap();
    assert_eq!(staged.metadata().await.unwrap(), [""; 0]);
    assert_eq!(staged.follows(), None);
    let before = store.current(&root).await.unwrap();
    assert_eq!(before.timestamp.signed.version.get(), 1);
}
