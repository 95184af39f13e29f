//! To see inside: every number has one name everywhere, and counts what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client_fuse::fs::{ImageFs, Node};
use client_fuse::inside::dump::Dump as _;
use client_fuse::inside::exposition;
use client_fuse::inside::names::{FAMILIES, NAMES};
use client_fuse::inside::serve::Metrics as _;
use serde_json::Value;

use crate::counts::OPENING;
use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{Setup, show};
use crate::store::{Store, mixed_disk};

mod format;
mod mounted;
mod panics;

use format::{Kind, parse};

/// Every number of a snapshot by its path; a histogram is one.
pub(crate) fn leaves(snapshot: &Value) -> BTreeMap<String, Value> {
    fn walk(path: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) if !map.contains_key("buckets_us") => {
                for (key, value) in map {
                    let below = if path.is_empty() { "" } else { "." };
                    walk(&format!("{path}{below}{key}"), value, leaves);
                }
            }
            // Several things with names have one meaning.
            Value::Array(items) => {
                for (key, value) in items.iter().filter_map(Value::as_object).flatten() {
                    if value.is_number() {
                        leaves.insert(format!("{path}.{key}"), value.clone());
                    }
                }
            }
            _ => drop(leaves.insert(path.to_owned(), value.clone())),
        }
    }
    let mut leaves = BTreeMap::new();
    walk("", snapshot, &mut leaves);
    leaves
}

async fn fs() -> Arc<ImageFs<MemorySource>> {
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    show(&MemorySource::new(&store), Setup::DEFAULT).await
}

fn snapshot(fs: &ImageFs<MemorySource>) -> Value {
    serde_json::from_str(&fs.stats()).unwrap()
}

/// Reads as the kernel does, and returns whether that went well.
async fn read(fs: &ImageFs<MemorySource>, offset: u64, len: u32) -> bool {
    let reading = fs.watch(Node::Disk, offset, len);
    let read = reading.of(fs.read(Node::Disk, 0, offset, len)).await;
    if read.is_ok() {
        reading.answered();
    }
    read.is_ok()
}

/// How many reads each layer answered, without those that answered none.
fn answered(fs: &ImageFs<MemorySource>) -> BTreeMap<String, u64> {
    let snapshot = snapshot(fs);
    let layers = snapshot["read_wait"].as_object().unwrap();
    let counts = layers.iter().map(|(layer, histogram)| {
        let count = histogram["count"].as_u64().unwrap();
        (layer.clone(), count)
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

fn layers(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(layer, count)| ((*layer).to_owned(), *count))
        .collect()
}

/// The table of `docs/OBSERVABILITY.md`: path, name in Prometheus, unit, meaning.
fn documented() -> Vec<[String; 4]> {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OBSERVABILITY.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, table) = document.split_once("## Every number").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        let cells: Vec<_> = cells
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect();
        cells.try_into().unwrap()
    })
    .collect()
}

fn unit(path: &str) -> &'static str {
    let ends = |ending: &str| path.ends_with(ending);
    if ends(".state") {
        "word"
    } else if path.contains("_wait.") {
        "histogram of microseconds"
    } else if ends("_us") {
        "microseconds"
    } else if ends("_ms") {
        "milliseconds"
    } else if ends("bytes_per_second") {
        "bytes a second"
    } else if ends("bytes") {
        "bytes"
    } else {
        "number"
    }
}

fn prometheus(path: &str) -> String {
    let family = FAMILIES.iter().find_map(|family| {
        let member = path.strip_prefix(family.path)?.strip_prefix('.')?;
        let (name, label) = (family.path, family.label);
        Some(format!("circular_{name}_seconds{{{label}=\"{member}\"}}"))
    });
    // A word that says how something is goes up and down, wherever it is.
    let name = match path.strip_suffix(".state") {
        Some(_) => exposition::name(&format!("now.{path}")).0,
        None => exposition::name(path).0,
    };
    family.unwrap_or(name)
}

#[tokio::test]
async fn every_number_is_documented_by_its_name_unit_and_meaning() {
    let fs = fs().await;
    let shown: BTreeSet<String> = leaves(&snapshot(&fs)).into_keys().collect();
    let named: BTreeSet<String> = NAMES.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(
        shown, named,
        "what stats.json has, and what inside/names.rs says the meaning of"
    );
    let expected: Vec<[String; 4]> = NAMES
        .iter()
        .map(|(path, meaning)| {
            [
                (*path).to_owned(),
                prometheus(path),
                unit(path).to_owned(),
                (*meaning).to_owned(),
            ]
        })
        .collect();
    let rows = expected.iter().map(|[path, name, unit, meaning]| {
        format!("| `{path}` | `{name}` | {unit} | {meaning} |\n")
    });
    let table: String = rows.collect();
    assert!(
        documented() == expected,
        "docs/OBSERVABILITY.md should have this table:\n{table}"
    );
}

#[tokio::test]
async fn prometheus_gets_every_number_once() {
    let fs = fs().await;
    assert!(read(&fs, 0, 1 << 20).await);
    let text = fs.exposition();
    let families = parse(&text);
    assert_eq!(families["circular_reads_total"].samples[0].value, 1.0);
    let waits = &families["circular_read_wait_seconds"];
    assert_eq!(waits.histogram("layer=\"demand\""), 1);
    let mut expected = BTreeSet::from(["circular_info".to_owned()]);
    for (path, value) in leaves(&snapshot(&fs)) {
        let name = prometheus(&path);
        let Some((family, label)) = name.split_once('{') else {
            let (_, is_gauge) = exposition::name(&path);
            let found = &families[&name];
            expected.insert(name.clone());
            if value.is_string() {
                continue;
            }
            let kind = if is_gauge { Kind::Gauge } else { Kind::Counter };
            assert_eq!(found.kind, kind, "{name}");
            assert_eq!(found.samples.len(), 1, "{name}");
            if !is_gauge && !name.ends_with("_seconds_total") {
                // Some of it may go on in the background.
                assert!(found.samples[0].value <= value.as_f64().unwrap(), "{name}");
            }
            continue;
        };
        let found = &families[family];
        assert_eq!(found.kind, Kind::Histogram, "{name}");
        let label = label.trim_end_matches('}');
        let count = found.histogram(label);
        assert!(Some(count) <= value["count"].as_u64(), "{name}");
        expected.insert(family.to_owned());
    }
    let found: BTreeSet<String> = families.keys().cloned().collect();
    assert_eq!(found, expected);
    let info = &families["circular_info"].samples[0].labels;
    assert!(
        info.contains("image=\"lab/debian:12@1\"") && info.contains("version=\"1\""),
        "{info}"
    );
}

#[tokio::test]
async fn reads_count_by_what_they_waited_for() {
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup {
        cache: Some(directory.path()),
        ..Setup::DEFAULT
    };
    let first = show(&MemorySource::new(&store), setup).await;
    assert!(read(&first, 0, 1 << 20).await);
    assert!(read(&first, 4096, 4096).await);
    assert_eq!(answered(&first), layers(&[("demand", 1), ("memory", 1)]));
    let waits = &snapshot(&first)["request_wait"];
    assert_eq!(waits["head"]["count"], waits["whole"]["count"]);
    let requests = &snapshot(&first)["requests"];
    assert!(waits["whole"]["count"].as_u64() <= requests.as_u64());
    while snapshot(&first)["disk_fill_bytes"].as_u64() < Some(1 << 19) {
        tokio::task::yield_now().await;
    }
    let second = show(&MemorySource::new(&store), setup).await;
    // The first one needs the index, too.
    assert!(read(&second, 0, 4096).await);
    assert!(read(&second, 500 << 10, 400 << 10).await);
    assert_eq!(answered(&second), layers(&[("disk", 1), ("index", 1)]));
    let now = &snapshot(&second)["now"];
    assert!(now["disk_bytes"].as_u64() > Some(0) && now["memory_bytes"].as_u64() > Some(0));
    assert_eq!(
        (&now["reads_under_way"], &now["oldest_read_us"]),
        (&0.into(), &0.into())
    );
}

#[tokio::test]
async fn reads_that_fail_count_as_such() {
    let store = Arc::new(Store::of(mixed_disk(100, 0)));
    let faults: Faults = Arc::new(|number, _| match number {
        0..OPENING => Fault::None,
        _ => Fault::Refuse,
    });
    let source = MemorySource::faulty(&store, faults);
    let fs = show(&source, Setup::DEFAULT).await;
    assert!(!read(&fs, 0, 4096).await);
    assert_eq!(answered(&fs), layers(&[("failed", 1)]));
    assert_eq!(snapshot(&fs)["read_errors"], 1);
}

#[tokio::test]
async fn a_boot_pack_answers_and_its_progress_is_seen() {
    let store = Arc::new(Store::booting(mixed_disk(600, 0), 1));
    let fs = show(&MemorySource::new(&store), Setup::DEFAULT).await;
    assert!(read(&fs, 0, 4096).await);
    assert_eq!(answered(&fs), layers(&[("boot_pack", 1)]));
    let left = || snapshot(&fs)["now"]["boot_pack_frames_left"].as_u64();
    while left() != Some(0) {
        tokio::task::yield_now().await;
    }
    assert!(snapshot(&fs)["now"]["boot_pack_frames"].as_u64() > Some(0));
}

#[tokio::test]
async fn what_memory_drops_is_counted() {
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    let setup = Setup {
        memory_bytes: 256 << 10,
        ..Setup::DEFAULT
    };
    let fs = show(&MemorySource::new(&store), setup).await;
    assert!(read(&fs, 0, 2 << 20).await);
    let snapshot = snapshot(&fs);
    let number = |path: &str| leaves(&snapshot)[path].as_u64().unwrap();
    assert!(number("evictions.memory_chunks") > 0);
    let fetched_bytes = 4096 * 600;
    let (held, dropped) = (number("now.memory_bytes"), number("evictions.memory_bytes"));
    assert!(held <= number("now.memory_max_bytes"));
    assert!(dropped > 0 && held + dropped <= fetched_bytes);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_is_told_with_what_it_waits_for() {
    let store = Arc::new(Store::of(mixed_disk(100, 0)));
    let source = MemorySource::far(&store, Duration::from_secs(3));
    let fs = show(&source, Setup::FAR).await;
    let reader = Arc::clone(&fs);
    let reading = tokio::spawn(async move { read(&reader, 4096, 8192).await });
    let told = loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let told = fs.state(16).lines().join("\n");
        if told.contains(" bytes ") {
            break told;
        }
        assert!(!reading.is_finished(), "{told}");
    };
    assert!(
        told.starts_with("state: reads under way: 1\nread of 8192 at 4096 since "),
        "{told}"
    );
    for part in [
        " waits for a chunk that is fetched for it\nrequests under way: 1\nobjects/",
        " from the server: not answered\nthe server: answers\n",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // Of more of them than that, the oldest.
    assert!(!fs.state(0).lines().join("\n").contains("read of"));
    assert!(reading.await.unwrap());
    assert_eq!(snapshot(&fs)["now"]["reads_under_way"], 0);
}
