//! The cache directory as processes see it: filled, shared, killed, looked after.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::server::{Manner, serve};
use crate::store::{Random, Store, mixed_disk};

/// A store behind HTTP, and a directory for all that its machines keep.
struct Site {
    store: Arc<Store>,
    base: String,
    directory: tempfile::TempDir,
}

impl Site {
    fn new(blocks: usize) -> Self {
        let store = Arc::new(Store::of(mixed_disk(blocks, 789)));
        let base = serve(&store, Manner::Right);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("root.json"), store.first_root()).unwrap();
        Self {
            store,
            base,
            directory,
        }
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn fetch_into(&self, cache: &Path, extra: &[&str]) -> Command {
        let mut command = program();
        command
            .arg("fetch")
            .arg("--root")
            .arg(self.directory.path().join("root.json"))
            .args(["--no-state", &self.base, "lab/debian:12", "--cache"])
            .arg(cache)
            .args(extra)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn fetch(&self, extra: &[&str]) -> Command {
        self.fetch_into(&self.cache(), extra)
    }

    fn raw(&self) -> PathBuf {
        let file = format!("disks-v1/{}.raw", self.store.disk_digest);
        self.cache().join(file)
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
    for name in ["CIRCULAR_CACHE", "CIRCULAR_CACHE_SIZE", "CIRCULAR_STATE"] {
        command.env_remove(name);
    }
    command
}

fn care(cache: &Path, words: &[&str]) -> Output {
    let mut command = program();
    command.arg("cache").args(words).arg("--cache").arg(cache);
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// How many chunks `cache verify` finds right, wrong, and beyond its judgement.
fn verify(cache: &Path) -> (u64, u64, u64) {
    let found = json(&care(cache, &["verify", "--json"]));
    let sum = |field: &str| {
        let disks = found.as_array().unwrap().iter();
        disks.map(|disk| disk[field].as_u64().unwrap()).sum()
    };
    (sum("right"), sum("wrong"), sum("unknown_bytes"))
}

/// What all files below `directory` occupy. Any of them may go meanwhile.
fn occupied(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => occupied(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

/// The same, while nobody makes room: what goes from one file and comes into another is not counted twice.
fn occupied_at_once(directory: &Path) -> u64 {
    let lock = loop {
        match fs::File::open(directory.join("disks-v1/lock")) {
            Ok(lock) => break lock,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    lock.lock().unwrap();
    occupied(directory)
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn assert_ok(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
fn a_fetched_image_is_whole_and_fetched_once() {
    let site = Site::new(1500);
    let output = site.fetch(&[]).output().unwrap();
    assert_ok(&output);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("lab/debian:12@1: all of "));
    assert_eq!(verify(&site.cache()), (site.store.n_chunks, 0, 0));
    let bytes = fs::read(site.raw()).unwrap();
    let disk = &site.store.disk;
    assert!(bytes[..disk.len()] == disk[..], "the file is the disk");
    let again = site.fetch(&["--deadline", "1"]).output().unwrap();
    assert_ok(&again);
}

#[test]
fn what_is_fetched_again_is_read_back_and_what_is_wrong_mended() {
    let site = Site::new(1500);
    assert_ok(&site.fetch(&[]).output().unwrap());
    let raw = fs::File::options()
        .read(true)
        .write(true)
        .open(site.raw())
        .unwrap();
    let documents = || {
        let entries = fs::read_dir(site.cache().join("documents-v1")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.collect::<BTreeSet<_>>()
    };
    let before = documents();
    assert!(before.len() >= 4, "{before:?}");
    // Rot, and documents that others pushed out: pages are among them.
    let data = site.store.disk.iter().position(|byte| *byte != 0).unwrap();
    let byte = site.store.disk[data] ^ 0x40;
    raw.write_all_at(&[byte], data as u64).unwrap();
    for name in &before {
        fs::remove_file(site.cache().join("documents-v1").join(name)).unwrap();
    }
    assert_ok(&site.fetch(&[]).output().unwrap());
    let bytes = fs::read(site.raw()).unwrap();
    let disk = &site.store.disk;
    assert!(bytes[..disk.len()] == disk[..], "the file is the disk");
    assert_eq!(documents(), before);
}

#[test]
fn fills_that_are_killed_leave_what_is_right_or_missing() {
    let site = Site::new(4000);
    let whole = site.store.disk.len() as u64;
    let (mut random, mut killed) = (Random(7), 0);
    for _ in 0..10 {
        let enough = random.next() % whole;
        let mut child = site.fetch(&[]).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            let filled = fs::metadata(site.raw()).map_or(0, |it| it.blocks() * 512);
            if filled >= enough {
                child.kill().unwrap();
                killed += 1;
                break;
            }
            std::thread::yield_now();
        }
        drop(finish(child));
        assert_eq!(verify(&site.cache()).1, 0, "nothing is wrong");
        if random.next() % 4 == 0 {
            let _ = fs::remove_file(site.raw());
        }
    }
    assert!(killed > 2, "{killed} were killed");
    assert_ok(&site.fetch(&[]).output().unwrap());
    assert_eq!(verify(&site.cache()), (site.store.n_chunks, 0, 0));
    let stat = json(&care(&site.cache(), &["stat", "--json"]));
    assert_eq!(stat["granted_bytes"], 0, "the dead have no grants");
}

#[test]
fn two_processes_fill_one_file_at_the_same_time() {
    let site = Site::new(3000);
    let children = [(); 2].map(|()| site.fetch(&[]).spawn().unwrap());
    for child in children {
        assert_ok(&finish(child));
    }
    assert_eq!(verify(&site.cache()), (site.store.n_chunks, 0, 0));
}

#[test]
fn two_processes_keep_one_bound() {
    const BOUND: u64 = 16 << 20;
    let (one, other) = (Site::new(3000), Site::new(3100));
    let cache = one.cache();
    for _ in 0..2 {
        let mut children = [&one, &other].map(|site| {
            site.fetch_into(&cache, &["--cache-size", "16M"])
                .spawn()
                .unwrap()
        });
        while children
            .iter_mut()
            .any(|child| child.try_wait().unwrap().is_none())
        {
            let bytes = occupied_at_once(&cache);
            assert!(bytes <= BOUND, "{bytes}");
            // It has the lock meanwhile, which those who fill want, too.
            std::thread::sleep(Duration::from_millis(15));
        }
        for child in children {
            drop(finish(child));
        }
        assert_eq!(verify(&cache).1, 0);
    }
    // Whoever is alone gets what it needs of what the others no longer use.
    for site in [&one, &other] {
        assert_ok(
            &site
                .fetch_into(&cache, &["--cache-size", "16M"])
                .output()
                .unwrap(),
        );
        assert!(occupied(&cache) <= BOUND);
    }
}

#[test]
fn an_image_that_cannot_fit_is_refused_before_it_is_fetched() {
    let site = Site::new(3000);
    let output = site.fetch(&["--cache-size", "4M"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("--cache-size"), "{text}");
    assert!(occupied(&site.cache()) < 1 << 20);
}

#[test]
fn damage_is_found_and_taken_out_and_fetched_again() {
    use std::os::unix::fs::FileExt as _;

    let site = Site::new(1500);
    assert_ok(&site.fetch(&[]).output().unwrap());
    let raw = fs::File::options().write(true).open(site.raw()).unwrap();
    let length = site.store.disk.len() as u64;
    for at in [length / 5, length / 2, length - 9000] {
        raw.write_all_at(b"rotten", at).unwrap();
    }
    let found = care(&site.cache(), &["verify"]);
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&found.stdout).contains("taken out"));
    let (right, wrong, _) = verify(&site.cache());
    assert!(right < site.store.n_chunks && wrong == 0);
    assert_ok(&site.fetch(&[]).output().unwrap());
    assert_eq!(verify(&site.cache()).0, site.store.n_chunks);
}

#[test]
fn clearing_removes_what_is_ours_and_nothing_of_others() {
    let site = Site::new(800);
    assert_eq!(
        care(&site.cache(), &["stat"]).status.code(),
        Some(1),
        "there is none"
    );
    assert_ok(&site.fetch(&[]).output().unwrap());
    let stat = json(&care(
        &site.cache(),
        &["stat", "--json", "--cache-size", "1G"],
    ));
    assert_eq!(stat["bytes_max"], 1 << 30);
    assert_eq!(stat["bytes"], occupied(&site.cache()) / 4096 * 4096);
    assert_eq!(stat["disks"][0]["mounted"], false);
    for foreign in ["precious.txt", "disks-v1/precious.txt", "disks-v1/dir"] {
        let path = site.cache().join(foreign);
        if foreign.ends_with("dir") {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, "precious").unwrap();
        }
        assert_eq!(
            care(&site.cache(), &["clear"]).status.code(),
            Some(1),
            "{foreign}"
        );
        assert!(path.exists() && site.raw().exists());
        fs::remove_file(&path)
            .or_else(|_| fs::remove_dir(&path))
            .unwrap();
    }
    let cleared = care(&site.cache(), &["clear", "--json"]);
    assert_ok(&cleared);
    assert_eq!(
        json(&cleared),
        serde_json::json!({"disks": 1, "mounted": 0})
    );
    assert_eq!(fs::read_dir(site.cache()).unwrap().count(), 0);
}
