//! `apply`: how many events a second go through translate-and-apply on PostgreSQL, beside one transaction for each event on
//! the same server in the same run.
//!
//! The subject is the worker's own loop ([`consume::run`]) over deliveries that are in memory already; nothing is known to
//! the seen-store, so that each duplicate meets the database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use async_trait::async_trait;
use metrics_exporter_prometheus::PrometheusHandle;
use paybell_shared::clock::SystemClock;
use paybell_shared::psp::Account;
use paybell_shared::queue::{ConsumeError, Consumer, Delivery, Disposition, Message, Tag};
use paybell_shared::shutdown::Shutdown;
use paybell_worker::consume::{self, BatchLimits, Context};
use paybell_worker::seen::{Marker, SeenEvents};
use paybell_worker::store::{self, Registration, Work};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::one_by_one;
use super::stories::Stories;
use super::{Size, line, rate};
use crate::servers::Postgres;
use crate::shop::configuration;
use crate::worker::{accounts, context, delivery, key_of};

const SEED: u64 = 20_260_921;
/// As `[limits]` has it unless it is set.
const LIMITS: BatchLimits = BatchLimits { deliveries_max: 512, linger: Duration::from_millis(5) };
/// The yardstick does one of so many: at its pace, all of them would take minutes.
const SAMPLE: usize = 10;
/// Yardsticks and subject take turns, so that a slow minute of the machine meets all.
const TURNS: usize = 5;
/// Orders in one transaction of the preparation.
const REGISTERED_AT_ONCE: usize = 500;
const DESTINATION: &str = "paybell.orders";

/// What must be the same in two databases that know the same events.
const SAME: [&str; 8] = [
    "SELECT concat(count(*), ' events, ', count(order_id), ' with an order, ', count(facts), ' with facts, ', count(body_id),
         ' with a body, ', count(order_version), ' with a version') FROM events",
    "SELECT concat(count(*), ' bodies of ', sum(octet_length(bytes)), ' bytes, ', count(sha256), ' with a hash') FROM bodies",
    "SELECT string_agg(concat(kind, ' ', names, ' ', led), ', ' ORDER BY kind)
     FROM (SELECT kind, count(*) AS names, count(order_id) AS led FROM refs GROUP BY kind) AS kinds",
    "SELECT concat(count(*), ' parkings') FROM parkings",
    "SELECT concat(count(*), ' checks') FROM checks",
    "SELECT concat(count(*), ' learned, ', count(*) FILTER (WHERE money), ' of them money, ', count(webhook_at), ' by webhook, ',
         count(asked_at), ' by asking') FROM learned",
    "SELECT concat(sum(count), ' in the books') FROM books",
    "SELECT string_agg(concat(status, ' ', orders, ', reviewed ', reviewed, ', due ', due), ', ' ORDER BY status)
     FROM (
         SELECT status, count(*) AS orders, count(review_since) AS reviewed, count(due_at) AS due FROM orders GROUP BY status
     ) AS statuses",
];
/// Fails unless each change has its row in the outbox.
const CHANGES: &str = "\
    SELECT CASE WHEN (SELECT count(*) FROM outbox) = count(*) AND (SELECT sum(version) FROM orders) = count(*)
        THEN count(*)::text ELSE 'not each change is in the outbox' END
    FROM transitions";
const CHANGES_MAY_DIFFER_PERCENT: u64 = 10;

/// The result, and its ratio to the yardstick.
#[derive(Debug, Serialize)]
pub struct Report {
    pub events: usize,
    pub orders: usize,
    pub duplicates: usize,
    pub one_by_one: f64,
    /// The yardstick without the books, at whose few rows all its transactions meet.
    pub one_by_one_without_books: f64,
    pub worker: f64,
    /// Over the yardstick that writes the same rows.
    pub ratio: f64,
    pub ratio_without_books: f64,
    /// Share of the time of all batches, in percent, the longest first.
    pub stages: Vec<(String, f64)>,
}

/// Runs the benchmark on a server of its own.
///
/// # Errors
/// Something cannot be started or reached, or the result is not what it must be.
pub async fn run(size: Size, metrics: &PrometheusHandle) -> anyhow::Result<Report> {
    let postgres = Postgres::start_durable().await;
    let account = accounts(&configuration("sqlite:q", "sqlite:s", "memory:")).remove(0);
    let Stories { registrations, messages, duplicates } = Stories::new(&account, size.orders, size.messages, SEED);
    let (orders, events) = (registrations.len(), messages.len());

    let mut yardsticks = Vec::new();
    for books in [true, false] {
        let url = prepared(&postgres, &account, &registrations).await?;
        yardsticks.push((url, books, Duration::ZERO));
    }
    let url = prepared(&postgres, &account, &registrations).await?;
    let context = Arc::new(context_of(&url, vec![Arc::clone(&account)]).await?);
    let habits = context.policy.asking[&key_of(&account)];
    let (before, mut sampled, mut spent) = (stages(metrics), 0, Duration::ZERO);
    for turn in messages.chunks(events.div_ceil(TURNS)) {
        let sample = sample_of(turn);
        sampled += sample.len();
        for (url, books, spent) in &mut yardsticks {
            let (account, messages, destination) = (Arc::clone(&account), sample.to_vec(), DESTINATION.to_owned());
            *spent +=
                one_by_one::measure(url, one_by_one::Work { account, messages, destination, habits, books: *books }).await?;
        }
        spent += drain(Arc::clone(&context), turn).await?;
    }
    let stages = shares(&before, stages(metrics));

    let mut connection = PgConnection::connect(&url).await?;
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&mut connection).await?;
    ensure!(
        usize::try_from(known)? == events - duplicates,
        "{known} events are in the inbox of {events} with {duplicates} twice"
    );
    let sample: Vec<Message> = messages.chunks(events.div_ceil(TURNS)).flat_map(|turn| sample_of(turn).to_vec()).collect();
    check_yardstick(&postgres, &registrations, &account, &yardsticks[0].0, sample).await?;
    let rates: Vec<f64> = yardsticks.iter().map(|(.., spent)| rate(sampled, *spent)).collect();
    let [one_by_one, one_by_one_without_books] = rates[..] else { anyhow::bail!("two yardsticks were measured") };
    let worker = rate(events, spent);
    let (ratio, ratio_without_books) = (worker / one_by_one, worker / one_by_one_without_books);
    Ok(Report { events, orders, duplicates, one_by_one, one_by_one_without_books, worker, ratio, ratio_without_books, stages })
}

fn sample_of(turn: &[Message]) -> &[Message] {
    &turn[..turn.len() / SAMPLE]
}

/// The yardstick must have done the worker's work: a worker that is given the same events leaves the same rows.
async fn check_yardstick(
    postgres: &Postgres,
    registrations: &[Registration],
    account: &Arc<Account>,
    yardstick: &str,
    sample: Vec<Message>,
) -> anyhow::Result<()> {
    let url = prepared(postgres, account, registrations).await?;
    drain(Arc::new(context_of(&url, vec![Arc::clone(account)]).await?), &sample).await?;
    for sql in SAME {
        let (here, there) = (answer(&url, sql).await?, answer(yardstick, sql).await?);
        ensure!(here == there, "the worker has {here}, the yardstick {there}: {sql}");
    }
    // Two events of an order in one transaction make one change, and of an early and a late event the second may add nothing:
    // these depend on who comes first.
    let (here, there): (u64, u64) = (answer(&url, CHANGES).await?.parse()?, answer(yardstick, CHANGES).await?.parse()?);
    ensure!(
        here.abs_diff(there) * 100 <= there * CHANGES_MAY_DIFFER_PERCENT,
        "{here} changes by the worker, {there} by the yardstick"
    );
    Ok(())
}

async fn answer(url: &str, sql: &'static str) -> anyhow::Result<String> {
    let mut connection = PgConnection::connect(url).await?;
    let answer = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(answer)
}

/// A database in which the orders are registered, at rest.
async fn prepared(postgres: &Postgres, account: &Arc<Account>, registrations: &[Registration]) -> anyhow::Result<String> {
    let url = postgres.database().await;
    let context = context_of(&url, vec![Arc::clone(account)]).await?;
    for registrations in registrations.chunks(REGISTERED_AT_ONCE) {
        context.store.apply(&Work { registrations, ..context.work() }).await?;
    }
    // As a day of running has it: today's bodies have their partition.
    while context.store.retain(context.work().now, Duration::from_hours(24)).await?.more {}
    context.store.close().await;
    let mut connection = PgConnection::connect(&url).await?;
    for sql in ["VACUUM ANALYZE orders, refs, checks, transitions", "CHECKPOINT"] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    }
    Ok(url)
}

async fn context_of(url: &str, accounts: Vec<Arc<Account>>) -> anyhow::Result<Context> {
    let mut context = context(store::connect(url).await?, Arc::new(SystemClock), accounts).await;
    context.seen = Arc::new(NothingSeen);
    context.policy.destinations = vec![DESTINATION.into()];
    Ok(context)
}

/// All messages through the worker's loop; how long that took.
async fn drain(context: Arc<Context>, messages: &[Message]) -> anyhow::Result<Duration> {
    let (failed, shutdown) = (Arc::new(AtomicUsize::new(0)), Shutdown::new());
    let deliveries = (1..).zip(messages).map(|(number, message)| delivery(number, message.clone())).collect();
    let feed = Feed { deliveries, unsettled: messages.len(), failed: Arc::clone(&failed), shutdown: shutdown.clone() };
    let started = Instant::now();
    // On the runtime, as the worker has it.
    tokio::spawn(consume::run(context, Box::new(feed), LIMITS, shutdown)).await??;
    let elapsed = started.elapsed();
    let failed = failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} deliveries were not applied");
    Ok(elapsed)
}

/// A queue in memory.
struct Feed {
    deliveries: VecDeque<Delivery>,
    unsettled: usize,
    failed: Arc<AtomicUsize>,
    shutdown: Shutdown,
}

#[async_trait]
impl Consumer for Feed {
    async fn next_batch(&mut self, max: usize, _: Duration) -> Result<Vec<Delivery>, ConsumeError> {
        if self.deliveries.is_empty() {
            std::future::pending::<()>().await;
        }
        let count = self.deliveries.len().min(max);
        Ok(self.deliveries.drain(..count).collect())
    }

    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError> {
        let failed = settlements.iter().filter(|(_, disposition)| *disposition != Disposition::Done).count();
        self.failed.fetch_add(failed, Ordering::Relaxed);
        self.unsettled -= settlements.len();
        if self.unsettled == 0 {
            self.shutdown.stop();
        }
        Ok(())
    }

    async fn close(&mut self) {}
}

/// A seen-store that was flushed.
struct NothingSeen;

#[async_trait]
impl SeenEvents for NothingSeen {
    async fn known(&self, markers: &[Marker]) -> Vec<bool> {
        vec![false; markers.len()]
    }

    async fn mark(&self, _: &[Marker]) {}
}

/// Seconds by stage, as the metrics have them so far.
fn stages(metrics: &PrometheusHandle) -> Vec<(String, f64)> {
    let text = metrics.render();
    let sums = text.lines().filter_map(|line| line.strip_prefix("paybell_apply_seconds_sum{stage=\"")?.split_once("\"} "));
    sums.filter_map(|(stage, seconds)| Some((stage.to_owned(), seconds.parse().ok()?))).collect()
}

fn shares(before: &[(String, f64)], after: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let known = |stage: &str| before.iter().find(|(name, _)| name == stage).map_or(0.0, |(_, seconds)| *seconds);
    let mut spent: Vec<_> = after.into_iter().map(|(stage, seconds)| (seconds - known(&stage), stage)).collect();
    let total: f64 = spent.iter().map(|(seconds, _)| seconds).sum();
    spent.sort_by(|one, other| other.0.total_cmp(&one.0));
    spent.into_iter().map(|(seconds, stage)| (stage, 100.0 * seconds / total)).collect()
}

impl Report {
    /// The report as lines for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let Self { events, orders, duplicates, .. } = self;
        let stages = self.stages.iter().map(|(stage, share)| format!("  {stage:<20} {share:>5.1} %\n"));
        let mut lines = vec![
            format!("apply: {events} events, {duplicates} of them twice, over {orders} orders{:>15}\n", "per s"),
            line("one transaction for each event, 8 connections", self.one_by_one),
            line("the same without the books", self.one_by_one_without_books),
            line("worker", self.worker),
            format!("ratio {:.2}, without the books {:.2}\n", self.ratio, self.ratio_without_books),
        ];
        lines.extend(stages);
        lines.concat()
    }
}
