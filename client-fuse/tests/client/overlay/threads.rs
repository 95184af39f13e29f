//! Many at once: no reader sees half a write of a block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{directory, open, store};
use crate::store::Random;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_block_is_never_half_of_one_write_and_half_of_another() {
    let directory = directory();
    let path = directory.path().join("overlay");
    let writable = Arc::new(open(&store(), &path).await.unwrap());
    writable.write(0, &[1; 64 * 4096]).await;
    let tasks = (0..8_u64).map(|number| {
        let writable = Arc::clone(&writable);
        tokio::spawn(async move {
            let mut random = Random(number);
            for _ in 0..300 {
                let block = random.next() % 60;
                let blocks = 1 + usize::try_from(random.next() % 4).unwrap();
                let (offset, len) = (block * 4096, blocks * 4096);
                match number {
                    0..4 => {
                        let fill = random.next().to_le_bytes()[0];
                        writable.write(offset, &vec![fill; len]).await;
                    }
                    4 => writable.disk.sync().await.unwrap(),
                    5 => writable.disk.discard(offset, len as u64).await.unwrap(),
                    _ => {
                        let len = u32::try_from(len).unwrap();
                        let found: Bytes = writable.disk.read(offset, len).await.unwrap();
                        let whole = |block: &[u8]| block.iter().all(|byte| *byte == block[0]);
                        assert!(found.chunks(4096).all(whole), "a block is torn");
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let now = writable.read_all().await;
    writable.disk.sync().await.unwrap();
    drop(writable);
    let writable = open(&store(), &path).await.unwrap();
    assert!(writable.read_all().await == now);
}

/// A sync may begin at any moment, also while a block that it writes down as discarded is being written:
/// what it gives back afterwards must not be that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sync_that_begins_while_a_block_is_written_loses_nothing_of_it() {
    let directory = directory();
    let path = directory.path().join("overlay");
    let writable = Arc::new(open(&store(), &path).await.unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let syncing = [(); 2].map(|()| {
        let (writable, is_over) = (Arc::clone(&writable), Arc::clone(&is_over));
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                writable.disk.sync().await.unwrap();
            }
        })
    });
    let writing = (0..4_u64).map(|block| {
        let writable = Arc::clone(&writable);
        tokio::spawn(async move {
            for fill in (0..=255).cycle().take(3000) {
                writable.disk.discard(block * 4096, 4096).await.unwrap();
                writable.write(block * 4096, &[fill; 4096]).await;
                let found: Bytes = writable.disk.read(block * 4096, 4096).await.unwrap();
                assert!(found.iter().all(|byte| *byte == fill), "another write");
            }
        })
    });
    for task in writing.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    for task in syncing {
        task.await.unwrap();
    }
}
