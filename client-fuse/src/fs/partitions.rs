//! `p1.raw`, `p2.raw` …: the partitions of the disk, as read-only files beside it.
//!
//! The table is read when somebody first looks for one, and not again: what is a file at all does not
//! change while it is mounted. What a partition contains does, if the disk can be written to.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use image_format::partition::Scan;
use tokio::sync::OnceCell;

use crate::fetch::Source;
use crate::overlay::layered::{Layered, LayeredError};

/// How long listing a directory waits for the table; without it, the list has no partitions.
const LISTING_WAITS: Duration = Duration::from_secs(5);

/// The partitions of a disk, once somebody asked for them.
#[derive(Debug, Default)]
pub(super) struct Partitions(OnceCell<Vec<Slice>>);

/// A partition: its number, and its bytes on the disk.
#[derive(Clone, Debug)]
struct Slice {
    number: u16,
    on_disk: Range<u64>,
}

/// The number of the partition that a file called `name` would show.
pub(super) fn number_of(name: &str) -> Option<u16> {
    let digits = name.strip_prefix('p')?.strip_suffix(".raw")?;
    let number = digits.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// What the file of a partition is called.
pub(super) fn file_name(number: u16) -> String {
    format!("p{number}.raw")
}

impl Partitions {
    /// Reads the table, unless that has been done. Returns the numbers.
    pub(super) async fn read<S: Source>(
        &self,
        disk: &Layered<S>,
    ) -> Result<Vec<u16>, LayeredError> {
        let slices = self.0.get_or_try_init(|| slices(disk)).await?;
        Ok(slices.iter().map(|slice| slice.number).collect())
    }

    /// The numbers, for a list that should not wait for ever.
    pub(super) async fn list<S: Source>(&self, disk: &Layered<S>) -> Vec<u16> {
        match tokio::time::timeout(LISTING_WAITS, self.read(disk)).await {
            Ok(Ok(numbers)) => return numbers,
            Ok(Err(error)) => {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(
                    error = cause,
                    "partitions are not listed: their table cannot be read"
                );
            }
            Err(_) => {
                tracing::warn!("partitions are not listed: their table cannot be read in time");
            }
        }
        Vec::new()
    }

    /// The bytes of a partition that is known.
    pub(super) fn find(&self, number: u16) -> Option<Range<u64>> {
        let slices = self.0.get()?;
        let found = slices.iter().find(|slice| slice.number == number)?;
        Some(found.on_disk.clone())
    }
}

async fn slices<S: Source>(disk: &Layered<S>) -> Result<Vec<Slice>, LayeredError> {
    let mut scan = Scan::new(disk.length());
    while let Some(wanted) = scan.wanted() {
        let length = u32::try_from(wanted.end - wanted.start).unwrap_or(u32::MAX);
        let bytes: Bytes = disk.read(wanted.start, length).await?;
        scan.feed(&bytes);
    }
    let slice = |it: image_format::partition::Partition| {
        Some(Slice {
            number: it.number.try_into().ok()?,
            on_disk: it.offset..it.offset + it.length,
        })
    };
    Ok(scan.finish().into_iter().filter_map(slice).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_one_name() {
        assert_eq!(number_of(&file_name(12)), Some(12));
        for wrong in [
            "p.raw",
            "p01.raw",
            "p+1.raw",
            "p1",
            "1.raw",
            "p70000.raw",
            "pé.raw",
        ] {
            assert_eq!(number_of(wrong), None, "{wrong}");
        }
    }
}
