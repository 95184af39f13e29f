//! Where the store is, told by the address of the boot script.
//!
//! A static script cannot know the address of the host that serves it, so it hands over its own,
//! `circular.boot=${cwuri}`. The store begins where `boot.ipxe` or `boot/…` begins.

/// Why an address names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// Not an address that the client can fetch from.
    #[error("`{0}` is no http:// or https:// URL")]
    Scheme(String),
    /// An address from which the store cannot be told.
    #[error("`{0}` ends neither in boot.ipxe nor in boot/…, so the store cannot be told from it")]
    NoStore(String),
}

/// Derives the base URL, with a `/` at its end, from the URL of a boot script.
///
/// # Errors
/// Fails if the URL is not of a boot script of a store.
pub fn of_boot_script(url: &str) -> Result<String, BaseUrlError> {
    let url = http(url)?;
    let path_end = url.find(['?', '#']).unwrap_or(url.len());
    let path_url = &url[..path_end];
    let base_end = match path_url.strip_suffix("boot.ipxe") {
        Some(before) if before.ends_with('/') => Some(before.len()),
        _ => path_url.rfind("/boot/").map(|slash| slash + 1),
    };
    // A host may be called `boot`; then what is left has no host.
    base_end
        .map(|end| &path_url[..end])
        .filter(|base| http(base).is_ok())
        .map(str::to_owned)
        .ok_or_else(|| BaseUrlError::NoStore(url.to_owned()))
}

/// Takes a base URL as it was given, with a `/` at its end.
///
/// # Errors
/// Fails if the client cannot fetch from it.
pub fn given(url: &str) -> Result<String, BaseUrlError> {
    let url = http(url)?;
    Ok(format!("{}/", url.trim_end_matches('/')))
}

fn http(url: &str) -> Result<&str, BaseUrlError> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let head = url.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme)
            .then(|| &url[scheme.len()..])
    });
    match rest {
        Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(url),
        _ => Err(BaseUrlError::Scheme(url.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_begins_where_the_boot_files_begin() {
        for (script, base) in [
            ("http://h:8080/boot.ipxe", "http://h:8080/"),
            ("http://h/a/b/boot.ipxe?mac=1#x", "http://h/a/b/"),
            ("https://h/boot/lab,debian=12@3.ipxe", "https://h/"),
            (
                "http://h/boot/store/boot/debian=12@1.ipxe",
                "http://h/boot/store/",
            ),
            ("http://h/boot/boot.ipxe", "http://h/boot/"),
            ("http://boot/boot.ipxe", "http://boot/"),
            ("http://boot/boot/a=1.ipxe", "http://boot/"),
            ("HTTP://h/boot/", "HTTP://h/"),
        ] {
            assert_eq!(of_boot_script(script).as_deref(), Ok(base), "{script}");
        }
    }

    #[test]
    fn other_scripts_name_no_store() {
        for script in [
            "http://h/",
            "http://h/my.ipxe",
            "http://h/reboot.ipxe",
            "http://boot/a=1.ipxe",
        ] {
            let refused = BaseUrlError::NoStore(script.to_owned());
            assert_eq!(of_boot_script(script), Err(refused));
        }
    }

    #[test]
    fn only_http_is_fetched_from() {
        for script in ["tftp://h/boot.ipxe", "", "boot.ipxe", "http:///boot.ipxe"] {
            let refused = BaseUrlError::Scheme(script.to_owned());
            assert_eq!(of_boot_script(script), Err(refused));
        }
    }

    #[test]
    fn a_given_url_ends_in_one_slash() {
        for url in ["http://h/store", "http://h/store/", "http://h/store//"] {
            assert_eq!(given(url).as_deref(), Ok("http://h/store/"));
        }
    }
}
