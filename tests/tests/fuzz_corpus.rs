//! What fuzzing found before is tried again: the bodies of the fuzz targets, over the saved corpus.
//!
//! `docs/FUZZING.md` says how the corpus came to be.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use circular_tests::binaries::checkout;

/// A fuzz target, and what it calls.
type Target = (&'static str, fn(&[u8]));

/// Every file of `tests/fuzz/fuzz_targets`.
const TARGETS: &[Target] = &[
    ("boot_pack", image_format::fuzzing::boot_pack),
    ("chunk_index", image_format::fuzzing::chunk_index),
    ("credentials", server::fuzzing::credentials),
    ("disk_head", initramfs::fuzzing::disk_head),
    ("documents", image_format::fuzzing::documents),
    ("frame", image_format::fuzzing::frame),
    ("image_reference", image_format::fuzzing::image_reference),
    ("index_delta", image_format::fuzzing::index_delta),
    (
        "kernel_command_line",
        initramfs::fuzzing::kernel_command_line,
    ),
    ("page", image_format::fuzzing::page),
    ("profile", image_format::fuzzing::profile),
    ("range_header", server::fuzzing::range_header),
    ("region_table", image_format::fuzzing::region_table),
    ("request_path", server::fuzzing::request_path),
    ("upload", server::fuzzing::upload),
];

/// A corpus is for every checkout: few files, and small ones.
const FILES_MAX: usize = 40;
const BYTES_MAX: usize = 4096;

/// How many single bits of each file are flipped, spread over its length.
const FLIPS: usize = 128;

fn fuzz() -> PathBuf {
    checkout().join("tests/fuzz")
}

/// Returns the corpus of `target`, each file with its name.
fn corpus(target: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = fuzz().join("corpus").join(target);
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    entries
        .map(|entry| {
            let path = entry?.path();
            Ok((path.display().to_string(), fs::read(&path)?))
        })
        .collect()
}

/// Runs `body` over every file of the corpus of `target`, changed by `change` in many ways.
fn try_all(change: impl Fn(&[u8], &mut dyn FnMut(&[u8]))) -> Result<()> {
    for (target, body) in TARGETS {
        for (_, bytes) in corpus(target)? {
            change(&bytes, &mut |bytes| body(bytes));
        }
    }
    Ok(())
}

#[test]
fn every_target_runs_here_and_has_a_small_corpus() -> Result<()> {
    let mut sources = BTreeSet::new();
    for entry in fs::read_dir(fuzz().join("fuzz_targets"))? {
        let path = entry?.path();
        let stem = path.file_stem().context("targets have names")?;
        sources.insert(stem.to_string_lossy().into_owned());
    }
    let here: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    ensure!(sources == here, "targets {sources:?}, here {here:?}");
    for (target, _) in TARGETS {
        let files = corpus(target)?;
        ensure!(
            (1..=FILES_MAX).contains(&files.len()),
            "{target} has {} files",
            files.len()
        );
        for (name, bytes) in files {
            ensure!(bytes.len() < BYTES_MAX, "{name} has {} bytes", bytes.len());
        }
    }
    Ok(())
}

#[test]
fn every_saved_input_is_answered() -> Result<()> {
    try_all(|bytes, run| run(bytes))
}

#[test]
fn every_saved_input_is_answered_when_it_ends_early() -> Result<()> {
    try_all(|bytes, run| (0..bytes.len()).for_each(|length| run(&bytes[..length])))
}

#[test]
fn every_saved_input_is_answered_with_a_bit_flipped() -> Result<()> {
    try_all(|bytes, run| {
        let bits = bytes.len() * 8;
        // A step that is odd visits every bit of a byte in turn.
        let step = (bits / FLIPS) | 1;
        for bit in (0..bits).step_by(step) {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            run(&flipped);
        }
    })
}
