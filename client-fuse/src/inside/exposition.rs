//! The snapshot as Prometheus reads it: text exposition format 0.0.4. Pure.
//!
//! Names follow from those in `stats.json`, so that one thing has one name: `fetched.chunk_bytes` is
//! `circular_fetched_chunk_bytes_total`, what goes up and down (`now.…`) loses its first word and has
//! no `_total`, microseconds and milliseconds become seconds. A family of histograms has one name and a
//! label, and so have several things with names of their own; a word that says how something is becomes
//! the label of a 1.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::names::{self, FAMILIES};
use crate::stats::histogram::Counts;

/// What this text is, in the words of HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of the buckets of a histogram: each doubling from 2^6 to 2^26 microseconds, which is from
/// what memory takes to more than a minute.
const BOUNDS: std::ops::RangeInclusive<u32> = 6..=26;

/// All samples of one name.
struct Family {
    name: String,
    kind: &'static str,
    help: String,
    samples: String,
}

/// The text for `snapshot`; `labels` say of what it is.
#[must_use]
pub fn text(snapshot: &Value, labels: &[(&str, &str)]) -> String {
    let mut families = vec![Family {
        name: "circular_info".to_owned(),
        kind: "gauge",
        help: "What is mounted.".to_owned(),
        samples: format!("circular_info{{{}}} 1\n", pairs(labels)),
    }];
    walk("", snapshot, &mut families);
    let mut text = String::new();
    for family in families {
        let (name, kind) = (&family.name, family.kind);
        let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a text does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        text.push_str(&family.samples);
    }
    text
}

/// The name that `path` of `stats.json` has in Prometheus, and whether it is a gauge.
#[must_use]
pub fn name(path: &str) -> (String, bool) {
    let now = path.strip_prefix("now.");
    let words = now.unwrap_or(path).replace('.', "_");
    let time = words
        .strip_suffix("_us")
        .or_else(|| words.strip_suffix("_ms"));
    let words = time.map_or_else(|| words.clone(), |words| format!("{words}_seconds"));
    match now {
        Some(_) => (format!("circular_{words}"), true),
        None => (format!("circular_{words}_total"), false),
    }
}

fn walk(path: &str, value: &Value, families: &mut Vec<Family>) {
    match value {
        Value::Number(number) => sample(path, "", number, families),
        Value::String(text) => state(path, text, families),
        Value::Object(map) if map.contains_key("buckets_us") => histogram(path, map, families),
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                walk(&path, value, families);
            }
        }
        Value::Array(items) => {
            for item in items {
                named(path, item, families);
            }
        }
        // There is nothing else in it.
        Value::Null | Value::Bool(_) => {}
    }
}

/// One of several things that have a name: a label.
fn named(path: &str, item: &Value, families: &mut Vec<Family>) {
    let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
    let label = format!("{{{}}}", pairs(&[("name", name)]));
    for (key, value) in item.as_object().into_iter().flatten() {
        if let Value::Number(number) = value {
            sample(&format!("{path}.{key}"), &label, number, families);
        }
    }
}

/// A word that says how something is: the label of a sample that is always 1.
fn state(path: &str, text: &str, families: &mut Vec<Family>) {
    let name = format!("circular_{}", path.replace('.', "_"));
    let line = format!("{name}{{{}}} 1\n", pairs(&[("is", text)]));
    let family = family(families, &name, "gauge", names::meaning(path));
    family.samples.push_str(&line);
}

fn sample(path: &str, label: &str, number: &serde_json::Number, families: &mut Vec<Family>) {
    let (name, is_gauge) = name(path);
    let microseconds = [("_us", 1), ("_ms", 1000)].into_iter();
    let mut unit = microseconds.filter(|(ending, _)| path.ends_with(ending));
    let value = match (unit.next(), number.as_u64()) {
        (Some((_, unit)), Some(count)) => seconds(count.saturating_mul(unit)),
        _ => number.to_string(),
    };
    let line = format!("{name}{label} {value}\n");
    let kind = if is_gauge { "gauge" } else { "counter" };
    let family = family(families, &name, kind, names::meaning(path));
    family.samples.push_str(&line);
}

/// The family of this name, which begins here if there is none.
fn family<'a>(
    families: &'a mut Vec<Family>,
    name: &str,
    kind: &'static str,
    help: Option<&str>,
) -> &'a mut Family {
    let known = families.iter().position(|family| family.name == name);
    let at = known.unwrap_or_else(|| {
        families.push(Family {
            name: name.to_owned(),
            kind,
            help: help.unwrap_or("See docs/OBSERVABILITY.md.").to_owned(),
            samples: String::new(),
        });
        families.len() - 1
    });
    &mut families[at]
}

/// One histogram of a family: the last word of its path is the value of the label.
fn histogram(path: &str, map: &Map<String, Value>, families: &mut Vec<Family>) {
    let (family_path, member) = path.rsplit_once('.').unwrap_or((path, ""));
    let known = FAMILIES.iter().find(|known| known.path == family_path);
    let label = known.map_or("of", |known| known.label);
    let name = format!("circular_{}_seconds", family_path.replace('.', "_"));
    let help = known.map(|known| known.meaning);
    let samples = &mut family(families, &name, "histogram", help).samples;
    let number = |key: &str| map.get(key).and_then(Value::as_u64).unwrap_or(0);
    let counts = counts(map);
    let mut bucket = |bound: &str, count: u64| {
        let line = format!("{name}_bucket{{{label}=\"{member}\",le=\"{bound}\"}} {count}\n");
        samples.push_str(&line);
    };
    for power in BOUNDS {
        let bound = 1 << power;
        bucket(&seconds(bound), counts.count_within(bound));
    }
    // All three are of the same moment: the buckets say how many there are.
    let count = counts.count();
    bucket("+Inf", count);
    let sum = seconds(number("sum_us"));
    let ends = format!(
        "{name}_sum{{{label}=\"{member}\"}} {sum}\n{name}_count{{{label}=\"{member}\"}} {count}\n"
    );
    samples.push_str(&ends);
}

/// The buckets of a histogram as `stats.json` has it.
#[must_use]
pub fn counts(histogram: &Map<String, Value>) -> Counts {
    let buckets = histogram.get("buckets_us").and_then(Value::as_object);
    let buckets = buckets.into_iter().flatten();
    Counts::of_buckets(
        buckets.filter_map(|(bound, count)| Some((bound.parse().ok()?, count.as_u64()?))),
    )
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    let (whole, part) = (us / 1_000_000, us % 1_000_000);
    if part == 0 {
        return whole.to_string();
    }
    let part = format!("{part:06}");
    format!("{whole}.{}", part.trim_end_matches('0'))
}

/// Labels, with what must be escaped.
fn pairs(labels: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        format!("{name}=\"{}\"", value.replace('\n', "\\n"))
    };
    labels.iter().map(pair).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_those_of_the_counters() {
        let of = |path| name(path);
        assert_eq!(of("reads"), ("circular_reads_total".to_owned(), false));
        let fetched = "circular_fetched_chunk_bytes_total".to_owned();
        assert_eq!(of("fetched.chunk_bytes"), (fetched, false));
        let oldest = "circular_oldest_read_seconds".to_owned();
        assert_eq!(of("now.oldest_read_us"), (oldest, true));
    }

    #[test]
    fn seconds_are_exact() {
        for (us, text) in [
            (0, "0"),
            (1, "0.000001"),
            (64, "0.000064"),
            (1_500_000, "1.5"),
            (67_108_864, "67.108864"),
            (3_000_000, "3"),
        ] {
            assert_eq!(seconds(us), text);
        }
    }

    #[test]
    fn things_with_names_are_one_family_and_words_are_labels() {
        let snapshot = serde_json::json!({
            "mirrors": [
                {"name": "http://a/", "requests": 3, "waited_ms": 1500},
                {"name": "http://b/", "requests": 4, "waited_ms": 0},
            ],
            "passthrough": {"state": "on"},
        });
        let text = text(&snapshot, &[]);
        for lines in [
            "# TYPE circular_mirrors_requests_total counter
circular_mirrors_requests_total{name=\"http://a/\"} 3
circular_mirrors_requests_total{name=\"http://b/\"} 4
",
            "circular_mirrors_waited_seconds_total{name=\"http://a/\"} 1.5\n",
            "# TYPE circular_passthrough_state gauge\ncircular_passthrough_state{is=\"on\"} 1\n",
        ] {
            assert!(text.contains(lines), "{text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let text = text(&Value::Null, &[("image", "a\"b\\c\nd")]);
        assert!(
            text.contains(r#"circular_info{image="a\"b\\c\nd"} 1"#),
            "{text}"
        );
    }
}
