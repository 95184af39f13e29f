//! Threads for decoding: a little more than there are CPUs, so that none is idle, and no more, so that what each needs
//! of memory is bounded.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

/// More than one a CPU: some wait for memory.
const EXTRA: usize = 2;

/// Turns at decoding. A clone has them in common.
#[derive(Clone, Debug)]
pub struct Decoders(Arc<Semaphore>);

impl Decoders {
    /// As many turns at once as [`Self::most`].
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(Self::most())))
    }

    /// Most threads that decode at once.
    #[must_use]
    pub fn most() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from) + EXTRA
    }

    /// Waits for a turn, which ends when it is dropped.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes the semaphore.
        Arc::clone(&self.0).acquire_owned().await.ok()
    }

    /// Decodes in the next turn.
    ///
    /// # Errors
    ///
    /// `decode` failed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        decode: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = self.turn().await;
        let decoding = tokio::task::spawn_blocking(move || {
            let decoded = decode();
            drop(turn);
            decoded
        });
        decoding.await
    }
}

impl Default for Decoders {
    fn default() -> Self {
        Self::new()
    }
}
