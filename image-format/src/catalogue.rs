//! What one name of a store offers: a catalogue of tags and versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::digest::{Digest, ObjectRef};
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::reference::{ImageName, ImageRef, Tag, Version};

/// The longest catalogue, in bytes: some 2,500 versions.
pub const CATALOGUE_BYTES_MAX: usize = 1024 * 1024;

/// The longest list of chunk indexes, in bytes.
pub const CHUNK_INDEX_LIST_BYTES_MAX: usize = 16 * 1024;

/// The highest version of an image: every JSON reader knows the number exactly, and no publish
/// gets there.
pub const VERSION_MAX: u64 = 1 << 53;

/// The chunk indexes that together list every chunk of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkIndexList {
    /// Version of this format; 1.
    pub format: u32,
    /// The indexes, oldest first.
    pub chunk_indexes: Vec<ObjectRef>,
}

impl ChunkIndexList {
    /// Decodes and checks a list.
    ///
    /// # Errors
    /// The bytes are no such list.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "list of chunk indexes";
        let list: Self = codec::json(WHAT, bytes, CHUNK_INDEX_LIST_BYTES_MAX)?;
        if list.format != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(list.format),
            });
        }
        Ok(list)
    }

    /// Encodes the list.
    pub fn encode(&self) -> Vec<u8> {
        codec::to_json(self)
    }
}

/// Returns where the target `name` with this digest lies: `targets/<sha-256>.<name>`.
pub fn target_path(name: &str, digest: &Digest) -> String {
    format!("targets/{digest}.{name}")
}

/// Returns where the catalogue of `name` with this digest lies: `targets/<sha-256>.<safe name>`.
pub fn catalogue_path(name: &ImageName, catalogue: &Digest) -> String {
    target_path(&name.to_file_safe(), catalogue)
}

/// All that one name offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// Version of this format; 1.
    pub format: u32,
    /// Which name.
    pub name: ImageName,
    /// Where each tag points.
    pub tags: BTreeMap<Tag, Version>,
    /// Every version.
    pub versions: BTreeMap<Version, VersionEntry>,
    /// The highest version there ever was, if that was removed: no number names two disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest: Option<Version>,
}

/// One version in a catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEntry {
    /// The manifest of the newest revision.
    pub manifest: ObjectRef,
    /// Number of that revision.
    pub revision: u32,
    /// When the version was published: seconds since 1970-01-01 00:00 UTC.
    pub created: u64,
    /// The disk digest: names the disk with the places of its chunks.
    pub disk: Digest,
    /// The content digest: names the disk wherever its chunks are stored.
    pub content: Digest,
    /// Length of the disk in bytes.
    pub length: u64,
    /// Whether a machine can boot from it: the manifest says how.
    pub bootable: bool,
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ResolveError {
    #[error("image `{name}` has no tag `{tag}`; it has: {known}")]
    Tag {
        name: ImageName,
        tag: Tag,
        known: String,
    },
    #[error("image `{name}` has no version {version}; the newest is {newest}")]
    Version {
        name: ImageName,
        version: Version,
        newest: String,
    },
}

/// How many tags an error message lists.
const TAGS_LISTED_MAX: usize = 10;

impl Catalogue {
    /// Returns a catalogue without versions.
    pub const fn empty(name: ImageName) -> Self {
        Self {
            format: 1,
            name,
            tags: BTreeMap::new(),
            versions: BTreeMap::new(),
            highest: None,
        }
    }

    /// Decodes and checks the catalogue of `name`.
    ///
    /// # Errors
    /// The bytes are no catalogue, that of another name, or a tag points to nothing.
    pub fn decode(bytes: &[u8], name: &ImageName) -> Result<Self, DecodeError> {
        let catalogue = Self::decode_any(bytes)?;
        if catalogue.name != *name {
            return Err(DecodeError::invalid(
                WHAT,
                "it is the catalogue of another name",
            ));
        }
        Ok(catalogue)
    }

    /// Decodes and checks a catalogue whose name is not known.
    ///
    /// # Errors
    /// The bytes are no catalogue, or a tag points to nothing.
    pub fn decode_any(bytes: &[u8]) -> Result<Self, DecodeError> {
        let catalogue: Self = codec::json(WHAT, bytes, CATALOGUE_BYTES_MAX)?;
        if catalogue.format != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(catalogue.format),
            });
        }
        if !catalogue
            .tags
            .values()
            .all(|version| catalogue.versions.contains_key(version))
        {
            return Err(DecodeError::invalid(WHAT, "a tag points to no version"));
        }
        if catalogue
            .newest()
            .max(catalogue.highest)
            .is_some_and(|newest| newest.number() > VERSION_MAX)
        {
            return Err(DecodeError::invalid(WHAT, "a version is too high"));
        }
        let too_long = |entry: &VersionEntry| entry.manifest.length > MANIFEST_BYTES_MAX as u64;
        if catalogue.versions.values().any(too_long) {
            return Err(DecodeError::invalid(WHAT, "a manifest is too long"));
        }
        Ok(catalogue)
    }

    /// Encodes the catalogue. Equal catalogues have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::to_json(self)
    }

    /// Finds the version that `reference` (of this name) means: its version, else its tag.
    ///
    /// # Errors
    /// There is no such version or tag; the message lists what there is.
    pub fn resolve(&self, reference: &ImageRef) -> Result<(Version, &VersionEntry), ResolveError> {
        let version = match reference.version {
            Some(version) => version,
            None => self.tagged(&reference.tag_or_latest())?,
        };
        let entry = self
            .versions
            .get(&version)
            .ok_or_else(|| ResolveError::Version {
                name: self.name.clone(),
                version,
                newest: self
                    .newest()
                    .map_or_else(|| "none".to_owned(), |newest| newest.to_string()),
            })?;
        Ok((version, entry))
    }

    fn tagged(&self, tag: &Tag) -> Result<Version, ResolveError> {
        self.tags.get(tag).copied().ok_or_else(|| {
            let known: Vec<_> = self
                .tags
                .keys()
                .take(TAGS_LISTED_MAX)
                .map(Tag::as_str)
                .collect();
            ResolveError::Tag {
                name: self.name.clone(),
                tag: tag.clone(),
                known: known.join(", "),
            }
        })
    }

    /// Returns the newest version.
    pub fn newest(&self) -> Option<Version> {
        self.versions.last_key_value().map(|(version, _)| *version)
    }

    /// Returns the number that the next version gets.
    pub fn next_version(&self) -> Version {
        let highest = self.newest().max(self.highest);
        highest.map_or(Version::FIRST, Version::next)
    }

    /// Takes a version out, with the tags that point to it. Its number is not given again.
    pub fn remove(&mut self, version: Version) {
        self.highest = self.highest.max(self.newest());
        self.versions.remove(&version);
        self.tags.retain(|_, to| *to != version);
        if self.highest == self.newest() {
            self.highest = None;
        }
    }
}

const WHAT: &str = "catalogue";

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        let entry = VersionEntry {
            manifest: ObjectRef::of(b"manifest"),
            revision: 1,
            created: 1_700_000_000,
            disk: Digest::of(b"disk"),
            content: Digest::of(b"content"),
            length: 4096,
            bootable: true,
        };
        let mut catalogue = Catalogue::empty("debian".parse().unwrap());
        catalogue.versions.insert(Version::FIRST, entry);
        catalogue.versions.insert(Version::FIRST.next(), entry);
        catalogue.tags.insert(Tag::latest(), Version::FIRST.next());
        catalogue.tags.insert("12".parse().unwrap(), Version::FIRST);
        catalogue
    }

    #[test]
    fn round_trip() {
        let catalogue = catalogue();
        assert_eq!(
            Catalogue::decode(&catalogue.encode(), &catalogue.name).unwrap(),
            catalogue
        );
        assert!(Catalogue::decode(&catalogue.encode(), &"other".parse().unwrap()).is_err());
    }

    #[test]
    fn references_resolve_by_version_then_tag_then_latest() {
        let catalogue = catalogue();
        for (text, expected) in [
            ("debian", Some(2)),
            ("debian:12", Some(1)),
            ("debian:12@2", Some(2)),
            ("debian@1", Some(1)),
            ("debian@3", None),
            ("debian:13", None),
        ] {
            let found = catalogue
                .resolve(&text.parse().unwrap())
                .ok()
                .map(|(version, _)| version.number());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_number_is_not_given_again_when_its_version_is_removed() {
        let mut catalogue = catalogue();
        let (first, second) = (Version::FIRST, Version::FIRST.next());
        catalogue.remove(first);
        assert_eq!(
            (catalogue.highest, catalogue.next_version()),
            (None, second.next())
        );
        assert!(!catalogue.tags.values().any(|to| *to == first));
        catalogue.remove(second);
        assert!(catalogue.versions.is_empty() && catalogue.tags.is_empty());
        assert_eq!(catalogue.next_version(), second.next());
        let decoded = Catalogue::decode_any(&catalogue.encode()).unwrap();
        assert_eq!(decoded, catalogue);
    }

    #[test]
    fn a_tag_to_nowhere_is_refused() {
        let mut catalogue = catalogue();
        catalogue.tags.insert(Tag::latest(), "9".parse().unwrap());
        assert!(Catalogue::decode_any(&catalogue.encode()).is_err());
    }

    #[test]
    fn versions_that_cannot_be_counted_on_from_are_refused() {
        let mut catalogue = catalogue();
        let entry = catalogue.versions[&Version::FIRST];
        let highest = VERSION_MAX.to_string().parse().unwrap();
        catalogue.versions.insert(highest, entry);
        assert!(Catalogue::decode_any(&catalogue.encode()).is_ok());
        catalogue.versions.insert(highest.next(), entry);
        assert!(Catalogue::decode_any(&catalogue.encode()).is_err());
    }

    #[test]
    fn chunk_index_lists_round_trip_and_newer_formats_are_refused() {
        let mut list = ChunkIndexList {
            format: 1,
            chunk_indexes: vec![ObjectRef::of(b"x")],
        };
        assert_eq!(ChunkIndexList::decode(&list.encode()).unwrap(), list);
        list.format = 2;
        assert!(matches!(
            ChunkIndexList::decode(&list.encode()),
            Err(DecodeError::Version { .. })
        ));
    }

    #[test]
    fn a_catalogue_lies_under_its_safe_name() {
        let digest = Digest::of(b"");
        let path = catalogue_path(&"lab/debian".parse().unwrap(), &digest);
        assert_eq!(path, format!("targets/{digest}.lab,debian"));
    }
}
