//! What SIGUSR1 brings into the log: all that is not zero, and what is under way for how long.
//!
//! Safe at any moment: it only looks, at things that are locked for a few lines at a time. Bounded in
//! lines, and cut into records that the kernel's log takes.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::fetch::Part;
use crate::fetch::mirrors::Standing;
use crate::fetch::underway::Asked;
use crate::mount::signals::Dumps;
use crate::waits::UnderWay;

/// What the log knows these lines by: whoever asks for them wants them, whatever else is logged.
pub const TARGET: &str = "client_fuse::dump";

/// The most reads, and the most requests, that are told one by one.
const TOLD_MAX: usize = 16;

/// A record of the kernel's log has at most some 950 bytes; a line that is longer is cut.
const RECORD_BYTES_MAX: usize = 800;

/// A mount as far as it can be told of.
#[derive(Debug)]
pub struct State {
    /// All numbers, as in `stats.json`.
    pub(crate) numbers: Value,
    /// The oldest reads.
    pub(crate) reads: Vec<UnderWay>,
    /// The oldest requests.
    pub(crate) requests: Vec<Asked>,
    /// The mirrors, the one to ask first at the front.
    pub(crate) mirrors: Vec<(String, Standing)>,
}

/// Who knows the state.
pub trait Dump: Send + Sync + 'static {
    /// The state now; of reads and requests, `most` at most.
    fn state(&self, most: usize) -> State;
}

/// Writes the state to the log whenever that is asked for. Until `mount` is there, that is what it says.
pub async fn on_signal(mut dumps: Dumps, mount: Arc<OnceLock<Weak<dyn Dump>>>) {
    while dumps.next().await {
        let said = match mount.get().map(Weak::upgrade) {
            Some(Some(mount)) => records(&mount.state(TOLD_MAX).lines()),
            Some(None) => vec!["state: nothing is mounted any more".to_owned()],
            None => vec!["state: the image is being opened; nothing is mounted yet".to_owned()],
        };
        for record in said {
            tracing::info!(target: TARGET, "{record}");
        }
    }
}

impl State {
    /// What is said of it, the most pressing first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let count = |name| {
            let now = self.numbers.get("now").and_then(|now| now.get(name));
            now.and_then(Value::as_u64).unwrap_or(0)
        };
        let mut lines = vec![format!(
            "state: reads under way: {}",
            count("reads_under_way")
        )];
        lines.extend(self.reads.iter().map(read));
        lines.push(format!(
            "requests under way: {}",
            count("requests_under_way")
        ));
        lines.extend(self.requests.iter().map(request));
        for (mirror, standing) in &self.mirrors {
            let standing = match standing {
                Standing::Good => "answers",
                Standing::Failing => "fails",
                Standing::Quarantined => "sent wrong bytes",
            };
            lines.push(format!("{mirror}: {standing}"));
        }
        let mut numbers = String::from("numbers other than 0:");
        say("", &self.numbers, &mut numbers);
        lines.push(numbers);
        lines
    }
}

fn read(read: &UnderWay) -> String {
    let (offset, len) = (read.offset, read.len);
    let (age, layer) = (Age(read.age), read.layer.told());
    format!("read of {len} at {offset} since {age} waits for {layer}")
}

fn request(asked: &Asked) -> String {
    let part = match &asked.part {
        Part::Whole => String::new(),
        Part::Range { range, .. } => format!(" bytes {}..{}", range.start, range.end),
    };
    let got = if asked.is_answered {
        format!("{} bytes came", asked.got)
    } else {
        "not answered".to_owned()
    };
    let (path, age, mirror) = (&asked.path, Age(asked.age), &asked.mirror);
    format!("{path}{part} since {age} from {mirror}: {got}")
}

/// Says each number that is not 0; of a histogram, what it comes to.
fn say(path: &str, value: &Value, text: &mut String) {
    match value {
        Value::Number(number) if number.as_u64() != Some(0) => {
            // Writing to a text does not fail.
            let _ = write!(text, " {path}={number}");
        }
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| *key != "buckets_us") {
                let below = if path.is_empty() { "" } else { "." };
                say(&format!("{path}{below}{key}"), value, text);
            }
        }
        Value::String(word) => {
            let _ = write!(text, " {path}={word}");
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                say(&format!("{path}[{number}]"), item, text);
            }
        }
        _ => {}
    }
}

/// Packs lines into records of bounded length; one that is longer goes on in the next.
fn records(lines: &[String]) -> Vec<String> {
    let mut records = vec![String::new()];
    for word in lines.iter().flat_map(|line| words(line)) {
        let Some(record) = records.last_mut() else {
            continue;
        };
        if record.is_empty() {
            record.push_str(word.trim_start());
        } else if record.len() + word.len() <= RECORD_BYTES_MAX {
            record.push_str(&word);
        } else {
            records.push(word.trim_start().to_owned());
        }
    }
    records
}

/// The words of a line with the space before them; the first begins a new line.
fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(' ').enumerate().map(|(number, word)| {
        let before = if number == 0 { "\n" } else { " " };
        let mut end = word.len().min(RECORD_BYTES_MAX - 1);
        while !word.is_char_boundary(end) {
            end -= 1;
        }
        format!("{before}{}", &word[..end])
    })
}

/// How long ago, for people.
struct Age(Duration);

impl std::fmt::Display for Age {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::waits::Layer;

    #[test]
    fn the_state_names_what_waits_for_what() {
        let state = State {
            numbers: serde_json::json!({
                "reads": 7, "retries": 0,
                "now": {"reads_under_way": 1, "requests_under_way": 1},
                "read_wait": {"demand": {"count": 2, "buckets_us": {"64": 2}}},
            }),
            reads: vec![UnderWay {
                offset: 4096,
                len: 512,
                age: Duration::from_millis(1500),
                layer: Layer::Demand,
            }],
            requests: vec![Asked {
                mirror: "http://a/".to_owned(),
                path: "objects/ab".to_owned(),
                part: Part::Range {
                    range: 5..9,
                    object_bytes: 10,
                },
                age: Duration::from_secs(2),
                got: 0,
                is_answered: false,
            }],
            mirrors: vec![("http://a/".to_owned(), Standing::Failing)],
        };
        let said = records(&state.lines()).join("\n");
        let expected = "state: reads under way: 1
read of 512 at 4096 since 1.500 s waits for a chunk that is fetched for it
requests under way: 1
objects/ab bytes 5..9 since 2.000 s from http://a/: not answered
http://a/: fails
numbers other than 0: now.reads_under_way=1 now.requests_under_way=1 read_wait.demand.count=2 reads=7";
        assert_eq!(said, expected);
    }

    proptest! {
        /// No record is longer than the kernel takes, and no word is lost.
        #[test]
        fn records_are_bounded_and_complete(lines in vec("[a-zäß ]{0,300}", 0..40)) {
            let records = records(&lines);
            prop_assert!(records.iter().all(|record| record.len() <= RECORD_BYTES_MAX));
            let joined = records.join(" ");
            let said: Vec<&str> = joined.split_whitespace().collect();
            let all = lines.join(" ");
            prop_assert_eq!(said, all.split_whitespace().collect::<Vec<_>>());
        }
    }
}
