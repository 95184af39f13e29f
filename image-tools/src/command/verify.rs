//! `circular verify`.

use std::collections::HashSet;

use anyhow::bail;
use futures_util::{StreamExt as _, stream};
use image_format::geometry::{BlockRun, REGION_BLOCKS};
use image_format::{Digest, ImageRef, ObjectRef, REGION_BYTES};
use image_store::{ImageReader, Store};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::cli::Common;
use crate::ui::{self, Ui};

/// Blocks decoded at once: 4 MiB.
const STEP_BLOCKS: u32 = 1024;

/// Regions read at once.
const REGIONS_AT_ONCE: usize = 4;

/// Arguments of `circular verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images to check; every version of every image if none is given
    references: Vec<ImageRef>,
}

#[derive(Debug, Serialize)]
struct Verified {
    images: usize,
    chunks: u64,
    data_bytes: u64,
    packs: usize,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    image: ImageRef,
    problem: String,
}

/// What was checked already, so that versions that share it do not pay again.
#[derive(Default)]
struct Seen {
    pages: HashSet<Digest>,
    objects: HashSet<ObjectRef>,
    packs: usize,
    chunks: u64,
    data_bytes: u64,
}

/// Reads every object that an image needs: whole packs against their names, then each chunk.
/// Goes on after a problem, so that one run shows them all.
///
/// # Errors
/// Something is missing or damaged, or the store cannot be read.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let references = match args.references.is_empty() {
        true => every_version(&store).await?,
        false => args.references,
    };
    let mut seen = Seen::default();
    let mut problems = Vec::new();
    for reference in &references {
        let mut found = Vec::new();
        if let Err(error) = check(&store, reference, &mut seen, &mut found, ui).await {
            found.push(format!("{error:#}"));
        }
        problems.extend(found.into_iter().map(|problem| Problem {
            image: reference.clone(),
            problem,
        }));
    }
    let verified = Verified {
        images: references.len(),
        chunks: seen.chunks,
        data_bytes: seen.data_bytes,
        packs: seen.packs,
        problems,
    };
    ui.result(&verified, text)?;
    match verified.problems.len() {
        0 => Ok(()),
        n => bail!(
            "{n} problems in `{}`: publish these images again into a new store",
            common.store.display()
        ),
    }
}

async fn every_version(store: &Store) -> anyhow::Result<Vec<ImageRef>> {
    let names = store.names().await?;
    let mut references = Vec::new();
    for name in names.names.keys() {
        let catalogue = store.catalogue(&names, name).await?;
        references.extend(
            catalogue
                .versions
                .keys()
                .map(|version| ImageRef::from(name.clone()).pinned(*version)),
        );
    }
    Ok(references)
}

async fn check(
    store: &Store,
    reference: &ImageRef,
    seen: &mut Seen,
    problems: &mut Vec<String>,
    ui: &Ui,
) -> anyhow::Result<()> {
    let resolved = store.resolve(reference).await?;
    if let Some(boot) = &resolved.manifest.boot {
        for object in [boot.kernel, boot.initramfs] {
            check_object(store, object, seen, problems).await;
        }
    }
    let reader = ImageReader::open(store.clone(), &resolved.manifest).await?;
    let bar = ui.progress("verifying", reader.length());
    for region in 0..reader.n_regions() {
        check_region(store, &reader, region, seen, problems).await;
        bar.inc(REGION_BYTES);
    }
    ProgressBar::finish_and_clear(&bar);
    Ok(())
}

async fn check_object(
    store: &Store,
    object: ObjectRef,
    seen: &mut Seen,
    problems: &mut Vec<String>,
) {
    if seen.objects.insert(object)
        && let Err(error) = store.verify_object(&object).await
    {
        problems.push(format!("{:#}", anyhow::Error::from(error)));
    }
}

async fn check_region(
    store: &Store,
    reader: &ImageReader,
    region: u32,
    seen: &mut Seen,
    problems: &mut Vec<String>,
) {
    let page = match reader.page(region).await {
        Ok(page) => page,
        Err(error) => return problems.push(format!("{:#}", anyhow::Error::from(error))),
    };
    let (Some(page), Ok(Some(digest))) = (page, reader.page_digest(region).await) else {
        return;
    };
    if !seen.pages.insert(digest) {
        return;
    }
    for pack in page.packs() {
        let before = seen.objects.len();
        check_object(store, *pack, seen, problems).await;
        seen.packs += seen.objects.len() - before;
    }
    let steps = (0..REGION_BLOCKS).step_by(STEP_BLOCKS as usize);
    let mut results = stream::iter(steps)
        .map(|first| {
            reader.chunks(BlockRun {
                region,
                first,
                end: first + STEP_BLOCKS,
            })
        })
        .buffered(REGIONS_AT_ONCE);
    while let Some(result) = results.next().await {
        if let Err(error) = result {
            problems.push(format!("{:#}", anyhow::Error::from(error)));
        }
    }
    seen.chunks += page.entries().len() as u64;
    seen.data_bytes += page
        .entries()
        .iter()
        .map(|entry| entry.plain_len() as u64)
        .sum::<u64>();
}

fn text(verified: &Verified) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for problem in &verified.problems {
        let _ = writeln!(out, "{}: {}", problem.image, problem.problem);
    }
    let _ = writeln!(
        out,
        "{} versions, {} chunks ({}), {} packs read; {} problems",
        verified.images,
        verified.chunks,
        ui::size(verified.data_bytes),
        verified.packs,
        verified.problems.len()
    );
    out
}
