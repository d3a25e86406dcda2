//! Publishing: lanes of one connection, one channel and one task each.
//!
//! Only a lane's task touches its channel, because concurrent publishes on one channel get each other's confirms. A
//! bounded inbox feeds it; each caller waits for its own verdict, at most for the publish budget. The confirm itself is
//! never dropped while its channel lives: lapin would keep it for ever.
//!
//! Success is a plain ack, nothing else. A nack is the broker's refusal of that one message. A returned message, which
//! the alternate exchange rules out unless somebody took it away, cannot be told apart from its neighbours: everything
//! in flight beside it is refused and the lane built anew, which also declares the topology again. What is told of orders
//! is never returned: nobody need listen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Event};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::Broker;
use super::link::{Backoff, Link, LinkError, Step};
use super::message::{Moved, properties};
use super::topology::{ORDERS, WEBHOOKS, WEBHOOKS_KEY};
use crate::clock::{Clock, SystemClock};
use crate::queue::{Health, Message, PublishError, Publisher};
use crate::shutdown::Shutdown;

/// For webhooks. Two connections confirm about as many messages as a broker on two cores can, and one that fails leaves
/// another.
pub const WEBHOOK_LANES: usize = 2;
/// For what is told of orders: nobody waits for it.
pub const ORDER_LANES: usize = 1;

/// Messages that a lane has sent and that are not confirmed. From 64 on the broker's group commit is used well; 256
/// keeps confirms within milliseconds.
const IN_FLIGHT_MAX: usize = 256;

/// Messages that wait for a lane. With what is in flight, the two lanes hold more than the ingress' default of 2048
/// webhooks in flight.
const INBOX_MAX: usize = 1024;

/// A confirm that is older than this, on a connection whose heartbeats arrive, is not waited for: the lane is built
/// anew. Well above the election of a queue's new leader.
const CONFIRM_AGE_MAX: Duration = Duration::from_secs(15);

/// For putting a channel into confirm mode; a broker takes milliseconds.
const CONFIRM_SELECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a lane that is idle looks whether its channel still stands, and how old its confirms are.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a lane outlives the begin of the stop if somebody still holds its publisher: longer than any request that
/// was in flight, shorter than the process' own deadline of 45 s.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// Webhooks by their end.
const PUBLISHED: &str = "paybell_queue_published_total";

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    /// Some queue must take it.
    pub mandatory: bool,
}

impl Route {
    /// To the workers.
    #[must_use]
    pub fn webhooks() -> Self {
        Self { exchange: WEBHOOKS.into(), routing_key: WEBHOOKS_KEY.into(), mandatory: true }
    }

    /// To whoever wants to know of orders; `key` is `order.<status>`, far below the 255 bytes of a routing key.
    #[must_use]
    pub fn orders(key: &str) -> Self {
        Self { exchange: ORDERS.into(), routing_key: key.into(), mandatory: false }
    }
}

/// Publishes over whichever lane is up.
pub struct AmqpPublisher {
    lanes: Vec<LaneHandle>,
    next: AtomicUsize,
    health: watch::Receiver<Health>,
    budget: Duration,
}

struct LaneHandle {
    inbox: mpsc::Sender<Job>,
    state: watch::Receiver<Health>,
}

struct Job {
    route: Route,
    body: bytes::Bytes,
    properties: BasicProperties,
    verdict: Verdict,
}

type Verdict = oneshot::Sender<Result<(), PublishError>>;

impl AmqpPublisher {
    /// `half` names its connections to the broker's operators.
    pub(super) fn start(broker: &Arc<Broker>, half: &'static str, lanes: usize, shutdown: &Shutdown) -> Self {
        let (board, health) = Board::new(lanes);
        let board = Arc::new(board);
        let lanes = (0..lanes).map(|number| {
            let (inbox, jobs) = mpsc::channel(INBOX_MAX);
            let (state, reader) = watch::channel(Health::Starting);
            let board = Arc::clone(&board);
            let lane = Lane { broker: Arc::clone(broker), half, number, inbox: jobs, state, board, stop: shutdown.clone() };
            shutdown.spawn(half, lane.run());
            LaneHandle { inbox, state: reader }
        });
        Self { lanes: lanes.collect(), next: AtomicUsize::new(0), health, budget: broker.settings.publish_budget }
    }

    /// As [`Publisher::publish`], to a place of the caller's choice.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish_to(&self, route: Route, message: Message) -> Result<(), PublishError> {
        let verdict = self.hand_over(route, &message)?;
        match timeout(self.budget, verdict).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PublishError::Closed("the publisher ended".to_owned())),
            Err(_) => Err(PublishError::Late(self.budget)),
        }
    }

    /// Gives the message to the next lane that is up and has room.
    fn hand_over(&self, route: Route, message: &Message) -> Result<oneshot::Receiver<Result<(), PublishError>>, PublishError> {
        let now = u64::try_from(SystemClock.now().seconds()).unwrap_or(0);
        let properties = properties(message, Moved::default(), now).map_err(|error| {
            tracing::error!(%error, id = message.id, "a message cannot be expressed in AMQP");
            PublishError::Nacked
        })?;
        let (verdict, receiver) = oneshot::channel();
        let mut job = Job { route, body: message.body.clone(), properties, verdict };
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut refusal = (0, PublishError::Closed("there is no lane".to_owned()));
        for offset in 0..self.lanes.len() {
            let lane = &self.lanes[first.wrapping_add(offset) % self.lanes.len()];
            let state = lane.state.borrow().clone();
            if let Some(reason) = refusal_of(&state) {
                refusal = refusal_that_says_most(refusal, (weight(&state), reason));
                continue;
            }
            match lane.inbox.try_send(job) {
                Ok(()) => return Ok(receiver),
                Err(mpsc::error::TrySendError::Full(back)) => {
                    refusal = (weight(&Health::Up), PublishError::Full);
                    job = back;
                }
                Err(mpsc::error::TrySendError::Closed(back)) => job = back,
            }
        }
        Err(refusal.1)
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let result = self.publish_to(Route::webhooks(), message).await;
        let outcome = result.as_ref().map_or_else(PublishError::reason, |()| "confirmed");
        metrics::counter!(PUBLISHED, "outcome" => outcome).increment(1);
        result
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

/// Why a lane in this state takes nothing; `None`: it does.
fn refusal_of(state: &Health) -> Option<PublishError> {
    match state {
        Health::Up => None,
        Health::Blocked(reason) => Some(PublishError::Blocked(reason.clone())),
        Health::Down(reason) => Some(PublishError::Closed(reason.clone())),
        Health::Starting => Some(PublishError::Closed("not connected yet".to_owned())),
    }
}

/// How much a lane's state says of why nothing is taken: one that is up (and full) most, one that never was, least.
const fn weight(state: &Health) -> u8 {
    match state {
        Health::Starting => 1,
        Health::Down(_) => 2,
        Health::Blocked(_) => 3,
        Health::Up => 4,
    }
}

fn refusal_that_says_most(one: (u8, PublishError), other: (u8, PublishError)) -> (u8, PublishError) {
    if other.0 > one.0 { other } else { one }
}

/// The lanes' states in one.
struct Board {
    lanes: Mutex<Vec<Health>>,
    whole: watch::Sender<Health>,
}

impl Board {
    fn new(lanes: usize) -> (Self, watch::Receiver<Health>) {
        let (whole, health) = watch::channel(Health::Starting);
        (Self { lanes: Mutex::new(vec![Health::Starting; lanes]), whole }, health)
    }

    fn set(&self, number: usize, state: &Health) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes[number].clone_from(state);
        let whole = summary(&lanes);
        self.whole.send_if_modified(|old| {
            let changed = *old != whole;
            if changed {
                *old = whole;
            }
            changed
        });
    }
}

/// One lane that is up is enough; else what says most.
fn summary(lanes: &[Health]) -> Health {
    let rank = |state: &&Health| match state {
        Health::Up => 3,
        Health::Blocked(_) => 2,
        Health::Down(_) => 1,
        Health::Starting => 0,
    };
    lanes.iter().max_by_key(rank).cloned().unwrap_or(Health::Starting)
}

struct Lane {
    broker: Arc<Broker>,
    half: &'static str,
    number: usize,
    inbox: mpsc::Receiver<Job>,
    state: watch::Sender<Health>,
    board: Arc<Board>,
    stop: Shutdown,
}

/// Why a connection was given up.
enum End {
    /// Nobody publishes any more.
    Finished,
    Fault(String),
}

impl Lane {
    async fn run(mut self) -> anyhow::Result<()> {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.serve() => {}
            () = async { stop.stopping().await; sleep(STOP_GRACE).await } => {
                tracing::warn!(half = self.half, lane = self.number, "somebody still holds the publisher, its lane ends anyway");
            }
        }
        Ok(())
    }

    /// One connection after the other, until nobody publishes any more.
    async fn serve(&mut self) {
        let mut backoff = Backoff::default();
        let mut told = String::new();
        loop {
            let opened = self.refusing(open(Arc::clone(&self.broker), self.half, self.number)).await;
            let fault = match opened {
                None => return,
                Some(Ok((link, channel))) => {
                    tracing::info!(half = self.half, lane = self.number, "connected to the broker");
                    told.clear();
                    self.set(Health::Up);
                    let since = Instant::now();
                    let end = self.generation(&link, &channel).await;
                    backoff.stood(since.elapsed());
                    match end {
                        End::Finished => return link.close().await,
                        End::Fault(reason) => reason,
                    }
                }
                Some(Err(error)) => {
                    let starting = *self.state.borrow() == Health::Starting;
                    if error.was_connected() || !starting {
                        self.set(Health::Down(error.to_string()));
                    }
                    error.to_string()
                }
            };
            if told != fault {
                tracing::error!(
                    half = self.half,
                    lane = self.number,
                    error = fault,
                    "the way to the broker is closed, trying again"
                );
                told = fault;
            }
            if self.refusing(sleep(backoff.next())).await.is_none() {
                return;
            }
        }
    }

    fn set(&self, state: Health) {
        self.board.set(self.number, &state);
        self.state.send_replace(state);
    }

    /// Runs `other` while refusing what comes; `None` if nobody publishes any more.
    async fn refusing<T>(&mut self, other: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return Some(done),
                job = self.inbox.recv() => {
                    let refusal = refusal_of(&self.state.borrow());
                    let refusal = refusal.unwrap_or_else(|| PublishError::Closed("reconnecting".to_owned()));
                    let _ = job?.verdict.send(Err(refusal));
                }
            }
        }
    }

    /// Publishes on one channel until it fails or nobody publishes any more.
    async fn generation(&mut self, link: &Link, channel: &Channel) -> End {
        let mut events = std::pin::pin!(link.connection.events_listener());
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flight = Flight::default();
        let mut confirms = FuturesUnordered::new();
        let end = loop {
            tokio::select! {
                biased;
                event = next_event(&mut events) => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(half = self.half, lane = self.number, reason, "the broker blocks publishers");
                        // What is in flight may still be written when the broker has room again; nobody waits for that.
                        flight.refuse_all(&PublishError::Blocked(reason.clone()));
                        self.set(Health::Blocked(reason));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(half = self.half, lane = self.number, "the broker takes publishes again");
                        self.set(Health::Up);
                    }
                    Some(Event::Error(error)) => break End::Fault(error.to_string()),
                    Some(_) => {}
                    None => break End::Fault("the connection ended".to_owned()),
                },
                settled = settled(&mut confirms), if !confirms.is_empty() => {
                    if let Err(fault) = flight.settle(settled) {
                        break End::Fault(fault);
                    }
                }
                _ = look.tick() => {
                    if let Some(fault) = fault_of(link, channel, &flight) {
                        break End::Fault(fault);
                    }
                }
                job = self.inbox.recv(), if confirms.len() < IN_FLIGHT_MAX => {
                    let Some(Job { route, body, properties, verdict }) = job else { break End::Finished };
                    if verdict.is_closed() {
                        // It waited longer than its budget and was told so. Sent all the same, a full inbox would stay one: each
                        // message would be late because those before it were.
                        continue;
                    }
                    if link.connection.status().blocked() {
                        let _ = verdict.send(Err(PublishError::Blocked("the broker blocks publishers".to_owned())));
                        continue;
                    }
                    let number = flight.take_off(verdict);
                    confirms.push(publish(channel.clone(), number, route, body, properties));
                }
            }
        };
        if let End::Fault(fault) = &end {
            // First the state, so that no caller is told and then sent here again.
            self.set(Health::Down(fault.clone()));
            flight.refuse_all(&PublishError::Closed(fault.clone()));
        }
        end
    }
}

async fn open(broker: Arc<Broker>, half: &str, number: usize) -> Result<(Link, Channel), LinkError> {
    let link = Link::open(&broker, &format!("{half} {number}")).await?;
    let channel = link.channel().await?;
    match timeout(CONFIRM_SELECT_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default())).await {
        Ok(selected) => selected?,
        Err(_) => return Err(LinkError::Slow(Step::Channel)),
    }
    Ok((link, channel))
}

async fn next_event(events: &mut (impl Stream<Item = Event> + Unpin)) -> Option<Event> {
    events.next().await
}

/// The first poll takes the delivery tag and queues the frames in one go; as one task polls all of these, the tags are
/// in the order of the frames.
async fn publish(
    channel: Channel,
    number: u64,
    route: Route,
    body: bytes::Bytes,
    properties: BasicProperties,
) -> (u64, lapin::Result<Confirmation>) {
    let options = BasicPublishOptions { mandatory: route.mandatory, ..BasicPublishOptions::default() };
    let confirmed = match channel.basic_publish(route.exchange, route.routing_key, options, &body, properties).await {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (number, confirmed)
}

/// All that are settled by now, at least one. Together, because a return that is attached to the wrong one of them
/// condemns them all.
async fn settled<F>(confirms: &mut FuturesUnordered<F>) -> Vec<(u64, lapin::Result<Confirmation>)>
where
    F: Future<Output = (u64, lapin::Result<Confirmation>)>,
{
    confirms.ready_chunks(IN_FLIGHT_MAX).next().await.unwrap_or_default()
}

/// What ended a channel without anybody telling, or must end it.
fn fault_of(link: &Link, channel: &Channel, flight: &Flight) -> Option<String> {
    let status = link.connection.status();
    if !status.connected() || !channel.status().connected() {
        return Some("the channel was closed".to_owned());
    }
    let stalled = !status.blocked() && flight.oldest().is_some_and(|age| age > CONFIRM_AGE_MAX);
    stalled.then(|| format!("no confirm for {} s", CONFIRM_AGE_MAX.as_secs()))
}

/// What was sent and is not settled, in the order of sending.
#[derive(Default)]
struct Flight {
    sent: u64,
    waiting: BTreeMap<u64, Sent>,
}

struct Sent {
    at: Instant,
    /// `None` once it was refused for another reason than its own confirm, which is still to come.
    verdict: Option<Verdict>,
}

impl Flight {
    fn take_off(&mut self, verdict: Verdict) -> u64 {
        self.sent += 1;
        self.waiting.insert(self.sent, Sent { at: Instant::now(), verdict: Some(verdict) });
        self.sent
    }

    /// Tells each caller its verdict.
    ///
    /// # Errors
    /// The channel cannot be trusted any more; what was settled together with the evidence is refused.
    fn settle(&mut self, settled: Vec<(u64, lapin::Result<Confirmation>)>) -> Result<(), String> {
        let evidence = settled.iter().find_map(|(_, confirmed)| match confirmed {
            Ok(Confirmation::Ack(None) | Confirmation::Nack(None)) | Err(_) => None,
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                Some("the broker returned a message: no queue took it")
            }
            Ok(Confirmation::NotRequested) => Some("the channel does not confirm"),
        });
        if let Some(evidence) = evidence {
            self.refuse_all(&PublishError::Unroutable);
            return Err(evidence.to_owned());
        }
        let mut fault = Ok(());
        for (number, confirmed) in settled {
            let result = match confirmed {
                Ok(Confirmation::Ack(None)) => Ok(()),
                Ok(_) => Err(PublishError::Nacked),
                Err(error) => {
                    fault = Err(error.to_string());
                    Err(PublishError::Closed(error.to_string()))
                }
            };
            if let Some(verdict) = self.waiting.remove(&number).and_then(|sent| sent.verdict) {
                // The caller may have stopped waiting.
                let _ = verdict.send(result);
            }
        }
        fault
    }

    fn refuse_all(&mut self, refusal: &PublishError) {
        for sent in self.waiting.values_mut() {
            if let Some(verdict) = sent.verdict.take() {
                let _ = verdict.send(Err(refusal.clone()));
            }
        }
    }

    fn oldest(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|(_, sent)| sent.at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = Result<(), PublishError>;

    fn flown(count: u64) -> (Flight, Vec<oneshot::Receiver<Answer>>) {
        let mut flight = Flight::default();
        let answers = (0..count).map(|_| {
            let (verdict, answer) = oneshot::channel();
            flight.take_off(verdict);
            answer
        });
        let answers = answers.collect();
        (flight, answers)
    }

    #[test]
    fn each_caller_hears_of_its_own_message() {
        let (mut flight, mut answers) = flown(3);
        flight.settle(vec![(2, Ok(Confirmation::Nack(None))), (1, Ok(Confirmation::Ack(None)))]).unwrap();
        assert_eq!(answers[0].try_recv().unwrap(), Ok(()));
        assert_eq!(answers[1].try_recv().unwrap(), Err(PublishError::Nacked));
        assert!(answers[2].try_recv().is_err());
    }

    #[test]
    fn an_unconfirmed_channel_confirms_nobody() {
        let (mut flight, mut answers) = flown(3);
        let mixed = vec![(1, Ok(Confirmation::Ack(None))), (2, Ok(Confirmation::NotRequested))];
        flight.settle(mixed).unwrap_err();
        for answer in &mut answers {
            assert_eq!(answer.try_recv().unwrap(), Err(PublishError::Unroutable));
        }
    }

    #[test]
    fn what_was_refused_while_blocked_is_not_answered_twice() {
        let (mut flight, mut answers) = flown(1);
        flight.refuse_all(&PublishError::Blocked("memory".to_owned()));
        flight.settle(vec![(1, Ok(Confirmation::Ack(None)))]).unwrap();
        assert_eq!(answers[0].try_recv().unwrap(), Err(PublishError::Blocked("memory".to_owned())));
        assert!(flight.oldest().is_none());
    }

    #[test]
    fn one_lane_that_is_up_is_enough() {
        let down = Health::Down("refused".to_owned());
        let blocked = Health::Blocked("disk".to_owned());
        assert_eq!(summary(&[down.clone(), Health::Up]), Health::Up);
        assert_eq!(summary(&[blocked.clone(), down.clone()]), blocked);
        assert_eq!(summary(&[Health::Starting, down.clone()]), down);
        assert_eq!(summary(&[Health::Starting, Health::Starting]), Health::Starting);
    }
}
