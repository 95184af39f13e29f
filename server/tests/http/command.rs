//! The `circular-server` command itself, as people start it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use image_format::Digest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_circular-server"))
}

#[test]
fn a_new_token_comes_with_the_line_that_lets_it_in() {
    let make = || {
        let output = command()
            .args(["token", "ci", "--scope", "publish"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let text = make();
    let lines: Vec<_> = text.lines().collect();
    let [token, line] = lines[..] else {
        panic!("{text}");
    };
    assert!(
        token.starts_with("circular_") && token.len() == 9 + 64,
        "{token}"
    );
    assert_eq!(line, format!("publish {} ci", Digest::of(token.as_bytes())));
    assert_ne!(make(), text);
}

#[test]
fn a_token_is_made_whatever_the_environment_says() {
    let mut command = command();
    command.args(["token", "ci", "--scope", "read"]);
    command
        .env("CIRCULAR_LISTEN", "127.0.0.1:1")
        .env("CIRCULAR_STORE", "/nowhere");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A running command; killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_the_tokens_again_and_the_log_never_shows_one() {
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("store");
    image_store::Store::open_or_create(&store).await.unwrap();
    let table = scratch.path().join("tokens");
    let token = "circular_secret";
    let line = format!("read {} alice\n", Digest::of(token.as_bytes()));
    std::fs::write(&table, &line).unwrap();
    let mut command = command();
    command
        .args(["--listen", "127.0.0.1:0", "--private", "--store"])
        .arg(&store);
    command
        .arg("--tokens")
        .arg(&table)
        .env("CIRCULAR_LOG", "trace");
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Running(child);
    let mut log = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let mut seen = String::new();
    let mut until = |word: &str| {
        for line in log.by_ref() {
            let line = line.unwrap();
            seen.push_str(&line);
            if line.contains(word) {
                return line;
            }
        }
        panic!("the log ended without {word:?}: {seen}");
    };
    let serving = until("serving");
    let url = serving
        .split("http://")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let get = async || {
        let client = reqwest::Client::new();
        let request = client
            .get(format!("http://{url}/circular.json"))
            .bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(get().await, 200);
    assert!(until("/circular.json").contains("alice"));
    kill(
        Pid::from_raw(child.0.id().try_into().unwrap()),
        Signal::SIGHUP,
    )
    .unwrap();
    until("again");
    assert_eq!(get().await, 200);
    drop(child);
    assert!(!seen.contains(token), "{seen}");
}
