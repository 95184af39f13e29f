//! `circular.cache=`: where a machine keeps what it fetched.

use std::fmt;

use super::TmpfsSize;

/// Where fetched chunks are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cache {
    /// In a tmpfs of its own, up to this size.
    Memory(TmpfsSize),
    /// On a local disk, which has it at the next boot too.
    Disk(CacheDisk),
    /// Nowhere but in the client's own small memory cache.
    Off,
}

impl Cache {
    /// What may be said, for whoever said something else.
    pub(super) const TAKEN: &str = "none, tmpfs, tmpfs:size=SIZE, /dev/NAME, UUID=, LABEL=";
}

/// A local disk, or a partition of one, with a file system on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDisk {
    /// `/dev/…`
    Device(String),
    /// `UUID=` of the file system, lower case.
    Uuid(String),
    /// `LABEL=` of the file system.
    Label(String),
}

impl CacheDisk {
    /// What `text` names; `None`: no disk.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("/dev/") {
            let is_plain = |part: &str| is_word(part) && !matches!(part, "." | "..");
            let is_name = name.split('/').all(is_plain);
            return is_name.then(|| Self::Device(text.to_owned()));
        }
        let (key, value) = text.split_once('=').filter(|(_, value)| is_word(value))?;
        match key {
            "UUID" => Some(Self::Uuid(value.to_ascii_lowercase())),
            "LABEL" => Some(Self::Label(value.to_owned())),
            _ => None,
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for CacheDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => f.write_str(path),
            Self::Uuid(uuid) => write!(f, "UUID={uuid}"),
            Self::Label(label) => write!(f, "LABEL={label}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_elsewhere_on_the_line() {
        for (text, disk) in [
            ("/dev/vda", CacheDisk::Device("/dev/vda".to_owned())),
            (
                "/dev/mapper/x",
                CacheDisk::Device("/dev/mapper/x".to_owned()),
            ),
            ("UUID=AB-1", CacheDisk::Uuid("ab-1".to_owned())),
            ("LABEL=cache", CacheDisk::Label("cache".to_owned())),
        ] {
            assert_eq!(CacheDisk::parse(text), Some(disk.clone()), "{text}");
            assert_eq!(CacheDisk::parse(&disk.to_string()), Some(disk));
        }
        for text in [
            "/dev/",
            "/dev/../sda",
            "/dev//sda",
            "UUID=",
            "PARTUUID=1",
            "sda",
        ] {
            assert_eq!(CacheDisk::parse(text), None, "{text}");
        }
    }
}
