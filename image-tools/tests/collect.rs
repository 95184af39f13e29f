//! `circular remove`, `circular gc` and `circular publish --mend` as people meet them, and many
//! `circular` processes on one store.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

    fn image(&self, name: &str, seed: u64) {
        let noise = |at: u64| (at * 31 + at / 251 + seed * (at / 9000)).to_le_bytes()[0] | 1;
        let bytes: Vec<u8> = (0..400_000).map(noise).collect();
        fs::write(self.path(name), bytes).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_circular"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    /// Runs what must succeed; returns what it printed as JSON.
    fn done(&self, args: &[&str]) -> Value {
        let output = self.command(args).arg("--json").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs what must fail with exit code 1; returns the message.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        message
    }

    fn publish(&self, image: &str, reference: &str) -> Value {
        self.done(&["publish", image, reference, "--no-boot"])
    }

    fn check(&self, image: &str, reference: &str) {
        self.done(&["export", reference, "copy", "--force"]);
        let same = fs::read(self.path(image)).unwrap() == fs::read(self.path("copy")).unwrap();
        assert!(same, "{reference} is not {image}");
    }

    fn packs(&self) -> Vec<PathBuf> {
        let directories = fs::read_dir(self.path("store/objects")).unwrap();
        let files =
            directories.flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap());
        files
            .map(|file| file.unwrap().path())
            .filter(|path| fs::read(path).unwrap().starts_with(b"CIRCPACK"))
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
fn old_versions_go_and_what_they_alone_needed() {
    let scratch = Scratch::new();
    for seed in [1, 2, 3] {
        scratch.image(&format!("image{seed}"), seed);
        scratch.publish(&format!("image{seed}"), "a");
    }
    scratch.publish("image1", "a:stable");
    let plain = scratch.done(&["gc"]);
    assert_eq!(plain["removed"], Value::Array(Vec::new()));
    assert!(plain["deleted"].as_object().unwrap().is_empty());
    let dry = scratch.done(&["gc", "--keep", "1", "--grace", "0", "--dry-run"]);
    assert_eq!(dry["removed"], serde_json::json!(["a@2"]));
    assert_eq!(
        scratch.done(&["list", "--all"]).as_array().unwrap().len(),
        3
    );
    let young = scratch.done(&["gc", "--keep-days", "1", "--grace", "0"]);
    assert_eq!(young["removed"], Value::Array(Vec::new()));
    assert_eq!(scratch.packs().len(), 3);
    let done = scratch.done(&["gc", "--keep", "1", "--grace", "0"]);
    assert_eq!(done["removed"], dry["removed"]);
    assert!(done["deleted_bytes"].as_u64().unwrap() > 1_000);
    scratch.check("image3", "a");
    scratch.check("image1", "a:stable");
    assert!(
        scratch
            .refused(&["export", "a@2", "copy2"])
            .contains("no version 2")
    );
    let verified = scratch.done(&["verify"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()));
    let again = scratch.publish("image2", "a");
    assert_eq!(again["version"], "4");
    scratch.check("image2", "a@4");
}

#[test]
fn remove_takes_what_has_no_tag_or_the_whole_image() {
    let scratch = Scratch::new();
    scratch.image("image1", 1);
    scratch.image("image2", 2);
    scratch.publish("image1", "lab/a");
    scratch.publish("image2", "lab/a");
    scratch.publish("image2", "b");
    let message = scratch.refused(&["remove", "lab/a@1", "lab/a@2"]);
    assert!(
        message.contains("`latest` points to version 2"),
        "{message}"
    );
    for (args, expected) in [
        (&["remove", "lab/a"][..], "--all"),
        (&["remove", "lab/a@9"], "no version 9"),
        (
            &["remove", "lab/a@2", "--all"],
            "--all removes whole images",
        ),
        (&["remove", "nothing@1"], "no image `nothing`"),
    ] {
        let message = scratch.refused(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let removed = scratch.done(&["remove", "lab/a@1"]);
    assert_eq!(removed["removed"], serde_json::json!(["lab/a@1"]));
    scratch.check("image2", "lab/a");
    scratch.done(&["remove", "lab/a", "--all"]);
    assert_eq!(scratch.done(&["list"]).as_array().unwrap().len(), 1);
    scratch.check("image2", "b");
    scratch.done(&["gc", "--grace", "0"]);
    assert_eq!(scratch.packs().len(), 1, "image2 is needed by b");
    scratch.check("image2", "b");
}

#[test]
fn a_lost_pack_is_stored_again_by_the_next_publish_of_its_image() {
    let scratch = Scratch::new();
    scratch.image("image1", 1);
    scratch.publish("image1", "a");
    let pack = scratch.packs().remove(0);
    let kept = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    let output = scratch.command(&["publish", "image1", "a", "--no-boot"]);
    let output = { output }.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("storing them again"));
    assert!(fs::read(&pack).unwrap() == kept);
    scratch.check("image1", "a@1");
}

#[test]
fn what_verify_complains_of_is_mended_as_it_says() {
    let scratch = Scratch::new();
    scratch.image("image1", 1);
    scratch.publish("image1", "a");
    flip_in_the_middle(&scratch.packs()[0]);
    let message = scratch.refused(&["verify"]);
    assert!(message.contains("circular publish --mend"), "{message}");
    let mended = scratch.done(&["publish", "--mend", "image1", "a", "--no-boot"]);
    assert_eq!(
        (&mended["version"], &mended["revision"]),
        (&"1".into(), &1.into())
    );
    // At another level the pack becomes another one: a new revision of the same version.
    flip_in_the_middle(&scratch.packs()[0]);
    let args = [
        "publish",
        "--mend",
        "image1",
        "a",
        "--no-boot",
        "--level",
        "9",
    ];
    let mended = scratch.done(&args);
    assert_eq!(mended["published_as"], "mended");
    assert_eq!(
        (&mended["version"], &mended["revision"]),
        (&"1".into(), &2.into())
    );
    let verified = scratch.done(&["verify"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()));
    scratch.check("image1", "a@1");
    // The flipped pack is what nobody needs.
    scratch.done(&["gc", "--grace", "0"]);
    assert_eq!(scratch.packs().len(), 1);
    scratch.check("image1", "a");
}

/// Machines boot what they booted: a mend is no publish of an old version.
#[test]
fn mending_changes_nothing_but_what_is_damaged() {
    let scratch = Scratch::new();
    scratch.image("image1", 1);
    scratch.publish("image1", "a");
    let packs = scratch.packs();
    scratch.image("image2", 2);
    scratch.publish("image2", "a");
    let before = scratch.done(&["list", "a", "--all"]);
    flip_in_the_middle(&packs[0]);
    // Times are told in seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mended = scratch.done(&[
        "publish",
        "--mend",
        "image1",
        "a",
        "--no-boot",
        "--level",
        "9",
    ]);
    assert_eq!(mended["published_as"], "mended");
    assert_eq!(mended["reference"], "a@1");
    scratch.check("image1", "a@1");
    scratch.check("image2", "a");
    let after = scratch.done(&["list", "a", "--all"]);
    let of = |listed: &Value, key: &str| -> Vec<Value> {
        let versions = listed.as_array().unwrap().iter();
        versions.map(|version| version[key].clone()).collect()
    };
    for key in ["version", "tags", "created"] {
        assert_eq!(of(&before, key), of(&after, key), "{key}");
    }
    // A name that is misspelt is no damage.
    let message = scratch.refused(&["verify", "b"]);
    assert!(
        message.contains("no image `b`") && !message.contains("--mend"),
        "{message}"
    );
}

#[test]
fn one_image_at_another_level_is_no_new_version() {
    let scratch = Scratch::new();
    scratch.image("image1", 1);
    let publish = |level: &str| {
        let args = ["publish", "image1", "a", "--no-boot", "--level", level];
        scratch
            .command(&args)
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    scratch.image("image2", 2);
    scratch.publish("image2", "b");
    for mut publisher in [publish("1"), publish("19"), publish("7")] {
        assert!(publisher.wait().unwrap().success());
    }
    assert_eq!(
        scratch
            .done(&["list", "a", "--all"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
    scratch.check("image1", "a@1");
}

#[test]
fn many_processes_on_one_store_lose_nothing() {
    let scratch = Scratch::new();
    scratch.image("image0", 0);
    scratch.publish("image0", "shared:first");
    let start = |args: &[&str]| {
        let mut command = scratch.command(args);
        command
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut children = Vec::new();
    for number in 1..=8 {
        let image = format!("image{number}");
        scratch.image(&image, number);
        let reference = match number % 2 {
            0 => format!("own{number}"),
            _ => format!("shared:t{number}"),
        };
        children.push(start(&["publish", &image, &reference, "--no-boot"]));
    }
    for _ in 0..3 {
        children.push(start(&["gc"]));
        children.push(start(&["refresh"]));
    }
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    for number in 1..=8 {
        let reference = match number % 2 {
            0 => format!("own{number}@1"),
            _ => format!("shared:t{number}"),
        };
        scratch.check(&format!("image{number}"), &reference);
    }
    scratch.check("image0", "shared@1");
    let verified = scratch.done(&["verify"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()));
    assert_eq!(verified["images"], 9);
}
