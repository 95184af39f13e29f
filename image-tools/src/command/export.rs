//! `circular export`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image_format::geometry::{BlockRun, REGION_BLOCKS};
use image_format::{ImageRef, REGION_BYTES};
use image_store::{ImageReader, Store};
use serde::Serialize;

use crate::cli::Common;
use crate::ui::{self, Ui};

/// Blocks read at once: 4 MiB.
const STEP_BLOCKS: u32 = 1024;

/// Regions read at once.
const REGIONS_AT_ONCE: usize = 4;

/// Arguments of `circular export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image to write out
    #[arg(value_name = "NAME[:TAG][@VERSION]")]
    reference: ImageRef,
    /// File to write; holes of the disk become holes of the file
    file: PathBuf,
    /// Write over an existing file
    #[arg(long, short)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Exported {
    reference: ImageRef,
    file: PathBuf,
    length: u64,
}

/// Writes an image to a raw disk file. The file appears under its name only when it is complete.
///
/// # Errors
/// There is no such image, it is damaged, or the file cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let resolved = store.resolve(&args.reference).await?;
    check_target(&args)?;
    let reader = ImageReader::open(store, &resolved.manifest).await?;
    let parent = match args.file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".circular-export-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(parent)
        .with_context(|| format!("cannot write in `{}`", parent.display()))?;
    let writing = || format!("cannot write `{}`", args.file.display());
    temporary
        .as_file()
        .set_len(reader.length())
        .with_context(writing)?;
    let out = Arc::new(temporary.as_file().try_clone().with_context(writing)?);
    let bar = ui.progress("exporting", reader.length());
    let (reader, out) = (&reader, &out);
    stream::iter(0..reader.n_regions())
        .map(|region| async move {
            write_region(reader, region, out).await?;
            anyhow::Ok(())
        })
        .buffered(REGIONS_AT_ONCE)
        .inspect(|_| bar.inc(REGION_BYTES))
        .try_collect::<()>()
        .await
        .with_context(|| {
            format!(
                "cannot export {} to `{}`",
                resolved.reference,
                args.file.display()
            )
        })?;
    bar.finish_and_clear();
    temporary.as_file().sync_all().with_context(writing)?;
    let placed = match args.force {
        true => temporary.persist(&args.file),
        false => temporary.persist_noclobber(&args.file),
    };
    placed.with_context(writing)?;
    let exported = Exported {
        reference: resolved.reference,
        file: args.file,
        length: reader.length(),
    };
    ui.result(&exported, |done| {
        format!(
            "{} written to {}, {}\n",
            done.reference,
            done.file.display(),
            ui::size(done.length)
        )
    })?;
    Ok(())
}

/// Checks that the file may be put in place: it replaces what bears its name, so never a device.
fn check_target(args: &Args) -> anyhow::Result<()> {
    match args.file.metadata() {
        Ok(meta) if !meta.is_file() => bail!(
            "`{}` is no regular file, and is not replaced: export to a file; \
             `dd` or `qemu-img convert` brings that to a device",
            args.file.display()
        ),
        Ok(_) if !args.force => {
            bail!("`{}` exists; --force writes over it", args.file.display())
        }
        _ => Ok(()),
    }
}

async fn write_region(reader: &ImageReader, region: u32, out: &Arc<File>) -> anyhow::Result<()> {
    let length = reader.length();
    let mut first = 0;
    while first < REGION_BLOCKS {
        let end = first + STEP_BLOCKS;
        let chunks = reader.chunks(BlockRun { region, first, end }).await?;
        let out = out.clone();
        tokio::task::spawn_blocking(move || {
            chunks.iter().try_for_each(|(chunk, offset)| {
                let keep = usize::try_from(length.saturating_sub(*offset)).unwrap_or(usize::MAX);
                let bytes = chunk.bytes();
                out.write_all_at(&bytes[..bytes.len().min(keep)], *offset)
            })
        })
        .await??;
        first = end;
    }
    Ok(())
}
