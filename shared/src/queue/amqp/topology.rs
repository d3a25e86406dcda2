//! What stands on the broker: one topology that RabbitMQ 3.10 and 4 both accept, declared by whoever connects.
//!
//! ```text
//! paybell.webhooks (direct) ──▶ paybell.webhooks.v1 ──rejected too often──▶ paybell.dead (fanout) ──▶ paybell.dead.v1
//!    │ alternate   ▲
//!    │             └── after its delay ── paybell.retry.5s.v1 ◀── paybell.retry.5s.v1 (fanout; one pair a step)
//!    ▼
//! paybell.unrouted (fanout) ──▶ paybell.unrouted.v1          paybell.orders (topic): what changed, for other services
//! ```
//!
//! Arguments of a queue cannot change while it exists; declaring others fails (406). So they hold only what never
//! changes under one name: the version is in the queue's name, and so is a retry step's delay. What operators tune
//! (`max-length-bytes` above all) they set by policy; where the queue is full, publishes are refused, not dropped.
//!
//! Quorum queues throughout, also on one node: the only type that is on disk before the confirm on every version.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Connection, ExchangeKind};

use super::link::LinkError;

pub const WEBHOOKS: &str = "paybell.webhooks";
/// The one routing key of [`WEBHOOKS`]. It stays on a message through the retry steps and back.
pub const WEBHOOKS_KEY: &str = "webhook";
pub const WEBHOOKS_QUEUE: &str = "paybell.webhooks.v1";
pub const UNROUTED: &str = "paybell.unrouted";
pub const UNROUTED_QUEUE: &str = "paybell.unrouted.v1";
pub const DEAD: &str = "paybell.dead";
pub const DEAD_QUEUE: &str = "paybell.dead.v1";
pub const ORDERS: &str = "paybell.orders";

/// How often a delivery may come back unsettled before the broker makes it a dead letter. It is only the net under a
/// message that kills its worker each time; the retry ladder is counted by ourselves. High, because a lost connection
/// counts for every message that was prefetched on it, and before RabbitMQ 4.3 each release counts too: a worker that
/// releases once a second while its database is down may do so for almost three hours. Never -1 (3.10 takes it as "at
/// the first return") and never absent (since 4.0 the default is 20).
const DELIVERY_LIMIT: i32 = 10_000;

/// For dead letters nothing comes after the limit but loss, so there is none in practice: at one return a second, 60
/// years.
const DEAD_DELIVERY_LIMIT: i32 = i32::MAX;

/// Everything that is declared, with the retry steps of the settings.
pub struct Topology {
    steps: Vec<Step>,
}

/// One step of the retry ladder: an exchange and a queue of one name.
struct Step {
    name: String,
    delay_ms: i64,
}

impl Topology {
    pub fn new(retry_steps: &[Duration]) -> Self {
        let steps = retry_steps.iter().map(|delay| Step {
            name: step_name(*delay),
            // RabbitMQ takes at most 2^32 - 1 ms, seven weeks.
            delay_ms: i64::from(u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
        });
        Self { steps: steps.collect() }
    }

    /// The exchange of a retry step.
    pub fn step(&self, index: usize) -> Option<&str> {
        self.steps.get(index).map(|step| step.name.as_str())
    }

    /// Declares all of it; doing it again changes nothing.
    pub async fn declare(&self, connection: &Connection) -> Result<(), LinkError> {
        let declaring = Declaring { channel: connection.create_channel().await? };
        let mut alternate = FieldTable::default();
        alternate.insert("alternate-exchange".into(), text(UNROUTED));
        declaring.exchange(UNROUTED, ExchangeKind::Fanout, FieldTable::default()).await?;
        declaring.exchange(DEAD, ExchangeKind::Fanout, FieldTable::default()).await?;
        declaring.exchange(WEBHOOKS, ExchangeKind::Direct, alternate).await?;
        declaring.exchange(ORDERS, ExchangeKind::Topic, FieldTable::default()).await?;

        declaring.queue(DEAD_QUEUE, DEAD, limited(DEAD_DELIVERY_LIMIT)).await?;
        declaring.queue(UNROUTED_QUEUE, UNROUTED, dead_lettering(DEAD, limited(DELIVERY_LIMIT))).await?;
        declaring.queue(WEBHOOKS_QUEUE, WEBHOOKS, dead_lettering(DEAD, limited(DELIVERY_LIMIT))).await?;
        for step in &self.steps {
            declaring.exchange(&step.name, ExchangeKind::Fanout, FieldTable::default()).await?;
            let mut arguments = dead_lettering(WEBHOOKS, FieldTable::default());
            // One delay a queue: a short one behind a long one would wait for it.
            arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(step.delay_ms));
            declaring.queue(&step.name, &step.name, arguments).await?;
        }
        // Whatever failed to close goes with its connection.
        let _ = declaring.channel.close(200, "OK".into()).await;
        Ok(())
    }
}

fn step_name(delay: Duration) -> String {
    if delay.subsec_millis() == 0 {
        format!("paybell.retry.{}s.v1", delay.as_secs())
    } else {
        format!("paybell.retry.{}ms.v1", delay.as_millis())
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

fn limited(delivery_limit: i32) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(delivery_limit));
    arguments
}

/// At least once, which needs reject-publish: the message leaves this queue when the next one has confirmed it. The
/// default would lose it if that queue is away just then.
fn dead_lettering(to: &str, mut arguments: FieldTable) -> FieldTable {
    arguments.insert("x-dead-letter-exchange".into(), text(to));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

struct Declaring {
    channel: lapin::Channel,
}

impl Declaring {
    async fn exchange(&self, name: &str, kind: ExchangeKind, arguments: FieldTable) -> Result<(), LinkError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = self.channel.exchange_declare(name.into(), kind, options, arguments).await;
        declared.map_err(|source| LinkError::Topology { object: format!("exchange {name}"), source })
    }

    async fn queue(&self, name: &str, exchange: &str, mut arguments: FieldTable) -> Result<(), LinkError> {
        let failed = |source| LinkError::Topology { object: format!("queue {name}"), source };
        arguments.insert("x-queue-type".into(), text("quorum"));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, arguments).await.map_err(failed)?;
        // A fanout exchange does not look at the key.
        let binding = QueueBindOptions::default();
        let bound = self.channel.queue_bind(name.into(), exchange.into(), WEBHOOKS_KEY.into(), binding, FieldTable::default());
        bound.await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_named_by_its_delay() {
        let topology = Topology::new(&[Duration::from_secs(5), Duration::from_millis(1_500), Duration::from_secs(7_201)]);
        assert_eq!(topology.step(0), Some("paybell.retry.5s.v1"));
        assert_eq!(topology.step(1), Some("paybell.retry.1500ms.v1"));
        assert_eq!(topology.step(2), Some("paybell.retry.7201s.v1"));
        assert_eq!(topology.step(3), None);
    }
}
