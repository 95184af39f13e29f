//! Carries the boot pack of a name over to a disk that is about to be its next version.
//!
//! What machines read of the version before, they will mostly read of the next one: the profile is
//! looked up on the new disk, by chunk, then by the paths of files (`moves`), then by place, and a new
//! boot pack is built from it.

use std::collections::{BTreeSet, HashSet};

use image_format::catalogue::Catalogue;
use image_format::manifest::{BootPack, Disk, Manifest};
use image_format::profile::{Carried, Profile, StandIns, Steadiness, Touched};
use image_format::{ChunkId, Digest, ImageName, ImageRef, REGION_BLOCKS, Version, boot_pack};
use image_store::{BootPackError, BuiltBootPack, ImageReader, Store};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::moves;
use crate::explain;
use crate::explain::ext4::{self, Span};
use crate::ui;

/// How many versions are looked through for a profile, newest first.
const VERSIONS_MAX: usize = 16;

/// A boot pack that was carried over, for scripts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CarriedOver {
    /// Chunks of the new boot pack.
    pub chunks: usize,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Bytes of the boot pack in the store.
    pub stored_bytes: u64,
    /// How much of the profile was found on the new disk, and how.
    #[serde(flatten)]
    pub carried: Carried,
}

/// Builds the boot pack of `disk`, the next version of `reference`, from the profile of a version with the same content,
/// of the one that the tag points to, or else of the newest that has one. `None`: no version has a profile, or
/// one has this very disk already. `files`: whether to follow files by their paths, for which much of both disks is
/// read.
///
/// # Errors
/// The store cannot be read or written, or the profile is damaged.
pub async fn carry_over(
    store: &Store,
    reference: &ImageRef,
    disk: &Disk,
    files: bool,
    workers: usize,
) -> Result<Option<BuiltBootPack>, BootPackError> {
    let names = store.names().await?;
    if !names.names.contains_key(&reference.name) {
        return Ok(None);
    }
    let catalogue = store.catalogue(&names, &reference.name).await?;
    let known = |entry: &image_format::catalogue::VersionEntry| entry.disk == disk.regions.digest;
    if catalogue.versions.values().any(known) {
        return Ok(None);
    }
    let Some(before) = newest(store, &catalogue, reference, disk.content).await? else {
        return Ok(None);
    };
    let profile = store.profile(&before.pack).await?;
    let stand_ins = match files {
        true => stand_ins(store, &profile, &before.disk, disk).await,
        false => StandIns::new(),
    };
    store
        .build_boot_pack(
            disk,
            &profile,
            &stand_ins,
            &booted(&profile),
            boot_pack::LEVEL_DEFAULT,
            workers,
        )
        .await
        .map(Some)
}

/// Returns what machines have that booted the last version before `version` that has a boot pack. Nothing, if there is none,
/// or it cannot be read: it only makes a boot pack better.
pub async fn booted_before(store: &Store, name: &ImageName, version: Version) -> HashSet<ChunkId> {
    let found = profile_before(store, name, version).await;
    let found = found.unwrap_or_else(|error| {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(
            error,
            "what the version before had in its boot pack is not known"
        );
        None
    });
    found.map_or_else(HashSet::new, |profile| booted(&profile))
}

async fn profile_before(
    store: &Store,
    name: &ImageName,
    version: Version,
) -> Result<Option<Profile>, BootPackError> {
    let names = store.names().await?;
    let catalogue = store.catalogue(&names, name).await?;
    let older = catalogue.versions.range(..version).rev();
    for (_, entry) in older.take(VERSIONS_MAX) {
        let manifest = store.manifest(&entry.manifest).await?;
        if let Some(pack) = manifest.boot_pack {
            return store.profile(&pack).await.map(Some);
        }
    }
    Ok(None)
}

/// What the boot pack made from `profile` brings to whoever boots.
fn booted(profile: &Profile) -> HashSet<ChunkId> {
    let steady = |touched: &&Touched| profile.steadiness(touched) != Steadiness::Once;
    let brought = profile.touched.iter().filter(steady);
    brought.map(|touched| touched.chunk).collect()
}

/// Regions that a boot from this boot pack reads.
pub fn regions(built: &BuiltBootPack) -> BTreeSet<u32> {
    let touched = built.profile.touched.iter();
    let regions = touched.map(|touched| touched.block / u64::from(REGION_BLOCKS));
    regions
        .filter_map(|region| region.try_into().ok())
        .collect()
}

/// A version that has a boot pack.
struct Before {
    disk: Disk,
    pack: BootPack,
}

async fn newest(
    store: &Store,
    catalogue: &Catalogue,
    reference: &ImageRef,
    content: Digest,
) -> Result<Option<Before>, BootPackError> {
    let tagged = catalogue
        .tags
        .get(&reference.tag_or_latest())
        .and_then(|version| catalogue.versions.get(version));
    let all = || catalogue.versions.values().rev();
    let same = all().filter(|entry| entry.content == content);
    let from = same.chain(tagged).chain(all());
    for entry in from.take(VERSIONS_MAX) {
        let Manifest {
            disk, boot_pack, ..
        } = store.manifest(&entry.manifest).await?;
        if let Some(pack) = boot_pack {
            return Ok(Some(Before { disk, pack }));
        }
    }
    Ok(None)
}

/// Of more files and parts of files than this no list is made: its memory would grow with the image.
const SPANS_MAX: usize = 500_000;

/// Where files went between two disks. Nothing is known of a disk whose file systems are not all ext4 that can be walked:
/// then places serve, as they do for what belongs to no file.
async fn stand_ins(store: &Store, profile: &Profile, old: &Disk, new: &Disk) -> StandIns {
    let (Some(old), Some(new)) = (spans(store, old).await, spans(store, new).await) else {
        return StandIns::new();
    };
    let profile = profile.clone();
    let following = spawn_blocking(move || moves::stand_ins(&profile, &old, &new));
    following.await.unwrap_or_default()
}

async fn spans(store: &Store, disk: &Disk) -> Option<Vec<Span>> {
    let reader = ImageReader::open_disk(store.clone(), disk).await.ok()?;
    let mut disk = explain::disk::Disk::of_store(reader, Handle::current());
    let walking = spawn_blocking(move || ext4::walk_all(&mut disk, SPANS_MAX));
    let (spans, failed) = walking.await.ok()?.ok()?;
    if let Some((_, error)) = failed.first() {
        let error: &dyn std::error::Error = error;
        tracing::warn!(
            error,
            "files are not followed to where they went; their places serve"
        );
    }
    (failed.is_empty() && !spans.is_empty()).then_some(spans)
}

impl CarriedOver {
    /// What `built` came to.
    pub fn of(built: &BuiltBootPack) -> Self {
        Self {
            chunks: built.chunks,
            plain_bytes: built.plain_bytes,
            stored_bytes: built.boot_pack.map_or(0, |pack| pack.object.length),
            carried: built.carried,
        }
    }

    /// Says it in one line.
    pub fn text(&self) -> String {
        let Carried {
            by_content_bytes,
            by_path_bytes,
            by_position_bytes,
            ..
        } = self.carried;
        let total = self.carried.total_bytes();
        format!(
            "{} chunks, {} packed to {}; of the profile {} found by content, {} by path, {} by place",
            self.chunks,
            ui::size(self.plain_bytes),
            ui::size(self.stored_bytes),
            ui::percent(by_content_bytes, total),
            ui::percent(by_path_bytes, total),
            ui::percent(by_position_bytes, total),
        )
    }
}
