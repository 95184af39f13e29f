//! `circular list`.

use std::fmt::Write as _;

use image_format::{ImageName, ImageRef, Tag, Version};
use image_store::Store;
use serde::Serialize;

use crate::cli::Common;
use crate::command::utc;
use crate::ui::{self, Ui};

/// Arguments of `circular list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List only this image
    name: Option<ImageName>,
    /// List every version, not only those with a tag
    #[arg(long, short)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Line {
    reference: ImageRef,
    name: ImageName,
    version: Version,
    tags: Vec<Tag>,
    length: u64,
    created: u64,
    bootable: bool,
}

/// Lists what a store offers.
///
/// # Errors
/// The store cannot be read.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let names = store.names().await?;
    let wanted = match args.name {
        Some(name) => vec![name],
        None => names.names.keys().cloned().collect(),
    };
    let mut lines = Vec::new();
    for name in wanted {
        let catalogue = store.catalogue(&names, &name).await?;
        for (version, entry) in &catalogue.versions {
            let pointing = catalogue.tags.iter().filter(|(_, to)| *to == version);
            let tags: Vec<_> = pointing.map(|(tag, _)| tag.clone()).collect();
            if tags.is_empty() && !args.all {
                continue;
            }
            lines.push(Line {
                reference: ImageRef::from(name.clone()).pinned(*version),
                name: name.clone(),
                version: *version,
                tags,
                length: entry.length,
                created: entry.created,
                bootable: entry.bootable,
            });
        }
    }
    ui.result(&lines, |lines| table(lines))?;
    Ok(())
}

fn table(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "no images; `circular publish IMAGE NAME` adds one\n".to_owned();
    }
    let width = lines
        .iter()
        .map(|line| line.name.as_str().len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut out = format!(
        "{:width$}  VERSION  {:<20} {:>10}  BOOTS  PUBLISHED\n",
        "NAME", "TAGS", "DISK"
    );
    for line in lines {
        let tags: Vec<_> = line.tags.iter().map(Tag::as_str).collect();
        let _ = writeln!(
            out,
            "{:width$}  {:>7}  {:<20} {:>10}  {:<5}  {}",
            line.name.as_str(),
            line.version.number(),
            tags.join(", "),
            ui::size(line.length),
            if line.bootable { "yes" } else { "no" },
            utc(line.created),
        );
    }
    out
}
