//! A program that runs beside the test: its lines are kept, and it ends with its guard.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often an ending process is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A running program.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    /// Starts `command`, with both output streams kept.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_on(command.stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    /// Starts `command` on the standard input and output that it has, and keeps its errors.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_on(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (sender, lines) = mpsc::channel();
        if let Some(stream) = child.stdout.take() {
            keep(stream, sender.clone());
        }
        if let Some(stream) = child.stderr.take() {
            keep(stream, sender);
        }
        Ok(Self {
            name,
            child,
            lines,
            seen: Vec::new(),
        })
    }

    /// Waits for a line for which `pick` returns something.
    ///
    /// # Errors
    /// The program ended or `deadline` passed without it; the message has all lines.
    pub fn wait_for<T>(
        &mut self,
        deadline: Duration,
        pick: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + deadline;
        loop {
            match self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    let found = pick(&line);
                    self.seen.push(line);
                    if let Some(found) = found {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failure(&format!("did not say it in {deadline:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failure("ended before it said it"));
                }
            }
        }
    }

    /// Returns all that it printed so far.
    pub fn output(&mut self) -> String {
        self.seen.extend(self.lines.try_iter());
        self.seen.join("\n")
    }

    /// Returns the process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.has_ended()? {
            bail!("{} is gone", self.name);
        }
        let id = i32::try_from(self.child.id()).context("process IDs are small")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Returns whether it has ended.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("cannot wait")?.is_some())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait")? {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err(self.failure(&format!("still runs after {deadline:?}")));
            }
            thread::sleep(POLL);
        }
    }

    fn failure(&mut self, what: &str) -> anyhow::Error {
        let output = self.output();
        anyhow!("{} {what}:\n{output}", self.name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either may fail because the process has ended, and then nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends the lines of `stream` until it ends or nobody listens.
fn keep(stream: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
}
