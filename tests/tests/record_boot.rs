//! `circular boot --record`: one command from a published image to its boot pack.

use std::ffi::OsStr;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use circular_tests::images;
use circular_tests::mount::{Mount, Options};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use image_format::trace::{Origin, Trace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for a trace before the test counts as hung.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn machine_is_recorded_by_one_command_and_its_boot_explained() -> Result<()> {
    if require::missing(&[Need::Qemu, Need::Debian, Need::Guest])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    store.publish_bootable(&images::debian("debian.raw")?, "debian:12")?;
    let trace = store.beside("boot.trace");
    let trace = trace.to_str().context("test paths are plain")?;
    kernel_is_verified(&store)?;
    what_cannot_work_is_said_at_once(&store)?;
    a_signal_ends_all_of_it(&store)?;
    // When the root is mounted and its init has begun to talk: a boot to the login and its end, which
    // boot_bad_days.rs has recorded, take longer, and nothing else happens in them.
    let recorded = store.json(&[
        "boot",
        "debian:12",
        "--record",
        "--output",
        trace,
        "--accel",
        "tcg",
        "--until",
        "Welcome to",
        "--no-power-off",
    ])?;
    let chunks = recorded["chunks"].as_u64().context("it counts chunks")?;
    ensure!(chunks > 20, "{recorded}");
    let added = store.json(&["profile", "add", "debian:12", trace])?;
    ensure!(added["always"].as_u64() == Some(chunks), "{added}");
    let explained = store.json(&["explain", trace, "debian:12", "--least", "0"])?;
    let names = explained["by_file"].to_string();
    for name in ["/usr/lib/systemd/systemd", "superblock", "directory"] {
        ensure!(names.contains(name), "no {name} in {names}");
    }
    Ok(())
}

/// Where a trace could not be kept, nothing is booted; and a machine that does not come up is a failure.
fn what_cannot_work_is_said_at_once(store: &TestStore) -> Result<()> {
    let record = ["boot", "debian:12", "--record", "--accel", "tcg"];
    let nowhere = store.beside("missing/boot.trace");
    let nowhere = nowhere.to_str().context("test paths are plain")?;
    let (mut keyless, mut placeless) = (store.command(&record)?, store.command(&record)?);
    keyless.env("CIRCULAR_KEYS", store.beside("no-keys"));
    placeless.args(["--output", nowhere]);
    for (mut boot, told) in [(keyless, "no-keys"), (placeless, "missing/boot.trace")] {
        let refused = boot.output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1), "{said}");
        ensure!(said.contains(told) && !said.contains("Booting"), "{said}");
    }
    let look = ["boot", "debian:12", "--accel", "tcg", "--memory", "1"];
    let failed = store.command(&look)?.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(failed.status.code() == Some(1), "{said}");
    ensure!(said.contains("QEMU failed"), "{said}");
    Ok(())
}

/// A signal takes the machine and the server along.
fn a_signal_ends_all_of_it(store: &TestStore) -> Result<()> {
    let mut boot = store.command(&["boot", "debian:12", "--record", "--accel", "tcg"])?;
    let boot = boot.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let since = Instant::now();
    let children = loop {
        let children = children(boot.id())?;
        if children.len() == 2 {
            break children;
        }
        ensure!(
            since.elapsed() < DEADLINE,
            "no server and no machine: {children:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    kill(Pid::from_raw(boot.id().cast_signed()), Signal::SIGTERM)?;
    let told = boot.wait_with_output()?;
    let said = String::from_utf8_lossy(&told.stderr);
    ensure!(
        told.status.code() == Some(1) && said.contains("ended by a signal"),
        "{said}"
    );
    for child in children {
        ensure!(!fs::exists(format!("/proc/{child}"))?, "{child} lives on");
    }
    Ok(())
}

/// The processes that `parent` started and that run.
fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for process in fs::read_dir("/proc")? {
        let Ok(id) = process?.file_name().to_string_lossy().parse() else {
            continue;
        };
        // One that has ended meanwhile is nobody's child.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let of = stat
            .rsplit(')')
            .next()
            .and_then(|it| it.split_whitespace().nth(1));
        if of.is_some_and(|of| of.parse() == Ok(parent)) {
            children.push(id);
        }
    }
    Ok(children)
}

/// A kernel that is not the one that was published never runs.
fn kernel_is_verified(store: &TestStore) -> Result<()> {
    let inspected = store.json(&["inspect", "debian:12"])?;
    let digest = inspected["manifest"]["boot"]["kernel"]["digest"].as_str();
    let digest = digest.context("inspect names the kernel")?;
    let path = store.path().join("objects").join(&digest[..2]).join(digest);
    let good = fs::read(&path)?;
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&path, bad)?;
    let refused = store.circular(&["boot", "debian:12", "--record", "--accel", "tcg"])?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{told}");
    ensure!(told.contains("the kernel cannot be taken"), "{told}");
    fs::write(&path, good)?;
    Ok(())
}

#[test]
fn a_mount_sends_its_trace_when_nothing_new_is_read() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = store.beside("disk.raw");
    images::sparse(&image, 8 << 20, &[(0, images::noise(1, 1 << 20))])?;
    store.publish(&image, "a")?;
    let traces = store.beside("traces");
    let arguments = ["--traces".as_ref(), traces.as_os_str()];
    let server = Server::start_with(&store.path(), &arguments as &[&OsStr])?;
    let file = store.beside("trace");
    let file = file.to_str().context("test paths are plain")?;
    let options = Options {
        arguments: ["--record", file, "--record-quiet", "1", "--record-to"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("{}traces", server.url())])
            .collect(),
        ..Options::default()
    };
    let mount = Mount::start_with(&store, server.url(), "a", &options)?;
    images::read_alone(&mount.disk(), 4096, 4096)?;
    let until = Instant::now() + DEADLINE;
    let sent = loop {
        let sent = fs::read_dir(&traces)?.next().transpose()?;
        match sent.filter(|sent| sent.file_name().to_string_lossy().ends_with(".trace")) {
            Some(sent) => break sent,
            None => std::thread::yield_now(),
        }
        ensure!(Instant::now() < until, "no trace came");
    };
    let name = sent.file_name().to_string_lossy().into_owned();
    ensure!(
        name.starts_with("a=latest@1.") || name.starts_with("a@1."),
        "{name}"
    );
    let trace = Trace::decode(&fs::read(sent.path())?)?;
    let first = trace.touches.first().and_then(|touch| touch.read);
    let first = first.context("something was read")?;
    ensure!(
        matches!(first.from, Origin::Demand | Origin::Index) && first.block <= 1,
        "{first:?}"
    );
    // What is read after that is noted no more.
    images::read_alone(&mount.disk(), 900_000, 4096)?;
    ensure!(mount.stop()?.success(), "it ends as ever");
    ensure!(
        Trace::decode(&fs::read(file)?)?.touches == trace.touches,
        "it was over"
    );
    Ok(())
}
