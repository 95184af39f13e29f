//! What a recording holds: what readers touched first, and nothing that was fetched ahead of them.

use std::sync::Arc;

use image_format::trace::Trace;

use crate::source::MemorySource;
use crate::stack::{Setup, start};
use crate::store::{Store, mixed_disk};

#[tokio::test]
async fn a_trace_lists_what_was_read_and_not_what_was_fetched_ahead() {
    let store = Arc::new(Store::of(mixed_disk(4000, 0)));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace");
    let setup = Setup {
        record: Some(&path),
        ..Setup::DEFAULT
    };
    let stack = start(&MemorySource::new(&store), setup).await;
    let reads: Vec<u64> = (0..16).map(|step| (8 << 20) + step * 65_536).collect();
    for offset in reads.iter().copied().chain([4096]) {
        stack.disk.read(offset, 65_536).await.unwrap();
    }
    assert!(stack.stats.ahead_chunks.count() > 0);
    drop(stack);
    let trace = Trace::decode(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(trace.header.disk, store.disk_digest);
    assert_eq!(trace.header.image.to_string(), "lab/debian:12@1");
    assert!(trace.touches.len() > 4);
    for touch in &trace.touches {
        let (start, end) = (
            touch.block * 4096,
            (touch.block + u64::from(touch.blocks)) * 4096,
        );
        let read = reads
            .iter()
            .chain(&[4096])
            .any(|at| start < at + 65_536 && end > *at);
        assert!(read, "block {} was never read", touch.block);
    }
    let last = trace.touches.last().unwrap();
    assert!(last.block < 20, "the order is that of reading");
}
