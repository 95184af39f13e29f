//! The page at `/`: which images there are, and the lines to paste.
//!
//! Pure. Whatever comes from a client or from the store is escaped.

use std::fmt::{self, Write as _};

use image_format::catalogue::Catalogue;
use image_format::{ImageRef, Tag};

/// Most images listed; more of them are for `circular list`.
pub(crate) const IMAGES_MAX: usize = 200;

/// Writes the page. `host` is the `Host` header, or the server's own address; `scheme` is `http` or
/// `https`.
pub(crate) fn page(scheme: &str, host: &str, catalogues: &[Catalogue], n_more: usize) -> String {
    let base = format!("{scheme}://{host}/");
    let base = Escaped(&base);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Circular</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         pre{{background:#8882;padding:.6rem;overflow:auto}}td,th{{text-align:left;padding:.1rem 1.5rem .1rem 0}}\
         :root{{color-scheme:light dark}}</style>\n\
         <h1>Circular</h1>\n\
         <p>Disk images, fetched while they are used. The boot menu is \
         <a href=\"/boot.ipxe\">{base}boot.ipxe</a>.\n"
    );
    let written = if catalogues.is_empty() {
        out.push_str(
            "<p>There is no image yet:\n<pre>circular publish disk.raw debian:12 --store DIR</pre>\n",
        );
        Ok(())
    } else {
        images(&mut out, base, catalogues, n_more)
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    out
}

fn images(
    out: &mut String,
    base: Escaped<'_>,
    catalogues: &[Catalogue],
    n_more: usize,
) -> fmt::Result {
    out.push_str("<table><tr><th>Image<th>Version<th>Size<th>Flat file</tr>\n");
    let mut first = None;
    for catalogue in catalogues {
        for (tag, version) in &catalogue.tags {
            let image = reference(catalogue, tag);
            let length = catalogue
                .versions
                .get(version)
                .map_or(0, |entry| entry.length);
            let safe = image.to_file_safe();
            writeln!(
                out,
                "<tr><td>{}<td>{version}<td>{}<td><a href=\"/raw/{}/disk.raw\">disk.raw</a></tr>",
                Escaped(&image.to_string()),
                Size(length),
                Escaped(&safe),
            )?;
            first.get_or_insert((image, safe));
        }
    }
    out.push_str("</table>\n");
    if n_more > 0 {
        writeln!(out, "<p>and {n_more} more, see <code>circular list</code>.")?;
    }
    if let Some((image, safe)) = first {
        let image = image.to_string();
        let (image, safe) = (Escaped(&image), Escaped(&safe));
        writeln!(
            out,
            "<p>On a Linux machine, as a disk that is fetched while it is read:\n\
             <pre>circular-mount --root root.json {base} {image} /mnt   # then /mnt/disk.raw; root.json: from the publisher</pre>\n\
             <p>As one flat file, with ranges:\n\
             <pre>qemu-img info {base}raw/{safe}/disk.raw</pre>"
        )?;
    }
    if catalogues.iter().any(is_bootable) {
        writeln!(
            out,
            "<p>As a virtual machine without a disk:\n\
             <pre>qemu-system-x86_64 -m 1G -nographic -boot n \\\n  \
             -netdev user,id=n,bootfile={base}boot.ipxe -device virtio-net-pci,netdev=n</pre>"
        )?;
    }
    Ok(())
}

fn is_bootable(catalogue: &Catalogue) -> bool {
    catalogue.versions.values().any(|entry| entry.bootable)
}

fn reference(catalogue: &Catalogue, tag: &Tag) -> ImageRef {
    ImageRef {
        name: catalogue.name.clone(),
        tag: Some(tag.clone()),
        version: None,
    }
}

/// Takes the host out of a `Host` header if it is one that may stand in a URL.
pub(crate) fn parse_host(header: &str) -> Option<&str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let valid = (1..=255).contains(&header.len()) && header.bytes().all(allowed);
    valid.then_some(header)
}

/// Text in HTML, also inside a quoted attribute.
#[derive(Clone, Copy)]
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

/// A number of bytes, for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
        let mut tenths = u128::from(self.0) * 10;
        let mut unit = 0;
        while tenths >= 10_240 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        match tenths % 10 {
            0 => write!(f, "{} {}", tenths / 10, UNITS[unit]),
            tenth => write!(f, "{}.{tenth} {}", tenths / 10, UNITS[unit]),
        }
    }
}

#[cfg(test)]
mod tests {
    use image_format::catalogue::{Catalogue, VersionEntry};
    use image_format::{Digest, ObjectRef, Version};
    use proptest::prelude::{prop_assert, proptest};

    use super::{Escaped, Size, page, parse_host};

    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::empty("lab/debian".parse().unwrap());
        let entry = VersionEntry {
            manifest: ObjectRef {
                digest: Digest::of(b"manifest"),
                length: 8,
            },
            revision: 1,
            created: 0,
            disk: Digest::of(b"disk"),
            content: Digest::of(b"content"),
            length: 2 << 30,
            bootable: true,
        };
        catalogue.versions.insert(Version::FIRST, entry);
        catalogue.tags.insert("12".parse().unwrap(), Version::FIRST);
        catalogue
    }

    #[test]
    fn an_image_comes_with_the_lines_to_paste() {
        let page = page("http", "boot.example:8080", &[catalogue()], 0);
        for line in [
            "<td>lab/debian:12<td>1<td>2 GiB<td>",
            "circular-mount --root root.json http://boot.example:8080/ lab/debian:12 /mnt",
            "bootfile=http://boot.example:8080/boot.ipxe",
            "qemu-img info http://boot.example:8080/raw/lab,debian=12/disk.raw",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[test]
    fn an_empty_store_says_how_to_fill_it() {
        assert!(page("https", "h", &[], 0).contains("circular publish"));
    }

    #[test]
    fn what_is_left_out_is_counted() {
        assert!(page("http", "h", &[catalogue()], 7).contains("and 7 more"));
    }

    #[test]
    fn only_a_host_is_taken_for_one() {
        for host in ["a", "10.0.2.2:8080", "[::1]:80", "boot_1.lan"] {
            assert_eq!(parse_host(host), Some(host));
        }
        for host in ["", "a b", "a\"", "<b>", "a/b", "ä", "a\r\n"] {
            assert_eq!(parse_host(host), None, "{host:?}");
        }
    }

    #[test]
    fn sizes_read_well() {
        let sizes = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (5 << 40, "5 TiB"),
        ];
        for (bytes, expected) in sizes {
            assert_eq!(Size(bytes).to_string(), expected);
        }
    }

    proptest! {
        /// No text can open or close a tag or an attribute.
        #[test]
        fn escaped_text_has_no_markup(text in "\\PC{0,40}") {
            prop_assert!(!Escaped(&text).to_string().contains(['<', '>', '"', '\'']));
        }
    }
}
