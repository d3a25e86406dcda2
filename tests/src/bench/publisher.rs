//! The yardstick: a bare lapin publisher with confirms, one owner task, a fixed number of messages in flight.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use super::Measured;

/// Publishes bodies of `body_bytes` to a quorum queue for `duration`, `in_flight` at a time.
///
/// # Errors
/// The broker is not reached.
pub async fn measure(url: &str, body_bytes: usize, in_flight: usize, duration: Duration) -> anyhow::Result<Measured> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let queue = "bench.bare";
    channel.queue_declare(queue.into(), QueueDeclareOptions { durable: true, ..Default::default() }, arguments).await?;
    let body = vec![b'x'; body_bytes];
    let mut latencies = Histogram::new(3)?;
    let mut failed = 0;
    let mut pending = FuturesUnordered::new();
    let started = Instant::now();
    while started.elapsed() < duration || !pending.is_empty() {
        while started.elapsed() < duration && pending.len() < in_flight {
            pending.push(publish(&channel, queue, &body));
        }
        if let Some(outcome) = pending.next().await {
            match outcome {
                Ok(latency) => latencies.record(u64::try_from(latency.as_micros())?)?,
                Err(_) => failed += 1,
            }
        }
    }
    let elapsed = started.elapsed();
    drop(pending);
    connection.close(200, "done".into()).await?;
    Ok(Measured::new(&latencies, failed, elapsed))
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let confirm = channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, persistent).await?;
    ensure!(matches!(confirm.await?, Confirmation::Ack(None)));
    Ok(began.elapsed())
}
