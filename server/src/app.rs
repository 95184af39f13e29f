//! Wiring: a [`Server`] for programs and tests, and [`run`] for the command line.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::Args;
use crate::config::{Config, Limits};
use crate::handle::Handler;
use crate::listen::{self, Drained};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] image_store::StoreError),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("no address to listen on")]
    NoAddress,
}

/// A server that listens but does not answer yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    handler: Arc<Handler>,
    limits: Limits,
}

impl Server {
    /// Opens the store and listens; connections wait until [`Server::run`].
    ///
    /// # Errors
    /// The directory holds no store, or an address cannot be listened on.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        let mut addresses = Vec::with_capacity(config.listen.len());
        for address in config.listen {
            let failed = |source| StartError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let own_address = addresses.first().ok_or(StartError::NoAddress)?.to_string();
        let handler = Handler::open(
            &config.store,
            config.access_log,
            config.limits.answers,
            own_address,
        )
        .await?;
        Ok(Self {
            listeners,
            addresses,
            handler: Arc::new(handler),
            limits: config.limits,
        })
    }

    /// Returns the address of the first listener, with its real port.
    ///
    /// # Panics
    /// Never: [`Server::bind`] made at least one.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        *self.addresses.first().expect("bind makes at least one")
    }

    /// Returns the addresses of all listeners, with their real ports.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers until `shutdown` is ready, then lets running answers finish for a bounded time.
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        listen::serve(self.listeners, self.handler, self.limits, shutdown).await
    }
}

/// Runs the server as the command line says, until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; see [`StartError`].
pub fn run(args: Args) -> anyhow::Result<()> {
    start_logging();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(args.into_config()))
}

/// Prints why the server ends, causes included.
pub fn report(error: &anyhow::Error) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "circular-server: {error:#}");
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let store = config.store.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
    let server = Server::bind(config).await?;
    for address in server.local_addrs() {
        let _ = writeln!(
            io::stderr(),
            "serving {} on http://{address}/ (boot menu: http://{address}/boot.ipxe)",
            store.display(),
        );
    }
    let mut asked = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (first, asked_once) = tokio::sync::oneshot::channel();
    let again = async {
        asked().await;
        let _ = first.send(());
        asked().await;
    };
    let shutdown = async {
        let _ = asked_once.await;
    };
    tokio::select! {
        drained = server.run(shutdown) => if let Drained::Dropped(connections) = drained {
            tracing::warn!(connections, "the drain time is over, connections were dropped");
        },
        () = again => tracing::warn!("asked twice to stop: running answers were cut short"),
    }
    Ok(())
}

/// `CIRCULAR_LOG` takes the filters of tracing; standard error takes the lines.
fn start_logging() {
    let filter = EnvFilter::try_from_env("CIRCULAR_LOG")
        .unwrap_or_else(|_unset| EnvFilter::new("warn,server=info,circular_server=info"));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_env_filter(filter);
    // Fails only where a program around us logs already.
    let _ = subscriber.try_init();
}

/// A connection takes a descriptor and a file that it sends another; the usual soft limit of
/// 1024 would be reached before the limit of connections is.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!("cannot raise the limit of open files: {error}");
    }
}
