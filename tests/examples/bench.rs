//! Runs the benchmark suites; see `circular_tests::bench`. Run by `make bench`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use circular_tests::bench::{self, Options, report};
use circular_tests::images;
use clap::Parser;

/// Compare Circular with others on the same image and the same emulated line. Needs root
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// Suite to run, like p1; may be given several times [default: all]
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Turns of each row
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Reads at once of a replayed boot
    #[arg(long, value_name = "N", default_value_t = 4)]
    in_flight: usize,
    /// Line to measure on, instead of those of the suite: loopback, lan, near, far, slow, lossy or orbit; may be given
    /// several times
    #[arg(long = "line", value_name = "NAME")]
    lines: Vec<String>,
    /// One turn, one line, no slow peers: shows that it works, measures nothing
    #[arg(long)]
    quick: bool,
    /// Disk [default: build/debian.raw]
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Another version of it [default: build/debian-rebuilt.raw]
    #[arg(long, value_name = "FILE")]
    second: Option<PathBuf>,
    /// Two lists of reads: of the boot that the boot pack is made from, and of the one that is replayed
    /// [default: recorded with QEMU, kept in build/bench]
    #[arg(long, value_name = "FILE", num_args = 2)]
    reads: Option<Vec<PathBuf>>,
    /// The same two of the other version
    #[arg(long, value_name = "FILE", num_args = 2)]
    second_reads: Option<Vec<PathBuf>>,
    /// Document that the results are put into
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// List the suites
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut out = io::stdout();
    if args.list {
        for (id, title) in bench::suites() {
            writeln!(out, "{id:<4} {title}")?;
        }
        return Ok(());
    }
    let options = Options {
        suites: args.suites,
        repeats: args.repeats,
        in_flight: args.in_flight,
        quick: args.quick,
        image: args
            .image
            .map_or_else(|| images::debian("debian.raw"), Ok)?,
        second: args
            .second
            .or_else(|| images::debian("debian-rebuilt.raw").ok()),
        reads: args
            .reads
            .and_then(|reads| <[PathBuf; 2]>::try_from(reads).ok()),
        second_reads: args
            .second_reads
            .and_then(|reads| <[PathBuf; 2]>::try_from(reads).ok()),
        lines: args.lines,
    };
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("bench {}", command.join(" "));
    bench::run(&options, |section| {
        let text = section.markdown(&report::circumstances(command.trim()));
        writeln!(out, "\n{text}")?;
        match &args.write {
            Some(document) => report::write(document, &text),
            None => Ok(()),
        }
    })
}
