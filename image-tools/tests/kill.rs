//! Real processes, killed by the kernel at one system call after another: whatever was published
//! stays, and running the same again does it.
//!
//! `strace` injects SIGKILL at the k-th call of a kind that changes the file system, counted for
//! each thread; k grows until the process survives. Calls that only make a change durable are left
//! out: dying there is dying before the next change.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image_store::{ImageReader, Store};
use tempfile::TempDir;

/// Kinds of system calls that change files.
const CHANGES: [&str; 6] = [
    "?write,?pwrite64,?writev",
    "?rename,?renameat,?renameat2",
    "?link,?linkat",
    "?unlink,?unlinkat,?rmdir",
    "?mkdir,?mkdirat",
    "?ftruncate,?chmod,?fchmod,?fchmodat",
];

const SIGKILL: i32 = 9;

/// A directory with images, and perhaps a store and its keys.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        for (seed, length) in [(1_u64, 700_001), (2, 900_000)] {
            fs::write(scratch.image(seed), noise(seed, length)).unwrap();
        }
        scratch
    }

    fn image(&self, seed: u64) -> PathBuf {
        self.0.path().join(format!("image{seed}"))
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn copy(&self) -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        let arguments = ["--archive", "--no-target-directory"];
        let mut cp = Command::new("cp");
        let done = cp.args(arguments).args([self.0.path(), copy.0.path()]);
        assert!(done.status().unwrap().success());
        copy
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.0.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("XDG_CONFIG_HOME", self.0.path().join("config"))
            // The fewer threads, the more of the calls are the k-th of their thread.
            .env("TOKIO_WORKER_THREADS", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_circular"));
        command.args(args).output().unwrap()
    }

    fn done(&self, args: &[&str], when: &str) {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{when}: {args:?}: {error}");
    }

    /// Runs it until the k-th call of one kind; tells whether it was killed there.
    fn killed(&self, args: &[&str], calls: &str, k: usize) -> bool {
        let inject = format!("inject={calls}:signal=SIGKILL:when={k}");
        let trace = format!("trace={calls}");
        let mut strace = self.command("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
        strace.arg(env!("CARGO_BIN_EXE_circular")).args(args);
        let output = strace.output().unwrap();
        let killed = output.status.signal() == Some(SIGKILL);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(killed || output.status.success(), "{calls} {k}: {error}");
        killed
    }
}

/// Bytes that do not repeat; images of different seeds share a part.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let byte = |at: u64| {
        let seed = if at < length / 2 { 0 } else { seed };
        let mixed = (at ^ seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 40).to_le_bytes()[0] | 1
    };
    (0..length).map(byte).collect()
}

/// Reads an image of a store as a stranger does.
fn read(root: &Path, reference: &str) -> Vec<u8> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::open(root).await.unwrap();
        let resolved = store.resolve(&reference.parse().unwrap()).await.unwrap();
        let reader = ImageReader::open(store, &resolved.manifest).await.unwrap();
        let length = usize::try_from(reader.length()).unwrap();
        reader.read(0, length).await.unwrap().to_vec()
    })
}

/// What is run, what there is before, and what afterwards: references, and seeds of images.
struct Case<'a> {
    args: &'a [&'a str],
    before: &'a [(&'a str, u64)],
    after: &'a [(&'a str, u64)],
    deaths: usize,
}

fn at_each_call(prepared: &Scratch, case: &Case<'_>) {
    let mut deaths = 0;
    for calls in CHANGES {
        for k in 1.. {
            let scratch = prepared.copy();
            let when = format!("killed at {calls} number {k}");
            let killed = scratch.killed(case.args, calls, k);
            check(&scratch, case.before, &when);
            if !killed {
                break;
            }
            deaths += 1;
            scratch.done(case.args, &when);
            check(&scratch, case.after, &when);
            scratch.done(&["verify", "-q"], &when);
        }
    }
    assert!(deaths >= case.deaths, "only {deaths} deaths");
}

fn check(scratch: &Scratch, images: &[(&str, u64)], when: &str) {
    for (reference, seed) in images {
        let same = read(&scratch.root(), reference) == fs::read(scratch.image(*seed)).unwrap();
        assert!(same, "{when}: {reference}");
    }
}

/// Tells whether `strace` can be used here. `CIRCULAR_REQUIRE=strace` demands it.
#[expect(clippy::print_stderr, reason = "the runner shows what a test prints")]
fn skipped() -> bool {
    let mut strace = Command::new("strace");
    let works = strace.args(["-f", "-o", "/dev/null", "true"]).output();
    if works.is_ok_and(|output| output.status.success()) {
        return false;
    }
    let required = std::env::var("CIRCULAR_REQUIRE").unwrap_or_default();
    let asked = required.split(',').any(|word| word.trim() == "strace");
    assert!(
        !asked,
        "no strace, and CIRCULAR_REQUIRE={required} asks for it"
    );
    eprintln!("skipped: no strace");
    true
}

const PUBLISH: [&str; 6] = ["publish", "image1", "a", "--no-boot", "--quiet", "--jobs=1"];

#[test]
fn a_first_publish_is_killed_at_each_call_and_loses_no_key() {
    if skipped() {
        return;
    }
    let case = Case {
        args: &PUBLISH,
        before: &[],
        after: &[("a", 1), ("a@1", 1)],
        deaths: 25,
    };
    at_each_call(&Scratch::new(), &case);
}

#[test]
fn a_first_publish_with_a_directory_for_keys_is_killed_at_each_call() {
    if skipped() {
        return;
    }
    let case = Case {
        args: &[&PUBLISH[..], &["--keys=keys"]].concat(),
        before: &[],
        after: &[("a", 1), ("a@1", 1)],
        deaths: 25,
    };
    at_each_call(&Scratch::new(), &case);
}

#[test]
fn a_second_version_is_killed_at_each_call() {
    if skipped() {
        return;
    }
    let scratch = Scratch::new();
    scratch.done(&PUBLISH, "first");
    let case = Case {
        args: &["publish", "image2", "a", "--no-boot", "-q", "--jobs=1"],
        before: &[("a@1", 1)],
        after: &[("a@1", 1), ("a@2", 2), ("a", 2)],
        deaths: 20,
    };
    at_each_call(&scratch, &case);
}

#[test]
fn a_collection_is_killed_at_each_call() {
    if skipped() {
        return;
    }
    let scratch = Scratch::new();
    scratch.done(&["publish", "image2", "a", "--no-boot", "-q"], "first");
    scratch.done(&PUBLISH, "second");
    let case = Case {
        args: &["gc", "--keep=1", "--grace=0", "--quiet"],
        before: &[("a@2", 1), ("a", 1)],
        after: &[("a@2", 1), ("a", 1)],
        deaths: 15,
    };
    at_each_call(&scratch, &case);
}
