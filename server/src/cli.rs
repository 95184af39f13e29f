//! The command line: what was typed, nothing looked up.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::config::{Config, Limits};

const EXAMPLES: &str = "\
Example:
  circular publish debian.raw debian:12 --store ./store
  circular-server --store ./store --listen 0.0.0.0:8080
  curl http://localhost:8080/";

/// Serve a store over HTTP: boot menu, objects, images as flat files
#[derive(Debug, clap::Parser)]
#[command(name = "circular-server", version, after_help = EXAMPLES)]
pub struct Args {
    /// Directory that holds the store
    #[arg(
        long,
        value_name = "DIR",
        env = "CIRCULAR_STORE",
        default_value = "./store"
    )]
    pub store: PathBuf,
    /// Address to listen on; port 0 takes a free one (can be repeated)
    #[arg(
        long,
        value_name = "ADDR",
        env = "CIRCULAR_LISTEN",
        default_value = "127.0.0.1:8080",
        value_delimiter = ','
    )]
    pub listen: Vec<SocketAddr>,
    /// Most connections at once; more of them wait
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.connections)]
    pub max_connections: NonZeroUsize,
    /// Seconds that running answers get to finish at shutdown
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::DEFAULT.drain_timeout.as_secs())]
    pub drain_timeout: u64,
    /// Write one line a request to standard error (the default)
    #[arg(long, overrides_with = "no_access_log")]
    pub access_log: bool,
    /// Write no line a request
    #[arg(long)]
    pub no_access_log: bool,
}

impl Args {
    /// Returns the configuration that was asked for.
    #[must_use]
    pub fn into_config(self) -> Config {
        Config {
            store: self.store,
            listen: self.listen,
            access_log: if self.no_access_log {
                AccessLog::Off
            } else {
                AccessLog::On
            },
            limits: Limits {
                connections: self.max_connections,
                drain_timeout: Duration::from_secs(self.drain_timeout),
                ..Limits::DEFAULT
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Args;
    use crate::access_log::AccessLog;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn listen_can_be_repeated() {
        let args = [
            "circular-server",
            "--listen",
            "127.0.0.1:1",
            "--listen",
            "[::1]:2",
        ];
        assert_eq!(Args::parse_from(args).into_config().listen.len(), 2);
    }

    #[test]
    fn the_last_of_the_access_log_flags_counts() {
        let log = |flags: &[&str]| {
            let args = ["circular-server"].iter().chain(flags);
            Args::parse_from(args).into_config().access_log
        };
        assert_eq!(log(&[]), AccessLog::On);
        assert_eq!(log(&["--no-access-log"]), AccessLog::Off);
        assert_eq!(log(&["--no-access-log", "--access-log"]), AccessLog::On);
    }
}
