//! What the first worker leaves to those after it: the image as it opened it.
//!
//! A worker that takes over asks nobody which disk it serves: not the store, whose tag may have moved
//! and which may not answer; not the files that trust begins with, which may be gone after
//! `switch_root`. It gets the documents that were verified when the mount began, in memory that only
//! these processes have, and holds them against each other once more. So it shows the same disk or none.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use image_format::DecodeError;
use image_format::digest::Digest;
use image_format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use image_format::reference::ImageRef;
use image_format::region_table::{RegionTable, TABLE_BYTES_MAX};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::open::OpenImage;

/// Addresses and a reference.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Before the head: its length and that of the manifest.
const LENGTHS_BYTES: usize = 16;

const BYTES_MAX: usize = LENGTHS_BYTES + HEAD_BYTES_MAX + MANIFEST_BYTES_MAX + TABLE_BYTES_MAX;

/// What a worker that takes over begins with.
#[derive(Debug)]
pub struct Opened {
    /// The image.
    pub image: OpenImage,
    /// Where the servers were found, by name: a root disk outlives `/etc/resolv.conf`.
    pub addresses: Vec<(String, Vec<SocketAddr>)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    reference: String,
    created: u64,
    addresses: Vec<(String, Vec<SocketAddr>)>,
}

/// Why a worker cannot take over.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum OpenedError {
    #[error("cannot read what the first worker opened")]
    Read(#[source] io::Error),
    #[error("what the first worker opened is cut short or not of this version")]
    Garbled,
    #[error("a document that the first worker opened is of no use")]
    Decode(#[from] DecodeError),
    #[error("the documents that the first worker opened do not belong together")]
    Mixed,
}

impl Opened {
    /// Puts it into memory that is handed on as a descriptor.
    ///
    /// # Errors
    ///
    /// When the system has no memory for that.
    pub fn keep(
        image: &OpenImage,
        addresses: Vec<(String, Vec<SocketAddr>)>,
    ) -> io::Result<OwnedFd> {
        let head = Head {
            format: 1,
            reference: image.reference.to_string(),
            created: image.created,
            addresses,
        };
        let head = serde_json::to_vec(&head)?;
        let manifest = image.manifest.encode();
        let lengths = [head.len() as u64, manifest.len() as u64].map(u64::to_le_bytes);
        let bytes = [
            &lengths.concat()[..],
            &head,
            &manifest,
            &image.table.bytes(),
        ]
        .concat();
        let file = File::from(memfd_create(c"circular-opened", MFdFlags::MFD_CLOEXEC)?);
        file.write_all_at(&bytes, 0)?;
        Ok(file.into())
    }

    /// Reads it back.
    ///
    /// # Errors
    ///
    /// When it is not what [`Self::keep`] wrote.
    pub fn read(kept: OwnedFd) -> Result<Self, OpenedError> {
        let file = File::from(kept);
        let length = file.metadata().map_err(OpenedError::Read)?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > BYTES_MAX {
            return Err(OpenedError::Garbled);
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)
            .map_err(OpenedError::Read)?;
        Self::decode(&bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, OpenedError> {
        let length = |at: usize| -> Option<usize> {
            let bytes = bytes.get(at..at + 8)?;
            usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
        };
        let part = |from: usize, len: usize| bytes.get(from..from.checked_add(len)?);
        let parts = || {
            let (head, manifest) = (length(0)?, length(8)?);
            let manifest_at = LENGTHS_BYTES.checked_add(head)?;
            let table_at = manifest_at.checked_add(manifest)?;
            let head = part(LENGTHS_BYTES, head)?;
            Some((head, part(manifest_at, manifest)?, bytes.get(table_at..)?))
        };
        let (head, manifest, table) = parts().ok_or(OpenedError::Garbled)?;
        let head: Head = serde_json::from_slice(head).map_err(|_| OpenedError::Garbled)?;
        let manifest = Manifest::decode(manifest)?;
        let reference: ImageRef = head.reference.parse().map_err(|_| OpenedError::Garbled)?;
        let whole = head.format == 1
            && reference.version == Some(manifest.version)
            && reference.name == manifest.name
            && Digest::of(table) == manifest.disk.regions.digest;
        if !whole {
            return Err(OpenedError::Mixed);
        }
        let image = OpenImage {
            version: manifest.version,
            reference,
            created: head.created,
            manifest,
            table: RegionTable::decode(table)?,
            early_head: None,
            documents: Vec::new(),
        };
        let addresses = head.addresses;
        Ok(Self { image, addresses })
    }
}
