//! Where log lines go: the standard error stream, a file, or the kernel's log.

use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{ProcessConfig, Role};
use crate::inside::dump;

mod kernel;

use kernel::KernelLog;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum LogError {
    #[error("cannot open log file {path}")]
    Open { path: String, source: io::Error },
    #[error("cannot install the log")]
    Install(#[from] TryInitError),
}

/// Sets the log up: opened once here, never needed by name again.
///
/// # Errors
///
/// When the log file cannot be written. A missing kernel log is not an error.
pub fn init(config: &ProcessConfig) -> Result<(), LogError> {
    let filter = filter(config.log_level);
    if let Some(path) = &config.log_file {
        let open = OpenOptions::new().create(true).append(true).open(path);
        let file = open.map_err(|source| LogError::Open {
            path: path.display().to_string(),
            source,
        })?;
        let layer = fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_writer(Arc::new(file));
        return Ok(tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .try_init()?);
    }
    if config.role == Role::RootDisk
        && let Ok(kernel) = OpenOptions::new().write(true).open("/dev/kmsg")
    {
        let layer = fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_level(false)
            .without_time();
        let layer = layer.with_writer(KernelLog::to(kernel));
        return Ok(tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .try_init()?);
    }
    let layer = fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(io::stderr);
    Ok(tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?)
}

/// Our own lines at `level`; of the libraries only what is wrong; what somebody asked for in any case.
fn filter(level: LevelFilter) -> Targets {
    let asked = match level {
        LevelFilter::OFF => level,
        _ => level.max(LevelFilter::INFO),
    };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("client_fuse", level)
        .with_target(dump::TARGET, asked)
}
