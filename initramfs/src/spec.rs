//! What goes into an initramfs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::filesystem::FileSystem;

/// Gives the files below `/lib/modules/<release>` of an image.
pub trait ModuleSource {
    /// Reads the file at `path`, which is relative to `/lib/modules/<release>`; `None` if there
    /// is no such file.
    ///
    /// # Errors
    /// Fails if the file is there but cannot be read.
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>>;
}

/// Modules in a directory of this machine, such as `/lib/modules/6.1.0-1-amd64`.
#[derive(Clone, Debug)]
pub struct DirectoryModules {
    root: PathBuf,
}

impl DirectoryModules {
    /// Takes modules from `root`, the directory that holds `modules.dep`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl ModuleSource for DirectoryModules {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.root.join(Path::new(path))) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A file to put into the initramfs as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraFile {
    /// Where: a plain absolute path.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Everything that decides the bytes of an initramfs.
pub struct Spec<'a> {
    /// `uname -r` of the kernel, as in `/lib/modules/<release>`.
    pub kernel_release: String,
    /// The kernel's modules.
    pub modules: &'a dyn ModuleSource,
    /// The file system of the image's root.
    pub filesystem: FileSystem,
    /// Where the root is on the disk, in the syntax of `root=`; `None` if it is the whole disk.
    pub root: Option<String>,
    /// The static `circular-mount`.
    pub client: PathBuf,
    /// The static `circular-init`.
    pub init: PathBuf,
    /// A static busybox with `udhcpc`, `ip` and `sh`.
    pub busybox: PathBuf,
    /// More modules, by name, that must be there and can be loaded by the devices that want them.
    pub extra_modules: Vec<String>,
    /// More files.
    pub extra_files: Vec<ExtraFile>,
}

impl std::fmt::Debug for Spec<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("kernel_release", &self.kernel_release)
            .field("filesystem", &self.filesystem)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}
