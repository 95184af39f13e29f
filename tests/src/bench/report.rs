//! The document that the figures go to, `docs/BENCHMARKS.md`: a section for each suite, each with its machine, commit and
//! command. A run replaces the sections of its suites and leaves the others.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::table::{HEAD, Row};
use crate::binaries::checkout;

/// What stands above the first section.
const PREFACE: &str = "\
# Benchmarks

Written by `make bench`, not by hand. A row is a ratio within one run: its subjects took turns on the same image
and the same emulated line, each time as a new process with a new connection and an empty cache. It shows the median of the turns, with
the lowest and the highest; the ratio is that of each turn. Where seconds are compared, less than 1 is faster than what
stands beside.

Server and line run on one CPU, the client on another. What is served lies in memory, and so do the client's caches. Lines are emulated for real
packets (`tests/src/link.rs`); a queue drops what does not fit. Bytes are those of IP and TCP, from the server to the
client. Every byte that was read was compared with the image. Where somebody has no figure for
a turn, because it waited for ever, the row says so, and its ratio is that of the turns that both took.

How to run it: `make bench`, or suite by suite (`make bench BENCH=p1`): each replaces its own section and leaves the others,
and says when, where and of which commit it is.
";

/// What a suite has found.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// The suite.
    pub id: &'static str,
    /// What it is.
    pub title: &'static str,
    /// What has to be known to read it.
    pub notes: Vec<String>,
    /// What was measured.
    pub rows: Vec<Row>,
}

impl Section {
    /// Returns it as Markdown, with `circumstances` above the table.
    pub fn markdown(&self, circumstances: &str) -> String {
        let Self { id, title, .. } = self;
        let mut text = format!("## {} {title}\n\n", id.to_uppercase());
        for note in &self.notes {
            // A string takes everything.
            let _ = writeln!(text, "- {note}");
        }
        let _ = write!(text, "- {circumstances}\n\n{HEAD}\n");
        for row in &self.rows {
            let _ = writeln!(text, "{row}");
        }
        text
    }
}

/// Puts a section into a document in the place of the one with the same heading's first word, or at its end.
pub fn put(document: &str, section: &str) -> String {
    let key = |text: &str| text.split_whitespace().nth(1).map(str::to_owned);
    let mut parts: Vec<String> = Vec::new();
    for line in document.split_inclusive('\n') {
        match parts.last_mut() {
            Some(part) if !line.starts_with("## ") => part.push_str(line),
            _ => parts.push(line.to_owned()),
        }
    }
    let section = format!("{}\n", section.trim_end());
    let same = |part: &&mut String| part.starts_with("## ") && key(part) == key(&section);
    match parts.iter_mut().find(same) {
        Some(part) => *part = section,
        None => parts.push(section),
    }
    let parts: Vec<&str> = parts.iter().map(|part| part.trim_end()).collect();
    format!("{}\n", parts.join("\n\n"))
}

/// Puts a section into the document at `path`, which is made if there is none.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, section: &str) -> Result<()> {
    let before = fs::read_to_string(path).unwrap_or_else(|_| PREFACE.to_owned());
    fs::write(path, put(&before, section))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Returns machine, kernel, commit, load and command of this run, as one line.
pub fn circumstances(command: &str) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown CPU", |(_, model)| model);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if !changes.is_empty() => ", changed since",
        _ => "",
    };
    let date = output(Command::new("date").args(["--utc", "+%Y-%m-%d"])).unwrap_or_default();
    format!(
        "{date}, {cpus} × {model}, Linux {}, commit {commit}{changed}, load {load} at the end; `{command}`",
        kernel.trim()
    )
}

fn git(arguments: &[&str]) -> Option<String> {
    output(Command::new("git").args(arguments).current_dir(checkout()))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::put;

    #[test]
    fn a_section_replaces_the_one_of_its_suite() {
        let first = put("# Top\n\ntext\n", "## P1 One\n\nold\n");
        let both = put(&first, "## P13 Other\n\nkept\n");
        let again = put(&both, "## P1 One, renamed\n\nnew\n");
        assert_eq!(
            again,
            "# Top\n\ntext\n\n## P1 One, renamed\n\nnew\n\n## P13 Other\n\nkept\n"
        );
        assert_eq!(put(&again, "## P1 One, renamed\n\nnew\n"), again);
    }
}
