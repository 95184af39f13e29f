//! Whatever is wrong is said, with its name; never is a wrong byte read.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use circular_tests::images::{self, noise, sparse};
use circular_tests::mount::{Mount, Options};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::{Kind, TestStore};
use circular_tests::{binaries, nginx::Nginx};

const MIB: u64 = 1 << 20;

/// Of which each has a page of its own.
const REGION: u64 = 64 * MIB;

/// Bytes read at once from a damaged disk.
const STEP: u64 = 256 << 10;

/// `circular` with these arguments fails with this exit code and all of these words.
const REFUSED: &[(&[&str], i32, &[&str])] = &[
    (
        &["publish", "/nowhere/disk.raw", "test:1"],
        1,
        &["/nowhere/disk.raw", "No such file"],
    ),
    (&["publish", "/proc", "test:1"], 1, &["/proc"]),
    (&["publish", "IMAGE", "../etc:1"], 2, &["../etc:1"]),
    (&["publish", "IMAGE", "Test:1"], 2, &["Test:1"]),
    (&["publish", "IMAGE", "te st:1"], 2, &["te st:1"]),
    (&["publish", "IMAGE", "test:"], 2, &["test:"]),
    (&["publish", "IMAGE", ""], 2, &["''"]),
    (&["publish", "EMPTY", "test:1"], 1, &["EMPTY", "empty"]),
    (&["inspect", "missing"], 1, &["missing"]),
    (&["inspect", "test:nosuchtag"], 1, &["nosuchtag"]),
    (&["inspect", "test@99"], 1, &["99"]),
    (&["export", "missing", "COPY"], 1, &["missing"]),
    (&["verify", "missing"], 1, &["missing"]),
    (&["frobnicate"], 2, &["frobnicate"]),
];

/// A store with one small image, `test:1`.
fn small_store() -> Result<TestStore> {
    let store = TestStore::new()?;
    let image = store.beside("IMAGE");
    sparse(
        &image,
        70 * MIB + 100,
        &[(MIB, noise(1, 600_000)), (65 * MIB, noise(2, 300_000))],
    )?;
    fs::write(store.beside("EMPTY"), "")?;
    store.publish(&image, "test:1")?;
    Ok(store)
}

fn all_said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn ensure_says(output: &Output, code: i32, words: &[&str], what: &str) -> Result<()> {
    let said = all_said(output);
    ensure!(
        output.status.code() == Some(code),
        "{what}: {} and {said}",
        output.status
    );
    for word in words {
        ensure!(
            said.contains(word),
            "{what} does not say {word:?} but {said}"
        );
    }
    ensure!(!said.contains("panicked"), "{what}: {said}");
    Ok(())
}

#[test]
fn circular_names_what_is_wrong() -> Result<()> {
    let store = small_store()?;
    for (arguments, code, words) in REFUSED {
        let named: Vec<String> = arguments
            .iter()
            .map(|argument| match *argument {
                "IMAGE" | "EMPTY" | "COPY" => store.beside(argument).display().to_string(),
                other => other.to_owned(),
            })
            .collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        ensure_says(&store.circular(&named)?, *code, words, &arguments.join(" "))?;
    }
    ensure!(
        !store.beside("COPY").exists(),
        "a refused export leaves a file behind"
    );
    Ok(())
}

#[test]
fn an_unreadable_source_is_named() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        // Root may read anything; a directory entry that leads nowhere is as unreadable as it gets.
        let store = small_store()?;
        let link = store.beside("dangling");
        std::os::unix::fs::symlink("/nowhere/at/all", &link)?;
        let link = link.display().to_string();
        return ensure_says(
            &store.circular(&["publish", &link, "x:1"])?,
            1,
            &["dangling"],
            "publish",
        );
    }
    let store = small_store()?;
    let output = store.circular(&["publish", "/etc/shadow", "x:1"])?;
    ensure_says(&output, 1, &["/etc/shadow", "ermission denied"], "publish")
}

#[test]
fn a_directory_of_other_things_is_no_store() -> Result<()> {
    let store = small_store()?;
    let other = store.beside("other");
    fs::create_dir(&other)?;
    fs::write(other.join("letter.txt"), "dear")?;
    let image = store.beside("IMAGE");
    let other_name = other.display().to_string();
    let output = store.circular(&[
        "publish",
        image.to_str().context("plain path")?,
        "x:1",
        "--store",
        &other_name,
    ])?;
    ensure_says(&output, 1, &[&other_name], "publish")?;
    ensure!(
        fs::read_dir(&other)?.count() == 1,
        "something was written there"
    );

    let server = Command::new(binaries::host("circular-server")?)
        .args(["--listen", "127.0.0.1:0", "--store", &other_name])
        .output()?;
    ensure_says(&server, 1, &[&other_name], "circular-server")
}

/// Runs `circular-mount` where it must fail.
fn failed_mount(store: &TestStore, url: &str, reference: &str) -> Result<Output> {
    let point = store.beside("point");
    fs::create_dir_all(&point)?;
    Command::new(binaries::host("circular-mount")?)
        .args([
            "--foreground",
            "--no-cache",
            "--no-state",
            "--deadline",
            "1",
            url,
            reference,
            "--root",
        ])
        .arg(store.trusted_root())
        .arg(&point)
        .output()
        .context("cannot run circular-mount")
}

#[test]
fn circular_mount_names_what_is_wrong() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = small_store()?;
    let server = Server::start(&store.path())?;
    let url = server.url();
    let cases: &[(&str, &str, i32, &[&str])] = &[
        (url, "missing", 1, &["missing"]),
        (url, "test:nosuchtag", 1, &["nosuchtag"]),
        (url, "test@99", 1, &["99"]),
        (url, "../test", 2, &["../test"]),
        ("ftp://host/", "test:1", 2, &["ftp"]),
        ("http://127.0.0.1:1/", "test:1", 1, &["http://127.0.0.1:1/"]),
    ];
    for (url, reference, code, words) in cases {
        let what = format!("circular-mount {url} {reference}");
        ensure_says(&failed_mount(&store, url, reference)?, *code, words, &what)?;
    }
    Ok(())
}

#[test]
fn a_server_that_is_no_store_is_named() -> Result<()> {
    if require::missing(&[Need::Fuse, Need::Nginx])? {
        return Ok(());
    }
    let store = small_store()?;
    let other = store.beside("other");
    fs::create_dir(&other)?;
    fs::write(other.join("index.html"), "welcome")?;
    let nginx = Nginx::start(&other)?;
    ensure_says(
        &failed_mount(&store, nginx.url(), "test:1")?,
        1,
        &[nginx.url()],
        "circular-mount",
    )
}

/// What a damaged store came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The client would not mount, or a read failed.
    Noticed,
    /// Every byte was right: the damage was in something that no reader needs.
    Harmless,
}

/// Mounts and reads everything; a wrong byte is an error.
fn read_damaged(store: &TestStore, server: &Server, image: &Path) -> Result<Outcome> {
    let options = Options {
        cache: None,
        arguments: ["--deadline", "1"].map(String::from).to_vec(),
        ..Options::default()
    };
    let Ok(mount) = Mount::start_with(store, server.url(), "test:1", &options) else {
        return Ok(Outcome::Noticed);
    };
    let length = fs::metadata(image)?.len();
    let mut outcome = Outcome::Harmless;
    let mut offset = 0;
    while offset < length {
        let bytes = STEP.min(length - offset);
        match images::read_at(&mount.disk(), offset, usize::try_from(bytes)?) {
            Ok(got) => {
                let expected = images::read_at(image, offset, got.len())?;
                ensure!(got == expected, "wrong bytes at {offset}");
                offset += bytes;
            }
            Err(error) => {
                ensure!(
                    error.raw_os_error() == Some(nix::libc::EIO),
                    "{error} at {offset}"
                );
                outcome = Outcome::Noticed;
                // Each failing read takes its deadline; one in a region is enough.
                offset = (offset / REGION + 1) * REGION;
            }
        }
    }
    Ok(outcome)
}

/// Changes each object in turn; the change must be noticed in all four kinds that a reader needs.
fn damage_is_noticed(damage: impl Fn(Vec<u8>) -> Vec<u8>) -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = small_store()?;
    let image = store.beside("IMAGE");
    let server = Server::start(&store.path())?;
    let mut noticed = BTreeSet::new();
    for object in store.objects()? {
        let sound = fs::read(&object.path)?;
        fs::remove_file(&object.path)?;
        fs::write(&object.path, damage(sound.clone()))?;
        let outcome = read_damaged(&store, &server, &image)
            .with_context(|| format!("{:?} {}", object.kind, object.path.display()))?;
        if outcome == Outcome::Noticed {
            noticed.insert(object.kind);
        } else {
            ensure!(
                object.kind == Kind::Other,
                "damage to {object:?} was not noticed"
            );
        }
        fs::write(&object.path, sound)?;
    }
    let needed = [Kind::Manifest, Kind::RegionTable, Kind::Page, Kind::Pack];
    ensure!(
        needed.iter().all(|kind| noticed.contains(kind)),
        "noticed only {noticed:?}"
    );
    ensure!(
        read_damaged(&store, &server, &image)? == Outcome::Harmless,
        "the sound store is not sound"
    );
    Ok(())
}

#[test]
fn disk_with_a_flipped_bit_is_noticed() -> Result<()> {
    damage_is_noticed(|mut bytes| {
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        bytes
    })
}

#[test]
fn disk_with_a_truncated_object_is_noticed() -> Result<()> {
    damage_is_noticed(|mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    })
}

#[test]
fn disk_with_another_object_in_place_is_noticed() -> Result<()> {
    damage_is_noticed(|bytes| noise(99, bytes.len()))
}

#[test]
fn verify_finds_a_flipped_bit() -> Result<()> {
    let store = small_store()?;
    ensure!(
        store.circular(&["verify"])?.status.success(),
        "a sound store does not verify"
    );
    for object in store.objects()? {
        if object.kind == Kind::Other {
            continue;
        }
        let sound = fs::read(&object.path)?;
        let mut bytes = sound.clone();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        fs::remove_file(&object.path)?;
        fs::write(&object.path, bytes)?;
        let name = object
            .path
            .file_name()
            .context("objects have names")?
            .to_string_lossy();
        let output = store.circular(&["verify"])?;
        let said = all_said(&output);
        ensure!(
            output.status.code() == Some(1),
            "{:?} damaged: {}",
            object.kind,
            output.status
        );
        ensure!(
            said.contains(name.get(..12).unwrap_or_default()),
            "{name} is not named: {said}"
        );
        fs::write(&object.path, sound)?;
    }
    Ok(())
}
