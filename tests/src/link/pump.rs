//! Carries packets from one device to the other, when the [`Shaper`] says.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;

use super::shaper::{Shaper, Verdict};
use super::tun::{PACKET_MAX, Tun, line_bytes};
use super::{Conditions, pin};

/// Packets read from one device before the other has its turn.
const BATCH: usize = 64;

/// How late the kernel may wake the thread, to save power: not at all.
const TIMER_SLACK: u64 = 1;

/// What has passed one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Bytes that came out, with the headers of all segments.
    pub bytes: u64,
    /// Packets that came out; up to 64 KiB each.
    pub packets: u64,
    /// Packets that the queue had no room for.
    pub dropped: u64,
    /// Packets that were lost on the line.
    pub lost: u64,
    /// Packets that the kernel did not take.
    pub refused: u64,
}

/// What has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// From the server to the client.
    pub down: Total,
    /// From the client to the server.
    pub up: Total,
}

/// A [`Total`] that one thread counts and another reads.
#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    packets: AtomicU64,
    dropped: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    fn total(&self) -> Total {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Total {
            bytes: read(&self.bytes),
            packets: read(&self.packets),
            dropped: read(&self.dropped),
            lost: read(&self.lost),
            refused: read(&self.refused),
        }
    }
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The running thread; it ends with this.
#[derive(Debug)]
pub struct Pump {
    down: Arc<Counters>,
    up: Arc<Counters>,
    /// Closed to stop the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts to carry packets between the devices, on `cpu` only if one is given.
    ///
    /// # Errors
    /// There is no thread to be had, or no such CPU.
    pub fn start(
        conditions: &Conditions,
        server: Tun,
        client: Tun,
        cpu: Option<usize>,
    ) -> Result<Self> {
        let (down, up) = (Arc::default(), Arc::default());
        let (stop, stopped) = UnixStream::pair().context("no socket pair")?;
        let direction = |counters: &Arc<Counters>, salt| Direction {
            shaper: shaper(conditions, salt),
            line: VecDeque::new(),
            counters: counters.clone(),
        };
        let mut carrier = Carrier {
            down: direction(&down, 0),
            up: direction(&up, 1),
            server,
            client,
            stopped,
            start: Instant::now(),
        };
        let (sender, ready) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || {
                let pinned = cpu.map_or(Ok(()), pin);
                let failed = pinned.is_err();
                // Whoever waits for it is there until it comes.
                let _ = sender.send(pinned);
                if !failed {
                    carrier.run();
                }
            })
            .context("cannot start a thread")?;
        ready.recv().context("the thread of the line ended")??;
        Ok(Self {
            down,
            up,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns what has passed so far.
    pub fn totals(&self) -> Totals {
        Totals {
            down: self.down.total(),
            up: self.up.total(),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, its packets have stopped, and somebody has noticed.
            let _ = thread.join();
        }
    }
}

/// The two directions lose different packets.
fn shaper(conditions: &Conditions, salt: u64) -> Shaper {
    let loss = conditions.loss.map(|mut loss| {
        loss.seed = loss.seed.wrapping_mul(2).wrapping_add(salt);
        loss
    });
    let queue = conditions.queue_bytes();
    Shaper::new(conditions.rtt / 2, conditions.rate, queue, loss)
}

#[derive(Debug)]
struct Direction {
    shaper: Shaper,
    /// Packets on their way, the next one to arrive first.
    line: VecDeque<(Duration, u64, Vec<u8>)>,
    counters: Arc<Counters>,
}

impl Direction {
    /// Reads what waits at `from`.
    fn take(&mut self, from: &Tun, start: Instant, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(packet) = from.receive(buffer)? else {
                break;
            };
            let bytes = line_bytes(packet);
            match self.shaper.offer(start.elapsed(), bytes) {
                Verdict::Arrives(at) => self.line.push_back((at, bytes, packet.to_vec())),
                Verdict::Lost => count(&self.counters.lost, 1),
                Verdict::Dropped => count(&self.counters.dropped, 1),
            }
        }
        Ok(())
    }

    /// Writes what is due to `to`.
    fn give(&mut self, to: &Tun, start: Instant) {
        while let Some((at, bytes, packet)) = self.line.front() {
            if *at > start.elapsed() {
                break;
            }
            // Counted first: who has received it finds it counted.
            count(&self.counters.bytes, *bytes);
            count(&self.counters.packets, 1);
            if to.send(packet).is_err() {
                count(&self.counters.refused, 1);
            }
            self.line.pop_front();
        }
    }

    fn next(&self) -> Option<Duration> {
        self.line.front().map(|(at, ..)| *at)
    }
}

#[derive(Debug)]
struct Carrier {
    down: Direction,
    up: Direction,
    server: Tun,
    client: Tun,
    stopped: UnixStream,
    start: Instant,
}

impl Carrier {
    /// Carries until the other end of `stopped` is closed or a device is gone.
    fn run(&mut self) {
        // Without it packets are up to 50 microseconds late.
        let _ = set_timerslack(TIMER_SLACK);
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            let taken = self
                .down
                .take(&self.server, self.start, &mut buffer)
                .and_then(|()| self.up.take(&self.client, self.start, &mut buffer));
            if taken.is_err() {
                return;
            }
            self.down.give(&self.client, self.start);
            self.up.give(&self.server, self.start);
            if self.sleep().is_err() {
                return;
            }
        }
    }

    /// Waits for a packet or for the time of the next one; fails when it is to stop.
    fn sleep(&self) -> io::Result<()> {
        let next = match (self.down.next(), self.up.next()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let timeout = next.map(|at| TimeSpec::from(at.saturating_sub(self.start.elapsed())));
        let mut files = [
            &self.server.as_fd(),
            &self.client.as_fd(),
            &self.stopped.as_fd(),
        ]
        .map(|file| PollFd::new(*file, PollFlags::POLLIN));
        match ppoll(&mut files, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let closed = files.last().and_then(PollFd::any).unwrap_or(false);
        match closed {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }
}
