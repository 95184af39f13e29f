//! The program itself on a real mount. Skipped where there is no /dev/fuse.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::{Manner, serve};
use crate::store::{Store, mixed_disk};

/// A mount that is taken away when the test ends, however it ends.
pub(crate) struct Mounted {
    pub(crate) directory: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root.json")
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.point().join("disk.raw")
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&*self.point().to_string_lossy())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _ = nix::mount::umount2(&self.point(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Whether `program`, which tests of mounts use, is installed; `CIRCULAR_REQUIRE` makes "no" a failure.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        let required = std::env::var("CIRCULAR_REQUIRE").unwrap_or_default();
        assert!(
            !required.contains("fuse"),
            "{program} is missing (tests/setup.sh)"
        );
        println!("skipped: no {program}");
    }
    found
}

/// Whether a mount can be tried here; `CIRCULAR_REQUIRE` makes "no" a failure.
pub(crate) fn can_mount() -> bool {
    let can = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok()
        && nix::unistd::geteuid().is_root();
    let required = std::env::var("CIRCULAR_REQUIRE")
        .is_ok_and(|list| list.split(',').any(|word| word == "fuse"));
    assert!(
        can || !required,
        "CIRCULAR_REQUIRE has fuse, but there is no /dev/fuse that we may use"
    );
    if !can {
        println!("skipped: no /dev/fuse that we may use");
    }
    can
}

fn store() -> Arc<Store> {
    Arc::new(Store::of(mixed_disk(3000, 789)))
}

/// A place to mount `store` on, and its root.
pub(crate) fn mount_dir(store: &Store) -> Mounted {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("mnt")).unwrap();
    let mounted = Mounted { directory };
    fs::write(mounted.root(), store.first_root()).unwrap();
    mounted
}

pub(crate) fn program(base: &str, mounted: &Mounted, point: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
    command
        .arg("--root")
        .arg(mounted.root())
        .arg("--state")
        .arg(mounted.directory.path().join("state"))
        .arg(base)
        .arg("lab/debian:12")
        .arg(point)
        .args(extra)
        .env_remove("CIRCULAR_CACHE");
    command
}

/// Starts it as a supervisor does, and returns when it says that it serves.
pub(crate) fn supervise(mut command: Command) -> Child {
    let (ready, sender) = std::io::pipe().unwrap();
    let inherited = FcntlArg::F_SETFD(FdFlag::empty());
    nix::fcntl::fcntl(&sender, inherited).unwrap();
    let child = command
        .arg("--ready-fd")
        .arg(sender.as_raw_fd().to_string())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(sender);
    assert_eq!(std::io::read_to_string(ready).unwrap(), "READY\n");
    child
}

/// Mounts in the background and returns when the program does.
pub(crate) fn mount(base: &str, mounted: &Mounted, extra: &[&str]) -> Output {
    let cache = mounted.directory.path().join("cache");
    let mut command = program(base, mounted, &mounted.point(), extra);
    command
        .arg("--cache")
        .arg(cache)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(crate) fn assert_ok(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_kernel_mount_reads_as_the_disk_that_was_published() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    assert_ok(&mount(&base, &mounted, &[]));
    let metadata = fs::metadata(mounted.disk()).unwrap();
    assert_eq!(metadata.len(), store.disk.len() as u64);
    assert!(metadata.permissions().readonly());
    assert!(
        fs::read(mounted.disk()).unwrap() == store.disk,
        "the disk reads differently"
    );
    let file = File::open(mounted.disk()).unwrap();
    let mut byte = [0];
    for at in (0..store.disk.len()).step_by(99_991) {
        file.read_exact_at(&mut byte, at as u64).unwrap();
        assert_eq!(byte[0], store.disk[at]);
    }
    let image = fs::read_to_string(mounted.point().join(".circular/image.json")).unwrap();
    assert!(
        image.contains("lab/debian:12@1") && image.contains(&store.disk_digest.to_string()),
        "{image}"
    );
    let stats = fs::read_to_string(mounted.point().join(".circular/stats.json")).unwrap();
    assert!(stats.contains("\"duplicate_chunks\": 0"), "{stats}");
    assert!(
        File::create(mounted.disk()).is_err() && File::create(mounted.point().join("new")).is_err()
    );
    drop(file);
    nix::mount::umount(&mounted.point()).unwrap();
    assert!(!mounted.is_mounted());
}

#[test]
fn a_kernel_mount_finds_its_cache_again() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    for chunks_are_fetched in [true, false] {
        assert_ok(&mount(&base, &mounted, &[]));
        assert!(fs::read(mounted.disk()).unwrap() == store.disk);
        let stats = fs::read_to_string(mounted.point().join(".circular/stats.json")).unwrap();
        assert_eq!(
            !stats.contains("\"chunks\": 0,"),
            chunks_are_fetched,
            "{stats}"
        );
        nix::mount::umount(&mounted.point()).unwrap();
    }
}

#[test]
fn a_kernel_mount_in_the_foreground_ends_cleanly_by_signal() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let store = store();
        let mounted = mount_dir(&store);
        let base = serve(&store, Manner::Right);
        // Standard input is descriptor 0, which is refused: a supervisor passes one above 2.
        let mut refused = program(
            &base,
            &mounted,
            &mounted.point(),
            &["--foreground", "--no-cache", "--ready-fd", "0"],
        );
        let refused = refused.stdin(Stdio::null()).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        let mut child = supervise(program(
            &base,
            &mounted,
            &mounted.point(),
            &["--foreground", "--no-cache"],
        ));
        assert!(mounted.is_mounted());
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(!mounted.is_mounted());
    }
}

#[test]
fn a_kernel_mount_that_cannot_be_says_why() {
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    let told = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, message) = told(&mut program(
        &base,
        &mounted,
        &mounted.point().join("missing"),
        &[],
    ));
    assert!(
        code == Some(1) && message.contains("mkdir -p"),
        "{code:?} {message}"
    );
    fs::write(mounted.point().join("file"), "").unwrap();
    let (code, message) = told(&mut program(&base, &mounted, &mounted.point(), &[]));
    assert!(
        code == Some(1) && message.contains("is not empty"),
        "{code:?} {message}"
    );
    fs::remove_file(mounted.point().join("file")).unwrap();
    let mut unasked = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
    unasked
        .args([&*base, "lab/debian:12", "--no-cache", "--no-state"])
        .arg(mounted.point())
        .env_remove("CIRCULAR_ROOT")
        .env_remove("CIRCULAR_STATE");
    let (code, message) = told(&mut unasked);
    assert!(
        code == Some(1) && message.contains("give --root root.json"),
        "{code:?} {message}"
    );
    let (code, message) = told(&mut program(
        &format!("{base}elsewhere/"),
        &mounted,
        &mounted.point(),
        &[],
    ));
    assert!(
        code == Some(1) && message.contains("is no store"),
        "{code:?} {message}"
    );
    let (code, message) =
        told(program(&base, &mounted, &mounted.point(), &[]).arg("--no-such-option"));
    assert!(
        code == Some(2) && message.contains("--no-such-option"),
        "{code:?} {message}"
    );
}

#[test]
fn a_recording_is_complete_when_the_mount_is_gone() {
    if !can_mount() {
        return;
    }
    let store = store();
    let base = serve(&store, Manner::Right);
    let mounted = mount_dir(&store);
    let path = mounted.directory.path().join("trace");
    let mut command = program(&base, &mounted, &mounted.point(), &["--no-cache", "-f"]);
    command.arg("--record").arg(&path);
    let mut child = supervise(command);
    let disk = File::open(mounted.disk()).unwrap();
    let mut bytes = vec![0; 1 << 20];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    drop(disk);
    nix::mount::umount(&mounted.point()).unwrap();
    assert!(child.wait().unwrap().success());
    let trace = image_format::trace::Trace::decode(&fs::read(path).unwrap()).unwrap();
    assert!(!trace.touches.is_empty());
}

#[test]
fn a_pinned_image_is_mounted_and_read_without_a_server() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = mount_dir(&store);
    let base = serve(&store, Manner::Right);
    assert_ok(&mount(&base, &mounted, &["--pin"]));
    let cache = mounted.directory.path().join("cache");
    let care = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
        command.arg("cache").args(words).arg("--cache").arg(&cache);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let all = format!(" {} chunks right, 0 wrong; 0 bytes", store.n_chunks);
    while !care(&["verify"]).contains(&all) {
        std::thread::yield_now();
    }
    assert!(care(&["stat"]).contains("mounted"));
    assert!(care(&["clear"]).contains("1 stay because they are mounted"));
    assert_ok(
        &Command::new("umount")
            .arg(mounted.point())
            .output()
            .unwrap(),
    );
    while care(&["stat"]).contains("mounted") {
        std::thread::yield_now();
    }
    // Clearing took what describes the disk; the chunks are there, so that little is fetched.
    assert_ok(&mount(&base, &mounted, &["--pin"]));
    assert!(fs::read(mounted.disk()).unwrap() == store.disk);
    while !care(&["verify"]).contains(&all) {
        std::thread::yield_now();
    }
    assert_ok(
        &Command::new("umount")
            .arg(mounted.point())
            .output()
            .unwrap(),
    );
    let nobody = "http://127.0.0.1:9/";
    assert_ok(&mount(nobody, &mounted, &["--deadline", "1"]));
    assert!(fs::read(mounted.disk()).unwrap() == store.disk);
}

#[test]
fn what_is_typed_wins_over_the_environment() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
    command
        .env("CIRCULAR_CACHE", "/somewhere")
        .env("CIRCULAR_STATE", "/somewhere")
        .args(["--no-cache", "--no-state", "http://127.0.0.1:9/", "debian"])
        .arg("/nowhere");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("cannot be used with"), "{said}");
}
