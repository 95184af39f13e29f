//! What users of a mount, and publishers, live through: the disk changes in the store, the mount is
//! wanted away while it is used, the disk of the store is full.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use circular_tests::file_system::FileSystem;
use circular_tests::images::noise;
use circular_tests::mount::Mount;
use circular_tests::require::{self, Need};
use circular_tests::store::TestStore;

#[test]
fn a_mount_stays_at_its_version_when_a_new_one_is_published() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    let old = noise(1, 3 << 20);
    fs::write(&image, &old)?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let mount = Mount::start(&store, server.url(), "test:1")?;
    let new = noise(2, 3 << 20);
    fs::write(&image, &new)?;
    store.publish(&image, "test:1")?;
    ensure!(fs::read(mount.disk())? == old, "the disk changed in use");
    let second = Mount::start(&store, server.url(), "test:1")?;
    ensure!(fs::read(second.disk())? == new, "the new disk is not shown");
    Ok(())
}

#[test]
fn a_busy_mount_serves_until_its_last_user_closes() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    let disk = noise(3, 3 << 20);
    fs::write(&image, &disk)?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let mut mount = Mount::start(&store, server.url(), "test:1")?;
    let file = File::open(mount.disk())?;
    mount.terminate()?;
    mount.wait_for_line("still in use")?;
    ensure!(!mount.disk().exists(), "the mount is still to be seen");
    let mut read = vec![0; disk.len()];
    file.read_exact_at(&mut read, 0)?;
    ensure!(read == disk, "the disk reads differently");
    drop(file);
    let status = mount.wait()?;
    ensure!(status.success(), "the client ended with {status}");
    Ok(())
}

#[test]
fn a_publish_that_fills_the_disk_changes_nothing() -> Result<()> {
    if require::missing(&[Need::Fuse])? || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let store = TestStore::new()?;
    let _small = FileSystem::in_memory(&store.path(), "6m")?;
    let (fits, does_not) = (store.beside("fits"), store.beside("does-not"));
    fs::write(&fits, noise(4, 2 << 20))?;
    fs::write(&does_not, noise(5, 9 << 20))?;
    store.publish(&fits, "test:1")?;
    let before = fs::read(store.path().join("metadata/timestamp.json"))?;

    let image = does_not.to_str().unwrap_or_default();
    let full = store.circular(&["publish", image, "test:2", "--no-boot"])?;
    let told = String::from_utf8_lossy(&full.stderr).into_owned();
    ensure!(full.status.code() == Some(1), "{:?} {told}", full.status);
    ensure!(told.contains("No space left on device"), "{told}");
    ensure!(fs::read(store.path().join("metadata/timestamp.json"))? == before);
    let verified = store.circular(&["verify"])?;
    ensure!(verified.status.success(), "the store is damaged");

    // What the failed publish left is no longer in the way of the next one.
    store.publish(&fits, "test:3")?;
    Ok(())
}
