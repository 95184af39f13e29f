//! Makes a disk bootable: kernel and modules out of the image, an initramfs around our client.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image_format::manifest::{self, Boot};
use image_format::{ImageRef, ObjectRef, boot_script};
use image_store::{Store, StoreError};
use initramfs::layout::{AUTHORITIES, TRUSTED_ROOT};
use initramfs::{BuildError, DirectoryModules, ExtraFile, ModuleSource, Report, Spec};

use super::source::Source;
use crate::inside::{self, InsideError, KERNEL_BYTES_MAX, Volume};

/// The programs that go into an initramfs; all of them static.
#[derive(Clone, Debug)]
pub struct GuestPrograms {
    /// `circular-mount`.
    pub client: PathBuf,
    /// `circular-init`.
    pub init: PathBuf,
    /// busybox.
    pub busybox: PathBuf,
}

/// Where kernel and modules come from.
#[derive(Clone, Debug)]
pub enum KernelSource {
    /// Out of the image.
    Image,
    /// Files of this machine: a kernel, and the directory of its modules.
    Files {
        /// The kernel.
        kernel: PathBuf,
        /// `/lib/modules/RELEASE`; its last part is the release.
        modules: PathBuf,
    },
}

/// How a disk shall boot.
#[derive(Clone, Debug)]
pub struct BootConfig {
    /// Where the kernel comes from.
    pub kernel: KernelSource,
    /// `root=` to use; found by looking into the image if not given.
    pub root: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Address of the store that boot scripts name.
    pub base_url: Option<String>,
    /// Addresses of other servers of the same store that boot scripts name.
    pub mirrors: Vec<String>,
    /// Modules of that kernel that the initramfs shall have besides those that most machines need.
    pub drivers: Vec<String>,
    /// Where to find what goes into the initramfs.
    pub programs: ProgramPaths,
    /// The root that the machine shall trust.
    pub trusted_root: Vec<u8>,
    /// File with the certificate authorities, in PEM, that the machine shall believe: its initramfs has no others.
    pub authorities: Option<PathBuf>,
}

/// Why a disk could not be made bootable.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BootError {
    #[error(transparent)]
    Inside(#[from] InsideError),
    #[error("cannot build the initramfs")]
    Build(#[from] BuildError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read the kernel `{}`", .path.display())]
    Kernel { path: PathBuf, source: io::Error },
    #[error(
        "the kernel's command line may be {excess} bytes too long, and be cut: it has --cmdline, --root, --base-url and all --mirror-url"
    )]
    LongLine { excess: usize },
    #[error("the kernel `{}` is longer than 256 MiB: is it one that a boot loader takes?", .path.display())]
    LongKernel { path: PathBuf },
    #[error(
        "kernel {release} cannot boot it: Linux 5.9 or newer is needed (for an initramfs that zstd packed, and for loop devices); give one with --kernel and --modules"
    )]
    OldKernel { release: String },
    #[error("cannot read the certificate authorities `{}`", .path.display())]
    Authorities { path: PathBuf, source: io::Error },
    #[error("`{}` has no certificate in PEM, or more than 1 MiB of them", .path.display())]
    NoAuthorities { path: PathBuf },
    #[error("`{}` is no directory /lib/modules/RELEASE", .path.display())]
    Modules { path: PathBuf },
    #[error(
        "the kernel command line is longer than 1024 characters, is not plain ASCII, or has iPXE syntax (${{…}}, &&, ||, the word ;, a word that begins with #) in it"
    )]
    Cmdline,
    #[error("{program} is missing: run `make guest`, or say where it is with {option}")]
    Program {
        program: &'static str,
        option: &'static str,
    },
    #[error("the initramfs builder died")]
    Died,
}

impl BootError {
    /// As [`InsideError::is_of_the_image`].
    #[must_use]
    pub const fn is_of_the_image(&self) -> bool {
        match self {
            Self::Inside(error) => error.is_of_the_image(),
            Self::OldKernel { .. } => true,
            _ => false,
        }
    }
}

/// What was made bootable, and what it weighs.
#[derive(Clone, Debug)]
pub struct BootBuilt {
    /// What goes into the manifest.
    pub boot: Boot,
    /// Sizes of the initramfs and its parts.
    pub report: Report,
    /// The root file system has a journal that was not replayed: it was not unmounted cleanly.
    pub needs_recovery: bool,
    /// How many ext4 file systems of the disk could not be looked into; one of them may have been meant.
    pub passed_over: usize,
}

/// An initramfs of an earlier version that is longer is not looked at.
const KNOWN_BYTES_MAX: u64 = 64 << 20;

/// How many versions are looked through for theirs, newest first. Most have that of the one before.
const KNOWN_VERSIONS: usize = 4;

/// Builds the initramfs for the disk of `source`, and stores it with its kernel. That of an earlier
/// version of `reference` is taken as it is where nothing of it changed: to compress it takes longer
/// than all else of a publish.
///
/// # Errors
/// The image has no kernel that can be used, or the store cannot be written.
pub async fn build(
    store: &Store,
    reference: &ImageRef,
    source: &Source,
    config: BootConfig,
) -> Result<BootBuilt, BootError> {
    check_cmdline(&config.cmdline, config.root.as_deref())?;
    let disk = source
        .file()
        .try_clone()
        .map_err(|source| InsideError::Read { source })?;
    let cmdline = config.cmdline.clone();
    let (base_url, mirrors) = (config.base_url.clone(), config.mirrors.clone());
    let known = known(store, reference).await;
    let made = tokio::task::spawn_blocking(move || build_blocking(&disk, config, &known))
        .await
        .map_err(|_| BootError::Died)??;
    let initramfs = Bytes::from(made.initramfs.bytes);
    let boot = Boot {
        kernel: ObjectRef::of(&made.kernel),
        initramfs: ObjectRef::of(&initramfs),
        kernel_release: made.release,
        cmdline,
        root: made.root,
        base_url,
        mirrors,
    };
    match boot_script::excess(reference, &boot) {
        0 => {}
        excess => return Err(BootError::LongLine { excess }),
    }
    for object in [made.kernel, initramfs] {
        store.put_object(object).await?;
    }
    Ok(BootBuilt {
        boot,
        report: made.initramfs.report,
        needs_recovery: made.needs_recovery,
        passed_over: made.passed_over,
    })
}

/// What earlier versions of an image boot with. One that cannot be read saves no time, and does no harm.
async fn known(store: &Store, reference: &ImageRef) -> Vec<Bytes> {
    let objects = async {
        let names = store.names().await?;
        if !names.names.contains_key(&reference.name) {
            return Ok(Vec::new());
        }
        let catalogue = store.catalogue(&names, &reference.name).await?;
        let newest = catalogue.versions.values().rev().take(KNOWN_VERSIONS);
        let mut objects = Vec::new();
        for entry in newest {
            let boot = store.manifest(&entry.manifest).await?.boot;
            objects.extend(boot.map(|boot| boot.initramfs));
        }
        Ok::<_, StoreError>(objects)
    };
    let mut objects = objects.await.unwrap_or_default();
    objects.dedup();
    objects.retain(|object| object.length <= KNOWN_BYTES_MAX);
    let mut known = Vec::new();
    for object in objects {
        known.extend(store.object(&object).await.ok());
    }
    known
}

/// Checks what the publisher gives for the kernel command line: it becomes part of boot scripts.
///
/// # Errors
/// It cannot stand there.
pub fn check_cmdline(cmdline: &str, root: Option<&str>) -> Result<(), BootError> {
    if [Some(cmdline), root]
        .into_iter()
        .flatten()
        .all(manifest::is_whole_cmdline)
    {
        Ok(())
    } else {
        Err(BootError::Cmdline)
    }
}

struct Made {
    kernel: Bytes,
    release: String,
    root: Option<String>,
    initramfs: initramfs::Initramfs,
    needs_recovery: bool,
    passed_over: usize,
}

/// A kernel, wherever it came from, and the file system that is its root.
struct FoundKernel<'a> {
    bytes: Vec<u8>,
    release: String,
    modules: &'a dyn ModuleSource,
    /// Where its modules were found, if that was on the disk.
    volume: Option<Volume>,
    passed_over: usize,
}

fn build_blocking(disk: &File, config: BootConfig, known: &[Bytes]) -> Result<Made, BootError> {
    match config.kernel.clone() {
        KernelSource::Image => {
            let mut kernel = inside::find_kernel(disk)?;
            let found = FoundKernel {
                bytes: std::mem::take(&mut kernel.bytes),
                release: kernel.release.clone(),
                modules: &kernel,
                volume: Some(kernel.volume.clone()),
                passed_over: kernel.passed_over,
            };
            finish(disk, found, config, known)
        }
        KernelSource::Files { kernel, modules } => {
            let bytes = read_kernel(&kernel)?;
            let release = modules
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .filter(|name| manifest::is_release(name) && modules.join("modules.dep").is_file())
                .ok_or_else(|| BootError::Modules {
                    path: modules.clone(),
                })?;
            let found = FoundKernel {
                bytes,
                release,
                modules: &DirectoryModules::new(modules),
                volume: None,
                passed_over: 0,
            };
            finish(disk, found, config, known)
        }
    }
}

fn finish(
    disk: &File,
    found: FoundKernel<'_>,
    config: BootConfig,
    known: &[Bytes],
) -> Result<Made, BootError> {
    if is_too_old(&found.release) {
        return Err(BootError::OldKernel {
            release: found.release,
        });
    }
    let programs = config.programs.find()?;
    let mut extra_files = vec![ExtraFile {
        path: TRUSTED_ROOT.to_owned(),
        bytes: config.trusted_root,
        mode: 0o644,
    }];
    if let Some(path) = &config.authorities {
        extra_files.push(ExtraFile {
            path: AUTHORITIES.to_owned(),
            bytes: read_authorities(path)?,
            mode: 0o644,
        });
    }
    let volume = match (&config.root, found.volume) {
        (None, Some(volume)) => volume,
        (asked, _) => inside::root_volume(disk, asked.as_deref())?,
    };
    let names_init = config
        .cmdline
        .split(' ')
        .any(|word| word.starts_with("init="));
    if config.root.is_none() && !names_init {
        inside::check_init(disk, &volume)?;
    }
    let root = config.root.or_else(|| volume.root.clone());
    let unpacked = initramfs::unpacked(&Spec {
        kernel_release: found.release.clone(),
        modules: found.modules,
        filesystem: volume.superblock.filesystem,
        root: root.clone(),
        client: programs.client,
        init: programs.init,
        busybox: programs.busybox,
        extra_modules: config.drivers,
        extra_files,
    })?;
    Ok(Made {
        kernel: Bytes::from(found.bytes),
        release: found.release,
        root,
        initramfs: unpacked.pack(known)?,
        needs_recovery: inside::needs_recovery(disk, &volume)?,
        passed_over: found.passed_over,
    })
}

/// Reads a file that is no longer than `most` bytes; `None` if it is.
fn read_bounded(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

fn read_kernel(path: &Path) -> Result<Vec<u8>, BootError> {
    let path = path.to_owned();
    match read_bounded(&path, KERNEL_BYTES_MAX) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(BootError::LongKernel { path }),
        Err(source) => Err(BootError::Kernel { path, source }),
    }
}

/// Longest list of certificate authorities, in bytes: all those of Debian 12 are 220 KB.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

fn read_authorities(path: &Path) -> Result<Vec<u8>, BootError> {
    let path = path.to_owned();
    let is_pem = |bytes: &Vec<u8>| {
        let begin = b"-----BEGIN CERTIFICATE-----";
        bytes.windows(begin.len()).any(|window| window == begin)
    };
    match read_bounded(&path, AUTHORITIES_BYTES_MAX) {
        Ok(bytes) => bytes
            .filter(is_pem)
            .ok_or(BootError::NoAuthorities { path }),
        Err(source) => Err(BootError::Authorities { path, source }),
    }
}

/// Tells whether a kernel is older than Linux 5.9. What cannot be understood is let through.
fn is_too_old(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|digits| digits.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < (5, 9),
        _ => false,
    }
}

/// What the publisher said about where programs are.
#[derive(Clone, Debug, Default)]
pub struct ProgramPaths {
    /// The static `circular-mount`.
    pub client: Option<PathBuf>,
    /// The static `circular-init`.
    pub init: Option<PathBuf>,
    /// A static busybox.
    pub busybox: Option<PathBuf>,
}

impl ProgramPaths {
    /// Finds each program: where the publisher said, beside this program, or where packages put it.
    ///
    /// # Errors
    /// One is nowhere.
    pub fn find(self) -> Result<GuestPrograms, BootError> {
        let find = |given: Option<PathBuf>, program: &'static str, option| {
            given
                .or_else(|| places(program).into_iter().find(|path| path.is_file()))
                .ok_or(BootError::Program { program, option })
        };
        Ok(GuestPrograms {
            client: find(self.client, "circular-mount", "--guest-client")?,
            init: find(self.init, "circular-init", "--guest-init")?,
            busybox: find(self.busybox, "busybox", "--busybox")?,
        })
    }
}

/// Where a static program may be: an installation's library directory, a build tree, Debian's
/// busybox-static.
fn places(program: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Ok(this) = std::env::current_exe()
        && let Some(here) = this.parent()
    {
        directories.push(here.join("../lib/circular"));
        directories.push(here.join("../guest/x86_64-unknown-linux-gnu/guest"));
    }
    directories.push(PathBuf::from("/usr/lib/circular"));
    let mut paths: Vec<_> = directories
        .iter()
        .map(|directory| directory.join(program))
        .collect();
    if program == "busybox" {
        paths.extend(["/bin/busybox", "/usr/bin/busybox"].map(|path| Path::new(path).to_owned()));
    }
    paths
}
