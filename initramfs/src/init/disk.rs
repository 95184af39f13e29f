//! Makes a disk of the client's file, and looks at what is on it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::Path,
};

use image_format::partition::{self, Partition};

use super::{
    failure::BootError,
    root::{self, Candidate, RootSpec},
    sys,
};
use crate::filesystem::{self, Superblock};

/// 4 MiB: nine times the default's throughput on sequential reads of a warm cache. A page fault reads as much around it, so
/// that programs and libraries are in memory as a whole: a machine whose server is gone for good can still be switched off.
const READ_AHEAD_SECTORS: u32 = 8192;

/// A loop device that is the image's disk.
#[derive(Debug)]
pub(super) struct Disk {
    device: String,
}

/// Attaches `file` to a free loop device.
pub(super) fn attach(file: &Path) -> Result<Disk, BootError> {
    let failed = |step: &'static str| move |source| BootError::Loop { step, source };
    let file = File::open(file).map_err(failed("cannot open the file that the client serves"))?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control");
    let control = control.map_err(failed("cannot open /dev/loop-control"))?;
    let number = sys::free_loop_device(&control).map_err(failed("no device is free"))?;
    let device = format!("/dev/loop{number}");
    let handle = OpenOptions::new().read(true).write(true).open(&device);
    let handle = handle.map_err(failed("cannot open the device"))?;
    let sectors = unusual_sector_bytes(&file).map_err(failed("cannot read its start"))?;
    sys::configure_loop_device(&handle, &file, sys::Io::Direct, sectors)
        .or_else(|_| sys::configure_loop_device(&handle, &file, sys::Io::Buffered, sectors))
        .map_err(failed("cannot configure the device"))?;
    sys::set_read_ahead(&handle, READ_AHEAD_SECTORS).map_err(failed("cannot set read-ahead"))?;
    Ok(Disk { device })
}

/// As [`partition::unusual_sector_bytes`]: the kernel finds a partition table where sectors are as long as it says.
fn unusual_sector_bytes(file: &File) -> io::Result<Option<u32>> {
    let mut head = Vec::new();
    let most = partition::SECTOR_HEAD_BYTES as u64;
    file.take(most).read_to_end(&mut head)?;
    Ok(partition::unusual_sector_bytes(&head))
}

impl Disk {
    /// Finds the root on the disk: what was `asked` for, else what was `recorded`, else what is there.
    pub(super) fn find_root(
        &self,
        asked: Option<&RootSpec>,
        recorded: Option<&RootSpec>,
    ) -> Result<Candidate, BootError> {
        let candidates = self.candidates()?;
        let root = root::choose(asked, recorded, &candidates).cloned();
        root.ok_or_else(|| BootError::NoRoot {
            found: candidates.iter().map(Candidate::describe).collect(),
        })
    }

    fn candidates(&self) -> Result<Vec<Candidate>, BootError> {
        let mut candidates = vec![candidate(self.device.clone(), None)?];
        for partition in self.partitions()? {
            let device = format!("{}p{}", self.device, partition.number);
            // The kernel has the last word on what is a partition.
            if Path::new(&device).exists() {
                candidates.push(candidate(device, Some(partition))?);
            }
        }
        Ok(candidates)
    }

    /// What the partition table lists. The kernel makes the devices; this says which number has which
    /// PARTUUID, name or type, which older kernels do not tell (`PARTUUID` in `uevent` is from Linux
    /// 6.12).
    fn partitions(&self) -> Result<Vec<Partition>, BootError> {
        let read = || -> io::Result<Vec<Partition>> {
            let mut disk = File::open(&self.device)?;
            let length = disk.seek(SeekFrom::End(0))?;
            partition::partitions(length, |range| {
                let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
                let mut bytes = vec![0; length];
                disk.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes)
            })
        };
        read().map_err(|source| BootError::Read {
            device: self.device.clone(),
            source,
        })
    }
}

fn candidate(device: String, partition: Option<Partition>) -> Result<Candidate, BootError> {
    Ok(Candidate {
        superblock: superblock(&device)?,
        device,
        partition,
    })
}

/// What the file system on `device` says of itself, if it is a known one.
pub(super) fn superblock(device: &str) -> Result<Option<Superblock>, BootError> {
    let head = read_head(device, filesystem::HEAD_BYTES)?;
    Ok(Superblock::detect(&head))
}

fn read_head(device: &str, length: usize) -> Result<Vec<u8>, BootError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(length);
        let limit = u64::try_from(length).map_err(io::Error::other)?;
        File::open(device)?.take(limit).read_to_end(&mut head)?;
        Ok(head)
    };
    read().map_err(|source| BootError::Read {
        device: device.to_owned(),
        source,
    })
}
