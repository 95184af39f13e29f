//! What the documents promise of the source itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use circular_tests::binaries::checkout;
use serde_json::Value;

/// A crate, and the crates of this workspace that it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("image-format", &[]),
    ("image-store", &["image-format"]),
    ("server", &["image-format", "image-store"]),
    ("client-fuse", &["image-format", "image-store"]),
    ("initramfs", &["image-format", "image-store"]),
    ("image-tools", &["image-format", "image-store", "initramfs"]),
    (
        "circular-tests",
        &[
            "image-format",
            "image-store",
            "server",
            "client-fuse",
            "initramfs",
            "image-tools",
        ],
    ),
];

/// What no source of the pure crate may mention: it reads no file, no clock, no socket.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "tokio",
    "async fn",
];

/// The only crates that ask the system for what no crate wraps. All others forbid `unsafe`; in these
/// each use is an exception with a reason.
const WITH_UNSAFE: &[&str] = &[
    "client-fuse/src/lib.rs",
    "initramfs/src/lib.rs",
    "tests/src/lib.rs",
];

/// Files longer than this are two files.
const LINES_MAX: usize = 600;

/// Documents whose links and file names must lead somewhere.
const DOCUMENTS: &[&str] = &["README.md", "CONTRIBUTING.md"];

fn packages() -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(checkout())
        .output()
        .context("cannot run cargo metadata")?;
    let mut metadata: Value = serde_json::from_slice(&output.stdout).context("no metadata")?;
    match metadata.get_mut("packages").map(Value::take) {
        Some(Value::Array(packages)) => Ok(packages),
        _ => anyhow::bail!("cargo metadata names no packages"),
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Returns all files below `directory` that end in `ending`.
fn files(directory: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Returns all Rust files of the workspace, each with its text.
fn sources() -> Result<Vec<(PathBuf, String)>> {
    let mut sources = Vec::new();
    for package in packages()? {
        let manifest = PathBuf::from(text(&package, "manifest_path"));
        for file in files(
            manifest.parent().context("a manifest lies somewhere")?,
            ".rs",
        )? {
            let content = fs::read_to_string(&file)?;
            sources.push((file.strip_prefix(checkout())?.to_owned(), content));
        }
    }
    Ok(sources)
}

#[test]
fn no_crate_depends_upwards_or_sideways() -> Result<()> {
    let ours: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    for package in packages()? {
        let name = text(&package, "name").to_owned();
        let (_, allowed) = LAYERS
            .iter()
            .find(|(layer, _)| *layer == name)
            .with_context(|| format!("{name} has no layer"))?;
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        for dependency in dependencies.into_iter().flatten() {
            let dependency = text(dependency, "name");
            ensure!(
                !ours.contains(dependency) || allowed.contains(&dependency),
                "{name} may not depend on {dependency}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_crate_has_the_lints_of_the_workspace() -> Result<()> {
    for package in packages()? {
        let manifest = fs::read_to_string(text(&package, "manifest_path"))?;
        ensure!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} leaves out the lints of the workspace",
            text(&package, "name")
        );
    }
    Ok(())
}

#[test]
fn the_format_crate_touches_nothing_outside() -> Result<()> {
    for (file, content) in sources()? {
        if !file.starts_with("image-format/src") {
            continue;
        }
        for word in IMPURE {
            ensure!(
                !content.contains(word),
                "{} mentions {word}",
                file.display()
            );
        }
    }
    Ok(())
}

#[test]
fn unsafe_code_is_forbidden_wherever_it_is_not_needed() -> Result<()> {
    let mut with_unsafe = BTreeSet::new();
    for package in packages()? {
        for target in package["targets"].as_array().into_iter().flatten() {
            let kind = &target["kind"][0];
            if kind != "lib" && kind != "bin" {
                continue;
            }
            let root = Path::new(text(target, "src_path"));
            if !fs::read_to_string(root)?.contains("#![forbid(unsafe_code)]") {
                with_unsafe.insert(root.strip_prefix(checkout())?.to_owned());
            }
        }
    }
    let expected = WITH_UNSAFE.iter().map(PathBuf::from).collect();
    ensure!(
        with_unsafe == expected,
        "these do not forbid unsafe code: {with_unsafe:?}"
    );
    for root in WITH_UNSAFE {
        let crate_sources = Path::new(root).parent().context("a root lies somewhere")?;
        let used = sources()?.iter().any(|(file, content)| {
            file.starts_with(crate_sources) && content.contains("unsafe_code")
        });
        ensure!(used, "{root} could forbid unsafe code");
    }
    Ok(())
}

#[test]
fn only_the_adapters_know_fuse() -> Result<()> {
    let adapters = [
        "client-fuse/src/fuse",
        "client-fuse/src/mount",
        "client-fuse/src/supervise",
        // What warm reads are measured against.
        "tests/examples/bare_fuse.rs",
    ];
    for (file, content) in sources()? {
        let known = adapters
            .iter()
            .any(|adapter| file.to_string_lossy().starts_with(adapter));
        ensure!(
            known || !content.contains(concat!("fuser", "::")),
            "{} mentions the FUSE library",
            file.display()
        );
    }
    Ok(())
}

#[test]
fn no_source_file_is_too_long() -> Result<()> {
    for (file, content) in sources()? {
        let lines = content.lines().count();
        ensure!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
    }
    Ok(())
}

#[test]
fn every_module_says_what_it_is_for() -> Result<()> {
    for (file, content) in sources()? {
        ensure!(
            content.starts_with("//!"),
            "{} has no header",
            file.display()
        );
    }
    Ok(())
}

#[test]
fn documents_name_only_files_that_exist() -> Result<()> {
    let mut documents: Vec<PathBuf> = DOCUMENTS.iter().map(|name| checkout().join(name)).collect();
    documents.extend(files(&checkout().join("docs"), ".md")?);
    for document in documents {
        let content = fs::read_to_string(&document)
            .with_context(|| format!("cannot read {}", document.display()))?;
        let near = document.parent().context("a document lies somewhere")?;
        for name in links(&content).chain(paths(&content)) {
            ensure!(
                near.join(name).exists() || checkout().join(name).exists(),
                "{} names {name}, which does not exist",
                document.display()
            );
        }
    }
    Ok(())
}

/// Returns the targets of relative Markdown links.
fn links(content: &str) -> impl Iterator<Item = &str> {
    content.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        (!target.is_empty() && !target.contains("://")).then_some(target)
    })
}

/// Returns the names in backquotes that look like a path of the source: a slash and a known ending.
fn paths(content: &str) -> impl Iterator<Item = &str> {
    content.split('`').skip(1).step_by(2).filter(|name| {
        let ending = Path::new(name)
            .extension()
            .and_then(|ending| ending.to_str());
        name.contains('/')
            && !name.contains(['*', '<', '{', ' ', ':', '$'])
            && !name.starts_with(['/', '.'])
            && matches!(ending, Some("rs" | "md" | "sh" | "toml"))
    })
}
