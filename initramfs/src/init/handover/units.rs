//! What network managers are told, in their own languages. Texts only.

use super::super::{address::MacAddress, network::configuration::Configuration};

/// For cloud-init: the network is there already.
pub(super) const CLOUD_INIT: &str = "\
# The root of this machine hangs on the network that its initramfs brought up.
network: {config: disabled}
";

/// The program that systemd becomes at the end of a machine.
pub(super) const SHUTDOWN: &str = "/usr/lib/systemd/systemd-shutdown";

/// What systemd runs when a machine is switched off, and nothing runs before.
const FOR_POWER_OFF: [&str; 11] = [
    SHUTDOWN,
    "/usr/bin/systemctl",
    "/usr/bin/loginctl",
    "/usr/bin/umount",
    "/usr/sbin/swapoff",
    "/usr/lib/systemd/systemd-random-seed",
    "/usr/lib/systemd/systemd-update-utmp",
    "/usr/lib/systemd/systemd-user-runtime-dir",
    "/usr/lib/systemd/user/exit.target",
    "/usr/lib/systemd/user/shutdown.target",
    "/usr/lib/systemd/user/systemd-exit.service",
];

/// Name of the unit that reads it.
pub(super) const POWER_OFF: &str = "circular-power-off.service";

/// For systemd: what the end of the machine takes is read when it has come up, so that it is in the cache, and in
/// the boot pack, when it is switched off because its server is gone. What an image lacks is passed over. To be
/// asked about its units makes systemd read them.
pub(super) fn power_off() -> String {
    format!(
        "# The root of this machine is on a server, which may be gone when the machine is switched off.\n\
         [Unit]\nDescription=Read what it takes to switch off\n\
         DefaultDependencies=no\nAfter=multi-user.target\n\n\
         [Service]\nType=oneshot\nStandardOutput=null\nStandardError=null\nNice=19\n\
         ExecStart=-/bin/cat {}\n\
         ExecStart=-/usr/bin/systemctl show --property=Id poweroff.target reboot.target halt.target \
         systemd-poweroff.service systemd-reboot.service systemd-halt.service\n",
        FOR_POWER_OFF.join(" ")
    )
}

/// For udev: the interface keeps its name and address. Renaming it would make it match
/// configuration that was written for another boot.
pub(super) fn udev_link(device: &str, mac: MacAddress) -> String {
    format!(
        "# The root of this machine hangs on this interface.\n\
         [Match]\nMACAddress={mac}\n\n\
         [Link]\nName={device}\nMACAddressPolicy=none\n"
    )
}

/// For systemd-networkd: configure the interface as it is configured, never take that away.
/// The name of the file sorts before those of images, and the first that matches counts.
pub(super) fn networkd(mac: MacAddress, configuration: Option<&Configuration>) -> String {
    let mut text = format!(
        "# The root of this machine hangs on this interface.\n\
         [Match]\nMACAddress={mac}\n\n\
         [Network]\nKeepConfiguration=yes\n"
    );
    let Some(configuration) = configuration else {
        return text;
    };
    if configuration.lease_seconds.is_some() {
        // The client identifier of udhcpc, so that the server renews the same lease.
        text.push_str("DHCP=ipv4\n\n[DHCPv4]\nClientIdentifier=mac\n");
        return text;
    }
    text.push_str(&format!(
        "Address={}/{}\n",
        configuration.address, configuration.prefix
    ));
    for server in &configuration.dns {
        text.push_str(&format!("DNS={server}\n"));
    }
    if let Some(gateway) = configuration.gateway {
        text.push_str(&format!(
            "\n[Route]\nGateway={gateway}\nGatewayOnLink=yes\nMetric=1024\n"
        ));
    }
    text
}

/// For NetworkManager: hands off.
pub(super) fn network_manager(mac: MacAddress) -> String {
    format!(
        "# The root of this machine hangs on this interface.\n\
         [device-circular]\nmatch-device=mac:{mac}\nmanaged=0\n"
    )
}

/// For systemd-resolved: the name servers of this network.
pub(super) fn resolved(configuration: &Configuration) -> String {
    let servers: Vec<_> = configuration.dns.iter().map(ToString::to_string).collect();
    let mut text = format!("[Resolve]\nDNS={}\n", servers.join(" "));
    if let Some(domain) = &configuration.domain {
        text.push_str(&format!("Domains={domain}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_is_told_the_servers_of_the_lease() {
        let lease =
            "ip=10.0.2.15\nsubnet=255.255.255.0\ndns=10.0.2.3 10.0.2.4\ndomain=lab.example\n";
        let configuration = Configuration::of_lease(lease).unwrap();
        let text = "[Resolve]\nDNS=10.0.2.3 10.0.2.4\nDomains=lab.example\n";
        assert_eq!(resolved(&configuration), text);
    }

    fn mac() -> MacAddress {
        "52:54:00:12:34:56".parse().unwrap()
    }

    #[test]
    fn networkd_renews_a_lease_and_repeats_a_static_address() {
        let lease = Configuration::of_lease("ip=10.0.2.15\nlease=60\n").unwrap();
        let text = networkd(mac(), Some(&lease));
        assert!(text.contains("KeepConfiguration=yes\nDHCP=ipv4\n"));
        let fixed = Configuration {
            prefix: 24,
            gateway: Some([10, 0, 2, 2].into()),
            ..Configuration::of([10, 0, 2, 15].into())
        };
        let text = networkd(mac(), Some(&fixed));
        assert!(text.contains("Address=10.0.2.15/24\n") && text.contains("Gateway=10.0.2.2\n"));
        assert!(!text.contains("DHCP"));
    }

    #[test]
    fn what_it_takes_to_switch_off_is_read_in_time() {
        let text = power_off();
        assert!(text.contains("ExecStart=-/bin/cat /usr/lib/systemd/systemd-shutdown /usr/bin"));
        // The target must not wait for it, so it must not be ordered before it.
        assert!(text.contains("DefaultDependencies=no\nAfter=multi-user.target\n"));
    }

    #[test]
    fn every_note_names_the_interface_by_its_address() {
        for text in [
            udev_link("eth0", mac()),
            networkd(mac(), None),
            network_manager(mac()),
        ] {
            assert!(text.contains("52:54:00:12:34:56"), "{text}");
        }
    }
}
