//! `circular init`.

use std::path::PathBuf;

use anyhow::bail;
use image_store::Store;
use serde::Serialize;

use crate::cli::Common;
use crate::keys::KeyArgs;
use crate::ui::Ui;

/// Arguments of `circular init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Serialize)]
struct Made {
    store: PathBuf,
    keys: PathBuf,
    root: PathBuf,
}

/// Makes a store and its keys.
///
/// # Errors
/// The store is signed already, or cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let store = Store::open_or_create(&common.store).await?;
    if store.root_if_signed().await?.is_some() {
        bail!(
            "`{}` is signed already: it has keys, and its machines trust them",
            common.store.display()
        );
    }
    let ring = args.keys.make(&store).await?;
    let made = Made {
        store: common.store.clone(),
        keys: ring.directory().to_owned(),
        root: ring.directory().join("root.json"),
    };
    ui.result(&made, |made| {
        format!(
            "Store {} is ready. Its signing keys are in {}: back them up, and keep them from others.\n\
             Who loses the root key can change no key any more; who steals one can sign images.\n\
             Give {} to whoever shall trust what you publish (circular-mount --root).\n",
            made.store.display(),
            made.keys.display(),
            made.root.display()
        )
    })?;
    Ok(())
}
