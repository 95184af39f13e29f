//! `circular inspect`.

use std::collections::HashSet;
use std::fmt::Write as _;

use image_format::manifest::Manifest;
use image_format::{ImageRef, Tag};
use image_store::{ImageReader, Store};
use serde::Serialize;

use crate::cli::{Common, ReferenceArg};
use crate::command::utc;
use crate::ui::{self, Ui};

#[derive(Debug, Serialize)]
struct Inspection {
    reference: ImageRef,
    created: u64,
    tags: Vec<Tag>,
    manifest_digest: image_format::Digest,
    manifest: Manifest,
    /// Index pages, and their bytes.
    pages: u64,
    page_bytes: u64,
    /// Packs in which the disk's chunks lie.
    packs: usize,
    /// Chunks, repeated ones counted once.
    distinct_chunks: usize,
    /// Bytes of those in packs.
    distinct_stored_bytes: u64,
}

/// Shows what a version consists of.
///
/// # Errors
/// There is no such version, or its index cannot be read.
pub async fn run(common: &Common, args: ReferenceArg, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let resolved = store.resolve(&args.reference).await?;
    let names = store.names().await?;
    let catalogue = store.catalogue(&names, &args.reference.name).await?;
    let tags = catalogue
        .tags
        .iter()
        .filter(|(_, version)| **version == resolved.version);
    let reader = ImageReader::open(store, &resolved.manifest).await?;
    let mut inspection = Inspection {
        reference: resolved.reference.clone(),
        created: resolved.entry.created,
        tags: tags.map(|(tag, _)| tag.clone()).collect(),
        manifest_digest: resolved.entry.manifest.digest,
        manifest: resolved.manifest,
        pages: 0,
        page_bytes: 0,
        packs: 0,
        distinct_chunks: 0,
        distinct_stored_bytes: 0,
    };
    let (mut packs, mut chunks) = (HashSet::new(), HashSet::new());
    for region in 0..reader.n_regions() {
        let Some(page) = reader.page(region).await? else {
            continue;
        };
        inspection.pages += 1;
        inspection.page_bytes += page.encode().len() as u64;
        packs.extend(page.packs().iter().map(|pack| pack.digest));
        for entry in page.entries() {
            if chunks.insert(entry.chunk) {
                inspection.distinct_stored_bytes += u64::from(entry.length);
            }
        }
    }
    inspection.packs = packs.len();
    inspection.distinct_chunks = chunks.len();
    ui.result(&inspection, text)?;
    Ok(())
}

fn text(inspection: &Inspection) -> String {
    let Inspection { manifest, .. } = inspection;
    let disk = &manifest.disk;
    let tags: Vec<_> = inspection.tags.iter().map(Tag::as_str).collect();
    let mut out = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "{what:<14} {value}");
    };
    line("image", inspection.reference.to_string());
    line(
        "tags",
        if tags.is_empty() {
            "none".to_owned()
        } else {
            tags.join(", ")
        },
    );
    line("revision", manifest.revision.to_string());
    line("published", utc(inspection.created));
    line("manifest", inspection.manifest_digest.to_string());
    line("disk digest", disk.regions.digest.to_string());
    line(
        "disk",
        format!("{} ({} bytes)", ui::size(disk.length), disk.length),
    );
    line(
        "data",
        format!(
            "{} in {} chunks, {} of them distinct; {} in packs",
            ui::size(disk.data_bytes),
            disk.chunks,
            inspection.distinct_chunks,
            ui::size(inspection.distinct_stored_bytes)
        ),
    );
    line("packs", inspection.packs.to_string());
    line(
        "index",
        format!(
            "{} pages, {}",
            inspection.pages,
            ui::size(inspection.page_bytes)
        ),
    );
    if let Some(pack) = &manifest.boot_pack {
        line("boot pack", ui::size(pack.object.length));
    }
    match &manifest.boot {
        None => line("boot", "no: mounted only".to_owned()),
        Some(boot) => {
            line(
                "kernel",
                format!("{}, {}", boot.kernel_release, ui::size(boot.kernel.length)),
            );
            line("initramfs", ui::size(boot.initramfs.length));
            line(
                "root",
                boot.root
                    .clone()
                    .unwrap_or_else(|| "the whole disk".to_owned()),
            );
            line("command line", boot.cmdline.clone());
        }
    }
    out
}
