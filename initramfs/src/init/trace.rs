//! What to record of a boot, and where to: the options of the client.
//!
//! The file lies in /run, which becomes the booted system's, so that people find it there. The
//! client opens it at its start and needs no path afterwards, nor the root that it records.

use crate::layout::TRACE;

/// Where the trace of a boot goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// To [`TRACE`] only.
    File,
    /// To [`TRACE`], and to the server of the store, if it takes traces.
    Server,
    /// To [`TRACE`], and to this address.
    Url(String),
    /// To this serial line, as it is noted.
    Line(String),
}

impl Record {
    /// Returns the options of the client of the store at `base_url`.
    pub fn options(&self, base_url: &str) -> Vec<String> {
        let file = match self {
            Self::Line(device) => device,
            Self::File | Self::Server | Self::Url(_) => TRACE,
        };
        let mut options = vec!["--record".to_owned(), file.to_owned()];
        let to = match self {
            Self::File | Self::Line(_) => None,
            Self::Server => Some(format!("{base_url}traces")),
            Self::Url(url) => Some(url.clone()),
        };
        // In one word: whatever was given is no option of its own.
        options.extend(to.map(|to| format!("--record-to={to}")));
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_to_a_file_a_server_or_a_line() {
        let options = |record: Record| record.options("http://h:8080/").join(" ");
        assert_eq!(options(Record::File), "--record /run/circular/trace");
        assert_eq!(
            options(Record::Server),
            "--record /run/circular/trace --record-to=http://h:8080/traces"
        );
        assert_eq!(
            options(Record::Url("https://other/t".to_owned())),
            "--record /run/circular/trace --record-to=https://other/t"
        );
        assert_eq!(
            options(Record::Line("/dev/ttyS1".to_owned())),
            "--record /dev/ttyS1"
        );
    }
}
