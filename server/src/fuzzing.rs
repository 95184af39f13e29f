//! The bodies of the fuzz targets in `tests/fuzz` that need this crate, callable on stable.
//!
//! Each takes any bytes and panics where something was accepted that should not have been.

use std::path::Component;

use crate::range::{ByteRange, RANGES_MAX, Selection, select};
use crate::route::{Route, StorePath, route};

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
        }
    }
}
