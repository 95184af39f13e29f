//! Owns background tasks: they end when their owner does.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Tasks on one runtime, all aborted when this is dropped.
#[derive(Debug)]
pub struct Tasks {
    runtime: Handle,
    running: Mutex<JoinSet<()>>,
}

impl Tasks {
    /// No tasks yet; they will run on `runtime`.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            running: Mutex::new(JoinSet::new()),
        }
    }

    /// Runs `task` in the background; callable from any thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = running.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a task failed; what it carried is tried again or reported as EIO");
            }
        }
        running.spawn_on(task, &self.runtime);
    }
}
