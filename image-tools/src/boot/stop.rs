//! A signal that ends a boot: machine, server and copies of files go with it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::BootError;

/// Whether a signal came that is to end the boot. SIGINT, SIGTERM and SIGHUP are.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Begins to listen; from then on these signals end nothing by themselves.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn listen() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            // Nobody listens any more only when the boot is over.
            let _ = sender.send(true);
        });
        Ok(Self(receiver))
    }

    /// Goes on only while no signal came.
    ///
    /// # Errors
    /// One came.
    pub fn check(&self) -> Result<(), BootError> {
        if *self.0.borrow() {
            return Err(BootError::Stopped);
        }
        Ok(())
    }

    /// Waits until a signal comes.
    pub async fn asked(&self) {
        // The sender goes only after it has sent.
        let _ = self.0.clone().wait_for(|asked| *asked).await;
    }
}
