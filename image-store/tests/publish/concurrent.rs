//! Publishers, sweeps and refreshes on one store at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_format::ImageName;
use image_store::gc::{GcConfig, Mode, collect};
use image_store::{Signer, Store};

use crate::{Scratch, disk, publish, read_back, ring, signer};

const PUBLISHERS: u8 = 8;

/// A disk of which all share a part, and neighbours another.
fn content(number: u8) -> Vec<u8> {
    [
        disk(200, 3),
        disk(100 + number / 2 * 2, 2),
        disk(number * 2, 3),
    ]
    .concat()
}

/// Publishes. Without a grace period a sweep takes what publishers have not committed yet, and
/// what they are reading: then they are told, and begin again.
async fn publish_at_last(store: &Store, reference: &str, content: &[u8]) {
    let mut refusals = Vec::new();
    while refusals.len() < 100 {
        match publish(store, reference, content).await {
            Ok(_) => return,
            Err(error) => refusals.push(error.to_string()),
        }
    }
    panic!("{reference}: {refusals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_sweeps_and_refreshes_at_the_same_time_lose_nothing() {
    let scratch = Scratch::new();
    scratch.store().await;
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|number| {
            let root = scratch.root();
            tokio::spawn(async move {
                let store = Store::open_or_create(&root).await.unwrap();
                let ring = ring(&store);
                signer(&ring).establish(&store).await.unwrap();
                let content = content(number);
                publish_at_last(&store, &format!("own{number}"), &content).await;
                publish_at_last(&store, &format!("shared:t{number}"), &content).await;
            })
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let (sweeper, refresher) = (
        sweeps(&scratch, done.clone()),
        refreshes(&scratch, done.clone()),
    );
    for publisher in publishers {
        publisher.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    sweeper.await.unwrap();
    refresher.await.unwrap();
    let store = Store::open(&scratch.root()).await.unwrap();
    let names = store.names().await.unwrap();
    assert_eq!(names.names.len(), usize::from(PUBLISHERS) + 1);
    let shared: ImageName = "shared".parse().unwrap();
    let shared = store.catalogue(&names, &shared).await.unwrap();
    assert_eq!(shared.versions.len(), usize::from(PUBLISHERS));
    for number in 0..PUBLISHERS {
        for reference in [format!("own{number}"), format!("shared:t{number}")] {
            let got = read_back(&scratch.root(), &reference).await;
            assert!(got == content(number), "{reference}");
        }
    }
}

/// Sweeps without a grace period, a bounded number of times: each may undo what publishers did
/// that have not committed.
fn sweeps(scratch: &Scratch, done: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    let root = scratch.root();
    tokio::spawn(async move {
        let store = Store::open(&root).await.unwrap();
        let ring = ring(&store);
        let config = GcConfig {
            grace: Duration::ZERO,
            mode: Mode::Sweep,
        };
        for _ in 0..20 {
            if done.load(Ordering::SeqCst) {
                break;
            }
            collect(&store, &signer(&ring), config).await.unwrap();
        }
    })
}

fn refreshes(scratch: &Scratch, done: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    let root = scratch.root();
    tokio::spawn(async move {
        let store = Store::open(&root).await.unwrap();
        let ring = ring(&store);
        while !done.load(Ordering::SeqCst) {
            let refresher = Signer {
                now: 1_700_000_001,
                ..signer(&ring)
            };
            refresher.refresh(&store).await.unwrap();
        }
    })
}
