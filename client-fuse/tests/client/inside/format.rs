//! A strict reader of the text that Prometheus reads: what it would overlook is an error here.

use std::collections::BTreeMap;

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// All samples of one name.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) kind: Kind,
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: String,
    pub(super) value: f64,
}

impl Family {
    /// How many events the histogram with this label has; all of it is checked.
    pub(super) fn histogram(&self, label: &str) -> u64 {
        let of = |ending: &str| {
            let ours = self.samples.iter().filter(|sample| {
                let first = sample.labels.split(',').next();
                sample.name.ends_with(ending) && first == Some(label)
            });
            ours.collect::<Vec<_>>()
        };
        let buckets = of("_bucket");
        assert!(buckets.iter().map(|it| it.value).is_sorted(), "{label}");
        let bounds: Vec<f64> = buckets
            .iter()
            .map(|bucket| {
                let (_, bound) = bucket.labels.split_once(",le=\"").unwrap();
                bound.trim_end_matches('"').replace("+Inf", "inf").parse()
            })
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(bounds.is_sorted_by(|a, b| a < b), "{label}");
        assert_eq!(bounds.last(), Some(&f64::INFINITY), "{label}");
        let (sums, counts) = (of("_sum"), of("_count"));
        assert_eq!((sums.len(), counts.len()), (1, 1), "{label}");
        let count = counts[0].value;
        assert_eq!(buckets.last().map(|last| last.value), Some(count));
        assert!((count == 0.0) == (sums[0].value == 0.0), "{label}");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let count = count as u64;
        count
    }
}

fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(word)
}

/// The families by name; panics at whatever is not as it should be.
pub(super) fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let mut families = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").unwrap();
        let (name, help) = help.split_once(' ').unwrap();
        assert!(is_name(name) && help.ends_with('.'), "{line}");
        let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
        let (typed, kind) = kind.split_once(' ').unwrap();
        assert_eq!(typed, name);
        let kind = match kind {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            other => panic!("{name} is a {other}"),
        };
        assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        let mut samples = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            samples.push(sample(line, name, kind));
        }
        assert!(!samples.is_empty(), "{name} has no samples");
        let family = Family { kind, samples };
        let twice = families.insert(name.to_owned(), family);
        assert!(twice.is_none(), "{name} comes twice");
    }
    families
}

fn sample(line: &str, family: &str, kind: Kind) -> Sample {
    let (left, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = match left.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
        None => (left, ""),
    };
    let ending = name.strip_prefix(family).unwrap();
    let endings: &[&str] = match kind {
        Kind::Histogram => &["_bucket", "_sum", "_count"],
        _ => &[""],
    };
    assert!(endings.contains(&ending), "{line}");
    let value: f64 = value.parse().unwrap();
    assert!(value.is_finite() && value >= 0.0, "{line}");
    Sample {
        name: name.to_owned(),
        labels: labels.to_owned(),
        value,
    }
}
