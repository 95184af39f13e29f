//! `circular-mount cache`: what may be typed to look after a cache directory.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use super::Directories;
use crate::cache::care::{self, Stat, Verified};
use crate::cache::directory::Directory;
use crate::config::{ByteSize, DiskCacheConfig};

/// Look after the disk cache
#[derive(Debug, Parser)]
#[command(name = "cache", bin_name = "circular-mount cache", version)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: Command,
    /// Directory of the disk cache [default: /var/cache/circular for root, else ~/.cache/circular]
    #[arg(long, value_name = "DIR", env = "CIRCULAR_CACHE", global = true)]
    cache: Option<PathBuf>,
    /// Most bytes of all disks in the directory, to tell how much is free of it
    /// [default: half of the free space, at most 10G]
    #[arg(long, value_name = "BYTES", env = "CIRCULAR_CACHE_SIZE", global = true)]
    cache_size: Option<ByteSize>,
    /// Say it in JSON
    #[arg(long, global = true)]
    json: bool,
}

/// What is to be done with a cache directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Show what is in the cache, and how much of its bound it takes
    Stat,
    /// Read and verify all that is in the cache; exit code 1 when something was wrong
    ///
    /// What is wrong is taken out, or, while it is mounted, fetched anew when it is read.
    Verify,
    /// Remove all that is in the cache and not mounted; exit code 1 when something is
    ///
    /// Nothing is removed from a directory that has other files too.
    Clear,
}

/// Parses, runs, and says what went wrong.
pub fn main(words: &[OsString]) -> ExitCode {
    let args = match CacheArgs::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to be done when even this cannot be written.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let in_json = args.json;
    run(args).unwrap_or_else(|error| {
        let line = if in_json {
            format!("{}\n", serde_json::json!({ "error": format!("{error:#}") }))
        } else {
            format!("circular-mount: {error:#}\n")
        };
        let _ = std::io::stderr().write_all(line.as_bytes());
        ExitCode::FAILURE
    })
}

fn run(args: CacheArgs) -> anyhow::Result<ExitCode> {
    let path = args.cache.or_else(|| Directories::of_user().cache);
    let path = path.context("nothing says where the cache is; give --cache DIR")?;
    let bytes_max = args.cache_size;
    let mut code = ExitCode::SUCCESS;
    let text = match args.command {
        Command::Stat => {
            let config = DiskCacheConfig {
                directory: path,
                bytes_max,
            };
            let directory = Directory::measured(&config);
            let stat = care::stat(&directory)?;
            if args.json { json(&stat)? } else { show(&stat) }
        }
        Command::Verify => {
            let verified = care::verify(&Directory::existing(path))?;
            if verified.iter().any(|disk| disk.wrong > 0) {
                code = ExitCode::FAILURE;
            }
            if args.json {
                json(&verified)?
            } else {
                verified.iter().map(tell).collect()
            }
        }
        Command::Clear => {
            let cleared = care::clear(&Directory::existing(path))?;
            if cleared.mounted > 0 {
                code = ExitCode::FAILURE;
            }
            let (disks, mounted) = (cleared.disks, cleared.mounted);
            if args.json {
                json(&cleared)?
            } else {
                format!("{disks} disks removed, {mounted} stay because they are mounted\n")
            }
        }
    };
    // A reader that went away has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(code)
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    let text = serde_json::to_string_pretty(value).context("cannot say it in JSON")?;
    Ok(text + "\n")
}

fn show(stat: &Stat) -> String {
    use std::fmt::Write as _;

    let mut text = format!(
        "{}: {} of {} bytes, in {} disks; {} are documents, {} may still be filled in by mounts\n",
        stat.directory,
        stat.bytes,
        stat.bytes_max,
        stat.disks.len(),
        stat.documents_bytes,
        stat.granted_bytes
    );
    for disk in &stat.disks {
        let mounted = if disk.mounted { "  mounted" } else { "" };
        // Writing to a text does not fail.
        let _ = writeln!(
            text,
            "{}  {} of {} bytes{mounted}",
            disk.disk, disk.bytes, disk.length
        );
    }
    text
}

fn tell(disk: &Verified) -> String {
    let then = match (disk.wrong, disk.removed) {
        (0, _) => "",
        (_, true) => ", taken out",
        (_, false) => ", to be fetched anew when they are read",
    };
    format!(
        "{}  {} chunks right, {} wrong{then}; {} bytes cannot be judged\n",
        disk.disk, disk.right, disk.wrong, disk.unknown_bytes
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_of_the_cache_is_sound() {
        CacheArgs::command().debug_assert();
        let words = ["cache", "stat", "--cache", "/c", "--json"];
        let args = CacheArgs::try_parse_from(words).unwrap();
        assert_eq!(args.command, Command::Stat);
        assert!(args.json && args.cache == Some(PathBuf::from("/c")));
    }
}
