//! `circular tag`.

use anyhow::bail;
use image_format::{ImageName, ImageRef, Tag, Version};
use image_store::{Retagging, Store, TagChange};
use serde::Serialize;

use crate::cli::Common;
use crate::keys::KeyArgs;
use crate::ui::Ui;

/// Arguments of `circular tag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image and version that the tag shall point to (with --delete: the tag to delete, NAME:TAG)
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    reference: ImageRef,
    /// Tag to set, of the same image; made if it is not there
    #[arg(
        value_name = "NEWTAG",
        required_unless_present = "delete",
        conflicts_with = "delete"
    )]
    tag: Option<Tag>,
    /// Delete the tag; the version that it points to stays
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Where a tag pointed and points, for scripts.
#[derive(Debug, Serialize)]
pub(super) struct Moved {
    pub(super) name: ImageName,
    pub(super) tag: Tag,
    pub(super) before: Option<Version>,
    pub(super) version: Option<Version>,
    /// Whether this ended a rollback that had been cut short, and did nothing else.
    pub(super) ended: bool,
}

/// Sets or deletes a tag.
///
/// # Errors
/// There is no such version or tag, or the store cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let name = args.reference.name.clone();
    let retagging = match args.tag {
        Some(tag) => Retagging {
            name,
            tag,
            change: TagChange::Set { to: args.reference },
        },
        None => Retagging {
            name,
            tag: tag_to_delete(&args.reference)?,
            change: TagChange::Delete,
        },
    };
    let moved = commit(common, &args.keys, &retagging).await?;
    ui.result(&moved, text)?;
    Ok(())
}

fn tag_to_delete(reference: &ImageRef) -> anyhow::Result<Tag> {
    match (&reference.tag, reference.version) {
        (Some(tag), None) => Ok(tag.clone()),
        (None, None) => bail!(
            "say which tag of `{}` to delete: NAME:TAG, such as `{}:latest`",
            reference.name,
            reference.name
        ),
        (_, Some(_)) => bail!("--delete takes away a tag, never a version: give NAME:TAG"),
    }
}

/// Commits a change of a tag.
pub(super) async fn commit(
    common: &Common,
    keys: &KeyArgs,
    retagging: &Retagging,
) -> anyhow::Result<Moved> {
    let store = Store::open(&common.store).await?;
    let ring = keys.open_signed(&store).await?;
    let retagged = retagging.commit(&store, &keys.signer(&ring)).await?;
    Ok(Moved {
        name: retagging.name.clone(),
        tag: retagging.tag.clone(),
        before: retagged.before,
        version: retagged.after,
        ended: retagged.ended,
    })
}

/// Says what became of a tag.
pub(super) fn text(moved: &Moved) -> String {
    let Moved { name, tag, .. } = moved;
    match (moved.before, moved.version) {
        (_, Some(after)) if moved.ended => format!(
            "{name}:{tag} is at version {after}: a rollback to it had been cut short, and is done now. \
             To go further back, run this again\n"
        ),
        (Some(before), Some(after)) if before == after => {
            format!("{name}:{tag} is at version {after} already\n")
        }
        (Some(before), Some(after)) => {
            format!("{name}:{tag} is at version {after} now; it was at {before}\n")
        }
        (None, Some(after)) => format!("{name}:{tag} is new, at version {after}\n"),
        (Some(before), None) => format!(
            "{name}:{tag} is deleted; its version stays: {name}@{before}. \
             Machines that boot {name}:{tag} no longer can\n"
        ),
        (None, None) => format!("{name}:{tag} was not there\n"),
    }
}
