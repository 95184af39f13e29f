//! `circular root`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use image_store::Store;
use image_store::trust::public_key::KeyId;
use image_store::trust::root::RootDocument;
use image_store::trust::rotate::RootPublished;
use serde::Serialize;

use crate::cli::Common;
use crate::command::utc;
use crate::keys::{KeyArgs, RingArgs};
use crate::roots::{self, ChangeArgs};
use crate::ui::Ui;

const HELP: &str = "\
The root says which keys may sign what. Machines that trust one version follow
to the next if it is signed by enough root keys of both. With one root key,
`circular key` and `circular root renew` do it at once. With several holders,
a draft goes from one to the other:
  circular key add root carol.json --threshold 2 --draft next.json
  circular root sign next.json --keys DIR      # each holder, anywhere
  circular root publish next.json              # where the store is
Holders may also sign copies at the same time: `circular root publish` takes
all of the files. docs/KEYS.md has more.";

/// Arguments of `circular root`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show who may sign what, until when, and who signed that
    Show(ShowArgs),
    /// Begin a draft of the next root: the same keys, a new expiry
    New(NewArgs),
    /// Add the signatures of the root keys in a directory to a draft; needs no store
    Sign(SignArgs),
    /// Make a draft the current root, if it is signed by enough keys of the old and of the new root
    Publish(PublishArgs),
    /// Make the root last longer, at once: new, sign and publish in one
    Renew(RenewArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Root or draft to show; the store's current root if not given
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// Where to write the draft; must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, clap::Args)]
struct SignArgs {
    /// Draft to sign
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    ring: RingArgs,
}

#[derive(Debug, clap::Args)]
struct PublishArgs {
    /// Signed draft; copies of it with other signatures may follow
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, clap::Args)]
struct RenewArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

/// Shows, signs or publishes roots.
///
/// # Errors
/// The root is not signed as it must be, or the store cannot be used.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    match args.command {
        Command::Show(args) => show(common, args, ui).await,
        Command::New(args) => new(common, args, ui).await,
        Command::Sign(args) => sign(common, args, ui).await,
        Command::Publish(args) => publish(common, args, ui).await,
        Command::Renew(args) => renew(common, args, ui).await,
    }
}

/// A root, for scripts.
#[derive(Debug, Serialize)]
struct Shown {
    version: u64,
    expires: u64,
    roles: Vec<ShownRole>,
    /// The root keys of this root that signed it.
    signed_by: Vec<KeyId>,
    /// When the store's other metadata expires; none for a file.
    #[serde(flatten)]
    metadata: Option<ShownMetadata>,
}

#[derive(Debug, Serialize)]
struct ShownRole {
    role: String,
    threshold: u64,
    keys: Vec<KeyId>,
}

#[derive(Debug, Serialize)]
struct ShownMetadata {
    targets_version: u64,
    targets_expires: u64,
    snapshot_version: u64,
    snapshot_expires: u64,
    timestamp_version: u64,
    timestamp_expires: u64,
}

impl Shown {
    fn of(root: &RootDocument, metadata: Option<ShownMetadata>) -> Self {
        let rules = root.rules().into_iter();
        Self {
            version: root.version(),
            expires: root.expires(),
            roles: rules
                .map(|rule| ShownRole {
                    role: rule.role.to_string(),
                    threshold: rule.threshold,
                    keys: rule.keys,
                })
                .collect(),
            signed_by: root.signers(),
            metadata,
        }
    }

    fn text(&self) -> String {
        let mut out = format!(
            "root version {}, expires {}\n",
            self.version,
            utc(self.expires)
        );
        for role in &self.roles {
            let keys: Vec<_> = role.keys.iter().map(KeyId::short).collect();
            let _ = writeln!(
                out,
                "  {:<10} {} of {}: {}",
                role.role,
                role.threshold,
                keys.len(),
                keys.join(" ")
            );
        }
        let signers: Vec<_> = self.signed_by.iter().map(KeyId::short).collect();
        let signers = match signers.is_empty() {
            true => "nobody yet".to_owned(),
            false => signers.join(" "),
        };
        let _ = writeln!(out, "  signed by  {signers}");
        if let Some(metadata) = &self.metadata {
            for (role, version, expires) in [
                (
                    "targets",
                    metadata.targets_version,
                    metadata.targets_expires,
                ),
                (
                    "snapshot",
                    metadata.snapshot_version,
                    metadata.snapshot_expires,
                ),
                (
                    "timestamp",
                    metadata.timestamp_version,
                    metadata.timestamp_expires,
                ),
            ] {
                let _ = writeln!(out, "{role} version {version}, expires {}", utc(expires));
            }
        }
        out
    }
}

async fn show(common: &Common, args: ShowArgs, ui: &Ui) -> anyhow::Result<()> {
    let shown = match &args.file {
        Some(file) => Shown::of(&roots::read(file)?, None),
        None => {
            let store = Store::open(&common.store).await?;
            let Some(root) = store.root_if_signed().await? else {
                bail!("`{}` was never signed", common.store.display());
            };
            let current = store.current(&root).await?;
            let expiries = current.expiries();
            let metadata = ShownMetadata {
                targets_version: current.targets.signed.version.get(),
                targets_expires: expiries.targets,
                snapshot_version: current.snapshot.signed.version.get(),
                snapshot_expires: expiries.snapshot,
                timestamp_version: current.timestamp.signed.version.get(),
                timestamp_expires: expiries.timestamp,
            };
            Shown::of(&current.root.into(), Some(metadata))
        }
    };
    ui.result(&shown, Shown::text)?;
    Ok(())
}

async fn new(common: &Common, args: NewArgs, ui: &Ui) -> anyhow::Result<()> {
    if args.file.exists() {
        bail!("`{}` is there already", args.file.display());
    }
    let store = Store::open(&common.store).await?;
    let ring = args.keys.open_signed(&store).await?;
    let (_, next) = args.keys.signer(&ring).next_root(&store).await?;
    roots::write(&args.file, &next)?;
    ui.result(&Shown::of(&next, None), Shown::text)?;
    Ok(())
}

async fn sign(common: &Common, args: SignArgs, ui: &Ui) -> anyhow::Result<()> {
    let ring = args.ring.open(&common.store).await?;
    let mut draft = roots::read(&args.file)?;
    ring.sign_root(&mut draft).await?;
    roots::write(&args.file, &draft)?;
    // What was signed is shown: a holder should have a look at it.
    ui.result(&Shown::of(&draft, None), Shown::text)?;
    Ok(())
}

async fn publish(common: &Common, args: PublishArgs, ui: &Ui) -> anyhow::Result<()> {
    let mut files = args.files.iter();
    let Some(first) = files.next() else {
        bail!("name the file of the signed draft");
    };
    let mut draft = roots::read(first)?;
    for copy in files {
        draft
            .merge(&roots::read(copy)?)
            .with_context(|| format!("cannot take signatures from `{}`", copy.display()))?;
    }
    let store = Store::open(&common.store).await?;
    let ring = args.keys.open_signed(&store).await?;
    let signer = args.keys.signer(&ring);
    let published = signer.publish_root(&store, &draft).await?;
    ring.retire_removed(&signer.past_roots(&store, &draft).await?, &draft)?;
    ui.result(&Shown::of(&draft, None), |shown| {
        let now = match published {
            RootPublished::Now => "Published",
            RootPublished::Before => "Published before",
        };
        format!("{now}: {}", shown.text())
    })?;
    Ok(())
}

async fn renew(common: &Common, args: RenewArgs, ui: &Ui) -> anyhow::Result<()> {
    let session = args.change.begin(common).await?;
    let changed = session.finish(Vec::new()).await?;
    ui.result(&changed, roots::text)?;
    Ok(())
}
