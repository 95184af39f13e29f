//! `circular profile`: what boots of an image read first, and the boot pack that follows from it.

use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use image_format::manifest::{BootPack, Manifest};
use image_format::profile::{Profile, StandIns, Steadiness};
use image_format::trace::{TRACE_BYTES_MAX, Trace};
use image_format::{ImageRef, boot_pack};
use image_store::store::Resolved;
use image_store::{KeyRing, Revision, Signer, Store};
use serde::Serialize;

use crate::cli::{Common, ReferenceArg};
use crate::keys::KeyArgs;
use crate::publish::carry::{self, CarriedOver};
use crate::ui::{self, Ui};

/// Arguments of `circular profile`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Merge recorded boots into the profile of a version, and build its boot pack
    Add(AddArgs),
    /// Show what boots of a version read first
    Show(ReferenceArg),
    /// Take profile and boot pack of a version away
    Remove(RemoveArgs),
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Image that was booted
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    reference: ImageRef,
    /// Files that `circular-mount --record` or a recorded boot wrote; two or three boots are better than one
    #[arg(value_name = "TRACE", required = true)]
    traces: Vec<PathBuf>,
    /// zstd level of the boot pack, 1 to 22
    #[arg(long, value_name = "N", default_value_t = boot_pack::LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// Image to take it from
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    reference: ImageRef,
    #[command(flatten)]
    keys: KeyArgs,
}

/// A profile in numbers.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    reference: ImageRef,
    revision: u32,
    runs: u32,
    /// Chunks that every run touched.
    always: usize,
    /// Chunks that most runs touched.
    mostly: usize,
    /// Chunks that one run of three or more touched: not in the boot pack.
    once: usize,
    boot_pack: Option<BootPack>,
    /// What was just built.
    #[serde(skip_serializing_if = "Option::is_none")]
    built: Option<CarriedOver>,
}

/// Adds to, shows or removes the profile of a version.
///
/// # Errors
/// There is no such version, a trace is of something else, or the store cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let summary = match args.action {
        Action::Add(args) => add(&store, args, ui).await?,
        Action::Show(args) => show(&store, &args.reference).await?,
        Action::Remove(args) => remove(&store, args).await?,
    };
    ui.result(&summary, text)?;
    Ok(())
}

async fn add(store: &Store, args: AddArgs, ui: &Ui) -> anyhow::Result<Summary> {
    let resolved = store.resolve(&args.reference).await?;
    let disk = resolved.manifest.disk;
    let mut traces = Vec::new();
    for path in &args.traces {
        let trace = read_trace(path)?;
        let header = &trace.header;
        if header.disk != disk.regions.digest && header.image.name != args.reference.name {
            bail!(
                "`{}` is a trace of {}, not of `{}`",
                path.display(),
                header.image,
                args.reference.name
            );
        }
        if trace.touches.is_empty() {
            bail!("`{}` lists nothing that was read", path.display());
        }
        traces.push(trace);
    }
    add_traces(store, &resolved, &traces, args.level, &args.keys, ui).await
}

/// Merges `traces` into the profile of a version, and builds its boot pack again.
pub(super) async fn add_traces(
    store: &Store,
    resolved: &Resolved,
    traces: &[Trace],
    level: i32,
    keys: &KeyArgs,
    ui: &Ui,
) -> anyhow::Result<Summary> {
    // Before all that takes time.
    let ring = signing(store, keys).await?;
    let disk = resolved.manifest.disk;
    let before = match &resolved.manifest.boot_pack {
        Some(pack) => Some(store.profile(pack).await?),
        None => None,
    };
    let merged = Profile::merge(disk.regions.digest, before.as_ref(), traces);
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    ui.note("Packing what these boots read; this may take a minute.");
    let (name, version) = (&resolved.manifest.name, resolved.manifest.version);
    let known = carry::booted_before(store, name, version).await;
    let built = store
        .build_boot_pack(&disk, &merged, &StandIns::new(), &known, level, workers)
        .await?;
    if built.boot_pack.is_none() {
        bail!(
            "nothing that these traces list is on the disk of {}",
            resolved.reference
        );
    }
    let manifest = revise(store, &keys.signer(&ring), resolved, built.boot_pack).await?;
    Ok(Summary {
        built: Some(CarriedOver::of(&built)),
        ..summary(resolved, &manifest, Some(&built.profile))
    })
}

async fn show(store: &Store, reference: &ImageRef) -> anyhow::Result<Summary> {
    let resolved = store.resolve(reference).await?;
    let profile = match &resolved.manifest.boot_pack {
        Some(pack) => Some(store.profile(pack).await?),
        None => None,
    };
    Ok(summary(&resolved, &resolved.manifest, profile.as_ref()))
}

async fn remove(store: &Store, args: RemoveArgs) -> anyhow::Result<Summary> {
    let resolved = store.resolve(&args.reference).await?;
    let ring = signing(store, &args.keys).await?;
    let manifest = revise(store, &args.keys.signer(&ring), &resolved, None).await?;
    Ok(summary(&resolved, &manifest, None))
}

/// The keys that sign for the store.
pub(super) async fn signing(store: &Store, keys: &KeyArgs) -> anyhow::Result<KeyRing> {
    let ring = keys.open(store).await?;
    ring.with_context(|| format!("`{}` was never signed", store.root().display()))
}

async fn revise(
    store: &Store,
    signer: &Signer<'_>,
    resolved: &Resolved,
    after: Option<BootPack>,
) -> anyhow::Result<Manifest> {
    let revision = Revision {
        reference: resolved.reference.clone(),
        before: resolved.manifest.boot_pack,
        after,
    };
    Ok(revision.commit(store, signer).await?)
}

pub(super) fn read_trace(path: &Path) -> anyhow::Result<Trace> {
    let read = || {
        let mut bytes = Vec::new();
        // One byte more than is allowed tells that there are more.
        File::open(path)?
            .take(TRACE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read().with_context(|| format!("cannot read `{}`", path.display()))?;
    Trace::decode(&bytes).with_context(|| format!("cannot use `{}`", path.display()))
}

fn summary(resolved: &Resolved, manifest: &Manifest, profile: Option<&Profile>) -> Summary {
    let count = |steadiness| {
        let of = |profile: &Profile| {
            let touched = profile.touched.iter();
            touched
                .filter(|touched| profile.steadiness(touched) == steadiness)
                .count()
        };
        profile.map_or(0, of)
    };
    Summary {
        reference: resolved.reference.clone(),
        revision: manifest.revision,
        runs: profile.map_or(0, |profile| profile.runs),
        always: count(Steadiness::Always),
        mostly: count(Steadiness::Mostly),
        once: count(Steadiness::Once),
        boot_pack: manifest.boot_pack,
        built: None,
    }
}

pub(super) fn text(summary: &Summary) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let Some(pack) = &summary.boot_pack else {
        return format!("{} has no profile and no boot pack\n", summary.reference);
    };
    let _ = writeln!(
        out,
        "{} (revision {}): {} boots merged",
        summary.reference, summary.revision, summary.runs
    );
    let _ = writeln!(
        out,
        "  chunks     {} always, {} mostly, {} once (left out)",
        summary.always, summary.mostly, summary.once
    );
    let _ = match &summary.built {
        Some(built) => writeln!(out, "  boot pack  {}", built.text()),
        None => writeln!(out, "  boot pack  {}", ui::size(pack.object.length)),
    };
    out
}
