//! Builds an initramfs; the only module of the builder that reads files.
//!
//! Modules are chosen ([`choice`]), closed over what they need, unpacked, and put into the tree
//! together with the part of the module index that speaks of them. The programs and a
//! [`BuildRecord`] join them; [`archive`] does the rest.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    archive, layout,
    modules::{
        IndexTexts, ModuleIndex, ModuleName, Place, choice,
        compression::{decompress, plain_path},
    },
    record::BuildRecord,
    spec::Spec,
    tree::{Node, Tree, TreeError},
};

/// What `udhcpc` runs. It decides nothing: it writes the lease down for init.
const DHCP_SCRIPT: &str = include_str!("dhcp.sh");

/// Why an initramfs could not be built.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BuildError {
    #[error("cannot read {what} {path}", path = path.display())]
    Program {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{what} {path} is not a static program; it would not start in an initramfs",
        path = path.display()
    )]
    NotStatic { what: &'static str, path: PathBuf },
    #[error("cannot read /lib/modules/{release}/{path} of the image")]
    Read {
        release: String,
        path: String,
        source: io::Error,
    },
    #[error(
        "the image has no /lib/modules/{release}/modules.dep: install that kernel's modules in it, or run depmod"
    )]
    NoIndex { release: String },
    #[error(
        "kernel {release} has no `{module}`, neither built in nor as a module: without it a network boot is impossible"
    )]
    RequiredModule { release: String, module: ModuleName },
    #[error("/lib/modules/{release}/{path} is in modules.dep but not in the image")]
    MissingFile { release: String, path: String },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("cannot write the archive")]
    Archive(#[source] io::Error),
}

/// An initramfs.
#[derive(Clone, Debug)]
pub struct Initramfs {
    /// Its bytes, as the boot loader hands them to the kernel.
    pub bytes: Vec<u8>,
    /// What is in it.
    pub report: Report,
}

/// Sizes in bytes; those of parts are before compression.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The whole, compressed.
    pub total_bytes: u64,
    /// The whole, unpacked.
    pub unpacked_bytes: u64,
    /// `circular-mount`.
    pub client_bytes: u64,
    /// `circular-init`.
    pub init_bytes: u64,
    /// busybox.
    pub busybox_bytes: u64,
    /// All modules.
    pub module_bytes: u64,
    /// How many modules.
    pub n_modules: usize,
}

/// An initramfs that is not compressed yet, which takes most of the time.
#[derive(Clone, Debug)]
pub struct Unpacked {
    archive: Vec<u8>,
    report: Report,
}

impl Unpacked {
    /// Compresses it, or takes the one of `known`, built before, that unpacks to the same.
    ///
    /// # Errors
    /// Fails only if memory runs out inside the compressor.
    pub fn pack(self, known: &[impl AsRef<[u8]>]) -> Result<Initramfs, BuildError> {
        let mut known = known.iter().map(AsRef::as_ref);
        let bytes = match known.find(|bytes| archive::is_packed_in(&self.archive, bytes)) {
            Some(bytes) => bytes.to_vec(),
            None => archive::compress(&self.archive).map_err(BuildError::Archive)?,
        };
        let mut report = self.report;
        report.total_bytes = byte_count(&bytes);
        Ok(Initramfs { bytes, report })
    }
}

/// Builds the initramfs that `spec` describes; equal inputs give equal bytes.
///
/// # Errors
/// Fails if a program or module cannot be read, or if the kernel lacks what every boot needs.
pub fn build(spec: &Spec<'_>) -> Result<Initramfs, BuildError> {
    unpacked(spec)?.pack(&[] as &[&[u8]])
}

/// The same, not compressed.
///
/// # Errors
/// As [`build`].
pub fn unpacked(spec: &Spec<'_>) -> Result<Unpacked, BuildError> {
    let mut tree = Tree::default();
    let mut report = Report::default();
    for path in layout::DIRECTORIES {
        tree.add_directory(path)?;
    }
    tree.add("/dev/console", Node::CharDevice { major: 5, minor: 1 })?;
    tree.add("/dev/null", Node::CharDevice { major: 1, minor: 3 })?;

    report.client_bytes = add_program(&mut tree, layout::CLIENT, "client", &spec.client)?;
    report.init_bytes = add_program(&mut tree, layout::INIT, "init", &spec.init)?;
    report.busybox_bytes = add_program(&mut tree, layout::BUSYBOX, "busybox", &spec.busybox)?;
    for applet in layout::APPLETS {
        tree.add_symlink(&format!("/bin/{applet}"), "busybox")?;
    }
    // The kernel calls /sbin/modprobe where one driver asks for another.
    tree.add_symlink("/sbin", "bin")?;
    tree.add_file(layout::DHCP_SCRIPT, DHCP_SCRIPT, 0o755)?;

    let load = add_modules(&mut tree, spec, &mut report)?;
    let record = BuildRecord {
        kernel_release: spec.kernel_release.clone(),
        load,
        filesystem: spec.filesystem,
        root: spec.root.clone(),
    };
    tree.add_file(layout::BUILD_RECORD, record.encode(), 0o644)?;
    for file in &spec.extra_files {
        tree.add_file(&file.path, file.bytes.clone(), file.mode)?;
    }

    let archive = archive::write_cpio(&tree, Vec::new()).map_err(BuildError::Archive)?;
    report.unpacked_bytes = byte_count(&archive);
    Ok(Unpacked { archive, report })
}

fn byte_count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a usize fits into 64 bits on every supported machine")
}

fn add_program(
    tree: &mut Tree,
    place: &str,
    what: &'static str,
    path: &Path,
) -> Result<u64, BuildError> {
    let bytes = fs::read(path).map_err(|source| BuildError::Program {
        what,
        path: path.to_owned(),
        source,
    })?;
    if !is_static(&bytes) {
        let path = path.to_owned();
        return Err(BuildError::NotStatic { what, path });
    }
    let length = byte_count(&bytes);
    tree.add_file(place, bytes, 0o755)?;
    Ok(length)
}

/// Says whether `program` starts without a dynamic linker: a 64-bit ELF file without `PT_INTERP`.
fn is_static(program: &[u8]) -> bool {
    const ELF64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    const PT_INTERP: u32 = 3;
    let field = |at: usize| -> Option<[u8; 8]> { program.get(at..)?.first_chunk().copied() };
    let short = |at: usize| -> Option<usize> {
        let bytes = program.get(at..)?.first_chunk()?;
        Some(usize::from(u16::from_le_bytes(*bytes)))
    };
    let headers = || {
        let table = usize::try_from(u64::from_le_bytes(field(32)?)).ok()?;
        let (size, count) = (short(54)?, short(56)?);
        let rows = program.get(table..)?.get(..size.checked_mul(count)?)?;
        (size >= 4).then(|| rows.chunks_exact(size))
    };
    program.starts_with(ELF64_LITTLE_ENDIAN)
        && headers()
            .is_some_and(|mut rows| rows.all(|row| !row.starts_with(&PT_INTERP.to_le_bytes())))
}

/// Puts the modules into the tree; returns the names that init loads at every boot.
fn add_modules(
    tree: &mut Tree,
    spec: &Spec<'_>,
    report: &mut Report,
) -> Result<Vec<String>, BuildError> {
    let index = read_index(spec)?;
    let mut wanted = Vec::new();
    for name in required(spec) {
        match index.place(&name) {
            Place::File => wanted.push(name),
            Place::Kernel => {}
            Place::Absent => {
                let release = spec.kernel_release.clone();
                return Err(BuildError::RequiredModule {
                    release,
                    module: name,
                });
            }
        }
    }
    let extra = spec.extra_modules.iter().map(|name| ModuleName::new(name));
    let extra: BTreeSet<ModuleName> = extra.collect();
    let packets = ModuleName::new(choice::PACKET_SOCKETS);
    if index.place(&packets) == Place::File {
        wanted.insert(0, packets);
    }
    let load = wanted.iter().filter(|name| !extra.contains(name));
    let load: Vec<String> = load.map(ToString::to_string).collect();
    wanted.extend(optional());

    let shipped: BTreeSet<ModuleName> = wanted
        .iter()
        .flat_map(|name| index.load_order(name))
        .map(|step| step.name.clone())
        .collect();
    let directory = layout::modules_directory(&spec.kernel_release);
    for name in &shipped {
        for step in index
            .load_order(name)
            .iter()
            .filter(|step| step.name == name)
        {
            let bytes = read_module(spec, step.path)?;
            report.module_bytes += byte_count(&bytes);
            report.n_modules += 1;
            let place = format!("{directory}/{}", plain_path(step.path));
            tree.add_file(&place, bytes, 0o644)?;
        }
    }
    let texts = index.subset(&shipped, plain_path).encode();
    for (name, text) in [
        ("modules.dep", texts.dep),
        ("modules.softdep", texts.softdep),
        ("modules.alias", texts.alias),
        ("modules.builtin", texts.builtin),
    ] {
        tree.add_file(&format!("{directory}/{name}"), text, 0o644)?;
    }
    Ok(load)
}

/// What must be there, in the order in which init loads it.
fn required(spec: &Spec<'_>) -> impl Iterator<Item = ModuleName> {
    let fixed = choice::REQUIRED.into_iter();
    let extra = spec.extra_modules.iter().map(String::as_str);
    fixed
        .chain([spec.filesystem.name()])
        .chain(extra)
        .map(ModuleName::new)
}

/// What is taken if the kernel has it.
fn optional() -> impl Iterator<Item = ModuleName> {
    let file_systems = choice::FILE_SYSTEMS.iter().map(|kind| kind.name());
    let drivers = choice::DRIVERS.iter().copied();
    drivers.chain(file_systems).map(ModuleName::new)
}

fn read_index(spec: &Spec<'_>) -> Result<ModuleIndex, BuildError> {
    let text = |name: &str| -> Result<Option<String>, BuildError> {
        let bytes = read(spec, name)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let no_index = || BuildError::NoIndex {
        release: spec.kernel_release.clone(),
    };
    Ok(ModuleIndex::parse(&IndexTexts {
        dep: text("modules.dep")?.ok_or_else(no_index)?,
        softdep: text("modules.softdep")?.unwrap_or_default(),
        alias: text("modules.alias")?.unwrap_or_default(),
        builtin: text("modules.builtin")?.unwrap_or_default(),
    }))
}

fn read_module(spec: &Spec<'_>, path: &str) -> Result<Vec<u8>, BuildError> {
    let release = &spec.kernel_release;
    let bytes = read(spec, path)?.ok_or_else(|| BuildError::MissingFile {
        release: release.clone(),
        path: path.to_owned(),
    })?;
    decompress(path, bytes).map_err(|source| BuildError::Read {
        release: release.clone(),
        path: path.to_owned(),
        source,
    })
}

fn read(spec: &Spec<'_>, path: &str) -> Result<Option<Vec<u8>>, BuildError> {
    spec.modules.read(path).map_err(|source| BuildError::Read {
        release: spec.kernel_release.clone(),
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
