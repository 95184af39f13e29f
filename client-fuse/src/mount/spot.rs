//! The place of a mount: taken from it only as long as it is there.
//!
//! Somebody else may unmount it, or detach it while it is used, and mount something else at the same path. That is none of
//! ours to unmount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

const MOUNTS: &str = "/proc/self/mountinfo";

/// Names of the program that unmounts for who is not root.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Where a mount of ours is.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    path: PathBuf,
    /// What the kernel says of it; `None`, if that cannot be asked.
    entry: Option<Entry>,
}

/// A mount, as the kernel tells it from all others: its number and its device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: String,
    device: String,
}

/// What became of a mount that was to be unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is gone.
    Gone,
    /// It is used still, but is not at its place any more.
    Detached,
    /// It is where it was.
    There,
}

impl Spot {
    /// What was just mounted at `path`, which is absolute.
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            entry: seen_at(path).ok().flatten(),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts, or detaches what is in use.
    pub(crate) fn unmount(&self) -> Left {
        if self.is_left() {
            tracing::warn!(mountpoint = %self.path.display(), "it was detached by somebody else; serving until the last user closes (a second signal ends it now)");
            return Left::Detached;
        }
        let refused = match self.unmount_with(MntFlags::empty(), &["-u", "-q"]) {
            Ok(()) => return Left::Gone,
            Err(error) => error,
        };
        match self.unmount_with(MntFlags::MNT_DETACH, &["-u", "-q", "-z"]) {
            Ok(()) => {
                tracing::warn!(mountpoint = %self.path.display(), "still in use: detached, serving until the last user closes (a second signal ends it now)");
                Left::Detached
            }
            Err(error) => {
                tracing::error!(mountpoint = %self.path.display(), %refused, %error, "cannot unmount (a second signal ends it nevertheless)");
                Left::There
            }
        }
    }

    /// Whether it is seen at its place.
    pub(crate) fn is_there(&self) -> bool {
        self.entry.is_some() && seen_at(&self.path).is_ok_and(|now| now == self.entry)
    }

    /// Whether something else is at its place now, or nothing.
    fn is_left(&self) -> bool {
        self.entry.is_some() && seen_at(&self.path).is_ok_and(|now| now != self.entry)
    }

    fn unmount_with(&self, flags: MntFlags, arguments: &[&str]) -> io::Result<()> {
        match umount2(&self.path, flags) {
            Err(Errno::EPERM) => help(arguments, &self.path),
            outcome => Ok(outcome?),
        }
    }
}

/// The mount that is seen at `path`.
fn seen_at(path: &Path) -> io::Result<Option<Entry>> {
    let mounts = fs::read(MOUNTS)?;
    Ok(topmost(&String::from_utf8_lossy(&mounts), path))
}

/// Has the system's program do it, which may.
fn help(arguments: &[&str], path: &Path) -> io::Result<()> {
    for helper in HELPERS {
        let mut command = Command::new(helper);
        command.args(arguments).arg("--").arg(path);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => return Err(io::Error::other(format!("{helper} ended with {status}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EPERM.into())
}

/// The mount that is seen at `path`, of those in the text of `mountinfo` (proc_pid_mountinfo(5)): the last one there.
fn topmost(mounts: &str, path: &Path) -> Option<Entry> {
    let wanted = path.to_string_lossy();
    let entry = |line: &str| {
        let mut fields = line.split(' ');
        let (id, _parent, device) = (fields.next()?, fields.next()?, fields.next()?);
        let (_root, at) = (fields.next()?, fields.next()?);
        (unescaped(at) == wanted).then(|| Entry {
            id: id.to_owned(),
            device: device.to_owned(),
        })
    };
    mounts.lines().rev().find_map(entry)
}

/// Space, tab, line feed and backslash stand there as octal numbers.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n")];
    let plain = escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    plain.replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: &str = "\
22 28 0:21 / /proc rw,nosuid - proc proc rw
28 1 254:0 / / rw,relatime - ext4 /dev/root rw
36 28 0:45 / /mnt ro,nosuid - fuse.circular lab/debian:12 ro
40 28 0:50 / /with\\040space rw - tmpfs none rw
41 36 0:51 / /mnt rw - tmpfs none rw
";

    #[test]
    fn the_last_mount_at_a_path_is_seen() {
        let found = |path: &str| topmost(SOME, Path::new(path)).map(|entry| entry.id);
        assert_eq!(found("/mnt").as_deref(), Some("41"));
        assert_eq!(found("/with space").as_deref(), Some("40"));
        assert_eq!(found("/").as_deref(), Some("28"));
        assert_eq!(found("/mn"), None);
        assert_eq!(topmost("what is this", Path::new("/")), None);
    }

    #[test]
    fn what_is_not_there_any_more_is_let_alone() {
        let left = |id: &str| Spot {
            path: PathBuf::from("/proc"),
            entry: Some(Entry {
                id: id.to_owned(),
                device: "0:0".to_owned(),
            }),
        };
        assert!(left("0").is_left());
        assert_eq!(left("0").unmount(), Left::Detached);
        assert!(Path::new("/proc/self").exists());
        assert!(!Spot::of(Path::new("/proc")).is_left());
    }
}
