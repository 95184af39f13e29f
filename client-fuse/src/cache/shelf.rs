//! A map that forgets what was unused for longest when it holds too many bytes.

use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Values with a size each, bounded by the sum of the sizes.
pub struct Shelf<K: Hash + Eq, V> {
    bytes_max: usize,
    held: Mutex<Held<K, V>>,
}

struct Held<K: Hash + Eq, V> {
    values: LruCache<K, (V, usize)>,
    bytes: usize,
    dropped: Dropped,
}

/// What a shelf forgot to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// How many values.
    pub values: u64,
    /// Their sizes, added up.
    pub bytes: u64,
}

impl<K: Hash + Eq, V: Clone> Shelf<K, V> {
    /// An empty shelf for at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            held: Mutex::new(Held {
                values: LruCache::unbounded(),
                bytes: 0,
                dropped: Dropped::default(),
            }),
        }
    }

    /// The bound.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The value of `key`, now the most recently used one.
    #[must_use]
    pub fn find(&self, key: &K) -> Option<V> {
        self.held().values.get(key).map(|(value, _)| value.clone())
    }

    /// Whether `key` is here; does not count as use.
    #[must_use]
    pub fn holds(&self, key: &K) -> bool {
        self.held().values.contains(key)
    }

    /// Keeps a value of `bytes` bytes and returns whether `key` was new.
    pub fn keep(&self, key: K, value: V, bytes: usize) -> bool {
        let mut held = self.held();
        held.bytes += bytes;
        let replaced = held.values.put(key, (value, bytes));
        held.bytes -= replaced.as_ref().map_or(0, |(_, bytes)| *bytes);
        while held.bytes > self.bytes_max {
            let Some((_, (_, bytes))) = held.values.pop_lru() else {
                break;
            };
            held.bytes -= bytes;
            held.dropped.values += 1;
            held.dropped.bytes += bytes as u64;
        }
        replaced.is_none()
    }

    /// The sum of the sizes now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held().bytes
    }

    /// What was forgotten so far to make room.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.held().dropped
    }

    fn held(&self) -> MutexGuard<'_, Held<K, V>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq, V> fmt::Debug for Shelf<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf")
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_unused_for_longest_goes_first() {
        let shelf = Shelf::new(2);
        assert!(shelf.keep('a', 1, 1));
        shelf.keep('b', 2, 1);
        assert_eq!(shelf.find(&'a'), Some(1));
        shelf.keep('c', 3, 1);
        assert!(shelf.holds(&'a') && shelf.holds(&'c') && !shelf.holds(&'b'));
        let dropped = Dropped {
            values: 1,
            bytes: 1,
        };
        assert_eq!((shelf.bytes(), shelf.dropped()), (2, dropped));
    }

    #[test]
    fn what_is_kept_twice_counts_once() {
        let shelf = Shelf::new(1);
        assert!(shelf.keep('a', 1, 1));
        assert!(!shelf.keep('a', 2, 1));
        assert_eq!(shelf.find(&'a'), Some(2));
    }

    proptest! {
        /// Whatever is kept, the bound holds, and what is found is what was kept last.
        #[test]
        fn the_bound_holds(kept in vec((0..20_u8, any::<u16>(), 0..9_usize), 1..90), bytes_max in 0..30_usize) {
            let shelf = Shelf::new(bytes_max);
            for (key, value, bytes) in kept {
                shelf.keep(key, value, bytes);
                prop_assert!(shelf.find(&key).is_none_or(|found| found == value));
                let held = shelf.held();
                let sum: usize = held.values.iter().map(|(_, (_, bytes))| bytes).sum();
                prop_assert_eq!(sum, held.bytes);
                prop_assert!(sum <= bytes_max);
            }
        }
    }
}
