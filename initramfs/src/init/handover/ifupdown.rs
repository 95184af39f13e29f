//! Keeps Debian's ifupdown away from an interface.

/// Returns `interfaces(5)` with every method of `device` replaced by `manual`, so that `ifup` and, at
/// shutdown, `ifdown` have nothing to do with it.
pub(super) fn with_manual(text: &str, device: &str) -> String {
    let mut changed = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["iface", name, family, method] if name == device && method != "manual" => {
                changed.push_str(&format!("iface {name} {family} manual\n"));
            }
            _ => changed.push_str(line),
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_interface_in_use_becomes_manual() {
        let before = "auto lo eth0\niface lo inet loopback\n\
                      iface eth0 inet dhcp\niface eth0 inet6 auto\n\
                      iface eth1 inet dhcp\n";
        let after = "auto lo eth0\niface lo inet loopback\n\
                     iface eth0 inet manual\niface eth0 inet6 manual\n\
                     iface eth1 inet dhcp\n";
        assert_eq!(with_manual(before, "eth0"), after);
        assert_eq!(with_manual(after, "eth0"), after);
    }

    #[test]
    fn comments_and_options_stay() {
        let text = "# iface eth0 inet dhcp\niface eth0 inet manual\n    mtu 1400\n";
        assert_eq!(with_manual(text, "eth0"), text);
    }
}
