//! Wiring: the one place that picks concrete parts and nests them.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use image_format::BLOCK_BYTES;
use image_format::trace::Header;
use tokio::runtime::{Handle, Runtime};

use crate::cache::Caches;
use crate::cache::disk::DiskCache;
use crate::cache::documents::Documents;
use crate::cache::memory::MemoryCache;
use crate::config::{BaseUrl, Config, Purpose, RecordConfig, Role, RootConfig, TrustConfig};
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
use crate::overlay::layered::Layered;
use crate::overlay::{Base, Overlay, keep_flushed};
use crate::passthrough::{Facts, Gate};
use crate::process::{self, Readiness, Side};
use crate::record::send::Sender;
use crate::record::{Recorder, TraceFile};
use crate::stats::Stats;
use crate::trust::minimum::{MINIMUM_BYTES_MAX, Minimum};
use crate::trust::{Anchor, ROLE_BYTES_MAX, Trust, read_bounded};

mod fetch;

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
    if config.purpose == Purpose::Fetch {
        return fetch::run(config);
    }
    // A relative path or a bad mount point is told at once, while we are where we were called.
    let mountpoint = Mountpoint::check(&config.mount.mountpoint)?;
    // A machine whose root this is boots whether or not it can be recorded.
    let create = || config.record.as_ref().map(create_trace).transpose();
    let mut trace = match config.process.role {
        Role::Plain => create()?,
        Role::RootDisk => None,
    };
    let readiness = match process::detach(config.process.style, config.process.ready_fd)? {
        Side::Waiting(code) => return Ok(ExitCode::from(code)),
        Side::Mounting(readiness) => readiness,
    };
    log::init(&config.process)?;
    process::bound_heap();
    if config.process.role == Role::RootDisk {
        process::harden();
        trace = create().unwrap_or_else(|error| {
            let cause: &dyn std::error::Error = error.as_ref();
            tracing::warn!(error = cause, "this boot is not recorded");
            None
        });
    }
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(config, mountpoint, trace, readiness));
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(cores + BLOCKING_THREADS_EXTRA)
        .build()
        .context("cannot start the worker threads")
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
    let documents = Arc::new(open_documents(config).await);
    let image = tokio::select! {
        image = open_image(config, &mirrors, &documents, &stats) => image?,
        signal = signals.next(), if config.process.role == Role::Plain => anyhow::bail!("ended by {signal}"),
    };
    let overlay = open_overlay(config, &image).await?;
    let caches = Arc::new(caches(config, &image).await);
    let network = &config.network;
    let fetcher = Fetcher::over(
        mirrors,
        network.connections,
        network.retry,
        Arc::clone(&caches),
        Arc::clone(&stats),
    )
    .with_documents(documents);
    let recorder = record_if_asked(config, trace, &image)?;
    let disk = Disk::new(
        image.table.clone(),
        Arc::new(fetcher),
        Arc::clone(&caches),
        &Handle::current(),
        recorder.clone(),
    );
    disk.prefetch(image.manifest.boot_pack);
    if config.purpose == Purpose::MountAndPin {
        disk.pin(image.manifest.disk.data_bytes);
    }
    let gate = Arc::new(Gate::new(
        Facts {
            wanted: config.passthrough.is_some(),
            writable: overlay.is_some(),
            recorded: recorder.is_some(),
            whole_blocks: disk.length().is_multiple_of(u64::from(BLOCK_BYTES)),
            ..Facts::default()
        },
        Arc::clone(&caches),
        Arc::clone(&stats),
    ));
    if let Some(every) = config.passthrough {
        disk.keep_proven(image.manifest.disk.data_bytes, every, &gate);
    }
    let disk = match &overlay {
        Some(overlay) => Layered::writable(disk, Arc::clone(overlay)),
        None => Layered::read_only(disk),
    };
    let fs = ImageFs::new(disk, &image, &config.base, stats);
    let name = format!("{}{}", config.base, image.reference);
    let mount = Mount::start(mountpoint, &config.mount, fs, &name, gate).await?;
    tracing::info!(image = %image.reference, disk = %image.disk_digest(), bytes = image.manifest.disk.length, "serving");
    readiness.announce().context("cannot leave the terminal")?;
    let served = mount.serve(config.process.role, &mut signals).await;
    if let Some(overlay) = overlay {
        let closed = overlay.close().await;
        closed.context("what was written last may be lost")?;
    }
    save(recorder, caches).await?;
    served?;
    tracing::info!("unmounted");
    Ok(())
}

/// Keeps what was seen in this run. Tasks that still run hold the disk and the caches, and the process
/// does not wait for them.
async fn save(recorder: Option<Arc<Recorder>>, caches: Arc<Caches>) -> anyhow::Result<()> {
    let saving = tokio::task::spawn_blocking(move || {
        if let Some(recorder) = recorder {
            recorder.end();
        }
        caches.disk.save();
    });
    saving
        .await
        .context("what was seen in this run is not kept")
}

/// Opens the file that keeps what is written, if the disk is to be writable.
async fn open_overlay(config: &Config, image: &OpenImage) -> anyhow::Result<Option<Arc<Overlay>>> {
    let Some(path) = config.overlay.clone() else {
        return Ok(None);
    };
    let base = Base {
        disk: image.disk_digest(),
        length: image.manifest.disk.length,
        reference: image.reference.to_string(),
    };
    let opened = tokio::task::spawn_blocking(move || Overlay::open(&path, &base)).await?;
    let overlay = opened.context("the disk cannot be made writable")?;
    tokio::spawn(keep_flushed(Arc::downgrade(&overlay)));
    Ok(Some(overlay))
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

fn create_trace(record: &RecordConfig) -> anyhow::Result<TraceFile> {
    let path = &record.file;
    TraceFile::create(path).with_context(|| format!("cannot record to {}", path.display()))
}

/// Begins to record, if that is asked for. A root disk does without rather than not be there.
fn record_if_asked(
    config: &Config,
    trace: Option<TraceFile>,
    image: &OpenImage,
) -> anyhow::Result<Option<Arc<Recorder>>> {
    match trace.map(|file| record(config, file, image)).transpose() {
        Ok(recorder) => Ok(recorder.map(Arc::new)),
        Err(error) if config.process.role == Role::RootDisk => {
            let cause: &dyn std::error::Error = error.as_ref();
            tracing::warn!(error = cause, "this boot is not recorded");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Begins to record, and sees to it that the trace is sent where it shall go.
fn record(config: &Config, file: TraceFile, image: &OpenImage) -> anyhow::Result<Recorder> {
    let mut header = Header::new(image.reference.clone(), image.disk_digest());
    header.boot_pack = image.manifest.boot_pack.map(|pack| pack.object.digest);
    let sender = match &config.record {
        Some(RecordConfig {
            send_to: Some(url),
            quiet,
            ..
        }) => {
            let url: BaseUrl = url
                .parse()
                .with_context(|| format!("cannot send to `{url}`"))?;
            let identity = Identity::load(&config.identity)?;
            let source = HttpSource::with(config.base.clone(), &config.network, &identity)?;
            Some(Sender::new(&file, source, url.without_slash(), *quiet)?)
        }
        _ => None,
    };
    let recorder = Recorder::start(file, &header).context("cannot begin the trace")?;
    if let Some(sender) = sender {
        tokio::spawn(sender.of(&recorder).run());
    }
    Ok(recorder)
}

/// Opens the image with patience of its own; nothing of that goes into the caches.
async fn open_image(
    config: &Config,
    mirrors: &Arc<Mirrors<HttpSource>>,
    documents: &Arc<Documents>,
    stats: &Arc<Stats>,
) -> anyhow::Result<OpenImage> {
    let none = Arc::new(Caches {
        memory: MemoryCache::new(0),
        disk: DiskCache::off(),
    });
    let network = &config.network;
    let fetcher = Fetcher::over(
        Arc::clone(mirrors),
        network.connections,
        network.retry_open,
        none,
        Arc::clone(stats),
    );
    let fetcher = Arc::new(fetcher.with_documents(Arc::clone(documents)));
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
        let minimum = read_bounded(path, MINIMUM_BYTES_MAX as u64)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let minimum = Minimum::decode(&minimum);
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

async fn caches(config: &Config, image: &OpenImage) -> Caches {
    Caches {
        memory: MemoryCache::new(config.memory_cache.to_usize()),
        disk: open_disk_cache(config, image).await,
    }
}

/// What describes disks, as far as it can be kept.
async fn open_documents(config: &Config) -> Documents {
    let Some(cache) = config.disk_cache.clone() else {
        return Documents::none();
    };
    let opened = tokio::task::spawn_blocking(move || Documents::open(&cache)).await;
    match opened {
        Ok(Ok(documents)) => documents,
        Ok(Err(error)) => {
            // The disk cache will say the same, louder.
            tracing::debug!(%error, "documents are not kept");
            Documents::none()
        }
        Err(error) => {
            tracing::error!(%error, "documents are not kept");
            Documents::none()
        }
    }
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
