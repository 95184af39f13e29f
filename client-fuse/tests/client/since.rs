//! Index deltas: who has the pages of the version before makes those of the next one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image_format::digest::Digest;
use image_format::index_delta::Patches;
use image_format::manifest::Manifest;
use image_format::region_table::{Lookup, RegionTable};
use image_format::{BLOCK_BYTES, REGION_BYTES};

use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{Setup, Stack, start};
use crate::store::{Store, mixed_disk};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Nothing is kept in memory.
fn on_disk(cache: &Path) -> Setup<'_> {
    Setup {
        memory_bytes: 0,
        cache: Some(cache),
        ..Setup::DEFAULT
    }
}

/// What is at the start of each region of a disk.
struct Regions(Vec<Vec<u8>>);

impl Regions {
    /// Three, none like another.
    fn of_the_first_version() -> Self {
        Self(
            (0..3)
                .map(|number| mixed_disk(500 + 40 * number, 0))
                .collect(),
        )
    }

    /// Overwrites a block of a region with something new.
    fn change(&mut self, region: usize, block: usize) {
        let bytes = (0..BLOCK).map(|at| (at * 31 + at / 251).to_le_bytes()[0] | 1);
        self.0[region].splice(block * BLOCK..(block + 1) * BLOCK, bytes);
    }

    fn publish(&self) -> Store {
        let regions: Vec<_> = self.0.iter().map(Vec::as_slice).enumerate().collect();
        Store::sparse(3 * REGION_BYTES, &regions)
    }

    async fn read_all(&self, stack: &Stack) {
        for (region, bytes) in (0..).zip(&self.0) {
            for (at, part) in (0..).step_by(100_000).zip(bytes.chunks(100_000)) {
                let length = u32::try_from(part.len()).unwrap();
                let read = stack.disk.read(region * REGION_BYTES + at, length).await;
                assert!(read.unwrap()[..] == *part, "region {region} at {at}");
            }
        }
    }
}

/// The pages of a disk.
fn pages(store: &Store) -> Vec<Digest> {
    let table = &store.files[&store.disk_digest.object_path()];
    let table = RegionTable::decode(table).unwrap();
    let page = |region| match table.lookup(region) {
        Lookup::Page(page) => Some(page),
        Lookup::Hole | Lookup::Leaf { .. } => None,
    };
    (0..table.n_regions()).filter_map(page).collect()
}

/// Where the index delta is.
fn delta(store: &Store) -> String {
    let manifest = Manifest::decode(&store.files[&store.manifest]).unwrap();
    manifest.index_delta.unwrap().object.digest.object_path()
}

/// Documents are written in the background.
async fn wait_for_pages(cache: &Path, store: &Store) {
    let documents = cache.join("documents-v1");
    let there = |digest: &Digest| documents.join(digest.to_string()).exists();
    let mut digests = pages(store);
    digests.push(store.disk_digest);
    while !digests.iter().all(there) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Reads `old` into the cache.
async fn read_before(old: &Arc<Store>, disk: &Regions, cache: &Path) {
    let stack = start(&MemorySource::new(old), on_disk(cache)).await;
    disk.read_all(&stack).await;
    drop(stack);
    wait_for_pages(cache, old).await;
}

/// Two versions. Something is new in two of the three regions; what follows lies elsewhere in its pack, so no page is the same.
fn versions() -> (Regions, Arc<Store>, Regions, Store) {
    let first = Regions::of_the_first_version();
    let mut second = Regions::of_the_first_version();
    second.change(0, 100);
    second.change(2, 7);
    let (old, new) = (Arc::new(first.publish()), second.publish());
    (first, old, second, new)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_made_from_those_of_the_version_before() {
    let (first, old, second, new) = versions();
    let new = Arc::new(new.since(&old, |_| ()));
    let cache = tempfile::tempdir().unwrap();
    read_before(&old, &first, cache.path()).await;
    let source = MemorySource::new(&new);
    let stack = start(&source, on_disk(cache.path())).await;
    second.read_all(&stack).await;
    let fetched = &stack.stats.fetched;
    assert_eq!(stack.stats.index_delta.pages.count(), 3);
    assert_eq!(fetched.page_bytes.count(), 0);
    let delta = delta(&new);
    assert_eq!(
        fetched.index_delta_bytes.count(),
        new.files[&delta].len() as u64
    );
    let asked = source.requests();
    let asked = asked.iter().filter(|request| request.path == delta);
    assert_eq!(asked.count(), 1, "it is fetched once for all pages");
    drop(stack);
    // What was made is kept as if it had been fetched.
    wait_for_pages(cache.path(), &new).await;
    let gone = MemorySource::faulty(&new, Arc::new(|_, _| Fault::Refuse));
    let stack = start(&gone, on_disk(cache.path())).await;
    second.read_all(&stack).await;
    assert_eq!(stack.stats.index_delta.pages.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_nothing_of_the_version_before_fetches_no_delta() {
    let (_, old, second, new) = versions();
    let new = Arc::new(new.since(&old, |_| ()));
    let cache = tempfile::tempdir().unwrap();
    let source = MemorySource::new(&new);
    let stack = start(&source, on_disk(cache.path())).await;
    second.read_all(&stack).await;
    assert_eq!(stack.stats.fetched.index_delta_bytes.count(), 0);
    assert!(stack.stats.fetched.page_bytes.count() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_is_missing_or_wrong_costs_its_pages_and_nothing_else() {
    let (first, old, second, new) = versions();
    let last = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let right = new.since(&old, |_| ());
    let mut others = Regions::of_the_first_version();
    others.change(0, 50);
    others.change(2, 50);
    let foreign = delta(&others.publish().since(&old, |_| ()));
    let foreign = others.publish().since(&old, |_| ()).files[&foreign].to_vec();
    Patches::decode(foreign.clone().into()).unwrap();
    // How it is, what the server does with it, and how many patches are found to be of no use.
    let cases: [(Store, Fault, u64); 9] = [
        (right.clone(), Fault::Missing, 0),
        (right.clone(), Fault::Refuse, 0),
        (right.clone(), Fault::Silent, 0),
        (right.clone(), Fault::Stall, 0),
        (right.clone(), Fault::Endless, 0),
        (right, Fault::Flip, 0),
        (new.since(&old, |bytes| bytes[0] ^= 1), Fault::None, 1),
        (new.since(&old, last), Fault::None, 1),
        (
            new.since(&old, |bytes| bytes.clone_from(&foreign)),
            Fault::None,
            3,
        ),
    ];
    for (row, (new, fault, damaged)) in cases.into_iter().enumerate() {
        let cache = tempfile::tempdir().unwrap();
        read_before(&old, &first, cache.path()).await;
        let (new, path) = (Arc::new(new.clone()), delta(&new));
        let faults: Faults = Arc::new(move |_, request| match request.path == path {
            true => fault,
            false => Fault::None,
        });
        let source = MemorySource::faulty(&new, faults);
        let stack = start(&source, on_disk(cache.path())).await;
        second.read_all(&stack).await;
        let stats = &stack.stats;
        assert_eq!(stats.index_delta.damaged.count(), damaged, "row {row}");
        let made = stats.index_delta.pages.count();
        assert!(made < 3, "row {row}");
        assert!(stats.fetched.page_bytes.count() > 0, "row {row}");
    }
}
