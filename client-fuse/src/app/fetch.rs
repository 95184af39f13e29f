//! `circular-mount fetch`: fills the cache with a whole image, and ends.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;

use super::{caches, mirrors, open_documents, open_image, source};
use crate::config::{ByteSize, Config};
use crate::disk::Disk;
use crate::disk::pin::PinError;
use crate::fetch::fetcher::{Fetcher, Whole};
use crate::fetch::http::HttpSource;
use crate::log;
use crate::mount::signals::Signals;
use crate::panics;
use crate::stats::Stats;

/// What was kept and is wrong is fetched so often; a disk that keeps nothing right is of no use.
const CHECKS_MAX: u32 = 3;

/// How often it is tried to keep a document, and between two tries.
const KEEP_TRIES: u32 = 20;
const KEEP_PAUSE: Duration = Duration::from_millis(500);

/// Longest wait for what is still being written at the end.
const SAVING_MAX: Duration = Duration::from_secs(5);

/// Fetches as told.
///
/// # Errors
///
/// Says which step failed, on what, and why.
pub(super) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    log::init(&config.process)?;
    panics::watch();
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(fetch(config));
    // Documents are written in the background.
    runtime.shutdown_timeout(SAVING_MAX);
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn fetch(config: &Config) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let mirrors = Arc::new(mirrors(config, source(config)?));
    let stats = Arc::new(Stats::default());
    let documents = Arc::new(open_documents(config).await);
    let image = open_image(config, &mirrors, &documents, &stats).await?;
    let caches = Arc::new(caches(config, &image).await);
    let network = &config.network;
    let fetcher = Fetcher::over(
        mirrors,
        network.connections,
        network.retry,
        Arc::clone(&caches),
        stats,
    )
    .with_documents(documents);
    let fetcher = Arc::new(fetcher);
    let disk = Disk::new(
        &image,
        Arc::clone(&fetcher),
        Arc::clone(&caches),
        &Handle::current(),
        None,
    );
    let data = image.manifest.disk.data_bytes;
    let filled = tokio::select! {
        filled = fill(&disk, data, &fetcher, &image.documents) => filled,
        signal = signals.next() => anyhow::bail!("ended by {signal}; what came stays in the cache"),
    };
    filled.with_context(|| format!("`{}` is not in the cache as a whole", image.reference))?;
    caches.ask(|caches| caches.disk.save()).await;
    let line = format!(
        "{}: all of {} bytes are in the cache\n",
        image.reference, data
    );
    // A reader that went away has seen enough.
    let _ = std::io::stdout().write_all(line.as_bytes());
    Ok(())
}

/// Brings all of the disk into the cache, and reads it back: who fetches will have no server. What is wrong is fetched anew.
async fn fill(
    disk: &Disk<HttpSource>,
    data: u64,
    fetcher: &Fetcher<HttpSource>,
    documents: &[Whole],
) -> Result<(), PinError> {
    let mut unkept = 0;
    for _ in 0..CHECKS_MAX {
        let mut bar = Bar::new("fetch", data);
        disk.fill(data, |done| bar.show(done)).await?;
        bar.end();
        keep_documents(fetcher, documents).await?;
        let mut bar = Bar::new("check", data);
        unkept = disk.check_kept(|done| bar.show(done)).await?;
        bar.end();
        if unkept == 0 {
            return Ok(());
        }
    }
    Err(PinError::Incomplete { bytes: unkept })
}

/// Sees to it that these are in the cache, though others are busy there.
async fn keep_documents(
    fetcher: &Fetcher<HttpSource>,
    documents: &[Whole],
) -> Result<(), PinError> {
    let counter = &fetcher.stats().fetched.metadata_bytes;
    for whole in documents {
        let mut left = KEEP_TRIES;
        while fetcher.recall(whole).await.is_none() {
            left = left.checked_sub(1).ok_or(PinError::NoIndex)?;
            let bytes = fetcher.whole(whole, counter).await;
            let bytes = bytes.map_err(|error| PinError::Read(error.into()))?;
            if !fetcher.keep_now(whole, bytes).await {
                tokio::time::sleep(KEEP_PAUSE).await;
            }
        }
    }
    Ok(())
}

/// A bar on a terminal; nothing elsewhere.
struct Bar {
    what: &'static str,
    data: u64,
    percent: Option<u64>,
    shown: bool,
}

impl Bar {
    const WIDTH: u64 = 40;

    fn new(what: &'static str, data: u64) -> Self {
        Self {
            what,
            data,
            percent: None,
            shown: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, done: u64) {
        let percent = (done * 100)
            .checked_div(self.data)
            .map_or(100, |it| it.min(100));
        if !self.shown || self.percent == Some(percent) {
            return;
        }
        self.percent = Some(percent);
        let line = format!(
            "\r{} {} {percent:3} % of {}",
            self.what,
            bar(percent),
            ByteSize(self.data >> 20 << 20)
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn end(&self) {
        if self.percent.is_some() {
            let _ = std::io::stderr().write_all(b"\n");
        }
    }
}

fn bar(percent: u64) -> String {
    let full = percent * Bar::WIDTH / 100;
    let cell = |at| if at < full { '#' } else { '.' };
    (0..Bar::WIDTH).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_at_the_end() {
        assert_eq!(bar(0), ".".repeat(40));
        assert_eq!(bar(50), format!("{}{}", "#".repeat(20), ".".repeat(20)));
        assert_eq!(bar(100), "#".repeat(40));
    }
}
