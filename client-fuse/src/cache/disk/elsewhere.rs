//! Finds chunks in the files of other versions, and at other places of this disk.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use image_format::BLOCK_BYTES;
use image_format::chunk::Chunk;

use super::{CacheFile, Cached, read_verified};
use crate::cache::desk;
use crate::cache::directory::{Directory, Room, open_ours};
use crate::cache::hints::{Hint, disk_key};
use crate::place::Place;

/// Files of other disks that are kept open: each is a version that shares chunks with this one.
const OTHERS_MAX: usize = 64;

impl CacheFile {
    /// The chunk of `place` from where a hint says that it is. Whatever is wrong there, it is not.
    pub(super) fn elsewhere(&self, place: &Place) -> Option<Chunk> {
        let own = self.hint(place)?;
        let busy = desk::begin();
        let mut places = self.hints.as_ref()?.find(&place.id());
        drop(busy);
        places.retain(|hint| *hint != own);
        places.into_iter().find_map(|hint| {
            let other = if hint.disk == own.disk {
                None
            } else {
                Some(self.other(hint.disk)?)
            };
            let file: &File = other.as_deref().unwrap_or(&self.file);
            let offset = u64::from(hint.block) * u64::from(BLOCK_BYTES);
            match read_verified(file, place, offset) {
                Ok(Cached::Chunk(chunk)) => Some(chunk),
                _ => None,
            }
        })
    }

    /// Whether a hint says that the chunk of `place` is anywhere else.
    pub(super) fn may_be_elsewhere(&self, place: &Place) -> bool {
        let (Some(own), Some(hints)) = (self.hint(place), &self.hints) else {
            return false;
        };
        hints.find(&place.id()).iter().any(|hint| *hint != own)
    }

    /// Notes that the chunk of `place` is there.
    pub(super) fn note(&self, place: &Place) {
        let _busy = desk::begin();
        if let (Some(hints), Some(hint)) = (&self.hints, self.hint(place))
            && let Err(error) = hints.note(&place.id(), hint)
        {
            tracing::debug!(%error, "where a chunk is is not noted");
        }
    }

    fn hint(&self, place: &Place) -> Option<Hint> {
        let block = u32::try_from(place.blocks().start).ok()?;
        let disk = disk_key(&self.disk);
        Some(Hint { disk, block })
    }

    /// The file of another disk. One that comes later is not noticed in this run.
    fn other(&self, key: u32) -> Option<Arc<File>> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = others.get(&key) {
            return known.clone();
        }
        if others.len() >= OTHERS_MAX {
            others.clear();
        }
        let mut found = None;
        let _busy = desk::begin();
        let visited = self.directory.each(Room::Disks, |name, path, _| {
            let disk = Directory::disk_of(name);
            if disk.is_some_and(|disk| disk_key(&disk) == key) {
                found = open_ours(path, false).ok().map(Arc::new);
            }
        });
        if let Err(error) = visited {
            tracing::debug!(%error, "other disks of the cache are not looked for");
        }
        others.insert(key, found.clone());
        found
    }
}
