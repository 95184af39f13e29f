//! Decides which redirects are followed.
//!
//! A store may be moved behind a CDN by one redirect, and to https by another; more than
//! [`REDIRECTS_MAX`] are a loop or a game. None leads from https back to http, to anything that is
//! neither, or from a server elsewhere into this machine or onto its link, where services listen
//! that trust whoever can reach them (169.254.169.254 above all). Names are not resolved here, so
//! that a name for such an address is not noticed.
//!
//! `Authorization` is not carried to another scheme, host or port: that is reqwest's own rule, and
//! held by a test.

use std::net::Ipv6Addr;

use url::{Host, Url};

/// Redirects that are followed in a row.
pub const REDIRECTS_MAX: usize = 3;

/// Why a redirect is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("more than {REDIRECTS_MAX} redirects in a row")]
    TooMany,
    #[error("a redirect to an address that is neither http nor https")]
    Scheme,
    #[error("a redirect from https back to http")]
    Downgrade,
    #[error("a redirect to an address of this machine or of its link")]
    Inward,
}

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Machine,
    Link,
    Beyond,
}

/// Decides whether to go on to `next` after the addresses `before`, the first of which was asked for.
pub(super) fn judge(before: &[Url], next: &Url) -> Result<(), Refusal> {
    if before.len() > REDIRECTS_MAX {
        return Err(Refusal::TooMany);
    }
    if !matches!(next.scheme(), "http" | "https") {
        return Err(Refusal::Scheme);
    }
    if next.scheme() == "http" && before.iter().any(|url| url.scheme() == "https") {
        return Err(Refusal::Downgrade);
    }
    let inward = reach(next) != Reach::Beyond;
    if inward
        && before
            .first()
            .is_none_or(|first| reach(first) != reach(next))
    {
        return Err(Refusal::Inward);
    }
    Ok(())
}

fn reach(url: &Url) -> Reach {
    let (machine, link) = match url.host() {
        None => (true, false),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            (name == "localhost" || name.ends_with(".localhost"), false)
        }
        Some(Host::Ipv4(ip)) => (ip.is_loopback() || ip.is_unspecified(), ip.is_link_local()),
        Some(Host::Ipv6(ip)) => of_v6(ip),
    };
    match (machine, link) {
        (true, _) => Reach::Machine,
        (_, true) => Reach::Link,
        _ => Reach::Beyond,
    }
}

fn of_v6(ip: Ipv6Addr) -> (bool, bool) {
    match ip.to_ipv4_mapped() {
        Some(ip) => (ip.is_loopback() || ip.is_unspecified(), ip.is_link_local()),
        None => (
            ip.is_loopback() || ip.is_unspecified(),
            ip.is_unicast_link_local(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(before: &[&str], next: &str) -> Result<(), Refusal> {
        let before: Vec<Url> = before.iter().map(|url| url.parse().unwrap()).collect();
        judge(&before, &next.parse().unwrap())
    }

    #[test]
    fn a_few_redirects_between_web_addresses_are_followed() {
        assert_eq!(after(&["http://a/"], "http://b:8080/x"), Ok(()));
        assert_eq!(after(&["http://a/"], "https://a/"), Ok(()));
        let three = ["http://a/1", "http://a/2", "http://a/3"];
        assert_eq!(after(&three, "http://a/4"), Ok(()));
        let four = ["http://a/1", "http://a/2", "http://a/3", "http://a/4"];
        assert_eq!(after(&four, "http://a/5"), Err(Refusal::TooMany));
    }

    #[test]
    fn none_leads_down_or_out_of_the_web() {
        for next in ["file:///etc/passwd", "ftp://a/", "gopher://a/"] {
            assert_eq!(after(&["http://a/"], next), Err(Refusal::Scheme), "{next}");
        }
        let back = after(&["http://a/", "https://a/"], "http://a/");
        assert_eq!(back, Err(Refusal::Downgrade));
    }

    #[test]
    fn none_leads_inward_from_elsewhere() {
        for next in [
            "http://127.0.0.1:6379/",
            "http://localhost/",
            "http://x.localhost./",
            "http://0.0.0.0/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            "http://2130706433/",
        ] {
            let told = after(&["http://boot.example/"], next);
            assert_eq!(told, Err(Refusal::Inward), "{next}");
        }
        assert_eq!(
            after(&["http://127.0.0.1:1/"], "http://localhost:2/"),
            Ok(())
        );
        let other = after(&["http://127.0.0.1:1/"], "http://169.254.169.254/");
        assert_eq!(other, Err(Refusal::Inward));
    }
}
