//! Writes what fuzzing starts from: one small, valid thing of each kind, in `tests/fuzz/corpus/`.
//!
//! `cargo run -p circular-tests --example fuzz_seeds`, after a format has changed.

use std::fs;

use anyhow::{Context, Result, ensure};
use circular_tests::binaries::checkout;
use image_format::boot_pack::{self, PlacedChunk};
use image_format::catalogue::{Catalogue, ChunkIndexList, VersionEntry};
use image_format::chunk_index::{self, IndexEntry};
use image_format::chunker::ChunkerParams;
use image_format::frame::Encoder;
use image_format::fuzzing::fuzz_page;
use image_format::index_delta::PatchesBuilder;
use image_format::manifest::{Boot, BootPack, Disk, Manifest};
use image_format::marker::Marker;
use image_format::minimum::{CLOCK_FLOOR, Minimum};
use image_format::page::{Entry, Location, PageBuilder};
use image_format::profile::Profile;
use image_format::region_table::RegionTable;
use image_format::trace::{self, Header, Touch, Trace};
use image_format::{BLOCK_BYTES, ChunkId, Digest, ObjectRef, REGION_BYTES, Tag, Version};

/// Texts as they are: each line is a seed of the target named.
const TEXTS: &[(&str, &[&str])] = &[
    (
        "image_reference",
        &[
            "debian",
            "lab/debian:12@3",
            "lab,debian=12@3",
            "a.b-c_d/0@18446744073709551615",
            "a..b",
            "a%2f",
        ],
    ),
    (
        "request_path",
        &[
            "/",
            "/healthz",
            "/circular.json",
            "/metadata/timestamp.json",
            "/metadata/12.root.json",
            "/boot.ipxe",
            "/boot/a/lab,debian=12%403.ipxe",
            "/raw/lab%2Cdebian=12@3/disk.raw",
            "/objects/ab/ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd",
            "/targets/ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd.lab,debian",
            "/boot/%2e%2e/circular.json",
        ],
    ),
    (
        "upload",
        &[
            "/objects/ab/ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd",
            "/upload/commit",
            "12.targets.json",
            "{\"objects\":[\"ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd\"],\"targets\":\
             [\"ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd.lab,debian\"]}",
            "{\"follows\":null,\"files\":{\"1.root.json\":\"{}\",\"timestamp.json\":\"\"},\"removes\":[\"a\"]}",
        ],
    ),
    (
        "credentials",
        &[
            "Bearer circular_1",
            "Basic eDpjaXJjdWxhcl8x\nread \
             ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd lab@2 # until May\n",
            "Bearer x\n# nobody\n\npublish \
             ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd ci\r\n",
        ],
    ),
    (
        "kernel_command_line",
        &[
            "circular.boot=http://h:8080/boot.ipxe circular.image=debian:12@3 quiet -- x",
            "circular.url=https://h/s circular.image=a circular.cache=none circular.debug panic=-1",
            "circular.url=http://h circular.image=a circular.overlay=tmpfs:size=2g root=LABEL=r",
            "circular.boot=http://h/boot/a=1.ipxe circular.image=a root=/dev/nvme0n1p2 init=/bin/sh",
            "circular.url=http://h circular.image=a ip=10.0.0.2::10.0.0.1:255.255.255.0:h:eth0:off:10.0.0.1",
            "circular.url=http://h circular.image=a ip=dhcp BOOTIF=01-52-54-00-00-00-01 rootfstype=ext4",
            "circular.url=\"http://h/a b\" circular.image=a rootflags=ro,subvol=@ \"root=PARTLABEL=a b\"",
            "01-52-54-00-ab-cd-ef",
        ],
    ),
];

/// `Range` headers, each with the length of what they ask for.
const RANGES: &[(u64, &str)] = &[
    (10, "bytes=0-0"),
    (10, "bytes=2-"),
    (10, "bytes=-3"),
    (1 << 41, "bytes=0-1,4-5 ,\t-2"),
    (u64::MAX, "Bytes=9-99999999999999999999"),
    (0, "bytes=-1"),
    (10, "bytes=u-u"),
];

fn main() -> Result<()> {
    for (target, texts) in TEXTS {
        for (number, text) in texts.iter().enumerate() {
            write(target, &format!("seed-{number}"), text.as_bytes())?;
        }
    }
    for (number, (length, header)) in RANGES.iter().enumerate() {
        let seed = [&length.to_le_bytes(), header.as_bytes()].concat();
        write("range_header", &format!("seed-{number}"), &seed)?;
    }
    documents()?;
    binaries()?;
    boot_packs()?;
    index_deltas()?;
    disks()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let directory = checkout().join("tests/fuzz/corpus").join(target);
    fs::create_dir_all(&directory)?;
    let path = directory.join(name);
    fs::write(&path, bytes).with_context(|| path.display().to_string())
}

fn documents() -> Result<()> {
    let object = ObjectRef::of(b"object");
    let mut manifest = Manifest {
        format: 1,
        name: "lab/debian".parse()?,
        version: Version::FIRST,
        revision: 1,
        disk: Disk {
            length: 1 << 31,
            regions: object,
            content: Digest::of(b"content"),
            chunks: 10,
            data_bytes: 40_960,
            stored_bytes: 9000,
        },
        chunker: ChunkerParams::DEFAULT,
        boot: None,
        boot_pack: None,
        index_delta: None,
    };
    write("documents", "seed-manifest-plain", &manifest.encode())?;
    manifest.boot = Some(Boot {
        kernel: object,
        initramfs: object,
        kernel_release: "6.1.0-40-cloud-amd64".to_owned(),
        cmdline: "console=ttyS0".to_owned(),
        root: Some("PARTUUID=1234".to_owned()),
        base_url: Some("http://h/".to_owned()),
        mirrors: vec!["https://m/".to_owned()],
    });
    manifest.boot_pack = Some(BootPack {
        object: ObjectRef {
            length: 100_000,
            ..object
        },
        head: object,
        profile: object,
    });
    write("documents", "seed-manifest", &manifest.encode())?;
    let mut catalogue = Catalogue::empty("lab/debian".parse()?);
    write("documents", "seed-catalogue-empty", &catalogue.encode())?;
    let entry = VersionEntry {
        manifest: object,
        revision: 1,
        created: 1_700_000_000,
        disk: Digest::of(b"disk"),
        content: Digest::of(b"content"),
        length: 4096,
        bootable: true,
    };
    catalogue.versions.insert(Version::FIRST, entry);
    catalogue.versions.insert(Version::FIRST.next(), entry);
    catalogue.tags.insert(Tag::latest(), Version::FIRST.next());
    catalogue.tags.insert("12".parse()?, Version::FIRST);
    write("documents", "seed-catalogue", &catalogue.encode())?;
    let list = ChunkIndexList {
        format: 1,
        chunk_indexes: vec![object, ObjectRef::of(b"other")],
    };
    write("documents", "seed-chunk-index-list", &list.encode())?;
    let minimum = Minimum {
        root: 1,
        timestamp: 7,
        snapshot: 8,
        targets: 9,
        keys: Some(Digest::of(b"keys")),
        written: Some(CLOCK_FLOOR),
    };
    write("documents", "seed-minimum", &minimum.encode())?;
    write("documents", "seed-marker", &Marker::DEFAULT.encode())
}

fn binaries() -> Result<()> {
    let packs = [b"one", b"two"].map(|name| ObjectRef {
        digest: Digest::of(name),
        length: 1 << 20,
    });
    let mut builder = PageBuilder::default();
    for (number, block) in [0, 2, 64, 16_383].into_iter().enumerate() {
        let place = Location {
            pack: packs[number % 2],
            offset: 8 + block,
            length: 3000,
        };
        builder.push(block, 1, ChunkId::of(&block.to_le_bytes()), place);
    }
    let page = builder.finish()?.context("it has chunks")?;
    write("page", "seed", &page.encode())?;

    let digests = [None, Some(Digest::of(b"page")), None];
    let table = RegionTable::encode(3 * REGION_BYTES - 5, &digests);
    write("region_table", "seed-short", &table.root)?;
    let digests: Vec<_> = (0..1030_u32)
        .map(|at| (at > 1025).then(|| Digest::of(&at.to_le_bytes())))
        .collect();
    let table = RegionTable::encode(1030 * REGION_BYTES, &digests);
    write("region_table", "seed-long", &table.root)?;
    for leaf in table.leaves {
        write("region_table", "seed-leaf", &leaf)?;
    }

    let header = chunk_index::Header {
        n_packs: 2,
        n_entries: 2,
    };
    let mut index = header.encode();
    packs
        .iter()
        .for_each(|pack| index.extend(chunk_index::encode_pack(pack)));
    for pack in 0..2 {
        let entry = IndexEntry {
            chunk: ChunkId::of(&[0]),
            pack,
            offset: 8,
            length: 99,
        };
        index.extend(entry.encode());
    }
    write("chunk_index", "seed", &index)?;

    let text = b"A chunk is one frame. ".repeat(1000);
    for (level, blocks) in [(1, 1), (3, 2), (19, 5)] {
        let plain = &text[..blocks * BLOCK_BYTES as usize];
        let frame = Encoder::new(level)?.encode(plain)?;
        let seed = [&[u8::try_from(blocks - 1)?], &frame[..]].concat();
        write("frame", &format!("seed-{level}"), &seed)?;
    }
    // A block of one byte 4,096 times (RFC 8878), in a window of 1 KiB, and in one of 128 MiB.
    for (name, window) in [("seed-repeat", 0x00), ("seed-window", 0x88)] {
        let head = [0, 0x28, 0xb5, 0x2f, 0xfd, 0x40, window, 0x00, 0x0f];
        write("frame", name, &[&head[..], b"\x03\x80\0a"].concat())?;
    }
    Ok(())
}

/// One patch, for the page that the target has at hand.
fn index_deltas() -> Result<()> {
    let mut builder = PatchesBuilder::default();
    let (base, page) = (fuzz_page(7), fuzz_page(9));
    ensure!(builder.push(3, &base, &page, 4096)?, "there is room");
    let delta = builder.finish().context("there is a patch")?;
    write("index_delta", "seed", &delta)
}

/// A boot pack of two chunks, and a trace and a profile as one is made from.
fn boot_packs() -> Result<()> {
    let plain = b"What a boot reads. ".repeat(1000);
    let (one, rest) = plain.split_at(BLOCK_BYTES as usize);
    let two = &rest[..2 * BLOCK_BYTES as usize];
    let placed = |region, block, plain: &[u8]| {
        Ok::<_, std::num::TryFromIntError>(PlacedChunk {
            region,
            entry: Entry {
                block,
                blocks: u32::try_from(plain.len())? / BLOCK_BYTES,
                chunk: ChunkId::of(plain),
                pack: 0,
                offset: 8,
                length: 99,
            },
            pack: ObjectRef {
                digest: Digest::of(b"pack"),
                length: 1 << 20,
            },
        })
    };
    let chunks = [placed(1, 16_383, one)?, placed(0, 7, two)?];
    ensure!(boot_pack::plan_frames(&chunks).len() == 1, "one frame");
    let stored = Encoder::new(19)?.encode(&[one, two].concat())?;
    let head = boot_pack::Head::build(&chunks, &[u32::try_from(stored.len())?])?.encode();
    let length = u16::try_from(head.len())?.to_le_bytes();
    let seed = [&length, &head[..], &stored].concat();
    write("boot_pack", "seed", &seed)?;

    let disk = Digest::of(b"disk");
    let header = Header::new("lab/debian@3".parse()?, disk);
    let mut bytes = trace::line(&header);
    for (asked, chunk) in (0..).zip(&chunks) {
        bytes.extend(trace::line(&Touch {
            asked,
            served: asked + 5,
            block: chunk.first_block(),
            blocks: chunk.entry.blocks,
            chunk: chunk.entry.chunk,
            read: None,
        }));
    }
    write("profile", "seed-trace", &bytes)?;
    let trace = Trace::decode(&bytes)?;
    let profile = Profile::merge(disk, None, &[trace]);
    write("profile", "seed-profile", &profile.encode())
}

/// The heads of small disks, cut off behind what says what they are.
fn disks() -> Result<()> {
    let put = |disk: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        disk.resize(disk.len().max(at + bytes.len()), 0);
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let mut gpt = Vec::new();
    put(&mut gpt, 446 + 4, &[0xee, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff]);
    put(&mut gpt, 510, &[0x55, 0xaa]);
    put(&mut gpt, 512, b"EFI PART");
    put(&mut gpt, 512 + 72, &2_u64.to_le_bytes());
    put(&mut gpt, 512 + 80, &128_u32.to_le_bytes());
    put(&mut gpt, 512 + 84, &128_u32.to_le_bytes());
    put(&mut gpt, 1024, &[0xaf; 32]);
    put(&mut gpt, 1024 + 32, &2048_u64.to_le_bytes());
    put(&mut gpt, 1024 + 40, &4095_u64.to_le_bytes());
    put(&mut gpt, 1024 + 56, b"r\0o\0o\0t\0");
    put(&mut gpt, 1024 + 255, &[0]);
    write("disk_head", "seed-gpt", &gpt)?;
    let mut mbr = vec![0; 512];
    put(&mut mbr, 440, &[1, 2, 3, 4]);
    put(&mut mbr, 446 + 4, &[0x83, 0, 0, 0, 0, 8, 0, 0, 16, 0, 0, 0]);
    put(&mut mbr, 510, &[0x55, 0xaa]);
    write("disk_head", "seed-mbr", &mbr)?;
    let mut ext4 = vec![0; 1024];
    put(&mut ext4, 1024 + 56, &[0x53, 0xef]);
    put(&mut ext4, 1024 + 104, &[0x3f; 16]);
    put(&mut ext4, 1024 + 120, b"root\0\0\0\0\0\0\0\0\0\0\0\0");
    write("disk_head", "seed-ext4", &ext4)?;
    // As `initramfs::fuzzing` takes it: from the superblock on, which lies at 64 KiB.
    let mut btrfs = vec![0; 600];
    put(&mut btrfs, 64, b"_BHRfS_M");
    put(&mut btrfs, 299, b"root");
    write("disk_head", "seed-btrfs", &btrfs)
}
