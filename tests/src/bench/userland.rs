//! P4: programs of the disk run on this machine, at the speed of its processor: no emulator hides what the disk costs.
//!
//! The disk becomes a loop device, its file system is mounted read-only, and [`COMMANDS`] run in it, one after the
//! other, as a boot runs them. What they print is compared with what they print from a local disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::disks::{Reader, Shown, mount, pinned};
use super::line::{FAR, LOCAL};
use super::report::Section;
use super::site::{copy_sparse, drop_caches};
use super::table::{Row, Series, Unit};
use super::turns::{Course, lines, peers};
use crate::daemon::Daemon;
use crate::link::Side;

/// The image whose boot pack is of these very programs.
const LEARNED: &str = "userland:1";

/// Longest run before it counts as hung.
const DEADLINE: Duration = Duration::from_secs(300);

/// What runs, each in a shell of the disk; none writes, and what each prints depends on the disk alone.
const COMMANDS: &[&str] = &[
    "bash --version",
    "perl -MPOSIX -e 'print strftime(q(%Y), gmtime(0))'",
    "dpkg --list",
    "dpkg --listfiles systemd",
    "dpkg --search /usr/bin/perl",
    "apt-get --version",
    "openssl version",
    "openssl dgst -sha256 /etc/ssl/certs/ca-certificates.crt",
    "systemctl --version",
    "systemctl --root=/ list-unit-files --no-pager",
    "journalctl --version",
    "udevadm --version",
    "dbus-daemon --version",
    "ip -Version",
    "ps --version",
    "modinfo --set-version \"$(ls /lib/modules)\" --field description virtio_net",
    "getent passwd",
    "ldconfig --print-cache",
    "find /etc -type f",
    "tar --create --file - /etc/systemd | gzip -dcf | wc --bytes",
    "awk --version; sed --version; grep --version; less --version",
    "useradd --help",
];

/// Mounts a disk and runs what follows in it: $1 the disk, $2 an empty directory.
const SCRIPT: &str = r#"
set -euo pipefail
disk=$1 root=$2; shift 2
loop=$(losetup --find --show --read-only --direct-io="$LOOP_DIRECT_IO" "$disk")
trap 'losetup --detach "$loop"' EXIT
mount -o ro,noload "$loop" "$root"
# From now on the device goes with the mount, however this ends.
losetup --detach "$loop"
trap - EXIT
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
sum=$(for command in "$@"; do
    LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /bin/bash -c "$command" 2>&1 </dev/null || echo "status $?: $command"
done | tee "$OUTPUT" | sha256sum | cut -c 1-64)
echo "userland $sum"
umount --recursive "$root"
"#;

/// P4.
///
/// # Errors
/// The programs do not run, or print something else than from a local disk.
pub fn start(bench: &Bench<'_>) -> Result<Section> {
    if bench.options.quick {
        return Ok(Section {
            notes: vec!["`--quick`: no program was run".to_owned()],
            ..Section::default()
        });
    }
    let local = bench.site.scratch()?;
    let disk = local.path().join("local.raw");
    copy_sparse(&bench.site.image(), &disk)?;
    let expected = run(bench, &disk, None, local.path(), Instant::now())?.printed;
    let mut section = Section {
        notes: vec![format!(
            "loop device, ext4 read-only, chroot, {} programs one after the other; from the start of whoever shows the disk to the end of the last program; the boot pack is of another such run",
            COMMANDS.len()
        )],
        ..Section::default()
    };
    learn(bench)?;
    for kind in lines(bench, &[FAR, LOCAL]) {
        let course = Course::new(bench, &kind)?;
        let peers: Vec<Reader> = peers(bench)
            .into_iter()
            .filter(|peer| *peer == Reader::NbdkitCache)
            .collect();
        let (mut learned, mut plain, mut locals) = (Vec::new(), Vec::new(), Vec::new());
        let mut theirs = vec![Vec::new(); peers.len()];
        for _ in 0..bench.repeats() {
            let one = |reader| over_the_line(bench, &course, reader, &expected);
            learned.push(one(None)?);
            plain.push(one(Some(Reader::Plain))?);
            for (peer, figures) in peers.iter().zip(&mut theirs) {
                figures.push(one(Some(*peer))?);
            }
            let ran = run(bench, &disk, None, local.path(), Instant::now())?;
            ensure!(ran.printed == expected, "the programs print what they like");
            locals.push(ran.seconds);
        }
        let title = kind.title;
        let row = |ours: &Series, other: &Series| {
            Row::new(title, Unit::Seconds, ours.clone(), other.clone())
        };
        let learned = Series::new("Circular, boot pack", learned);
        let plain = Series::new(Reader::Plain.title(), plain);
        let locals = Series::new("local file", locals);
        section.rows.push(row(&learned, &locals));
        section.rows.push(row(&plain, &locals));
        for (peer, figures) in peers.iter().zip(theirs) {
            let peer = Series::new(peer.title(), figures);
            section.rows.push(row(&learned, &peer));
            section.rows.push(row(&plain, &peer));
        }
    }
    Ok(section)
}

/// Publishes the image once more, with a boot pack made from one run.
fn learn(bench: &Bench<'_>) -> Result<()> {
    bench.site.store.publish(&bench.site.image(), LEARNED)?;
    let course = Course::new(bench, &super::line::LOOPBACK)?;
    let scratch = bench.site.scratch()?;
    let trace = scratch.path().join("trace");
    let (mut command, disk) = mount(
        bench.site,
        course.servers.store(),
        LEARNED,
        scratch.path(),
        bench.client_cpu(),
    )?;
    command.arg("--record").arg(&trace);
    let side = course.line.client();
    let since = Instant::now();
    let shown = Shown::start(&mut command, &disk, bench.site.length, Some(side))?;
    run(bench, shown.disk(), Some(side), scratch.path(), since)?;
    drop(shown);
    let trace = trace.to_str().context("temporary files have plain names")?;
    bench.site.store.json(&["profile", "add", LEARNED, trace])?;
    Ok(())
}

/// Runs the programs from the disk that `reader` shows, or the image with a boot pack of such a run; returns the seconds.
fn over_the_line(
    bench: &Bench<'_>,
    course: &Course,
    reader: Option<Reader>,
    expected: &str,
) -> Result<f64> {
    let scratch = bench.site.scratch()?;
    let (side, cpu) = (course.line.client(), bench.client_cpu());
    course.settle()?;
    let since = Instant::now();
    let shown = match reader {
        Some(reader) => reader.show(bench.site, &course.servers, side, scratch.path(), cpu)?,
        None => {
            let (mut command, disk) = mount(
                bench.site,
                course.servers.store(),
                LEARNED,
                scratch.path(),
                cpu,
            )?;
            Shown::start(&mut command, &disk, bench.site.length, Some(side))?
        }
    };
    let ran = run(bench, shown.disk(), Some(side), scratch.path(), since)?;
    ensure!(
        ran.printed == expected,
        "the programs print something else than from a local disk"
    );
    super::say(&format!(
        "     {:<24} {:>8.3} s",
        reader.map_or("Circular, boot pack", Reader::title),
        ran.seconds
    ));
    Ok(ran.seconds)
}

/// What a run took, and the digest of what the programs printed.
struct Ran {
    seconds: f64,
    printed: String,
}

/// Runs the programs from `disk` in a mount namespace of their own.
fn run(
    bench: &Bench<'_>,
    disk: &Path,
    side: Option<&Side>,
    scratch: &Path,
    since: Instant,
) -> Result<Ran> {
    let root = scratch.join("root");
    std::fs::create_dir_all(&root)?;
    let output = scratch.join("printed");
    let mut command = pinned(bench.client_cpu(), "unshare".as_ref());
    command
        .args(["--mount", "--propagation", "private", "bash", "-c", SCRIPT])
        .arg("bash")
        .arg(disk)
        .arg(&root)
        .args(COMMANDS)
        .env("OUTPUT", &output)
        // A file in memory cannot be read past the page cache; a disk that a program shows is to be, as in our initramfs.
        .env("LOOP_DIRECT_IO", if side.is_some() { "on" } else { "off" });
    let mut daemon = match side {
        None => {
            drop_caches()?;
            Daemon::start(&mut command)?
        }
        Some(side) => side.within(|| Daemon::start(&mut command))??,
    };
    let printed = daemon.wait_for(DEADLINE, |line| {
        line.strip_prefix("userland ").map(str::to_owned)
    })?;
    let seconds = since.elapsed().as_secs_f64();
    let status = daemon.wait(DEADLINE)?;
    ensure!(status.success(), "{}", daemon.output());
    let text = std::fs::read_to_string(&output).unwrap_or_default();
    let failed: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("status "))
        .collect();
    ensure!(failed.is_empty(), "programs fail: {}", failed.join("; "));
    Ok(Ran { seconds, printed })
}
