//! The manifest: the document that defines one revision of one version of an image.

use serde::{Deserialize, Serialize};

use crate::boot_pack::{BOOT_PACK_BYTES_MAX, HEAD_BYTES_MAX};
use crate::chunker::ChunkerParams;
use crate::codec::{self, DecodeError};
use crate::digest::{Digest, ObjectRef};
use crate::geometry::DISK_BYTES_MAX;
use crate::index_delta::INDEX_DELTA_BYTES_MAX;
use crate::profile::PROFILE_BYTES_MAX;
use crate::reference::{ImageName, Version};
use crate::region_table::TABLE_BYTES_MAX;

/// The longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;

/// The longest kernel or initramfs, in bytes: 1 GiB.
pub const BOOT_OBJECT_BYTES_MAX: u64 = 1 << 30;

/// The longest kernel command line: what x86 and arm64 kernels take, less what boot scripts add.
pub const CMDLINE_LEN_MAX: usize = 1024;

/// The most addresses of mirrors in boot scripts.
pub const MIRRORS_MAX: usize = 8;

const WHAT: &str = "manifest";

/// One revision of one version of an image.
///
/// A revision may change how the disk is booted, never its content: [`Disk::content`] is the same
/// in all revisions of a version. [`Disk::regions`] changes only when a damaged disk is stored anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format; 1.
    pub format: u32,
    /// Which image.
    pub name: ImageName,
    /// Which version of it.
    pub version: Version,
    /// Which revision of that version, from 1 on.
    pub revision: u32,
    /// The disk itself.
    pub disk: Disk,
    /// How the disk was cut.
    pub chunker: ChunkerParams,
    /// How to boot it; none for a disk that is only mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// What a boot reads first, in one object; none while nobody recorded a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_pack: Option<BootPack>,
    /// What changed in the index since the version before; none where nobody would gain by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_delta: Option<IndexDelta>,
}

/// What changed in the index since another disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDelta {
    /// The patches.
    pub object: ObjectRef,
    /// The digest of the disk whose pages they are for. It may be gone from the store: only who has its pages gains.
    pub base: Digest,
}

/// A boot pack, and what it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPack {
    /// The boot pack: its head, then its frames.
    pub object: ObjectRef,
    /// Its head alone: readers verify it before the rest arrives.
    pub head: ObjectRef,
    /// The profile that it was made from: publishers carry it over to the next version.
    pub profile: ObjectRef,
}

impl BootPack {
    /// Checks lengths that `what` claims.
    pub(crate) fn check(&self, what: &'static str) -> Result<(), DecodeError> {
        let bad = |reason| Err(DecodeError::invalid(what, reason));
        if self.head.length > HEAD_BYTES_MAX as u64
            || self.object.length > BOOT_PACK_BYTES_MAX
            || self.head.length >= self.object.length
        {
            return bad("the boot pack or its head has an impossible length");
        }
        if self.profile.length > PROFILE_BYTES_MAX as u64 {
            return bad("the profile is too long");
        }
        Ok(())
    }
}

/// The content of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Length in bytes, as the guest sees it.
    pub length: u64,
    /// The region table. Its digest is the disk digest.
    pub regions: ObjectRef,
    /// The content digest: the same for the same chunks, wherever they are stored.
    pub content: Digest,
    /// How many chunks the disk has, repeated ones counted each time. For people, not for decoding.
    pub chunks: u64,
    /// Bytes of the disk that are in chunks, not in holes. For people.
    pub data_bytes: u64,
    /// Bytes that those chunks take in packs, repeated ones counted each time. For people.
    pub stored_bytes: u64,
}

/// How to boot a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The kernel, as the firmware loads it.
    pub kernel: ObjectRef,
    /// The initramfs with our client and the modules of that kernel.
    pub initramfs: ObjectRef,
    /// Release of the kernel (`uname -r`).
    pub kernel_release: String,
    /// Kernel command line of the image, without what boot scripts add.
    pub cmdline: String,
    /// Where the root file system is, as in the kernel's `root=`; none when it fills the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Address of the store that boot scripts name; none when they pass on their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Addresses of other servers of the same store that boot scripts name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
}

impl Manifest {
    /// Decodes and checks a manifest.
    ///
    /// # Errors
    /// The bytes are no manifest, or one with impossible numbers.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let manifest: Self = codec::json(WHAT, bytes, MANIFEST_BYTES_MAX)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.format != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(self.format),
            });
        }
        let bad = |reason| Err(DecodeError::invalid(WHAT, reason));
        if self.disk.length == 0 || self.disk.length > DISK_BYTES_MAX {
            return bad("the disk has an impossible length");
        }
        if self.disk.regions.length > TABLE_BYTES_MAX as u64 {
            return bad("the region table is too long");
        }
        if self.revision == 0 {
            return bad("revisions begin at 1");
        }
        if let Some(boot) = &self.boot {
            if boot.kernel.length.max(boot.initramfs.length) > BOOT_OBJECT_BYTES_MAX {
                return bad("the kernel or the initramfs is too long");
            }
            let texts = [
                Some(&boot.cmdline),
                boot.root.as_ref(),
                boot.base_url.as_ref(),
            ];
            if !texts.into_iter().flatten().all(|text| is_cmdline(text)) {
                return bad("the kernel command line is too long or has odd characters");
            }
            if !are_mirrors(&boot.mirrors) {
                return bad("there are too many mirrors, or their addresses have odd characters");
            }
            if !is_release(&boot.kernel_release) {
                return bad("the kernel release has odd characters");
            }
        }
        if let Some(pack) = &self.boot_pack {
            pack.check(WHAT)?;
        }
        if let Some(delta) = &self.index_delta
            && delta.object.length > INDEX_DELTA_BYTES_MAX as u64
        {
            return bad("the index delta is too long");
        }
        self.chunker.check()
    }

    /// Returns every object that the manifest names, besides the region table and what that leads to.
    pub fn objects(&self) -> impl Iterator<Item = ObjectRef> {
        let boot = self.boot.iter();
        let boot = boot.flat_map(|boot| [boot.kernel, boot.initramfs]);
        let pack = self.boot_pack.iter();
        let delta = self.index_delta.iter().map(|delta| delta.object);
        boot.chain(pack.flat_map(|pack| [pack.object, pack.profile]))
            .chain(delta)
    }

    /// Encodes the manifest. Equal manifests have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::to_json(self)
    }
}

/// Tells whether `text` may stand on a kernel command line in a boot script: printable ASCII, and
/// nothing that iPXE would expand (`${…}`) or take for its own syntax (`&&`, `||`).
pub fn is_cmdline(text: &str) -> bool {
    text.len() <= CMDLINE_LEN_MAX
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && !["${", "&&", "||"]
            .iter()
            .any(|syntax| text.contains(syntax))
}

/// As [`is_cmdline`], and without what ends a command or a line for iPXE: the word `;`, and a word that begins with `#`. Manifests
/// of before this was known may have them, and are read.
pub fn is_whole_cmdline(text: &str) -> bool {
    let ends = |word: &str| word == ";" || word.starts_with('#');
    is_cmdline(text) && !text.split(' ').any(ends)
}

/// Tells whether boot scripts can name these mirrors: on the kernel command line, all together.
pub fn are_mirrors(mirrors: &[String]) -> bool {
    let is_word = |url: &String| !url.is_empty() && !url.contains([' ', '"']);
    mirrors.len() <= MIRRORS_MAX && mirrors.iter().all(is_word) && is_cmdline(&mirrors.concat())
}

/// Tells whether `text` may be a kernel release: it becomes a path in the initramfs.
pub fn is_release(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(allowed) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let object = ObjectRef::of(b"object");
        Manifest {
            format: 1,
            name: "lab/debian".parse().unwrap(),
            version: Version::FIRST,
            revision: 1,
            disk: Disk {
                length: 1 << 31,
                regions: object,
                content: object.digest,
                chunks: 10,
                data_bytes: 40_960,
                stored_bytes: 9000,
            },
            chunker: ChunkerParams::DEFAULT,
            boot: Some(Boot {
                kernel: object,
                initramfs: object,
                kernel_release: "6.1.0-40-cloud-amd64".to_owned(),
                cmdline: "console=ttyS0".to_owned(),
                root: None,
                base_url: None,
                mirrors: vec!["http://b.example/s/".to_owned()],
            }),
            boot_pack: Some(BootPack {
                object: ObjectRef {
                    length: 100_000,
                    ..object
                },
                head: object,
                profile: object,
            }),
            index_delta: Some(IndexDelta {
                object,
                base: object.digest,
            }),
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Manifest::decode(&manifest().encode()).unwrap(), manifest());
    }

    #[test]
    fn impossible_manifests_are_refused() {
        let spoil: [fn(&mut Manifest); 14] = [
            |m| m.format = 2,
            |m| m.revision = 0,
            |m| m.disk.length = 0,
            |m| m.disk.length = DISK_BYTES_MAX + 1,
            |m| m.disk.regions.length = 1 << 30,
            |m| m.boot.as_mut().unwrap().cmdline = "quiet ${net0/mac}".to_owned(),
            |m| m.boot.as_mut().unwrap().kernel_release = "../../etc".to_owned(),
            |m| m.boot.as_mut().unwrap().mirrors = vec!["http://h/ init=/x".to_owned()],
            |m| m.boot.as_mut().unwrap().mirrors = vec!["http://h/".to_owned(); 9],
            |m| m.chunker.max_blocks = 0,
            |m| m.boot_pack.as_mut().unwrap().object.length = 3,
            |m| m.boot_pack.as_mut().unwrap().head.length = 1 << 30,
            |m| m.boot_pack.as_mut().unwrap().profile.length = 1 << 30,
            |m| m.index_delta.as_mut().unwrap().object.length = (1 << 20) + 1,
        ];
        for (row, change) in spoil.iter().enumerate() {
            let mut bad = manifest();
            change(&mut bad);
            assert!(Manifest::decode(&bad.encode()).is_err(), "row {row}");
        }
    }

    #[test]
    fn a_manifest_that_is_too_long_is_not_parsed() {
        let bytes = vec![b' '; MANIFEST_BYTES_MAX + 1];
        assert!(matches!(
            Manifest::decode(&bytes),
            Err(DecodeError::TooLong { .. })
        ));
    }
}
