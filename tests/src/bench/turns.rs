//! One turn of a subject: a new process, timed, with its bytes on the line.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Bench;
use super::disks::{Reader, pinned};
use super::line::{Kind, Line};
use super::servers::Servers;
use super::site::NOISE_BYTES;
use crate::replay::{self, Plan, Read};

/// Bytes of a packet that are the download's, of those that it has on the line.
const PAYLOAD: (u64, u64) = (1448, 1500);

/// Longest wait for a line to fall silent; then its noise is measured as well.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A line with its servers.
#[derive(Debug)]
pub struct Course {
    /// Which it is.
    pub kind: Kind,
    /// The line.
    pub line: Line,
    /// What serves at its other end.
    pub servers: Servers,
}

/// What one turn took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// From the start of the process to the last byte.
    pub seconds: f64,
    /// Bytes from the server until then.
    pub wire: f64,
    /// Reads that took longer than two round trips and 10 ms.
    pub stalls: usize,
    /// What a client of ours says of itself; null for others.
    pub stats: Value,
}

impl Course {
    /// Makes a line and starts the servers.
    ///
    /// # Errors
    /// No right to, or a server is missing.
    pub fn new(bench: &Bench<'_>, kind: &Kind) -> Result<Self> {
        super::say(&format!("   {}", kind.title));
        let line = Line::new(kind, bench.server_cpu())?;
        let servers = Servers::start(bench.site, &line, bench.server_cpu())?;
        Ok(Self {
            kind: *kind,
            line,
            servers,
        })
    }

    /// Waits until nothing comes any more of what was asked for in the turn before.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn settle(&self) -> Result<()> {
        let until = Instant::now() + SILENCE_MAX;
        let pause = self.kind.rtt() + Duration::from_millis(20);
        let mut before = self.line.wire()?;
        loop {
            thread::sleep(pause);
            let now = self.line.wire()?;
            if now == before || Instant::now() > until {
                return Ok(());
            }
            before = now;
        }
    }

    /// Lets `reader` show the disk, does `reads`, and ends it.
    ///
    /// # Errors
    /// It fails, or shows other bytes.
    pub fn replay(&self, bench: &Bench<'_>, reader: Reader, reads: &[Read]) -> Result<Sample> {
        let scratch = bench.site.scratch()?;
        self.settle()?;
        let wire = self.line.wire()?;
        let since = Instant::now();
        let shown = reader.show(
            bench.site,
            &self.servers,
            self.line.client(),
            scratch.path(),
            bench.client_cpu(),
        )?;
        let plan = Plan {
            reads,
            in_flight: bench.options.in_flight,
            since,
            stall: 2 * self.kind.rtt() + Duration::from_millis(10),
            cpu: bench.client_cpu(),
        };
        let outcome = replay::replay(shown.disk(), &bench.site.image(), &plan)
            .with_context(|| reader.title())?;
        let wire = self.line.wire()? - wire;
        let stats = stats_of(shown.disk());
        super::say(&format!(
            "     {:<24} {:>8.3} s {:>9.2} MB, {} stalls",
            reader.title(),
            outcome.time.as_secs_f64(),
            bytes(wire) / 1e6,
            outcome.stalls
        ));
        Ok(Sample {
            seconds: outcome.time.as_secs_f64(),
            wire: bytes(wire),
            stalls: outcome.stalls,
            stats,
        })
    }

    /// Downloads as much as had `wire` bytes on the line, as one file over a new connection.
    ///
    /// # Errors
    /// curl fails, or there is no file as long.
    pub fn download(&self, bench: &Bench<'_>, wire: f64) -> Result<Sample> {
        // Exact up to 2^53.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of bytes"
        )]
        let length = (wire as u64 * PAYLOAD.0 / PAYLOAD.1).max(1);
        ensure!(length <= NOISE_BYTES as u64, "{length} bytes are too many");
        let mut command = pinned(bench.client_cpu(), "curl".as_ref());
        command
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--output",
                "/dev/null",
            ])
            .args(["--range", &format!("0-{}", length - 1)])
            .arg(format!("{}noise", self.servers.files()));
        self.run(&mut command, "one download")
    }

    /// Runs a command at the client's end to its end.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, command: &mut Command, name: &str) -> Result<Sample> {
        self.settle()?;
        let wire = self.line.wire()?;
        let since = Instant::now();
        let status = self
            .line
            .client()
            .spawn(command.stdin(Stdio::null()))?
            .wait()?;
        let seconds = since.elapsed().as_secs_f64();
        ensure!(status.success(), "{name} ended with {status}");
        let wire = self.line.wire()? - wire;
        super::say(&format!(
            "     {name:<24} {seconds:>8.3} s {:>9.2} MB",
            bytes(wire) / 1e6
        ));
        Ok(Sample {
            seconds,
            wire: bytes(wire),
            ..Sample::default()
        })
    }

    /// Returns the time to connect and what a download of 4 MB gets through, in words.
    ///
    /// # Errors
    /// curl fails.
    pub fn check(&self, bench: &Bench<'_>) -> Result<String> {
        let mut connects = Vec::new();
        for _ in 0..5 {
            let mut command = Command::new("curl");
            command
                .args([
                    "--silent",
                    "--output",
                    "/dev/null",
                    "--write-out",
                    "%{time_connect}",
                ])
                .args(["--range", "0-0", &format!("{}noise", self.servers.files())]);
            let output = self.line.client().output(&mut command)?;
            connects.push(
                String::from_utf8_lossy(&output.stdout)
                    .trim()
                    .parse::<f64>()?,
            );
        }
        let least = connects.into_iter().fold(f64::INFINITY, f64::min);
        let download = self.download(bench, 16e6)?;
        Ok(format!(
            "{}: a connection took {:.1} ms, one download of 16 MB had {:.1} Mbit/s",
            self.kind.title,
            least * 1000.0,
            download.wire * 8.0 / 1e6 / download.seconds
        ))
    }
}

/// Returns what the client that shows `disk` says of itself; null if it is none of ours.
pub fn stats_of(disk: &Path) -> Value {
    let stats = disk.with_file_name(".circular").join("stats.json");
    fs::read(stats).map_or(Value::Null, |text| {
        serde_json::from_slice(&text).unwrap_or_default()
    })
}

/// Returns a count of bytes as a figure.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
pub fn bytes(count: u64) -> f64 {
    count as f64
}

/// Returns the lines to measure on: those that were asked for, or `usual` ones.
pub fn lines(bench: &Bench<'_>, usual: &[Kind]) -> Vec<Kind> {
    let asked = &bench.options.lines;
    let lines = super::line::ALL
        .iter()
        .filter(|kind| asked.iter().any(|name| name == kind.name));
    match asked.is_empty() {
        false => lines.copied().collect(),
        true if bench.options.quick => usual.iter().take(1).copied().collect(),
        true => usual.to_vec(),
    }
}

/// Returns the readers of others that are installed; with `--quick` none, they are slow.
pub fn peers(bench: &Bench<'_>) -> Vec<Reader> {
    let peers = Reader::PEERS.into_iter().filter(|peer| peer.is_here());
    match bench.options.quick {
        true => Vec::new(),
        false => peers.collect(),
    }
}
