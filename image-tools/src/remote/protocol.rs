//! The documents of the upload protocol: what is asked, and what is answered.

use std::collections::BTreeMap;

use image_format::Digest;
use serde::{Deserialize, Serialize};

/// Where to ask which files the server lacks.
pub const MISSING_PATH: &str = "upload/missing";

/// Where to make metadata visible.
pub const COMMIT_PATH: &str = "upload/commit";

/// The most files in one question: 10,000 digests are 670 KB.
pub const QUESTION_FILES_MAX: usize = 10_000;

/// The longest commit.
pub const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The longest answer: as many digests as were asked for, and target names of up to 200 bytes.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Which of these does the server lack?
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Question {
    /// Objects, by digest.
    pub objects: Vec<Digest>,
    /// Targets, `<digest>.<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

/// These, in the order in which they were asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Missing {
    /// Objects.
    pub missing: Vec<Digest>,
    /// Targets.
    #[serde(default)]
    pub missing_targets: Vec<String>,
}

/// Signed metadata to be made visible.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Commit {
    /// The digest of the `timestamp.json` that it follows; none in a store without one.
    pub follows: Option<Digest>,
    /// Files of `metadata/`, byte for byte.
    pub files: BTreeMap<String, String>,
    /// Names that are meant to vanish.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removes: Vec<String>,
}

/// It is visible.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    /// The version of the timestamp.
    pub timestamp: u64,
    /// Whether the server could write the boot files.
    pub boot_files: bool,
}
