//! `circular completions` and `circular man`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap_complete::Shell;

/// Arguments of `circular completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// Shell to complete for
    shell: Shell,
}

/// Arguments of `circular man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory to write the pages to
    #[arg(default_value = ".")]
    directory: PathBuf,
}

/// Prints a completion script.
///
/// # Errors
/// Standard output is closed or full.
pub fn completions(args: &CompletionArgs, mut command: clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "circular", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

/// Writes one manual page for each command.
///
/// # Errors
/// The directory cannot be written.
pub fn man(args: &ManArgs, command: clap::Command) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(command, &args.directory))
        .with_context(|| {
            format!(
                "cannot write manual pages to `{}`",
                args.directory.display()
            )
        })
}
