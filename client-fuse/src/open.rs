//! Opens an image: from a reference to the region table of its disk.
//!
//! Signed metadata → catalogue of the name → manifest of the version → region table: small files,
//! each bounded before it is fetched and, from the catalogue on, held against the digest that the
//! one before it gave. What is believed of the metadata is decided in [`trust`] and nowhere else.
//!
//! What depends on each other need not wait for each other: `ahead` has files on their way before
//! it is known that they are the right ones. At best that takes two round trips: next root,
//! timestamp and hint; then snapshot, targets, catalogue, manifest and region table, and with them the
//! head of the boot pack, for which nobody waits here. They are checked in order, whatever the order
//! in which they came.

use std::sync::Arc;

use bytes::Bytes;
use image_format::DecodeError;
use image_format::catalogue::{
    CATALOGUE_BYTES_MAX, Catalogue, ResolveError, VersionEntry, catalogue_path,
};
use image_format::digest::{Digest, ObjectRef};
use image_format::manifest::{BootPack, Manifest};
use image_format::reference::{ImageName, ImageRef, Version};
use image_format::region_table::{RegionTable, TABLE_BYTES_MAX};

use crate::config::BaseUrl;
use crate::fetch::fetcher::{Expect, Fetcher, Whole};
use crate::fetch::{FetchError, Source};
use crate::stats::Counter;
use crate::trust::{self, Trust, TrustError, Trusted};

mod ahead;

use ahead::Ahead;

pub use ahead::EarlyHead;

/// How many names an error message lists.
const NAMES_LISTED_MAX: usize = 20;

/// An image, opened.
#[derive(Debug)]
pub struct OpenImage {
    /// What was asked for, with the version that it turned out to be.
    pub reference: ImageRef,
    /// The version.
    pub version: Version,
    /// When it was published: seconds since 1970-01-01 00:00 UTC.
    pub created: u64,
    /// The manifest.
    pub manifest: Manifest,
    /// The index of the disk.
    pub table: RegionTable,
    /// The head of the boot pack, if it is on its way already.
    pub early_head: Option<EarlyHead>,
    /// What it was opened from, but signed metadata: without a server it is not opened again without these.
    pub documents: Vec<Whole>,
}

impl OpenImage {
    /// Names the content of the disk.
    #[must_use]
    pub const fn disk_digest(&self) -> Digest {
        self.manifest.disk.regions.digest
    }
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum OpenError {
    #[error(
        "{base} is no store: it has no metadata/timestamp.json (check the address; it ends where circular.json lies)"
    )]
    NotAStore { base: String },
    #[error("{base} has no image `{name}`; it has: {known}")]
    UnknownName {
        base: String,
        name: ImageName,
        known: String,
    },
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
    #[error("cannot fetch the {what}")]
    Fetch {
        what: &'static str,
        source: FetchError,
    },
    #[error("the {what} is of no use")]
    Decode {
        what: &'static str,
        source: DecodeError,
    },
    #[error("the {what} belongs to something else: {reason}")]
    Mixed {
        what: &'static str,
        reason: &'static str,
    },
}

impl OpenError {
    /// What is wrong with the metadata of what should be a store at `base`.
    pub(crate) fn of_trust(error: TrustError, base: &BaseUrl) -> Self {
        if error.is_no_store() {
            let base = base.to_string();
            return Self::NotAStore { base };
        }
        Self::Trust(error)
    }
}

/// Opens the image that `reference` means in the store at `base`, as far as `trust` goes.
///
/// # Errors
///
/// Says which step failed on what, and what there is instead.
pub async fn open<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    base: &BaseUrl,
    reference: &ImageRef,
    trust: &Trust,
) -> Result<OpenImage, OpenError> {
    let told = |error: TrustError| OpenError::of_trust(error, base);
    let beginning = trust::begin(fetcher, base, trust).await.map_err(told)?;
    let mut ahead = Ahead::start(fetcher, reference);
    let trusted = trust::load(fetcher, beginning, trust).await.map_err(told)?;
    let object = *trusted
        .names
        .get(&reference.name)
        .ok_or_else(|| unknown(base, &reference.name, &trusted))?;
    let early = ahead.take(&object.digest).await;
    let catalogue = fetch_catalogue(fetcher, &reference.name, object, early).await?;
    let (version, entry) = catalogue.resolve(reference)?;
    let early = (
        ahead.take(&entry.manifest.digest).await,
        ahead.take(&entry.disk).await,
    );
    let mut image = open_entry(fetcher, reference, (version, entry), early).await?;
    let head = |pack: &BootPack| ahead.take_head(&pack.head.digest);
    image
        .documents
        .push(catalogue_file(&reference.name, object));
    image.early_head = image.manifest.boot_pack.as_ref().and_then(head);
    Ok(image)
}

/// The catalogue of `name`, which the signed metadata says is `object`.
///
/// # Errors
///
/// When it cannot be had.
pub async fn catalogue<S: Source>(
    fetcher: &Fetcher<S>,
    name: &ImageName,
    object: ObjectRef,
) -> Result<Catalogue, OpenError> {
    fetch_catalogue(fetcher, name, object, None).await
}

/// Opens the version of `reference` that a catalogue has as `entry`.
///
/// # Errors
///
/// Says which step failed on what.
pub async fn open_version<S: Source>(
    fetcher: &Fetcher<S>,
    reference: &ImageRef,
    version: Version,
    entry: &VersionEntry,
) -> Result<OpenImage, OpenError> {
    open_entry(fetcher, reference, (version, entry), (None, None)).await
}

/// The same, with manifest and region table, as far as they came early.
async fn open_entry<S: Source>(
    fetcher: &Fetcher<S>,
    reference: &ImageRef,
    (version, entry): (Version, &VersionEntry),
    early: (Option<Bytes>, Option<Bytes>),
) -> Result<OpenImage, OpenError> {
    let (manifest, table) = futures_util::join!(
        fetch_manifest(fetcher, &reference.name, version, entry, early.0),
        fetch_table(fetcher, entry, early.1),
    );
    let (manifest, table) = (manifest?, table?);
    if table.disk_length() != manifest.disk.length {
        return Err(OpenError::Mixed {
            what: TABLE,
            reason: "it is that of a disk of another length",
        });
    }
    Ok(OpenImage {
        reference: reference.pinned(version),
        version,
        created: entry.created,
        manifest,
        table,
        early_head: None,
        documents: vec![
            Whole::object(entry.manifest),
            Whole::of(entry.disk, TABLE_BYTES_MAX),
        ],
    })
}

const TABLE: &str = "region table";

/// The catalogue of `name`.
fn catalogue_file(name: &ImageName, object: ObjectRef) -> Whole {
    Whole {
        path: catalogue_path(name, &object.digest),
        expect: Expect::Object(object),
    }
}

async fn fetch_catalogue<S: Source>(
    fetcher: &Fetcher<S>,
    name: &ImageName,
    object: ObjectRef,
    early: Option<Bytes>,
) -> Result<Catalogue, OpenError> {
    const WHAT: &str = "catalogue";
    let max = CATALOGUE_BYTES_MAX as u64;
    if object.length > max {
        let source = DecodeError::TooLong { what: WHAT, max };
        return Err(OpenError::Decode { what: WHAT, source });
    }
    let whole = catalogue_file(name, object);
    let bytes = fetch(fetcher, WHAT, &whole, early, metadata(fetcher)).await?;
    Catalogue::decode(&bytes, name).map_err(|source| OpenError::Decode { what: WHAT, source })
}

async fn fetch_manifest<S: Source>(
    fetcher: &Fetcher<S>,
    name: &ImageName,
    version: Version,
    entry: &VersionEntry,
    early: Option<Bytes>,
) -> Result<Manifest, OpenError> {
    const WHAT: &str = "manifest";
    let whole = Whole::object(entry.manifest);
    let bytes = fetch(fetcher, WHAT, &whole, early, metadata(fetcher)).await?;
    let manifest =
        Manifest::decode(&bytes).map_err(|source| OpenError::Decode { what: WHAT, source })?;
    let mixed = |reason| Err(OpenError::Mixed { what: WHAT, reason });
    if manifest.name != *name || manifest.version != version || manifest.revision != entry.revision
    {
        return mixed("it names another image, version or revision than the catalogue");
    }
    if manifest.disk.regions.digest != entry.disk {
        return mixed("it names another disk than the catalogue");
    }
    Ok(manifest)
}

/// The catalogue names the table too, by the digest of the disk: it need not wait for the manifest.
async fn fetch_table<S: Source>(
    fetcher: &Fetcher<S>,
    entry: &VersionEntry,
    early: Option<Bytes>,
) -> Result<RegionTable, OpenError> {
    let whole = Whole::of(entry.disk, TABLE_BYTES_MAX);
    let counter = &fetcher.stats().fetched.table_bytes;
    let bytes = fetch(fetcher, TABLE, &whole, early, counter).await?;
    RegionTable::decode(&bytes).map_err(|source| OpenError::Decode {
        what: TABLE,
        source,
    })
}

/// What came early, which was found right then, or what comes now.
async fn fetch<S: Source>(
    fetcher: &Fetcher<S>,
    what: &'static str,
    whole: &Whole,
    early: Option<Bytes>,
    counter: &Counter,
) -> Result<Bytes, OpenError> {
    if let Some(bytes) = early {
        return Ok(bytes);
    }
    fetcher
        .whole(whole, counter)
        .await
        .map_err(|source| OpenError::Fetch { what, source })
}

fn metadata<S: Source>(fetcher: &Fetcher<S>) -> &Counter {
    &fetcher.stats().fetched.metadata_bytes
}

fn unknown(base: &BaseUrl, name: &ImageName, trusted: &Trusted) -> OpenError {
    let mut known: Vec<_> = trusted
        .names
        .keys()
        .take(NAMES_LISTED_MAX)
        .map(ImageName::as_str)
        .collect();
    match trusted.names.len() {
        0 => known.push("nothing yet"),
        n if n > NAMES_LISTED_MAX => known.push("…"),
        _ => {}
    }
    OpenError::UnknownName {
        base: base.to_string(),
        name: name.clone(),
        known: known.join(", "),
    }
}
