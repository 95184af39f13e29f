//! `circular remove`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::bail;
use image_format::{ImageName, ImageRef, Version};
use image_store::Store;
use image_store::gc::Mode;
use image_store::gc::remove::{Removal, remove};
use serde::Serialize;

use crate::cli::Common;
use crate::keys::KeyArgs;
use crate::ui::Ui;

/// Arguments of `circular remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Files stay until `circular gc` has found them unreferenced for its grace period. The number of a
removed version is not given again.

Examples:
  circular remove debian@3 debian@4
  circular remove old/image --all")]
pub struct Args {
    /// Versions to remove, NAME@VERSION; none may have a tag. With --all: images
    #[arg(value_name = "NAME@VERSION", required = true)]
    references: Vec<ImageRef>,
    /// Remove all versions and tags of these images
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<ImageRef>,
}

/// Takes versions out of what the store offers.
///
/// # Errors
/// One is not there or has a tag, or the store cannot be written; then nothing was removed.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let wanted = wanted(&args.references, args.all)?;
    let store = Store::open(&common.store).await?;
    let names = store.names().await?;
    for name in wanted.keys() {
        store.catalogue(&names, name).await?;
    }
    let ring = args.keys.open_signed(&store).await?;
    let signer = args.keys.signer(&ring);
    let which = |name: &ImageName| wanted.get(name).cloned();
    let removed = remove(&store, &signer, which, Mode::Sweep).await?;
    ui.result(&Removed { removed }, text)?;
    Ok(())
}

/// Says what goes of each image.
fn wanted(references: &[ImageRef], all: bool) -> anyhow::Result<BTreeMap<ImageName, Removal>> {
    let mut wanted: BTreeMap<ImageName, Vec<Version>> = BTreeMap::new();
    for reference in references {
        let versions = wanted.entry(reference.name.clone()).or_default();
        match (all, &reference.tag, reference.version) {
            (true, None, None) => {}
            (false, None, Some(version)) => versions.push(version),
            (true, ..) => bail!("`{reference}` is more than a name: --all removes whole images"),
            (false, ..) => bail!(
                "`{reference}` names no version: give NAME@VERSION, or NAME with --all for the whole image"
            ),
        }
    }
    let removal = |(name, versions)| match all {
        true => (name, Removal::All),
        false => (name, Removal::Versions(versions)),
    };
    Ok(wanted.into_iter().map(removal).collect())
}

fn text(removed: &Removed) -> String {
    let mut out = String::new();
    for reference in &removed.removed {
        let _ = writeln!(out, "Removed {reference}");
    }
    if removed.removed.is_empty() {
        out.push_str("Nothing was there to remove\n");
    }
    out
}
