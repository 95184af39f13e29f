//! Replays recorded reads against a disk that a command shows, and prints what that took as JSON. See
//! `circular_tests::replay`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use circular_tests::bench::disks::Shown;
use circular_tests::replay::{self, Plan, record};
use clap::Parser;

const NOTES: &str = "\
FILE has a line for each read: OFFSET LENGTH, in bytes; `#` starts a comment. --from-trace and --from-nbdkit-log
take a trace of `circular-mount --record` and a log of nbdkit's log filter instead, --record boots IMAGE in QEMU
and writes FILE.

With COMMAND, it is started first, the seconds count from there, and it is asked to end (SIGTERM) afterwards.

Example:
  replay --record --reads boot.reads --image debian.raw
  replay --reads boot.reads --image debian.raw --disk /mnt/disk.raw -- \\
    circular-mount --foreground --no-state --no-cache --root root.json http://192.0.2.1:8080/ debian:12 /mnt";

/// Replay the reads of a boot against a disk and compare every byte with the image
#[derive(Debug, Parser)]
#[command(name = "replay", after_help = NOTES)]
struct Args {
    /// List of reads
    #[arg(long, value_name = "FILE")]
    reads: PathBuf,
    /// What the disk must be equal to
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Disk to read; it may appear only once COMMAND runs
    #[arg(long, value_name = "FILE", required_unless_present = "record")]
    disk: Option<PathBuf>,
    /// Reads at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    in_flight: usize,
    /// A read that takes longer is a stall
    #[arg(long, value_name = "MS", default_value_t = 10)]
    stall_ms: u64,
    /// The list is a trace of `circular-mount --record`
    #[arg(long, conflicts_with = "from_nbdkit_log")]
    from_trace: bool,
    /// The list is a log of nbdkit's log filter
    #[arg(long)]
    from_nbdkit_log: bool,
    /// Boot the image in QEMU and write the list
    #[arg(long, conflicts_with_all = ["disk", "from_trace", "from_nbdkit_log"])]
    record: bool,
    /// What shows the disk
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let length = fs::metadata(&args.image)
        .with_context(|| format!("cannot read {}", args.image.display()))?
        .len();
    if args.record {
        let reads = record::boot(&args.image)?;
        fs::write(&args.reads, replay::format(&reads)).context("cannot write the list")?;
        writeln!(
            io::stdout(),
            "{} reads in {}",
            reads.len(),
            args.reads.display()
        )?;
        return Ok(());
    }
    let text = fs::read_to_string(&args.reads)
        .with_context(|| format!("cannot read {}", args.reads.display()))?;
    let reads = match (args.from_trace, args.from_nbdkit_log) {
        (true, _) => record::from_trace(&text, length)?,
        (_, true) => record::from_nbdkit_log(&text, length),
        _ => replay::parse(&text)?,
    };
    ensure!(!reads.is_empty(), "the list is empty");
    let disk = args.disk.context("no --disk")?;
    let since = Instant::now();
    let shown = match args.command.split_first() {
        None => None,
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null());
            Some(Shown::start(&mut command, &disk, length, None)?)
        }
    };
    let plan = Plan {
        reads: &reads,
        in_flight: args.in_flight,
        since,
        stall: Duration::from_millis(args.stall_ms),
        cpu: None,
    };
    let outcome = replay::replay(&disk, &args.image, &plan)?;
    drop(shown);
    writeln!(io::stdout(), "{}", outcome.json())?;
    Ok(())
}
