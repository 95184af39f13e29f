//! Reads `ip=`, `BOOTIF=` and what belongs to them.
//!
//! `ip=` is that of the kernel (Documentation/admin-guide/nfs/nfsroot.rst):
//! `ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS0:DNS1:NTP0` or
//! `ip=AUTOCONF`. iPXE scripts fill it with the lease that iPXE has; fields may be empty.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use super::network::configuration::Configuration;

/// How an interface gets its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressing {
    /// The interface to use, if a certain one is wanted.
    pub device: Option<String>,
    /// Where the address comes from.
    pub method: Method,
}

/// Where an address comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// From a DHCP server.
    Dhcp,
    /// From the command line.
    Static(Configuration),
    /// From nowhere: leave the network as it is.
    Off,
}

impl Addressing {
    /// What is done without `ip=`: DHCP on the first interface that has a link.
    pub const DEFAULT: Self = Self {
        device: None,
        method: Method::Dhcp,
    };
}

/// Why an `ip=` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A field is not an IPv4 address.
    #[error("{field} `{value}` in ip= is not an IPv4 address")]
    NotIpv4 {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// A netmask with holes.
    #[error("netmask {0} in ip= is not a row of ones followed by zeros")]
    Netmask(Ipv4Addr),
    /// A method that does not exist.
    #[error("method `{0}` in ip= is unknown (dhcp, on, any, off and none are known)")]
    Method(String),
    /// Not the name of a network interface.
    #[error("`{0}` in ip= is not the name of a network interface")]
    Device(String),
}

impl FromStr for Addressing {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if !text.contains(':') {
            let method = if dhcp_wanted(text)?.unwrap_or(true) {
                Method::Dhcp
            } else {
                Method::Off
            };
            return Ok(Self {
                device: None,
                method,
            });
        }
        let mut fields = text.split(':');
        let mut next = || fields.next().unwrap_or("");
        let client = ipv4("client address", next())?;
        let server = ipv4("server address", next())?;
        let gateway = ipv4("gateway", next())?;
        let netmask = ipv4("netmask", next())?;
        let host_name = host_name(next());
        let device = device(next())?;
        let dhcp = dhcp_wanted(next())?;
        let dns = [ipv4("DNS server", next())?, ipv4("DNS server", next())?];
        let method = match (client, dhcp) {
            (_, Some(true)) | (None, None) => Method::Dhcp,
            (None, Some(false)) => Method::Off,
            (Some(address), _) => Method::Static(Configuration {
                prefix: match netmask {
                    Some(mask) => prefix_of(mask).ok_or(AddressError::Netmask(mask))?,
                    None => prefix_of_class(address),
                },
                gateway,
                dns: dns.into_iter().flatten().collect(),
                host_name,
                server,
                ..Configuration::of(address)
            }),
        };
        Ok(Self { device, method })
    }
}

fn dhcp_wanted(method: &str) -> Result<Option<bool>, AddressError> {
    match method {
        "" => Ok(None),
        "dhcp" | "on" | "any" | "both" | "bootp" | "rarp" => Ok(Some(true)),
        "off" | "none" | "static" => Ok(Some(false)),
        _ => Err(AddressError::Method(method.to_owned())),
    }
}

/// An unset address is written as nothing or as 0.0.0.0.
fn ipv4(field: &'static str, value: &str) -> Result<Option<Ipv4Addr>, AddressError> {
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse() {
        Ok(Ipv4Addr::UNSPECIFIED) => Ok(None),
        Ok(address) => Ok(Some(address)),
        Err(_) => {
            let value = value.to_owned();
            Err(AddressError::NotIpv4 { field, value })
        }
    }
}

fn device(name: &str) -> Result<Option<String>, AddressError> {
    let odd = |character: char| character == '/' || !character.is_ascii_graphic();
    if name.is_empty() {
        Ok(None)
    } else if name.len() > 15 || name.starts_with(['-', '.']) || name.contains(odd) {
        Err(AddressError::Device(name.to_owned()))
    } else {
        Ok(Some(name.to_owned()))
    }
}

/// Takes a host name or domain if it is one; DHCP servers say all kinds of things.
pub(super) fn host_name(text: &str) -> Option<String> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    let good = (1..=253).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with(['-', '.']);
    good.then(|| text.to_owned())
}

/// Counts the ones of a netmask; `None` if it has holes.
pub(super) fn prefix_of(netmask: Ipv4Addr) -> Option<u8> {
    let bits = netmask.to_bits();
    let ones = u8::try_from(bits.leading_ones()).ok()?;
    (bits.count_ones() == bits.leading_ones()).then_some(ones)
}

/// The kernel's guess where no netmask is given.
fn prefix_of_class(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// Not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an Ethernet address")]
pub struct MacAddressError(String);

impl MacAddress {
    /// Reads `BOOTIF=`, as PXELINUX writes it: `01-` (Ethernet), then the address with dashes.
    ///
    /// # Errors
    /// Fails if the rest is no Ethernet address.
    pub fn of_bootif(text: &str) -> Result<Self, MacAddressError> {
        let ethernet = text.strip_prefix("01-").filter(|rest| rest.len() == 17);
        let address = ethernet.unwrap_or(text);
        address.parse()
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let refused = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(['-', ':']);
        for byte in &mut bytes {
            let digits =
                |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(refused)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        parts.next().map_or(Ok(Self(bytes)), |_| Err(refused()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Addressing {
        text.parse().unwrap()
    }

    #[test]
    fn what_ipxe_hands_over_is_a_static_address() {
        let addressing = parse("10.0.2.15::10.0.2.2:255.255.255.0:node7::none:10.0.2.3");
        let Method::Static(configuration) = addressing.method else {
            panic!("{addressing:?}");
        };
        assert_eq!(configuration.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(configuration.prefix, 24);
        assert_eq!(configuration.gateway, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(configuration.host_name.as_deref(), Some("node7"));
        assert_eq!(configuration.dns, [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(addressing.device, None);
    }

    #[test]
    fn every_way_to_say_dhcp_is_dhcp() {
        for text in [
            "dhcp",
            "on",
            "any",
            "",
            ":::::eth0:dhcp",
            "::::::",
            ":::::eth0:",
        ] {
            assert_eq!(parse(text).method, Method::Dhcp, "{text}");
        }
        assert_eq!(parse(":::::eth0:dhcp").device.as_deref(), Some("eth0"));
    }

    #[test]
    fn off_leaves_the_network_alone() {
        for text in ["off", "none", "::::::none"] {
            assert_eq!(parse(text).method, Method::Off, "{text}");
        }
    }

    #[test]
    fn an_address_without_method_is_static_and_without_mask_of_its_class() {
        for (text, prefix) in [
            ("10.1.1.1:", 8),
            ("172.16.0.1:::::eth1", 16),
            ("192.168.1.1:", 24),
        ] {
            let Method::Static(configuration) = parse(text).method else {
                panic!("{text}");
            };
            assert_eq!(configuration.prefix, prefix, "{text}");
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        for (text, named) in [
            ("10.0.0.300:", "client address"),
            ("10.0.0.1:::255.0.255.0", "netmask"),
            ("10.0.0.1:::::::[::1]", "DNS"),
            ("maybe", "method"),
            (":::::../etc:dhcp", "network interface"),
        ] {
            let error = text.parse::<Addressing>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn bootif_names_an_ethernet_address() {
        let address = MacAddress::of_bootif("01-52-54-00-12-34-5A").unwrap();
        assert_eq!(address.to_string(), "52:54:00:12:34:5a");
        assert_eq!("52:54:00:12:34:5a".parse(), Ok(address));
        for text in [
            "",
            "01-52",
            "52:54:00:12:34:5a:77",
            "zz:54:00:12:34:5a",
            "+2:54:00:12:34:5a",
        ] {
            assert!(MacAddress::of_bootif(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// Any netmask made of a prefix gives the prefix back.
        #[test]
        fn a_prefix_survives_its_netmask(prefix in 0..=32_u8) {
            let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            prop_assert_eq!(prefix_of(Ipv4Addr::from_bits(bits)), Some(prefix));
        }

        /// Any text: an answer, never a panic.
        #[test]
        fn parsing_never_panics(text in "[0-9a-z:.\\[\\]]{0,60}") {
            let _ = text.parse::<Addressing>();
            let _ = MacAddress::of_bootif(&text);
        }
    }
}
