//! What both backends of the queue promise.
//!
//! Each behaviour is a function here; [`queue_conformance!`](crate::queue_conformance) makes each a test of a backend. Nothing is
//! promised about order, so everything is compared as a set.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use paybell_shared::queue::{self, Consumer, Delivery, Disposition, Message, Publisher, Queue, QueueSettings, REASON_HEADER};
use paybell_shared::shutdown::Shutdown;
use tokio::time::{Instant, timeout};

/// Long enough for a broker on a busy machine; a test that meets it has failed.
pub const PATIENCE: Duration = Duration::from_mins(1);

const LINGER: Duration = Duration::from_millis(20);

/// The retry step of the suite.
pub const STEP: Duration = Duration::from_secs(1);

/// Where a queue is, for opening it again and again.
pub struct Ground {
    pub url: String,
    folder: Option<PathBuf>,
}

impl Ground {
    #[must_use]
    pub fn amqp(url: String) -> Self {
        Self { url, folder: None }
    }

    /// A new file in a folder that does not exist yet.
    #[must_use]
    pub fn sqlite() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("paybell-queue-{}-{number}", std::process::id()));
        Self { url: format!("sqlite:{}/deeper/queue.db", folder.display()), folder: Some(folder) }
    }

    /// # Panics
    /// The queue cannot be opened.
    pub async fn open(&self) -> Opened {
        let settings = QueueSettings {
            url: self.url.clone(),
            publish_budget: Duration::from_secs(2),
            retry_steps: vec![STEP],
            connection_name: "test".to_owned(),
        };
        let queue = queue::connect(settings).await.expect("a queue");
        let shutdown = Shutdown::new();
        let publisher = queue.publisher(&shutdown);
        Opened { queue, publisher, shutdown }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A queue in use, as one process has it.
pub struct Opened {
    pub queue: Queue,
    pub publisher: Arc<dyn Publisher>,
    pub shutdown: Shutdown,
}

impl Opened {
    /// Publishes until it is durable, as a PSP would.
    ///
    /// # Panics
    /// It never is.
    pub async fn publish(&self, message: &Message) {
        publish(self.publisher.as_ref(), message).await;
    }

    /// Ends as a process does.
    ///
    /// # Panics
    /// It does not end.
    pub async fn close(self) {
        let Self { queue, publisher, shutdown } = self;
        drop((queue, publisher));
        assert!(shutdown.finish().await, "the queue's tasks did not end");
        assert!(!shutdown.has_crashed());
    }
}

/// Publishes until it is durable.
///
/// # Panics
/// It never is.
pub async fn publish(publisher: &dyn Publisher, message: &Message) {
    let until = Instant::now() + PATIENCE;
    while let Err(error) = publisher.publish(message.clone()).await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A message with everything in it that could be changed on the way.
#[must_use]
pub fn message(number: usize) -> Message {
    let body: Vec<u8> = (0..=255).chain(number.to_be_bytes()).collect();
    Message {
        id: format!("/psp/stripe/default evt_{number} \"é\0%"),
        content_type: Some(if number.is_multiple_of(2) { "application/json; charset=utf-8".to_owned() } else { "x".repeat(300) }),
        headers: vec![
            ("ce-id".into(), format!("evt_{number}")),
            ("h-0-signature".into(), "t=1,v1=ö\u{1F514}\r\n".to_owned()),
            ("h-1-empty".into(), String::new()),
        ],
        body: Bytes::from(body),
    }
}

#[must_use]
pub fn messages(count: usize) -> Vec<Message> {
    (0..count).map(message).collect()
}

/// Takes until `count` messages were seen, by id; what comes twice counts once. Errors of a connection that is lost are
/// part of life.
///
/// # Panics
/// They do not come.
pub async fn take(consumer: &mut dyn Consumer, count: usize) -> BTreeMap<String, Delivery> {
    let mut taken = BTreeMap::new();
    let taking = async {
        while taken.len() < count {
            match consumer.next_batch(100, LINGER).await {
                Ok(batch) => taken.extend(batch.into_iter().map(|delivery| (delivery.message.id.clone(), delivery))),
                // The tags of before are of no use any more.
                Err(_) => taken.clear(),
            }
        }
    };
    let finished = timeout(PATIENCE, taking).await;
    assert!(finished.is_ok(), "only {} of {count} came", taken.len());
    taken
}

async fn settle_all(consumer: &mut dyn Consumer, taken: &BTreeMap<String, Delivery>, disposition: &Disposition) {
    let settlements = taken.values().map(|delivery| (delivery.tag, disposition.clone())).collect();
    consumer.settle(settlements).await.expect("settled");
}

fn assert_same(taken: &BTreeMap<String, Delivery>, published: &[Message]) {
    assert_eq!(taken.len(), published.len());
    for message in published {
        let mut delivered = taken[&message.id].message.clone();
        // Headers are a table: no order.
        delivered.headers.sort();
        let mut message = message.clone();
        message.headers.sort();
        assert_eq!(delivered, message);
    }
}

/// # Panics
/// It does not hold.
pub async fn what_is_acknowledged_is_there_after_a_restart(ground: Ground) {
    let published = messages(50);
    let opened = ground.open().await;
    for message in &published {
        opened.publish(message).await;
    }
    opened.close().await;

    let opened = ground.open().await;
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 50).await;
    assert_same(&taken, &published);
    assert!(taken.values().all(|delivery| delivery.attempt == 1 && !delivery.redelivered));
    settle_all(consumer.as_mut(), &taken, &Disposition::Done).await;
    consumer.close().await;

    // What is done is gone: after another restart only the new one comes.
    drop(consumer);
    opened.close().await;
    let opened = ground.open().await;
    opened.publish(&message(50)).await;
    let taken = take(opened.queue.consumer().as_mut(), 1).await;
    assert_same(&taken, &[message(50)]);
}

/// # Panics
/// It does not hold.
pub async fn what_a_dead_consumer_had_comes_again(ground: Ground) {
    let opened = ground.open().await;
    for message in messages(10) {
        opened.publish(&message).await;
    }
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 10).await;
    let done = &taken[&message(3).id];
    consumer.settle(vec![(done.tag, Disposition::Done)]).await.expect("settled");
    drop(consumer);

    let mut expected = messages(10);
    expected.remove(3);
    let taken = take(opened.queue.consumer().as_mut(), 9).await;
    assert_same(&taken, &expected);
    assert!(taken.values().all(|delivery| delivery.redelivered && delivery.attempt == 1));
}

/// # Panics
/// It does not hold.
pub async fn a_retry_comes_back_older_and_not_before_its_time_and_then_dies(ground: Ground) {
    let opened = ground.open().await;
    opened.publish(&message(1)).await;
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 1).await;
    let before = Instant::now();
    settle_all(consumer.as_mut(), &taken, &Disposition::Retry { reason: "not yet".to_owned() }).await;
    let taken = take(consumer.as_mut(), 1).await;
    assert!(before.elapsed() >= STEP, "it came before its time");
    assert_same(&taken, &[message(1)]);
    assert_eq!(taken[&message(1).id].attempt, 2);
    assert!(!taken[&message(1).id].redelivered);

    // The ladder has one step.
    settle_all(consumer.as_mut(), &taken, &Disposition::Retry { reason: "never".to_owned() }).await;
    let dead = take(opened.queue.dead_letters().as_mut(), 1).await;
    let dead = &dead[&message(1).id];
    assert_eq!(dead.message.header(REASON_HEADER), Some("attempts spent: never"));
    assert_eq!((dead.attempt, &dead.message.body), (2, &message(1).body));
}

/// # Panics
/// It does not hold.
pub async fn a_dead_letter_keeps_its_bytes_and_its_reason(ground: Ground) {
    let opened = ground.open().await;
    let mut consumer = opened.queue.consumer();
    let mut graves = opened.queue.dead_letters();
    for number in 0..2 {
        opened.publish(&message(number)).await;
        let taken = take(consumer.as_mut(), 1).await;
        let reason = format!("{}é", "no ".repeat(400));
        settle_all(consumer.as_mut(), &taken, &Disposition::DeadLetter { reason: reason.clone() }).await;

        // Only the newest: the one before was settled.
        let mut dead = take(graves.as_mut(), 1).await;
        let delivery = dead.get_mut(&message(number).id).expect("the dead letter");
        let told = delivery.message.header(REASON_HEADER).expect("a reason").to_owned();
        assert!(told.len() > 400 && reason.starts_with(&told));
        delivery.message.headers.retain(|(name, _)| name != REASON_HEADER);
        assert_same(&dead, &[message(number)]);
        // Nothing comes after death.
        settle_all(graves.as_mut(), &dead, &Disposition::Retry { reason: "again".to_owned() }).await;
        let dead = take(graves.as_mut(), 1).await;
        assert!(dead[&message(number).id].redelivered);
        settle_all(graves.as_mut(), &dead, &Disposition::Done).await;
    }
}

/// # Panics
/// It does not hold.
pub async fn what_is_released_comes_back_as_it_was(ground: Ground) {
    let opened = ground.open().await;
    for message in messages(3) {
        opened.publish(&message).await;
    }
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 3).await;
    settle_all(consumer.as_mut(), &taken, &Disposition::Release).await;
    let taken = take(consumer.as_mut(), 3).await;
    assert_same(&taken, &messages(3));
    assert!(taken.values().all(|delivery| delivery.attempt == 1 && delivery.redelivered));
}

/// # Panics
/// It does not hold.
pub async fn a_stale_tag_settles_nothing(ground: Ground) {
    let opened = ground.open().await;
    for message in messages(3) {
        opened.publish(&message).await;
    }
    let mut consumer = opened.queue.consumer();
    let stale = take(consumer.as_mut(), 3).await;
    consumer.close().await;
    let fresh = take(consumer.as_mut(), 3).await;
    for disposition in [Disposition::Done, Disposition::Release, Disposition::DeadLetter { reason: "stale".to_owned() }] {
        settle_all(consumer.as_mut(), &stale, &disposition).await;
    }
    // A tag is spent by its first settlement.
    let spent = &fresh[&message(0).id];
    consumer.settle(vec![(spent.tag, Disposition::Done)]).await.expect("settled");
    consumer.settle(vec![(spent.tag, Disposition::DeadLetter { reason: "spent".to_owned() })]).await.expect("ignored");
    drop(consumer);
    let taken = take(opened.queue.consumer().as_mut(), 2).await;
    assert_same(&taken, &[message(1), message(2)]);

    // No dead letter was made: the first to come is this one.
    opened.publish(&message(9)).await;
    let mut consumer = opened.queue.consumer();
    let taken = take(consumer.as_mut(), 3).await;
    let last = vec![(taken[&message(9).id].tag, Disposition::DeadLetter { reason: "last".to_owned() })];
    consumer.settle(last).await.expect("settled");
    let dead = take(opened.queue.dead_letters().as_mut(), 1).await;
    assert!(dead.contains_key(&message(9).id));
}

/// # Panics
/// It does not hold.
pub async fn a_caller_that_gives_up_waiting_loses_nothing(ground: Ground) {
    const COUNT: usize = 300;
    let opened = ground.open().await;
    let publisher = Arc::clone(&opened.publisher);
    let publishing = tokio::spawn(async move {
        for message in messages(COUNT) {
            publish(publisher.as_ref(), &message).await;
        }
    });
    let mut consumer = opened.queue.consumer();
    let mut seen = HashSet::new();
    let mut patience = (1..=50).cycle();
    let taking = async {
        while seen.len() < COUNT {
            let moment = Duration::from_micros(patience.next().unwrap_or(1) * 100);
            let Ok(batch) = timeout(moment, consumer.next_batch(7, LINGER / 10)).await else { continue };
            let batch = batch.expect("a batch");
            assert!(!batch.is_empty() && batch.len() <= 7);
            for delivery in batch {
                assert!(!delivery.redelivered);
                assert!(seen.insert(delivery.message.id), "it came twice");
            }
        }
    };
    assert!(timeout(PATIENCE, taking).await.is_ok(), "some never came");
    publishing.await.expect("published");
}

/// # Panics
/// It does not hold.
pub async fn many_publish_at_once(ground: Ground) {
    const COUNT: usize = 1_000;
    let opened = ground.open().await;
    opened.publish(&message(0)).await;
    let publishing = messages(COUNT).into_iter().map(|message| {
        let publisher = Arc::clone(&opened.publisher);
        tokio::spawn(async move { publisher.publish(message.clone()).await.map(|()| message) })
    });
    let publishing: Vec<_> = publishing.collect();
    let mut published = Vec::new();
    for task in publishing {
        published.extend(task.await.expect("no panic"));
    }
    assert!(published.len() > COUNT / 2, "only {} of {COUNT} were taken", published.len());
    let mut consumer = opened.queue.consumer();
    let mut missing: HashSet<String> = published.into_iter().map(|message| message.id).collect();
    let taking = async {
        while !missing.is_empty() {
            let batch = consumer.next_batch(256, LINGER).await.expect("a batch");
            for delivery in &batch {
                missing.remove(&delivery.message.id);
            }
            let done = batch.into_iter().map(|delivery| (delivery.tag, Disposition::Done)).collect();
            consumer.settle(done).await.expect("settled");
        }
    };
    assert!(timeout(PATIENCE, taking).await.is_ok(), "what was acknowledged never came");
}

/// Makes each behaviour a test; `$ground` is an expression that makes a new [`Ground`].
#[macro_export]
macro_rules! queue_conformance {
    ($ground:expr) => {
        $crate::queue_conformance! { @each $ground;
            what_is_acknowledged_is_there_after_a_restart
            what_a_dead_consumer_had_comes_again
            a_retry_comes_back_older_and_not_before_its_time_and_then_dies
            a_dead_letter_keeps_its_bytes_and_its_reason
            what_is_released_comes_back_as_it_was
            a_stale_tag_settles_nothing
            a_caller_that_gives_up_waiting_loses_nothing
            many_publish_at_once
        }
    };
    (@each $ground:expr; $($behaviour:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                $crate::conformance::queue::$behaviour($ground).await;
            }
        )*
    };
}
