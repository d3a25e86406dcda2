//! From the queue to the database: a batch of deliveries at a time.
//!
//! [`step`] does one batch and says what becomes of each delivery; [`run`] only waits, steps and settles.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paybell_shared::clock::Clock;
use paybell_shared::envelope::Envelope;
use paybell_shared::psp::{Account, Proof};
use paybell_shared::queue::cloudevents::EnvelopeError;
use paybell_shared::queue::{Consumer, Delivery, Disposition, Tag};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{
    BATCH_DELIVERIES, CONSUME_PAUSES_TOTAL, EVENT_LAG_SECONDS, EVENTS_TOTAL, EVENTS_WOKEN_TOTAL, ORDER_TRANSITIONS_TOTAL,
    OUTCOME, PSP, SEEN_TOTAL,
};
use uuid::Uuid;

use crate::ids::Ids;
use crate::inbox::{Arrival, Outcome};
use crate::order::AccountKey;
use crate::seen::{Marker, SeenEvents};
use crate::store::{Applied, Policy, Store, StoreError, Work};

/// Pause after the database was away, doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Pause after the queue was away; the consumer itself backs off before it connects.
const QUEUE_PAUSE: Duration = Duration::from_millis(200);
/// How long a batch is held while the database is away, before it is given back. RabbitMQ closes the channel of whoever
/// holds a delivery for 30 minutes.
const HOLD_MAX: Duration = Duration::from_mins(10);

/// What every step needs.
pub struct Context {
    pub store: Arc<dyn Store>,
    pub seen: Arc<dyn SeenEvents>,
    pub accounts: HashMap<AccountKey, Arc<Account>>,
    pub clock: Arc<dyn Clock>,
    pub ids: Ids,
    /// The database's history that this worker started with.
    pub epoch: Uuid,
    pub policy: Policy,
}

impl Context {
    /// A piece of work that is to be done now, with nothing in it yet.
    #[must_use]
    pub fn work(&self) -> Work<'_> {
        Work::new(&self.policy, &self.ids, self.clock.now())
    }
}

/// How many deliveries make a batch, and how long it waits for company.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub deliveries_max: usize,
    pub linger: Duration,
}

/// One delivery that is to be applied.
struct Candidate {
    tag: Tag,
    marker: Marker,
    arrival: Arrival,
}

/// Applies a batch of deliveries.
///
/// # Errors
/// The database is away: nothing is decided, nobody's attempt is burnt, and the same batch is to be tried again.
pub async fn step(context: &Context, deliveries: &[Delivery]) -> Result<Vec<(Tag, Disposition)>, StoreError> {
    let mut settled = Vec::with_capacity(deliveries.len());
    let mut envelopes = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        match open(context, delivery) {
            Ok((envelope, account)) => envelopes.push((delivery.tag, Marker::of(context.epoch, &envelope), envelope, account)),
            Err(disposition) => settled.push((delivery.tag, disposition)),
        }
    }
    let markers: Vec<Marker> = envelopes.iter().map(|(_, marker, ..)| *marker).collect();
    let known = context.seen.known(&markers).await;
    let mut candidates = Vec::with_capacity(envelopes.len());
    for ((tag, marker, envelope, account), known) in envelopes.into_iter().zip(known) {
        if known {
            metrics::counter!(SEEN_TOTAL, OUTCOME => "hit").increment(1);
            settled.push((tag, Disposition::Done));
            continue;
        }
        metrics::counter!(SEEN_TOTAL, OUTCOME => "miss").increment(1);
        // Adapters never panic (invariant I7); if one does, it costs its own delivery and not the worker.
        match catch_unwind(AssertUnwindSafe(|| Arrival::of_webhook(&envelope, &account))) {
            Ok(arrival) => candidates.push(Candidate { tag, marker, arrival }),
            Err(_) => settled.push((tag, Disposition::DeadLetter { reason: "translating it panicked".to_owned() })),
        }
    }
    apply(context, candidates, &mut settled).await?;
    Ok(settled)
}

/// What the delivery holds, or what becomes of it if that cannot be read here.
fn open(context: &Context, delivery: &Delivery) -> Result<(Envelope, Arc<Account>), Disposition> {
    let retry = |reason: String| Err(Disposition::Retry { reason });
    let envelope = match Envelope::try_from(delivery.message.clone()) {
        Ok(envelope) => envelope,
        Err(error @ EnvelopeError::Newer(_)) => return retry(error.to_string()),
        Err(error) => return Err(Disposition::DeadLetter { reason: error.to_string() }),
    };
    if envelope.proof == Proof::Hint {
        return retry("a hint, which this version cannot follow up: it is for newer workers".to_owned());
    }
    let key = AccountKey { psp: Arc::clone(&envelope.psp), account: Arc::clone(&envelope.account) };
    match context.accounts.get(&key) {
        Some(account) => Ok((envelope, Arc::clone(account))),
        None => retry(format!("{}/{} is not configured at this worker", key.psp, key.account)),
    }
}

/// Applies candidates in one transaction. If the database refuses the data, halves them until the culprit stands alone,
/// so that a poison event costs only itself.
async fn apply(context: &Context, candidates: Vec<Candidate>, settled: &mut Vec<(Tag, Disposition)>) -> Result<(), StoreError> {
    let mut parts = vec![candidates];
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let arrivals: Vec<Arrival> = part.iter_mut().map(|candidate| candidate.arrival.clone()).collect();
        let work = Work { arrivals: &arrivals, ..context.work() };
        match context.store.apply(&work).await {
            Ok(applied) => {
                let markers: Vec<Marker> = part.iter().map(|candidate| candidate.marker).collect();
                report(context, &arrivals, &applied);
                context.seen.mark(&markers).await;
                settled.extend(part.into_iter().map(|candidate| (candidate.tag, Disposition::Done)));
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Contended(_))) => return Err(error),
            Err(StoreError::Unknown(error)) => {
                tracing::warn!(error = %error, deliveries = part.len(), "the outcome of a commit is not known: released");
                settled.extend(part.into_iter().map(|candidate| (candidate.tag, Disposition::Release)));
            }
            Err(error @ (StoreError::Refused(_) | StoreError::Inconsistent { .. })) if part.len() == 1 => {
                // What this version cannot read, a newer one may: while a deploy rolls, both run.
                let again = matches!(error, StoreError::Inconsistent { .. });
                let reason = format!("{:#}", anyhow::Error::new(error));
                let disposition = if again { Disposition::Retry { reason } } else { Disposition::DeadLetter { reason } };
                settled.extend(part.into_iter().map(|candidate| (candidate.tag, disposition.clone())));
            }
            Err(StoreError::Refused(_) | StoreError::Inconsistent { .. }) => {
                let half = part.split_off(part.len() / 2);
                parts.push(half);
                parts.push(part);
            }
        }
    }
    Ok(())
}

fn report(context: &Context, arrivals: &[Arrival], applied: &Applied) {
    for (key, outcome) in &applied.events {
        let outcome = outcome.map_or("duplicate", Outcome::as_str);
        metrics::counter!(EVENTS_TOTAL, PSP => Arc::clone(&key.psp), OUTCOME => outcome).increment(1);
        if outcome == Outcome::Quarantined.as_str() {
            tracing::error!(event = "event.applied", psp = &*key.psp, account = &*key.account, event_id = key.event_id, outcome);
        } else {
            tracing::info!(event = "event.applied", psp = &*key.psp, account = &*key.account, event_id = key.event_id, outcome);
        }
    }
    metrics::counter!(ORDER_TRANSITIONS_TOTAL).increment(applied.transitions as u64);
    metrics::counter!(EVENTS_WOKEN_TOTAL).increment(applied.woken as u64);
    let now = context.clock.now();
    for body in arrivals.iter().filter_map(|arrival| arrival.body.as_ref()) {
        metrics::histogram!(EVENT_LAG_SECONDS).record(now.since(body.received_at).as_secs_f64());
    }
}

/// Consumes until the stop, then gives back what is not settled.
///
/// # Errors
/// The database's history is not the one that this worker started with.
pub async fn run(
    context: Arc<Context>,
    mut consumer: Box<dyn Consumer>,
    limits: BatchLimits,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    loop {
        let batch = tokio::select! {
            () = shutdown.stopping() => break,
            batch = consumer.next_batch(limits.deliveries_max, limits.linger) => batch,
        };
        let deliveries = match batch {
            Ok(deliveries) => deliveries,
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the queue is not reachable");
                wait(QUEUE_PAUSE, &shutdown).await;
                continue;
            }
        };
        metrics::histogram!(BATCH_DELIVERIES).record(f64::from(u32::try_from(deliveries.len()).unwrap_or(u32::MAX)));
        let settlements = step_until_decided(&context, &deliveries, &shutdown).await?;
        if let Err(error) = consumer.settle(settlements).await {
            tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "not settled: these deliveries come again");
            // What was released comes again at once: not in a tight loop.
            wait(QUEUE_PAUSE, &shutdown).await;
        }
    }
    consumer.close().await;
    Ok(())
}

/// Steps again and again while the database is away: consumption pauses, and no attempt is burnt.
async fn step_until_decided(
    context: &Context,
    deliveries: &[Delivery],
    shutdown: &Shutdown,
) -> anyhow::Result<Vec<(Tag, Disposition)>> {
    let mut pause = PAUSE_MIN;
    // Whole rounds, not their pauses alone: each may spend as long on time-outs.
    let since = Instant::now();
    loop {
        match step(context, deliveries).await {
            Ok(settlements) => return Ok(settlements),
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    pause_ms = pause.as_millis(),
                    "consumption pauses"
                );
                metrics::counter!(CONSUME_PAUSES_TOTAL).increment(1);
            }
        }
        wait(pause, shutdown).await;
        pause = (pause * 2).min(PAUSE_MAX);
        if shutdown.is_stopping() || since.elapsed() > HOLD_MAX {
            return Ok(deliveries.iter().map(|delivery| (delivery.tag, Disposition::Release)).collect());
        }
        check_epoch(context).await?;
    }
}

/// After the database was away it may be another: restored to an earlier state, it has a new epoch, and this worker's
/// markers are not of its history.
async fn check_epoch(context: &Context) -> anyhow::Result<()> {
    match context.store.epoch().await {
        Ok(epoch) => {
            anyhow::ensure!(epoch == context.epoch, "the database has a new epoch: it was restored; start the worker anew");
        }
        // Still away: the next step says so.
        Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "the epoch is not known"),
    }
    Ok(())
}

async fn wait(pause: Duration, shutdown: &Shutdown) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = shutdown.stopping() => {}
    }
}
