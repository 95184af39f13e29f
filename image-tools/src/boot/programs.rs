//! The programs that a boot needs.

use std::path::{Path, PathBuf};

use super::BootError;

/// Where they are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `circular-server`.
    pub server: PathBuf,
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
}

impl Programs {
    /// Finds each: beside this program, or in `PATH`.
    ///
    /// # Errors
    /// One is in neither place; the message tells what to do.
    pub fn find() -> Result<Self, BootError> {
        let this = std::env::current_exe().ok();
        let here = this.as_deref().and_then(Path::parent);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places: Vec<PathBuf> = here
            .map(Path::to_owned)
            .into_iter()
            .chain(std::env::split_paths(&path))
            .collect();
        let find = |program, cure| {
            let mut candidates = places.iter().map(|place| place.join(program));
            candidates
                .find(|candidate| candidate.is_file())
                .ok_or(BootError::Missing { program, cure })
        };
        Ok(Self {
            server: find(
                "circular-server",
                "it is installed with circular, or built by `make build`",
            )?,
            qemu: find(
                "qemu-system-x86_64",
                "install QEMU (Debian: apt install qemu-system-x86)",
            )?,
        })
    }
}
