//! How many round trips an opening takes, one behind the other.
//!
//! Each answer takes a second of a clock that stands still while anything can be done: what was
//! asked for together takes one second, what had to wait for something else one more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client_fuse::cache::Caches;
use client_fuse::fetch::fetcher::Fetcher;
use client_fuse::fetch::retry::RetryPolicy;
use client_fuse::fetch::{Body, Part, Request, Source, SourceError};
use client_fuse::open::open;
use client_fuse::stats::Stats;
use client_fuse::trust::Trust;
use futures_util::{StreamExt, stream};
use image_format::digest::{Digest, ObjectRef};
use image_format::hint::{Hint, hint_path};
use image_format::manifest::BootPack;
use tokio::time::Instant;

use crate::publisher::Release;
use crate::source::MemorySource;
use crate::stack::{PATIENT, Setup, start};
use crate::store::{Store, mixed_disk};

/// One round trip.
const TRIP: Duration = Duration::from_secs(1);

/// A source that is a round trip away.
struct Far(MemorySource);

impl Source for Far {
    async fn open(&self, request: Request) -> Result<Body, SourceError> {
        tokio::time::sleep(TRIP).await;
        self.0.open(request).await
    }
}

async fn fetcher<S: Source>(source: S) -> Arc<Fetcher<S>> {
    let caches = Arc::new(Caches::none());
    let stats = Arc::new(Stats::default());
    // Longer than any of these round trips, and shorter than a server may be silent.
    let policy = RetryPolicy {
        deadline: Some(TRIP * 20),
        ..PATIENT
    };
    Arc::new(Fetcher::new(source, 8, policy, caches, stats))
}

/// The round trips of opening `reference`, and the requests.
async fn trips(store: &Store, reference: &str, state: Option<&Path>) -> (u64, usize) {
    let near = MemorySource::new(&Arc::new(store.clone()));
    let trust = Trust {
        state: state.map(Path::to_owned),
        ..near.trust()
    };
    let fetcher = fetcher(Far(near.clone())).await;
    let began = Instant::now();
    let base = "http://store/".parse().unwrap();
    let image = open(&fetcher, &base, &reference.parse().unwrap(), &trust)
        .await
        .unwrap();
    assert_eq!(image.disk_digest(), store.disk_digest);
    (began.elapsed().as_secs(), near.requests().len())
}

fn store() -> Store {
    Store::of(mixed_disk(60, 5))
}

#[tokio::test(start_paused = true)]
async fn opening_takes_two_round_trips_for_whoever_knows_nothing_but_the_root() {
    let state = tempfile::tempdir().unwrap();
    for state in [None, Some(state.path()), Some(state.path())] {
        assert_eq!(trips(&store(), "lab/debian:12", state).await, (2, 8));
    }
    assert_eq!(trips(&store(), "lab/debian:12@1", None).await, (2, 8));
}

/// The round trips from the start until the first chunk of the boot is read, and the requests for the head of the boot
/// pack.
async fn trips_to_the_first_chunk(store: Store) -> (u64, usize) {
    let store = Arc::new(store);
    let source = MemorySource::far(&store, TRIP);
    let began = Instant::now();
    let stack = start(&source, Setup::FAR).await;
    assert_eq!(began.elapsed().as_secs(), 2, "nobody waits for the head");
    stack.prefetch(store.boot_pack);
    let offset = store.boot_set[0].first_block() * 4096;
    let bytes = stack.disk.read(offset, 4096).await.unwrap();
    assert_eq!(&bytes[..], store.flat(offset, 4096));
    let trips = began.elapsed().as_secs();
    let pack = store.boot_pack.unwrap();
    let path = pack.object.digest.object_path();
    let is_head = |request: &Request| match &request.part {
        Part::Range { range, .. } => request.path == path && range.start == 0,
        Part::Whole => false,
    };
    let heads = source.requests().into_iter().filter(is_head).count();
    (trips, heads)
}

/// The head of the boot pack comes beside the manifest that names it, its first frame beside the page of the index.
#[tokio::test(start_paused = true)]
async fn a_boot_pack_brings_its_first_chunk_in_three_round_trips() {
    let booting = || Store::booting(mixed_disk(4000, 0), 3);
    assert_eq!(trips_to_the_first_chunk(booting()).await, (3, 1));
    // A hint of before there were heads in them.
    let path = hint_path(&"lab/debian:12".parse().unwrap());
    let mut old = booting();
    let good = Hint::decode(&old.files[&path]).unwrap();
    let without = Hint {
        boot_pack: None,
        ..good
    };
    old.files.insert(path.clone(), without.encode().into());
    assert_eq!(trips_to_the_first_chunk(old).await, (4, 1));
    // One that names another: asked for in vain, and then as ever.
    let mut forged = booting();
    let other = good.boot_pack.map(|pack| BootPack {
        head: ObjectRef {
            digest: Digest::of(b"another head"),
            ..pack.head
        },
        ..pack
    });
    let forging = Hint {
        boot_pack: other,
        ..good
    };
    forged.files.insert(path, forging.encode().into());
    assert_eq!(trips_to_the_first_chunk(forged).await, (4, 2));
}

/// A hint that is missing, of no use, or of another time.
#[tokio::test(start_paused = true)]
async fn without_a_good_hint_opening_takes_two_more() {
    let path = hint_path(&"lab/debian:12".parse().unwrap());
    let mut store = store();
    let good = Hint::decode(&store.files[&path]).unwrap();
    store.files.remove(&path);
    assert_eq!(trips(&store, "lab/debian:12", None).await, (4, 8));
    store.files.insert(path.clone(), "{}".into());
    assert_eq!(trips(&store, "lab/debian:12", None).await, (4, 8));
    let stale = Hint {
        catalogue: ObjectRef::of(b"an old one"),
        manifest: ObjectRef::of(b"an old one"),
        disk: Digest::of(b"an old one"),
        ..good
    };
    store.files.insert(path.clone(), stale.encode().into());
    assert_eq!(trips(&store, "lab/debian:12", None).await, (4, 11));
    // Another version than the one that is asked for: the catalogue is the same.
    let older = Hint {
        manifest: stale.manifest,
        disk: stale.disk,
        ..good
    };
    store.files.insert(path, older.encode().into());
    assert_eq!(trips(&store, "lab/debian:12", None).await, (3, 10));
}

#[tokio::test(start_paused = true)]
async fn targets_of_another_number_take_one_more() {
    let store = store();
    let odd = Release {
        snapshot: 7,
        ..Release::number(3)
    };
    let store = store.signed(&store.publisher, odd);
    assert_eq!(trips(&store, "lab/debian:12", None).await, (3, 9));
}

#[tokio::test(start_paused = true)]
async fn a_new_root_takes_one_more_each() {
    let first = store();
    let mut publisher = first.publisher.clone();
    publisher.rotate(&["timestamp"]);
    let second = first.signed(&publisher, Release::number(2));
    assert_eq!(trips(&second, "lab/debian:12", None).await, (3, 9));
}

/// A hint is the one thing that may take its time.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_hint() {
    /// Never answers for hints.
    struct Stuck(MemorySource);
    impl Source for Stuck {
        async fn open(&self, request: Request) -> Result<Body, SourceError> {
            if request.path.starts_with("boot/") {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(TRIP).await;
            self.0.open(request).await
        }
    }
    let near = MemorySource::new(&Arc::new(store()));
    let fetcher = fetcher(Stuck(near.clone())).await;
    let began = Instant::now();
    let base = "http://store/".parse().unwrap();
    let reference = "lab/debian:12".parse().unwrap();
    open(&fetcher, &base, &reference, &near.trust())
        .await
        .unwrap();
    assert_eq!(began.elapsed().as_secs(), 4);
}

/// Slow retrieval: a server that sends a byte now and then, or its head never.
#[tokio::test(start_paused = true)]
async fn slow_retrieval_ends_though_the_line_is_never_silent() {
    struct Drips(MemorySource);
    impl Source for Drips {
        async fn open(&self, request: Request) -> Result<Body, SourceError> {
            let body = self.0.open(request).await?;
            let bytes = body.flat_map(|part| stream::iter(part.unwrap()));
            Ok(Box::pin(bytes.then(|byte| async move {
                tokio::time::sleep(TRIP).await;
                Ok(vec![byte].into())
            })))
        }
    }
    struct Mute;
    impl Source for Mute {
        async fn open(&self, _: Request) -> Result<Body, SourceError> {
            std::future::pending().await
        }
    }
    let near = MemorySource::new(&Arc::new(store()));
    let (base, reference) = ("http://store/".parse().unwrap(), "lab/debian:12".parse());
    let reference = reference.unwrap();
    let fetcher_drips = fetcher(Drips(near.clone())).await;
    let error = open(&fetcher_drips, &base, &reference, &near.trust()).await;
    let told = format!("{:#}", anyhow::Error::from(error.unwrap_err()));
    assert!(told.contains("came too slowly: 30 bytes in 30 s"), "{told}");
    let fetcher_mute = fetcher(Mute).await;
    let error = open(&fetcher_mute, &base, &reference, &near.trust()).await;
    let told = format!("{:#}", anyhow::Error::from(error.unwrap_err()));
    assert!(told.contains("came too slowly: 0 bytes in 30 s"), "{told}");
}
