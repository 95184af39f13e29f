//! The least versions of signed metadata that a machine without a memory takes.
//!
//! A machine that boots from the network remembers nothing from one boot to the next, so whoever
//! starts it says what there was when that was written: a document in a tiny initrd beside the boot
//! scripts, written anew with each change of the metadata.
//!
//! Versions count for as long as the keys that signed them. A thief who used up the numbers is shut
//! out by a new root with other keys, under which they may begin low again (TUF specification 1.0,
//! 5.3.11): then a minimum from before says no more than that the root may not be older. So that a
//! reader can tell, the minimum names the keys.

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::digest::Digest;

/// Where the initrd with the minimum lies in a store, beside the boot scripts.
pub const MINIMUM_PATH: &str = "boot/minimum.img";

/// Where the minimum lies in a machine that was started with that initrd.
pub const MINIMUM_IN_GUEST: &str = "/etc/circular/minimum.json";

/// The longest minimum, in bytes.
pub const MINIMUM_BYTES_MAX: usize = 4096;

/// A clock that shows less was never set: this program is not as old as that. 2026-11-01 00:00 UTC,
/// in seconds since 1970.
pub const CLOCK_FLOOR: i64 = 1_793_491_200;

const WHAT: &str = "minimum of versions";

/// The least version of each role, as JSON: `{"root":1,"timestamp":7,"snapshot":7,"targets":7}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minimum {
    /// Least version of the root, whatever its keys.
    pub root: u64,
    /// Least version of the timestamp.
    pub timestamp: u64,
    /// Least version of the snapshot.
    pub snapshot: u64,
    /// Least version of the targets.
    pub targets: u64,
    /// The keys that the last three belong to, see [`keys`]; if not said, they hold under any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Digest>,
    /// When this was written: seconds since 1970-01-01 00:00 UTC. For machines without a clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<i64>,
}

/// What a store offers, as far as a minimum is held against it. All of it is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Version of the root.
    pub root: u64,
    /// Version of the timestamp.
    pub timestamp: u64,
    /// Version of the snapshot.
    pub snapshot: u64,
    /// Version of the targets.
    pub targets: u64,
    /// The keys that the root names, see [`keys`].
    pub keys: Digest,
}

/// How far a minimum reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// No role is below it.
    All,
    /// The root is newer and names other keys: the other versions may have begun anew.
    RootOnly,
}

/// A role that is below the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// Which one.
    pub role: &'static str,
    /// The version that is offered.
    pub offered: u64,
    /// The version that there must be at least.
    pub minimum: u64,
}

impl Minimum {
    /// Decodes a minimum.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::json(WHAT, bytes, MINIMUM_BYTES_MAX)
    }

    /// Encodes the minimum.
    pub fn encode(&self) -> Vec<u8> {
        codec::to_json(self)
    }

    /// Holds what a store offers against the minimum.
    ///
    /// # Errors
    /// A role is below it.
    pub fn judge(&self, offered: &Offered) -> Result<Reach, Below> {
        let at_least = |role, offered, minimum| match offered < minimum {
            true => Err(Below {
                role,
                offered,
                minimum,
            }),
            false => Ok(()),
        };
        at_least("root", offered.root, self.root)?;
        let other_keys = self.keys.is_some_and(|keys| keys != offered.keys);
        if other_keys && offered.root > self.root {
            return Ok(Reach::RootOnly);
        }
        at_least("timestamp", offered.timestamp, self.timestamp)?;
        at_least("snapshot", offered.snapshot, self.snapshot)?;
        at_least("targets", offered.targets, self.targets)?;
        Ok(Reach::All)
    }
}

/// Names the keys of timestamp and snapshot, given the TUF identifier of each: the digest of lines
/// like `timestamp <hex>` and `snapshot <hex>`, sorted, each with a line end.
pub fn keys<Id: AsRef<[u8]>>(timestamp: &[Id], snapshot: &[Id]) -> Digest {
    let line = |role: &str, id: &Id| {
        let hex: String = id.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("{role} {hex}\n")
    };
    let timestamp = timestamp.iter().map(|id| line("timestamp", id));
    let mut lines: Vec<_> = timestamp
        .chain(snapshot.iter().map(|id| line("snapshot", id)))
        .collect();
    lines.sort();
    Digest::of(lines.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small numbers, so that all relations come up.
    fn versions() -> impl Strategy<Value = [u64; 4]> {
        prop::array::uniform4(1..4_u64)
    }

    fn minimum([root, timestamp, snapshot, targets]: [u64; 4], keys: Option<u8>) -> Minimum {
        Minimum {
            root,
            timestamp,
            snapshot,
            targets,
            keys: keys.map(|number| super::keys(&[[number]], &[[0]])),
            written: None,
        }
    }

    fn offered([root, timestamp, snapshot, targets]: [u64; 4], keys: u8) -> Offered {
        Offered {
            root,
            timestamp,
            snapshot,
            targets,
            keys: super::keys(&[[keys]], &[[0]]),
        }
    }

    proptest! {
        /// An older root is refused under any keys; a lower number is, unless a newer root named others.
        #[test]
        fn nothing_older_passes_but_what_new_keys_began_anew(
            (least, least_keys) in (versions(), prop::option::of(0..2_u8)),
            (have, have_keys) in (versions(), 0..2_u8),
        ) {
            let judged = minimum(least, least_keys).judge(&offered(have, have_keys));
            let is_below = |role: usize| have[role] < least[role];
            let anew = have[0] > least[0] && least_keys.is_some_and(|keys| keys != have_keys);
            let below = is_below(0) || (!anew && (1..4).any(is_below));
            prop_assert_eq!(judged.is_err(), below);
            prop_assert_eq!(judged == Ok(Reach::RootOnly), anew && !below);
            if let Err(Below { offered, minimum, .. }) = judged {
                prop_assert!(offered < minimum);
            }
        }

        /// What a store offers meets the minimum that was written of it, and so does all that follows.
        #[test]
        fn no_store_is_locked_out_by_a_minimum_of_its_own_past(
            (past, keys) in (versions(), 0..2_u8), steps in versions(), same_keys in any::<bool>(),
        ) {
            let mut now = [0, 1, 2, 3].map(|role| past[role] + steps[role] - 1);
            let mut keys_now = keys;
            if !same_keys {
                // Who changes the keys makes a root, and may begin to count anew.
                (now[0], keys_now) = (past[0] + 1, keys + 1);
                now[1..].copy_from_slice(&[1, 1, 1]);
            }
            prop_assert!(minimum(past, Some(keys)).judge(&offered(now, keys_now)).is_ok());
        }
    }

    #[test]
    fn a_minimum_reads_back_and_two_fields_are_optional() {
        let full = Minimum {
            written: Some(CLOCK_FLOOR),
            ..minimum([1, 7, 8, 9], Some(1))
        };
        assert_eq!(Minimum::decode(&full.encode()).unwrap(), full);
        let short = br#"{"root":1,"timestamp":7,"snapshot":8,"targets":9,"more":0}"#;
        assert_eq!(Minimum::decode(short).unwrap(), minimum([1, 7, 8, 9], None));
        assert!(Minimum::decode(br#"{"root":1}"#).is_err());
        let long = [&full.encode()[..], &[b' '; MINIMUM_BYTES_MAX]].concat();
        assert!(Minimum::decode(&long).is_err());
    }

    #[test]
    fn keys_are_a_set_for_each_role() {
        let one = keys(&[[1], [2]], &[[3]]);
        assert_eq!(one, keys(&[[2], [1]], &[[3]]));
        assert_ne!(one, keys(&[[1], [3]], &[[2]]));
        assert_ne!(one, keys(&[[1]], &[[2], [3]]));
        let text = b"snapshot 03\ntimestamp 01\ntimestamp 02\n";
        assert_eq!(one, Digest::of(text));
    }
}
