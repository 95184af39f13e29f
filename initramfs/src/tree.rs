//! The file tree of an initramfs, in memory: sorted by path, every parent present.

use std::collections::BTreeMap;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its content.
        bytes: Vec<u8>,
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link to `target`.
    Symlink {
        /// What it points to.
        target: String,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// A path that cannot stand in a tree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not absolute, or with an empty, `.` or `..` part.
    #[error("`{0}` is not a plain absolute path")]
    Path(String),
    /// Two things want to be at the same place.
    #[error("`{0}` is in the initramfs twice")]
    Taken(String),
    /// The parent is no directory.
    #[error("`{0}` is no directory, so nothing can be put below it")]
    NoDirectory(String),
}

/// A file tree.
///
/// - Paths are relative, without a leading `/`, and plain: no empty, `.` or `..` part.
/// - The parent of every path is in the tree and is a directory.
/// - Parents come before their children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Returns the paths and nodes, parents first.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Returns what is at `path`.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.trim_start_matches('/'))
    }

    /// Puts a directory and its parents there; one that exists already is fine.
    ///
    /// # Errors
    /// Fails if the path is not plain, or goes through something that is no directory.
    pub fn add_directory(&mut self, path: &str) -> Result<(), TreeError> {
        let relative = plain(path)?;
        let ends = relative.match_indices('/').map(|(end, _)| end);
        for end in ends.chain([relative.len()]) {
            let parent = &relative[..end];
            match self.nodes.get(parent) {
                Some(Node::Directory) => {}
                Some(_) => return Err(TreeError::NoDirectory(format!("/{parent}"))),
                None => {
                    self.nodes.insert(parent.to_owned(), Node::Directory);
                }
            }
        }
        Ok(())
    }

    /// Puts `node` at `path`, and the parents that are missing.
    ///
    /// # Errors
    /// Fails if the path is not plain, is taken, or goes through something that is no directory.
    pub fn add(&mut self, path: &str, node: Node) -> Result<(), TreeError> {
        let relative = plain(path)?;
        if self.nodes.contains_key(relative) {
            return Err(TreeError::Taken(path.to_owned()));
        }
        if let Some((parent, _)) = relative.rsplit_once('/') {
            self.add_directory(&format!("/{parent}"))?;
        }
        self.nodes.insert(relative.to_owned(), node);
        Ok(())
    }

    /// Puts a regular file at `path`.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_file(
        &mut self,
        path: &str,
        bytes: impl Into<Vec<u8>>,
        mode: u32,
    ) -> Result<(), TreeError> {
        let bytes = bytes.into();
        self.add(path, Node::File { bytes, mode })
    }

    /// Puts a symbolic link at `path`.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_symlink(&mut self, path: &str, target: &str) -> Result<(), TreeError> {
        let target = target.to_owned();
        self.add(path, Node::Symlink { target })
    }
}

fn plain(path: &str) -> Result<&str, TreeError> {
    path.strip_prefix('/')
        .filter(|relative| {
            relative
                .split('/')
                .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
        })
        .ok_or_else(|| TreeError::Path(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_made_and_come_first() {
        let mut tree = Tree::default();
        tree.add_file("/a/b/c", "x", 0o644).unwrap();
        let paths: Vec<_> = tree.nodes().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
    }

    #[test]
    fn a_place_is_taken_once() {
        let mut tree = Tree::default();
        tree.add_file("/init", "x", 0o755).unwrap();
        let taken = Err(TreeError::Taken("/init".to_owned()));
        assert_eq!(tree.add_symlink("/init", "elsewhere"), taken);
    }

    #[test]
    fn nothing_goes_below_a_file() {
        let mut tree = Tree::default();
        tree.add_file("/a", "x", 0o644).unwrap();
        let refused = Err(TreeError::NoDirectory("/a".to_owned()));
        assert_eq!(tree.add_file("/a/b", "y", 0o644), refused);
    }

    #[test]
    fn odd_paths_are_refused() {
        for path in ["", "/", "a", "/a/", "//a", "/a/../b", "/./a", "/a\0b"] {
            let refused = Err(TreeError::Path(path.to_owned()));
            assert_eq!(Tree::default().add_directory(path), refused, "{path:?}");
        }
    }
}
