//! Several servers of one store: a bad one blocks no good one, and is asked last.

use std::time::Duration;

use client_fuse::disk::Disk;
use client_fuse::fetch::Part;
use client_fuse::fetch::mirrors::Mirrors;
use client_fuse::fetch::retry::RetryPolicy;
use tokio::runtime::Handle;

use super::super::publisher::LATE;
use super::{
    Arc, Expiry, Fault, Faults, Fetcher, IMPATIENT, MemorySource, OpenError, OpenImage, Publisher,
    Release, Stats, Store, Trust, TrustError, open, refusal, trust,
};
use crate::stack::{PATIENT, no_caches};
use crate::store::mixed_disk;

/// A fetcher over these servers, which are called a, b, c.
fn fetcher(sources: &[MemorySource]) -> Arc<Fetcher<MemorySource>> {
    fetcher_with(IMPATIENT, sources)
}

/// The same, with readers that wait as `policy` says.
fn fetcher_with(policy: RetryPolicy, sources: &[MemorySource]) -> Arc<Fetcher<MemorySource>> {
    let named = sources.iter().zip(["a", "b", "c"]);
    let mut named = named.map(|(source, name)| (name.to_owned(), source.clone()));
    let mirrors = Mirrors::of(named.next().unwrap(), named.collect());
    let stats = Arc::new(Stats::default());
    let fetcher = Fetcher::over(Arc::new(mirrors), 8, policy, no_caches(), stats);
    Arc::new(fetcher)
}

async fn open_at(sources: &[MemorySource], trust: &Trust) -> Result<OpenImage, OpenError> {
    let base = "http://a/".parse().unwrap();
    let reference = "lab/debian:12".parse().unwrap();
    open(&fetcher(sources), &base, &reference, trust).await
}

fn store() -> Store {
    Store::of(mixed_disk(300, 5))
}

fn server(store: &Store) -> MemorySource {
    MemorySource::new(&Arc::new(store.clone()))
}

fn broken(store: &Store, fault: Fault) -> MemorySource {
    MemorySource::faulty(&Arc::new(store.clone()), Arc::new(move |_, _| fault))
}

/// The store as it was, with a timestamp that expired.
fn frozen(store: &Store) -> Store {
    let release = Release {
        expires: ("timestamp", "2026-12-01T00:00:00Z"),
        ..Release::number(1)
    };
    store.signed(&store.publisher, release)
}

#[tokio::test]
async fn a_mirror_that_is_frozen_or_went_back_blocks_no_good_one() {
    let old = store();
    let new = old.signed(&old.publisher, Release::number(2));
    let stranger = old.signed(&Publisher::with_root_until(LATE), Release::number(9));
    for bad in [
        server(&old),
        server(&frozen(&old)),
        server(&stranger),
        broken(&new, Fault::Refuse),
        broken(&new, Fault::Unavailable),
        broken(&new, Fault::Missing),
        broken(&new, Fault::Flip),
        broken(&new, Fault::Truncate),
        broken(&new, Fault::Endless),
    ] {
        let state = tempfile::tempdir().unwrap();
        let trust = trust(&old, state.path());
        super::open_store(&new, &trust).await.unwrap();
        for servers in [[bad.clone(), server(&new)], [server(&new), bad.clone()]] {
            open_at(&servers, &trust).await.unwrap();
        }
        open_at(&[bad.clone(), bad], &trust).await.unwrap_err();
    }
}

/// Where metadata that is out of date will do, it is still the last choice.
#[tokio::test]
async fn what_is_out_of_date_is_taken_only_when_nothing_else_is_there() {
    let state = tempfile::tempdir().unwrap();
    let old = store();
    let new = old.signed(&old.publisher, Release::number(2));
    let warn = Trust {
        expiry: Expiry::Warn,
        ..trust(&old, state.path())
    };
    let gone = broken(&new, Fault::Missing);
    open_at(&[server(&frozen(&old)), gone], &warn)
        .await
        .unwrap();
    open_at(&[server(&frozen(&old)), server(&new)], &warn)
        .await
        .unwrap();
    // The new one was seen.
    let error = refusal(&frozen(&old), &warn).await;
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
}

#[tokio::test]
async fn when_all_fail_each_is_told() {
    let state = tempfile::tempdir().unwrap();
    let old = store();
    let new = old.signed(&old.publisher, Release::number(2));
    let trust = trust(&old, state.path());
    super::open_store(&new, &trust).await.unwrap();
    let servers = [server(&old), broken(&new, Fault::Missing)];
    let told = open_at(&servers, &trust).await.unwrap_err().to_string();
    for part in [
        "no mirror of the store can be believed: ",
        "a: rollback: the store offers timestamp metadata of version 1",
        "b: cannot fetch the store's timestamp metadata: there is no metadata/timestamp.json",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

#[tokio::test]
async fn a_mirror_that_lies_once_in_the_middle_of_a_read_is_asked_last() {
    let store = store();
    let packs: Faults = Arc::new(|_, request| match request.part {
        Part::Range { .. } => Fault::Flip,
        Part::Whole => Fault::None,
    });
    let liar = MemorySource::faulty(&Arc::new(store.clone()), packs);
    let good = server(&store);
    let fetcher = fetcher(&[liar.clone(), good.clone()]);
    let base = "http://a/".parse().unwrap();
    let reference = "lab/debian:12".parse().unwrap();
    let image = open(&fetcher, &base, &reference, &good.trust())
        .await
        .unwrap();
    let disk = Disk::new(image.table, fetcher, no_caches(), &Handle::current(), None);
    for offset in (0..store.disk.len() as u64).step_by(64 << 10) {
        let bytes = disk.read(offset, 64 << 10).await.unwrap();
        assert_eq!(&bytes[..], store.flat(offset, 64 << 10));
    }
    let ranges = |source: &MemorySource| {
        let requests = source.requests().into_iter();
        requests.filter(|it| it.part != Part::Whole).count()
    };
    assert!(ranges(&good) > 2, "{}", ranges(&good));
    assert!(ranges(&liar) < 3, "{}", ranges(&liar));
}

#[tokio::test(start_paused = true)]
async fn mirrors_that_say_nothing_are_passed_over() {
    let (store, state) = (store(), tempfile::tempdir().unwrap());
    let silent = || broken(&store, Fault::Silent);
    let servers = [silent(), silent(), server(&store)];
    let trust = trust(&store, state.path());
    let began = tokio::time::Instant::now();
    open_at(&servers, &trust).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    // The same, with all the time there is.
    let base = "http://a/".parse().unwrap();
    let reference = "lab/debian:12".parse().unwrap();
    let began = tokio::time::Instant::now();
    let patient = fetcher_with(PATIENT, &servers);
    open(&patient, &base, &reference, &trust).await.unwrap();
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(12), "{waited:?}");
}

/// A server that is always as slow is opened from in the end, though another one is silent.
#[tokio::test(start_paused = true)]
async fn a_slow_server_beside_a_silent_one_has_its_time() {
    let (store, state) = (store(), tempfile::tempdir().unwrap());
    let slow = || broken(&store, Fault::Late(Duration::from_secs(7)));
    for servers in [vec![slow()], vec![broken(&store, Fault::Silent), slow()]] {
        let base = "http://a/".parse().unwrap();
        let reference = "lab/debian:12".parse().unwrap();
        let trust = trust(&store, state.path());
        let patient = fetcher_with(PATIENT, &servers);
        let opened = open(&patient, &base, &reference, &trust);
        let opened = tokio::time::timeout(Duration::from_secs(120), opened);
        opened.await.expect("in time").unwrap();
    }
}
