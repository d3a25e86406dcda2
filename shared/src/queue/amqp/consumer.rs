//! Consuming: a connection of its own, prefetch, and settlement.
//!
//! One channel delivers, another one, in confirm mode and used only from here, moves. A retry and a dead letter are
//! published and confirmed before the delivery is acknowledged; a crash between the two makes a duplicate, never a
//! loss. Everything is dropped and built anew at the first fault; a tag of an older connection settles nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Broker;
use super::link::{Backoff, Link, LinkError, Step};
use super::message::{self, Moved, Unsendable};
use super::topology::{DEAD, DEAD_QUEUE, UNROUTED_QUEUE, WEBHOOKS_KEY, WEBHOOKS_QUEUE};
use crate::clock::{Clock, SystemClock};
use crate::queue::{ConsumeError, Consumer, Delivery, Disposition, Message, REASON_HEADER, Tag, bounded};

/// Deliveries on their way to us beyond those being worked on: twice the largest batch (1000), so that the next batch
/// is here when one commits. Of the largest webhook (512 KiB) that is 1 GiB; of usual ones (5 KiB) 10 MiB.
const PREFETCH: u16 = 2_000;

/// Dead letters are few, nobody waits for them, and each may be as large as a webhook.
const PREFETCH_DEAD: u16 = 32;

/// For channels and consumers together: a queue that has lost its majority answers nothing, while heartbeats go on.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// For all moves of one settlement together; a confirm takes milliseconds.
const MOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// For handing acknowledgements to the socket. Only a broker that reads nothing lets it pass.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages that no queue took and the alternate exchange kept. Not zero: a binding is missing.
const UNROUTED: &str = "paybell_queue_unrouted_total";
const SETTLED: &str = "paybell_queue_settled_total";

/// What is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Webhooks,
    DeadLetters,
}

impl Source {
    const fn queues(self) -> &'static [&'static str] {
        match self {
            Self::Webhooks => &[WEBHOOKS_QUEUE, UNROUTED_QUEUE],
            Self::DeadLetters => &[DEAD_QUEUE],
        }
    }

    const fn prefetch(self) -> u16 {
        match self {
            Self::Webhooks => PREFETCH,
            Self::DeadLetters => PREFETCH_DEAD,
        }
    }
}

pub struct AmqpConsumer {
    broker: Arc<Broker>,
    source: Source,
    generation: u64,
    backoff: Backoff,
    /// Before the next connection.
    pause: Duration,
    state: State,
    /// Received and not returned yet, of the connection that is open.
    received: VecDeque<Delivery>,
}

enum State {
    Closed,
    /// Kept here, so that a caller that gives up waiting does not start it over.
    Opening(Pin<Box<dyn Future<Output = Result<Open, LinkError>> + Send>>),
    Open(Box<Open>),
}

/// One connection's worth of consuming.
struct Open {
    since: Instant,
    link: Link,
    channel: Channel,
    moves: Channel,
    incoming: BoxStream<'static, Incoming>,
    /// Delivered on this connection and not settled.
    outstanding: BTreeMap<u64, Kept>,
}

enum Incoming {
    Delivery(&'static str, Box<lapin::message::Delivery>),
    Fault(String),
}

impl AmqpConsumer {
    pub(super) fn new(broker: Arc<Broker>, source: Source) -> Self {
        Self {
            broker,
            source,
            generation: 0,
            backoff: Backoff::default(),
            pause: Duration::ZERO,
            state: State::Closed,
            received: VecDeque::new(),
        }
    }

    /// The open connection; opens one if there is none. Cancel-safe.
    async fn open(&mut self) -> Result<&mut Open, ConsumeError> {
        if matches!(self.state, State::Closed) {
            let broker = Arc::clone(&self.broker);
            let (source, pause) = (self.source, self.pause);
            self.state = State::Opening(Box::pin(async move {
                sleep(pause).await;
                Open::new(&broker, source).await
            }));
        }
        if let State::Opening(opening) = &mut self.state {
            match opening.await {
                Ok(open) => {
                    self.generation += 1;
                    self.state = State::Open(Box::new(open));
                    tracing::info!(source = ?self.source, generation = self.generation, "consuming");
                }
                Err(error) => return Err(self.fail(error.to_string())),
            }
        }
        match &mut self.state {
            State::Open(open) => Ok(open),
            State::Closed | State::Opening(_) => Err(ConsumeError::Closed("not connected".to_owned())),
        }
    }

    /// Drops the connection with all that belongs to it.
    fn fail(&mut self, reason: String) -> ConsumeError {
        if let State::Open(open) = &self.state {
            self.backoff.stood(open.since.elapsed());
        }
        self.state = State::Closed;
        self.pause = self.backoff.next();
        self.received.clear();
        ConsumeError::Closed(reason)
    }

    /// Waits for a delivery and puts it with the received.
    async fn receive(&mut self) -> Result<(), ConsumeError> {
        let incoming = self.open().await?.incoming.next().await;
        self.keep(incoming)
    }

    fn keep(&mut self, incoming: Option<Incoming>) -> Result<(), ConsumeError> {
        let (queue, delivery) = match incoming {
            Some(Incoming::Delivery(queue, delivery)) => (queue, delivery),
            Some(Incoming::Fault(reason)) => return Err(self.fail(reason)),
            None => return Err(self.fail("the broker ended the consumer".to_owned())),
        };
        let State::Open(open) = &mut self.state else { return Ok(()) };
        let body = Bytes::from(delivery.data);
        let (mut message, attempt, reason) = message::read(&delivery.properties, body.clone());
        open.outstanding.insert(delivery.delivery_tag, Kept { properties: delivery.properties, body });
        if queue == UNROUTED_QUEUE {
            tracing::error!(id = message.id, "a message came by the alternate exchange: a binding is missing");
            metrics::counter!(UNROUTED).increment(1);
        }
        if self.source == Source::DeadLetters {
            message.headers.extend(reason.map(|reason| (REASON_HEADER.into(), reason)));
        }
        let tag = Tag { generation: self.generation, number: delivery.delivery_tag };
        self.received.push_back(Delivery { tag, attempt, redelivered: delivery.redelivered, message });
        Ok(())
    }

    /// What is here without waiting, up to `max`.
    fn drain(&mut self, max: usize) -> Result<(), ConsumeError> {
        while self.received.len() < max {
            let State::Open(open) = &mut self.state else { return Ok(()) };
            let Some(incoming) = open.incoming.next().now_or_never() else { return Ok(()) };
            self.keep(incoming)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next_batch(&mut self, max: usize, linger: Duration) -> Result<Vec<Delivery>, ConsumeError> {
        let max = max.max(1);
        if self.received.is_empty() {
            self.receive().await?;
        }
        self.drain(max)?;
        let until = Instant::now() + linger;
        while self.received.len() < max {
            match timeout_at(until, self.receive()).await {
                Ok(received) => received?,
                Err(_) => break,
            }
            self.drain(max)?;
        }
        let count = self.received.len().min(max);
        Ok(self.received.drain(..count).collect())
    }

    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError> {
        let State::Open(open) = &mut self.state else {
            return Err(ConsumeError::Closed("the connection of these deliveries is gone".to_owned()));
        };
        let mut current = Vec::with_capacity(settlements.len());
        for (tag, disposition) in settlements {
            if tag.generation == self.generation && open.outstanding.contains_key(&tag.number) {
                current.push((tag.number, disposition));
            } else {
                tracing::debug!(?tag, "a stale tag settles nothing");
                metrics::counter!(SETTLED, "disposition" => "stale").increment(1);
            }
        }
        match open.settle(&self.broker, self.source, current).await {
            Ok(()) => Ok(()),
            Err(SettleError::Fault(reason)) => Err(self.fail(reason)),
            Err(SettleError::Refused(error)) => Err(ConsumeError::Backend(error.into())),
        }
    }

    async fn close(&mut self) {
        self.received.clear();
        self.pause = Duration::ZERO;
        if let State::Open(open) = std::mem::replace(&mut self.state, State::Closed) {
            open.link.close().await;
        }
    }
}

enum SettleError {
    /// The connection is of no use any more.
    Fault(String),
    /// The broker refused moves; their deliveries were released.
    Refused(String),
}

impl From<lapin::Error> for SettleError {
    fn from(error: lapin::Error) -> Self {
        Self::Fault(error.to_string())
    }
}

impl Open {
    async fn new(broker: &Broker, source: Source) -> Result<Self, LinkError> {
        let half = match source {
            Source::Webhooks => "consume",
            Source::DeadLetters => "dead letters",
        };
        let link = Link::open(broker, half).await?;
        match timeout(BEGIN_TIMEOUT, Self::begin(link, source)).await {
            Ok(open) => open,
            Err(_) => Err(LinkError::Slow(Step::Consuming)),
        }
    }

    async fn begin(link: Link, source: Source) -> Result<Self, LinkError> {
        let moves = link.channel().await?;
        moves.confirm_select(ConfirmSelectOptions::default()).await?;
        let channel = link.channel().await?;
        // Before the consumers: what they are sent is bounded by nothing else.
        channel.basic_qos(source.prefetch(), BasicQosOptions::default()).await?;
        let mut incoming = Vec::new();
        for &queue in source.queues() {
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
            let deliveries = consumer.map(move |delivery| match delivery {
                Ok(delivery) => Incoming::Delivery(queue, Box::new(delivery)),
                Err(error) => Incoming::Fault(error.to_string()),
            });
            let ended = Incoming::Fault(format!("the broker ended the consumer of {queue}"));
            incoming.push(deliveries.chain(stream::iter([ended])));
        }
        Ok(Self {
            since: Instant::now(),
            link,
            channel,
            moves,
            incoming: stream::select_all(incoming).boxed(),
            outstanding: BTreeMap::new(),
        })
    }

    async fn settle(&mut self, broker: &Broker, source: Source, settlements: Vec<(u64, Disposition)>) -> Result<(), SettleError> {
        let mut done = BTreeSet::new();
        let mut released = Vec::new();
        let mut moves = FuturesUnordered::new();
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (number, disposition) in settlements {
            *counts.entry(disposition.as_str()).or_default() += 1;
            let Some(kept) = self.outstanding.get(&number) else { continue };
            let planned = match (source, disposition) {
                (_, Disposition::Done) => {
                    done.insert(number);
                    continue;
                }
                (_, Disposition::Release) | (Source::DeadLetters, _) => {
                    released.push(number);
                    continue;
                }
                (Source::Webhooks, Disposition::Retry { reason }) => kept.retry(broker, &reason),
                (Source::Webhooks, Disposition::DeadLetter { reason }) => kept.bury(&bounded(&reason)),
            };
            match planned {
                Ok(planned) => moves.push(planned.carry_out(self.moves.clone(), number)),
                Err(error) => {
                    // Cannot be: it came by AMQP.
                    tracing::error!(%error, "a delivery cannot be moved");
                    released.push(number);
                }
            }
        }
        for (disposition, count) in counts {
            metrics::counter!(SETTLED, "disposition" => disposition).increment(count);
        }
        let mut refused = None;
        let moving = async {
            while let Some((number, confirmed)) = moves.next().await {
                match confirmed? {
                    Confirmation::Ack(None) => {
                        done.insert(number);
                    }
                    Confirmation::Nack(None) => {
                        refused = Some("the broker refused to take a retry or a dead letter".to_owned());
                        released.push(number);
                    }
                    other => return Err(SettleError::Fault(format!("the move of a delivery ended in {other:?}"))),
                }
            }
            Ok(())
        };
        // What is confirmed is acknowledged also if the rest is not.
        let confirmed = match timeout(MOVE_TIMEOUT, moving).await {
            Ok(confirmed) => confirmed,
            Err(_) => Err(SettleError::Fault("the broker does not confirm the move of a delivery".to_owned())),
        };
        drop(moves);
        match timeout(SETTLE_TIMEOUT, self.answer(&done, &released)).await {
            Ok(answered) => answered?,
            Err(_) => return Err(SettleError::Fault("the broker takes no acknowledgements".to_owned())),
        }
        confirmed?;
        refused.map_or(Ok(()), |reason| Err(SettleError::Refused(reason)))
    }

    async fn answer(&mut self, done: &BTreeSet<u64>, released: &[u64]) -> lapin::Result<()> {
        let (upto, single) = acknowledgements(&self.outstanding, done);
        if let Some(upto) = upto {
            self.channel.basic_ack(upto, BasicAckOptions { multiple: true }).await?;
        }
        for number in single {
            self.channel.basic_ack(number, BasicAckOptions::default()).await?;
        }
        for &number in released {
            self.channel.basic_nack(number, BasicNackOptions { multiple: false, requeue: true }).await?;
        }
        self.outstanding.retain(|number, _| !done.contains(number));
        for number in released {
            self.outstanding.remove(number);
        }
        Ok(())
    }
}

/// The fewest frames that acknowledge `done`: one for everything up to the first return value, as nothing below it is
/// outstanding otherwise, and one for each of the second.
fn acknowledgements<T>(outstanding: &BTreeMap<u64, T>, done: &BTreeSet<u64>) -> (Option<u64>, Vec<u64>) {
    let run = outstanding.keys().copied().take_while(|number| done.contains(number)).last();
    let single = done.iter().copied().filter(|number| run.is_none_or(|run| *number > run)).collect();
    (run, single)
}

/// A delivery that is not settled, as it came.
struct Kept {
    properties: BasicProperties,
    body: Bytes,
}

/// A move as the broker will see it.
struct Move {
    exchange: ShortString,
    properties: BasicProperties,
    body: Bytes,
}

impl Kept {
    fn retry(&self, broker: &Broker, reason: &str) -> Result<Move, Unsendable> {
        let (message, attempt, _) = message::read(&self.properties, Bytes::new());
        match broker.settings.after_failure(attempt, reason).map(|step| broker.topology.step(step)) {
            Ok(Some(step)) => {
                let reason = bounded(reason);
                let moved = Moved { attempt: Some(attempt.saturating_add(1)), reason: Some(&reason) };
                self.moved(step, &message, moved)
            }
            Ok(None) => self.bury("attempts spent"),
            Err(reason) => self.bury(&reason),
        }
    }

    fn bury(&self, reason: &str) -> Result<Move, Unsendable> {
        let (message, attempt, _) = message::read(&self.properties, Bytes::new());
        self.moved(DEAD, &message, Moved { attempt: Some(attempt), reason: Some(reason) })
    }

    fn moved(&self, exchange: &str, message: &Message, moved: Moved<'_>) -> Result<Move, Unsendable> {
        let now = u64::try_from(SystemClock.now().seconds()).unwrap_or(0);
        let properties = message::properties(message, moved, now)?;
        Ok(Move { exchange: exchange.into(), properties, body: self.body.clone() })
    }
}

impl Move {
    async fn carry_out(self, channel: Channel, number: u64) -> (u64, lapin::Result<Confirmation>) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published = channel.basic_publish(self.exchange, WEBHOOKS_KEY.into(), options, &self.body, self.properties).await;
        let confirmed = match published {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        (number, confirmed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a broker's own rules: an acknowledgement names an outstanding tag, and `multiple` takes all below.
        #[test]
        fn exactly_what_is_done_is_acknowledged(rounds in vec(vec(any::<bool>(), 1..20), 1..20)) {
            let mut outstanding: BTreeMap<u64, u8> = BTreeMap::new();
            let mut last = 0;
            for round in rounds {
                outstanding.extend((0..5).map(|offset| (last + offset + 1, 0)));
                last += 5;
                let done: BTreeSet<u64> = outstanding.keys().copied().zip(round).filter(|(_, done)| *done).map(|(number, _)| number).collect();
                let (upto, single) = acknowledgements(&outstanding, &done);
                let mut at_broker: BTreeSet<u64> = outstanding.keys().copied().collect();
                if let Some(upto) = upto {
                    prop_assert!(at_broker.contains(&upto));
                    at_broker.retain(|number| *number > upto);
                }
                for number in &single {
                    prop_assert!(at_broker.remove(number));
                }
                outstanding.retain(|number, _| !done.contains(number));
                prop_assert_eq!(at_broker, outstanding.keys().copied().collect::<BTreeSet<_>>());
            }
        }
    }

    #[test]
    fn a_whole_batch_is_one_frame() {
        let outstanding = (1..=256).map(|number| (number, 0)).collect();
        assert_eq!(acknowledgements(&outstanding, &(1..=256).collect()), (Some(256), vec![]));
        assert_eq!(acknowledgements(&outstanding, &[2, 3].into()), (None, vec![2, 3]));
        assert_eq!(acknowledgements(&outstanding, &[1, 2, 9].into()), (Some(2), vec![9]));
    }
}
