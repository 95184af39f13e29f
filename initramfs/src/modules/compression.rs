//! Unpacks module files: distributions ship `.ko`, `.ko.zst`, `.ko.xz`.
//!
//! Modules go into the initramfs unpacked. Not every kernel can unpack them itself (Debian 12's
//! cannot), and the archive is compressed as a whole, which is smaller than compressing twice.

use std::io::{self, Read};

/// The largest module of Debian's kernels (i915, amdgpu) is under 32 MiB.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// Returns `path` without the ending that says how the file is compressed.
pub fn plain_path(path: &str) -> String {
    let endings = [".zst", ".xz", ".gz"];
    let plain = endings.iter().find_map(|ending| path.strip_suffix(ending));
    plain.unwrap_or(path).to_owned()
}

/// Unpacks the module file `path`, by the ending of its name.
///
/// # Errors
/// Fails if the bytes are not what the ending says, or unpack to more than 64 MiB, or if
/// the ending is one that is not supported.
pub fn decompress(path: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending {
        "ko" => Ok(bytes),
        "zst" => bounded(zstd::stream::read::Decoder::new(&bytes[..])?),
        "xz" => bounded(lzma_rust2::XzReader::new(&bytes[..], true)),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("module compression `.{ending}` is not supported (.ko, .ko.zst, .ko.xz are)"),
        )),
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = reader.take(MODULE_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes)?;
    if limited.limit() == 0 {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "module is larger than 64 MiB when unpacked",
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf module | xz --check=crc32 | xxd`
    const XZ: [u8; 60] = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x05, 0x6d, 0x6f, 0x64,
        0x75, 0x6c, 0x65, 0x00, 0x00, 0x00, 0x28, 0x26, 0x24, 0x0c, 0x00, 0x01, 0x1a, 0x06, 0xc5,
        0xea, 0xc8, 0x79, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn each_ending_unpacks_to_the_same_bytes() {
        let zst = zstd::bulk::compress(b"module", 3).unwrap();
        for (path, bytes) in [
            ("a.ko", b"module".to_vec()),
            ("a.ko.zst", zst),
            ("a.ko.xz", XZ.to_vec()),
        ] {
            assert_eq!(decompress(path, bytes).unwrap(), b"module", "{path}");
            assert_eq!(plain_path(path), "a.ko");
        }
    }

    #[test]
    fn damage_and_unknown_endings_are_errors() {
        assert!(decompress("a.ko.xz", b"junk".to_vec()).is_err());
        assert!(decompress("a.ko.zst", b"junk".to_vec()).is_err());
        let refused = decompress("a.ko.lz4", Vec::new()).unwrap_err();
        assert!(refused.to_string().contains(".lz4"));
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; (64 << 20) + 1], 3).unwrap();
        assert!(decompress("a.ko.zst", bomb).is_err());
    }
}
