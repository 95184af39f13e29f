//! A line with a delay, a rate, a bounded queue and loss, for real packets.
//!
//! Two network namespaces, a TUN device in each, and one thread between them:
//!
//! ```text
//! client namespace                                          server namespace
//! 192.0.2.2  link0 ◄──── down: delay, rate, queue ──── link0  192.0.2.1
//!            (TUN) ────► up:   delay, rate, queue ────► (TUN)
//! ```
//!
//! Both ends are the kernel's TCP, with its handshakes, slow start and retransmissions.
//! What happens to a packet is decided by [`shaper`], which has no clock; [`pump`] carries it out; [`tun`] opens
//! the devices.
//!
//! Packets of up to 64 KiB pass whole, as between a kernel and its network card, and take the time that
//! their segments would take. Where packets are to be lost they pass one by one.
//!
//! The namespaces have no names. The devices are gone once the [`Link`] is dropped or its process has
//! ended in any way, the namespaces once no process is left in them either.
//! Up to about 2 Gbit/s; the thread takes a part of one core.

pub mod pump;
pub mod shaper;
pub mod tun;

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, CpuSet, setns, unshare};

use pump::{Pump, Totals};
use shaper::{Loss, Rate};
use tun::{Offload, Tun};

/// The address of the server's end; of a net that is for documentation, so it is nobody else's.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The address of the client's end.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The device in each namespace.
const DEVICE: &str = "link0";

/// No line has a queue shorter than this: four packets as the kernel passes them.
const QUEUE_MIN: u64 = 256 << 10;

/// Nor one that drains in less: a fast line's sender has its own queue at its end, and drops nothing there.
const QUEUE_TIME_MIN: Duration = Duration::from_millis(10);

/// What a line is like. Both directions are the same and do not share the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// From sending to the answer, with no queue. Half of it in each direction.
    pub rtt: Duration,
    /// `None`: as fast as the machine is.
    pub rate: Option<Rate>,
    /// Bytes that wait for the line at most; `None`: as many as are on their way at the full rate, at least
    /// 10 ms of it and 256 KiB.
    pub queue: Option<u64>,
    /// Which packets are lost on the line.
    pub loss: Option<Loss>,
}

impl Conditions {
    /// Returns a line that loses nothing but what its queue has no room for.
    pub fn new(rtt: Duration, rate: Rate) -> Self {
        Self {
            rtt,
            rate: Some(rate),
            queue: None,
            loss: None,
        }
    }

    /// Returns the bytes that wait at most.
    pub fn queue_bytes(&self) -> u64 {
        self.queue.unwrap_or_else(|| {
            let time = self.rtt.max(QUEUE_TIME_MIN);
            let on_their_way = self.rate.map_or(0, |rate| rate.bytes_in(time));
            on_their_way.max(QUEUE_MIN)
        })
    }
}

/// A line that lasts as long as this guard.
#[derive(Debug)]
pub struct Link {
    server: Side,
    client: Side,
    pump: Pump,
}

impl Link {
    /// Makes a line. Needs root.
    ///
    /// # Errors
    /// There is no `/dev/net/tun`, no `ip`, or no right to use them.
    pub fn new(conditions: &Conditions) -> Result<Self> {
        Self::pinned(conditions, None)
    }

    /// Makes a line whose thread runs on one CPU only.
    ///
    /// # Errors
    /// As for [`Self::new`], or there is no such CPU.
    pub fn pinned(conditions: &Conditions, cpu: Option<usize>) -> Result<Self> {
        // Lost packets are to be single ones, not 64 KiB at once.
        let offload = match conditions.loss {
            Some(_) => Offload::Off,
            None => Offload::Segmentation,
        };
        let (server, server_device) = Side::new(SERVER, CLIENT, offload)?;
        let (client, client_device) = Side::new(CLIENT, SERVER, offload)?;
        let pump = Pump::start(conditions, server_device, client_device, cpu)?;
        Ok(Self {
            server,
            client,
            pump,
        })
    }

    /// Returns the server's end.
    pub fn server(&self) -> &Side {
        &self.server
    }

    /// Returns the client's end.
    pub fn client(&self) -> &Side {
        &self.client
    }

    /// Returns what has passed so far.
    pub fn totals(&self) -> Totals {
        self.pump.totals()
    }
}

/// One end of a line: a network namespace.
#[derive(Debug)]
pub struct Side {
    namespace: OwnedFd,
    address: Ipv4Addr,
}

impl Side {
    /// Makes a namespace that has nothing but a loopback device, and its address.
    ///
    /// # Errors
    /// No right to make one, or no `ip`.
    pub fn alone() -> Result<Self> {
        let (namespace, ()) = namespace(|| ip(&["link", "set", "lo", "up"]))?;
        Ok(Self {
            namespace,
            address: Ipv4Addr::LOCALHOST,
        })
    }

    /// Makes a namespace with a device that has `address` and leads to `peer`.
    fn new(address: Ipv4Addr, peer: Ipv4Addr, offload: Offload) -> Result<(Self, Tun)> {
        let (namespace, device) = namespace(|| {
            let device = Tun::open(DEVICE, offload)?;
            configure(address, peer)?;
            Ok(device)
        })?;
        Ok((Self { namespace, address }, device))
    }

    /// Returns the address of this end.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Returns a path that `nsenter --net=` takes while the [`Link`] lives.
    pub fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.namespace.as_raw_fd()
        )
    }

    /// Runs `work` on a thread of its own in the namespace; threads and processes that it starts stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panicked.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| -> Result<T> {
                    setns(&self.namespace, CloneFlags::CLONE_NEWNET)
                        .context("cannot enter the network namespace")?;
                    Ok(work())
                })
                .join()
        })
        .map_err(|_| anyhow!("what ran in the namespace panicked"))?
    }

    /// Starts `command` in the namespace.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.within(|| command.spawn())?
            .with_context(|| format!("cannot start {name}"))
    }

    /// Runs `command` in the namespace to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.within(|| command.output())?
            .with_context(|| format!("cannot run {name}"))
    }
}

/// Makes a namespace and runs `work` in it.
fn namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<(OwnedFd, T)> {
    // A namespace is a thread's, and this thread ends at once.
    let made = thread::scope(|scope| {
        let maker = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace (not root?)")?;
            let namespace = File::open("/proc/thread-self/ns/net")
                .context("cannot open the network namespace")?;
            Ok((namespace.into(), work()?))
        };
        scope.spawn(maker).join()
    });
    made.map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
}

/// Lets the running thread use `cpu` only.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let context = || format!("cannot run on CPU {cpu} only");
    let mut set = CpuSet::new();
    set.set(cpu).with_context(context)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).with_context(context)
}

/// Gives the devices of this thread's namespace their addresses.
fn configure(address: Ipv4Addr, peer: Ipv4Addr) -> Result<()> {
    // Nothing but what the test sends: no router solicitations.
    set("ipv6/conf/default/disable_ipv6", "1").or_else(|error| {
        (error.kind() == io::ErrorKind::NotFound)
            .then_some(())
            .ok_or(error)
    })?;
    // Each connection starts as the first one did.
    set("ipv4/tcp_no_metrics_save", "1")?;
    ip(&["link", "set", "lo", "up"])?;
    let (address, peer) = (address.to_string(), peer.to_string());
    ip(&["address", "add", &address, "peer", &peer, "dev", DEVICE])?;
    ip(&[
        "link",
        "set",
        DEVICE,
        "mtu",
        "1500",
        "txqueuelen",
        "1000",
        "up",
    ])
}

fn set(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{name}"), value)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
