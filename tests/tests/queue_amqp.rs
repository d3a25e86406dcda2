//! The queue on RabbitMQ: what both backends promise, and what is its own: routes, faults, drift.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use paybell_shared::queue::amqp::{Amqp, AmqpPublisher, Route};
use paybell_shared::queue::{ConsumeError, Health, Message, PublishError, Publisher, QueueSettings};
use paybell_shared::shutdown::Shutdown;
use paybell_tests::conformance::queue::{Ground, PATIENCE, message, messages, publish, take};
use paybell_tests::servers::{RabbitMq, rabbitmq};
use tokio::sync::watch;
use tokio::time::timeout;

mod conformance {
    use paybell_tests::conformance::queue::Ground;
    use paybell_tests::servers::rabbitmq;

    paybell_tests::queue_conformance!(Ground::amqp(rabbitmq().await.vhost().await));
}

const BUDGET: Duration = Duration::from_millis(1_500);

fn routing_publisher(url: &str, shutdown: &Shutdown) -> AmqpPublisher {
    let settings = QueueSettings {
        url: url.to_owned(),
        publish_budget: BUDGET,
        retry_steps: vec![Duration::from_secs(5)],
        connection_name: "test".to_owned(),
    };
    Amqp::new(settings).unwrap().routing_publisher(shutdown)
}

async fn until(health: &mut watch::Receiver<Health>, wanted: impl Fn(&Health) -> bool) -> Health {
    let seen = timeout(PATIENCE, health.wait_for(|health| wanted(health))).await;
    seen.expect("the health never came to that").unwrap().clone()
}

async fn up(publisher: &dyn Publisher) {
    until(&mut publisher.health(), |health| *health == Health::Up).await;
}

/// A stranger's view of the broker.
struct Stranger {
    _connection: lapin::Connection,
    channel: lapin::Channel,
}

impl Stranger {
    async fn at(url: &str) -> Self {
        let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self { _connection: connection, channel }
    }

    async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, table).await.unwrap();
    }

    async fn ids_in(&self, queue: &str) -> HashSet<String> {
        let mut ids = HashSet::new();
        while let Some(got) = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
            ids.insert(got.delivery.properties.message_id().clone().unwrap().as_str().to_owned());
        }
        ids
    }
}

fn short(number: usize) -> Message {
    Message { id: number.to_string(), body: "{}".into(), ..Message::default() }
}

/// The race of a shared channel: half of the messages go to a queue that refuses them, and every caller must be told of
/// its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_verdict_is_of_its_own_message() {
    const TASKS: usize = 64;
    const EACH: usize = 100;
    let url = rabbitmq().await.vhost().await;
    let shutdown = Shutdown::new();
    let publisher = Arc::new(routing_publisher(&url, &shutdown));
    up(publisher.as_ref()).await;
    let stranger = Stranger::at(&url).await;
    stranger.declare("taking", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    let reject = AMQPValue::LongString("reject-publish".into());
    stranger.declare("full", &[("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", reject)]).await;
    let route = |key: &str| Route { exchange: "".into(), routing_key: key.into(), mandatory: true };
    let filling = async {
        let filler = Message { id: "filler".to_owned(), ..Message::default() };
        while publisher.publish_to(route("full"), filler.clone()).await != Err(PublishError::Nacked) {}
    };
    timeout(PATIENCE, filling).await.expect("the queue is never full");
    let tasks = (0..TASKS).map(|task| {
        let publisher = Arc::clone(&publisher);
        tokio::spawn(async move {
            let mut taken = Vec::new();
            for number in task * EACH..(task + 1) * EACH {
                let message = short(number);
                let verdict = if number % 2 == 0 {
                    publisher.publish_to(route("taking"), message).await
                } else {
                    publisher.publish_to(route("full"), message).await
                };
                match (number % 2, verdict) {
                    (0, Ok(())) => taken.push(number.to_string()),
                    // A busy machine: no verdict is no wrong verdict.
                    (_, Err(PublishError::Late(_) | PublishError::Full)) | (1, Err(PublishError::Nacked)) => {}
                    (parity, verdict) => panic!("number {number} ({parity}) was told {verdict:?}"),
                }
            }
            taken
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut taken = HashSet::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    assert!(taken.len() > TASKS * EACH / 4, "only {} verdicts in time", taken.len());
    assert!(stranger.ids_in("taking").await.is_superset(&taken));
    assert_eq!(stranger.ids_in("full").await, HashSet::from(["filler".to_owned()]));
}

#[tokio::test]
async fn what_has_no_queue_is_kept_by_the_alternate_exchange_and_still_worked_on() {
    let ground = Ground::amqp(rabbitmq().await.vhost().await);
    let opened = ground.open().await;
    opened.publish(&message(0)).await;
    let stranger = Stranger::at(&ground.url).await;
    let unbound = stranger.channel.queue_unbind(
        "paybell.webhooks.v1".into(),
        "paybell.webhooks".into(),
        "webhook".into(),
        FieldTable::default(),
    );
    unbound.await.unwrap();
    opened.publisher.publish(message(1)).await.unwrap();
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 2).await;
    assert!(taken.contains_key(&message(1).id));
}

#[tokio::test]
async fn what_nothing_takes_is_refused_and_the_topology_is_put_right() {
    let ground = Ground::amqp(rabbitmq().await.vhost().await);
    let opened = ground.open().await;
    opened.publish(&message(0)).await;
    let stranger = Stranger::at(&ground.url).await;
    stranger.channel.queue_delete("paybell.webhooks.v1".into(), QueueDeleteOptions::default()).await.unwrap();
    stranger.channel.exchange_delete("paybell.unrouted".into(), ExchangeDeleteOptions::default()).await.unwrap();
    assert_eq!(opened.publisher.publish(message(1)).await, Err(PublishError::Unroutable));
    // Nobody does anything, and it heals: everything is declared again.
    opened.publish(&message(2)).await;
    let taken = take(opened.queue.consumer().as_mut(), 1).await;
    assert!(taken.contains_key(&message(2).id));
}

#[tokio::test]
async fn a_queue_that_is_not_ours_is_named_and_ends_nothing() {
    let url = rabbitmq().await.vhost().await;
    let stranger = Stranger::at(&url).await;
    stranger.declare("paybell.retry.5s.v1", &[("x-message-ttl", AMQPValue::LongInt(6_000))]).await;
    let shutdown = Shutdown::new();
    let publisher = routing_publisher(&url, &shutdown);
    let health = until(&mut publisher.health(), |health| matches!(health, Health::Down(_))).await;
    let Health::Down(reason) = health else { unreachable!() };
    assert!(reason.contains("paybell.retry.5s.v1") && reason.contains("inequivalent arg"), "{reason}");
    assert!(
        matches!(publisher.publish(message(0)).await, Err(PublishError::Closed(told)) if told.contains("paybell.retry.5s.v1"))
    );
    // Somebody puts it right.
    stranger.channel.queue_delete("paybell.retry.5s.v1".into(), QueueDeleteOptions::default()).await.unwrap();
    publish(&publisher, &message(0)).await;
    drop(publisher);
    assert!(shutdown.finish().await && !shutdown.has_crashed());
}

#[tokio::test]
async fn a_consumer_whose_queue_is_deleted_says_so_once_and_heals() {
    let ground = Ground::amqp(rabbitmq().await.vhost().await);
    let opened = ground.open().await;
    opened.publish(&message(0)).await;
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 1).await;
    let stranger = Stranger::at(&ground.url).await;
    stranger.channel.queue_delete("paybell.webhooks.v1".into(), QueueDeleteOptions::default()).await.unwrap();
    let error = timeout(PATIENCE, consumer.next_batch(10, Duration::ZERO)).await.expect("told").unwrap_err();
    assert!(matches!(error, ConsumeError::Closed(_)), "{error}");
    let stale = taken.values().map(|delivery| (delivery.tag, paybell_shared::queue::Disposition::Done)).collect();
    assert!(consumer.settle(stale).await.is_err());
    // The consumer declares the queue again; then the publisher's message has a way.
    let publishing = async {
        loop {
            let _ = opened.publisher.publish(message(1)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        taken = take(consumer.as_mut(), 1) => assert!(taken.contains_key(&message(1).id)),
        () = publishing => {}
    }
}

#[tokio::test]
async fn no_broker_is_no_reason_to_fail_or_to_stay() {
    let shutdown = Shutdown::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publisher = routing_publisher(&format!("amqp://guest:guest@127.0.0.1:{port}"), &shutdown);
    assert!(matches!(publisher.publish(message(0)).await, Err(PublishError::Closed(_))));
    assert_eq!(*publisher.health().borrow(), Health::Starting);
    drop(publisher);
    assert!(shutdown.finish().await && !shutdown.has_crashed());
}

/// Publishes from many tasks until told to end; returns what was acknowledged, and counts it.
fn load(
    publisher: &Arc<dyn Publisher>,
    end: &watch::Receiver<bool>,
    count: &Arc<watch::Sender<usize>>,
) -> Vec<tokio::task::JoinHandle<Vec<String>>> {
    let tasks = (0..16).map(|task| {
        let (publisher, end, count) = (Arc::clone(publisher), end.clone(), Arc::clone(count));
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in (task..).step_by(16) {
                if *end.borrow() {
                    break;
                }
                match publisher.publish(short(number)).await {
                    Ok(()) => {
                        acknowledged.push(number.to_string());
                        count.send_modify(|count| *count += 1);
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            acknowledged
        })
    });
    tasks.collect()
}

/// Killed under load, started, frozen, thawed, out of memory, relieved: what was acknowledged is there, errors come
/// within the budget, and everything heals by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_may_die_freeze_and_block() {
    let broker = RabbitMq::start_private().await;
    let ground = Ground::amqp(broker.vhost().await);
    let opened = ground.open().await;
    let mut health = opened.publisher.health();
    until(&mut health, |health| *health == Health::Up).await;
    let (end, ended) = watch::channel(false);
    let count = Arc::new(watch::Sender::new(0));
    let load = load(&opened.publisher, &ended, &count);
    let mut counted = count.subscribe();
    timeout(PATIENCE, counted.wait_for(|count| *count > 200)).await.expect("a load").unwrap();

    // Dead. The loss is noticed, and refused at once.
    broker.settle().await;
    broker.kill9();
    until(&mut health, |health| matches!(health, Health::Down(_))).await;
    assert!(matches!(opened.publisher.publish(message(0)).await, Err(PublishError::Closed(_))));
    broker.start_again().await;
    until(&mut health, |health| *health == Health::Up).await;
    end.send_replace(true);
    let mut acknowledged = HashSet::new();
    for task in load {
        acknowledged.extend(task.await.unwrap());
    }
    // Frozen: nobody answers, so callers hear from the budget, and what does not fit is refused.
    broker.stop_process();
    let flood = messages(4_000).into_iter().map(|message| {
        let publisher = Arc::clone(&opened.publisher);
        tokio::spawn(async move { publisher.publish(message).await })
    });
    let flood: Vec<_> = flood.collect();
    let mut told = HashSet::new();
    for task in flood {
        told.insert(task.await.unwrap().expect_err("the broker is frozen").reason());
    }
    assert!(told.contains("late") && told.contains("full"), "{told:?}");
    until(&mut health, |health| matches!(health, Health::Down(_))).await;
    broker.continue_process();
    until(&mut health, |health| *health == Health::Up).await;
    publish(opened.publisher.as_ref(), &short(1_000_000)).await;
    acknowledged.insert("1000000".to_owned());

    // Out of memory: the broker takes nothing, and says so when it is sent something.
    broker.ctl(&["set_vm_memory_high_watermark", "0"]).await;
    let blocked = async { while !matches!(opened.publisher.publish(short(2_000_000)).await, Err(PublishError::Blocked(_))) {} };
    timeout(PATIENCE, blocked).await.expect("never told that it is blocked");
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    until(&mut health, |health| *health == Health::Up).await;
    publish(opened.publisher.as_ref(), &short(3_000_000)).await;
    acknowledged.insert("3000000".to_owned());

    let mut consumer = opened.queue.consumer();
    let taking = async {
        while !acknowledged.is_empty() {
            for delivery in consumer.next_batch(500, Duration::from_millis(5)).await.unwrap() {
                acknowledged.remove(&delivery.message.id);
                let done = vec![(delivery.tag, paybell_shared::queue::Disposition::Done)];
                consumer.settle(done).await.unwrap();
            }
        }
    };
    assert!(timeout(PATIENCE, taking).await.is_ok(), "acknowledged and lost");
    drop(consumer);
    opened.close().await;
}

/// A broker that accepts and says nothing: the attempt is given up, and nothing of it stays behind.
#[tokio::test]
async fn a_handshake_that_takes_too_long_is_cut() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = Shutdown::new();
    let publisher = routing_publisher(&format!("amqp://guest:guest@{}", listener.local_addr().unwrap()), &shutdown);
    let (mut socket, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut heard = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut heard);
    timeout(PATIENCE, reading).await.expect("the socket stays open").unwrap();
    assert_eq!(heard, b"AMQP\x00\x00\x09\x01");
    assert_eq!(*publisher.health().borrow(), Health::Starting);
    drop(publisher);
    assert!(shutdown.finish().await);
}
