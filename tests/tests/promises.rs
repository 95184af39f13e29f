//! What the documents promise is held by tests: each test that they name is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use circular_tests::binaries::checkout;

/// Documents whose tables name tests.
const DOCUMENTS: &[&str] = &["docs/SECURITY.md", "docs/SEMANTICS.md"];

/// A sentence of a test's name has more words than any other name in the documents.
const WORDS_MIN: usize = 4;

#[test]
fn each_test_that_the_documents_name_is_there() -> Result<()> {
    let tests = test_names()?;
    for document in DOCUMENTS {
        let content = fs::read_to_string(checkout().join(document))?;
        let named: Vec<_> = names(&content).collect();
        ensure!(!named.is_empty(), "{document} names no test");
        for name in named {
            ensure!(
                tests.contains(name),
                "{document}: there is no test `{name}`"
            );
        }
    }
    Ok(())
}

#[test]
fn each_promise_of_security_names_its_test() -> Result<()> {
    let content = fs::read_to_string(checkout().join("docs/SECURITY.md"))?;
    let (_, promises) = content
        .split_once("## What is promised")
        .context("the promises have a heading")?;
    let promises = promises.split("\n## ").next().unwrap_or(promises);
    let rows = promises.lines().filter(|line| line.starts_with("| "));
    for row in rows.skip(2) {
        ensure!(names(row).next().is_some(), "no test holds: {row}");
    }
    Ok(())
}

/// Returns what stands in backquotes and is a sentence with underscores.
fn names(content: &str) -> impl Iterator<Item = &str> {
    content.split('`').skip(1).step_by(2).filter(|name| {
        name.split('_').count() >= WORDS_MIN
            && name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    })
}

/// Returns the name of every function in the sources that is marked as a test.
fn test_names() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut files = Vec::new();
    for entry in fs::read_dir(checkout())? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            for part in ["src", "tests"] {
                sources(&path.join(part), &mut files)?;
            }
        }
    }
    for file in files {
        let content = fs::read_to_string(&file)?;
        found.extend(rows(&content).map(str::to_owned));
        let plain = content.split("test]").skip(1);
        let with_arguments = content.split("tokio::test(").skip(1);
        for after in plain.chain(with_arguments).chain(properties(&content)) {
            let Some((_, rest)) = after.split_once("fn ") else {
                continue;
            };
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

/// Returns the names in a table of tests, `rows! { name: …, }`.
fn rows(content: &str) -> impl Iterator<Item = &str> {
    let table = content.split_once("\nrows! {\n");
    let table = table.and_then(|(_, rest)| rest.split_once("\n}"));
    let lines = table.map_or("", |(table, _)| table).lines();
    lines.filter_map(|line| Some(line.trim().split_once(':')?.0))
}

/// Returns the text from each function of `proptest!` on: they carry no mark of their own.
fn properties(content: &str) -> impl Iterator<Item = &str> {
    let inside = content
        .split_once("proptest! {")
        .map_or("", |(_, rest)| rest);
    inside
        .match_indices("\n    fn ")
        .chain(inside.match_indices("\n        fn "))
        .map(|(at, _)| &inside[at..])
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    Ok(())
}
