//! Writes to a disk at random, knows what must be on it, and says so where it is not.
//!
//! A [`model::Model`] is what a part of the disk may hold; a [`worker::Worker`] uses that part in one of the ways
//! that a disk is used, [`tools`] of others another part; a [`fiend::Fiend`] does bad things to the server meanwhile.
//! What they do depends on a seed; when it happens does not, for it happens at the same time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::proxy::chaos::Injected;

pub mod fiend;
pub mod model;
pub mod tools;
pub mod worker;

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the proxy did to answers.
    pub line: Injected,
    /// How often the server was killed.
    pub server_kills: u64,
    /// How often the server was stopped for a while.
    pub server_stops: u64,
    /// How often the client was killed.
    pub client_kills: u64,
    /// Reads, writes, syncs and discards that were made.
    pub operations: u64,
    /// Bytes that were read and compared.
    pub compared: u64,
    /// Places where other bytes were than must be there.
    pub wrong: Vec<String>,
    /// Operations that failed while they could not but succeed.
    pub errors: Vec<String>,
    /// The operation that took longest.
    pub longest: Duration,
}

impl Report {
    /// Returns how many faults there were.
    pub const fn faults(&self) -> u64 {
        self.line.total() + self.server_kills + self.server_stops + self.client_kills
    }
}

/// `faults injected / wrong bytes / reader errors / longest stall`, then the details.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} faults injected / {} wrong bytes / {} reader errors / longest stall {:.1} s",
            self.faults(),
            self.wrong.len(),
            self.errors.len(),
            self.longest.as_secs_f64()
        )?;
        writeln!(
            f,
            "faults: server killed {} and stopped {} times, client killed {} times, {}",
            self.server_kills, self.server_stops, self.client_kills, self.line
        )?;
        write!(
            f,
            "{} operations, {} MiB compared",
            self.operations,
            self.compared >> 20
        )?;
        for line in self.wrong.iter().chain(&self.errors) {
            write!(f, "\n{line}")?;
        }
        Ok(())
    }
}

/// What all who work on one mount share.
#[derive(Debug, Default)]
pub struct Round {
    over: AtomicBool,
    doomed: AtomicBool,
    /// Shared by who has a part of the disk in its memory: a fault there would be our own end.
    mapped: RwLock<()>,
    report: Mutex<Report>,
}

impl Round {
    /// Begins a round that adds to `report`.
    pub fn new(report: Report) -> Self {
        Self {
            report: Mutex::new(report),
            ..Self::default()
        }
    }

    /// Says that the round is over.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Says that the round is over, because the client is about to be killed: what fails from now on fails
    /// because of that. Nobody has the disk in its memory, or will have, for as long as the guard is there.
    pub fn doom(&self) -> RwLockWriteGuard<'_, ()> {
        let guard = self.mapped.write().unwrap_or_else(PoisonError::into_inner);
        self.doomed.store(true, Ordering::SeqCst);
        self.end();
        guard
    }

    /// Returns whether the round is over.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Returns whether the client is killed, or about to be.
    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst)
    }

    /// Returns the report, to add to it.
    pub fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the round and returns the report.
    pub fn into_report(self) -> Report {
        self.report
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping(&self) -> RwLockReadGuard<'_, ()> {
        self.mapped.read().unwrap_or_else(PoisonError::into_inner)
    }
}
