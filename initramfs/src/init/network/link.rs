//! Which network interface to boot over; decides, touches nothing.

use super::super::address::MacAddress;

/// What is known about a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its address, if it is an Ethernet one.
    pub address: Option<MacAddress>,
    /// Whether a device stands behind it, not a program or a bridge.
    pub is_device: bool,
    /// Whether the other end of the cable answers; false while the interface is down.
    pub has_carrier: bool,
}

/// Which interface is wanted; nothing set is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// One of this name (`ip=`).
    pub name: Option<String>,
    /// The one that the firmware booted from (`BOOTIF=`).
    pub address: Option<MacAddress>,
}

impl Wanted {
    /// Says whether a certain interface is asked for.
    pub fn is_certain(&self) -> bool {
        self.name.is_some() || self.address.is_some()
    }

    fn fits(&self, link: &Link) -> bool {
        match (&self.name, self.address) {
            (Some(name), _) => link.name == *name,
            (None, Some(address)) => link.address == Some(address),
            (None, None) => link.is_device && link.address.is_some(),
        }
    }

    /// Returns the links that fit, those with a carrier first, else in the order of their names.
    pub fn candidates<'a>(&self, links: &'a [Link]) -> Vec<&'a Link> {
        let mut fitting: Vec<&Link> = links.iter().filter(|link| self.fits(link)).collect();
        fitting.sort_by_key(|link| (!link.has_carrier, link.name.len(), link.name.as_str()));
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, last: u8, has_carrier: bool) -> Link {
        Link {
            name: name.to_owned(),
            address: format!("52:54:00:00:00:{last:02x}").parse().ok(),
            is_device: name != "lo",
            has_carrier,
        }
    }

    fn names(wanted: &Wanted, links: &[Link]) -> Vec<String> {
        let candidates = wanted.candidates(links).into_iter();
        candidates.map(|link| link.name.clone()).collect()
    }

    #[test]
    fn a_link_with_carrier_comes_first_then_the_order_of_names() {
        let links = [
            link("lo", 0, true),
            link("eth10", 4, true),
            link("eth0", 1, false),
            link("eth2", 3, true),
        ];
        assert_eq!(names(&Wanted::default(), &links), ["eth2", "eth10", "eth0"]);
    }

    #[test]
    fn the_interface_of_the_firmware_is_the_only_one() {
        let links = [link("eth0", 1, true), link("eth1", 2, false)];
        let address = "52:54:00:00:00:02".parse().ok();
        let wanted = Wanted {
            name: None,
            address,
        };
        assert_eq!(names(&wanted, &links), ["eth1"]);
    }

    #[test]
    fn a_name_beats_the_address() {
        let links = [link("eth0", 1, true), link("eth1", 2, false)];
        let wanted = Wanted {
            name: Some("eth0".to_owned()),
            address: "52:54:00:00:00:02".parse().ok(),
        };
        assert_eq!(names(&wanted, &links), ["eth0"]);
    }
}
