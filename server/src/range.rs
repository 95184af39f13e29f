//! What a `Range` header asks of a representation of known length (RFC 9110, section 14).
//!
//! Pure: a header value and a length in, a [`Selection`] out. What is not a valid set of
//! byte ranges is ignored, as the RFC asks, and so is a set that only makes work: more than
//! [`RANGES_MAX`] ranges, or ranges that together are longer than the whole.

/// Most ranges answered in one response; a longer list gets the whole representation.
///
/// A client of ours asks for one. 16 keeps the headers of the parts under 4 KiB.
pub(crate) const RANGES_MAX: usize = 16;

/// A part of a representation: never empty, never beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// Returns the range `start..end`, or nothing where it would be empty.
    pub(crate) fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// Returns the offset of the first byte.
    pub(crate) fn start(self) -> u64 {
        self.start
    }

    /// Returns the offset of the last byte, as `Content-Range` counts.
    pub(crate) fn last(self) -> u64 {
        self.end - 1
    }

    /// Returns the number of bytes; at least one.
    pub(crate) fn length(self) -> u64 {
        self.end - self.start
    }

    /// Cuts off the first `at` bytes; the second part is what is left, if anything.
    pub(crate) fn split(self, at: u64) -> (Self, Option<Self>) {
        let middle = self.end.min(self.start.saturating_add(at.max(1)));
        let first = Self {
            start: self.start,
            end: middle,
        };
        (first, Self::new(middle, self.end))
    }
}

/// The part of a representation that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// All of it: no range was asked for, or none that makes sense.
    Whole,
    /// One part.
    One(ByteRange),
    /// Two to [`RANGES_MAX`] parts, in the order asked for.
    Many(Vec<ByteRange>),
    /// A valid request of which no byte exists.
    Unsatisfiable,
}

/// Selects what the value of a `Range` header asks of `length` bytes.
pub(crate) fn select(header: &str, length: u64) -> Selection {
    let Some(specs) = parse(header) else {
        return Selection::Whole;
    };
    if specs.len() > RANGES_MAX {
        return Selection::Whole;
    }
    if length == 0 && specs.iter().any(|spec| matches!(spec, Spec::Last(1..))) {
        return Selection::Whole; // satisfiable, yet no Content-Range can say "nothing"
    }
    let ranges: Vec<_> = specs
        .iter()
        .filter_map(|spec| spec.within(length))
        .collect();
    let asked = ranges
        .iter()
        .try_fold(0_u64, |sum, range| sum.checked_add(range.length()));
    match ranges.as_slice() {
        [] => Selection::Unsatisfiable,
        [one] => Selection::One(*one),
        _ if asked.is_none_or(|asked| asked > length) => Selection::Whole,
        _ => Selection::Many(ranges),
    }
}

/// Whether this is the literal `bytes=u-u` that some iPXE builds send for want of a
/// number format; it is ignored like any invalid range, but worth a hint in the log.
pub(crate) fn is_from_broken_ipxe(header: &str) -> bool {
    header == "bytes=u-u"
}

/// One element of a range set.
#[derive(Clone, Copy, Debug)]
enum Spec {
    /// `first-` or `first-last`.
    From { first: u64, last: Option<u64> },
    /// `-count`.
    Last(u64),
}

impl Spec {
    fn within(self, length: u64) -> Option<ByteRange> {
        match self {
            Self::From { first, last } => {
                let end = last.map_or(length, |last| last.saturating_add(1).min(length));
                ByteRange::new(first, end)
            }
            Self::Last(count) => ByteRange::new(length.saturating_sub(count), length),
        }
    }
}

/// Returns nothing unless every element is well formed.
fn parse(header: &str) -> Option<Vec<Spec>> {
    let (unit, set) = header.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let specs = set
        .split(',')
        .map(|element| element.trim_matches([' ', '\t']))
        .filter(|element| !element.is_empty()) // RFC 9110, 5.6.1.2
        .map(parse_spec)
        .collect::<Option<Vec<_>>>()?;
    (!specs.is_empty()).then_some(specs)
}

fn parse_spec(element: &str) -> Option<Spec> {
    match element.split_once('-')? {
        ("", count) => Some(Spec::Last(parse_position(count)?)),
        (first, "") => Some(Spec::From {
            first: parse_position(first)?,
            last: None,
        }),
        (first, last) => {
            let (first, last) = (parse_position(first)?, parse_position(last)?);
            (first <= last).then_some(Spec::From {
                first,
                last: Some(last),
            })
        }
    }
}

/// Digits only. A number beyond any length is as good as the largest one.
fn parse_position(digits: &str) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, Selection, is_from_broken_ipxe, select};
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    fn one(start: u64, end: u64) -> Selection {
        Selection::One(ByteRange { start, end })
    }

    fn many(ranges: &[(u64, u64)]) -> Selection {
        let ranges = ranges.iter().map(|&(start, end)| ByteRange { start, end });
        Selection::Many(ranges.collect())
    }

    #[test]
    fn each_header_selects_what_the_rfc_says() {
        use Selection::{Unsatisfiable, Whole};
        #[rustfmt::skip]
        let table = [
            ("bytes=0-0",                      10, one(0, 1)),
            ("bytes=0-9",                      10, one(0, 10)),
            ("bytes=2-4",                      10, one(2, 5)),
            ("bytes=2-",                       10, one(2, 10)),
            ("bytes=2-99",                     10, one(2, 10)),
            ("bytes=-3",                       10, one(7, 10)),
            ("bytes=-99",                      10, one(0, 10)),
            ("Bytes=0-1",                      10, one(0, 2)),
            ("bytes= 0-1 ",                    10, one(0, 2)),
            ("bytes=0-1,",                     10, one(0, 2)),
            ("bytes=9-99999999999999999999",   10, one(9, 10)),
            ("bytes=0-1,4-5",                  10, many(&[(0, 2), (4, 6)])),
            ("bytes=4-5 ,\t0-1",               10, many(&[(4, 6), (0, 2)])),
            ("bytes=0-1,-2",                   10, many(&[(0, 2), (8, 10)])),
            ("bytes=0-1,50-60",                10, one(0, 2)),
            ("bytes=0-8,1-9",                  10, Whole),
            ("bytes=9-,0-8",             u64::MAX, many(&[(9, u64::MAX), (0, 9)])),
            ("bytes=9-,0-9",             u64::MAX, Whole),
            ("bytes=10-",                      10, Unsatisfiable),
            ("bytes=10-20,30-",                10, Unsatisfiable),
            ("bytes=99999999999999999999-",    10, Unsatisfiable),
            ("bytes=-0",                       10, Unsatisfiable),
            ("bytes=0-",                        0, Unsatisfiable),
            ("bytes=-1",                        0, Whole),
            ("bytes=",                         10, Whole),
            ("bytes=,",                        10, Whole),
            ("bytes",                          10, Whole),
            ("",                               10, Whole),
            ("bytes=-",                        10, Whole),
            ("bytes=4-2",                      10, Whole),
            ("bytes=u-u",                      10, Whole),
            ("bytes=+1-2",                     10, Whole),
            ("bytes=1 -2",                     10, Whole),
            ("bytes=1--2",                     10, Whole),
            ("bytes=0-1;4-5",                  10, Whole),
            ("bytes=0-1,x",                    10, Whole),
            ("blocks=0-1",                     10, Whole),
            ("bytes =0-1",                     10, Whole),
        ];
        for (header, length, expected) in table {
            assert_eq!(select(header, length), expected, "{header:?} of {length}");
        }
    }

    #[test]
    fn sixteen_ranges_are_answered_and_seventeen_are_ignored() {
        let ask = |count: u64| {
            let specs: Vec<_> = (0..count)
                .map(|n| format!("{}-{}", n * 10, n * 10))
                .collect();
            select(&format!("bytes={}", specs.join(",")), 1000)
        };
        assert!(matches!(ask(16), Selection::Many(ranges) if ranges.len() == 16));
        assert_eq!(ask(17), Selection::Whole);
    }

    #[test]
    fn only_the_literal_of_broken_ipxe_is_hinted_at() {
        assert!(is_from_broken_ipxe("bytes=u-u"));
        assert!(!is_from_broken_ipxe("bytes=0-511"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// A range selects what slicing the flat bytes would.
        #[test]
        fn a_range_equals_a_flat_slice(first in 0..80_u64, last in 0..80_u64, length in 0..64_u64) {
            let flat: Vec<u64> = (0..length).collect();
            let slice: Vec<u64> = flat.iter().copied().filter(|at| (first..=last).contains(at)).collect();
            let got = select(&format!("bytes={first}-{last}"), length);
            let expected = match (first <= last, slice.first(), slice.last()) {
                (false, ..) => Selection::Whole,
                (true, Some(from), Some(to)) => one(*from, to + 1),
                _ => Selection::Unsatisfiable,
            };
            prop_assert_eq!(got, expected);
        }

        /// Whatever is asked, what is selected exists and is no more than the whole.
        #[test]
        fn a_selection_stays_within_the_whole(header in "bytes=[0-9, -]{0,60}", length in 0..200_u64) {
            let ranges = match select(&header, length) {
                Selection::One(range) => vec![range],
                Selection::Many(ranges) => ranges,
                Selection::Whole | Selection::Unsatisfiable => vec![],
            };
            prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length));
            prop_assert!(ranges.iter().map(|range| range.length()).sum::<u64>() <= length);
        }

        /// Splitting loses no byte and never yields an empty part.
        #[test]
        fn a_split_range_is_the_same_range(start in 0..100_u64, length in 1..100_u64, at in 0..120_u64) {
            let range = ByteRange { start, end: start + length };
            let (first, rest) = range.split(at);
            prop_assert_eq!(first.start, start);
            prop_assert!(first.length() >= 1 && first.length() <= at.max(1));
            prop_assert_eq!(rest.map_or(first.end, |rest| rest.end), range.end);
            prop_assert!(rest.is_none_or(|rest| rest.start == first.end));
        }
    }
}
