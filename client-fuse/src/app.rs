//! Wiring: the one place that picks concrete parts and nests them.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use image_format::trace::Header;
use tokio::runtime::Handle;

use crate::cache::Caches;
use crate::cache::disk::DiskCache;
use crate::cache::memory::MemoryCache;
use crate::config::{Config, Role, RootConfig, TrustConfig};
use crate::disk::Disk;
use crate::fetch::fetcher::Fetcher;
use crate::fetch::http::HttpSource;
use crate::fetch::http::identity::Identity;
use crate::fetch::mirrors::Mirrors;
use crate::fs::ImageFs;
use crate::log;
use crate::mount::signals::Signals;
use crate::mount::{Mount, Mountpoint};
use crate::open::{OpenImage, open};
use crate::process::{self, Readiness, Side};
use crate::record::{Recorder, TraceFile};
use crate::stats::Stats;
use crate::trust::minimum::MINIMUM_BYTES_MAX;
use crate::trust::{Anchor, ROLE_BYTES_MAX, Trust, read_bounded};

/// Threads for decoding and for the cache file, beyond one a core: the disk may keep some waiting.
const BLOCKING_THREADS_EXTRA: usize = 4;

/// Mounts as told and serves until the mount is gone.
///
/// # Errors
///
/// Says which step failed, on what, and why.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    if config.process.role == Role::RootDisk {
        process::take_storage_name()
            .context("cannot start anew under a name that begins with @")?;
    }
    // A relative path or a bad mount point is told at once, while we are where we were called.
    let mountpoint = Mountpoint::check(&config.mount.mountpoint)?;
    let trace = config.record.as_deref().map(create_trace).transpose()?;
    let readiness = match process::detach(config.process.style, config.process.ready_fd)? {
        Side::Waiting(code) => return Ok(ExitCode::from(code)),
        Side::Mounting(readiness) => readiness,
    };
    log::init(&config.process)?;
    process::bound_heap();
    if config.process.role == Role::RootDisk {
        process::harden();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(cores + BLOCKING_THREADS_EXTRA)
        .build()
        .context("cannot start the worker threads")?;
    let outcome = runtime.block_on(serve(config, mountpoint, trace, readiness));
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn serve(
    config: &Config,
    mountpoint: Mountpoint,
    trace: Option<TraceFile>,
    readiness: Readiness,
) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let mirrors = Arc::new(mirrors(config)?);
    let stats = Arc::new(Stats::default());
    let image = tokio::select! {
        image = open_image(config, &mirrors, &stats) => image?,
        signal = signals.next(), if config.process.role == Role::Plain => anyhow::bail!("ended by {signal}"),
    };
    let caches = Arc::new(Caches {
        memory: MemoryCache::new(config.memory_cache.to_usize()),
        disk: open_disk_cache(config, &image).await,
    });
    let network = &config.network;
    let fetcher = Fetcher::over(
        mirrors,
        network.connections,
        network.retry,
        Arc::clone(&caches),
        Arc::clone(&stats),
    );
    let recorder = trace.map(|file| start_trace(file, &image)).transpose()?;
    let disk = Disk::new(
        image.table.clone(),
        Arc::new(fetcher),
        caches,
        &Handle::current(),
        recorder,
    );
    match image.manifest.boot_pack {
        Some(pack) => disk.prefetch(pack),
        None => disk.prefetch_index(),
    }
    let fs = ImageFs::new(disk, &image, &config.base, stats);
    let name = format!("{}{}", config.base, image.reference);
    let mount = Mount::start(mountpoint, &config.mount, fs, &name).await?;
    tracing::info!(image = %image.reference, disk = %image.disk_digest(), bytes = image.manifest.disk.length, "serving");
    readiness.announce().context("cannot leave the terminal")?;
    mount.serve(config.process.role, &mut signals).await?;
    tracing::info!("unmounted");
    Ok(())
}

/// The servers of the store; what they need of files is read here.
fn mirrors(config: &Config) -> anyhow::Result<Mirrors<HttpSource>> {
    let identity = Identity::load(&config.identity)?;
    let bases = || std::iter::once(&config.base).chain(&config.mirrors);
    if identity.has_token() && bases().any(|base| base.as_url().scheme() == "http") {
        tracing::warn!("over http everybody on the way can read the token; https hides it");
    }
    let first = HttpSource::with(config.base.clone(), &config.network, &identity)?;
    let others = config.mirrors.iter().map(|base| {
        let source = first.mirror(base.clone());
        (base.to_string(), source)
    });
    let others = others.collect();
    Ok(Mirrors::of((config.base.to_string(), first), others))
}

fn create_trace(path: &Path) -> anyhow::Result<TraceFile> {
    TraceFile::create(path).with_context(|| format!("cannot record to {}", path.display()))
}

fn start_trace(file: TraceFile, image: &OpenImage) -> anyhow::Result<Recorder> {
    let header = Header::new(image.reference.clone(), image.disk_digest());
    Recorder::start(file, &header).context("cannot begin the trace")
}

/// Opens the image with patience of its own; nothing of that goes into the caches.
async fn open_image(
    config: &Config,
    mirrors: &Arc<Mirrors<HttpSource>>,
    stats: &Arc<Stats>,
) -> anyhow::Result<OpenImage> {
    let none = Arc::new(Caches {
        memory: MemoryCache::new(0),
        disk: DiskCache::off(),
    });
    let network = &config.network;
    let fetcher = Arc::new(Fetcher::over(
        Arc::clone(mirrors),
        network.connections,
        network.retry_open,
        none,
        Arc::clone(stats),
    ));
    let trust = trust(&config.trust)?;
    let image = open(&fetcher, &config.base, &config.reference, &trust).await;
    image.with_context(|| format!("cannot open `{}`", config.reference))
}

/// Reads what the configuration says about trust; the clock is read here.
fn trust(config: &TrustConfig) -> anyhow::Result<Trust> {
    let anchor = match &config.root {
        RootConfig::File(path) => {
            let root = read_bounded(path, ROLE_BYTES_MAX)
                .with_context(|| format!("cannot read the trusted root {}", path.display()))?;
            Anchor::Given(root)
        }
        RootConfig::FirstUse => Anchor::FirstUse,
        RootConfig::Remembered => Anchor::Remembered,
    };
    let minimum = config.minimum.as_ref().map(|path| {
        let minimum = read_bounded(path, MINIMUM_BYTES_MAX)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let minimum = serde_json::from_slice(&minimum);
        minimum.with_context(|| format!("{} says no versions", path.display()))
    });
    Ok(Trust {
        anchor,
        state: config.state.clone(),
        minimum: minimum.transpose()?,
        expiry: config.expiry,
        now: jiff::Timestamp::now(),
    })
}

/// The disk cache, or none: whatever is wrong with it, the mount works without.
async fn open_disk_cache(config: &Config, image: &OpenImage) -> DiskCache {
    let Some(cache) = config.disk_cache.clone() else {
        return DiskCache::off();
    };
    let (digest, length) = (image.disk_digest(), image.manifest.disk.length);
    let opened = tokio::task::spawn_blocking(move || DiskCache::open(&cache, digest, length)).await;
    match opened {
        Ok(Ok(cache)) => cache,
        Ok(Err(error)) => {
            let cause: &dyn std::error::Error = &error;
            tracing::warn!(error = cause, "no disk cache");
            DiskCache::off()
        }
        Err(error) => {
            tracing::error!(%error, "no disk cache");
            DiskCache::off()
        }
    }
}
