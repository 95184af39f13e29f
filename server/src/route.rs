//! Which thing of the store a request path names.
//!
//! Pure: a path in, a [`Route`] out, or nothing. The path is percent-decoded once and taken
//! apart into words that are checked one by one; only the checked words go on. So a [`Route`]
//! cannot say `..`, an empty or hidden name, a separator, a NUL or a non-ASCII character, and
//! no string of a stranger reaches the file system.
//!
//! | path | what |
//! | --- | --- |
//! | `/` | page with the images |
//! | `/healthz` | health |
//! | `/circular.json` | store-format marker |
//! | `/metadata/*.json` | metadata, `timestamp.json` among it |
//! | `/targets/<sha-256>.<name>` | catalogues |
//! | `/objects/ab/<sha-256>` | objects |
//! | `/boot.ipxe`, `/boot/**` | boot scripts |
//! | `/raw/<file-safe reference>/disk.raw` | an image as one flat file |

use std::path::PathBuf;

use image_format::{Digest, ImageRef};

use crate::decide::{Caching, ContentType};

/// Deepest path below `boot/`; scripts of one image use one or two.
const BOOT_DEPTH_MAX: usize = 4;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The page with the images.
    Home,
    /// Whether the store can be read.
    Health,
    /// A file of the store.
    File(StorePath),
    /// An image as one flat file.
    Raw(ImageRef),
}

/// Finds the route of a path, as it stands in the request line.
pub(crate) fn route(path: &str) -> Option<Route> {
    let path = percent_decode(path.strip_prefix('/')?)?;
    let words: Vec<&str> = path.split('/').collect();
    Some(match words.as_slice() {
        [""] => Route::Home,
        ["healthz"] => Route::Health,
        ["raw", reference, "disk.raw"] => Route::Raw(ImageRef::from_file_safe(reference).ok()?),
        words => Route::File(StorePath::parse(words)?),
    })
}

/// A file that a store may hold, by its place in the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StorePath {
    /// `circular.json`.
    Marker,
    /// `metadata/timestamp.json`, the one that changes.
    Timestamp,
    /// Any other file of `metadata/`; numbered, so it never changes.
    Metadata(FileName),
    /// `targets/<digest>.<name>`.
    Target {
        /// Of the content.
        digest: Digest,
        /// The whole file name, digest included.
        file: FileName,
    },
    /// `objects/ab/<digest>`.
    Object(Digest),
    /// `boot.ipxe`.
    BootMenu,
    /// A file below `boot/`.
    Boot(Vec<FileName>),
}

impl StorePath {
    fn parse(words: &[&str]) -> Option<Self> {
        match words {
            ["circular.json"] => Some(Self::Marker),
            ["boot.ipxe"] => Some(Self::BootMenu),
            ["metadata", "timestamp.json"] => Some(Self::Timestamp),
            ["metadata", file] if file.ends_with(".json") => {
                Some(Self::Metadata(FileName::parse(file)?))
            }
            ["targets", file] => Some(Self::Target {
                digest: file.split_once('.')?.0.parse().ok()?,
                file: FileName::parse(file)?,
            }),
            ["objects", prefix, hex] => {
                let digest: Digest = hex.parse().ok()?;
                hex.starts_with(prefix).then_some(())?;
                (prefix.len() == 2).then_some(Self::Object(digest))
            }
            ["boot", rest @ ..] if (1..=BOOT_DEPTH_MAX).contains(&rest.len()) => {
                let words = rest.iter().map(|word| FileName::parse(word));
                Some(Self::Boot(words.collect::<Option<_>>()?))
            }
            _ => None,
        }
    }

    /// Reads the file name of a target.
    pub(crate) fn target(name: &str) -> Option<Self> {
        Self::parse(&["targets", name])
    }

    /// Returns the path relative to the root of the store.
    pub(crate) fn relative(&self) -> PathBuf {
        match self {
            Self::Marker => "circular.json".into(),
            Self::Timestamp => "metadata/timestamp.json".into(),
            Self::Metadata(file) => ["metadata", file.as_str()].iter().collect(),
            Self::Target { file, .. } => ["targets", file.as_str()].iter().collect(),
            Self::Object(digest) => digest.object_path().into(),
            Self::BootMenu => "boot.ipxe".into(),
            Self::Boot(words) => {
                let words = words.iter().map(FileName::as_str);
                std::iter::once("boot").chain(words).collect()
            }
        }
    }

    /// Returns the digest that the address promises, where it does.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Object(digest) | Self::Target { digest, .. } => Some(digest),
            _ => None,
        }
    }

    /// Returns how long the file may be kept.
    pub(crate) fn caching(&self) -> Caching {
        match self {
            Self::Metadata(_) | Self::Target { .. } | Self::Object(_) => Caching::Immutable,
            Self::Marker | Self::Timestamp | Self::BootMenu | Self::Boot(_) => Caching::Revalidate,
        }
    }

    /// Returns what the file is, by its place and its extension.
    pub(crate) fn content_type(&self) -> ContentType {
        match self {
            Self::Marker | Self::Timestamp | Self::Metadata(_) => ContentType::Json,
            Self::Object(_) => ContentType::Binary,
            Self::BootMenu => ContentType::Text,
            Self::Target { file, .. } => file.content_type(),
            Self::Boot(words) => words
                .last()
                .map_or(ContentType::Binary, FileName::content_type),
        }
    }
}

/// A name of one file or directory.
///
/// - 1 to 255 bytes of `A-Z a-z 0-9 . _ - + , = @`;
/// - the first is neither a dot nor a dash: no `.`, no `..`, no `.lock`, no half-written file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileName(String);

impl FileName {
    fn parse(name: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+,=@".contains(&byte);
        let valid = (1..=255).contains(&name.len())
            && !name.starts_with(['.', '-'])
            && name.bytes().all(allowed);
        valid.then(|| Self(name.to_owned()))
    }

    /// Returns the name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn content_type(&self) -> ContentType {
        match self.0.rsplit_once('.') {
            Some((_, "ipxe" | "cfg" | "txt")) => ContentType::Text,
            Some((_, "json")) => ContentType::Json,
            _ => ContentType::Binary,
        }
    }
}

/// Decodes `%xx` once; nothing where a `%` is not followed by two digits or the result is
/// not UTF-8.
fn percent_decode(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use super::{FileName, Route, StorePath, route};
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    const HEX: &str = "ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd";

    fn relative(path: &str) -> Option<String> {
        match route(path)? {
            Route::File(path) => Some(path.relative().to_str()?.to_owned()),
            _ => None,
        }
    }

    #[test]
    fn each_file_of_the_layout_has_a_route() {
        let object = format!("/objects/ab/{HEX}");
        let target = format!("/targets/{HEX}.lab,debian");
        #[rustfmt::skip]
        let table = [
            ("/circular.json",              "circular.json"),
            ("/metadata/timestamp.json",    "metadata/timestamp.json"),
            ("/metadata/12.root.json",      "metadata/12.root.json"),
            (target.as_str(),               &target[1..]),
            (object.as_str(),               &object[1..]),
            ("/boot.ipxe",                  "boot.ipxe"),
            ("/boot/debian=12.ipxe",        "boot/debian=12.ipxe"),
            ("/boot/debian%3D12%40.ipxe",   "boot/debian=12@.ipxe"),
            ("/boot/a/b.ipxe",              "boot/a/b.ipxe"),
        ];
        for (path, expected) in table {
            assert_eq!(relative(path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(route("/"), Some(Route::Home));
        assert_eq!(route("/healthz"), Some(Route::Health));
    }

    #[test]
    fn a_raw_address_names_an_image() {
        for reference in ["debian", "debian=12", "lab,debian=12@3", "debian@7"] {
            let Some(Route::Raw(image)) = route(&format!("/raw/{reference}/disk.raw")) else {
                panic!("no route for {reference}");
            };
            assert_eq!(
                image,
                image_format::ImageRef::from_file_safe(reference).unwrap()
            );
        }
        assert!(route("/raw/lab%2Cdebian%3D12%403/disk.raw").is_some());
    }

    #[test]
    fn nothing_else_has_a_route() {
        let upper = HEX.to_uppercase();
        #[rustfmt::skip]
        let table = [
            "", "boot.ipxe", "*", "//", "//boot.ipxe", "/boot.ipxe/", "/.", "/..", "/.lock", "/.circular/x",
            "/circular.json/", "/circular.json%00", "/circular%2ejson%2f",
            "/metadata", "/metadata/", "/metadata/..", "/metadata/.json", "/metadata/a/b.json", "/metadata/1.root",
            "/metadata/..%2f..%2fetc%2fpasswd.json", "/metadata/%2e%2e/circular.json", "/metadata/a%5cb.json",
            "/metadata/%252e.json", "/metadata/%c0%ae%c0%ae.json", "/metadata/\u{2025}.json", "/metadata/a b.json",
            "/boot", "/boot/", "/boot//x", "/boot/../circular.json", "/boot/%2e%2e/circular.json", "/boot/.x",
            "/boot/-x", "/boot/x%00.ipxe", "/boot/x%", "/boot/x%4", "/boot/x%zz", "/boot/a/b/c/d/e", "/boot/x#1",
            "/boot/x:y", "/etc/passwd", "/objects", "/objects/ab", "/objects/ab/", "/objects/ab/..", "/targets/x.y",
            "/raw", "/raw/", "/raw/debian", "/raw/debian/", "/raw/debian/disk.qcow2", "/raw/../disk.raw",
            "/raw//disk.raw", "/raw/Debian/disk.raw", "/raw/lab%2fdebian/disk.raw", "/raw/.x/disk.raw",
        ];
        for path in table {
            assert_eq!(route(path), None, "{path}");
        }
        let hexes = [
            format!("/objects/aa/{HEX}"),
            format!("/objects//{HEX}"),
            format!("/objects/a/{HEX}"),
            format!("/objects/ab5/{HEX}"),
            format!("/objects/AB/{upper}"),
            format!("/objects/ab/{}", &HEX[1..]),
            format!("/objects/ab/{HEX}0"),
            format!("/targets/{HEX}"),
            format!("/targets/{HEX}.a/b"),
            format!("/targets/{HEX}./"),
        ];
        for path in hexes {
            assert_eq!(route(&path), None, "{path}");
        }
    }

    #[test]
    fn a_file_name_has_at_most_255_bytes() {
        assert!(FileName::parse(&"a".repeat(255)).is_some());
        assert!(FileName::parse(&"a".repeat(256)).is_none());
    }

    fn stays_inside(path: &Path) -> bool {
        let mut components = path.components();
        components.all(|part| matches!(part, Component::Normal(_))) && path.is_relative()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// Whatever stands in the request line, the file named is below the root, and none
        /// of its names is hidden.
        #[test]
        fn no_path_leaves_the_root(
            top in "(boot|metadata|targets|objects|raw|circular\\.json)?",
            rest in "(/|\\.|%2[eEfF]|%5c|%00|%25|%c0%ae|\\\\|~|[a-z]|\\.json|\\PC){0,24}",
        ) {
            if let Some(Route::File(path)) = route(&format!("/{top}/{rest}")) {
                let path = path.relative();
                prop_assert!(stays_inside(&path), "{path:?}");
                prop_assert!(!path.to_string_lossy().contains(['\\', '\0', '%']));
                prop_assert!(path.iter().all(|name| !name.as_encoded_bytes().starts_with(b".")));
            }
        }

        /// Percent-encoding a valid path, as any client may, does not change its route.
        #[test]
        fn an_encoded_path_is_the_same_route(name in "[a-z0-9][a-z0-9,=@.]{0,12}", every in 1..4_usize) {
            let encode = |(at, byte): (usize, u8)| match at % every {
                0 => format!("%{byte:02x}"),
                _ => char::from(byte).to_string(),
            };
            let encoded: String = name.bytes().enumerate().map(encode).collect();
            let plain = route(&format!("/boot/{name}"));
            prop_assert!(matches!(plain, Some(Route::File(StorePath::Boot(_)))));
            prop_assert_eq!(route(&format!("/boot/{encoded}")), plain);
        }
    }
}
