//! What a boot pack costs and saves, exactly; and that a damaged one harms nobody.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_fuse::cache::desk;
use client_fuse::disk::pin::PinError;
use client_fuse::fetch::{Part, Request};
use image_format::boot_pack::Head;
use image_format::frame::Encoder;

use crate::counts::OPENING;
use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{Setup, Stack, start};
use crate::store::{Store, mixed_disk};

/// A disk of 16 MiB whose boot reads a third of its chunks.
fn store() -> Arc<Store> {
    Arc::new(Store::booting(mixed_disk(4000, 0), 3))
}

fn head(store: &Store) -> Head {
    let pack = store.boot_pack.unwrap();
    let bytes = &store.files[&pack.object.digest.object_path()];
    let length = usize::try_from(pack.head.length).unwrap();
    pack.open(&bytes[..length], store.disk.len() as u64)
        .unwrap()
}

/// Starts the boot pack and waits for its head.
async fn start_booting(source: &MemorySource, store: &Store, setup: Setup<'_>) -> Stack {
    let stack = start(source, setup).await;
    stack.prefetch(store.boot_pack);
    let stats = &stack.stats.boot_pack;
    while stats.listed_chunks.count() == 0 && stats.damaged.count() == 0 {
        tokio::task::yield_now().await;
    }
    stack
}

/// Reads what a boot reads, in its order.
async fn boot(stack: &Stack, store: &Store) {
    for chunk in &store.boot_set {
        let len = u32::try_from(chunk.entry.plain_len()).unwrap();
        let offset = chunk.first_block() * 4096;
        let bytes = stack.disk.read(offset, len).await.unwrap();
        assert!(bytes == store.flat(offset, len), "block {}", offset / 4096);
    }
}

async fn read_all(stack: &Stack, store: &Store) {
    for offset in (0..store.disk.len() as u64).step_by(700_000) {
        let bytes = stack.disk.read(offset, 700_000).await.unwrap();
        assert!(bytes == store.flat(offset, 700_000), "at {offset}");
    }
}

/// Waits until nothing is fetched ahead any more.
async fn wait_for_frames(stack: &Stack, frames: usize) {
    let stats = &stack.stats.boot_pack;
    while stats.frames.count() + stats.frames_by_ranges.count() < frames as u64 {
        tokio::task::yield_now().await;
    }
}

fn ranges_of<'a>(requests: &'a [Request], path: &str) -> Vec<&'a Request> {
    let of_pack = |request: &&Request| request.path == path && request.part != Part::Whole;
    requests.iter().filter(of_pack).collect()
}

#[tokio::test]
async fn a_cold_boot_costs_the_boot_pack_and_nothing_else() {
    let store = store();
    let without = MemorySource::new(&store);
    let plain = start(&without, Setup::DEFAULT).await;
    boot(&plain, &store).await;
    let source = MemorySource::new(&store);
    let stack = start_booting(&source, &store, Setup::DEFAULT).await;
    boot(&stack, &store).await;
    let (stats, pack) = (&stack.stats, store.boot_pack.unwrap());
    let frames = head(&store).frames().len();
    // A head, the frames, and the one page of the one region.
    assert_eq!(source.requests().len(), OPENING + 1 + frames + 1);
    assert!(without.requests().len() > 5 * source.requests().len());
    assert_eq!(stats.fetched.boot_pack_bytes.count(), pack.object.length);
    assert_eq!(stats.fetched.chunk_bytes.count(), 0);
    assert_eq!(stats.chunks.count(), store.boot_set.len() as u64);
    assert_eq!(stats.duplicate_chunks.count(), 0);
    assert_eq!(stats.boot_pack.repeated_chunks.count(), 0);
    assert_eq!(stats.boot_pack.damaged.count(), 0);
}

#[tokio::test]
async fn read_ahead_follows_no_reader_of_what_the_boot_pack_lists() {
    let store = Arc::new(Store::booting(mixed_disk(4000, 0), 1));
    let listed = store.boot_set.iter().map(|chunk| chunk.entry.plain_len());
    let listed: usize = listed.sum();
    let stack = start_booting(&MemorySource::new(&store), &store, Setup::DEFAULT).await;
    for offset in (0..store.disk.len() as u64).step_by(65_536) {
        let bytes = stack.disk.read(offset, 65_536).await.unwrap();
        assert!(bytes == store.flat(offset, 65_536), "at {offset}");
    }
    assert_eq!(stack.stats.ahead_chunks.count(), 0);
    assert_eq!(stack.stats.chunks.count(), store.boot_set.len() as u64);
    assert!(listed > 8 << 20);
}

#[tokio::test]
async fn who_pins_a_disk_has_the_boot_pack_bring_what_it_lists() {
    let (store, directory) = (store(), tempfile::tempdir().unwrap());
    let source = MemorySource::new(&store);
    let setup = Setup {
        cache: Some(directory.path()),
        ..Setup::DEFAULT
    };
    let stack = start_booting(&source, &store, setup).await;
    let length = store.disk.len() as u64;
    stack.disk.fill(length, |_| {}).await.unwrap();
    let (stats, pack) = (&stack.stats, store.boot_pack.unwrap());
    let framed = stats.boot_pack.framed_chunks.count();
    assert_eq!(framed, store.boot_set.len() as u64);
    assert_eq!(stats.fetched.boot_pack_bytes.count(), pack.object.length);
    assert_eq!(stats.chunks.count(), store.n_chunks);
    assert_eq!(stats.duplicate_chunks.count(), 0);
    let before = source.requests().len();
    read_all(&stack, &store).await;
    assert_eq!(source.requests().len(), before);
}

/// The rest is what a machine will want that has this disk in its cache and no server.
#[tokio::test]
async fn a_chunk_that_is_damaged_on_the_server_keeps_nobody_from_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::of(mixed_disk(4000, 0));
    let packs = store
        .files
        .iter()
        .filter(|(_, bytes)| bytes.len() > 1 << 20);
    let pack = packs.map(|(path, _)| path.clone()).min().unwrap();
    let mut bytes = store.files[&pack].to_vec();
    bytes[500_000] ^= 1;
    store.files.insert(pack, bytes.into());
    let store = Arc::new(store);
    let source = MemorySource::new(&store);
    let setup = Setup {
        cache: Some(directory.path()),
        ..Setup::DEFAULT
    };
    let stack = start(&source, setup).await;
    let length = store.disk.len() as u64;
    let error = stack.disk.fill(length, |_| {}).await.unwrap_err();
    assert!(matches!(error, PinError::Read(_)), "{error}");
    let unkept = stack.disk.check_kept(|_| {}).await.unwrap();
    assert!((1..200_000).contains(&unkept), "{unkept}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_fetched_to_pin_a_disk() {
    const BOUND: u64 = 44 << 20;
    let stores = [8000, 6100].map(|blocks| Arc::new(Store::of(mixed_disk(blocks, 5))));
    let [store, other] = stores;
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup {
        cache: Some(directory.path()),
        cache_max: Some(BOUND),
        memory_bytes: 0,
        ..Setup::DEFAULT
    };
    let mounted = start(&MemorySource::new(&other), setup).await;
    let length = other.disk.len() as u64;
    mounted.disk.fill(length, |_| {}).await.unwrap();
    let stack = start(&MemorySource::new(&store), setup).await;
    let length = store.disk.len() as u64;
    let error = stack.disk.fill(length, |_| {}).await.unwrap_err();
    assert!(
        matches!(error, PinError::Incomplete { .. }),
        "the other disk is mounted: {error}"
    );
    let fetched = stack.stats.chunks.count();
    // Half of it has room, and 4 MiB may come in vain each time it is looked for.
    assert!(
        fetched > 0 && fetched * 2 <= store.n_chunks * 3,
        "{fetched}"
    );
    drop(mounted);
    stack.disk.fill(length, |_| {}).await.unwrap();
    read_all(&stack, &store).await;
}

#[tokio::test]
async fn what_waits_to_be_written_for_guests_has_a_bound() {
    let store = Arc::new(Store::booting(mixed_disk(20_000, 0), 2));
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup {
        cache: Some(directory.path()),
        ..Setup::FAR
    };
    // All that may write does something else.
    let (told, ends) = std::sync::mpsc::channel::<()>();
    let ends = Arc::new(Mutex::new(ends));
    let hold = |_| {
        let ends = Arc::clone(&ends);
        desk::start(move || ends.lock().unwrap().recv().is_err())
    };
    let held: Vec<_> = (0..desk::THREADS / 2).map(hold).collect();
    let stack = Arc::new(start_booting(&MemorySource::new(&store), &store, setup).await);
    let reads = store.boot_set.iter().map(|chunk| {
        let (disk, offset) = (Arc::clone(&stack.disk), chunk.first_block() * 4096);
        tokio::spawn(async move { disk.read(offset, 1).await.map(drop) })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap().unwrap();
    }
    drop(told);
    for held in held {
        held.end().await.unwrap();
    }
    let filled = &stack.stats.disk_fill_bytes;
    let mut before = u64::MAX;
    while std::mem::replace(&mut before, filled.count()) != filled.count() || before == 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let all: u64 = store
        .boot_set
        .iter()
        .map(|it| it.entry.plain_len() as u64)
        .sum();
    // Eight frames of the stream, eight of guests, and one more that was being given away.
    assert!(
        all > 30 << 20 && (1 << 20..=17 << 20).contains(&before),
        "{before} of {all}"
    );
}

#[tokio::test]
async fn what_was_fetched_in_vain_is_counted() {
    let store = store();
    let stack = start_booting(&MemorySource::new(&store), &store, Setup::DEFAULT).await;
    wait_for_frames(&stack, head(&store).frames().len()).await;
    let bytes: u64 = store
        .boot_set
        .iter()
        .map(|chunk| chunk.entry.plain_len() as u64)
        .sum();
    assert_eq!(stack.stats.ahead_bytes.count(), bytes);
    assert_eq!(stack.stats.ahead_used_bytes.count(), 0);
    boot(&stack, &store).await;
    assert_eq!(stack.stats.ahead_used_bytes.count(), bytes);
}

#[tokio::test]
async fn a_guest_moves_its_frame_to_the_front() {
    let store = Arc::new(Store::booting(mixed_disk(12_000, 0), 2));
    // So far away that all frames in their order take longer than a busy machine keeps the guest from asking.
    let source = MemorySource::new(&store).at(Duration::from_millis(250), 0);
    let stack = start_booting(&source, &store, Setup::FAR).await;
    let (head, last) = (head(&store), store.boot_set.last().unwrap());
    let offset = last.first_block() * 4096;
    let bytes = stack.disk.read(offset, 4096).await.unwrap();
    assert_eq!(&bytes[..], store.flat(offset, 4096));
    let path = store.boot_pack.unwrap().object.digest.object_path();
    let requests = source.requests();
    let frames = ranges_of(&requests, &path);
    // In order it would be the very last.
    assert!(
        frames.len() < head.frames().len(),
        "{} of {} frames before the last, for which a guest waits",
        frames.len(),
        head.frames().len()
    );
    boot(&stack, &store).await;
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
    assert_eq!(stack.stats.boot_pack.repeated_chunks.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_beside_the_stream_fetch_no_chunk_twice() {
    let store = store();
    let source = MemorySource::new(&store);
    let stack = start_booting(&source, &store, Setup::DEFAULT).await;
    let readers: Vec<_> = (0..16_u64)
        .map(|number| {
            let (disk, store) = (Arc::clone(&stack.disk), Arc::clone(&store));
            tokio::spawn(async move {
                let length = store.disk.len() as u64;
                for step in 0..length / 300_000 {
                    let offset = (step * 7 + number * 3) * 300_000 % length;
                    let bytes = disk.read(offset, 300_000).await.unwrap();
                    assert!(bytes == store.flat(offset, 300_000), "at {offset}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
    assert_eq!(stack.stats.boot_pack.repeated_chunks.count(), 0);
    assert!(stack.stats.chunks.count() <= store.n_chunks);
}

#[tokio::test]
async fn the_stream_pauses_while_the_memory_cache_has_no_room() {
    let store = store();
    let setup = Setup {
        memory_bytes: 5 << 20,
        ..Setup::DEFAULT
    };
    let stack = start_booting(&MemorySource::new(&store), &store, setup).await;
    wait_for_frames(&stack, 2).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let ahead = stack.stats.ahead_bytes.count();
    assert!(ahead <= 5 << 19, "{ahead} bytes ahead of any reader");
    boot(&stack, &store).await;
    assert!(stack.stats.ahead_bytes.count() > ahead);
    assert_eq!(stack.stats.duplicate_chunks.count(), 0);
    assert_eq!(stack.stats.fetched.chunk_bytes.count(), 0);
}

#[tokio::test]
async fn a_boot_pack_that_is_kept_serves_every_later_boot_without_a_server() {
    let (store, directory) = (store(), tempfile::tempdir().unwrap());
    let pack = store.boot_pack.unwrap();
    for cache in [None, Some(directory.path())] {
        let setup = Setup {
            // Much less than a boot reads.
            memory_bytes: 1 << 20,
            frames_bytes: pack.object.length,
            cache,
            ..Setup::DEFAULT
        };
        let source = MemorySource::new(&store);
        let stack = start_booting(&source, &store, setup).await;
        wait_for_frames(&stack, head(&store).frames().len()).await;
        while cache.is_some()
            && stack.stats.disk_fill_bytes.count() < stack.stats.ahead_bytes.count()
        {
            tokio::task::yield_now().await;
        }
        boot(&stack, &store).await;
        let stats = &stack.stats.boot_pack;
        let kept = pack.object.length - pack.head.length;
        assert_eq!(stats.kept_bytes.count(), kept);
        let asked = source.requests().len();
        boot(&stack, &store).await;
        // Where there is a disk cache, and it is not full, it has what memory let go of.
        assert_eq!(stats.unpacked_chunks.count() > 0, cache.is_none());
        assert_eq!(source.requests().len(), asked);
        assert_eq!(stack.stats.fetched.chunk_bytes.count(), 0);
        assert_eq!(stack.stats.chunks.count(), store.boot_set.len() as u64);
    }
}

#[tokio::test]
async fn frames_that_came_otherwise_are_fetched_in_the_end_to_be_kept() {
    let store = store();
    let pack = store.boot_pack.unwrap();
    let path = pack.object.digest.object_path();
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refused);
    let faults: Faults = Arc::new(move |_, request| match &request.part {
        Part::Range { range, .. } if request.path == path && range.start >= pack.head.length => {
            // Each frame is asked for twice before ordinary packs serve.
            match counted.fetch_add(1, Ordering::Relaxed) {
                0..12 => Fault::Unavailable,
                _ => Fault::None,
            }
        }
        _ => Fault::None,
    });
    let source = MemorySource::faulty(&store, faults);
    let setup = Setup {
        memory_bytes: 1 << 20,
        frames_bytes: pack.object.length,
        ..Setup::FAR
    };
    let stack = start_booting(&source, &store, setup).await;
    boot(&stack, &store).await;
    let stats = &stack.stats.boot_pack;
    while stats.kept_bytes.count() < pack.object.length - pack.head.length {
        tokio::task::yield_now().await;
    }
    assert!(stats.frames_by_ranges.count() > 0 && refused.load(Ordering::Relaxed) > 12);
    let asked = source.requests().len();
    boot(&stack, &store).await;
    assert_eq!(source.requests().len(), asked);
}

#[tokio::test]
async fn a_boot_pack_that_is_too_long_is_not_kept() {
    let store = store();
    let setup = Setup {
        frames_bytes: store.boot_pack.unwrap().object.length - 1,
        ..Setup::DEFAULT
    };
    let stack = start_booting(&MemorySource::new(&store), &store, setup).await;
    boot(&stack, &store).await;
    assert_eq!(stack.stats.boot_pack.kept_bytes.count(), 0);
}

#[tokio::test]
async fn a_second_boot_fetches_no_frame() {
    let store = store();
    let cache = tempfile::tempdir().unwrap();
    let setup = Setup {
        cache: Some(cache.path()),
        ..Setup::DEFAULT
    };
    let first = start_booting(&MemorySource::new(&store), &store, setup).await;
    boot(&first, &store).await;
    while first.stats.disk_fill_bytes.count() < first.stats.ahead_bytes.count() {
        tokio::task::yield_now().await;
    }
    drop(first);
    let source = MemorySource::new(&store);
    let second = start_booting(&source, &store, setup).await;
    boot(&second, &store).await;
    assert_eq!(second.stats.boot_pack.frames.count(), 0);
    assert_eq!(second.stats.chunks.count(), 0);
    let fetched = second.stats.fetched.boot_pack_bytes.count();
    assert_eq!(fetched, 0, "the head is kept too");
}

#[tokio::test]
async fn a_damaged_boot_pack_harms_nobody() {
    use Fault::{
        Break, Endless, Flip, Missing, NoRanges, Refuse, Truncate, Unavailable, WrongRange,
    };
    let store = store();
    let path = store.boot_pack.unwrap().object.digest.object_path();
    for fault in [
        Flip,
        Truncate,
        Break,
        Endless,
        Missing,
        NoRanges,
        WrongRange,
        Refuse,
        Unavailable,
    ] {
        // The head, the first frame, all frames.
        for harmed in [0..1, 1..2, 1..u64::MAX] {
            let (head_bytes, pack) = (store.boot_pack.unwrap().head.length, path.clone());
            let first = head(&store).frames()[0].stored.clone();
            let wanted = harmed.clone();
            let faults: Faults = Arc::new(move |_, request| match &request.part {
                Part::Range { range, .. } if request.path == pack => {
                    let number = if range.start < head_bytes {
                        0
                    } else if range.start < first.end {
                        1
                    } else {
                        2
                    };
                    if wanted.contains(&number) {
                        fault
                    } else {
                        Fault::None
                    }
                }
                _ => Fault::None,
            });
            let source = MemorySource::faulty(&store, faults);
            let stack = start_booting(&source, &store, Setup::DEFAULT).await;
            boot(&stack, &store).await;
            read_all(&stack, &store).await;
            let stats = &stack.stats;
            assert_eq!(stats.read_errors.count(), 0, "{fault:?} {harmed:?}");
            assert_eq!(stats.duplicate_chunks.count(), 0, "{fault:?} {harmed:?}");
            let noticed =
                stats.boot_pack.damaged.count() + stats.boot_pack.frames_by_ranges.count();
            assert!(noticed > 0, "{fault:?} {harmed:?}");
        }
    }
}

#[tokio::test]
async fn a_boot_pack_with_other_bytes_harms_nobody() {
    let honest = store();
    let pack = honest.boot_pack.unwrap();
    let path = pack.object.digest.object_path();
    let good = honest.files[&path].to_vec();
    let other = Store::booting(mixed_disk(3999, 0), 2);
    let other = other.files[&other.boot_pack.unwrap().object.digest.object_path()].to_vec();
    let head_bytes = usize::try_from(pack.head.length).unwrap();
    let mut foreign = other.clone();
    foreign.resize(good.len(), 0);
    let mut foreign_frames = good[..head_bytes].to_vec();
    foreign_frames
        .extend_from_slice(&other[other.len() - (good.len() - head_bytes).min(other.len())..]);
    foreign_frames.resize(good.len(), 7);
    let mut bomb = good.clone();
    let zeros = Encoder::new(19)
        .unwrap()
        .encode(&vec![0; 64 << 20])
        .unwrap();
    bomb[head_bytes..head_bytes + zeros.len()].copy_from_slice(&zeros);
    for (what, bytes) in [
        ("foreign", foreign),
        ("frames", foreign_frames),
        ("bomb", bomb),
    ] {
        let mut bad = (*honest).clone();
        assert_eq!(bytes.len(), good.len());
        bad.files.insert(path.clone(), bytes.into());
        let stack =
            start_booting(&MemorySource::new(&Arc::new(bad)), &honest, Setup::DEFAULT).await;
        boot(&stack, &honest).await;
        read_all(&stack, &honest).await;
        assert_eq!(stack.stats.read_errors.count(), 0, "{what}");
        assert!(stack.stats.boot_pack.damaged.count() > 0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_is_waited_for_once() {
    let store = store();
    let pack = store.boot_pack.unwrap().object.digest.object_path();
    let faults: Faults = Arc::new(move |_, request| match request.path == pack {
        true => Fault::Unavailable,
        false => Fault::None,
    });
    let source = MemorySource::faulty(&store, faults);
    let stack = start(&source, Setup::FAR).await;
    stack.prefetch(store.boot_pack);
    let began = tokio::time::Instant::now();
    boot(&stack, &store).await;
    assert!(store.boot_set.len() > 50);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_frame_whose_connection_breaks_says_nothing_about_the_others() {
    let store = store();
    let path = store.boot_pack.unwrap().object.digest.object_path();
    let (first, frames) = {
        let head = head(&store);
        (head.frames()[0].stored.clone(), head.frames().len())
    };
    let faults: Faults = Arc::new(move |_, request| match &request.part {
        Part::Range { range, .. } if request.path == path && range.start == first.start => {
            Fault::Break
        }
        _ => Fault::None,
    });
    let stack = start_booting(
        &MemorySource::faulty(&store, faults),
        &store,
        Setup::DEFAULT,
    )
    .await;
    boot(&stack, &store).await;
    wait_for_frames(&stack, frames).await;
    let stats = &stack.stats.boot_pack;
    assert!(frames > 2, "{frames} frames");
    assert_eq!(stats.frames.count(), frames as u64 - 1);
    assert_eq!(stats.frames_by_ranges.count(), 1);
    assert_eq!(stats.damaged.count(), 0);
}
