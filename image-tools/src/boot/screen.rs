//! What a machine says on its console: words are found in it, whatever colours they have. Pure.

/// Most characters kept: more than a screen.
const TEXT_CHARS_MAX: usize = 16 << 10;

/// Lines shown where something goes wrong.
const LINES_SHOWN: usize = 30;

/// The end of what was said, without escape sequences.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    text: String,
    escape: Escape,
}

/// Where in an escape sequence the last byte was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    No,
    Begun,
    Control,
    Title,
}

impl Screen {
    /// Takes what was said next.
    pub fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.escape = match (self.escape, *byte) {
                (_, 0x1b) => Escape::Begun,
                (Escape::Begun, b'[') => Escape::Control,
                (Escape::Begun, b']') => Escape::Title,
                (Escape::Begun, _) | (Escape::Control, 0x40..=0x7e) | (Escape::Title, 0x07) => {
                    Escape::No
                }
                (Escape::No, byte) => {
                    self.put(byte);
                    Escape::No
                }
                (within, _) => within,
            };
        }
    }

    fn put(&mut self, byte: u8) {
        if byte == b'\r' {
            return;
        }
        let shown = byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n' | b'\t');
        self.text.push(if shown { char::from(byte) } else { '?' });
        if self.text.len() > 2 * TEXT_CHARS_MAX {
            self.text.drain(..TEXT_CHARS_MAX);
        }
    }

    /// Tells whether `words` (plain ASCII) were said.
    pub fn shows(&self, words: &str) -> bool {
        self.text.contains(words)
    }

    /// Returns the last lines.
    pub fn last_lines(&self) -> String {
        let lines: Vec<&str> = self.text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAID: &[u8] =
        b"\x1b[0;1;32mWel\x1b[0mcome to\x1b]0;title\x07 Debian\r\n\r\n\x1b[2Kdebian lo\x1b[1mgin: ";

    proptest! {
        /// However the bytes come, the words are there when the last of them is.
        #[test]
        fn words_are_found_in_any_pieces(cuts in proptest::collection::vec(1..9_usize, 0..40)) {
            let (mut screen, mut rest) = (Screen::default(), SAID);
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                screen.take(now);
                rest = later;
                prop_assert!(rest.is_empty() || !screen.shows("login: "));
            }
            screen.take(rest);
            prop_assert!(screen.shows("Welcome to Debian\n\ndebian login: "));
        }
    }

    #[test]
    fn a_machine_that_never_stops_talking_fills_no_memory() {
        let mut screen = Screen::default();
        for number in 0..100_000 {
            screen.take(format!("line {number}\n").as_bytes());
        }
        assert!(screen.text.len() <= 2 * TEXT_CHARS_MAX);
        assert!(screen.last_lines().ends_with("line 99999"));
        assert_eq!(screen.last_lines().lines().count(), LINES_SHOWN);
    }
}
