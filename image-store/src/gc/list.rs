//! The list of what waits to be deleted: paths, and when each was first found unreferenced.
//!
//! It is not signed and need not be believed: only what is unreferenced is ever deleted, so a
//! wrong list can at most make that happen sooner or later. One that cannot be read is begun anew.
//! Layout: docs/FORMAT.md, "Documents".

use std::collections::BTreeMap;
use std::time::Duration;

use image_format::DecodeError;
use serde::{Deserialize, Serialize};

use crate::store::{Store, StoreError};

/// Where the list lies in a store. Servers show no file that begins with a dot.
pub const LIST_PATH: &str = ".gc.json";

/// The longest list in bytes: [`WAITING_MAX`] paths of at most 160 bytes, and their times.
pub const LIST_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The most files that wait at once: what is beyond begins to wait when there is room.
pub const WAITING_MAX: usize = 100_000;

/// What waits to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingList {
    /// Version of this format; 1.
    pub format: u32,
    /// Paths in the store, each with the time when it was first found to be unreferenced: seconds
    /// since 1970-01-01 00:00 UTC.
    pub waiting: BTreeMap<String, u64>,
}

impl Default for WaitingList {
    fn default() -> Self {
        Self {
            format: 1,
            waiting: BTreeMap::new(),
        }
    }
}

/// What follows from a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// What waits on.
    pub list: WaitingList,
    /// What has waited long enough.
    pub due: Vec<String>,
}

impl WaitingList {
    /// Decodes a list.
    ///
    /// # Errors
    /// The bytes are no list.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "list of files that wait to be deleted";
        let list: Self = image_format::codec::json(WHAT, bytes, LIST_BYTES_MAX)?;
        match list.format {
            1 => Ok(list),
            version => Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(version),
            }),
        }
    }

    /// Encodes the list.
    pub fn encode(&self) -> Vec<u8> {
        image_format::codec::to_json(self)
    }

    /// Decides what is due at `now` (seconds since 1970) and what waits on, given what is
    /// unreferenced at this moment. What is not any more leaves the list.
    pub fn next<'a>(
        &self,
        unreferenced: impl Iterator<Item = &'a str>,
        now: u64,
        grace: Duration,
    ) -> Next {
        let mut list = Self::default();
        let (mut due, mut fresh) = (Vec::new(), Vec::new());
        for path in unreferenced {
            // A clock that was wrong once does not make a file wait for ever.
            let since = self.waiting.get(path).map(|since| now.min(*since));
            if now.saturating_sub(since.unwrap_or(now)) >= grace.as_secs() {
                due.push(path.to_owned());
            } else if let Some(since) = since {
                list.waiting.insert(path.to_owned(), since);
            } else {
                fresh.push(path);
            }
        }
        let room = WAITING_MAX.saturating_sub(list.waiting.len());
        let fresh = fresh.into_iter().take(room);
        list.waiting
            .extend(fresh.map(|path| (path.to_owned(), now)));
        Next { list, due }
    }
}

/// Reads the list of a store; an empty one if there is none, or none that can be used.
///
/// # Errors
/// The back end cannot read it.
pub(super) async fn read(store: &Store) -> Result<WaitingList, StoreError> {
    let bytes = match store.file_at_most(LIST_PATH, LIST_BYTES_MAX).await {
        Err(StoreError::Missing { .. }) => return Ok(WaitingList::default()),
        Err(error) if error.is_damage() => return Ok(begun_anew(&error)),
        bytes => bytes?,
    };
    Ok(WaitingList::decode(&bytes).unwrap_or_else(|error| begun_anew(&error)))
}

fn begun_anew(error: &dyn std::error::Error) -> WaitingList {
    tracing::warn!(%error, "the list of what waits to be deleted is begun anew");
    WaitingList::default()
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(100);

    fn list(waiting: &[(&str, u64)]) -> WaitingList {
        let waiting = waiting
            .iter()
            .map(|(path, since)| ((*path).to_owned(), *since));
        WaitingList {
            format: 1,
            waiting: waiting.collect(),
        }
    }

    #[test]
    fn what_waited_long_enough_is_due_and_what_is_needed_again_leaves() {
        let old = list(&[("due", 100), ("young", 150), ("needed", 1), ("gone", 1)]);
        let next = old.next(["due", "new", "young"].into_iter(), 200, GRACE);
        assert_eq!(next.due, ["due"]);
        assert_eq!(next.list, list(&[("new", 200), ("young", 150)]));
    }

    #[test]
    fn a_time_in_the_future_is_taken_for_now() {
        let next = list(&[("a", 5_000)]).next(["a"].into_iter(), 200, GRACE);
        assert_eq!(next.list, list(&[("a", 200)]));
    }

    #[test]
    fn the_list_has_a_bound_and_those_that_wait_keep_their_place() {
        let paths: Vec<String> = (0..=WAITING_MAX).map(|number| number.to_string()).collect();
        let old = list(&[("9", 150)]);
        let next = old.next(paths.iter().map(String::as_str), 200, GRACE);
        assert_eq!(next.list.waiting.len(), WAITING_MAX);
        assert_eq!(next.list.waiting["9"], 150);
        assert!(next.due.is_empty());
    }

    proptest! {
        /// Nothing is due that is referenced, or was not listed for the whole grace period.
        #[test]
        fn nothing_is_due_too_early(
            old in btree_map("[a-e]", 0..300_u64, 0..5),
            unreferenced in btree_set("[a-e]", 0..5),
            now in 0..400_u64,
            grace in 1..200_u64,
        ) {
            let old = WaitingList { format: 1, waiting: old };
            let next = old.next(unreferenced.iter().map(String::as_str), now, Duration::from_secs(grace));
            for path in &next.due {
                prop_assert!(unreferenced.contains(path) && old.waiting[path] + grace <= now);
            }
            for path in &unreferenced {
                prop_assert!(next.due.contains(path) != next.list.waiting.contains_key(path));
            }
            prop_assert_eq!(WaitingList::decode(&next.list.encode()).unwrap(), next.list);
        }
    }
}
