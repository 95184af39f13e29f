//! Processes that die while they write, and others that go on with what they had, against a flat file.
//!
//! A process that is killed takes nothing from its files. What it was about to do it has done up to some page, and no further: so
//! the file is a mix of what it was before and after, and the journal has all that was noted by then. As in
//! [`super::model`], `CIRCULAR_SEED` replays one run, `CIRCULAR_OPS` makes runs longer, and the machine dies now and then, too.

use std::fs::File;
use std::os::unix::fs::FileExt;

use client_fuse::overlay::{Kept, Overlay, OverlayError};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::model::{Run, Sectors, number, sectors};
use super::{CHECKPOINT_BYTES, LENGTH, base_of, directory, store, under};

const BLOCK: usize = 4096;

/// Where the entries of a journal count from is said there.
const START_AT: usize = 8;

const ENTRY: usize = 16;

/// All bytes of the journal.
fn journal(run: &Run) -> Vec<u8> {
    let kept = run.writable.kept.as_ref().unwrap();
    let file = File::from(kept.journal.try_clone().unwrap());
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn start(journal: &[u8]) -> usize {
    let word = journal[START_AT..START_AT + 8].try_into().unwrap();
    usize::try_from(u64::from_le_bytes(word)).unwrap()
}

impl Run {
    /// Another process goes on with this file and this journal.
    async fn go_on(&mut self, image: &Sectors, journal: &[u8]) {
        self.leave(image);
        let memory = File::from(memfd_create(c"journal", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.write_all_at(journal, 0).unwrap();
        let options = File::options().read(true).write(true).open(&self.path);
        let kept = Kept {
            file: options.unwrap().into(),
            journal: memory.into(),
        };
        let next = kept.try_clone().unwrap();
        let store = store();
        let base = base_of(&store);
        let overlay = Overlay::resume_with(kept, &self.path, &base, CHECKPOINT_BYTES).unwrap();
        self.writable = under(&store, overlay, Some(next)).await;
        self.synced = sectors(&self.path);
    }

    /// Between two operations: nothing is lost.
    async fn die(&mut self) {
        let (image, journal) = (sectors(&self.path), journal(self));
        self.go_on(&image, &journal).await;
        assert!(self.writable.read_all().await == self.now);
    }

    /// In the middle of a write, which is then made again, as the kernel does: until then, each block is as it was before
    /// or after it.
    async fn die_within_a_write(&mut self) {
        let range = self.range();
        let bytes = self.bytes(range.len());
        let (file_before, journal_before) = (sectors(&self.path), journal(self));
        self.writable.write(range.start as u64, &bytes).await;
        let (file_after, journal_after) = (sectors(&self.path), journal(self));
        let mut then = self.now.clone();
        then[range.clone()].copy_from_slice(&bytes);
        let made = start(&journal_before) == start(&journal_after);
        // If a sync made room for it, the write came after that: it is not one that can be cut here.
        let (image, journal) = if !made {
            (file_after, journal_after)
        } else if self.below(3) == 0 {
            let noted = journal_after.len() - journal_before.len();
            let noted = usize::try_from(self.below(noted as u64 + 1)).unwrap();
            // Not all of it was noted: then nothing of it was written.
            (
                file_before,
                journal_after[..journal_before.len() + noted].to_vec(),
            )
        } else {
            (self.mixed_blocks(file_before, &file_after), journal_after)
        };
        self.go_on(&image, &journal).await;
        let found = self.writable.read_all().await;
        let blocks = found
            .chunks(BLOCK)
            .zip(self.now.chunks(BLOCK))
            .zip(then.chunks(BLOCK));
        for (number, ((found, before), after)) in blocks.enumerate() {
            assert!(found == before || found == after, "block {number}");
        }
        self.writable.write(range.start as u64, &bytes).await;
        self.now = then;
        assert!(self.writable.read_all().await == self.now);
    }

    /// Of each block that differs, one or the other.
    fn mixed_blocks(&mut self, before: Sectors, after: &Sectors) -> Sectors {
        let mut image = before;
        let of_block = |at: &u64| at / BLOCK as u64;
        let places: std::collections::BTreeSet<_> =
            image.keys().chain(after.keys()).map(of_block).collect();
        for block in places
            .into_iter()
            .filter(|_| self.random.next().is_multiple_of(2))
        {
            image.retain(|at, _| of_block(at) != block);
            let new = after.iter().filter(|(at, _)| of_block(at) == block);
            image.extend(new.map(|(at, bytes)| (*at, *bytes)));
        }
        image
    }

    /// In the middle of a sync: nothing is lost, whether or not it was made.
    async fn die_within_a_sync(&mut self) {
        let (file_before, journal_before) = (sectors(&self.path), journal(self));
        self.writable.disk.sync().await.unwrap();
        let (file_after, journal_after) = (sectors(&self.path), journal(self));
        let end = start(&journal_after);
        // That a batch begins was noted last; what is before that may have been given back.
        let begun = journal_after.get(end - ENTRY..end);
        let begun = begun.filter(|begun| begun.iter().any(|byte| *byte != 0));
        let (image, journal) = match begun {
            Some(begun) if start(&journal_before) != end => {
                let journal = [&journal_before[..], begun].concat();
                (self.within_a_sync(&file_before, &file_after), journal)
            }
            _ => (file_after, journal_after),
        };
        self.go_on(&image, &journal).await;
        assert!(
            self.writable.read_all().await == self.now,
            "nothing is lost"
        );
        self.sync().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_written_disk_is_a_flat_file_through_deaths_of_who_writes() {
    let seeds = number("CIRCULAR_SEED").map_or(11..15, |seed| seed..seed + 1);
    let ops = number("CIRCULAR_OPS").unwrap_or(250);
    for seed in seeds {
        println!("CIRCULAR_SEED={seed} CIRCULAR_OPS={ops}");
        let directory = directory();
        let mut run = Run::begin(seed, directory.path(), true).await;
        for _ in 0..ops {
            match run.below(12) {
                0 => run.die().await,
                1 | 2 => run.die_within_a_write().await,
                3 => run.die_within_a_sync().await,
                _ => run.step().await,
            }
        }
        assert!(run.writable.read_all().await == run.now);
    }
}

/// Nobody can say then what is on disk: not to the next process either.
#[tokio::test]
async fn an_overlay_that_is_out_of_use_is_so_for_the_next_process() {
    let directory = directory();
    let mut run = Run::begin(1, directory.path(), true).await;
    run.writable.write(0, &[7; 5000]).await;
    let mut noted = journal(&run);
    // The entry that says so, as the next version of this program must read it, too.
    noted.extend([0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]);
    let image = sectors(&run.path);
    run.go_on(&image, &noted).await;
    let found = run.writable.read_all().await;
    assert!(found[..5000] == [7; 5000], "it is readable");
    assert_eq!(found.len() as u64, LENGTH);
    let refused = run.writable.disk.sync().await.unwrap_err().to_string();
    assert!(refused.contains("out of use"), "{refused}");
}

#[tokio::test]
async fn a_journal_of_another_program_is_refused() {
    let directory = directory();
    let run = Run::begin(1, directory.path(), true).await;
    let memory = File::from(memfd_create(c"journal", MFdFlags::MFD_CLOEXEC).unwrap());
    memory.write_all_at(&[9; 5000], 0).unwrap();
    // Whoever takes over has the lock of the one before.
    let path = directory.path().join("copy");
    std::fs::copy(&run.path, &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let kept = Kept {
        file: file.into(),
        journal: memory.into(),
    };
    let refused = Overlay::resume_with(kept, &path, &base_of(&store()), CHECKPOINT_BYTES);
    let refused = refused.unwrap_err();
    assert!(
        matches!(
            refused,
            OverlayError::Io {
                attempt: "take over",
                ..
            }
        ),
        "{refused:?}"
    );
}

/// The kernel tells an error of a disk once; whoever was told died with it. What is not there is not synced.
#[tokio::test]
async fn a_sync_whose_error_nobody_heard_is_not_built_upon() {
    let directory = directory();
    let mut run = Run::begin(1, directory.path(), true).await;
    run.writable.write(0, &[7; 4096]).await;
    run.writable.write(40_960, &[8; 4096]).await;
    let mut noted = journal(&run);
    // A batch begins: the first of the first generation.
    noted.extend([1, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut image = sectors(&run.path);
    // One block did not get to the disk, and the kernel has dropped it.
    image.retain(|_, bytes| bytes[..] != [8; 512]);
    run.go_on(&image, &noted).await;
    let found = run.writable.disk.read(0, 4096).await.unwrap();
    assert!(found[..] == [7; 4096]);
    assert!(run.writable.disk.read(40_960, 4096).await.is_err());
    let refused = run.writable.disk.sync().await.unwrap_err().to_string();
    assert!(refused.contains("out of use"), "{refused}");
}
