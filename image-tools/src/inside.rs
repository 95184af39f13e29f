//! Looks into a disk image for what it needs to boot: its root file system, kernel and modules.
//!
//! The disk is a file system as a whole, or has partitions (GPT or MBR) that are looked at one by one.
//! Only ext4 is read from inside (by a reader in this process: nothing is mounted, no root is
//! needed); for another file system the publisher names kernel and modules.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use image_format::manifest::is_release;
use image_format::partition;
use initramfs::filesystem::{HEAD_BYTES, Superblock};
use initramfs::init::root::{self, Candidate, RootSpec, RootSpecError};
use initramfs::{FileSystem, ModuleSource, layout};

/// Longest kernel taken out of an image, in bytes.
pub(crate) const KERNEL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Longest module, or list of modules, taken out of an image, in bytes.
const MODULE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why an image cannot be made bootable.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum InsideError {
    #[error("cannot read the image")]
    Read { source: io::Error },
    #[error(
        "no file system that can be a root was found, neither on the whole disk nor in a partition"
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
    #[error(
        "kernels were found in it, but not their modules (/lib/modules/{release} and others), which may be where nobody looks: on LVM or LUKS, which cannot be booted, or on a file system that cannot be looked into: give --kernel and --modules, and --root"
    )]
    NoModules { release: String },
    #[error(
        "the only file system that can be its root ({root}) has no program to start (/sbin/init): if the root is on LVM or LUKS, it cannot be booted; else say where it is with --root"
    )]
    NoInit { root: String },
    #[error(
        "there are kernels in it, but a file system that may have their modules cannot be looked into: give --kernel and --modules"
    )]
    Modules { source: Box<Self> },
    #[error("`{path}` of the image, where its kernel or modules are looked for, cannot be read")]
    Kernel { path: String, source: Ext4Error },
    #[error("its kernel `{path}` is longer than 256 MiB")]
    LongKernel { path: String },
    #[error(transparent)]
    RootSpec(#[from] RootSpecError),
    #[error("root={asked} is no file system of the disk, which has: {found}")]
    NoSuchRoot { asked: String, found: String },
    #[error("there are several file systems that can be the root: say which with --root ({found})")]
    Ambiguous { found: String },
}

impl InsideError {
    /// Tells whether the image has nothing that could boot, or nothing that can be found: no failure of a publish.
    #[must_use]
    pub const fn is_of_the_image(&self) -> bool {
        match self {
            Self::NoFileSystem
            | Self::Opaque { .. }
            | Self::Ext4 { .. }
            | Self::NoKernel
            | Self::NoModules { .. }
            | Self::NoInit { .. } => true,
            Self::Read { .. }
            | Self::Modules { .. }
            | Self::Kernel { .. }
            | Self::LongKernel { .. }
            | Self::RootSpec(_)
            | Self::NoSuchRoot { .. }
            | Self::Ambiguous { .. } => false,
        }
    }
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

impl Volume {
    fn of(candidate: &Candidate) -> Option<Self> {
        let partition = candidate.partition.as_ref();
        Some(Self {
            offset: partition.map_or(0, |partition| partition.offset),
            root: partition.map(|partition| format!("PARTUUID={}", partition.uuid)),
            superblock: candidate.superblock.clone()?,
        })
    }
}

/// Finds the root of a disk as a booting machine does: what was `asked` for, in the syntax of `root=`, or else what can be
/// nothing else.
///
/// # Errors
/// There is no such file system, or there are several; or the image cannot be read.
pub fn root_volume(disk: &File, asked: Option<&str>) -> Result<Volume, InsideError> {
    let spec = asked.map(str::parse::<RootSpec>).transpose()?;
    let candidates = candidates(disk)?;
    let chosen = root::choose(spec.as_ref(), None, &candidates);
    if let Some(volume) = chosen.and_then(Volume::of) {
        return Ok(volume);
    }
    let with_any = |candidate: &&Candidate| asked.is_some() || candidate.superblock.is_some();
    let found: Vec<String> = (candidates.iter().filter(with_any))
        .map(Candidate::describe)
        .collect();
    let found = found.join("; ");
    Err(match asked {
        Some(asked) => InsideError::NoSuchRoot {
            asked: asked.to_owned(),
            found,
        },
        None if found.is_empty() => InsideError::NoFileSystem,
        None => InsideError::Ambiguous { found },
    })
}

/// Finds the file systems of a disk: one on the whole disk, or those of its partitions.
///
/// # Errors
/// The image cannot be read.
fn volumes(disk: &File) -> Result<Vec<Volume>, InsideError> {
    let mut volumes: Vec<_> = candidates(disk)?.iter().filter_map(Volume::of).collect();
    if volumes.first().is_some_and(|volume| volume.root.is_none()) {
        volumes.truncate(1);
    }
    Ok(volumes)
}

/// What could be the root: the whole disk, then its partitions.
fn candidates(disk: &File) -> Result<Vec<Candidate>, InsideError> {
    let read = |source| InsideError::Read { source };
    let length = (&*disk).seek(SeekFrom::End(0)).map_err(read)?;
    let partitions = partition::partitions(length, |range| {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        disk.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    });
    let whole = Candidate {
        device: "the whole disk".to_owned(),
        partition: None,
        superblock: superblock_at(disk, 0)?,
    };
    let mut candidates = vec![whole];
    for partition in partitions.map_err(read)? {
        candidates.push(Candidate {
            device: format!("partition {}", partition.number),
            superblock: superblock_at(disk, partition.offset)?,
            partition: Some(partition),
        });
    }
    Ok(candidates)
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

/// Makes sure that a root which was found by looking has a program that a machine can start. What cannot be looked into is let
/// through.
///
/// # Errors
/// It has none, or the image cannot be read.
pub fn check_init(disk: &File, volume: &Volume) -> Result<(), InsideError> {
    if volume.superblock.filesystem != FileSystem::Ext4 {
        return Ok(());
    }
    let inside = match open_ext4(disk, volume) {
        Ok(inside) => inside,
        Err(InsideError::Ext4 { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    for path in layout::INITS {
        // A link may lead to what is there only when the machine runs.
        match inside.symlink_metadata(path) {
            Err(error) if is_absence(&error) => {}
            Err(source @ Ext4Error::Io(_)) => {
                return Err(InsideError::Kernel {
                    path: path.to_owned(),
                    source,
                });
            }
            Ok(_) | Err(_) => return Ok(()),
        }
    }
    Err(InsideError::NoInit {
        root: volume
            .root
            .clone()
            .unwrap_or_else(|| "the whole disk".to_owned()),
    })
}

/// A kernel that was found in an image, and the file system with its modules.
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// The bytes of the kernel.
    pub bytes: Vec<u8>,
    /// The root: the file system that has the modules.
    pub volume: Volume,
    /// How many ext4 file systems could not be looked into.
    pub passed_over: usize,
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
    let open = |volume: &Volume| open_ext4(disk, volume);
    let (mut found, mut unreadable) = (Vec::<(String, String, usize)>::new(), Vec::new());
    for (number, volume) in ext4.iter().enumerate() {
        let inside = match open(volume) {
            Ok(inside) => inside,
            // It may hold data only.
            Err(error @ InsideError::Ext4 { .. }) => {
                unreadable.push(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        for directory in ["/boot", "/"] {
            let kernels = kernels_in(&inside, directory)?;
            found.extend(
                kernels
                    .into_iter()
                    .map(|(release, path)| (release, path, number)),
            );
        }
    }
    found.sort_by_cached_key(|(release, ..)| natural(release));
    let newest = found.last().map(|(release, ..)| release.clone());
    for (release, path, kernel_at) in found.into_iter().rev() {
        for volume in &ext4 {
            let Ok(modules) = open(volume) else { continue };
            let listed = format!("/lib/modules/{release}/modules.dep");
            match modules.metadata(listed.as_str()) {
                Ok(_) => {}
                Err(error) if is_absence(&error) => continue,
                Err(source) => {
                    return Err(InsideError::Kernel {
                        path: listed,
                        source,
                    });
                }
            }
            let bytes = read_kernel(&open(&ext4[kernel_at])?, &path)?;
            return Ok(Kernel {
                release,
                bytes,
                volume: volume.clone(),
                passed_over: unreadable.len(),
                modules,
            });
        }
    }
    Err(match unreadable.into_iter().next() {
        None => newest.map_or(InsideError::NoKernel, |release| InsideError::NoModules {
            release,
        }),
        Some(error) if newest.is_some() => InsideError::Modules {
            source: Box::new(error),
        },
        Some(error) => error,
    })
}

fn open_ext4(disk: &File, volume: &Volume) -> Result<Ext4, InsideError> {
    let file = disk.try_clone();
    let file = file.map_err(|source| InsideError::Read { source })?;
    let part = Part {
        disk: file,
        offset: volume.offset,
    };
    Ext4::load(Box::new(part)).map_err(|source| match source {
        Ext4Error::Io(source) => InsideError::Read {
            source: io::Error::other(source),
        },
        source => InsideError::Ext4 { source },
    })
}

fn read_kernel(inside: &Ext4, path: &str) -> Result<Vec<u8>, InsideError> {
    let failed = |source| InsideError::Kernel {
        path: path.to_owned(),
        source,
    };
    if inside.metadata(path).map_err(failed)?.len() > KERNEL_BYTES_MAX {
        return Err(InsideError::LongKernel {
            path: path.to_owned(),
        });
    }
    inside.read(path).map_err(failed)
}

/// Lists `vmlinuz-RELEASE` files of a directory; none if there is no such directory. One that cannot be read is no such
/// answer: a publish that finds no kernel ends well, and what booted before does not any more.
fn kernels_in(inside: &Ext4, directory: &str) -> Result<Vec<(String, String)>, InsideError> {
    let failed = |source| InsideError::Kernel {
        path: directory.to_owned(),
        source,
    };
    let entries = match inside.read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut kernels = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let release = name
            .as_str()
            .ok()
            .and_then(|name| name.strip_prefix("vmlinuz-"));
        if let Some(release) = release.filter(|release| is_release(release)) {
            let path = format!("{}/vmlinuz-{release}", directory.trim_end_matches('/'));
            kernels.push((release.to_owned(), path));
        }
    }
    Ok(kernels)
}

/// Whether there is nothing of that name.
const fn is_absence(error: &Ext4Error) -> bool {
    matches!(error, Ext4Error::NotFound | Ext4Error::NotADirectory)
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
