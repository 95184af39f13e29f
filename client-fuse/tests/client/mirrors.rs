//! Several servers, some of them bad: who is asked, how often, and what a reader waits for; on a clock
//! that moves only while all wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client_fuse::disk::Disk;
use client_fuse::fetch::fetcher::Fetcher;
use client_fuse::fetch::mirrors::Mirrors;
use client_fuse::fetch::retry::RetryPolicy;
use client_fuse::fetch::{Part, Request};
use client_fuse::open::open;
use client_fuse::stats::Stats;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::source::{Fault, Faults, MemorySource};
use crate::stack::no_caches;
use crate::store::{Random, Store, mixed_disk};

/// 100 Mbit/s.
const FAST: u64 = 12_500_000;

const NEAR: Duration = Duration::from_millis(20);

/// Faults only for parts of packs, by how many of these were asked for before.
fn on_chunks(decide: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Faults {
    let asked = AtomicUsize::new(0);
    Arc::new(move |_, request: &Request| match request.part {
        Part::Range { .. } => decide(asked.fetch_add(1, Ordering::Relaxed)),
        Part::Whole => Fault::None,
    })
}

/// A disk over these servers, and what it counts. They are opened from `good`.
async fn mounted(
    good: &MemorySource,
    servers: &[(&str, MemorySource)],
) -> (Disk<MemorySource>, Arc<Stats>) {
    mounted_with(RetryPolicy::DEFAULT, good, servers).await
}

/// The same, with readers that wait as `policy` says.
async fn mounted_with(
    policy: RetryPolicy,
    good: &MemorySource,
    servers: &[(&str, MemorySource)],
) -> (Disk<MemorySource>, Arc<Stats>) {
    let opening = Fetcher::new(
        good.clone(),
        8,
        RetryPolicy::DEFAULT,
        no_caches(),
        Arc::default(),
    );
    let (base, reference) = ("http://a/".parse().unwrap(), "lab/debian:12".parse());
    let image = open(
        &Arc::new(opening),
        &base,
        &reference.unwrap(),
        &good.trust(),
    )
    .await
    .unwrap();
    let mut named = servers
        .iter()
        .map(|(name, source)| ((*name).to_owned(), source.clone()));
    let mirrors = Arc::new(Mirrors::of(named.next().unwrap(), named.collect()));
    let stats = Arc::new(Stats::default());
    let caches = no_caches();
    let fetcher = Fetcher::over(mirrors, 8, policy, Arc::clone(&caches), Arc::clone(&stats));
    let disk = Disk::new(
        image.table,
        Arc::new(fetcher),
        caches,
        &Handle::current(),
        None,
    );
    (disk, stats)
}

/// Reads blocks here and there, and compares them.
async fn read(disk: &Disk<MemorySource>, store: &Store, random: &mut Random, reads: usize) {
    for _ in 0..reads {
        let blocks = store.disk.len() as u64 / 4096;
        let offset = random.next() % blocks * 4096;
        let bytes = disk.read(offset, 16_384).await.unwrap();
        assert!(bytes == store.flat(offset, 16_384), "at {offset}");
    }
}

fn sent(stats: &Stats, name: &str) -> u64 {
    let all = stats.mirrors.all().iter();
    let bytes = all
        .filter(|mirror| mirror.name == name)
        .map(|mirror| mirror.bytes.count());
    bytes.sum()
}

fn asked(stats: &Stats, name: &str) -> u64 {
    let all = stats.mirrors.all().iter();
    let requests = all
        .filter(|mirror| mirror.name == name)
        .map(|mirror| mirror.requests.count());
    requests.sum()
}

/// Servers in this order, the best of which is `best`: after the first reads nine tenths of the bytes
/// and more are its own.
async fn the_best_serves(store: &Arc<Store>, servers: &[(&str, MemorySource)], best: &str) {
    let good = MemorySource::new(store);
    let (disk, stats) = mounted(&good, servers).await;
    let mut random = Random(3);
    read(&disk, store, &mut random, 150).await;
    let before: u64 = servers.iter().map(|(name, _)| sent(&stats, name)).sum();
    let best_before = sent(&stats, best);
    read(&disk, store, &mut random, 300).await;
    let after: u64 = servers.iter().map(|(name, _)| sent(&stats, name)).sum();
    let (all, its) = (after - before, sent(&stats, best) - best_before);
    assert!(its * 10 >= all * 9, "{best} sent {its} of {all} bytes");
    for (name, _) in servers {
        if *name == "corrupt" {
            assert!(asked(&stats, name) <= 3, "{} requests", asked(&stats, name));
        }
        if *name == "dead" {
            assert!(
                asked(&stats, name) <= 40,
                "{} requests",
                asked(&stats, name)
            );
        }
    }
    let faults = &stats.faults;
    let wasted = faults.twice_bytes.count() + faults.look_bytes.count();
    let fetched = stats.fetched.chunk_bytes.count();
    assert!(
        wasted * 50 <= fetched + 50 * (256 << 10),
        "{wasted} of {fetched} bytes came twice"
    );
    assert_eq!(stats.read_errors.count(), 0);
    assert_eq!(stats.duplicate_chunks.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_a_slow_a_corrupt_and_a_dead_mirror_the_slow_one_serves() {
    let store = Arc::new(Store::of(mixed_disk(6000, 0)));
    let slow = MemorySource::new(&store).at(Duration::from_millis(200), FAST / 10);
    let corrupt = MemorySource::faulty(&store, on_chunks(|_| Fault::Flip)).at(NEAR, FAST);
    let dead = MemorySource::faulty(&store, Arc::new(|_, _| Fault::Refuse)).at(NEAR, FAST);
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let all = [
            ("slow", slow.clone()),
            ("corrupt", corrupt.clone()),
            ("dead", dead.clone()),
        ];
        let servers = order.map(|number| all[number].clone());
        the_best_serves(&store, &servers, "slow").await;
    }
}

#[tokio::test(start_paused = true)]
async fn beside_a_slow_a_corrupt_and_a_dead_mirror_the_good_one_serves() {
    let store = Arc::new(Store::of(mixed_disk(6000, 0)));
    let slow = MemorySource::new(&store).at(NEAR, FAST / 50);
    let corrupt = MemorySource::faulty(&store, on_chunks(|_| Fault::Flip)).at(NEAR, FAST);
    let silent = MemorySource::faulty(&store, Arc::new(|_, _| Fault::Silent));
    let good = MemorySource::new(&store).at(NEAR, FAST);
    let servers = [
        ("slow", slow),
        ("corrupt", corrupt),
        ("dead", silent),
        ("good", good),
    ];
    the_best_serves(&store, &servers, "good").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_comes_back_and_is_better_serves_again() {
    let store = Arc::new(Store::of(mixed_disk(6000, 0)));
    // The first hundred answers to requests for chunks but the first ten are errors.
    let flaky = on_chunks(|n| match n {
        10..60 => Fault::Unavailable,
        _ => Fault::None,
    });
    let best = MemorySource::faulty(&store, flaky).at(NEAR, FAST);
    let other = MemorySource::new(&store).at(NEAR * 5, FAST);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted(&good, &[("best", best), ("other", other)]).await;
    let mut random = Random(5);
    read(&disk, &store, &mut random, 300).await;
    assert!(sent(&stats, "other") > 1 << 20, "it did not take over");
    assert!(
        asked(&stats, "best") < 60,
        "one that fails is asked rarely: {}",
        asked(&stats, "best")
    );
    // Looks at it become rare, but it is found to be back.
    while asked(&stats, "best") < 75 {
        read(&disk, &store, &mut random, 20).await;
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let before = sent(&stats, "other");
    read(&disk, &store, &mut random, 100).await;
    assert!(
        sent(&stats, "other") - before < 128 << 10,
        "the better one serves again"
    );
    assert_eq!(stats.faults.stalls.count(), 0, "no reader was kept waiting");
}

/// The longest that one of `reads` small reads took.
async fn longest(disk: &Disk<MemorySource>, store: &Store, reads: usize) -> Duration {
    let (mut random, mut longest) = (Random(9), Duration::ZERO);
    for _ in 0..reads {
        let began = Instant::now();
        read(disk, store, &mut random, 1).await;
        longest = longest.max(began.elapsed());
    }
    longest
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_waits_far_longer_than_usual_is_served_by_a_second_request() {
    let store = Arc::new(Store::of(mixed_disk(6000, 0)));
    // One request in a hundred takes a second longer.
    let rarely = || {
        on_chunks(|n| match n % 100 {
            99 => Fault::Late(Duration::from_secs(1)),
            _ => Fault::None,
        })
    };
    for n_mirrors in [1, 2] {
        let source = || MemorySource::faulty(&store, rarely()).at(NEAR, 0);
        let all = [("a", source()), ("b", source())];
        let good = MemorySource::new(&store);
        let (disk, stats) = mounted(&good, &all[..n_mirrors]).await;
        let longest = longest(&disk, &store, 1500).await;
        assert!(longest < NEAR * 8, "{n_mirrors} mirrors: {longest:?}");
        let faults = &stats.faults;
        let (hedges, requests) = (faults.hedges.count(), stats.requests.count());
        assert!(hedges >= 5, "{hedges} hedges");
        assert!(hedges * 100 <= requests * 3, "{hedges} of {requests}");
        let (twice, all_bytes) = (
            faults.twice_bytes.count(),
            stats.fetched.chunk_bytes.count(),
        );
        assert!(twice * 50 <= all_bytes, "{twice} of {all_bytes}");
        assert!(faults.hedge_bytes.count() > 0);
        assert_eq!(faults.rescues.count(), 0);
        assert_eq!(stats.duplicate_chunks.count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_goes_on_elsewhere_and_nothing_that_came_is_asked_again() {
    let store = Arc::new(Store::of(mixed_disk(3000, 0)));
    for n_mirrors in [1, 2] {
        let stops = on_chunks(|n| if n == 40 { Fault::Stall } else { Fault::None });
        let first = MemorySource::faulty(&store, stops).at(NEAR, 0);
        let second = MemorySource::new(&store).at(NEAR, 0);
        let good = MemorySource::new(&store);
        let all = [("a", first.clone()), ("b", second)];
        let (disk, stats) = mounted(&good, &all[..n_mirrors]).await;
        let began = Instant::now();
        for offset in (0..store.disk.len() as u64).step_by(128 << 10) {
            let bytes = disk.read(offset, 128 << 10).await.unwrap();
            assert!(bytes == store.flat(offset, 128 << 10), "at {offset}");
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        let faults = &stats.faults;
        assert_eq!(faults.rescues.count(), 1, "{n_mirrors} mirrors");
        assert_eq!(faults.stalls.count(), 1);
        let ms = faults.stalled_ms.count();
        assert!((1..3000).contains(&ms), "{ms} ms");
        assert_eq!(
            first.afresh(),
            2 - n_mirrors,
            "a new connection, or another mirror"
        );
        // At most one chunk was cut by the stop, and what lay behind it.
        assert!(faults.twice_bytes.count() < 256 << 10);
        assert_eq!(stats.duplicate_chunks.count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn readers_wait_little_for_a_server_that_dies_in_the_middle_of_its_answers() {
    let store = Arc::new(Store::of(mixed_disk(6000, 0)));
    let dies: Faults = Arc::new(|n, _| match n {
        0..80 => Fault::None,
        _ => Fault::Silent,
    });
    let first = MemorySource::faulty(&store, dies).at(NEAR, FAST);
    let second = MemorySource::new(&store).at(NEAR, FAST);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted(&good, &[("a", first), ("b", second)]).await;
    // Some of them still get what the server has sent when others wait already.
    let reader = |seed| {
        let (disk, store) = (&disk, &store);
        async move {
            let (mut random, mut longest) = (Random(seed), Duration::ZERO);
            for _ in 0..100 {
                let began = Instant::now();
                read(disk, store, &mut random, 1).await;
                longest = longest.max(began.elapsed());
            }
            longest
        }
    };
    let all = futures_util::future::join_all((1..5).map(reader)).await;
    let longest = all.into_iter().max().unwrap();
    assert!(longest < Duration::from_millis(2500), "{longest:?}");
    let faults = &stats.faults;
    // As many as there were readers, and a look at it.
    let rescues = faults.rescues.count();
    assert!((1..6).contains(&rescues), "{rescues}");
    assert!(sent(&stats, "b") > sent(&stats, "a"));
}

#[tokio::test(start_paused = true)]
async fn an_old_request_that_goes_on_wins_over_a_second_one_that_is_silent() {
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    let faults = on_chunks(|n| match n {
        2 => Fault::Late(Duration::from_secs(5)),
        3 => Fault::Silent,
        _ => Fault::None,
    });
    let source = MemorySource::faulty(&store, faults).at(NEAR, 0);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted(&good, &[("a", source)]).await;
    let began = Instant::now();
    read(&disk, &store, &mut Random(1), 60).await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(stats.faults.rescues.count(), 1);
    assert_eq!(stats.faults.stalls.count(), 1);
    assert_eq!(stats.faults.twice_bytes.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_when_to_come_back_is_left_alone_until_then() {
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    // Who waits for a minute asks once more just before it is over.
    for (told, least, most) in [(7, 7, 9), (3600, 57, 60)] {
        let faults = on_chunks(move |n| match n {
            0 => Fault::Wait(Duration::from_secs(told)),
            _ => Fault::None,
        });
        let source = MemorySource::faulty(&store, faults).at(NEAR, 0);
        let good = MemorySource::new(&store);
        let (disk, stats) = mounted(&good, &[("a", source)]).await;
        let began = Instant::now();
        let first = store.disk.iter().position(|byte| *byte != 0).unwrap() as u64;
        disk.read(first, 1).await.unwrap();
        let waited = began.elapsed().as_secs();
        assert!(
            (least..=most).contains(&waited),
            "told {told} s: {waited} s"
        );
        assert_eq!(stats.retries.count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn another_mirror_is_not_waited_for_because_one_says_to_come_back() {
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    let busy = on_chunks(|_| Fault::Wait(Duration::from_secs(30)));
    let busy = MemorySource::faulty(&store, busy).at(NEAR, 0);
    let other = MemorySource::new(&store).at(NEAR, 0);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted(&good, &[("a", busy), ("b", other)]).await;
    let began = Instant::now();
    read(&disk, &store, &mut Random(1), 30).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(stats.faults.stalls.count(), 0);
}

/// A disk whose only server fails like this from the first chunk on, and how long a reader of it waits.
async fn waited(
    policy: RetryPolicy,
    decide: impl Fn(usize) -> Fault + Send + Sync + 'static,
) -> (bool, Duration) {
    let store = Arc::new(Store::of(mixed_disk(300, 0)));
    let source = MemorySource::faulty(&store, on_chunks(decide)).at(NEAR, 0);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted_with(policy, &good, &[("a", source)]).await;
    let first = store.disk.iter().position(|byte| *byte != 0).unwrap() as u64;
    let began = Instant::now();
    let read = disk.read(first, 1).await;
    assert_eq!(stats.faults.stalls.count(), 1);
    (read.is_ok(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_until_the_deadline_and_for_ever_where_there_is_none() {
    let (plain, root) = (RetryPolicy::DEFAULT, RetryPolicy::until(None));
    // However it fails, and whatever is under way then.
    for fault in [
        Fault::Refuse,
        Fault::Unavailable,
        Fault::Silent,
        Fault::Stall,
    ] {
        let (is_read, waited_for) = waited(plain, move |_| fault).await;
        assert!(
            !is_read && waited_for >= Duration::from_secs(60),
            "{fault:?}"
        );
        assert!(
            waited_for < Duration::from_secs(61),
            "{fault:?}: {waited_for:?}"
        );
    }
    // What comes back just before is not too late.
    let began = Instant::now();
    let late = move |_| match began.elapsed().as_secs() {
        0..58 => Fault::Refuse,
        _ => Fault::None,
    };
    let (is_read, waited_for) = waited(plain, late).await;
    assert!(
        is_read && waited_for < Duration::from_secs(60),
        "{waited_for:?}"
    );
    let hour = |n| match n {
        0..1000 => Fault::Unavailable,
        _ => Fault::None,
    };
    let (is_read, waited_for) = waited(root, hour).await;
    assert!(is_read && waited_for > Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn what_comes_slowly_is_not_cut_off_at_the_deadline() {
    let store = Arc::new(Store::of(mixed_disk(2000, 0)));
    let source = MemorySource::new(&store).at(NEAR, 12_500);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted(&good, &[("a", source)]).await;
    let began = Instant::now();
    let bytes = disk.read(0, 4 << 20).await.unwrap();
    assert!(bytes == store.flat(0, 4 << 20));
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(90), "{waited:?}");
    assert_eq!(stats.retries.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_frame_that_had_not_begun_waits_for_one_deadline_too() {
    let store = Arc::new(Store::booting(mixed_disk(4000, 0), 3));
    let pack = store.boot_pack.unwrap();
    let head_bytes = pack.head.length;
    let faults: Faults = Arc::new(move |_, request: &Request| match &request.part {
        Part::Range { range, .. } if range.end > head_bytes => Fault::Silent,
        _ => Fault::None,
    });
    let source = MemorySource::faulty(&store, faults).at(NEAR, 0);
    let good = MemorySource::new(&store);
    let (disk, stats) = mounted(&good, &[("a", source)]).await;
    disk.prefetch(Some(pack), None);
    while stats.boot_pack.listed_chunks.count() == 0 {
        tokio::time::sleep(NEAR).await;
    }
    // What boots read last is in the last frame.
    let offset = store.boot_set.last().unwrap().first_block() * 4096;
    let began = Instant::now();
    assert!(disk.read(offset, 1).await.is_err());
    let waited = began.elapsed();
    let deadline = Duration::from_secs(60);
    assert!(
        waited >= deadline && waited < deadline + NEAR * 50,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_no_request_goes_on_and_all_slots_are_free() {
    let store = Arc::new(Store::of(mixed_disk(2000, 0)));
    let is_silent = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let silent = Arc::clone(&is_silent);
    let faults = on_chunks(move |_| match silent.load(Ordering::Relaxed) {
        true => Fault::Silent,
        false => Fault::None,
    });
    let source = MemorySource::faulty(&store, faults).at(NEAR, 0);
    let good = MemorySource::new(&store);
    let (disk, _) = mounted(&good, &[("a", source)]).await;
    let disk = Arc::new(disk);
    let began = Instant::now();
    // More than there are slots.
    let readers: Vec<_> = (0..40)
        .map(|n| {
            let disk = Arc::clone(&disk);
            tokio::spawn(async move { disk.read(n * 200_000, 1).await.is_ok() })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(62),
            "{:?}",
            began.elapsed()
        );
    }
    assert!(began.elapsed() >= Duration::from_secs(60));
    is_silent.store(false, Ordering::Relaxed);
    let began = Instant::now();
    read(&disk, &store, &mut Random(1), 30).await;
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_third_server_is_asked_when_the_second_refuses_and_the_first_is_silent() {
    let store = Arc::new(Store::of(mixed_disk(3000, 0)));
    let dies = on_chunks(|n| if n < 40 { Fault::None } else { Fault::Silent });
    let first = MemorySource::faulty(&store, dies).at(NEAR, FAST);
    let refuses = MemorySource::faulty(&store, Arc::new(|_, _| Fault::Refuse));
    let third = MemorySource::new(&store).at(NEAR, FAST);
    let good = MemorySource::new(&store);
    let servers = [("a", first), ("b", refuses), ("c", third)];
    let (disk, stats) = mounted(&good, &servers).await;
    let (mut random, mut longest) = (Random(5), Duration::ZERO);
    for _ in 0..100 {
        let began = Instant::now();
        read(&disk, &store, &mut random, 1).await;
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    assert!(sent(&stats, "c") > sent(&stats, "a"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_ask_again_does_so_when_others_are_answered() {
    let store = Arc::new(Store::of(mixed_disk(3000, 0)));
    // Waits of up to ten minutes.
    let slow = RetryPolicy {
        deadline: None,
        first: Duration::from_secs(600),
        last: Duration::from_secs(600),
    };
    let faults = on_chunks(|n| match n {
        0 => Fault::Unavailable,
        _ => Fault::None,
    });
    let source = MemorySource::faulty(&store, faults).at(NEAR, FAST);
    let good = MemorySource::new(&store);
    let (disk, _) = mounted_with(slow, &good, &[("a", source)]).await;
    let began = Instant::now();
    let waits = async {
        let bytes = disk.read(0, 4096).await.unwrap();
        assert!(bytes == store.flat(0, 4096));
        began.elapsed()
    };
    let other = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let bytes = disk.read(8 << 20, 1 << 20).await.unwrap();
        assert!(bytes == store.flat(8 << 20, 1 << 20));
    };
    let (waited, ()) = tokio::join!(waits, other);
    assert!(waited < Duration::from_secs(3), "{waited:?}");
}
