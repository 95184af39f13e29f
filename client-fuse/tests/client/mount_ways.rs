//! Other ways to mount, and to look at what is mounted: a file, fstab, a descriptor.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, umount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mount::{Mounted, assert_ok, can_mount, mount, mount_dir, program, supervise};
use crate::server::{Manner, serve};
use crate::store::{Store, mixed_disk};

/// What is mounted here goes when the test ends.
struct Point(PathBuf);

impl Drop for Point {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A file that goes when the test ends.
struct Link(PathBuf);

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn store() -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(700, 0)))
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_empty_file_becomes_the_disk() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    let point = Point(mounted.directory.path().join("disk.img"));
    fs::write(&point.0, "").unwrap();
    let overlay = mounted.directory.path().join("overlay");
    let mut model = store.disk.clone();
    for round in 0..2_u8 {
        let mut command = program(&base, &mounted, &point.0, &["--no-cache", "--overlay"]);
        assert_ok(&command.arg(&overlay).stdin(Stdio::null()).output().unwrap());
        assert!(fs::read(&point.0).unwrap() == model);
        let file = fs::File::options().read(true).write(true).open(&point.0);
        let file = file.unwrap();
        file.write_all_at(&[round; 5000], 70_000).unwrap();
        model[70_000..75_000].fill(round);
        file.sync_all().unwrap();
        assert_eq!(fs::metadata(&point.0).unwrap().len(), model.len() as u64);
        drop(file);
        umount(&point.0).unwrap();
        let free = fs::File::open(&overlay).unwrap();
        drop(nix::fcntl::Flock::lock(free, nix::fcntl::FlockArg::LockExclusive).unwrap());
    }
    assert_eq!(fs::read(&point.0).unwrap(), b"", "the file is empty again");
    fs::write(&point.0, "a letter").unwrap();
    let output = program(&base, &mounted, &point.0, &[]).output().unwrap();
    assert!(
        message(&output).contains("is not empty"),
        "{}",
        message(&output)
    );
    let device = program(&base, &mounted, Path::new("/dev/null"), &[]);
    let output = { device }.output().unwrap();
    assert!(
        message(&output).contains("neither a directory nor"),
        "{}",
        message(&output)
    );
}

/// Something small mounted at `point`, with a file in it.
fn mount_memory(point: &Path) {
    let nothing = None::<&str>;
    nix::mount::mount(
        Some("none"),
        point,
        Some("tmpfs"),
        MsFlags::empty(),
        nothing,
    )
    .unwrap();
}

/// Mounts with the program as a child.
fn mount_child(base: &str, mounted: &Mounted, extra: &[&str]) -> Child {
    let mut command = program(base, mounted, &mounted.point(), &["--no-cache"]);
    supervise({
        command.args(extra);
        command
    })
}

/// Two of the ways to hold a mount: alone, and by a supervisor.
const HELD: [&[&str]; 2] = [&["--foreground"], &["--foreground", "--supervise"]];

#[test]
fn what_was_at_the_mount_point_before_stays_when_the_mount_ends() {
    if !can_mount() {
        return;
    }
    let store = store();
    let base = serve(&store, Manner::Right);
    for extra in HELD {
        let mounted = mount_dir(&store);
        let point = Point(mounted.point());
        mount_memory(&point.0);
        let mut child = mount_child(&base, &mounted, extra);
        umount(&point.0).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(mounted.is_mounted(), "{extra:?}");
        umount(&point.0).unwrap();
        assert!(!mounted.is_mounted());
    }
}

#[test]
fn what_is_mounted_in_the_place_of_a_detached_mount_stays() {
    if !can_mount() {
        return;
    }
    let store = store();
    let base = serve(&store, Manner::Right);
    for extra in HELD {
        let mounted = mount_dir(&store);
        let point = Point(mounted.point());
        let mut child = mount_child(&base, &mounted, extra);
        let user = fs::File::open(mounted.disk()).unwrap();
        umount2(&point.0, MntFlags::MNT_DETACH).unwrap();
        mount_memory(&point.0);
        // Told to end, it finds that its mount is not there any more; and serves who still has it open.
        kill(
            Pid::from_raw(i32::try_from(child.id()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        let mut bytes = vec![0; 5000];
        user.read_exact_at(&mut bytes, 100_000).unwrap();
        assert!(bytes[..] == store.disk[100_000..105_000]);
        assert!(mounted.is_mounted(), "{extra:?}");
        drop(user);
        assert!(child.wait().unwrap().success());
        assert!(mounted.is_mounted(), "{extra:?}");
    }
}

#[test]
fn a_mount_whose_connection_is_aborted_leaves_no_dead_one() {
    if !can_mount() {
        return;
    }
    let control = Path::new("/sys/fs/fuse/connections");
    let nothing = None::<&str>;
    // It is mounted already where a system was started in the usual way.
    let _ = nix::mount::mount(
        Some("none"),
        control,
        Some("fusectl"),
        MsFlags::empty(),
        nothing,
    );
    let store = store();
    let base = serve(&store, Manner::Right);
    for extra in HELD {
        let mounted = mount_dir(&store);
        let _point = Point(mounted.point());
        let mut child = mount_child(&base, &mounted, extra);
        let device = fs::metadata(mounted.point()).unwrap().dev();
        let number = nix::sys::stat::minor(device).to_string();
        fs::write(control.join(number).join("abort"), "1").unwrap();
        child.wait().unwrap();
        assert!(!mounted.is_mounted(), "{extra:?}");
    }
}

#[test]
fn a_line_of_fstab_mounts() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    // A helper of our own: other tests, and the system, may have theirs.
    let kind = format!("fuse.circular-test-{}", std::process::id());
    let helper = Link(PathBuf::from(format!("/sbin/mount.{kind}")));
    symlink(env!("CARGO_BIN_EXE_circular-mount"), &helper.0).unwrap();
    let what = format!("{base}#lab/debian:12");
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command.args(["-t", &kind, &what]).arg(mounted.point());
        command.args(["-o", options]).env_remove("CIRCULAR_CACHE");
        command.stdin(Stdio::null()).output().unwrap()
    };
    let root = mounted.directory.path().join("root.json");
    let options = format!("ro,_netdev,root={},no_cache,no_state", root.display());
    assert_ok(&mount(&options));
    let point = Point(mounted.point());
    assert!(fs::read(mounted.disk()).unwrap() == store.disk);
    let umounted = Command::new("umount").arg(&point.0).output().unwrap();
    assert_ok(&umounted);
    let wrong = mount("cache_size=many");
    assert!(!wrong.status.success() && message(&wrong).contains("--cache-size"));
    let wrong = mount("ro,overlay=/nowhere/overlay");
    assert!(
        message(&wrong).contains("contradict each other"),
        "{}",
        message(&wrong)
    );
}

#[test]
fn the_descriptor_names_the_disk() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    assert_ok(&mount(&base, &mounted, &[]));
    let descriptor = mounted.point().join("disk.vmdk");
    let content = fs::read_to_string(&descriptor).unwrap();
    let sectors = store.disk.len() / 512;
    assert!(
        content.contains(&format!("RW {sectors} FLAT \"disk.raw\" 0")),
        "{content}"
    );
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "vmdk", "-F", "raw"].map(OsString::from));
    let Ok(output) = compare.arg(descriptor).arg(mounted.disk()).output() else {
        println!("skipped: no qemu-img");
        return;
    };
    assert_ok(&output);
}
