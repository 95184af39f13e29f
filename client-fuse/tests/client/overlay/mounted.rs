//! The program itself: a disk that the kernel writes to, in every way it has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{EFBIG, ENOSPC, EOPNOTSUPP, EPERM, O_DIRECT};
use nix::mount::{MntFlags, MsFlags, umount, umount2};

use super::directory;
use crate::mount::{Mounted, assert_ok, can_mount, mount, mount_dir, program};
use crate::server::{Manner, serve};
use crate::store::{Random, Store, mixed_disk};

/// A store that is served, a place to mount it on, and an overlay file in memory.
pub(super) struct Place {
    pub(super) store: Arc<Store>,
    pub(super) base: String,
    pub(super) mounted: Mounted,
    pub(super) overlay: PathBuf,
    _directory: tempfile::TempDir,
}

impl Place {
    pub(super) fn new(blocks: usize) -> Self {
        let store = Arc::new(Store::of(mixed_disk(blocks, 0)));
        let directory = directory();
        Self {
            base: serve(&store, Manner::Right),
            mounted: mount_dir(&store),
            overlay: directory.path().join("overlay"),
            store,
            _directory: directory,
        }
    }

    pub(super) fn mount(&self) {
        let overlay = self.overlay.to_str().unwrap();
        assert_ok(&mount(&self.base, &self.mounted, &["--overlay", overlay]));
    }

    /// Mounts with the client as a child, so that it can be killed.
    pub(super) fn mount_child(&self, overlay: &Path) -> Child {
        let mut command = program(&self.base, &self.mounted, &self.mounted.point(), &[]);
        let mut child = command
            .args(["--no-cache", "--foreground", "--overlay"])
            .arg(overlay)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        while !self.mounted.disk().exists() {
            assert!(child.try_wait().unwrap().is_none(), "it mounts");
            std::thread::yield_now();
        }
        child
    }

    pub(super) fn unmount(&self) {
        umount(&self.mounted.point()).unwrap();
    }

    /// Waits until the client that was unmounted has let go of the overlay.
    pub(super) fn wait_until_free(&self) {
        let file = File::open(&self.overlay).unwrap();
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive);
        drop(lock.unwrap());
    }

    pub(super) fn open(&self) -> File {
        open_rw(&self.mounted.disk()).unwrap()
    }
}

fn open_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

pub(super) fn kill_9(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

pub(super) fn run(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{command} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_kernel_mount_with_an_overlay_keeps_what_is_written() {
    if !can_mount() {
        return;
    }
    let place = Place::new(2000);
    let mut model = place.store.disk.clone();
    place.mount();
    let metadata = fs::metadata(place.mounted.disk()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let file = place.open();
    for (offset, len) in [(0, 1), (4095, 2), (100_000, 300_000), (model.len() - 7, 7)] {
        model[offset..offset + len].fill(0x5A);
        file.write_all_at(&vec![0x5A; len], offset as u64).unwrap();
    }
    let both = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, both, 200_000, 150_000).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 1_000_000, 4096).unwrap();
    model[200_000..350_000].fill(0);
    model[1_000_000..1_004_096].fill(0);
    file.sync_all().unwrap();
    assert!(fs::read(place.mounted.disk()).unwrap() == model);
    drop(file);
    place.unmount();
    place.wait_until_free();
    place.mount();
    assert!(
        fs::read(place.mounted.disk()).unwrap() == model,
        "after a restart"
    );
    assert!(
        fs::metadata(&place.overlay).unwrap().mode() & 0o077 == 0,
        "its owner's alone"
    );
}

#[test]
fn a_disk_keeps_its_length_and_its_owner() {
    if !can_mount() {
        return;
    }
    let place = Place::new(500);
    place.mount();
    let path = place.mounted.disk();
    let file = place.open();
    let length = place.store.disk.len() as u64;
    file.set_len(length).unwrap();
    assert_eq!(errno(file.set_len(length + 1)), Some(EPERM));
    assert_eq!(errno(File::create(&path)), Some(EPERM));
    let wider = fs::Permissions::from_mode(0o666);
    assert_eq!(errno(fs::set_permissions(&path, wider)), Some(EPERM));
    assert_eq!(errno(file.write_at(b"x", length)), Some(EFBIG));
    assert_eq!(file.write_at(b"xyz", length - 2).unwrap(), 2);
    let allocate = fallocate(&file, FallocateFlags::empty(), 0, 4096);
    assert_eq!(allocate.unwrap_err() as i32, EOPNOTSUPP);
    file.set_modified(std::time::SystemTime::now()).unwrap();
    assert!(open_rw(&place.mounted.point().join(".circular/image.json")).is_err());
    assert!(File::create(place.mounted.point().join("new")).is_err());
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
}

#[test]
fn a_full_disk_refuses_a_write_and_loses_none() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new(2600);
    let small = place.mounted.directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let size = Some("size=6m");
    nix::mount::mount(Some("none"), &small, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    place.overlay = small.join("overlay");
    let mut model = place.store.disk.clone();
    place.mount();
    let file = place.open();
    let mut random = Random(1);
    let mut refused = 0;
    for step in 0..400_u64 {
        let at = usize::try_from(random.next()).unwrap() % 645 * 16_384;
        let bytes = vec![step.to_le_bytes()[0]; 16_384];
        match file.write_at(&bytes, at as u64) {
            Ok(count) => model[at..at + count].fill(bytes[0]),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(ENOSPC));
                refused += 1;
                // What a refused write did write may be there, whole blocks of it.
                let found = &mut model[at..at + 16_384];
                file.read_exact_at(found, at as u64).unwrap();
            }
        }
        if step % 50 == 0 {
            file.sync_all().unwrap();
        }
    }
    assert!(refused > 10, "{refused} writes were refused");
    file.sync_all().unwrap();
    assert!(fs::read(place.mounted.disk()).unwrap() == model);
    drop(file);
    place.unmount();
    place.wait_until_free();
    // It is opened again though others have taken all that was left.
    let mut others = File::create(small.join("others")).unwrap();
    while others.write_all(&[1; 4096]).is_ok() {}
    place.mount();
    while others.write_all(&[1; 4096]).is_ok() {}
    let file = place.open();
    assert!(fs::read(place.mounted.disk()).unwrap() == model);
    // Space that is given back can be written again.
    let both = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, both, 0, 8 << 20).unwrap();
    model[..8 << 20].fill(0);
    file.sync_all().unwrap();
    file.write_all_at(&[3; 100_000], 50_000).unwrap();
    model[50_000..150_000].fill(3);
    drop(file);
    place.unmount();
    place.wait_until_free();
    place.mount();
    assert!(
        fs::read(place.mounted.disk()).unwrap() == model,
        "after a restart"
    );
    place.unmount();
    place.wait_until_free();
    // Whoever served it may not have let go of all of it yet.
    umount2(&small, MntFlags::MNT_DETACH).unwrap();
}

/// Whoever served it still keeps what was written.
#[test]
fn an_overlay_is_waited_for_that_an_ended_mount_still_has() {
    if !can_mount() {
        return;
    }
    let place = Place::new(600);
    place.mount();
    place.open().write_all_at(&[3; 5000], 70_000).unwrap();
    place.unmount();
    place.wait_until_free();
    let file = File::open(&place.overlay).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let released = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(700));
        drop(lock);
    });
    place.mount();
    released.join().unwrap();
    let mut found = [0; 5000];
    place.open().read_exact_at(&mut found, 70_000).unwrap();
    assert_eq!(found, [3; 5000]);
}

#[test]
fn direct_and_cached_writes_meet_in_one_disk() {
    if !can_mount() {
        return;
    }
    let place = Place::new(600);
    let mut model = place.store.disk.clone();
    place.mount();
    let cached = place.open();
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(place.mounted.disk())
        .unwrap();
    let mut random = Random(9);
    // A page's own alignment is what direct I/O wants of memory.
    let mut page = vec![0; 3 * 4096];
    let aligned = page.as_ptr().align_offset(4096);
    for step in 0..600 {
        let value = random.next().to_le_bytes()[0];
        let block = usize::try_from(random.next() % 599).unwrap() * 4096;
        let buffer = &mut page[aligned..aligned + 8192];
        match step % 4 {
            0 => {
                buffer.fill(value);
                direct.write_all_at(buffer, block as u64).unwrap();
                model[block..block + 8192].fill(value);
            }
            1 => {
                let at = block + usize::from(value);
                cached.write_all_at(&[value; 5000], at as u64).unwrap();
                model[at..at + 5000].fill(value);
            }
            2 => {
                direct.read_exact_at(buffer, block as u64).unwrap();
                assert!(buffer[..] == model[block..block + 8192], "step {step}");
            }
            _ => {
                let mut found = vec![0; 5000];
                cached.read_exact_at(&mut found, block as u64).unwrap();
                assert!(found == model[block..block + 5000], "step {step}");
            }
        }
        if step % 97 == 0 {
            cached.sync_data().unwrap();
        }
    }
    assert!(fs::read(place.mounted.disk()).unwrap() == model);
}
