//! The bodies of the fuzz targets in `tests/fuzz` that need this crate, callable on stable.
//!
//! Each takes any bytes and panics where something was accepted that should not have been.

use image_format::partition::{self, Partition};

use crate::filesystem::{FileSystem, Superblock};
use crate::init::address::{Addressing, MacAddress, Method};
use crate::init::base_url;
use crate::init::cmdline::{CommandLine, Settings};
use crate::init::userinfo;

/// More partitions than any table that is read has.
const PARTITIONS_MAX: usize = 256;

/// Where the superblock of btrfs lies: beyond what fuzzers make.
const SUPERBLOCK_OFFSET: usize = 64 * 1024;

/// Any text as a kernel command line: what is accepted may go to `circular-mount` and `busybox` as
/// arguments.
///
/// # Panics
/// If a setting could be taken for an option, or does not read back from what it says.
pub fn kernel_command_line(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(mac) = MacAddress::of_bootif(text) {
        let spelt = text.to_ascii_lowercase().replace('-', ":");
        let address = spelt.strip_prefix("01:").filter(|rest| rest.len() == 17);
        assert_eq!(mac.to_string(), address.unwrap_or(&spelt));
    }
    let line = CommandLine::parse(text);
    let _ = line.on_failure();
    let Ok(settings) = line.settings() else {
        return;
    };
    for url in settings.mirrors.iter().chain([&settings.base_url]) {
        assert!(base_url::given(url).is_ok() && url.ends_with('/'));
        assert_eq!(userinfo::split(url), (url.clone(), None));
    }
    assert!(!settings.image.is_empty() && !settings.image.starts_with('-'));
    assert!(settings.image.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!settings.overlay.as_str().contains([',', ' ']));
    assert!(settings.root_flags.iter().all(|flag| !flag.contains(',')));
    addressing(&settings.addressing);
    reads_back(&settings);
}

fn addressing(addressing: &Addressing) {
    if let Some(device) = &addressing.device {
        assert!(!device.starts_with(['-', '.']) && !device.contains('/'));
    }
    if let Method::Static(configuration) = &addressing.method {
        assert!(configuration.prefix <= 32);
        assert!(!configuration.address.is_unspecified());
        for call in configuration.ip_calls("eth0") {
            let odd = |word: &String| word.contains(char::is_whitespace) || word.starts_with('-');
            assert!(!call.iter().any(odd), "{call:?}");
        }
        let host = configuration.host_name.as_deref().unwrap_or_default();
        assert!(!host.contains(char::is_whitespace));
    }
}

/// The same settings come of the shortest line that says them.
fn reads_back(settings: &Settings) {
    let Settings {
        base_url, image, ..
    } = settings;
    let line = format!("\"circular.url={base_url}\" circular.image={image}");
    let again = CommandLine::parse(&line).settings();
    assert_eq!(again.map(|again| again.image).as_ref(), Ok(image));
}

/// Any bytes as the head of a disk: its partitions have places and names that exist.
///
/// # Panics
/// If a partition ends beyond what a number can say, or two have one number.
pub fn disk_head(data: &[u8]) {
    let read = |range: std::ops::Range<u64>| {
        let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(data.len());
        Ok::<_, std::convert::Infallible>(data[at(range.start)..at(range.end)].to_vec())
    };
    let Ok(found) = partition::partitions(u64::MAX, read);
    assert!(found.len() <= PARTITIONS_MAX);
    assert!(found.iter().all(|partition| partition.number > 0));
    assert!(found.is_sorted_by(|one, other| one.number < other.number));
    found.iter().for_each(on_a_disk);
    superblock(data);
    let far = [&[0; SUPERBLOCK_OFFSET], data].concat();
    superblock(&far);
}

fn on_a_disk(partition: &Partition) {
    assert!(partition.length > 0);
    assert!(
        partition.offset.checked_add(partition.length).is_some(),
        "behind any disk"
    );
    assert!(!partition.name.as_deref().unwrap_or_default().contains('\0'));
}

fn superblock(head: &[u8]) {
    let Some(found) = Superblock::detect(head) else {
        return;
    };
    assert_eq!(
        found.filesystem.name().parse(),
        Ok::<FileSystem, _>(found.filesystem)
    );
    assert!(found.uuid.is_none_or(|uuid| uuid.is_ascii()));
    assert!(found.label.is_none_or(|label| !label.contains('\0')));
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        /// No bytes make a parser panic.
        #[test]
        fn any_bytes(data in vec(any::<u8>(), 0..1200), gpt in any::<bool>()) {
            super::kernel_command_line(&data);
            let mut boot_sector = [0; 512];
            let mut magic = &b""[..];
            if gpt {
                boot_sector[446 + 4] = 0xee;
                boot_sector[510..].copy_from_slice(&[0x55, 0xaa]);
                magic = b"EFI PART";
            }
            super::disk_head(&[&boot_sector, magic, &data].concat());
        }
    }
}
