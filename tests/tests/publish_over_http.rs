//! `circular publish --to` with a `circular-server --upload` at the other end.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Result;
use circular_tests::mount::{Mount, Options};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

mod tls;

const TOKEN: &str = "circular_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A server with an empty store, the keys for it, and a token of each scope.
struct Bench {
    store: TestStore,
    server: Server,
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are plain")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Bench {
    fn start(more: &[&str]) -> Result<Self> {
        Self::start_on(TestStore::new()?, more)
    }

    fn start_on(store: TestStore, more: &[&str]) -> Result<Self> {
        let keys = store.beside("made");
        let made = store.circular(&["init", "--root-only", "--keys", path(&keys)])?;
        assert!(made.status.success(), "{}", stderr(&made));
        let mut table = String::new();
        for (scope, token) in [("publish", TOKEN.to_owned()), ("read", format!("{TOKEN}r"))] {
            let file = store.beside(scope);
            fs::write(&file, &token)?;
            let digest = hex(&Sha256::digest(&token));
            table.push_str(&format!("{scope} {digest} {scope}er\n"));
        }
        fs::write(store.beside("tokens"), table)?;
        let server = Self::serve(&store, more)?;
        Ok(Self { store, server })
    }

    fn serve(store: &TestStore, more: &[&str]) -> Result<Server> {
        let (tokens, root) = (store.beside("tokens"), store.beside("made/root.json"));
        let arguments = [
            "--upload".as_ref(),
            "--tokens".as_ref(),
            tokens.as_os_str(),
            "--upload-root".as_ref(),
            root.as_os_str(),
        ];
        let more = more.iter().map(OsStr::new);
        let arguments: Vec<_> = arguments.into_iter().chain(more).collect();
        Server::start_with(&store.path(), &arguments)
    }

    fn image(&self, name: &str, seed: u8) -> Result<PathBuf> {
        let image = self.store.beside(name);
        let noise = (0_u32..3 << 18).flat_map(|at| {
            let mixed = (at ^ (u32::from(seed) << 24)).wrapping_mul(0x9E37_79B1);
            (mixed ^ (mixed >> 15))
                .wrapping_mul(0x85EB_CA77)
                .to_le_bytes()
        });
        fs::write(&image, noise.collect::<Vec<_>>())?;
        Ok(image)
    }

    fn publish(&self, image: &Path, reference: &str, more: &[&str]) -> Result<Output> {
        let words = publish_words(&self.store, self.server.url(), image, reference);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        self.store.circular(&[&words, more].concat())
    }

    fn published(&self, image: &Path, reference: &str) -> Result<Value> {
        let token = self.store.beside("publish");
        let output = self.publish(image, reference, &["--token-file", path(&token)])?;
        assert!(output.status.success(), "{}", stderr(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// What publishes to the server at `url` with the keys beside `store`.
fn publish_words(store: &TestStore, url: &str, image: &Path, reference: &str) -> Vec<String> {
    let (keys, work) = (store.beside("made"), store.beside("work"));
    let words = [
        "publish",
        path(image),
        reference,
        "--no-boot",
        "--json",
        "--to",
        url,
        "--keys",
        path(&keys),
        "--work",
        path(&work),
    ];
    words.map(str::to_owned).to_vec()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_published_over_http_is_the_same_disk() -> Result<()> {
    let bench = Bench::start(&[])?;
    let (one, two) = (bench.image("one", 1)?, bench.image("two", 2)?);
    let summary = bench.published(&one, "lab/debian:12")?;
    assert!(
        summary["uploaded_bytes"].as_u64() > Some(2 << 20),
        "{summary}"
    );
    assert_eq!(bench.published(&one, "lab/debian:12")?["uploaded_files"], 0);
    assert_eq!(bench.published(&two, "lab/debian:13")?["version"], "2");
    for (reference, image) in [("lab/debian:12", &one), ("lab/debian:13", &two)] {
        let copy = bench.store.beside("copy");
        let exported = bench
            .store
            .circular(&["export", reference, path(&copy), "--force"])?;
        assert!(exported.status.success(), "{}", stderr(&exported));
        assert!(
            fs::read(copy)? == fs::read(image)?,
            "{reference} is another disk"
        );
    }
    let verified = bench.store.circular(&["verify"])?;
    assert!(verified.status.success(), "{}", stderr(&verified));
    // The server wrote them.
    assert!(bench.store.path().join("boot.ipxe").is_file());
    Ok(())
}

#[test]
fn a_private_store_is_published_to_and_mounted_over_tls() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let certified = tls::certify(&store, "127.0.0.1")?;
    let (cert, key) = (&certified.certificate, &certified.key);
    let tls = [
        "--private",
        "--tls-cert",
        path(cert),
        "--tls-key",
        path(key),
    ];
    let mut bench = Bench::start_on(store, &tls)?;
    assert!(bench.server.url().starts_with("https://"));
    let image = bench.image("disk", 1)?;
    let (ca, token) = (bench.store.beside("ca.pem"), bench.store.beside("publish"));
    let unknown = bench.publish(&image, "debian", &["--token-file", path(&token)])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("--ca"), "{}", stderr(&unknown));
    let arguments = ["--token-file", path(&token), "--ca", path(&ca)];
    let published = bench.publish(&image, "debian", &arguments)?;
    assert!(published.status.success(), "{}", stderr(&published));

    let read = bench.store.beside("read");
    let arguments = ["--ca", path(&ca), "--token-file", path(&read)];
    let options = Options {
        root: Some(bench.store.beside("made/root.json")),
        arguments: arguments.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mount = Mount::start_with(&bench.store, bench.server.url(), "debian", &options)?;
    assert!(fs::read(mount.disk())? == fs::read(&image)?);
    assert!(mount.stop()?.success());
    let log = bench.server.output();
    let asked: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("circular-mount/") && line.contains("peer="))
        .collect();
    assert!(asked.len() >= 8, "{} requests\n{log}", asked.len());
    let is_newer = |line: &&str| line.contains("HTTP/2.0");
    assert!(asked.iter().all(is_newer), "all by HTTP/2\n{log}");
    // The first three, for the root, the timestamp and the boot file, are asked for at once, before
    // anybody can know that one connection is enough. All that follows takes the one that stood first.
    let later = asked.iter().filter(|line| line.contains("/objects/"));
    let peers: HashSet<&str> = later
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with("peer="))
        })
        .collect();
    assert!(peers.len() == 1, "over one connection: {peers:?}\n{log}");
    Ok(())
}

#[test]
fn a_private_store_is_published_to_and_goes_on_after_a_restart() -> Result<()> {
    let mut bench = Bench::start(&["--private"])?;
    let image = bench.image("disk", 1)?;
    bench.published(&image, "debian")?;
    bench.server = Bench::serve(&bench.store, &["--private"])?;
    // At another address, so with another work directory.
    fs::remove_dir_all(bench.store.beside("work"))?;
    assert_eq!(
        bench.published(&image, "debian")?["published_as"],
        "unchanged"
    );
    Ok(())
}

#[test]
fn boot_files_that_a_server_could_not_write_are_written_when_it_can() -> Result<()> {
    let bench = Bench::start(&[])?;
    let (one, two) = (bench.image("one", 1)?, bench.image("two", 2)?);
    bench.published(&one, "debian")?;
    let boot = bench.store.path().join("boot");
    fs::rename(&boot, bench.store.beside("aside"))?;
    fs::write(&boot, "in the way")?;
    let token = bench.store.beside("publish");
    let output = bench.publish(&two, "debian", &["--token-file", path(&token)])?;
    assert!(output.status.success(), "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("could not write its boot scripts"), "{told}");
    fs::remove_file(&boot)?;
    let again = bench.published(&two, "debian")?;
    assert_eq!(again["published_as"], "unchanged");
    let hint: Value = serde_json::from_slice(&fs::read(boot.join("debian.json"))?)?;
    let manifest = hint["manifest"]["digest"].as_str().unwrap_or_default();
    let object = bench
        .store
        .path()
        .join(format!("objects/{}/{manifest}", &manifest[..2]));
    let manifest: Value = serde_json::from_slice(&fs::read(object)?)?;
    assert_eq!(manifest["version"], "2");
    assert!(boot.join("minimum.img").is_file());
    Ok(())
}

#[test]
fn a_pack_that_a_server_lost_is_stored_again_in_another() -> Result<()> {
    let bench = Bench::start(&[])?;
    let one = bench.image("one", 1)?;
    bench.published(&one, "a")?;
    // Half of what it has, and more.
    let mut bytes = fs::read(&one)?;
    bytes.truncate(1 << 20);
    bytes.extend(fs::read(bench.image("two", 2)?)?);
    let both = bench.store.beside("both");
    fs::write(&both, &bytes)?;
    bench.published(&both, "b")?;
    let lost = fs::read_dir(bench.store.path().join("objects"))?
        .map(|directory| Ok(fs::read_dir(directory?.path())?))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .map(|file| Ok(file?.path()))
        .collect::<Result<Vec<_>>>()?;
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |data| data.len());
    let mut packs: Vec<_> = lost
        .into_iter()
        .filter(|path| length(path) > 1 << 20)
        .collect();
    packs.sort_by_key(length);
    assert_eq!(packs.len(), 2);
    for pack in &packs {
        fs::remove_file(pack)?;
    }
    let mended = bench.published(&both, "b")?;
    assert_eq!(mended["published_as"], "mended", "{mended}");
    assert_eq!(mended["version"], "1");
    let copy = bench.store.beside("copy");
    let exported = bench
        .store
        .circular(&["export", "b", path(&copy), "--force"])?;
    assert!(exported.status.success(), "{}", stderr(&exported));
    assert!(fs::read(copy)? == bytes);
    Ok(())
}

/// Tells whether somebody waits for a lock on this file.
fn is_waited_for(lock: &Path) -> Result<bool> {
    let inode = format!(":{} ", fs::metadata(lock)?.ino());
    let locks = fs::read_to_string("/proc/locks")?;
    Ok(locks
        .lines()
        .any(|line| line.contains("->") && line.contains(&inode)))
}

#[test]
fn a_server_ends_though_a_commit_waits_for_the_lock() -> Result<()> {
    let bench = Bench::start(&["--drain-timeout", "1"])?;
    let (one, two) = (bench.image("one", 1)?, bench.image("two", 2)?);
    bench.published(&one, "debian")?;
    let lock_path = bench.store.path().join(".lock");
    let lock = fs::File::open(&lock_path)?;
    lock.lock()?;
    let mut words = publish_words(&bench.store, bench.server.url(), &two, "debian");
    let token = bench.store.beside("publish");
    words.extend(["--token-file".to_owned(), token.display().to_string()]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut publisher = bench.store.command(&words)?.stdout(Stdio::null()).spawn()?;
    while !is_waited_for(&lock_path)? {
        assert!(publisher.try_wait()?.is_none(), "it ended without a commit");
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.server.stop()?;
    publisher.kill()?;
    publisher.wait()?;
    drop(lock);
    Ok(())
}

#[test]
fn nothing_is_stored_without_the_right_token() -> Result<()> {
    let bench = Bench::start(&[])?;
    let image = bench.image("disk", 1)?;
    let wrong = bench.store.beside("wrong");
    fs::write(&wrong, format!("{TOKEN}x"))?;
    let read = bench.store.beside("read");
    for (arguments, says) in [
        (vec![], "--token-file"),
        (
            vec!["--token-file", path(&wrong)],
            "does not know the token",
        ),
        (vec!["--token-file", path(&read)], "scope `publish`"),
    ] {
        let refused = bench.publish(&image, "debian", &arguments)?;
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
        assert!(!stderr(&refused).contains(TOKEN));
    }
    assert!(!bench.store.path().join("objects").exists());
    assert!(!bench.store.path().join("metadata/timestamp.json").exists());
    Ok(())
}

#[test]
fn a_server_without_uploads_and_one_with_another_root_say_so() -> Result<()> {
    let bench = Bench::start(&[])?;
    let image = bench.image("disk", 1)?;
    bench.published(&image, "debian")?;
    let token = bench.store.beside("publish");
    let closed = Server::start(&bench.store.path())?;
    let (keys, work) = (bench.store.beside("made"), bench.store.beside("elsewhere"));
    let mut arguments = vec![
        "publish",
        path(&image),
        "other",
        "--no-boot",
        "--token-file",
        path(&token),
        "--work",
        path(&work),
        "--to",
        closed.url(),
        "--keys",
        path(&keys),
    ];
    let refused = bench.store.circular(&arguments)?;
    assert!(
        stderr(&refused).contains("start it with `circular-server --upload"),
        "{}",
        stderr(&refused)
    );
    // Keys that the server was not started with.
    let stranger = bench.store.beside("stranger");
    bench
        .store
        .circular(&["init", "--root-only", "--keys", path(&stranger)])?;
    let empty = TestStore::new()?;
    fs::create_dir_all(empty.beside("made"))?;
    fs::copy(keys.join("root.json"), empty.beside("made/root.json"))?;
    fs::copy(bench.store.beside("tokens"), empty.beside("tokens"))?;
    let server = Bench::serve(&empty, &[])?;
    let work = empty.beside("work");
    arguments.splice(
        7..,
        [path(&work), "--to", server.url(), "--keys", path(&stranger)],
    );
    let refused = bench.store.circular(&arguments)?;
    assert!(stderr(&refused).contains("refuses"), "{}", stderr(&refused));
    Ok(())
}
