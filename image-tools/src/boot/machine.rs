//! A machine without a disk: its command line, and how its console is followed.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use image_format::ImageRef;
use image_format::manifest::Boot;

use super::BootError;
use super::files::BootFiles;
use super::screen::Screen;
use super::stop::Stop;

/// What the kernel says when nothing more will come.
const FATAL: &str = "end Kernel panic";

/// How often to look whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a machine that has come up stays on: what it does by itself then belongs to the boot.
const SETTLE: Duration = Duration::from_secs(5);

/// How long a machine may take to switch itself off: longer than systemd waits for a service.
const POWER_OFF_MAX: Duration = Duration::from_secs(150);

/// What the terminal of a machine takes for its power button: to the monitor, and back.
const POWER_BUTTON: &[u8] = b"\x01csystem_powerdown\n\x01c";

/// Who executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// The processor, if this user may and this is no virtual machine itself; else an emulator.
    Auto,
    /// The processor.
    Kvm,
    /// An emulator: slow, and available everywhere.
    Tcg,
}

/// A machine that is to be.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// QEMU.
    pub qemu: PathBuf,
    /// Who executes it.
    pub accel: Accel,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
}

/// What it starts.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// Kernel and initramfs.
    pub files: &'a BootFiles,
    /// What of the rest the machine is told.
    pub line: Line<'a>,
}

/// What the kernel command line says.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Port of the server of the store on the loopback of this machine.
    pub port: u16,
    /// The image, with its version.
    pub image: &'a ImageRef,
    /// How it boots.
    pub boot: &'a Boot,
}

/// What is recorded.
#[derive(Clone, Debug)]
pub struct Recording<'a> {
    /// The file for what the machine reads.
    pub trace: &'a Path,
    /// When the boot is over.
    pub until: Until,
    /// Whether the machine is to switch itself off then, and what that reads recorded, too.
    pub power_off: bool,
}

/// When a recorded boot is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// When this is on the console; it is given up after the time.
    Said(String, Duration),
    /// This long after power-on.
    Time(Duration),
}

/// The kernel command line. What it says of the store is as the machine sees it.
pub fn kernel_line(told: &Line<'_>, record: bool) -> String {
    let mut line = format!(
        "circular.url=http://10.0.2.2:{}/ circular.image={} ip=dhcp",
        told.port, told.image
    );
    if let Some(root) = &told.boot.root {
        line = format!("{line} root={root}");
    }
    if !told.boot.cmdline.is_empty() {
        line = format!("{line} {}", told.boot.cmdline);
    }
    // The last console is the one that init talks to.
    if !told.boot.cmdline.contains("console=ttyS0") {
        line.push_str(" console=ttyS0");
    }
    if record {
        line.push_str(" circular.record=/dev/ttyS1");
    }
    line
}

impl Hardware {
    fn command(&self, start: &Start<'_>, record: bool) -> Command {
        let mut command = Command::new(&self.qemu);
        let accels: &[&str] = match self.accel {
            Accel::Kvm => &["kvm"],
            Accel::Auto if has_kvm() => &["kvm", "tcg,thread=multi"],
            Accel::Auto | Accel::Tcg => &["tcg,thread=multi"],
        };
        for accel in accels {
            command.args(["-accel", accel]);
        }
        command
            .args(["-cpu", "max", "-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-vga",
                "none",
            ])
            .args(["-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-kernel")
            .arg(start.files.kernel())
            .arg("-initrd")
            .arg(start.files.initramfs())
            .args(["-append", &kernel_line(&start.line, record)]);
        command
    }

    /// Boots with the machine's console on this terminal, until it is switched off or `stop` says so.
    ///
    /// # Errors
    /// QEMU cannot be run, or was to stop.
    pub fn show(&self, start: &Start<'_>, stop: &Stop) -> Result<(), BootError> {
        let mut command = self.command(start, false);
        command.args(["-serial", "mon:stdio"]);
        let child = command.spawn();
        let mut machine = On(child.map_err(|source| self.cannot_start(source))?);
        loop {
            match machine.0.try_wait().map_err(BootError::Follow)? {
                None => stop.check()?,
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(BootError::Failed { status }),
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Boots, and records until the boot is over, or the machine is off. What it says goes to standard error
    /// too, where `loud`. Returns whether it has switched itself off.
    ///
    /// # Errors
    /// QEMU cannot be run, the machine ends, panics or takes too long, or `stop` says so.
    pub fn record(
        &self,
        start: &Start<'_>,
        recording: &Recording<'_>,
        stop: &Stop,
        loud: bool,
    ) -> Result<bool, BootError> {
        let mut command = self.command(start, true);
        command
            .args(["-chardev", "stdio,id=console,signal=off,mux=on"])
            .args(["-mon", "chardev=console,mode=readline"])
            .args(["-serial", "chardev:console", "-serial"])
            .arg(format!("file:{}", recording.trace.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let child = command
            .spawn()
            .map_err(|source| self.cannot_start(source))?;
        let mut machine = Running::new(child, loud);
        machine.follow(&recording.until, stop)?;
        Ok(recording.power_off && machine.switch_off(stop)?)
    }

    fn cannot_start(&self, source: io::Error) -> BootError {
        BootError::Start {
            program: self.qemu.clone(),
            source,
        }
    }
}

/// Tells whether the processor can be used. In a virtual machine /dev/kvm may be there and work, or be
/// there and hang: only who knows better asks for it.
fn has_kvm() -> bool {
    let is_virtual = fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|cpus| cpus.split_whitespace().any(|flag| flag == "hypervisor"));
    let mut kvm = File::options();
    !is_virtual && kvm.read(true).write(true).open("/dev/kvm").is_ok()
}

/// A machine that is on; switched off with this.
struct On(Child);

impl Drop for On {
    fn drop(&mut self) {
        // It has no disk that could suffer; either fails only where it is off already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine whose console is read.
struct Running {
    machine: On,
    console: Receiver<Vec<u8>>,
    screen: Screen,
    loud: bool,
}

impl Running {
    fn new(mut child: Child, loud: bool) -> Self {
        let (sender, console) = mpsc::channel();
        if let Some(mut stream) = child.stdout.take() {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if sender.send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            machine: On(child),
            console,
            screen: Screen::default(),
            loud,
        }
    }

    /// Waits a little for what the machine says; returns whether it is off.
    fn listen(&mut self) -> bool {
        match self.console.recv_timeout(LOOK_EVERY) {
            Ok(bytes) => {
                self.screen.take(&bytes);
                if self.loud {
                    // Who does not see the console still gets the trace.
                    let _ = io::stderr().write_all(&bytes);
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        }
    }

    /// Presses the power button; returns whether the machine is off in time.
    fn switch_off(&mut self, stop: &Stop) -> Result<bool, BootError> {
        let button = self.machine.0.stdin.as_mut();
        let pressed = button.map_or(Ok(()), |button| button.write_all(POWER_BUTTON));
        let began = Instant::now();
        // What was recorded until here counts, whatever becomes of the machine.
        while pressed.is_ok() && began.elapsed() < POWER_OFF_MAX && !self.screen.shows(FATAL) {
            let has_ended = self.listen();
            stop.check()?;
            if has_ended {
                let status = self.machine.0.wait().map_err(BootError::Follow)?;
                return Ok(status.success());
            }
        }
        Ok(false)
    }

    fn follow(&mut self, until: &Until, stop: &Stop) -> Result<(), BootError> {
        let (began, mut up) = (Instant::now(), None::<Instant>);
        loop {
            stop.check()?;
            let has_ended = self.listen();
            let passed = began.elapsed();
            match until {
                Until::Time(time) if passed >= *time => return Ok(()),
                Until::Said(words, _) if up.is_none() && self.screen.shows(words) => {
                    up = Some(Instant::now());
                }
                Until::Said(words, longest) if up.is_none() && passed > *longest => {
                    let what = format!("the machine did not say `{words}` in {longest:?}");
                    return Err(self.failed(what));
                }
                Until::Time(_) | Until::Said(..) => {}
            }
            if up.is_some_and(|up| up.elapsed() >= SETTLE) {
                return Ok(());
            }
            if self.screen.shows(FATAL) {
                return Err(self.failed("the machine's kernel panicked".to_owned()));
            }
            if has_ended {
                let status = self.machine.0.wait().map_err(BootError::Follow)?;
                return Err(self.failed(format!("QEMU ended too early ({status})")));
            }
        }
    }

    fn failed(&self, what: String) -> BootError {
        let said = self.screen.last_lines();
        BootError::Machine { what, said }
    }
}

#[cfg(test)]
mod tests {
    use image_format::ObjectRef;

    use super::*;

    #[test]
    fn the_kernel_line_says_what_to_boot_and_where_to_talk() {
        let mut boot = Boot {
            mirrors: Vec::new(),
            kernel: ObjectRef::of(b"kernel"),
            initramfs: ObjectRef::of(b"initramfs"),
            kernel_release: "6.1.0".to_owned(),
            cmdline: String::new(),
            root: None,
            base_url: None,
        };
        let image: ImageRef = "lab/debian:12@3".parse().unwrap();
        let line = |boot: &Boot, record| {
            let port = 41_234;
            let image = &image;
            kernel_line(&Line { port, image, boot }, record)
        };
        assert_eq!(
            line(&boot, false),
            "circular.url=http://10.0.2.2:41234/ circular.image=lab/debian:12@3 ip=dhcp console=ttyS0"
        );
        boot.cmdline = "quiet console=ttyS0,115200 console=tty0".to_owned();
        boot.root = Some("PARTUUID=1".to_owned());
        assert!(line(&boot, true).ends_with(
            "root=PARTUUID=1 quiet console=ttyS0,115200 console=tty0 circular.record=/dev/ttyS1"
        ));
    }
}
