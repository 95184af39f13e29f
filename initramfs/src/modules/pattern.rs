//! Matches a modalias against the patterns of `modules.alias`: `*`, `?` and `[a-z]`, as in
//! `fnmatch(3)` without flags. Runs in time pattern × text at worst; no recursion.

/// Makes `-` and `_` the same, outside brackets, as the kernel's tools do.
pub(super) fn normalise(text: &str) -> String {
    let mut in_brackets = false;
    text.chars()
        .map(|character| {
            match character {
                '[' => in_brackets = true,
                ']' => in_brackets = false,
                _ => {}
            }
            if character == '-' && !in_brackets {
                '_'
            } else {
                character
            }
        })
        .collect()
}

/// Says whether all of `text` matches `pattern`.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: behind the star, one later.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t + 1));
        } else if let Some(length) = pattern.get(p..).and_then(|rest| one(rest, text[t])) {
            p += length;
            t += 1;
        } else if let Some((star, next)) = retry {
            (p, t) = (star, next);
            retry = Some((star, next + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// If the first element of `pattern` matches `byte`, returns the element's length.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => bracket(pattern, byte),
        literal => (literal == byte).then_some(1),
    }
}

fn bracket(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = if negated { 2 } else { 1 };
    let inside = pattern.get(start..)?;
    // A bracket right after the opening one is a member, not the end.
    let end = 1 + inside.iter().skip(1).position(|byte| *byte == b']')?;
    let members = &inside[..end];
    let mut at = 0;
    let mut found = false;
    while at < members.len() {
        if let [low, b'-', high, ..] = members[at..] {
            found |= (low..=high).contains(&byte);
            at += 3;
        } else {
            found |= members[at] == byte;
            at += 1;
        }
    }
    (found != negated).then_some(start + end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_of_real_drivers_match_their_devices() {
        for (pattern, text) in [
            (
                "pci:v00001AF4d*sv*sd*bc*sc*i*",
                "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00",
            ),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4"),
            ("acpi*:LNRO0005:*", "acpi:LNRO0005:"),
            ("usb:v0B95p17[27]0d*", "usb:v0B95p1770d0001"),
            ("x[!a-c]y", "xdy"),
            ("[]]", "]"),
            ("**", ""),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn other_devices_do_not_match() {
        for (pattern, text) in [
            ("pci:v00001AF4d*", "pci:v00008086d00001000"),
            ("virtio:d00000001v*", "virtio:d00000001"),
            ("abc", "abcd"),
            ("x[a-c]y", "xdy"),
            ("[", "["),
            ("", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn dashes_and_underscores_are_the_same_outside_brackets() {
        assert_eq!(normalise("pcmcia-x[0-9]-y"), "pcmcia_x[0-9]_y");
    }

    proptest! {
        /// Whatever stands at the stars, the text still matches.
        #[test]
        fn stars_match_anything(parts in prop::collection::vec("[a-c]{0,3}", 1..5), fill in "[a-c]{0,4}") {
            prop_assert!(matches(&parts.join("*"), &parts.join(&fill)));
        }

        /// Any pattern and text: an answer, never a panic.
        #[test]
        fn matching_never_panics(pattern in "[a\\[\\]!*?-]{0,12}", text in "[a\\]-]{0,12}") {
            let _ = matches(&pattern, &text);
        }
    }
}
