//! How the command line is parsed: with an image, or as `circular-mount tree URL MOUNTPOINT` without one.

use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::Error;
use clap::{Command, CommandFactory, FromArgMatches};

use super::Args;

/// Parses what was typed, with or without an image.
pub(super) fn parse(mut typed: Vec<OsString>) -> Result<Args, Error> {
    let command = overriding(Args::command(), &typed);
    if typed.get(1).is_some_and(|word| word == "--fetch") {
        let command = super::fetching(command);
        return Args::from_arg_matches(&command.try_get_matches_from(typed)?);
    }
    if typed.get(1).is_none_or(|word| word != "tree") {
        return Args::from_arg_matches(&command.try_get_matches_from(typed)?);
    }
    typed.remove(1);
    let command = self::command(command);
    let mut args = Args::from_arg_matches(&command.try_get_matches_from(typed)?)?;
    let of_one = args.overlay.is_some()
        || args.nbd.is_some()
        || args.record.is_some()
        || args.fetch
        || args.pin
        || args.metrics.is_some()
        || args.supervise.is_some()
        || args.initramfs;
    if of_one {
        let message = "--overlay, --nbd, --fetch, --pin, --record, --metrics, --supervise and --initramfs are about one disk: mount that, by circular-mount URL NAME:TAG MOUNTPOINT\n";
        return Err(Error::raw(
            clap::error::ErrorKind::ArgumentConflict,
            message,
        ));
    }
    args.all = true;
    Ok(args)
}

/// Arguments that are about one disk.
const OF_ONE: [&str; 12] = [
    "overlay",
    "nbd",
    "record",
    "record_to",
    "record_quiet",
    "fetch",
    "pin",
    "metrics",
    "supervise",
    "initramfs",
    "keep_boot_pack",
    "look_every",
];

/// The command line of a mount, for a tree.
pub(super) fn command(mut command: Command) -> Command {
    for argument in OF_ONE {
        command = command.mut_arg(argument, |argument| argument.hide(true));
    }
    // Any image: nobody reads it. As an option, it takes no place among the words.
    command
        .bin_name("circular-mount tree")
        .about("Mount all images of a store, as NAME/TAG/disk.raw")
        .after_help("")
        .mut_arg("mountpoint", |mountpoint| {
            mountpoint
                .help("Empty directory to mount on, in which the images appear")
                .value_name("DIRECTORY")
        })
        .mut_arg("image", |image| {
            image
                .long("image")
                .hide(true)
                .required(false)
                .default_value("all")
        })
}

/// What is typed goes before what the environment says, also where it says that there is to be none.
fn overriding(mut command: Command, typed: &[OsString]) -> Command {
    for (word, argument) in [
        ("--no-cache", "cache"),
        ("--no-state", "state"),
        ("--trust-on-first-use", "root"),
    ] {
        if typed.iter().any(|typed| typed == word) {
            command = command.mut_arg(argument, |argument| argument.env(Resettable::Reset));
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Args, Error> {
        parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn a_tree_has_no_image() {
        let args = parsed(&["circular-mount", "tree", "--no-cache", "http://h/", "/mnt"]).unwrap();
        assert!(args.all && args.no_cache);
        assert_eq!(args.mountpoint.unwrap().to_str(), Some("/mnt"));
        assert!(parsed(&["circular-mount", "tree", "http://h/", "debian", "/mnt"]).is_err());
        assert!(parsed(&["circular-mount", "tree", "http://h/"]).is_err());
        let overlay = [
            "circular-mount",
            "tree",
            "--overlay",
            "o",
            "http://h/",
            "/mnt",
        ];
        assert!(parsed(&overlay).is_err());
        let one = parsed(&["circular-mount", "http://h/", "debian", "/mnt"]).unwrap();
        assert!(!one.all);
    }
}
