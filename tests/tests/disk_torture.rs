//! A disk is written and read in every way that disks are, while its server dies, hangs and lies, and is mounted
//! again and again, also after its client was killed: no wrong byte, no error, no hang.
//!
//! `CIRCULAR_SEED=N` has a run again, as far as it depends on the seed; `CIRCULAR_TORTURE_SECONDS=N` lets it take so
//! long.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use circular_tests::images::{self, noise, sparse};
use circular_tests::loop_device::LoopDevice;
use circular_tests::mount::{Mount, Options};
use circular_tests::proxy::Proxy;
use circular_tests::proxy::chaos::{Chaos, Odds};
use circular_tests::random::{Random, mix};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use circular_tests::torture::fiend::Fiend;
use circular_tests::torture::tools;
use circular_tests::torture::worker::{Way, Worker};
use circular_tests::torture::{Report, Round};

const MIB: u64 = 1 << 20;

/// Each way to use the disk has a part of it.
const PART: u64 = 6 * MIB;

/// The ways; the last one has the odd end of the disk, too.
const WAYS: [Way; 4] = [Way::Direct, Way::Device, Way::Cached, Way::Cached];

/// The first part is for tools, one after the other. Fsx has few bytes of it, so that its operations meet.
const TOOLS: u64 = PART;
const FSX: u64 = MIB;

/// What fsx does in a round.
const FSX_OPERATIONS: u64 = 2000;

/// Bytes of the disk that are no whole block.
const ODD: u64 = 3 * 4096 + 321;

/// How long a round lasts, and the whole run where nobody says how long.
const ROUND: Duration = Duration::from_secs(5);
const SECONDS: u64 = 25;

/// How long readers wait for a server before they get an error; all faults are shorter.
const PATIENCE: Duration = Duration::from_secs(60);

const ODDS: Odds = Odds {
    fault_one_in: 12,
    damage_one_in: 100,
};

/// A store, its server, and what is known of the disk.
struct Torture {
    store: TestStore,
    server: Server,
    workers: Vec<Worker>,
    random: Random,
    fiend: Fiend,
    report: Report,
    has_fsx: bool,
    /// What the tools left in their part, synced.
    of_tools: Vec<u8>,
}

fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok();
    let number = text.map(|text| text.parse().with_context(|| format!("{name}={text}")));
    number.transpose()
}

#[test]
fn disk_is_right_whatever_its_server_and_its_client_live_through() -> Result<()> {
    if require::missing(&[Need::Fuse])? {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let seed = number("CIRCULAR_SEED")?.unwrap_or_else(|| mix(now.try_into().unwrap_or(1)) >> 32);
    let seconds = number("CIRCULAR_TORTURE_SECONDS")?.unwrap_or(SECONDS);
    eprintln!("CIRCULAR_SEED={seed}");
    let mut torture = Torture::begin(seed)?;
    let until = Instant::now() + Duration::from_secs(seconds);
    for number in 0.. {
        torture.round(number)?;
        if Instant::now() >= until {
            break;
        }
    }
    let report = torture.report;
    eprintln!("{report}");
    ensure!(
        report.wrong.is_empty() && report.errors.is_empty(),
        "CIRCULAR_SEED={seed}: {report}"
    );
    ensure!(
        report.longest < PATIENCE + PATIENCE / 2,
        "CIRCULAR_SEED={seed}: a hang: {report}"
    );
    ensure!(
        report.line.total() > 10 && report.client_kills > 0,
        "too little went wrong: {report}"
    );
    Ok(())
}

impl Torture {
    fn begin(seed: u64) -> Result<Self> {
        let store = TestStore::new()?;
        let image = store.beside("image");
        let length = TOOLS + PART * WAYS.len() as u64 + ODD;
        // Some of it is holes, so that the overlay meets those too.
        let pieces: Vec<_> = (0..length)
            .step_by(400_000)
            .map(|at| {
                (
                    at,
                    noise(
                        at + 1,
                        300_000.min(usize::try_from(length - at).unwrap_or(0)),
                    ),
                )
            })
            .collect();
        sparse(&image, length, &pieces)?;
        let server = store.publish_and_serve(&image, "test:1")?;
        let mut random = Random::new(seed);
        let worker = |(number, way): (u64, Way)| {
            let start = TOOLS + number * PART;
            let is_last = number + 1 == WAYS.len() as u64;
            let end = start + PART + if is_last { ODD } else { 0 };
            let bytes = images::read_at(&image, start, usize::try_from(end - start)?)?;
            Ok(Worker::new(way, start, bytes, random.next()))
        };
        let workers = (0..).zip(WAYS).map(worker).collect::<Result<_>>()?;
        Ok(Self {
            store,
            server,
            workers,
            fiend: Fiend::new(random.next()),
            random,
            report: Report::default(),
            has_fsx: !require::missing(&[Need::Fsx])?,
            of_tools: Vec::new(),
        })
    }

    /// Mounts the disk, uses it while bad things happen, ends that in one way or another, and looks at what is left.
    fn round(&mut self, number: u64) -> Result<()> {
        let chaos = Arc::new(Chaos::new(self.random.next(), ODDS));
        let proxy = Proxy::start_in(&chaos, self.server.url())?;
        let kill = number.is_multiple_of(2);
        let mount = self.mount(proxy.url(), number)?;
        let round = Round::new(std::mem::take(&mut self.report));
        chaos.set_loose(true);
        let ended = self.work(&round, mount, kill);
        chaos.set_loose(false);
        self.report = round.into_report();
        self.report.line.add(chaos.injected());
        self.report.client_kills += u64::from(kill);
        ended?;

        let round = Round::new(std::mem::take(&mut self.report));
        let mount = self.mount(proxy.url(), number)?;
        let disk = File::open(mount.disk())?;
        for worker in &mut self.workers {
            if kill {
                worker.recover(&disk, &round);
            } else {
                worker.check(&disk, &round);
            }
        }
        match of_tools(&disk) {
            Err(error) => round
                .report()
                .errors
                .push(format!("mounted again: {error:#}")),
            Ok(found) if found != self.of_tools => {
                let wrong = "what fsx and fio wrote and synced is not there, mounted again";
                round.report().wrong.push(wrong.to_owned());
            }
            Ok(_) => {}
        }
        self.report = round.into_report();
        drop(disk);
        ensure!(mount.stop()?.success(), "the client does not end well");
        Ok(())
    }

    /// Mounts with a cache on disk that is small, large, or not there.
    fn mount(&self, url: &str, number: u64) -> Result<Mount> {
        let overlay = self.store.beside("overlay");
        let overlay = overlay.to_str().context("test paths are plain")?;
        // With little memory, what was evicted is fetched while bad things happen.
        let mut arguments = vec![
            "--overlay",
            overlay,
            "--timeout",
            "2",
            "--memory-cache",
            "2M",
        ];
        if number.is_multiple_of(3) {
            arguments.extend(["--cache-size", "8M"]);
        }
        let options = Options {
            cache: (number % 3 != 2).then(|| self.store.beside("cache")),
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            ..Options::default()
        };
        Mount::start_with(&self.store, url, "test:1", &options)
    }

    fn work(&mut self, round: &Round, mount: Mount, kill: bool) -> Result<()> {
        let disk = mount.disk();
        let device = self
            .workers
            .iter()
            .find(|worker| worker.way() == Way::Device);
        let part = device.context("one uses a device")?.part();
        let device = LoopDevice::over_part(&disk, &part)?;
        let seed = self.random.next();
        let Self {
            store,
            server,
            workers,
            fiend,
            has_fsx,
            of_tools,
            ..
        } = self;
        let mut mount = Some(mount);
        thread::scope(|scope| -> Result<()> {
            let haunting = scope.spawn(|| fiend.haunt(server, round));
            let mut working = Vec::new();
            for worker in workers.iter_mut() {
                let path = path_for(worker, &device, &disk);
                working.push(scope.spawn(move || worker.work(path, round)));
            }
            let until = Instant::now() + ROUND;
            let fsx = if *has_fsx {
                tools::fsx(&disk, FSX, FSX_OPERATIONS, seed, &store.beside(""))
            } else {
                Ok(())
            };
            let fio = tools::fio(&disk, TOOLS, seed);
            for error in [fsx, fio].into_iter().filter_map(Result::err) {
                round.report().errors.push(format!("{error:#}"));
            }
            match synced(&disk) {
                Ok(bytes) => *of_tools = bytes,
                Err(error) => round.report().errors.push(format!("{error:#}")),
            }
            thread::sleep(until.saturating_duration_since(Instant::now()));
            let victim = mount.take_if(|_| kill);
            let killed = match victim {
                None => {
                    round.end();
                    Ok(())
                }
                Some(mut mount) => {
                    tell(round, &mut mount);
                    let _nobody_maps = round.doom();
                    mount.kill()
                }
            };
            for worker in working {
                worker.join().expect("it does not panic")?;
            }
            haunting.join().expect("it does not panic")?;
            if let Some(mount) = &mut mount {
                tell(round, mount);
            }
            killed
        })?;
        drop(device);
        if let Some(mount) = mount {
            ensure!(mount.stop()?.success(), "the client does not end well");
        }
        Ok(())
    }
}

/// Syncs the disk, and returns what is in the part of the tools then.
fn synced(disk: &Path) -> Result<Vec<u8>> {
    let disk = File::options().read(true).write(true).open(disk)?;
    disk.sync_all()?;
    of_tools(&disk)
}

/// Returns what is in the part of the tools.
fn of_tools(disk: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(TOOLS)?];
    disk.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Adds what the client said to a report of errors.
fn tell(round: &Round, mount: &mut Mount) {
    let mut report = round.report();
    if !report.errors.is_empty() {
        report.errors.push(mount.output());
    }
}

fn path_for<'a>(worker: &Worker, device: &'a LoopDevice, disk: &'a Path) -> &'a Path {
    match worker.way() {
        Way::Device => device.path(),
        Way::Cached | Way::Direct => disk,
    }
}
