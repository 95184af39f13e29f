//! A worker that hangs and does not die.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Gatehouse, Supervised, WAYS, read_at_random, store, wait_for};
use crate::mount::can_mount;
use crate::server::{Manner, serve};

/// Time enough for a worker on a busy machine to give a sign of life, and not for whoever runs the tests.
const SOON: &str = "--silence-max-ms=3000";

#[test]
fn a_worker_that_is_stopped_is_killed_and_followed_and_readers_see_a_pause() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let store = store(1500);
        let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[way, SOON]);
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let path = supervised.mounted.disk();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_at_random(&path, &store.disk, 7, &stop, &done));
            let goes_on = || {
                let before = done.load(Ordering::Relaxed);
                wait_for(|| {
                    let enough = done.load(Ordering::Relaxed) > before + 20;
                    (enough || reader.is_finished()).then_some(())
                });
            };
            goes_on();
            let worker = wait_for(|| supervised.workers().last().copied());
            kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
            // Not by itself: only because it hangs.
            wait_for(|| (!supervised.workers().contains(&worker)).then_some(()));
            goes_on();
            stop.store(true, Ordering::Relaxed);
            let outcome = reader.join().unwrap();
            outcome.unwrap_or_else(|error| panic!("{way}: {error}: {}", supervised.log()));
        });
        supervised.wait_for_restarts(1);
        let log = supervised.end();
        for line in [
            "the worker hangs: it gives no sign of life",
            "the worker ended; readers wait",
        ] {
            assert_eq!(log.matches(line).count(), 1, "{way}: {log}");
        }
    }
}

#[test]
fn a_worker_that_waits_for_a_silent_server_does_not_hang() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let store = store(600);
        let gatehouse = Gatehouse::before(&serve(&store, Manner::Right));
        let supervised = Supervised::new(&store, &gatehouse.address, &[way, SOON]);
        gatehouse.set_shut(true);
        let path = supervised.mounted.disk();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| fs::read(&path).is_ok_and(|bytes| bytes == store.disk));
            wait_for(|| (gatehouse.waited() > 0).then_some(()));
            let worker = supervised.workers();
            // Far longer than what would be too long.
            std::thread::sleep(std::time::Duration::from_secs(8));
            assert_eq!(supervised.workers(), worker, "{way}: {}", supervised.log());
            gatehouse.set_shut(false);
            assert!(reader.join().unwrap(), "{way}");
        });
        let log = supervised.end();
        assert!(!log.contains("hangs"), "{way}: {log}");
    }
}

#[test]
fn time_in_which_all_of_a_mount_was_stopped_does_not_count() {
    if !can_mount() {
        return;
    }
    let store = store(300);
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[WAYS[0], SOON]);
    let workers = supervised.workers();
    let all = || workers.iter().copied().chain([supervised.pid()]);
    for pid in all() {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_secs(6));
    // The supervisor first: it finds no sign of life, and has to give the worker time.
    supervised.signal(Signal::SIGCONT);
    std::thread::sleep(std::time::Duration::from_secs(1));
    for pid in all() {
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    }
    assert!(fs::read(supervised.mounted.disk()).unwrap() == store.disk);
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(supervised.workers(), workers);
    let log = supervised.end();
    assert!(!log.contains("hangs"), "{log}");
}
