//! The disk on a socket: the program itself, real clients where they are installed, and a client that
//! does what those would not.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mount::{assert_ok, supervise};
use crate::server::{Manner, serve};
use crate::store::{Random, Store, mixed_disk};
use crate::supervise::Gatehouse;

/// As in `client_fuse::nbd`.
const CONNECTIONS_MAX: usize = 16;

/// The flags of an export that cannot be written to: it has flags, DF, and many connections.
const READ_ONLY_FLAGS: u16 = 1 | 1 << 1 | 1 << 7 | 1 << 8;

/// A place for sockets and files of one test.
struct Place {
    directory: tempfile::TempDir,
    base: String,
}

impl Place {
    fn new(store: &Arc<Store>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("root.json"), store.first_root()).unwrap();
        let base = serve(store, Manner::Right);
        Self { directory, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, socket: &str, extra: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
        command
            .arg("--root")
            .arg(self.path("root.json"))
            .args(["--foreground", "--no-cache", "--no-state", "--nbd"])
            .arg(self.path(socket))
            .args(extra)
            .args([&self.base, "lab/debian:12"])
            .env_remove("CIRCULAR_CACHE")
            .stdin(Stdio::null());
        command
    }

    fn export(&self, socket: &str, extra: &[&str]) -> Exported {
        Exported {
            child: supervise(self.command(socket, extra)),
            socket: self.path(socket),
        }
    }
}

/// An export, until the test ends.
struct Exported {
    child: Child,
    socket: PathBuf,
}

impl Exported {
    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
        self.child.wait().unwrap().code()
    }

    fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client by hand; replies are simple ones.
struct Client(UnixStream);

impl Client {
    fn raw(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self(stream)
    }

    fn connect(socket: &Path) -> Self {
        let mut client = Self::raw(socket);
        client.greet().unwrap();
        client
    }

    /// The oldest way to an export, which has no replies to look at.
    fn greet(&mut self) -> io::Result<(u64, u16)> {
        let mut greeting = [0; 18];
        self.0.read_exact(&mut greeting)?;
        assert_eq!(greeting[..16], *b"NBDMAGICIHAVEOPT");
        self.0.write_all(&3_u32.to_be_bytes())?;
        self.0.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")?;
        let mut told = [0; 10];
        self.0.read_exact(&mut told)?;
        let length = u64::from_be_bytes(*told.first_chunk().unwrap());
        Ok((length, u16::from_be_bytes([told[8], told[9]])))
    }

    fn send(&mut self, command: u16, cookie: u64, offset: u64, length: u32, data: &[u8]) {
        let request = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &[0, 0],
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ];
        self.0.write_all(&request.concat()).unwrap();
    }

    /// Error number and cookie of the next reply.
    fn reply(&mut self) -> (u32, u64) {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(*head[4..].first_chunk().unwrap());
        (error, u64::from_be_bytes(*head[8..].first_chunk().unwrap()))
    }

    fn ask(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> u32 {
        self.send(command, 9, offset, length, data);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 9);
        error
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        match self.ask(0, offset, length, b"") {
            0 => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                self.0.read_exact(&mut bytes).unwrap();
                Ok(bytes)
            }
            error => Err(error),
        }
    }

    /// Whether the other side has closed.
    fn is_cut(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// What a client of the system says, or `None` where it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(_) => {
            println!("skipped: no {program}");
            None
        }
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn real_clients_read_the_exported_disk() {
    let store = Arc::new(Store::of(mixed_disk(3000, 0)));
    let place = Place::new(&store);
    let export = place.export("disk.sock", &[]);
    let mode = fs::metadata(&export.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may connect");
    let (url, flat, copy) = (export.url(), place.path("flat"), place.path("copy"));
    fs::write(&flat, &store.disk).unwrap();
    let (flat, copied) = (flat.to_str().unwrap(), copy.to_str().unwrap());
    if let Some(same) = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", flat, &url],
    ) {
        assert_ok(&same);
        assert_ok(
            &run(
                "qemu-img",
                &["convert", "-f", "raw", "-O", "raw", &url, copied],
            )
            .unwrap(),
        );
        assert!(fs::read(&copy).unwrap() == store.disk);
        let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &url]).unwrap();
        assert_ok(&map);
        assert_holes_are_holes(&stdout(&map), &store.disk);
    }
    let _ = fs::remove_file(&copy);
    if let Some(copied) = run("nbdcopy", &["--connections=4", &url, copied]) {
        assert_ok(&copied);
        assert!(fs::read(&copy).unwrap() == store.disk);
    }
    if let Some(info) = run("nbdinfo", &["--list", &url]) {
        assert_ok(&info);
        let info = stdout(&info);
        for told in ["lab/debian:12@1", "is_read_only: true", "base:allocation"] {
            assert!(info.contains(told), "{info}");
        }
    }
    if let Some(write) = run("qemu-io", &["-f", "raw", "-c", "write 0 4096", &url]) {
        assert!(!write.status.success(), "it cannot be written to");
    }
}

/// What a map calls zero is; of the disk, all of its chunks that are zeros are called so.
fn assert_holes_are_holes(map: &str, disk: &[u8]) {
    let map: serde_json::Value = serde_json::from_str(map).unwrap();
    let (mut end, mut n_zeros) = (0, 0);
    for extent in map.as_array().unwrap() {
        let number = |key: &str| usize::try_from(extent[key].as_u64().unwrap()).unwrap();
        let (start, length) = (number("start"), number("length"));
        assert_eq!(start, end, "extents follow one another");
        end += length;
        if extent["zero"].as_bool().unwrap() {
            n_zeros += length;
            assert!(disk[start..end].iter().all(|byte| *byte == 0));
        }
    }
    assert_eq!(end, disk.len());
    assert!(n_zeros >= 1 << 20, "{n_zeros} bytes in holes");
}

#[test]
fn what_real_clients_write_and_flush_survives_a_kill() {
    let store = Arc::new(Store::of(mixed_disk(3000, 0)));
    let place = Place::new(&store);
    let overlay = place.path("overlay");
    let with_overlay = ["--overlay", overlay.to_str().unwrap()];
    let export = place.export("disk.sock", &with_overlay);
    let script = [
        "write -P 0xab 70000 5000",
        "write -z 1M 1M",
        "discard 3M 1M",
        "write -P 0x17 9M 2M",
        "flush",
    ];
    let url = export.url();
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    arguments.extend(script.iter().flat_map(|command| ["-c", command]));
    arguments.push(&url);
    let Some(written) = run("qemu-io", &arguments) else {
        return;
    };
    assert_ok(&written);
    let mut model = store.disk.clone();
    model[70_000..75_000].fill(0xab);
    model[1 << 20..2 << 20].fill(0);
    model[3 << 20..4 << 20].fill(0);
    model[9 << 20..11 << 20].fill(0x17);
    export.end(Signal::SIGKILL);
    let export = place.export("disk.sock", &with_overlay);
    let flat = place.path("flat");
    fs::write(&flat, &model).unwrap();
    let (flat, url) = (flat.to_str().unwrap(), export.url());
    assert_ok(
        &run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", flat, &url],
        )
        .unwrap(),
    );
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &url]).unwrap();
    assert_holes_are_holes(&stdout(&map), &model);
    assert_eq!(export.end(Signal::SIGTERM), Some(0));
}

#[test]
fn all_connections_see_one_disk_and_one_too_many_is_sent_away() {
    let store = Arc::new(Store::of(mixed_disk(700, 0)));
    let place = Place::new(&store);
    let overlay = place.path("overlay");
    let export = place.export("disk.sock", &["--overlay", overlay.to_str().unwrap()]);
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| export.connect()).collect();
    let mut model = store.disk.clone();
    for (number, client) in clients.iter_mut().enumerate() {
        let byte = u8::try_from(number).unwrap();
        let at = number * 5000;
        assert_eq!(client.ask(1, at as u64, 5000, &[byte; 5000]), 0);
        model[at..at + 5000].fill(byte);
    }
    for client in &mut clients {
        assert!(client.read(0, 100_000).unwrap() == model[..100_000]);
    }
    // Thirty-two under way at once: each answer is that of its request.
    let client = &mut clients[0];
    for cookie in 0..32 {
        client.send(0, cookie, cookie * 6000, 6000, b"");
    }
    for _ in 0..32 {
        let (error, cookie) = client.reply();
        let mut bytes = vec![0; 6000];
        client.0.read_exact(&mut bytes).unwrap();
        let at = usize::try_from(cookie * 6000).unwrap();
        assert!(error == 0 && bytes == model[at..at + 6000], "{cookie}");
    }
    assert_eq!(client.ask(3, 0, 0, b""), 0, "a flush");
    let mut many = Client::raw(&export.socket);
    assert!(many.is_cut());
    // Whoever goes makes room; the server sees it a moment later.
    drop(clients.pop());
    let again = || Client::raw(&export.socket).greet().ok();
    let told = std::iter::repeat_with(again).flatten().next().unwrap();
    assert_eq!(told.0, store.disk.len() as u64);
}

#[test]
fn clients_that_vanish_while_the_server_is_silent_leave_their_places() {
    let store = Arc::new(Store::of(mixed_disk(700, 0)));
    let mut place = Place::new(&store);
    let gatehouse = Gatehouse::before(&place.base);
    place.base.clone_from(&gatehouse.address);
    let export = place.export("disk.sock", &["--deadline", "0"]);
    let mut first = export.connect();
    gatehouse.set_shut(true);
    for number in 0..2 * CONNECTIONS_MAX {
        // Places are free again a moment after who had them is gone.
        let client = || {
            let mut client = Client::raw(&export.socket);
            client.greet().is_ok().then_some(client)
        };
        let mut client = std::iter::repeat_with(client).flatten().next().unwrap();
        // Every other one asks for more at once than is taken off its socket.
        for request in 0..1 + number as u64 % 2 * 40 {
            let offset = (number as u64 * 60_000 + request * 4096) % 2_000_000;
            client.send(0, request, offset, 4096, b"");
        }
    }
    gatehouse.set_shut(false);
    assert!(first.read(0, 100_000).unwrap() == store.disk[..100_000]);
}

/// What breaks the protocol at its beginning.
fn malformed_beginnings() -> Vec<Vec<u8>> {
    let option = |option: u32, length: u32| {
        let head = [
            &b"IHAVEOPT"[..],
            &option.to_be_bytes(),
            &length.to_be_bytes(),
        ];
        [&3_u32.to_be_bytes()[..], &head.concat()].concat()
    };
    let mut all = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        0_u32.to_be_bytes().to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        [&3_u32.to_be_bytes()[..], b"IHAVEOPX\0\0\0\x01\0\0\0\0"].concat(),
        option(7, u32::MAX),
        [option(1, 5), b"other".to_vec()].concat(),
        [3_u32.to_be_bytes().to_vec(), option(3, 0)[4..].repeat(100)].concat(),
    ];
    let mut random = Random(7);
    all.extend((0..50).map(|_| {
        let noise = (0..40).flat_map(|_| random.next().to_be_bytes());
        [3_u32.to_be_bytes().to_vec(), noise.collect()].concat()
    }));
    all
}

#[test]
fn a_client_that_breaks_the_protocol_harms_no_other() {
    let store = Arc::new(Store::of(mixed_disk(700, 0)));
    let place = Place::new(&store);
    let export = place.export("disk.sock", &[]);
    let mut good = export.connect();
    for bytes in malformed_beginnings() {
        let mut bad = Client::raw(&export.socket);
        // It may be cut before it has said all.
        let _ = bad.0.write_all(&bytes);
        assert!(bad.is_cut(), "{bytes:?}");
        assert!(good.read(4096, 512).unwrap() == store.disk[4096..4608]);
    }
    let mut wrong_magic = export.connect();
    wrong_magic.0.write_all(&[0x11; 28]).unwrap();
    assert!(wrong_magic.is_cut());
    let mut too_much = export.connect();
    too_much.send(1, 1, 0, 33 << 20, b"");
    assert!(too_much.is_cut());
    let mut half = export.connect();
    half.0.write_all(&[0x25, 0x60]).unwrap();
    drop(half);
    let mut gone = export.connect();
    gone.send(0, 1, 0, 1 << 20, b"");
    drop(gone);
    assert!(good.read(0, 8192).unwrap() == store.disk[..8192]);
}

#[test]
fn a_request_that_makes_no_sense_is_an_error_and_the_next_is_answered() {
    const PERM: u32 = 1;
    const INVALID: u32 = 22;
    const TOO_LONG: u32 = 75;
    let store = Arc::new(Store::of(mixed_disk(700, 0)));
    let place = Place::new(&store);
    let export = place.export("disk.sock", &[]);
    let mut client = Client::raw(&export.socket);
    let length = store.disk.len() as u64;
    assert_eq!(client.greet().unwrap(), (length, READ_ONLY_FLAGS));
    assert_eq!(client.ask(1, 0, 4096, &[1; 4096]), PERM, "it is read-only");
    assert_eq!(client.ask(4, 0, 4096, b""), PERM);
    assert_eq!(client.ask(6, 0, 4096, b""), PERM);
    assert_eq!(client.read(length - 1, 2), Err(INVALID));
    assert_eq!(client.read(u64::MAX, 2), Err(INVALID));
    assert_eq!(client.read(0, 0), Err(INVALID));
    assert_eq!(client.read(0, u32::MAX), Err(INVALID));
    assert_eq!(client.ask(77, 0, 0, b""), INVALID);
    assert_eq!(client.ask(7, 0, 4096, b""), INVALID, "it was not agreed on");
    assert!(client.read(length - 1, 1).unwrap() == store.disk[store.disk.len() - 1..]);
    let large = Arc::new(Store::sparse(1 << 40, &[]));
    let place = Place::new(&large);
    let export = place.export("disk.sock", &[]);
    let mut client = export.connect();
    assert_eq!(client.read(0, u32::MAX), Err(TOO_LONG));
    assert!(client.read((1 << 40) - 4096, 4096).unwrap() == [0; 4096]);
}

#[test]
fn who_takes_no_answers_waits_and_gets_them_all() {
    const COUNT: u64 = 300;
    let store = Arc::new(Store::of(mixed_disk(700, 0)));
    let place = Place::new(&store);
    let export = place.export("disk.sock", &[]);
    let mut greedy = export.connect();
    for cookie in 0..COUNT {
        greedy.send(0, cookie, cookie, 1 << 20, b"");
    }
    let mut other = export.connect();
    assert!(other.read(0, 1 << 20).unwrap() == store.disk[..1 << 20]);
    for _ in 0..COUNT {
        let (error, cookie) = greedy.reply();
        let mut bytes = vec![0; 1 << 20];
        greedy.0.read_exact(&mut bytes).unwrap();
        let at = usize::try_from(cookie).unwrap();
        assert!(
            error == 0 && bytes == store.disk[at..at + (1 << 20)],
            "{cookie}"
        );
    }
}

#[test]
fn an_export_whose_store_lost_a_pack_is_an_io_error_there() {
    let mut store = Store::of(mixed_disk(700, 0));
    store
        .files
        .retain(|_, bytes| !bytes.starts_with(image_format::pack::PACK_MAGIC));
    let place = Place::new(&Arc::new(store));
    let export = place.export("disk.sock", &[]);
    let mut client = export.connect();
    let data = mixed_disk(700, 0).iter().position(|byte| *byte != 0);
    let data = data.unwrap() as u64;
    assert_eq!(client.read(data, 512), Err(5));
    assert_eq!(client.read(data, 512), Err(5), "the connection goes on");
}

#[test]
fn a_socket_in_use_is_refused_and_one_of_the_dead_is_taken() {
    let store = Arc::new(Store::of(mixed_disk(10, 0)));
    let place = Place::new(&store);
    let refused = |why: &str| {
        let output = place.command("disk.sock", &[]).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains(why),
            "{message}"
        );
    };
    let path = place.path("disk.sock");
    let is_socket = || fs::symlink_metadata(&path).is_ok_and(|it| it.file_type().is_socket());
    let first = place.export("disk.sock", &[]);
    refused("somebody serves on");
    assert!(first.connect().read(0, 512).is_ok());
    first.end(Signal::SIGKILL);
    assert!(is_socket(), "nobody took it away");
    let second = place.export("disk.sock", &["--allow-other"]);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let idle = second.connect();
    assert_eq!(
        second.end(Signal::SIGTERM),
        Some(0),
        "though {:?} is there",
        idle.0
    );
    assert!(!is_socket(), "it is taken away");
    fs::write(&path, "a letter").unwrap();
    refused("is there and no socket");
    assert_eq!(fs::read(&path).unwrap(), b"a letter");
}
