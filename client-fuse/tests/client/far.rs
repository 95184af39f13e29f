//! What a server far away costs: round trips and bytes, on a clock that moves only while all wait.

use std::sync::Arc;
use std::time::Duration;

use client_fuse::fetch::{Part, Request};
use image_format::REGION_BYTES;
use tokio::time::Instant;

use crate::counts::OPENING;
use crate::source::MemorySource;
use crate::stack::{Setup, Stack, start};
use crate::store::{Random, Store, mixed_disk};

const TRIP: Duration = Duration::from_millis(50);

async fn far(store: &Arc<Store>) -> (MemorySource, Stack) {
    let source = MemorySource::far(store, TRIP);
    let stack = start(&source, Setup::FAR).await;
    (source, stack)
}

/// The round trips, one behind the other, that reading these blocks takes.
async fn trips(stack: &Stack, store: &Store, blocks: impl Iterator<Item = u64>) -> u128 {
    let began = Instant::now();
    for block in blocks {
        let bytes = stack.disk.read(block * 4096, 4096).await.unwrap();
        assert!(bytes == store.flat(block * 4096, 4096), "block {block}");
    }
    began.elapsed().as_millis() / TRIP.as_millis()
}

#[tokio::test(start_paused = true)]
async fn a_miss_brings_its_neighbours_from_far_away() {
    let store = Arc::new(Store::of(mixed_disk(4000, 0)));
    let (source, stack) = far(&store).await;
    let before = source.requests().len();
    // Backwards, which no read-ahead follows: 400 blocks, of a stretch that lies across three.
    let blocks = (1000..1400).rev();
    let trips = trips(&stack, &store, blocks).await;
    assert!(trips <= 2 + 7, "{trips} round trips");
    assert!(source.requests().len() - before <= 24);
    let ahead = &stack.stats.ahead;
    assert!(ahead.neighbour_used_bytes.count() * 2 > ahead.neighbour_bytes.count());
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_random_reader_far_away_gets_little_more_than_it_reads() {
    let store = Arc::new(Store::of(mixed_disk(6000, 0)));
    let (_, stack) = far(&store).await;
    let mut random = Random(7);
    let blocks: Vec<u64> = (0..150).map(|_| random.next() % 6000).collect();
    trips(&stack, &store, blocks.into_iter()).await;
    let ahead = stack.stats.ahead_bytes.count();
    assert!(ahead < 32 << 20, "{ahead} bytes beside what was read");
    assert_eq!(stack.stats.ahead.stream_bytes.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_index_of_a_small_disk_is_here_when_it_is_needed() {
    let data = mixed_disk(200, 0);
    let regions = [0, 1, 2].map(|region| (region, &data[region * 40_960..]));
    let store = Arc::new(Store::sparse(3 * REGION_BYTES, &regions));
    let (source, stack) = far(&store).await;
    stack.prefetch(None);
    let began = Instant::now();
    for (region, data) in regions {
        let offset = region as u64 * REGION_BYTES;
        assert_eq!(
            stack.disk.read(offset, 4096).await.unwrap()[..],
            data[..4096]
        );
    }
    let waited = began.elapsed().as_millis() / TRIP.as_millis();
    assert!(waited <= 4, "{waited} round trips for three chunks");
    let whole = |request: &Request| request.part == Part::Whole;
    assert_eq!(
        source.requests().into_iter().filter(whole).count(),
        OPENING + 3
    );
}

#[tokio::test(start_paused = true)]
async fn who_reads_before_the_head_of_the_boot_pack_is_here_fetches_nothing_twice() {
    let store = Arc::new(Store::booting(mixed_disk(4000, 0), 3));
    let (_, stack) = far(&store).await;
    stack.prefetch(store.boot_pack);
    let readers: Vec<_> = (0..4_usize)
        .map(|number| {
            let (disk, store) = (Arc::clone(&stack.disk), Arc::clone(&store));
            tokio::spawn(async move {
                for chunk in store.boot_set.iter().skip(number).step_by(4) {
                    let len = u32::try_from(chunk.entry.plain_len()).unwrap();
                    let offset = chunk.first_block() * 4096;
                    assert!(disk.read(offset, len).await.unwrap() == store.flat(offset, len));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let stats = &stack.stats;
    assert_eq!(stats.boot_pack.repeated_chunks.count(), 0);
    assert_eq!(stats.duplicate_chunks.count(), 0);
    assert_eq!(
        stats.fetched.chunk_bytes.count(),
        0,
        "all of it came in frames"
    );
}

/// A head that takes longer than readers wait: some of them go elsewhere, and few chunks come twice.
#[tokio::test(start_paused = true)]
async fn a_late_head_lets_few_chunks_come_twice() {
    let store = Arc::new(Store::booting(mixed_disk(4000, 0), 1));
    let source = MemorySource::far(&store, Duration::from_millis(700));
    let stack = start(&source, Setup::FAR).await;
    stack.prefetch(store.boot_pack);
    for chunk in &store.boot_set {
        let offset = chunk.first_block() * 4096;
        stack.disk.read(offset, 4096).await.unwrap();
    }
    let boot = &stack.stats.boot_pack;
    let (repeated, listed) = (boot.repeated_chunks.count(), boot.listed_chunks.count());
    assert!(
        repeated * 50 <= listed,
        "{repeated} of {listed} chunks came twice"
    );
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
}
