//! `circular rollback`.

use anyhow::bail;
use image_format::{ImageRef, Version};
use image_store::{Retagging, TagChange};

use crate::cli::Common;
use crate::command::tag;
use crate::keys::KeyArgs;
use crate::ui::Ui;

/// Arguments of `circular rollback`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tag to move back; `latest` if none is given
    #[arg(value_name = "NAME[:TAG]")]
    reference: ImageRef,
    /// Version to go back to; the one before the present one if not given
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Moves a tag back to an older version.
///
/// # Errors
/// There is no older version, or the store cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    if args.reference.version.is_some() {
        bail!(
            "`{}` names a version: give the tag as NAME[:TAG], and the version with --to",
            args.reference
        );
    }
    let retagging = Retagging {
        tag: args.reference.tag_or_latest(),
        name: args.reference.name,
        change: TagChange::RollBack { to: args.to },
    };
    let moved = tag::commit(common, &args.keys, &retagging).await?;
    ui.result(&moved, tag::text)?;
    Ok(())
}
