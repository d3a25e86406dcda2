//! The relay of the outbox: each destination is told of each change of an order, at least once, an order's changes in their
//! order.
//!
//! [`step`] leases what is due of one destination, tells it, and writes down how that went; [`run`] only waits and steps.
//! Each destination has a relay of its own, so one that is slow or dead delays no other; any number of workers may run the
//! same one. The lease is committed before anybody is told (invariant I8), and whoever lost it writes nothing down.
//!
//! A subscriber that fails is told again after [`RETRIES`], ten times within about two days; then the change is given up and
//! the order's next one goes on. The exchange is told until it hears. A destination of which nothing succeeds is left alone
//! for a while and then probed with one change, so that its changes do not spend their attempts while it is away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use paybell_shared::clock::Timestamp;
use paybell_shared::queue::amqp::{AmqpPublisher, Route};
use paybell_shared::queue::{Health, Publisher as _};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{DESTINATION, NOTICE_SECONDS, NOTICES_TOTAL, OUTBOX_OLDEST_SECONDS, OUTBOX_WAITING, OUTCOME};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::change::Told;
use crate::consume::Context;
use crate::notify::{EXCHANGE_TIMEOUT, Notifier};
use crate::store::{Backlog, Notice, NoticeKey, NoticeOutcome, StoreError};

/// The name of the topic exchange as a destination. A subscriber's has a slash.
pub const AMQP: &str = "amqp";

/// So long nobody else tells what was leased: twice the longest attempt.
const LEASE: Duration = Duration::from_secs(30);
/// Changes told at a time to the exchange: what its publisher has in flight.
const EXCHANGE_BATCH_MAX: u32 = 256;
/// Requests at a time to one subscriber.
const SUBSCRIBER_BATCH_MAX: u32 = 32;
/// What ends within so long after another is written down together with it.
const GATHER: Duration = Duration::from_millis(100);
/// Between looks when nothing is due: doubled from the shortest, after work, to the longest.
const IDLE_MIN: Duration = Duration::from_millis(50);
const IDLE_MAX: Duration = Duration::from_millis(200);
/// Pause after the database was away, doubled up to the longest.
const AWAY_MIN: Duration = Duration::from_millis(200);
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Before each attempt to tell a subscriber after the first; each is stretched by up to a fifth.
pub const RETRIES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(3),
    Duration::from_hours(6),
    Duration::from_hours(12),
    Duration::from_hours(24),
];
/// Before the exchange is told again: doubled from the shortest to the longest, for ever.
const EXCHANGE_RETRY_MIN: Duration = Duration::from_secs(1);
const EXCHANGE_RETRY_MAX: Duration = Duration::from_secs(30);

/// Failures in a row after which a destination is left alone.
const FAILURES_MAX: usize = 5;
/// For how long: doubled from the shortest to the longest with each probe that fails.
const LEFT_ALONE_MIN: Duration = Duration::from_secs(1);
const LEFT_ALONE_MAX: Duration = Duration::from_mins(1);

/// How often what waits is counted.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// A change that waits longer is worth a line in the log: once a destination, until it is told.
const STALLED: Duration = Duration::from_mins(10);
/// The most that is kept of an error, in characters: room for it and its causes.
const ERROR_CHARS_MAX: usize = 300;

const _: () = assert!(EXCHANGE_TIMEOUT.as_secs() * 2 <= LEASE.as_secs());

/// One destination and how telling it goes.
pub struct Relay {
    context: Arc<Context>,
    name: Arc<str>,
    way: Way,
    circuit: Circuit,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    pub told: usize,
    /// They are told again later.
    pub failed: usize,
    pub given_up: usize,
}

impl StepReport {
    /// There may be more.
    #[must_use]
    pub const fn did_something(&self) -> bool {
        self.told + self.failed + self.given_up > 0
    }
}

impl Relay {
    /// Tells the topic exchange.
    #[must_use]
    pub fn to_exchange(context: Arc<Context>, publisher: AmqpPublisher) -> Self {
        Self { context, name: AMQP.into(), way: Way::Exchange(publisher), circuit: Circuit::default() }
    }

    /// Tells a subscriber.
    #[must_use]
    pub fn to_subscriber(context: Arc<Context>, notifier: Notifier) -> Self {
        let name = Arc::clone(notifier.name());
        Self { context, name, way: Way::Subscriber(notifier), circuit: Circuit::default() }
    }
}

/// Tells the destination of the changes that are due, if any, and if it is not left alone.
///
/// # Errors
/// The database is away; what was told meanwhile is told again.
pub async fn step(relay: &mut Relay) -> Result<StepReport, StoreError> {
    let Relay { context, name, way, circuit } = relay;
    let mut report = StepReport::default();
    let limit = if way.is_up() { circuit.limit(context.clock.now(), way.batch_max()) } else { 0 };
    if limit == 0 {
        return Ok(report);
    }
    let token = context.ids.next();
    let notices = context.store.lease_notices(name, context.clock.now(), LEASE, token, limit).await?;
    let mut telling: FuturesUnordered<_> = notices.into_iter().map(|notice| tell(context, way, notice)).collect();
    while let Some(first) = telling.next().await {
        let mut ended = vec![first];
        let until = Instant::now() + GATHER;
        while let Ok(Some(next)) = timeout_at(until, telling.next()).await {
            ended.push(next);
        }
        for (_, outcome) in &ended {
            match outcome {
                NoticeOutcome::Told => report.told += 1,
                NoticeOutcome::Again { .. } => report.failed += 1,
                NoticeOutcome::GivenUp { .. } => report.given_up += 1,
            }
            metrics::counter!(NOTICES_TOTAL, DESTINATION => Arc::clone(name), OUTCOME => outcome.as_str()).increment(1);
        }
        context.store.finish_notices(context.clock.now(), token, &ended).await?;
    }
    circuit.note(name, report, context.clock.now());
    Ok(report)
}

/// Steps until the stop.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(mut relay: Relay, shutdown: Shutdown) -> anyhow::Result<()> {
    let (mut idle, mut away) = (IDLE_MIN, AWAY_MIN);
    while !shutdown.is_stopping() {
        // Not cut off by the stop: an attempt has its own limit, and what was told should be written down.
        let pause = match step(&mut relay).await {
            Ok(report) => {
                away = AWAY_MIN;
                if report.did_something() {
                    idle = IDLE_MIN;
                    continue;
                }
                doubled(&mut idle, IDLE_MAX)
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(destination = %relay.name, error, "telling pauses");
                doubled(&mut away, AWAY_MAX)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.stopping() => {}
        }
    }
    Ok(())
}

/// Counts what waits for whom, until the stop.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut watched = Watched::default();
    loop {
        // Whether the database is there is told elsewhere.
        if let Ok(backlog) = context.store.backlog().await {
            watched.note(&backlog, &context.policy.destinations, context.clock.now());
        }
        tokio::select! {
            () = tokio::time::sleep(COUNT_EVERY) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

/// The pause, which is twice as long the next time.
fn doubled(pause: &mut Duration, max: Duration) -> Duration {
    let next = (*pause * 2).min(max);
    std::mem::replace(pause, next)
}

enum Way {
    Exchange(AmqpPublisher),
    Subscriber(Notifier),
}

impl Way {
    const fn batch_max(&self) -> u32 {
        match self {
            Self::Exchange(_) => EXCHANGE_BATCH_MAX,
            Self::Subscriber(_) => SUBSCRIBER_BATCH_MAX,
        }
    }

    /// As far as is known without trying.
    fn is_up(&self) -> bool {
        match self {
            Self::Exchange(publisher) => *publisher.health().borrow() == Health::Up,
            Self::Subscriber(_) => true,
        }
    }
}

/// One attempt that failed.
struct Failed {
    /// When to try again; `None`: never.
    again_after: Option<Duration>,
    error: String,
}

async fn tell(context: &Context, way: &Way, notice: Notice) -> (NoticeKey, NoticeOutcome) {
    let Notice { destination, change, attempts, lease_token: _ } = notice;
    let (id, version) = (change.id, change.order.version);
    let key = NoticeKey { destination: Arc::clone(&destination), order_id: change.order.id.clone(), version };
    let began = Instant::now();
    let result = match way {
        Way::Exchange(publisher) => publish(publisher, change.into(), attempts).await,
        Way::Subscriber(notifier) => notify(notifier, change.into(), attempts, context.clock.now()).await,
    };
    metrics::histogram!(NOTICE_SECONDS, DESTINATION => Arc::clone(&destination)).record(began.elapsed());
    let outcome = match result {
        Ok(()) => NoticeOutcome::Told,
        Err(Failed { again_after: Some(after), error }) => {
            let at = context.clock.now().plus(after);
            tracing::debug!(event = "order.told", %destination, order_id = key.order_id, version, attempts, error, "not told");
            NoticeOutcome::Again { at: at.plus(jitter(id, after)), error }
        }
        Err(Failed { again_after: None, error }) => {
            let (event, order_id) = ("order.told", &*key.order_id);
            tracing::error!(event, %destination, order_id, version, id = %id, error, "given up after the last attempt");
            NoticeOutcome::GivenUp { error }
        }
    };
    (key, outcome)
}

async fn publish(publisher: &AmqpPublisher, told: Told, attempts: u32) -> Result<(), Failed> {
    let retry = EXCHANGE_RETRY_MIN.saturating_mul(2_u32.saturating_pow(attempts.min(16))).min(EXCHANGE_RETRY_MAX);
    let failed = |error: anyhow::Error| Failed { again_after: Some(retry), error: shown(&error) };
    let route = Route::orders(&told.event_type);
    let event = told.event().map_err(|error| failed(error.into()))?;
    publisher.publish_to(route, event.into()).await.map_err(|error| failed(error.into()))
}

async fn notify(notifier: &Notifier, told: Told, attempts: u32, now: Timestamp) -> Result<(), Failed> {
    let retry = usize::try_from(attempts).ok().and_then(|attempts| RETRIES.get(attempts)).copied();
    let body = told.notification().map_err(|error| Failed { again_after: retry, error: shown(&error.into()) })?;
    notifier.notify(told.id, now, body).await.map_err(|error| {
        let asked = error.retry_after().unwrap_or_default();
        Failed { again_after: retry.map(|retry| retry.max(asked)), error: shown(&error.into()) }
    })
}

/// With its causes, in a bounded number of characters.
fn shown(error: &anyhow::Error) -> String {
    format!("{error:#}").chars().filter(|c| *c != '\0').take(ERROR_CHARS_MAX).collect()
}

/// Up to a fifth of the delay, by the change's random id: so that what failed together does not come back together.
fn jitter(id: Uuid, delay: Duration) -> Duration {
    let [random, ..] = id.into_bytes();
    delay * u32::from(random) / (5 * u32::from(u8::MAX))
}

/// Whether a destination is left alone.
#[derive(Debug, Default, PartialEq, Eq)]
struct Circuit {
    /// In a row.
    failures: usize,
    open: Option<Open>,
}

#[derive(Debug, PartialEq, Eq)]
struct Open {
    until: Timestamp,
    pause: Duration,
}

impl Circuit {
    /// How many changes may be told: none while it is left alone, then one that finds out.
    fn limit(&self, now: Timestamp, batch_max: u32) -> u32 {
        match &self.open {
            Some(open) if now < open.until => 0,
            Some(_) => 1,
            None => batch_max,
        }
    }

    fn note(&mut self, name: &str, report: StepReport, now: Timestamp) {
        let StepReport { told, failed, given_up } = report;
        if told > 0 {
            self.failures = 0;
            if self.open.take().is_some() {
                tracing::info!(destination = name, "the destination hears again");
            }
            return;
        }
        self.failures = self.failures.saturating_add(failed + given_up);
        if failed + given_up == 0 || self.failures < FAILURES_MAX {
            return;
        }
        let pause = match &self.open {
            None => {
                tracing::warn!(destination = name, "the destination does not hear: it is left alone and probed");
                LEFT_ALONE_MIN
            }
            Some(open) => (open.pause * 2).min(LEFT_ALONE_MAX),
        };
        self.open = Some(Open { until: now.plus(pause), pause });
    }
}

/// What was last counted.
#[derive(Debug, Default)]
struct Watched {
    /// Everybody for whom something ever waited: their gauges go back to 0.
    known: HashSet<Arc<str>>,
    stalled: HashSet<Arc<str>>,
}

impl Watched {
    fn note(&mut self, backlog: &[Backlog], configured: &[Arc<str>], now: Timestamp) {
        self.known.extend(configured.iter().cloned());
        self.known.extend(backlog.iter().map(|line| Arc::from(&*line.destination)));
        let waiting: HashMap<&str, &Backlog> = backlog.iter().map(|line| (&*line.destination, line)).collect();
        for name in &self.known {
            let line = waiting.get(&**name);
            let age = line.map_or(Duration::ZERO, |line| now.since(line.oldest_at));
            let count = line.map_or(0, |line| line.waiting);
            metrics::gauge!(OUTBOX_WAITING, DESTINATION => Arc::clone(name)).set(as_gauge(count));
            metrics::gauge!(OUTBOX_OLDEST_SECONDS, DESTINATION => Arc::clone(name)).set(age.as_secs_f64());
            if age <= STALLED {
                if self.stalled.remove(name) {
                    tracing::info!(destination = %name, "nothing waits for long any more");
                }
            } else if self.stalled.insert(Arc::clone(name)) {
                let (oldest_s, configured) = (age.as_secs(), configured.contains(name));
                tracing::warn!(destination = %name, waiting = count, oldest_s, configured, "changes wait to be told for long");
            }
        }
    }
}

/// Gauges are floating-point numbers: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "no outbox holds 2^53 rows")]
const fn as_gauge(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn failures(failed: usize) -> StepReport {
        StepReport { failed, ..StepReport::default() }
    }

    #[test]
    fn a_destination_that_does_not_hear_is_left_alone_and_probed() {
        let mut circuit = Circuit::default();
        circuit.note("it", failures(FAILURES_MAX - 1), NOW);
        assert_eq!(circuit.limit(NOW, 32), 32);
        circuit.note("it", failures(1), NOW);
        assert_eq!(circuit.limit(NOW, 32), 0);
        let mut now = NOW;
        let mut pause = LEFT_ALONE_MIN;
        for _ in 0..20 {
            assert_eq!(circuit.limit(now.plus(pause).minus(Duration::from_millis(1)), 32), 0);
            now = now.plus(pause);
            assert_eq!(circuit.limit(now, 32), 1, "a probe");
            // Nothing was due: nothing is known.
            circuit.note("it", StepReport::default(), now);
            assert_eq!(circuit.limit(now, 32), 1);
            circuit.note("it", failures(1), now);
            pause = (pause * 2).min(LEFT_ALONE_MAX);
        }
        assert_eq!(pause, LEFT_ALONE_MAX);
        now = now.plus(pause);
        circuit.note("it", StepReport { told: 1, ..StepReport::default() }, now);
        assert_eq!(circuit, Circuit::default());
    }

    #[test]
    fn one_success_is_enough_to_go_on() {
        let mut circuit = Circuit::default();
        circuit.note("it", StepReport { told: 1, failed: 31, given_up: 0 }, NOW);
        assert_eq!(circuit.limit(NOW, 32), 32);
    }

    #[test]
    fn delays_are_stretched_by_up_to_a_fifth() {
        let delay = Duration::from_secs(100);
        assert_eq!(jitter(Uuid::nil(), delay), Duration::ZERO);
        assert_eq!(jitter(Uuid::max(), delay), delay / 5);
        let total: Duration = RETRIES.iter().sum();
        assert_eq!(total, Duration::from_secs(46 * 3600 + 12 * 60 + 35));
    }

    #[test]
    fn errors_are_shown_with_their_causes_within_limits() {
        let error = anyhow::anyhow!("cause \0").context("é".repeat(ERROR_CHARS_MAX - 3));
        let text = shown(&error);
        assert!(text.ends_with("é: c") && text.chars().count() == ERROR_CHARS_MAX, "{text}");
    }
}
