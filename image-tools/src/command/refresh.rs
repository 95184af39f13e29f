//! `circular refresh`.

use anyhow::bail;
use image_store::Store;
use serde::Serialize;

use crate::cli::Common;
use crate::command::utc;
use crate::keys::{self, KeyArgs};
use crate::remote::RemoteArgs;
use crate::ui::Ui;

/// Arguments of `circular refresh`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Serialize)]
struct Refreshed {
    timestamp_expires: u64,
}

/// Signs the current metadata again.
///
/// # Errors
/// The keys are missing, or the store was never published to.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let remote = args.remote.open(ui).await?;
    let store = match &remote {
        Some(remote) => remote.store().clone(),
        None => Store::open(&common.store).await?,
    };
    let Some(ring) = args.keys.open(&store).await? else {
        bail!(
            "`{}` was never signed: nothing to refresh",
            store.root().display()
        );
    };
    let signer = args.keys.signer(&ring);
    match &remote {
        None => signer.refresh(&store).await?,
        Some(remote) => {
            let refresh = async |store: &Store| Ok(signer.refresh(store).await?);
            remote.commit(&signer, ui, refresh).await?;
        }
    }
    let refreshed = Refreshed {
        timestamp_expires: keys::now().saturating_add(args.keys.lifetimes().timestamp.as_secs()),
    };
    ui.result(&refreshed, |done| {
        format!("Signed again; good until {}\n", utc(done.timestamp_expires))
    })?;
    Ok(())
}
