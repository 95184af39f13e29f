//! Changes who may sign: at once where this ring has the root keys, else in a draft that the
//! holders of root keys sign one after another.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use image_store::trust::TrustError;
use image_store::trust::keys::{HeldKey, RoleType};
use image_store::trust::public_key::KeyId;
use image_store::trust::root::{RootDocument, RootError};
use image_store::{KeyRing, Store, StoreError};
use serde::Serialize;

use crate::cli::Common;
use crate::keys::KeyArgs;

/// Options of whatever changes the root.
#[derive(Clone, Debug, clap::Args)]
pub struct ChangeArgs {
    /// Change the draft of the next root in FILE (made if it is not there) and publish nothing
    ///
    /// For stores whose root key has several holders: each runs `circular root sign FILE`, then
    /// somebody `circular root publish FILE`.
    #[arg(long, value_name = "FILE")]
    draft: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// A store, its keys, and its current root, about to be changed.
#[derive(Debug)]
pub struct Session<'a> {
    /// Its keys.
    pub ring: KeyRing,
    /// Its current root.
    pub current: RootDocument,
    /// The next root, without a signature.
    pub next: RootDocument,
    past: Vec<RootDocument>,
    store: Store,
    args: &'a ChangeArgs,
}

/// What became of a change, for scripts.
#[derive(Debug, Serialize)]
pub struct Changed {
    /// The version of the root that has the change.
    pub root_version: u64,
    /// Whether machines believe it now.
    pub published: bool,
    /// Where the draft is, if there is one.
    pub draft: Option<PathBuf>,
    /// Keys made for it.
    pub new_keys: Vec<KeyLine>,
    /// Keys put away, because nobody believes them any more.
    pub retired_keys: Vec<KeyLine>,
}

/// A key of the ring.
#[derive(Debug, Serialize)]
pub struct KeyLine {
    /// What it signs.
    pub role: String,
    /// Its name.
    pub id: KeyId,
}

impl From<&HeldKey> for KeyLine {
    fn from(key: &HeldKey) -> Self {
        Self {
            role: key.role.to_string(),
            id: key.id(),
        }
    }
}

impl ChangeArgs {
    /// Opens the store and its keys, and begins the next root or goes on with the draft.
    ///
    /// # Errors
    /// The store was never signed, the keys are not there, or the draft does not follow.
    pub async fn begin(&self, common: &Common) -> anyhow::Result<Session<'_>> {
        let store = Store::open(&common.store).await?;
        let ring = self.keys.open_signed(&store).await?;
        let signer = self.keys.signer(&ring);
        let (current, mut next) = signer.next_root(&store).await?;
        let past = signer.past_roots(&store, &current).await?;
        if let Some(path) = self.draft.as_deref().filter(|path| path.exists()) {
            let draft = read(path)?;
            if draft.version() != next.version() {
                bail!(
                    "`{}` is a draft of root version {}, but the next one is {}: remove it and begin again",
                    path.display(),
                    draft.version(),
                    next.version()
                );
            }
            next = draft;
        }
        Ok(Session {
            ring,
            current,
            next,
            past,
            store,
            args: self,
        })
    }
}

impl Session<'_> {
    /// Tells whether a draft is changed, and nothing published.
    pub const fn is_draft(&self) -> bool {
        self.args.draft.is_some()
    }

    /// Writes the draft; or signs the next root with the keys that are here, publishes it, and puts
    /// those keys away that it no longer names.
    ///
    /// # Errors
    /// The root is not sound, or not enough of its keys are here: then nothing has changed.
    pub async fn finish(mut self, new_keys: Vec<KeyLine>) -> anyhow::Result<Changed> {
        let next = self.next.clone();
        if let Some(path) = &self.args.draft {
            next.check_sound()?;
            write(path, &next)?;
            return Ok(Changed {
                root_version: next.version(),
                published: false,
                draft: Some(path.clone()),
                new_keys,
                retired_keys: Vec::new(),
            });
        }
        self.publish(next).await?.map_err(StoreError::from)?;
        self.done(new_keys)
    }

    /// Returns a key for a new part: one that the ring has and no root ever named, left by a change
    /// that did not get through or by `circular key new`; or a fresh one.
    ///
    /// # Errors
    /// The ring cannot be read or written.
    pub fn spare(&self, role: RoleType) -> anyhow::Result<HeldKey> {
        let unused = |key: &HeldKey| {
            let id = key.id();
            let named = self.past.iter().any(|root| root.names(&id));
            key.role == role && !named && !self.next.names(&id)
        };
        match self.ring.held()?.into_iter().find(unused) {
            Some(key) => Ok(key),
            None => Ok(self.ring.make(role)?),
        }
    }

    /// Signs and publishes a root, which becomes the current one.
    ///
    /// # Errors
    /// Inside, if what is current cannot be signed as both roots ask: then a further root helps.
    pub async fn publish(
        &mut self,
        mut root: RootDocument,
    ) -> anyhow::Result<Result<(), TrustError>> {
        root.check_sound()?;
        self.ring.sign_root(&mut root).await?;
        let signer = self.args.keys.signer(&self.ring);
        match signer.publish_root(&self.store, &root).await {
            Ok(_) => {}
            Err(StoreError::Trust(error @ TrustError::Rule(RootError::Unbridged { .. }))) => {
                return Ok(Err(error));
            }
            Err(
                error @ StoreError::Trust(TrustError::Rule(RootError::TooFewSignatures { .. })),
            ) => {
                return Err(error).context(
                    "the root keys here are not enough: make a draft with --draft FILE for their holders to sign",
                );
            }
            Err(error) => return Err(error.into()),
        }
        let (current, next) = signer.next_root(&self.store).await?;
        (self.current, self.next) = (current, next);
        Ok(Ok(()))
    }

    /// Checks that `new` could be published after `old`.
    ///
    /// # Errors
    /// A key is missing for that.
    pub async fn check_bridge(&self, old: &RootDocument, new: &RootDocument) -> anyhow::Result<()> {
        let signer = self.args.keys.signer(&self.ring);
        Ok(signer.check_bridge(&self.store, old, new).await?)
    }

    /// Puts keys away, and says what was done.
    ///
    /// # Errors
    /// The ring cannot be written.
    pub fn done(self, new_keys: Vec<KeyLine>) -> anyhow::Result<Changed> {
        let retired = self.ring.retire_removed(&self.past, &self.current)?;
        Ok(Changed {
            root_version: self.current.version(),
            published: true,
            draft: None,
            new_keys,
            retired_keys: retired.iter().map(KeyLine::from).collect(),
        })
    }
}

/// Says what became of a change.
pub fn text(changed: &Changed) -> String {
    use std::fmt::Write as _;
    let mut out = match &changed.draft {
        Some(path) => format!(
            "Draft of root version {0} in {1}; nothing is published.\n\
             Let each holder of a root key run `circular root sign {1}`, then run `circular root publish {1}`.\n",
            changed.root_version,
            path.display()
        ),
        None => format!("Root version {} is current.\n", changed.root_version),
    };
    for (what, keys) in [
        ("new    ", &changed.new_keys),
        ("retired", &changed.retired_keys),
    ] {
        for key in keys {
            let _ = writeln!(out, "  {what} {} key {}", key.role, key.id.short());
        }
    }
    if changed.new_keys.iter().any(|_| changed.published) {
        out.push_str("Back up the new keys.\n");
    }
    out
}

/// Reads a root or a draft from a file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read(path: &Path) -> anyhow::Result<RootDocument> {
    let unusable = || format!("cannot use `{}`", path.display());
    let bytes = fs::read(path).with_context(unusable)?;
    RootDocument::decode(&bytes).with_context(unusable)
}

/// Writes a draft in one step.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, root: &RootDocument) -> anyhow::Result<()> {
    let bytes = root.encode()?;
    let unwritable = || format!("cannot write `{}`", path.display());
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(unwritable)?;
    file.write_all(&bytes).with_context(unwritable)?;
    file.as_file().sync_all().with_context(unwritable)?;
    file.persist(path).with_context(unwritable)?;
    Ok(())
}
