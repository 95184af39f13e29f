//! `circular explain`: what a recorded boot waited for.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use image_format::ImageRef;
use image_format::boot_pack::PlacedChunk;
use image_format::trace::Trace;
use image_store::store::Resolved;
use image_store::{ImageReader, Store};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::profile::read_trace;
use crate::cli::Common;
use crate::explain::disk::Disk;
use crate::explain::ext4::{self, Ext4Error};
use crate::explain::map::DiskMap;
use crate::explain::report::{BootPackThen, Report};
use crate::ui::Ui;

/// Arguments of `circular explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File that `circular-mount --record`, a recorded boot or `circular boot --record` wrote
    #[arg(value_name = "TRACE")]
    trace: PathBuf,
    /// Image that was booted
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    reference: ImageRef,
    /// Raw disk of that version, read in place of the store for the names of files
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Leave out waits that are shorter, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5)]
    least: u64,
    /// Show the N longest waits and the N files that were waited for most; 0: all
    #[arg(long, value_name = "N", default_value_t = 25)]
    top: usize,
}

/// Explains a recorded boot.
///
/// # Errors
/// The trace is damaged or of another image, or the store cannot be read.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let trace = read_trace(&args.trace)?;
    let store = Store::open(&common.store).await?;
    let resolved = store.resolve(&args.reference).await?;
    if trace.header.disk != resolved.manifest.disk.regions.digest {
        bail!(
            "`{}` is a trace of {}, and {} has another disk: name the version that was booted",
            args.trace.display(),
            trace.header.image,
            resolved.reference
        );
    }
    let boot_pack = boot_pack_then(&store, &resolved, &trace).await?;
    let disk = match &args.disk {
        Some(path) => open_file(path, resolved.manifest.disk.length)?,
        None => {
            let reader = ImageReader::open(store, &resolved.manifest).await?;
            Disk::of_store(reader, Handle::current())
        }
    };
    ui.note("Looking up which file lies where on the disk.");
    let (map, warnings) = spawn_blocking(move || map_of(disk)).await??;
    for warning in warnings {
        ui.warn(&warning);
    }
    let report = Report::new(&trace, &boot_pack, &map, args.least.saturating_mul(1000));
    let shown = if args.top == 0 { usize::MAX } else { args.top };
    ui.result(&report, |report| report.text(shown))?;
    Ok(())
}

fn open_file(path: &Path, length: u64) -> anyhow::Result<Disk> {
    let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    if file.metadata()?.len() != length {
        bail!(
            "`{}` is not the disk of this version: that has {length} bytes",
            path.display()
        );
    }
    Ok(Disk::of_file(file)?)
}

/// What the boot pack listed that the recorded client had, as far as that is known.
async fn boot_pack_then(
    store: &Store,
    resolved: &Resolved,
    trace: &Trace,
) -> anyhow::Result<BootPackThen> {
    let Some(then) = trace.header.boot_pack else {
        return Ok(BootPackThen::Absent);
    };
    match resolved.manifest.boot_pack {
        Some(pack) if pack.object.digest == then => {
            let head = store
                .object_range(&then, 0..pack.head.length)
                .await
                .context("cannot read the boot pack")?;
            let head = pack.open(&head, resolved.manifest.disk.length)?;
            let listed = |chunk: PlacedChunk| (chunk.entry.chunk, chunk.entry.plain_len() as u64);
            let chunks: HashMap<_, _> = head.chunks().map(listed).collect();
            Ok(BootPackThen::Listed(chunks))
        }
        _ => Ok(BootPackThen::Replaced),
    }
}

/// Walks the file systems of the disk; one that cannot be walked is a warning.
fn map_of(mut disk: Disk) -> anyhow::Result<(DiskMap, Vec<String>)> {
    let (spans, failed) = ext4::walk_all(&mut disk, usize::MAX).context("cannot read the disk")?;
    let warning = |(prefix, error): (String, Ext4Error)| {
        let error = anyhow::Error::from(error);
        format!("{prefix}no files can be named: {error:#}")
    };
    let mut warnings: Vec<_> = failed.into_iter().map(warning).collect();
    if spans.is_empty() && warnings.is_empty() {
        warnings.push("no ext4 file system was found: no files can be named".to_owned());
    }
    Ok((DiskMap::new(spans), warnings))
}
