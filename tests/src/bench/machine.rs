//! P3: a real machine boots over the line, beside the same one from a local disk.
//!
//! Two ways over the line: as a machine without a disk, which runs our client itself (QEMU is in the client's
//! namespace, and its user network leads to the servers); and with a disk that the client on this machine shows it.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::disks::Reader;
use super::line::FAR;
use super::report::Section;
use super::site::{Site, copy_sparse};
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, lines};
use crate::machine::{Machine, Options};
use crate::replay::record::{self, DEADLINE, Kernel, PROMPT};
use crate::require::{self, Need};

/// What a kernel says first.
const FIRST_LINE: &str = "Linux version";

/// The image with kernel and initramfs, and the script that boots it.
const IMAGE: &str = "machine:1";
const SCRIPT: &str = "boot/machine=1.ipxe";

/// Seconds until the prompt.
struct Boot {
    /// From the start of whatever had to start first: told, and in no row.
    whole: f64,
    /// From the first line of the kernel.
    kernel: f64,
}

/// P3.
///
/// # Errors
/// A machine does not boot.
pub fn boots(bench: &Bench<'_>) -> Result<Section> {
    if bench.options.quick || require::missing(&[Need::Qemu, Need::Guest])? {
        return Ok(Section {
            notes: vec![
                "no machine was booted: `--quick`, no QEMU, or no binaries for the guest (`make guest`)"
                    .to_owned(),
            ],
            ..Section::default()
        });
    }
    publish(bench.site)?;
    let scratch = bench.site.scratch()?;
    let kernel = Kernel::of(&bench.options.image, scratch.path())?;
    record_shown(bench.site, &kernel)?;
    let local = scratch.path().join("local.raw");
    copy_sparse(&bench.site.image(), &local)?;
    let mut rows = Vec::new();
    for kind in lines(bench, &[FAR]) {
        let course = Course::new(bench, &kind)?;
        let (mut without, mut with, mut locals) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            without.push(diskless(&course)?);
            locals.push(from_disk("local disk", &kernel, &local, Instant::now())?);
            with.push(shown(bench, &course, &kernel)?);
        }
        let seconds =
            |name: &str, boots: &[Boot]| Series::new(name, boots.iter().map(|boot| boot.kernel));
        let row = |name: &str, ours: &[Boot]| {
            let local = seconds("local raw disk", &locals);
            Row::new(kind.title, Unit::Seconds, seconds(name, ours), local)
                .marked(Mark::AtMost(1.1))
        };
        rows.push(row(
            "no disk: our initramfs, the client in the machine",
            &without,
        ));
        rows.push(row("a disk that the client on this machine shows", &with));
    }
    Ok(Section {
        notes: vec![
            "QEMU emulates the machine (TCG, 2 CPUs, 1 GiB, a network card, not pinned: servers and line run beside it); all from the first line of the kernel until the prompt of root".to_owned(),
            "first row: the kernel is the same; the machine without a disk has our initramfs instead of Debian's, and an overlay in its memory over a read-only root; what firmware and iPXE took to fetch kernel and initramfs is not in it".to_owned(),
            "second row: same kernel, same initramfs, the same boot; the client was started just before QEMU, and its start is not in it".to_owned(),
            "the boot pack of each row is of one boot of its kind, recorded over loopback: in the first row by `circular boot --record`, in the second by `circular-mount --record` while a machine booted from the mount, which has what the kernel reads ahead in it".to_owned(),
        ],
        rows,
        ..Section::default()
    })
}

/// Publishes the image with its kernel, and a boot pack of one boot of it.
fn publish(site: &Site) -> Result<()> {
    super::say("== publish with the kernel, and record a boot");
    site.store.publish_bootable(&site.image(), IMAGE)?;
    site.store
        .json(&["boot", IMAGE, "--record", "--accel", "tcg"])?;
    Ok(())
}

/// Publishes the image once more, with a boot pack of a machine that booted from its mount.
fn record_shown(site: &Site, kernel: &Kernel) -> Result<()> {
    super::say("== record a boot from a mount");
    site.store.publish(&site.image(), Site::RECORDED)?;
    site.record(Site::RECORDED, |shown| {
        record::machine(kernel, &drive(shown.disk()), "bench-record").map(drop)
    })
}

/// Boots a machine without a disk at the client's end of the line.
fn diskless(course: &Course) -> Result<Boot> {
    let since = Instant::now();
    let options = Options::named("bench-diskless");
    let store = course.servers.store();
    let start = || Machine::boot(store, SCRIPT, &options);
    let machine = course.line.client().within(start)??;
    watch("no disk", machine, since)
}

/// Boots from a disk that our client shows at its end of the line.
fn shown(bench: &Bench<'_>, course: &Course, kernel: &Kernel) -> Result<Boot> {
    let scratch = bench.site.scratch()?;
    let since = Instant::now();
    let shown = Reader::Recorded.show(
        bench.site,
        &course.servers,
        course.line.client(),
        scratch.path(),
        None,
    )?;
    from_disk("a shown disk", kernel, shown.disk(), since)
}

/// How QEMU is told of a disk that it must not change.
fn drive(disk: &Path) -> String {
    format!("file={},format=raw,if=virtio,snapshot=on", disk.display())
}

fn from_disk(name: &str, kernel: &Kernel, disk: &Path, since: Instant) -> Result<Boot> {
    let machine = record::switch_on(kernel, &drive(disk), "bench")?;
    watch(name, machine, since)
}

/// Waits for the prompt and switches the machine off.
fn watch(name: &str, mut machine: Machine, since: Instant) -> Result<Boot> {
    machine.console.wait_for(FIRST_LINE, DEADLINE)?;
    let kernel = Instant::now();
    machine.console.wait_for(PROMPT, DEADLINE)?;
    let boot = Boot {
        whole: since.elapsed().as_secs_f64(),
        kernel: kernel.elapsed().as_secs_f64(),
    };
    super::say(&format!(
        "     {name:<24} {:>8.3} s, {:.3} s of it since the kernel began",
        boot.whole, boot.kernel
    ));
    Ok(boot)
}
