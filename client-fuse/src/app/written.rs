//! The overlay of a disk that is written to: opened, or taken over from a worker before this one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::config::Config;
use crate::disk::Disk;
use crate::fetch::http::HttpSource;
use crate::fs::ImageFs;
use crate::open::OpenImage;
use crate::overlay::layered::Layered;
use crate::overlay::{Base, Kept, Overlay, OverlayError, keep_flushed};
use crate::supervise::Stand;
use crate::supervise::seat::LastStep;

/// How long an overlay is waited for that another mount has, and between two looks.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is tried to take an overlay over, and how long it is from one try to the next.
const TRIES: u32 = 3;
const TRY_PAUSE: Duration = Duration::from_secs(1);

/// What becomes of an overlay when a disk is opened.
pub(super) enum Opening {
    /// There is none.
    None,
    /// It is opened now. Others may go on with it after this process.
    Now {
        path: PathBuf,
        base: Base,
        is_handed_on: bool,
    },
    /// Another process may still have it.
    Later {
        path: PathBuf,
        base: Base,
        kept: Kept,
    },
    /// It was opened; and what others need to go on with it.
    Opened(Arc<Overlay>, Option<Kept>),
}

impl Opening {
    pub(super) fn begin(
        config: &Config,
        image: &OpenImage,
        stand: &mut Stand,
    ) -> anyhow::Result<Self> {
        let Some(path) = config.overlay.clone() else {
            return Ok(Self::None);
        };
        let base = Base {
            disk: image.disk_digest(),
            length: image.manifest.disk.length,
            reference: image.reference.to_string(),
        };
        let Stand::Supervised(seat) = stand else {
            return Ok(Self::Now {
                path,
                base,
                is_handed_on: false,
            });
        };
        if seat.is_first() {
            return Ok(Self::Now {
                path,
                base,
                is_handed_on: true,
            });
        }
        let kept = seat.overlay();
        let kept = kept.context("no worker before this one left an overlay")?;
        Ok(Self::Later { path, base, kept })
    }

    /// Opens it, if no other process has it.
    pub(super) async fn open_now(self) -> anyhow::Result<Self> {
        let Self::Now {
            path,
            base,
            is_handed_on,
        } = self
        else {
            return Ok(self);
        };
        let asked = Instant::now();
        let opened = loop {
            let (path, base) = (path.clone(), base.clone());
            let open = move || open(&path, &base, is_handed_on);
            match tokio::task::spawn_blocking(open).await? {
                // A mount that was ended just now still writes what it has to.
                Err(OverlayError::Locked { .. }) if asked.elapsed() < PATIENCE => {
                    tokio::time::sleep(PAUSE).await;
                }
                opened => break opened,
            }
        };
        let (overlay, kept) = opened.context("the disk cannot be made writable")?;
        tokio::spawn(keep_flushed(Arc::downgrade(&overlay)));
        Ok(Self::Opened(overlay, kept))
    }

    /// `disk` under the overlay.
    pub(super) fn layer(&self, disk: Disk<HttpSource>) -> Layered<HttpSource> {
        match self {
            Self::None => Layered::read_only(disk),
            Self::Opened(overlay, _) => Layered::writable(disk, Arc::clone(overlay)),
            Self::Now { .. } | Self::Later { .. } => Layered::writable_later(disk),
        }
    }

    /// What is left to others, and what is left to do right before `fs` is served.
    pub(super) fn rest(self, fs: &Arc<ImageFs<HttpSource>>) -> (Option<Kept>, Option<LastStep>) {
        match self {
            Self::None | Self::Now { .. } => (None, None),
            Self::Opened(_, kept) => (kept, None),
            Self::Later { path, base, kept } => {
                let take_over = take_over(Arc::clone(fs), path, base, kept);
                (None, Some(Box::pin(take_over)))
            }
        }
    }
}

/// Takes the overlay over. If that does not work, who reads or writes gets an error: to wait for what may never be there would
/// hang all of them.
async fn take_over(
    fs: Arc<ImageFs<HttpSource>>,
    path: PathBuf,
    base: Base,
    kept: Kept,
) -> io::Result<()> {
    for left in (0..TRIES).rev() {
        let (path, base, kept) = (path.clone(), base.clone(), kept.try_clone()?);
        let resume = move || Overlay::resume(kept, &path, &base);
        match tokio::task::spawn_blocking(resume).await {
            Ok(Ok(overlay)) => {
                tokio::spawn(keep_flushed(Arc::downgrade(&overlay)));
                fs.disk().take_over(overlay);
                return Ok(());
            }
            Ok(Err(error)) => {
                let cause: &dyn std::error::Error = &error;
                tracing::error!(
                    error = cause,
                    left,
                    "cannot take the overlay over from the worker before"
                );
            }
            Err(error) => {
                tracing::error!(%error, left, "cannot take the overlay over from the worker before");
            }
        }
        if left > 0 {
            tokio::time::sleep(TRY_PAUSE).await;
        }
    }
    tracing::error!(
        "the disk gives errors from now on: unmount it, and mount again with --overlay {}",
        path.display()
    );
    Ok(())
}

fn open(
    path: &Path,
    base: &Base,
    is_handed_on: bool,
) -> Result<(Arc<Overlay>, Option<Kept>), OverlayError> {
    if is_handed_on {
        let (overlay, kept) = Overlay::open_to_hand_on(path, base)?;
        return Ok((overlay, Some(kept)));
    }
    Ok((Overlay::open(path, base)?, None))
}
