//! From the queue to the database: a batch of deliveries at a time.
//!
//! [`step`] does one batch and says what becomes of each delivery; [`run`] only waits, steps and settles: a few batches at a
//! time, so that the next one is translated while the database commits.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paybell_shared::clock::Clock;
use paybell_shared::envelope::Envelope;
use paybell_shared::psp::Account;
use paybell_shared::queue::cloudevents::EnvelopeError;
use paybell_shared::queue::{Consumer, Delivery, Disposition, Tag};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{
    BATCH_DELIVERIES, CONSUME_PAUSES_TOTAL, EVENT_LAG_SECONDS, EVENTS_TOTAL, EVENTS_WOKEN_TOTAL, HINTS_TOTAL,
    ORDER_TRANSITIONS_TOTAL, OUTCOME, PSP, SEEN_TOTAL,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::ids::Ids;
use crate::inbox::{Arrival, Outcome};
use crate::order::AccountKey;
use crate::pace::Pace;
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

/// Batches under way at a time. While one waits for the database, another is translated: 10 % more events than one at a time
/// on two shared cores. A third, or a batch divided by payment into two transactions, gained nothing: they meet at the same
/// orders, or at the same processors.
const BATCHES_MAX: usize = 2;
/// How long a batch may go on after the stop has begun, before it is rolled back and given back. A transaction takes
/// milliseconds; one that fights for locks, or whose server is silent, could outlast the deadline of the stop (45 s).
const STOP_GRACE: Duration = Duration::from_secs(5);

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

/// Deliveries that are to be applied: the same places in each list.
#[derive(Default)]
struct Candidates {
    tags: Vec<Tag>,
    markers: Vec<Marker>,
    accounts: Vec<AccountKey>,
    arrivals: Vec<Arrival>,
}

impl Candidates {
    fn add(&mut self, tag: Tag, marker: Marker, account: AccountKey, arrival: Arrival) {
        self.tags.push(tag);
        self.markers.push(marker);
        self.accounts.push(account);
        self.arrivals.push(arrival);
    }
}

/// Applies a batch of deliveries.
///
/// # Errors
/// The database is away: nothing is decided, nobody's attempt is burnt, and the same batch is to be tried again.
pub async fn step(context: &Context, deliveries: &[Delivery]) -> Result<Vec<(Tag, Disposition)>, StoreError> {
    let mut pace = Pace::start();
    let mut settled = Vec::with_capacity(deliveries.len());
    let mut envelopes = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        match open(context, delivery) {
            Ok((envelope, account)) => envelopes.push((delivery.tag, Marker::of(context.epoch, &envelope), envelope, account)),
            Err(disposition) => settled.push((delivery.tag, disposition)),
        }
    }
    let markers: Vec<Marker> = envelopes.iter().map(|(_, marker, ..)| *marker).collect();
    pace.lap("open");
    let known = context.seen.known(&markers).await;
    pace.lap("seen");
    let mut candidates = Candidates::default();
    let (mut hits, mut misses) = (0, 0);
    for ((tag, marker, envelope, account), known) in envelopes.into_iter().zip(known) {
        if known {
            hits += 1;
            settled.push((tag, Disposition::Done));
            continue;
        }
        misses += 1;
        // Adapters never panic (invariant I7); if one does, it costs its own delivery and not the worker.
        match catch_unwind(AssertUnwindSafe(|| Arrival::of_webhook(&envelope, &account))) {
            Ok(arrival) => {
                let account = AccountKey { psp: envelope.psp, account: envelope.account };
                candidates.add(tag, marker, account, arrival);
            }
            Err(_) => settled.push((tag, Disposition::DeadLetter { reason: "translating it panicked".to_owned() })),
        }
    }
    metrics::counter!(SEEN_TOTAL, OUTCOME => "hit").increment(hits);
    metrics::counter!(SEEN_TOTAL, OUTCOME => "miss").increment(misses);
    pace.lap("translate");
    settled.extend(ask_about(context, &mut candidates).await?);
    settled.extend(apply(context, &candidates).await?);
    Ok(settled)
}

/// Has PSPs asked about the payments that webhooks gave reason to ask about; takes those out that were no more than hints,
/// which have no key and no marker: the second one for a payment is as good as the first. Before anything is applied and
/// marked, so that a failure here loses none.
async fn ask_about(context: &Context, candidates: &mut Candidates) -> Result<Vec<(Tag, Disposition)>, StoreError> {
    let mut payments = BTreeSet::new();
    for (key, arrival) in candidates.accounts.iter().zip(&candidates.arrivals) {
        // Nobody to ask: what the webhook itself says is all that will be known.
        if !context.policy.first_look.contains_key(key) {
            continue;
        }
        payments.extend(arrival.asks.iter().map(|payment_id| (key.clone(), payment_id.clone())));
        metrics::counter!(HINTS_TOTAL, PSP => Arc::clone(&key.psp)).increment(arrival.asks.len() as u64);
    }
    if !payments.is_empty() {
        context.store.ask_about(context.clock.now(), &payments).await?;
    }
    let all = std::mem::take(candidates);
    let mut settled = Vec::new();
    for (((tag, marker), account), arrival) in all.tags.into_iter().zip(all.markers).zip(all.accounts).zip(all.arrivals) {
        if arrival.rows.is_empty() {
            settled.push((tag, Disposition::Done));
        } else {
            candidates.add(tag, marker, account, arrival);
        }
    }
    Ok(settled)
}

/// What the delivery holds, or what becomes of it if that cannot be read here.
fn open(context: &Context, delivery: &Delivery) -> Result<(Envelope, Arc<Account>), Disposition> {
    let retry = |reason: String| Err(Disposition::Retry { reason });
    let envelope = match Envelope::try_from(&delivery.message) {
        Ok(envelope) => envelope,
        Err(error @ EnvelopeError::Newer(_)) => return retry(error.to_string()),
        Err(error) => return Err(Disposition::DeadLetter { reason: error.to_string() }),
    };
    let key = AccountKey { psp: Arc::clone(&envelope.psp), account: Arc::clone(&envelope.account) };
    match context.accounts.get(&key) {
        Some(account) => Ok((envelope, Arc::clone(account))),
        None => retry(format!("{}/{} is not configured at this worker", key.psp, key.account)),
    }
}

/// Applies candidates in one transaction. If the database refuses the data, halves them until the culprit stands alone,
/// so that a poison event costs only itself.
async fn apply(context: &Context, candidates: &Candidates) -> Result<Vec<(Tag, Disposition)>, StoreError> {
    let Candidates { tags, markers, arrivals, .. } = candidates;
    let mut settled = Vec::with_capacity(tags.len());
    let all = 0..arrivals.len();
    let mut parts = vec![all];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let tags = tags[part.clone()].iter().copied();
        let arrivals = &arrivals[part.clone()];
        match context.store.apply(&Work { arrivals, ..context.work() }).await {
            Ok(applied) => {
                let mut pace = Pace::start();
                report(context, arrivals, &applied);
                pace.lap("report");
                context.seen.mark(&markers[part]).await;
                pace.lap("mark");
                settled.extend(tags.map(|tag| (tag, Disposition::Done)));
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Contended(_))) => return Err(error),
            Err(StoreError::Unknown(error)) => {
                tracing::warn!(error = %error, deliveries = part.len(), "the outcome of a commit is not known: released");
                settled.extend(tags.map(|tag| (tag, Disposition::Release)));
            }
            Err(error @ (StoreError::Refused(_) | StoreError::Inconsistent { .. })) if part.len() == 1 => {
                // What this version cannot read, a newer one may: while a deploy rolls, both run.
                let again = matches!(error, StoreError::Inconsistent { .. });
                let reason = format!("{:#}", anyhow::Error::new(error));
                let disposition = if again { Disposition::Retry { reason } } else { Disposition::DeadLetter { reason } };
                settled.extend(tags.map(|tag| (tag, disposition.clone())));
            }
            Err(StoreError::Refused(_) | StoreError::Inconsistent { .. }) => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
    }
    Ok(settled)
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
/// The database's history is not the one that this worker started with, or a batch panicked.
pub async fn run(
    context: Arc<Context>,
    mut consumer: Box<dyn Consumer>,
    limits: BatchLimits,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut batches = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.stopping() => break,
            Some(decided) = batches.join_next() => settle(&mut *consumer, decided??, &shutdown).await,
            batch = consumer.next_batch(limits.deliveries_max, limits.linger), if batches.len() < BATCHES_MAX => match batch {
                Ok(deliveries) => {
                    metrics::histogram!(BATCH_DELIVERIES).record(f64::from(u32::try_from(deliveries.len()).unwrap_or(u32::MAX)));
                    batches.spawn(step_until_decided(Arc::clone(&context), deliveries, shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the queue is not reachable");
                    wait(QUEUE_PAUSE, &shutdown).await;
                }
            },
        }
    }
    while let Some(decided) = batches.join_next().await {
        settle(&mut *consumer, decided??, &shutdown).await;
    }
    consumer.close().await;
    Ok(())
}

async fn settle(consumer: &mut dyn Consumer, settlements: Vec<(Tag, Disposition)>, shutdown: &Shutdown) {
    if let Err(error) = consumer.settle(settlements).await {
        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "not settled: these deliveries come again");
        // What was released comes again at once: not in a tight loop.
        wait(QUEUE_PAUSE, shutdown).await;
    }
}

/// Steps again and again while the database is away: consumption pauses, and no attempt is burnt.
async fn step_until_decided(
    context: Arc<Context>,
    deliveries: Vec<Delivery>,
    shutdown: Shutdown,
) -> anyhow::Result<Vec<(Tag, Disposition)>> {
    let released = || deliveries.iter().map(|delivery| (delivery.tag, Disposition::Release)).collect();
    let mut pause = PAUSE_MIN;
    // Whole rounds, not their pauses alone: each may spend as long on time-outs.
    let since = Instant::now();
    loop {
        let stepped = tokio::select! {
            stepped = step(&context, &deliveries) => stepped,
            () = long_stopped(&shutdown) => {
                tracing::warn!(deliveries = deliveries.len(), "the stop does not wait for this batch: released");
                return Ok(released());
            }
        };
        match stepped {
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
        wait(pause, &shutdown).await;
        pause = (pause * 2).min(PAUSE_MAX);
        if shutdown.is_stopping() || since.elapsed() > HOLD_MAX {
            return Ok(released());
        }
        check_epoch(&context).await?;
    }
}

async fn long_stopped(shutdown: &Shutdown) {
    shutdown.stopping().await;
    tokio::time::sleep(STOP_GRACE).await;
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
