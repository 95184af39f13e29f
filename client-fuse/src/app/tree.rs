//! `circular-mount tree`: all images of a store.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use tokio::runtime::Handle;

use super::inside::Inside;
use super::{mirrors, open_documents, trust};
use crate::cache::Caches;
use crate::cache::desk;
use crate::cache::memory::MemoryCache;
use crate::config::{Config, Role};
use crate::fetch::fetcher::Fetcher;
use crate::fetch::http::HttpSource;
use crate::fetch::retry::RetryPolicy;
use crate::mount::signals::Signals;
use crate::mount::{Mount, Mountpoint};
use crate::stats::Stats;
use crate::supervise::Stand;
use crate::tree::Tree;
use crate::tree::images::Images;
use crate::tree::names::Names;

/// Mounts the tree and serves until it is gone.
pub(super) async fn serve(
    config: &Config,
    mountpoint: Mountpoint,
    source: HttpSource,
    stand: Stand,
) -> anyhow::Result<()> {
    let Stand::Alone(readiness) = stand else {
        anyhow::bail!("a supervisor holds mounts of one image");
    };
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let inside = Inside::begin(config, true).await?;
    let mirrors = Arc::new(mirrors(config, source));
    let stats = Arc::new(Stats::default());
    let documents = Arc::new(open_documents(config).await);
    let memory = MemoryCache::new(config.memory_cache.to_usize());
    let fetcher = |policy: RetryPolicy| {
        let network = &config.network;
        let (mirrors, stats) = (Arc::clone(&mirrors), Arc::clone(&stats));
        Fetcher::over(
            mirrors,
            network.connections,
            policy,
            Arc::new(Caches::none()),
            stats,
        )
        .with_documents(Arc::clone(&documents))
    };
    let metadata = Arc::new(fetcher(config.network.retry_open));
    let names = Names::load(
        Arc::clone(&metadata),
        config.base.clone(),
        trust(&config.trust)?,
    );
    let names = tokio::select! {
        names = names => names.context("cannot read what images there are")?,
        signal = signals.next() => anyhow::bail!("ended by {signal}"),
    };
    let images = Images::new(
        metadata,
        fetcher(config.network.retry),
        memory,
        config.disk_cache.clone(),
        config.base.clone(),
        Handle::current(),
    );
    let tree = Arc::new(Tree::new(names, images, SystemTime::now()));
    inside.tell_of(&tree);
    let name = config.base.to_string();
    let name = config.mount.source.as_ref().unwrap_or(&name);
    let mount = Mount::start_tree(mountpoint, &config.mount, Arc::clone(&tree), name).await?;
    tracing::info!(store = %config.base, "serving all images");
    readiness.announce().context("cannot leave the terminal")?;
    let served = mount.serve(Role::Plain, &mut signals).await;
    // A hint, which a disk that does not answer does not get.
    desk::ask(move || tree.save()).await;
    served?;
    tracing::info!("unmounted");
    Ok(())
}
