//! A store is a repository of The Update Framework: a client that is not ours reads it.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use circular_tests::images::{noise, sparse};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use circular_tests::{binaries, python};
use serde_json::Value;

/// A name with a slash, and its target: slashes in the names of targets mean directories.
const IMAGE: &str = "lab/debian";
const TARGET: &str = "lab,debian";

/// In how many places the timestamp is damaged, each in turn.
const PLACES: usize = 12;

/// Publishes a version of its own for each `seed`.
fn publish(store: &TestStore, seed: u64) -> Result<()> {
    let image = store.beside(&format!("image-{seed}"));
    sparse(&image, 3 << 20, &[(1 << 20, noise(seed, 100_000))])?;
    store.publish(&image, IMAGE)?;
    Ok(())
}

/// Runs python-tuf on the store; what it saw is kept in `state` beside the store.
fn refresh(store: &TestStore, url: &str, state: &str) -> Result<Output> {
    Command::new(python::interpreter())
        .arg(binaries::checkout().join("tests/tuf/refresh.py"))
        .arg(store.trusted_root())
        .args([url, TARGET])
        .arg(store.beside(state))
        .output()
        .context("cannot run python-tuf")
}

fn accepted(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "python-tuf: {said}");
    serde_json::from_slice(&output.stdout).context("refresh.py printed no JSON")
}

fn ensure_refused(output: &Output, what: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.starts_with("refused: "),
        "{what}: python-tuf said {said}"
    );
    Ok(())
}

#[test]
fn python_tuf_finds_what_inspect_says() -> Result<()> {
    if require::missing(&[Need::PythonTuf])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    publish(&store, 1)?;
    let server = Server::start(&store.path())?;
    let first = accepted(&refresh(&store, server.url(), "state")?)?;
    ensure!(first["catalogue"]["name"] == IMAGE, "{first}");
    ensure!(first["version"] == "1", "{first}");

    publish(&store, 2)?;
    let second = accepted(&refresh(&store, server.url(), "state")?)?;
    let inspected = store.json(&["inspect", IMAGE])?;
    ensure!(second["version"] == "2", "{second}");
    ensure!(
        second["manifest"]["sha256"] == inspected["manifest_digest"],
        "{second} and {inspected}"
    );
    ensure!(
        second["manifest"]["disk"] == inspected["manifest"]["disk"]["regions"]["digest"],
        "{second} and {inspected}"
    );
    ensure!(
        second["timestamp"].as_u64() > first["timestamp"].as_u64(),
        "{first} and {second}"
    );
    Ok(())
}

#[test]
fn python_tuf_refuses_a_timestamp_with_a_flipped_bit() -> Result<()> {
    if require::missing(&[Need::PythonTuf])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    publish(&store, 1)?;
    let server = Server::start(&store.path())?;
    let path = store.path().join("metadata/timestamp.json");
    let sound = fs::read(&path)?;
    for place in 0..PLACES {
        let mut damaged = sound.clone();
        let at = place * sound.len() / PLACES;
        damaged[at] ^= 1;
        fs::write(&path, damaged)?;
        let state = format!("state-{place}");
        ensure_refused(
            &refresh(&store, server.url(), &state)?,
            &format!("byte {at}"),
        )?;
    }
    fs::write(&path, sound)?;
    publish(&store, 2)?;
    let found = accepted(&refresh(&store, server.url(), "state-0")?)?;
    ensure!(found["version"] == "2", "{found}");
    Ok(())
}

#[test]
fn python_tuf_refuses_an_older_timestamp() -> Result<()> {
    if require::missing(&[Need::PythonTuf])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    publish(&store, 1)?;
    let server = Server::start(&store.path())?;
    let path = store.path().join("metadata/timestamp.json");
    let old = fs::read(&path)?;
    publish(&store, 2)?;
    accepted(&refresh(&store, server.url(), "state")?)?;
    fs::write(&path, old)?;
    // It keeps to what it saw, and takes nothing from the older state.
    let output = refresh(&store, server.url(), "state")?;
    ensure_refused(&output, "an older timestamp")
}
