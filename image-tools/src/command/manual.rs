//! `circular completions` and `circular man`.

use std::io;
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
/// Never; a closed standard output is the shell's concern.
pub fn completions(args: &CompletionArgs, mut command: clap::Command) -> anyhow::Result<()> {
    clap_complete::generate(args.shell, &mut command, "circular", &mut io::stdout());
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
