//! The whole client but FUSE, on a source in memory.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_fuse::cache::Caches;
use client_fuse::cache::disk::DiskCache;
use client_fuse::cache::documents::Documents;
use client_fuse::cache::kept::KeptFrames;
use client_fuse::cache::memory::MemoryCache;
use client_fuse::config::{ByteSize, DiskCacheConfig};
use client_fuse::disk::Disk;
use client_fuse::fetch::fetcher::Fetcher;
use client_fuse::fetch::retry::RetryPolicy;
use client_fuse::fs::ImageFs;
use client_fuse::open::{EarlyHead, OpenError, OpenImage, open};
use client_fuse::overlay::layered::Layered;
use client_fuse::record::{Recorder, TraceFile};
use client_fuse::stats::Stats;
use client_fuse::trust::Trust;
use image_format::manifest::BootPack;
use image_format::trace::Header;
use tokio::runtime::Handle;

use crate::source::MemorySource;

/// A disk and what it counted.
pub(crate) struct Stack {
    pub(crate) disk: Arc<Disk<MemorySource>>,
    pub(crate) stats: Arc<Stats>,
    early_head: Mutex<Option<EarlyHead>>,
}

impl Stack {
    /// Begins to fetch what `pack` lists, or the index.
    pub(crate) fn prefetch(&self, pack: Option<BootPack>) {
        let early = self.early_head.lock().unwrap().take();
        self.disk.prefetch(pack, early);
    }
}

/// Waits of a thousandth, so that tests with faults are quick.
pub(crate) const IMPATIENT: RetryPolicy = RetryPolicy {
    deadline: Some(Duration::from_millis(300)),
    first: Duration::from_micros(100),
    last: Duration::from_millis(2),
};

/// The same for servers that are seconds away.
pub(crate) const PATIENT: RetryPolicy = RetryPolicy {
    deadline: None,
    ..IMPATIENT
};

/// How a stack is made.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub(crate) memory_bytes: usize,
    pub(crate) frames_bytes: u64,
    pub(crate) cache: Option<&'a Path>,
    pub(crate) cache_max: Option<u64>,
    pub(crate) policy: RetryPolicy,
    pub(crate) record: Option<&'a Path>,
}

impl Setup<'_> {
    /// For servers that are seconds away.
    pub(crate) const FAR: Self = Self {
        policy: PATIENT,
        ..Self::DEFAULT
    };

    pub(crate) const DEFAULT: Self = Self {
        memory_bytes: 64 << 20,
        frames_bytes: 0,
        cache: None,
        cache_max: None,
        policy: IMPATIENT,
        record: None,
    };
}

/// Opens `lab/debian:12` and nests everything above it.
pub(crate) async fn start(source: &MemorySource, setup: Setup<'_>) -> Stack {
    let trust = source.trust();
    try_start(source, setup, &trust).await.unwrap()
}

/// The same, with a trust of its own; opening may fail.
pub(crate) async fn try_start(
    source: &MemorySource,
    setup: Setup<'_>,
    trust: &Trust,
) -> Result<Stack, OpenError> {
    let (disk, image, stats) = nest(source, setup, trust).await?;
    Ok(Stack {
        disk: Arc::new(disk),
        stats,
        early_head: Mutex::new(image.early_head),
    })
}

/// The directory that a mount of `lab/debian:12` shows.
pub(crate) async fn show(source: &MemorySource, setup: Setup<'_>) -> Arc<ImageFs<MemorySource>> {
    let (disk, mut image, stats) = nest(source, setup, &source.trust()).await.unwrap();
    if image.manifest.boot_pack.is_some() {
        disk.prefetch(image.manifest.boot_pack, image.early_head.take());
    }
    let base = "http://store/".parse().unwrap();
    let disk = Layered::read_only(disk);
    Arc::new(ImageFs::new(disk, &image, &base, stats))
}

async fn nest(
    source: &MemorySource,
    setup: Setup<'_>,
    trust: &Trust,
) -> Result<(Disk<MemorySource>, OpenImage, Arc<Stats>), OpenError> {
    let stats = Arc::new(Stats::default());
    let directory = setup.cache.map(|path| DiskCacheConfig {
        directory: path.to_owned(),
        bytes_max: setup.cache_max.map(ByteSize),
    });
    let documents = Arc::new(
        directory
            .as_ref()
            .map_or_else(Documents::none, |config| Documents::open(config).unwrap()),
    );
    let image = open_image(source, setup.policy, &stats, &documents, trust).await?;
    let length = image.table.disk_length();
    let disk_cache =
        directory.map(|config| DiskCache::open(&config, image.disk_digest(), length).unwrap());
    let caches = Arc::new(Caches {
        memory: MemoryCache::new(setup.memory_bytes),
        disk: disk_cache.unwrap_or_else(DiskCache::off),
        frames: KeptFrames::new(setup.frames_bytes),
    });
    let fetcher = Fetcher::new(
        source.clone(),
        8,
        setup.policy,
        Arc::clone(&caches),
        Arc::clone(&stats),
    )
    .with_documents(documents);
    let disk = Disk::new(
        &image,
        Arc::new(fetcher),
        caches,
        &Handle::current(),
        setup.record.map(|path| recorder(path, &image)),
    );
    Ok((disk, image, stats))
}

/// Caches that keep nothing.
pub(crate) fn no_caches() -> Arc<Caches> {
    Arc::new(Caches::none())
}

fn recorder(path: &Path, image: &OpenImage) -> Arc<Recorder> {
    let header = Header::new(image.reference.clone(), image.disk_digest());
    Arc::new(Recorder::start(TraceFile::create(path).unwrap(), &header).unwrap())
}

async fn open_image(
    source: &MemorySource,
    policy: RetryPolicy,
    stats: &Arc<Stats>,
    documents: &Arc<Documents>,
    trust: &Trust,
) -> Result<OpenImage, OpenError> {
    let fetcher = Fetcher::new(source.clone(), 8, policy, no_caches(), Arc::clone(stats));
    let fetcher = Arc::new(fetcher.with_documents(Arc::clone(documents)));
    let base = "http://store/".parse().unwrap();
    let reference = "lab/debian:12".parse().unwrap();
    open(&fetcher, &base, &reference, trust).await
}
