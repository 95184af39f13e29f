//! Machines whose server goes away: for a while, in the middle of a boot and in the middle of work, or for ever.
//!
//! The outages are as long as they are said to be: what a machine does after a minute and a half is the question.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use circular_tests::console::Console;
use circular_tests::machine::{Machine, Options};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use circular_tests::{binaries, images};
use image_format::trace::Trace;

/// A boot under emulation takes half a minute on two idle cores; a hang takes for ever.
const BOOT: Duration = Duration::from_secs(300);

/// Longest command in the machine.
const COMMAND: Duration = Duration::from_secs(180);

/// Longer than a plain mount waits, and than the kernel and systemd wait for most things.
const OUTAGE: Duration = Duration::from_secs(90);

/// What a machine is told to wait.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a boot needs of this machine.
const NEEDS: &[Need] = &[Need::Qemu, Need::Debian, Need::Guest];

/// What no machine shows whose root is only slow.
const TROUBLE: &[&str] = &[
    "BUG:",
    "Oops",
    "I/O error",
    "EXT4-fs error",
    "Input/output error",
    "Kernel panic",
    "Freezing execution",
    "Failed unmounting",
    "Failed to unmount",
];

#[test]
fn machine_outlives_its_server_twice_and_is_switched_off() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    publish(&store, "circular.record=server")?;
    let traces = store.beside("traces");
    let arguments = ["--traces".as_ref(), traces.as_os_str()];
    let mut server = Server::start_with(&store.path(), &arguments as &[&OsStr])?;
    let options = Options {
        memory_mib: 256,
        ..Options::named("boot-outages")
    };
    let mut machine = Machine::boot(server.url(), "boot/debian=12.ipxe", &options)?;
    let console = &mut machine.console;

    // The root is there, and all of its programs are still with the server, which says nothing any more.
    console.wait_for("Welcome to", BOOT)?;
    server.freeze()?;
    thread::sleep(OUTAGE);
    ensure!(
        !console.text().contains("root@debian:~# "),
        "the boot needed no server"
    );
    server.thaw()?;
    log_in(console)?;

    // Programs are read that nobody read before, and nobody listens at the server's address.
    server.kill()?;
    let hash_files = binaries::checkout().join("tests/image/hash-files.sh");
    let command = fs::read_to_string(hash_files).context("cannot read hash-files.sh")?;
    let command = command.trim_end();
    console.send(&format!("x=$({command}); echo WORK-'IS' $x."))?;
    thread::sleep(OUTAGE);
    ensure!(
        !console.text().contains("WORK-IS"),
        "the work needed no server"
    );
    server.restart()?;
    console.wait_for("WORK-IS ", COMMAND)?;
    let done = console.wait_for(".", COMMAND)?;
    let expected = fs::read_to_string(images::debian("debian.hashes")?)?;
    ensure!(
        done == expected.trim_end(),
        "the files are not those of the image: {done}"
    );
    client_is_spared(console)?;
    memory_may_be_short(console)?;
    outages_are_told(console)?;
    network_is_left_alone(console)?;
    is_recorded(&traces)?;
    switch_off(machine)
}

#[test]
fn machine_gives_up_on_its_server_when_told_and_is_switched_off() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let deadline = format!("circular.deadline={}", DEADLINE.as_secs());
    publish(&store, &deadline)?;
    let mut server = Server::start(&store.path())?;
    let options = Options::named("boot-deadline");
    let mut machine = Machine::boot(server.url(), "boot/debian=12.ipxe", &options)?;
    let console = &mut machine.console;
    log_in(console)?;
    is_up(console)?;
    server.kill()?;
    // Nothing runs this one in a boot, and one file is enough: each waits.
    let began = Instant::now();
    let read = console.run("cat /usr/bin/perl > /dev/null", COMMAND)?;
    ensure!(
        began.elapsed() >= DEADLINE,
        "it gives up before it was told to"
    );
    ensure!(
        read.status != 0 && read.text.contains("Input/output error"),
        "reads of what is not here wait for ever: {read:?}"
    );
    console.send("systemctl poweroff")?;
    console.wait_for("reboot: Power down", BOOT)?;
    ensure!(machine.wait_until_off(COMMAND)?.success());
    Ok(())
}

#[test]
fn machine_is_switched_off_though_its_server_never_comes_back() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    store.publish_bootable(&images::debian("debian.raw")?, "debian:12")?;
    let recorded = store.json(&["boot", "debian:12", "--record", "--accel", "tcg"])?;
    ensure!(recorded["switched_off"] == true, "{recorded}");
    let mut server = Server::start(&store.path())?;
    let options = Options {
        memory_mib: 256,
        ..Options::named("boot-without-end")
    };
    let mut machine = Machine::boot(server.url(), "boot/debian=12.ipxe", &options)?;
    let console = &mut machine.console;
    log_in(console)?;
    is_up(console)?;
    // More than the caches of the client hold, twice; and the kernel forgets what it read.
    let churn = "for i in 1 2; do cat /usr/bin/* /usr/lib/x86_64-linux-gnu/* > /dev/null 2>&1; done; \
         echo 3 > /proc/sys/vm/drop_caches";
    let churned = console.run(churn, COMMAND)?;
    ensure!(churned.status == 0, "{churned:?}");
    server.kill()?;
    // Somebody wants a file that no boot reads, and that the caches have let go of.
    console.send("cat /usr/bin/perl > /dev/null &")?;
    switch_off(machine)
}

fn publish(store: &TestStore, parameter: &str) -> Result<()> {
    let image = images::debian("debian.raw")?;
    let image = image.to_str().context("test paths are plain")?;
    let line = format!("console=ttyS0 {parameter}");
    store.json(&["publish", image, "debian:12", "--cmdline", &line])?;
    Ok(())
}

/// The console logs root in; all that is left is to wait for the prompt and quieten the kernel.
fn log_in(console: &mut Console) -> Result<()> {
    console.wait_for("root@debian:~# ", BOOT)?;
    let outcome = console.run("dmesg --console-off", COMMAND)?;
    ensure!(outcome.status == 0, "{outcome:?}");
    Ok(())
}

/// All that belongs to the boot is done; what a machine needs to be switched off is read last.
fn is_up(console: &mut Console) -> Result<()> {
    let up = console.run("systemctl is-system-running --wait", COMMAND)?;
    ensure!(up.text == "running", "{up:?}");
    Ok(())
}

/// Neither systemd nor the kernel ends what serves the root, and none of it is written to a swap space.
fn client_is_spared(console: &mut Console) -> Result<()> {
    let command = "for p in /proc/[0-9]*; do grep -q '^@circular-mount' $p/cmdline 2>/dev/null && \
         echo $(cat $p/oom_score_adj) $(grep VmLck $p/status | tr -dc 0-9) $(grep ^VmSwap $p/status | tr -dc 0-9); done";
    let outcome = console.run(command, COMMAND)?;
    let mut processes = 0;
    for line in outcome.text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(
            words.len() == 3 && words[0] == "-1000" && words[1] != "0" && words[2] == "0",
            "a process of the root disk is not spared: {outcome:?}"
        );
        processes += 1;
    }
    ensure!(processes == 2, "a supervisor and a worker: {outcome:?}");
    Ok(())
}

/// A program takes what memory is left, while others are read; then the kernel has to end somebody, and that
/// is not who serves the root. (Without any memory for programs a machine crawls, whatever its root is on.)
fn memory_may_be_short(console: &mut Console) -> Result<()> {
    let command = "cat /usr/bin/* | cksum > /run/before; \
         perl -e 'push @held, \"x\" x (1 << 20) for 1 .. 56; sleep 900' & sleep 8; \
         echo 3 > /proc/sys/vm/drop_caches; cat /usr/bin/* | cksum > /run/after; \
         echo f > /proc/sysrq-trigger; wait $!; echo ended: $?; \
         cmp /run/before /run/after";
    let outcome = console.run(command, COMMAND)?;
    ensure!(
        outcome.status == 0 && outcome.text.contains("ended: 137"),
        "the memory was not taken, or that harmed somebody: {outcome:?}"
    );
    Ok(())
}

/// Each outage has one line for its beginning and one for its end.
fn outages_are_told(console: &mut Console) -> Result<()> {
    for line in ["the server fails; readers wait", "the server answers again"] {
        let count = console.run(&format!("dmesg | grep -c '{line}'"), COMMAND)?;
        let count: u32 = count.text.parse().context("grep counts")?;
        ensure!((2..10).contains(&count), "{count} lines say {line:?}");
    }
    Ok(())
}

/// Whatever manages the network of the booted system takes nothing away that the root needs.
fn network_is_left_alone(console: &mut Console) -> Result<()> {
    let command = "systemctl restart systemd-networkd; networkctl reload; sleep 3; \
         systemctl stop systemd-networkd.socket systemd-networkd; ip -o -4 address show scope global; \
         ip -4 route show default; echo 3 > /proc/sys/vm/drop_caches; cat /usr/bin/* | wc -c";
    let outcome = console.run(command, COMMAND)?;
    ensure!(
        outcome.status == 0
            && outcome.text.contains("inet 10.0.2.15/24")
            && outcome.text.contains("default via 10.0.2.2"),
        "the network is not as it was: {outcome:?}"
    );
    Ok(())
}

/// The boot was sent to the server, outage and all.
fn is_recorded(traces: &Path) -> Result<()> {
    let until = Instant::now() + COMMAND;
    let trace = loop {
        let found = fs::read_dir(traces)?.flatten().find(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().ends_with(".trace")
        });
        if let Some(found) = found {
            break found.path();
        }
        ensure!(Instant::now() < until, "no trace came");
        thread::yield_now();
    };
    let touches = Trace::decode(&fs::read(trace)?)?.touches;
    ensure!(touches.len() > 50, "{} chunks were touched", touches.len());
    Ok(())
}

/// The machine is switched off, and nothing on its console says that its root was ever anything but slow.
fn switch_off(mut machine: Machine) -> Result<()> {
    let console = &mut machine.console;
    console.send("systemctl poweroff")?;
    console.wait_for("reboot: Power down", BOOT)?;
    let status = machine.wait_until_off(COMMAND)?;
    ensure!(status.success(), "QEMU ended with {status}");
    let text = machine.console.text();
    for word in TROUBLE {
        ensure!(
            !text.contains(word),
            "{word:?} is on the console, see {}",
            machine.log().display()
        );
    }
    Ok(())
}
