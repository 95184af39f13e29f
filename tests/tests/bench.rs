//! The bench works: one suite on a small disk, one turn each. What it measured here means nothing.

use std::fs;

use anyhow::{Result, ensure};
use circular_tests::bench::{self, Options, report};
use circular_tests::images::{noise, sparse};
use circular_tests::replay::{self, Read};
use circular_tests::require::{self, Need};

const MIB: u64 = 1 << 20;

#[test]
fn a_bench_of_one_turn_fills_its_table() -> Result<()> {
    if require::missing(&[Need::Fuse, Need::Link, Need::Nginx])? {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("image");
    sparse(&image, 8 * MIB, &[(MIB, noise(1, 4 << 20))])?;
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
        suites: ["p2", "p13", "p5"].map(str::to_owned).to_vec(),
        repeats: 1,
        in_flight: 4,
        quick: true,
        image,
        second: None,
        reads: Some(lists),
        lines: vec!["lan".to_owned()],
    };
    let document = directory.path().join("document.md");
    let mut sections = Vec::new();
    bench::run(&options, |section| {
        report::write(&document, &section.markdown(&report::circumstances("test")))?;
        sections.push(section);
        Ok(())
    })?;
    ensure!(sections.len() == 3, "{} sections", sections.len());
    for row in sections.iter().flat_map(|section| &section.rows) {
        let ratio = row.ratio().median;
        ensure!(ratio.is_finite() && ratio > 0.0, "{row}");
        ensure!(row.ours.figures.len() == 1, "{row}");
    }
    let text = fs::read_to_string(document)?;
    ensure!(
        text.starts_with("# Benchmarks") && text.contains("\n## P2 ") && text.contains("\n## P13 "),
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
        lines: Vec::new(),
    };
    let error = bench::run(&options, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("p0") && error.contains("p13"), "{error}");
}
