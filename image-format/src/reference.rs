//! How people name images: `NAME[:TAG][@VERSION]`, and the form of that which is safe in a path.
//!
//! Every type here is checked when it is made, so a name that reaches a file system or a URL has
//! no `..`, no leading dot, no `%`, and nothing that a shell or a URL parser would take apart.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes; leaves room for a tag and a version in a 255-byte file name.
pub const NAME_LEN_MAX: usize = 128;

/// The longest word of a name, and the longest tag, in bytes.
pub const WORD_LEN_MAX: usize = 63;

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ReferenceError {
    #[error("image name `{text}` is empty or longer than {NAME_LEN_MAX} characters")]
    NameLength { text: String },
    #[error(
        "`{word}` in `{text}` is no word of an image name: use a-z, 0-9, `.`, `_`, `-`, \
         begin with a letter or digit, no `..`, at most {WORD_LEN_MAX} characters"
    )]
    Word { text: String, word: String },
    #[error("version `{text}` is not a number from 1 on")]
    Version { text: String },
}

/// Tells whether `word` may be a part of a name, or a tag.
fn is_word(word: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    word.len() <= WORD_LEN_MAX
        && word.bytes().all(allowed)
        && word
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && !word.contains("..")
}

fn check_word(word: &str, text: &str) -> Result<(), ReferenceError> {
    if is_word(word) {
        return Ok(());
    }
    Err(ReferenceError::Word {
        text: text.to_owned(),
        word: word.to_owned(),
    })
}

/// The name of an image: lower-case words separated by `/`, such as `lab/debian`.
///
/// - 1 to 128 bytes; words of `[a-z0-9._-]`, 1 to 63 bytes, that begin with a letter or digit
/// - no `..`, no empty word
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

impl ImageName {
    /// Returns the name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the file-safe form: `/` becomes `,`.
    pub fn to_file_safe(&self) -> String {
        self.0.replace('/', ",")
    }

    /// Parses the file-safe form.
    ///
    /// # Errors
    /// The text is the file-safe form of no name.
    pub fn from_file_safe(text: &str) -> Result<Self, ReferenceError> {
        if text.contains('/') {
            return Err(ReferenceError::Word {
                text: text.to_owned(),
                word: "/".to_owned(),
            });
        }
        text.replace(',', "/").parse()
    }
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() || text.len() > NAME_LEN_MAX {
            return Err(ReferenceError::NameLength {
                text: text.to_owned(),
            });
        }
        text.split('/')
            .try_for_each(|word| check_word(word, text))?;
        Ok(Self(text.to_owned()))
    }
}

/// A movable pointer to a version: one word, such as `12` or `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// Returns the tag that is meant where none is given: `latest`.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// Returns the tag as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        check_word(text, text)?;
        Ok(Self(text.to_owned()))
    }
}

/// A version of a name: a counter from 1 on that names disk content for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(NonZeroU64);

impl Version {
    /// The first version of a name.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Returns the version after this one.
    ///
    /// # Panics
    /// After 2^64 publishes.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("no store has 2^64 versions"))
    }

    /// Returns the number.
    pub const fn number(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for Version {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let canonical = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|_| canonical)
            .map(Self)
            .ok_or_else(|| ReferenceError::Version {
                text: text.to_owned(),
            })
    }
}

/// Names an image in one of its versions: `NAME[:TAG][@VERSION]`.
///
/// A version, where given, decides; the tag then only says where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    /// Which image.
    pub name: ImageName,
    /// Which tag; `latest` is meant where there is neither tag nor version.
    pub tag: Option<Tag>,
    /// Which version.
    pub version: Option<Version>,
}

impl ImageRef {
    /// Returns the tag, or `latest` where none is given.
    pub fn tag_or_latest(&self) -> Tag {
        self.tag.clone().unwrap_or_else(Tag::latest)
    }

    /// Returns the reference with its version pinned.
    #[must_use]
    pub fn pinned(&self, version: Version) -> Self {
        Self {
            version: Some(version),
            ..self.clone()
        }
    }

    /// Returns the file-safe form, used wherever a reference becomes part of a path or URL:
    /// `/` becomes `,` and `:` becomes `=`. No two references share one.
    pub fn to_file_safe(&self) -> String {
        self.to_string().replace('/', ",").replace(':', "=")
    }

    /// Parses the file-safe form.
    ///
    /// # Errors
    /// The text is the file-safe form of no reference.
    pub fn from_file_safe(text: &str) -> Result<Self, ReferenceError> {
        if let Some(word) = text.chars().find(|c| matches!(c, '/' | ':')) {
            return Err(ReferenceError::Word {
                text: text.to_owned(),
                word: word.to_string(),
            });
        }
        text.replace(',', "/").replace('=', ":").parse()
    }
}

impl From<ImageName> for ImageRef {
    fn from(name: ImageName) -> Self {
        Self {
            name,
            tag: None,
            version: None,
        }
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, version) = match text.split_once('@') {
            Some((rest, version)) => (rest, Some(version.parse()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag.parse()?)),
            None => (rest, None),
        };
        Ok(Self {
            name: name.parse()?,
            tag,
            version,
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name, f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(version) = self.version {
            write!(f, "@{version}")?;
        }
        Ok(())
    }
}

/// Reads and writes each of these as the text it is, also as the key of a JSON object.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(ImageName, Tag, Version, ImageRef);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORD: &str = "[a-z0-9][a-z0-9_-]{0,8}(\\.[a-z0-9]{1,4})?";

    fn references() -> impl Strategy<Value = String> {
        let name = proptest::collection::vec(WORD, 1..4).prop_map(|words| words.join("/"));
        (
            name,
            proptest::option::of(WORD),
            proptest::option::of(1..u64::MAX),
        )
            .prop_map(|(name, tag, version)| {
                let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
                let version = version
                    .map(|version| format!("@{version}"))
                    .unwrap_or_default();
                format!("{name}{tag}{version}")
            })
    }

    proptest! {
        /// A reference reads back from both of its forms.
        #[test]
        fn both_forms_round_trip(text in references()) {
            let reference: ImageRef = text.parse().unwrap();
            prop_assert_eq!(reference.to_string(), text);
            let safe = reference.to_file_safe();
            prop_assert!(!safe.contains(['/', ':', '%']) && !safe.starts_with('.'));
            prop_assert_eq!(ImageRef::from_file_safe(&safe).unwrap(), reference);
        }

        /// Whatever is accepted is its own text form: no two spellings of one thing.
        #[test]
        fn there_is_one_spelling(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(64);
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "..",
            "a/..",
            "../a",
            "a..b",
            ".a",
            "-a",
            "a/.b",
            "A",
            "ä",
            "a b",
            "a%2f",
            "a\\b",
            "a\0",
            "a:",
            "a:B",
            "a:b:c",
            "a@",
            "a@0",
            "a@01",
            "a@-1",
            "a@+1",
            "a@1@2",
            "a@18446744073709551616",
            "a:b/c",
            "a,b",
            "a=b",
            &long,
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text:?} was accepted");
        }
        assert!(ImageRef::from_file_safe("a/b").is_err());
    }

    #[test]
    fn a_message_names_the_word_at_fault() {
        let error = "lab/../x".parse::<ImageRef>().unwrap_err().to_string();
        assert!(
            error.starts_with("`..` in `lab/../x` is no word"),
            "{error}"
        );
    }
}
