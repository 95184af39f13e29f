//! `circular refresh`.

use image_store::Store;
use serde::Serialize;

use crate::cli::Common;
use crate::command::utc;
use crate::keys::KeyArgs;
use crate::ui::Ui;

/// Arguments of `circular refresh`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Serialize)]
struct Refreshed {
    root_expires: u64,
    targets_expires: u64,
    snapshot_expires: u64,
    timestamp_expires: u64,
}

/// Signs the current metadata again.
///
/// # Errors
/// The keys are missing, or the store was never published to.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open(&common.store).await?;
    let ring = args.keys.open_signed(&store).await?;
    let expiries = args.keys.signer(&ring).refresh(&store).await?;
    let refreshed = Refreshed {
        root_expires: expiries.root,
        targets_expires: expiries.targets,
        snapshot_expires: expiries.snapshot,
        timestamp_expires: expiries.timestamp,
    };
    for (role, expires, cure) in [
        ("root", expiries.root, "`circular root renew`"),
        (
            "targets",
            expiries.targets,
            "`circular refresh` with the targets key",
        ),
        (
            "snapshot",
            expiries.snapshot,
            "`circular refresh` with the snapshot key",
        ),
    ] {
        if expires < expiries.timestamp {
            let when = utc(expires);
            ui.warn(&format!(
                "the {role} expires before the timestamp, {when}: run {cure} before"
            ));
        }
    }
    ui.result(&refreshed, |done| {
        format!("Signed again; good until {}\n", utc(done.timestamp_expires))
    })?;
    Ok(())
}
