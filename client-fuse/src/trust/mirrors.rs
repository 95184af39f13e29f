//! Goes over the mirrors of a store until one of them shows metadata that is in order.
//!
//! The metadata of one mirror is checked as a whole: parts from several would not fit while a
//! publish is on its way to them. A mirror that shows what is wrong, old or out of date, or that
//! shows nothing, is passed over; what it did wrong is told only if all others fail too. Where
//! metadata that is out of date will do, it is taken only when no mirror has any that is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::expiry::Verdict;
use super::offline::Kept;
use super::transport::MetadataTransport;
use super::{Basis, Found, TrustError};
use crate::fetch::Source;
use crate::fetch::fetcher::Fetcher;
use crate::fetch::mirrors::MirrorId;
use crate::fetch::retry::Fault;

/// Finds metadata that is in order; asks each mirror once before it waits and asks again.
pub(super) async fn find<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    basis: &Basis<'_>,
    kept: &Kept,
) -> Result<Found, TrustError> {
    let mut attempts = fetcher.attempts();
    let mut transports: BTreeMap<MirrorId, MetadataTransport<S>> = BTreeMap::new();
    loop {
        let (mut out_of_date, mut failures) = (None, Vec::new());
        for mirror in fetcher.mirrors().order() {
            let transport = transports
                .entry(mirror)
                .or_insert_with(|| MetadataTransport::new(fetcher, mirror));
            match basis.check(transport, &mut attempts).await {
                Ok(found) if matches!(found.verdict, Verdict::Expired { .. }) => {
                    out_of_date.get_or_insert(found);
                }
                Ok(found) => {
                    kept.keep(fetcher, transport, &found);
                    return Ok(found);
                }
                Err(error) if error.fault().is_none() => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "this mirror's metadata will not do");
                    if let Some(blame) = error.blame() {
                        fetcher.mirrors().failed(mirror, blame, &error);
                    }
                    failures.push((mirror, error));
                }
            }
        }
        if let Some(found) = out_of_date {
            return Ok(found);
        }
        let error = sum(fetcher, failures);
        let fault = error.fault().unwrap_or(Fault::Permanent);
        if kept.is_due(&error)
            && let Some(found) = kept.find(fetcher, basis).await
        {
            return Ok(found);
        }
        if !fetcher.wait(&mut attempts, fault, &error).await {
            let found = if error.is_outage() {
                kept.find(fetcher, basis).await
            } else {
                None
            };
            return found.ok_or(error);
        }
    }
}

/// One error, or all of them by mirror.
fn sum<S: Source>(fetcher: &Fetcher<S>, failures: Vec<(MirrorId, TrustError)>) -> TrustError {
    let named = |(mirror, error): (MirrorId, TrustError)| {
        let name = fetcher.mirrors().name(mirror).to_owned();
        (name, error)
    };
    let mut failures: Vec<_> = failures.into_iter().map(named).collect();
    match failures.pop() {
        Some((_, only)) if failures.is_empty() => only,
        last => {
            failures.extend(last);
            TrustError::Everywhere { failures }
        }
    }
}
