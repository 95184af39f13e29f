//! Opens an image: from a reference to the region table of its disk.
//!
//! List of names → catalogue of the name → manifest of the version → region table: four small files,
//! each bounded before it is fetched and, from the catalogue on, held against the digest that the
//! one before it gave. What is believed of the list of names is decided here and nowhere else.

use image_format::DecodeError;
use image_format::catalogue::{
    Catalogue, NAMES_BYTES_MAX, NAMES_PATH, Names, ResolveError, VersionEntry, catalogue_path,
};
use image_format::digest::{Digest, ObjectRef};
use image_format::manifest::Manifest;
use image_format::reference::{ImageName, ImageRef, Version};
use image_format::region_table::RegionTable;

use crate::config::BaseUrl;
use crate::fetch::fetcher::{Expect, Fetcher, Whole};
use crate::fetch::{FetchError, Source};
use crate::stats::Counter;

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
        "{base} is no store: it has no {NAMES_PATH} (check the address; it ends where circular.json lies)"
    )]
    NotAStore { base: String },
    #[error("{base} has no image `{name}`; it has: {known}")]
    UnknownName {
        base: String,
        name: ImageName,
        known: String,
    },
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

/// Opens the image that `reference` means in the store at `base`.
///
/// # Errors
///
/// Says which step failed on what, and what there is instead.
pub async fn open<S: Source>(
    fetcher: &Fetcher<S>,
    base: &BaseUrl,
    reference: &ImageRef,
) -> Result<OpenImage, OpenError> {
    let names = fetch_names(fetcher, base).await?;
    let object = *names
        .names
        .get(&reference.name)
        .ok_or_else(|| unknown(base, &reference.name, &names))?;
    let catalogue = fetch_catalogue(fetcher, &reference.name, object).await?;
    let (version, entry) = catalogue.resolve(reference)?;
    let manifest = fetch_manifest(fetcher, &reference.name, version, entry).await?;
    let table = fetch_table(fetcher, &manifest).await?;
    Ok(OpenImage {
        reference: reference.pinned(version),
        version,
        created: entry.created,
        manifest,
        table,
    })
}

async fn fetch_names<S: Source>(fetcher: &Fetcher<S>, base: &BaseUrl) -> Result<Names, OpenError> {
    const WHAT: &str = "list of names";
    let whole = Whole {
        path: NAMES_PATH.to_owned(),
        expect: Expect::Bound(NAMES_BYTES_MAX as u64),
    };
    let bytes = fetcher
        .whole(&whole, metadata(fetcher))
        .await
        .map_err(|source| {
            if source.is_missing() {
                return OpenError::NotAStore {
                    base: base.to_string(),
                };
            }
            OpenError::Fetch { what: WHAT, source }
        })?;
    Names::decode(&bytes).map_err(|source| OpenError::Decode { what: WHAT, source })
}

async fn fetch_catalogue<S: Source>(
    fetcher: &Fetcher<S>,
    name: &ImageName,
    object: ObjectRef,
) -> Result<Catalogue, OpenError> {
    const WHAT: &str = "catalogue";
    let whole = Whole {
        path: catalogue_path(name, &object.digest),
        expect: Expect::Object(object),
    };
    let bytes = fetch(fetcher, WHAT, &whole, metadata(fetcher)).await?;
    Catalogue::decode(&bytes, name).map_err(|source| OpenError::Decode { what: WHAT, source })
}

async fn fetch_manifest<S: Source>(
    fetcher: &Fetcher<S>,
    name: &ImageName,
    version: Version,
    entry: &VersionEntry,
) -> Result<Manifest, OpenError> {
    const WHAT: &str = "manifest";
    let bytes = fetch(
        fetcher,
        WHAT,
        &Whole::object(entry.manifest),
        metadata(fetcher),
    )
    .await?;
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

async fn fetch_table<S: Source>(
    fetcher: &Fetcher<S>,
    manifest: &Manifest,
) -> Result<RegionTable, OpenError> {
    const WHAT: &str = "region table";
    let whole = Whole::object(manifest.disk.regions);
    let bytes = fetch(fetcher, WHAT, &whole, &fetcher.stats().fetched.table_bytes).await?;
    let table =
        RegionTable::decode(&bytes).map_err(|source| OpenError::Decode { what: WHAT, source })?;
    if table.disk_length() != manifest.disk.length {
        return Err(OpenError::Mixed {
            what: WHAT,
            reason: "it is that of a disk of another length",
        });
    }
    Ok(table)
}

async fn fetch<S: Source>(
    fetcher: &Fetcher<S>,
    what: &'static str,
    whole: &Whole,
    counter: &Counter,
) -> Result<bytes::Bytes, OpenError> {
    fetcher
        .whole(whole, counter)
        .await
        .map_err(|source| OpenError::Fetch { what, source })
}

fn metadata<S: Source>(fetcher: &Fetcher<S>) -> &Counter {
    &fetcher.stats().fetched.metadata_bytes
}

fn unknown(base: &BaseUrl, name: &ImageName, names: &Names) -> OpenError {
    let mut known: Vec<_> = names
        .names
        .keys()
        .take(NAMES_LISTED_MAX)
        .map(ImageName::as_str)
        .collect();
    match names.names.len() {
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
