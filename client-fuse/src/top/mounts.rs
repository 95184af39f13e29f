//! Which mounts there are: what `/proc/self/mountinfo` says of them. Pure.

/// A mount of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is mounted.
    pub mountpoint: String,
    /// What it says it is: the address of the store and the image.
    pub source: String,
}

/// The mounts of `circular-mount` in `mountinfo`, each once, however often it is bound elsewhere too.
#[must_use]
pub fn find(mountinfo: &str) -> Vec<Found> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((device, mount)) = parse(line) else {
            continue;
        };
        if !seen.contains(&device) {
            seen.push(device);
            // The numbers of a tree are in the directories of its images.
            if is_image(&mount.source) || !is_store(&mount.source) {
                found.push(mount);
            }
        }
    }
    found
}

/// The device and the mount of a line, if it is one of ours.
fn parse(line: &str) -> Option<(&str, Found)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (device, _root, mountpoint) = (left.next()?, left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, source) = (right.next()?, right.next()?);
    let is_ours = kind.starts_with("fuse.circular") || (kind == "fuse" && is_image(source));
    if !is_ours {
        return None;
    }
    let found = Found {
        mountpoint: unescape(mountpoint),
        source: unescape(source),
    };
    Some((device, found))
}

/// Whether a mount has a name like ours: root's mounts have no type of their own.
fn is_image(source: &str) -> bool {
    let version = source.rsplit_once('@').map(|(_, version)| version);
    is_store(source) && version.is_some_and(|version| version.parse::<u64>().is_ok())
}

/// Whether a mount has the name of a whole store.
fn is_store(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Undoes what the kernel does to blanks: `\040` is a space.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = behind.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ours_are_found_once_by_their_type_or_name() {
        let mountinfo = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:35 / /mnt/a\\040b ro,nosuid shared:5 - fuse.circular http://h/debian:12@3 ro,user_id=0
41 22 0:35 / /srv/again ro,nosuid - fuse.circular http://h/debian:12@3 ro
42 22 0:36 / /mnt/sshfs rw - fuse.sshfs host: rw
43 22 0:37 / /mnt/root ro - fuse https://h/s/lab/debian:12@1 ro,user_id=0
44 22 0:38 / /mnt/other ro - fuse http://h/files ro
46 22 0:40 / /mnt/tree ro - fuse.circular http://h/ ro
45 22 0:39 / /sys/fs/fuse/connections rw - fusectl fusectl rw
broken
";
        let found = |mountpoint: &str, source: &str| Found {
            mountpoint: mountpoint.to_owned(),
            source: source.to_owned(),
        };
        let expected = [
            found("/mnt/a b", "http://h/debian:12@3"),
            found("/mnt/root", "https://h/s/lab/debian:12@1"),
        ];
        assert_eq!(find(mountinfo), expected);
    }

    proptest! {
        /// Whatever it says, nothing breaks.
        #[test]
        fn any_text_can_be_read(text in "[ -~\\\\\n]{0,300}") {
            drop(find(&text));
            drop(unescape(&text));
        }
    }
}
