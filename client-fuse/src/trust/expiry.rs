//! Decides whether metadata is out of date; time is an argument.

use jiff::Timestamp;

/// A clock that shows less was never set: this program is not as old as that.
pub const CLOCK_FLOOR: Timestamp = Timestamp::constant(image_format::minimum::CLOCK_FLOOR, 0);

/// What the clock says of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is valid.
    Valid,
    /// It is not, because of this part.
    Expired {
        /// Which one.
        role: &'static str,
        /// Its last moment.
        on: Timestamp,
    },
    /// Nobody knows: the clock is not set.
    NoClock,
}

/// Judges parts by their last moment; names the one that expired first.
#[must_use]
pub fn judge(now: Timestamp, expirations: &[(&'static str, Timestamp)]) -> Verdict {
    if now < CLOCK_FLOOR {
        return Verdict::NoClock;
    }
    let first = expirations.iter().min_by_key(|(_, on)| *on);
    match first {
        Some((role, on)) if *on < now => Verdict::Expired { role, on: *on },
        _ => Verdict::Valid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_part_that_expired_is_named() {
        let parts = [
            ("root", at("2030-01-01T00:00:00Z")),
            ("timestamp", at("2027-01-01T00:00:00Z")),
            ("targets", at("2027-02-01T00:00:00Z")),
        ];
        assert_eq!(judge(at("2027-01-01T00:00:00Z"), &parts), Verdict::Valid);
        for now in ["2027-01-01T00:00:01Z", "2040-01-01T00:00:00Z"] {
            let (role, on) = parts[1];
            assert_eq!(judge(at(now), &parts), Verdict::Expired { role, on });
        }
    }

    #[test]
    fn a_clock_that_was_never_set_proves_nothing() {
        let parts = [("timestamp", at("1999-01-01T00:00:00Z"))];
        for now in ["1970-01-01T00:00:09Z", "2026-10-31T23:59:59Z"] {
            assert_eq!(judge(at(now), &parts), Verdict::NoClock);
        }
        assert_eq!(CLOCK_FLOOR, at("2026-11-01T00:00:00Z"));
    }
}
