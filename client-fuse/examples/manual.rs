//! Writes the manual pages of `circular-mount` and its completion scripts to a directory.
//!
//! `circular man` and `circular completions` do this for `circular`; here it is no part of the program,
//! because each machine that boots downloads that.
//!
//! `cargo run -p client-fuse --example manual -- DIRECTORY`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use clap_complete::Shell;

/// Write the manual pages of circular-mount and its completion scripts
#[derive(Debug, Parser)]
struct Args {
    /// Directory to write to; made if it is missing
    #[arg(default_value = ".")]
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Args { directory } = Args::parse();
    let cannot = || format!("cannot write to `{}`", directory.display());
    std::fs::create_dir_all(&directory).with_context(cannot)?;
    clap_mangen::generate_to(client_fuse::cli::command(), &directory).with_context(cannot)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let mut command = client_fuse::cli::command();
        clap_complete::generate_to(shell, &mut command, "circular-mount", &directory)
            .with_context(cannot)?;
    }
    Ok(())
}
