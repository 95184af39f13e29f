//! Says once that the store has no more what an opened image needs.
//!
//! Objects are never deleted while a version refers to them, and not within the grace period after it
//! was removed. So what is not there was collected (`circular gc`) after the version was, or lost.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Fetcher;
use crate::fetch::{FetchError, Source};

/// Whether it was said.
#[derive(Debug, Default)]
pub(super) struct Gone(AtomicBool);

impl<S: Source> Fetcher<S> {
    /// Notes why something cannot be had for good.
    pub(super) fn tell_if_gone(&self, error: &FetchError) {
        if error.is_missing() && !self.gone.0.swap(true, Ordering::Relaxed) {
            let error: &dyn std::error::Error = error;
            tracing::error!(
                error,
                "the store has no more a part of this image: its version was removed and its files collected, or they were lost; what is in the cache is served, the rest cannot be read. Mount a newer version, or publish the image again"
            );
        }
    }
}
