//! The program itself: its metrics, `top`, SIGUSR1 and the kernel's log.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::format::parse;
use crate::mount::{Mounted, assert_ok, can_mount, mount, mount_dir, program, supervise};
use crate::server::{Manner, serve};
use crate::store::{Store, mixed_disk};

/// A store that is served, and a place to mount it on.
struct Place {
    store: Arc<Store>,
    base: String,
    mounted: Mounted,
}

impl Place {
    fn new(blocks: usize) -> Self {
        let store = Arc::new(Store::of(mixed_disk(blocks, 0)));
        Self {
            base: serve(&store, Manner::Right),
            mounted: mount_dir(&store),
            store,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted.directory.path().join(name)
    }

    /// Mounts with the client as a child.
    fn mount_child(&self, extra: &[&str]) -> Child {
        let extra = [&["--no-cache", "--foreground"], extra].concat();
        supervise(program(
            &self.base,
            &self.mounted,
            &self.mounted.point(),
            &extra,
        ))
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn get(mut stream: impl Read + Write, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    body.to_owned()
}

fn top(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
    command.arg("top").args(words);
    command.stdin(Stdio::null()).output().unwrap()
}

/// The row of `name`.
fn row(output: &Output, name: &str) -> Value {
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut rows = rows.as_array().unwrap().iter();
    let row = rows.find(|row| row["mountpoint"] == name);
    row.unwrap_or_else(|| panic!("no row of {name}")).clone()
}

/// What top says of `name` when it is given `words`. A machine that is busy may take longer to answer
/// than top waits.
fn seen(words: &[&str], name: &str) -> Value {
    loop {
        let row = row(&top(&[words, &["--once", "--json"]].concat()), name);
        if row["trouble"] != "it does not answer" {
            return row;
        }
    }
}

#[test]
fn metrics_are_served_on_a_socket_that_goes_with_the_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new(700);
    let socket = place.path("metrics");
    // One that a killed mount has left.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let address = format!("unix:{}", socket.display());
    assert_ok(&mount(
        &place.base,
        &place.mounted,
        &["--metrics", &address],
    ));
    assert!(fs::read(place.mounted.disk()).unwrap() == place.store.disk);
    let text = get(UnixStream::connect(&socket).unwrap(), "/metrics");
    let families = parse(&text);
    let reads = families["circular_reads_total"].samples[0].value;
    assert!(reads > 0.0);
    let answered: u64 = ["memory", "index", "flight", "demand", "disk", "failed"]
        .iter()
        .map(|layer| {
            families["circular_read_wait_seconds"].histogram(&format!("layer=\"{layer}\""))
        })
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "some hundred")]
    let answered = answered as f64;
    assert_eq!(answered, reads, "each read was answered once");
    if let Ok(mut tool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn()
    {
        tool.stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        assert!(tool.wait().unwrap().success(), "promtool takes it");
    }
    let stats: Value =
        serde_json::from_str(&get(UnixStream::connect(&socket).unwrap(), "/stats.json")).unwrap();
    assert!(stats["now"]["uptime_us"].as_u64() > Some(0));
    umount(&place.mounted.point()).unwrap();
    while socket.exists() {
        std::thread::yield_now();
    }
}

#[test]
fn metrics_are_served_on_a_port_and_a_taken_one_is_told() {
    if !can_mount() {
        return;
    }
    let place = Place::new(100);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = mount(&place.base, &place.mounted, &["--metrics", &port]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = format!("cannot serve metrics at 127.0.0.1:{port}");
    assert!(
        !output.status.success() && message.contains(&told),
        "{message}"
    );
    drop(taken);
    let log = place.path("log");
    let words = ["--metrics", "127.0.0.1:0", "--log-file"];
    assert_ok(&mount(
        &place.base,
        &place.mounted,
        &[&words[..], &[log.to_str().unwrap()]].concat(),
    ));
    let said = fs::read_to_string(&log).unwrap();
    let (_, address) = said.split_once("metrics are served address=").unwrap();
    let address = address.lines().next().unwrap().trim();
    parse(&get(TcpStream::connect(address).unwrap(), "/metrics"));
    let row = seen(&[address], address);
    assert!(row["rates"].is_object(), "{row}");
    umount(&place.mounted.point()).unwrap();
}

#[test]
fn top_shows_what_is_mounted_and_waits_for_none_that_does_not_answer() {
    if !can_mount() {
        return;
    }
    let place = Place::new(300);
    let mut child = place.mount_child(&[]);
    assert!(fs::read(place.mounted.disk()).unwrap() == place.store.disk);
    let point = place.mounted.point();
    let name = point.to_str().unwrap();
    // Other tests have mounts of their own.
    let row_of_all = seen(&[], name);
    assert_eq!(row_of_all["image"], "lab/debian:12@1");
    assert!(row_of_all["rates"]["reads"].as_f64() > Some(0.0));
    let table = loop {
        let output = top(&["--once", name]);
        if output.status.success() {
            break String::from_utf8(output.stdout).unwrap();
        }
    };
    assert!(
        table.contains("reads/s") && table.contains("lab/debian:12@1"),
        "{table}"
    );
    signal(&child, Signal::SIGSTOP);
    let output = top(&["--once", "--json", name]);
    signal(&child, Signal::SIGCONT);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(row(&output, name)["trouble"], "it does not answer");
    umount_when_free(&point);
    assert!(child.wait().unwrap().success());
    let trouble = seen(&[name], name)["trouble"].clone();
    assert_eq!(trouble, "no image is mounted there");
}

/// The process that was left behind may still read.
fn umount_when_free(point: &Path) {
    while let Err(errno) = umount(point) {
        assert_eq!(errno, nix::errno::Errno::EBUSY);
        std::thread::yield_now();
    }
}

#[test]
fn a_mount_on_a_file_is_seen_by_its_metrics() {
    if !can_mount() {
        return;
    }
    let place = Place::new(100);
    let (point, socket) = (place.path("disk.img"), place.path("metrics"));
    fs::write(&point, "").unwrap();
    let address = format!("unix:{}", socket.display());
    let words = ["--no-cache", "--metrics", &address];
    assert_ok(
        &program(&place.base, &place.mounted, &point, &words)
            .output()
            .unwrap(),
    );
    assert!(fs::read(&point).unwrap() == place.store.disk);
    let name = point.to_str().unwrap();
    let trouble = seen(&[name], name)["trouble"].to_string();
    assert!(trouble.contains("--metrics unix:PATH"), "{trouble}");
    let row = seen(&[&address], &address);
    assert!(row["rates"]["reads"].as_f64() > Some(0.0), "{row}");
    umount2(&point, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn sigusr1_brings_the_state_into_the_log_and_ends_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new(100);
    let log = place.path("log");
    let words = ["--log-level", "error", "--log-file", log.to_str().unwrap()];
    let mut child = place.mount_child(&words);
    let disk = File::open(place.mounted.disk()).unwrap();
    disk.read_exact_at(&mut [0; 4096], 0).unwrap();
    signal(&child, Signal::SIGUSR1);
    let said = loop {
        let said = fs::read_to_string(&log).unwrap();
        if said.contains("now.uptime_us=") && said.ends_with('\n') {
            break said;
        }
        std::thread::yield_now();
    };
    for part in [
        "state: reads under way: 0",
        "requests under way: ",
        ": answers",
        " reads=",
        "demand.count=",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for _ in 0..100 {
        signal(&child, Signal::SIGUSR1);
    }
    let mut bytes = vec![0; 4096];
    disk.read_exact_at(&mut bytes, 8192).unwrap();
    assert!(bytes == place.store.flat(8192, 4096));
    drop(disk);
    umount(&place.mounted.point()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_root_disk_logs_to_the_kernel() {
    if !can_mount() {
        return;
    }
    let kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("/dev/kmsg");
    let Ok(mut kmsg) = kmsg else {
        println!("skipped: no /dev/kmsg that we may read");
        return;
    };
    // A length that no other test has, to know the line by.
    let place = Place::new(107);
    let mut child = place.mount_child(&["--initramfs"]);
    let disk = File::open(place.mounted.disk()).unwrap();
    disk.read_exact_at(&mut [0; 4096], 0).unwrap();
    signal(&child, Signal::SIGTERM);
    drop(disk);
    umount(&place.mounted.point()).unwrap();
    assert!(child.wait().unwrap().success());
    let digest = place.store.disk_digest.to_string();
    let serving = loop {
        let mut record = vec![0; 8192];
        match kmsg.read(&mut record) {
            Ok(len) => {
                let record = String::from_utf8_lossy(&record[..len]);
                if record.contains(&digest) {
                    break record.into_owned();
                }
            }
            // What was not read in time is gone; the rest is there.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(error) => panic!("the line is not in the kernel's log: {error}"),
        }
    };
    // A program's record (facility 1) of priority 6: 8 + 6.
    assert!(serving.starts_with("14,"), "{serving}");
    assert!(
        serving.contains(";circular-mount: serving image=lab/debian:12@1"),
        "{serving}"
    );
}

#[test]
fn what_an_overlay_does_is_counted() {
    if !can_mount() {
        return;
    }
    let place = Place::new(100);
    let overlay = place.path("overlay");
    let words = ["--overlay", overlay.to_str().unwrap()];
    assert_ok(&mount(&place.base, &place.mounted, &words));
    let number = |path: &str| {
        let text = fs::read_to_string(place.mounted.point().join(".circular/stats.json"));
        let leaves = super::leaves(&serde_json::from_str(&text.unwrap()).unwrap());
        leaves[path].as_u64().unwrap()
    };
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(place.mounted.disk())
        .unwrap();
    // From memory that was touched: of a page that is not mapped yet the kernel takes none, and cuts
    // the write there, in the middle of a block.
    let written = vec![7; 3 * 4096];
    disk.write_all_at(&written, 4096).unwrap();
    disk.write_all_at(&written[..10], 50_000).unwrap();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&disk, flags, 4096, 4096).unwrap();
    // The kernel may cut a write.
    assert!((2..=5).contains(&number("overlay.writes")));
    assert_eq!(number("overlay.written_blocks"), 4);
    assert_eq!(number("overlay.discarded_blocks"), 1);
    disk.sync_all().unwrap();
    assert!(number("overlay.syncs") > 0 && number("overlay.commits") > 0);
    assert_eq!(number("now.overlay_dirty_bytes"), 0);
    assert_eq!(number("now.overlay_written_bytes"), 3 * 4096);
    assert!(number("now.overlay_file_bytes") >= 3 * 4096);
    assert_eq!(
        number("overlay.commit_failures") + number("overlay.write_failures"),
        0
    );
    drop(disk);
    umount(&place.mounted.point()).unwrap();
}
