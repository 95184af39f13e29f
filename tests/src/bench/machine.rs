//! P3: a real machine boots from a disk over the line, beside the same one from a local disk.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::disks::Reader;
use super::line::FAR;
use super::report::Section;
use super::site::copy_sparse;
use super::table::{Mark, Row, Series, Unit};
use super::turns::{Course, lines};
use crate::replay::record::{self, Kernel};
use crate::require;

/// P3.
///
/// # Errors
/// A machine does not boot.
pub fn boots(bench: &Bench<'_>) -> Result<Section> {
    if require::find("qemu-system-x86_64").is_none() || bench.options.quick {
        return Ok(Section {
            notes: vec!["no machine was booted".to_owned()],
            ..Section::default()
        });
    }
    let scratch = bench.site.scratch()?;
    let kernel = Kernel::of(&bench.options.image, scratch.path())?;
    let local = scratch.path().join("local.raw");
    copy_sparse(&bench.site.image(), &local)?;
    let mut rows = Vec::new();
    for kind in lines(bench, &[FAR]) {
        let course = Course::new(bench, &kind)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            let scratch = bench.site.scratch()?;
            let since = Instant::now();
            let client = course.line.client();
            let shown = Reader::Packed.show(
                bench.site,
                &course.servers,
                client,
                scratch.path(),
                bench.client_cpu(),
            )?;
            ours.push(boot(&kernel, shown.disk(), since)?);
            drop(shown);
            theirs.push(boot(&kernel, &local, Instant::now())?);
        }
        let row = Row::new(
            kind.title,
            Unit::Seconds,
            Series::new(Reader::Packed.title(), ours),
            Series::new("local raw disk", theirs),
        );
        rows.push(row.marked(Mark::AtMost(1.1)));
    }
    Ok(Section {
        notes: vec![
            "QEMU emulates the machine (TCG, 2 CPUs, not pinned); from the start of the client, or of QEMU with the local disk, to the prompt".to_owned(),
        ],
        rows,
        ..Section::default()
    })
}

/// Boots from `disk` and returns the seconds since `since` until the prompt.
fn boot(kernel: &Kernel, disk: &Path, since: Instant) -> Result<f64> {
    let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
    let machine = record::machine(kernel, &drive, "bench")?;
    let seconds = since.elapsed().as_secs_f64();
    drop(machine);
    super::say(&format!("     {:<40} {seconds:>8.3} s", disk.display()));
    Ok(seconds)
}
