//! Wiring of what lets people look inside: the answer to SIGUSR1, and the metrics.

use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;

use crate::config::{Config, Role};
use crate::fetch::Source;
use crate::fs::ImageFs;
use crate::inside::dump::{self, Dump};
use crate::inside::serve::{Address, Bound, Serving};
use crate::mount::signals::Dumps;

/// What was begun before there was anything to see.
pub(super) struct Inside {
    mount: Arc<OnceLock<Weak<dyn Dump>>>,
    metrics: Place,
}

/// Where metrics are served.
enum Place {
    Nowhere,
    Here(Bound),
    /// The worker before this one has the place still.
    Later(Address),
}

/// How often it is looked whether that one has gone.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After so many looks it is said that the place is still taken.
const LOOKS_TOLD: u32 = 100;

/// Metrics that are served, or will be.
pub(super) enum Shown {
    Now(#[expect(dead_code, reason = "held for its drop")] Serving),
    Later(JoinHandle<()>),
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Self::Later(task) = self {
            task.abort();
        }
    }
}

impl Inside {
    /// Begins to answer SIGUSR1, and takes the place where metrics shall be served; in a worker that is not the
    /// `first`, as soon as the one before has left it. A root disk does without that rather than not be there.
    ///
    /// # Errors
    ///
    /// When signals cannot be caught, or the place cannot be had.
    pub(super) async fn begin(config: &Config, is_first: bool) -> anyhow::Result<Self> {
        let mount = Arc::default();
        let dumps = Dumps::catch().context("cannot catch signals")?;
        tokio::spawn(dump::on_signal(dumps, Arc::clone(&mount)));
        let mut metrics = Place::Nowhere;
        if let Some(address) = &config.metrics {
            let bound = Bound::bind(address).await;
            let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
            let bound = match bound {
                Err(error) if !is_first && is_taken(&error) => {
                    let metrics = Place::Later(address.clone());
                    return Ok(Self { mount, metrics });
                }
                bound => bound,
            };
            match bound.with_context(|| format!("cannot serve metrics at {address}")) {
                Ok(bound) => metrics = Place::Here(bound),
                Err(error) if config.process.role == Role::RootDisk => {
                    let cause: &dyn std::error::Error = error.as_ref();
                    tracing::warn!(error = cause, "no metrics");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { mount, metrics })
    }

    /// Shows `fs`, for as long as it is there and what is returned is kept.
    pub(super) fn show<S: Source>(self, fs: &Arc<ImageFs<S>>) -> Option<Shown> {
        self.tell_of(fs);
        let fs = Arc::downgrade(fs);
        match self.metrics {
            Place::Nowhere => None,
            Place::Here(bound) => Some(Shown::Now(serve(bound, fs))),
            Place::Later(address) => Some(Shown::Later(tokio::spawn(async move {
                let _serving = serve(left(&address).await, fs);
                std::future::pending::<()>().await;
            }))),
        }
    }

    /// Lets `mount` answer SIGUSR1, for as long as it is there.
    pub(super) fn tell_of<D: Dump>(&self, mount: &Arc<D>) {
        let mount: Weak<D> = Arc::downgrade(mount);
        // It is set once only.
        let _ = self.mount.set(mount);
    }
}

fn serve<S: Source>(bound: Bound, fs: Weak<ImageFs<S>>) -> Serving {
    if let Some(address) = bound.address() {
        tracing::info!(%address, "metrics are served");
    }
    bound.serve(fs)
}

/// The place at `address`, once whoever has it has left it.
async fn left(address: &Address) -> Bound {
    let mut looks = 0_u32;
    loop {
        let error = match Bound::bind(address).await {
            Ok(bound) => return bound,
            Err(error) => error,
        };
        looks = looks.saturating_add(1);
        if looks == LOOKS_TOLD {
            let cause: &dyn std::error::Error = &error;
            tracing::warn!(%address, error = cause, "no metrics yet: the place cannot be had");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
