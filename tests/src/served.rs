//! A disk of a test's own, published and served; and whether a mount shows it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::images::{noise, sparse};
use crate::server::Server;
use crate::store::TestStore;

/// Bytes of a MiB.
pub const MIB: usize = 1 << 20;

/// A disk that does not compress, some of it holes.
pub fn disk(length: usize) -> Vec<u8> {
    let mut bytes = noise(7, length);
    for hole in bytes.chunks_mut(700_000) {
        let end = hole.len().min(50_000);
        hole[..end].fill(0);
    }
    bytes
}

/// A store with this disk, and its server.
pub fn served(bytes: &[u8]) -> Result<(TestStore, Server)> {
    let store = TestStore::new()?;
    let image = store.beside("image");
    sparse(&image, bytes.len() as u64, &[(0, bytes.to_vec())])?;
    let server = store.publish_and_serve(&image, "test:1")?;
    Ok((store, server))
}

/// Reads all of the disk from the client, not from what the kernel kept, and compares.
pub fn is_right(path: &Path, expected: &[u8]) -> Result<()> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut found = vec![0; MIB];
    for (number, expected) in expected.chunks(MIB).enumerate() {
        let found = &mut found[..expected.len()];
        file.read_exact_at(found, (number * MIB) as u64)
            .with_context(|| format!("MiB {number} cannot be read"))?;
        ensure!(found == expected, "MiB {number} is wrong");
    }
    Ok(())
}
