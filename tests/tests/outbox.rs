//! Who is told of an order's changes: over RabbitMQ and by signed requests, whatever fails meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use paybell_shared::clock::{Clock as _, ManualClock, SystemClock};
use paybell_shared::config::Subscriber;
use paybell_tests::conformance::store::Bench;
use paybell_tests::receiver::{Received, Receiver, status};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, RabbitMq};
use paybell_tests::shop::{Shop, configuration, webhook};
use paybell_tests::worker::{accounts, config, context, register};
use paybell_worker::consume::Context;
use paybell_worker::notify::Notifier;
use paybell_worker::outbox::{RETRIES, Relay, StepReport, step};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

const SECRETS: [&str; 2] = ["whsec_dGhlLXRlc3RzLW93bi1zZWNyZXQtMDEy", "whsec_dGhlLXRlc3RzLW5leHQtc2VjcmV0LTM0"];
/// Not a promise about speed: a bound on a test that would hang.
const PATIENCE: Duration = Duration::from_mins(2);
const ASK_EVERY: Duration = Duration::from_millis(50);

fn subscriber(url: &str) -> String {
    format!("[[subscriber]]\nurl = {url:?}\nsecrets = {SECRETS:?}\nallow_private = true\n")
}

// ---------------------------------------------------------------------------------------------------- whole processes

/// Another service, which wants to know of orders.
struct Listener {
    _connection: lapin::Connection,
    channel: lapin::Channel,
}

const QUEUE: &str = "other-service";

impl Listener {
    /// Binds before anybody tells. The exchange is declared as the services do.
    async fn at(url: &str, key: &str) -> Self {
        let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(QUEUE.into(), "paybell.orders".into(), key.into(), bind, FieldTable::default()).await.unwrap();
        Self { _connection: connection, channel }
    }

    async fn take(&self) -> Option<Heard> {
        let got = self.channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.unwrap()?;
        let delivery = got.delivery;
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let text = |value: &lapin::types::AMQPValue| {
            String::from_utf8(value.as_long_string().expect("a text").as_bytes().to_vec()).unwrap()
        };
        let headers = delivery.properties.headers().as_ref().unwrap().inner();
        Some(Heard {
            key: delivery.routing_key.to_string(),
            message_id: delivery.properties.message_id().as_ref().unwrap().to_string(),
            content_type: delivery.properties.content_type().as_ref().unwrap().to_string(),
            persistent: *delivery.properties.delivery_mode() == Some(2),
            headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            order: serde_json::from_slice(&delivery.data).unwrap(),
        })
    }

    /// Waits for so many.
    async fn until(&self, count: usize) -> Vec<Heard> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while heard.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} messages came", heard.len());
            match self.take().await {
                Some(one) => heard.push(one),
                None => sleep(ASK_EVERY).await,
            }
        }
        heard
    }
}

#[derive(Debug)]
struct Heard {
    key: String,
    message_id: String,
    content_type: String,
    persistent: bool,
    headers: HashMap<String, String>,
    order: Value,
}

/// What the database committed: by order, each change's version, id, status before and after.
async fn committed(pool: &PgPool) -> BTreeMap<String, Vec<Value>> {
    let rows: Vec<(String, i64, String, Option<String>, String, String)> = sqlx::query_as(
        "SELECT order_id, version, id::text, from_status, to_status, view::text FROM transitions ORDER BY order_id, version",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut changes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (order, version, id, from, status, view) in rows {
        let view: Value = serde_json::from_str(&view).unwrap();
        let change = json!({
            "id": id, "version": version, "from": from, "status": status,
            "captured": view["captured"], "refunded": view["refunded"], "disputed": view["disputed"],
        });
        changes.entry(order).or_default().push(change);
    }
    changes
}

/// The same of what was told, in the order of telling.
fn told<'a>(told: impl IntoIterator<Item = (&'a str, &'a Value)>) -> BTreeMap<String, Vec<Value>> {
    let mut changes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (id, order) in told {
        let change = json!({
            "id": id, "version": order["version"], "from": order["from"], "status": order["status"],
            "captured": order["captured"], "refunded": order["refunded"], "disputed": order["disputed"],
        });
        changes.entry(order["id"].as_str().unwrap().to_owned()).or_default().push(change);
    }
    changes
}

async fn until_nothing_waits(pool: &PgPool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(pool).await.unwrap();
        if waiting == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{waiting} changes still wait");
        sleep(ASK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_told_of_each_change_once_and_in_order_whatever_comes_in() {
    const ORDERS: usize = 12;
    let (queue, seen) = (servers::rabbitmq().await.vhost().await, servers::redis().await.database().await);
    let store_url = servers::postgres().await.database().await;
    let receiver = Receiver::willing().await;
    let configuration = configuration(&queue, &store_url, &seen) + &subscriber(&receiver.url());
    let (ingress, worker, second) =
        tokio::join!(Service::ingress(&configuration), Service::worker(&configuration), Service::worker(&configuration));
    let listener = Listener::at(&queue, "order.#").await;
    let shop = Shop::of(&ingress, &worker);

    // A declined attempt, a payment, refund and dispute: each three times, in any order, to either worker.
    let mut webhooks = Vec::new();
    for order in 0..ORDERS {
        let types = ["payment_intent.payment_failed", "payment_intent.succeeded", "charge.refunded", "charge.dispute.created"];
        let story = types.map(|event_type| webhook(event_type, &format!("ord-{order}")));
        webhooks.extend([story.clone(), story.clone(), story].concat());
    }
    webhooks.shuffle(&mut StdRng::seed_from_u64(4));
    for (n, webhook) in webhooks.iter().enumerate() {
        if n % 12 == 0 {
            shop.register(&format!("ord-{}", n / 12), 4999).await;
        }
        assert_eq!(shop.send(webhook).await, Some(StatusCode::OK));
    }
    for order in 0..ORDERS {
        shop.until(&format!("ord-{order}"), "disputed").await;
    }
    shop.until_counted("applied", i64::try_from(ORDERS * 4).unwrap()).await;
    let pool = PgPool::connect(&store_url).await.unwrap();
    until_nothing_waits(&pool).await;
    let committed = committed(&pool).await;
    let changes: usize = committed.values().map(Vec::len).sum();
    assert!(committed.len() == ORDERS && changes > 2 * ORDERS, "{changes} changes of {} orders", committed.len());

    let requests = receiver.received();
    let bodies: Vec<Value> = requests.iter().map(Received::json).collect();
    let ids = requests.iter().map(|request| request.header("webhook-id"));
    assert_eq!(told(ids.zip(bodies.iter().map(|body| &body["data"]))), committed, "the subscriber");
    for body in &bodies {
        assert_eq!(body["type"], format!("order.{}", body["data"]["status"].as_str().unwrap()));
        assert_eq!(body["timestamp"], body["data"]["updated_at"]);
    }

    let heard = listener.until(changes).await;
    assert_eq!(told(heard.iter().map(|heard| (&*heard.message_id, &heard.order))), committed, "the exchange");
    assert!(listener.take().await.is_none(), "more was told than there was");
    for Heard { key, message_id, content_type, persistent, headers, order } in &heard {
        let header = |name: &str| headers.get(name).map_or("", String::as_str);
        assert_eq!(*key, format!("order.{}", order["status"].as_str().unwrap()));
        assert_eq!((header("ce-type"), header("ce-id")), (&**key, &**message_id));
        assert_eq!((header("ce-specversion"), header("ce-source")), ("1.0", "/paybell/orders"));
        assert_eq!((json!(header("ce-subject")), json!(header("ce-time"))), (order["id"].clone(), order["updated_at"].clone()));
        assert_eq!((&**content_type, *persistent), ("application/json", true));
    }
    // In the form of the API: what it says of an order is what was told last, but for `from`.
    for order in 0..ORDERS {
        let (_, mut shown) = shop.get(&format!("/v1/orders/ord-{order}")).await;
        let last = bodies.iter().rfind(|body| body["data"]["id"] == shown["id"]).unwrap();
        shown["from"] = last["data"]["from"].clone();
        shown["updated_at"] = last["data"]["updated_at"].clone();
        assert_eq!(last["data"], shown);
    }
    let mut counted = 0.0;
    for service in [worker, second] {
        counted += told_by(&service, "amqp").await;
        let log = service.log();
        for private in ["nobodys-business", "whsec_"] {
            assert!(!log.contains(private), "{private:?} is in the log");
        }
    }
    let notices: i64 = sqlx::query_scalar("SELECT count(*) FROM notices WHERE outcome = 'told'").fetch_one(&pool).await.unwrap();
    assert_eq!(notices, i64::try_from(2 * changes).unwrap());
    assert_eq!(counted.to_string(), changes.to_string(), "the metric");
}

/// What the worker counts as told to a destination.
async fn told_by(worker: &Service, destination: &str) -> f64 {
    let metrics = servers::http_client().get(format!("{}/metrics", worker.ops_url())).send().await.unwrap().text().await.unwrap();
    let line = format!("paybell_notices_total{{destination=\"{destination}\",outcome=\"told\"}} ");
    metrics.lines().find_map(|found| found.strip_prefix(&line)).map_or(0.0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_only_serves_the_api_leaves_telling_to_others() {
    let queue = servers::rabbitmq().await.vhost().await;
    let store_url = servers::postgres().await.database().await;
    let configuration = configuration(&queue, &store_url, "memory:");
    let api = Service::start("paybell-worker", &[], &configuration, &[("PAYBELL_WORKER_CONSUME", "false")]).await;
    Shop::of(&api, &api).register("ord-1", 4999).await;
    let pool = PgPool::connect(&store_url).await.unwrap();
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&pool).await.unwrap();
    assert_eq!(waiting, 1);
    let worker = Service::worker(&configuration).await;
    until_nothing_waits(&pool).await;
    assert_eq!((told_by(&api, "amqp").await.to_string(), told_by(&worker, "amqp").await.to_string()), ("0".into(), "1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_telling_and_noting_tells_again_under_the_same_id() {
    let folder = servers::temporary_folder("killed").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    // The first request is never answered: whoever sent it cannot note it.
    let receiver = Receiver::start(|number| (number > 0).then(|| status(204))).await;
    let configuration = configuration(&file("queue.db"), &file("store.db"), "memory:") + &subscriber(&receiver.url());
    let serve = Service::serve(&configuration).await;
    let shop = Shop::of(&serve, &serve);
    shop.register("ord-1", 4999).await;
    receiver.until(1).await;
    serve.kill9();
    serve.start_again().await;
    assert_eq!(shop.send(&webhook("payment_intent.succeeded", "ord-1")).await, Some(StatusCode::OK));
    let requests = receiver.until(3).await;
    let [first, again, next] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(first.header("webhook-id"), again.header("webhook-id"));
    assert_eq!(first.body, again.body);
    assert_eq!((&again.json()["data"]["version"], &next.json()["data"]["version"]), (&json!(1), &json!(2)));
    serve.terminate();
    assert_eq!(serve.exit_status().await, 0);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_the_broker_is_down_is_told_when_it_is_back() {
    let rabbitmq = RabbitMq::start_private().await;
    let queue = rabbitmq.vhost().await;
    let store_url = servers::postgres().await.database().await;
    let worker = Service::worker(&configuration(&queue, &store_url, "memory:")).await;
    let shop = Shop::of(&worker, &worker);
    shop.register("before", 4999).await;
    let pool = PgPool::connect(&store_url).await.unwrap();
    until_nothing_waits(&pool).await;
    // Nobody listened: that is no failure. From here on somebody does.
    let listener = Listener::at(&queue, "order.pending").await;
    rabbitmq.settle().await;
    drop(listener);
    rabbitmq.kill9();
    for n in 0..20 {
        assert_eq!(shop.register(&format!("during-{n}"), 4999).await.0, StatusCode::CREATED);
    }
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&pool).await.unwrap();
    assert_eq!(waiting, 20);
    rabbitmq.start_again().await;
    until_nothing_waits(&pool).await;
    let listener = Listener::at(&queue, "order.pending").await;
    // A confirm that the kill swallowed may have it told twice, never not at all.
    let mut orders = HashSet::new();
    while orders.len() < 20 {
        orders.extend(listener.until(1).await.into_iter().map(|heard| heard.order["id"].to_string()));
    }
    assert!(orders.iter().all(|order| order.starts_with("\"during-")), "{orders:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_cannot_be_stops_the_start_with_the_settings_name() {
    let base = "[api]\ntoken = \"x\"\n[queue]\nurl = \"amqp://127.0.0.1:1\"\n";
    for (table, named) in [
        ("url = \"https://10.0.0.1/hush\"\nsecrets = [\"whsec_dGhlLXRlc3RzLW93bi1zZWNyZXQtMDEy\"]", "subscriber[0].url"),
        ("url = \"https://shop.example/hush\"\nsecrets = [\"whsec_hush\"]", "subscriber[0].secrets[0]"),
        ("url = \"http://shop.example/hush\"\nsecrets = [\"whsec_dGhlLXRlc3RzLW93bi1zZWNyZXQtMDEy\"]", "subscriber[0].url"),
        ("url = \"https://shop.example/hush\"\nsecrets = []", "subscriber[0].secrets"),
    ] {
        let service = Service::start_unready("paybell-worker", &[], &format!("{base}[[subscriber]]\n{table}\n"), &[]);
        let status = service.exit_status().await;
        assert_eq!(status, 2, "{table} ended with {status}: {}", service.log());
        assert!(service.log().contains(named) && !service.log().contains("hush"), "{table}: {}", service.log());
    }
}

// --------------------------------------------------------------------------------------------------------- one relay

/// A worker without its loops, whose clock stands still.
struct Scene {
    bench: Bench,
    clock: Arc<ManualClock>,
    context: Arc<Context>,
    subscriber: Subscriber,
}

async fn scene(receiver: &Receiver) -> Scene {
    let bench = Bench::sqlite().await;
    let text = configuration("sqlite:q", "sqlite:s", "memory:") + &subscriber(&receiver.url());
    let subscriber = config(&text).subscribers.remove(0);
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let mut context = context(Arc::clone(&bench.store), clock.clone(), accounts(&text)).await;
    context.policy.destinations = vec![Arc::clone(&subscriber.name)];
    Scene { bench, clock, context: Arc::new(context), subscriber }
}

impl Scene {
    /// One of any number of workers.
    fn relay(&self) -> Relay {
        Relay::to_subscriber(Arc::clone(&self.context), Notifier::new(&self.subscriber).unwrap())
    }

    /// A change: a new order.
    async fn order(&self, id: &str) {
        let account = self.context.accounts.values().next().unwrap();
        register(&self.context, account, id, &format!("pi_{id}"), 4999).await;
    }

    async fn notices(&self) -> Vec<String> {
        let sql =
            "SELECT order_id || ' ' || outcome || ' ' || attempts || ' ' || coalesce(last_error, '-') FROM notices ORDER BY 1";
        self.bench.texts(sql).await
    }
}

const TOLD: StepReport = StepReport { told: 1, failed: 0, given_up: 0 };
const FAILED: StepReport = StepReport { told: 0, failed: 1, given_up: 0 };
const GIVEN_UP: StepReport = StepReport { told: 0, failed: 0, given_up: 1 };
const NOTHING: StepReport = StepReport { told: 0, failed: 0, given_up: 0 };

#[tokio::test]
async fn a_subscriber_that_fails_is_told_again_ever_more_rarely_and_then_given_up() {
    // Ten failures, then it is well again.
    let receiver = Receiver::start(|number| Some(status(if number < 10 { 500 } else { 200 }))).await;
    let scene = scene(&receiver).await;
    let mut relay = scene.relay();
    scene.order("ord-1").await;
    for (attempt, retry) in RETRIES.into_iter().enumerate() {
        assert_eq!(step(&mut relay).await.unwrap(), FAILED, "attempt {attempt}");
        scene.clock.advance(retry.saturating_sub(Duration::from_millis(1)));
        assert_eq!(step(&mut relay).await.unwrap(), NOTHING, "before {retry:?} are over");
        scene.clock.advance(retry / 5 + Duration::from_millis(1));
    }
    assert_eq!(step(&mut relay).await.unwrap(), GIVEN_UP);
    let requests = receiver.received();
    assert_eq!(requests.len(), RETRIES.len() + 1);
    let ids: HashSet<&str> = requests.iter().map(|request| request.header("webhook-id")).collect();
    let times: HashSet<&str> = requests.iter().map(|request| request.header("webhook-timestamp")).collect();
    assert_eq!((ids.len(), times.len()), (1, requests.len()), "one id, and each attempt signed anew");
    scene.clock.advance(Duration::from_hours(1));
    assert_eq!(step(&mut relay).await.unwrap(), NOTHING);
    scene.order("ord-2").await;
    assert_eq!(step(&mut relay).await.unwrap(), TOLD);
    assert_eq!(scene.notices().await, ["ord-1 given_up 10 answered 500", "ord-2 told 1 -"]);
}

#[tokio::test]
async fn a_dead_subscriber_is_left_alone_and_spends_no_attempts() {
    let receiver = Receiver::start(|number| Some(status(if number < 33 { 503 } else { 200 }))).await;
    let scene = scene(&receiver).await;
    let mut relay = scene.relay();
    for n in 0..40 {
        scene.order(&format!("ord-{n}")).await;
    }
    // A whole batch fails together; then one change finds out.
    assert_eq!(step(&mut relay).await.unwrap(), StepReport { failed: 32, ..NOTHING });
    assert_eq!(step(&mut relay).await.unwrap(), NOTHING, "it is left alone");
    scene.clock.advance(Duration::from_secs(1));
    assert_eq!(step(&mut relay).await.unwrap(), FAILED, "one probe");
    scene.clock.advance(Duration::from_secs(1));
    assert_eq!(step(&mut relay).await.unwrap(), NOTHING, "twice as long");
    scene.clock.advance(Duration::from_secs(1));
    assert_eq!(step(&mut relay).await.unwrap(), TOLD, "it is well");
    assert_eq!(step(&mut relay).await.unwrap(), StepReport { told: 6, ..NOTHING }, "what was not tried yet");
    scene.clock.advance(RETRIES[0] + RETRIES[0] / 5);
    let mut told = 7;
    while told < 40 {
        let report = step(&mut relay).await.unwrap();
        assert!(report.told > 0 && report.failed == 0, "{report:?} after {told}");
        told += report.told;
    }
    assert_eq!(scene.bench.count("SELECT count(*) FROM outbox").await, 0);
}

#[tokio::test]
async fn a_wish_to_be_left_alone_is_granted() {
    let busy = || Response::builder().status(429).header("retry-after", "600").body(Body::empty()).unwrap();
    let receiver = Receiver::start(move |number| Some(if number == 0 { busy() } else { status(200) })).await;
    let scene = scene(&receiver).await;
    let mut relay = scene.relay();
    scene.order("ord-1").await;
    assert_eq!(step(&mut relay).await.unwrap(), FAILED);
    scene.clock.advance(Duration::from_millis(599_999));
    assert_eq!(step(&mut relay).await.unwrap(), NOTHING);
    scene.clock.advance(Duration::from_secs(121));
    assert_eq!(step(&mut relay).await.unwrap(), TOLD);
}

#[tokio::test]
async fn redirects_are_not_followed_and_answers_are_not_read() {
    let elsewhere = Receiver::willing().await;
    let location = elsewhere.url();
    let redirect = move || Response::builder().status(307).header("location", &location).body(Body::empty()).unwrap();
    // Without end: whoever read it would never be done.
    let endless = || {
        let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 64 * 1024]));
        Response::new(Body::from_stream(chunks))
    };
    let receiver = Receiver::start(move |number| Some(if number == 0 { redirect() } else { endless() })).await;
    let scene = scene(&receiver).await;
    let mut relay = scene.relay();
    scene.order("ord-1").await;
    assert_eq!(step(&mut relay).await.unwrap(), FAILED);
    scene.clock.advance(RETRIES[0] * 2);
    assert_eq!(step(&mut relay).await.unwrap(), TOLD);
    assert_eq!(elsewhere.received().len(), 0);
    assert_eq!(scene.notices().await, ["ord-1 told 2 -"]);
}

#[tokio::test]
async fn a_subscriber_that_never_answers_costs_an_attempt_and_no_more() {
    let receiver = Receiver::start(|number| (number > 0).then(|| status(200))).await;
    let scene = scene(&receiver).await;
    let mut relay = scene.relay();
    scene.order("ord-1").await;
    assert_eq!(step(&mut relay).await.unwrap(), FAILED);
    let error = scene.bench.texts("SELECT last_error FROM outbox").await;
    assert!(error[0].contains("timed out") && !error[0].contains("nobodys-business"), "{error:?}");
    scene.clock.advance(RETRIES[0] * 2);
    assert_eq!(step(&mut relay).await.unwrap(), TOLD);
}

/// As by a worker that dies: what it leased, told or not, is another's when the lease ends.
#[tokio::test]
async fn a_relay_that_is_given_up_at_any_moment_loses_nothing() {
    let receiver = Receiver::willing().await;
    let scene = scene(&receiver).await;
    for n in 0..10 {
        scene.order(&format!("ord-{n}")).await;
    }
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..20 {
        let mut relay = scene.relay();
        let patience = Duration::from_micros(random.random_range(0..5_000));
        let _ = tokio::time::timeout(patience, step(&mut relay)).await;
        scene.clock.advance(Duration::from_secs(31));
    }
    let mut relay = scene.relay();
    while step(&mut relay).await.unwrap().did_something() {}
    let notices = scene.notices().await;
    assert_eq!(notices.iter().filter(|notice| notice.contains(" told ")).count(), 10, "{notices:?}");
    let mut ids: HashMap<String, HashSet<String>> = HashMap::new();
    for request in receiver.received() {
        let order = request.json()["data"]["id"].to_string();
        ids.entry(order).or_default().insert(request.header("webhook-id").to_owned());
    }
    assert!(ids.len() == 10 && ids.values().all(|ids| ids.len() == 1), "{ids:?}");
}

#[tokio::test]
async fn every_secret_signs() {
    let receiver = Receiver::willing().await;
    let scene = scene(&receiver).await;
    scene.order("ord-1").await;
    assert_eq!(step(&mut scene.relay()).await.unwrap(), TOLD);
    let request = receiver.received().remove(0);
    let signatures: Vec<&str> = request.header("webhook-signature").split(' ').collect();
    assert!(signatures.len() == 2 && signatures.iter().all(|signature| signature.starts_with("v1,")), "{signatures:?}");
    assert_eq!(request.header("content-type"), "application/json");
    assert!(request.header("user-agent").starts_with("paybell/"));
}
