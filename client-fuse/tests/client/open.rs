//! Opening an image: what a user is told when it does not work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client_fuse::cache::Caches;
use client_fuse::fetch::fetcher::Fetcher;
use client_fuse::open::{OpenError, OpenImage, open};
use client_fuse::stats::Stats;

use crate::source::{Fault, Faults, MemorySource};
use crate::stack::IMPATIENT;
use crate::store::{Store, mixed_disk};

async fn try_open(source: MemorySource, reference: &str) -> Result<OpenImage, OpenError> {
    let caches = Arc::new(Caches::none());
    let trust = source.trust();
    let fetcher = Fetcher::new(source, 8, IMPATIENT, caches, Arc::new(Stats::default()));
    open(
        &Arc::new(fetcher),
        &"http://store/".parse().unwrap(),
        &reference.parse().unwrap(),
        &trust,
    )
    .await
}

fn store() -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(300, 5)))
}

#[tokio::test]
async fn an_image_opens_by_tag_and_by_version() {
    let store = store();
    for reference in ["lab/debian:12", "lab/debian:12@1", "lab/debian@1"] {
        let image = try_open(MemorySource::new(&store), reference)
            .await
            .unwrap();
        assert_eq!(image.disk_digest(), store.disk_digest);
        assert_eq!(image.reference.version.unwrap().number(), 1);
    }
}

#[tokio::test]
async fn unknown_things_are_answered_with_what_there_is() {
    let store = store();
    for (reference, told) in [
        (
            "debian",
            "http://store/ has no image `debian`; it has: lab/debian",
        ),
        (
            "lab/debian",
            "image `lab/debian` has no tag `latest`; it has: 12",
        ),
        (
            "lab/debian:12@7",
            "image `lab/debian` has no version 7; the newest is 1",
        ),
    ] {
        let error = try_open(MemorySource::new(&store), reference)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), told);
    }
}

#[tokio::test]
async fn a_server_without_a_store_is_told_apart() {
    let faults: Faults = Arc::new(|_, _| Fault::Missing);
    let error = try_open(MemorySource::faulty(&store(), faults), "lab/debian:12")
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
}

#[tokio::test]
async fn every_damaged_step_is_named() {
    let store = store();
    for (part, what) in [
        ("targets/", "catalogue"),
        (&store.manifest, "manifest"),
        (&store.disk_digest.object_path(), "region table"),
    ] {
        for fault in [
            Fault::Flip,
            Fault::Truncate,
            Fault::Endless,
            Fault::Refuse,
            Fault::Missing,
        ] {
            let part = part.to_owned();
            let faults: Faults = Arc::new(move |_, request| {
                let hit = request.path.starts_with(&part);
                if hit { fault } else { Fault::None }
            });
            let error = try_open(MemorySource::faulty(&store, faults), "lab/debian:12")
                .await
                .unwrap_err();
            let told = format!("cannot fetch the {what}");
            assert_eq!(error.to_string(), told, "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_early_and_does_not_come_is_soon_asked_for_again() {
    let store = store();
    let table = store.disk_digest.object_path();
    for part in ["targets/", &store.manifest, &table] {
        let (part, asked) = (part.to_owned(), AtomicUsize::new(0));
        let faults: Faults = Arc::new(move |_, request| {
            let is_first = || asked.fetch_add(1, Ordering::Relaxed) == 0;
            if request.path.contains(&part) && is_first() {
                Fault::Silent
            } else {
                Fault::None
            }
        });
        let source = MemorySource::faulty(&store, faults).at(Duration::from_millis(20), 0);
        let began = tokio::time::Instant::now();
        try_open(source, "lab/debian:12").await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
