//! `seen`: the real worker on a queue of webhooks. First none is known: how many it applies a second, and the most memory that
//! it holds. Then all are marked in Redis: how many it acknowledges a second, beside a bare lapin consumer on the same queue.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use paybell_shared::queue::{self, Message, QueueSettings};
use paybell_shared::shutdown::Shutdown;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::stories::Stories;
use super::{Size, line, median_rate, rate};
use crate::servers::process::Service;
use crate::servers::{Postgres, RabbitMq, Redis, http_client};
use crate::shop::configuration;
use crate::worker::accounts;

const SEED: u64 = 7;
const WEBHOOKS_QUEUE: &str = "paybell.webhooks.v1";
/// As the worker's.
const PREFETCH: u16 = 2_000;
/// Deliveries that one acknowledgement answers: as the worker's batches.
const ACKNOWLEDGED_AT_ONCE: usize = 256;
/// Publishes under way when the queue is filled.
const IN_FLIGHT: usize = 256;
/// For one delivery that does not come; the whole would hang.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the worker's metrics are read: it pays for them, too.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Odd, for the median; yardstick and subject take turns.
const RUNS: usize = 3;

/// The result, and its ratio to the yardstick.
#[derive(Debug, Serialize)]
pub struct Report {
    pub deliveries: usize,
    /// Applied from the queue, with nothing seen before.
    pub applied: f64,
    /// The most memory that the worker held, over all runs, in MiB.
    pub memory_mib: f64,
    pub bare_consumer: f64,
    pub worker: f64,
    /// Of the deliveries of the last run, how many Redis knew, in percent.
    pub hits_percent: f64,
    pub ratio: f64,
}

/// Runs the benchmark on servers of its own.
///
/// # Errors
/// Something cannot be started or reached.
pub async fn run(size: Size) -> anyhow::Result<Report> {
    let (rabbitmq, postgres, redis) = tokio::join!(RabbitMq::start_private(), Postgres::start_durable(), Redis::start_private());
    let url = rabbitmq.vhost().await;
    let configuration = configuration(&url, &postgres.database().await, &redis.url());
    let account = accounts(&configuration).remove(0);
    let messages = Stories::new(&account, size.orders, size.messages, SEED).messages;
    // Declares the queue.
    drop(Service::start("paybell-worker", &[], &configuration, &[("RUST_LOG", "warn")]).await);

    fill(&url, &messages).await?;
    let (applied, first) = drain(&configuration, messages.len()).await?;
    let (mut bare, mut subject, mut memory) = (Vec::new(), Vec::new(), first.memory);
    let mut hits = 0.0;
    for _ in 0..RUNS {
        fill(&url, &messages).await?;
        bare.push(consume(&url, messages.len()).await?);
        fill(&url, &messages).await?;
        let (measured, seen) = drain(&configuration, messages.len()).await?;
        subject.push(measured);
        memory = memory.max(seen.memory);
        hits = seen.hits;
    }
    let (bare_consumer, worker) = (median_rate(bare), median_rate(subject));
    #[expect(clippy::cast_precision_loss, reason = "a benchmark's counts stay far below 2^52")]
    let (memory_mib, hits_percent) = (memory as f64 / f64::from(1 << 20), 100.0 * hits / messages.len() as f64);
    let ratio = worker / bare_consumer;
    let deliveries = messages.len();
    Ok(Report { deliveries, applied, memory_mib, bare_consumer, worker, hits_percent, ratio })
}

/// Publishes all messages as the ingress does.
async fn fill(url: &str, messages: &[Message]) -> anyhow::Result<()> {
    let settings = QueueSettings {
        url: url.to_owned(),
        publish_budget: PATIENCE,
        retry_steps: Vec::new(),
        connection_name: "bench".to_owned(),
    };
    let shutdown = Shutdown::new();
    let publisher = queue::connect(settings).await?.publisher(&shutdown);
    let mut messages = messages.iter();
    let mut pending = FuturesUnordered::new();
    loop {
        while pending.len() < IN_FLIGHT
            && let Some(message) = messages.next()
        {
            pending.push(async {
                // Not connected yet at first.
                while publisher.publish(message.clone()).await.is_err() {
                    sleep(LOOK_EVERY).await;
                }
            });
        }
        if pending.next().await.is_none() {
            break;
        }
    }
    drop(pending);
    ensure!(shutdown.finish().await, "the publisher did not end");
    Ok(())
}

/// What a worker tells of itself.
struct Seen {
    memory: u64,
    hits: f64,
}

/// A worker from its first settled delivery to its last.
async fn drain(configuration: &str, count: usize) -> anyhow::Result<(f64, Seen)> {
    let worker = Service::start_unready("paybell-worker", &[], configuration, &[("RUST_LOG", "warn")]);
    let client = http_client();
    let metrics = format!("{}/metrics", worker.ops_url());
    let all = u32::try_from(count)?;
    let mut began: Option<(Instant, f64)> = None;
    let mut last = Instant::now();
    loop {
        let text = match client.get(&metrics).send().await {
            Ok(answer) => answer.text().await?,
            Err(_) => String::new(),
        };
        let done = value(&text, "paybell_queue_settled_total{disposition=\"done\"}");
        if done >= f64::from(all) {
            let (since, before) = began.context("it was done before it was looked at")?;
            let measured = (done - before) / since.elapsed().as_secs_f64();
            let hits = value(&text, "paybell_seen_total{outcome=\"hit\"}");
            return Ok((measured, Seen { memory: worker.memory_peak(), hits }));
        }
        if done > 0.0 {
            began.get_or_insert_with(|| (Instant::now(), done));
        } else {
            ensure!(last.elapsed() < PATIENCE, "the worker settles nothing:\n{}", worker.log());
        }
        if began.is_none_or(|(_, before)| done > before) {
            last = Instant::now();
        }
        sleep(LOOK_EVERY).await;
    }
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
}

/// The yardstick: a bare lapin consumer that looks at nothing and acknowledges by the batch.
async fn consume(url: &str, count: usize) -> anyhow::Result<f64> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut deliveries = channel.basic_consume(WEBHOOKS_QUEUE.into(), "".into(), options, FieldTable::default()).await?;
    let mut started = None;
    for number in 1..=count {
        let delivery = timeout(PATIENCE, deliveries.next()).await?.context("the broker ended the consumer")??;
        started.get_or_insert_with(Instant::now);
        if number % ACKNOWLEDGED_AT_ONCE == 0 || number == count {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
    }
    let measured = rate(count, started.context("nothing was delivered")?.elapsed());
    connection.close(200, "done".into()).await?;
    Ok(measured)
}

impl Report {
    /// The report as lines for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        [
            format!("seen: {} deliveries{:>48}\n", self.deliveries, "per s"),
            line("worker, from RabbitMQ to PostgreSQL, nothing seen", self.applied),
            line("bare lapin consumer, acknowledging by the batch", self.bare_consumer),
            line(&format!("worker, {:.1} % known to Redis", self.hits_percent), self.worker),
            format!("ratio {:.2}; the worker held {:.0} MiB at the most\n", self.ratio, self.memory_mib),
        ]
        .concat()
    }
}
