//! Walks `docs/KEYS.md`: runs its commands, section by section, and looks whether each section keeps
//! what it says: what was lost works again, and what a thief signs is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A heading and the commands below it.
struct Section {
    heading: String,
    commands: String,
}

/// Splits the page. Blocks of other languages than `sh` are for the eye.
fn sections(page: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut inside = None;
    for line in page.lines() {
        if let Some(language) = line.strip_prefix("```") {
            inside = inside.is_none().then(|| language.to_owned());
            continue;
        }
        match (&inside, line.strip_prefix("## ")) {
            (None, Some(heading)) => sections.push(Section {
                heading: heading.to_owned(),
                commands: String::new(),
            }),
            (Some(language), _) if language == "sh" => {
                let section = sections.last_mut().unwrap();
                section.commands += line;
                section.commands.push('\n');
            }
            _ => {}
        }
    }
    sections
}

/// A publisher's desk, and those who only have the first root.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let disk: Vec<u8> = (0..300_000_u32)
            .map(|at| (at * 31 + at / 251).to_le_bytes()[0])
            .collect();
        fs::write(desk.path("debian.raw"), disk).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shell(&self, commands: &str) -> Output {
        let binary = Path::new(env!("CARGO_BIN_EXE_circular"));
        let programs = std::env::var("PATH").unwrap();
        let binaries = binary.parent().unwrap().display();
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", commands])
            .current_dir(self.0.path())
            .env("PATH", format!("{binaries}:{programs}"))
            .env("HOME", self.path("home"))
            .env("CIRCULAR_STORE", "store")
            .env("CIRCULAR_KEYS", "keys")
            .output()
            .unwrap()
    }

    fn run(&self, commands: &str) -> String {
        let output = self.shell(commands);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{commands}\n{text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail; returns the message.
    fn refused(&self, commands: &str) -> String {
        let output = self.shell(commands);
        assert_eq!(output.status.code(), Some(1), "{commands}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn root(&self) -> Value {
        serde_json::from_str(&self.run("circular root show --json")).unwrap()
    }

    fn rule(&self, role: &str) -> (u64, Vec<String>) {
        let root = self.root();
        let roles = root["roles"].as_array().unwrap();
        let rule = roles.iter().find(|rule| rule["role"] == role).unwrap();
        let keys = rule["keys"].as_array().unwrap().iter();
        let keys = keys.map(|key| key.as_str().unwrap().to_owned()).collect();
        (rule["threshold"].as_u64().unwrap(), keys)
    }

    /// Machines that have nothing but the first root can read the image; and the publisher, write.
    fn all_is_well(&self) {
        self.run("circular export debian:12 copy.raw --force && cmp debian.raw copy.raw");
        self.run("circular publish debian.raw debian:12 && circular refresh");
        self.run("circular export debian:12 copy.raw --force && cmp debian.raw copy.raw");
    }

    /// Puts back the store as a thief has it, who signs with keys that were good once.
    fn show_the_thiefs_store(&self) {
        self.run(
            "cp -r store good
             circular publish debian.raw evil --no-boot --store thief --keys stolen
             circular publish debian.raw evil:2 --no-boot --store thief --keys stolen
             cp -rn thief/metadata thief/targets store/
             cp thief/metadata/timestamp.json store/metadata/",
        );
    }
}

/// What must hold after the commands below a heading.
fn check(desk: &Desk, heading: &str) {
    match heading {
        "The keys" => {
            assert_eq!(desk.root()["version"], 1);
            for name in ["root", "targets", "snapshot", "timestamp"] {
                let path = desk.path("keys").join(format!("{name}.der"));
                let mode = fs::metadata(path).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{name}");
            }
        }
        "Back up" => {
            let mode = fs::metadata(desk.path("keys-backup.tar.gz")).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        }
        "Keep what you publish fresh" => assert_eq!(desk.root()["version"], 2),
        "Keep the root key offline" => {
            assert_eq!(desk.root()["version"], 3);
            assert!(desk.path("keys/root.der").exists());
        }
        "A key is lost" => {
            // One root added the new key, the next one removed the lost one.
            assert_eq!(desk.root()["version"], 5);
            assert_eq!(desk.rule("targets").1.len(), 1);
        }
        "A key is stolen" => {
            desk.show_the_thiefs_store();
            let message = desk.refused("circular list");
            assert!(message.contains("not signed as the trusted root demands"));
            desk.run("rm -r store && mv good store");
        }
        "Several holders" => {
            let (threshold, keys) = desk.rule("root");
            assert_eq!((threshold, keys.len()), (2, 3));
            let one = "circular key rotate timestamp --draft one.json
                       circular root sign one.json
                       circular root publish one.json";
            let message = desk.refused(one);
            assert!(message.contains("1 of the 2 keys"), "{message}");
            let message = desk.refused("circular key rotate timestamp");
            assert!(message.contains("--draft FILE"), "{message}");
        }
        _ => {}
    }
}

#[test]
fn every_command_on_the_page_does_what_the_page_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/KEYS.md");
    let page = fs::read_to_string(page).unwrap();
    let desk = Desk::new();
    let mut walked = 0;
    for section in sections(&page) {
        if section.heading == "A key is stolen" {
            desk.run("cp -r store thief && cp -r keys stolen");
            // As long as the stolen keys count, the thief gets away with it.
            desk.show_the_thiefs_store();
            desk.run("circular list evil && rm -r store && mv good store");
        }
        desk.run(&section.commands);
        check(&desk, &section.heading);
        if !section.commands.is_empty() {
            desk.all_is_well();
            walked += 1;
        }
    }
    assert_eq!(walked, 7, "sections with commands");
}
