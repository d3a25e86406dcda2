//! Whatever arrives, in whatever order, however often, at whichever worker: each order comes to the PSP's truth, once.
//!
//! Real servers and processes; the reference is the ledger of the simulated PSP that wrote the history. The tests below the
//! first are named after what went wrong for users of other systems.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use paybell::simulator::Webhook;
use paybell::simulator::ledger::{Cancellation, DECLINES, DisputeState, Ledger, RefundState, Truth};
use paybell::simulator::stripe::Stripe;
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, Redis};
use paybell_tests::shop::{Shop, configuration, webhook};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Orders in the big test: five of each story.
const ORDERS: usize = 60;
/// Each webhook is sent so often, at least once and at most this often.
const COPIES_MAX: usize = 3;
/// Webhooks in flight at once.
const SENDERS: usize = 16;
/// Redis forgets everything so often.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// All orders come to the truth within this; compilers may run beside it.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Of every order.
const AMOUNT: i64 = 4999;

/// Writes one order's story into the ledger.
fn play(ledger: &mut Ledger, number: usize, id: &str, start: i64) {
    // Stripe's clock counts seconds: some steps fall into one.
    let mut at = start;
    let mut later = |seconds| {
        at += seconds;
        at
    };
    let payment = ledger.open(id, AMOUNT, "eur", number % 12 == 3, start);
    let payment = payment.as_str();
    match number % 12 {
        0 => {
            ledger.process(payment, later(0));
            ledger.capture(payment, AMOUNT, later(1));
        }
        1 => {
            ledger.decline(payment, DECLINES[0], later(1));
            ledger.decline(payment, DECLINES[1], later(1));
            ledger.capture(payment, AMOUNT, later(0));
        }
        2 => ledger.decline(payment, DECLINES[2], later(5)),
        3 => {
            ledger.authorize(payment, later(2));
            ledger.capture(payment, AMOUNT, later(60));
        }
        4 => ledger.cancel(payment, Cancellation::Abandoned, later(9)),
        5 => {
            ledger.capture(payment, AMOUNT, later(1));
            ledger.refund(payment, 1000, RefundState::Succeeded, later(30));
            ledger.refund(payment, 500, RefundState::Succeeded, later(30));
        }
        6 => {
            ledger.capture(payment, AMOUNT, later(1));
            ledger.refund(payment, AMOUNT, RefundState::Succeeded, later(30));
        }
        7 => {
            ledger.capture(payment, AMOUNT, later(1));
            let refund = ledger.refund(payment, 2000, RefundState::Pending, later(30));
            ledger.settle_refund(payment, refund, RefundState::Failed, later(90));
        }
        8 => {
            ledger.capture(payment, AMOUNT, later(1));
            let refund = ledger.refund(payment, 2000, RefundState::Pending, later(30));
            ledger.settle_refund(payment, refund, RefundState::Succeeded, later(90));
        }
        9 => {
            ledger.capture(payment, AMOUNT, later(1));
            let dispute = ledger.dispute(payment, AMOUNT, later(30));
            ledger.close_dispute(payment, dispute, DisputeState::Won, later(90));
        }
        10 => {
            ledger.capture(payment, AMOUNT, later(1));
            let dispute = ledger.dispute(payment, AMOUNT, later(30));
            ledger.close_dispute(payment, dispute, DisputeState::Lost, later(90));
        }
        _ => {
            ledger.authorize(payment, later(2));
            ledger.expire(payment, later(600));
        }
    }
}

/// What the API says of an order, as the ledger would.
fn shown(order: &Value) -> Option<(String, [i64; 3])> {
    let amount = |name: &str| order[name].as_i64();
    Some((order["status"].as_str()?.to_owned(), [amount("captured")?, amount("refunded")?, amount("disputed")?]))
}

fn told(truth: &Truth) -> (String, [i64; 3]) {
    (truth.status.to_owned(), [truth.captured, truth.refunded, truth.disputed])
}

async fn flush_until(redis: Arc<Redis>, done: Arc<AtomicBool>) -> usize {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut flushes = 0;
    while !done.load(Ordering::SeqCst) {
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
        flushes += 1;
        sleep(FLUSH_EVERY).await;
    }
    flushes
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_arrival_any_duplicates_any_worker_and_a_forgetful_redis_end_in_the_psps_truth() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut ledger = Ledger::new(&Stripe, false, rng.random());
    let now = SystemClock.now().seconds();
    let ids: Vec<String> = (0..ORDERS).map(|number| format!("order-{number}")).collect();
    for (number, id) in ids.iter().enumerate() {
        play(&mut ledger, number, id, now - 10_000);
    }
    let mut webhooks: Vec<Webhook> = Vec::new();
    for event in ledger.events() {
        webhooks.extend(std::iter::repeat_n(Webhook::from(event), rng.random_range(1..=COPIES_MAX)));
    }
    webhooks.shuffle(&mut rng);

    let redis = Arc::new(Redis::start_private().await);
    let store_url = servers::postgres().await.database().await;
    let configuration = configuration(&servers::rabbitmq().await.vhost().await, &store_url, &redis.url());
    let ingress = Service::ingress(&configuration).await;
    let workers = join_all((0..3).map(|_| Service::worker(&configuration))).await;
    let shop = Shop::of(&ingress, &workers[0]);

    let done = Arc::new(AtomicBool::new(false));
    let flusher = tokio::spawn(flush_until(Arc::clone(&redis), Arc::clone(&done)));
    let (early, late) = ids.split_at(ORDERS / 2);
    for id in early {
        assert_eq!(shop.register(id, AMOUNT).await.0, StatusCode::CREATED);
    }
    let (permits, mut sending) = (Arc::new(Semaphore::new(SENDERS)), JoinSet::new());
    for webhook in webhooks {
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        let shop = shop.clone();
        sending.spawn(async move {
            let status = shop.send(&webhook).await;
            drop(permit);
            status
        });
    }
    for id in late {
        assert!(shop.register(id, AMOUNT).await.0.is_success());
    }
    assert!(sending.join_all().await.iter().all(|status| *status == Some(StatusCode::OK)));

    let truths: BTreeMap<&str, (String, [i64; 3])> =
        ids.iter().map(|id| (id.as_str(), told(&ledger.truth(id).unwrap()))).collect();
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let (_, page) = shop.get("/v1/orders?limit=500").await;
        let orders = page["items"].as_array().unwrap();
        let differ: Vec<_> = orders
            .iter()
            .map(|order| (order, &truths[order["id"].as_str().unwrap()]))
            .filter(|(order, truth)| shown(order).as_ref() != Some(truth))
            .collect();
        if differ.is_empty() && orders.len() == ORDERS {
            break;
        }
        assert!(Instant::now() < deadline, "{} of {} orders differ from the ledger: {differ:#?}", differ.len(), orders.len());
        sleep(ASK_EVERY).await;
    }
    shop.until_counted("parked", 0).await;
    done.store(true, Ordering::SeqCst);
    assert!(flusher.await.unwrap() > 1, "Redis forgot more than once");

    let database = PgPool::connect(&store_url).await.unwrap();
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&database).await.unwrap() };
    let events = i64::try_from(ledger.events().len()).unwrap();
    // Answers of the PSP there are none: nothing is configured to ask.
    assert_eq!(count("SELECT count(*) FROM events").await, events, "each event is there once");
    assert_eq!(count("SELECT count(*) FROM events WHERE outcome NOT IN ('applied', 'superseded', 'ignored')").await, 0);
    assert_eq!(count("SELECT sum(count)::bigint FROM books").await, events, "the books count each once");
    assert_eq!(count("SELECT sum(version)::bigint FROM orders").await, count("SELECT count(*) FROM transitions").await);
    assert_eq!(count("SELECT count(*) - count(DISTINCT id) FROM transitions").await, 0);
    database.close().await;
}

/// An ingress and a worker on databases of their own, where an order must be registered.
struct Required {
    _ingress: Service,
    _worker: Service,
    shop: Shop,
    store_url: String,
}

async fn required() -> Required {
    let store_url = servers::postgres().await.database().await;
    let queue = servers::rabbitmq().await.vhost().await;
    let seen = servers::redis().await.database().await;
    let configuration = configuration(&queue, &store_url, &seen) + "\n[orders]\nregistration = \"required\"\n";
    let (ingress, worker) = tokio::join!(Service::ingress(&configuration), Service::worker(&configuration));
    let shop = Shop::of(&ingress, &worker);
    Required { _ingress: ingress, _worker: worker, shop, store_url }
}

/// The webhook came before the order's row was there, was answered 200 and forgotten; staff fixed each order by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_beats_the_order_pays_it_the_moment_it_is_registered() {
    let Required { shop, .. } = &required().await;
    for id in ["as-expected", "other-amount", "later-refunded"] {
        assert_eq!(shop.send(&webhook("payment_intent.succeeded", id)).await, Some(StatusCode::OK));
    }
    assert_eq!(shop.send(&webhook("charge.refunded", "later-refunded")).await, Some(StatusCode::OK));
    shop.until_counted("parked", 4).await;
    assert_eq!(shop.get("/v1/orders/as-expected").await.0, StatusCode::NOT_FOUND);
    // The answer to the registration itself says so: nobody has to wait or ask again.
    let (status, order) = shop.register("as-expected", AMOUNT).await;
    assert_eq!((status, &order["status"]), (StatusCode::CREATED, &json!("paid")));
    let (_, order) = shop.register("other-amount", AMOUNT - 1).await;
    assert_eq!((&order["status"], &order["review"]["reason"]), (&json!("under_review"), &json!("amount_mismatch")));
    let (_, order) = shop.register("later-refunded", AMOUNT).await;
    assert_eq!(order["status"], "refunded");
    shop.until_counted("parked", 0).await;
}

/// Three events at once made three identical rows, and the order was settled and its receipt sent three times.
#[tokio::test(flavor = "multi_thread")]
async fn three_webhooks_of_one_success_at_once_settle_the_order_once() {
    let Required { shop, store_url, .. } = &required().await;
    shop.register("once", AMOUNT).await;
    let kinds = ["payment_intent.succeeded", "charge.succeeded", "checkout.session.completed"];
    let webhooks: Vec<Webhook> = kinds.iter().map(|kind| webhook(kind, "once")).collect();
    // Each of the three three times, all at the same moment.
    let answers = join_all(webhooks.iter().cycle().take(9).map(|webhook| shop.send(webhook))).await;
    assert!(answers.iter().all(|answer| *answer == Some(StatusCode::OK)), "a duplicate is a success: {answers:?}");
    shop.until("once", "paid").await;
    let database = PgPool::connect(store_url).await.unwrap();
    let counted = "SELECT count(*) FROM events";
    let deadline = Instant::now() + SETTLE_LIMIT;
    while sqlx::query_scalar::<_, i64>(counted).fetch_one(&database).await.unwrap() < 3 {
        assert!(Instant::now() < deadline, "three events should be there");
        sleep(ASK_EVERY).await;
    }
    let paid = "SELECT count(*) FROM transitions WHERE order_id = 'once' AND to_status = 'paid' AND from_status <> 'paid'";
    assert_eq!(sqlx::query_scalar::<_, i64>(paid).fetch_one(&database).await.unwrap(), 1);
    database.close().await;
}

/// Webhook and the shop's own completion met, and one of them failed with a serialisation error or a 409.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_and_registrations_that_meet_all_succeed() {
    let Required { shop, .. } = &required().await;
    let rounds = (0..20).map(|number| async move {
        let id = format!("meet-{number}");
        let (succeeded, charge) = (webhook("payment_intent.succeeded", &id), webhook("charge.succeeded", &id));
        let (first, second, (put, _), (again, _)) =
            tokio::join!(shop.send(&succeeded), shop.send(&charge), shop.register(&id, AMOUNT), shop.register(&id, AMOUNT));
        assert_eq!((first, second), (Some(StatusCode::OK), Some(StatusCode::OK)));
        let mut answers = [put, again];
        answers.sort();
        assert_eq!(answers, [StatusCode::OK, StatusCode::CREATED], "one of the two created {id}");
        shop.until(&id, "paid").await;
    });
    join_all(rounds).await;
}

/// A repeated notification was an "invalid transition" and an error; one about an unknown payment was sent for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_repeated_or_about_nobody_is_a_success_and_changes_nothing() {
    let Required { shop, .. } = &required().await;
    shop.register("known", AMOUNT).await;
    let first = webhook("payment_intent.succeeded", "known");
    assert_eq!(shop.send(&first).await, Some(StatusCode::OK));
    let paid = shop.until("known", "paid").await;
    // The same event again, the same fact under another event's id, and events about an order that never comes.
    for webhook in [first, webhook("payment_intent.succeeded", "known"), webhook("payment_intent.succeeded", "stranger")] {
        assert_eq!(shop.send(&webhook).await, Some(StatusCode::OK));
    }
    shop.until_counted("parked", 1).await;
    shop.until_counted("superseded", 1).await;
    assert_eq!(shop.get("/v1/orders/known").await.1, paid);
}
