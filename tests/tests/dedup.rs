//! What versions of a disk share: counted on real ext4 file systems, against fixed chunks.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use circular_tests::images::{self, noise};
use circular_tests::require::{self, Need};
use circular_tests::store::TestStore;

const MIB: u64 = 1 << 20;

/// Chunks of 64 KiB wherever they lie: a mask of 63 bits never cuts by content.
const FIXED: &str = r#"{"circular_store":1,"chunker":{"min_blocks":16,"mask_bits":63,"max_blocks":16,"tail_bytes":0,"seed":0}}"#;

/// Returns a store that cuts as `marker` says: the publish that makes a store gives it the defaults.
fn store_with(marker: &str) -> Result<TestStore> {
    let store = TestStore::new()?;
    let first = store.beside("first.raw");
    fs::write(&first, noise(1, 4096))?;
    new_bytes(&store, &first)?;
    fs::write(store.path().join("circular.json"), marker)?;
    Ok(store)
}

/// Publishes `disk` and returns how many plain bytes of it the store did not have.
fn new_bytes(store: &TestStore, disk: &Path) -> Result<u64> {
    let summary = store.publish(disk, "disk")?;
    summary["new_data_bytes"]
        .as_u64()
        .context("a summary without new_data_bytes")
}

/// A tree of files of many sizes, from `seed`; `order` decides in which order they are made.
fn tree(directory: &Path, order: impl Iterator<Item = u32>) -> Result<()> {
    fs::create_dir(directory)?;
    for number in order {
        let length = 700 + (number * 7919) % 150_000;
        let bytes = noise(u64::from(number), usize::try_from(length)?);
        fs::write(directory.join(format!("file-{number:04}")), bytes)?;
    }
    Ok(())
}

fn mkfs(disk: &Path, tree: &Path, uuid: &str) -> Result<()> {
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-U", uuid, "-d"])
        .arg(tree)
        .arg(disk)
        .arg("128M")
        .stdout(Stdio::null())
        .status()
        .context("cannot run mke2fs")?;
    ensure!(made.success(), "mke2fs failed");
    Ok(())
}

#[test]
fn a_rebuilt_file_system_shares_its_files_and_fixed_chunks_do_not() -> Result<()> {
    let store = TestStore::new()?;
    let fixed = store_with(FIXED)?;
    let (one, other) = (store.beside("one.raw"), store.beside("other.raw"));
    // mke2fs copies in the order of the directory: one file more at its front moves all the others.
    tree(&store.beside("a"), 1..600)?;
    tree(&store.beside("b"), 0..600)?;
    mkfs(
        &one,
        &store.beside("a"),
        "11111111-1111-4111-8111-111111111111",
    )?;
    mkfs(
        &other,
        &store.beside("b"),
        "22222222-2222-4222-8222-222222222222",
    )?;
    let first = new_bytes(&store, &one)?;
    let again = new_bytes(&store, &other)?;
    ensure!(again * 20 < first, "{again} of {first} bytes were new");
    let fixed_first = new_bytes(&fixed, &one)?;
    let fixed_again = new_bytes(&fixed, &other)?;
    ensure!(
        fixed_again * 2 > fixed_first,
        "fixed chunks added only {fixed_again} of {fixed_first} bytes: this test proves nothing"
    );
    Ok(())
}

#[test]
fn an_upgrade_in_place_adds_about_what_changed() -> Result<()> {
    if require::missing(&[Need::Debian])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let disk = store.beside("disk.raw");
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .arg(images::debian("debian.raw")?)
        .arg(&disk)
        .status()?;
    ensure!(copied.success(), "cp failed");
    new_bytes(&store, &disk)?;
    let package = store.beside("package");
    let changed = 9 * MIB;
    fs::write(&package, noise(11, usize::try_from(changed)?))?;
    // A file is written anew and an old one removed, as dpkg does; e2fsprogs does it in place.
    for request in [
        format!("write {} usr/bin/upgraded", package.display()),
        "rm usr/bin/perl".to_owned(),
    ] {
        let done = Command::new("debugfs")
            .args(["-w", "-R", &request])
            .arg(&disk)
            .stderr(Stdio::null())
            .status()
            .context("cannot run debugfs")?;
        ensure!(done.success(), "debugfs failed");
    }
    let added = new_bytes(&store, &disk)?;
    ensure!(
        (changed..changed + 2 * MIB).contains(&added),
        "{changed} bytes changed, {added} were added"
    );
    Ok(())
}
