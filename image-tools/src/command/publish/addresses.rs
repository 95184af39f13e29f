//! Checks the addresses that boot scripts hand over.

use anyhow::bail;
use image_format::manifest::{MIRRORS_MAX, are_mirrors, is_cmdline};

/// Checks that a base URL and mirrors can stand on a kernel command line in a boot script.
///
/// # Errors
/// One cannot; the message names its option.
pub(super) fn check(base_url: Option<&str>, mirrors: &[String]) -> anyhow::Result<()> {
    if let Some(url) = base_url {
        check_one("--base-url", url)?;
    }
    for url in mirrors {
        check_one("--mirror-url", url)?;
    }
    if !are_mirrors(mirrors) {
        bail!("boot scripts name at most {MIRRORS_MAX} mirrors, of 1024 characters together");
    }
    Ok(())
}

/// Checks one address. A password in it would be in every boot script, for everybody to read.
fn check_one(option: &str, url: &str) -> anyhow::Result<()> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let host = rest.and_then(|rest| rest.split(['/', '\\', '?', '#']).next());
    let plain = is_cmdline(url) && !url.contains([' ', '"', '\'']);
    match host {
        Some(host) if host.contains('@') => bail!(
            "the address of {option} has a user or a password in it, which everybody could read in the boot scripts: leave it out"
        ),
        Some(host) if !host.is_empty() && plain => Ok(()),
        _ => bail!("{option} `{url}` is not an http:// or https:// address without spaces"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_boot_scripts_cannot_hand_over_is_refused_by_its_option() {
        let mirrors = |urls: &[&str]| {
            let urls: Vec<_> = urls.iter().copied().map(str::to_owned).collect();
            check(None, &urls)
        };
        check(Some("https://h/s"), &[]).unwrap();
        mirrors(&["http://a/", "https://b:8080/s/"]).unwrap();
        for bad in [
            "ftp://h/",
            "http://",
            "http:///s",
            "http://h/ init=/x",
            "http://h/${x}",
        ] {
            let message = check(Some(bad), &[]).unwrap_err().to_string();
            assert!(message.starts_with("--base-url"), "{message}");
            let message = mirrors(&["http://a/", bad]).unwrap_err().to_string();
            assert!(message.starts_with("--mirror-url"), "{message}");
        }
        assert!(mirrors(&["http://a/"; 9]).is_err());
        let secret = mirrors(&["http://x:SECRET@h/"]).unwrap_err().to_string();
        assert!(secret.contains("password") && !secret.contains("SECRET"));
    }
}
