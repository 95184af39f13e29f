//! Sends a trace to a server, once, when the machine that is recorded has come up.
//!
//! That is when nothing was touched for the first time for a while. Whatever goes wrong is a line in
//! the log: the trace stays where it was recorded, and nobody who reads from the disk waits for it.

use std::fs::File;
use std::io;
use std::time::Duration;

use tokio::time::sleep;
use url::Url;

use super::{Recorder, TraceFile, Watch};
use crate::fetch::http::HttpSource;

/// The longest recording: what a machine reads later is no part of its boot.
const RECORDING_MAX: Duration = Duration::from_secs(600);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often sending is tried; the pauses between, which double, begin with a second.
const TRIES: u32 = 6;

/// Where a trace goes.
#[derive(Debug)]
pub struct Sender {
    source: HttpSource,
    to: Url,
    quiet: Duration,
    file: File,
}

impl Sender {
    /// Sends what is written to `file`, by the client of `source`, to the address `to`, when nothing
    /// was touched for the first time for as long as `quiet`.
    ///
    /// # Errors
    ///
    /// The file cannot be shared.
    pub fn new(file: &TraceFile, source: HttpSource, to: Url, quiet: Duration) -> io::Result<Self> {
        let file = file.share()?;
        Ok(Self {
            source,
            to,
            quiet,
            file,
        })
    }

    /// What is to be done for `recorder`, which writes to the file.
    #[must_use]
    pub fn of(self, recorder: &Recorder) -> Sending {
        let Self {
            source,
            to,
            quiet,
            file,
        } = self;
        Sending {
            source,
            to,
            quiet,
            watch: recorder.watch(file),
        }
    }
}

/// A trace that will be sent.
#[derive(Debug)]
pub struct Sending {
    source: HttpSource,
    to: Url,
    quiet: Duration,
    watch: Watch,
}

impl Sending {
    /// Waits, ends the recording, and sends it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the trace where it is.
    pub async fn run(self) {
        while !is_due(self.watch.touched(), self.quiet) {
            sleep(LOOK_EVERY).await;
        }
        self.watch.end();
        while !self.watch.is_written() {
            sleep(LOOK_EVERY).await;
        }
        let trace = match self.watch.contents() {
            Ok(trace) => trace,
            Err(error) => {
                tracing::warn!(%error, "cannot read the trace; it is not sent");
                return;
            }
        };
        let mut pause = Duration::from_secs(1);
        for left in (0..TRIES).rev() {
            match self.source.post(&self.to, trace.clone()).await {
                Ok(()) => {
                    tracing::info!(to = %self.to, bytes = trace.len(), "the trace of this boot is sent");
                    return;
                }
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::warn!(error = cause, left, "cannot send the trace of this boot");
                }
            }
            if left > 0 {
                sleep(pause).await;
                pause *= 2;
            }
        }
    }
}

/// Whether a recording is over whose first chunk was touched so long ago, and whose last one.
fn is_due(touched: Option<(Duration, Duration)>, quiet: Duration) -> bool {
    touched.is_some_and(|(first, last)| last >= quiet || first >= RECORDING_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_over_when_nothing_new_is_touched_or_it_never_ends() {
        let seconds = Duration::from_secs;
        let due = |touched: Option<(u64, u64)>| {
            let touched = touched.map(|(first, last)| (seconds(first), seconds(last)));
            is_due(touched, seconds(20))
        };
        assert!(!due(None));
        assert!(!due(Some((300, 19))));
        assert!(due(Some((21, 20))));
        assert!(due(Some((600, 0))));
    }
}
