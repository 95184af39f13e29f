//! `circular verify`.

use std::collections::{BTreeSet, HashMap};

use anyhow::bail;
use futures_util::{StreamExt as _, stream};
use image_format::geometry::{BlockRun, REGION_BLOCKS};
use image_format::{Digest, ImageName, ImageRef, ObjectRef, REGION_BYTES, Version};
use image_store::{ImageReader, Store, StoreError};
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
    chunk_indexes: usize,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    /// The image that it harms; none for what only publishers read.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<ImageRef>,
    problem: String,
}

/// What is wrong with something; a problem that is met twice counts once.
type Found = BTreeSet<String>;

/// What was checked already, and found: versions that share it do not pay again, but share it.
#[derive(Default)]
struct Seen {
    pages: HashMap<Digest, Found>,
    objects: HashMap<ObjectRef, Found>,
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
    let mut seen = Seen::default();
    let mut problems = Vec::new();
    let mut report = |image: Option<&ImageRef>, found: Found| {
        problems.extend(found.into_iter().map(|problem| Problem {
            image: image.cloned(),
            problem,
        }));
    };
    let (mut references, mut chunk_indexes) = (args.references, 0);
    for reference in &references {
        // Nothing is damaged where a name is misspelt.
        if let Err(error @ (StoreError::UnknownImage { .. } | StoreError::Resolve(_))) =
            store.resolve(reference).await
        {
            return Err(error.into());
        }
    }
    if references.is_empty() {
        let names = store.names().await?;
        chunk_indexes = names.chunk_indexes.len();
        for index in &names.chunk_indexes {
            report(None, check_object(&store, *index, &mut seen).await);
        }
        for name in names.names.keys() {
            match store.catalogue(&names, name).await {
                Ok(catalogue) => references.extend(
                    (catalogue.versions.keys()).map(|version| name_at(name.clone(), *version)),
                ),
                Err(error) => report(Some(&name.clone().into()), described(error)),
            }
        }
    }
    for reference in &references {
        let mut found = Found::new();
        if let Err(error) = check(&store, reference, &mut seen, &mut found, ui).await {
            found.extend(described(error));
        }
        report(Some(reference), found);
    }
    let verified = Verified {
        images: references.len(),
        chunks: seen.chunks,
        data_bytes: seen.data_bytes,
        packs: seen.packs,
        chunk_indexes,
        problems,
    };
    let shown = ui.result(&verified, text);
    match verified.problems.len() {
        0 => Ok(shown?),
        n => bail!(
            "{n} problems in `{store}`: `circular publish --mend IMAGE NAME` with the same image file stores again what is missing or damaged; \
             files can also be copied from another copy of the store, and `circular remove` takes out what cannot be had again",
            store = common.store.display()
        ),
    }
}

fn name_at(name: ImageName, version: Version) -> ImageRef {
    ImageRef::from(name).pinned(version)
}

fn described(error: impl Into<anyhow::Error>) -> Found {
    Found::from([format!("{:#}", error.into())])
}

async fn check(
    store: &Store,
    reference: &ImageRef,
    seen: &mut Seen,
    found: &mut Found,
    ui: &Ui,
) -> anyhow::Result<()> {
    let resolved = store.resolve(reference).await?;
    for object in resolved.manifest.objects() {
        found.extend(check_object(store, object, seen).await);
    }
    let reader = ImageReader::open(store.clone(), &resolved.manifest).await?;
    let bar = ui.progress("verifying", reader.length());
    for region in 0..reader.n_regions() {
        found.extend(check_region(store, &reader, region, seen).await);
        bar.inc(REGION_BYTES);
    }
    ProgressBar::finish_and_clear(&bar);
    Ok(())
}

async fn check_object(store: &Store, object: ObjectRef, seen: &mut Seen) -> Found {
    if let Some(known) = seen.objects.get(&object) {
        return known.clone();
    }
    let found = store
        .verify_object(&object)
        .await
        .map_or_else(described, |()| Found::new());
    seen.objects.insert(object, found.clone());
    found
}

async fn check_region(store: &Store, reader: &ImageReader, region: u32, seen: &mut Seen) -> Found {
    let digest = match reader.page_digest(region).await {
        Ok(Some(digest)) => digest,
        Ok(None) => return Found::new(),
        Err(error) => return described(error),
    };
    if let Some(known) = seen.pages.get(&digest) {
        return known.clone();
    }
    let page = match reader.page(region).await {
        Ok(Some(page)) => page,
        Ok(None) => return Found::new(),
        Err(error) => return described(error),
    };
    let mut found = Found::new();
    for pack in page.packs() {
        let before = seen.objects.len();
        found.extend(check_object(store, *pack, seen).await);
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
            found.extend(described(error));
        }
    }
    seen.chunks += page.entries().len() as u64;
    seen.data_bytes += page
        .entries()
        .iter()
        .map(|entry| entry.plain_len() as u64)
        .sum::<u64>();
    seen.pages.insert(digest, found.clone());
    found
}

fn text(verified: &Verified) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for problem in &verified.problems {
        let _ = match &problem.image {
            Some(image) => writeln!(out, "{image}: {}", problem.problem),
            None => writeln!(out, "{}", problem.problem),
        };
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
