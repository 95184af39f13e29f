//! Inode numbers: given when the kernel is told of a thing, taken back when it has forgotten it. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::images::Pinned;
use crate::fs::Node;

/// The number of the mount point, as FUSE wants it.
pub const ROOT: u64 = 1;

/// Something in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Spot {
    /// A directory, by its path from the mount point.
    Directory(Arc<str>),
    /// A file of an image, or its `.circular`.
    File(Arc<Pinned>, Node),
}

/// What the kernel knows.
#[derive(Debug)]
pub struct Numbers {
    numbers: HashMap<Spot, u64>,
    known: HashMap<u64, (Spot, u64)>,
    next: u64,
}

impl Numbers {
    /// Knows the mount point, for ever.
    #[must_use]
    pub fn new() -> Self {
        let root = Spot::Directory("".into());
        Self {
            numbers: HashMap::from([(root.clone(), ROOT)]),
            known: HashMap::from([(ROOT, (root, 1))]),
            next: ROOT + 1,
        }
    }

    /// The number of `spot`, of which the kernel is told once more. No number is given twice.
    pub fn note(&mut self, spot: &Spot) -> u64 {
        if let Some(number) = self.numbers.get(spot) {
            if let Some((_, times)) = self.known.get_mut(number) {
                *times += 1;
            }
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(spot.clone(), number);
        self.known.insert(number, (spot.clone(), 1));
        number
    }

    /// What has this number.
    #[must_use]
    pub fn find(&self, number: u64) -> Option<Spot> {
        self.known.get(&number).map(|(spot, _)| spot.clone())
    }

    /// The kernel forgot `times` of the times that it was told.
    pub fn forget(&mut self, number: u64, times: u64) {
        let Some((_, known)) = self.known.get_mut(&number).filter(|_| number != ROOT) else {
            return;
        };
        *known = known.saturating_sub(times);
        if *known == 0
            && let Some((spot, _)) = self.known.remove(&number)
        {
            self.numbers.remove(&spot);
        }
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_gone_and_its_number_is_never_given_again() {
        let mut numbers = Numbers::new();
        let spot = |path: &str| Spot::Directory(path.into());
        let first = numbers.note(&spot("a"));
        assert_eq!(numbers.note(&spot("a")), first);
        numbers.forget(first, 1);
        assert_eq!(numbers.find(first), Some(spot("a")));
        numbers.forget(first, 1);
        assert_eq!(numbers.find(first), None);
        assert_ne!(numbers.note(&spot("a")), first);
        numbers.forget(ROOT, u64::MAX);
        assert_eq!(numbers.find(ROOT), Some(spot("")));
    }
}
