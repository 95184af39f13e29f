//! A store in a directory of its own, filled by `circular publish`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries;
use crate::server::Server;

/// A store that lasts as long as its guard.
#[derive(Debug)]
pub struct TestStore {
    directory: TempDir,
}

impl TestStore {
    /// Makes room for a store; the first publish makes the store itself.
    ///
    /// # Errors
    /// There is no room.
    pub fn new() -> Result<Self> {
        let directory =
            TempDir::with_prefix("circular-test-").context("cannot make a directory")?;
        Ok(Self { directory })
    }

    /// Makes room for a store below `parent`.
    ///
    /// # Errors
    /// There is no room.
    pub fn new_in(parent: &Path) -> Result<Self> {
        let directory =
            TempDir::with_prefix_in("circular-test-", parent).context("cannot make a directory")?;
        Ok(Self { directory })
    }

    /// Returns the directory of the store.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Returns a path beside the store for a test's own files.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the directory of the keys that sign this store; the first publish makes them.
    pub fn keys(&self) -> PathBuf {
        self.beside("keys")
    }

    /// Returns the root document that clients of this store trust.
    pub fn trusted_root(&self) -> PathBuf {
        self.keys().join("root.json")
    }

    /// Runs `circular` with `arguments` on this store, whatever comes of it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn circular(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments)?;
        command.output().context("cannot run circular")
    }

    /// Returns what runs `circular` with `arguments` on this store.
    ///
    /// # Errors
    /// The program is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::host("circular")?);
        command
            .args(arguments)
            .env("CIRCULAR_STORE", self.path())
            .env("CIRCULAR_KEYS", self.keys());
        Ok(command)
    }

    /// Runs `circular` with `--json` and returns what it says.
    ///
    /// # Errors
    /// It fails, or what it says is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.circular(&[arguments, &["--json"]].concat())?;
        if !output.status.success() {
            bail!(
                "circular {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("circular {} printed no JSON", arguments.join(" ")))
    }

    /// Publishes `image` as a disk without a kernel and returns the summary.
    ///
    /// # Errors
    /// It cannot be published.
    pub fn publish(&self, image: &Path, reference: &str) -> Result<Value> {
        let image = image.to_str().context("test paths are plain")?;
        self.json(&["publish", image, reference, "--no-boot"])
    }

    /// Publishes `image` with its kernel and an initramfs.
    ///
    /// # Errors
    /// It cannot be published.
    pub fn publish_bootable(&self, image: &Path, reference: &str) -> Result<Value> {
        let image = image.to_str().context("test paths are plain")?;
        self.json(&["publish", image, reference, "--cmdline", "console=ttyS0"])
    }

    /// Publishes `image` as a disk without a kernel, then serves it.
    ///
    /// # Errors
    /// It cannot be published or served.
    pub fn publish_and_serve(&self, image: &Path, reference: &str) -> Result<Server> {
        self.publish(image, reference)?;
        Server::start(&self.path())
    }

    /// Returns all objects, in the order of their names.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn objects(&self) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        for fan in fs::read_dir(self.path().join("objects"))? {
            for object in fs::read_dir(fan?.path())? {
                objects.push(Object::look_at(object?.path())?);
            }
        }
        objects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }

    /// Returns the bytes of all objects together.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn object_bytes(&self) -> Result<u64> {
        Ok(self.objects()?.iter().map(|object| object.bytes).sum())
    }
}

/// A file of `objects/`.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What is in it, by its first bytes.
    pub kind: Kind,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// JSON that names the rest.
    Manifest,
    /// Digests of pages.
    RegionTable,
    /// Entries of one region.
    Page,
    /// Chunks.
    Pack,
    /// A kernel, an initramfs, a chunk index.
    Other,
}

impl Object {
    fn look_at(path: PathBuf) -> Result<Self> {
        let mut head = Vec::new();
        File::open(&path)?.take(8).read_to_end(&mut head)?;
        let kind = match head.as_slice() {
            b"CIRCRGNT" | b"CIRCRGNL" => Kind::RegionTable,
            b"CIRCPAGE" => Kind::Page,
            b"CIRCPACK" => Kind::Pack,
            [b'{', ..] => Kind::Manifest,
            _ => Kind::Other,
        };
        let bytes = fs::metadata(&path)?.len();
        Ok(Self { path, bytes, kind })
    }
}
