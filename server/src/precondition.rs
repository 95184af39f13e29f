//! Conditional requests (RFC 9110, section 13): whether a representation is sent at all.
//!
//! Pure: headers and [`Validators`] in, a [`Verdict`] out. Every entity tag of this server is
//! strong. A date in `If-Range` counts only for what never changes: within one second a file
//! may change twice, and a resumed download must not mix two of its states.

use std::time::SystemTime;

use http::HeaderMap;
use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

/// A strong entity tag, without its quotes: hexadecimal digits, dots and dashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntityTag(String);

impl EntityTag {
    /// Makes a tag of `opaque`; a character that a header must not carry becomes a dash.
    pub(crate) fn new(opaque: &str) -> Self {
        let keep = |c: char| c.is_ascii_alphanumeric() || c == '.';
        Self(
            opaque
                .chars()
                .map(|c| if keep(c) { c } else { '-' })
                .collect(),
        )
    }

    /// Returns the tag without quotes.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the tag as a header carries it.
    pub(crate) fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

/// What tells one state of a representation from another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Validators {
    /// Changes whenever the bytes do; none for generated pages.
    pub(crate) tag: Option<EntityTag>,
    /// When the bytes were last written, if that is known.
    pub(crate) modified: Option<SystemTime>,
    /// Whether the bytes behind this address may ever change.
    pub(crate) immutable: bool,
}

/// What the preconditions of a GET or HEAD come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it.
    Proceed,
    /// The client has it: 304.
    NotModified,
    /// The client asked for another state of it: 412.
    Failed,
}

/// Evaluates the preconditions in the order of RFC 9110, section 13.2.2.
pub(crate) fn evaluate(headers: &HeaderMap, validators: &Validators) -> Verdict {
    if headers.contains_key(IF_MATCH) {
        if !lists(headers, &IF_MATCH, validators, Comparison::Strong) {
            return Verdict::Failed;
        }
    } else if let Some(since) = date(headers, &IF_UNMODIFIED_SINCE)
        && modified_after(validators, since) == Some(true)
    {
        return Verdict::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if lists(headers, &IF_NONE_MATCH, validators, Comparison::Weak) {
            return Verdict::NotModified;
        }
    } else if let Some(since) = date(headers, &IF_MODIFIED_SINCE)
        && modified_after(validators, since) == Some(false)
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether a `Range` header is to be honoured: `If-Range` is absent or names this state.
pub(crate) fn range_applies(headers: &HeaderMap, validators: &Validators) -> bool {
    let Some(value) = headers.get(IF_RANGE) else {
        return true;
    };
    let value = value.to_str().unwrap_or_default().trim();
    if value.starts_with('"') || value.starts_with("W/") {
        let tag = validators.tag.as_ref();
        return tag.is_some_and(|tag| tag.quoted() == value);
    }
    let since = httpdate::parse_http_date(value).ok();
    validators.immutable && since.is_some() && since == validators.modified.map(whole_seconds)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether the header is `*` or lists the tag.
fn lists(
    headers: &HeaderMap,
    name: &HeaderName,
    validators: &Validators,
    comparison: Comparison,
) -> bool {
    let ours = validators.tag.as_ref();
    headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .any(|line| {
            line.trim() == "*"
                || entity_tags(line).any(|(weak, opaque)| {
                    let counts = !weak || comparison == Comparison::Weak;
                    counts && ours.is_some_and(|tag| tag.as_str() == opaque)
                })
        })
}

/// Splits a list of entity tags; stops at the first thing that is none.
fn entity_tags(mut list: &str) -> impl Iterator<Item = (bool, &str)> {
    std::iter::from_fn(move || {
        list = list.trim_start_matches([' ', '\t', ',']);
        let weak = list.starts_with("W/");
        let quoted = if weak { &list[2..] } else { list };
        let (opaque, rest) = quoted.strip_prefix('"')?.split_once('"')?;
        list = rest;
        Some((weak, opaque))
    })
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

fn modified_after(validators: &Validators, since: SystemTime) -> Option<bool> {
    Some(whole_seconds(validators.modified?) > since)
}

/// HTTP dates have no fractions.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since_epoch = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since_epoch.as_secs())
}

#[cfg(test)]
mod tests {
    use super::{EntityTag, Validators, Verdict, evaluate, range_applies};
    use http::HeaderMap;
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use std::time::{Duration, SystemTime};

    const BEFORE: &str = "Sun, 09 Sep 2001 01:46:39 GMT";
    const EXACT: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

    /// Tag "abc", written a little after [`EXACT`].
    fn validators() -> Validators {
        Validators {
            tag: Some(EntityTag::new("abc")),
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_250)),
            immutable: true,
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn each_precondition_comes_to_what_the_rfc_says() {
        use Verdict::{Failed, NotModified, Proceed};
        #[rustfmt::skip]
        let table: [(&[(&str, &str)], Verdict); 25] = [
            (&[],                                                                        Proceed),
            (&[("if-none-match", "\"abc\"")],                                            NotModified),
            (&[("if-none-match", "W/\"abc\"")],                                          NotModified),
            (&[("if-none-match", "\"x\", \"abc\"")],                                     NotModified),
            (&[("if-none-match", "\"x\""), ("if-none-match", "\"abc\"")],                NotModified),
            (&[("if-none-match", "\"a,b\" ,W/\"abc\"")],                                 NotModified),
            (&[("if-none-match", "*")],                                                  NotModified),
            (&[("if-none-match", "\"x\"")],                                              Proceed),
            (&[("if-none-match", "abc")],                                                Proceed),
            (&[("if-none-match", "\"abc")],                                              Proceed),
            (&[("if-none-match", "")],                                                   Proceed),
            (&[("if-none-match", "\"x\""), ("if-modified-since", EXACT)],                Proceed),
            (&[("if-modified-since", EXACT)],                                            NotModified),
            (&[("if-modified-since", BEFORE)],                                           Proceed),
            (&[("if-modified-since", "yesterday")],                                      Proceed),
            (&[("if-match", "\"abc\"")],                                                 Proceed),
            (&[("if-match", "*")],                                                       Proceed),
            (&[("if-match", "\"x\"")],                                                   Failed),
            (&[("if-match", "W/\"abc\"")],                                               Failed),
            (&[("if-match", "\"abc\""), ("if-unmodified-since", BEFORE)],                Proceed),
            (&[("if-unmodified-since", EXACT)],                                          Proceed),
            (&[("if-unmodified-since", BEFORE)],                                         Failed),
            (&[("if-unmodified-since", "never")],                                        Proceed),
            (&[("if-match", "\"x\""), ("if-none-match", "\"abc\"")],                     Failed),
            (&[("if-match", "\"abc\""), ("if-none-match", "\"abc\"")],                   NotModified),
        ];
        for (lines, expected) in table {
            assert_eq!(
                evaluate(&headers(lines), &validators()),
                expected,
                "{lines:?}"
            );
        }
    }

    /// Header lines, whether the range counts for what never changes, and for what may.
    type IfRangeRow<'a> = (&'a [(&'static str, &'a str)], bool, bool);

    #[test]
    fn a_range_is_honoured_only_for_the_state_that_if_range_names() {
        #[rustfmt::skip]
        let table: [IfRangeRow<'_>; 8] = [
            (&[],                              true,  true),
            (&[("if-range", "\"abc\"")],       true,  true),
            (&[("if-range", "\"x\"")],         false, false),
            (&[("if-range", "W/\"abc\"")],     false, false),
            (&[("if-range", "abc")],           false, false),
            (&[("if-range", EXACT)],           true,  false),
            (&[("if-range", BEFORE)],          false, false),
            (&[("if-range", "")],              false, false),
        ];
        for (lines, immutable, mutable) in table {
            let headers = headers(lines);
            assert_eq!(
                range_applies(&headers, &validators()),
                immutable,
                "{lines:?}"
            );
            let changing = Validators {
                immutable: false,
                ..validators()
            };
            assert_eq!(
                range_applies(&headers, &changing),
                mutable,
                "{lines:?}, mutable"
            );
        }
    }

    #[test]
    fn a_page_without_validators_is_always_sent() {
        let none = Validators::default();
        assert_eq!(
            evaluate(&headers(&[("if-none-match", "\"abc\"")]), &none),
            Verdict::Proceed
        );
        assert_eq!(
            evaluate(&headers(&[("if-modified-since", EXACT)]), &none),
            Verdict::Proceed
        );
        assert!(!range_applies(&headers(&[("if-range", EXACT)]), &none));
    }

    proptest! {
        /// A client that gives back the tag it was given is told that nothing changed,
        /// whatever else stands in the list.
        #[test]
        fn our_own_tag_is_recognised_in_any_list(
            before in proptest::collection::vec("[a-z0-9,]{0,8}", 0..4),
            weak in any::<bool>(),
        ) {
            let mut list: Vec<_> = before.iter().map(|tag| format!("\"{tag}\"")).collect();
            list.push(format!("{}\"abc\"", if weak { "W/" } else { "" }));
            let headers = headers(&[("if-none-match", &list.join(", "))]);
            prop_assert_eq!(evaluate(&headers, &validators()), Verdict::NotModified);
        }

        /// No header value, however odd, makes the evaluation panic.
        #[test]
        fn any_header_value_is_evaluated(value in "[ -~\t]{0,40}") {
            for name in ["if-match", "if-none-match", "if-range", "if-modified-since"] {
                let mut map = HeaderMap::new();
                map.append(name, value.trim().parse().unwrap());
                evaluate(&map, &validators());
                range_applies(&map, &validators());
            }
        }
    }
}
