//! The mounted directory as values: what is in it, how it looks, what reading returns.
//!
//! ```text
//! disk.raw              the disk; the one file that can be written to, if there is an overlay
//! p1.raw, p2.raw …      its partitions, read-only
//! disk.vmdk             names it to hypervisors that want a descriptor
//! .circular/image.json  which image this is
//! .circular/stats.json  what the mount has done so far; a snapshot at each open
//! ```
//!
//! Nothing here knows the kernel's interface.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;

use crate::config::BaseUrl;
use crate::fetch::Source;
use crate::inside::dump::{Dump, State};
use crate::inside::serve::Metrics;
use crate::inside::{Snapshot, exposition};
use crate::open::OpenImage;
use crate::overlay::layered::{Layered, LayeredError};
use crate::stats::Stats;
use crate::waits::{Reading, Reads};

mod partitions;
mod vmdk;

use partitions::Partitions;

/// Snapshots open at once; a monitor needs one.
const SNAPSHOTS_MAX: usize = 256;

/// A file or directory of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// The mount point.
    Root,
    /// `disk.raw`.
    Disk,
    /// `disk.vmdk`.
    Descriptor,
    /// `.circular`.
    About,
    /// `.circular/image.json`.
    Image,
    /// `.circular/stats.json`.
    Stats,
    /// `p1.raw` and so on, by its number.
    Partition(u16),
}

/// The inode number of what would be partition 0.
const PARTITIONS: u64 = 0x1_0000;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

impl Node {
    const FIXED: [Self; 6] = [
        Self::Root,
        Self::Disk,
        Self::Descriptor,
        Self::About,
        Self::Image,
        Self::Stats,
    ];

    /// The inode number; the root has 1, as FUSE wants it.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Root => 1,
            Self::Disk => 2,
            Self::About => 3,
            Self::Image => 4,
            Self::Stats => 5,
            Self::Descriptor => 6,
            Self::Partition(number) => PARTITIONS + number as u64,
        }
    }

    /// The node of an inode number.
    #[must_use]
    pub fn of_number(number: u64) -> Option<Self> {
        let partition = number.checked_sub(PARTITIONS);
        if let Some(partition) = partition.and_then(|number| number.try_into().ok()) {
            return Some(Self::Partition(partition));
        }
        Self::FIXED.into_iter().find(|node| node.number() == number)
    }

    /// File or directory.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Root | Self::About => Kind::Directory,
            Self::Disk | Self::Descriptor | Self::Image | Self::Stats | Self::Partition(_) => {
                Kind::File
            }
        }
    }

    /// The directory that it is in.
    #[must_use]
    pub const fn parent(self) -> Self {
        match self {
            Self::Root | Self::Disk | Self::Descriptor | Self::About | Self::Partition(_) => {
                Self::Root
            }
            Self::Image | Self::Stats => Self::About,
        }
    }

    /// What a directory contains, by name, but for partitions; files contain nothing.
    #[must_use]
    pub const fn children(self) -> &'static [(&'static str, Self)] {
        match self {
            Self::Root => &[
                ("disk.raw", Self::Disk),
                ("disk.vmdk", Self::Descriptor),
                (".circular", Self::About),
            ],
            Self::About => &[("image.json", Self::Image), ("stats.json", Self::Stats)],
            Self::Disk | Self::Descriptor | Self::Image | Self::Stats | Self::Partition(_) => &[],
        }
    }

    /// The child called `name`.
    #[must_use]
    pub fn child(self, name: &str) -> Option<Self> {
        self.children()
            .iter()
            .find(|(child, _)| *child == name)
            .map(|(_, node)| *node)
    }

    /// Whether the kernel may keep what it read: true for all that never changes.
    #[must_use]
    pub fn is_constant(self) -> bool {
        self != Self::Stats
    }
}

/// `.circular/image.json`.
#[derive(Debug, Serialize)]
struct About<'a> {
    reference: String,
    name: &'a str,
    version: u64,
    revision: u32,
    disk: String,
    length: u64,
    base_url: String,
}

/// The mounted directory.
#[derive(Debug)]
pub struct ImageFs<S> {
    disk: Layered<S>,
    partitions: Partitions,
    image: Bytes,
    descriptor: Bytes,
    created: SystemTime,
    stats: Arc<Stats>,
    reads: Arc<Reads>,
    began: Instant,
    /// What metrics are of: names and values.
    labels: Vec<(&'static str, String)>,
    snapshots: Mutex<HashMap<u64, Bytes>>,
    next_handle: AtomicU64,
}

/// Why a file cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum FsError {
    #[error("it is a directory")]
    IsDirectory,
    #[error("too many open snapshots of the counters")]
    TooManyOpen,
    #[error("the snapshot of the counters is that of a process that is gone; open the file again")]
    Stale,
    #[error(transparent)]
    Disk(#[from] LayeredError),
}

impl<S: Source> ImageFs<S> {
    /// The directory that shows `disk`, opened as `image` from the store at `base`.
    #[must_use]
    pub fn new(disk: Layered<S>, image: &OpenImage, base: &BaseUrl, stats: Arc<Stats>) -> Self {
        let about = About {
            reference: image.reference.to_string(),
            name: image.reference.name.as_str(),
            version: image.version.number(),
            revision: image.manifest.revision,
            disk: image.disk_digest().to_string(),
            length: disk.length(),
            base_url: base.to_string(),
        };
        let descriptor = vmdk::descriptor(disk.length(), image.disk_digest());
        let labels = vec![
            ("image", about.reference.clone()),
            ("name", about.name.to_owned()),
            ("version", about.version.to_string()),
            ("disk", about.disk.clone()),
            ("program_version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        Self {
            disk,
            partitions: Partitions::default(),
            image: json(&about),
            descriptor: descriptor.into(),
            created: UNIX_EPOCH
                .checked_add(Duration::from_secs(image.created))
                .unwrap_or(UNIX_EPOCH),
            reads: Arc::new(Reads::new(Arc::clone(&stats))),
            began: Instant::now(),
            labels,
            // None is that of a snapshot of a worker before this one.
            next_handle: AtomicU64::new(stats.restarts.count() << 32 | 1),
            stats,
            snapshots: Mutex::new(HashMap::new()),
        }
    }

    /// When the image was published: the time of all files but a disk that can be written to.
    #[must_use]
    pub const fn created(&self) -> SystemTime {
        self.created
    }

    /// When a file last changed.
    #[must_use]
    pub fn modified(&self, node: Node) -> SystemTime {
        let written = (node == Node::Disk).then(|| self.disk.modified());
        written.flatten().unwrap_or(self.created)
    }

    /// Whether a file can be written to.
    #[must_use]
    pub fn is_writable(&self, node: Node) -> bool {
        node == Node::Disk && self.disk.is_writable()
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> &Layered<S> {
        &self.disk
    }

    /// Whether a file called `name` would show a partition.
    #[must_use]
    pub fn may_be_partition(name: &str) -> bool {
        partitions::number_of(name).is_some()
    }

    /// The partition that a file called `name` shows; reads the table, if nobody did before.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub async fn partition(&self, name: &str) -> Result<Option<Node>, FsError> {
        let Some(number) = partitions::number_of(name) else {
            return Ok(None);
        };
        let numbers = self.partitions.read(&self.disk).await?;
        Ok(numbers.contains(&number).then_some(Node::Partition(number)))
    }

    /// The partitions and the names of their files; none where the table cannot be read soon.
    pub async fn partitions(&self) -> Vec<(String, Node)> {
        let numbers = self.partitions.list(&self.disk).await;
        let named = |number| (partitions::file_name(number), Node::Partition(number));
        numbers.into_iter().map(named).collect()
    }

    /// Learns what the kernel may know of a file already, from a worker before this one: of a partition,
    /// where it is.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub async fn know(&self, node: Node) -> Result<(), FsError> {
        if let Node::Partition(number) = node
            && self.partitions.find(number).is_none()
        {
            self.partitions.read(&self.disk).await?;
        }
        Ok(())
    }

    /// The length of a file; 0 for directories, and for partitions that are not [known](Self::know).
    #[must_use]
    pub fn length(&self, node: Node) -> u64 {
        match node {
            Node::Root | Node::About => 0,
            Node::Disk => self.disk.length(),
            Node::Partition(number) => {
                let on_disk = self.partitions.find(number).unwrap_or_default();
                on_disk.end - on_disk.start
            }
            Node::Image => self.image.len() as u64,
            Node::Descriptor => self.descriptor.len() as u64,
            Node::Stats => json(&self.snapshot()).len() as u64,
        }
    }

    /// Opens a file and returns a handle for it.
    ///
    /// # Errors
    ///
    /// When it is a directory, or too many are open.
    pub fn open(&self, node: Node) -> Result<u64, FsError> {
        match node {
            Node::Root | Node::About => Err(FsError::IsDirectory),
            Node::Disk | Node::Descriptor | Node::Image | Node::Partition(_) => Ok(0),
            Node::Stats => {
                let mut snapshots = self.snapshots();
                if snapshots.len() >= SNAPSHOTS_MAX {
                    return Err(FsError::TooManyOpen);
                }
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                snapshots.insert(handle, json(&self.snapshot()));
                Ok(handle)
            }
        }
    }

    /// All numbers of the mount, as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::of(&self.disk, &self.stats, &self.reads, self.began.elapsed())
    }

    /// Begins to watch a read that the kernel has asked for; only those of the disk count.
    #[must_use]
    pub fn watch(&self, node: Node, offset: u64, len: u32) -> Reading {
        match node {
            Node::Disk => self.reads.begin(offset, len),
            _ => Reading::uncounted(),
        }
    }

    /// Ends what [`Self::open`] began.
    pub fn release(&self, handle: u64) {
        self.snapshots().remove(&handle);
    }

    /// Reads `len` bytes of a file at `offset`, fewer at its end.
    ///
    /// # Errors
    ///
    /// When it is a directory, or the disk cannot be read there.
    pub async fn read(
        &self,
        node: Node,
        handle: u64,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, FsError> {
        match node {
            Node::Root | Node::About => Err(FsError::IsDirectory),
            Node::Disk => Ok(self.disk.read(offset, len).await?),
            Node::Partition(number) => {
                self.know(node).await?;
                let on_disk = self.partitions.find(number).unwrap_or_default();
                let start = on_disk.start.saturating_add(offset).min(on_disk.end);
                let len = u64::from(len).min(on_disk.end - start);
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                Ok(self.disk.read(start, len).await?)
            }
            Node::Image => Ok(part(&self.image, offset, len)),
            Node::Descriptor => Ok(part(&self.descriptor, offset, len)),
            Node::Stats => {
                let snapshot = self.opened(handle, offset)?;
                Ok(part(&snapshot, offset, len))
            }
        }
    }

    /// A snapshot that was opened. One that a dead worker opened is taken anew for whoever begins to
    /// read it; the rest of it is gone.
    fn opened(&self, handle: u64, offset: u64) -> Result<Bytes, FsError> {
        let mut snapshots = self.snapshots();
        if let Some(snapshot) = snapshots.get(&handle) {
            return Ok(snapshot.clone());
        }
        if offset > 0 || snapshots.len() >= SNAPSHOTS_MAX {
            return Err(FsError::Stale);
        }
        let snapshot = json(&self.snapshot());
        snapshots.insert(handle, snapshot.clone());
        Ok(snapshot)
    }

    fn snapshots(&self) -> MutexGuard<'_, HashMap<u64, Bytes>> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Metrics for ImageFs<S> {
    fn exposition(&self) -> String {
        let labels = self.labels.iter().map(|(name, value)| (*name, &**value));
        let labels: Vec<_> = labels.collect();
        exposition::text(&numbers(&self.snapshot()), &labels)
    }

    fn stats(&self) -> String {
        String::from_utf8_lossy(&json(&self.snapshot())).into_owned()
    }
}

impl<S: Source> Dump for ImageFs<S> {
    fn state(&self, most: usize) -> State {
        let fetcher = self.disk.base().chunks().fetcher();
        State {
            numbers: numbers(&self.snapshot()),
            reads: self.reads.oldest(most),
            requests: fetcher.underway().oldest(most),
            mirrors: fetcher.mirrors().standings(),
        }
    }
}

/// Counters as JSON.
pub(crate) fn numbers(counters: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(counters).expect("plain structs of numbers serialize")
}

fn json(value: &impl Serialize) -> Bytes {
    let mut text =
        serde_json::to_vec_pretty(value).expect("plain structs of numbers and text serialize");
    text.push(b'\n');
    Bytes::from(text)
}

fn part(bytes: &Bytes, offset: u64, len: u32) -> Bytes {
    let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(within(offset)..within(offset.saturating_add(u64::from(len))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_found_where_it_is() {
        for node in Node::FIXED {
            assert_eq!(Node::of_number(node.number()), Some(node));
            for (name, child) in node.children() {
                assert_eq!(node.child(name), Some(*child));
                assert_eq!(child.parent(), node);
            }
        }
        let partition = Node::Partition(u16::MAX);
        assert_eq!(Node::of_number(partition.number()), Some(partition));
        assert_eq!(Node::of_number(0), None);
        assert_eq!(Node::of_number(u64::MAX), None);
        assert_eq!(Node::Root.child("nothing"), None);
    }

    #[test]
    fn parts_of_small_files_end_where_they_end() {
        let bytes = Bytes::from_static(b"0123456789");
        assert_eq!(&part(&bytes, 2, 3)[..], b"234");
        assert_eq!(&part(&bytes, 8, 100)[..], b"89");
        assert_eq!(&part(&bytes, u64::MAX, u32::MAX)[..], b"");
    }
}
