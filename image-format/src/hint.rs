//! A hint: what a client will find when it opens a reference, said before it can know.
//!
//! To open an image a client goes from the signed metadata to the catalogue, the manifest, the
//! region table and the head of the boot pack, and each names the next. A hint names them all at once, so that they can be on
//! their way together. It is not signed, and nothing in it is believed: what it names is used only
//! if the signed way leads to the same digest. A hint that is missing, out of date or forged costs
//! time, nothing else.

use serde::{Deserialize, Serialize};

use crate::catalogue::CATALOGUE_BYTES_MAX;
use crate::codec::{self, DecodeError};
use crate::digest::{Digest, ObjectRef};
use crate::manifest::{BootPack, MANIFEST_BYTES_MAX};
use crate::reference::ImageRef;

/// The longest hint, in bytes.
pub const HINT_BYTES_MAX: usize = 4096;

const WHAT: &str = "hint";

/// What a reference leads to, as far as whoever wrote this knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Version of this format; 1.
    pub format: u32,
    /// The catalogue of its name.
    pub catalogue: ObjectRef,
    /// The manifest of its version.
    pub manifest: ObjectRef,
    /// The region table of its disk.
    pub disk: Digest,
    /// Its boot pack, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_pack: Option<BootPack>,
}

impl Hint {
    /// Decodes a hint; what it names is not too long to be fetched.
    ///
    /// # Errors
    /// The bytes are no hint, or that of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let hint: Self = codec::json(WHAT, bytes, HINT_BYTES_MAX)?;
        if hint.format != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(hint.format),
            });
        }
        for (what, object, max) in [
            ("catalogue in a hint", hint.catalogue, CATALOGUE_BYTES_MAX),
            ("manifest in a hint", hint.manifest, MANIFEST_BYTES_MAX),
        ] {
            let max = max as u64;
            if object.length > max {
                return Err(DecodeError::TooLong { what, max });
            }
        }
        if let Some(pack) = &hint.boot_pack {
            pack.check(WHAT)?;
        }
        Ok(hint)
    }

    /// Encodes the hint.
    pub fn encode(&self) -> Vec<u8> {
        codec::to_json(self)
    }
}

/// Returns where the hint for `reference` lies in a store: that for its tag, whatever its version.
pub fn hint_path(reference: &ImageRef) -> String {
    let tagged = ImageRef {
        version: None,
        ..reference.clone()
    };
    format!("boot/{}.json", tagged.to_file_safe())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_to_be_fetched_is_no_hint() {
        let good = Hint {
            format: 1,
            catalogue: ObjectRef::of(b"catalogue"),
            manifest: ObjectRef::of(b"manifest"),
            disk: Digest::of(b"table"),
            boot_pack: Some(BootPack {
                object: ObjectRef::of(b"head, then frames"),
                head: ObjectRef::of(b"head"),
                profile: ObjectRef::of(b"profile"),
            }),
        };
        let none = Hint {
            boot_pack: None,
            ..good
        };
        assert_eq!(Hint::decode(&none.encode()).unwrap(), none);
        assert_eq!(Hint::decode(&good.encode()).unwrap(), good);
        let long = |object: ObjectRef| ObjectRef {
            length: 2 << 20,
            ..object
        };
        for bad in [
            Hint { format: 2, ..good },
            Hint {
                catalogue: long(good.catalogue),
                ..good
            },
            Hint {
                manifest: long(good.manifest),
                ..good
            },
            Hint {
                boot_pack: good.boot_pack.map(|pack| BootPack {
                    head: long(pack.head),
                    ..pack
                }),
                ..good
            },
        ] {
            assert!(Hint::decode(&bad.encode()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hint_lies_beside_the_boot_script() {
        let path = |text: &str| hint_path(&text.parse().unwrap());
        assert_eq!(path("lab/debian:12"), "boot/lab,debian=12.json");
        assert_eq!(path("lab/debian:12@3"), "boot/lab,debian=12.json");
        assert_eq!(path("lab/debian@3"), "boot/lab,debian.json");
    }
}
