//! `circular boot`: a version in QEMU, for a look or to record what it reads.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use image_format::trace::Trace;
use image_format::{BLOCK_BYTES, ImageRef, boot_pack};
use image_store::Store;
use serde::Serialize;
use tokio::task::block_in_place;

use super::profile::{self, add_traces, read_trace};
use crate::boot::BootError;
use crate::boot::files::BootFiles;
use crate::boot::machine::{Accel, Hardware, Line, Recording, Start, Until};
use crate::boot::programs::Programs;
use crate::boot::server::Server;
use crate::boot::stop::Stop;
use crate::cli::Common;
use crate::keys::KeyArgs;
use crate::ui::{self, Ui};

const EXAMPLES: &str = "\
Examples:
  circular boot debian:12                     # a look; Ctrl-A X switches it off
  circular boot debian:12 --record            # later boots fetch what this one read in one stream
  circular boot debian:12 --record --output boot.trace && circular explain boot.trace debian:12";

/// Arguments of `circular boot`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Image to boot
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    reference: ImageRef,
    /// Record what the machine reads until it has come up, and then until its power button has switched it
    /// off, and add that to the profile of the version (see `circular profile`)
    #[arg(long)]
    record: bool,
    /// Write the recorded trace to this file, and leave the profile as it is
    #[arg(long, value_name = "FILE", requires = "record")]
    output: Option<PathBuf>,
    /// The machine has come up when the console shows this
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "login:",
        requires = "record"
    )]
    until: String,
    /// The machine has come up after this long, whatever the console shows
    #[arg(
        long = "for",
        value_name = "SECONDS",
        requires = "record",
        conflicts_with = "until"
    )]
    seconds: Option<u64>,
    /// Give a recorded boot up after this long
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 600,
        requires = "record"
    )]
    timeout: u64,
    /// Record no further than until it has come up. Machines whose server is gone when they are switched off
    /// have in memory what that reads, if it was recorded
    #[arg(long, requires = "record")]
    no_power_off: bool,
    /// Who executes the machine's instructions
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
    /// Memory of the machine, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Processors of the machine
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// zstd level of the boot pack, 1 to 22
    #[arg(long, value_name = "N", default_value_t = boot_pack::LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    #[command(flatten)]
    keys: KeyArgs,
}

/// A recorded boot.
#[derive(Debug, Serialize)]
struct Recorded {
    image: ImageRef,
    seconds: f64,
    /// Whether the machine was switched off, and what that read recorded.
    switched_off: bool,
    chunks: usize,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<profile::Summary>,
}

/// Boots a version.
///
/// # Errors
/// It cannot be booted, a program is missing, or the machine does not come up.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let programs = Programs::find()?;
    let store = Store::open(&common.store).await?;
    let resolved = store.resolve(&args.reference).await?;
    let boot = resolved.manifest.boot.as_ref().with_context(|| {
        format!(
            "{} has no kernel: publish it with one (see `circular publish --help`)",
            resolved.reference
        )
    })?;
    let hardware = Hardware {
        qemu: programs.qemu,
        accel: args.accel,
        memory_mib: args.memory,
        cpus: args.cpus,
    };
    if args.record {
        check(&store, &args).await?;
    }
    let files = BootFiles::copy(&store, boot).await?;
    let stop = Stop::listen().context("cannot catch signals")?;
    let began = Instant::now();
    let server = block_in_place(|| Server::start(&programs.server, &common.store))?;
    let start = Start {
        files: &files,
        line: Line {
            port: server.port(),
            image: &resolved.reference,
            boot,
        },
    };
    if !args.record {
        ui.note("Ctrl-A X switches the machine off.");
        return Ok(block_in_place(|| hardware.show(&start, &stop))?);
    }
    let (bytes, switched_off) = record(&args, &hardware, &start, &stop, ui)?;
    let trace = Trace::decode(&bytes).context("the machine sent a trace that cannot be used")?;
    if trace.touches.is_empty() {
        bail!("the machine had read nothing when the recording ended");
    }
    let mut recorded = Recorded {
        image: resolved.reference.clone(),
        seconds: began.elapsed().as_secs_f64(),
        switched_off,
        chunks: trace.touches.len(),
        bytes: (trace.touches.iter())
            .map(|touch| u64::from(touch.blocks) * u64::from(BLOCK_BYTES))
            .sum(),
        output: args.output,
        profile: None,
    };
    drop(server);
    if recorded.output.is_none() {
        let traces = [trace];
        let added = add_traces(&store, &resolved, &traces, args.level, &args.keys, ui);
        let added = tokio::select! {
            added = added => added,
            () = stop.asked() => Err(BootError::Stopped.into()),
        };
        recorded.profile = Some(added.map_err(|error| keep(&bytes, &resolved.reference, error))?);
    }
    ui.result(&recorded, text)?;
    Ok(())
}

/// Checks before a machine is booted what would lose its trace afterwards.
async fn check(store: &Store, args: &Args) -> anyhow::Result<()> {
    let Some(output) = &args.output else {
        return profile::signing(store, &args.keys).await.map(drop);
    };
    let is_new = !output.exists();
    let opened = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(output);
    opened.with_context(|| format!("cannot write `{}`", output.display()))?;
    if is_new {
        // Nothing is left of a boot that comes to nothing.
        let _ = std::fs::remove_file(output);
    }
    Ok(())
}

/// Keeps the trace of a boot that could not be put to use, and adds to `error` where it is.
fn keep(trace: &[u8], image: &ImageRef, error: anyhow::Error) -> anyhow::Error {
    let path = format!("{}.trace", image.to_file_safe());
    match std::fs::write(&path, trace) {
        Ok(()) => error.context(format!(
            "the boot was recorded and not put to use: it is in `{path}`, for `circular profile add {image} {path}`"
        )),
        Err(_) => error,
    }
}

/// Boots and records; where a file was asked for, the trace is there, too. Tells whether the machine has
/// switched itself off.
fn record(
    args: &Args,
    hardware: &Hardware,
    start: &Start<'_>,
    stop: &Stop,
    ui: &Ui,
) -> anyhow::Result<(Vec<u8>, bool)> {
    let until = match args.seconds {
        Some(seconds) => Until::Time(Duration::from_secs(seconds)),
        None => Until::Said(args.until.clone(), Duration::from_secs(args.timeout)),
    };
    let directory = tempfile::tempdir().context("cannot make a directory for the trace")?;
    let path = directory.path().join("trace");
    ui.note(&format!(
        "Booting {}; this takes a while.",
        start.line.image
    ));
    let recording = Recording {
        trace: &path,
        until,
        power_off: !args.no_power_off,
    };
    let is_off = block_in_place(|| hardware.record(start, &recording, stop, ui.shows_progress()))?;
    if recording.power_off && !is_off {
        ui.note("The machine did not switch itself off; what that takes is not recorded, or not all of it.");
    }
    read_trace(&path)
        .context("the machine sent no trace: its initramfs may be of before recording; publish the version again")?;
    let trace = std::fs::read(&path).context("cannot read the trace")?;
    if let Some(output) = &args.output {
        std::fs::write(output, &trace)
            .with_context(|| format!("cannot write `{}`", output.display()))?;
    }
    Ok((trace, is_off))
}

fn text(recorded: &Recorded) -> String {
    let read = format!(
        "{} read {} in {} chunks, recorded in {:.0} s",
        recorded.image,
        ui::size(recorded.bytes),
        recorded.chunks,
        recorded.seconds
    );
    match (&recorded.output, &recorded.profile) {
        (Some(output), _) => format!("{read}, to `{}`\n", output.display()),
        (None, Some(profile)) => format!("{read}\n{}", profile::text(profile)),
        (None, None) => format!("{read}\n"),
    }
}
