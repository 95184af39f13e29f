//! What a published disk is made of: which chunks, how long they are as stored.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, bail};
use image_format::page::Page;
use image_format::region_table::{Lookup, RegionTable};
use image_format::{BLOCK_BYTES, ChunkId, REGION_BLOCKS};

use super::turns::bytes;
use crate::replay::Read;
use crate::store::TestStore;

/// Chunks, and how many bytes of a pack each is.
pub type Chunks = HashMap<ChunkId, u64>;

/// The index of a disk.
#[derive(Debug)]
pub struct Index {
    pages: Vec<Option<Page>>,
    index_bytes: u64,
    disk_bytes: u64,
}

impl Index {
    /// Reads the index of the disk that `reference` means.
    ///
    /// # Errors
    /// There is no such image, its index is damaged, or it is longer than 64 GiB.
    pub fn of(store: &TestStore, reference: &str) -> Result<Self> {
        let inspected = store.json(&["inspect", reference])?;
        let table = inspected["manifest"]["disk"]["regions"]["digest"].as_str();
        let object = |digest: &str| {
            let fan = digest.get(..2).context("a digest is longer")?;
            let path = store.path().join("objects").join(fan).join(digest);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let encoded = object(table.context("inspect names no region table")?)?;
        let table = RegionTable::decode(&encoded)?;
        let mut index = Self {
            pages: Vec::new(),
            index_bytes: encoded.len() as u64,
            disk_bytes: table.disk_length(),
        };
        for region in 0..table.n_regions() {
            let page = match table.lookup(region) {
                Lookup::Hole => None,
                Lookup::Page(digest) => {
                    let encoded = object(&digest.to_string())?;
                    index.index_bytes += encoded.len() as u64;
                    Some(Page::decode(&encoded)?)
                }
                Lookup::Leaf { .. } => bail!("{reference} is longer than what is measured here"),
            };
            index.pages.push(page);
        }
        Ok(index)
    }

    /// Returns the chunks that `reads` touch.
    pub fn touched(&self, reads: &[Read]) -> Chunks {
        let block = u64::from(BLOCK_BYTES);
        let mut touched = Chunks::new();
        for read in reads {
            let end = (read.offset + read.length as u64).div_ceil(block);
            self.collect(read.offset / block, end, &mut touched);
        }
        touched
    }

    /// Returns all chunks.
    pub fn all(&self) -> Chunks {
        let mut all = Chunks::new();
        let end = self.disk_bytes.div_ceil(u64::from(BLOCK_BYTES));
        self.collect(0, end, &mut all);
        all
    }

    /// Returns the bytes of region table and pages for each GiB of the disk.
    pub fn bytes_per_gib(&self) -> f64 {
        bytes(self.index_bytes) * bytes(1 << 30) / bytes(self.disk_bytes)
    }

    /// Takes the chunks that have blocks in `first .. end`.
    fn collect(&self, first: u64, end: u64, chunks: &mut Chunks) {
        let blocks = u64::from(REGION_BLOCKS);
        for (number, page) in (0..).zip(&self.pages) {
            let start = number * blocks;
            let within = |block: u64| {
                let block = block.saturating_sub(start).min(blocks);
                u32::try_from(block).unwrap_or(REGION_BLOCKS)
            };
            let page = page.iter();
            let entries = page.flat_map(|page| page.overlapping(within(first), within(end)));
            chunks.extend(entries.map(|entry| (entry.chunk, u64::from(entry.length))));
        }
    }
}
