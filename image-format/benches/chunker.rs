//! How fast a disk is cut, beside what must be done anyway: SHA-256 of the same bytes.
//!
//! The chunker's only work per byte is one block hash, so it should run several times as fast.
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image_format::chunker::{ChunkerParams, Cut, End};
use image_format::{BLOCK_BYTES, Digest};

const BYTES: usize = 16 * 1024 * 1024;

/// Bytes that do not repeat, from a fixed seed (xorshift64).
fn noise() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(BYTES);
    while bytes.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn cut_all(data: &[u8]) -> usize {
    let (mut at, mut chunks) = (0, 0);
    while at < data.len() {
        let blocks = match ChunkerParams::DEFAULT.cut(&data[at..], End::Region) {
            Cut::Zero { blocks } | Cut::Chunk { blocks } => blocks,
            Cut::More => unreachable!("the region ends with the data"),
        };
        at += blocks * BLOCK_BYTES as usize;
        chunks += 1;
    }
    chunks
}

fn chunker(c: &mut Criterion) {
    let data = noise();
    let zeros = vec![0; BYTES];
    let mut group = c.benchmark_group("chunker");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("cut/noise", |b| b.iter(|| cut_all(black_box(&data))));
    group.bench_function("cut/zeros", |b| b.iter(|| cut_all(black_box(&zeros))));
    group.bench_function("sha256/noise", |b| b.iter(|| Digest::of(black_box(&data))));
    group.finish();
}

criterion_group!(benches, chunker);
criterion_main!(benches);
