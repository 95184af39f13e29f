//! Real file systems that are full, turn read-only, die, or lose their power.

use std::fs;
use std::process::Command;

use super::damage::{check, filled};
use super::*;

/// A small file system of its own, taken away when the test ends.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// `None`: only root can mount one.
    fn mount(path: &'a Path, kind: &str, source: &str, options: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can mount a small file system");
            return None;
        }
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(source), path, Some(kind), flags, Some(options)).unwrap();
        Some(Self(path))
    }

    fn make_read_only(&self) {
        let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
        let none: Option<&str> = None;
        // What is open for writing keeps a file system writable; then nothing is to be tested.
        let _ = nix::mount::mount(none, self.0, none, flags, none);
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_file_system_makes_room_for_what_is_newer() {
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(directory.path(), "tmpfs", "small", "size=4m") else {
        return;
    };
    let cache = open(directory.path(), Some(1 << 30)).unwrap();
    for number in 0..60_u8 {
        let (place, chunk) = chunk_in(u32::from(number), 0, 32, number);
        assert!(cache.fill(&place, &chunk) > 0, "chunk {number}");
        assert!(matches!(cache.read(&place), Cached::Chunk(_)));
    }
    let (first, _) = chunk_in(0, 0, 32, 0);
    assert!(
        !matches!(cache.read(&first), Cached::Chunk(_)),
        "the oldest went"
    );
    drop((cache, small));
}

#[test]
fn a_file_system_filled_by_others_ends_filling_and_serves_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(directory.path(), "tmpfs", "small", "size=2m") else {
        return;
    };
    let (first, second) = (
        open(directory.path(), None).unwrap(),
        open(directory.path(), None).unwrap(),
    );
    let (place, kept) = chunk_in(0, 0, 8, 1);
    first.fill(&place, &kept);
    let other = fs::write(directory.path().join("other"), vec![1; 4 << 20]);
    assert!(other.is_err(), "the file system is full");
    let (far, chunk) = chunk_in(1, 0, 32, 5);
    // Another mount has the file too, so that nothing can go.
    assert_eq!(first.fill(&far, &chunk), 0);
    assert_eq!(read(&first, &place, 0..9).unwrap(), kept.bytes()[..9]);
    drop((first, second, small));
}

#[test]
fn a_file_system_that_turns_read_only_harms_no_reader() {
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(directory.path(), "tmpfs", "small", "size=8m") else {
        return;
    };
    let (cache, chunks) = filled(directory.path());
    small.make_read_only();
    check(&cache, &chunks);
    let (far, chunk) = chunk_in(1, 0, 32, 5);
    cache.fill(&far, &chunk);
    check(&cache, &chunks);
    drop(cache);
    small.make_read_only();
    assert!(
        open(directory.path(), None).is_err(),
        "no cache, said by an error"
    );
    drop(small);
}

/// A disk with a file system, of which the end can be lost.
struct Dying {
    backing: PathBuf,
    device: String,
    mounted: PathBuf,
}

impl Dying {
    /// An empty one; `None`: that cannot be made here.
    fn mount(directory: &Path) -> Option<Self> {
        let backing = directory.join("disk");
        File::create(&backing).unwrap().set_len(32 << 20).unwrap();
        let name = backing.to_str().unwrap();
        if tool(&["mkfs.ext4", "-q", name]).is_none() {
            println!("skipped: no mkfs.ext4");
            return None;
        }
        Self::mount_again(backing, directory.join("mnt"))
    }

    /// The one that is in this file.
    fn mount_again(backing: PathBuf, mounted: PathBuf) -> Option<Self> {
        fs::create_dir(&mounted).unwrap();
        let name = backing.to_str().unwrap();
        let attach = ["losetup", "--direct-io=on", "--find", "--show", name];
        let Some(device) = tool(&attach) else {
            println!("skipped: no losetup, or not root");
            return None;
        };
        let dying = Self {
            backing,
            device,
            mounted,
        };
        tool(&["mount", &dying.device, dying.mounted.to_str().unwrap()]).map(|_| dying)
    }

    /// Everything behind the first bytes is lost, and nothing of it is in memory.
    fn lose(&self, file: &Path) {
        let file = File::open(file).unwrap();
        file.sync_all().unwrap();
        nix::unistd::sync();
        let backing = File::options().write(true).open(&self.backing).unwrap();
        backing.set_len(1 << 20).unwrap();
        for cached in [&file, &File::open(&self.device).unwrap()] {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(cached, 0, 0, advice).unwrap();
        }
    }
}

impl Drop for Dying {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.mounted, nix::mount::MntFlags::MNT_DETACH);
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn tool(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

#[test]
fn after_a_power_cut_what_is_read_is_right() {
    const CUTS: u8 = 200;
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Dying::mount(directory.path()) else {
        return;
    };
    let (cache, mut chunks) = filled(&disk.mounted);
    cache.save();
    for cut in 0..CUTS {
        for number in 0..12_u8 {
            let seed = cut.wrapping_mul(12).wrapping_add(number);
            let (place, chunk) = chunk_in(0, 80 + u32::from(number), 1, seed);
            // Some of it is on its way to the disk, some is not, when the power goes.
            chunks.retain(|(other, _)| other.blocks() != place.blocks());
            cache.fill(&place, &chunk);
            chunks.push((place, chunk));
            if number == cut % 13 {
                nix::unistd::sync();
            }
        }
        let after = directory.path().join(format!("after-{cut}"));
        fs::create_dir(&after).unwrap();
        let copy = after.join("disk");
        fs::copy(&disk.backing, &copy).unwrap();
        let _mended = tool(&["e2fsck", "-p", copy.to_str().unwrap()]);
        let restarted = Dying::mount_again(copy, after.join("mnt")).unwrap();
        let cache = open(&restarted.mounted, None).unwrap();
        check(&cache, &chunks);
        assert_eq!(check(&cache, &chunks), 0, "it heals");
        drop((cache, restarted));
        fs::remove_file(after.join("disk")).unwrap();
    }
    drop((cache, disk));
}

#[test]
fn a_dying_disk_switches_the_cache_off_and_harms_no_reader() {
    let directory = tempfile::tempdir().unwrap();
    let Some(dying) = Dying::mount(directory.path()) else {
        return;
    };
    let mounted = dying.mounted.clone();
    let (cache, chunks) = filled(&mounted);
    assert_eq!(check(&cache, &chunks), 0);
    dying.lose(&file(&mounted));
    assert!(check(&cache, &chunks) > 0);
    assert!(!cache.is_on(), "an error of the disk ends the cache");
    assert_eq!(check(&cache, &chunks), chunks.len());
    drop((cache, dying));
}
