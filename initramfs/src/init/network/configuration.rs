//! An IPv4 configuration: what is known about it, and how it is said to others.
//!
//! Pure: it is turned into arguments of `ip`, and into the notes that the booted system reads.

use std::{fmt::Write as _, net::Ipv4Addr};

use super::super::address::{host_name, prefix_of};

/// The smallest MTU that IPv4 allows.
const MTU_MIN: u32 = 68;

/// Everything that an interface is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The address of the machine.
    pub address: Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
    /// The way out.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, best first.
    pub dns: Vec<Ipv4Addr>,
    /// The domain to search names in.
    pub domain: Option<String>,
    /// The name of the machine.
    pub host_name: Option<String>,
    /// The DHCP or boot server.
    pub server: Option<Ipv4Addr>,
    /// The largest packet, if it is not the usual one.
    pub mtu: Option<u32>,
    /// How long a lease is good for; `None` is not a lease.
    pub lease_seconds: Option<u32>,
}

impl Configuration {
    /// A configuration of only an address.
    pub fn of(address: Ipv4Addr) -> Self {
        Self {
            address,
            prefix: 32,
            gateway: None,
            dns: Vec::new(),
            domain: None,
            host_name: None,
            server: None,
            mtu: None,
            lease_seconds: None,
        }
    }

    /// Reads a lease as `dhcp.sh` writes it, one `NAME=VALUE` a line; `None` if it has no
    /// address. Values that make no sense are left out: a lease is a stranger's word.
    pub fn of_lease(text: &str) -> Option<Self> {
        let value = |wanted: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            pairs
                .find(|(name, _)| *name == wanted)
                .map_or("", |(_, value)| value)
        };
        let addresses = |name: &str| -> Vec<Ipv4Addr> {
            let words = value(name).split_whitespace();
            words
                .filter_map(|word| word.parse().ok())
                .filter(|address: &Ipv4Addr| !address.is_unspecified())
                .collect()
        };
        let netmask = addresses("subnet").first().copied();
        Some(Self {
            prefix: netmask.and_then(prefix_of).unwrap_or(24),
            gateway: addresses("router").first().copied(),
            dns: addresses("dns"),
            domain: host_name(value("domain")),
            host_name: host_name(value("hostname")),
            server: addresses("serverid").first().copied(),
            mtu: value("mtu").parse().ok().filter(|mtu| *mtu >= MTU_MIN),
            lease_seconds: Some(value("lease").parse().unwrap_or(0)),
            ..Self::of(*addresses("ip").first()?)
        })
    }

    /// Returns the netmask.
    pub fn netmask(&self) -> Ipv4Addr {
        let host_bits = 32 - u32::from(self.prefix.min(32));
        Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    fn broadcast(&self) -> Ipv4Addr {
        self.address | !self.netmask()
    }

    fn is_neighbour(&self, other: Ipv4Addr) -> bool {
        self.address & self.netmask() == other & self.netmask()
    }

    /// Returns the arguments of `ip`, call by call, that give `device` this configuration.
    pub fn ip_calls(&self, device: &str) -> Vec<Vec<String>> {
        let mut calls = vec![format!("addr flush dev {device}")];
        let (address, prefix) = (self.address, self.prefix);
        let broadcast = match self.prefix {
            31.. => String::new(),
            _ => format!(" broadcast {}", self.broadcast()),
        };
        calls.push(format!(
            "addr add {address}/{prefix}{broadcast} dev {device}"
        ));
        if let Some(gateway) = self.gateway {
            // Clouds hand out /32 addresses with a gateway outside of them.
            if !self.is_neighbour(gateway) {
                calls.push(format!("route replace {gateway}/32 dev {device}"));
            }
            calls.push(format!("route replace default via {gateway} dev {device}"));
        }
        calls.into_iter().map(|call| words(&call)).collect()
    }

    /// Returns the arguments of the call of `ip` before these, if there is one. It may fail: the interface may not be able
    /// to do what a lease says, and works without.
    pub fn mtu_call(&self, device: &str) -> Option<Vec<String>> {
        let mtu = self.mtu?;
        Some(words(&format!("link set dev {device} mtu {mtu}")))
    }

    /// Returns the text of a `resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        if let Some(domain) = &self.domain {
            text.push_str(&format!("search {domain}\n"));
        }
        for server in &self.dns {
            text.push_str(&format!("nameserver {server}\n"));
        }
        text
    }

    /// Returns what klibc's `ipconfig` writes to `/run/net-DEVICE.conf`: shell assignments
    /// that cloud-init, live-boot and others read.
    pub fn klibc_note(&self, device: &str) -> String {
        let or_zero = |address: Option<Ipv4Addr>| address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let text = |name: &Option<String>| name.clone().unwrap_or_default();
        let protocol = match self.lease_seconds {
            Some(_) => "dhcp",
            None => "none",
        };
        let assignments = [
            ("DEVICE", device.to_owned()),
            ("PROTO", protocol.to_owned()),
            ("IPV4ADDR", self.address.to_string()),
            ("IPV4BROADCAST", self.broadcast().to_string()),
            ("IPV4NETMASK", self.netmask().to_string()),
            ("IPV4GATEWAY", or_zero(self.gateway).to_string()),
            ("IPV4DNS0", or_zero(self.dns.first().copied()).to_string()),
            ("IPV4DNS1", or_zero(self.dns.get(1).copied()).to_string()),
            ("HOSTNAME", text(&self.host_name)),
            ("DNSDOMAIN", text(&self.domain)),
            ("ROOTSERVER", or_zero(self.server).to_string()),
            ("DHCPLEASETIME", self.lease_seconds.unwrap_or(0).to_string()),
            ("DOMAINSEARCH", text(&self.domain)),
        ];
        // No value can hold a quote: they are numbers, addresses and checked names.
        assignments
            .iter()
            .fold(String::new(), |mut text, (name, value)| {
                writeln!(text, "{name}='{value}'")
                    .expect("a String takes all that is written to it");
                text
            })
    }
}

fn words(call: &str) -> Vec<String> {
    call.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: &str = "ip=10.0.2.15\nsubnet=255.255.255.0\nrouter=10.0.2.2 10.0.2.9\ndns=10.0.2.3\n\
                         domain=lab.example\nhostname=$(reboot)\nserverid=10.0.2.2\nmtu=1460\nlease=86400\n";

    fn calls(configuration: &Configuration) -> Vec<String> {
        let calls = configuration.ip_calls("eth0").into_iter();
        calls.map(|call| call.join(" ")).collect()
    }

    #[test]
    fn a_lease_becomes_calls_of_ip() {
        let configuration = Configuration::of_lease(LEASE).unwrap();
        let expected = [
            "addr flush dev eth0",
            "addr add 10.0.2.15/24 broadcast 10.0.2.255 dev eth0",
            "route replace default via 10.0.2.2 dev eth0",
        ];
        assert_eq!(calls(&configuration), expected);
        // By itself, for it may fail: a lease may name more than the interface can do.
        let mtu = configuration.mtu_call("eth0").unwrap();
        assert_eq!(mtu.join(" "), "link set dev eth0 mtu 1460");
    }

    #[test]
    fn a_gateway_outside_the_network_gets_a_route_of_its_own() {
        let lease = "ip=10.132.0.7\nsubnet=255.255.255.255\nrouter=10.132.0.1\n";
        let configuration = Configuration::of_lease(lease).unwrap();
        let expected = [
            "addr flush dev eth0",
            "addr add 10.132.0.7/32 dev eth0",
            "route replace 10.132.0.1/32 dev eth0",
            "route replace default via 10.132.0.1 dev eth0",
        ];
        assert_eq!(calls(&configuration), expected);
    }

    #[test]
    fn a_lease_without_an_address_is_none() {
        assert_eq!(Configuration::of_lease(""), None);
        assert_eq!(
            Configuration::of_lease("ip=0.0.0.0\nsubnet=255.0.0.0\n"),
            None
        );
    }

    #[test]
    fn a_host_name_that_is_a_command_is_left_out() {
        let configuration = Configuration::of_lease(LEASE).unwrap();
        assert_eq!(configuration.host_name, None);
        assert_eq!(configuration.domain.as_deref(), Some("lab.example"));
    }

    #[test]
    fn resolv_conf_names_domain_and_servers() {
        let configuration = Configuration::of_lease(LEASE).unwrap();
        let expected = "search lab.example\nnameserver 10.0.2.3\n";
        assert_eq!(configuration.resolv_conf(), expected);
    }

    #[test]
    fn the_klibc_note_is_what_ipconfig_writes() {
        let note = Configuration::of_lease(LEASE).unwrap().klibc_note("eth0");
        for line in [
            "DEVICE='eth0'",
            "PROTO='dhcp'",
            "IPV4ADDR='10.0.2.15'",
            "IPV4NETMASK='255.255.255.0'",
            "IPV4DNS1='0.0.0.0'",
        ] {
            assert!(note.lines().any(|found| found == line), "{line} in {note}");
        }
    }
}
