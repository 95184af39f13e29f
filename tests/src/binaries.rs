//! Finds the programs under test; never builds them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Returns the checkout.
pub fn checkout() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Returns the program `name` that was built along with the running test.
///
/// # Errors
/// It was not.
pub fn host(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot find the running test")?;
    // target/debug/deps/<test> or target/debug/examples/<example>
    let directory = test
        .ancestors()
        .nth(2)
        .context("the test lies in no target directory")?;
    built(&directory.join(name), "make build")
}

/// Returns the static program `name` that goes into an initramfs.
///
/// # Errors
/// It is not built.
pub fn guest(name: &str) -> Result<PathBuf> {
    let directory = checkout().join("target/guest/x86_64-unknown-linux-gnu/guest");
    built(&directory.join(name), "make guest")
}

fn built(program: &Path, command: &str) -> Result<PathBuf> {
    if !program.is_file() {
        bail!("no {}; `{command}` builds it", program.display());
    }
    Ok(program.to_owned())
}
