//! Keys, roots and tags on the command line: where keys are, what is refused, what scripts get.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

struct Scratch(TempDir);

impl Scratch {
    /// A directory with two disks, `one.raw` and `two.raw`.
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        fs::write(scratch.path("one.raw"), [1; 9000]).unwrap();
        fs::write(scratch.path("two.raw"), [2; 9000]).unwrap();
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_circular"))
            .args(args.split(' '))
            .current_dir(self.0.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("XDG_CONFIG_HOME", self.path("config"))
            .output()
            .unwrap()
    }

    /// Runs what must succeed; returns what it printed as JSON.
    fn done(&self, args: &str) -> Value {
        let output = self.run(&format!("{args} --json"));
        assert!(output.status.success(), "{args}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs what must fail with exit code 1; returns the message.
    fn refused(&self, args: &str) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args}");
        stderr(&output)
    }

    /// Publishes both disks as versions of `a`; returns where the keys are.
    fn publish(&self) -> PathBuf {
        let first = self.done("publish one.raw a --no-boot");
        let second = self.done("publish two.raw a --no-boot");
        assert_eq!(second["new_keys"], Value::Null);
        PathBuf::from(first["new_keys"].as_str().unwrap())
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn no_key_lies_in_a_store() {
    let scratch = Scratch::new();
    let told = |args| assert!(scratch.refused(args).contains("served to everybody"));
    told("publish one.raw a --no-boot --keys store/keys");
    told("init --store other --keys other/../other/keys");
    scratch.done("publish one.raw a --no-boot --keys keys");
    fs::rename(scratch.path("keys"), scratch.path("store/keys")).unwrap();
    told("publish one.raw a --no-boot --keys store/keys");
    told("refresh --keys ./store/keys");
}

#[test]
fn the_first_publish_says_where_it_put_the_keys() {
    let scratch = Scratch::new();
    let output = scratch.run("publish one.raw a --no-boot");
    let keys = scratch.path("config/circular/keys");
    let told = format!("Made signing keys in {}", keys.display());
    assert!(stderr(&output).contains(&told), "{}", stderr(&output));
    let directories: Vec<_> = fs::read_dir(keys).unwrap().collect();
    let [Ok(directory)] = &directories[..] else {
        panic!("one store, one directory of keys");
    };
    assert!(directory.path().join("root.json").is_file());
    assert!(directory.path().join("root.der").is_file());
    let message = scratch.refused("init");
    assert!(message.contains("is signed already"), "{message}");
}

#[test]
fn keys_of_another_store_sign_nothing() {
    let scratch = Scratch::new();
    scratch.publish();
    scratch.done("init --store other --keys otherkeys");
    let before = fs::read(scratch.path("store/metadata/timestamp.json")).unwrap();
    for args in [
        "publish two.raw b --no-boot --keys otherkeys",
        "refresh --keys otherkeys",
        "tag a@1 old --keys otherkeys",
        "key rotate targets --keys otherkeys",
        "root renew --keys otherkeys",
    ] {
        let message = scratch.refused(args);
        assert!(message.contains("of another store"), "{args}: {message}");
    }
    let message = scratch.refused("tag a@1 old --keys nowhere");
    assert!(
        message.contains("no signing keys in `nowhere`"),
        "{message}"
    );
    let after = fs::read(scratch.path("store/metadata/timestamp.json")).unwrap();
    assert!(before == after);
}

#[test]
fn one_command_rotates_every_key_and_puts_the_old_ones_away() {
    let scratch = Scratch::new();
    let keys = scratch.publish();
    let before = fs::read(keys.join("targets.der")).unwrap();
    let changed = scratch.done("key rotate root targets snapshot timestamp");
    assert_eq!(changed["root_version"], 2);
    assert_eq!(changed["published"], true);
    assert_eq!(changed["new_keys"].as_array().unwrap().len(), 4);
    assert_eq!(changed["retired_keys"].as_array().unwrap().len(), 4);
    let mut retired = fs::read_dir(keys.join("retired")).unwrap();
    assert!(retired.any(|file| fs::read(file.unwrap().path()).unwrap() == before));
    let listed = scratch.done("key list");
    assert!(
        listed
            .as_array()
            .unwrap()
            .iter()
            .all(|key| { key["trusted"] == json!(true) && key["file"].is_string() })
    );
    scratch.done("key rotate targets");
    scratch.done("publish one.raw b --no-boot");
    let listed = scratch.done("list");
    assert_eq!(listed.as_array().unwrap().len(), 2);
}

#[test]
fn a_key_that_was_trusted_once_is_never_taken_for_a_new_one() {
    let scratch = Scratch::new();
    let keys = scratch.publish();
    let old = fs::read(keys.join("targets.der")).unwrap();
    scratch.done("key rotate targets");
    // Somebody puts the old, perhaps stolen, key back.
    let back = keys.join("targets.der");
    fs::write(&back, &old).unwrap();
    fs::set_permissions(&back, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let public = scratch.done("key list");
    let known = |key: &Value| key["role"] == "targets" && key["trusted"] == json!(false);
    assert!(public.as_array().unwrap().iter().any(known));
    let changed = scratch.done("key rotate targets");
    assert_eq!(changed["new_keys"].as_array().unwrap().len(), 1);
    assert!(!back.exists(), "it is put away again");
    scratch.done("publish one.raw b --no-boot");
}

#[test]
fn a_rotation_that_cannot_end_does_not_begin() {
    let scratch = Scratch::new();
    let keys = scratch.publish();
    fs::remove_file(keys.join("targets.der")).unwrap();
    fs::remove_file(keys.join("snapshot.der")).unwrap();
    let message = scratch.refused("key rotate targets");
    assert!(message.contains("too few snapshot keys"), "{message}");
    assert_eq!(scratch.done("root show")["version"], 1);
    scratch.done("key rotate targets snapshot");
    assert_eq!(scratch.done("root show")["version"], 3);
    scratch.done("publish one.raw b --no-boot");
    let message = scratch.refused("publish one.raw b --no-boot --keys nowhere");
    assert!(message.contains("no signing keys"), "{message}");
}

#[test]
fn a_key_made_before_is_the_one_that_is_added() {
    let scratch = Scratch::new();
    scratch.publish();
    let keys = scratch.path("config/circular/keys");
    let made = scratch.done("key new targets");
    let changed = scratch.done("key add targets");
    assert_eq!(changed["new_keys"][0]["id"], made["id"]);
    let message = scratch.refused("key rotate targets");
    assert!(message.contains("several keys"), "{message}");
    let id = made["id"].as_str().unwrap();
    let message = scratch.refused(&format!("key remove targets {id} --threshold 2"));
    assert!(message.contains("only 1 key(s)"), "{message}");
    scratch.done(&format!("key remove targets {}", &id[..8]));
    let message = scratch.refused(&format!("key remove targets {id}"));
    assert!(message.contains("no targets key begins with"), "{message}");
    assert!(keys.is_dir());
}

#[test]
fn a_file_that_is_no_root_or_no_key_is_named() {
    let scratch = Scratch::new();
    scratch.publish();
    for args in [
        "root show one.raw",
        "root publish one.raw",
        "key add root one.raw",
        "key remove root one.raw",
    ] {
        let message = scratch.refused(args);
        assert!(
            message.contains("cannot use `one.raw`"),
            "{args}: {message}"
        );
    }
}

#[test]
fn lifetimes_are_options_and_a_short_root_is_warned_of() {
    let scratch = Scratch::new();
    scratch.done("publish one.raw a --no-boot --root-days 30 --targets-days 90 --timestamp-days 7");
    let root = scratch.done("root show");
    let span = |later: &str, earlier: &str| {
        root[later].as_u64().unwrap() - root[earlier].as_u64().unwrap()
    };
    assert!((22..=23).contains(&(span("expires", "timestamp_expires") / 86_400)));
    assert!((82..=83).contains(&(span("targets_expires", "timestamp_expires") / 86_400)));
    let output = scratch.run("refresh --timestamp-days 60");
    assert!(stderr(&output).contains("the root expires before"));
    scratch.done("root renew");
    let output = scratch.run("refresh --timestamp-days 60");
    assert_eq!(stderr(&output), "");
    let usage = scratch.run("refresh --timestamp-days 0");
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn tags_are_set_rolled_back_and_deleted() {
    let scratch = Scratch::new();
    scratch.publish();
    let version =
        |reference: &str| scratch.done(&format!("inspect {reference}"))["reference"].clone();
    let moved = scratch.done("tag a@1 stable");
    assert_eq!(
        moved,
        json!({"name": "a", "tag": "stable", "before": null, "version": "1", "ended": false})
    );
    scratch.done("tag a:latest stable");
    assert_eq!(version("a:stable"), "a:stable@2");
    let moved = scratch.done("rollback a");
    assert_eq!(
        (&moved["before"], &moved["version"]),
        (&json!("2"), &json!("1"))
    );
    let message = scratch.refused("rollback a");
    assert!(message.contains("the oldest"), "{message}");
    let message = scratch.refused("rollback a --to 2");
    assert!(message.contains("circular tag a@2 latest"), "{message}");
    scratch.done("rollback a:stable --to 1");
    scratch.done("tag --delete a:stable");
    let message = scratch.refused("inspect a:stable");
    assert!(message.contains("no tag `stable`"), "{message}");
    assert_eq!(version("a@2"), "a@2");
}

#[test]
fn tags_that_cannot_be_are_refused_by_name() {
    let scratch = Scratch::new();
    scratch.publish();
    for (args, expected) in [
        ("tag b old", "no image `b`"),
        ("tag a@9 old", "no version 9"),
        ("tag a:nope old", "no tag `nope`"),
        ("tag --delete a", "NAME:TAG"),
        ("tag --delete a:latest@1", "never a version"),
        ("rollback a@1", "--to"),
        ("rollback a --to 9", "no version 9"),
    ] {
        let message = scratch.refused(args);
        assert!(message.contains(expected), "{args}: {message}");
    }
    for usage in ["tag a@1", "tag --delete a:latest new", "tag a@1 -x"] {
        assert_eq!(scratch.run(usage).status.code(), Some(2), "{usage}");
    }
}
