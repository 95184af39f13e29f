//! Goes over the mirrors of a store until one of them shows metadata that is in order.
//!
//! The metadata of one mirror is checked as a whole: parts from several would not fit while a
//! publish is on its way to them. A mirror that shows what is wrong, old or out of date, or that
//! shows nothing, is passed over; what it did wrong is told only if all others fail too. Where
//! metadata that is out of date will do, it is taken only when no mirror has any that is not.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::expiry::Verdict;
use super::offline::{Kept, PATIENCE};
use super::transport::{File, MetadataTransport};
use super::{Basis, Found, TrustError};
use crate::fetch::fetcher::{Attempts, Fetcher};
use crate::fetch::mirrors::MirrorId;
use crate::fetch::retry::{Blame, Fault};
use crate::fetch::{FetchError, Source};

/// At the deadline, a server from which something came so lately is not given up.
const LATELY: Duration = Duration::from_secs(1);

/// Finds metadata that is in order; asks each mirror once before it waits and asks again.
pub(super) async fn find<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    basis: &Basis<'_>,
    kept: &Kept,
) -> Result<Found, TrustError> {
    let mut attempts = fetcher.attempts();
    let mut transports: BTreeMap<MirrorId, MetadataTransport<S>> = BTreeMap::new();
    let mut patience = Duration::ZERO;
    loop {
        // Whoever answers as slowly as that every time has his time in a later round.
        patience += PATIENCE;
        let (mut out_of_date, mut failures) = (None, Vec::new());
        for mirror in fetcher.mirrors().order() {
            let transport = transports
                .entry(mirror)
                .or_insert_with(|| MetadataTransport::new(fetcher, mirror));
            let checked = match ask(fetcher, basis, kept, transport, &mut attempts, patience).await
            {
                Told::Now(checked) => checked,
                Told::Before(found) => return Ok(found),
            };
            match checked {
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

/// What is known of a store.
enum Told {
    /// What a mirror shows now.
    Now(Result<Found, TrustError>),
    /// What it showed before, because it says nothing.
    Before(Found),
}

/// Asks one mirror, for as long as it is worth it.
async fn ask<S: Source>(
    fetcher: &Arc<Fetcher<S>>,
    basis: &Basis<'_>,
    kept: &Kept,
    transport: &MetadataTransport<S>,
    attempts: &mut Attempts<'_>,
    patience: Duration,
) -> Told {
    let (until, is_only) = (attempts.until(), fetcher.has_one_server());
    // The only one is given the time of two.
    let patience = match is_only {
        true => patience + PATIENCE,
        false => patience,
    };
    let checking = Box::pin(basis.check(transport, attempts));
    let checking = match in_time(fetcher, checking, patience, until).await {
        Ok(checked) => return Told::Now(checked),
        Err(checking) => checking,
    };
    // What was kept is not better than what another mirror has.
    if is_only && let Some(found) = kept.find(fetcher, basis).await {
        return Told::Before(found);
    }
    // There is nobody else, and he may answer yet.
    if is_only && until.is_none_or(is_ahead) {
        return Told::Now(checking.await);
    }
    drop(checking);
    transport.forget_failures();
    Told::Now(Err(silent(fetcher, transport.mirror(), patience)))
}

/// What `checking` comes to; itself, where nothing has come from any server for as long as `patience`, or for a while and
/// it is `until`.
async fn in_time<S: Source, T, F: Future<Output = T> + Unpin>(
    fetcher: &Fetcher<S>,
    mut checking: F,
    patience: Duration,
    until: Option<Instant>,
) -> Result<T, F> {
    let began = Instant::now();
    loop {
        let heard = fetcher.mirrors().last_heard().max(began);
        let over = until.map(|until| until.max(heard + LATELY));
        let silent = over.map_or(heard + patience, |over| over.min(heard + patience));
        if silent <= Instant::now() {
            return Err(checking);
        }
        tokio::select! {
            biased;
            checked = &mut checking => return Ok(checked),
            () = tokio::time::sleep_until(silent) => {}
        }
    }
}

fn is_ahead(until: Instant) -> bool {
    until > Instant::now()
}

/// Notes that a mirror said nothing.
fn silent<S: Source>(fetcher: &Fetcher<S>, mirror: MirrorId, patience: Duration) -> TrustError {
    let file = File::Timestamp;
    let source = FetchError::Slow {
        path: format!("metadata/{file}"),
        got: 0,
        seconds: patience.as_secs(),
    };
    fetcher.mirrors().failed(mirror, Blame::Unable, &source);
    TrustError::Fetch { file, source }
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
