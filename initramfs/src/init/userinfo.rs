//! Takes `user:password@` out of addresses: the password is the token of a private store.
//!
//! iPXE fetches from a private store by `http://x:TOKEN@host/boot.ipxe` and hands that address over as it
//! is. From here on the address goes into logs and notes, and the token only into a file.

use std::fmt;

/// A token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Returns the secret itself.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Cuts an address into one that may be shown, and the password that was in it, percent-decoded.
///
/// What does not look like an address is cut all the same: whatever stands before an `@` where a
/// host is expected may be a secret.
pub fn split(address: &str) -> (String, Option<Token>) {
    let host = host_start(address);
    let rest = &address[host..];
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else {
        return (address.to_owned(), None);
    };
    let token = rest[..at]
        .split_once(':')
        .and_then(|(_, password)| decode(password))
        .filter(|password| !password.is_empty());
    let left = format!("{}{}", &address[..host], &rest[at + 1..]);
    // Without a user, what looked like a path may be where a host is expected.
    (split(&left).0, token.map(Token))
}

/// Returns where a host begins, or the user before it: after the scheme and its slashes.
fn host_start(address: &str) -> usize {
    let letters = |scheme: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        scheme.bytes().all(allowed)
    };
    let scheme = address.find(':').filter(|end| letters(&address[..*end]));
    let after = scheme.map_or(0, |end| end + 1);
    let slashes = address[after..]
        .bytes()
        .take_while(|byte| b"/\\".contains(byte));
    after + slashes.count()
}

/// Decodes `%41` (RFC 3986, 2.1); `None` if that is no text.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.first_chunk::<2>().filter(|_| *first == b'%');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(token: Option<Token>) -> Option<String> {
        token.map(|token| token.secret().to_owned())
    }

    #[test]
    fn the_password_is_the_token_and_leaves_the_address() {
        for (address, shown, token) in [
            ("http://h/boot.ipxe", "http://h/boot.ipxe", None),
            (
                "http://x:T@h:80/boot.ipxe",
                "http://h:80/boot.ipxe",
                Some("T"),
            ),
            ("https://x:a%2fb%@h/", "https://h/", Some("a/b%")),
            ("http://x:a:b@c@h/", "http://h/", Some("a:b@c")),
            ("http://x@h/", "http://h/", None),
            ("http://:@h/", "http://h/", None),
            ("http://x:%AA@h/", "http://h/", None),
            ("http://h/boot/a@3.ipxe", "http://h/boot/a@3.ipxe", None),
            ("http://h?x:T@y", "http://h?x:T@y", None),
        ] {
            let (got, secret) = (split(address).0, secret(split(address).1));
            assert_eq!(
                (got.as_str(), secret.as_deref()),
                (shown, token),
                "{address}"
            );
        }
    }

    #[test]
    fn a_token_is_not_shown_of_a_broken_address_either() {
        for address in [
            "tftp://x:SECRET@h/boot.ipxe",
            "x:SECRET@h/boot.ipxe",
            "SECRET@h/boot.ipxe",
            "http:///x:SECRET@h/",
            "http:\\\\x:SECRET@h/",
            "http:x:SECRET@h/",
            "://x:SECRET@h",
            "http://a:b@//x:SECRET@h/",
        ] {
            let (shown, token) = split(address);
            assert!(!shown.contains("SECRET"), "{shown}");
            assert!(!format!("{token:?}").contains("SECRET"));
        }
    }

    proptest! {
        /// Whatever user and password are, the same address is left.
        #[test]
        fn what_is_left_is_the_address_without_them(
            user in "[a-z]{0,4}", password in "[!-~&&[^/\\\\?#]]{0,20}",
            scheme in "(http|https|HTTP)", rest in "[a-z0-9.]{1,8}(:80)?(/[a-z@:]{0,8}){0,3}",
        ) {
            let address = format!("{scheme}://{user}:{password}@{rest}");
            let (shown, token) = split(&address);
            prop_assert_eq!(&shown, &format!("{scheme}://{rest}"));
            let is_text = decode(&password).is_some_and(|password| !password.is_empty());
            prop_assert_eq!(token.is_some(), is_text);
            prop_assert_eq!(split(&shown), (shown.clone(), None));
        }

        /// Any text: an answer, never a panic.
        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = split(&text);
        }
    }
}
