//! What reading costs: requests and bytes, exactly.

use std::sync::Arc;

use client_fuse::fetch::Part;
use image_format::REGION_BYTES;

use crate::source::MemorySource;
use crate::stack::{Setup, start};
use crate::store::{Store, mixed_disk};

/// Next root, timestamp, hint; snapshot, targets, catalogue, manifest, region table.
pub(crate) const OPENING: usize = 8;

fn store(blocks: usize, odd: usize) -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(blocks, odd)))
}

/// The first offset of the disk that is no hole.
fn first_data(store: &Store) -> u64 {
    store
        .disk
        .chunks(4096)
        .position(|block| block.iter().any(|byte| *byte != 0))
        .unwrap() as u64
        * 4096
}

#[tokio::test]
async fn a_cold_read_of_one_block_fetches_one_page_and_one_chunk() {
    let store = store(2000, 0);
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    assert_eq!(source.requests().len(), OPENING);
    let offset = first_data(&store);
    let bytes = stack.disk.read(offset, 4096).await.unwrap();
    assert_eq!(&bytes[..], store.flat(offset, 4096));
    assert_eq!(source.requests().len(), OPENING + 2);
    assert_eq!(stack.stats.chunks.count(), 1);
    assert_eq!(stack.stats.ahead_chunks.count(), 0);
}

#[tokio::test]
async fn a_read_of_a_hole_fetches_no_chunk() {
    let mut disk = vec![0; 1 << 20];
    disk[0] = 1;
    let store = Arc::new(Store::of(disk));
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    assert!(
        stack
            .disk
            .read(8192, 65_536)
            .await
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(source.requests().len(), OPENING + 1);
}

#[tokio::test]
async fn an_all_zero_disk_needs_nothing_but_its_table() {
    let store = Arc::new(Store::of(vec![0; (65 << 20) + 123]));
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    assert_eq!(
        stack.disk.read((65 << 20) + 100, 4096).await.unwrap().len(),
        23
    );
    assert_eq!(source.requests().len(), OPENING);
}

#[tokio::test]
async fn one_read_of_neighbouring_chunks_is_one_request() {
    let store = store(1000, 0);
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    let bytes = stack.disk.read(0, 1 << 20).await.unwrap();
    assert_eq!(&bytes[..], store.flat(0, 1 << 20));
    assert!(
        stack.stats.chunks.count() > 8,
        "{} chunks",
        stack.stats.chunks.count()
    );
    assert_eq!(source.requests().len(), OPENING + 2);
}

#[tokio::test]
async fn a_second_read_fetches_nothing() {
    let store = store(1000, 0);
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    stack.disk.read(4097, 100_000).await.unwrap();
    let before = source.requests().len();
    assert_eq!(
        &stack.disk.read(5000, 70_000).await.unwrap()[..],
        store.flat(5000, 70_000)
    );
    assert_eq!(source.requests().len(), before);
}

#[tokio::test]
async fn reading_in_sequence_takes_far_fewer_requests_than_chunks() {
    let store = store(16_384 + 500, 1234);
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    let mut offset = 0;
    while offset < store.disk.len() as u64 {
        let bytes = stack.disk.read(offset, 128 << 10).await.unwrap();
        assert_eq!(&bytes[..], store.flat(offset, 128 << 10));
        offset += bytes.len() as u64;
    }
    let requests = source.requests().len() as u64;
    assert!(store.n_chunks > 1000, "{} chunks", store.n_chunks);
    assert!(
        requests * 18 < store.n_chunks,
        "{requests} requests for {} chunks",
        store.n_chunks
    );
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
    let fetched = stack.stats.fetched.chunk_bytes.count();
    let packed: u64 = source
        .requests()
        .iter()
        .filter_map(|request| match &request.part {
            Part::Range { range, .. } => Some(range.end - range.start),
            Part::Whole => None,
        })
        .sum();
    assert_eq!(fetched, packed);
}

#[tokio::test]
async fn what_lies_behind_a_large_hole_is_fetched_while_its_reader_is_in_it() {
    const MIB: u64 = 1 << 20;
    let mut first = mixed_disk(5 * 1024 + 512, 0);
    let last = first.split_off(5 * 1024 * 4096);
    let regions = [(0, &first[..]), (3, &last[..])];
    let store = Arc::new(Store::sparse(3 * 64 * MIB + last.len() as u64, &regions));
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    for offset in (0..24 * MIB).step_by(1 << 20) {
        stack.disk.read(offset, 1 << 20).await.unwrap();
    }
    while stack.stats.chunks.count() < store.n_chunks {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let before = source.requests().len();
    for offset in (24 * MIB..stack.disk.length()).step_by(1 << 20) {
        let bytes = stack.disk.read(offset, 1 << 20).await.unwrap();
        let at = offset.checked_sub(3 * 64 * MIB);
        let right = at.map(|at| &last[usize::try_from(at).unwrap()..][..bytes.len()]);
        assert!(right.map_or_else(|| bytes.iter().all(|it| *it == 0), |right| bytes == right));
    }
    assert_eq!(source.requests().len(), before);
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_cold_readers_fetch_no_chunk_twice() {
    let store = store(3000, 77);
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    let readers: Vec<_> = (0..24)
        .map(|_| {
            let (disk, store) = (Arc::clone(&stack.disk), Arc::clone(&store));
            tokio::spawn(async move {
                for offset in (0..store.disk.len() as u64).step_by(300_000) {
                    let bytes = disk.read(offset, 300_000).await.unwrap();
                    assert_eq!(&bytes[..], store.flat(offset, 300_000));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
    assert!(stack.stats.chunks.count() <= store.n_chunks);
}

#[tokio::test]
async fn a_sparse_disk_of_1_tib_opens_with_little() {
    let data = mixed_disk(500, 0);
    let store = Arc::new(Store::sparse(
        1 << 40,
        &[(0, &data), (9000, &data), (16_383, &data)],
    ));
    let source = MemorySource::new(&store);
    let stack = start(&source, Setup::DEFAULT).await;
    assert_eq!(stack.disk.length(), 1 << 40);
    let fetched = &stack.stats.fetched;
    assert_eq!(source.requests().len(), OPENING);
    assert!(fetched.metadata_bytes.count() + fetched.table_bytes.count() < 100_000);
    let bytes = stack.disk.read(9000 * REGION_BYTES, 4096).await.unwrap();
    assert_eq!(bytes[..], data[..4096]);
    assert_eq!(
        source.requests().len(),
        OPENING + 3,
        "a leaf of the table, a page, a chunk"
    );
    assert!(
        stack
            .disk
            .read(5000 * REGION_BYTES, 4096)
            .await
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[tokio::test]
async fn reads_end_where_the_disk_ends() {
    let store = store(20, 1000);
    let stack = start(&MemorySource::new(&store), Setup::DEFAULT).await;
    let length = stack.disk.length();
    assert_eq!(length, 20 * 4096 + 1000);
    assert_eq!(
        &stack.disk.read(length - 10, 4096).await.unwrap()[..],
        store.flat(length - 10, 10)
    );
    assert!(stack.disk.read(length, 1).await.unwrap().is_empty());
    assert!(
        stack
            .disk
            .read(u64::MAX, u32::MAX)
            .await
            .unwrap()
            .is_empty()
    );
    for at in (0..length).step_by(997) {
        assert_eq!(
            &stack.disk.read(at, 1).await.unwrap()[..],
            store.flat(at, 1)
        );
    }
}
