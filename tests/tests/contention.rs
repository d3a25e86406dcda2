//! Who meets at the same rows on PostgreSQL: parking and registration, transactions that lose, one hot order, the stop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use paybell_shared::clock::SystemClock;
use paybell_shared::event::{PaymentEvent, PaymentState, Reference, ReferenceKind};
use paybell_shared::queue::{ConsumeError, Consumer, Delivery, Disposition, Tag};
use paybell_shared::shutdown::Shutdown;
use paybell_tests::conformance::store::{Bench, Database, arrivals, captured, refund, registration, state};
use paybell_tests::servers;
use paybell_tests::shop::{configuration, webhook};
use paybell_tests::worker::{accounts, context, delivery, message};
use paybell_worker::consume::{self, BatchLimits};
use paybell_worker::inbox::Outcome;
use paybell_worker::order::OrderStatus;
use paybell_worker::store::{Applied, Registration, StoreError};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::sync::mpsc;

async fn bench() -> Bench {
    Bench::new(servers::postgres().await.database().await).await
}

fn pool(bench: &Bench) -> &PgPool {
    let Database::Postgres(pool) = &bench.database else { unreachable!("the bench is PostgreSQL's") };
    pool
}

/// Another session, in a transaction that has done this and stays open.
async fn holding(bench: &Bench, sql: &'static str) -> Transaction<'static, Postgres> {
    let mut transaction = pool(bench).begin().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut *transaction).await.unwrap();
    transaction
}

/// Waits until so many of the store's sessions wait for a lock of this kind (`pg_locks.locktype`).
async fn until_waiting(bench: &Bench, locktype: &str, sessions: i64) {
    let waiting = format!(
        "SELECT count(DISTINCT a.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE NOT l.granted AND l.locktype = '{locktype}' AND a.datname = current_database() AND a.application_name = 'paybell'"
    );
    while bench.count(&waiting).await < sessions {
        tokio::task::yield_now().await;
    }
}

/// An event that knows only this name, and what makes it known that the name is the order's.
struct Race {
    kind: ReferenceKind,
    event: PaymentEvent,
    leads: Result<Registration, PaymentEvent>,
}

fn races() -> Vec<Race> {
    use ReferenceKind::{Capture, Charge, Dispute, Order, Payment, Refund, Session};
    let with = |event: PaymentEvent, references: &[(ReferenceKind, &str)]| PaymentEvent {
        references: references.iter().map(|(kind, value)| Reference::new(*kind, *value)).collect(),
        ..event
    };
    let event = |kind, value| with(captured("evt_1", "pi_1", None, 4999), &[(kind, value)]);
    let by_put = [
        Race { kind: Order, event: event(Order, "order-1"), leads: Ok(registration("order-1", None, 4999)) },
        Race { kind: Payment, event: event(Payment, "pi_1"), leads: Ok(registration("order-1", Some("pi_1"), 4999)) },
    ];
    // A PUT names nothing else; another event leads these.
    let by_event = [Charge, Capture, Refund, Dispute, Session].map(|kind| Race {
        kind,
        event: event(kind, "x_1"),
        leads: Err(with(state("evt_0", "pi_1", None, PaymentState::Pending), &[(Order, "order-1"), (kind, "x_1")])),
    });
    by_put.into_iter().chain(by_event).collect()
}

impl Race {
    /// Orders must be registered, so that nothing but the race leads the event.
    async fn park(&self, bench: &Bench) -> Applied {
        bench.try_apply(&arrivals(std::slice::from_ref(&self.event)), &[], false).await.unwrap()
    }

    async fn lead(&self, bench: &Bench) -> Applied {
        match &self.leads {
            Ok(registration) => bench.try_apply(&[], std::slice::from_ref(registration), false).await.unwrap(),
            Err(event) => bench.try_apply(&arrivals(std::slice::from_ref(event)), &[], false).await.unwrap(),
        }
    }

    /// The first one is held after it has locked its references and before it has written anything, until the second one
    /// waits for it.
    async fn run(&self, parking_first: bool) {
        let bench = bench().await;
        if self.leads.is_err() {
            bench.try_apply(&[], &[registration("order-1", None, 4999)], false).await.unwrap();
        }
        // What the first one reads once it has its references: whoever leads one reads the order, and need not look who is
        // parked under what it has just made; whoever parks knows no order.
        let gate = if parking_first {
            "LOCK TABLE parkings IN ACCESS EXCLUSIVE MODE"
        } else {
            "LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"
        };
        let gate = holding(&bench, gate).await;
        let first = async { if parking_first { self.park(&bench).await } else { self.lead(&bench).await } };
        let second = async {
            until_waiting(&bench, "relation", 1).await;
            if parking_first { self.lead(&bench).await } else { self.park(&bench).await }
        };
        let release = async {
            until_waiting(&bench, "relation", 1).await;
            until_waiting(&bench, "transactionid", 1).await;
            gate.rollback().await.unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, release);
        let says = format!("{:?}, parking first: {parking_first}", self.kind);
        let (parked, led) = if parking_first { (first, second) } else { (second, first) };
        let outcome = parked.events.last().and_then(|(_, outcome)| *outcome);
        if parking_first {
            assert_eq!((outcome, led.woken), (Some(Outcome::Parked), 1), "{says}");
        } else {
            assert_eq!((outcome, led.woken), (Some(Outcome::Applied), 0), "{says}");
        }
        assert_eq!(bench.store.order("order-1").await.unwrap().unwrap().view.status, OrderStatus::Paid, "{says}");
        assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 0, "{says}");
        bench.check_invariants().await;
        bench.store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_parks_while_its_order_is_registered_is_woken() {
    for race in races() {
        race.run(true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_arrives_while_its_order_is_registered_is_applied() {
    for race in races() {
        race.run(false).await;
    }
}

const LOCK_ORDER: &str = "SELECT FROM orders WHERE id = 'order-1' FOR UPDATE";

/// 55P03: somebody holds the row for longer than a transaction waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_not_to_be_had_in_time_is_tried_again() {
    let bench = bench().await;
    bench.apply(&[state("evt_0", "pi_1", Some("order-1"), PaymentState::Pending)]).await;
    let holder = holding(&bench, LOCK_ORDER).await;
    let release = async {
        let began = "SELECT coalesce(max(extract(epoch FROM a.xact_start) * 1000000), 0)::bigint
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE NOT l.granted AND a.datname = current_database() AND a.application_name = 'paybell'";
        until_waiting(&bench, "transactionid", 1).await;
        let first = bench.count(began).await;
        // Another transaction waits: the first one gave up.
        while bench.count(began).await <= first {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        holder.rollback().await.unwrap();
    };
    let event = captured("evt_1", "pi_1", Some("order-1"), 4999);
    let (outcomes, ()) = tokio::join!(bench.apply(std::slice::from_ref(&event)), release);
    assert_eq!(outcomes, [("evt_1".to_owned(), Some(Outcome::Applied))]);
    bench.check_invariants().await;
}

/// 40P01: another program takes the same rows the other way round, and the server ends our transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_is_tried_again() {
    let bench = bench().await;
    for (event, payment, order) in [("evt_0", "pi_1", "order-1"), ("evt_00", "pi_2", "order-2")] {
        bench.apply(&[state(event, payment, Some(order), PaymentState::Pending)]).await;
    }
    // Never looks for deadlocks itself, so it is the store that is ended.
    let lock = "SET LOCAL deadlock_timeout = '1h'; SELECT FROM orders WHERE id = 'order-2' FOR UPDATE";
    let mut other = holding(&bench, lock).await;
    let circle = async {
        until_waiting(&bench, "transactionid", 1).await;
        sqlx::raw_sql(LOCK_ORDER).execute(&mut *other).await.unwrap();
        other.rollback().await.unwrap();
    };
    let events = [captured("evt_1", "pi_1", Some("order-1"), 4999), captured("evt_2", "pi_2", Some("order-2"), 4999)];
    let (outcomes, ()) = tokio::join!(bench.apply(&events), circle);
    assert_eq!(outcomes.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>(), [Some(Outcome::Applied); 2]);
    bench.check_invariants().await;
    bench.store.close().await;
    until_counted(&bench, "deadlocks").await;
}

/// 40001: a server whose default isolation is stricter than ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serialization_failure_is_tried_again() {
    let url = servers::postgres().await.database().await;
    let before = Bench::new(url.clone()).await;
    before.apply(&[state("evt_0", "pi_1", Some("order-1"), PaymentState::Pending)]).await;
    before
        .execute(
            "DO $$ BEGIN
                 EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', current_database());
             END $$",
        )
        .await;
    before.store.close().await;
    let bench = Bench::new(url).await;
    let other = holding(&bench, "UPDATE orders SET updated_at = updated_at").await;
    let release = async {
        until_waiting(&bench, "transactionid", 1).await;
        other.commit().await.unwrap();
    };
    let event = captured("evt_1", "pi_1", Some("order-1"), 4999);
    let (outcomes, ()) = tokio::join!(bench.apply(std::slice::from_ref(&event)), release);
    assert_eq!(outcomes, [("evt_1".to_owned(), Some(Outcome::Applied))]);
    bench.check_invariants().await;
    bench.store.close().await;
    until_counted(&bench, "xact_rollback").await;
}

/// Waits until the server's statistics count one: so it did happen. A session counts when it ends.
async fn until_counted(bench: &Bench, what: &str) {
    while bench.count(&format!("SELECT {what} FROM pg_stat_database WHERE datname = current_database()")).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// 10,000 events of one order among 2,000 of others, over four appliers: all end right, and nobody loses for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_order_stops_nobody() {
    const HOT: usize = 10_000;
    const OTHERS: usize = 2_000;
    let bench = bench().await;
    bench.apply(&[captured("evt_hot", "pi_hot", Some("hot"), 5_000_000)]).await;
    let mut events = Vec::with_capacity(HOT + OTHERS);
    for n in 0..HOT {
        // As a PSP repeats itself: a hundred refunds, each told a hundred times.
        let refund_id = format!("re_{}", n % 100);
        events.push(refund(&format!("evt_h{n}"), "pi_hot", &refund_id, 100));
        if n % (HOT / OTHERS) == 0 {
            let number = n / (HOT / OTHERS);
            events.push(captured(&format!("evt_o{number}"), &format!("pi_{number}"), Some(&format!("order-{number}")), 4999));
        }
    }
    let work: Vec<&[PaymentEvent]> = events.chunks(256).collect();
    let appliers = (0..4).map(|applier| {
        let (bench, mine) = (&bench, work.iter().skip(applier).step_by(4));
        async move {
            for batch in mine {
                let applied: Result<Applied, StoreError> = bench.try_apply(&arrivals(batch), &[], true).await;
                assert!(applied.is_ok(), "{applied:?}");
            }
        }
    });
    join_all(appliers).await;
    assert_eq!(bench.count("SELECT count(*) FROM events").await, i64::try_from(HOT + OTHERS + 1).unwrap());
    assert_eq!(bench.count("SELECT count(*) FROM orders WHERE status = 'paid'").await, i64::try_from(OTHERS).unwrap());
    let hot = bench.store.order("hot").await.unwrap().unwrap();
    assert_eq!((hot.view.captured, hot.view.refunded), (5_000_000, 10_000));
    bench.check_invariants().await;
}

/// The same through the worker's own loop: whoever is among them is settled after a bounded number of further deliveries, and all
/// of them before the hot order's last event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_order_in_the_queue_holds_up_nobody() {
    const HOT: usize = 10_000;
    const OTHERS: usize = 1_000;
    /// What RabbitMQ hands out before it waits for an answer.
    const BEHIND_MAX: u64 = 2_000;
    let bench = bench().await;
    let account = accounts(&configuration("sqlite:q", "sqlite:s", "memory:")).remove(0);
    let states = ["payment_intent.processing", "payment_intent.payment_failed", "payment_intent.succeeded"];
    let mut orders = Vec::with_capacity(HOT + OTHERS);
    for n in 0..HOT {
        orders.push((states[n % states.len()], "hot".to_owned()));
        if n % 5 == 0 && n / 5 < OTHERS {
            orders.push(("payment_intent.succeeded", format!("order-{n}")));
        }
    }
    let deliveries: VecDeque<Delivery> =
        (1..).zip(&orders).map(|(number, (state, order))| delivery(number, message(&account, &webhook(state, order)))).collect();
    let context = context(Arc::clone(&bench.store), Arc::new(SystemClock), vec![Arc::clone(&account)]).await;
    let (settled, mut settlements) = mpsc::unbounded_channel();
    let shutdown = Shutdown::new();
    let feed = Feed { unsettled: deliveries.len(), deliveries, handed_out: 0, settled, shutdown: shutdown.clone() };
    let limits = BatchLimits { deliveries_max: 64, linger: Duration::from_millis(5) };
    consume::run(Arc::new(context), Box::new(feed), limits, shutdown).await.unwrap();

    let (mut others, mut hot) = (0, 0);
    while let Some((number, handed_out, disposition)) = settlements.recv().await {
        assert_eq!(disposition, Disposition::Done, "{number}");
        if orders[usize::try_from(number - 1).unwrap()].1 == "hot" {
            hot += 1;
        } else {
            others += 1;
            assert!(handed_out - number <= BEHIND_MAX, "{number} was settled when {handed_out} were handed out");
            assert!(hot < HOT, "{number} was settled after the hot order was done");
        }
    }
    assert_eq!((hot, others), (HOT, OTHERS));
    assert_eq!(bench.count("SELECT count(*) FROM events").await, i64::try_from(HOT + OTHERS).unwrap());
    assert_eq!(bench.count("SELECT count(*) FROM orders WHERE status = 'paid'").await, i64::try_from(OTHERS + 1).unwrap());
    bench.check_invariants().await;
}

/// Delivers all, and tells of each when it was settled: how many had been handed out by then.
struct Feed {
    deliveries: VecDeque<Delivery>,
    handed_out: u64,
    unsettled: usize,
    settled: mpsc::UnboundedSender<(u64, u64, Disposition)>,
    shutdown: Shutdown,
}

#[async_trait]
impl Consumer for Feed {
    async fn next_batch(&mut self, max: usize, _: Duration) -> Result<Vec<Delivery>, ConsumeError> {
        if self.deliveries.is_empty() {
            std::future::pending::<()>().await;
        }
        let count = self.deliveries.len().min(max);
        self.handed_out += count as u64;
        Ok(self.deliveries.drain(..count).collect())
    }

    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError> {
        self.unsettled -= settlements.len();
        for (tag, disposition) in settlements {
            self.settled.send((tag.number, self.handed_out, disposition)).unwrap();
        }
        if self.unsettled == 0 {
            self.shutdown.stop();
        }
        Ok(())
    }

    async fn close(&mut self) {}
}

/// Delivers once, and tells what became of it.
struct Once {
    deliveries: VecDeque<Delivery>,
    settled: mpsc::UnboundedSender<Disposition>,
}

#[async_trait]
impl Consumer for Once {
    async fn next_batch(&mut self, _: usize, _: Duration) -> Result<Vec<Delivery>, ConsumeError> {
        match self.deliveries.pop_front() {
            Some(delivery) => Ok(vec![delivery]),
            None => std::future::pending().await,
        }
    }

    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError> {
        for (_, disposition) in settlements {
            self.settled.send(disposition).unwrap();
        }
        Ok(())
    }

    async fn close(&mut self) {}
}

/// A batch that fights for a lock would go on for the better part of a minute; the stop does not wait so long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_get_through_is_given_back_at_the_stop() {
    let bench = bench().await;
    let account = accounts(&configuration("sqlite:q", "sqlite:s", "memory:")).remove(0);
    bench.apply(&[state("evt_0", "pi_1", Some("order-1"), PaymentState::Pending)]).await;
    let holder = holding(&bench, LOCK_ORDER).await;
    let context = context(Arc::clone(&bench.store), Arc::new(SystemClock), vec![Arc::clone(&account)]).await;
    let (settled, mut dispositions) = mpsc::unbounded_channel();
    let event = delivery(1, message(&account, &webhook("payment_intent.succeeded", "order-1")));
    let consumer = Once { deliveries: [event].into(), settled };
    let shutdown = Shutdown::new();
    let limits = BatchLimits { deliveries_max: 10, linger: Duration::from_millis(5) };
    let running = tokio::spawn(consume::run(Arc::new(context), Box::new(consumer), limits, shutdown.clone()));
    until_waiting(&bench, "transactionid", 1).await;
    shutdown.stop();
    running.await.unwrap().unwrap();
    assert_eq!(dispositions.recv().await, Some(Disposition::Release));
    holder.rollback().await.unwrap();
    assert_eq!(bench.count("SELECT count(*) FROM events").await, 1);
    bench.check_invariants().await;
}

/// The database lets the worker in and then does not answer the first question: that is waiting, not dying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_at_the_start_is_waited_for() {
    let bench = bench().await;
    bench.execute("ALTER TABLE meta RENAME TO meta_away").await;
    let folder = servers::temporary_folder("silent").unwrap();
    let queue = format!("sqlite:{}", folder.join("queue.db").display());
    let text = configuration(&queue, &bench.url, "memory:");
    let mut config = paybell_tests::worker::config(&(text + "[worker]\nconsume = false\n"));
    config.api.listen = ([127, 0, 0, 1], 0).into();
    let shutdown = Shutdown::new();
    let queue = paybell_shared::queue::connect(config.queue_settings("test")).await.unwrap();
    let started = paybell_worker::start(&config, &queue, Arc::new(SystemClock), &shutdown).await.unwrap();
    let ready = || (started.check)().ready;
    assert!(!ready());
    bench.execute("ALTER TABLE meta_away RENAME TO meta").await;
    while !ready() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(shutdown.finish().await && !shutdown.has_crashed());
    std::fs::remove_dir_all(folder).unwrap();
}
