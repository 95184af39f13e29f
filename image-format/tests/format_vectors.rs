//! Holds the code to the test vectors in docs/FORMAT.md: they are read from that file, so neither
//! can change without the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use image_format::boot_pack::{Head, PlacedChunk};
use image_format::chunk_index::{Header, IndexEntry};
use image_format::chunker::{ChunkerParams, Cut, End};
use image_format::content::ContentHasher;
use image_format::index_delta::Patches;
use image_format::page::{Location, Page, PageBuilder};
use image_format::profile::Profile;
use image_format::region_table::RegionTable;
use image_format::trace::{self, Origin, ReadPart, Touch, Trace};
use image_format::{ChunkId, Digest, ImageRef, ObjectRef, frame, overlay};

const DOCUMENT: &str = include_str!("../../docs/FORMAT.md");

/// Lines `KEY = VALUE` of the fenced blocks marked `vectors`.
fn vectors() -> BTreeMap<&'static str, &'static str> {
    DOCUMENT
        .split("```vectors\n")
        .skip(1)
        .filter_map(|part| part.split_once("```"))
        .flat_map(|(block, _)| block.lines())
        .filter_map(|line| line.split_once(" = "))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).expect("vectors are hex");
    let pairs = text.as_bytes().as_chunks::<2>().0.iter();
    let byte = |[high, low]: &[u8; 2]| digit(high) * 16 + digit(low);
    pairs
        .map(|pair| u8::try_from(byte(pair)).expect("two digits are a byte"))
        .collect()
}

/// A block of the kind that a letter stands for, at place `number` (docs/FORMAT.md, "Vectors").
fn block(kind: char, number: u64) -> Vec<u8> {
    let filled = match kind {
        '0' => 0,
        't' => 1000,
        'f' => 4096,
        _ => panic!("no such kind of block: {kind}"),
    };
    let noise = |at: u64| {
        ((number << 20) + at)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .to_le_bytes()[5]
            | 1
    };
    (0..4096)
        .map(|at| if at < filled { noise(at) } else { 0 })
        .collect()
}

fn cuts(kinds: &str) -> String {
    let disk: Vec<u8> = (0..)
        .zip(kinds.chars())
        .flat_map(|(number, kind)| block(kind, number))
        .collect();
    let (mut at, mut out) = (0, Vec::new());
    while at < disk.len() {
        let blocks = match ChunkerParams::DEFAULT.cut(&disk[at..], End::Region) {
            Cut::Zero { blocks } => blocks,
            Cut::Chunk { blocks } => {
                out.push(format!("{}+{blocks}", at / 4096));
                blocks
            }
            Cut::More => panic!("the region ends here"),
        };
        at += blocks * 4096;
    }
    if out.is_empty() {
        "none".to_owned()
    } else {
        out.join(" ")
    }
}

fn pack() -> ObjectRef {
    ObjectRef {
        digest: Digest::of(b"pack"),
        length: 100_000,
    }
}

fn page() -> Page {
    page_of(2)
}

/// The first chunks of the page of the vectors.
fn page_of(chunks: usize) -> Page {
    let mut builder = PageBuilder::default();
    let place = |offset, length| Location {
        pack: pack(),
        offset,
        length,
    };
    let both = [
        (0, 2, b"one", place(8, 500)),
        (7, 64, b"two", place(508, 90_000)),
    ];
    for (block, blocks, name, place) in both.into_iter().take(chunks) {
        builder.push(block, blocks, ChunkId::of(name), place);
    }
    let page = builder.finish().expect("a vector is well-formed");
    page.expect("a vector is well-formed")
}

/// The chunks of [`page`], in the other order, in the second region of a disk.
fn boot_pack() -> Head {
    let page = page();
    let chunks = page.entries().iter().rev().map(|entry| PlacedChunk {
        region: 1,
        entry: *entry,
        pack: page.pack(entry),
    });
    let chunks: Vec<_> = chunks.collect();
    Head::build(&chunks, &[70_000]).expect("a vector is well-formed")
}

/// A trace of the chunks of [`boot_pack`].
fn trace() -> Trace {
    let image: ImageRef = "lab/debian:12@3".parse().expect("a vector is well-formed");
    let touch = |(asked, chunk): (u64, PlacedChunk)| Touch {
        asked,
        served: asked + 900,
        block: chunk.first_block(),
        blocks: chunk.entry.blocks,
        chunk: chunk.entry.chunk,
        read: (asked > 0).then(|| ReadPart {
            from: Origin::BootPack,
            block: chunk.first_block() + 1,
            blocks: 1,
        }),
    };
    Trace {
        header: trace::Header::new(image, Digest::of(b"disk")),
        touches: [0, 1500]
            .into_iter()
            .zip(boot_pack().chunks())
            .map(touch)
            .collect(),
    }
}

fn one_line(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).expect("a vector is well-formed");
    text.trim_end().replace('\n', " \\n ")
}

fn overlay_header() -> Vec<u8> {
    let header = overlay::Header {
        disk: Digest::of(b"abc"),
        disk_length: 10_000,
        seed: 5,
        base: "lab/debian:12@3".to_owned(),
    };
    header.encode()
}

/// Without its padding.
fn overlay_batch() -> Vec<u8> {
    let batch = overlay::Batch {
        kind: overlay::Kind::Change,
        generation: 1,
        sequence: 2,
        records: vec![
            overlay::Record::Zeros { block: 1, count: 2 },
            overlay::Record::Data {
                block: 0,
                side: overlay::Side::B,
                sum: overlay::checksum(5, &[b'a'; 4096]),
            },
        ],
    };
    let mut bytes = batch.encode(5);
    bytes.truncate(56 + 2 * 16);
    bytes
}

fn overlay_layout(disk_length: u64) -> String {
    let layout = overlay::Layout::of(disk_length);
    let places = [
        layout.log(0).start,
        layout.log(1).start,
        layout.place(overlay::Side::A, 0),
        layout.place(overlay::Side::B, 0),
        layout.file_bytes(),
    ];
    places.map(|place| place.to_string()).join(" ")
}

fn computed(key: &str) -> String {
    let (kind, input) = key.split_once(' ').unwrap_or((key, ""));
    match kind {
        "digest" => Digest::of(input.as_bytes()).to_string(),
        "object-path" => Digest::of(input.as_bytes()).object_path(),
        "safe-form" => input
            .parse::<ImageRef>()
            .expect("a vector is well-formed")
            .to_file_safe(),
        "cuts" => cuts(input),
        "block-digest" => {
            let (kind, number) = input.split_once(' ').expect("a vector is well-formed");
            Digest::of(&block(
                kind.chars().next().expect("a vector is well-formed"),
                number.parse().expect("a vector is well-formed"),
            ))
            .to_string()
        }
        "page" => hex(&page().encode()),
        "page-digest" => Digest::of(&page().encode()).to_string(),
        "region-table" => {
            let pages = [Some(Digest::of(b"page")), None];
            hex(&RegionTable::encode((64 << 20) + 5, &pages).root)
        }
        "content-digest" => {
            let mut content = ContentHasher::default();
            content.push(0, 2, ChunkId::of(b"one"));
            content.push(7, 64, ChunkId::of(b"two"));
            content.finish((64 << 20) + 5).to_string()
        }
        "chunk-index-header" => hex(&Header {
            n_packs: 1,
            n_entries: 2,
        }
        .encode()),
        "chunk-index-entry" => hex(&IndexEntry {
            chunk: ChunkId::of(b"one"),
            pack: 0,
            offset: 8,
            length: 500,
        }
        .encode()),
        "boot-pack-head" => hex(&boot_pack().encode()),
        "trace" => {
            let trace = trace();
            let touches = trace.touches.iter().flat_map(trace::line);
            let lines = trace::line(&trace.header).into_iter().chain(touches);
            one_line(&lines.collect::<Vec<_>>())
        }
        "profile" => one_line(&Profile::merge(Digest::of(b"disk"), None, &[trace()]).encode()),
        "overlay-header-front" => hex(&overlay_header()[..79]),
        "overlay-header-checksum" => hex(&overlay_header()[4088..]),
        "overlay-batch" => hex(&overlay_batch()),
        "overlay-layout" => overlay_layout(input.parse().expect("a vector is well-formed")),
        _ => panic!("no such vector: {key}"),
    }
}

#[test]
fn the_document_and_the_code_agree() {
    let vectors = vectors();
    assert!(vectors.len() >= 12, "vectors were lost from docs/FORMAT.md");
    let wrong: Vec<_> = vectors
        .iter()
        .filter(|(key, _)| !key.starts_with("frame") && **key != "index-delta")
        .map(|(key, value)| (key, *value, computed(key)))
        .filter(|(_, value, computed)| value != computed)
        .map(|(key, _, computed)| format!("{key} = {computed}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "docs/FORMAT.md should say\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_index_delta_in_the_document_gives_its_page() {
    let delta = unhex(vectors()["index-delta"]);
    let patches = Patches::decode(delta.into()).unwrap();
    let (base, page) = (page_of(1).encode(), page().encode());
    let made = patches.page(3, &Digest::of(&page), &base).unwrap();
    assert_eq!(made.unwrap(), page);
}

#[test]
fn frames_in_the_document_decode() {
    let frames: Vec<_> = vectors()
        .into_iter()
        .filter(|(key, _)| key.starts_with("frame "))
        .collect();
    assert!(!frames.is_empty(), "no frame in docs/FORMAT.md");
    for (key, stored) in frames {
        let [_, length, id] = key.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{key}: not `frame LENGTH CHUNK`");
        };
        let bytes = unhex(stored);
        let id = ChunkId::from_bytes(*id.parse::<Digest>().unwrap().as_bytes());
        let chunk = frame::decode(id, length.parse().unwrap(), &bytes).unwrap();
        assert_eq!(chunk.bytes().len().to_string(), length);
    }
}
