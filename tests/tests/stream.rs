//! The stream of changes: in this process, without a socket, on `SQLite` and `PostgreSQL`; and at running workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use paybell_shared::clock::{Clock, ManualClock};
use paybell_shared::config::{ApiToken, Scope};
use paybell_shared::event::{Reference, ReferenceKind};
use paybell_shared::secret::Secret;
use paybell_shared::shutdown::Shutdown;
use paybell_tests::conformance::store::{Bench, NOW, arrivals, captured, refund};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, temporary_folder};
use paybell_tests::shop::{Shop, TOKEN, configuration, webhook};
use paybell_tests::sse::{Event, Events};
use paybell_tests::worker::context;
use paybell_worker::api::{self, Answering, Settings};
use paybell_worker::store::{Position, connect};
use paybell_worker::tail::{self, PAGES_KEPT, StreamId, Tail};
use paybell_worker::transport::HttpTransport;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

const CLIENTS_MAX: usize = 8;
const KEPT: Duration = Duration::from_hours(24);
const WRITER: &str = "token-that-may-only-operate";

/// The API of a worker on a store, without a socket.
struct Worker {
    api: TowerToHyperService<axum::Router>,
    clock: Arc<ManualClock>,
    epoch: uuid::Uuid,
    shutdown: Shutdown,
}

impl Worker {
    async fn on(url: &str) -> Self {
        Self::with(url, PAGES_KEPT).await
    }

    async fn with(url: &str, pages_kept: usize) -> Self {
        let clock = Arc::new(ManualClock::at(NOW));
        let shared: Arc<dyn Clock> = clock.clone();
        let context = Arc::new(context(connect(url).await.unwrap(), shared, Vec::new()).await);
        let (shutdown, tail, answering) = (Shutdown::new(), Arc::new(Tail::new(pages_kept)), Answering::default());
        let token = |name: &str, secret: &str, scope| ApiToken {
            name: name.to_owned(),
            secret: Secret::new(name, secret),
            scopes: [scope].into(),
        };
        let settings = Settings {
            tokens: vec![token("reader", TOKEN, Scope::Read), token("writer", WRITER, Scope::Operate)],
            parked_max: KEPT,
            stream_kept: KEPT,
            stream_clients_max: CLIENTS_MAX,
            transport: Arc::new(HttpTransport::new().unwrap()),
        };
        let router = api::router(Arc::clone(&answering), settings, Arc::clone(&tail), &shutdown);
        let epoch = context.epoch;
        shutdown.spawn("tail", tail::run(Arc::clone(&context), tail, shutdown.clone()));
        assert!(answering.set(context).is_ok());
        Self { api: TowerToHyperService::new(router), clock, epoch, shutdown }
    }

    async fn ask(&self, path: &str, last_id: Option<&str>) -> Response<Body> {
        self.ask_as(TOKEN, path, last_id).await
    }

    async fn ask_as(&self, token: &str, path: &str, last_id: Option<&str>) -> Response<Body> {
        let mut request = Request::get(path).header("authorization", format!("Bearer {token}"));
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        self.api.call(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn follow(&self, path: &str, last_id: Option<&str>) -> Events {
        let answer = self.ask(path, last_id).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        Events::of(answer.into_body())
    }

    /// The status of a refusal, which is told as all errors are.
    async fn refusal(&self, path: &str, last_id: Option<&str>) -> StatusCode {
        let answer = self.ask(path, last_id).await;
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        answer.status()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shutdown.stop();
    }
}

async fn postgres_bench() -> Bench {
    Bench::new(servers::postgres().await.database().await).await
}

fn name(event: &Event) -> (String, i64) {
    let order = event.order();
    (order["id"].as_str().unwrap().to_owned(), order["version"].as_i64().unwrap())
}

/// The order at a version from 1 on: captured, then refunded cent by cent.
async fn change(bench: &Bench, order: &str, version: i64) {
    let payment = format!("pi_{order}");
    let event = match version {
        1 => captured(&format!("evt_{order}_1"), &payment, Some(order), 4999),
        n => refund(&format!("evt_{order}_{n}"), &payment, &format!("re_{n}"), 1),
    };
    bench.apply(&[event]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orders_stream_begins_with_the_order_and_goes_on() {
    for bench in [Bench::sqlite().await, postgres_bench().await] {
        let worker = Worker::on(&bench.url).await;
        for path in ["/v1/orders/order-1/stream", "/v1/orders/%00/stream"] {
            assert_eq!(worker.refusal(path, None).await, StatusCode::NOT_FOUND);
        }
        change(&bench, "order-1", 1).await;
        change(&bench, "order-1", 2).await;
        let mut events = worker.follow("/v1/orders/order-1/stream", None).await;
        let first = events.next().await.unwrap();
        assert_eq!((first.name.as_str(), name(&first)), ("order.partially_refunded", ("order-1".to_owned(), 2)));
        let shown = worker.ask("/v1/orders/order-1", None).await.into_body();
        let shown = axum::body::to_bytes(shown, usize::MAX).await.unwrap();
        assert_eq!(first.data.as_bytes(), &shown[..], "as GET shows it");
        let id_of_first = events.last_id.clone();

        change(&bench, "order-2", 1).await;
        change(&bench, "order-1", 3).await;
        assert_eq!(name(&events.next().await.unwrap()), ("order-1".to_owned(), 3));
        change(&bench, "order-1", 4).await;
        assert_eq!(name(&events.next().await.unwrap()), ("order-1".to_owned(), 4));

        // By header, by query, and by both: the header is newer.
        let by_header = worker.follow("/v1/orders/order-1/stream", Some(&id_of_first)).await;
        let query = format!("/v1/orders/order-1/stream?last_event_id={id_of_first}");
        let by_query = worker.follow(&query, None).await;
        for mut resumed in [by_header, by_query] {
            assert_eq!(name(&resumed.next().await.unwrap()), ("order-1".to_owned(), 3));
            assert_eq!(name(&resumed.next().await.unwrap()), ("order-1".to_owned(), 4));
        }
        let mut by_both = worker.follow(&query, Some(&events.last_id)).await;
        change(&bench, "order-1", 5).await;
        assert_eq!(name(&by_both.next().await.unwrap()), ("order-1".to_owned(), 5));
        // An empty id is none.
        let mut anew = worker.follow("/v1/orders/order-1/stream?last_event_id=", Some("")).await;
        assert_eq!(name(&anew.next().await.unwrap()), ("order-1".to_owned(), 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_of_all_begins_now_and_tells_where_that_is() {
    for bench in [Bench::sqlite().await, postgres_bench().await] {
        let (one, other) = (Worker::on(&bench.url).await, Worker::on(&bench.url).await);
        change(&bench, "order-0", 1).await;
        until_told(&bench, 1).await;
        let mut events = one.follow("/v1/stream", None).await;
        events.commented().await;
        let beginning = events.last_id.clone();
        // Whoever loses its connection before the first event misses nothing.
        drop(events);
        change(&bench, "order-1", 1).await;
        change(&bench, "order-2", 1).await;
        let mut events = other.follow("/v1/stream", Some(&beginning)).await;
        for order in ["order-1", "order-2"] {
            let event = events.next().await.unwrap();
            assert_eq!((event.name.as_str(), name(&event)), ("order.paid", (order.to_owned(), 1)));
            assert!(!event.data.contains('\n'));
        }
    }
}

/// Waits until all that is committed is behind the horizon: other tests' transactions on the server are older.
async fn until_told(bench: &Bench, changes: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.store.changes_after(None, Position::default(), 1000).await.unwrap().len() < changes {
        assert!(Instant::now() < deadline, "the changes are not told");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_resumed_is_refused() {
    let bench = Bench::sqlite().await;
    let worker = Worker::on(&bench.url).await;
    change(&bench, "order-1", 1).await;
    let mut events = worker.follow("/v1/orders/order-1/stream", None).await;
    events.next().await.unwrap();
    let id = events.last_id;
    for path in ["/v1/stream", "/v1/orders/order-1/stream"] {
        for malformed in ["x", "1-2-3", "-", "1-2-3-4-5", "g-1-1-1", &format!("{id} "), &format!("{id}0000000000000000")] {
            assert_eq!(worker.refusal(path, Some(malformed)).await, StatusCode::BAD_REQUEST, "{malformed}");
        }
        assert_eq!(worker.refusal(&format!("{path}?last_event_id=x"), None).await, StatusCode::BAD_REQUEST);
        assert_eq!(worker.refusal(&format!("{path}?since=x"), None).await, StatusCode::BAD_REQUEST);
        let of_another = StreamId::new(uuid::Uuid::from_u128(!worker.epoch.as_u128()), Position::default(), NOW);
        assert_eq!(worker.refusal(path, Some(&of_another.to_string())).await, StatusCode::GONE);
        let answer = worker.ask_as(WRITER, path, None).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(worker.ask_as("wrong", path, None).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(worker.refusal("/v1/orders/order-2/stream", Some(&id)).await, StatusCode::NOT_FOUND);
    worker.clock.advance(KEPT);
    assert_eq!(worker.ask("/v1/stream", Some(&id)).await.status(), StatusCode::OK, "just young enough");
    worker.clock.advance(Duration::from_millis(1));
    assert_eq!(worker.refusal("/v1/stream", Some(&id)).await, StatusCode::GONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_clients_are_refused_until_one_goes() {
    let bench = Bench::sqlite().await;
    let worker = Worker::on(&bench.url).await;
    change(&bench, "order-1", 1).await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS_MAX {
        let path = if n % 2 == 0 { "/v1/stream" } else { "/v1/orders/order-1/stream" };
        clients.push(worker.follow(path, None).await);
    }
    for path in ["/v1/stream", "/v1/orders/order-1/stream"] {
        let answer = worker.ask(path, None).await;
        assert_eq!((answer.status(), &answer.headers()["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    }
    // Others are answered meanwhile, and a refusal takes no place.
    assert_eq!(worker.ask("/v1/orders/order-1", None).await.status(), StatusCode::OK);
    clients.pop();
    assert_eq!(worker.refusal("/v1/orders/nobody/stream", None).await, StatusCode::NOT_FOUND);
    worker.follow("/v1/stream", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_lags_is_let_go_and_resumes() {
    const CHANGES: i64 = 5;
    let bench = Bench::sqlite().await;
    let worker = Worker::with(&bench.url, 2).await;
    let (mut fast, mut slow) = (worker.follow("/v1/stream", None).await, worker.follow("/v1/stream", None).await);
    fast.commented().await;
    slow.commented().await;
    // The first may be read from the database; whoever has taken the second follows.
    for version in [1, 2] {
        change(&bench, "order-0", version).await;
        assert!(fast.next().await.is_some() && slow.next().await.is_some());
    }
    for version in 1..=CHANGES {
        change(&bench, "order-1", version).await;
        assert_eq!(name(&fast.next().await.unwrap()), ("order-1".to_owned(), version));
    }
    assert_eq!(slow.next().await, None, "it is let go");
    let mut resumed = worker.follow("/v1/stream", Some(&slow.last_id)).await;
    for version in 1..=CHANGES {
        assert_eq!(name(&resumed.next().await.unwrap()), ("order-1".to_owned(), version));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_when_the_stop_begins() {
    let bench = Bench::sqlite().await;
    let worker = Worker::on(&bench.url).await;
    change(&bench, "order-1", 1).await;
    let mut one = worker.follow("/v1/orders/order-1/stream", None).await;
    let mut all = worker.follow("/v1/stream", None).await;
    one.next().await.unwrap();
    all.commented().await;
    worker.shutdown.stop();
    assert_eq!((one.next().await, all.next().await), (None, None));
    assert!(worker.shutdown.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_filled_with_comments_that_keep_the_id_young() {
    let bench = Bench::sqlite().await;
    let worker = Worker::on(&bench.url).await;
    change(&bench, "order-1", 1).await;
    let mut events = worker.follow("/v1/orders/order-1/stream", None).await;
    events.next().await.unwrap();
    let before = events.last_id.clone();
    worker.clock.advance(KEPT * 2);
    events.commented().await;
    assert_eq!(worker.refusal("/v1/stream", Some(&before)).await, StatusCode::GONE);
    let resumed = worker.follow("/v1/orders/order-1/stream", Some(&events.last_id)).await;
    change(&bench, "order-1", 2).await;
    for mut events in [events, resumed] {
        assert_eq!(name(&events.next().await.unwrap()), ("order-1".to_owned(), 2));
    }
}

/// A transaction takes its number, another one takes the next and commits: nothing of it is told before what became of the
/// first is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_commits_late_is_not_missed() {
    let bench = postgres_bench().await;
    let worker = Worker::on(&bench.url).await;
    change(&bench, "order-0", 1).await;
    until_told(&bench, 1).await;
    let mut events = worker.follow("/v1/stream", None).await;
    events.commented().await;

    let mut late = PgConnection::connect(&bench.url).await.unwrap();
    let mut transaction = late.begin().await.unwrap();
    sqlx::raw_sql(
        "INSERT INTO transitions (order_id, version, id, from_status, to_status, at, view)
         SELECT 'late', 1, gen_random_uuid(), NULL, to_status, at, view FROM transitions WHERE order_id = 'order-0'",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    let before = bench.store.position().await.unwrap();
    change(&bench, "order-1", 1).await;
    // Committed, and whoever asks for the order sees it; but the stream waits.
    assert!(bench.store.order("order-1").await.unwrap().is_some());
    assert_eq!(bench.store.changes_after(None, before, 10).await.unwrap(), []);
    transaction.commit().await.unwrap();
    let told = [name(&events.next().await.unwrap()).0, name(&events.next().await.unwrap()).0];
    assert_eq!(told, ["late", "order-1"]);
}

/// A transaction that took its number first may have to wait for its order, and get it last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orders_versions_come_in_their_order_whoever_was_numbered_first() {
    let bench = postgres_bench().await;
    bench.apply(&[captured("evt_a", "pi_a", Some("order-1"), 4999)]).await;
    bench.apply(&[captured("evt_b", "pi_b", Some("order-1"), 4999)]).await;
    let latest = bench.store.latest_change("order-1").await.unwrap().unwrap();
    // Somebody holds a name that only the first one speaks of.
    let mut holder = PgConnection::connect(&bench.url).await.unwrap();
    let mut transaction = holder.begin().await.unwrap();
    let name = "INSERT INTO refs (psp, account, kind, value) VALUES ('stripe', 'default', 'refund', 're_1')";
    sqlx::raw_sql(name).execute(&mut *transaction).await.unwrap();
    let mut named = refund("evt_1", "pi_a", "re_1", 1);
    named.references.push(Reference::new(ReferenceKind::Refund, "re_1"));
    let (first, second) = (arrivals(&[named]), arrivals(&[refund("evt_2", "pi_b", "re_2", 1)]));
    let numbered_first = bench.try_apply(&first, &[], true);
    let overtakes = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let deadline = Instant::now() + Duration::from_secs(2);
        while bench.count(waits).await == 0 {
            assert!(Instant::now() < deadline, "nobody waits");
        }
        bench.try_apply(&second, &[], true).await.unwrap();
        transaction.commit().await.unwrap();
    };
    let (applied, ()) = tokio::join!(numbered_first, overtakes);
    applied.unwrap();
    let came_last = "SELECT count(*) FROM events a JOIN events b ON a.order_version = 4 AND b.order_version = 3
                     WHERE a.event_id = 'evt_1' AND b.event_id = 'evt_2' AND a.xmin::text::bigint < b.xmin::text::bigint";
    assert_eq!(bench.count(came_last).await, 1, "the first in number came last");
    until_told(&bench, 4).await;
    for order in [None, Some("order-1")] {
        let told = bench.store.changes_after(order, latest.position, 10).await.unwrap();
        let versions: Vec<i64> = told.iter().map(|told| told.change.order.version).collect();
        assert_eq!(versions, [3, 4]);
    }
    bench.check_invariants().await;
}

/// Orders change at several connections at once, transactions are held open across each other, and a client loses its
/// connection again and again, each time going on at the other worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_resumes_at_the_other_worker_without_hole_or_duplicate() {
    const ORDERS: usize = 8;
    const VERSIONS: i64 = 40;
    const CHANGES: usize = ORDERS * 40;
    let bench = postgres_bench().await;
    let workers = [Worker::on(&bench.url).await, Worker::on(&bench.url).await];
    let mut events = workers[0].follow("/v1/stream", None).await;
    events.commented().await;
    let is_done = AtomicBool::new(false);
    let write = async {
        join_all((0..ORDERS).map(|order| {
            let (bench, order) = (&bench, format!("order-{order}"));
            async move {
                for version in 1..=VERSIONS {
                    change(bench, &order, version).await;
                }
            }
        }))
        .await;
        is_done.store(true, Ordering::Relaxed);
    };
    let hold = async {
        let mut connection = PgConnection::connect(&bench.url).await.unwrap();
        while !is_done.load(Ordering::Relaxed) {
            let mut transaction = connection.begin().await.unwrap();
            sqlx::raw_sql("SELECT pg_current_xact_id()").execute(&mut *transaction).await.unwrap();
            sleep(Duration::from_millis(70)).await;
            transaction.rollback().await.unwrap();
        }
    };
    let read = async {
        let mut random = StdRng::seed_from_u64(11);
        let mut told: Vec<(String, i64)> = Vec::new();
        let (mut left, mut at) = (random.random_range(1..40), 0);
        while told.len() < CHANGES {
            told.push(name(&events.next().await.unwrap()));
            left -= 1;
            if left == 0 {
                (left, at) = (random.random_range(1..40), 1 - at);
                let id = events.last_id.clone();
                events = workers[at].follow("/v1/stream", Some(&id)).await;
            }
        }
        told
    };
    let ((), (), told) = tokio::join!(write, hold, read);
    let mut versions: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (order, version) in told {
        versions.entry(order).or_default().push(version);
    }
    assert_eq!(versions.len(), ORDERS);
    for (order, versions) in versions {
        assert_eq!(versions, (1..=VERSIONS).collect::<Vec<_>>(), "{order}");
    }
    bench.check_invariants().await;
}

/// Over sockets, at processes that are told to stop: what a shop's server sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_ends_its_streams_and_the_client_goes_on() {
    let folder = temporary_folder("stream").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let serve = Service::serve(&configuration(&file("queue.db"), &file("store.db"), "memory:")).await;
    let shop = Shop::of(&serve, &serve);
    shop.register("ord-1", 4999).await;
    let mut events = over_sockets(&serve, "/v1/orders/ord-1/stream", None).await;
    assert_eq!(events.next().await.unwrap().name, "order.pending");
    assert_eq!(shop.send(&webhook("payment_intent.succeeded", "ord-1")).await, Some(StatusCode::OK));
    let paid = events.next().await.unwrap();
    assert_eq!((paid.name.as_str(), paid.order()["captured"].clone()), ("order.paid", json!(4999)));
    let metrics = metrics(&serve).await;
    assert!(metrics.contains("\npaybell_stream_events_total 2\n"), "{metrics}");
    assert!(metrics.contains("\npaybell_parked_overdue 0\n"), "{metrics}");

    let another = over_sockets(&serve, "/v1/stream", None).await;
    until_clients(&serve, 2).await;
    drop(another);
    until_clients(&serve, 1).await;

    serve.terminate();
    assert_eq!(events.next().await, None);
    assert_eq!(serve.exit_status().await, 0);
    assert!(!serve.log().contains("did not finish in time"), "{}", serve.log());
    serve.start_again().await;
    assert_eq!(shop.send(&webhook("charge.refunded", "ord-1")).await, Some(StatusCode::OK));
    let mut events = over_sockets(&serve, "/v1/orders/ord-1/stream", Some(&events.last_id)).await;
    assert_eq!(events.next().await.unwrap().name, "order.refunded");
    serve.terminate();
    assert_eq!(serve.exit_status().await, 0);
    std::fs::remove_dir_all(folder).unwrap();
}

async fn metrics(service: &Service) -> String {
    let answer = servers::http_client().get(format!("{}/metrics", service.ops_url())).send().await.unwrap();
    answer.text().await.unwrap()
}

/// Waits until so many clients are counted.
async fn until_clients(service: &Service, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let metrics = metrics(service).await;
        if metrics.contains(&format!("\npaybell_stream_clients {count}\n")) {
            return;
        }
        assert!(Instant::now() < deadline, "{count} clients are not counted: {metrics}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn over_sockets(service: &Service, path: &str, last_id: Option<&str>) -> Events {
    // Unlike the usual client it waits for as long as the stream lasts.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.get(format!("{}{path}", service.api_url())).bearer_auth(TOKEN);
    if let Some(id) = last_id {
        request = request.header("last-event-id", id);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    Events::of(Body::new(reqwest::Body::from(answer)))
}
