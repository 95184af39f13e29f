//! Runs a command behind a line with a delay, a rate, a bounded queue and loss. See `circular_tests::link`.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use circular_tests::link::pump::Total;
use circular_tests::link::shaper::{Loss, Rate};
use circular_tests::link::{CLIENT, Conditions, Link, SERVER, Side};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const NOTES: &str = "\
COMMAND runs at the client's end, in a network namespace that has nothing but this line. Processes at the
server's end are started with --server, or from COMMAND with `nsenter --net=$LINK_SERVER_NS PROGRAM`.
Both ends have LINK_SERVER and LINK_CLIENT (addresses), LINK_SERVER_NS and LINK_CLIENT_NS in their environment.
What has passed is printed to standard error at the end. Needs root.

Examples:
  link --rtt-ms 50 --rate-mbit 100 -- ping -c 5 192.0.2.1
  link --rtt-ms 50 --rate-mbit 100 --server 'exec python3 -m http.server --bind $LINK_SERVER 80' -- \\
    curl --retry-connrefused --retry 9 -o /dev/null http://192.0.2.1/disk.raw
  link --rtt-ms 100 --rate-mbit 20 --loss 0.001 --seed 7 -- bash";

/// Run a command behind a line with a delay, a rate, a bounded queue and loss
#[derive(Debug, Parser)]
#[command(name = "link", after_help = NOTES)]
struct Args {
    /// Time from sending to the answer; half of it in each direction
    #[arg(
        long,
        visible_alias = "delay-ms",
        value_name = "MS",
        default_value_t = 0.0
    )]
    rtt_ms: f64,
    /// Millions of bits in a second, in each direction [default: no limit]
    #[arg(long, value_name = "MBIT")]
    rate_mbit: Option<u64>,
    /// KiB that wait for the line at most [default: as many as are on their way, at least 256 and 10 ms]
    #[arg(long, value_name = "KIB")]
    queue_kib: Option<u64>,
    /// Share of packets that are lost, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    loss: f64,
    /// Decides which packets are lost
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// CPU that carries the packets
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Shell command that runs at the server's end until COMMAND has ended; may be given several times
    #[arg(long, value_name = "SHELL COMMAND")]
    server: Vec<String>,
    /// What to run
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

impl Args {
    fn conditions(&self) -> Result<Conditions> {
        ensure!((0.0..=1.0).contains(&self.loss), "--loss is from 0 to 1");
        let rtt = Duration::try_from_secs_f64(self.rtt_ms / 1000.0).context("--rtt-ms")?;
        Ok(Conditions {
            rtt,
            rate: self.rate_mbit.map(Rate::from_mbit),
            queue: self.queue_kib.map(|kib| kib << 10),
            loss: (self.loss > 0.0).then_some(Loss {
                share: self.loss,
                seed: self.seed,
            }),
        })
    }
}

/// Processes at the server's end, killed with this.
struct Servers(Vec<Child>);

impl Servers {
    fn start(side: &Side, commands: &[String], link: &Link) -> Result<Self> {
        let mut servers = Self(Vec::new());
        for command in commands {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]);
            servers.0.push(side.spawn(told(&mut shell, link))?);
        }
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let id = i32::try_from(child.id()).unwrap_or_default();
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

/// Tells `command` where it is.
fn told<'a>(command: &'a mut Command, link: &Link) -> &'a mut Command {
    command
        .env("LINK_SERVER", SERVER.to_string())
        .env("LINK_CLIENT", CLIENT.to_string())
        .env("LINK_SERVER_NS", link.server().path())
        .env("LINK_CLIENT_NS", link.client().path())
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let link = Link::pinned(&args.conditions()?, args.cpu)?;
    let servers = Servers::start(link.server(), &args.server, &link)?;
    let program = args.command.first().context("no command")?;
    let mut command = Command::new(PathBuf::from(program));
    command.args(args.command.iter().skip(1));
    let status = link.client().spawn(told(&mut command, &link))?.wait()?;
    drop(servers);
    let totals = link.totals();
    writeln!(
        io::stderr(),
        "{{\"down\":{},\"up\":{}}}",
        json(totals.down),
        json(totals.up)
    )?;
    // As shells say it: a signal is 128 and its number.
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn json(total: Total) -> String {
    let Total {
        bytes,
        packets,
        dropped,
        lost,
        refused,
    } = total;
    format!(
        "{{\"bytes\":{bytes},\"packets\":{packets},\"dropped\":{dropped},\"lost\":{lost},\"refused\":{refused}}}"
    )
}
