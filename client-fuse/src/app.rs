//! Wiring: the one place that picks concrete parts and nests them.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use image_format::BLOCK_BYTES;
use image_format::trace::Header;
use tokio::runtime::{Handle, Runtime};

use crate::cache::desk;
use crate::cache::disk::DiskCache;
use crate::cache::documents::Documents;
use crate::cache::kept::KeptFrames;
use crate::cache::memory::MemoryCache;
use crate::cache::{Caches, keep_recency};
use crate::config::{BaseUrl, Config, Purpose, RecordConfig, Role, RootConfig, TrustConfig};
use crate::disk::Disk;
use crate::fetch::decoders::Decoders;
use crate::fetch::fetcher::Fetcher;
use crate::fetch::http::HttpSource;
use crate::fetch::http::identity::Identity;
use crate::fetch::mirrors::Mirrors;
use crate::fetch::resolve::Resolver;
use crate::fetch::retry::RetryPolicy;
use crate::fs::ImageFs;
use crate::log;
use crate::mount::Mountpoint;
use crate::mount::signals::Signals;
use crate::open::{OpenImage, open};
use crate::overlay::{self, Overlay};
use crate::panics;
use crate::passthrough::{Facts, Lender};
use crate::process::{self, Side};
use crate::record::send::Sender;
use crate::record::{Recorder, TraceFile};
use crate::stats::Stats;
use crate::supervise::opened::Opened;
use crate::supervise::seat::{First, Seat};
use crate::supervise::{self, Stand};
use crate::trust::minimum::{MINIMUM_BYTES_MAX, Minimum};
use crate::trust::{Anchor, ROLE_BYTES_MAX, Trust, read_bounded};
use crate::withdrawn::Lookout;

mod fetch;
mod front;
mod inside;
mod tree;
mod written;

use front::{Front, Shown};
use written::Opening;

/// Connections that are opened ahead. An opening asks for three files at once, then for six (see [`crate::open`]).
const DIALED_EARLY: usize = 3;

/// How long a look at the store may take: there is another one.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// Threads beyond those for decoding, for the cache and for overlays, for what else waits: traces, names.
const BLOCKING_THREADS_EXTRA: usize = 2;

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
    if let Some(seat) = Seat::inherited().context("cannot take over from a supervisor")? {
        return take_over(config, seat);
    }
    // A relative path or a bad mount point is told at once, while we are where we were called.
    let front = Front::check(config)?;
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
    panics::watch();
    process::bound_heap();
    if config.process.role == Role::RootDisk {
        process::harden();
        trace = create().unwrap_or_else(|error| {
            let cause: &dyn std::error::Error = error.as_ref();
            tracing::warn!(error = cause, "this boot is not recorded");
            None
        });
    }
    // Whatever comes from files is read before the first worker: later ones may find none.
    let source = source(config)?;
    let trust = trust(&config.trust)?;
    let stand = match &front {
        Front::Mount(mountpoint) => match supervise::begin(config, mountpoint, readiness)? {
            supervise::Side::Done(code) => return Ok(code),
            supervise::Side::Working(stand) => stand,
        },
        Front::Tree(_) | Front::Socket(_) => Stand::Alone(readiness),
    };
    if matches!(stand, Stand::Supervised(_)) && config.process.role == Role::RootDisk {
        process::lock_memory();
    }
    work(config, front, source, Some(trust), trace, stand)
}

/// Serves what a supervisor of another version of this program holds.
fn take_over(config: &Config, seat: Seat) -> anyhow::Result<ExitCode> {
    log::init(&config.process)?;
    process::bound_heap();
    if config.process.role == Role::RootDisk {
        process::harden();
    }
    let mountpoint = Mountpoint::taken(&config.mount.mountpoint, seat.is_file());
    let stand = Stand::Supervised(seat);
    work(
        config,
        Front::Mount(mountpoint),
        source(config)?,
        // What it opened was verified before; the file may be gone.
        trust(&config.trust).ok(),
        None,
        stand,
    )
}

fn work(
    config: &Config,
    front: Front,
    source: HttpSource,
    trust: Option<Trust>,
    trace: Option<TraceFile>,
    stand: Stand,
) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let is_worker = matches!(stand, Stand::Supervised(_));
    let outcome = match front {
        Front::Tree(mountpoint) => runtime.block_on(tree::serve(config, mountpoint, source, stand)),
        front => runtime.block_on(serve(config, front, source, trust, trace, stand)),
    };
    if is_worker {
        // A task that is dropped answers its reader with an error. The next worker would do better:
        // what is not answered when this process is gone is asked again.
        std::mem::forget(runtime);
    } else {
        runtime.shutdown_background();
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<Runtime> {
    let threads = Decoders::most() + desk::THREADS + overlay::THREADS + BLOCKING_THREADS_EXTRA;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(threads)
        .build()
        .context("cannot start the worker threads")
}

async fn serve(
    config: &Config,
    front: Front,
    source: HttpSource,
    trust: Option<Trust>,
    trace: Option<TraceFile>,
    mut stand: Stand,
) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let resolver = source.resolver().clone();
    let stats = Arc::new(Stats::default());
    let opened = open_again(&mut stand, &stats, &resolver, trace.is_some())?;
    let is_first = opened.is_none();
    let inside = inside::Inside::begin(config, is_first).await?;
    let early = source.clone();
    let mirrors = Arc::new(mirrors(config, source));
    let documents = Arc::new(open_documents(config).await);
    let mut image = match opened {
        Some(image) => image,
        None => {
            tokio::spawn(async move { early.dial(DIALED_EARLY).await });
            tokio::select! {
                image = open_image(config, &mirrors, &documents, &stats) => image?,
                signal = signals.next(), if config.process.role == Role::Plain => anyhow::bail!("ended by {signal}"),
            }
        }
    };
    let trace = trace.filter(|_| is_first);
    let overlay = Opening::begin(config, &image, &mut stand)?
        .open_now()
        .await?;
    let caches = Arc::new(caches(config, &image).await);
    tokio::spawn(keep_recency(Arc::downgrade(&caches)));
    let lookout = lookout(config, &image, trust, &mirrors, &stats);
    let fetcher = fetcher(config, mirrors, &caches, &stats).with_documents(documents);
    let recorder = record_if_asked(config, trace, &image)?;
    let disk = disk(
        config,
        &mut image,
        fetcher,
        &caches,
        recorder.clone(),
        is_first,
    );
    if let Some(lookout) = lookout {
        disk.with_filler(|filler| lookout.run(filler));
    }
    let facts = Facts {
        writable: config.overlay.is_some(),
        recorded: recorder.is_some(),
        ..Facts::default()
    };
    let lender = lend(config, &disk, &image, front.may_lend(&stand), facts);
    let disk = overlay.layer(disk);
    let fs = Arc::new(ImageFs::new(disk, &image, &config.base, stats));
    let _metrics = inside.show(&fs);
    let is_kept = is_first && matches!(stand, Stand::Supervised(_));
    let (kept, last_step) = overlay.rest(&fs);
    let first = is_kept.then(|| first(config, &image, &resolver, kept));
    let first = first.transpose().context("cannot keep what was opened")?;
    let shown = Shown {
        fs: Arc::clone(&fs),
        lender,
        image: &image,
        first,
        last_step,
    };
    let served = front.serve(config, stand, shown, &mut signals).await?;
    if config.overlay.is_some() && fs.disk().overlay_file().is_none() {
        // It never was there: what is not on disk yet is with whoever comes next.
        anyhow::bail!("the overlay was not taken over");
    }
    save(fs.disk().overlay_file(), recorder, caches).await?;
    served?;
    tracing::info!("ended");
    Ok(())
}

/// What the first worker of a supervisor leaves to the others.
fn first(
    config: &Config,
    image: &OpenImage,
    resolver: &Resolver,
    overlay: Option<overlay::Kept>,
) -> std::io::Result<First> {
    Ok(First {
        name: front::name(config, image),
        opened: Opened::keep(image, resolver.all_known())?,
        overlay,
    })
}

/// What fetches for readers.
fn fetcher(
    config: &Config,
    mirrors: Arc<Mirrors<HttpSource>>,
    caches: &Arc<Caches>,
    stats: &Arc<Stats>,
) -> Fetcher<HttpSource> {
    let network = &config.network;
    Fetcher::over(
        mirrors,
        network.connections,
        network.retry,
        Arc::clone(caches),
        Arc::clone(stats),
    )
}

/// The disk of `image`, and what is fetched of it ahead of any reader; by later workers of a supervisor
/// nothing is but what is to be kept.
fn disk(
    config: &Config,
    image: &mut OpenImage,
    fetcher: Fetcher<HttpSource>,
    caches: &Arc<Caches>,
    recorder: Option<Arc<Recorder>>,
    is_first: bool,
) -> Disk<HttpSource> {
    let disk = Disk::new(
        &*image,
        Arc::new(fetcher),
        Arc::clone(caches),
        &Handle::current(),
        recorder,
    );
    if is_first || config.keep_boot_pack.0 > 0 {
        disk.prefetch(image.manifest.boot_pack, image.early_head.take());
    }
    if config.purpose == Purpose::MountAndPin {
        disk.pin(image.manifest.disk.data_bytes);
    }
    disk
}

/// What looks now and then whether the store still has the version of `image`, if that is wanted and it is
/// known whom to trust.
fn lookout(
    config: &Config,
    image: &OpenImage,
    trust: Option<Trust>,
    mirrors: &Arc<Mirrors<HttpSource>>,
    stats: &Arc<Stats>,
) -> Option<Lookout<HttpSource>> {
    let (every, trust) = (config.look_every?, trust?);
    let fetcher = Fetcher::over(
        Arc::clone(mirrors),
        1,
        RetryPolicy::until(Some(LOOK_PATIENCE)),
        Arc::new(Caches::none()),
        Arc::clone(stats),
    );
    Some(Lookout {
        fetcher: Arc::new(fetcher),
        base: config.base.clone(),
        trust,
        reference: config.reference.clone(),
        version: image.version,
        data: image.manifest.disk.data_bytes,
        every,
    })
}

/// Keeps what was written and seen in this run. Tasks that still run hold the disk and the caches, and
/// the process does not wait for them.
async fn save(
    overlay: Option<&Arc<Overlay>>,
    recorder: Option<Arc<Recorder>>,
    caches: Arc<Caches>,
) -> anyhow::Result<()> {
    if let Some(overlay) = overlay {
        let closed = overlay.close().await;
        closed.context("what was written last may be lost")?;
    }
    if let Some(recorder) = recorder {
        let ending = tokio::task::spawn_blocking(move || recorder.end());
        ending
            .await
            .context("what was seen in this run is not kept")?;
    }
    // A hint, which a disk that does not answer does not get.
    caches.ask(|caches| caches.disk.save()).await;
    Ok(())
}

/// Sees to it that the cache file is verified for the kernel to read it, if it `may`.
fn lend(
    config: &Config,
    disk: &Disk<HttpSource>,
    image: &OpenImage,
    may: bool,
    facts: Facts,
) -> Arc<Lender> {
    let every = config.passthrough.filter(|_| may);
    let facts = Facts {
        wanted: every.is_some(),
        whole_blocks: disk.length().is_multiple_of(u64::from(BLOCK_BYTES)),
        ..facts
    };
    let chunks = disk.chunks();
    let stats = Arc::clone(chunks.fetcher().stats());
    let lender = Arc::new(Lender::new(facts, Arc::clone(chunks.caches()), stats));
    if let Some(every) = every {
        disk.keep_proven(image.manifest.disk.data_bytes, every, &lender);
    }
    lender
}

/// What the first worker opened, if this is another one.
fn open_again(
    stand: &mut Stand,
    stats: &Stats,
    resolver: &Resolver,
    is_recorded: bool,
) -> anyhow::Result<Option<OpenImage>> {
    let Stand::Supervised(seat) = stand else {
        return Ok(None);
    };
    stats.restarts.add(seat.restarts());
    let opened = seat.opened().context("cannot serve the same disk again")?;
    // A trace says when each chunk was touched first, which only the first worker knows.
    if opened.is_some() && is_recorded {
        tracing::warn!("what is read from now on is not recorded: the recording process died");
    }
    Ok(opened.map(|opened| {
        resolver.remember(opened.addresses);
        opened.image
    }))
}

/// The server of the store; what it and its mirrors need of files is read here.
fn source(config: &Config) -> anyhow::Result<HttpSource> {
    let identity = Identity::load(&config.identity)?;
    let bases = || std::iter::once(&config.base).chain(&config.mirrors);
    if identity.has_token() && bases().any(|base| base.as_url().scheme() == "http") {
        tracing::warn!("over http everybody on the way can read the token; https hides it");
    }
    let proxies = &config.network.proxies;
    for (scheme, proxy) in [("http", &proxies.http), ("https", &proxies.https)] {
        if let Some(proxy) = proxy
            && bases().any(|base| base.as_url().scheme() == scheme)
        {
            tracing::info!(%proxy, except = proxies.except, "going through a proxy");
        }
    }
    let source = HttpSource::with(config.base.clone(), &config.network, &identity);
    let source = match config.process.role {
        // It is said again by whoever starts this program, and read on a console.
        Role::RootDisk => source.context("if the store is behind https: an initramfs has no certificate authorities of its own, publish the image with --guest-ca FILE"),
        Role::Plain => source.map_err(anyhow::Error::from),
    }?;
    if config.process.role == Role::RootDisk {
        source.load_authorities();
    }
    Ok(source)
}

/// The servers of the store.
fn mirrors(config: &Config, first: HttpSource) -> Mirrors<HttpSource> {
    let others = config.mirrors.iter().map(|base| {
        let source = first.mirror(base.clone());
        (base.to_string(), source)
    });
    let others = others.collect();
    Mirrors::of((config.base.to_string(), first), others)
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
    let none = Arc::new(Caches::none());
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
        disk: match config.disk_cache.clone() {
            Some(cache) => {
                let length = image.manifest.disk.length;
                DiskCache::open_or_off(cache, image.disk_digest(), length).await
            }
            None => DiskCache::off(),
        },
        frames: KeptFrames::new(config.keep_boot_pack.0),
    }
}

/// What describes disks, as far as it can be kept.
async fn open_documents(config: &Config) -> Documents {
    let Some(cache) = config.disk_cache.clone() else {
        return Documents::none();
    };
    // From here on its disk is asked.
    tokio::spawn(desk::look_after());
    let opened = desk::ask_patiently(move || Documents::open(&cache));
    match opened.await {
        Some(Ok(documents)) => documents,
        Some(Err(error)) => {
            // The disk cache will say the same, louder.
            tracing::debug!(%error, "documents are not kept");
            Documents::none()
        }
        None => {
            tracing::warn!("documents are not kept: the disk of the cache does not answer");
            Documents::none()
        }
    }
}
