//! The serial console of a machine: waits for words, sends lines, runs commands.
//!
//! Escape sequences are taken out before anything is looked for: systemd colours its words.
//! What was found is used up, so the next wait looks behind it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What the kernel says when nothing more will come.
const FATAL: &str = "end Kernel panic";

/// Lines of the console that a failure shows.
const LINES_SHOWN: usize = 60;

/// A console that somebody else writes to.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    screen: Arc<Screen>,
    cursor: usize,
}

/// What a command printed, and its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output and error, without the last line end.
    pub text: String,
    /// 0 if all went well.
    pub status: i32,
}

impl Console {
    /// Listens to `stream` from now on, and copies all of it to `mirror`.
    ///
    /// # Errors
    /// The stream cannot be shared with a thread.
    pub fn new(stream: UnixStream, mirror: Option<File>) -> Result<Self> {
        let screen = Arc::new(Screen::default());
        let (reader, writer) = (stream.try_clone()?, Arc::clone(&screen));
        thread::spawn(move || writer.follow(reader, mirror));
        Ok(Self {
            stream,
            screen,
            cursor: 0,
        })
    }

    /// Waits until `pattern` is on the console and returns what stood before it.
    ///
    /// # Errors
    /// The machine ended, panicked or took longer than `deadline`; the message has the last lines.
    pub fn wait_for(&mut self, pattern: &str, deadline: Duration) -> Result<String> {
        let until = Instant::now() + deadline;
        let mut state = self.screen.lock();
        loop {
            let news = state.text.get(self.cursor..).unwrap_or_default();
            if let Some(start) = news.find(pattern) {
                let before = news.get(..start).unwrap_or_default().to_owned();
                self.cursor += start + pattern.len();
                return Ok(before);
            }
            let now = Instant::now();
            let problem = if news.contains(FATAL) {
                Some("the kernel panicked".to_owned())
            } else if state.ended {
                Some("the machine ended".to_owned())
            } else if now >= until {
                Some(format!("{deadline:?} passed"))
            } else {
                None
            };
            if let Some(problem) = problem {
                bail!(
                    "{problem} before the console showed {pattern:?}:\n{}",
                    tail(&state.text)
                );
            }
            state = self
                .screen
                .changed
                .wait_timeout(state, until - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Types `line` and Enter.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.stream
            .write_all(format!("{line}\r").as_bytes())
            .with_context(|| format!("cannot type {line:?}"))
    }

    /// Runs `command` in the shell that waits on the console.
    ///
    /// # Errors
    /// It takes longer than `deadline`, or the machine ends.
    pub fn run(&mut self, command: &str, deadline: Duration) -> Result<Outcome> {
        // Typed in two halves, so that the echo of the line is not taken for its output.
        self.send(&format!(
            "echo CIRCULAR-'BEGIN'; {command}; echo CIRCULAR-'END' $?."
        ))?;
        self.wait_for("CIRCULAR-BEGIN\r\n", deadline)?;
        let text = self.wait_for("CIRCULAR-END ", deadline)?;
        let status = self.wait_for(".", deadline)?;
        Ok(Outcome {
            text: text.replace('\r', "").trim_end_matches('\n').to_owned(),
            status: status
                .parse()
                .with_context(|| format!("{status:?} is no exit status"))?,
        })
    }

    /// Returns everything that was on the console.
    pub fn text(&self) -> String {
        self.screen.lock().text.clone()
    }

    /// Returns a second hand on the keyboard.
    ///
    /// # Errors
    /// The stream cannot be shared.
    pub fn keyboard(&self) -> Result<UnixStream> {
        self.stream.try_clone().context("cannot share the console")
    }
}

/// What was written, shared with the thread that listens.
#[derive(Debug, Default)]
struct Screen {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    text: String,
    escape: Escape,
    ended: bool,
}

/// Where in an escape sequence the last byte was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    Outside,
    Started,
    Parameters,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, mut stream: UnixStream, mut mirror: Option<File>) {
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer).unwrap_or(0);
            let news = buffer.get(..length).unwrap_or_default();
            if let Some(mirror) = &mut mirror {
                // Whoever closed the mirror does not want to see more.
                let _ = mirror.write_all(news);
            }
            let mut state = self.lock();
            state.write(news);
            state.ended = length == 0;
            drop(state);
            self.changed.notify_all();
            if length == 0 {
                return;
            }
        }
    }
}

impl State {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                (_, 0x1b) => Escape::Started,
                (Escape::Started, b'[') => Escape::Parameters,
                (Escape::Parameters, b'0'..=b'9' | b';' | b'?') => Escape::Parameters,
                (Escape::Outside, byte) => {
                    // A letter beyond ASCII is of no interest to any test.
                    self.text.push(if byte.is_ascii() {
                        char::from(byte)
                    } else {
                        '?'
                    });
                    Escape::Outside
                }
                _ => Escape::Outside,
            };
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(LINES_SHOWN)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::{Console, Duration, UnixStream, Write};

    const DEADLINE: Duration = Duration::from_secs(10);

    fn console() -> (Console, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Console::new(ours, None).unwrap(), theirs)
    }

    #[test]
    fn colours_do_not_hide_a_word() {
        let (mut console, mut machine) = console();
        machine
            .write_all(b"Reached \x1b[0;1;39mgraphical.target\x1b[0m\r\n")
            .unwrap();
        assert_eq!(
            console.wait_for("graphical.target", DEADLINE).unwrap(),
            "Reached "
        );
    }

    #[test]
    fn a_wait_starts_behind_the_last_one() {
        let (mut console, mut machine) = console();
        machine.write_all(b"one two one three").unwrap();
        console.wait_for("one", DEADLINE).unwrap();
        assert_eq!(console.wait_for("one", DEADLINE).unwrap(), " two ");
    }

    #[test]
    fn the_echo_of_a_command_is_not_its_output() {
        let (mut console, mut machine) = console();
        machine
            .write_all(b"# echo CIRCULAR-'BEGIN'; ls; echo CIRCULAR-'END' $?.\r\n")
            .unwrap();
        machine
            .write_all(b"CIRCULAR-BEGIN\r\na\r\nb\r\nCIRCULAR-END 3.\r\n")
            .unwrap();
        let outcome = console.run("ls", DEADLINE).unwrap();
        assert_eq!((outcome.text.as_str(), outcome.status), ("a\nb", 3));
    }

    #[test]
    fn the_end_of_the_machine_ends_the_wait() {
        let (mut console, machine) = console();
        drop(machine);
        let error = console.wait_for("login", DEADLINE).unwrap_err();
        assert!(error.to_string().contains("the machine ended"), "{error}");
    }
}
