//! Where lists of reads come from: a boot under nbdkit's log filter, or a trace of `circular-mount --record`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{LENGTH_MAX, Read};
use crate::daemon::Daemon;
use crate::machine::{Machine, Options};

/// Longest boot before it counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(600);

/// What the console of a disk of `make image` shows when it has booted.
pub const PROMPT: &str = "root@debian:~# ";

/// Bytes of a block in a trace.
const BLOCK: u64 = 4096;

/// Returns the reads that nbdkit's log filter has noted, in order, of a disk of `length` bytes.
pub fn from_nbdkit_log(log: &str, length: u64) -> Vec<Read> {
    log.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(" Read id=")?;
            let number = |name: &str| {
                let (_, from) = rest.split_once(name)?;
                let digits = from.split([' ', ',']).next()?;
                u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok()
            };
            let (offset, count) = (number("offset=")?, number("count=")?);
            within(offset, count, length)
        })
        .collect()
}

/// Returns the chunks that a trace of `circular-mount --record` names, in the order of asking. They are longer than the
/// reads that touched them.
///
/// # Errors
/// It is no trace.
pub fn from_trace(trace: &str, length: u64) -> Result<Vec<Read>> {
    let mut lines = trace
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let first: Value = serde_json::from_str(lines.next().unwrap_or_default())
        .context("the trace has no first line")?;
    ensure!(
        first["circular_trace"] == 1,
        "this is no trace of version 1"
    );
    let mut asked = Vec::new();
    for line in lines {
        let line: Value = serde_json::from_str(line).context("a line of the trace is damaged")?;
        let number = |name: &str| line[name].as_u64().with_context(|| format!("no {name}"));
        let (offset, count) = (number("block")? * BLOCK, number("blocks")? * BLOCK);
        asked.push((number("asked")?, within(offset, count, length)));
    }
    asked.sort_by_key(|(when, _)| *when);
    Ok(asked.into_iter().filter_map(|(_, read)| read).collect())
}

/// Cuts a read at the end of the disk; one that has nothing left is none.
fn within(offset: u64, count: u64, length: u64) -> Option<Read> {
    let count = count.min(length.checked_sub(offset)?);
    let length = usize::try_from(count).ok()?;
    (1..=LENGTH_MAX)
        .contains(&length)
        .then_some(Read { offset, length })
}

/// Boots `image` (a disk of `make image`) in QEMU, and returns what was read of it until the prompt.
///
/// # Errors
/// The disk has no kernel, nbdkit or QEMU is missing, or the machine does not boot.
pub fn boot(image: &Path) -> Result<Vec<Read>> {
    let work = TempDir::with_prefix("circular-record-").context("cannot make a directory")?;
    let (socket, log) = (work.path().join("nbd"), work.path().join("log"));
    let kernel = Kernel::of(image, work.path())?;
    let mut command = Command::new("nbdkit");
    command
        // The log stands before the layer that takes the writes: it sees what the machine asks for.
        .args(["--foreground", "--unix"])
        .arg(&socket)
        .args(["--filter=log", "--filter=cow", "file"])
        .arg(image)
        .arg(format!("logfile={}", log.display()));
    let mut disk = Daemon::start(&mut command)?;
    while !socket.exists() {
        ensure!(!disk.has_ended()?, "nbdkit: {}", disk.output());
        std::thread::yield_now();
    }
    let drive = format!("file=nbd:unix:{},format=raw,if=virtio", socket.display());
    let machine = machine(&kernel, &drive, "record")?;
    drop(machine);
    drop(disk);
    let log = fs::read_to_string(&log).context("nbdkit wrote no log")?;
    let reads = from_nbdkit_log(&log, fs::metadata(image)?.len());
    ensure!(!reads.is_empty(), "the boot read nothing");
    Ok(reads)
}

/// Boots a machine with `kernel` from a `drive` as QEMU describes it, and returns it at the prompt.
///
/// # Errors
/// QEMU is missing, or the machine does not boot.
pub fn machine(kernel: &Kernel, drive: &str, name: &str) -> Result<Machine> {
    let mut machine = switch_on(kernel, drive, name)?;
    machine.console.wait_for(PROMPT, DEADLINE)?;
    Ok(machine)
}

/// Switches a machine on with `kernel`, a `drive` as QEMU describes it, and a network.
///
/// # Errors
/// QEMU is missing.
pub fn switch_on(kernel: &Kernel, drive: &str, name: &str) -> Result<Machine> {
    let text = |path: &Path| path.display().to_string();
    let options = Options {
        arguments: [
            "-kernel",
            &text(&kernel.kernel),
            "-initrd",
            &text(&kernel.initramfs),
            "-append",
            "root=/dev/vda rw console=ttyS0",
            "-drive",
            drive,
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Options::named(name)
    };
    Machine::switch_on(&options)
}

/// What an image boots with, copied out of it.
#[derive(Clone, Debug)]
pub struct Kernel {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Kernel {
    /// Copies both out of an image that is one ext4 file system, to the directory `to`.
    ///
    /// # Errors
    /// It has none.
    pub fn of(image: &Path, to: &Path) -> Result<Self> {
        let listing = debugfs(image, "ls -p /boot")?;
        let copy = |prefix: &str| -> Result<PathBuf> {
            let names = listing.lines().filter_map(|line| line.split('/').nth(5));
            let last = names.filter(|name| name.starts_with(prefix)).max();
            let name =
                last.with_context(|| format!("{} has no /boot/{prefix}*", image.display()))?;
            let copy = to.join(prefix.trim_end_matches('-'));
            debugfs(image, &format!("dump /boot/{name} {}", copy.display()))?;
            Ok(copy)
        };
        Ok(Self {
            kernel: copy("vmlinuz-")?,
            initramfs: copy("initrd.img-")?,
        })
    }
}

fn debugfs(image: &Path, request: &str) -> Result<String> {
    let program = crate::require::find("debugfs").context("no debugfs")?;
    let output = Command::new(program)
        .args(["-R", request])
        .arg(image)
        .output()
        .context("cannot run debugfs")?;
    ensure!(output.status.success(), "debugfs -R {request:?} failed");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Read, from_nbdkit_log, from_trace};

    #[test]
    fn only_the_requests_of_a_log_count_and_end_with_the_disk() {
        let log = "\
2026-01-02 03:04:05.000001 connection=1 Connect export=\"\" tls=0 size=0x3000\n\
2026-01-02 03:04:05.000002 connection=1 Read id=1 offset=0x1000 count=0x800 ...\n\
2026-01-02 03:04:05.000003 connection=1 ...Read id=1 return=0\n\
2026-01-02 03:04:05.000004 connection=1 Write id=2 offset=0x0 count=0x800 ...\n\
2026-01-02 03:04:05.000005 connection=1 Read id=3 offset=0x2800 count=0x1000 ...\n\
2026-01-02 03:04:05.000006 connection=1 Read id=4 offset=0x3000 count=0x1000 ...\n";
        let reads = [(0x1000, 0x800), (0x2800, 0x800)];
        assert_eq!(
            from_nbdkit_log(log, 0x3000),
            reads.map(|(offset, length)| Read { offset, length })
        );
    }

    #[test]
    fn a_trace_is_sorted_by_the_time_of_asking() {
        let trace = "{\"circular_trace\":1,\"image\":\"a:1@1\",\"disk\":\"00\"}\n\
            {\"asked\":9,\"served\":10,\"block\":4,\"blocks\":2,\"chunk\":\"00\"}\n\
            {\"asked\":3,\"served\":20,\"block\":0,\"blocks\":1,\"chunk\":\"00\"}\n\
            {\"asked\":30,\"ser";
        let reads = [(0, 4096), (16384, 4096)];
        assert_eq!(
            from_trace(trace, 20_480).unwrap(),
            reads.map(|(offset, length)| Read { offset, length })
        );
        assert!(from_trace("{}\n", 1).is_err());
    }
}
