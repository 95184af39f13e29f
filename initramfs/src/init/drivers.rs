//! Loads kernel modules: by name, and for the devices that are there.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
};

use nix::libc;

use super::{failure::BootError, log::Log, sys};
use crate::{
    layout,
    modules::{IndexTexts, Load, ModuleIndex, ModuleName},
};

/// The modules of the initramfs, and which of them were loaded.
#[derive(Debug)]
pub(super) struct Drivers {
    directory: String,
    index: ModuleIndex,
    /// Tried already, with or without success.
    tried: BTreeSet<ModuleName>,
    /// Devices that were looked at already.
    seen: BTreeSet<String>,
}

impl Drivers {
    /// Reads the module index of kernel `release`.
    pub(super) fn open(release: &str) -> Result<Self, BootError> {
        let directory = layout::modules_directory(release);
        let text = |name: &str| fs::read_to_string(format!("{directory}/{name}"));
        let texts = || -> io::Result<IndexTexts> {
            Ok(IndexTexts {
                dep: text("modules.dep")?,
                softdep: text("modules.softdep")?,
                alias: text("modules.alias")?,
                builtin: text("modules.builtin")?,
            })
        };
        let texts = texts().map_err(|source| BootError::ModuleIndex {
            release: release.to_owned(),
            source,
        })?;
        Ok(Self {
            index: ModuleIndex::parse(&texts),
            directory,
            tried: BTreeSet::new(),
            seen: BTreeSet::new(),
        })
    }

    /// Loads the modules `names` and what they need.
    pub(super) fn load_all(&mut self, names: &[String]) -> Result<(), BootError> {
        names.iter().try_for_each(|name| self.load(name))
    }

    /// Loads the module `name` and what it needs; nothing if it is built in.
    pub(super) fn load(&mut self, name: &str) -> Result<(), BootError> {
        for step in self.index.load_order(&ModuleName::new(name)) {
            if !self.tried.insert(step.name.clone()) {
                continue;
            }
            match insert(&self.directory, &step) {
                Err(source) if step.needed => {
                    let name = step.name.to_string();
                    return Err(BootError::Module { name, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Loads the drivers of all devices that came up since the last call. A new driver may
    /// bring new devices (a bus), so this goes on until there is nothing new.
    pub(super) fn load_for_devices(&mut self, log: &Log) {
        loop {
            let known = self.seen.len();
            for modalias in modaliases() {
                if self.seen.contains(&modalias) {
                    continue;
                }
                let wanted = self.index.wanted_by(&modalias);
                let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
                for name in wanted {
                    if let Err(error) = self.load(&name) {
                        log.warn(&format!("{error} for the device {modalias}"));
                    }
                }
                self.seen.insert(modalias);
            }
            if self.seen.len() == known {
                return;
            }
        }
    }
}

fn insert(directory: &str, step: &Load<'_>) -> io::Result<()> {
    let module = File::open(Path::new(directory).join(step.path))?;
    match sys::load_module(&module) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// What the devices of all buses say that they are.
fn modaliases() -> BTreeSet<String> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(Path::new("/sys/bus"))
        .flat_map(|bus| entries(&bus.path().join("devices")))
        .filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok())
        .map(|modalias| modalias.trim_end().to_owned())
        .filter(|modalias| !modalias.is_empty())
        .collect()
}
