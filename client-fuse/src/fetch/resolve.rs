//! Finds the server's addresses, and remembers the last good ones.
//!
//! A root disk keeps the `/etc/resolv.conf` of its initramfs, and asks the name servers of then. Where
//! there is none that answers, the addresses that worked at the start still do. No
//! address is kept while the system says another: whoever connects asks again, only not more than once
//! in a few seconds, and one at a time, because a name server that is silent takes a thread.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::Instant;

/// Asks for the addresses of a name, with any port; may block.
pub type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// How long an answer serves all who connect: a burst of connections asks once.
const FRESH: Duration = Duration::from_secs(2);

/// How long a name server may take where addresses are known from before.
const PATIENCE: Duration = Duration::from_secs(2);

/// The system's resolver with a memory. Clones share it. Holds one entry for each server name.
#[derive(Clone)]
pub struct Resolver {
    lookup: Lookup,
    known: Arc<Mutex<HashMap<String, Known>>>,
    /// One asks for a name at a time.
    asking: Arc<Mutex<HashMap<String, Turn>>>,
}

/// Held by whoever asks for a name.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// What is known of a name.
#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// When it was asked for last, whatever came of it.
    asked: Instant,
    /// Whether who asks now has heard nothing for [`PATIENCE`]: nobody else waits for that.
    is_silent: bool,
}

impl Default for Resolver {
    fn default() -> Self {
        // The port is filled in from the URL afterwards.
        Self::of(Arc::new(|name| {
            (name, 0).to_socket_addrs().map(Iterator::collect)
        }))
    }
}

impl Resolver {
    /// Most names remembered: base address and redirects.
    const NAMES_MAX: usize = 16;

    /// A resolver that asks `lookup`.
    #[must_use]
    pub fn of(lookup: Lookup) -> Self {
        Self {
            lookup,
            known: Arc::default(),
            asking: Arc::default(),
        }
    }

    /// All that is remembered.
    #[must_use]
    pub fn all_known(&self) -> Vec<(String, Vec<SocketAddr>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.iter();
        known
            .map(|(name, known)| (name.clone(), known.addresses.clone()))
            .collect()
    }

    /// Remembers what another process found.
    pub fn remember(&self, found: Vec<(String, Vec<SocketAddr>)>) {
        for (name, addresses) in found {
            // A memory that is full or told nothing is as it was.
            let _ = self.settle(&name, Ok(addresses));
        }
    }

    /// The addresses for `name` after the system resolver said `found`.
    fn settle(
        &self,
        name: &str,
        found: io::Result<Vec<SocketAddr>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(addresses) if !addresses.is_empty() => {
                if known.len() < Self::NAMES_MAX || known.contains_key(name) {
                    let asked = Instant::now();
                    let addresses = addresses.clone();
                    let found = Known {
                        addresses,
                        asked,
                        is_silent: false,
                    };
                    known.insert(name.to_owned(), found);
                }
                Ok(addresses)
            }
            found => match known.get_mut(name) {
                Some(known) => {
                    (known.asked, known.is_silent) = (Instant::now(), false);
                    Ok(known.addresses.clone())
                }
                None => found,
            },
        }
    }

    fn known(&self, name: &str) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned()
    }

    fn fresh(&self, name: &str) -> Option<Vec<SocketAddr>> {
        let known = self.known(name)?;
        (known.asked.elapsed() < FRESH).then_some(known.addresses)
    }

    /// Notes that whoever asks for `name` hears nothing.
    fn note_silence(&self, name: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(name) {
            known.is_silent = true;
        }
    }

    fn turn(&self, name: &str) -> Turn {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if asking.len() >= Self::NAMES_MAX && !asking.contains_key(name) {
            asking.clear();
        }
        Turn::clone(asking.entry(name.to_owned()).or_default())
    }

    /// Asks, unless somebody just did.
    async fn ask(self, name: String) -> io::Result<Vec<SocketAddr>> {
        let turn = self.turn(&name);
        let _turn = turn.lock().await;
        if let Some(fresh) = self.fresh(&name) {
            return Ok(fresh);
        }
        let (lookup, asked) = (Arc::clone(&self.lookup), name.clone());
        let found = tokio::task::spawn_blocking(move || lookup(&asked)).await;
        self.settle(&name, found.unwrap_or_else(|error| Err(error.into())))
    }

    async fn addresses(&self, name: String) -> io::Result<Vec<SocketAddr>> {
        if let Some(fresh) = self.fresh(&name) {
            return Ok(fresh);
        }
        let known = self.known(&name);
        // It goes on when nobody waits any more: the next one to connect wants to know.
        let asking = tokio::spawn(self.clone().ask(name.clone()));
        let Some(known) = known else {
            return asking.await.map_err(io::Error::from)?;
        };
        if known.is_silent {
            return Ok(known.addresses);
        }
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(asked) => asked.map_err(io::Error::from)?,
            Err(_) => {
                self.note_silence(&name);
                Ok(known.addresses)
            }
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = resolver.addresses(name.as_str().to_owned()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn lost() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no resolv.conf"))
    }

    fn address(text: &str) -> Vec<SocketAddr> {
        vec![text.parse().unwrap()]
    }

    #[test]
    fn the_last_good_addresses_outlive_the_resolver() {
        let resolver = Resolver::default();
        let good = address("192.0.2.1:0");
        assert_eq!(resolver.settle("boot", Ok(good.clone())).unwrap(), good);
        assert_eq!(resolver.settle("boot", lost()).unwrap(), good);
        assert_eq!(resolver.settle("boot", Ok(Vec::new())).unwrap(), good);
    }

    #[test]
    fn another_process_knows_what_this_one_found() {
        let (one, other) = (Resolver::default(), Resolver::default());
        let good: Vec<SocketAddr> = vec!["192.0.2.1:0".parse().unwrap()];
        one.settle("boot", Ok(good.clone())).unwrap();
        other.remember(one.all_known());
        assert_eq!(other.settle("boot", lost()).unwrap(), good);
    }

    #[test]
    fn a_name_never_found_is_an_error() {
        assert!(Resolver::default().settle("boot", lost()).is_err());
    }

    #[test]
    fn new_addresses_replace_the_old_ones() {
        let resolver = Resolver::default();
        resolver.settle("boot", Ok(address("192.0.2.1:0"))).unwrap();
        resolver.settle("boot", Ok(address("192.0.2.2:0"))).unwrap();
        assert_eq!(
            resolver.settle("boot", lost()).unwrap(),
            address("192.0.2.2:0")
        );
    }

    /// A resolver that says another address each time, and how often it was asked.
    fn changing() -> (Resolver, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let lookup = move |_: &str| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            Ok(address(&format!("192.0.2.{number}:0")))
        };
        (Resolver::of(Arc::new(lookup)), asked)
    }

    #[tokio::test]
    async fn a_burst_asks_once_and_no_address_is_kept_for_long() {
        let (resolver, asked) = changing();
        let all = (0..20).map(|_| resolver.addresses("boot".to_owned()));
        for addresses in futures_util::future::join_all(all).await {
            assert_eq!(addresses.unwrap(), address("192.0.2.0:0"));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::pause();
        tokio::time::advance(FRESH).await;
        tokio::time::resume();
        let addresses = resolver.addresses("boot".to_owned()).await.unwrap();
        assert_eq!(addresses, address("192.0.2.1:0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_name_server_is_waited_for_once() {
        use futures_util::FutureExt as _;

        // It answers when the test has ended.
        let (end, silence) = std::sync::mpsc::channel::<()>();
        let silence = Mutex::new(silence);
        let lookup = move |_: &str| {
            let _ = silence.lock().unwrap().recv();
            lost()
        };
        let resolver = Resolver::of(Arc::new(lookup));
        let good = address("192.0.2.1:0");
        resolver.remember(vec![("boot".to_owned(), good.clone())]);
        tokio::time::advance(FRESH).await;
        let resolving = tokio::spawn({
            let resolver = resolver.clone();
            async move { resolver.addresses("boot".to_owned()).await }
        });
        tokio::task::yield_now().await;
        tokio::time::advance(PATIENCE).await;
        assert_eq!(resolving.await.unwrap().unwrap(), good);
        let again = resolver.addresses("boot".to_owned()).now_or_never();
        assert_eq!(again.unwrap().unwrap(), good);
        drop(end);
    }
}
