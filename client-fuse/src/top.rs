//! What the mounts of this machine do, as a table: reads, hits, network, waits. Pure.
//!
//! A row is made of two snapshots of a mount (`.circular/stats.json`) and the time between them, or of
//! one and the time since the mount began. What a snapshot lacks, because another version of the
//! program wrote it, counts as 0.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::inside::exposition::counts;
use crate::stats::histogram::Counts;

pub mod mounts;

/// A read that takes longer is felt.
const LONG: Duration = Duration::from_micros(1 << 20);

/// What a mount does, for people and scripts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Which image it is; empty if it does not say.
    pub image: String,
    /// Why there are no numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

/// The numbers of a row. Rates are of the time between the snapshots.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Seconds that they are of.
    pub seconds: f64,
    /// Reads a second.
    pub reads: f64,
    /// Bytes a second that they returned.
    pub read_bytes: f64,
    /// Of the pieces of chunks that were read, the part that memory had; 0 to 1. None was read: 0.
    pub memory_hits: f64,
    /// The part that the disk cache had.
    pub disk_hits: f64,
    /// The part that was on its way already, for whatever reason.
    pub flight_hits: f64,
    /// Bytes a second that came over the network.
    pub network_bytes: f64,
    /// Within this, 99 of 100 reads were answered, in microseconds.
    pub p99_us: u64,
    /// Reads that took longer than a second, since the mount began.
    pub long_reads: u64,
    /// How long the oldest read waits that is not answered, in microseconds.
    pub oldest_read_us: u64,
    /// Times at which readers waited because no server answered, since the mount began.
    pub stalls: u64,
    /// Failed reads since the mount began.
    pub read_errors: u64,
    /// How much of the boot pack is here; 0 to 1. There is none: nothing.
    pub boot_pack: Option<f64>,
}

impl Rates {
    /// What happened from `before` to `after`, or since the mount began.
    #[must_use]
    pub fn between(before: Option<&Value>, after: &Value) -> Self {
        let uptime = |of: &Value| number(of, "now.uptime_us");
        // A mount that began anew in the same place has counted less: all it has is new.
        let before = before.filter(|before| uptime(before) < uptime(after));
        let since = |path: &str| {
            let old = before.map_or(0, |before| number(before, path));
            number(after, path).saturating_sub(old)
        };
        let seconds = float(since("now.uptime_us").max(1)) / 1e6;
        let rate = |count: u64| float(count) / seconds;
        let shared = since("shared_fetches");
        let pieces = since("memory_hits") + since("disk_hits") + since("misses");
        let part = |count: u64| float(count) / float(pieces.max(1));
        let all = waits(after);
        let recent = match before.map(waits) {
            Some(old) => difference(&all, &old),
            None => all.clone(),
        };
        let frames = number(after, "now.boot_pack_frames");
        let left = number(after, "now.boot_pack_frames_left");
        let fetched = after.get("fetched").and_then(Value::as_object);
        let fetched = fetched.into_iter().flat_map(|map| map.keys());
        let network: u64 = fetched.map(|key| since(&format!("fetched.{key}"))).sum();
        let long = u64::try_from(LONG.as_micros()).unwrap_or(u64::MAX);
        Self {
            seconds,
            reads: rate(since("reads")),
            read_bytes: rate(since("read_bytes")),
            memory_hits: part(since("memory_hits")),
            disk_hits: part(since("disk_hits")),
            flight_hits: part(shared),
            network_bytes: rate(network),
            p99_us: recent.quantile_us(990),
            long_reads: all.count() - all.count_within(long),
            oldest_read_us: number(after, "now.oldest_read_us"),
            stalls: number(after, "faults.stalls"),
            read_errors: number(after, "read_errors"),
            boot_pack: (frames > 0).then(|| 1.0 - float(left.min(frames)) / float(frames)),
        }
    }
}

/// The number at `path`, or 0.
fn number(snapshot: &Value, path: &str) -> u64 {
    let mut at = Some(snapshot);
    for word in path.split('.') {
        at = at.and_then(|at| at.get(word));
    }
    at.and_then(Value::as_u64).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "for people to look at")]
fn float(number: u64) -> f64 {
    number as f64
}

/// How long all reads waited.
fn waits(snapshot: &Value) -> Counts {
    let mut all = Counts::NONE;
    let layers = snapshot.get("read_wait").and_then(Value::as_object);
    for layer in layers.into_iter().flat_map(|layers| layers.values()) {
        if let Some(histogram) = layer.as_object() {
            all.merge(&counts(histogram));
        }
    }
    all
}

/// What was counted since `old`.
fn difference(all: &Counts, old: &Counts) -> Counts {
    let mut old = old.buckets().peekable();
    let buckets = all.buckets().map(|(bound, count)| {
        while old.next_if(|(other, _)| *other < bound).is_some() {}
        let before = old.next_if(|(other, _)| *other == bound);
        (
            bound,
            count.saturating_sub(before.map_or(0, |(_, count)| count)),
        )
    });
    Counts::of_buckets(buckets.filter(|(_, count)| *count > 0))
}

/// The heads of the columns, each as wide as its column.
const HEADS: [&str; 12] = [
    "   reads/s",
    "    MB/s",
    " memory",
    "   disk",
    " flight",
    " net MB/s",
    "      p99",
    "  oldest",
    "   >1 s",
    " stalls",
    " errors",
    "   boot",
];

/// The table, a line each.
#[must_use]
pub fn table(rows: &[Row]) -> Vec<String> {
    if rows.is_empty() {
        return vec!["no disk is mounted here (of a tree, name an image: circular-mount top MOUNTPOINT/NAME/TAG)".to_owned()];
    }
    let width = |of: fn(&Row) -> &str, head: &str| {
        let widths = rows.iter().map(|row| of(row).chars().count());
        widths.max().unwrap_or(0).max(head.len())
    };
    let points = width(|row| &row.mountpoint, "MOUNT POINT");
    let images = width(|row| &row.image, "IMAGE");
    let head = format!(
        "{:points$}  {:images$} {}",
        "MOUNT POINT",
        "IMAGE",
        HEADS.concat()
    );
    let line = |row: &Row| {
        let numbers = match (&row.rates, &row.trouble) {
            (Some(rates), _) => cells(rates),
            (None, trouble) => format!(" {}", trouble.as_deref().unwrap_or("no numbers")),
        };
        let (point, image) = (printable(&row.mountpoint), printable(&row.image));
        format!("{point:points$}  {image:images$} {numbers}")
    };
    std::iter::once(head).chain(rows.iter().map(line)).collect()
}

/// Names come from elsewhere: nothing of them moves the cursor.
fn printable(name: &str) -> String {
    name.replace(char::is_control, "?")
}

fn cells(rates: &Rates) -> String {
    let percent = |part: f64| format!("{:.0} %", part * 100.0);
    let megabytes = |bytes: f64| format!("{:.1}", bytes / 1e6);
    let boot = rates.boot_pack.map_or_else(|| "-".to_owned(), percent);
    let cells = [
        format!("{:.0}", rates.reads),
        megabytes(rates.read_bytes),
        percent(rates.memory_hits),
        percent(rates.disk_hits),
        percent(rates.flight_hits),
        megabytes(rates.network_bytes),
        time(rates.p99_us),
        time(rates.oldest_read_us),
        rates.long_reads.to_string(),
        rates.stalls.to_string(),
        rates.read_errors.to_string(),
        boot,
    ];
    let columns = cells.iter().zip(HEADS);
    columns
        .map(|(cell, head)| format!("{cell:>width$}", width = head.len()))
        .collect()
}

/// A time in a few characters.
fn time(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{:.1} ms", float(us) / 1e3),
        _ => format!("{:.1} s", float(us) / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(uptime_s: u64, reads: u64, bucket: u64) -> Value {
        json!({
            "reads": reads, "read_bytes": reads * 4096,
            "memory_hits": reads / 2, "disk_hits": 0, "misses": reads / 2, "shared_fetches": reads / 4,
            "read_wait": {"demand": {"buckets_us": {bucket.to_string(): reads}}},
            "fetched": {"chunk_bytes": reads * 1000, "page_bytes": reads * 1000},
            "now": {"uptime_us": uptime_s * 1_000_000, "boot_pack_frames": 4, "boot_pack_frames_left": 1},
        })
    }

    #[test]
    fn rates_are_of_the_time_between_two_snapshots() {
        let (before, after) = (snapshot(10, 100, 64), snapshot(12, 300, 2 << 20));
        let rates = Rates::between(Some(&before), &after);
        assert_eq!((rates.seconds, rates.reads), (2.0, 100.0));
        assert_eq!((rates.memory_hits, rates.flight_hits), (0.5, 0.25));
        assert_eq!(rates.network_bytes, 200_000.0);
        assert_eq!(rates.boot_pack, Some(0.75));
        assert_eq!(rates.long_reads, 300);
        let whole = Rates::between(None, &after);
        assert_eq!((whole.seconds, whole.reads), (12.0, 25.0));
    }

    #[test]
    fn the_quantile_is_of_the_time_between() {
        let (mut before, mut after) = (snapshot(1, 0, 64), snapshot(2, 0, 64));
        before["read_wait"]["demand"]["buckets_us"] = json!({"4096": 1000, "64": 10});
        after["read_wait"]["demand"]["buckets_us"] = json!({"4096": 1000, "64": 20, "128": 1});
        assert_eq!(Rates::between(Some(&before), &after).p99_us, 128);
        assert_eq!(Rates::between(None, &after).p99_us, 4096);
    }

    #[test]
    fn a_mount_that_began_anew_counts_from_its_beginning() {
        let rates = Rates::between(Some(&snapshot(100, 1_000_000, 64)), &snapshot(4, 8, 64));
        assert_eq!(rates.reads, 2.0);
    }

    #[test]
    fn a_snapshot_of_anything_makes_a_row() {
        for odd in [
            json!(null),
            json!([1]),
            json!({"reads": "many", "read_wait": 7, "fetched": []}),
        ] {
            let rates = Rates::between(Some(&odd), &odd);
            assert_eq!((rates.reads, rates.p99_us, rates.boot_pack), (0.0, 0, None));
        }
    }

    #[test]
    fn a_table_has_a_head_and_a_line_for_each_mount() {
        let row = |mountpoint: &str, trouble: Option<&str>| Row {
            mountpoint: mountpoint.to_owned(),
            image: "lab/debian:12@1".to_owned(),
            trouble: trouble.map(str::to_owned),
            rates: trouble
                .is_none()
                .then(|| Rates::between(None, &snapshot(1, 8, 64))),
        };
        let table = table(&[row("/mnt", None), row("/a\n", Some("it does not answer"))]);
        assert_eq!(table.len(), 3);
        assert_eq!(table[0].len(), table[1].len());
        assert!(table[1].contains("  75 %"), "{table:?}");
        assert!(table[2].starts_with("/a? ") && table[2].ends_with("it does not answer"));
    }
}
