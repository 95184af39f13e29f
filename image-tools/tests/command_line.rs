//! The `circular` command as people and scripts meet it: files in, files out, messages, exit codes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a sparse image of `length` bytes with noise at some offsets.
    fn image(&self, name: &str, length: u64, pieces: &[(u64, usize)]) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(length).unwrap();
        for (offset, len) in pieces {
            let noise: Vec<u8> = (*offset..)
                .map(|at| (at * 31 + at / 251).to_le_bytes()[0] | 1)
                .take(*len)
                .collect();
            file.write_all_at(&noise, *offset).unwrap();
        }
        path
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_circular"))
            .args(args)
            .current_dir(self.0.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("XDG_CONFIG_HOME", self.path("config"))
            .output()
            .unwrap()
    }

    /// Runs what must succeed; returns what it printed as JSON.
    fn done(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs what must fail with exit code 1; returns the message.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{args:?}: {}",
            stderr(&output)
        );
        stderr(&output)
    }

    fn objects(&self, magic: &[u8]) -> Vec<PathBuf> {
        let directories = fs::read_dir(self.path("store/objects")).unwrap();
        let files =
            directories.flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap());
        files
            .map(|file| file.unwrap().path())
            .filter(|path| fs::read(path).unwrap().starts_with(magic))
            .collect()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn flip_in_the_middle(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_exported_is_what_was_published() {
    const MIB: u64 = 1024 * 1024;
    let scratch = Scratch::new();
    for (number, (length, pieces)) in [
        (1, &[(0, 1)][..]),
        (4095, &[(0, 4095)]),
        (4097, &[(4096, 1)]),
        (2 * MIB + 4095, &[(5, 3_000), (2 * MIB - 7, 4102)]),
        (64 * MIB - 1, &[(64 * MIB - 300_001, 300_000)]),
        (64 * MIB + 1, &[(64 * MIB - 100_000, 100_001)]),
        (3 * MIB, &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let image = scratch.image("image.raw", length, pieces);
        let name = format!("case{number}");
        scratch.done(&["publish", "image.raw", &name, "--no-boot"]);
        scratch.done(&["export", &name, "copy.raw", "--force"]);
        let same = fs::read(image).unwrap() == fs::read(scratch.path("copy.raw")).unwrap();
        assert!(same, "{name}: {length} bytes");
    }
    let verified = scratch.done(&["verify"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()));
}

#[test]
fn the_number_of_threads_changes_no_object() {
    let scratch = Scratch::new();
    scratch.image(
        "image.raw",
        30_000_000,
        &[(0, 9_000_000), (20_000_000, 9_000_000)],
    );
    let disk = |jobs, store| {
        let args = [
            "publish",
            "image.raw",
            "a",
            "--no-boot",
            "--jobs",
            jobs,
            "--store",
            store,
        ];
        scratch.done(&args)["disk"].clone()
    };
    assert_eq!(disk("1", "one"), disk("5", "five"));
}

#[test]
fn verify_names_every_image_that_damage_harms() {
    let scratch = Scratch::new();
    scratch.image("image.raw", 2_000_000, &[(0, 900_000)]);
    scratch.done(&["publish", "image.raw", "one", "--no-boot"]);
    scratch.done(&["publish", "image.raw", "two", "--no-boot"]);
    flip_in_the_middle(&scratch.objects(b"CIRCPACK")[0]);
    flip_in_the_middle(&scratch.objects(b"CIRCCIDX")[0]);
    let output = scratch.run(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let first = String::from_utf8(output.stdout).unwrap();
    let verified: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    let problems = verified["problems"].as_array().unwrap();
    let harmed: Vec<_> = problems
        .iter()
        .map(|problem| problem["image"].as_str())
        .collect();
    assert!(harmed.contains(&None), "the chunk index: {harmed:?}");
    assert!(
        harmed.contains(&Some("one@1")) && harmed.contains(&Some("two@1")),
        "{harmed:?}"
    );
}

#[test]
fn verify_goes_on_past_a_damaged_catalogue() {
    let scratch = Scratch::new();
    scratch.image("image.raw", 9000, &[(0, 9000)]);
    scratch.done(&["publish", "image.raw", "one", "--no-boot"]);
    scratch.done(&["publish", "image.raw", "two", "--no-boot"]);
    let targets = fs::read_dir(scratch.path("store/targets")).unwrap();
    for target in targets.map(|target| target.unwrap().path()) {
        if target.extension().is_some_and(|name| name == "one") {
            fs::write(target, "{}").unwrap();
        }
    }
    let output = scratch.run(&["verify"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("one: `targets/"), "{text}");
    assert!(text.contains("1 versions"), "{text}");
}

#[test]
fn export_writes_over_no_file_unasked_and_over_no_device_ever() {
    let scratch = Scratch::new();
    scratch.image("image.raw", 9000, &[(0, 9000)]);
    scratch.done(&["publish", "image.raw", "a", "--no-boot"]);
    fs::write(scratch.path("precious"), "mine").unwrap();
    assert!(
        scratch
            .refused(&["export", "a", "precious"])
            .contains("--force")
    );
    assert_eq!(fs::read(scratch.path("precious")).unwrap(), b"mine");
    let message = scratch.refused(&["export", "a", "/dev/null", "--force"]);
    assert!(message.contains("no regular file"), "{message}");
}

#[test]
fn what_cannot_work_fails_before_the_store_is_touched() {
    let scratch = Scratch::new();
    scratch.image("image.raw", 9000, &[]);
    fs::write(scratch.path("empty.raw"), "").unwrap();
    for (args, expected) in [
        (
            &["publish", "missing.raw", "a"][..],
            "cannot open `missing.raw`",
        ),
        (&["publish", "empty.raw", "a"], "`empty.raw` is empty"),
        (&["publish", "image.raw", "a@3"], "give NAME[:TAG]"),
        (
            &["publish", "image.raw", "a", "--cmdline", "${x}"],
            "iPXE syntax",
        ),
        (
            &["publish", "image.raw", "a", "--base-url", "ftp://x"],
            "http://",
        ),
        (&["export", "a", "copy.raw"], "is not a circular store"),
    ] {
        let message = scratch.refused(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert!(!scratch.path("store").exists());
    let usage = scratch.run(&["publish", "image.raw", "../a"]);
    assert_eq!(usage.status.code(), Some(2));
}
