//! Reads that are answered without a task: the bytes of the disk, or none at all.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use client_fuse::disk::near::Near;

use crate::source::MemorySource;
use crate::stack::{Setup, Stack, start};
use crate::store::{Random, Store, mixed_disk};

/// What is at hand of a read.
fn near(stack: &Stack, offset: u64, len: u32, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    Some(match stack.disk.read_near(offset, len, buffer)? {
        Near::Buffer(within) => buffer[within].to_vec(),
        Near::Bytes(bytes) => bytes.to_vec(),
    })
}

#[tokio::test]
async fn what_is_at_hand_is_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::of(mixed_disk(1500, 789)));
    let source = MemorySource::new(&store);
    let length = store.disk.len() as u64;
    // A memory cache for some of it, and one for nothing.
    for memory_bytes in [2 << 20, 0] {
        let setup = Setup {
            memory_bytes,
            cache: Some(directory.path()),
            ..Setup::DEFAULT
        };
        let stack = start(&source, setup).await;
        let (mut random, mut buffer, mut at_hand) = (Random(7), Vec::new(), 0);
        for round in 0..1500 {
            let offset = random.next() % (length + 5000);
            let len = u32::try_from(1 + random.next() % 300_000).unwrap();
            let expected = store.flat(offset, len);
            match near(&stack, offset, len, &mut buffer) {
                Some(bytes) => {
                    assert!(bytes == expected, "round {round}: {len} at {offset}");
                    at_hand += 1;
                }
                None => assert!(stack.disk.read(offset, len).await.unwrap() == expected),
            }
        }
        assert!(at_hand > 500, "{at_hand} of 1500 with {memory_bytes}");
        assert_eq!(stack.stats.reads.count(), 1500);
        assert_eq!(stack.stats.duplicate_chunks.count(), 0);
    }
}

#[tokio::test]
async fn nothing_is_at_hand_that_was_not_read_in_this_run() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::of(mixed_disk(400, 0)));
    let source = MemorySource::new(&store);
    let setup = Setup {
        memory_bytes: 0,
        cache: Some(directory.path()),
        ..Setup::DEFAULT
    };
    let len = u32::try_from(store.disk.len()).unwrap();
    let mut buffer = Vec::new();
    let first = start(&source, setup).await;
    assert_eq!(near(&first, 0, len, &mut buffer), None);
    assert!(first.disk.read(0, len).await.unwrap() == store.disk);
    // Chunks are written to the file behind their readers' backs; none of them has an all-zero block.
    let has_data = |block: &&[u8]| block.iter().any(|byte| *byte != 0);
    let data = store.disk.chunks(4096).filter(has_data).count() as u64 * 4096;
    while first.stats.disk_fill_bytes.count() < data {
        tokio::task::yield_now().await;
    }
    drop(first);
    let second = start(&source, setup).await;
    assert_eq!(near(&second, 0, len, &mut buffer), None);
    assert!(second.disk.read(0, len).await.unwrap() == store.disk);
    let chunk = store.disk.iter().position(|byte| *byte != 0).unwrap() as u64;
    let (hits, misses) = (&second.stats.disk_hits, &second.stats.misses);
    assert_eq!((hits.count(), misses.count()), (store.n_chunks, 0));
    assert_eq!(
        near(&second, chunk, 100, &mut buffer).as_deref(),
        Some(store.flat(chunk, 100))
    );
    // What changes in the file is not at hand any more, and never returned.
    let file = directory
        .path()
        .join("disks-v1")
        .join(format!("{}.raw", store.disk_digest));
    let file = File::options().write(true).open(file).unwrap();
    let wrong = store.disk[usize::try_from(chunk).unwrap()] ^ 8;
    file.write_all_at(&[wrong], chunk).unwrap();
    assert_eq!(near(&second, chunk, 100, &mut buffer), None);
    assert!(second.disk.read(chunk, 100).await.unwrap() == store.flat(chunk, 100));
    assert_eq!(second.stats.disk_rejects.count(), 1);
}

#[tokio::test]
async fn nothing_is_at_hand_of_what_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, trace) = (
        directory.path().join("cache"),
        directory.path().join("trace"),
    );
    let store = Arc::new(Store::of(mixed_disk(100, 0)));
    let source = MemorySource::new(&store);
    let setup = Setup {
        cache: Some(&cache),
        record: Some(&trace),
        ..Setup::DEFAULT
    };
    let stack = start(&source, setup).await;
    let len = u32::try_from(store.disk.len()).unwrap();
    assert!(stack.disk.read(0, len).await.unwrap() == store.disk);
    assert_eq!(near(&stack, 0, len, &mut Vec::new()), None);
}
