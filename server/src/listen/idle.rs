//! Ends connections on which nothing is asked for any more.
//!
//! hyper bounds the time between two requests of HTTP/1. An HTTP/2 connection may be kept open by its client for ever, by
//! answering pings, and takes one of the places that others wait for.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// How many answers of a connection are under way.
#[derive(Debug)]
pub(super) struct Answers(watch::Sender<usize>);

/// An answer that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy(watch::Sender<usize>);

impl Answers {
    pub(super) fn none() -> Self {
        Self(watch::Sender::new(0))
    }

    /// Begins one.
    pub(super) fn begin(&self) -> Busy {
        self.0.send_modify(|answers| *answers += 1);
        Busy(self.0.clone())
    }

    /// Waits until there was none for so long.
    pub(super) async fn none_for(&self, time: Duration) {
        let mut answers = self.0.subscribe();
        loop {
            // The sender is `self`, so the channel cannot close while this waits.
            let _ = answers.wait_for(|answers| *answers == 0).await;
            tokio::select! {
                () = sleep(time) => return,
                _ = answers.changed() => {}
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|answers| *answers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_its_last_answer_is_long_over() {
        const MINUTE: Duration = Duration::from_secs(60);
        let answers = Answers::none();
        let began = Instant::now();
        let work = async {
            sleep(MINUTE / 2).await;
            let long = answers.begin();
            drop(answers.begin());
            sleep(MINUTE * 5).await;
            drop(long);
        };
        tokio::join!(work, answers.none_for(MINUTE));
        assert_eq!(began.elapsed(), MINUTE * 6 + MINUTE / 2);
    }
}
