//! Tells the booted system what it must know and what it must leave alone.
//!
//! The root of the booted system hangs on the network interface that init brought up. Whatever
//! manages networks in the image is told, in its own language, to keep the address; `fstab` must not
//! make the boot wait for or check disks that are not as they were. Only notes for a system that
//! the image has are written; files of the image change in the overlay only.
//!
//! A note that cannot be written is a warning, never the end of a boot.

use std::{fs, io, path::Path};

use self::new_root::NewRoot;
use super::{
    cmdline::Settings,
    log::Log,
    mounts::NEW_ROOT,
    network::{Network, configuration::Configuration},
};

mod fstab;
mod ifupdown;
pub(super) mod new_root;
mod units;

/// Writes all notes.
pub(super) fn prepare(
    log: &Log,
    settings: &Settings,
    network: Option<&Network>,
    image: Option<Vec<u8>>,
) {
    let say = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            log.warn(&format!(
                "cannot write {what} for the booted system: {error}"
            ));
        }
    };
    say("image.json", write_image(settings, network, image));
    let root = match NewRoot::open(Path::new(NEW_ROOT)) {
        Ok(root) => root,
        Err(error) => return say("anything", Err(error)),
    };
    let fstab = root.read("/etc/fstab").ok().flatten().unwrap_or_default();
    for place in fstab::read_only_places(&fstab) {
        log.warn(&format!(
            "{place} is a file system of its own in the image, and read-only here: only what is written to / is kept until power-off"
        ));
    }
    say(
        "/etc/fstab",
        rewrite(&root, "/etc/fstab", fstab::for_network_boot),
    );
    let selinux = root
        .read("/etc/selinux/config")
        .ok()
        .flatten()
        .unwrap_or_default();
    if enforces_selinux(
        &selinux,
        &fs::read_to_string("/proc/cmdline").unwrap_or_default(),
    ) {
        log.warn("the image enforces SELinux, which denies much on a root that is an overlay in memory: publish it with --cmdline enforcing=0");
    }
    say("what it takes to switch off", write_power_off(&root));
    let Some(network) = network else {
        return;
    };
    say("network units", write_units(&root, network));
    say(
        "/etc/network/interfaces",
        keep_from_ifupdown(&root, network),
    );
    say("cloud-init's configuration", keep_from_cloud_init(&root));
    if let Some(configuration) = &network.configuration {
        say(
            "/etc/resolv.conf",
            write_resolv_conf(log, &root, configuration),
        );
        say("name servers", write_resolved(&root, configuration));
    }
}

/// `/run/circular/image.json`: what this machine booted, for people and programs in it.
fn write_image(
    settings: &Settings,
    network: Option<&Network>,
    image: Option<Vec<u8>>,
) -> io::Result<()> {
    let image: Option<serde_json::Value> = image
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()?;
    let note = serde_json::json!({
        "reference": settings.image,
        "base_url": settings.base_url,
        "interface": network.map(|network| &network.device),
        "image": image,
    });
    let mut text = serde_json::to_vec_pretty(&note)?;
    text.push(b'\n');
    fs::write("/run/circular/image.json", text)
}

fn write_units(root: &NewRoot, network: &Network) -> io::Result<()> {
    let Some(mac) = network.mac else {
        return Ok(());
    };
    let device = &network.device;
    let has = |paths: &[&str]| paths.iter().any(|path| root.exists(path));
    let mut notes = Vec::new();
    if has(&[
        "/usr/lib/systemd/systemd-udevd",
        "/lib/systemd/systemd-udevd",
        "/usr/bin/udevadm",
    ]) {
        let path = "/run/systemd/network/00-circular.link";
        notes.push((path, units::udev_link(device, mac)));
    }
    if has(&[
        "/usr/lib/systemd/systemd-networkd",
        "/lib/systemd/systemd-networkd",
    ]) {
        let path = "/run/systemd/network/00-circular.network";
        notes.push((path, units::networkd(mac, network.configuration.as_ref())));
    }
    if has(&["/usr/sbin/NetworkManager"]) {
        let path = "/run/NetworkManager/conf.d/00-circular.conf";
        notes.push((path, units::network_manager(mac)));
    }
    for (path, text) in notes {
        if let Some(parent) = Path::new(path).parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

/// A unit that reads what the end of the machine takes while there is a server to read it from.
fn write_power_off(root: &NewRoot) -> io::Result<()> {
    if !root.exists(units::SHUTDOWN) {
        return Ok(());
    }
    let directory = Path::new("/run/systemd/system");
    let wants = directory.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    let unit = directory.join(units::POWER_OFF);
    fs::write(&unit, units::power_off())?;
    std::os::unix::fs::symlink(&unit, wants.join(units::POWER_OFF))
}

fn keep_from_ifupdown(root: &NewRoot, network: &Network) -> io::Result<()> {
    let manual = |text: &str| ifupdown::with_manual(text, &network.device);
    rewrite(root, "/etc/network/interfaces", manual)?;
    let directory = "/etc/network/interfaces.d";
    for name in root.list(directory)? {
        rewrite(root, &format!("{directory}/{name}"), manual)?;
    }
    Ok(())
}

fn keep_from_cloud_init(root: &NewRoot) -> io::Result<()> {
    if !root.exists("/etc/cloud/cloud.cfg.d") {
        return Ok(());
    }
    let path = "/etc/cloud/cloud.cfg.d/99-circular.cfg";
    root.write(path, units::CLOUD_INIT.as_bytes())
}

/// Name servers for a system that has none of its own. Those in a file are of the network where the image was installed; a link
/// is the business of whatever it links to.
fn write_resolv_conf(log: &Log, root: &NewRoot, configuration: &Configuration) -> io::Result<()> {
    let path = "/etc/resolv.conf";
    let present = root.read(path)?.unwrap_or_default();
    if is_resolved_here(&present) || root.is_link(path) || configuration.dns.is_empty() {
        return Ok(());
    }
    if name_servers(&present).next().is_some() {
        log.info(
            "the name servers are those of this network, not those in the image's /etc/resolv.conf",
        );
    }
    root.write(path, configuration.resolv_conf().as_bytes())
}

fn name_servers(resolv_conf: &str) -> impl Iterator<Item = &str> {
    let lines = resolv_conf.lines().map(str::trim);
    lines.filter_map(|line| Some(line.strip_prefix("nameserver")?.trim()))
}

/// Whether names are the business of a server in the machine itself.
fn is_resolved_here(resolv_conf: &str) -> bool {
    name_servers(resolv_conf).any(|server| server.starts_with("127.") || server == "::1")
}

/// Tells systemd-resolved, whom nobody tells where NetworkManager was told to leave the interface alone.
fn write_resolved(root: &NewRoot, configuration: &Configuration) -> io::Result<()> {
    let has = [
        "/usr/lib/systemd/systemd-resolved",
        "/lib/systemd/systemd-resolved",
    ];
    if configuration.dns.is_empty() || !has.iter().any(|path| root.exists(path)) {
        return Ok(());
    }
    let directory = Path::new("/run/systemd/resolved.conf.d");
    fs::create_dir_all(directory)?;
    fs::write(
        directory.join("00-circular.conf"),
        units::resolved(configuration),
    )
}

/// Whether SELinux enforces, as its configuration and the kernel's command line say.
fn enforces_selinux(config: &str, cmdline: &str) -> bool {
    let enforcing = config
        .lines()
        .any(|line| line.trim() == "SELINUX=enforcing");
    let mut words = cmdline.split_whitespace();
    enforcing && !words.any(|word| word == "enforcing=0" || word == "selinux=0")
}

/// Changes a text file of the image, if it is there and the change is one.
fn rewrite(root: &NewRoot, path: &str, change: impl Fn(&str) -> String) -> io::Result<()> {
    let Some(before) = root.read(path)? else {
        return Ok(());
    };
    let after = change(&before);
    if after == before {
        return Ok(());
    }
    root.write(path, after.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_another_network_are_told_from_one_in_the_machine() {
        let elsewhere =
            "# made by hand\nsearch lab\n nameserver 192.168.122.1\nnameserver\t10.0.0.1\n";
        assert_eq!(
            name_servers(elsewhere).collect::<Vec<_>>(),
            ["192.168.122.1", "10.0.0.1"]
        );
        assert!(!is_resolved_here(elsewhere));
        assert!(is_resolved_here("nameserver 127.0.0.53\n"));
        assert!(is_resolved_here("nameserver 10.0.0.1\nnameserver ::1\n"));
        assert!(!is_resolved_here(""));
    }

    #[test]
    fn selinux_that_enforces_is_noticed_unless_the_kernel_was_told_otherwise() {
        let config = "# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n";
        assert!(enforces_selinux(config, "quiet splash"));
        assert!(!enforces_selinux(config, "quiet enforcing=0"));
        assert!(!enforces_selinux(config, "selinux=0"));
        assert!(!enforces_selinux("SELINUX=permissive\n", ""));
        assert!(!enforces_selinux("", ""));
    }
}
