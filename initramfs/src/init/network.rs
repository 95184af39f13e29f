//! Brings the network up: picks an interface, gives it an address, writes down what was done.

use std::{
    fs, io,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use self::{
    configuration::Configuration,
    link::{Link, Wanted},
};
use super::{
    address::{MacAddress, Method},
    cmdline::Settings,
    command::busybox,
    drivers::Drivers,
    failure::BootError,
    log::Log,
};
use crate::layout;

pub mod configuration;
pub mod link;

/// A slow USB or firmware-laden card takes up to half of this.
const INTERFACE_WAIT: Duration = Duration::from_secs(60);
/// A switch that runs spanning tree holds a port back for 30 s.
const CARRIER_WAIT: Duration = Duration::from_secs(40);
/// Between two leases that the kernel did not take.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How often to look again.
const POLL: Duration = Duration::from_millis(100);
/// How often to say that we still wait.
const PROGRESS: Duration = Duration::from_secs(5);

/// A network that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The interface.
    pub device: String,
    /// Its Ethernet address.
    pub mac: Option<MacAddress>,
    /// What it was configured with; `None` if it was left as it was.
    pub configuration: Option<Configuration>,
}

/// The lease of a network that is up, for as long as init itself waits: a machine that is switched on before its server
/// may wait for longer than its address is its own. Later the system of the image is in charge.
#[derive(Debug)]
pub(super) struct Lease {
    network: Option<Network>,
    /// When half of it is over.
    due: Option<Instant>,
}

/// Before a server is asked again that did not renew a lease.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

impl Lease {
    /// The lease of a network that was just brought up.
    pub(super) fn of(network: Option<Network>) -> Self {
        let mut lease = Self { network, due: None };
        lease.due = lease.half().map(|half| Instant::now() + half);
        lease
    }

    /// Ends looking after it.
    pub(super) fn into_network(self) -> Option<Network> {
        self.network
    }

    fn half(&self) -> Option<Duration> {
        let configuration = self.network.as_ref()?.configuration.as_ref()?;
        renewal_after(configuration.lease_seconds?)
    }

    /// Asks for the same address again if it is time. A server that does not answer keeps nobody from going on.
    pub(super) fn renew_if_due(&mut self, log: &Log) {
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        let Some(network) = self.network.as_mut().filter(|_| is_due) else {
            return;
        };
        let before = network.configuration.as_ref();
        let asked = ask_dhcp(&network.device, before.map(|before| before.address));
        let Some(renewed) = asked else {
            log.warn(&format!(
                "the lease of {} was not renewed, trying again",
                network.device
            ));
            self.due = Some(Instant::now() + RENEWAL_PAUSE);
            return;
        };
        let is_other = |before: &Configuration| {
            (before.address, before.prefix, before.gateway)
                != (renewed.address, renewed.prefix, renewed.gateway)
        };
        if before.is_none_or(is_other) {
            if let Err(error) = change_to(log, network, &renewed) {
                log.warn(&error.chain());
                // What was right before is better than nothing.
                if let Some(before) = network.configuration.clone()
                    && let Err(error) = change_to(log, network, &before)
                {
                    log.warn(&error.chain());
                    network.configuration = None;
                }
                self.due = Some(Instant::now() + RENEWAL_PAUSE);
                return;
            }
        } else {
            network.configuration = Some(renewed.clone());
        }
        write_notes(log, &network.device, &renewed);
        self.due = self.half().map(|half| Instant::now() + half);
    }
}

/// Configures the interface of a network anew.
fn change_to(
    log: &Log,
    network: &mut Network,
    configuration: &Configuration,
) -> Result<(), BootError> {
    let device = network.device.clone();
    // There may be none.
    let _ = ip(&device, &["addr", "flush", "dev", &device]);
    let link = links().into_iter().find(|link| link.name == device);
    let link = link.ok_or_else(|| BootError::NoInterface {
        seconds: 0,
        found: format!("{device} not any more"),
    })?;
    *network = configure(log, link, configuration.clone())?;
    Ok(())
}

/// When a lease of so many seconds is asked for again; `None` for one without an end, or that says none.
fn renewal_after(seconds: u32) -> Option<Duration> {
    let has_end = seconds != 0 && seconds != u32::MAX;
    has_end.then(|| RENEWAL_PAUSE.max(Duration::from_secs(u64::from(seconds) / 2)))
}

/// Brings the network up as `settings` say.
///
/// A static address is given to the first interface that fits, one with a carrier if there is any. DHCP asks on
/// all that fit, in turn, for ever: a machine that is switched on before its server must come up in the end.
pub(super) fn bring_up(
    log: &Log,
    drivers: &mut Drivers,
    settings: &Settings,
) -> Result<Option<Network>, BootError> {
    drivers.load_for_devices(log);
    if let Err(error) = busybox(&["ip", "link", "set", "dev", "lo", "up"]) {
        log.warn(&error.to_string());
    }
    if settings.addressing.method == Method::Off {
        log.info("ip=off: the network is left as it is");
        return Ok(None);
    }
    let mut wanted = Wanted {
        name: settings.addressing.device.clone(),
        address: settings.boot_interface,
    };
    wait_for_interface(log, drivers, &mut wanted)?;
    let network = match &settings.addressing.method {
        Method::Static(configuration) => by_command_line(log, &wanted, configuration)?,
        Method::Dhcp | Method::Off => by_dhcp(log, drivers, &wanted)?,
    };
    if let Some(configuration) = &network.configuration {
        write_notes(log, &network.device, configuration);
    }
    Ok(Some(network))
}

/// Waits until an interface that fits is there. A certain one that does not come is given up
/// for any other: a stale `BOOTIF=` must not keep a machine down.
fn wait_for_interface(
    log: &Log,
    drivers: &mut Drivers,
    wanted: &mut Wanted,
) -> Result<(), BootError> {
    loop {
        let found = poll(log, INTERFACE_WAIT, "a network interface", || {
            drivers.load_for_devices(log);
            !wanted.candidates(&links()).is_empty()
        });
        if found {
            return Ok(());
        }
        let names: Vec<String> = links().into_iter().map(|link| link.name).collect();
        if !wanted.is_certain() || Wanted::default().candidates(&links()).is_empty() {
            return Err(BootError::NoInterface {
                seconds: INTERFACE_WAIT.as_secs(),
                found: names.join(", "),
            });
        }
        log.warn("the wanted network interface does not come up, taking any");
        *wanted = Wanted::default();
    }
}

/// Switches all fitting interfaces on and waits until one has a carrier; then returns them.
fn with_carrier(log: &Log, wanted: &Wanted) -> Vec<Link> {
    for link in wanted.candidates(&links()) {
        // Another one may do.
        if let Err(error) = ip(&link.name, &["link", "set", "dev", &link.name, "up"]) {
            log.warn(&error.chain());
        }
    }
    let first_has_carrier = || {
        let links = links();
        let candidates = wanted.candidates(&links);
        candidates.first().is_some_and(|link| link.has_carrier)
    };
    if !poll(log, CARRIER_WAIT, "a network cable", first_has_carrier) {
        log.warn("no network interface has a carrier, trying all the same");
    }
    let links = links();
    wanted.candidates(&links).into_iter().cloned().collect()
}

fn by_command_line(
    log: &Log,
    wanted: &Wanted,
    configuration: &Configuration,
) -> Result<Network, BootError> {
    let links = with_carrier(log, wanted);
    let link = links
        .into_iter()
        .next()
        .ok_or_else(|| BootError::NoInterface {
            seconds: 0,
            found: "none any more".to_owned(),
        })?;
    configure(log, link, configuration.clone())
}

fn by_dhcp(log: &Log, drivers: &mut Drivers, wanted: &Wanted) -> Result<Network, BootError> {
    let mut round = 0_u64;
    loop {
        round += 1;
        drivers.load_for_devices(log);
        for link in with_carrier(log, wanted) {
            log.info(&format!(
                "asking for an address on {} (round {round})",
                link.name
            ));
            let Some(configuration) = ask_dhcp(&link.name, None) else {
                continue;
            };
            let name = link.name.clone();
            match configure(log, link, configuration) {
                // What a lease says is a stranger's word.
                Err(error) => {
                    log.warn(&error.chain());
                    // Half of it would be in the way of the next interface.
                    let _ = ip(&name, &["addr", "flush", "dev", &name]);
                    thread::sleep(REFUSED_PAUSE);
                }
                configured => return configured,
            }
        }
        log.warn("no DHCP server gives an address that can be used, trying again (networks with IPv6 only, and ports with tagged VLANs only, are not supported)");
    }
}

/// Asks once, for about ten seconds; for an `address`, if it is to be the one of before.
fn ask_dhcp(device: &str, address: Option<Ipv4Addr>) -> Option<Configuration> {
    let lease = format!("/run/circular/lease.{device}");
    // Most often there is no older one.
    let _ = fs::remove_file(&lease);
    let address = address.map(|address| address.to_string());
    let same: Vec<&str> = address.iter().flat_map(|address| ["-r", address]).collect();
    let call = [
        "udhcpc",
        "-f",
        "-q",
        "-n",
        "-t",
        "4",
        "-T",
        "2",
        "-A",
        "1",
        "-O",
        "mtu",
        "-i",
        device,
        "-s",
        layout::DHCP_SCRIPT,
    ];
    busybox(&[&call[..], &same].concat()).ok()?;
    Configuration::of_lease(&fs::read_to_string(&lease).ok()?)
}

fn configure(log: &Log, link: Link, configuration: Configuration) -> Result<Network, BootError> {
    let device = link.name;
    let call = |call: Vec<String>| {
        let words: Vec<&str> = call.iter().map(String::as_str).collect();
        ip(&device, &words)
    };
    if let Some(Err(error)) = configuration.mtu_call(&device).map(call) {
        log.warn(&error.chain());
    }
    configuration
        .ip_calls(&device)
        .into_iter()
        .try_for_each(call)?;
    let gateway = configuration
        .gateway
        .map(|gateway| format!(" via {gateway}"));
    log.info(&format!(
        "{device} has {}/{}{}",
        configuration.address,
        configuration.prefix,
        gateway.unwrap_or_default(),
    ));
    Ok(Network {
        device,
        mac: link.address,
        configuration: Some(configuration),
    })
}

fn ip(device: &str, arguments: &[&str]) -> Result<(), BootError> {
    let words: Vec<&str> = [&["ip"], arguments].concat();
    busybox(&words).map_err(|source| BootError::Interface {
        device: device.to_owned(),
        source,
    })
}

fn write_notes(log: &Log, device: &str, configuration: &Configuration) {
    let klibc = format!("/run/net-{device}.conf");
    let mut notes = vec![
        (klibc, configuration.klibc_note(device)),
        ("/etc/resolv.conf".to_owned(), configuration.resolv_conf()),
    ];
    if let Some(name) = &configuration.host_name {
        notes.push(("/proc/sys/kernel/hostname".to_owned(), name.clone()));
    }
    for (path, text) in notes {
        if let Err(error) = fs::write(&path, text) {
            log.warn(&format!("cannot write {path}: {error}"));
        }
    }
}

/// The interfaces that the kernel has.
fn links() -> Vec<Link> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let links = entries.flatten().map(|entry| {
        let path = entry.path();
        let text = |name: &str| -> io::Result<String> {
            Ok(fs::read_to_string(path.join(name))?.trim_end().to_owned())
        };
        let is_ethernet = text("type").is_ok_and(|kind| kind == "1");
        Link {
            name: entry.file_name().to_string_lossy().into_owned(),
            address: text("address")
                .ok()
                .filter(|_| is_ethernet)
                .and_then(|address| address.parse().ok()),
            is_device: path.join("device").exists(),
            has_carrier: text("carrier").is_ok_and(|carrier| carrier == "1"),
        }
    });
    links.collect()
}

/// Waits until `done`, at most for `limit`; says what it waits for. Returns whether it came.
fn poll(log: &Log, limit: Duration, what: &str, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut next_word = PROGRESS;
    loop {
        if done() {
            return true;
        }
        let waited = start.elapsed();
        if waited >= limit {
            return false;
        }
        if waited >= next_word {
            log.info(&format!("waiting for {what} ({} s)", waited.as_secs()));
            next_word += PROGRESS;
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_asked_for_again_when_half_of_it_is_over() {
        assert_eq!(renewal_after(600), Some(Duration::from_secs(300)));
        // Not all the time, whatever a server says.
        assert_eq!(renewal_after(1), Some(RENEWAL_PAUSE));
        assert_eq!(renewal_after(0), None);
        assert_eq!(renewal_after(u32::MAX), None);
    }
}
