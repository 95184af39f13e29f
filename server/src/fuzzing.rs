//! The bodies of the fuzz targets in `tests/fuzz` that need this crate, callable on stable.
//!
//! Each takes any bytes and panics where something was accepted that should not have been.

use std::path::Component;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use image_store::trust::accept::{FILES_MAX, Proposal, ProposedFile};

use crate::credentials;
use crate::range::{ByteRange, RANGES_MAX, Selection, select};
use crate::route::{Route, StorePath, route};
use crate::tokens::{Scope, TOKEN_LEN_MAX, Tokens};
use crate::upload::protocol::{Asked, QUESTION_NAMES_MAX, Question, asked};

/// Any text as the value of a `Range` header, for a representation whose length the first eight
/// bytes say: what is selected exists, and asking for just that selects it again.
///
/// # Panics
/// If a range is empty or beyond the end, or if the ranges are more work than the whole.
pub fn range_header(data: &[u8]) {
    let Some((length, header)) = data.split_first_chunk() else {
        return;
    };
    let (length, Ok(header)) = (u64::from_le_bytes(*length), std::str::from_utf8(header)) else {
        return;
    };
    let selection = select(header, length);
    let ranges: &[ByteRange] = match &selection {
        Selection::Whole | Selection::Unsatisfiable => return,
        Selection::One(range) => std::slice::from_ref(range),
        Selection::Many(ranges) => ranges,
    };
    assert!(ranges.len() <= RANGES_MAX, "too many ranges");
    let mut sum = 0_u64;
    for range in ranges {
        assert!(range.start() <= range.last(), "an empty range");
        assert!(range.last() < length, "a range beyond the end");
        sum = sum
            .checked_add(range.length())
            .expect("no more than the whole");
        let (first, rest) = range.split(1);
        assert_eq!(
            first.length() + rest.map_or(0, ByteRange::length),
            range.length()
        );
    }
    assert!(sum <= length, "more than the whole");
    let specs: Vec<_> = ranges
        .iter()
        .map(|range| format!("{}-{}", range.start(), range.last()))
        .collect();
    let again = select(&format!("bytes={}", specs.join(",")), length);
    assert_eq!(again, selection, "the same ranges select something else");
}

/// Any text as the path of a request: the file that it names lies below the root of the store, and
/// its own path leads to it again.
///
/// # Panics
/// If a path leads outside, to a hidden file, or to another file than it says.
pub fn request_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match route(text) {
        Some(Route::File(path)) => file(&path),
        Some(Route::Raw(image)) => {
            let path = format!("/raw/{}/disk.raw", image.to_file_safe());
            assert_eq!(route(&path), Some(Route::Raw(image)));
        }
        Some(Route::Home | Route::Health) | None => {}
    }
}

fn file(path: &StorePath) {
    let relative = path.relative();
    let text = relative.to_str().expect("paths are ASCII");
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
    assert!(!text.contains(['\\', '%', ':']), "{text}");
    for part in relative.components() {
        let Component::Normal(name) = part else {
            panic!("{text} leaves the store");
        };
        let name = name.as_encoded_bytes();
        assert!(!name.starts_with(b".") && !name.starts_with(b"-") && name.len() <= 255);
    }
    let again = route(&format!("/{text}"));
    assert_eq!(again.as_ref(), Some(&Route::File(path.clone())));
    if let Some(digest) = path.digest() {
        assert!(text.contains(&digest.to_string()));
    }
}

/// Any text as the value of an `Authorization` header, up to the first line break, and then as a table of
/// tokens: the token of a request opens what its own line says, and nothing without one.
///
/// # Panics
/// If a token gets more or less than its line says.
pub fn credentials(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (header, table) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let tokens = Tokens::parse(table);
    let Ok(value) = HeaderValue::from_bytes(header) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.append(AUTHORIZATION, value.clone());
    let Some(secret) = credentials::token(&headers) else {
        return;
    };
    assert!((1..=TOKEN_LEN_MAX).contains(&secret.reveal().len()));
    if let Ok(tokens) = &tokens {
        assert_eq!(tokens.find(&secret), None, "a token that nobody made");
    }
    let name = "fuzz".parse().expect("a name");
    let line = secret.line(Scope::Read, &name);
    let longer = [table, b"\n", line.as_bytes()].concat();
    if let (Ok(_), Ok(tokens)) = (tokens, Tokens::parse(&longer)) {
        let grant = tokens.find(&secret).expect("its line is there");
        assert_eq!(grant.scope, Scope::Read, "more than its line says");
    }
    headers.append(AUTHORIZATION, value);
    assert!(credentials::token(&headers).is_none(), "one of two tokens");
}

/// Any bytes as what a publisher sends: the path of a file, a question for what is missing, new metadata.
///
/// # Panics
/// If something is stored under another name than it says, or there is more of it than there may be.
pub fn upload(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some(Asked::Put(item)) = asked(&Method::PUT, text) {
            assert_eq!(item.path.digest(), Some(&item.digest));
            file(&item.path);
        }
        if let Some(proposed) = ProposedFile::parse(text) {
            assert_eq!(proposed.to_string(), text, "two names of one file");
        }
    }
    if let Ok(question) = Question::decode(data) {
        assert!(question.objects.len() <= QUESTION_NAMES_MAX);
        for (name, path) in question.targets.into_iter().flatten() {
            assert_eq!(path.relative().to_str(), Some(&*format!("targets/{name}")));
            file(&path);
        }
    }
    if let Ok(proposal) = Proposal::decode(data) {
        assert!((1..=FILES_MAX).contains(&proposal.files.len()));
        for (proposed, bytes) in &proposal.files {
            assert!(bytes.len() as u64 <= proposed.bytes_max());
            assert!(!proposed.path().contains(".."));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        /// No bytes make a parser panic, or accept too much.
        #[test]
        fn any_bytes(
            length in any::<u64>(),
            header in "bytes=[0-9, -]{0,40}",
            path in "/(boot|metadata|raw|targets)?[/.%a-z0-9,=@-]{0,40}",
            data in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            super::range_header(&[&length.to_le_bytes(), header.as_bytes()].concat());
            super::range_header(&data);
            super::request_path(path.as_bytes());
            super::request_path(&data);
            super::upload(path.as_bytes());
            super::upload(&data);
            super::credentials(&[b"Bearer ", path.as_bytes()].concat());
            super::credentials(&data);
        }
    }
}
