//! What a publisher wants to make current: decoded and bounded, not believed yet.
//!
//! Pure: bytes in, a [`Proposal`] or a reason out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;

use bytes::Bytes;
use image_format::Digest;
use image_format::marker::{MARKER_BYTES_MAX, MARKER_PATH};
use serde::Deserialize;

use super::RefusedBecause;
use crate::trust::{METADATA_DIRECTORY, ROLE_BYTES_MAX, TARGETS_BYTES_MAX};

/// The longest proposal, as JSON: all of the longest files, escaped.
pub const PROPOSAL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most files in a proposal: a publish has three, and each root that is new adds one.
pub const FILES_MAX: usize = 64;

/// Most names that a proposal may say it removes.
pub const REMOVES_MAX: usize = 10_000;

/// A file of signed metadata, by its name in a store; or the store's marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProposedFile {
    /// `circular.json`
    Marker,
    /// `N.targets.json`
    Targets(NonZeroU64),
    /// `N.snapshot.json`
    Snapshot(NonZeroU64),
    /// `N.root.json`
    Root(NonZeroU64),
    /// `timestamp.json`
    Timestamp,
}

impl ProposedFile {
    /// Reads a name. There is one way to write each: no sign, no leading zero, no directory.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            MARKER_PATH => return Some(Self::Marker),
            "timestamp.json" => return Some(Self::Timestamp),
            _ => {}
        }
        let (number, role) = name.split_once('.')?;
        let plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
        let number = number.parse().ok().filter(|_| plain)?;
        match role {
            "targets.json" => Some(Self::Targets(number)),
            "snapshot.json" => Some(Self::Snapshot(number)),
            "root.json" => Some(Self::Root(number)),
            _ => None,
        }
    }

    /// Returns the path in a store.
    pub fn path(self) -> String {
        match self {
            Self::Marker => self.to_string(),
            _ => format!("{METADATA_DIRECTORY}/{self}"),
        }
    }

    /// Returns the most bytes that such a file may have.
    pub const fn bytes_max(self) -> u64 {
        match self {
            Self::Marker => MARKER_BYTES_MAX as u64,
            Self::Targets(_) => TARGETS_BYTES_MAX,
            Self::Snapshot(_) | Self::Root(_) | Self::Timestamp => ROLE_BYTES_MAX,
        }
    }

    /// Returns whether the name has a number, so that the file never changes.
    pub const fn is_numbered(self) -> bool {
        matches!(self, Self::Targets(_) | Self::Snapshot(_) | Self::Root(_))
    }
}

/// Writes the name of the file.
impl fmt::Display for ProposedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marker => f.write_str(MARKER_PATH),
            Self::Targets(number) => write!(f, "{number}.targets.json"),
            Self::Snapshot(number) => write!(f, "{number}.snapshot.json"),
            Self::Root(number) => write!(f, "{number}.root.json"),
            Self::Timestamp => f.write_str("timestamp.json"),
        }
    }
}

/// New metadata, and what it is to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The digest of the `timestamp.json` that it was signed on top of; `None` if there was none.
    pub follows: Option<Digest>,
    /// The exact bytes of each file.
    pub files: BTreeMap<ProposedFile, Bytes>,
    /// The targets that are to go; no other may.
    pub removes: BTreeSet<String>,
}

/// The JSON of a proposal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    follows: Option<Digest>,
    files: BTreeMap<String, String>,
    #[serde(default)]
    removes: BTreeSet<String>,
}

impl Proposal {
    /// Decodes a proposal.
    ///
    /// # Errors
    /// It is no proposal, or has a file that no proposal has, or one that is too long.
    pub fn decode(json: &[u8]) -> Result<Self, RefusedBecause> {
        let wire: Wire = serde_json::from_slice(json).map_err(RefusedBecause::Json)?;
        if wire.files.len() > FILES_MAX || wire.removes.len() > REMOVES_MAX {
            return Err(RefusedBecause::TooMany);
        }
        let mut files = BTreeMap::new();
        for (name, text) in wire.files {
            let Some(file) = ProposedFile::parse(&name) else {
                return Err(RefusedBecause::FileName { name });
            };
            let max = file.bytes_max();
            if text.len() as u64 > max {
                return Err(RefusedBecause::TooLong { file, max });
            }
            files.insert(file, text.into());
        }
        if files.is_empty() {
            return Err(RefusedBecause::Empty);
        }
        Ok(Self {
            follows: wire.follows,
            files,
            removes: wire.removes,
        })
    }

    /// Returns the files of numbered names, and their bytes.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (ProposedFile, &Bytes)> {
        let files = self.files.iter().map(|(file, bytes)| (*file, bytes));
        files.filter(|(file, _)| file.is_numbered())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use serde_json::json;

    use super::*;

    fn decode(value: &serde_json::Value) -> Result<Proposal, RefusedBecause> {
        Proposal::decode(value.to_string().as_bytes())
    }

    #[test]
    fn a_proposal_has_the_exact_bytes_of_its_files() {
        let text = "{\n  \"signed\": \"\u{e4}\\\"\"}\n";
        let proposal = decode(&json!({"follows": null, "files": {"2.root.json": text}})).unwrap();
        let root = ProposedFile::Root(NonZeroU64::new(2).unwrap());
        assert_eq!(proposal.files[&root], text);
        assert_eq!(root.path(), "metadata/2.root.json");
    }

    #[test]
    fn a_file_has_one_name_and_no_path() {
        for name in [
            "",
            ".",
            "..",
            "../timestamp.json",
            "/etc/passwd",
            "metadata/timestamp.json",
            "timestamp.json/",
            "timestamp.json\0",
            "Timestamp.json",
            "0.root.json",
            "01.root.json",
            "+1.root.json",
            "-1.root.json",
            " 1.root.json",
            "1.root.json#1",
            "1..root.json",
            "1.root.json.json",
            "1.mirrors.json",
            "root.json",
            "18446744073709551616.root.json",
            "\u{661}.root.json",
            "1./../../x.root.json",
        ] {
            let got = decode(&json!({"follows": null, "files": {name: "{}"}}));
            assert!(
                matches!(got, Err(RefusedBecause::FileName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn what_is_long_or_many_is_refused() {
        let long = "x".repeat(64 * 1024 + 1);
        let got = decode(&json!({"follows": null, "files": {"timestamp.json": long}}));
        assert!(matches!(got, Err(RefusedBecause::TooLong { .. })));
        let many: BTreeMap<_, _> = (1..=65)
            .map(|number| (format!("{number}.root.json"), "{}"))
            .collect();
        let got = decode(&json!({"follows": null, "files": many}));
        assert!(matches!(got, Err(RefusedBecause::TooMany)));
        let got = decode(&json!({"follows": null, "files": {}}));
        assert!(matches!(got, Err(RefusedBecause::Empty)));
    }

    #[test]
    fn what_is_no_proposal_is_refused() {
        for value in [
            json!([]),
            json!({"files": "x"}),
            json!({"follows": "abc", "files": {"timestamp.json": ""}}),
            json!({"follows": null, "files": {"timestamp.json": 1}}),
            json!({"follows": null, "files": {"timestamp.json": ""}, "force": true}),
        ] {
            assert!(
                matches!(decode(&value), Err(RefusedBecause::Json(_))),
                "{value}"
            );
        }
    }

    proptest! {
        /// What a name is read as is written as that name again: no two names are one file.
        #[test]
        fn a_name_has_one_meaning(name in "(0|1|9|\\.|/|root|targets|snapshot|timestamp|json|circular){0,8}") {
            if let Some(file) = ProposedFile::parse(&name) {
                prop_assert_eq!(file.to_string(), name);
            }
        }

        /// Any bytes at all are a proposal or a reason.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Proposal::decode(&bytes);
        }
    }
}
