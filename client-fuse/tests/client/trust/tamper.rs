//! The tamper matrix: each kind of file on the way to a byte of the disk, damaged in each way, over
//! HTTP. With one server the outcome is the documented error or the right bytes, never others; with
//! a second, good server everything reads right.
//!
//! A new kind of file is one more line in [`File`], [`path`] and [`outcome`].

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use client_fuse::cache::disk::DiskCache;
use client_fuse::cache::memory::MemoryCache;
use client_fuse::config::NetworkConfig;
use client_fuse::config::proxies::Proxies;
use client_fuse::disk::Disk;
use client_fuse::fetch::http::HttpSource;
use client_fuse::fetch::mirrors::Mirrors;
use client_fuse::fetch::retry::RetryPolicy;
use image_format::digest::{Digest, ObjectRef};
use image_format::hint::hint_path;
use image_format::page::Page;
use image_format::region_table::{Lookup, RegionTable};
use tokio::runtime::Handle;

pub(super) use super::super::hostile::flip;
use super::super::hostile::{DAMAGES, Damage, Plot, serve};
use super::{
    Arc, Caches, Fetcher, IMPATIENT, Publisher, Release, Stats, Store, contents, mixed_disk, open,
    open_store, trust,
};

/// What is tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Root,
    Timestamp,
    Snapshot,
    Targets,
    Hint,
    Catalogue,
    Manifest,
    Table,
    Page,
    Pack,
    BootPackHead,
    BootPackFrame,
}

impl File {
    const fn is_boot_pack(self) -> bool {
        matches!(self, Self::BootPackHead | Self::BootPackFrame)
    }
}

/// What comes of it where there is no other server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The whole disk reads right.
    Right,
    /// It is not opened; this is told.
    NotOpened(&'static str),
    /// It is opened, but what is damaged cannot be read; this is told.
    NotRead(&'static str),
}

/// The documented outcome.
fn outcome(file: File, damage: Damage) -> Outcome {
    use Damage::{
        Endless, Extend, Flip, GzipBomb, Old, RedirectLoop, Swap, Truncate, Whole, WrongRange,
        ZstdBomb,
    };
    use File::{
        BootPackFrame, BootPackHead, Catalogue, Hint, Manifest, Pack, Page, Root, Snapshot, Table,
        Targets, Timestamp,
    };
    use Outcome::{NotOpened, NotRead, Right};
    match (file, damage) {
        // Nobody believes it.
        (Hint, _) => Right,
        // Ordinary packs have all of its chunks.
        (BootPackHead | BootPackFrame, _) => Right,
        // Only parts of packs are asked for; of all else the whole is what was wanted.
        (Pack, Whole) => NotRead("the server ignores range requests"),
        (_, Whole) => Right,
        (Pack, Flip | Swap | Old | ZstdBomb) => NotRead("is damaged"),
        (Pack, GzipBomb) => NotRead("is gzip-encoded"),
        (Pack, Truncate) => NotRead("ended after"),
        (Pack, WrongRange) => NotRead("where bytes"),
        (Pack | Page, RedirectLoop) => NotRead("more than 3 redirects in a row"),
        // What was asked for came before the rest.
        (Pack, Extend | Endless) => Right,
        (Page, Extend | Flip | Swap | Old | Truncate) => NotRead("is not what its name says"),
        (Page, Endless) => NotRead("is longer than"),
        (Page, GzipBomb) => NotRead("is gzip-encoded"),
        (Page, ZstdBomb) => NotRead("is zstd-encoded"),
        (Page, WrongRange) => NotRead("is answered with HTTP status 206"),
        (_, RedirectLoop) => NotOpened("more than 3 redirects in a row"),
        (_, GzipBomb) => NotOpened("is gzip-encoded"),
        (_, ZstdBomb) => NotOpened("is zstd-encoded"),
        (_, WrongRange) => NotOpened("is answered with HTTP status 206"),
        (_, Endless) => NotOpened("is longer than"),
        (Root, Truncate | Extend) => NotOpened("the store's root metadata is damaged"),
        (Root, Flip | Swap) => NotOpened("bad signature: the store's root metadata"),
        (Root, Old) => NotOpened("the store's 2.root.json is not what"),
        (Timestamp, Truncate | Extend) => NotOpened("the store's timestamp metadata is damaged"),
        (Timestamp, Flip | Swap) => NotOpened("bad signature: the store's timestamp metadata"),
        (Timestamp, Old) => NotOpened("rollback: the store offers timestamp metadata of version 1"),
        (Snapshot, _) => NotOpened("the store's 2.snapshot.json is not what"),
        (Targets, _) => NotOpened("the store's 2.targets.json is not what"),
        (Catalogue, _) => NotOpened("cannot fetch the catalogue"),
        (Manifest, _) => NotOpened("cannot fetch the manifest"),
        (Table, _) => NotOpened("cannot fetch the region table"),
    }
}

/// Most that is taken of an answer before it is seen to be wrong: the longest file there may be,
/// once for each try and each look ahead, and what is on its way when the connection is closed.
const TAKEN_BYTES_MAX: u64 = 4 * ((1 << 20) + (256 << 10));

/// Where a file of release `number` is.
fn path(store: &Store, file: File, number: u64) -> String {
    let (name, catalogue) = &store.targets[0];
    let page = || {
        let table = &store.files[&store.disk_digest.object_path()];
        match RegionTable::decode(table).unwrap().lookup(0) {
            Lookup::Page(page) => page,
            other => panic!("{other:?} is no page"),
        }
    };
    let pack = || {
        let page = Page::decode(&store.files[&page().object_path()]).unwrap();
        page.packs()[0].digest
    };
    match file {
        File::Root => format!("metadata/{number}.root.json"),
        File::Timestamp => "metadata/timestamp.json".to_owned(),
        File::Snapshot => format!("metadata/{number}.snapshot.json"),
        File::Targets => format!("metadata/{number}.targets.json"),
        File::Hint => hint_path(&"lab/debian:12".parse().unwrap()),
        File::Catalogue => image_format::catalogue::target_path(name, &catalogue.digest),
        File::Manifest => store.manifest.clone(),
        File::Table => store.disk_digest.object_path(),
        File::Page => page().object_path(),
        File::Pack => pack().object_path(),
        File::BootPackHead | File::BootPackFrame => {
            store.boot_pack.unwrap().object.digest.object_path()
        }
    }
}

/// An honest store in its second release, that release of another publisher, and its own first.
struct Stores {
    honest: Store,
    foreign: Store,
    old: Store,
}

impl Stores {
    fn new(file: File) -> Self {
        let (mut publisher, mut stranger) = (Publisher::new(), Publisher::new());
        let published = |publisher: &Publisher, number, shift: usize| {
            // Packs longer than what is taken whole where a part was asked for.
            let mut disk = mixed_disk(900, 0);
            disk.rotate_left(shift * 4096);
            let store = match file.is_boot_pack() {
                true => Store::booting(disk, 3),
                false => Store::of(disk),
            };
            store.signed(publisher, Release::number(number))
        };
        let old = published(&publisher, 1, 11);
        publisher.rotate(&[]);
        stranger.rotate(&[]);
        Self {
            honest: published(&publisher, 2, 0),
            foreign: published(&stranger, 2, 300),
            old,
        }
    }

    fn plot(&self, file: File, damage: Damage) -> Plot {
        let of = |store: &Store, number| store.files[&path(store, file, number)].clone();
        Plot {
            path: path(&self.honest, file, 2),
            from: match file {
                File::BootPackFrame => {
                    usize::try_from(self.honest.boot_pack.unwrap().head.length).unwrap()
                }
                _ => 0,
            },
            damage,
            foreign: of(&self.foreign, 2),
            old: of(&self.old, 1),
        }
    }
}

/// A mount without a kernel, over HTTP.
struct Mounted {
    disk: Disk<HttpSource>,
    stats: Arc<Stats>,
}

async fn mount(
    servers: &[&str],
    trust: &client_fuse::trust::Trust,
) -> (Result<Mounted, String>, u64) {
    // What is wrong is given up after some tries: no cell of the matrix waits for the deadline, and a
    // machine that is busy does not reach it.
    let retry = RetryPolicy {
        deadline: Some(Duration::from_secs(30)),
        ..IMPATIENT
    };
    let network = NetworkConfig {
        connections: 4,
        timeout: Duration::from_secs(10),
        retry,
        retry_open: retry,
        proxies: Proxies::default(),
    };
    let source = |base: &&str| {
        let source = HttpSource::new(base.parse().unwrap(), &network).unwrap();
        ((*base).to_owned(), source)
    };
    let mut sources = servers.iter().map(source);
    let mirrors = Mirrors::of(sources.next().unwrap(), sources.collect());
    let (mirrors, stats) = (Arc::new(mirrors), Arc::new(Stats::default()));
    let caches = Arc::new(Caches::of(MemoryCache::new(16 << 20), DiskCache::off()));
    let fetcher = Fetcher::over(
        mirrors,
        4,
        IMPATIENT,
        Arc::clone(&caches),
        Arc::clone(&stats),
    );
    let fetcher = Arc::new(fetcher);
    let (base, reference) = (servers[0].parse().unwrap(), "lab/debian:12".parse());
    let opened = open(&fetcher, &base, &reference.unwrap(), trust).await;
    let taken = stats.fetched.metadata_bytes.count() + stats.fetched.table_bytes.count();
    let mounted = opened.map(|image| {
        let disk = Disk::new(image.table, fetcher, caches, &Handle::current(), None);
        if let Some(pack) = image.manifest.boot_pack {
            disk.prefetch(Some(pack), image.early_head);
        }
        Mounted { disk, stats }
    });
    let mounted = mounted.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    (mounted, taken)
}

/// Waits until the boot pack was of use, or seen to be of none.
async fn wait_for_boot_pack(mounted: &Mounted) {
    let stats = &mounted.stats.boot_pack;
    let seen = || stats.frames.count() + stats.frames_by_ranges.count() + stats.damaged.count();
    while seen() == 0 {
        tokio::task::yield_now().await;
    }
}

/// Reads all of the disk; what reads, reads right. Returns what was told of what does not.
async fn read(mounted: &Mounted, store: &Store) -> Vec<String> {
    let mut told = Vec::new();
    for offset in (0..store.disk.len() as u64).step_by(128 << 10) {
        match mounted.disk.read(offset, 128 << 10).await {
            Ok(bytes) => assert!(
                bytes == *store.flat(offset, 128 << 10),
                "wrong bytes at {offset}"
            ),
            Err(error) => {
                told.push(format!("{:#}", anyhow::Error::from(error)));
                // One is enough to know what is told.
                break;
            }
        }
    }
    told
}

/// One row of the matrix.
async fn row(file: File) {
    let stores = Stores::new(file);
    let files = |store: &Store| -> Arc<HashMap<String, Bytes>> { Arc::new(store.files.clone()) };
    let honest = files(&stores.honest);
    let good = serve(&honest, None);
    for damage in DAMAGES {
        let state = tempfile::tempdir().unwrap();
        let trust = trust(&stores.honest, state.path());
        // What was seen matters for what is signed well but old; a root that was seen is not asked for.
        if file != File::Root {
            open_store(&stores.honest, &trust).await.unwrap();
        }
        let before = contents(state.path());
        let bad = serve(&honest, Some(stores.plot(file, damage)));
        let cell = format!("{file:?} {damage:?}");

        let (mounted, taken) = mount(&[&bad], &trust).await;
        assert!(taken < TAKEN_BYTES_MAX, "{cell}: {taken} bytes");
        match (mounted, outcome(file, damage)) {
            (Err(told), Outcome::NotOpened(expected)) => {
                assert!(told.contains(expected), "{cell}: {told}");
                assert_eq!(contents(state.path()), before, "{cell}");
            }
            (Ok(mounted), Outcome::NotRead(expected)) => {
                let told = read(&mounted, &stores.honest).await;
                assert!(
                    told.iter().any(|it| it.contains(expected)),
                    "{cell}: {told:?}"
                );
            }
            (Ok(mounted), Outcome::Right) => {
                if file.is_boot_pack() {
                    wait_for_boot_pack(&mounted).await;
                }
                assert_eq!(read(&mounted, &stores.honest).await, [""; 0], "{cell}");
                let page_bytes = mounted.stats.fetched.page_bytes.count();
                assert!(page_bytes < TAKEN_BYTES_MAX, "{cell}: {page_bytes} bytes");
            }
            (mounted, _) => panic!("{cell}: {:?}", mounted.err()),
        }

        let (mounted, _) = mount(&[&bad, &good], &trust).await;
        let mounted = mounted.unwrap_or_else(|told| panic!("{cell}, with a mirror: {told}"));
        let told = read(&mounted, &stores.honest).await;
        assert_eq!(told, [""; 0], "{cell}, with a mirror");
    }
}

/// A test for each row, so that they run beside each other.
macro_rules! rows {
    ($($name:ident: $file:ident,)*) => {$(
        #[tokio::test]
        async fn $name() {
            row(File::$file).await;
        }
    )*};
}

rows! {
    a_tampered_root_is_refused: Root,
    a_tampered_timestamp_is_refused: Timestamp,
    a_tampered_snapshot_is_refused: Snapshot,
    a_tampered_targets_file_is_refused: Targets,
    a_tampered_hint_does_nothing: Hint,
    a_tampered_catalogue_is_refused: Catalogue,
    a_tampered_manifest_is_refused: Manifest,
    a_tampered_region_table_is_refused: Table,
    a_tampered_page_is_never_read: Page,
    a_tampered_pack_is_never_read: Pack,
    a_tampered_head_of_a_boot_pack_harms_nobody: BootPackHead,
    a_tampered_frame_of_a_boot_pack_harms_nobody: BootPackFrame,
}

/// Disks of a store and of another one differ where the matrix swaps them.
#[test]
fn what_is_swapped_is_another() {
    let stores = Stores::new(File::BootPackHead);
    let digest = |store: &Store| -> Digest { store.disk_digest };
    assert_ne!(digest(&stores.honest), digest(&stores.old));
    assert_ne!(digest(&stores.honest), digest(&stores.foreign));
    let boot_pack = |store: &Store| store.boot_pack.unwrap().object.digest;
    assert_ne!(boot_pack(&stores.honest), boot_pack(&stores.old));
    assert_ne!(boot_pack(&stores.honest), boot_pack(&stores.foreign));
    let pack = &stores.honest.files[&path(&stores.honest, File::Pack, 2)];
    assert!(ObjectRef::of(pack).length > 1 << 20);
}
