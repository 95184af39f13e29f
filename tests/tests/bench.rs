//! The bench works: some suites on a small disk, one turn each. What they measured here means nothing.

use std::fs;

use anyhow::{Result, ensure};
use circular_tests::bench::{self, Options, report};
use circular_tests::images::{noise, sparse};
use circular_tests::replay::{self, Read};
use circular_tests::require::{self, Need};

const MIB: u64 = 1 << 20;

/// Those that take a second or two.
const SUITES: [&str; 6] = ["p2", "p13", "p14", "p12", "p8", "p5"];

#[test]
fn a_bench_of_one_turn_fills_its_table() -> Result<()> {
    if require::missing(&[Need::Fuse, Need::Link, Need::Nginx])? {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let [image, second] = ["image", "second"].map(|name| directory.path().join(name));
    sparse(&image, 8 * MIB, &[(MIB, noise(1, 4 << 20))])?;
    // The same chunks in part.
    let [old, new] = [noise(1, 3 << 20), noise(2, 1 << 20)];
    sparse(&second, 8 * MIB, &[(MIB, old), (4 * MIB, new)])?;
    let reads: Vec<Read> = (0..64)
        .map(|place| Read {
            offset: (place * 37 % 64) * (MIB / 8),
            length: 16_384,
        })
        .collect();
    let lists = ["learned", "replayed"].map(|name| directory.path().join(name));
    for list in &lists {
        fs::write(list, replay::format(&reads))?;
    }
    let options = Options {
        suites: SUITES.map(str::to_owned).to_vec(),
        repeats: 1,
        in_flight: 4,
        quick: true,
        image,
        second: Some(second),
        reads: Some(lists.clone()),
        second_reads: Some(lists),
        lines: vec!["lan".to_owned()],
    };
    let document = directory.path().join("document.md");
    let mut sections = Vec::new();
    bench::run(&options, |section| {
        report::write(&document, &section.markdown(&report::circumstances("test")))?;
        sections.push(section);
        Ok(())
    })?;
    ensure!(
        sections.len() == SUITES.len(),
        "{} sections",
        sections.len()
    );
    for row in sections.iter().flat_map(|section| &section.rows) {
        // Of something that did not happen there is no part.
        let happened = row.other.figures.iter().all(|figure| *figure > 0.0);
        ensure!(!happened || row.ratio().median.is_finite(), "{row}");
        ensure!(row.ours.figures.len() == 1, "{row}");
    }
    let text = fs::read_to_string(document)?;
    let has = |suite: &&str| text.contains(&format!("\n## {} ", suite.to_uppercase()));
    ensure!(
        text.starts_with("# Benchmarks") && SUITES.iter().all(has),
        "{text}"
    );
    Ok(())
}

#[test]
fn what_is_no_suite_is_refused() {
    let options = Options {
        suites: vec!["p0".to_owned()],
        repeats: 1,
        in_flight: 1,
        quick: true,
        image: "none".into(),
        second: None,
        reads: None,
        second_reads: None,
        lines: Vec::new(),
    };
    let error = bench::run(&options, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("p0") && error.contains("p13"), "{error}");
}
