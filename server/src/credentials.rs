//! The token in a request, and whether it is enough.
//!
//! Pure. `Authorization: Bearer TOKEN` (RFC 6750, 2.1), or `Basic` (RFC 7617) with the token as the
//! password and any user, which is what iPXE, curl and browsers make of `http://x:TOKEN@host/`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::tokens::{Grant, Scope, Secret, TOKEN_LEN_MAX};

/// Takes the token out of a request; none where there is none, or more than one.
pub(crate) fn token(headers: &HeaderMap) -> Option<Secret> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, rest) = value.trim().split_once(' ')?;
    let rest = rest.trim_start();
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        rest.to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") && rest.len() <= 2 * TOKEN_LEN_MAX {
        let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        pair.split_once(':')?.1.to_owned()
    } else {
        return None;
    };
    (1..=TOKEN_LEN_MAX)
        .contains(&token.len())
        .then(|| Secret::new(token))
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// There is no token that the server knows.
    Unknown,
    /// The token is known, and not for this.
    Scope,
}

/// Decides whether what a token grants is enough.
pub(crate) fn check(grant: Option<&Grant>, needed: Option<Scope>) -> Result<(), Denied> {
    match (grant, needed) {
        (_, None) => Ok(()),
        (None, Some(_)) => Err(Denied::Unknown),
        (Some(grant), Some(needed)) if grant.scope >= needed => Ok(()),
        (Some(_), Some(_)) => Err(Denied::Scope),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    fn read(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AUTHORIZATION, HeaderValue::from_str(line).unwrap());
        }
        token(&headers).map(|token| token.reveal().to_owned())
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn bearer_and_basic_bring_a_token() {
        let long = format!("Bearer {}", "x".repeat(257));
        #[rustfmt::skip]
        let table = [
            ("Bearer circular_1",               Some("circular_1")),
            ("bearer  circular_1 ",             Some("circular_1")),
            ("Basic eDpjaXJjdWxhcl8x",          Some("circular_1")),
            (&basic(":circular_1"),             Some("circular_1")),
            (&basic("x:a:b"),                   Some("a:b")),
            (&basic("circular_1"),              None),
            (&basic("x:"),                      None),
            (&basic(&"x".repeat(500)),          None),
            ("Basic !!!!",                      None),
            ("Bearer",                          None),
            ("Bearer ",                         None),
            ("circular_1",                      None),
            ("Digest circular_1",               None),
            (&long,                             None),
        ];
        for (line, expected) in table {
            assert_eq!(read(&[line]).as_deref(), expected, "{line}");
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["Bearer a", "Bearer a"]), None);
    }

    #[test]
    fn a_scope_is_enough_or_not() {
        let grant = |scope| Grant {
            scope,
            name: "a".parse().unwrap(),
        };
        let (read, publish) = (grant(Scope::Read), grant(Scope::Publish));
        #[rustfmt::skip]
        let table = [
            (None,           None,                  Ok(())),
            (None,           Some(Scope::Read),     Err(Denied::Unknown)),
            (None,           Some(Scope::Publish),  Err(Denied::Unknown)),
            (Some(&read),    None,                  Ok(())),
            (Some(&read),    Some(Scope::Read),     Ok(())),
            (Some(&read),    Some(Scope::Publish),  Err(Denied::Scope)),
            (Some(&publish), Some(Scope::Read),     Ok(())),
            (Some(&publish), Some(Scope::Publish),  Ok(())),
        ];
        for (grant, needed, expected) in table {
            assert_eq!(check(grant, needed), expected, "{grant:?} {needed:?}");
        }
    }

    proptest! {
        /// Whatever stands in the header, the token is bounded.
        #[test]
        fn a_token_is_bounded(scheme in "(Bearer|Basic|basic|) ?", rest in "[ -~]{0,600}") {
            if let Some(token) = read(&[&format!("{scheme}{rest}")]) {
                prop_assert!((1..=TOKEN_LEN_MAX).contains(&token.len()));
            }
        }
    }
}
