//! Does bad things to a server, one after another, for as long as a round lasts.

use std::time::Duration;

use anyhow::Result;

use super::Round;
use crate::random::Random;
use crate::server::Server;

/// Between two bad things, in milliseconds.
const PEACE: u64 = 1200;

/// The longest that the server is gone, in milliseconds: far below what readers wait for it.
const GONE: u64 = 900;

/// The longest that it does not answer, in milliseconds; more than a reader's time-out.
const SILENT: u64 = 3500;

/// Does bad things to a server.
#[derive(Debug)]
pub struct Fiend(Random);

impl Fiend {
    /// Makes one that does what `seed` says.
    pub const fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// Kills the server and starts it again, or stops it for a while, until the round is over. Then it runs.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn haunt(&mut self, server: &mut Server, round: &Round) -> Result<()> {
        while !round.is_over() {
            self.pause(PEACE);
            if self.0.once_in(2) {
                server.kill()?;
                round.report().server_kills += 1;
                self.pause(GONE);
                server.restart()?;
            } else {
                server.freeze()?;
                round.report().server_stops += 1;
                self.pause(SILENT);
                server.thaw()?;
            }
        }
        Ok(())
    }

    fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.0.below(most)));
    }
}
