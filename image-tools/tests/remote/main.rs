//! Publishing to a server: what is sent, what is sent again, and what becomes of faults.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod faults;
mod publishing;
mod rollback;
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use image_format::ImageRef;
use image_store::{ImageReader, KeyRing, Known, Lifetimes, Publication, Published, Signer, Store};
use image_tools::publish::prepare::{self, PrepareConfig};
use image_tools::publish::source::{Probe, Source};
use image_tools::remote::RemoteStore;
use image_tools::remote::http::HttpConfig;
use image_tools::remote::retry::RetryPolicy;
use image_tools::remote::upload::Uploaded;
use image_tools::ui::Ui;
use tempfile::TempDir;

use server::{Asked, UploadServer};

/// One try: what breaks is seen.
const ONCE: RetryPolicy = RetryPolicy {
    tries: 1,
    first: Duration::ZERO,
    last: Duration::ZERO,
};

/// Tries enough for the faults of a test, without a pause.
const AT_ONCE: RetryPolicy = RetryPolicy {
    tries: 5,
    first: Duration::ZERO,
    last: Duration::ZERO,
};

/// A server with an empty store, and keys for it.
struct Bench {
    directory: TempDir,
    keys: KeyRing,
    server: UploadServer,
}

impl Bench {
    async fn new() -> Self {
        Self::with_token(None).await
    }

    async fn with_token(token: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyRing::generate(&directory.path().join("keys")).unwrap();
        let keys = keys.remembering();
        signer(&keys).keep_first_root().await.unwrap();
        let server = UploadServer::start(&directory.path().join("served"), token).await;
        Self {
            directory,
            keys,
            server,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes an image of `mib` MiB of noise that cannot be compressed.
    fn image(&self, name: &str, seed: u64, mib: usize) -> PathBuf {
        let path = self.path(name);
        let mut state = seed;
        let noise = std::iter::repeat_with(|| {
            // splitmix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ (mixed >> 31)).to_le_bytes()
        });
        let bytes: Vec<u8> = noise.take(mib * (1 << 20) / 8).flatten().collect();
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn open(&self, work: &str, retry: RetryPolicy) -> anyhow::Result<RemoteStore> {
        let config = HttpConfig {
            url: self.server.url().parse()?,
            token: None,
            authorities: Vec::new(),
            retry,
        };
        RemoteStore::open(config, Some(&self.path(work))).await
    }

    /// Publishes an image as `circular publish --to` does.
    async fn publish(
        &self,
        work: &str,
        retry: RetryPolicy,
        image: &Path,
        reference: &str,
    ) -> anyhow::Result<(Published, Uploaded)> {
        let remote = self.open(work, retry).await?;
        self.publish_on(&remote, image, reference).await
    }

    async fn publish_on(
        &self,
        remote: &RemoteStore,
        image: &Path,
        reference: &str,
    ) -> anyhow::Result<(Published, Uploaded)> {
        let store = remote.store();
        let names = store.names().await?;
        let known = store.chunk_indexes(&names.chunk_indexes).await?;
        let config = PrepareConfig {
            workers: NonZeroUsize::MIN,
            level: 1,
            chunker: store.marker().chunker,
        };
        let source = Arc::new(Source::open(image, Probe::Refuse)?);
        let written =
            prepare::write_disk(store.clone(), source, Arc::new(known), config, |_| {}).await?;
        let publication = Publication {
            reference: reference.parse()?,
            created: 1_800_000_000,
            written,
            chunker: store.marker().chunker,
            boot: None,
            boot_pack: None,
            index_delta: None,
            known: Known::Published,
        };
        let signer = signer(&self.keys);
        remote
            .commit(&signer, &Ui::new(false, true), async |store| {
                Ok(publication.clone().commit(store, &signer).await?)
            })
            .await
    }

    /// Opens the directory of the server as a store and compares the image with what was published.
    async fn assert_served(&self, reference: &str, image: &Path) {
        let store = Store::open(&self.path("served")).await.unwrap();
        let current = store.current(&self.keys.root().unwrap()).await.unwrap();
        store.names_of(&current).await.unwrap();
        let reference: ImageRef = reference.parse().unwrap();
        let resolved = store.resolve(&reference).await.unwrap();
        let reader = ImageReader::open(store, &resolved.manifest).await.unwrap();
        let length = usize::try_from(reader.length()).unwrap();
        let bytes = reader.read(0, length).await.unwrap();
        assert!(
            bytes == fs::read(image).unwrap(),
            "{reference} is another disk"
        );
    }

    /// Returns the lengths of all files below the directory of the server.
    fn served_bytes(&self, directory: &str) -> u64 {
        files(&self.path("served").join(directory)).values().sum()
    }
}

fn signer(keys: &KeyRing) -> Signer<'_> {
    Signer {
        keys,
        lifetimes: Lifetimes::DEFAULT,
        now: 1_800_000_000,
    }
}

/// Returns the files below a directory with their lengths.
fn files(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), path.metadata().unwrap().len())),
        }
    }
    found
}

/// Returns the uploads among these requests.
fn puts(asked: &[Asked]) -> Vec<&Asked> {
    asked
        .iter()
        .filter(|asked| asked.method == Method::PUT)
        .collect()
}
