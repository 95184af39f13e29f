//! `circular profile`, and what a publish makes of it for the next version.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};

use image_format::boot_pack::Head;
use image_format::geometry::{BLOCK_BYTES, REGION_BLOCKS};
use image_format::trace::{self, Header, Touch};
use image_format::{ChunkId, ImageRef};
use image_store::store::Resolved;
use image_store::{ImageReader, Store};
use image_tools::explain::disk::Disk;
use image_tools::explain::ext4;
use image_tools::explain::map::Owner;
use serde_json::Value;
use tempfile::TempDir;

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an image of 4 MiB whose files of 32 KiB differ from those of other seeds where
    /// `changed` says so.
    fn image(&self, name: &str, changed: impl Fn(u64) -> u64) {
        let file = |number: u64| {
            let mut random = number << 32 | changed(number);
            let next = move || {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                u8::try_from(random >> 56).unwrap() | 1
            };
            let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(32_000).collect();
            bytes.resize(32_768, 0);
            bytes
        };
        let image: Vec<u8> = (0..128).flat_map(file).collect();
        fs::write(self.path(name), image).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_circular"))
            .args(args)
            .arg("--json")
            .current_dir(self.0.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("XDG_CONFIG_HOME", self.path("config"))
            .output()
            .unwrap()
    }

    /// Runs what must succeed; returns what it printed.
    fn done(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {told}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs what must fail; returns the message.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn resolved(&self, reference: &str) -> (Resolved, ImageReader) {
        let store = Store::open(&self.path("store")).await.unwrap();
        let reference: ImageRef = reference.parse().unwrap();
        let resolved = store.resolve(&reference).await.unwrap();
        let reader = ImageReader::open(store, &resolved.manifest).await.unwrap();
        (resolved, reader)
    }

    /// Writes an ext4 of 32 MiB with these files, each of this content and length.
    fn file_system(&self, name: &str, files: &[(&str, u64, usize)]) {
        let tree = self.path(&format!("{name}.tree"));
        for (path, content, length) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, noise(*content, *length)).unwrap();
        }
        let image = File::create(self.path(name)).unwrap();
        image.set_len(32 << 20).unwrap();
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([&tree, &self.path(name)])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
        assert!(made.unwrap().success(), "mke2fs, of e2fsprogs");
    }

    /// The numbers of the chunks on the disk that have something of these files.
    async fn chunks_of(&self, reference: &str, image: &str, files: &[&str]) -> Vec<usize> {
        let mut disk = Disk::of_file(File::open(self.path(image)).unwrap()).unwrap();
        let (spans, failed) = ext4::walk_all(&mut disk, usize::MAX).unwrap();
        assert!(failed.is_empty());
        let (_, reader) = self.resolved(reference).await;
        let page = reader.page(0).await.unwrap().unwrap();
        let is_of =
            |owner: &Owner| matches!(owner, Owner::File(path) if files.contains(&&path[..]));
        let block = u64::from(BLOCK_BYTES);
        let has = |first: u64, blocks: u64| {
            let bytes = first * block..(first + blocks) * block;
            spans.iter().any(|(span, owner)| {
                is_of(owner) && span.start < bytes.end && bytes.start < span.end
            })
        };
        let entries = page.entries().iter().enumerate();
        entries
            .filter(|(_, entry)| has(u64::from(entry.block), u64::from(entry.blocks)))
            .map(|(number, _)| number)
            .collect()
    }

    /// Records a boot that touches these chunks, by their number on the disk.
    async fn record(&self, reference: &str, name: &str, touched: &[usize]) {
        let (resolved, reader) = self.resolved(reference).await;
        let page = reader.page(0).await.unwrap().unwrap();
        let disk = resolved.manifest.disk.regions.digest;
        let mut bytes = trace::line(&Header::new(resolved.reference, disk));
        for (at, number) in (0..).zip(touched) {
            let entry = &page.entries()[*number];
            bytes.extend(trace::line(&Touch {
                asked: at,
                served: at + 1,
                block: u64::from(entry.block),
                blocks: entry.blocks,
                chunk: entry.chunk,
                read: None,
            }));
        }
        fs::write(self.path(name), bytes).unwrap();
    }

    /// What is in the boot pack, each chunk held against its digest.
    async fn boot_set(&self, reference: &str) -> Vec<ChunkId> {
        self.frames(reference).await.concat()
    }

    /// The chunks of each frame of the boot pack, which are right.
    async fn frames(&self, reference: &str) -> Vec<Vec<ChunkId>> {
        let (resolved, reader) = self.resolved(reference).await;
        let store = Store::open(&self.path("store")).await.unwrap();
        let pack = resolved.manifest.boot_pack.unwrap();
        let object = store.object(&pack.object).await.unwrap();
        let length = usize::try_from(pack.head.length).unwrap();
        let head: Head = pack.open(&object[..length], reader.length()).unwrap();
        let mut frames = Vec::new();
        for (number, frame) in head.frames().iter().enumerate() {
            let stored = usize::try_from(frame.stored.start).unwrap()
                ..usize::try_from(frame.stored.end).unwrap();
            let frame = head.decode_frame(number, &object[stored]).unwrap();
            frames.push(frame.iter().map(image_format::Chunk::id).collect());
        }
        for placed in head.chunks() {
            let page = reader.page(placed.region).await.unwrap().unwrap();
            let here = page.overlapping(placed.entry.block, placed.entry.block + 1);
            assert_eq!(here[0].chunk, placed.entry.chunk);
            assert!(placed.entry.block < REGION_BLOCKS);
        }
        frames
    }
}

#[tokio::test]
async fn recorded_boots_become_a_boot_pack_of_the_same_version() {
    let scratch = Scratch::new();
    scratch.image("image.raw", |_| 0);
    scratch.done(&["publish", "image.raw", "lab/a:1", "--no-boot"]);
    let (before, reader) = scratch.resolved("lab/a:1").await;
    scratch.record("lab/a:1", "one", &[9, 3, 5, 70]).await;
    scratch.record("lab/a:1", "two", &[9, 3, 5]).await;
    scratch.record("lab/a:1", "three", &[9, 5, 3, 80]).await;
    let added = scratch.done(&["profile", "add", "lab/a:1", "one", "two", "three"]);
    assert_eq!(added["runs"], 3);
    assert_eq!((&added["always"], &added["once"]), (&3.into(), &2.into()));
    let page = reader.page(0).await.unwrap().unwrap();
    let expected = [9, 3, 5].map(|number: usize| page.entries()[number].chunk);
    assert_eq!(scratch.boot_set("lab/a:1").await, expected);
    let (after, _) = scratch.resolved("lab/a:1").await;
    assert_eq!(after.version, before.version);
    assert_eq!(after.manifest.disk, before.manifest.disk);
    assert_eq!(after.manifest.revision, 2);
    assert_eq!(scratch.done(&["profile", "show", "lab/a:1"])["runs"], 3);
    // What was noise is none when more boots touch it.
    scratch.record("lab/a:1", "four", &[9, 3, 5, 70]).await;
    scratch.done(&["profile", "add", "lab/a:1", "four"]);
    assert_eq!(scratch.boot_set("lab/a:1").await.len(), 4);
    let verified = scratch.done(&["verify"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()));
    scratch.done(&["profile", "remove", "lab/a:1"]);
    let (removed, _) = scratch.resolved("lab/a:1").await;
    assert_eq!(removed.manifest.boot_pack, None);
    assert_eq!(removed.manifest.revision, 4);
}

/// Bytes that do not compress, and differ from those of other seeds.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn the_boot_pack_of_an_upgrade_follows_files_and_the_kernel() {
    const OLD: &str = "usr/lib/modules/6.1.0-9-amd64/kernel/fuse.ko";
    const NEW: &str = "usr/lib/modules/6.1.0-10-amd64/kernel/fuse.ko";
    let scratch = Scratch::new();
    let (library, module) = (600_000, 400_000);
    let before = [
        ("usr/lib/libssl.so.3", 1, library),
        (OLD, 2, module),
        ("usr/lib/other", 3, 900_000),
    ];
    scratch.file_system("old.raw", &before);
    scratch.done(&["publish", "old.raw", "a", "--no-boot"]);
    let (library_path, module_path) = ("/usr/lib/libssl.so.3", format!("/{OLD}"));
    let read = [library_path, &module_path];
    let touched = scratch.chunks_of("a", "old.raw", &read).await;
    scratch.record("a", "trace", &touched).await;
    scratch.done(&["profile", "add", "a", "trace"]);
    // Compiled anew, a little longer, elsewhere; the old kernel is there still.
    let after = [
        ("a/first", 4, 3_000_000),
        ("usr/lib/libssl.so.3", 5, library + 9_000),
        (OLD, 2, module),
        (NEW, 6, module),
        ("usr/lib/other", 3, 900_000),
    ];
    scratch.file_system("new.raw", &after);
    let published = scratch.done(&["publish", "new.raw", "a", "--no-boot"]);
    let carried = &published["boot_pack"];
    assert!(
        carried["by_path_bytes"].as_u64().unwrap() > 800_000,
        "{carried}"
    );
    let module_path = format!("/{NEW}");
    let wanted = [library_path, &module_path];
    let wanted = scratch.chunks_of("a", "new.raw", &wanted).await;
    let (_, reader) = scratch.resolved("a").await;
    let page = reader.page(0).await.unwrap().unwrap();
    let wanted: HashSet<_> = wanted.iter().map(|at| page.entries()[*at].chunk).collect();
    let found: HashSet<_> = scratch.boot_set("a").await.into_iter().collect();
    let missing = wanted.difference(&found).count();
    // The last bytes of what is longer now, and what else lies in the chunks of the old disk.
    assert!(missing <= 1, "{missing} of {} are missing", wanted.len());
    let in_vain = found.difference(&wanted).count();
    assert!(in_vain <= 4, "{in_vain} of {} are in vain", found.len());
}

#[tokio::test]
async fn where_the_next_disk_cannot_be_walked_places_serve() {
    const MAGIC: usize = 1024 + 56;
    let scratch = Scratch::new();
    scratch.file_system("old.raw", &[("usr/lib/library", 1, 3_000_000)]);
    scratch.done(&["publish", "old.raw", "a", "--no-boot"]);
    let library = "/usr/lib/library";
    let touched = scratch.chunks_of("a", "old.raw", &[library]).await;
    scratch.record("a", "trace", &touched).await;
    scratch.done(&["profile", "add", "a", "trace"]);
    let mut disk = Disk::of_file(File::open(scratch.path("old.raw")).unwrap()).unwrap();
    // A list of all that is in it is as long as is said.
    let (none, failed) = ext4::walk_all(&mut disk, 2).unwrap();
    assert_eq!((none.len(), failed.len()), (0, 1));
    let (spans, _) = ext4::walk_all(&mut disk, usize::MAX).unwrap();
    let is_library = |owner: &Owner| *owner == Owner::File(library.to_owned());
    let (bytes, _) = spans.iter().find(|(_, owner)| is_library(owner)).unwrap();
    let mut image = fs::read(scratch.path("old.raw")).unwrap();
    image[MAGIC] ^= 0xff;
    let start = usize::try_from(bytes.start).unwrap();
    image[start..start + 20_000].copy_from_slice(&noise(9, 20_000));
    fs::write(scratch.path("new.raw"), image).unwrap();
    let published = scratch.done(&["publish", "new.raw", "a", "--no-boot"]);
    let carried = &published["boot_pack"];
    let bytes = |field: &str| carried[field].as_u64().unwrap();
    assert_eq!((bytes("by_path_bytes"), bytes("lost_bytes")), (0, 0));
    assert!(bytes("by_position_bytes") > 0, "{carried}");
    assert!(bytes("by_content_bytes") > 1_000_000, "{carried}");
}

#[tokio::test]
async fn the_next_version_gets_its_boot_pack_by_itself() {
    let scratch = Scratch::new();
    scratch.image("old.raw", |_| 0);
    scratch.done(&["publish", "old.raw", "a", "--no-boot"]);
    let touched: Vec<_> = (0..40).rev().collect();
    scratch.record("a", "trace", &touched).await;
    scratch.done(&["profile", "add", "a", "trace"]);
    // A tenth of the files are new.
    scratch.image("new.raw", |number| u64::from(number % 10 == 0));
    let published = scratch.done(&["publish", "new.raw", "a", "--no-boot"]);
    let carried = &published["boot_pack"];
    let bytes = |field: &str| carried[field].as_u64().unwrap();
    assert_eq!(bytes("lost_bytes"), 0);
    assert!(bytes("by_position_bytes") > 0);
    assert!(bytes("by_content_bytes") > 5 * bytes("by_position_bytes"));
    let old = scratch.boot_set("a@1").await;
    let new = scratch.boot_set("a@2").await;
    let shared = new.iter().filter(|chunk| old.contains(chunk)).count();
    assert!(
        shared > 30 && shared < new.len(),
        "{shared} of {}",
        new.len()
    );
    // Who booted the version before needs whole frames, or nothing of them; with more recorded boots, too.
    let are_apart = async || {
        let frames = scratch.frames("a@2").await;
        let known = |frame: &Vec<ChunkId>| frame.iter().filter(|it| old.contains(it)).count();
        let pure = |frame: &Vec<ChunkId>| [0, frame.len()].contains(&known(frame));
        frames.len() > 1 && frames.iter().all(pure)
    };
    assert!(are_apart().await);
    assert_eq!(scratch.done(&["profile", "show", "a"])["runs"], 1);
    // Published again, it is what it was.
    let again = scratch.done(&["publish", "new.raw", "a", "--no-boot"]);
    assert_eq!(again["published_as"], "unchanged");
    assert_eq!(scratch.boot_set("a").await, new);
    scratch.record("a@2", "another", &touched).await;
    scratch.done(&["profile", "add", "a", "another"]);
    assert!(are_apart().await);
}

#[tokio::test]
async fn what_is_no_trace_of_the_image_changes_nothing() {
    let scratch = Scratch::new();
    scratch.image("a.raw", |_| 0);
    scratch.image("b.raw", |_| 1);
    scratch.done(&["publish", "a.raw", "a", "--no-boot"]);
    scratch.done(&["publish", "b.raw", "b", "--no-boot"]);
    scratch.record("b", "other", &[1, 2]).await;
    scratch.record("a", "empty", &[]).await;
    fs::write(scratch.path("garbage"), "hello\n").unwrap();
    for (trace, told) in [
        ("other", "`other` is a trace of b@1, not of `a`"),
        ("empty", "`empty` lists nothing that was read"),
        ("garbage", "cannot use `garbage`"),
        ("missing", "cannot read `missing`"),
    ] {
        let message = scratch.refused(&["profile", "add", "a", trace]);
        assert!(message.contains(told), "{message}");
    }
    let (resolved, _) = scratch.resolved("a").await;
    assert_eq!(resolved.manifest.revision, 1);
}
