//! Disks for the tests: made from a seed, or the Debian ones of `make image`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};

use crate::binaries::checkout;

/// Bytes read at once when a whole disk is.
const STEP: usize = 1 << 20;

/// Returns `length` bytes that look random and depend on nothing but `seed` (splitmix64).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes a sparse file of `length` bytes at `path` with `pieces` (offset, bytes) in it.
///
/// # Errors
/// The file system does not take it.
pub fn sparse(path: &Path, length: u64, pieces: &[(u64, Vec<u8>)]) -> Result<()> {
    let context = || format!("cannot make the disk {}", path.display());
    let file = File::create(path).with_context(context)?;
    file.set_len(length).with_context(context)?;
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).with_context(context)?;
    }
    Ok(())
}

/// Returns the SHA-256 of a file in hex.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; STEP];
    loop {
        let length = file.read(&mut buffer).with_context(context)?;
        if length == 0 {
            break;
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Returns `length` bytes at `offset` of a file.
///
/// # Errors
/// They cannot be read, or the file ends before.
pub fn read_at(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Reads `length` bytes at `offset` of a file as a database would: the kernel is told not to read ahead.
///
/// # Errors
/// They cannot be read.
pub fn read_alone(path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Returns a file that `make image` built: `debian.raw`, `debian.hashes`, …
///
/// # Errors
/// It is not there.
pub fn debian(name: &str) -> Result<PathBuf> {
    let path = checkout().join("build").join(name);
    if !path.is_file() {
        bail!("no {}; `make image` builds it", path.display());
    }
    Ok(path)
}
