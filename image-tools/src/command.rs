//! One module for each subcommand: arguments, `run`, and how its result reads.

use std::io;

pub mod boot;
pub mod explain;
pub mod export;
pub mod gc;
pub mod init;
pub mod inspect;
pub mod key;
pub mod list;
pub mod manual;
pub mod profile;
pub mod publish;
pub mod refresh;
pub mod remove;
pub mod rollback;
pub mod root;
pub mod tag;
pub mod verify;

/// Tells whether a program that we write to has gone: no error of ours. Only results are written so that nothing is said
/// around the error; a connection that was cut while something was sent is the cause of another error.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let outermost = error.chain().next();
    outermost
        .and_then(|error| error.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes seconds since 1970 as a UTC date and time (days from civil: Howard Hinnant's algorithm).
pub(crate) fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_breaks_under_something_is_an_error() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&broken().into()));
        assert!(!is_broken_pipe(
            &anyhow::Error::from(broken()).context("cannot send")
        ));
        assert!(!is_broken_pipe(&io::Error::other("full").into()));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_366_800), "2026-11-22 17:00 UTC");
    }
}
