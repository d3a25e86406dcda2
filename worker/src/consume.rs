//! From the queue to the database: a batch of deliveries at a time.
//!
//! [`step`] does one batch and says what becomes of each delivery. [`run`] does the same with its two halves apart: batches are
//! translated as they come, and parted into lanes by payment; each lane has one transaction under way, and the next one takes
//! what has gathered meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
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
use crate::inbox::{Arrival, Content, Outcome};
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

/// Transactions under way at a time, each about payments of its own. Of 20,000 orders, two batches of 500 deliveries have a
/// dozen in common, so without that the second would wait for the first with its locks, nearly always. With two lanes, a fifth
/// of two cores was idle while both waited for the disk or the database.
const LANES: usize = 3;
/// Batches that are looked up in Redis and translated at a time: the next while one waits for its answer.
const TRANSLATING_MAX: usize = 2;
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
    arrivals: Vec<Arrival>,
}

/// Applies a batch of deliveries.
///
/// # Errors
/// The database is away: nothing is decided, nobody's attempt is burnt, and the same batch is to be tried again.
pub async fn step(context: &Context, deliveries: &[Delivery]) -> Result<Vec<(Tag, Disposition)>, StoreError> {
    let (mut settled, candidates) = translate(context, deliveries).await;
    settled.extend(apply(context, &candidates).await?);
    Ok(settled)
}

/// What needs no database: the deliveries that are settled without it, and the others translated.
async fn translate(context: &Context, deliveries: &[Delivery]) -> (Vec<(Tag, Disposition)>, Candidates) {
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
            Ok(arrival) => candidates.push(tag, marker, arrival),
            Err(_) => settled.push((tag, Disposition::DeadLetter { reason: "translating it panicked".to_owned() })),
        }
    }
    metrics::counter!(SEEN_TOTAL, OUTCOME => "hit").increment(hits);
    metrics::counter!(SEEN_TOTAL, OUTCOME => "miss").increment(misses);
    pace.lap("translate");
    (settled, candidates)
}

/// Has PSPs asked about the payments that webhooks give reason to ask about.
async fn ask_about(context: &Context, arrivals: &[Arrival]) -> Result<(), StoreError> {
    // Where nobody can be asked, what the webhook itself says is all that will be known.
    let now = context.clock.now();
    let mut hints = BTreeMap::new();
    for (arrival, ask) in arrivals.iter().flat_map(|arrival| arrival.asks.iter().map(move |ask| (arrival, ask))) {
        if context.policy.asking.contains_key(&ask.0) {
            let came_at = arrival.heard_at.unwrap_or(now);
            let first = hints.entry(ask.clone()).or_insert(came_at);
            *first = came_at.min(*first);
        }
    }
    if hints.is_empty() {
        return Ok(());
    }
    for (account, _) in hints.keys() {
        metrics::counter!(HINTS_TOTAL, PSP => Arc::clone(&account.psp)).increment(1);
    }
    context.store.hinted(now, &hints).await
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
    match context.accounts.get_key_value(&key) {
        Some((AccountKey { psp, account: name }, account)) => {
            // The names that all share, so that keys are compared by their ids alone.
            let envelope = Envelope { psp: Arc::clone(psp), account: Arc::clone(name), ..envelope };
            Ok((envelope, Arc::clone(account)))
        }
        None => retry(format!("{}/{} is not configured at this worker", key.psp, key.account)),
    }
}

/// Applies candidates in one transaction. If the database refuses the data, halves them until the culprit stands alone,
/// so that a poison event costs only itself.
async fn apply(context: &Context, candidates: &Candidates) -> Result<Vec<(Tag, Disposition)>, StoreError> {
    let Candidates { tags, markers, arrivals } = candidates;
    // Before anything is marked, so that a failure in between loses no question.
    ask_about(context, arrivals).await?;
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
                // What was no more than a hint has no marker: the second one is as good as the first.
                let is_hint = |arrival: &Arrival| arrival.rows.is_empty();
                let applied = markers[part].iter().zip(arrivals).filter(|(_, arrival)| !is_hint(arrival));
                context.seen.mark(&applied.map(|(marker, _)| *marker).collect::<Vec<_>>()).await;
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

/// Deliveries on their way to the database.
struct Lane {
    waiting: Candidates,
    is_busy: bool,
}

/// What a task of [`run`] comes back with.
enum Stage {
    Translated(Vec<(Tag, Disposition)>, Candidates),
    /// By the transaction of this lane.
    Applied(usize, Vec<(Tag, Disposition)>),
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
    let mut tasks = JoinSet::<anyhow::Result<Stage>>::new();
    let mut lanes: [Lane; LANES] = std::array::from_fn(|_| Lane { waiting: Candidates::default(), is_busy: false });
    let mut translating = 0;
    loop {
        let waiting: usize = lanes.iter().map(|lane| lane.waiting.tags.len()).sum();
        tokio::select! {
            () = shutdown.stopping() => break,
            Some(stage) = tasks.join_next() => match stage?? {
                Stage::Translated(settled, candidates) => {
                    translating -= 1;
                    candidates.part(&mut lanes);
                    settle(&mut *consumer, settled, &shutdown).await;
                }
                Stage::Applied(lane, settled) => {
                    lanes[lane].is_busy = false;
                    settle(&mut *consumer, settled, &shutdown).await;
                }
            },
            batch = consumer.next_batch(limits.deliveries_max, limits.linger),
                if translating < TRANSLATING_MAX && waiting < LANES * limits.deliveries_max => match batch {
                Ok(deliveries) => {
                    metrics::histogram!(BATCH_DELIVERIES).record(f64::from(u32::try_from(deliveries.len()).unwrap_or(u32::MAX)));
                    translating += 1;
                    let context = Arc::clone(&context);
                    tasks.spawn(async move {
                        let (settled, candidates) = translate(&context, &deliveries).await;
                        Ok(Stage::Translated(settled, candidates))
                    });
                }
                Err(error) => {
                    tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the queue is not reachable");
                    wait(QUEUE_PAUSE, &shutdown).await;
                }
            },
        }
        for (number, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.is_busy && !lane.waiting.tags.is_empty()) {
            lane.is_busy = true;
            let candidates = lane.waiting.take(limits.deliveries_max);
            let applied = apply_until_decided(Arc::clone(&context), candidates, shutdown.clone());
            tasks.spawn(async move { Ok(Stage::Applied(number, applied.await?)) });
        }
    }
    for lane in lanes {
        settle(&mut *consumer, lane.waiting.released(), &shutdown).await;
    }
    while let Some(stage) = tasks.join_next().await {
        let (settled, unapplied) = match stage?? {
            Stage::Translated(settled, candidates) => (settled, candidates.released()),
            Stage::Applied(_, settled) => (settled, Vec::new()),
        };
        settle(&mut *consumer, [settled, unapplied].concat(), &shutdown).await;
    }
    consumer.close().await;
    Ok(())
}

impl Candidates {
    fn push(&mut self, tag: Tag, marker: Marker, arrival: Arrival) {
        self.tags.push(tag);
        self.markers.push(marker);
        self.arrivals.push(arrival);
    }

    /// Hands out to the lanes.
    fn part(self, lanes: &mut [Lane; LANES]) {
        let Self { tags, markers, arrivals } = self;
        for ((tag, marker), arrival) in tags.into_iter().zip(markers).zip(arrivals) {
            lanes[lane_of(&arrival)].waiting.push(tag, marker, arrival);
        }
    }

    /// The first ones, up to so many.
    fn take(&mut self, max: usize) -> Self {
        let end = self.tags.len().min(max);
        let Self { tags, markers, arrivals } = self;
        Self {
            tags: tags.drain(..end).collect(),
            markers: markers.drain(..end).collect(),
            arrivals: arrivals.drain(..end).collect(),
        }
    }

    fn released(&self) -> Vec<(Tag, Disposition)> {
        self.tags.iter().map(|tag| (*tag, Disposition::Release)).collect()
    }
}

/// All that is heard of a payment goes one way. What tells of none meets nobody.
fn lane_of(arrival: &Arrival) -> usize {
    let payment = arrival.rows.iter().find_map(|row| match &row.content {
        Content::Fact { event, .. } => Some(&event.payment_id),
        Content::Ignored { .. } | Content::Quarantined { .. } => None,
    });
    let mut hasher = DefaultHasher::new();
    payment.hash(&mut hasher);
    usize::try_from(hasher.finish() % LANES as u64).unwrap_or_default()
}

async fn settle(consumer: &mut dyn Consumer, settlements: Vec<(Tag, Disposition)>, shutdown: &Shutdown) {
    if settlements.is_empty() {
        return;
    }
    if let Err(error) = consumer.settle(settlements).await {
        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "not settled: these deliveries come again");
        // What was released comes again at once: not in a tight loop.
        wait(QUEUE_PAUSE, shutdown).await;
    }
}

/// Tries again and again while the database is away: consumption pauses, and no attempt is burnt.
async fn apply_until_decided(
    context: Arc<Context>,
    candidates: Candidates,
    shutdown: Shutdown,
) -> anyhow::Result<Vec<(Tag, Disposition)>> {
    let mut pause = PAUSE_MIN;
    // Whole rounds, not their pauses alone: each may spend as long on time-outs.
    let since = Instant::now();
    loop {
        let applied = tokio::select! {
            applied = apply(&context, &candidates) => applied,
            () = long_stopped(&shutdown) => {
                tracing::warn!(deliveries = candidates.tags.len(), "the stop does not wait for this batch: released");
                return Ok(candidates.released());
            }
        };
        match applied {
            Ok(settled) => return Ok(settled),
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
            return Ok(candidates.released());
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
