//! The Python of the virtual environment that `make python-tuf` fills.

use std::path::PathBuf;

use crate::binaries::checkout;

/// Returns the interpreter that knows python-tuf; there is none before `make python-tuf`.
pub fn interpreter() -> PathBuf {
    checkout().join("build/python-tuf/bin/python3")
}

/// Returns the file that says that everything was installed.
pub fn installed() -> PathBuf {
    checkout().join("build/python-tuf/installed")
}
