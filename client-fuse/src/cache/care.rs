//! Looks after a cache directory from outside of every mount: what is in it, whether it is right,
//! and how it is emptied.
//!
//! What a chunk must be is said by the index of its disk, which is cached too: a disk is named by the
//! digest of its region table, that names its pages, and they name its chunks. So everything can be
//! verified without a server, as far as the pages were kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image_format::digest::Digest;
use image_format::page::{PAGE_BYTES_MAX, Page};
use image_format::region_table::{LEAF_BYTES_MAX, LeafTable, Lookup, RegionTable, TABLE_BYTES_MAX};
use image_format::{BLOCK_BYTES, REGION_BYTES};
use serde::Serialize;

use crate::cache::blocks::BlockSet;
use crate::cache::directory::{Directory, LOCK, Patience, Room, open_ours};
use crate::cache::disk::evict::Idle;
use crate::cache::disk::{Cached, read_verified};
use crate::cache::documents::{Documents, Name};
use crate::cache::sparse;
use crate::place::Place;

/// Why a cache directory cannot be looked after.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum CareError {
    #[error("{} is no cache directory: it has no {}", path.display(), Room::Disks.name())]
    NoCache { path: PathBuf },
    #[error("cannot look through {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is being counted or cleaned up by another process; try again", path.display())]
    Busy { path: PathBuf },
    #[error("{} is not a file of the cache: nothing is removed from a directory that others use too", path.display())]
    Foreign { path: PathBuf },
}

/// What a directory holds.
#[derive(Debug, Serialize)]
pub struct Stat {
    /// Where it is.
    pub directory: String,
    /// The bound for a mount that begins now.
    pub bytes_max: u64,
    /// All that its files occupy.
    pub bytes: u64,
    /// Of these, documents and metadata.
    pub documents_bytes: u64,
    /// Bytes that mounts may still fill in.
    pub granted_bytes: u64,
    /// The disks.
    pub disks: Vec<DiskStat>,
}

/// What a directory holds of a disk.
#[derive(Debug, Serialize)]
pub struct DiskStat {
    /// Its digest.
    pub disk: String,
    /// Its length.
    pub length: u64,
    /// What its file occupies.
    pub bytes: u64,
    /// Whether somebody mounts it.
    pub mounted: bool,
}

/// What was found of a disk.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// Its digest.
    pub disk: String,
    /// Chunks that are what they must be.
    pub right: u64,
    /// Chunks that are not; they are fetched anew when they are read.
    pub wrong: u64,
    /// Whether the wrong ones were taken out.
    pub removed: bool,
    /// Bytes that no page in the cache says anything about.
    pub unknown_bytes: u64,
}

/// What was removed.
#[derive(Debug, Default, Serialize)]
pub struct Cleared {
    /// Disks.
    pub disks: usize,
    /// Disks that somebody mounts, which stay.
    pub mounted: usize,
}

/// Counts what `directory` holds. Blocks on the disk.
///
/// # Errors
///
/// When it is no cache directory, or cannot be read.
pub fn stat(directory: &Directory) -> Result<Stat, CareError> {
    let failed = failed(directory);
    let _lock = lock(directory)?;
    let mut disks = Vec::new();
    directory
        .each(Room::Disks, |name, path, metadata| {
            use std::os::unix::fs::MetadataExt as _;

            if let Some(disk) = Directory::disk_of(name) {
                disks.push(DiskStat {
                    disk: disk.to_string(),
                    length: metadata.len(),
                    bytes: metadata.blocks() * 512,
                    mounted: Idle::lock(path, disk).is_none(),
                });
            }
        })
        .map_err(&failed)?;
    disks.sort_by(|a, b| a.disk.cmp(&b.disk));
    let used = directory.used(None).map_err(&failed)?;
    Ok(Stat {
        directory: directory.path().display().to_string(),
        bytes_max: directory.bytes_max(),
        bytes: used.disks + used.documents,
        documents_bytes: used.documents,
        granted_bytes: used.granted,
        disks,
    })
}

/// Verifies every chunk that `directory` holds, and takes out what is wrong in files that nobody
/// mounts. Blocks on the disk for as long as it takes to read all of it.
///
/// # Errors
///
/// When it is no cache directory, or cannot be read.
pub fn verify(directory: &Directory) -> Result<Vec<Verified>, CareError> {
    let failed = failed(directory);
    drop(lock(directory)?);
    let mut disks = Vec::new();
    directory
        .each(Room::Disks, |name, path, _| {
            disks.extend(Directory::disk_of(name).map(|disk| (disk, path.to_owned())));
        })
        .map_err(&failed)?;
    disks.sort();
    let documents = Documents::of(directory.clone());
    let mut all = Vec::new();
    for (disk, path) in disks {
        let (mut verified, wrong) = verify_disk(&documents, disk, &path).map_err(&failed)?;
        if !wrong.is_empty() {
            let _lock = lock(directory)?;
            if let Some(idle) = Idle::lock(&path, disk) {
                for place in wrong {
                    sparse::punch(&idle.file, place.on_disk()).map_err(&failed)?;
                }
                verified.removed = true;
            }
        }
        all.push(verified);
    }
    Ok(all)
}

fn verify_disk(
    documents: &Documents,
    disk: Digest,
    path: &Path,
) -> io::Result<(Verified, Vec<Place>)> {
    let mut verified = Verified {
        disk: disk.to_string(),
        ..Verified::default()
    };
    let mut wrong = Vec::new();
    let file = open_ours(path, false)?;
    let bytes = file.metadata()?.len();
    let table = documents.find(Name::Whole(disk), TABLE_BYTES_MAX as u64);
    let table = table.and_then(|table| RegionTable::decode(&table).ok());
    for number in 0..bytes.div_ceil(REGION_BYTES) {
        let start = number * REGION_BYTES;
        let data = sparse::data_in(&file, start..start + REGION_BYTES)?;
        if data.is_empty() {
            continue;
        }
        let region = u32::try_from(number).map_err(io::Error::other)?;
        let page = table
            .as_ref()
            .and_then(|table| page(documents, table, region));
        let Some(page) = page else {
            verified.unknown_bytes += data.iter().map(|data| data.end - data.start).sum::<u64>();
            continue;
        };
        let mut present = BlockSet::default();
        let block = u64::from(BLOCK_BYTES);
        for data in data {
            present.insert(data.start / block..data.end.div_ceil(block));
        }
        let places = page.entries().iter();
        let places = places.map(|entry| Place::new(region, *entry, page.pack(entry)));
        for place in places.filter(|place| present.contains(place.blocks())) {
            match read_verified(&file, &place, place.disk_offset()) {
                Ok(Cached::Chunk(_)) => verified.right += 1,
                // A hole that is a zero block of ours, or one that came meanwhile: not there.
                Ok(Cached::Miss) => {}
                _ => {
                    verified.wrong += 1;
                    wrong.push(place);
                }
            }
        }
    }
    Ok((verified, wrong))
}

fn page(documents: &Documents, table: &RegionTable, region: u32) -> Option<Page> {
    if region >= table.n_regions() {
        return None;
    }
    let digest = match table.lookup(region) {
        Lookup::Hole => return None,
        Lookup::Page(page) => page,
        Lookup::Leaf { leaf, number, slot } => {
            let leaf = documents.find(Name::Whole(leaf), LEAF_BYTES_MAX as u64)?;
            LeafTable::decode(&leaf, table, number).ok()?.page(slot)?
        }
    };
    let page = documents.find(Name::Whole(digest), PAGE_BYTES_MAX as u64)?;
    Page::decode(&page).ok()
}

/// Removes everything from `directory` but what is mounted. Blocks on the disk.
///
/// # Errors
///
/// When something in it is not ours; then nothing is removed.
pub fn clear(directory: &Directory) -> Result<Cleared, CareError> {
    let failed = failed(directory);
    let _lock = lock(directory)?;
    refuse_foreign(directory)?;
    let mut cleared = Cleared::default();
    let mut result = Ok(());
    directory
        .each(Room::Disks, |name, path, _| {
            if let Some(disk) = Directory::disk_of(name) {
                match Idle::lock(path, disk) {
                    Some(idle) => {
                        cleared.disks += 1;
                        result = std::mem::replace(&mut result, Ok(()))
                            .and_then(|()| idle.remove(directory));
                    }
                    None => cleared.mounted += 1,
                }
            }
        })
        .and(result)
        .map_err(&failed)?;
    // This removes the grants of those that are gone.
    directory.used(None).map_err(&failed)?;
    for room in Room::ALL {
        let keep = |name: &str| {
            room == Room::Disks && (cleared.mounted > 0 || name == LOCK || name.ends_with(".grant"))
        };
        let mut ours = Vec::new();
        let listed = directory.each(room, |name, path, _| {
            if !keep(name) {
                ours.push(path.to_owned());
            }
        });
        listed.map_err(&failed)?;
        for path in ours {
            fs::remove_file(path).map_err(&failed)?;
        }
    }
    if cleared.mounted == 0 {
        // Whoever comes now makes them anew; what is not empty stays.
        let _ = fs::remove_file(directory.of(Room::Disks).join(LOCK));
        for room in Room::ALL {
            let _ = fs::remove_dir(directory.of(room));
        }
    }
    Ok(cleared)
}

fn refuse_foreign(directory: &Directory) -> Result<(), CareError> {
    let failed = failed(directory);
    let foreign = |path| Err(CareError::Foreign { path });
    for entry in fs::read_dir(directory.path()).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let name = entry.file_name();
        let room = Room::ALL.into_iter().find(|room| name == room.name());
        let Some(room) = room.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) else {
            return foreign(entry.path());
        };
        for entry in fs::read_dir(entry.path()).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let ours = entry
                .file_name()
                .to_str()
                .is_some_and(|name| room.owns(name));
            if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                return foreign(entry.path());
            }
        }
    }
    Ok(())
}

fn lock(directory: &Directory) -> Result<impl Drop + use<>, CareError> {
    let path = || directory.path().to_owned();
    if !directory.of(Room::Disks).is_dir() {
        return Err(CareError::NoCache { path: path() });
    }
    let locked = directory.lock(Patience::Long).map_err(failed(directory))?;
    locked.ok_or_else(|| CareError::Busy { path: path() })
}

fn failed(directory: &Directory) -> impl Fn(io::Error) -> CareError + use<> {
    let path = directory.path().to_owned();
    move |source| CareError::Io {
        path: path.clone(),
        source,
    }
}
