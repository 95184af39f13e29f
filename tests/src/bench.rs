//! `make bench`: what Circular takes beside what others take, on the same image and the same line.
//!
//! Every figure is a ratio within one run. The subjects of a row take turns (A, B, A, B, …), each time
//! as a new process with a new mount, a new connection and an empty cache directory; a row has the median of each and of the
//! ratio of each turn, with the lowest and the highest. Whatever is read is compared with the image.
//!
//! Server and line run on one CPU, the client and what reads from it on another. What the servers serve and what
//! clients cache lies in memory, so that no disk of this machine is measured.
//!
//! Reading order: [`site`] (image, store, recorded boot) → [`mod@line`] → [`servers`] → [`disks`] (who shows the
//! disk) → the suites, [`cold`] first → [`table`] and [`report`].

pub mod blackout;
pub mod cold;
pub mod disks;
pub mod full_cache;
pub mod idle;
pub mod index;
pub mod line;
pub mod machine;
pub mod memory;
pub mod mirrors;
pub mod open;
pub mod publish;
pub mod report;
pub mod servers;
pub mod site;
pub mod table;
pub mod turns;
pub mod update;
pub mod userland;
pub mod warm;
pub mod whole;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};

use report::Section;
use site::Site;

/// The CPU of servers and line where there are two.
const SERVER_CPU: usize = 0;

/// The CPU of the client and of its readers.
const CLIENT_CPU: usize = 1;

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Suites by their IDs; none: all.
    pub suites: Vec<String>,
    /// Turns of each row.
    pub repeats: usize,
    /// Reads in flight of a replay.
    pub in_flight: usize,
    /// One turn, one line, no slow peers: shows that the bench works, measures nothing.
    pub quick: bool,
    /// The disk.
    pub image: PathBuf,
    /// A second version of it, for the suites that compare versions.
    pub second: Option<PathBuf>,
    /// Lists of reads of two boots; `None`: they are recorded with QEMU, once for each image.
    pub reads: Option<[PathBuf; 2]>,
    /// The same of the second version.
    pub second_reads: Option<[PathBuf; 2]>,
    /// Lines to measure on, by name; none: those of each suite.
    pub lines: Vec<String>,
}

/// A suite: its ID, what it is, and what runs it.
struct Suite {
    id: &'static str,
    title: &'static str,
    run: fn(&Bench<'_>) -> Result<Section>,
}

/// In the order of running.
const SUITES: &[Suite] = &[
    Suite {
        id: "p1",
        title: "Cold boot over the Internet, replayed",
        run: cold::internet,
    },
    Suite {
        id: "p2",
        title: "Cold boot in a local network, replayed",
        run: cold::local,
    },
    Suite {
        id: "p13",
        title: "From the start of the mount to the first byte",
        run: open::first_byte,
    },
    Suite {
        id: "p14",
        title: "The whole disk, read lazily",
        run: whole::sequential,
    },
    Suite {
        id: "p11",
        title: "Memory",
        run: memory::client,
    },
    Suite {
        id: "p6",
        title: "First publish",
        run: publish::first,
    },
    Suite {
        id: "p7",
        title: "Publish of a second version",
        run: publish::second,
    },
    Suite {
        id: "p5",
        title: "Warm cache",
        run: warm::cache,
    },
    Suite {
        id: "p12",
        title: "What was fetched ahead",
        run: cold::ahead,
    },
    Suite {
        id: "p8",
        title: "Boots with something cached",
        run: update::boots,
    },
    Suite {
        id: "p15",
        title: "The longest read when the servers stop",
        run: blackout::longest_read,
    },
    Suite {
        id: "p4",
        title: "Programs of the disk, run on this machine",
        run: userland::start,
    },
    Suite {
        id: "p3",
        title: "A real boot over the line",
        run: machine::boots,
    },
];

/// Returns IDs and titles of all suites.
pub fn suites() -> impl Iterator<Item = (&'static str, &'static str)> {
    SUITES.iter().map(|suite| (suite.id, suite.title))
}

/// What a suite is given.
pub struct Bench<'a> {
    /// What is to be measured, and how.
    pub options: &'a Options,
    /// The disk and the stores.
    pub site: &'a Site,
    /// The CPUs of server and client; `None`: this machine has one.
    pub cpus: Option<(usize, usize)>,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench")
            .field("options", self.options)
            .finish_non_exhaustive()
    }
}

impl Bench<'_> {
    /// Returns how often each row takes turns.
    pub fn repeats(&self) -> usize {
        match self.options.quick {
            true => 1,
            false => self.options.repeats.max(1),
        }
    }

    /// Returns the CPU of servers and line.
    pub fn server_cpu(&self) -> Option<usize> {
        self.cpus.map(|(server, _)| server)
    }

    /// Returns the CPU of clients.
    pub fn client_cpu(&self) -> Option<usize> {
        self.cpus.map(|(_, client)| client)
    }
}

/// Runs the suites that `options` name and returns what they found, each as soon as it is there to `found`.
///
/// # Errors
/// There is no such suite, a program is missing, or a disk has other bytes than its image.
pub fn run(options: &Options, mut found: impl FnMut(Section) -> Result<()>) -> Result<()> {
    for id in &options.suites {
        if !SUITES.iter().any(|suite| suite.id == id) {
            let known: Vec<_> = suites().map(|(id, _)| id).collect();
            bail!("there is no suite {id}; there are {}", known.join(", "));
        }
    }
    let site = Site::new(options)?;
    let several = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let bench = Bench {
        options,
        site: &site,
        cpus: several.then_some((SERVER_CPU, CLIENT_CPU)),
    };
    for suite in SUITES {
        let asked = options.suites.iter().any(|id| id == suite.id);
        if asked || options.suites.is_empty() {
            say(&format!("== {} {}", suite.id, suite.title));
            let mut section = (suite.run)(&bench)?;
            section.id = suite.id;
            section.title = suite.title;
            found(section)?;
        }
    }
    Ok(())
}

/// Tells whoever waits how far it is.
pub(crate) fn say(line: &str) {
    // Nobody may listen.
    let _ = writeln!(std::io::stderr(), "{line}");
}
