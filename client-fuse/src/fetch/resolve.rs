//! Finds the server's addresses, and remembers the last good ones.
//!
//! A root disk outlives `/etc/resolv.conf`: after `switch_root` the process sees an emptied file
//! system and the system resolver fails. The addresses that worked at the start then still do.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The system's resolver with a memory. Clones share it. Holds one entry for each server name.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    known: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
}

impl Resolver {
    /// Most names remembered: base address and redirects.
    const NAMES_MAX: usize = 16;

    /// All that is remembered.
    #[must_use]
    pub fn known(&self) -> Vec<(String, Vec<SocketAddr>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.iter();
        known
            .map(|(name, found)| (name.clone(), found.clone()))
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
                    known.insert(name.to_owned(), addresses.clone());
                }
                Ok(addresses)
            }
            found => known.get(name).cloned().map_or(found, Ok),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let name = name.as_str();
            // The port is filled in from the URL afterwards.
            let found = tokio::net::lookup_host((name, 0))
                .await
                .map(Iterator::collect);
            let addresses = resolver.settle(name, found)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no resolv.conf"))
    }

    #[test]
    fn the_last_good_addresses_outlive_the_resolver() {
        let resolver = Resolver::default();
        let good: Vec<SocketAddr> = vec!["192.0.2.1:0".parse().unwrap()];
        assert_eq!(resolver.settle("boot", Ok(good.clone())).unwrap(), good);
        assert_eq!(resolver.settle("boot", lost()).unwrap(), good);
        assert_eq!(resolver.settle("boot", Ok(Vec::new())).unwrap(), good);
    }

    #[test]
    fn another_process_knows_what_this_one_found() {
        let (one, other) = (Resolver::default(), Resolver::default());
        let good: Vec<SocketAddr> = vec!["192.0.2.1:0".parse().unwrap()];
        one.settle("boot", Ok(good.clone())).unwrap();
        other.remember(one.known());
        assert_eq!(other.settle("boot", lost()).unwrap(), good);
    }

    #[test]
    fn a_name_never_found_is_an_error() {
        assert!(Resolver::default().settle("boot", lost()).is_err());
    }

    #[test]
    fn new_addresses_replace_the_old_ones() {
        let resolver = Resolver::default();
        let address = |text: &str| vec![text.parse::<SocketAddr>().unwrap()];
        resolver.settle("boot", Ok(address("192.0.2.1:0"))).unwrap();
        resolver.settle("boot", Ok(address("192.0.2.2:0"))).unwrap();
        assert_eq!(
            resolver.settle("boot", lost()).unwrap(),
            address("192.0.2.2:0")
        );
    }
}
