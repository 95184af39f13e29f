//! `circular-mount top`: what may be typed to watch mounts, and the watching.
//!
//! A mount that does not answer must not keep this from going on, or from ending: whoever reads a file
//! of it may then be neither interrupted nor killed. So each mount is read by a process of its own,
//! which is waited for no longer than [`ANSWER_MAX`], and left behind if it has to be.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use serde_json::{Value, json};

use crate::inside::serve::Address;
use crate::top::mounts::{self, Found};
use crate::top::{Rates, Row, table};

mod terminal;

use terminal::Raw;

/// The longest that a mount is waited for.
const ANSWER_MAX: Duration = Duration::from_millis(1500);

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);

/// The numbers of a mount have some ten thousand bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Watch what the mounts of this machine do; ends on q or Ctrl-C
///
/// Rates are of the last second, or, at first and with --once, since a mount began. `flight` is what
/// was on its way before it was read, `p99` the time within which 99 of 100 reads were answered.
#[derive(Debug, Parser)]
#[command(name = "top", bin_name = "circular-mount top", version)]
pub struct TopArgs {
    /// Mount points to watch; or, for mounts on a file, where they serve metrics (unix:PATH,
    /// ADDRESS:PORT) [default: all mounts of this machine]
    #[arg(value_name = "MOUNTPOINT")]
    mounts: Vec<String>,
    /// Look once, and end; exit code 1 when a mount does not say how it is
    #[arg(long)]
    once: bool,
    /// Say it in JSON, a line for each look
    #[arg(long)]
    json: bool,
    /// Read one mount, for the process that watches
    #[arg(long, hide = true, value_name = "MOUNTPOINT")]
    read: Option<String>,
}

/// Parses, runs, and says what went wrong.
pub fn main(words: &[OsString]) -> ExitCode {
    let args = match TopArgs::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to be done when even this cannot be written.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if let Some(target) = &args.read {
        let said = read(target).unwrap_or_else(|trouble| json!({ "trouble": trouble }));
        let written = io::stdout().write_all(said.to_string().as_bytes());
        return ExitCode::from(u8::from(written.is_err()));
    }
    watch(&args).unwrap_or_else(|error| {
        let line = format!("circular-mount: {error:#}\n");
        let _ = io::stderr().write_all(line.as_bytes());
        ExitCode::FAILURE
    })
}

/// What can happen while something is waited for.
#[derive(Debug)]
enum Event {
    /// A mount has answered, or cannot.
    Answer(String, Option<Value>),
    /// Somebody wants this to end.
    End,
}

/// A mount that is watched.
#[derive(Debug, Default)]
struct Watched {
    /// The process that reads it.
    reader: Option<Child>,
    before: Option<Value>,
    /// What it said at the last look.
    said: Option<Value>,
}

impl Drop for Watched {
    /// Whoever reads a mount that does not answer ends as soon as he can, and is not waited for.
    fn drop(&mut self) {
        if let Some(reader) = &mut self.reader {
            let _ = reader.kill();
        }
    }
}

fn watch(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let (sender, events) = mpsc::channel();
    let is_live = !args.once && !args.json && io::stdout().is_terminal();
    terminal::end_on_signals(sender.clone(), || Event::End).context("cannot catch signals")?;
    let _raw = if is_live && io::stdin().is_terminal() {
        terminal::end_on_keys(sender.clone(), || Event::End);
        Raw::take()
    } else {
        None
    };
    let mut all: HashMap<String, Watched> = HashMap::new();
    loop {
        let began = Instant::now();
        let targets = targets(&args.mounts)?;
        if !look(&targets, &mut all, &sender, &events)? {
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = targets.iter().map(|target| row(target, &mut all)).collect();
        // A reader that went away has seen enough.
        if show(&rows, args.json, is_live).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        if args.once {
            let trouble = rows.iter().any(|row| row.trouble.is_some());
            return Ok(ExitCode::from(u8::from(trouble)));
        }
        if is_ended(&events, began + REFRESH, &mut all) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What to watch: what was named, or all there is.
fn targets(named: &[String]) -> anyhow::Result<Vec<Found>> {
    if named.is_empty() {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo");
        return Ok(mounts::find(
            &mountinfo.context("cannot learn what is mounted")?,
        ));
    }
    let found = named.iter().map(|name| Found {
        mountpoint: name.clone(),
        source: String::new(),
    });
    Ok(found.collect())
}

/// Asks all mounts at once, and waits until all have answered or the time is over. `false`: somebody
/// wants this to end.
fn look(
    targets: &[Found],
    all: &mut HashMap<String, Watched>,
    sender: &Sender<Event>,
    events: &Receiver<Event>,
) -> anyhow::Result<bool> {
    all.retain(|name, _| targets.iter().any(|target| target.mountpoint == *name));
    for target in targets {
        let watched = all.entry(target.mountpoint.clone()).or_default();
        watched.said = None;
        if watched.reader.is_none() {
            watched.reader = Some(ask(&target.mountpoint, sender)?);
        }
    }
    let until = Instant::now() + ANSWER_MAX;
    while all.values().any(|watched| watched.said.is_none()) {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Answer(name, said)) => answered(all, &name, said),
            Ok(Event::End) => return Ok(false),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(true)
}

fn answered(all: &mut HashMap<String, Watched>, name: &str, said: Option<Value>) {
    if let Some(watched) = all.get_mut(name) {
        // It has said all, and ends at once.
        if let Some(mut reader) = watched.reader.take() {
            let _ = reader.wait();
        }
        let nothing = || json!({ "trouble": "it cannot be read" });
        watched.said = Some(said.unwrap_or_else(nothing));
    }
}

/// Starts a process that reads a mount.
fn ask(target: &str, sender: &Sender<Event>) -> anyhow::Result<Child> {
    let mut reader = Command::new("/proc/self/exe")
        .args(["top", "--read", target])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a process that reads a mount")?;
    let (sender, target, out) = (sender.clone(), target.to_owned(), reader.stdout.take());
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let out = out.map(|out| out.take(ANSWER_BYTES_MAX).read_to_end(&mut text));
        let said = out.and_then(Result::ok);
        let said = said.and_then(|_| serde_json::from_slice(&text).ok());
        // Nobody listens any more only when this ends.
        let _ = sender.send(Event::Answer(target, said));
    });
    Ok(reader)
}

fn row(target: &Found, all: &mut HashMap<String, Watched>) -> Row {
    let mut row = Row {
        mountpoint: target.mountpoint.clone(),
        image: target.source.clone(),
        trouble: None,
        rates: None,
    };
    let Some(watched) = all.get_mut(&target.mountpoint) else {
        return row;
    };
    let Some(mut said) = watched.said.take() else {
        row.trouble = Some("it does not answer".to_owned());
        return row;
    };
    let text = |said: &Value, key| said.get(key).and_then(Value::as_str).map(str::to_owned);
    row.trouble = text(&said, "trouble");
    row.image = text(&said, "image").unwrap_or(row.image);
    if let Some(stats) = said.get_mut("stats").map(Value::take) {
        row.rates = Some(Rates::between(watched.before.as_ref(), &stats));
        watched.before = Some(stats);
    }
    row
}

fn show(rows: &[Row], json: bool, is_live: bool) -> anyhow::Result<()> {
    let mut text = if json {
        serde_json::to_string(rows)? + "\n"
    } else {
        table(rows).join("\n") + "\n"
    };
    if is_live {
        text = terminal::screen(&text);
    }
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Waits for the next look; `true`: somebody wants this to end.
fn is_ended(events: &Receiver<Event>, until: Instant, all: &mut HashMap<String, Watched>) -> bool {
    loop {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            // It came late: at the next look it is asked again.
            Ok(Event::Answer(name, said)) => answered(all, &name, said),
            Ok(Event::End) => return true,
            Err(_) => return false,
        }
    }
}

/// Reads one mount, however long that takes.
fn read(target: &str) -> Result<Value, String> {
    let address = target.parse().ok();
    let address = address.filter(|_| target.contains(':') && !Path::new(target).exists());
    if let Some(address) = address {
        let asked = ask_address(&address).map_err(|error| format!("{address}: {error}"))?;
        return Ok(json!({ "stats": parse(&asked)? }));
    }
    let about = Path::new(target).join(".circular");
    let file = |name: &str| {
        let file = std::fs::File::open(about.join(name));
        let mut text = Vec::new();
        file.and_then(|file| file.take(ANSWER_BYTES_MAX).read_to_end(&mut text))
            .map(|_| text)
            .map_err(|error| trouble(&error))
    };
    let stats = parse(&file("stats.json")?)?;
    let image = parse(&file("image.json")?)?;
    let image = image.get("reference").cloned().unwrap_or_default();
    Ok(json!({ "stats": stats, "image": image }))
}

fn parse(text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|error| format!("what it says is not JSON: {error}"))
}

/// Why a mount cannot be read.
fn trouble(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotADirectory => {
            "a mount on a file: start it with --metrics unix:PATH, and give unix:PATH here"
                .to_owned()
        }
        io::ErrorKind::NotConnected => "its process is gone; free it with umount".to_owned(),
        io::ErrorKind::NotFound => "no image is mounted there".to_owned(),
        _ => error.to_string(),
    }
}

fn ask_address(address: &Address) -> io::Result<Vec<u8>> {
    match address {
        Address::Tcp(address) => get(TcpStream::connect(address)?),
        Address::Unix(path) => get(UnixStream::connect(path)?),
    }
}

/// Asks whoever serves metrics for the numbers.
fn get(mut stream: impl Read + Write) -> io::Result<Vec<u8>> {
    stream.write_all(b"GET /stats.json HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let end = b"\r\n\r\n";
    let head = answer.windows(end.len()).position(|at| at == end);
    match head {
        Some(head) if answer.starts_with(b"HTTP/1.1 200 ") => {
            Ok(answer.split_off(head + end.len()))
        }
        _ => Err(io::Error::other("nobody serves metrics there")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_of_top_is_sound() {
        TopArgs::command().debug_assert();
        let args = TopArgs::try_parse_from(["top", "/mnt", "--once", "--json"]).unwrap();
        assert!(args.once && args.json && args.mounts == ["/mnt"]);
    }
}
