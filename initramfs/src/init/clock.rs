//! Sets a clock that was never set, so that the dates of certificates can be judged.
//!
//! A machine without a battery begins in 1970, or when its firmware was made: no certificate is valid yet. The initrd with
//! the least versions says when the publisher wrote it; that is late enough for the certificates in use
//! then, and comes by the same way as the kernel. A clock that shows any later time is left as it is, or one that is
//! less than a day behind: clocks of publishers are not all right either.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use image_format::minimum::{CLOCK_FLOOR, Minimum};

use super::{log::Log, sys};
use crate::layout;

/// Sets the clock if it was never set. A machine whose clock cannot be set goes on.
pub(super) fn set_if_unset(log: &Log) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let minimum = fs::read(layout::MINIMUM).ok();
    let minimum = minimum.and_then(|bytes| Minimum::decode(&bytes).ok());
    let Some(time) = time_to_set(now, minimum.and_then(|minimum| minimum.written)) else {
        return;
    };
    match sys::set_clock(time) {
        Ok(()) => log.warn(&format!(
            "the clock is wrong: set to {time} s since 1970, about when the store was last changed"
        )),
        Err(error) => log.warn(&format!("the clock is wrong, and cannot be set: {error}")),
    }
}

/// What a clock may be behind that of a publisher, in seconds.
const SLACK: i64 = 86_400;

/// Decides what an unset clock is set to, in seconds since 1970: when the initrd was `written`, or the
/// oldest that this program can be. `None` for a clock that may be right.
fn time_to_set(now: i64, written: Option<i64>) -> Option<i64> {
    let least = written.unwrap_or(CLOCK_FLOOR).max(CLOCK_FLOOR);
    let is_unset = now < CLOCK_FLOOR || now < least.saturating_sub(SLACK);
    is_unset.then_some(least)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_clock_at_1970_is_set_to_when_the_initrd_was_written() {
        let written = CLOCK_FLOOR + 1000;
        assert_eq!(time_to_set(9, Some(written)), Some(written));
        assert_eq!(time_to_set(9, Some(5)), Some(CLOCK_FLOOR));
        assert_eq!(time_to_set(9, None), Some(CLOCK_FLOOR));
        // The day on which a firmware was made, years before the store was changed last.
        let written = CLOCK_FLOOR + 90_000_000;
        let made = CLOCK_FLOOR + 10_000_000;
        assert_eq!(time_to_set(made, Some(written)), Some(written));
        assert_eq!(time_to_set(written - 600, Some(written)), None);
    }

    proptest! {
        /// A clock that may be right is left alone; one that cannot be goes forward, and is set once.
        #[test]
        fn a_clock_is_set_at_most_once_and_only_forward(
            now in any::<i64>(), written in prop::option::of(any::<i64>()),
        ) {
            match time_to_set(now, written) {
                None => {
                    prop_assert!(now >= CLOCK_FLOOR);
                    prop_assert!(written.is_none_or(|written| now >= written.saturating_sub(SLACK)));
                }
                Some(set) => {
                    prop_assert!(set > now);
                    prop_assert_eq!(time_to_set(set, written), None);
                }
            }
        }
    }
}
