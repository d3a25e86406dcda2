//! The operator's list: every open order that will not be settled by itself is on it by its deadline, with its reason, and leaves
//! it when that is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Clock as _;
use paybell_tests::conformance::store::Bench;
use paybell_tests::scene::{Instead, PAID, Scene, scene, scene_with};
use paybell_tests::servers;
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{free_port, temporary_folder};
use paybell_tests::shop::{Shop, configuration, webhook};
use paybell_tests::worker::{context, put, registration};
use paybell_worker::consume::Context;
use paybell_worker::order::OrderStatus;
use paybell_worker::store::{Reason, Registration};
use paybell_worker::unsettled::{self, NO_ANSWER_MAX, SETTLE_MAX, UNKNOWN_MAX};
use reqwest::StatusCode;
use serde_json::Value;
use sqlx::SqlitePool;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// The list in words, and held against the counts of the metric.
async fn list(context: &Context) -> Vec<String> {
    let found = unsettled::page(context, None, None, 500).await.unwrap();
    let lines: Vec<String> = found.iter().map(|(reason, one)| format!("{} {}", one.order.id, reason.as_str())).collect();
    for (reason, count) in unsettled::count(context).await.unwrap() {
        let orders: std::collections::BTreeSet<&str> =
            found.iter().filter(|(of, _)| *of == reason).map(|(_, one)| &*one.order.id).collect();
        assert_eq!(count as usize, orders.len(), "{reason:?}");
    }
    lines
}

/// At its end, and long after it: not expired, but on the list; when the PSP is back, it expires and leaves it.
async fn a_psp_that_is_away_at_an_orders_end_puts_it_on_the_list(scene: Scene) {
    let reconciler = scene.reconciler().await;
    let end = scene.clock.now().plus(HOUR);
    scene.open_until(&reconciler, "order-1", end).await;
    scene.pass(&reconciler, HOUR.saturating_sub(5 * MINUTE), 5 * MINUTE).await;
    scene.answers(Some(Instead::of(503, "")));
    scene.pass(&reconciler, NO_ANSWER_MAX.saturating_sub(10 * MINUTE), MINUTE).await;
    assert_eq!(list(reconciler.context()).await, [""; 0], "an outage may be short");
    scene.pass(&reconciler, HOUR, MINUTE).await;
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Pending);
    assert_eq!(list(reconciler.context()).await, ["order-1 no_answer"]);
    scene.answers(None);
    scene.pass(&reconciler, 2 * HOUR, MINUTE).await;
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Expired);
    assert_eq!(list(reconciler.context()).await, [""; 0]);
    scene.bench.check_invariants().await;
}

#[tokio::test]
async fn a_psp_that_is_away_at_an_orders_end_puts_it_on_the_list_on_sqlite() {
    a_psp_that_is_away_at_an_orders_end_puts_it_on_the_list(scene().await).await;
}

#[tokio::test]
async fn a_psp_that_is_away_at_an_orders_end_puts_it_on_the_list_on_postgres() {
    let bench = Bench::new(servers::postgres().await.database().await).await;
    a_psp_that_is_away_at_an_orders_end_puts_it_on_the_list(scene_with(bench).await).await;
}

/// Five failures open the circuit: those that were never asked have no answer either.
#[tokio::test]
async fn what_is_not_even_asked_is_listed_too() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    for number in 0..30 {
        scene.open(&reconciler, &format!("order-{number}")).await;
    }
    scene.answers(Some(Instead::of(503, "")));
    scene.pass(&reconciler, NO_ANSWER_MAX + 3 * MINUTE, 10 * Duration::from_secs(1)).await;
    assert!(scene.bench.count("SELECT count(*) FROM checks WHERE looks = 0").await > 0, "some were never asked");
    assert_eq!(list(reconciler.context()).await.len(), 30);
    scene.pass(&reconciler, 2 * HOUR, 30 * Duration::from_secs(1)).await;
    assert_eq!(list(reconciler.context()).await.len(), 30, "and stay there when they are asked in vain");
    scene.answers(None);
    scene.pass(&reconciler, HOUR, 10 * Duration::from_secs(1)).await;
    assert_eq!(list(reconciler.context()).await, [""; 0]);
}

#[tokio::test]
async fn refused_credentials_list_at_once_what_waits_for_them() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    for number in 0..3 {
        scene.open(&reconciler, &format!("order-{number}")).await;
    }
    let paid = scene.open(&reconciler, "order-paid").await;
    scene.stripe.ledger_mut().capture(&paid, PAID, scene.start);
    scene.webhook(&reconciler).await;
    scene.answers(Some(Instead::of(401, r#"{"error":{"type":"invalid_request_error"}}"#)));
    scene.first_look_is_due();
    scene.pass(&reconciler, MINUTE, 10 * Duration::from_secs(1)).await;
    let mut listed = list(reconciler.context()).await;
    listed.sort();
    assert_eq!(listed, ["order-0", "order-1", "order-2"].map(|order| format!("{order} credentials_refused")));
    scene.pass(&reconciler, 2 * HOUR, MINUTE).await;
    assert_eq!(list(reconciler.context()).await.len(), 3, "under this reason alone");
    scene.answers(None);
    scene.pass(&reconciler, 2 * HOUR, MINUTE).await;
    assert_eq!(list(reconciler.context()).await, [""; 0]);
}

#[tokio::test]
async fn a_payment_that_the_psp_does_not_know_is_listed_after_a_day() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    scene.open(&reconciler, "order-1").await;
    scene.answers(Some(Instead::of(404, r#"{"error":{"code":"resource_missing"}}"#)));
    scene.pass(&reconciler, UNKNOWN_MAX, 5 * MINUTE).await;
    assert_eq!(list(reconciler.context()).await, [""; 0]);
    scene.pass(&reconciler, HOUR, 5 * MINUTE).await;
    assert_eq!(list(reconciler.context()).await, ["order-1 unknown_to_psp"]);
    let (_, found) = unsettled::page(reconciler.context(), None, None, 1).await.unwrap().remove(0);
    let since = scene.clock.now().since(found.place.since);
    assert!((UNKNOWN_MAX..UNKNOWN_MAX + 2 * HOUR).contains(&since), "{since:?}");
    scene.answers(None);
    scene.pass(&reconciler, 2 * UNKNOWN_MAX, 5 * MINUTE).await;
    assert_eq!(list(reconciler.context()).await, [""; 0], "it turned up");
}

#[tokio::test]
async fn an_order_without_end_that_nobody_pays_is_listed_after_a_fortnight() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-1").await;
    scene.open_until(&reconciler, "order-ends", scene.clock.now().plus(SETTLE_MAX * 2)).await;
    scene.pass(&reconciler, SETTLE_MAX.saturating_sub(HOUR), HOUR).await;
    assert_eq!(list(reconciler.context()).await, [""; 0]);
    scene.pass(&reconciler, 2 * HOUR, HOUR).await;
    assert_eq!(list(reconciler.context()).await, ["order-1 no_money"]);
    // What the list advises.
    let moved = registration(&scene.account, "order-1", Some(&id), PAID);
    put(reconciler.context(), Registration { expires_at: Some(scene.clock.now()), ..moved }).await;
    scene.pass(&reconciler, 5 * MINUTE, MINUTE).await;
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Expired);
    assert_eq!(list(reconciler.context()).await, [""; 0]);
}

/// Its webhook is lost, and nobody can be asked: an account without a key, and an order whose payment nobody named.
#[tokio::test]
async fn an_order_that_nobody_can_be_asked_about_is_listed_after_a_fortnight() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let mut silent = context(Arc::clone(&scene.bench.store), scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
    silent.policy.asking = HashMap::new();
    put(&silent, registration(&scene.account, "order-silent", Some("pi_silent"), PAID)).await;
    put(reconciler.context(), registration(&scene.account, "order-nameless", None, PAID)).await;
    scene.clock.advance(SETTLE_MAX.saturating_sub(Duration::from_millis(1)));
    assert_eq!(list(&silent).await, [""; 0]);
    scene.clock.advance(Duration::from_millis(1));
    assert_eq!(list(&silent).await, ["order-nameless cannot_be_asked", "order-silent cannot_be_asked"]);
    // The webhook comes after all.
    let id = scene.stripe.ledger_mut().open("order-nameless", PAID, "EUR", false, scene.start);
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    scene.webhook(&reconciler).await;
    assert_eq!(list(&silent).await, ["order-silent cannot_be_asked"]);
}

/// Invariant I10, with every webhook lost: each order reaches the PSP's state, has expired, or is on the list by its deadline.
#[tokio::test]
async fn every_open_order_is_settled_or_listed() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let end = scene.clock.now().plus(Duration::from_hours(24 * 3));
    let paid = scene.open(&reconciler, "paid").await;
    let refused = scene.open(&reconciler, "canceled").await;
    scene.open(&reconciler, "abandoned").await;
    scene.open_until(&reconciler, "expiring", end).await;
    let nameless = registration(&scene.account, "nameless", None, PAID);
    put(reconciler.context(), nameless.clone()).await;
    put(reconciler.context(), Registration { order_id: "nameless-expiring".to_owned(), expires_at: Some(end), ..nameless }).await;
    put(reconciler.context(), registration(&scene.account, "mistyped", Some("pi_nobody_made"), PAID)).await;
    scene.stripe.ledger_mut().capture(&paid, PAID, scene.start);
    scene.stripe.ledger_mut().cancel(&refused, paybell::simulator::ledger::Cancellation::Abandoned, scene.start);
    scene.pass(&reconciler, SETTLE_MAX + HOUR, 30 * MINUTE).await;
    for (order, stands) in [
        ("paid", OrderStatus::Paid),
        ("canceled", OrderStatus::Canceled),
        ("expiring", OrderStatus::Expired),
        ("nameless-expiring", OrderStatus::Expired),
        ("abandoned", OrderStatus::Pending),
        ("nameless", OrderStatus::Pending),
        ("mistyped", OrderStatus::Pending),
    ] {
        assert_eq!(scene.order(order).await.view.status, stands, "{order}");
    }
    let listed = list(reconciler.context()).await;
    assert_eq!(listed, ["mistyped unknown_to_psp", "abandoned no_money", "nameless cannot_be_asked"]);
    scene.bench.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_and_the_command_list_it() {
    let folder = temporary_folder("unsettled").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let configuration = configuration(&file("queue.db"), &file("store.db"), "memory:");
    let serve = Service::serve(&configuration).await;
    let (shop, api) = (Shop::of(&serve, &serve), serve.api_url());
    let command = async |arguments: &[&str]| {
        let listen = api.trim_start_matches("http://");
        let command = Service::start_unready("paybell", arguments, &configuration, &[("PAYBELL_API_LISTEN", listen)]);
        (command.exit_status().await, command.log())
    };
    let (code, said) = command(&["unsettled"]).await;
    assert!(code == 0 && said.contains("can be settled by itself"), "{code}: {said}");

    for number in 0..5 {
        shop.register(&format!("order-{number}"), 4999).await;
    }
    let database = SqlitePool::connect(&file("store.db")).await.unwrap();
    sqlx::query("UPDATE unasked SET since = since - 1000 * 86400 * 15").execute(&database).await.unwrap();
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let (status, page) = shop.get(&format!("/v1/unsettled?limit=2{cursor}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        found.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut orders: Vec<&str> = found.iter().map(|item| item["order_id"].as_str().unwrap()).collect();
    orders.sort_unstable();
    assert_eq!(orders, ["order-0", "order-1", "order-2", "order-3", "order-4"], "{found:#?}");
    let one = &found[0];
    assert_eq!((&one["reason"], &one["status"]), (&"cannot_be_asked".into(), &"pending".into()));
    assert_eq!((&one["psp"], &one["account"], &one["payment_id"]), (&"stripe".into(), &"default".into(), &Value::Null));
    assert_eq!(one["expected"]["amount"], 4999);
    assert!(one["what_to_do"].as_str().is_some_and(|advice| advice.contains("expires_at")) && one["since"].is_string(), "{one}");
    let (_, none) = shop.get("/v1/unsettled?reason=no_answer").await;
    assert_eq!((none["items"].as_array().unwrap().len(), &none["next_cursor"]), (0, &Value::Null));

    let (code, said) = command(&["unsettled", "--limit", "3"]).await;
    assert!(code == 1 && said.contains("cannot_be_asked") && said.contains("There are more"), "{code}: {said}");
    let (code, said) = command(&["unsettled", "--json", "--reason", "cannot_be_asked"]).await;
    let said: Value = serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!((code, said["items"].as_array().unwrap().len(), &said["more"]), (1, 5, &false.into()));
    assert_eq!(command(&["unsettled", "--reason", "no_money"]).await.0, 0);
    assert_eq!(command(&["unsettled", "--reason", "bad_luck"]).await.0, 2);
    assert_eq!(command(&["unsettled", "--api", &format!("http://127.0.0.1:{}", free_port())]).await.0, 3);

    assert_eq!(shop.send(&webhook("payment_intent.succeeded", "order-3")).await, Some(StatusCode::OK));
    shop.until("order-3", "paid").await;
    assert_eq!(shop.get("/v1/unsettled").await.1["items"].as_array().unwrap().len(), 4);
    for (query, status) in [
        ("?limit=0", StatusCode::BAD_REQUEST),
        ("?limit=501", StatusCode::BAD_REQUEST),
        ("?reason=bad_luck", StatusCode::BAD_REQUEST),
        ("?cursor=x", StatusCode::BAD_REQUEST),
        ("?cursor=no_money.1.stripe%2Fdefault%2F%00", StatusCode::BAD_REQUEST),
        ("?status=paid", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(shop.get(&format!("/v1/unsettled{query}")).await.0, status, "{query}");
    }
    assert_eq!(Reason::ALL.len(), 5);
    database.close().await;
    drop(serve);
    std::fs::remove_dir_all(folder).unwrap();
}
