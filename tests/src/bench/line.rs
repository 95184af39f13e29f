//! The lines that the suites measure on.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::shaper::{Loss, Rate};
use crate::link::{Conditions, Link, SERVER, Side};

/// A line by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kind {
    /// As `--line` names it.
    pub name: &'static str,
    /// As the table shows it.
    pub title: &'static str,
    /// `None`: one namespace, with nothing but its loopback device.
    pub conditions: Option<Conditions>,
}

impl Kind {
    /// Returns the time to the server and back.
    pub fn rtt(&self) -> Duration {
        self.conditions.map_or(Duration::ZERO, |line| line.rtt)
    }
}

const fn kind(
    name: &'static str,
    title: &'static str,
    rtt_ms: u64,
    rate: Rate,
    loss: Option<Loss>,
) -> Kind {
    Kind {
        name,
        title,
        conditions: Some(Conditions {
            rtt: Duration::from_millis(rtt_ms),
            rate: Some(rate),
            queue: None,
            loss,
        }),
    }
}

/// A machine on its own.
pub const LOOPBACK: Kind = Kind {
    name: "loopback",
    title: "loopback",
    conditions: None,
};

/// A local network.
pub const LOCAL: Kind = kind("lan", "1 ms, 1 Gbit/s", 1, Rate::from_mbit(1000), None);

/// A region.
pub const NEAR: Kind = kind("near", "20 ms, 100 Mbit/s", 20, Rate::from_mbit(100), None);

/// A continent.
pub const FAR: Kind = kind("far", "50 ms, 100 Mbit/s", 50, Rate::from_mbit(100), None);

/// A bad line far away.
pub const SLOW: Kind = kind("slow", "100 ms, 20 Mbit/s", 100, Rate::from_mbit(20), None);

/// A continent, with a packet in 1,000 lost.
pub const LOSSY: Kind = kind(
    "lossy",
    "50 ms, 100 Mbit/s, 0.1 % lost",
    50,
    Rate::from_mbit(100),
    Some(Loss {
        share: 0.001,
        seed: 1,
    }),
);

/// A satellite: what is left of a time is round trips. In no suite; `--line` names it.
pub const ORBIT: Kind = kind("orbit", "600 ms, 20 Mbit/s", 600, Rate::from_mbit(20), None);

/// All of them.
pub const ALL: &[Kind] = &[LOOPBACK, LOCAL, NEAR, FAR, SLOW, LOSSY, ORBIT];

/// A line that stands.
#[derive(Debug)]
pub enum Line {
    /// Both ends are one.
    Loopback(Side),
    /// Two ends and what is between them.
    Emulated(Link),
}

impl Line {
    /// Makes a line whose packets are carried by `cpu`.
    ///
    /// # Errors
    /// No right to make one.
    pub fn new(kind: &Kind, cpu: Option<usize>) -> Result<Self> {
        match &kind.conditions {
            None => Ok(Self::Loopback(Side::alone()?)),
            Some(conditions) => Ok(Self::Emulated(Link::pinned(conditions, cpu)?)),
        }
    }

    /// Returns where servers run.
    pub fn server(&self) -> &Side {
        match self {
            Self::Loopback(side) => side,
            Self::Emulated(link) => link.server(),
        }
    }

    /// Returns where clients run.
    pub fn client(&self) -> &Side {
        match self {
            Self::Loopback(side) => side,
            Self::Emulated(link) => link.client(),
        }
    }

    /// Returns the server's address.
    pub fn address(&self) -> std::net::Ipv4Addr {
        match self {
            Self::Loopback(side) => side.address(),
            Self::Emulated(_) => SERVER,
        }
    }

    /// Returns the bytes that have come to the client so far, IP and TCP headers included; on the loopback those to the
    /// server, too.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn wire(&self) -> Result<u64> {
        match self {
            Self::Emulated(link) => Ok(link.totals().down.bytes),
            Self::Loopback(side) => {
                let table = side.within(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
                let device = table
                    .lines()
                    .find_map(|line| line.trim().strip_prefix("lo:"));
                let received = device.and_then(|line| line.split_whitespace().next());
                received
                    .and_then(|bytes| bytes.parse().ok())
                    .context("the kernel counts no bytes of the loopback device")
            }
        }
    }
}
