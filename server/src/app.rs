//! Wiring: a [`Server`] for programs and tests, and [`run`] for the command line.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::access::Access;
use crate::cli::{Args, Command};
use crate::config::{Config, Limits};
use crate::handle::{Handler, Writers};
use crate::listen::{self, Drained, Listener};
use crate::reload::ReloadError;
use crate::tls::Tls;
use crate::tokens::{Scope, Secret, TokenName};
use crate::traces::Traces;
use crate::upload::{UploadStartError, Uploads};

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
    #[error(transparent)]
    Files(#[from] ReloadError),
    #[error("cannot keep traces in `{}`", .path.display())]
    Traces { path: PathBuf, source: io::Error },
    #[error("cannot take uploads")]
    Upload(#[from] UploadStartError),
}

/// A server that listens but does not answer yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    reloader: Reloader,
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
        let access = Access::open(config.tokens.as_deref())?;
        let tls = config.tls.as_ref();
        let tls = tls.map(|files| Tls::open(&files.certificate, &files.key));
        let tls = tls.transpose()?;
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        let plain = config.listen_plain.iter().map(|address| (*address, None));
        let listen = config.listen.iter().map(|address| (*address, tls.clone()));
        for (address, tls) in listen.chain(plain) {
            let failed = |source| StartError::Listen { address, source };
            let socket = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(socket.local_addr().map_err(failed)?);
            listeners.push(Listener { socket, tls });
        }
        let own_address = addresses.first().ok_or(StartError::NoAddress)?.to_string();
        let uploads = match &config.upload {
            Some(root) => Some(Uploads::open(&config.store, root, &config.limits).await?),
            None => None,
        };
        let traces = config.traces.as_deref().map(|path| {
            Traces::open(path, &config.limits).map_err(|source| StartError::Traces {
                path: path.to_owned(),
                source,
            })
        });
        let writers = Writers {
            uploads,
            traces: traces.transpose()?,
        };
        let handler = Handler::open(&config, access.clone(), writers, own_address).await?;
        Ok(Self {
            listeners,
            reloader: Reloader { access, tls },
            addresses,
            handler: Arc::new(handler),
            limits: config.limits,
        })
    }

    /// Returns what reads tokens and certificates again.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Returns the address of the first listener, with its real port.
    ///
    /// # Panics
    /// Never: [`Server::bind`] made at least one.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        *self.addresses.first().expect("bind makes at least one")
    }

    /// Returns the addresses of all listeners, with their real ports: those of
    /// [`Config::listen`], then those of [`Config::listen_plain`].
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn announce(&self, store: &Path, tokens: bool) {
        for (listener, address) in self.listeners.iter().zip(&self.addresses) {
            let scheme = listener.tls.as_ref().map_or("http", |_| "https");
            let _ = writeln!(
                io::stderr(),
                "serving {} on {scheme}://{address}/ (boot menu: {scheme}://{address}/boot.ipxe)",
                store.display(),
            );
            if tokens && listener.tls.is_none() && !address.ip().is_loopback() {
                tracing::warn!(
                    "whoever sees the traffic to http://{address}/ can read the tokens in it: use \
                     --tls-cert, or a proxy that speaks TLS"
                );
            }
        }
    }

    /// Answers until `shutdown` is ready, then lets running answers finish for a bounded time.
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        listen::serve(self.listeners, self.handler, self.limits, shutdown).await
    }
}

/// Reads the files of a server again.
#[derive(Clone, Debug)]
pub struct Reloader {
    access: Access,
    tls: Option<Tls>,
}

impl Reloader {
    /// Reads tokens and certificates again, whether or not they seem to have changed. What cannot be
    /// used is logged, and what was read before stays in use. Blocks.
    pub fn reload(&self) {
        self.access.reload();
        if let Some(tls) = &self.tls {
            tls.reload();
        }
    }
}

/// Longest wait at the end for threads that read or write, or wait for a lock.
const BLOCKED_MAX: Duration = Duration::from_secs(2);

/// Runs the server as the command line says, until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; see [`StartError`].
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(Command::Token { name, scope }) = &args.command {
        return print_token(name, *scope);
    }
    start_logging();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(args.into_config()));
    // Who waits for the lock of a store, beside which something runs, would be waited for without an end.
    runtime.shutdown_timeout(BLOCKED_MAX);
    outcome
}

/// Prints a new token, and the line that lets it in: the only time that the token is anywhere.
fn print_token(name: &TokenName, scope: Scope) -> anyhow::Result<()> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)
        .ok()
        .context("the system gave no random numbers")?;
    let token = Secret::from_random(bytes);
    writeln!(io::stdout(), "{}", token.reveal())?;
    writeln!(io::stdout(), "{}", token.line(scope, name))?;
    let _ = writeln!(
        io::stderr(),
        "the first line is the token: give it to its user, it is shown once; \
         the second goes into the file of --tokens"
    );
    Ok(())
}

/// Prints why the server ends, causes included.
pub fn report(error: &anyhow::Error) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "circular-server: {error:#}");
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let store = config.store.clone();
    let reloads = config.tokens.is_some() || config.tls.is_some();
    let tokens = config.tokens.is_some();
    let mut terminate = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
    let server = Server::bind(config).await?;
    server.announce(&store, tokens);
    if reloads {
        reload_on_hangup(server.reloader())?;
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

fn reload_on_hangup(reloader: Reloader) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot await SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let reloader = reloader.clone();
            // A panic is logged by the runtime; the next signal tries again.
            let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
        }
    });
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
