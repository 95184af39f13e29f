//! Which segments of cached disks go first when room is needed: pure.
//!
//! A segment is 1 MiB of a disk. What was unused for longest goes first, in whatever file it is. The
//! boot set is worth more than the rest: as long as it is less than half of the bound, it goes last.

use std::io;

/// Bytes of a segment: holes of less are not worth a system call and a scattered file.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// A segment that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<K> {
    /// Which one.
    pub key: K,
    /// When it was last used: seconds since 1970, as far as anybody knows.
    pub used_at: u32,
    /// Whether a boot reads it.
    pub boot: bool,
}

/// The order in which `candidates` go, for a cache of `bytes_max` bytes. Those of equal age keep
/// their order.
#[must_use]
pub fn order<K>(mut candidates: Vec<Candidate<K>>, bytes_max: u64) -> Vec<Candidate<K>> {
    candidates.sort_by_key(|candidate| candidate.used_at);
    let shielded_max = usize::try_from(bytes_max / 2 / SEGMENT_BYTES).unwrap_or(usize::MAX);
    let boot = candidates.iter().filter(|candidate| candidate.boot).count();
    // Of a boot set that is too large, what was unused for longest is worth no more than the rest.
    let mut bare = boot.saturating_sub(shielded_max);
    let shielded = |candidate: &Candidate<K>| {
        let shielded = candidate.boot && bare == 0;
        bare = bare.saturating_sub(usize::from(candidate.boot));
        shielded
    };
    let (last, mut order): (Vec<_>, Vec<_>) = candidates.into_iter().partition(shielded);
    order.extend(last);
    order
}

/// Lets candidates go in this order until at least `need` bytes are free; `evict` says how many each
/// gave. Returns how many were given.
///
/// # Errors
///
/// The first one of `evict`.
pub fn evict<K>(
    order: &[Candidate<K>],
    need: u64,
    mut evict: impl FnMut(&K) -> io::Result<u64>,
) -> io::Result<u64> {
    let mut freed = 0;
    for candidate in order {
        if freed >= need {
            break;
        }
        freed += evict(&candidate.key)?;
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = SEGMENT_BYTES;

    fn candidate(key: u32, used_at: u32, boot: bool) -> Candidate<u32> {
        Candidate { key, used_at, boot }
    }

    fn keys(order: &[Candidate<u32>]) -> Vec<u32> {
        order.iter().map(|candidate| candidate.key).collect()
    }

    #[test]
    fn the_oldest_goes_first_and_the_boot_set_last() {
        let all = vec![
            candidate(0, 9, false),
            candidate(1, 1, true),
            candidate(2, 5, false),
        ];
        assert_eq!(keys(&order(all, 100 * MIB)), [2, 0, 1]);
    }

    #[test]
    fn a_boot_set_of_more_than_half_the_bound_is_shielded_up_to_that() {
        let all = (0..6)
            .map(|key| candidate(key, key, key < 5))
            .collect::<Vec<_>>();
        // Two are shielded: the newest ones of the boot set.
        assert_eq!(keys(&order(all, 4 * MIB)), [0, 1, 2, 5, 3, 4]);
    }

    /// A cache of segments: when each was used last, whether it is of the boot set, its bytes.
    type Model = HashMap<u32, (u32, bool, u64)>;

    proptest! {
        /// Through any use, the bound is never exceeded, nothing goes without need, and what goes is
        /// older than what stays of its kind.
        #[test]
        fn the_bound_holds_and_what_is_used_stays(
            uses in vec((0..60_u32, 1..=MIB, prop::bool::weighted(0.2)), 1..80),
            bound in (2 * MIB)..(20 * MIB),
        ) {
            let mut held = Model::new();
            for (now, (segment, bytes, boot)) in (1..).zip(uses) {
                if let Some(known) = held.get_mut(&segment) {
                    known.0 = now;
                    continue;
                }
                let used: u64 = held.values().map(|(_, _, bytes)| bytes).sum();
                let need = (used + bytes).saturating_sub(bound);
                let candidates = held.iter().map(|(key, (at, boot, _))| candidate(*key, *at, *boot)).collect();
                let order = order(candidates, bound);
                let before = held.clone();
                let freed = evict(&order, need, |key| Ok(held.remove(key).map_or(0, |(_, _, bytes)| bytes))).unwrap();
                prop_assert!(freed >= need);
                prop_assert_eq!(held.len() == before.len(), need == 0);
                let stays = order.iter().filter(|it| held.contains_key(&it.key));
                let goes = || order.iter().filter(|it| !held.contains_key(&it.key));
                for stay in stays {
                    for gone in goes().filter(|gone| gone.boot == stay.boot) {
                        prop_assert!(gone.used_at <= stay.used_at);
                    }
                }
                held.insert(segment, (now, boot, bytes));
                prop_assert!(held.values().map(|(_, _, bytes)| bytes).sum::<u64>() <= bound);
            }
        }
    }
}
