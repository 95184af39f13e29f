//! `disk.vmdk`: a descriptor that makes the disk file a disk for VMware, VirtualBox and QEMU. Pure.

use image_format::digest::Digest;

/// What a disk controller counts in.
const SECTOR_BYTES: u64 = 512;

/// The geometry that everybody claims; nobody uses it above 8 GiB.
const HEADS: u64 = 16;
const SECTORS: u64 = 63;
const CYLINDERS_MAX: u64 = 16_383;

/// Describes the disk file beside it, of `length` bytes and the content that `disk` names.
pub(super) fn descriptor(length: u64, disk: Digest) -> String {
    let sectors = length.div_ceil(SECTOR_BYTES);
    let cylinders = (sectors / (HEADS * SECTORS)).clamp(1, CYLINDERS_MAX);
    let content = disk.to_string();
    let content = content.get(..8).unwrap_or_default();
    // Readers know no other access than RW; that a disk is read-only they see in the file itself.
    format!(
        "# Disk DescriptorFile
version=1
CID={content}
parentCID=ffffffff
createType=\"monolithicFlat\"

# Extent description
RW {sectors} FLAT \"disk.raw\" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = \"4\"
ddb.geometry.cylinders = \"{cylinders}\"
ddb.geometry.heads = \"{HEADS}\"
ddb.geometry.sectors = \"{SECTORS}\"
ddb.adapterType = \"ide\"
"
    )
}
