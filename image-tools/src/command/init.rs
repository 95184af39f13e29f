//! `circular init`.

use std::fmt::Write as _;
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
    /// Make keys and their root only: for a store that a server will make, see circular-server --upload-root
    #[arg(long)]
    root_only: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Serialize)]
struct Made {
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<PathBuf>,
    keys: PathBuf,
    root: PathBuf,
}

/// Makes a store and its keys, or the keys only.
///
/// # Errors
/// The store is signed already, or cannot be written.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    let (ring, store) = match args.root_only {
        true => (args.keys.make_root().await?, None),
        false => {
            let store = Store::open_or_create(&common.store).await?;
            if store.root_if_signed().await?.is_some() {
                bail!(
                    "`{}` is signed already: it has keys, and its machines trust them",
                    common.store.display()
                );
            }
            (args.keys.make(&store).await?, Some(common.store.clone()))
        }
    };
    let made = Made {
        store,
        keys: ring.directory().to_owned(),
        root: ring.directory().join("root.json"),
    };
    ui.result(&made, text)?;
    Ok(())
}

fn text(made: &Made) -> String {
    let (keys, root) = (made.keys.display(), made.root.display());
    let mut out = match &made.store {
        Some(store) => format!("Store {} is ready. Its", store.display()),
        None => "The".to_owned(),
    };
    let _ = writeln!(
        out,
        " signing keys are in {keys}: back them up, and keep them from others."
    );
    out.push_str(
        "Who loses the root key can change no key any more; who steals one can sign images.\n",
    );
    if made.store.is_none() {
        let _ = writeln!(
            out,
            "Give {root} to the server (circular-server --upload --upload-root), then publish the first image\n\
             with --to URL --keys {keys}."
        );
    }
    let _ = writeln!(
        out,
        "Give {root} to whoever shall trust what you publish (circular-mount --root)."
    );
    out
}
