//! What lies where on a disk. Pure.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// What bytes of a disk belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Owner {
    /// The content of a file, by its path.
    File(String),
    /// The names in a directory, by its path.
    Directory(String),
    /// The list of a file's places on the disk, by its path.
    Extents(String),
    /// Extended attributes of a file, by its path.
    Attributes(String),
    /// What the file system keeps for itself.
    Metadata(String),
    /// Nothing that is known.
    Unknown,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(path),
            Self::Directory(path) => write!(f, "directory {path}"),
            Self::Extents(path) => write!(f, "extents of {path}"),
            Self::Attributes(path) => write!(f, "attributes of {path}"),
            Self::Metadata(what) => write!(f, "({what})"),
            Self::Unknown => f.write_str("(no file)"),
        }
    }
}

/// What lies where. Bytes that have two owners are those of the one that begins first.
#[derive(Clone, Debug, Default)]
pub struct DiskMap {
    /// Sorted, and none overlaps the next.
    spans: Vec<(Range<u64>, Owner)>,
}

impl DiskMap {
    /// Makes a map of byte ranges of the disk.
    pub fn new(mut spans: Vec<(Range<u64>, Owner)>) -> Self {
        spans.retain(|(range, _)| !range.is_empty());
        spans.sort_by_key(|(range, _)| range.start);
        let mut end = 0;
        for (range, _) in &mut spans {
            range.start = range.start.max(end).min(range.end.max(end));
            end = end.max(range.end);
        }
        spans.retain(|(range, _)| !range.is_empty());
        Self { spans }
    }

    /// Returns the owners of `range`, each once with the number of its bytes there, most bytes first.
    pub fn owners(&self, range: &Range<u64>) -> Vec<(&Owner, u64)> {
        let from = self
            .spans
            .partition_point(|(span, _)| span.end <= range.start);
        let mut owners: Vec<(&Owner, u64)> = Vec::new();
        for (span, owner) in &self.spans[from..] {
            if span.start >= range.end || range.is_empty() {
                break;
            }
            let bytes = span.end.min(range.end) - span.start.max(range.start);
            match owners.iter_mut().find(|(known, _)| *known == owner) {
                Some((_, sum)) => *sum += bytes,
                None => owners.push((owner, bytes)),
            }
        }
        owners.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        owners
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn owner(number: usize) -> Owner {
        Owner::File(format!("/{number}"))
    }

    proptest! {
        /// Every byte that somebody owns is counted once, for one of those who own it.
        #[test]
        fn owners_are_those_of_the_bytes(
            spans in vec((0..200_u64, 0..30_u64), 0..20), from in 0..220_u64, length in 0..60_u64,
        ) {
            let spans: Vec<_> = spans.iter().enumerate()
                .map(|(number, (start, length))| (*start..start + length, owner(number)))
                .collect();
            let map = DiskMap::new(spans.clone());
            let range = from..from + length;
            let owners = map.owners(&range);
            let owned = range.clone().filter(|at| spans.iter().any(|(span, _)| span.contains(at)));
            prop_assert_eq!(owners.iter().map(|(_, bytes)| bytes).sum::<u64>(), owned.count() as u64);
            for (owner, bytes) in owners {
                let (span, _) = spans.iter().find(|(_, it)| it == owner).unwrap();
                prop_assert!(bytes > 0 && span.start < range.end && range.start < span.end);
            }
        }
    }

    #[test]
    fn the_one_with_most_bytes_comes_first() {
        let map = DiskMap::new(vec![
            (0..10, owner(0)),
            (10..40, owner(1)),
            (50..55, owner(0)),
        ]);
        assert_eq!(map.owners(&(5..60)), [(&owner(1), 30), (&owner(0), 10)]);
        assert_eq!(map.owners(&(40..50)), []);
    }
}
