//! Boot packs: one encoding, nothing impossible, no wrong byte.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::frame::Encoder;
use crate::geometry::REGION_BYTES;

/// The plain bytes of chunk number `number`.
fn plain(number: usize, blocks: u32) -> Vec<u8> {
    let text = format!("chunk {number:010}");
    text.into_bytes()
        .repeat((blocks * BLOCK_BYTES / 16) as usize)
}

/// Chunks of these numbers of blocks and packs, each in a region of its own.
fn chunks(sizes: &[(u32, u8)]) -> Vec<PlacedChunk> {
    let chunk = |(number, &(blocks, pack)): (usize, &(u32, u8))| PlacedChunk {
        region: u32::try_from(number).unwrap(),
        entry: Entry {
            block: 5,
            blocks,
            chunk: ChunkId::of(&plain(number, blocks)),
            pack: 0,
            offset: 8,
            length: 100,
        },
        pack: ObjectRef {
            digest: Digest::of(&[pack]),
            length: 1000,
        },
    };
    sizes.iter().enumerate().map(chunk).collect()
}

/// The stored frames of these chunks.
fn stored(chunks: &[PlacedChunk]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(3).unwrap();
    let frame = |frame: Range<usize>| {
        let plain: Vec<_> = frame
            .flat_map(|number| plain(number, chunks[number].entry.blocks))
            .collect();
        encoder.encode(&plain).unwrap()
    };
    plan_frames(chunks).into_iter().map(frame).collect()
}

fn head(chunks: &[PlacedChunk], stored: &[Vec<u8>]) -> Head {
    let lengths: Vec<_> = stored
        .iter()
        .map(|frame| u32::try_from(frame.len()).unwrap())
        .collect();
    Head::build(chunks, &lengths).unwrap()
}

fn named(head: &Head) -> BootPack {
    BootPack {
        object: ObjectRef {
            digest: Digest::of(b"object"),
            length: head.object_length(),
        },
        head: ObjectRef::of(&head.encode()),
        profile: ObjectRef::of(b"profile"),
    }
}

proptest! {
    // Each case packs some MiB.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What is built encodes to one form, decodes to itself, and its frames give its chunks back.
    #[test]
    fn round_trip(sizes in vec((1..=CHUNK_BLOCKS_MAX, 0..4_u8), 1..8)) {
        let chunks = chunks(&sizes);
        let stored = stored(&chunks);
        let head = head(&chunks, &stored);
        prop_assert_eq!(&Head::decode(&head.encode()).unwrap(), &head);
        prop_assert_eq!(head.length(), head.encode().len() as u64);
        let strip = |chunk: PlacedChunk| (chunk.region, chunk.entry.chunk, chunk.pack);
        prop_assert!(head.chunks().map(strip).eq(chunks.iter().copied().map(strip)));
        let mut number = 0;
        for (frame, bytes) in stored.iter().enumerate() {
            for chunk in head.decode_frame(frame, bytes).unwrap() {
                prop_assert_eq!(&chunk.bytes()[..], plain(number, sizes[number].0));
                number += 1;
            }
        }
        prop_assert_eq!(number, sizes.len());
    }

    /// A head with any one byte changed is refused, or is the one encoding of something else.
    #[test]
    fn a_changed_head_has_one_encoding(at in any::<prop::sample::Index>(), byte: u8) {
        let chunks = chunks(&[(250, 0), (3, 1), (9, 0), (9, 2)]);
        let head = head(&chunks, &stored(&chunks));
        let mut bytes = head.encode();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        if let Ok(other) = Head::decode(&bytes) {
            prop_assert_eq!(&other.encode(), &bytes);
        }
        prop_assert!(named(&head).open(&bytes, 16 * REGION_BYTES).is_err());
    }

    /// A frame with any one bit changed gives no chunk, or the right ones.
    #[test]
    fn damage_to_a_frame_is_seen(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let chunks = chunks(&[(9, 0), (30, 1)]);
        let mut stored = stored(&chunks);
        let head = head(&chunks, &stored);
        let right = head.decode_frame(0, &stored[0]).unwrap();
        let at = at.index(stored[0].len());
        stored[0][at] ^= 1 << bit;
        if let Ok(got) = head.decode_frame(0, &stored[0]) {
            prop_assert_eq!(got, right);
        }
    }

    /// Frames hold all chunks in order, none longer than allowed, none shorter than need be.
    #[test]
    fn frames_are_as_long_as_allowed(sizes in vec((1..=CHUNK_BLOCKS_MAX, 0..1_u8), 0..60)) {
        let chunks = chunks(&sizes);
        let frames = plan_frames(&chunks);
        let bytes = |frame: &Range<usize>| frame.clone().map(|n| chunks[n].entry.plain_len()).sum::<usize>();
        let max = FRAME_PLAIN_BYTES_MAX as usize;
        prop_assert!(frames.iter().all(|frame| !frame.is_empty() && bytes(frame) <= max));
        prop_assert!(frames.iter().flat_map(Clone::clone).eq(0..chunks.len()));
        for pair in frames.windows(2) {
            prop_assert!(bytes(&pair[0]) + chunks[pair[1].start].entry.plain_len() > max);
        }
    }
}

proptest! {
    /// What is set apart is all that there was, each kind in its order, in frames of one kind; the first of each frame come
    /// in the order in which they are read.
    #[test]
    fn frames_hold_what_is_known_or_what_is_not(sizes in vec((1..=CHUNK_BLOCKS_MAX, 0..2_u8), 0..60)) {
        let chunks = chunks(&sizes);
        let known: HashSet<_> = (chunks.iter().zip(&sizes).filter(|(_, (_, kind))| *kind == 0))
            .map(|(chunk, _)| chunk.entry.chunk)
            .collect();
        let is_known = |chunk: &PlacedChunk| known.contains(&chunk.entry.chunk);
        let (order, frames) = plan_frames_apart(&chunks, |chunk| known.contains(chunk));
        prop_assert!(frames.iter().flat_map(Clone::clone).eq(0..chunks.len()));
        for kind in [true, false] {
            let of_kind = |all: &[PlacedChunk]| -> Vec<PlacedChunk> {
                all.iter().filter(|chunk| is_known(chunk) == kind).copied().collect()
            };
            prop_assert_eq!(of_kind(&order), of_kind(&chunks));
        }
        let position = |chunk: &PlacedChunk| chunks.iter().position(|other| other == chunk);
        let firsts = frames.iter().map(|frame| position(&order[frame.start]));
        prop_assert!(firsts.is_sorted());
        for frame in frames {
            let frame = &order[frame];
            prop_assert!(frame.iter().all(|chunk| is_known(chunk) == is_known(&frame[0])));
            let plain: usize = frame.iter().map(|chunk| chunk.entry.plain_len()).sum();
            prop_assert!(plain <= FRAME_PLAIN_BYTES_MAX as usize);
        }
    }
}

#[test]
fn what_would_be_too_many_frames_is_not_set_apart() {
    // Three quarters of a frame, a quarter, and so on: together they fill it, apart three of four are half empty.
    let mut chunks = chunks(&[(1, 0); 1800]);
    for (at, chunk) in chunks.iter_mut().enumerate() {
        chunk.entry.blocks = if at % 2 == 0 { 192 } else { 64 };
    }
    let odd: HashSet<_> = chunks
        .iter()
        .skip(1)
        .step_by(2)
        .map(|it| it.entry.chunk)
        .collect();
    let (order, frames) = plan_frames_apart(&chunks, |chunk| odd.contains(chunk));
    assert_eq!(frames.len(), 900);
    assert!(order == chunks);
}

#[test]
fn impossible_boot_packs_are_refused() {
    let good = chunks(&[(2, 0), (3, 1)]);
    let spoil: [fn(&mut Vec<PlacedChunk>); 11] = [
        Vec::clear,
        |c| c[1].entry.chunk = c[0].entry.chunk,
        |c| c[1].region = 0,
        |c| c[1].region = u32::MAX,
        |c| c[1].entry.block = REGION_BLOCKS - 2,
        |c| c[1].entry.blocks = 0,
        |c| c[1].entry.blocks = CHUNK_BLOCKS_MAX + 1,
        |c| c[1].entry.offset = 7,
        |c| c[1].entry.length = 1001,
        |c| c[1].pack.length = 99,
        |c| c[1].pack.length = u64::from(PACK_BYTES_MAX) + 1,
    ];
    assert!(Head::build(&good, &[100]).is_ok());
    for (row, change) in spoil.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(Head::build(&bad, &[100]).is_err(), "row {row}");
    }
    for stored in [&[][..], &[0], &[5 * BLOCK_BYTES + 1], &[100, 100]] {
        assert!(Head::build(&good, stored).is_err(), "{stored:?}");
    }
}

#[test]
fn a_head_fits_its_object_and_its_disk_or_is_refused() {
    let chunks = chunks(&[(2, 0), (3, 1)]);
    let head = head(&chunks, &stored(&chunks));
    let (named, bytes) = (named(&head), head.encode());
    let end = REGION_BYTES + u64::from(8 * BLOCK_BYTES);
    assert_eq!(named.open(&bytes, end).unwrap(), head);
    assert_eq!(named.open(&bytes, end - 4095).unwrap(), head);
    assert!(named.open(&bytes, end - 4096).is_err());
    let mut longer = named;
    longer.object.length += 1;
    assert!(longer.open(&bytes, end).is_err());
}
