//! Whose turn it is to be answered.
//!
//! Answers are bounded, since each holds an open file and a piece of it. A client can keep its
//! answers for ever by taking nothing of them: HTTP/2 lets it close the window of each stream while
//! its connection is well. So every connection has one turn that no other can take, and only what a
//! connection wants at once beyond that comes out of what all share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::Limits;

/// The turns of one connection.
#[derive(Debug)]
pub(crate) struct Turns {
    own: Arc<Semaphore>,
    shared: Arc<Semaphore>,
}

impl Turns {
    /// Gives a connection a turn of its own, beside those that all share.
    pub(crate) fn new(shared: &Arc<Semaphore>) -> Self {
        Self {
            own: Arc::new(Semaphore::new(1)),
            shared: Arc::clone(shared),
        }
    }

    /// Waits for the turn of a request; nothing where that takes too long.
    pub(crate) async fn next(&self) -> Option<OwnedSemaphorePermit> {
        let own = Arc::clone(&self.own).acquire_owned();
        let shared = Arc::clone(&self.shared).acquire_owned();
        let turn = async {
            tokio::select! {
                biased;
                turn = own => turn,
                turn = shared => turn,
            }
        };
        timeout(Limits::ADMISSION_TIMEOUT, turn).await.ok()?.ok()
    }
}
