//! How complete webhooks are: what a PSP that loses them comes to, in virtual time; and what the API and the command say of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use paybell::simulator::Webhook;
use paybell::simulator::ledger::{Cancellation, DECLINES};
use paybell_shared::clock::Clock as _;
use paybell_tests::conformance::store::Bench;
use paybell_tests::scene::{PAID, Scene, scene, scene_with};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, free_port, http_client, temporary_folder};
use paybell_tests::shop::{Shop, configuration, webhook};
use paybell_tests::worker::key_of;
use paybell_worker::completeness::{self, Completeness};
use paybell_worker::reconcile::{Reconciler, step};
use paybell_worker::store::{AskedFirst, Expected, Reason};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

const DAY: Duration = Duration::from_hours(24);

/// The account's figures over all that there is.
async fn figures(reconciler: &Reconciler) -> Completeness {
    let context = reconciler.context();
    let now = context.clock.now();
    let mut all = completeness::report(context, now.minus(DAY * 90), now.plus(DAY)).await.unwrap();
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

/// Decided, by webhook, late, missed, pending.
async fn counts(reconciler: &Reconciler) -> [u64; 5] {
    let figures = figures(reconciler).await;
    let AskedFirst { late, missed, pending, .. } = figures.asked_first;
    [figures.payments(), figures.by_webhook, late, missed, pending]
}

/// About all that is due now, at the account's rate.
async fn ask_all(reconciler: &Reconciler, scene: &Scene) {
    let (account, due_at) = (key_of(&scene.account), scene.clock.now());
    loop {
        while step(reconciler).await.unwrap().asked > 0 {}
        if scene.bench.store.due(due_at, &[&account]).await.unwrap()[0].payments == 0 {
            break;
        }
        scene.clock.advance(Duration::from_millis(250));
    }
}

/// Paid, failed, canceled, authorised and then paid, failed and then paid. The last event of each decides it.
fn play(scene: &Scene, id: &str, number: usize) {
    let mut stripe = scene.stripe.ledger_mut();
    let at = scene.start;
    match number % 5 {
        0 => stripe.capture(id, PAID, at),
        1 => stripe.decline(id, DECLINES[number % DECLINES.len()], at),
        2 => stripe.cancel(id, Cancellation::Abandoned, at),
        3 => {
            stripe.authorize(id, at);
            stripe.capture(id, PAID, at + 1);
        }
        _ => {
            stripe.decline(id, DECLINES[0], at);
            stripe.capture(id, PAID, at + 1);
        }
    }
}

/// Of the payments with these numbers every webhook is dropped that says how they ended; all others come, the order of the
/// rest is kept.
async fn deliver(scene: &Scene, reconciler: &Reconciler, lost: &HashSet<String>) {
    let events: Vec<_> = scene.stripe.ledger().events().to_vec();
    for event in events {
        let decides = ["succeeded", "failed", "canceled", "captured"].iter().any(|end| event.event_type.ends_with(end));
        if !(decides && lost.contains(&event.payment_id)) {
            scene.comes(reconciler, &Webhook::from(&event)).await;
        }
    }
}

/// The promise: of so many payments whose every webhook carrying the deciding fact is dropped for good, so many are missed, and
/// no other; on both databases, whatever is repeated, replayed or restarted.
async fn of_so_many_that_are_dropped_so_many_are_missed(scene: Scene) {
    const PAYMENTS: usize = 60;
    let reconciler = scene.reconciler().await;
    let mut lost = HashSet::new();
    for number in 0..PAYMENTS {
        let id = scene.open(&reconciler, &format!("order-{number}")).await;
        play(&scene, &id, number);
        if number % 3 == 0 {
            lost.insert(id);
        }
    }
    let missed = lost.len() as u64;
    deliver(&scene, &reconciler, &lost).await;
    assert_eq!(counts(&reconciler).await, [PAYMENTS as u64 - missed, PAYMENTS as u64 - missed, 0, 0, 0]);
    // An authorised one is first asked about after an hour.
    scene.clock.advance(Duration::from_mins(61));
    ask_all(&reconciler, &scene).await;
    let pending = [PAYMENTS as u64, PAYMENTS as u64 - missed, 0, 0, missed];
    assert_eq!(counts(&reconciler).await, pending, "each may still come");
    // All that came comes again, and nobody remembers it; and another worker asks.
    let other = scene.reconciler().await;
    deliver(&scene, &other, &lost).await;
    scene.bench.execute("UPDATE checks SET next_check_at = first_seen_at").await;
    ask_all(&other, &scene).await;
    assert_eq!(counts(&other).await, pending);
    scene.clock.advance(scene.account.psp.profile().retry_window);
    let settled = [PAYMENTS as u64, PAYMENTS as u64 - missed, 0, missed, 0];
    assert_eq!(counts(&reconciler).await, settled);
    let ratio = figures(&reconciler).await.ratio(missed).unwrap();
    assert!((ratio - 1.0 / 3.0).abs() < 1e-9, "{ratio}");
    for number in 0..PAYMENTS {
        scene.assert_true(&format!("order-{number}")).await;
    }
}

#[tokio::test]
async fn of_so_many_that_are_dropped_so_many_are_missed_on_sqlite() {
    of_so_many_that_are_dropped_so_many_are_missed(scene().await).await;
}

#[tokio::test]
async fn of_so_many_that_are_dropped_so_many_are_missed_on_postgres() {
    let bench = Bench::new(servers::postgres().await.database().await).await;
    of_so_many_that_are_dropped_so_many_are_missed(scene_with(bench).await).await;
}

#[tokio::test]
async fn a_webhook_within_the_retry_window_is_late_and_one_after_it_was_missed() {
    let window = scene().await.account.psp.profile().retry_window;
    for (after, expected) in [
        (Duration::from_secs(7), [1, 0, 1, 0, 0]),
        (window, [1, 0, 1, 0, 0]),
        (window + Duration::from_millis(1), [1, 0, 0, 1, 0]),
        (window + DAY * 30, [1, 0, 0, 1, 0]),
    ] {
        let scene = scene().await;
        let reconciler = scene.reconciler().await;
        let id = scene.open(&reconciler, "order-1").await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
        scene.first_look_is_due();
        assert_eq!(step(&reconciler).await.unwrap().changed, 1);
        assert_eq!(counts(&reconciler).await, [1, 0, 0, 0, 1]);
        scene.clock.advance(after);
        scene.webhook(&reconciler).await;
        assert_eq!(counts(&reconciler).await, expected, "{after:?}");
        let came = figures(&reconciler).await.asked_first.came_by;
        assert_eq!(came[6], 1);
        assert_eq!(came[0], u64::from(after < Duration::from_secs(10)));
        let before = scene.bench.rows("learned").await;
        scene.clock.advance(DAY);
        scene.webhook(&reconciler).await;
        assert_eq!(scene.bench.rows("learned").await, before, "its repetition says nothing");
    }
}

/// Neither order makes a miss; the poll first makes a webhook late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_races_a_look_is_never_missed() {
    for round in 0..8 {
        let scene = scene().await;
        let reconciler = scene.reconciler().await;
        let id = scene.open(&reconciler, "order-1").await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
        scene.first_look_is_due();
        let look = async || assert_eq!(step(&reconciler).await.unwrap().failed, 0);
        match round {
            0 => {
                scene.webhook(&reconciler).await;
                look().await;
            }
            1 => {
                look().await;
                scene.clock.advance(Duration::from_millis(1));
                scene.webhook(&reconciler).await;
            }
            _ => {
                tokio::join!(look(), scene.webhook(&reconciler));
            }
        }
        scene.clock.advance(DAY * 30);
        let [decided, by_webhook, late, missed, pending] = counts(&reconciler).await;
        assert_eq!((decided, by_webhook + late, missed, pending), (1, 1, 0, 0), "round {round}");
        match round {
            0 => assert_eq!(by_webhook, 1),
            1 => assert_eq!(late, 1),
            _ => {}
        }
    }
}

/// The endpoint is dead; there are three payments a day.
#[tokio::test]
async fn a_silent_endpoint_shows_by_our_own_payments() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-0").await;
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    scene.webhook(&reconciler).await;
    let owed = async || figures(&reconciler).await.expected;
    scene.clock.advance(DAY * 30);
    assert_eq!(owed().await, Expected::default(), "nothing happened, so nothing is owed");
    for number in 1..=3 {
        let id = scene.open(&reconciler, &format!("order-{number}")).await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
        scene.clock.advance(DAY / 3);
        while step(&reconciler).await.unwrap().asked > 0 {}
        scene.clock.advance(Duration::from_secs(30));
        let now = Expected { decided: number - 1, registered: 0 };
        assert_eq!(owed().await, now, "the webhook of the last one may be on its way");
        scene.clock.advance(Duration::from_secs(30));
        assert_eq!(owed().await, Expected { decided: number, registered: 0 });
    }
    let silence = scene.clock.now().since(figures(&reconciler).await.last_webhook_at.unwrap());
    assert!(silence > DAY * 31, "{silence:?}");
    // One that comes, whatever it is about, ends it.
    let id = scene.open(&reconciler, "order-4").await;
    scene.stripe.ledger_mut().authorize(&id, scene.start);
    scene.webhook(&reconciler).await;
    assert_eq!(owed().await, Expected::default());
}

/// Stripe's answer about a payment that does not change says the same each time: no row, and nobody is missed.
#[tokio::test]
async fn a_payment_that_is_not_decided_is_not_counted() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    scene.open(&reconciler, "order-1").await;
    let id = scene.open(&reconciler, "order-2").await;
    scene.stripe.ledger_mut().authorize(&id, scene.start);
    for _ in 0..5 {
        scene.clock.advance(DAY);
        while step(&reconciler).await.unwrap().asked > 0 {}
    }
    assert_eq!(counts(&reconciler).await, [0; 5]);
    assert_eq!(figures(&reconciler).await.ratio(0), None);
}

/// A running Paybell, and what is asked of it from outside.
struct House {
    serve: Service,
    shop: Shop,
    configuration: String,
    api: String,
    folder: std::path::PathBuf,
}

impl House {
    async fn new(name: &str) -> Self {
        let folder = temporary_folder(name).unwrap();
        let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
        let configuration = configuration(&file("queue.db"), &file("store.db"), "memory:");
        let serve = Service::serve(&configuration).await;
        let (shop, api) = (Shop::of(&serve, &serve), serve.api_url());
        Self { serve, shop, configuration, api, folder }
    }

    /// Waits until the metrics say all that there is to say of an account at which nothing happened yet.
    async fn until_counted(&self) {
        let account = r#"psp="stripe",account="default""#;
        let outcomes = ["webhook", "late", "missed", "pending"];
        let mut wanted: Vec<String> =
            outcomes.map(|outcome| format!(r#"paybell_payments_learned{{{account},outcome="{outcome}"}} 0"#)).into();
        wanted.push(format!(r#"paybell_webhook_lateness_seconds_bucket{{{account},le="86400"}} 0"#));
        wanted.push(format!(r#"paybell_webhook_lateness_seconds_bucket{{{account},le="+Inf"}} 0"#));
        wanted.extend(
            ["decided", "registered"].map(|basis| format!(r#"paybell_webhooks_expected{{{account},basis="{basis}"}} 0"#)),
        );
        wanted.extend(Reason::ALL.map(|reason| format!(r#"paybell_orders_unsettled{{reason="{}"}} 0"#, reason.as_str())));
        let url = format!("{}/metrics", self.serve.ops_url());
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let text = http_client().get(&url).send().await.unwrap().text().await.unwrap();
            let missing: Vec<&String> = wanted.iter().filter(|line| !text.lines().any(|other| other == **line)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{missing:#?} are missing: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The exit code, and what it printed.
    async fn command(&self, arguments: &[&str]) -> (i32, String) {
        let listen = self.api.trim_start_matches("http://");
        let command = Service::start_unready("paybell", arguments, &self.configuration, &[("PAYBELL_API_LISTEN", listen)]);
        (command.exit_status().await, command.log())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_and_the_command_say_it() {
    let house = House::new("completeness").await;
    let none = json!({ "psp": "stripe", "account": "default", "payments": 0, "missed_ratio": null, "last_webhook_at": null,
        "silence_s": null, "expected": { "decided": 0, "registered": 0 } });
    let (status, report) = house.shop.get("/v1/completeness").await;
    assert_eq!(status, StatusCode::OK);
    assert!(includes(&report["accounts"][0], &none), "{report:#}");
    let (code, said) = house.command(&["completeness", "--max-missed", "0"]).await;
    assert_eq!(code, 0, "{said}");
    house.until_counted().await;

    assert_eq!(house.shop.send(&webhook("payment_intent.succeeded", "order-1")).await, Some(StatusCode::OK));
    house.shop.until("order-1", "paid").await;
    house.shop.register("order-2", 4999).await;
    let (_, report) = house.shop.get("/v1/completeness").await;
    let one = json!({ "payments": 1, "by_webhook": 1, "late": 0, "missed": 0, "pending": 0, "missed_ratio": 0.0, "late_ratio": 0.0,
        "retry_window_s": 3 * 86_400 });
    assert!(includes(&report["accounts"][0], &one), "{report:#}");
    assert!(report["accounts"][0]["silence_s"].as_u64().is_some_and(|seconds| seconds < 600), "{report:#}");
    assert_eq!(report["accounts"][0]["lateness"].as_array().unwrap().len(), 7);
    let (code, said) = house.command(&["completeness", "--max-missed", "0", "--json"]).await;
    let said: Value = serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!((code, &said["misses_too_many"]), (0, &json!([])));
    assert!(includes(&said["report"]["accounts"][0], &one), "{said:#}");
    let (code, said) = house.command(&["completeness"]).await;
    // A table breaks its lines where the terminal ends.
    assert!(code == 0 && said.contains("by webhook") && said.contains("stripe/"), "{code}: {said}");

    for (query, status) in [
        ("?since=yesterday", StatusCode::BAD_REQUEST),
        ("?since=2999-01-01T00:00:00Z", StatusCode::BAD_REQUEST),
        ("?since=2001-01-01T00:00:00Z", StatusCode::BAD_REQUEST),
        ("?until=2026-01-01T00:00:00Z", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(house.shop.get(&format!("/v1/completeness{query}")).await.0, status, "{query}");
    }
    for wrong in [&["completeness", "--since", "yesterday"][..], &["completeness", "--max-missed", "101"]] {
        assert_eq!(house.command(wrong).await.0, 2, "{wrong:?}");
    }
    let nobody = format!("http://127.0.0.1:{}", free_port());
    assert_eq!(house.command(&["completeness", "--api", &nobody]).await.0, 3);
}

/// Every member of `part` is in `whole`.
fn includes(whole: &Value, part: &Value) -> bool {
    part.as_object().unwrap().iter().all(|(name, value)| whole[name] == *value)
}

/// Two workers share the database; what either learned, both say.
#[tokio::test]
async fn every_worker_says_the_same() {
    let scene = scene().await;
    let (one, other) = (scene.reconciler().await, scene.reconciler().await);
    let id = scene.open(&one, "order-1").await;
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    scene.first_look_is_due();
    assert_eq!(step(&other).await.unwrap().changed, 1);
    scene.webhook(&one).await;
    scene.clock.advance(Duration::from_mins(1));
    let (here, there) = (figures(&one).await, figures(&other).await);
    assert_eq!(here, there);
    assert!(Arc::ptr_eq(&one.context().store, &other.context().store));
}
