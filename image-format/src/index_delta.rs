//! Index deltas: what changed in the index since another disk.
//!
//! A new version of an image changes a few entries in most pages. Whoever has the pages of the version before makes
//! those of the new one from them and from *patches*: the patch of a page is one zstd frame, made with the page of the same
//! region on the other disk as its dictionary. A patch is believed no more than any other bytes: what it gives is the page
//! that the region table names, or nothing. Layout: docs/FORMAT.md, "Index delta".

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader};
use crate::digest::{Digest, DigestMismatch};
use crate::frame::{self, Encoder, UnpackError};
use crate::geometry::{DISK_BYTES_MAX, REGION_BYTES};
use crate::page::PAGE_BYTES_MAX;

const MAGIC: &[u8; 8] = b"CIRCIDLT";
const WHAT: &str = "index delta";
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 12;

/// The longest index delta, in bytes: it is fetched as a whole.
pub const INDEX_DELTA_BYTES_MAX: usize = 1 << 20;

/// Made once and fetched by every machine: the time is well spent.
const LEVEL: i32 = 19;

/// Regions of the longest disk.
const REGIONS_MAX: u64 = DISK_BYTES_MAX / REGION_BYTES;

/// Why a patch gives no page.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum PatchError {
    #[error("it does not unpack")]
    Unpack(#[from] UnpackError),
    #[error("it gives another page")]
    OtherPage(#[from] DigestMismatch),
}

/// A decoded index delta.
#[derive(Clone, Debug)]
pub struct Patches {
    bytes: Bytes,
    /// By region, ascending.
    patches: Vec<Patch>,
}

#[derive(Clone, Debug)]
struct Patch {
    region: u32,
    page_bytes: usize,
    stored: Range<usize>,
}

impl Patches {
    /// Decodes an index delta, but not its frames.
    ///
    /// # Errors
    /// The bytes are no index delta, or not the one encoding of its numbers.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bad = |reason| DecodeError::invalid(WHAT, reason);
        let mut reader = Reader::new(WHAT, &bytes, INDEX_DELTA_BYTES_MAX)?;
        reader.magic(MAGIC)?;
        reader.version_1()?;
        reader.zero_u16()?;
        let count = reader.u32()? as usize;
        if count == 0 {
            return Err(bad("it has no patch"));
        }
        if count > bytes.len() / ENTRY_BYTES {
            return Err(DecodeError::Truncated { what: WHAT });
        }
        let mut patches: Vec<Patch> = Vec::with_capacity(count);
        let mut at = HEADER_BYTES + count * ENTRY_BYTES;
        for _ in 0..count {
            let (region, page_bytes, stored) = (reader.u32()?, reader.u32()?, reader.u32()?);
            let (page_bytes, stored) = (page_bytes as usize, stored as usize);
            if patches.last().is_some_and(|last| last.region >= region) {
                return Err(bad("its patches are out of order"));
            }
            if u64::from(region) >= REGIONS_MAX {
                return Err(bad("a patch is for a region that no disk has"));
            }
            if page_bytes > PAGE_BYTES_MAX || stored == 0 || stored >= page_bytes {
                return Err(bad("a patch has an impossible length"));
            }
            patches.push(Patch {
                region,
                page_bytes,
                stored: at..at + stored,
            });
            at += stored;
        }
        match bytes.len().cmp(&at) {
            std::cmp::Ordering::Less => Err(DecodeError::Truncated { what: WHAT }),
            std::cmp::Ordering::Greater => Err(DecodeError::Trailing { what: WHAT }),
            std::cmp::Ordering::Equal => Ok(Self { bytes, patches }),
        }
    }

    /// Returns the regions whose pages have a patch, ascending.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = u32> {
        self.patches.iter().map(|patch| patch.region)
    }

    /// Returns the page of `region`, named by `page`, made from the page `base` of the other disk; `None` if there is no
    /// patch for it.
    ///
    /// # Errors
    /// The patch is damaged, or not for these two pages.
    pub fn page(
        &self,
        region: u32,
        page: &Digest,
        base: &[u8],
    ) -> Result<Option<Bytes>, PatchError> {
        let found = self.patches.binary_search_by_key(&region, |it| it.region);
        let Ok(number) = found else { return Ok(None) };
        let Patch {
            page_bytes, stored, ..
        } = &self.patches[number];
        let bytes = frame::unpack_with(base, *page_bytes, &self.bytes[stored.clone()])?;
        let actual = Digest::of(&bytes);
        if actual != *page {
            let expected = *page;
            return Err(DigestMismatch { expected, actual }.into());
        }
        Ok(Some(bytes))
    }
}

/// Puts an index delta together.
#[derive(Debug, Default)]
pub struct PatchesBuilder {
    /// By region: the length of the page, and the frame.
    patches: BTreeMap<u32, (u32, Vec<u8>)>,
    frame_bytes: usize,
}

impl PatchesBuilder {
    /// Adds the patch that makes `page` from `base`, unless it is more than half as long as the page, or it would make
    /// the index delta longer than `bytes_max`. Returns whether there was room for it.
    ///
    /// # Errors
    /// There is no memory.
    pub fn push(
        &mut self,
        region: u32,
        base: &[u8],
        page: &[u8],
        bytes_max: usize,
    ) -> io::Result<bool> {
        let frame = Encoder::with_dictionary(LEVEL, base)?.encode(page)?;
        if frame.len() > page.len() / 2 {
            return Ok(true);
        }
        if self.bytes() + ENTRY_BYTES + frame.len() > bytes_max.min(INDEX_DELTA_BYTES_MAX) {
            return Ok(false);
        }
        let page_bytes = u32::try_from(page.len()).map_err(io::Error::other)?;
        self.frame_bytes += frame.len();
        self.patches.insert(region, (page_bytes, frame));
        Ok(true)
    }

    fn bytes(&self) -> usize {
        HEADER_BYTES + self.patches.len() * ENTRY_BYTES + self.frame_bytes
    }

    /// Encodes the index delta; `None` if it has no patch.
    ///
    /// # Panics
    /// Never: lengths were bounded when patches were added.
    pub fn finish(self) -> Option<Vec<u8>> {
        let number = |length: usize| u32::try_from(length).expect("it is at most 1 MiB");
        if self.patches.is_empty() {
            return None;
        }
        let mut out = Vec::with_capacity(self.bytes());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&number(self.patches.len()).to_le_bytes());
        for (region, (page_bytes, frame)) in &self.patches {
            out.extend_from_slice(&region.to_le_bytes());
            out.extend_from_slice(&page_bytes.to_le_bytes());
            out.extend_from_slice(&number(frame.len()).to_le_bytes());
        }
        for (_, frame) in self.patches.values() {
            out.extend_from_slice(frame);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::ChunkId;
    use crate::digest::ObjectRef;
    use crate::page::{Location, PageBuilder};

    /// A page of one-block chunks whose names follow from `names`, in packs that follow from them.
    fn page(names: &[u16]) -> Vec<u8> {
        let mut builder = PageBuilder::default();
        for (block, name) in (0..).zip(names) {
            let pack = ObjectRef {
                digest: Digest::of(&(name / 50).to_le_bytes()),
                length: 16 << 20,
            };
            let (offset, length) = (8 + u32::from(name % 50) * 3000, 2999);
            let place = Location {
                pack,
                offset,
                length,
            };
            builder.push(block, 1, ChunkId::of(&name.to_le_bytes()), place);
        }
        builder.finish().unwrap().unwrap().encode()
    }

    fn delta(pages: &[(u32, &[u8], &[u8])]) -> Option<Patches> {
        let mut builder = PatchesBuilder::default();
        for (region, base, page) in pages {
            assert!(
                builder
                    .push(*region, base, page, INDEX_DELTA_BYTES_MAX)
                    .unwrap()
            );
        }
        builder
            .finish()
            .map(|bytes| Patches::decode(bytes.into()).unwrap())
    }

    proptest! {
        /// Whatever was replaced, taken out or put in, a patch gives the new page, and is short where little changed.
        #[test]
        fn a_patch_gives_the_page(
            names in vec(any::<u16>(), 1..600),
            other in vec(any::<u16>(), 0..9),
            at in any::<prop::sample::Index>(),
            left_out in 0..9_usize,
        ) {
            let cut = at.index(names.len());
            let rest = &names[(cut + left_out).min(names.len())..];
            let changed = [&names[..cut], &other, rest].concat();
            prop_assume!(!changed.is_empty());
            let (base, page) = (page(&names), page(&changed));
            let digest = Digest::of(&page);
            if let Some(patches) = delta(&[(7, &base, &page)]) {
                prop_assert_eq!(patches.regions().collect::<Vec<_>>(), [7]);
                prop_assert_eq!(patches.page(7, &digest, &base).unwrap().unwrap(), page);
                prop_assert!(patches.page(6, &digest, &base).unwrap().is_none());
                prop_assert!(patches.page(7, &Digest::of(b""), &base).is_err());
            } else {
                prop_assert!(names.len() < 60, "{} of {}", other.len(), names.len());
            }
        }

        /// A damaged delta, or another page below it, gives no other page.
        #[test]
        fn damage_is_seen(at in any::<prop::sample::Index>(), bit in 0..8_u32, in_base: bool) {
            let names: Vec<u16> = (0..200).collect();
            let mut base = page(&names);
            let page = page(&[&names[..90], &[999], &names[92..]].concat());
            let patches = delta(&[(0, &base, &page)]).unwrap();
            let mut bytes = patches.bytes.to_vec();
            let damaged = if in_base { &mut base } else { &mut bytes };
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << bit;
            let Ok(patches) = Patches::decode(bytes.into()) else { return Ok(()) };
            if let Ok(Some(found)) = patches.page(0, &Digest::of(&page), &base) {
                prop_assert_eq!(found, page);
            }
        }
    }

    /// The window of a frame is bounded where it is decoded, and a dictionary lies outside of it.
    #[test]
    fn the_longest_page_has_a_patch() {
        let mut names: Vec<u16> = (0..16_384).collect();
        let base = page(&names);
        names[16_000] = 20_000;
        names[5] = 20_001;
        let page = page(&names);
        let patches = delta(&[(3, &base, &page)]).unwrap();
        // A pack more at the front, and the others have other numbers in every entry.
        assert!(patches.bytes.len() < page.len() / 20);
        let made = patches.page(3, &Digest::of(&page), &base).unwrap();
        assert_eq!(made.unwrap(), page);
    }

    #[test]
    fn what_has_no_room_or_no_use_is_left_out() {
        let names: Vec<u16> = (0..300).collect();
        let (base, changed) = (page(&names), page(&names[1..]));
        let other = page(&(1000..1300).collect::<Vec<u16>>());
        let mut builder = PatchesBuilder::default();
        assert!(builder.push(1, &base, &other, 1 << 20).unwrap());
        assert!(builder.patches.is_empty(), "it is as long as the page");
        assert!(!builder.push(1, &base, &changed, 40).unwrap());
        assert!(builder.push(1, &base, &changed, 4000).unwrap());
        let length = builder.bytes();
        assert!(!builder.push(2, &base, &changed, length).unwrap());
        assert_eq!(builder.finish().unwrap().len(), length);
        assert!(PatchesBuilder::default().finish().is_none());
    }

    #[test]
    fn impossible_deltas_are_refused() {
        let names: Vec<u16> = (0..300).collect();
        let (base, changed) = (page(&names), page(&names[1..]));
        let good = delta(&[(1, &base, &changed), (2, &base, &changed)]).unwrap();
        let spoil: [fn(&mut Vec<u8>); 9] = [
            |bytes| bytes[0] ^= 1,
            |bytes| bytes[8] = 2,
            |bytes| bytes[10] = 1,
            |bytes| bytes[12..16].fill(0),
            |bytes| bytes[12..16].fill(0xFF),
            |bytes| bytes[16] = 2,
            |bytes| bytes[23] = 1,
            |bytes| bytes[24..28].fill(0),
            |bytes| bytes.push(0),
        ];
        for (row, change) in spoil.iter().enumerate() {
            let mut bad = good.bytes.to_vec();
            change(&mut bad);
            assert!(Patches::decode(bad.into()).is_err(), "row {row}");
        }
        for length in 0..good.bytes.len() {
            assert!(Patches::decode(good.bytes.slice(..length)).is_err());
        }
    }
}
