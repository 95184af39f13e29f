//! A whole store as a tree: `NAME/TAG/disk.raw`, and `NAME/@VERSION/disk.raw` for who asks for it.
//!
//! Names are those of the signed metadata, tags and versions those of the catalogues that it vouches
//! for. An image is opened when somebody first looks into its directory. What is below it is that of
//! one version and never changes: where a tag moves, the names lead to other files.
//!
//! Bounds: the kernel says which numbers it still knows ([`numbers`]); [`images`] bounds what is open,
//! [`names`] what is remembered of catalogues. Memory cache, disk cache and requests in flight are
//! shared by all images.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::fetch::Source;
use crate::fs::{self, FsError, ImageFs, Kind, Node};
use crate::inside::dump::{Dump, State};
use crate::open::OpenError;

pub mod images;
pub mod names;
pub mod numbers;

use images::{Images, Opened, Pinned};
use names::Names;
use numbers::{Numbers, Spot};

/// Files open at once; a reader needs one.
const HANDLES_MAX: usize = 4096;

/// The tree.
#[derive(Debug)]
pub struct Tree<S> {
    names: Names<S>,
    images: Images<S>,
    numbers: Mutex<Numbers>,
    handles: Mutex<HashMap<u64, Handle<S>>>,
    next_handle: AtomicU64,
    began: SystemTime,
}

/// An open file. It keeps its image open.
#[derive(Debug)]
struct Handle<S> {
    image: Arc<Opened<S>>,
    node: Node,
    inner: u64,
}

/// How a file or directory looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looks {
    /// Its inode number.
    pub number: u64,
    /// File or directory.
    pub kind: Kind,
    /// Its length.
    pub length: u64,
    /// When it was published; of directories, when the mount began.
    pub time: SystemTime,
}

/// Why something in the tree cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum TreeError {
    #[error("there is no such thing")]
    Missing,
    #[error("it is no directory")]
    NotADirectory,
    #[error("too many files or images are open")]
    TooManyOpen,
    #[error("the image cannot be opened")]
    Open(#[from] Arc<OpenError>),
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl<S: Source> Tree<S> {
    /// The tree of `names`, whose images are opened by `images`.
    #[must_use]
    pub fn new(names: Names<S>, images: Images<S>, began: SystemTime) -> Self {
        Self {
            names,
            images,
            numbers: Mutex::new(Numbers::new()),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            began,
        }
    }

    /// What is called `name` in a directory. The kernel is to be told of it: it counts as known.
    ///
    /// # Errors
    ///
    /// When there is nothing, or what there is cannot be had.
    pub async fn child(&self, parent: u64, name: &str) -> Result<Looks, TreeError> {
        let (spot, image) = match self.spot(parent)? {
            Spot::Directory(path) => match self.file(&path, name).await? {
                Some((image, node)) => (Spot::File(image.pinned().clone(), node), Some(image)),
                None => (self.directory(&path, name).await?, None),
            },
            Spot::File(pinned, Node::About) => {
                let node = Node::About.child(name).ok_or(TreeError::Missing)?;
                let image = self.images.open(&pinned).await?;
                (Spot::File(pinned, node), Some(image))
            }
            Spot::File(..) => return Err(TreeError::NotADirectory),
        };
        let number = self.numbers().note(&spot);
        Ok(self.looks(number, &spot, image.as_deref()))
    }

    /// How the file or directory looks that the kernel knows by `number`.
    ///
    /// # Errors
    ///
    /// When its image cannot be opened.
    pub async fn look(&self, number: u64) -> Result<Looks, TreeError> {
        let spot = self.spot(number)?;
        let image = match &spot {
            Spot::Directory(_) | Spot::File(_, Node::About) => None,
            Spot::File(pinned, _) => Some(self.images.open(pinned).await?),
        };
        Ok(self.looks(number, &spot, image.as_deref()))
    }

    /// Names and kinds of what is in a directory.
    ///
    /// # Errors
    ///
    /// When it is none, or its catalogue cannot be had.
    pub async fn list(&self, number: u64) -> Result<Vec<(String, Kind)>, TreeError> {
        let path = match self.spot(number)? {
            Spot::Directory(path) => path,
            Spot::File(_, node) if node.kind() == Kind::Directory => {
                let children = node.children().iter();
                return Ok(children
                    .map(|(name, node)| ((*name).to_owned(), node.kind()))
                    .collect());
            }
            Spot::File(..) => return Err(TreeError::NotADirectory),
        };
        let mut found: Vec<(String, Kind)> = Vec::new();
        if let Some(pinned) = self.names.pinned(&path).await? {
            let fixed = Node::Root.children().iter();
            found.extend(fixed.map(|(name, node)| ((*name).to_owned(), node.kind())));
            // That it does not open is told to who opens a file.
            if let Ok(image) = self.images.open(&pinned).await {
                let partitions = image.fs().partitions().await;
                found.extend(
                    partitions
                        .into_iter()
                        .map(|(name, node)| (name, node.kind())),
                );
            }
        }
        let files: BTreeSet<String> = found.iter().map(|(name, _)| name.clone()).collect();
        let directories = self.names.directories(&path).await?.into_iter();
        let directories = directories.filter(|name| !files.contains(name));
        found.extend(directories.map(|name| (name, Kind::Directory)));
        Ok(found)
    }

    /// Opens a file. Returns a handle, and whether the kernel may keep what it reads.
    ///
    /// # Errors
    ///
    /// When it is a directory, its image cannot be opened, or too many are open.
    pub async fn open(&self, number: u64) -> Result<(u64, bool), TreeError> {
        let Spot::File(pinned, node) = self.spot(number)? else {
            return Err(FsError::IsDirectory.into());
        };
        let image = self.images.open(&pinned).await?;
        let inner = image.fs().open(node)?;
        let mut handles = self.handles();
        if handles.len() >= HANDLES_MAX {
            image.fs().release(inner);
            return Err(TreeError::TooManyOpen);
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let open = Handle { image, node, inner };
        handles.insert(handle, open);
        Ok((handle, node.is_constant()))
    }

    /// Reads `len` bytes at `offset` of an open file, fewer at its end.
    ///
    /// # Errors
    ///
    /// When they cannot be had.
    pub async fn read(&self, handle: u64, offset: u64, len: u32) -> Result<Bytes, TreeError> {
        let open = {
            let handles = self.handles();
            let open = handles.get(&handle).ok_or(TreeError::Missing)?;
            (Arc::clone(&open.image), open.node, open.inner)
        };
        let (image, node, inner) = open;
        let reading = image.fs().watch(node, offset, len);
        let read = reading.of(image.fs().read(node, inner, offset, len)).await;
        if read.is_ok() {
            reading.answered();
        }
        read.inspect_err(|error| {
            let cause: &dyn std::error::Error = error;
            tracing::error!(image = %image.pinned(), offset, len, error = cause, "a read fails");
        })
        .map_err(TreeError::Fs)
    }

    /// Ends what [`Self::open`] began.
    pub fn release(&self, handle: u64) {
        let open = self.handles().remove(&handle);
        if let Some(open) = open {
            open.image.fs().release(open.inner);
        }
    }

    /// Notes that the kernel forgot a number it was told `times` times.
    pub fn forget(&self, number: u64, times: u64) {
        self.numbers().forget(number, times);
    }

    /// Saves what is to be known in the next run. Blocks on the disk.
    pub fn save(&self) {
        self.images.save();
    }

    fn spot(&self, number: u64) -> Result<Spot, TreeError> {
        self.numbers().find(number).ok_or(TreeError::Missing)
    }

    /// The file of an image that is called `name` in the directory at `path`.
    async fn file(
        &self,
        path: &str,
        name: &str,
    ) -> Result<Option<(Arc<Opened<S>>, Node)>, TreeError> {
        let fixed = Node::Root.child(name);
        if fixed.is_none() && !ImageFs::<S>::may_be_partition(name) {
            return Ok(None);
        }
        let Some(pinned) = self.names.pinned(path).await? else {
            return Ok(None);
        };
        let image = self.images.open(&pinned).await?;
        let node = match fixed {
            Some(node) => Some(node),
            None => image.fs().partition(name).await?,
        };
        Ok(node.map(|node| (image, node)))
    }

    /// The directory called `name` in that at `path`.
    async fn directory(&self, path: &str, name: &str) -> Result<Spot, TreeError> {
        let path = names::join(path, name);
        if self.names.is_directory(&path).await? {
            Ok(Spot::Directory(path.into()))
        } else {
            Err(TreeError::Missing)
        }
    }

    fn looks(&self, number: u64, spot: &Spot, image: Option<&Opened<S>>) -> Looks {
        let (kind, time) = match spot {
            Spot::Directory(_) => (Kind::Directory, self.began),
            Spot::File(pinned, node) => (node.kind(), created(pinned)),
        };
        let length = match (spot, image) {
            (Spot::File(_, node), Some(image)) => image.fs().length(*node),
            _ => 0,
        };
        Looks {
            number,
            kind,
            length,
            time,
        }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<u64, Handle<S>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Dump for Tree<S> {
    /// What all images together did; single reads are those of images, which are told of nowhere.
    fn state(&self, most: usize) -> State {
        let fetcher = self.images.fetcher();
        State {
            numbers: fs::numbers(&**fetcher.stats()),
            reads: Vec::new(),
            requests: fetcher.underway().oldest(most),
            mirrors: fetcher.mirrors().standings(),
        }
    }
}

fn created(pinned: &Pinned) -> SystemTime {
    let since = Duration::from_secs(pinned.created());
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}
