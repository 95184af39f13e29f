//! A store that shows its publisher an older state than it saw: nothing is signed on top of that.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::process::Command;

use tempfile::TempDir;

/// A desk with two disks, a store and its keys.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        for (name, byte) in [("one.raw", 1), ("two.raw", 2)] {
            fs::write(desk.0.path().join(name), [byte; 9000]).unwrap();
        }
        desk.done("circular publish one.raw a --no-boot && cp -r store old");
        desk.done("circular publish two.raw a --no-boot");
        desk
    }

    /// Runs commands; says whether they succeeded, and what they told.
    fn shell(&self, commands: &str) -> (bool, String) {
        let binary = std::path::Path::new(env!("CARGO_BIN_EXE_circular"));
        let programs = std::env::var("PATH").unwrap();
        let binaries = binary.parent().unwrap().display();
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", commands])
            .current_dir(self.0.path())
            .env("PATH", format!("{binaries}:{programs}"))
            .env("CIRCULAR_STORE", "store")
            .env("CIRCULAR_KEYS", "keys")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), told)
    }

    fn done(&self, commands: &str) {
        let (success, told) = self.shell(commands);
        assert!(success, "{commands}: {told}");
    }

    fn refused(&self, command: &str) {
        let timestamp = self.0.path().join("store/metadata/timestamp.json");
        let before = fs::read(&timestamp).ok();
        let (success, told) = self.shell(command);
        assert!(
            !success && told.contains("keys/seen.json"),
            "{command}: {told}"
        );
        assert_eq!(fs::read(timestamp).ok(), before, "{command}");
    }

    /// What everybody who signs does.
    fn all_is_refused(&self) {
        for command in [
            "circular publish one.raw b --no-boot",
            "circular refresh",
            "circular tag a stable",
            "circular rollback a",
            "circular remove a@1 --yes",
            "circular gc",
            "circular key rotate timestamp",
            "circular root renew",
        ] {
            self.refused(command);
        }
    }
}

#[test]
fn a_publisher_signs_nothing_on_top_of_an_older_state_than_it_saw() {
    let desk = Desk::new();
    desk.done("rm -r store/metadata && cp -r old/metadata store/");
    desk.all_is_refused();
    // Whoever did that on purpose says so.
    desk.done("rm keys/seen.json && circular publish one.raw b --no-boot");
}

#[test]
fn a_publisher_notices_that_a_newer_root_is_kept_from_it() {
    let desk = Desk::new();
    desk.done("cp -r store before && circular key rotate root");
    desk.done("rm -r store/metadata && cp -r before/metadata store/");
    desk.all_is_refused();
}

#[test]
fn a_publisher_begins_no_store_anew_that_was_emptied() {
    let desk = Desk::new();
    desk.done("rm -r store/metadata store/targets");
    desk.refused("circular publish one.raw b --no-boot");
}

#[test]
fn what_a_publisher_saw_is_forgotten_only_on_purpose() {
    let desk = Desk::new();
    desk.done("echo damaged > keys/seen.json");
    desk.refused("circular publish one.raw b --no-boot");
    // New keys may begin with lower numbers, and another publisher may have been there.
    desk.done("rm keys/seen.json && cp -r keys others");
    desk.done("circular refresh && circular refresh --keys others && circular refresh");
    desk.done("circular key rotate snapshot timestamp && circular publish one.raw b --no-boot");
}
