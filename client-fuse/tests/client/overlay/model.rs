//! Thousands of writes, syncs, discards, kills and power cuts against a flat file.
//!
//! A power cut is made of two states of the overlay file: what was there when the last sync ended,
//! and what is there now. Of each sector of 512 bytes that differs, either one may be on the disk.
//! `CIRCULAR_SEED` replays one run; `CIRCULAR_OPS` makes runs longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image_format::overlay::Layout;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use client_fuse::overlay::Overlay;

use super::{CHECKPOINT_BYTES, LENGTH, Writable, base_of, directory, open, store, under};
use crate::store::Random;

/// What a disk writes whole.
const SECTOR: usize = 512;

/// The sectors of a file that are not zero.
pub(super) type Sectors = BTreeMap<u64, [u8; SECTOR]>;

pub(super) struct Run {
    pub(super) random: Random,
    pub(super) path: PathBuf,
    pub(super) writable: Writable,
    /// Whether there may be a process after this one that goes on.
    pub(super) is_handed_on: bool,
    /// What a reader has to see.
    pub(super) now: Vec<u8>,
    /// What is left after a crash.
    pub(super) durable: Vec<u8>,
    /// The file when the last sync ended.
    pub(super) synced: Sectors,
    cuts: u32,
}

impl Run {
    pub(super) async fn begin(seed: u64, directory: &Path, is_handed_on: bool) -> Self {
        let path = directory.join("overlay");
        let writable = open_to(&path, is_handed_on).await;
        Self {
            random: Random(seed),
            synced: sectors(&path),
            path,
            writable,
            is_handed_on,
            now: store().disk.clone(),
            durable: store().disk.clone(),
            cuts: 0,
        }
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }

    /// Some bytes of the disk: often a few, sometimes many, often on the edges of blocks.
    pub(super) fn range(&mut self) -> Range<usize> {
        let grain = [1, 512, 4096, 4096][usize::try_from(self.below(4)).unwrap()];
        let most = [9000, 20_000, 200_000][usize::try_from(self.below(3)).unwrap()];
        let start = self.below(LENGTH) / grain * grain;
        let len = (1 + self.below(most)).next_multiple_of(grain);
        let at = |place: u64| usize::try_from(place.min(LENGTH)).unwrap();
        at(start)..at(start + len)
    }

    pub(super) async fn step(&mut self) {
        match self.below(100) {
            0..40 => {
                let range = self.range();
                let bytes = self.bytes(range.len());
                self.writable.write(range.start as u64, &bytes).await;
                self.now[range].copy_from_slice(&bytes);
            }
            40..50 => {
                let range = self.range();
                let (start, len) = (range.start as u64, range.len() as u64);
                self.writable.disk.discard(start, len).await.unwrap();
                self.now[range].fill(0);
            }
            50..70 => {
                let range = self.range();
                let len = u32::try_from(range.len()).unwrap();
                let found = self.writable.disk.read(range.start as u64, len).await;
                assert!(found.unwrap()[..] == self.now[range.clone()], "{range:?}");
            }
            70..85 => self.sync().await,
            85..90 => self.restart(None).await,
            90..95 => {
                let image = self.cut_between_syncs();
                self.restart(Some(image)).await;
            }
            _ => self.cut_within_a_sync().await,
        }
    }

    /// Something to write.
    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let fill = self.below(256).to_le_bytes()[0];
        let mut bytes = vec![fill; len];
        for (number, part) in (0..=u8::MAX).cycle().zip(bytes.chunks_mut(512)) {
            part.fill(fill ^ number);
        }
        bytes
    }

    pub(super) async fn sync(&mut self) {
        self.writable.disk.sync().await.unwrap();
        self.durable = self.now.clone();
        self.synced = sectors(&self.path);
    }

    /// The process is killed; or the machine, and `image` is on its disk afterwards. What was synced
    /// is there, and nothing else.
    async fn restart(&mut self, image: Option<Sectors>) {
        self.reopen(image).await;
        let found = self.writable.read_all().await;
        assert!(found == self.durable, "a crash leaves what was synced last");
        self.now = found;
    }

    async fn reopen(&mut self, image: Option<Sectors>) {
        self.leave(&image.unwrap_or_else(|| sectors(&self.path)));
        self.writable = open_to(&self.path, self.is_handed_on).await;
        self.synced = sectors(&self.path);
    }

    /// What a process leaves that is killed: this file. Nothing happens that the program might do at its end.
    pub(super) fn leave(&mut self, image: &Sectors) {
        let next = self.path.with_extension(self.cuts.to_string());
        write_file(&next, image);
        std::fs::remove_file(&self.path).unwrap();
        self.cuts += 1;
        self.path = next;
    }

    fn cut_between_syncs(&mut self) -> Sectors {
        let now = sectors(&self.path);
        let old = self.synced.clone();
        mix(&mut self.random, &old, &now, |_| true)
    }

    /// The machine dies while a sync is under way.
    async fn cut_within_a_sync(&mut self) {
        let before = sectors(&self.path);
        self.writable.disk.sync().await.unwrap();
        let after = sectors(&self.path);
        let image = self.within_a_sync(&before, &after);
        self.reopen(Some(image)).await;
        let found = self.writable.read_all().await;
        assert!(
            found == self.durable || found == self.now,
            "a sync happens or does not"
        );
        self.durable.clone_from(&found);
        self.now = found;
    }

    /// A file that a sync is at work on.
    pub(super) fn within_a_sync(&mut self, before: &Sectors, after: &Sectors) -> Sectors {
        let layout = Layout::of(LENGTH);
        let changed = |area: &Range<u64>| {
            let part = |sectors: &Sectors| -> Vec<_> {
                let part = sectors.range(area.clone());
                part.map(|(at, bytes)| (*at, *bytes)).collect()
            };
            part(before) != part(after)
        };
        let logs = [layout.log(0), layout.log(1)];
        let was_empty = |area: &Range<u64>| !before.contains_key(&area.start);
        // The log that is written: with a checkpoint both change, and it is the one that was empty.
        let written = logs.iter().find(|area| changed(area) && was_empty(area));
        let written = written.or_else(|| logs.iter().find(|area| changed(area)));
        let written = written.cloned().unwrap_or(0..0);
        // What is on disk before the next thing is begun: the log, then the erased start of an old
        // one; then the rest goes that nothing points to.
        let erased = logs.map(|area| area.start..area.start + 4096);
        let steps: [&dyn Fn(u64) -> bool; 3] = [
            &|at| written.contains(&at),
            &|at| erased.iter().any(|block| block.contains(&at)),
            &|_| true,
        ];
        let cut = usize::try_from(self.below(3)).unwrap();
        let mut image = before.clone();
        for done in &steps[..cut] {
            image.retain(|at, _| !done(*at));
            let new = after.iter().filter(|(at, _)| done(**at));
            image.extend(new.map(|(at, bytes)| (*at, *bytes)));
        }
        mix(&mut self.random, &image, after, steps[cut])
    }
}

async fn open_to(path: &Path, is_handed_on: bool) -> Writable {
    let store = store();
    if !is_handed_on {
        return open(&store, path).await.unwrap();
    }
    let opened = Overlay::open_to_hand_on_with(path, &base_of(&store), CHECKPOINT_BYTES);
    let (overlay, kept) = opened.unwrap();
    under(&store, overlay, Some(kept)).await
}

/// Of each sector that differs and `may` have changed, one or the other.
fn mix(random: &mut Random, old: &Sectors, new: &Sectors, may: impl Fn(u64) -> bool) -> Sectors {
    let mut out = old.clone();
    // Sometimes nearly all of it, sometimes nearly nothing.
    let odds = 1 + random.next() % 7;
    let places: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    for at in places.into_iter().filter(|at| may(*at)) {
        if random.next() % 8 < odds {
            match new.get(&at) {
                Some(bytes) => out.insert(at, *bytes),
                None => out.remove(&at),
            };
        }
    }
    out
}

pub(super) fn sectors(path: &Path) -> Sectors {
    let file = File::open(path).unwrap();
    let end = file.metadata().unwrap().len();
    let seek = |from: u64, whence| match lseek(&file, i64::try_from(from).unwrap(), whence) {
        Ok(found) => u64::try_from(found).unwrap(),
        Err(Errno::ENXIO) => end,
        Err(errno) => panic!("{errno}"),
    };
    let mut out = Sectors::new();
    let mut at = seek(0, Whence::SeekData);
    while at < end {
        let hole = seek(at, Whence::SeekHole);
        let mut bytes = vec![0; usize::try_from(hole - at).unwrap()];
        file.read_exact_at(&mut bytes, at).unwrap();
        for (place, sector) in (at..).step_by(SECTOR).zip(bytes.chunks_exact(SECTOR)) {
            if sector != [0; 512] {
                out.insert(place, sector.try_into().unwrap());
            }
        }
        at = seek(hole, Whence::SeekData);
    }
    out
}

pub(super) fn write_file(path: &Path, sectors: &Sectors) {
    let file = File::create_new(path).unwrap();
    file.set_len(Layout::of(LENGTH).file_bytes()).unwrap();
    for (at, bytes) in sectors {
        file.write_all_at(bytes, *at).unwrap();
    }
}

pub(super) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_written_disk_is_a_flat_file_through_kills_and_power_cuts() {
    let seeds = number("CIRCULAR_SEED").map_or(1..5, |seed| seed..seed + 1);
    let ops = number("CIRCULAR_OPS").unwrap_or(250);
    for seed in seeds {
        println!("CIRCULAR_SEED={seed} CIRCULAR_OPS={ops}");
        let directory = directory();
        let mut run = Run::begin(seed, directory.path(), false).await;
        for _ in 0..ops {
            run.step().await;
        }
        assert!(run.writable.read_all().await == run.now);
    }
}
