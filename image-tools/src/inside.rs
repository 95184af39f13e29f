//! Looks into a disk image for what it needs to boot: its root file system, kernel and modules.
//!
//! The disk is a file system as a whole, or has a GPT whose partitions are looked at one by one.
//! Only ext4 is read from inside (by a reader in this process: nothing is mounted, no root is
//! needed); for another file system the publisher names kernel and modules.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use image_format::manifest::is_release;
use initramfs::filesystem::{HEAD_BYTES, Superblock};
use initramfs::{FileSystem, ModuleSource};

/// Longest kernel taken out of an image, in bytes.
const KERNEL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Longest module, or list of modules, taken out of an image, in bytes.
const MODULE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why an image cannot be made bootable. A publish goes on without.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum InsideError {
    #[error("cannot read the image")]
    Read { source: io::Error },
    #[error(
        "no file system that can be a root was found, neither on the whole disk nor in a GPT partition"
    )]
    NoFileSystem,
    #[error("its root file system is {}, which cannot be looked into: give --kernel and --modules", .filesystem.name())]
    Opaque { filesystem: FileSystem },
    #[error("cannot look into its ext4 file system: give --kernel and --modules")]
    Ext4 { source: Ext4Error },
    #[error(
        "no kernel with modules was found in it (/boot/vmlinuz-RELEASE with /lib/modules/RELEASE): install one, or give --kernel and --modules"
    )]
    NoKernel,
}

/// A file system of the disk that can be a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// `root=` for it; none for the whole disk.
    pub root: Option<String>,
    /// What it is.
    pub superblock: Superblock,
}

/// Finds the file systems of a disk.
///
/// # Errors
/// The image cannot be read.
pub fn volumes(disk: &File) -> Result<Vec<Volume>, InsideError> {
    if let Some(superblock) = superblock_at(disk, 0)? {
        return Ok(vec![Volume {
            offset: 0,
            root: None,
            superblock,
        }]);
    }
    let copy = disk
        .try_clone()
        .map_err(|source| InsideError::Read { source })?;
    // A disk without a valid table has no partitions; what is wrong with it does not matter here.
    let Ok(table) = gpt::GptConfig::new().writable(false).open_from_device(copy) else {
        return Ok(Vec::new());
    };
    let mut volumes = Vec::new();
    for partition in table
        .partitions()
        .values()
        .filter(|partition| partition.is_used())
    {
        let Ok(offset) = partition.bytes_start(*table.logical_block_size()) else {
            continue;
        };
        if let Some(superblock) = superblock_at(disk, offset)? {
            volumes.push(Volume {
                offset,
                root: Some(format!("PARTUUID={}", partition.part_guid.hyphenated())),
                superblock,
            });
        }
    }
    Ok(volumes)
}

fn superblock_at(disk: &File, offset: u64) -> Result<Option<Superblock>, InsideError> {
    let mut head = vec![0; HEAD_BYTES];
    let mut filled = 0;
    while filled < head.len() {
        match disk.read_at(&mut head[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(InsideError::Read { source }),
        }
    }
    Ok(Superblock::detect(&head[..filled]))
}

/// Tells whether `volume` is an ext4 whose journal was not replayed (`INCOMPAT_RECOVER`): it is
/// booted without replay, so what only the journal knows is lost.
///
/// # Errors
/// The image cannot be read.
pub fn needs_recovery(disk: &File, volume: &Volume) -> Result<bool, InsideError> {
    const FEATURE_INCOMPAT: u64 = 1024 + 0x60;
    const RECOVER: u32 = 0x4;
    if volume.superblock.filesystem != FileSystem::Ext4 {
        return Ok(false);
    }
    let mut field = [0; 4];
    disk.read_exact_at(&mut field, volume.offset + FEATURE_INCOMPAT)
        .map_err(|source| InsideError::Read { source })?;
    Ok(u32::from_le_bytes(field) & RECOVER != 0)
}

/// A kernel that was found in an image, and the file system with its modules.
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// The bytes of the kernel.
    pub bytes: Vec<u8>,
    /// The root: the file system that has the modules.
    pub volume: Volume,
    modules: Ext4,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("release", &self.release)
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

impl ModuleSource for Kernel {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let path = format!("/lib/modules/{}/{path}", self.release);
        let bounded = |length| match length {
            0..=MODULE_BYTES_MAX => self.modules.read(path.as_str()),
            _ => Err(Ext4Error::FileTooLarge),
        };
        let found = self.modules.metadata(path.as_str());
        match found.and_then(|found| bounded(found.len())) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Ext4Error::NotFound) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// Finds the newest kernel whose modules are in the image too. The root, `/boot` and modules may
/// lie in different partitions.
///
/// # Errors
/// There is none, or it cannot be looked for.
pub fn find_kernel(disk: &File) -> Result<Kernel, InsideError> {
    let volumes = volumes(disk)?;
    if volumes.is_empty() {
        return Err(InsideError::NoFileSystem);
    }
    let (ext4, others): (Vec<_>, Vec<_>) = volumes
        .into_iter()
        .partition(|volume| volume.superblock.filesystem == FileSystem::Ext4);
    let Some(_) = ext4.first() else {
        return Err(InsideError::Opaque {
            filesystem: others[0].superblock.filesystem,
        });
    };
    let open = |volume: &Volume| {
        let file = disk
            .try_clone()
            .map_err(|source| InsideError::Read { source })?;
        Ext4::load(Box::new(Part {
            disk: file,
            offset: volume.offset,
        }))
        .map_err(|source| InsideError::Ext4 { source })
    };
    let mut found: Vec<(String, String, usize)> = Vec::new();
    for (number, volume) in ext4.iter().enumerate() {
        let inside = open(volume)?;
        for directory in ["/boot", "/"] {
            found.extend(
                kernels_in(&inside, directory).map(|(release, path)| (release, path, number)),
            );
        }
    }
    found.sort_by_cached_key(|(release, ..)| natural(release));
    for (release, path, kernel_at) in found.into_iter().rev() {
        for volume in &ext4 {
            let modules = open(volume)?;
            let listed = format!("/lib/modules/{release}/modules.dep");
            if !modules.exists(listed.as_str()).unwrap_or(false) {
                continue;
            }
            let bytes = read_kernel(&open(&ext4[kernel_at])?, &path)?;
            return Ok(Kernel {
                release,
                bytes,
                volume: volume.clone(),
                modules,
            });
        }
    }
    Err(InsideError::NoKernel)
}

fn read_kernel(inside: &Ext4, path: &str) -> Result<Vec<u8>, InsideError> {
    let ext4 = |source| InsideError::Ext4 { source };
    if inside.metadata(path).map_err(ext4)?.len() > KERNEL_BYTES_MAX {
        return Err(InsideError::NoKernel);
    }
    inside.read(path).map_err(ext4)
}

/// Lists `vmlinuz-RELEASE` files of a directory; none if there is no such directory.
fn kernels_in(inside: &Ext4, directory: &str) -> impl Iterator<Item = (String, String)> {
    let entries = inside.read_dir(directory).into_iter().flatten();
    entries.filter_map(Result::ok).filter_map(move |entry| {
        let name = entry.file_name();
        let release = name.as_str().ok()?.strip_prefix("vmlinuz-")?.to_owned();
        is_release(&release).then(|| {
            let path = format!("{}/vmlinuz-{release}", directory.trim_end_matches('/'));
            (release, path)
        })
    })
}

/// A key that sorts `6.1.0-9` before `6.1.0-10`: runs of digits compare as numbers.
fn natural(release: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = release;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let text = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (text, after) = after.split_at(text);
        key.push((number.parse().unwrap_or(0), text.to_owned()));
        rest = after;
    }
    key
}

/// A partition of a disk file, for the ext4 reader.
struct Part {
    disk: File,
    offset: u64,
}

impl Ext4Read for Part {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let at = self
            .offset
            .checked_add(start_byte)
            .ok_or("offset past the end of the disk")?;
        Ok(self.disk.read_exact_at(dst, at)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_sort_by_number() {
        let mut releases = [
            "6.1.0-10-amd64",
            "6.1.0-9-amd64",
            "5.10.0-40",
            "6.10.1",
            "6.1.0-9-cloud-amd64",
        ];
        releases.sort_by_cached_key(|release| natural(release));
        assert_eq!(
            releases,
            [
                "5.10.0-40",
                "6.1.0-9-amd64",
                "6.1.0-9-cloud-amd64",
                "6.1.0-10-amd64",
                "6.10.1"
            ]
        );
    }

    #[test]
    fn a_disk_of_noise_has_no_file_system() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0x5a; 200_000], 0).unwrap();
        assert!(matches!(find_kernel(&file), Err(InsideError::NoFileSystem)));
    }
}
