//! `circular publish`.

mod addresses;
mod booting;
mod spare;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use image_format::manifest::{Boot, Disk};
use image_format::{Digest, ImageRef, ObjectRef, Version};
use image_store::publication::PublishError;
use image_store::{
    KeyRing, Known, Publication, Published, PublishedAs, Signer, Store, WriteStats, WrittenDisk,
};
use serde::Serialize;

use booting::{BootArgs, make_bootable};

use crate::cli::Common;
use crate::keys::{self, KeyArgs};
use crate::publish::boot::{self, BootBuilt};
use crate::publish::carry::CarriedOver;
use crate::publish::prepare::{self, PrepareConfig};
use crate::publish::source::{Probe, Source};
use crate::remote::upload::Landed;
use crate::remote::{RemoteArgs, RemoteStore};
use crate::ui::{self, Ui};

/// How often a publish begins again when the store lost something meanwhile.
const ATTEMPTS: u32 = 4;

const EXAMPLES: &str = "\
To a server elsewhere, which its operator starts with your root:
  circular init --root-only --keys ~/keys
  circular-server --upload --tokens tokens.txt --upload-root root.json --tls-cert cert.pem --tls-key key.pem --listen 0.0.0.0:8443
  circular publish debian.raw debian:12 --to https://host:8443/ --token-file token --keys ~/keys
A publish that broke off is resumed by running it again.";

/// Arguments of `circular publish`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Disk image (raw) or block device
    image: PathBuf,
    /// Name to publish under; the tag is `latest` if not given
    #[arg(value_name = "NAME[:TAG]")]
    reference: ImageRef,
    /// zstd level, 1 to 22
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Worker threads; as many as cores if not given
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Take the file's bytes as the disk, even if they look like another image format
    #[arg(long)]
    raw: bool,
    /// Read all that the store has of this image before relying on it; store again what is damaged. A version that has
    /// the image stays what it is: its tags, its time and, unless options say otherwise, how it boots
    #[arg(long, conflicts_with = "to")]
    mend: bool,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    boot: BootArgs,
    #[command(flatten)]
    keys: KeyArgs,
}

/// What a publish came to, for scripts.
#[derive(Debug, Serialize)]
struct Summary {
    reference: ImageRef,
    version: Version,
    revision: u32,
    published_as: &'static str,
    disk: Disk,
    chunks: u64,
    new_chunks: u64,
    new_data_bytes: u64,
    new_stored_bytes: u64,
    seconds: f64,
    boot: Option<Boot>,
    initramfs_bytes: Option<u64>,
    not_bootable: Option<String>,
    /// Where the store's new signing keys are, if this publish made them.
    new_keys: Option<PathBuf>,
    /// What clients of the store trust.
    trusted_root: PathBuf,
    boot_pack: Option<CarriedOver>,
    #[serde(flatten)]
    place: Place,
}

/// Where it was published.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Place {
    Directory {
        #[serde(skip)]
        store: PathBuf,
    },
    Server {
        server: String,
        uploaded_files: u64,
        uploaded_bytes: u64,
    },
}

/// Publishes a disk image.
///
/// # Errors
/// The image cannot be read, or the store cannot be written; then nothing was published.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let begun = Instant::now();
    if args.reference.version.is_some() {
        bail!(
            "`{}` names a version; publish counts versions itself: give NAME[:TAG]",
            args.reference
        );
    }
    addresses::check(args.boot.base_url.as_deref(), &args.boot.mirror_urls)?;
    boot::check_cmdline(&args.boot.cmdline, args.boot.root.as_deref())?;
    let probe = if args.raw {
        Probe::TakeAsRaw
    } else {
        Probe::Refuse
    };
    let source = Arc::new(Source::open(&args.image, probe)?);
    let remote = args.remote.open(ui).await?;
    let store = match &remote {
        Some(remote) => remote.store().clone(),
        None => Store::open_or_create(&common.store).await?,
    };
    let mut new_keys = None;
    let tell = |directory: &Path| {
        ui.note(&format!(
            "Made signing keys in {}: back them up, and keep them from others. \
             Machines trust the root.json beside them.",
            directory.display()
        ));
        new_keys = Some(directory.to_owned());
    };
    let ring = match &remote {
        Some(remote) => remote.keys(&args.keys).await?,
        None => args.keys.open_or_make(&store, tell).await?,
    };
    let place = Place::Directory {
        store: common.store.clone(),
    };
    let target = Target {
        store: &store,
        remote: remote.as_ref(),
        place,
    };
    let published = publish(target, &source, &args, &ring, ui).await?;
    let summary = Summary {
        seconds: begun.elapsed().as_secs_f64(),
        new_keys,
        ..published
    };
    ui.result(&summary, text)?;
    Ok(())
}

/// Where to publish to.
struct Target<'a> {
    store: &'a Store,
    remote: Option<&'a RemoteStore>,
    place: Place,
}

/// Brings the disk to the server and makes it visible there.
async fn publish_to(
    remote: &RemoteStore,
    publication: &Publication,
    signer: &Signer<'_>,
    ui: &Ui,
) -> anyhow::Result<(Published, Place)> {
    let (published, mut uploaded) = remote
        .commit(signer, ui, async |store| {
            Ok(publication.clone().commit(store, signer).await?)
        })
        .await?;
    if uploaded.committed.is_none() {
        let manifest = ObjectRef::of(&published.manifest.encode());
        let mended = remote.mend_boot_files(&published.reference, &manifest);
        uploaded.committed = mended.await.unwrap_or_else(|error| {
            ui.warn(&format!("the image is published, but nobody knows whether its boot scripts are there: {error}"));
            None
        });
    }
    if uploaded.committed == Some(Landed::WithoutBootFiles) {
        ui.warn(
            "the image is published, but the server could not write its boot scripts: look at its log, and publish it again",
        );
    }
    let place = Place::Server {
        server: remote.url().to_string(),
        uploaded_files: uploaded.files,
        uploaded_bytes: uploaded.bytes,
    };
    Ok((published, place))
}

/// Publishes. What the store turns out to lack is stored again: packs that were lost, and what a
/// sweep took before it was committed.
async fn publish(
    target: Target<'_>,
    source: &Arc<Source>,
    args: &Args,
    ring: &KeyRing,
    ui: &Ui,
) -> anyhow::Result<Summary> {
    let store = target.store;
    let signer = args.keys.signer(ring);
    let mut lost = HashSet::new();
    let mut left = ATTEMPTS;
    loop {
        let written = write_disk(store, source, args, &mut lost, ui).await?;
        let stats = written.stats;
        let (built, not_bootable) = make_bootable(store, source, args, ring.root()?, ui).await?;
        source.check_unchanged()?;
        let carried = spare::carry_over(store, args, &written.disk, ui).await;
        let index_delta =
            spare::index_delta(store, args, &written.disk, carried.as_ref(), ui).await;
        let publication = Publication {
            reference: args.reference.clone(),
            created: keys::now(),
            written,
            chunker: store.marker().chunker,
            boot: built.as_ref().map(|built| built.boot.clone()),
            boot_pack: carried.as_ref().and_then(|built| built.boot_pack),
            index_delta,
            known: match args.mend {
                true => Known::Mended {
                    boots_anew: args.boot.is_said(),
                },
                false => Known::Published,
            },
        };
        left -= 1;
        let outcome = match target.remote {
            Some(remote) => publish_to(remote, &publication, &signer, ui).await,
            None => publication
                .commit(store, &signer)
                .await
                .map(|published| (published, target.place.clone()))
                .map_err(anyhow::Error::from),
        };
        let error = match outcome {
            Ok((published, place)) => {
                return Ok(Summary {
                    place,
                    trusted_root: ring.directory().join("root.json"),
                    boot_pack: carried.as_ref().map(CarriedOver::of),
                    ..summary(published, stats, built.as_ref(), not_bootable)
                });
            }
            Err(error) => error,
        };
        match error.downcast_ref() {
            Some(PublishError::Gone { objects }) if left > 0 => {
                ui.warn(&format!(
                    "{} objects that the image needs are gone from the store; storing them again",
                    objects.len()
                ));
                lost.extend(objects.iter().map(|object| object.digest));
            }
            _ => return Err(error),
        }
    }
}

/// Writes the disk, without relying on the packs in `lost`; with `--mend`, on none that was not
/// read: what is damaged becomes part of `lost`.
async fn write_disk(
    store: &Store,
    source: &Arc<Source>,
    args: &Args,
    lost: &mut HashSet<Digest>,
    ui: &Ui,
) -> anyhow::Result<WrittenDisk> {
    let mut whole = HashSet::new();
    loop {
        let written = write_disk_once(store, source, args, lost, ui).await?;
        if !args.mend {
            return Ok(written);
        }
        let unread = written.known_packs().filter(|pack| !whole.contains(pack));
        let unread: Vec<_> = unread.collect();
        let damaged = store.damaged(unread.iter().copied()).await?;
        if damaged.is_empty() {
            return Ok(written);
        }
        ui.warn(&format!(
            "{} packs are damaged; storing their chunks again",
            damaged.len()
        ));
        lost.extend(damaged.iter().map(|pack| pack.digest));
        whole.extend(unread);
    }
}

async fn write_disk_once(
    store: &Store,
    source: &Arc<Source>,
    args: &Args,
    lost: &HashSet<Digest>,
    ui: &Ui,
) -> anyhow::Result<WrittenDisk> {
    let names = store.names().await?;
    let mut known = store.chunk_indexes(&names.chunk_indexes).await?;
    known.exclude(lost.iter().copied());
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let config = PrepareConfig {
        workers: args.jobs.unwrap_or(cores),
        level: args.level,
        chunker: store.marker().chunker,
    };
    let bar = ui.progress("publishing", source.data_bytes()?);
    let written = prepare::write_disk(
        store.clone(),
        source.clone(),
        Arc::new(known),
        config,
        |bytes| bar.inc(bytes),
    )
    .await
    .with_context(|| format!("cannot publish `{}`", source.path().display()))?;
    bar.finish_and_clear();
    Ok(written)
}

fn summary(
    published: Published,
    stats: WriteStats,
    built: Option<&BootBuilt>,
    not_bootable: Option<String>,
) -> Summary {
    let manifest = published.manifest;
    Summary {
        reference: published.reference,
        version: manifest.version,
        revision: manifest.revision,
        published_as: match published.published_as {
            PublishedAs::NewVersion => "new-version",
            PublishedAs::NewRevision => "new-revision",
            PublishedAs::Unchanged => "unchanged",
            PublishedAs::Mended => "mended",
        },
        disk: manifest.disk,
        chunks: stats.chunks,
        new_chunks: stats.new_chunks,
        new_data_bytes: stats.new_data_bytes,
        new_stored_bytes: stats.new_stored_bytes,
        seconds: 0.0,
        boot: manifest.boot,
        initramfs_bytes: built.map(|built| built.report.total_bytes),
        not_bootable,
        new_keys: None,
        trusted_root: PathBuf::new(),
        boot_pack: None,
        place: Place::Directory {
            store: PathBuf::new(),
        },
    }
}

fn text(summary: &Summary) -> String {
    let Summary {
        disk, reference, ..
    } = summary;
    let mut out = String::new();
    let what = match summary.published_as {
        "new-version" => "a new version",
        "mended" => "the disk was known, and damaged; it is stored anew",
        "new-revision" => "the disk was known; how it boots is new",
        _ => "all of it was known already",
    };
    let _ = writeln!(
        out,
        "Published {reference} ({what}) in {:.1} s",
        summary.seconds
    );
    let _ = writeln!(
        out,
        "  disk       {}, {} of data in {} chunks, the rest holes",
        ui::size(disk.length),
        ui::size(disk.data_bytes),
        disk.chunks
    );
    let _ = writeln!(
        out,
        "  new        {} chunks of {} ({}), {} compressed to {}",
        summary.new_chunks,
        summary.chunks,
        ui::percent(summary.new_chunks, summary.chunks),
        ui::size(summary.new_data_bytes),
        ui::size(summary.new_stored_bytes),
    );
    out.push_str(&boot_text(summary));
    next_steps(&mut out, summary);
    out
}

/// How it boots, and how fast.
fn boot_text(summary: &Summary) -> String {
    let mut out = String::new();
    if let Some(boot) = &summary.boot {
        let _ = writeln!(
            out,
            "  boots      kernel {} ({}), initramfs {}",
            boot.kernel_release,
            ui::size(boot.kernel.length),
            ui::size(boot.initramfs.length)
        );
    }
    if let Some(carried) = &summary.boot_pack {
        let _ = writeln!(out, "  boot pack  {}", carried.text());
    }
    if let Some(reason) = &summary.not_bootable {
        let how = match summary.boot {
            Some(_) => "as it did before",
            None => "no",
        };
        let _ = writeln!(out, "  boots      {how}: {reason}");
    }
    out
}

/// Says how to use what was published.
fn next_steps(out: &mut String, summary: &Summary) {
    let image = ImageRef {
        version: None,
        ..summary.reference.clone()
    };
    let root = summary.trusted_root.display();
    match &summary.place {
        Place::Directory { store } => {
            let _ = writeln!(out, "\nServe it, then mount it or boot it:");
            let _ = writeln!(
                out,
                "  circular-server --store {} --listen 0.0.0.0:8080",
                store.display()
            );
            let _ = writeln!(
                out,
                "  circular-mount --root {root} http://HOST:8080/ {image} /mnt       # /mnt/disk.raw"
            );
            if summary.boot.is_some() {
                let script = image_format::boot_script::script_path(&image);
                let _ = writeln!(
                    out,
                    "  qemu-system-x86_64 -m 1024 -boot n -device virtio-net-pci,netdev=n \\\n    \
                     -netdev user,id=n,bootfile=http://10.0.2.2:8080/{script}"
                );
            }
        }
        Place::Server {
            server,
            uploaded_files,
            uploaded_bytes,
        } => {
            let _ = writeln!(
                out,
                "  uploaded   {uploaded_files} files, {}",
                ui::size(*uploaded_bytes)
            );
            let _ = writeln!(out, "\nMount it, or boot it:");
            let _ = writeln!(
                out,
                "  circular-mount --root {root} {server} {image} /mnt       # /mnt/disk.raw"
            );
            if summary.boot.is_some() {
                let script = image_format::boot_script::script_path(&image);
                let _ = writeln!(out, "  iPXE: chain {server}{script}");
            }
        }
    }
}
