//! A mounted disk is the published image, byte for byte, whatever its size and content.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use circular_tests::images::{self, noise, sparse};
use circular_tests::mount::{Mount, Options};
use circular_tests::nginx::Nginx;
use circular_tests::require::{self, Need};
use circular_tests::store::TestStore;

const MIB: u64 = 1 << 20;

/// Publishes, serves, mounts `image`, and compares all of it; also what `export` makes of it.
fn is_identical(store: &TestStore, image: &Path) -> Result<()> {
    let server = store.publish_and_serve(image, "test:1")?;
    let mount = Mount::start(store, server.url(), "test:1")?;
    let expected = images::sha256(image)?;
    ensure!(
        images::sha256(&mount.disk())? == expected,
        "the mounted disk differs"
    );
    let status = mount.stop()?;
    ensure!(status.success(), "the client ended with {status}");

    let copy = store.beside("copy");
    let output = store.circular(&["export", "test:1", copy.to_str().context("plain path")?])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        images::sha256(&copy)? == expected,
        "the exported disk differs"
    );
    Ok(())
}

#[test]
fn disk_of_debian_is_the_image() -> Result<()> {
    if require::missing(&[Need::Fuse, Need::Debian])? {
        return Ok(());
    }
    is_identical(&TestStore::new()?, &images::debian("debian.raw")?)
}

#[test]
fn disk_of_odd_size_is_the_image() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("odd");
    let last = (150 * MIB + 1000, noise(1, 777));
    sparse(
        &image,
        150 * MIB + 1777,
        &[
            (0, noise(2, 5_000_001)),
            (64 * MIB - 100, noise(3, 70_000)),
            last,
        ],
    )?;
    is_identical(&store, &image)
}

#[test]
fn disk_of_less_than_a_block_is_the_image() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("tiny");
    sparse(&image, 5, &[(0, b"tiny!".to_vec())])?;
    is_identical(&store, &image)
}

#[test]
fn disk_of_zeros_is_the_image() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("zeros");
    // Written, not skipped: zeros that are no holes of the file.
    std::fs::write(&image, vec![0; 70 << 20])?;
    is_identical(&store, &image)?;
    let bytes = store.object_bytes()?;
    ensure!(
        bytes < 10_000,
        "a disk of zeros takes {bytes} bytes of the store"
    );
    Ok(())
}

#[test]
fn disk_from_nginx_is_the_image() -> Result<()> {
    if require::missing(&[Need::Fuse, Need::Nginx])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(
        &image,
        80 * MIB,
        &[(MIB, noise(4, 9_000_000)), (70 * MIB, noise(5, 3_000_000))],
    )?;
    store.publish(&image, "test:1")?;
    let nginx = Nginx::start(&store.path())?;
    let mount = Mount::start(&store, nginx.url(), "test:1")?;
    ensure!(
        images::sha256(&mount.disk())? == images::sha256(&image)?,
        "the mounted disk differs"
    );
    Ok(())
}

#[test]
fn disk_comes_from_the_cache_when_the_server_is_gone() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, 20 * MIB, &[(MIB, noise(6, 4_000_000))])?;
    let server = store.publish_and_serve(&image, "test:1")?;
    // The memory cache is too small for the disk; what comes back later is from the disk cache.
    let options = Options {
        cache: Some(store.beside("cache")),
        arguments: ["--memory-cache", "1M", "--deadline", "1"]
            .map(String::from)
            .to_vec(),
        ..Options::default()
    };
    let mount = Mount::start_with(&store, server.url(), "test:1", &options)?;
    let first = images::sha256(&mount.disk())?;
    server.stop()?;
    drop_page_cache(&mount.disk())?;
    ensure!(
        images::sha256(&mount.disk())? == first,
        "the cached disk differs"
    );
    ensure!(images::sha256(&image)? == first, "the mounted disk differs");
    Ok(())
}

/// Makes the kernel forget the pages of `file`, so that the next read asks the client again.
fn drop_page_cache(file: &Path) -> Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    posix_fadvise(
        std::fs::File::open(file)?,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?;
    Ok(())
}

#[test]
fn publishing_twice_adds_no_chunk() -> Result<()> {
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, 90 * MIB, &[(0, noise(7, 8_000_000))])?;
    store.publish(&image, "test:1")?;
    let before = store.object_bytes()?;
    store.publish(&image, "other:1")?;
    let added = store.object_bytes()? - before;
    ensure!(added < 10_000, "the second publish added {added} bytes");
    Ok(())
}

#[test]
fn disk_rebuilt_by_another_mkfs_adds_under_a_twentieth() -> Result<()> {
    if require::missing(&[Need::Debian])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    store.publish(&images::debian("debian.raw")?, "debian:12")?;
    let first = store.object_bytes()?;
    store.publish(&images::debian("debian-rebuilt.raw")?, "debian:12")?;
    let added = store.object_bytes()? - first;
    ensure!(
        added * 20 < first,
        "the rebuilt disk added {added} bytes to {first}"
    );
    Ok(())
}

#[test]
fn raw_view_over_http_is_the_image_to_qemu() -> Result<()> {
    if require::missing(&[Need::QemuImg])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    // qemu-img counts in sectors, so this one is a whole number of them.
    sparse(
        &image,
        70 * MIB + 512,
        &[(0, noise(8, 2_000_000)), (69 * MIB, noise(9, 500_000))],
    )?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(&image)
        .arg(format!("{}raw/test=1/disk.raw", server.url()))
        .output()
        .context("cannot run qemu-img")?;
    ensure!(compared.status.success(), "{compared:?}");
    Ok(())
}
