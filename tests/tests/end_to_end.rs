//! One webhook end to end, over real processes and real servers, and what faults make of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, RabbitMq};
use paybell_tests::shop::{self, STRIPE_SECRET, Shop, configuration, webhook};
use reqwest::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

struct Stack {
    ingress: Service,
    worker: Service,
    shop: Shop,
    store_url: String,
}

/// Ingress and worker on the given queue and Redis, with a database of their own.
async fn stack(queue: &str, seen: &str) -> Stack {
    let store_url = servers::postgres().await.database().await;
    let configuration = configuration(queue, &store_url, seen);
    let (ingress, worker) = tokio::join!(Service::ingress(&configuration), Service::worker(&configuration));
    let shop = Shop::of(&ingress, &worker);
    Stack { ingress, worker, shop, store_url }
}

async fn shared_stack() -> Stack {
    let queue = servers::rabbitmq().await.vhost().await;
    let seen = servers::redis().await.database().await;
    stack(&queue, &seen).await
}

/// How many events the database holds under each of these ids.
async fn stored_ids(store_url: &str) -> Vec<String> {
    let pool = sqlx::PgPool::connect(store_url).await.unwrap();
    let ids = sqlx::query_scalar("SELECT event_id FROM events").fetch_all(&pool).await.unwrap();
    pool.close().await;
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_webhook_pays_its_order_over_rabbitmq_redis_and_postgres() {
    let Stack { shop, .. } = &shared_stack().await;
    let (status, order) = shop.register("ord-1", 4999).await;
    assert_eq!((status, &order["status"]), (StatusCode::CREATED, &json!("pending")));
    assert_eq!(shop.send(&webhook("payment_intent.succeeded", "ord-1")).await, Some(StatusCode::OK));
    let order = shop.until("ord-1", "paid").await;
    assert_eq!(order["captured"], 4999);
    assert_eq!(order["expected"], json!({ "amount": 4999, "currency": "EUR" }));
    assert_eq!(shop.send(&webhook("charge.refunded", "ord-1")).await, Some(StatusCode::OK));
    shop.until("ord-1", "refunded").await;
    assert_eq!(shop.send(&webhook("charge.dispute.created", "ord-1")).await, Some(StatusCode::OK));
    shop.until("ord-1", "disputed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_does_the_same_on_sqlite() {
    let folder = servers::temporary_folder("embedded").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let configuration = configuration(&file("queue.db"), &file("store.db"), "memory:");
    let serve = Service::serve(&configuration).await;
    let shop = Shop::of(&serve, &serve);
    let early = webhook("payment_intent.succeeded", "ord-1");
    assert_eq!(shop.send(&early).await, Some(StatusCode::OK));
    shop.until("ord-1", "paid").await;
    // what was answered survives the end of the process
    assert_eq!(shop.send(&webhook("charge.refunded", "ord-1")).await, Some(StatusCode::OK));
    serve.kill9();
    serve.start_again().await;
    shop.until("ord-1", "refunded").await;
    assert_eq!(shop.send(&early).await, Some(StatusCode::OK), "a retry of Stripe's");
    shop.until_counted("applied", 2).await;
    serve.terminate();
    assert_eq!(serve.exit_status().await, 0);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_before_its_registration_is_judged_by_it() {
    let Stack { shop, .. } = &shared_stack().await;
    assert_eq!(shop.send(&webhook("payment_intent.succeeded", "early")).await, Some(StatusCode::OK));
    let order = shop.until("early", "paid").await;
    assert_eq!(order["expected"], json!(null));
    let (status, order) = shop.register("early", 5999).await;
    assert_eq!((status, &order["status"]), (StatusCode::OK, &json!("under_review")));
    assert_eq!(order["review"]["reason"], "amount_mismatch");
    let (status, problem) = shop.register("early", 4999).await;
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("Conflict")));
    // a refund that names no order waits for the payment that does
    let mut refund = webhook("refund.created", "late");
    let without_order = String::from_utf8(refund.body.to_vec()).unwrap().replace(r#""order_id":"late""#, r#""note":"none""#);
    refund.body = without_order.into();
    assert_eq!(shop.send(&refund).await, Some(StatusCode::OK));
    shop.until_counted("parked", 1).await;
    assert_eq!(shop.send(&webhook("payment_intent.succeeded", "late")).await, Some(StatusCode::OK));
    shop.until("late", "refunded").await;
    shop.until_counted("parked", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_webhooks_are_refused_and_leave_nothing() {
    let Stack { shop, store_url, .. } = &shared_stack().await;
    let webhook = webhook("payment_intent.succeeded", "forged");
    let (now, body) = (SystemClock.now().seconds(), webhook.body.clone());
    let altered = String::from_utf8(body.to_vec()).unwrap().replace("4999", "1");
    let unauthorized = Some(StatusCode::UNAUTHORIZED);
    assert_eq!(shop.send_signed(&webhook, "whsec_of_somebody_else", now, body.clone()).await, unauthorized);
    assert_eq!(shop.send_signed(&webhook, STRIPE_SECRET, now, altered.into()).await, unauthorized);
    assert_eq!(shop.send_signed(&webhook, STRIPE_SECRET, now - 400, body.clone()).await, unauthorized);
    assert_eq!(shop.send_signed(&webhook, STRIPE_SECRET, now + 400, body).await, unauthorized);
    // a genuine one behind them is the only one that arrives
    assert_eq!(shop.send(&shop::webhook("payment_intent.succeeded", "genuine")).await, Some(StatusCode::OK));
    shop.until("genuine", "paid").await;
    assert_eq!(shop.get("/v1/orders/forged").await.0, StatusCode::NOT_FOUND);
    assert_eq!(stored_ids(store_url).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_but_not_understood_is_kept() {
    let Stack { shop, .. } = &shared_stack().await;
    let deep = "[".repeat(100_000);
    let odd = [
        b"not json".to_vec(),
        vec![0xff, 0xfe],
        deep.into_bytes(),
        br#"{"id":"evt_x","type":"payment_intent.succeeded"}"#.to_vec(),
    ];
    for body in odd.clone() {
        let webhook = paybell::simulator::Webhook { id: String::new(), event_type: String::new(), body: body.into() };
        assert_eq!(shop.send(&webhook).await, Some(StatusCode::OK));
    }
    shop.until_counted("quarantined", i64::try_from(odd.len()).unwrap()).await;
}

/// Sends webhooks about orders of their own until told to stop; returns what was answered to each.
fn load(shop: &Shop, ended: &Arc<AtomicBool>, senders: usize) -> JoinSet<Vec<(String, Option<StatusCode>, Instant)>> {
    let mut tasks = JoinSet::new();
    for sender in 0..senders {
        let (shop, ended) = (shop.clone(), Arc::clone(ended));
        tasks.spawn(async move {
            let mut answers = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let webhook = webhook("payment_intent.succeeded", &format!("load-{sender}-{}", answers.len()));
                let status = shop.send(&webhook).await;
                answers.push((webhook.id, status, Instant::now()));
                // About 50 a second for each sender: enough to be in flight whenever something breaks.
                sleep(Duration::from_millis(20)).await;
            }
            answers
        });
    }
    tasks
}

/// Everything that was answered 2xx is in the database, once.
async fn assert_nothing_lost(stack: &Stack, answers: &[(String, Option<StatusCode>, Instant)]) {
    let accepted: HashSet<&String> =
        answers.iter().filter(|(_, status, _)| *status == Some(StatusCode::OK)).map(|(id, ..)| id).collect();
    assert!(accepted.len() > 10, "the load did not get through: {} of {}", accepted.len(), answers.len());
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let stored = stored_ids(&stack.store_url).await;
        let unique: HashSet<&String> = stored.iter().collect();
        assert_eq!(unique.len(), stored.len(), "an event is stored twice");
        let missing: Vec<_> = accepted.iter().filter(|id| !unique.contains(**id)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{} answered 2xx and lost, such as {:?}", missing.len(), missing[0]);
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_and_comes_back_costs_nothing_that_was_acknowledged() {
    let rabbitmq = RabbitMq::start_private().await;
    let queue = rabbitmq.vhost().await;
    let seen = servers::redis().await.database().await;
    let stack = stack(&queue, &seen).await;
    // Before the first webhook the queues are there, and RabbitMQ knows it.
    assert_eq!(stack.shop.send(&webhook("payment_intent.succeeded", "first")).await, Some(StatusCode::OK));
    stack.shop.until("first", "paid").await;
    rabbitmq.settle().await;

    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&stack.shop, &stop, 8);
    until_accepted(&stack.shop, "before").await;
    rabbitmq.kill9();
    // Refused honestly: not an error of the connection, not a 500, and not a 2xx.
    let refused = stack.shop.send(&webhook("payment_intent.succeeded", "during")).await;
    assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
    rabbitmq.start_again().await;
    until_accepted(&stack.shop, "after").await;
    stop.store(true, Ordering::Relaxed);
    let answers: Vec<_> = load.join_all().await.into_iter().flatten().collect();
    for (id, status, _) in &answers {
        let honest = matches!(*status, Some(StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE));
        assert!(honest, "{id} was answered {status:?}");
    }
    assert!(answers.iter().any(|(_, status, _)| *status == Some(StatusCode::SERVICE_UNAVAILABLE)));
    assert_nothing_lost(&stack, &answers).await;
}

async fn until_accepted(shop: &Shop, order_id: &str) {
    let deadline = Instant::now() + Duration::from_mins(1);
    let webhook = webhook("payment_intent.succeeded", order_id);
    while shop.send(&webhook).await != Some(StatusCode::OK) {
        assert!(Instant::now() < deadline, "webhooks are not accepted again");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_and_an_empty_redis_cost_nothing() {
    let rabbitmq = servers::rabbitmq().await.vhost().await;
    let redis = servers::redis().await.database().await;
    let stack = stack(&rabbitmq, &redis).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&stack.shop, &stop, 8);
    let mut connection = redis::Client::open(redis).unwrap().get_multiplexed_async_connection().await.unwrap();
    for round in 0..3 {
        until_accepted(&stack.shop, &format!("round-{round}")).await;
        stack.shop.until(&format!("round-{round}"), "paid").await;
        redis::cmd("FLUSHDB").query_async::<()>(&mut connection).await.unwrap();
        stack.worker.kill9();
        stack.worker.start_again().await;
    }
    stop.store(true, Ordering::Relaxed);
    let answers: Vec<_> = load.join_all().await.into_iter().flatten().collect();
    for (id, status, _) in &answers {
        assert_eq!(*status, Some(StatusCode::OK), "{id}: the ingress knows nothing of workers and Redis");
    }
    assert_nothing_lost(&stack, &answers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_that_is_told_to_stop_finishes_what_it_has() {
    let stack = shared_stack().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&stack.shop, &stop, 8);
    until_accepted(&stack.shop, "before").await;
    stack.ingress.terminate();
    assert_eq!(stack.ingress.exit_status().await, 0);
    stop.store(true, Ordering::Relaxed);
    let answers: Vec<_> = load.join_all().await.into_iter().flatten().collect();
    for (id, status, _) in &answers {
        // `None`: it came after the stop, and found nobody.
        assert!(matches!(*status, Some(StatusCode::OK) | None), "{id} was answered {status:?}");
    }
    stack.ingress.start_again().await;
    assert_nothing_lost(&stack, &answers).await;
    stack.worker.terminate();
    assert_eq!(stack.worker.exit_status().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_start_before_their_servers() {
    let rabbitmq = RabbitMq::start_private().await;
    let queue = rabbitmq.vhost().await;
    rabbitmq.settle().await;
    rabbitmq.kill9();
    let store_url = servers::postgres().await.database().await;
    // Nobody listens where Redis should be: only speed changes.
    let configuration = configuration(&queue, &store_url, &format!("redis://127.0.0.1:{}", servers::free_port()));
    let ingress = Service::start_unready("paybell-ingress", &[], &configuration, &[]);
    let worker = Service::worker(&configuration).await;
    let shop = Shop::of(&ingress, &worker);
    let deadline = Instant::now() + Duration::from_secs(30);
    while shop.send(&webhook("payment_intent.succeeded", "too-early")).await != Some(StatusCode::SERVICE_UNAVAILABLE) {
        assert!(Instant::now() < deadline, "the ingress does not answer without its broker");
        sleep(Duration::from_millis(50)).await;
    }
    let readiness = servers::http_client().get(format!("{}/readyz", ingress.ops_url())).send().await.unwrap();
    assert_eq!(readiness.status(), StatusCode::SERVICE_UNAVAILABLE);
    rabbitmq.start_again().await;
    ingress.ready().await;
    until_accepted(&shop, "in-time").await;
    shop.until("in-time", "paid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_stops_the_start_with_the_settings_name() {
    let cases = [
        ("paybell-ingress", "[ingress]\nlisten = \"nowhere\"\n", "listen"),
        ("paybell-ingress", "[[psp]]\nid = \"stripe\"\nmode = \"test\"\nsecrets = []\n", "secrets"),
        (
            "paybell-ingress",
            "[[psp]]\nid = \"stripe\"\nmode = \"test\"\nsecrets = [\"env:PAYBELL_NOT_THERE\"]\n",
            "PAYBELL_NOT_THERE",
        ),
        ("paybell-ingress", "[queue]\nurl = \"http://x\"\n", "[queue] url"),
        ("paybell-ingress", "[unknown]\n", "unknown"),
        ("paybell-worker", "[queue]\nurl = \"amqp://127.0.0.1:1\"\n", "[api] token"),
        ("paybell-worker", "[api]\ntoken = \"x\"\n[queue]\nurl = \"amqp://127.0.0.1:1\"\n[seen]\nurl = \"x:\"\n", "[seen] url"),
        ("paybell-worker", "[api]\ntoken = \"x\"\n[queue]\nurl = \"amqp://127.0.0.1:1\"\n[store]\nurl = \"x:\"\n", "[store] url"),
    ];
    for (binary, configuration, named) in cases {
        let service = Service::start_unready(binary, &[], configuration, &[]);
        let status = service.exit_status().await;
        assert_eq!(status, 2, "{binary} with {configuration:?} ended with {status}: {}", service.log());
        assert!(service.log().contains(named), "{binary} with {configuration:?} does not name {named:?}: {}", service.log());
    }
}
