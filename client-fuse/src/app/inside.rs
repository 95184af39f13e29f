//! Wiring of what lets people look inside: the answer to SIGUSR1, and the metrics.

use std::sync::{Arc, OnceLock, Weak};

use anyhow::Context as _;

use crate::config::{Config, Role};
use crate::fetch::Source;
use crate::fs::ImageFs;
use crate::inside::dump::{self, Dump};
use crate::inside::serve::{Bound, Serving};
use crate::mount::signals::Dumps;

/// What was begun before there was anything to see.
pub(super) struct Inside {
    mount: Arc<OnceLock<Weak<dyn Dump>>>,
    metrics: Option<Bound>,
}

impl Inside {
    /// Begins to answer SIGUSR1, and takes the place where metrics shall be served. A root disk does
    /// without that rather than not be there.
    ///
    /// # Errors
    ///
    /// When signals cannot be caught, or the place cannot be had.
    pub(super) async fn begin(config: &Config) -> anyhow::Result<Self> {
        let mount = Arc::default();
        let dumps = Dumps::catch().context("cannot catch signals")?;
        tokio::spawn(dump::on_signal(dumps, Arc::clone(&mount)));
        let mut metrics = None;
        if let Some(address) = &config.metrics {
            let bound = Bound::bind(address).await;
            match bound.with_context(|| format!("cannot serve metrics at {address}")) {
                Ok(bound) => metrics = Some(bound),
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
    pub(super) fn show<S: Source>(self, fs: &Arc<ImageFs<S>>) -> Option<Serving> {
        self.tell_of(fs);
        let bound = self.metrics?;
        if let Some(address) = bound.address() {
            tracing::info!(%address, "metrics are served");
        }
        Some(bound.serve(Arc::downgrade(fs)))
    }

    /// Lets `mount` answer SIGUSR1, for as long as it is there.
    pub(super) fn tell_of<D: Dump>(&self, mount: &Arc<D>) {
        let mount: Weak<D> = Arc::downgrade(mount);
        // It is set once only.
        let _ = self.mount.set(mount);
    }
}
