//! Finds the files of a store that nothing refers to. Only a file whose name says what it is can
//! be deleted: an operator's own files beside them are left alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use image_format::Digest;
use image_format::boot_script::MENU_PATH;
use image_format::catalogue::target_path;
use image_format::marker::MARKER_PATH;
use image_format::minimum::MINIMUM_PATH;

use crate::gc::GcError;
use crate::gc::list::LIST_PATH;
use crate::gc::mark::Marks;
use crate::store::Store;
use crate::trust::{METADATA_DIRECTORY, TARGETS_DIRECTORY, TIMESTAMP_PATH};

/// Where scripts and hints lie, one of each for a tag: `NAME=TAG.ipxe`.
const BOOT_DIRECTORY: &str = "boot";

/// What `circular export` calls a file that is not complete.
const EXPORT_PREFIX: &str = ".circular-export-";

/// How deep the directories of a store are nested: `objects/ab/…`, `boot/lab/…`.
const DEPTH_MAX: usize = 4;

/// What a file is that may be deleted when nothing refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// An object.
    Object(Digest),
    /// A catalogue, or a list of chunk indexes.
    Target,
    /// Numbered metadata other than a root.
    Metadata,
    /// Part of a file whose writer was killed, or is writing it now.
    Staging,
}

impl FileKind {
    /// Tells what the file at `path` in a store is; `None` for what is never deleted.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
        if is_staging(path) || directory.is_empty() && file.starts_with(EXPORT_PREFIX) {
            return Some(Self::Staging);
        }
        Self::of_complete(path)
    }

    /// The same of a file that is not cut short.
    fn of_complete(path: &str) -> Option<Self> {
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
        match directory {
            METADATA_DIRECTORY => is_numbered(file).then_some(Self::Metadata),
            TARGETS_DIRECTORY => {
                let (digest, name) = file.split_once('.')?;
                let same = target_path(name, &digest.parse().ok()?) == path;
                same.then_some(Self::Target)
            }
            _ => {
                let digest: Digest = file.parse().ok()?;
                (digest.object_path() == path).then_some(Self::Object(digest))
            }
        }
    }
}

/// Tells whether this is `PATH#NUMBER` of a file that a store has: how `object_store` calls one that is not complete.
fn is_staging(path: &str) -> bool {
    path.rsplit_once('#')
        .is_some_and(|(complete, number)| is_number(number) && is_written(complete))
}

/// Tells whether a publisher writes a file at `path`.
fn is_written(path: &str) -> bool {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let is_of_tag = || {
        let name = file
            .strip_suffix(".ipxe")
            .or_else(|| file.strip_suffix(".json"));
        directory == BOOT_DIRECTORY && name.is_some_and(|name| name.contains('='))
    };
    let is_root = || {
        let number = file.strip_suffix(".root.json");
        directory == METADATA_DIRECTORY && number.is_some_and(is_number)
    };
    FileKind::of_complete(path).is_some()
        || [
            MARKER_PATH,
            MENU_PATH,
            MINIMUM_PATH,
            TIMESTAMP_PATH,
            LIST_PATH,
        ]
        .contains(&path)
        || is_root()
        || is_of_tag()
}

/// Tells whether this is `N.snapshot.json` or `N.targets.json`.
fn is_numbered(file: &str) -> bool {
    ["snapshot", "targets"].iter().any(|role| {
        file.strip_suffix(&format!(".{role}.json"))
            .is_some_and(is_number)
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A file that nothing refers to.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreFile {
    pub(super) kind: FileKind,
    pub(super) bytes: u64,
}

/// Lists the files of the store that are not marked, by their paths; gives the marks back.
///
/// # Errors
/// A directory cannot be read.
pub(super) async fn unreferenced(
    store: &Store,
    marks: Marks,
) -> Result<(BTreeMap<String, StoreFile>, Marks), GcError> {
    let root = store.root().to_owned();
    let walked = tokio::task::spawn_blocking(move || {
        let mut found = BTreeMap::new();
        walk(&root, "", 0, &mut |path, bytes| {
            if let Some(kind) = FileKind::of(&path)
                && !marks.hold(&path, kind)
            {
                found.insert(path, StoreFile { kind, bytes });
            }
        })?;
        Ok((found, marks))
    });
    walked
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
        .map_err(|source| GcError::Files { source })
}

/// Tells of every file below a directory. Links are not followed, but for the directories at the
/// top: an operator may keep objects on another disk.
fn walk(
    root: &Path,
    directory: &str,
    depth: usize,
    found: &mut impl FnMut(String, u64),
) -> io::Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = match directory {
            "" => name,
            _ => format!("{directory}/{name}"),
        };
        let meta = match depth {
            0 => fs::metadata(entry.path()),
            _ => entry.metadata(),
        };
        let meta = match meta {
            // Gone since: publishers rename their files into place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if meta.is_file() {
            found(path, meta.len());
        } else if meta.is_dir()
            && depth < DEPTH_MAX
            && !path.starts_with('.')
            && path != "lost+found"
        {
            walk(root, &path, depth + 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_store_by_name_can_be_deleted() {
        let hex = Digest::of(b"x").to_string();
        let object = format!("objects/{}/{hex}", &hex[..2]);
        for (path, kind) in [
            (object.clone(), Some(FileKind::Object(Digest::of(b"x")))),
            (format!("{object}#12"), Some(FileKind::Staging)),
            (format!("{object}#a"), None),
            (format!("objects/00/{hex}"), None),
            (format!("objects/{hex}"), None),
            (format!("{object}.bak"), None),
            (format!("targets/{hex}.lab,debian"), Some(FileKind::Target)),
            (format!("targets/{hex}"), None),
            ("targets/notes.txt".to_owned(), None),
            (
                "metadata/12.targets.json".to_owned(),
                Some(FileKind::Metadata),
            ),
            (
                "metadata/3.snapshot.json".to_owned(),
                Some(FileKind::Metadata),
            ),
            ("metadata/1.root.json".to_owned(), None),
            ("metadata/timestamp.json".to_owned(), None),
            (
                "metadata/timestamp.json#1".to_owned(),
                Some(FileKind::Staging),
            ),
            ("metadata/x.targets.json".to_owned(), None),
            ("boot/mine.ipxe".to_owned(), None),
            ("boot.ipxe#3".to_owned(), Some(FileKind::Staging)),
            ("boot/minimum.img#3".to_owned(), Some(FileKind::Staging)),
            (
                "boot/lab,debian=12.json#3".to_owned(),
                Some(FileKind::Staging),
            ),
            ("metadata/2.root.json#1".to_owned(), Some(FileKind::Staging)),
            (
                format!("targets/{hex}.lab,debian#4"),
                Some(FileKind::Staging),
            ),
            ("boot/mine.ipxe#3".to_owned(), None),
            ("mine/notes#2".to_owned(), None),
            ("notes#2".to_owned(), None),
            ("targets/notes#2".to_owned(), None),
            ("circular.json".to_owned(), None),
            (".lock".to_owned(), None),
            (".gc.json".to_owned(), None),
            (".circular-export-aB3".to_owned(), Some(FileKind::Staging)),
            ("mine/.circular-export-aB3".to_owned(), None),
        ] {
            assert_eq!(FileKind::of(&path), kind, "{path}");
        }
    }
}
