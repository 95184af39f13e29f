//! A reader that is not ours: fio checks what fio wrote, while workers die.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BLOCK, Supervised, WAYS};
use crate::mount::{can_mount, has};
use crate::server::{Manner, serve};
use crate::store::Store;

/// Blocks of the disk: 16 MB.
const BLOCKS: usize = 4000;

/// What both runs of fio have in common: each block says where it belongs and what it sums up to.
fn fio(file: &Path) -> Command {
    let mut command = Command::new("fio");
    command
        .args(["--name=disk", "--bs=4k", "--verify=crc32c", "--randseed=9"])
        .args(["--verify_fatal=1", "--verify_state_save=0"])
        .arg("--allow_file_create=0")
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--size={}", BLOCKS * BLOCK))
        .stdin(Stdio::null());
    command
}

/// A disk on which each block is fio's.
fn written(directory: &Path) -> Vec<u8> {
    let file = directory.join("written");
    let length = (BLOCKS * BLOCK) as u64;
    File::create(&file).unwrap().set_len(length).unwrap();
    let wrote = fio(&file).args(["--rw=write", "--do_verify=0"]).output();
    let wrote = wrote.unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
    fs::read(&file).unwrap()
}

/// Waits until fio has done more with the disk. One that has read and verified all of it begins again;
/// it ends before that at an error only, and that is one of the test.
fn goes_on(fio: &mut Child, begin: impl Fn() -> Child, supervised: &Supervised) {
    let reads = || {
        let numbers: serde_json::Value = serde_json::from_str(&supervised.stats()).unwrap();
        numbers["reads"].as_u64().unwrap()
    };
    // A new worker counts from 0.
    while reads() < 50 {
        if let Some(ended) = fio.try_wait().unwrap() {
            assert!(ended.success(), "{ended:?} {}", supervised.log());
            *fio = begin();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn fio_sees_no_error_through(kills: usize, way: &str) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::of(written(directory.path())));
    let supervised = Supervised::new(&store, &serve(&store, Manner::Right), &[way]);
    let log = directory.path().join("log");
    let begin = || {
        fio(&supervised.mounted.disk())
            .args(["--rw=randread", "--direct=1", "--ioengine=libaio"])
            .args(["--iodepth=16", "--readonly"])
            .stdout(File::create(&log).unwrap())
            .stderr(File::create(directory.path().join("errors")).unwrap())
            .spawn()
            .unwrap()
    };
    let mut fio = begin();
    for _ in 0..kills {
        goes_on(&mut fio, begin, &supervised);
        supervised.kill_worker();
    }
    goes_on(&mut fio, begin, &supervised);
    kill(Pid::from_raw(fio.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    fio.wait().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("err= 0"), "{said}");
    supervised.wait_for_restarts(kills);
    supervised.end();
}

#[test]
fn fio_sees_fifty_deaths_of_the_worker_as_pauses() {
    if !can_mount() || !has("fio") {
        return;
    }
    for way in WAYS {
        fio_sees_no_error_through(50, way);
    }
}
