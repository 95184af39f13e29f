//! What the kernel's module index says: who needs whom, and who drives what.
//!
//! `depmod` writes text files beside the modules; [`ModuleIndex`] holds those four that matter
//! here: `modules.dep`, `modules.softdep`, `modules.alias` and `modules.builtin`. The builder asks it what to
//! ship and writes the part that it shipped; init asks the same type what to load and in which order.
//!
//! Pure: texts in, names and orders out. Unknown lines are skipped, as `modprobe` does.
//! [`choice`] lists what a network boot wants; [`compression`] unpacks module files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use self::pattern::{matches, normalise};

pub mod choice;
pub mod compression;
mod pattern;

/// The name of a module: the stem of its file name, with `_` for `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleName(String);

impl ModuleName {
    /// Makes the name of a module out of `name`, with `-` and `_` the same.
    pub fn new(name: &str) -> Self {
        Self(name.replace('-', "_"))
    }

    /// Makes the name of the module in the file `path`.
    pub fn of_path(path: &str) -> Self {
        let file = path.rsplit('/').next().unwrap_or(path);
        Self::new(file.split(".ko").next().unwrap_or(file))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ModuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A module that is a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its file, relative to `/lib/modules/<release>`.
    pub path: String,
    /// Modules without which it does not load.
    needs: Vec<ModuleName>,
    /// Names or aliases that it would like to have loaded before it.
    before: Vec<String>,
    /// Names or aliases that it would like to have loaded after it.
    after: Vec<String>,
}

/// Says that devices or names that match `pattern` want `module`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    pattern: String,
    module: ModuleName,
}

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file of its own.
    File,
    /// In the kernel itself.
    Kernel,
    /// Nowhere.
    Absent,
}

/// One step of a load order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load<'a> {
    /// The module to load.
    pub name: &'a ModuleName,
    /// Its file, relative to `/lib/modules/<release>`.
    pub path: &'a str,
    /// Whether the module that was asked for fails without it.
    pub needed: bool,
}

/// The module index of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleIndex {
    modules: BTreeMap<ModuleName, Module>,
    aliases: Vec<Alias>,
    kernel: BTreeSet<ModuleName>,
}

/// The texts of an index, as `depmod` writes them; a file that is missing is an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexTexts {
    /// `modules.dep`
    pub dep: String,
    /// `modules.softdep`
    pub softdep: String,
    /// `modules.alias`
    pub alias: String,
    /// `modules.builtin`
    pub builtin: String,
}

impl ModuleIndex {
    /// Reads an index.
    pub fn parse(texts: &IndexTexts) -> Self {
        let mut index = Self {
            kernel: texts.builtin.lines().map(ModuleName::of_path).collect(),
            aliases: texts.alias.lines().filter_map(parse_alias).collect(),
            modules: texts.dep.lines().filter_map(parse_dep).collect(),
        };
        for line in texts.softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let name = words.next().map(ModuleName::new);
            let Some(module) = name.and_then(|name| index.modules.get_mut(&name)) else {
                continue;
            };
            let mut list = None;
            for word in words {
                match (word, &mut list) {
                    ("pre:", _) => list = Some(&mut module.before),
                    ("post:", _) => list = Some(&mut module.after),
                    (_, Some(names)) => names.push(word.to_owned()),
                    // Names before the first `pre:` or `post:` mean nothing to modprobe either.
                    (_, None) => {}
                }
            }
        }
        index
    }

    /// Writes the texts that [`parse`](Self::parse) reads as this index.
    pub fn encode(&self) -> IndexTexts {
        let mut texts = IndexTexts::default();
        for (name, module) in &self.modules {
            texts.dep.push_str(&module.path);
            texts.dep.push(':');
            for needed in module
                .needs
                .iter()
                .filter_map(|need| self.modules.get(need))
            {
                texts.dep.push(' ');
                texts.dep.push_str(&needed.path);
            }
            texts.dep.push('\n');
            for (key, names) in [("pre:", &module.before), ("post:", &module.after)] {
                if !names.is_empty() {
                    let names = names.join(" ");
                    writeln!(texts.softdep, "softdep {name} {key} {names}")
                        .expect("a String takes all that is written to it");
                }
            }
        }
        for Alias { pattern, module } in &self.aliases {
            writeln!(texts.alias, "alias {pattern} {module}")
                .expect("a String takes all that is written to it");
        }
        for name in &self.kernel {
            writeln!(texts.builtin, "kernel/{name}.ko")
                .expect("a String takes all that is written to it");
        }
        texts
    }

    /// Says where the driver `name` is.
    pub fn place(&self, name: &ModuleName) -> Place {
        if self.modules.contains_key(name) {
            Place::File
        } else if self.kernel.contains(name) {
            Place::Kernel
        } else {
            Place::Absent
        }
    }

    /// Returns the modules that a device with this `modalias` wants, in index order.
    pub fn wanted_by(&self, modalias: &str) -> Vec<&ModuleName> {
        let modalias = normalise(modalias);
        let mut found: Vec<&ModuleName> = Vec::new();
        for alias in &self.aliases {
            if !found.contains(&&alias.module) && matches(&alias.pattern, &modalias) {
                found.push(&alias.module);
            }
        }
        found
    }

    /// Returns what to load for `name`, in order: what it needs, what it would like, itself,
    /// what it would like afterwards. Built-in and absent modules are left out.
    pub fn load_order(&self, name: &ModuleName) -> Vec<Load<'_>> {
        let mut order = Vec::new();
        self.visit(name, true, &mut BTreeSet::new(), &mut order);
        order
    }

    fn visit<'a>(
        &'a self,
        name: &ModuleName,
        needed: bool,
        seen: &mut BTreeSet<&'a ModuleName>,
        order: &mut Vec<Load<'a>>,
    ) {
        let Some((name, module)) = self.modules.get_key_value(name) else {
            return;
        };
        if !seen.insert(name) {
            return;
        }
        for liked in module.before.iter().flat_map(|like| self.named(like)) {
            self.visit(liked, false, seen, order);
        }
        // modules.dep names the innermost last.
        for need in module.needs.iter().rev() {
            self.visit(need, needed, seen, order);
        }
        let path = module.path.as_str();
        order.push(Load { name, path, needed });
        for liked in module.after.iter().flat_map(|like| self.named(like)) {
            self.visit(liked, false, seen, order);
        }
    }

    /// A soft dependency is a module or an alias of several.
    fn named(&self, name: &str) -> Vec<&ModuleName> {
        match self.modules.get_key_value(&ModuleName::new(name)) {
            Some((name, _)) => vec![name],
            None => self.wanted_by(name),
        }
    }

    /// Returns the index of only the modules in `names`, each with the path that `path_of` gives it.
    #[must_use]
    pub fn subset(&self, names: &BTreeSet<ModuleName>, path_of: impl Fn(&str) -> String) -> Self {
        let modules = self.modules.iter().filter(|(name, _)| names.contains(name));
        let aliases = self.aliases.iter();
        Self {
            modules: modules
                .map(|(name, module)| {
                    let path = path_of(&module.path);
                    (
                        name.clone(),
                        Module {
                            path,
                            ..module.clone()
                        },
                    )
                })
                .collect(),
            aliases: aliases
                .filter(|alias| names.contains(&alias.module))
                .cloned()
                .collect(),
            kernel: self.kernel.clone(),
        }
    }
}

fn parse_dep(line: &str) -> Option<(ModuleName, Module)> {
    let (path, needs) = line.split_once(':')?;
    let module = Module {
        path: path.trim().to_owned(),
        needs: needs.split_whitespace().map(ModuleName::of_path).collect(),
        before: Vec::new(),
        after: Vec::new(),
    };
    Some((ModuleName::of_path(&module.path), module))
}

fn parse_alias(line: &str) -> Option<Alias> {
    let mut words = line.split_whitespace();
    if words.next() != Some("alias") {
        return None;
    }
    Some(Alias {
        pattern: normalise(words.next()?),
        module: ModuleName::new(words.next()?),
    })
}

#[cfg(test)]
mod tests;
