//! Reads how long a server wants to be left alone (`Retry-After`, RFC 9110, 10.2.3).

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// Reads a number of seconds, or a date. A date is held against that of the answer, so that no clock of
/// ours has to be right; else against `now`. `None`: it says nothing that makes sense.
pub(super) fn parse(value: &str, date: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        return value.parse().ok().map(Duration::from_secs);
    }
    let parser = DateTimeParser::new();
    let read = |text: &str| parser.parse_timestamp(text.trim()).ok();
    let from = date.and_then(read).unwrap_or(now);
    let wait = read(value)?.duration_since(from);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn seconds_and_dates_are_read() {
        let read = |value, date| parse(value, date, NOW).map(|wait| wait.as_secs());
        assert_eq!(read("120", None), Some(120));
        assert_eq!(read(" 0 ", None), Some(0));
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(read("Sun, 06 Nov 1994 08:49:57 GMT", date), Some(20));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT", date), Some(0));
        assert_eq!(read("Thu, 01 Jan 1970 00:01:00 GMT", None), Some(60));
        assert_eq!(read("Thu, 01 Jan 1970 00:01:00 GMT", Some("?")), Some(60));
        for wrong in ["", "soon", "-1", "1.5", "99999999999999999999999", "6 Nov"] {
            assert_eq!(read(wrong, date), None, "{wrong}");
        }
    }

    proptest! {
        /// Whatever a server sends, it is read or left aside.
        #[test]
        fn nothing_panics(value in ".{0,40}", date in ".{0,40}") {
            let _ = parse(&value, Some(&date), NOW);
        }
    }
}
