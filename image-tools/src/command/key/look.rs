//! `circular key list|new|show`: what changes no store.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use image_format::marker::MARKER_PATH;
use image_store::trust::keys::{HeldKey, RoleType};
use image_store::trust::public_key::KeyId;
use image_store::trust::root::RootDocument;
use image_store::{KeyRing, Store};
use serde::Serialize;

use super::Role;
use crate::cli::Common;
use crate::keys::RingArgs;
use crate::ui::Ui;

/// Arguments of `circular key list`.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    ring: RingArgs,
}

/// Arguments of `circular key new`.
#[derive(Debug, clap::Args)]
pub(super) struct NewArgs {
    /// What the key is for
    role: Role,
    #[command(flatten)]
    ring: RingArgs,
}

/// Arguments of `circular key show`.
#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// What the key is for
    role: Role,
    /// First digits of the key, where there are several
    key: Option<String>,
    #[command(flatten)]
    ring: RingArgs,
}

#[derive(Debug, Serialize)]
struct Line {
    role: String,
    id: KeyId,
    /// Whether the store's root names it; `None`: there is no store to ask.
    trusted: Option<bool>,
    /// Where the key is, if it is here.
    file: Option<PathBuf>,
}

/// Lists keys, those of the root first.
pub(super) async fn list(common: &Common, args: ListArgs, ui: &Ui) -> anyhow::Result<()> {
    let ring = KeyRing::open_or_empty(&args.ring.directory(&common.store).await?)?;
    let root = match common.store.join(MARKER_PATH).is_file() {
        true => current_root(common).await?,
        false => None,
    };
    let lines = lines(&ring.held()?, root.as_ref());
    ui.result(&lines, |lines| table(lines))?;
    Ok(())
}

async fn current_root(common: &Common) -> anyhow::Result<Option<RootDocument>> {
    let store = Store::open(&common.store).await?;
    match store.root_if_signed().await? {
        Some(root) => Ok(Some(store.current(&root).await?.root.into())),
        None => Ok(None),
    }
}

fn lines(held: &[HeldKey], root: Option<&RootDocument>) -> Vec<Line> {
    let rules = root.map(RootDocument::rules).unwrap_or_default();
    let mut lines = Vec::new();
    for rule in &rules {
        let file = |id: &KeyId| held.iter().find(|key| key.id() == *id);
        lines.extend(rule.keys.iter().map(|id| Line {
            role: rule.role.to_string(),
            id: *id,
            trusted: Some(true),
            file: file(id).map(|key| key.path.clone()),
        }));
    }
    let known = |key: &&HeldKey| !rules.iter().any(|rule| rule.keys.contains(&key.id()));
    lines.extend(held.iter().filter(known).map(|key| Line {
        role: key.role.to_string(),
        id: key.id(),
        trusted: root.map(|_| false),
        file: Some(key.path.clone()),
    }));
    lines
}

fn table(lines: &[Line]) -> String {
    let mut out = format!("{:<10} {:<16}  {:<7}  FILE\n", "ROLE", "KEY", "TRUSTED");
    for line in lines {
        let trusted = match line.trusted {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let file = line.file.as_ref();
        let file = file.map_or_else(|| "elsewhere".to_owned(), |file| file.display().to_string());
        let id = line.id.short();
        let _ = writeln!(out, "{:<10} {id}  {trusted:<7}  {file}", line.role);
    }
    out
}

/// Makes a key.
pub(super) async fn new(common: &Common, args: NewArgs, ui: &Ui) -> anyhow::Result<()> {
    let ring = KeyRing::open_or_empty(&args.ring.directory(&common.store).await?)?;
    let key = ring.make(args.role.into())?;
    let made = Line {
        role: key.role.to_string(),
        id: key.id(),
        trusted: None,
        file: Some(key.path.clone()),
    };
    ui.result(&made, |made| {
        format!(
            "Made {} key {} in {}. No store trusts it yet: `circular key show {}` prints what to give to whoever adds it.\n",
            made.role,
            made.id.short(),
            key.path.display(),
            made.role
        )
    })?;
    Ok(())
}

/// Prints a public key: always JSON, and even when asked to be quiet.
pub(super) async fn show(common: &Common, args: ShowArgs) -> anyhow::Result<()> {
    let ring = args.ring.open(&common.store).await?;
    let key = find(&ring, args.role.into(), args.key.as_deref())?;
    let mut text = serde_json::to_vec(&key.public).context("cannot encode the key")?;
    text.push(b'\n');
    io::stdout().lock().write_all(&text)?;
    Ok(())
}

fn find(ring: &KeyRing, role: RoleType, id: Option<&str>) -> anyhow::Result<HeldKey> {
    let begins = |key: &HeldKey| key.id().to_string().starts_with(id.unwrap_or(""));
    let mut held = ring.held()?;
    held.retain(|key| key.role == role && begins(key));
    match held.len() {
        1 => Ok(held.remove(0)),
        0 => bail!("no such {role} key in `{}`", ring.directory().display()),
        _ => {
            let ids: Vec<_> = held.iter().map(|key| key.id().short()).collect();
            bail!("several {role} keys: say which one, {}", ids.join(" or "))
        }
    }
}
