//! Two pools of connections: the usual one, and one whose connections nobody has used for long.
//!
//! Connections may be dead without a sign of it: a request over them then lets wait. It is made again over the other
//! pool, and where that helps, the pools change places. A request knows during which [`Turn`] it was made, so that the
//! pool that one of many waiting requests has left is not taken up again by the next of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Client;
use tokio::time::Instant;

use crate::fetch::Turn;

/// Requests made aside within this share their connections; later ones have new ones, because those may be dead by
/// then, too.
const FRESH: Duration = Duration::from_secs(1);

/// Makes a client without connections.
pub(super) type Make = Arc<dyn Fn() -> reqwest::Result<Client> + Send + Sync>;

/// The connections to the servers of a store.
#[derive(Clone)]
pub(super) struct Pools {
    make: Make,
    now: Arc<Mutex<Now>>,
}

#[derive(Clone)]
struct Now {
    turn: Turn,
    usual: Client,
    aside: Client,
    /// When the latter was used first.
    used: Option<Instant>,
}

impl Pools {
    /// Both without connections.
    pub(super) fn new(make: Make) -> reqwest::Result<Self> {
        let now = Now {
            turn: Turn::default(),
            usual: make()?,
            aside: make()?,
            used: None,
        };
        Ok(Self {
            make,
            now: Arc::new(Mutex::new(now)),
        })
    }

    /// The same connections, which change places without these.
    pub(super) fn apart(&self) -> Self {
        Self {
            make: Arc::clone(&self.make),
            now: Arc::new(Mutex::new(self.now().clone())),
        }
    }

    /// The client that is used.
    pub(super) fn usual(&self) -> Client {
        self.now().usual.clone()
    }

    /// How often the pools have changed places.
    pub(super) fn now_is(&self) -> Turn {
        self.now().turn
    }

    /// A client for what was asked for during `turn` and lets wait: it has none of the connections that were used then.
    pub(super) fn other_than(&self, turn: Turn) -> Client {
        let mut now = self.now();
        if now.turn != turn {
            return now.usual.clone();
        }
        if now.used.is_some_and(|used| used.elapsed() > FRESH) {
            self.renew(&mut now);
        }
        now.used.get_or_insert_with(Instant::now);
        now.aside.clone()
    }

    /// Leaves the connections that were used during `turn`, unless they were left already.
    pub(super) fn leave(&self, turn: Turn) {
        let mut now = self.now();
        if now.turn == turn {
            now.turn = turn.next();
            now.usual = now.aside.clone();
            self.renew(&mut now);
        }
    }

    fn renew(&self, now: &mut Now) {
        // It was possible before; where it is not, the connections that are there will do.
        if let Ok(client) = (self.make)() {
            (now.aside, now.used) = (client, None);
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pools")
            .field("turn", &self.now_is())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Pools whose clients are counted.
    fn pools() -> (Pools, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let make = move || {
            count.fetch_add(1, Ordering::Relaxed);
            Client::builder().no_proxy().build()
        };
        (Pools::new(Arc::new(make)).unwrap(), made)
    }

    #[tokio::test(start_paused = true)]
    async fn pools_change_places_once_however_many_waited() {
        let (pools, made) = pools();
        let asked = pools.now_is();
        // Three requests let wait, and each is helped by the other pool.
        for _ in 0..3 {
            drop(pools.other_than(asked));
        }
        assert_eq!(made.load(Ordering::Relaxed), 2, "they share it");
        for _ in 0..3 {
            pools.leave(asked);
        }
        assert_eq!(pools.now_is(), asked.next());
        assert_eq!(made.load(Ordering::Relaxed), 3, "what is left is gone");
        // A fourth, as old as they, goes where they went.
        drop(pools.other_than(asked));
        pools.leave(asked);
        assert_eq!(pools.now_is(), asked.next());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_aside_long_ago_is_not_used_again() {
        let (pools, made) = pools();
        drop(pools.other_than(pools.now_is()));
        tokio::time::advance(FRESH * 2).await;
        drop(pools.other_than(pools.now_is()));
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn mirrors_change_places_for_themselves() {
        let (pools, _) = pools();
        let other = pools.apart();
        other.leave(other.now_is());
        assert_ne!(pools.now_is(), other.now_is());
    }
}
