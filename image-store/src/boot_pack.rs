//! Builds the boot pack of a disk from a profile and from the chunks that the store has.
//!
//! The profile is carried over to the disk first, which finds where each chunk lies; a profile that
//! was made on this disk finds all of them. Frames are compressed on all cores; in memory are the
//! frames, as they are stored, and the plain bytes of those being compressed.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image_format::boot_pack::{Head, PlacedChunk, plan_frames_apart};
use image_format::frame::Encoder;
use image_format::geometry::BlockRun;
use image_format::manifest::{BootPack, Disk};
use image_format::profile::{Carried, Placement, Profile, StandIns};
use image_format::{ChunkId, DecodeError, ObjectRef};

use crate::reader::{ImageReader, ReadError};
use crate::store::{Store, StoreError};

/// Why there can be no boot pack.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum BootPackError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot compress a frame of the boot pack")]
    Compress(#[source] io::Error),
    #[error("cannot use the profile {}", .profile.digest)]
    Profile {
        profile: ObjectRef,
        source: DecodeError,
    },
    #[error("the boot pack cannot be put together")]
    Assemble(#[source] DecodeError),
}

/// A boot pack that is in the store; no manifest names it yet.
#[derive(Clone, Debug)]
pub struct BuiltBootPack {
    /// What goes into the manifest; none if nothing of the profile is on the disk.
    pub boot_pack: Option<BootPack>,
    /// The profile, in terms of the disk.
    pub profile: Profile,
    /// How much of the profile it was made from is on the disk.
    pub carried: Carried,
    /// How many chunks it holds.
    pub chunks: usize,
    /// Their plain bytes.
    pub plain_bytes: u64,
}

impl Store {
    /// Reads the profile that a boot pack was made from.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub async fn profile(&self, boot_pack: &BootPack) -> Result<Profile, BootPackError> {
        let bytes = self.object(&boot_pack.profile).await?;
        Profile::decode(&bytes).map_err(|source| BootPackError::Profile {
            profile: boot_pack.profile,
            source,
        })
    }

    /// Builds the boot pack that follows from `profile` for `disk`, whose objects are in the store,
    /// with frames of this zstd level, on `workers` threads. `stand_ins`: what somebody knows of files
    /// that moved since. `known`: what machines have that booted the version before; no frame mixes it with other chunks.
    ///
    /// # Errors
    /// The disk cannot be read, or the store cannot be written.
    ///
    /// # Cancel safety
    /// Dropped before it ends, it leaves objects that nothing refers to.
    pub async fn build_boot_pack(
        &self,
        disk: &Disk,
        profile: &Profile,
        stand_ins: &StandIns,
        known: &HashSet<ChunkId>,
        level: i32,
        workers: usize,
    ) -> Result<BuiltBootPack, BootPackError> {
        let reader = ImageReader::open_disk(self.clone(), disk).await?;
        let mut placement = Placement::new(profile, stand_ins);
        for region in 0..reader.n_regions() {
            if let Some(page) = reader.page(region).await? {
                placement.page(region, &page);
            }
        }
        let placed = placement.finish(disk.regions.digest);
        let (set, plan) = plan_frames_apart(&placed.boot_set, |chunk| known.contains(chunk));
        let set = &set[..];
        let plain_bytes = set.iter().map(|chunk| chunk.entry.plain_len() as u64).sum();
        let mut built = BuiltBootPack {
            boot_pack: None,
            carried: placed.carried,
            chunks: set.len(),
            plain_bytes,
            profile: placed.profile,
        };
        if set.is_empty() {
            return Ok(built);
        }
        let frames: Vec<Vec<u8>> = stream::iter(plan.clone())
            .map(|frame| pack_frame(&reader, set, frame, level))
            .buffered(workers.max(1))
            .try_collect()
            .await?;
        let lengths: Vec<_> = frames
            .iter()
            .map(|frame| u32::try_from(frame.len()).expect("a frame has at most 1 MiB"))
            .collect();
        let head = Head::build_planned(set, &plan, &lengths)
            .map_err(BootPackError::Assemble)?
            .encode();
        let head_object = ObjectRef::of(&head);
        let object = [head, frames.concat()].concat();
        built.boot_pack = Some(BootPack {
            object: self.put_object(object.into()).await?,
            head: head_object,
            profile: self.put_object(built.profile.encode().into()).await?,
        });
        Ok(built)
    }
}

/// Reads the chunks of a frame and compresses them together.
async fn pack_frame(
    reader: &ImageReader,
    set: &[PlacedChunk],
    frame: Range<usize>,
    level: i32,
) -> Result<Vec<u8>, BootPackError> {
    let mut plain = Vec::new();
    for chunk in &set[frame] {
        let run = BlockRun {
            region: chunk.region,
            first: chunk.entry.block,
            end: chunk.entry.block + 1,
        };
        for (chunk, _) in reader.chunks(run).await? {
            plain.extend_from_slice(chunk.bytes());
        }
    }
    let packed = tokio::task::spawn_blocking(move || Encoder::new(level)?.encode(&plain)).await;
    packed
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
        .map_err(BootPackError::Compress)
}
