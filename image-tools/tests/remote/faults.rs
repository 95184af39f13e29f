//! Publishing to a server that fails, at each request and in each way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Method;
use image_store::publication::PublishError;
use image_tools::remote::protocol::COMMIT_PATH;
use image_tools::remote::upload::Landed;

use crate::server::Fault;
use crate::{AT_ONCE, Bench, ONCE, files, puts};

/// Publishes with a server that breaks from request `first` on, then again with one that works.
/// Returns whether the first attempt failed.
async fn broken_from(first: usize, fault: Fault) -> bool {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 1);
    bench
        .server
        .fail(move |number, _, _| (number >= first).then_some(fault));
    let broken = bench.publish("work", ONCE, &image, "debian").await;
    let before = bench.server.asked();
    bench.server.fail(|_, _, _| None);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    bench.assert_served("debian", &image).await;
    let mut stored = BTreeMap::<_, u32>::new();
    let after = bench.server.asked();
    let both = [puts(&before), puts(&after)].concat();
    for put in both.iter().filter(|put| put.status == 201) {
        *stored.entry(&put.path).or_default() += 1;
    }
    assert!(
        stored.values().all(|times| *times == 1),
        "{fault:?} from {first}: {stored:?}"
    );
    // What the server had taken before it broke is not sent again.
    for put in puts(&after) {
        let again = puts(&before)
            .iter()
            .any(|old| old.path == put.path && old.status == 201);
        assert!(!again, "{fault:?} from {first}: {put:?}");
    }
    broken.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_broke_at_any_request_is_resumed() {
    for fault in [Fault::HangUp(100_000), Fault::LoseAnswer] {
        let mut first = 1;
        while broken_from(first, fault).await {
            first += 1;
            assert!(first < 60, "a publish has fewer requests");
        }
        assert!(first > 15, "a publish has more requests than {first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fault_at_any_request_is_not_noticed() {
    for fault in [
        Fault::HangUp(100),
        Fault::LoseAnswer,
        Fault::Status(503),
        Fault::CutAnswer(10),
    ] {
        let bench = Bench::new().await;
        let image = bench.image("disk", 1, 2);
        // Each request fails when it is made for the first time.
        let failed = std::sync::Mutex::new(std::collections::HashSet::new());
        bench.server.fail(move |_, method, path| {
            let request = (method.clone(), path.to_owned());
            failed.lock().unwrap().insert(request).then_some(fault)
        });
        let (_, uploaded) = bench
            .publish("work", AT_ONCE, &image, "debian")
            .await
            .unwrap();
        assert!(uploaded.committed.is_some());
        bench.assert_served("debian", &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_a_commit() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 2);
    bench
        .server
        .fail(|_, _, path| (path == COMMIT_PATH).then_some(Fault::LoseAnswer));
    let (published, uploaded) = bench
        .publish("work", AT_ONCE, &image, "debian")
        .await
        .unwrap();
    assert_eq!(published.reference.to_string(), "debian:latest@1");
    assert_eq!(uploaded.committed, Some(Landed::Unconfirmed));
    bench.assert_served("debian", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_slower_signs_again_and_nothing_is_lost() {
    let bench = std::sync::Arc::new(Bench::new().await);
    let (one, two) = (bench.image("one", 1, 2), bench.image("two", 2, 2));
    bench
        .publish("work", ONCE, &one, "debian:old")
        .await
        .unwrap();
    bench.server.asked();
    let (faster, image) = (bench.clone(), one.clone());
    let handle = tokio::runtime::Handle::current();
    bench.server.before_commit(move || {
        let publish = async {
            faster
                .publish("elsewhere", ONCE, &image, "debian:fast")
                .await
                .unwrap()
        };
        tokio::task::block_in_place(|| handle.block_on(publish));
    });
    let (published, uploaded) = bench
        .publish("work", ONCE, &two, "debian:slow")
        .await
        .unwrap();
    assert_eq!(published.reference.to_string(), "debian:slow@2");
    assert_eq!(uploaded.committed, Some(Landed::Whole));
    for (reference, image) in [
        ("debian:old", &one),
        ("debian:fast", &one),
        ("debian:slow", &two),
    ] {
        bench.assert_served(reference, image).await;
    }
    let asked = bench.server.asked();
    let packs = puts(&asked)
        .iter()
        .filter(|put| put.bytes > 1 << 20)
        .count();
    assert_eq!(packs, 1, "a pack was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_always_conflicts_is_given_up() {
    let bench = Bench::new().await;
    let (image, next) = (bench.image("disk", 1, 1), bench.image("next", 2, 1));
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    bench
        .server
        .fail(|_, _, path| (path == COMMIT_PATH).then_some(Fault::Status(409)));
    let error = bench
        .publish("work", ONCE, &next, "debian")
        .await
        .unwrap_err();
    bench.assert_served("debian", &image).await;
    assert!(
        format!("{error:#}").contains("another publisher was faster"),
        "{error:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_pass_is_said_at_once() {
    for (status, says) in [
        (401, "--token-file"),
        (403, "scope `publish`"),
        (404, "--upload"),
        (405, "--upload"),
        (413, "no file as long"),
        (422, "as the test wants it"),
        (507, "Make room"),
    ] {
        let bench = Bench::new().await;
        let image = bench.image("disk", 1, 1);
        let tried = std::sync::Arc::new(AtomicUsize::new(0));
        let counter = tried.clone();
        bench.server.fail(move |_, method, _| {
            (*method == Method::PUT).then(|| {
                counter.fetch_add(1, Ordering::Relaxed);
                Fault::Status(status)
            })
        });
        let error = bench
            .publish("work", AT_ONCE, &image, "debian")
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains(says), "{status}: {error:#}");
        // As many as are sent at once, none a second time.
        assert!(tried.load(Ordering::Relaxed) <= 4, "{status}");
        assert_eq!(bench.served_bytes("targets"), 0);
    }
}

/// A sweep between the look for what the image needs and the commit.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_swept_before_the_commit_is_told_as_gone() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 1);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    let objects = bench.path("served/objects");
    bench.server.fail(move |_, method, path| {
        let is_commit = *method == Method::POST && path.ends_with(COMMIT_PATH);
        if is_commit {
            for pack in files(&objects).into_keys() {
                std::fs::remove_file(pack).unwrap();
            }
        }
        is_commit.then_some(Fault::Status(422))
    });
    let error = bench.publish("other", ONCE, &image, "copy").await;
    let error = error.unwrap_err();
    let gone = error.downcast_ref::<PublishError>();
    assert!(matches!(gone, Some(PublishError::Gone { .. })), "{error:#}");
    // Where nothing is gone, it is what the server said.
    bench.server.fail(|_, method, path| {
        let is_commit = *method == Method::POST && path.ends_with(COMMIT_PATH);
        is_commit.then_some(Fault::Status(422))
    });
    let error = bench.publish("third", ONCE, &image, "copy").await;
    let error = error.unwrap_err();
    assert!(format!("{error:#}").contains("refuses"), "{error:#}");
}

/// The pack is here, so the disk needs nothing; but not where machines read it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_a_broken_repair_left_here_gets_to_the_server() {
    let bench = Bench::new().await;
    let image = bench.image("disk", 1, 2);
    bench.publish("work", ONCE, &image, "debian").await.unwrap();
    let objects = files(&bench.path("served").join("objects"));
    let (pack, _) = objects.iter().max_by_key(|(_, length)| **length).unwrap();
    let place = pack.strip_prefix(bench.path("served")).unwrap();
    let here = bench.path("work").join(place);
    std::fs::create_dir_all(here.parent().unwrap()).unwrap();
    std::fs::rename(pack, &here).unwrap();
    for reference in ["debian", "other"] {
        let (_, uploaded) = bench
            .publish("work", ONCE, &image, reference)
            .await
            .unwrap();
        assert_eq!(
            uploaded.bytes > 1 << 20,
            reference == "debian",
            "{uploaded:?}"
        );
        bench.assert_served(reference, &image).await;
    }
}
