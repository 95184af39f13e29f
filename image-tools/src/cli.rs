//! The command line of `circular`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use image_format::ImageRef;

use crate::command::{
    self, boot, explain, export, gc, init, inspect, key, list, manual, profile, publish, refresh,
    remove, rollback, root, tag, verify,
};
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  circular publish debian.raw debian:12        # disk image -> chunks in ./store
  circular-server --store ./store              # store -> HTTP, with a boot menu
  circular-mount --root root.json http://host:8080/ debian:12 /mnt   # root.json: made by publish
  circular export debian:12 copy.raw           # chunks -> the same disk image, bit for bit";

/// Publish disk images as chunks that machines fetch over HTTP, only those they touch
#[derive(Debug, Parser)]
#[command(name = "circular", version, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What all subcommands share.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Directory of the store
    #[arg(
        long,
        global = true,
        env = "CIRCULAR_STORE",
        value_name = "DIR",
        default_value = "store",
        value_parser = store_directory
    )]
    pub store: PathBuf,
    /// Print results as JSON on standard output, errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no progress and no summary
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Takes a directory, and no address: one would become a directory called `http:`.
fn store_directory(text: &str) -> Result<PathBuf, &'static str> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(
            "this is an address, and a directory is meant; `circular publish` and `circular refresh` work on a server with --to URL, all else where the directory is",
        );
    }
    if text.is_empty() {
        return Err("it is empty");
    }
    Ok(PathBuf::from(text))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a store, and the keys that sign what it offers
    Init(init::Args),
    /// Publish a disk image: cut it, store what is new, move the tag
    Publish(Box<publish::Args>),
    /// List names, tags and versions
    List(list::Args),
    /// Show what a version of an image consists of
    Inspect(ReferenceArg),
    /// Write an image back to a raw disk file, bit for bit
    Export(export::Args),
    /// Read everything again and check it against its digests
    Verify(verify::Args),
    /// Point a tag to a version, or delete it
    Tag(Box<tag::Args>),
    /// Point a tag to an older version again
    Rollback(Box<rollback::Args>),
    /// Take versions, or whole images, out of what the store offers
    Remove(remove::Args),
    /// Delete what nothing refers to any more
    Gc(gc::Args),
    /// Boot a version in QEMU: for a look, or to record what it reads
    Boot(Box<boot::Args>),
    /// Say what boots of an image read first, so that clients fetch it in one stream
    Profile(profile::Args),
    /// Say what a recorded boot waited for: which files, how long, and why
    Explain(explain::Args),
    /// Sign what the store offers again, before it expires
    Refresh(refresh::Args),
    /// Look at signing keys; add, remove or replace them
    Key(Box<key::Args>),
    /// Show who may sign what; sign and publish changes of that
    Root(Box<root::Args>),
    /// Print a completion script for a shell
    Completions(manual::CompletionArgs),
    /// Write manual pages
    Man(manual::ManArgs),
}

/// The image that a subcommand is about.
#[derive(Debug, clap::Args)]
pub struct ReferenceArg {
    /// Image to show
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    pub reference: ImageRef,
}

/// Parses the command line, runs it, and says how it went: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let ui = Ui::new(args.common.json, args.common.quiet);
    match run(args, &ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if command::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("CIRCULAR_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let common = args.common;
    runtime.block_on(async {
        match args.command {
            Command::Publish(args) => publish::run(&common, *args, ui).await,
            Command::Init(args) => init::run(&common, args, ui).await,
            Command::Tag(args) => tag::run(&common, *args, ui).await,
            Command::Rollback(args) => rollback::run(&common, *args, ui).await,
            Command::Remove(args) => remove::run(&common, args, ui).await,
            Command::Gc(args) => gc::run(&common, args, ui).await,
            Command::Refresh(args) => refresh::run(&common, args, ui).await,
            Command::Key(args) => key::run(&common, *args, ui).await,
            Command::Root(args) => root::run(&common, *args, ui).await,
            Command::Profile(args) => profile::run(&common, args, ui).await,
            Command::Boot(args) => boot::run(&common, *args, ui).await,
            Command::Explain(args) => explain::run(&common, args, ui).await,
            Command::List(args) => list::run(&common, args, ui).await,
            Command::Inspect(args) => inspect::run(&common, args, ui).await,
            Command::Export(args) => export::run(&common, args, ui).await,
            Command::Verify(args) => verify::run(&common, args, ui).await,
            Command::Completions(args) => manual::completions(&args, Args::command()),
            Command::Man(args) => manual::man(&args, Args::command()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
