//! A mounted disk, and what happens between it and the store: a proxy, a server that stands still, files
//! that are gone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use circular_tests::images::{self, noise, sparse};
use circular_tests::mount::{Mount, Options};
use circular_tests::proxy::Proxy;
use circular_tests::require::{self, Need};
use circular_tests::squid::Squid;
use circular_tests::store::TestStore;

/// Longest wait for what another program writes.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn disk_is_read_through_squid() -> Result<()> {
    if require::missing(&[Need::Fuse, Need::Squid])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, 16 << 20, &[(1 << 20, noise(3, 6 << 20))])?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let counted = Proxy::start(server.url())?;
    let squid = Squid::start()?;
    let options = Options {
        arguments: ["--proxy", squid.url()].map(Into::into).into(),
        ..Options::default()
    };
    let mount = Mount::start_with(&store, counted.url(), "test:1", &options)?;
    ensure!(
        images::sha256(&mount.disk())? == images::sha256(&image)?,
        "the disk differs"
    );
    mount.stop()?;
    let asked = counted.exchanges().len();
    ensure!(asked > 10, "{asked} requests");
    // The last line may come a little after the last byte; so may that of the connection above.
    let until = Instant::now() + DEADLINE;
    let gone_through = || -> Result<usize> {
        let log = squid.log()?;
        Ok(log
            .iter()
            .filter(|line| line.contains(counted.url()))
            .count())
    };
    while gone_through()? < asked && Instant::now() < until {
        std::thread::yield_now();
    }
    ensure!(
        gone_through()? == asked,
        "{} of {asked} requests went through squid",
        gone_through()?
    );
    Ok(())
}

#[test]
fn disk_of_a_server_that_stands_still_waits_and_says_so_once() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    let disk = noise(4, 8 << 20);
    fs::write(&image, &disk)?;
    let mut server = store.publish_and_serve(&image, "test:1")?;
    let mut mount = Mount::start(&store, server.url(), "test:1")?;
    let file = File::open(mount.disk())?;
    let mut read = vec![0; 4096];
    file.read_exact_at(&mut read, 0)?;
    server.freeze()?;
    let reader = std::thread::spawn(move || -> Result<Vec<u8>> {
        let mut read = vec![0; 1 << 20];
        file.read_exact_at(&mut read, 6 << 20)?;
        Ok(read)
    });
    mount.wait_for_line("nothing comes from the server")?;
    server.thaw()?;
    let read = reader.join().ok().context("the reader failed")??;
    ensure!(read == disk[6 << 20..7 << 20], "other bytes");
    mount.wait_for_line("the server answers again")?;
    let told = mount.output();
    for line in ["nothing comes from the server", "the server answers again"] {
        ensure!(told.matches(line).count() == 1, "not once:\n{told}");
    }
    ensure!(told.contains("helped"), "{told}");
    Ok(())
}

#[test]
fn disk_whose_version_was_collected_serves_its_cache_and_says_so() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    let old = noise(5, 24 << 20);
    fs::write(&image, &old)?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let cache = store.beside("cache");
    let options = Options {
        cache: Some(cache),
        ..Options::default()
    };
    let mut mount = Mount::start_with(&store, server.url(), "test:1", &options)?;
    let cached = images::read_alone(&mount.disk(), 0, 1 << 20)?;
    ensure!(cached == old[..1 << 20], "other bytes");

    fs::write(&image, noise(6, 1 << 20))?;
    store.publish(&image, "test:1")?;
    circular(&store, &["remove", "test@1"])?;
    circular(&store, &["gc", "--grace", "0"])?;
    let again = images::read_alone(&mount.disk(), 0, 1 << 20)?;
    ensure!(again == cached, "what is in the cache is not served");
    let gone = images::read_alone(&mount.disk(), 20 << 20, 4096);
    ensure!(gone.is_err(), "where did these bytes come from?");
    mount.wait_for_line("its version was removed")?;
    let gone = images::read_alone(&mount.disk(), 22 << 20, 4096);
    ensure!(gone.is_err(), "where did these bytes come from?");
    let told = mount.output();
    ensure!(
        told.matches("its version was removed").count() == 1,
        "not once:\n{told}"
    );
    Ok(())
}

fn circular(store: &TestStore, call: &[&str]) -> Result<()> {
    let done = store.circular(call)?;
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{call:?}: {told}");
    Ok(())
}

#[test]
fn disk_whose_version_was_removed_is_brought_into_the_cache_before_it_is_collected() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    let old = noise(7, 24 << 20);
    fs::write(&image, &old)?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let arguments = ["--look-every", "1"].map(String::from).to_vec();
    let options = Options {
        cache: Some(store.beside("cache")),
        arguments: arguments.clone(),
        ..Options::default()
    };
    let mut kept = Mount::start_with(&store, server.url(), "test:1", &options)?;
    let options = Options {
        arguments,
        ..Options::default()
    };
    let mut lost = Mount::start_with(&store, server.url(), "test:1", &options)?;
    fs::write(&image, noise(8, 1 << 20))?;
    store.publish(&image, "test:1")?;
    for mount in [&mut kept, &mut lost] {
        mount.wait_for_line("the tag leads to another version now")?;
    }
    circular(&store, &["remove", "test@1"])?;
    lost.wait_for_line("the cache cannot keep all of it")?;
    kept.wait_for_line("was removed from the store: bringing all of it into the cache")?;
    kept.wait_for_line("it can be read without the store")?;
    let stats = fs::read_to_string(kept.disk().with_file_name(".circular/stats.json"))?;
    ensure!(stats.contains("\"version_is_withdrawn\": 1"), "{stats}");
    circular(&store, &["gc", "--grace", "0"])?;
    let all = images::read_alone(&kept.disk(), 0, 24 << 20)?;
    ensure!(all == old, "other bytes");
    let told = kept.output();
    ensure!(
        told.matches("was removed from the store").count() == 1,
        "not once:\n{told}"
    );
    Ok(())
}
