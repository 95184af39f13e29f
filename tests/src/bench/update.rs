//! P8: booting again, and booting the next version, with what the last boot has left in the cache.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use super::disks::Reader;
use super::line::FAR;
use super::report::Section;
use super::site::{Site, copy_sparse, reads_of};
use super::table::{Row, Series, Unit};
use super::turns::{Course, bytes, lines};
use crate::replay::{self, Plan, Read};

/// A boot: who shows which disk, and what is read of it.
struct Boot<'a> {
    reader: Reader,
    image: &'a Path,
    reads: &'a [Read],
}

/// P8.
///
/// # Errors
/// A boot fails or shows other bytes.
pub fn boots(bench: &Bench<'_>) -> Result<Section> {
    let Some(second) = &bench.options.second else {
        return Ok(Section {
            notes: vec!["there was no second version".to_owned()],
            ..Section::default()
        });
    };
    let [_, reads] = reads_of(second, None)?;
    let copied = bench.site.scratch()?;
    let newer = copied.path().join("newer.raw");
    copy_sparse(second, &newer)?;
    bench.site.store.publish(&newer, Site::UPDATED)?;
    let course = Course::new(bench, &lines(bench, &[FAR]).first().copied().unwrap_or(FAR))?;
    let old = Boot {
        reader: Reader::Packed,
        image: &bench.site.image(),
        reads: &bench.site.reads,
    };
    let new = Boot {
        reader: Reader::Updated,
        image: &newer,
        reads: &reads,
    };
    let (mut first, mut again, mut updated, mut fresh) = (vec![], vec![], vec![], vec![]);
    for _ in 0..bench.repeats() {
        let scratch = bench.site.scratch()?;
        first.push(boot(bench, &course, &old, scratch.path())?);
        again.push(boot(bench, &course, &old, scratch.path())?);
        updated.push(boot(bench, &course, &new, scratch.path())?);
        fresh.push(boot(bench, &course, &new, bench.site.scratch()?.path())?);
    }
    let mut rows = Vec::new();
    for (unit, place) in [(Unit::Bytes, 0), (Unit::Seconds, 1)] {
        let series = |name: &str, boots: &[[f64; 2]]| {
            Series::new(
                name,
                boots.iter().filter_map(|boot| boot.get(place).copied()),
            )
        };
        let row = |ours, other| Row::new(course.kind.title, unit, ours, other);
        rows.push(row(
            series("the same once more", &again),
            series("first boot", &first),
        ));
        rows.push(row(
            series("the next version, the last one cached", &updated),
            series("the next version, nothing cached", &fresh),
        ));
    }
    Ok(Section {
        notes: vec!["the next version is the same files, laid out anew by another mkfs; its boot pack was carried over".to_owned()],
        rows,
        ..Section::default()
    })
}

/// Boots with what is cached in `scratch`; returns bytes on the line and seconds.
fn boot(bench: &Bench<'_>, course: &Course, boot: &Boot<'_>, scratch: &Path) -> Result<[f64; 2]> {
    let wire = course.line.wire()?;
    let since = Instant::now();
    let client = course.line.client();
    let shown = boot.reader.show(
        bench.site,
        &course.servers,
        client,
        scratch,
        bench.client_cpu(),
    )?;
    let plan = Plan {
        reads: boot.reads,
        in_flight: bench.options.in_flight,
        since,
        stall: Duration::from_secs(1),
        cpu: bench.client_cpu(),
    };
    let outcome = replay::replay(shown.disk(), boot.image, &plan)?;
    let wire = bytes(course.line.wire()? - wire);
    let seconds = outcome.time.as_secs_f64();
    super::say(&format!(
        "     {:<24} {seconds:>8.3} s {:>9.2} MB",
        boot.reader.title(),
        wire / 1e6
    ));
    let mountpoint = shown.disk().parent().map(Path::to_owned);
    drop(shown);
    // The next one makes it anew.
    mountpoint.map_or(Ok(()), fs::remove_dir)?;
    Ok([wire, seconds])
}
