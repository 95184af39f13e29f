//! What spares machines to fetch what they have, or to wait for what they will read. A publish does not fail for want of it.

use std::num::NonZeroUsize;

use image_format::manifest::{Disk, IndexDelta};
use image_store::{BuiltBootPack, Store};

use super::Args;
use crate::publish::carry;
use crate::ui::Ui;

/// Carries the boot pack of the name over; a publish does not fail for want of one.
pub(super) async fn carry_over(
    store: &Store,
    args: &Args,
    disk: &Disk,
    ui: &Ui,
) -> Option<BuiltBootPack> {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let workers = args.jobs.unwrap_or(cores).get();
    // A server would be asked for all of both disks that says what lies where.
    let files = args.remote.to.is_none();
    let carried = carry::carry_over(store, &args.reference, disk, files, workers).await;
    carried.unwrap_or_else(|error| {
        let error = anyhow::Error::from(error);
        ui.warn(&format!(
            "no boot pack for this version: {error:#}. Record its boot and run `circular profile add`"
        ));
        None
    })
}

/// Builds what spares machines the index that they have.
pub(super) async fn index_delta(
    store: &Store,
    args: &Args,
    disk: &Disk,
    carried: Option<&BuiltBootPack>,
    ui: &Ui,
) -> Option<IndexDelta> {
    let booted = carried.map(carry::regions).unwrap_or_default();
    let built = store.build_index_delta(&args.reference, disk, &booted);
    built.await.unwrap_or_else(|error| {
        let error = anyhow::Error::from(error);
        ui.warn(&format!(
            "no index delta for this version: {error:#}. Machines fetch more of its index"
        ));
        None
    })
}
