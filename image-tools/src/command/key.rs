//! `circular key`.

mod change;
mod look;

use clap::Subcommand;
use image_store::trust::keys::RoleType;

use crate::cli::Common;
use crate::ui::Ui;

const HELP: &str = "\
A store has keys of four roles. root keys say who may sign what, and are needed
only to change that. targets, snapshot and timestamp keys sign what is offered,
and are needed to publish.

Examples:
  circular key rotate targets snapshot timestamp    # replace the everyday keys
  circular key new root --keys alice                # for another holder
  circular key show root --keys alice > alice.json  # its public half
  circular key add root alice.json                  # alice's key counts, too
docs/KEYS.md says what to do when a key is lost or stolen.";

/// Arguments of `circular key`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the keys that the store trusts, and those that are here
    List(look::ListArgs),
    /// Make a key in a directory of keys, trusted by no store yet
    New(look::NewArgs),
    /// Print the public half of a key, to give to whoever adds it
    Show(look::ShowArgs),
    /// Trust one more key
    Add(change::AddArgs),
    /// Trust a key no longer
    Remove(change::RemoveArgs),
    /// Replace keys by new ones, at once
    Rotate(change::RotateArgs),
    /// Set how many keys of a role must sign
    Threshold(change::ThresholdArgs),
}

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Who may sign what
    Root,
    /// Which images there are
    Targets,
    /// Which targets are current
    Snapshot,
    /// Which snapshot is current
    Timestamp,
}

impl From<Role> for RoleType {
    fn from(role: Role) -> Self {
        match role {
            Role::Root => Self::Root,
            Role::Targets => Self::Targets,
            Role::Snapshot => Self::Snapshot,
            Role::Timestamp => Self::Timestamp,
        }
    }
}

/// Looks at keys, or changes which are trusted.
///
/// # Errors
/// The keys or the store cannot be used.
pub async fn run(common: &Common, args: Args, ui: &Ui) -> anyhow::Result<()> {
    match args.command {
        Command::List(args) => look::list(common, args, ui).await,
        Command::New(args) => look::new(common, args, ui).await,
        Command::Show(args) => look::show(common, args).await,
        Command::Add(args) => change::add(common, args, ui).await,
        Command::Remove(args) => change::remove(common, args, ui).await,
        Command::Rotate(args) => change::rotate(common, args, ui).await,
        Command::Threshold(args) => change::threshold(common, args, ui).await,
    }
}
