//! One row a line: what is asked, and status, length and the telling header of the answer.

use std::io;
use std::time::{Duration, SystemTime};

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use proptest::prelude::{prop_assert_eq, proptest};

use super::{
    Caching, ContentType, Decision, Refusal, Representation, Segment, refuse, respond, status,
};
use crate::precondition::{EntityTag, Validators};
use crate::store::StoreError;

const WRITTEN: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

/// 1000 bytes, tag "abc", immutable.
fn object() -> Representation {
    Representation {
        length: 1000,
        validators: Validators {
            tag: Some(EntityTag::new("abc")),
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
            immutable: true,
        },
        content_type: ContentType::Binary,
        caching: Caching::Immutable,
    }
}

fn ask(method: &Method, lines: &[(&'static str, &str)], found: &Representation) -> Decision {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, value.parse().unwrap());
    }
    respond(method, &headers, found)
}

fn header(decision: &Decision, name: HeaderName) -> &str {
    decision
        .headers
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

/// Method, header lines, status, Content-Length, Content-Range.
type Row<'a> = (
    &'a Method,
    &'a [(&'static str, &'a str)],
    u16,
    &'a str,
    &'a str,
);

#[test]
fn each_request_gets_its_status_length_and_range() {
    let (get, head) = (Method::GET, Method::HEAD);
    #[rustfmt::skip]
    let table: [Row<'_>; 16] = [
        (&get,  &[],                                                         200, "1000", ""),
        (&head, &[],                                                         200, "1000", ""),
        (&get,  &[("range", "bytes=0-99")],                                  206, "100",  "bytes 0-99/1000"),
        (&get,  &[("range", "bytes=-1")],                                    206, "1",    "bytes 999-999/1000"),
        (&get,  &[("range", "bytes=990-")],                                  206, "10",   "bytes 990-999/1000"),
        (&get,  &[("range", "bytes=0-")],                                    206, "1000", "bytes 0-999/1000"),
        (&get,  &[("range", "bytes=1000-")],                                 416, "14",   "bytes */1000"),
        (&get,  &[("range", "bytes=u-u")],                                   200, "1000", ""),
        (&head, &[("range", "bytes=0-99")],                                  200, "1000", ""),
        (&get,  &[("range", "bytes=0-99"), ("if-range", "\"abc\"")],         206, "100",  "bytes 0-99/1000"),
        (&get,  &[("range", "bytes=0-99"), ("if-range", "\"old\"")],         200, "1000", ""),
        (&get,  &[("range", "bytes=0-99"), ("if-range", WRITTEN)],           206, "100",  "bytes 0-99/1000"),
        (&get,  &[("if-none-match", "\"abc\"")],                             304, "",     ""),
        (&head, &[("if-modified-since", WRITTEN)],                           304, "",     ""),
        (&get,  &[("if-none-match", "\"abc\""), ("range", "bytes=0-99")],    304, "",     ""),
        (&get,  &[("if-match", "\"old\"")],                                  412, "20",   ""),
    ];
    for (method, lines, status, length, range) in table {
        let got = ask(method, lines, &object());
        let what = format!("{method} {lines:?}");
        assert_eq!(got.status.as_u16(), status, "{what}");
        assert_eq!(header(&got, CONTENT_LENGTH), length, "{what}");
        assert_eq!(header(&got, CONTENT_RANGE), range, "{what}");
    }
}

#[test]
fn each_refusal_has_its_status_and_is_never_kept() {
    let store = |status| Refusal::Store {
        status,
        reason: "why".to_owned(),
    };
    #[rustfmt::skip]
    let table = [
        (Refusal::Method("GET, HEAD"),                   405, "allow",       "GET, HEAD"),
        (Refusal::Body,                                  400, "connection",  "close"),
        (Refusal::Busy,                                  503, "retry-after", "1"),
        (Refusal::NoSuchAddress,                         404, "content-type", "text/plain; charset=utf-8"),
        (store(StatusCode::NOT_FOUND),                   404, "content-length", "4"),
        (store(StatusCode::SERVICE_UNAVAILABLE),         503, "retry-after", "1"),
        (store(StatusCode::INTERNAL_SERVER_ERROR),       500, "content-length", "4"),
    ];
    for (refusal, status, name, value) in table {
        let got = refuse(&refusal);
        assert_eq!(got.status.as_u16(), status, "{refusal:?}");
        assert_eq!(header(&got, name.parse().unwrap()), value, "{refusal:?}");
        assert_eq!(header(&got, CACHE_CONTROL), "no-store", "{refusal:?}");
    }
}

#[test]
fn each_failure_of_the_store_has_its_status() {
    let source = || io::Error::other("disk");
    let path = || "/srv/store/x".into();
    #[rustfmt::skip]
    let table = [
        (StoreError::NotFound,                                                  404),
        (StoreError::NoSuchImage { reason: "no tag".to_owned() },               404),
        (StoreError::Exhausted { path: path(), source: source() },              503),
        (StoreError::Unreadable { path: path(), source: source() },             500),
    ];
    for (error, expected) in table {
        assert_eq!(status(&error).as_u16(), expected, "{error:?}");
        let Refusal::Store { reason, .. } = super::refusal(&error) else {
            panic!("{error:?} is another refusal");
        };
        assert!(
            !reason.contains("/srv"),
            "{reason} tells a path of the server"
        );
    }
}

#[test]
fn each_kind_of_file_says_how_long_it_may_be_kept() {
    #[rustfmt::skip]
    let table = [
        (Caching::Immutable,  "public, max-age=31536000, immutable"),
        (Caching::Revalidate, "no-cache"),
        (Caching::Never,      "no-store"),
    ];
    for (caching, expected) in table {
        let found = Representation {
            caching,
            ..object()
        };
        for lines in [
            &[][..],
            &[("range", "bytes=0-1")],
            &[("if-none-match", "*")],
        ] {
            let got = ask(&Method::GET, lines, &found);
            assert_eq!(header(&got, CACHE_CONTROL), expected, "{lines:?}");
        }
    }
}

#[test]
fn an_empty_file_is_sent_whole() {
    let empty = Representation {
        length: 0,
        ..object()
    };
    let got = ask(&Method::GET, &[], &empty);
    assert_eq!(
        (got.status, header(&got, CONTENT_LENGTH)),
        (StatusCode::OK, "0")
    );
    let got = ask(&Method::GET, &[("range", "bytes=0-")], &empty);
    assert_eq!(header(&got, CONTENT_RANGE), "bytes */0");
}

#[test]
fn a_head_has_the_length_but_not_the_body() {
    let got = ask(&Method::HEAD, &[], &object()).for_method(&Method::HEAD);
    assert_eq!(header(&got, CONTENT_LENGTH), "1000");
    assert!(got.segments.is_empty());
}

#[test]
fn several_ranges_are_parts_between_boundaries() {
    let got = ask(&Method::GET, &[("range", "bytes=0-1,-2")], &object());
    assert_eq!(got.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        header(&got, CONTENT_TYPE),
        "multipart/byteranges; boundary=circular-abc"
    );
    let text: String = got.segments.iter().map(show).collect();
    let head = "Content-Type: application/octet-stream\r\nContent-Range: bytes";
    let expected = format!(
        "--circular-abc\r\n{head} 0-1/1000\r\n\r\n<0+2>\r\n--circular-abc\r\n{head} 998-999/1000\r\n\r\n<998+2>\
         \r\n--circular-abc--\r\n"
    );
    assert_eq!(text, expected);
}

fn show(segment: &Segment) -> String {
    match segment {
        Segment::Literal(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Segment::Part(range) => format!("<{}+{}>", range.start(), range.length()),
    }
}

proptest! {
    /// Whatever is asked, Content-Length is what the segments add up to.
    #[test]
    fn the_length_is_that_of_the_body(range in "(bytes=)?[0-9u, -]{0,30}", length in 0..300_u64) {
        let got = ask(&Method::GET, &[("range", range.trim())], &Representation { length, ..object() });
        let sum: u64 = got.segments.iter().map(Segment::length).sum();
        prop_assert_eq!(header(&got, CONTENT_LENGTH), sum.to_string());
    }
}
