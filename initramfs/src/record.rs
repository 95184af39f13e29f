//! The note that the builder leaves for init: what this initramfs was built for.

use serde::{Deserialize, Serialize};

use crate::filesystem::FileSystem;

/// What init must know about the kernel and the disk, decided when the image was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// `uname -r` of the kernel that these modules fit.
    pub kernel_release: String,
    /// Modules to load at every boot, by name; what they need comes from `modules.dep`.
    pub load: Vec<String>,
    /// The file system of the root.
    pub filesystem: FileSystem,
    /// Where the root is on the disk, in the syntax of `root=`; `None` is the whole disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl BuildRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// Fails on anything that [`encode`](Self::encode) does not write.
    pub fn decode(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// Writes the record; equal records have equal bytes.
    ///
    /// # Panics
    /// Never: strings and lists always have a JSON form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("strings and lists have a JSON form");
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = BuildRecord {
            kernel_release: "6.1.0-1-cloud-amd64".to_owned(),
            load: vec!["fuse".to_owned(), "loop".to_owned()],
            filesystem: FileSystem::Ext4,
            root: Some("PARTUUID=1234".to_owned()),
        };
        assert_eq!(BuildRecord::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn a_whole_disk_needs_no_root_field() {
        let text = br#"{"kernel_release":"6.1","load":[],"filesystem":"xfs"}"#;
        assert_eq!(BuildRecord::decode(text).unwrap().root, None);
    }
}
