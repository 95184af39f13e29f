//! The whole path in one go: publishes a Debian, serves it, boots it on a machine without a disk.
//!
//! Run by `make demo`. On a terminal the machine stays on, with its console at the keyboard;
//! otherwise it is switched off once it has been logged in to.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use circular_tests::machine::{Machine, Options, Show};
use circular_tests::proxy::Proxy;
use circular_tests::server::Server;
use circular_tests::{binaries, images};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Longest boot and longest shutdown before the demo counts as hung.
const DEADLINE: Duration = Duration::from_secs(300);

/// How often a machine at the keyboard is asked whether it is still on.
const LOOK: Duration = Duration::from_millis(200);

/// Ctrl-], which leaves telnet and virsh too.
const LEAVE: u8 = 0x1d;

fn main() -> Result<()> {
    let mut out = io::stdout();
    let image = images::debian("debian.raw")?;
    let demo = binaries::checkout().join("build/demo");
    let (store, keys) = (demo.join("store"), demo.join("keys"));
    fs::create_dir_all(&store).context("cannot make the demo's directory")?;

    writeln!(out, "== publish {}", image.display())?;
    let status = Command::new(binaries::host("circular")?)
        .arg("publish")
        .arg(&image)
        .args(["debian:12", "--cmdline", "console=ttyS0"])
        .env("CIRCULAR_STORE", &store)
        .env("CIRCULAR_KEYS", &keys)
        .status()
        .context("cannot run circular")?;
    ensure!(status.success(), "publishing ended with {status}");

    let server = Server::start(&store)?;
    // The proxy only counts.
    let proxy = Proxy::start(server.url())?;
    writeln!(
        out,
        "\n== serve on {}, boot a machine without a disk",
        proxy.url()
    )?;
    let options = Options {
        show: Show::Console,
        ..Options::named("demo")
    };
    let switched_on = Instant::now();
    let mut machine = Machine::boot(proxy.url(), "boot/debian=12.ipxe", &options)?;
    machine.console.wait_for("root@debian:~# ", DEADLINE)?;
    let table = Table {
        time: switched_on.elapsed(),
        bytes: proxy.bytes(),
        requests: proxy.exchanges().len(),
        image: fs::metadata(&image)?.len(),
    };
    table.print(&mut out)?;

    if io::stdin().is_terminal() {
        writeln!(
            out,
            "\nYou are root on the machine's console. `poweroff` ends it, Ctrl-] leaves it."
        )?;
        machine.console.send("")?;
        at_the_keyboard(&mut machine)
    } else {
        writeln!(
            out,
            "\nOn a terminal you would be root on the machine's console now; switching it off."
        )?;
        machine.console.send("poweroff")?;
        machine.wait_until_off(DEADLINE)?;
        table.print(&mut out)?;
        writeln!(
            out,
            "\nTo log in, run `make demo` on a terminal: root needs no password."
        )?;
        Ok(())
    }
}

/// What the boot has cost.
struct Table {
    time: Duration,
    bytes: u64,
    requests: usize,
    image: u64,
}

impl Table {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let percent = self.bytes * 100 / self.image.max(1);
        let seconds = self.time.as_secs();
        writeln!(out, "\n")?;
        writeln!(
            out,
            "| from power-on to login | {seconds} s (emulated CPU) |"
        )?;
        writeln!(out, "| ---------------------- | --- |")?;
        writeln!(
            out,
            "| fetched                | {} MiB, kernel and initramfs included |",
            mib(self.bytes)
        )?;
        writeln!(
            out,
            "| size of the disk       | {} MiB; {percent} % of that was fetched |",
            mib(self.image)
        )?;
        writeln!(out, "| HTTP requests          | {} |", self.requests)
    }
}

/// Connects keyboard and console until the machine is off or the user has left.
fn at_the_keyboard(machine: &mut Machine) -> Result<()> {
    let _raw = RawTerminal::set()?;
    let left = forward_keys(machine.console.keyboard()?);
    while !machine.is_off()? {
        match left.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

/// Types what the user types, until Ctrl-]; then the returned channel says so.
fn forward_keys(mut keyboard: impl Write + Send + 'static) -> Receiver<()> {
    let (sender, left) = mpsc::channel();
    thread::spawn(move || {
        for key in io::stdin().lock().bytes() {
            match key {
                Ok(LEAVE) | Err(_) => break,
                Ok(key) if keyboard.write_all(&[key]).is_err() => break,
                Ok(_) => {}
            }
        }
        // Nobody waits for it any more when the machine is off.
        let _ = sender.send(());
    });
    left
}

/// A terminal that passes every key on; as it was before when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn set() -> Result<Self> {
        let before = tcgetattr(io::stdin().as_fd()).context("cannot ask the terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &raw).context("cannot set the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Without its terminal the program has no use for it either.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}
