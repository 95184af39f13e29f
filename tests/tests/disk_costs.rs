//! What a read costs: requests and bytes, counted, never seconds.

use std::path::Path;

use anyhow::{Result, ensure};
use circular_tests::images::{self, noise, read_alone, sparse};
use circular_tests::mount::Mount;
use circular_tests::proxy::{Exchange, Proxy};
use circular_tests::require::{self, Need};
use circular_tests::store::{Kind, TestStore};

const MIB: u64 = 1 << 20;

/// No chunk is longer, and noise does not compress: 64 MiB of it are 256 chunks at least.
const CHUNK_BYTES_MAX: u64 = 256 << 10;

/// Writes a sparse image of so many regions that nobody fetches its index before it is needed: `piece`
/// in the second one, a block in each of those behind.
fn large(path: &Path, piece: Vec<u8>) -> Result<()> {
    let elsewhere = (2..40).map(|region| (region * 64 * MIB, noise(region, 4096)));
    let pieces: Vec<_> = std::iter::once((64 * MIB, piece))
        .chain(elsewhere)
        .collect();
    sparse(path, 40 * 64 * MIB, &pieces)
}

/// Of these requests, those for parts of packs.
fn ranged(exchanges: &[Exchange]) -> usize {
    exchanges
        .iter()
        .filter(|exchange| exchange.range.is_some())
        .count()
}

#[test]
fn one_cold_block_costs_a_page_and_a_chunk() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    large(&image, noise(1, 32 << 20))?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let proxy = Proxy::start(server.url())?;
    let mount = Mount::start(&store, proxy.url(), "test:1")?;

    proxy.take();
    let place = 77 * MIB + 4096;
    let block = read_alone(&mount.disk(), place, 4096)?;
    let cost = proxy.take();
    ensure!(
        block == images::read_at(&image, place, 4096)?,
        "the block differs"
    );
    ensure!(
        cost.len() == 2 && ranged(&cost) == 1,
        "one block cost {cost:#?}"
    );
    ensure!(
        cost.iter().all(Exchange::is_object),
        "one block cost {cost:#?}"
    );
    let chunk: u64 = cost
        .iter()
        .filter(|got| got.range.is_some())
        .map(|got| got.bytes)
        .sum();
    ensure!(chunk <= CHUNK_BYTES_MAX, "one chunk of {chunk} bytes");

    let again = read_alone(&mount.disk(), place + 4096 * 100, 4096)?;
    let cost = proxy.take();
    ensure!(
        again == images::read_at(&image, place + 4096 * 100, 4096)?,
        "the block differs"
    );
    ensure!(
        cost.len() <= 1,
        "with its page at hand a block cost {cost:#?}"
    );
    Ok(())
}

#[test]
fn a_hole_costs_nothing_but_its_page() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    large(&image, noise(2, 1 << 20))?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let proxy = Proxy::start(server.url())?;
    let mount = Mount::start(&store, proxy.url(), "test:1")?;

    proxy.take();
    ensure!(
        read_alone(&mount.disk(), 10 * MIB, 4096)? == vec![0; 4096],
        "a hole is not zero"
    );
    ensure!(proxy.take().is_empty(), "a region of zeros was asked for");
    ensure!(
        read_alone(&mount.disk(), 100 * MIB, 4096)? == vec![0; 4096],
        "a hole is not zero"
    );
    let cost = proxy.take();
    ensure!(
        cost.len() == 1 && ranged(&cost) == 0,
        "a hole cost {cost:#?}"
    );
    Ok(())
}

#[test]
fn reading_on_takes_far_fewer_requests_than_chunks() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, 64 * MIB, &[(0, noise(3, 64 << 20))])?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let proxy = Proxy::start(server.url())?;
    let mount = Mount::start(&store, proxy.url(), "test:1")?;

    proxy.take();
    ensure!(
        images::sha256(&mount.disk())? == images::sha256(&image)?,
        "the disk differs"
    );
    let cost = proxy.take();
    let chunks = 64 * MIB / CHUNK_BYTES_MAX;
    let requests = u64::try_from(cost.len())?;
    ensure!(
        requests * 4 <= chunks,
        "{requests} requests for {chunks} chunks or more"
    );
    let bytes: u64 = cost.iter().map(|exchange| exchange.bytes).sum();
    ensure!(bytes < 65 * MIB, "64 MiB were fetched as {bytes} bytes");
    Ok(())
}

#[test]
fn a_terabyte_opens_with_little() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("image");
    let terabyte = 1 << 40;
    let pieces = [0, 7, 500_000, 999_999].map(|mib| (mib * MIB, noise(mib, 1 << 20)));
    sparse(&image, terabyte, &pieces)?;
    let server = store.publish_and_serve(&image, "test:1")?;
    let pages = store
        .objects()?
        .iter()
        .filter(|object| object.kind == Kind::Page)
        .count();
    ensure!(pages == 3, "4 pieces in 3 regions made {pages} pages");

    let proxy = Proxy::start(server.url())?;
    let mount = Mount::start(&store, proxy.url(), "test:1")?;
    ensure!(
        mount.disk().metadata()?.len() == terabyte,
        "the disk has another length"
    );
    let cost = proxy.take();
    let bytes: u64 = cost.iter().map(|exchange| exchange.bytes).sum();
    // What opens connections ahead asks for nothing.
    let (asked, dialed): (Vec<_>, Vec<_>) = cost.iter().partition(|it| it.method == "GET");
    ensure!(asked.len() <= 8, "opening cost {cost:#?}");
    ensure!(dialed.len() <= 3, "opening cost {cost:#?}");
    ensure!(bytes < 100_000, "opening cost {bytes} bytes");
    for (offset, expected) in pieces {
        ensure!(
            images::read_at(&mount.disk(), offset, 1 << 20)? == expected,
            "differs at {offset}"
        );
    }
    ensure!(
        read_alone(&mount.disk(), terabyte - 4096, 4096)? == vec![0; 4096],
        "the end is not zero"
    );
    Ok(())
}
