//! What a reader sees when the server fails: the right bytes, later, or an error; never others.

use std::sync::Arc;

use client_fuse::fetch::{Freshness, Part, Request};

use crate::counts::OPENING;
use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{Setup, Stack, start};
use crate::store::{Store, mixed_disk};

fn store() -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(600, 0)))
}

/// Faults only for parts of packs.
fn on_chunks(decide: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Faults {
    Arc::new(move |number, request: &Request| match request.part {
        Part::Range { .. } => decide(number),
        Part::Whole => Fault::None,
    })
}

async fn faulty(store: &Arc<Store>, faults: Faults) -> (MemorySource, Stack) {
    let source = MemorySource::faulty(store, faults);
    let stack = start(&source, Setup::DEFAULT).await;
    (source, stack)
}

#[tokio::test]
async fn every_fault_that_ends_is_survived() {
    use Fault::{Break, Endless, Flip, Missing, Refuse, TooShort, Truncate, Unavailable};
    for fault in [
        Refuse,
        Unavailable,
        Missing,
        TooShort,
        Break,
        Truncate,
        Flip,
        Endless,
    ] {
        let store = store();
        // Every other request fails, beginning with the first for chunks, after that for the page.
        let (_, stack) = faulty(
            &store,
            on_chunks(move |n| {
                if (n - OPENING) % 2 == 1 {
                    fault
                } else {
                    Fault::None
                }
            }),
        )
        .await;
        let bytes = stack
            .disk
            .read(0, 2 << 20)
            .await
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(&bytes[..], store.flat(0, 2 << 20), "{fault:?}");
    }
}

#[tokio::test]
async fn an_index_that_gives_a_chunk_two_lengths_is_an_error_where_it_is_wrong() {
    const AGAIN: u64 = 64 << 20;
    // Something that compresses: a chunk that fills its length on the server cannot be said to be shorter.
    let bytes: Vec<u8> = (0..64 * 512_u64)
        .flat_map(|number| (number * number % 1009 + 1).to_be_bytes())
        .collect();
    let store = Arc::new(Store::contradicting(AGAIN + 100 * 4096, &bytes, 0));
    for wrong_first in [true, false] {
        let source = MemorySource::new(&store);
        let stack = start(&source, Setup::DEFAULT).await;
        if wrong_first {
            assert!(stack.disk.read(AGAIN, 4096).await.is_err());
        }
        let read = stack.disk.read(0, 4096).await.unwrap();
        assert_eq!(read, bytes[..4096]);
        // Once the chunk is in a cache, too.
        assert!(stack.disk.read(AGAIN, 4096).await.is_err());
        let read = stack.disk.read(0, 64 * 4096).await.unwrap();
        assert_eq!(read, bytes);
    }
}

#[tokio::test]
async fn every_fault_that_lasts_is_an_error() {
    use Fault::{Break, Flip, Missing, Refuse, Truncate, Unavailable};
    for fault in [Refuse, Unavailable, Missing, Break, Truncate, Flip] {
        let store = store();
        let (_, stack) = faulty(&store, on_chunks(move |_| fault)).await;
        // One block: with half of a body at a time, a long read gets on in the end.
        let offset = store
            .disk
            .chunks(4096)
            .position(|block| block[0] != 0)
            .unwrap() as u64
            * 4096;
        assert!(stack.disk.read(offset, 1).await.is_err(), "{fault:?}");
        assert_eq!(stack.stats.read_errors.count(), 1);
    }
}

#[tokio::test]
async fn what_came_before_a_body_went_wrong_is_used() {
    let store = store();
    let (source, stack) = faulty(&store, on_chunks(|_| Fault::Endless)).await;
    assert_eq!(
        &stack.disk.read(0, 1 << 20).await.unwrap()[..],
        store.flat(0, 1 << 20)
    );
    assert_eq!(
        source
            .requests()
            .iter()
            .filter(|request| request.part != Part::Whole)
            .count(),
        1
    );
}

#[tokio::test]
async fn damaged_chunks_are_asked_for_again_past_every_cache() {
    let store = store();
    let (source, stack) = faulty(
        &store,
        on_chunks(|n| {
            if n == OPENING + 1 {
                Fault::Flip
            } else {
                Fault::None
            }
        }),
    )
    .await;
    stack.disk.read(0, 1 << 20).await.unwrap();
    assert_eq!(stack.stats.verify_failures.count(), 1);
    let ranges: Vec<_> = source
        .requests()
        .into_iter()
        .filter(|request| request.part != Part::Whole)
        .collect();
    assert_eq!(ranges[0].freshness, Freshness::Any);
    assert_eq!(ranges[1].freshness, Freshness::Revalidate);
    let length = |request: &Request| match &request.part {
        Part::Range { range, .. } => range.end - range.start,
        Part::Whole => 0,
    };
    assert!(
        length(&ranges[1]) < length(&ranges[0]),
        "only what was damaged is asked for again"
    );
}

#[tokio::test]
async fn a_damaged_page_is_an_error_and_heals() {
    let store = store();
    let page_is_bad = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let bad = Arc::clone(&page_is_bad);
    let faults: Faults = Arc::new(move |number, request| {
        let flip = number >= OPENING
            && request.part == Part::Whole
            && bad.load(std::sync::atomic::Ordering::Relaxed);
        if flip { Fault::Flip } else { Fault::None }
    });
    let (_, stack) = faulty(&store, faults).await;
    assert!(stack.disk.read(0, 4096).await.is_err());
    page_is_bad.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        &stack.disk.read(0, 4096).await.unwrap()[..],
        store.flat(0, 4096)
    );
}

#[tokio::test]
async fn a_reader_that_leaves_takes_nothing_from_the_others() {
    let store = store();
    let (source, stack) = faulty(&store, Arc::new(|_, _| Fault::None)).await;
    let (first, second) = (Arc::clone(&stack.disk), Arc::clone(&stack.disk));
    let first = tokio::spawn(async move { first.read(0, 1 << 20).await });
    let second = tokio::spawn(async move { second.read(0, 1 << 20).await });
    while source.requests().len() < OPENING + 2 {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert_eq!(&second.await.unwrap().unwrap()[..], store.flat(0, 1 << 20));
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
}

#[tokio::test]
async fn a_panic_in_one_task_is_at_most_the_error_of_one_reader() {
    for which in OPENING..OPENING + 3 {
        let store = store();
        let panics = move |n| {
            if n == which {
                Fault::Panic
            } else {
                Fault::None
            }
        };
        let (_, stack) = faulty(&store, Arc::new(move |n, _| panics(n))).await;
        let readers: Vec<_> = (0..8)
            .map(|part| {
                let disk = Arc::clone(&stack.disk);
                tokio::spawn(async move { disk.read(part * (200 << 10), 150 << 10).await })
            })
            .collect();
        for (part, reader) in (0..).zip(readers) {
            if let Ok(Ok(bytes)) = reader.await {
                assert_eq!(&bytes[..], store.flat(part * (200 << 10), 150 << 10));
            }
        }
        // Nothing is locked, nothing waits for the task that is no more.
        let bytes = stack.disk.read(0, 2 << 20).await.unwrap();
        assert_eq!(&bytes[..], store.flat(0, 2 << 20), "request {which}");
    }
}
