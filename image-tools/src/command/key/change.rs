//! `circular key add|remove|rotate|threshold`: what changes whom a store trusts.

use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use image_store::trust::keys::{HeldKey, RoleType};
use image_store::trust::public_key::{KeyId, PublicKey};
use image_store::trust::root::RootDocument;

use super::Role;
use crate::cli::Common;
use crate::roots::{self, ChangeArgs, KeyLine};
use crate::ui::Ui;

/// Arguments of `circular key add`.
#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// What the key may sign
    role: Role,
    /// Public key, from `circular key show`; a new key is made here if not given
    #[arg(value_name = "FILE")]
    public: Option<PathBuf>,
    /// Set how many keys of the role must sign from now on
    #[arg(long, value_name = "K")]
    threshold: Option<NonZeroU64>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `circular key remove`.
#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// What the key signs
    role: Role,
    /// First digits of the key, or the file with its public half
    key: String,
    /// Set how many keys of the role must sign from now on
    #[arg(long, value_name = "K")]
    threshold: Option<NonZeroU64>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `circular key rotate`.
#[derive(Debug, clap::Args)]
pub(super) struct RotateArgs {
    /// Roles whose key is replaced
    #[arg(required = true)]
    roles: Vec<Role>,
    /// First digits of the key to replace, or the file with its public half; needed where one role
    /// has several
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `circular key threshold`.
#[derive(Debug, clap::Args)]
pub(super) struct ThresholdArgs {
    /// Which keys
    role: Role,
    /// How many of them must sign
    #[arg(value_name = "K")]
    threshold: NonZeroU64,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Trusts one more key.
pub(super) async fn add(common: &Common, args: AddArgs, ui: &Ui) -> anyhow::Result<()> {
    let role = RoleType::from(args.role);
    let mut session = args.change.begin(common).await?;
    let mut new_keys = Vec::new();
    let public = match &args.public {
        Some(path) => read_public(path)?,
        None => {
            let key = session.spare(role)?;
            new_keys.push(KeyLine::from(&key));
            key.public
        }
    };
    session.next.add(role, &public)?;
    if let Some(threshold) = args.threshold {
        session.next.set_threshold(role, threshold)?;
    }
    let changed = session.finish(new_keys).await?;
    ui.result(&changed, roots::text)?;
    Ok(())
}

/// Trusts a key no longer.
pub(super) async fn remove(common: &Common, args: RemoveArgs, ui: &Ui) -> anyhow::Result<()> {
    let role = RoleType::from(args.role);
    let mut session = args.change.begin(common).await?;
    let id = named_key(&session.next, role, &args.key)?;
    session.next.remove(role, id)?;
    if let Some(threshold) = args.threshold {
        session.next.set_threshold(role, threshold)?;
    }
    let changed = session.finish(Vec::new()).await?;
    ui.result(&changed, roots::text)?;
    Ok(())
}

/// Sets a threshold.
pub(super) async fn threshold(common: &Common, args: ThresholdArgs, ui: &Ui) -> anyhow::Result<()> {
    let mut session = args.change.begin(common).await?;
    session
        .next
        .set_threshold(args.role.into(), args.threshold)?;
    let changed = session.finish(Vec::new()).await?;
    ui.result(&changed, roots::text)?;
    Ok(())
}

/// One key in the place of another.
struct Replacement {
    role: RoleType,
    old: KeyId,
    new: HeldKey,
}

/// Replaces keys. Where an old key is lost, what is current cannot be signed by old and new keys
/// alike: one root then adds the new keys, and the next one removes the old.
pub(super) async fn rotate(common: &Common, args: RotateArgs, ui: &Ui) -> anyhow::Result<()> {
    if args.key.is_some() && args.roles.len() > 1 {
        bail!("--key names a key of one role: rotate the others by themselves");
    }
    let mut session = args.change.begin(common).await?;
    let mut replacements: Vec<Replacement> = Vec::new();
    for role in args.roles.iter().copied().map(RoleType::from) {
        if replacements.iter().any(|done| done.role == role) {
            bail!("{role} is named twice");
        }
        let old = only_key(&session.next, role, args.key.as_deref())?;
        let new = session.spare(role)?;
        replacements.push(Replacement { role, old, new });
    }
    let new_keys = replacements.iter().map(|one| KeyLine::from(&one.new));
    let new_keys = new_keys.collect();
    let added = with_new(&session.next, &replacements)?;
    session.next = without_old(&added, &replacements)?;
    if session.is_draft() {
        let changed = session.finish(new_keys).await?;
        ui.result(&changed, roots::text)?;
        return Ok(());
    }
    let at_once = session.next.clone();
    if session.publish(at_once).await?.is_err() {
        session.check_bridge(&added, &session.next).await?;
        session.publish(added).await??;
        let removed = without_old(&session.next, &replacements)?;
        session.publish(removed).await??;
    }
    let changed = session.done(new_keys)?;
    ui.result(&changed, roots::text)?;
    Ok(())
}

fn with_new(root: &RootDocument, replacements: &[Replacement]) -> anyhow::Result<RootDocument> {
    let mut root = root.clone();
    for one in replacements {
        root.add(one.role, &one.new.public)?;
    }
    Ok(root)
}

fn without_old(root: &RootDocument, replacements: &[Replacement]) -> anyhow::Result<RootDocument> {
    let mut root = root.clone();
    for one in replacements {
        root.remove(one.role, one.old)?;
    }
    Ok(root)
}

/// Finds a key by its first digits, or by a file with its public half.
fn named_key(root: &RootDocument, role: RoleType, text: &str) -> anyhow::Result<KeyId> {
    let path = Path::new(text);
    let digits = match path.is_file() {
        true => read_public(path)?.id().to_string(),
        false => text.to_owned(),
    };
    Ok(root.find(role, &digits)?)
}

/// Finds the key to replace.
fn only_key(root: &RootDocument, role: RoleType, id: Option<&str>) -> anyhow::Result<KeyId> {
    let keys = root.rule(role).keys;
    match (id, &keys[..]) {
        (Some(id), _) => named_key(root, role, id),
        (None, [only]) => Ok(*only),
        _ => {
            let ids: Vec<_> = keys.iter().map(KeyId::short).collect();
            bail!(
                "{role} has several keys: say which one with --key, {}; \
                 or take one away with `circular key remove {role}`",
                ids.join(" or ")
            )
        }
    }
}

fn read_public(path: &Path) -> anyhow::Result<PublicKey> {
    let unusable = || format!("cannot use `{}`", path.display());
    let bytes = fs::read(path).with_context(unusable)?;
    PublicKey::decode(&bytes).with_context(unusable)
}
