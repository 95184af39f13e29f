//! `circular gc`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use image_format::ImageRef;
use image_store::Store;
use image_store::gc::remove::{Keep, Removal, remove};
use image_store::gc::{Collected, GRACE_DEFAULT, GcConfig, Mode, collect};
use serde::Serialize;

use crate::cli::Common;
use crate::keys::{self, KeyArgs};
use crate::ui::{self, Ui};

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Arguments of `circular gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A file that nothing refers to is listed when gc first sees it, and deleted by a gc that finds it
listed for the grace period. Without --keep and --keep-days no version is removed.
The keys are needed in any case: packs that go are taken out of what publishers look for known chunks in, which is signed.

Examples:
  circular gc                         # say once a day, from a timer
  circular gc --keep 5 --dry-run      # which versions and files would go?")]
pub struct Args {
    /// Remove old versions first: keep this many of the newest of each image
    #[arg(long, value_name = "N")]
    keep: Option<NonZeroUsize>,
    /// Remove old versions first: keep those published in the last days (with --keep: those too)
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Days that a file waits after nothing refers to it any more; 0 only if nobody publishes or boots
    #[arg(long, value_name = "DAYS", default_value_t = GRACE_DEFAULT.as_secs() / DAY_SECONDS)]
    grace: u64,
    /// Change nothing, say what would be done; files of versions that would be removed are not counted
    #[arg(long, short = 'n')]
    dry_run: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Serialize)]
struct Done {
    dry_run: bool,
    removed: Vec<ImageRef>,
    deleted: BTreeMap<String, u64>,
    deleted_bytes: u64,
    waiting: u64,
    waiting_bytes: u64,
    #[serde(skip)]
    grace: u64,
}

/// Removes old versions if asked to, and deletes what nothing has referred to for long enough.
///
/// # Errors
/// Something that may refer to files cannot be read, or the store cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let ring = args.keys.open_signed(&store).await?;
    let signer = args.keys.signer(&ring);
    let mode = match args.dry_run {
        true => Mode::DryRun,
        false => Mode::Sweep,
    };
    let days_ago = |days| keys::now().saturating_sub(u64::from(days) * DAY_SECONDS);
    let keep = Keep {
        newest: args.keep,
        since: args.keep_days.map(days_ago),
    };
    let removed = remove(&store, &signer, |_| Some(Removal::Old(keep)), mode).await?;
    let grace = Duration::from_secs(args.grace.saturating_mul(DAY_SECONDS));
    let Collected {
        deleted,
        waiting,
        waiting_bytes,
    } = collect(&store, &signer, GcConfig { grace, mode }).await?;
    let done = Done {
        dry_run: args.dry_run,
        removed,
        deleted_bytes: deleted.values().sum(),
        deleted,
        waiting,
        waiting_bytes,
        grace: args.grace,
    };
    ui.result(&done, text)?;
    Ok(())
}

fn text(done: &Done) -> String {
    let mut out = String::new();
    let [removed, deleted] = match done.dry_run {
        true => ["Would remove", "Would delete"],
        false => ["Removed", "Deleted"],
    };
    for reference in &done.removed {
        let _ = writeln!(out, "{removed} {reference}");
    }
    if done.dry_run {
        for (path, bytes) in &done.deleted {
            let _ = writeln!(out, "{deleted} {path} ({})", ui::size(*bytes));
        }
    }
    let _ = writeln!(
        out,
        "{deleted} {} files ({}); {} ({}) wait until nothing has referred to them for {} days",
        done.deleted.len(),
        ui::size(done.deleted_bytes),
        done.waiting,
        ui::size(done.waiting_bytes),
        done.grace
    );
    out
}
