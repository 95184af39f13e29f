//! The command line: what was typed, nothing looked up.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::config::{Config, Limits, TlsFiles, UploadRoot};
use crate::tokens::{Scope, TokenName};

const EXAMPLES: &str = "\
Example:
  circular publish debian.raw debian:12 --store ./store
  circular-server --store ./store --listen 0.0.0.0:8080
  curl http://localhost:8080/

Over HTTPS, and over plain HTTP for the firmware of machines that cannot do TLS:
  circular-server --tls-cert cert.pem --tls-key key.pem --listen 0.0.0.0:8443 --listen-plain 0.0.0.0:8080

For publishers elsewhere (the token is shown once, its line goes into the table):
  circular-server token ci --scope publish
  circular-server --upload --tokens tokens.txt --tls-cert cert.pem --tls-key key.pem

Tokens and certificates are read again when their files change, or on SIGHUP.";

/// Serve a store over HTTP: boot menu, objects, images as flat files
#[derive(Debug, clap::Parser)]
#[command(name = "circular-server", version, after_help = EXAMPLES)]
pub struct Args {
    /// What to do in place of serving
    #[command(subcommand)]
    pub command: Option<Command>,
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
    /// Address to listen on without TLS, beside `--listen` with it: network boot often cannot do TLS,
    /// and what it fetches is verified by its digests (can be repeated)
    #[arg(
        long,
        value_name = "ADDR",
        env = "CIRCULAR_LISTEN_PLAIN",
        value_delimiter = ',',
        requires = "tls_cert"
    )]
    pub listen_plain: Vec<SocketAddr>,
    /// Certificate and its chain (PEM): `--listen` speaks HTTPS then. Read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_TLS_CERT",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM, not encrypted)
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_TLS_KEY",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// Table of tokens, one line each: `SCOPE SHA256-HEX NAME`. Read again when it changes
    #[arg(long, value_name = "FILE", env = "CIRCULAR_TOKENS")]
    pub tokens: Option<PathBuf>,
    /// Answer only those who have a token, for reading too (off: a store holds no secrets, and
    /// caches may keep its files). Only /healthz stays open
    #[arg(long, requires = "tokens")]
    pub private: bool,
    /// Let those publish who have a token for it (off: nothing can be changed over the network).
    /// Makes the store if the directory is new
    #[arg(long, requires = "tokens")]
    pub upload: bool,
    /// Root that uploaded metadata must chain to; a new store needs it [default: the first root of
    /// the store]
    #[arg(
        long,
        value_name = "FILE",
        env = "CIRCULAR_UPLOAD_ROOT",
        requires = "upload"
    )]
    pub upload_root: Option<PathBuf>,
    /// Take traces of recorded boots (`circular.record=server` on a machine's kernel command line) into
    /// this directory, from everybody who may read; at most 1,000 files and 256 MiB
    #[arg(long, value_name = "DIR", env = "CIRCULAR_TRACES")]
    pub traces: Option<PathBuf>,
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

/// What the server does beside serving.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token: prints it, then the line for the file of `--tokens`
    Token {
        /// What it is called in the table and in the log, never the token itself
        name: TokenName,
        /// What it allows
        #[arg(long)]
        scope: Scope,
    },
}

impl Args {
    /// Returns the configuration that was asked for.
    #[must_use]
    pub fn into_config(self) -> Config {
        Config {
            store: self.store,
            listen: self.listen,
            listen_plain: self.listen_plain,
            tls: self
                .tls_cert
                .zip(self.tls_key)
                .map(|(certificate, key)| TlsFiles { certificate, key }),
            tokens: self.tokens,
            private: self.private,
            upload: self.upload.then_some(match self.upload_root {
                Some(file) => UploadRoot::File(file),
                None => UploadRoot::OfStore,
            }),
            traces: self.traces,
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
    use super::{Args, Command};
    use crate::access_log::AccessLog;
    use crate::tokens::Scope;
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
    fn what_needs_tokens_says_so() {
        for flags in [
            &["--private"][..],
            &["--upload"],
            &["--tls-cert", "a"],
            &["--tls-key", "a"],
            &["--listen-plain", "127.0.0.1:1"],
            &["--tokens", "a", "--upload-root", "a"],
        ] {
            let args = ["circular-server"].iter().chain(flags);
            assert!(Args::try_parse_from(args).is_err(), "{flags:?}");
        }
        let args = ["circular-server", "--tokens", "a", "--upload", "--private"];
        let config = Args::parse_from(args).into_config();
        assert!(config.private && config.upload.is_some());
    }

    #[test]
    fn a_token_has_a_name_and_a_scope() {
        let parse = |words: &[&str]| {
            let words = ["circular-server", "token"].iter().chain(words);
            Args::try_parse_from(words).map(|args| args.command)
        };
        let got = parse(&["ci", "--scope", "publish"]).unwrap();
        assert!(matches!(
            got,
            Some(Command::Token {
                scope: Scope::Publish,
                ..
            })
        ));
        assert!(parse(&["ci"]).is_err());
        assert!(parse(&["a b", "--scope", "read"]).is_err());
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
