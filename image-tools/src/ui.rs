//! The only printer: results to standard output, all else to standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How results and progress are shown.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    json: bool,
    quiet: bool,
}

impl Ui {
    /// Shows results as JSON or as text, with or without progress.
    pub const fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Shows a result: `value` as JSON, or what `text` writes.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, value)?;
            writeln!(out)?;
        } else if !self.quiet {
            out.write_all(text(value).as_bytes())?;
        }
        out.flush()
    }

    /// Says something that is not a result.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Says what may go wrong later.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "warning: {text}");
    }

    /// Says why the program failed, with the chain of causes.
    pub fn error(&self, error: &anyhow::Error) {
        let _ = writeln!(io::stderr().lock(), "error: {error:#}");
        if self.json {
            let value = serde_json::json!({ "error": format!("{error:#}") });
            let _ = writeln!(io::stdout().lock(), "{value}");
        }
    }

    /// Tells whether somebody wants to see how work goes on.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }

    /// Returns what turns while work goes on of which nobody knows how much it is; it shows only on a
    /// terminal.
    pub fn spinner(&self, what: &'static str) -> ProgressBar {
        let spinner = ProgressBar::with_draw_target(None, self.target());
        spinner.set_message(what);
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    fn target(&self) -> ProgressDrawTarget {
        match self.shows_progress() {
            false => ProgressDrawTarget::hidden(),
            true => ProgressDrawTarget::stderr_with_hz(10),
        }
    }

    /// Returns a bar for `bytes` of work; it shows only on a terminal.
    pub fn progress(&self, what: &'static str, bytes: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(bytes), self.target());
        let style = "{msg:9} {bar:32} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(what);
        bar
    }
}

/// Writes a number of bytes for people: `482.1 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return format!("{bytes} B");
    }
    // 1,024ths of the unit: exact enough for one decimal, and no overflow.
    let parts = u128::from(bytes >> (10 * (unit - 1)));
    let tenths = parts * 10 / 1024;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Writes `part` of `whole` for people: `37 %`.
pub fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "0 %".to_owned(),
        _ => format!("{} %", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// Writes a time span for people: `3.4 s`.
pub fn seconds(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 * 1024 * 1024, "10.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (2 << 30, "2.0 GiB"),
            (505_413_632, "482.0 MiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        assert_eq!(percent(1, 3), "33 %");
        assert_eq!(percent(1, 0), "0 %");
    }
}
