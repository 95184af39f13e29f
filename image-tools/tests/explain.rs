//! `circular explain`: the files behind blocks, judged by debugfs, and a whole report.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use image_format::ImageRef;
use image_format::trace::{self, Header, Origin, ReadPart, Touch};
use image_store::{ImageReader, Store};
use image_tools::explain::disk::Disk;
use image_tools::explain::ext4::{self, Ext4Error};
use image_tools::explain::map::{DiskMap, Owner};
use serde_json::Value;
use tempfile::TempDir;

/// Runs a program of e2fsprogs; returns what it printed.
fn told(program: &str, args: &[&str]) -> String {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}, of e2fsprogs: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A tree with files of many sizes, one of holes, links, and a directory that is large enough for an
/// index of hashes.
fn tree(at: &Path) {
    for directory in ["etc/deep/deeper", "usr/many", "empty"] {
        fs::create_dir_all(at.join(directory)).unwrap();
    }
    for number in 0..400_usize {
        let name = format!("usr/many/a file with quite a long name, number {number}");
        let length = if number % 7 == 0 { number * 300 } else { 10 };
        fs::write(at.join(name), vec![b'x'; length]).unwrap();
    }
    fs::write(at.join("etc/deep/deeper/large"), vec![b'y'; 5_000_000]).unwrap();
    fs::hard_link(at.join("etc/deep/deeper/large"), at.join("etc/linked")).unwrap();
    let long = "target/".repeat(20);
    std::os::unix::fs::symlink(long, at.join("etc/long")).unwrap();
    std::os::unix::fs::symlink("short", at.join("etc/short")).unwrap();
    // Many extents: a block of data in every other place.
    let holes = File::create(at.join("etc/holes")).unwrap();
    for number in 0..500_u64 {
        std::os::unix::fs::FileExt::write_at(&holes, b"data", number * 16_384).unwrap();
    }
}

struct Made {
    directory: TempDir,
    image: PathBuf,
}

fn make(options: &[&str]) -> Made {
    let directory = tempfile::tempdir().unwrap();
    let (files, image) = (
        directory.path().join("tree"),
        directory.path().join("image.raw"),
    );
    tree(&files);
    File::create(&image).unwrap().set_len(48 << 20).unwrap();
    let files = files.to_str().unwrap();
    let common = ["-q", "-F", "-d", files];
    told(
        "mke2fs",
        &[options, &common, &[image.to_str().unwrap()]].concat(),
    );
    Made { directory, image }
}

fn map(image: &Path) -> (DiskMap, Vec<(Range<u64>, Owner)>) {
    let mut disk = Disk::of_file(File::open(image).unwrap()).unwrap();
    assert_eq!(disk.ext4_volumes().unwrap(), [(0, 0)]);
    let spans = ext4::walk(&mut disk, 0, "").unwrap();
    (DiskMap::new(spans.clone()), spans)
}

/// A number of the superblock, as `dumpe2fs` tells it.
fn number(image: &Path, field: &str) -> u64 {
    let told = told("dumpe2fs", &["-h", image.to_str().unwrap()]);
    let line = told.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap()
        .trim_start_matches(':')
        .trim()
        .parse()
        .unwrap()
}

/// The blocks of `path`, as debugfs tells them.
fn blocks(image: &Path, path: &str) -> Vec<u64> {
    let request = format!("blocks \"{path}\"");
    let told = told("debugfs", &["-R", &request, image.to_str().unwrap()]);
    told.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

#[test]
fn each_block_in_use_has_the_owner_that_debugfs_names() {
    let kinds: [&[&str]; 4] = [
        &["-t", "ext4", "-b", "4096"],
        &["-t", "ext4", "-b", "1024", "-O", "^resize_inode"],
        &[
            "-t",
            "ext4",
            "-b",
            "4096",
            "-O",
            "^resize_inode,sparse_super2,^metadata_csum,^64bit",
            "-I",
            "256",
        ],
        &["-t", "ext3", "-b", "1024", "-O", "^resize_inode"],
    ];
    for options in kinds {
        let made = make(options);
        let image = &made.image;
        let (map, spans) = map(image);
        let block_bytes = number(image, "Block size");
        let used = number(image, "Block count") - number(image, "Free blocks");
        let mapped: u64 = map
            .owners(&(0..48 << 20))
            .iter()
            .map(|(_, bytes)| bytes)
            .sum();
        // The reserve of an inode that is for growing only has a list, which is nobody's.
        let grows = u64::from(!options.iter().any(|option| option.contains("resize")));
        assert_eq!(mapped / block_bytes + grows, used, "{options:?}");

        let paths: BTreeSet<&String> = (spans.iter())
            .filter_map(|(_, owner)| match owner {
                Owner::File(path) | Owner::Directory(path) => Some(path),
                _ => None,
            })
            .collect();
        assert!(paths.len() > 60, "{paths:?}");
        for path in [
            "/",
            "/etc/holes",
            "/etc/deep/deeper",
            "/usr/many",
            "/lost+found",
        ]
        .into_iter()
        .chain(paths.into_iter().step_by(9).map(String::as_str))
        {
            let of = [
                Owner::File(path.to_owned()),
                Owner::Directory(path.to_owned()),
                Owner::Extents(path.to_owned()),
            ];
            let blocks = blocks(image, path);
            assert!(!blocks.is_empty(), "{path}");
            for block in blocks {
                let range = block * block_bytes..(block + 1) * block_bytes;
                let owners = map.owners(&range);
                assert!(
                    matches!(owners[..], [(owner, _)] if of.contains(owner)),
                    "{options:?}: block {block} of {path} has {owners:?}"
                );
            }
        }
    }
}

struct Scratch(Made);

impl Scratch {
    fn run(&self, args: &[&str]) -> (bool, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_circular"))
            .args(args)
            .current_dir(self.0.directory.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("XDG_CONFIG_HOME", self.0.directory.path().join("config"))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.success(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    fn done(&self, args: &[&str]) -> String {
        let (done, out, told) = self.run(args);
        assert!(done, "{args:?}: {told}");
        out
    }

    /// Records that `from` brought a block of `path` after so many milliseconds, one behind another.
    async fn record(&self, name: &str, boot_pack: bool, read: &[(u64, Origin, u64)]) {
        let store = Store::open(&self.0.directory.path().join("store"))
            .await
            .unwrap();
        let reference: ImageRef = "a".parse().unwrap();
        let resolved = store.resolve(&reference).await.unwrap();
        let reader = ImageReader::open(store, &resolved.manifest).await.unwrap();
        let page = reader.page(0).await.unwrap().unwrap();
        let disk = resolved.manifest.disk.regions.digest;
        let mut header = Header::new(resolved.reference, disk);
        let pack = resolved.manifest.boot_pack.filter(|_| boot_pack);
        header.boot_pack = pack.map(|pack| pack.object.digest);
        let mut bytes = trace::line(&header);
        let mut asked = 0;
        for (block, from, millis) in read {
            let at = u32::try_from(*block).unwrap();
            let entry = page.overlapping(at, at + 1)[0];
            bytes.extend(trace::line(&Touch {
                asked,
                served: asked + millis * 1000,
                block: u64::from(entry.block),
                blocks: entry.blocks,
                chunk: entry.chunk,
                read: Some(ReadPart {
                    from: *from,
                    block: *block,
                    blocks: 1,
                }),
            }));
            asked += millis * 1000;
        }
        fs::write(self.0.directory.path().join(name), bytes).unwrap();
    }
}

#[tokio::test]
async fn a_slow_boot_is_explained_by_files_and_causes() {
    let made = make(&["-t", "ext4", "-b", "4096"]);
    let first = |path: &str| blocks(&made.image, path)[0];
    let (large, many) = (
        first("/usr/many/a file with quite a long name, number 392"),
        first("/etc/deep"),
    );
    let file = first("/usr/many/a file with quite a long name, number 399");
    let scratch = Scratch(made);
    scratch.done(&["publish", "image.raw", "a", "--no-boot"]);
    let boot = [
        (large, Origin::Demand, 90),
        (0, Origin::Memory, 1),
        (many, Origin::Demand, 40),
        (file, Origin::Index, 20),
    ];
    scratch.record("first", false, &boot).await;
    let text = scratch.done(&["explain", "first", "a"]);
    for line in [
        "0.000 s    90.0 ms  /usr/many/a file with quite a long name, number 392  (no boot pack)",
        "0.091 s    40.0 ms  directory /etc/deep  (no boot pack)",
        "/usr/many/a file with quite a long name, number 399  (its index page was missing)",
        "0.130 s      2 times  no boot pack",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    // The file gives the same answer as the store.
    assert_eq!(
        scratch.done(&["explain", "first", "a", "--disk", "image.raw"]),
        text
    );

    // A boot pack of the first file alone; the trace of before still tells what was true then.
    scratch.record("only", false, &boot[..1]).await;
    scratch.done(&["profile", "add", "a", "only"]);
    let boot = [(large, Origin::BootPack, 30), (many, Origin::Demand, 40)];
    scratch.record("second", true, &boot).await;
    let json = |trace| -> Value {
        serde_json::from_str(&scratch.done(&["explain", trace, "a", "--json"])).unwrap()
    };
    let causes = |report: &Value| -> Vec<String> {
        let stalls = report["stalls"].as_array().unwrap().iter();
        stalls
            .map(|stall| stall["causes"][0].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        causes(&json("second")),
        ["boot_pack_late", "not_in_boot_pack"]
    );
    assert_eq!(
        causes(&json("first")),
        ["no_boot_pack", "no_boot_pack", "index_page"]
    );
    assert_eq!(json("second")["stalled_micros"], 70_000);
    let foreseen = &json("second")["foreseen"];
    assert_eq!(
        (&foreseen["chunks"], &foreseen["unused_chunks"]),
        (&1.into(), &0.into())
    );

    // Another disk under the same name is told apart.
    fs::write(
        scratch.0.image.with_file_name("other.raw"),
        vec![7; 1 << 20],
    )
    .unwrap();
    scratch.done(&["publish", "other.raw", "a", "--no-boot"]);
    let (done, _, told) = scratch.run(&["explain", "first", "a"]);
    assert!(
        !done && told.contains("is a trace of a@1, and a@2 has another disk"),
        "{told}"
    );
    scratch.done(&["explain", "first", "a@1"]);
}

#[test]
fn a_file_system_whose_blocks_have_no_end_is_refused() {
    let made = make(&["-t", "ext3", "-b", "4096"]);
    let image = made.image.to_str().unwrap();
    let told = told("debugfs", &["-R", "stat /etc/deep/deeper/large", image]);
    let (_, listed) = told.split_once("(DIND):").unwrap();
    let digits = listed.chars().take_while(char::is_ascii_digit);
    let block: u32 = digits.collect::<String>().parse().unwrap();
    // A list of lists that is all of its own lists.
    let file = File::options().write(true).open(&made.image).unwrap();
    let list = block.to_le_bytes().repeat(1024);
    std::os::unix::fs::FileExt::write_all_at(&file, &list, u64::from(block) * 4096).unwrap();
    let mut disk = Disk::of_file(File::open(&made.image).unwrap()).unwrap();
    let walked = ext4::walk(&mut disk, 0, "");
    assert!(matches!(walked, Err(Ext4Error::Shared)));
    let (_, failed) = ext4::walk_all(&mut disk, usize::MAX).unwrap();
    assert_eq!(failed.len(), 1);
}

#[test]
fn a_superblock_that_promises_more_than_there_is_is_refused() {
    let made = make(&["-t", "ext4", "-b", "4096", "-O", "64bit"]);
    let wide = number(&made.image, "Group descriptor size");
    let file = File::options().write(true).open(&made.image).unwrap();
    let write = |at: u64, value: u32| {
        let bytes = value.to_le_bytes();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 1024 + at).unwrap();
    };
    let walk = || {
        let mut disk = Disk::of_file(File::open(&made.image).unwrap()).unwrap();
        ext4::walk(&mut disk, 0, "").map(|spans| spans.len())
    };
    assert!(walk().is_ok());
    // A million times as many blocks, in groups that all have the same inodes.
    write(4, u32::MAX);
    assert!(matches!(walk(), Err(Ext4Error::Cut)));
    // Groups of a few blocks, all of which have the same table of inodes.
    let (blocks, group_blocks) = ((48 << 20) / 4096, 8);
    write(4, blocks);
    write(32, group_blocks);
    let mut descriptor = vec![0; usize::try_from(wide).unwrap()];
    let bytes = File::open(&made.image).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&bytes, &mut descriptor, 4096).unwrap();
    let groups = usize::try_from(blocks / group_blocks).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &descriptor.repeat(groups), 4096).unwrap();
    let walked = walk();
    assert!(matches!(walked, Err(Ext4Error::Shared)), "{walked:?}");
}
