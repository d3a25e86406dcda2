//! `expiry::step` beside `reconcile::step` against the simulated Stripe, in virtual time: when an order's time is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use paybell::simulator::ledger::{Cancellation, DECLINES};
use paybell_shared::clock::{Clock as _, Timestamp};
use paybell_tests::conformance::store::Bench;
use paybell_tests::scene::{Instead, PAID, Scene, scene, scene_with};
use paybell_tests::servers;
use paybell_tests::worker::{context, put, registration};
use paybell_worker::consume::Context;
use paybell_worker::expiry::{self, StepReport};
use paybell_worker::order::OrderStatus;
use paybell_worker::reconcile::{self, Reconciler};
use paybell_worker::store::{Registration, Scope};
use paybell_worker::timeline::{Line, LineKind};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

fn end(scene: &Scene) -> Timestamp {
    scene.clock.now().plus(HOUR)
}

async fn status(scene: &Scene, order_id: &str) -> OrderStatus {
    scene.order(order_id).await.view.status
}

/// Every row agrees, and it is said in the order's timeline.
async fn assert_proven(scene: &Scene, reconciler: &Reconciler, order_id: &str, expired: usize) {
    let scope = Scope { policy: &reconciler.context().policy, bodies_kept_since: None };
    let report = scene.bench.store.audit(scope, &|_, _| ()).await.unwrap();
    assert!(report.is_balanced(), "{:#?}", report.findings);
    let timeline = scene.bench.store.timeline(order_id, None, 500).await.unwrap().unwrap();
    let lines: Vec<Line> = timeline.into_iter().map(Line::of).filter(|line| line.kind == LineKind::Expired).collect();
    assert_eq!(lines.len(), expired);
    let says_how = |line: &Line| ["knew of no money", "nobody could be asked"].iter().any(|how| line.text.contains(how));
    assert!(lines.iter().all(says_how), "{lines:#?}");
    scene.bench.check_invariants().await;
}

/// At its end, two looks a minute apart, both after it; and not before.
async fn an_order_that_nobody_pays_expires_soon_after_its_end(scene: Scene) {
    let reconciler = scene.reconciler().await;
    let end = end(&scene);
    scene.open_until(&reconciler, "order-1", end).await;
    scene.pass(&reconciler, HOUR, 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Pending);
    let before = scene.requests();
    let mut took = Duration::ZERO;
    while status(&scene, "order-1").await == OrderStatus::Pending {
        scene.pass(&reconciler, SECOND, SECOND).await;
        took += SECOND;
    }
    let order = scene.order("order-1").await;
    assert_eq!((order.view.status, order.version), (OrderStatus::Expired, 2));
    assert!((60 * SECOND..=90 * SECOND).contains(&took), "{took:?}");
    assert_eq!(scene.requests() - before, 2, "two looks");
    assert_proven(&scene, &reconciler, "order-1", 1).await;
    let seen: Vec<String> = scene.bench.texts("SELECT CAST(detail AS text) FROM actions WHERE kind = 'expired'").await;
    let said: serde_json::Value = serde_json::from_str(&seen[0]).unwrap();
    let looks = said["asked"][0]["looks"].as_array().unwrap();
    let looks: Vec<Timestamp> = looks.iter().map(|at| Timestamp::parse_rfc3339(at.as_str().unwrap()).unwrap()).collect();
    assert!(looks[0] >= end && looks[1].since(looks[0]) >= scene.account.psp.profile().usual_delay, "{said}");
    scene.pass(&reconciler, HOUR, Duration::from_mins(1)).await;
    assert_eq!(scene.order("order-1").await, order, "once");
}

#[tokio::test]
async fn an_order_that_nobody_pays_expires_soon_after_its_end_on_sqlite() {
    an_order_that_nobody_pays_expires_soon_after_its_end(scene().await).await;
}

#[tokio::test]
async fn an_order_that_nobody_pays_expires_soon_after_its_end_on_postgres() {
    let bench = Bench::new(servers::postgres().await.database().await).await;
    an_order_that_nobody_pays_expires_soon_after_its_end(scene_with(bench).await).await;
}

#[tokio::test]
async fn a_failed_attempt_expires_and_a_canceled_or_paid_one_does_not() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let end = end(&scene);
    let mut ids = Vec::new();
    for order in ["failed", "canceled", "paid", "authorized"] {
        ids.push(scene.open_until(&reconciler, order, end).await);
    }
    {
        let mut stripe = scene.stripe.ledger_mut();
        stripe.decline(&ids[0], DECLINES[0], scene.start);
        stripe.cancel(&ids[1], Cancellation::Abandoned, scene.start);
        stripe.capture(&ids[2], PAID, scene.start);
        stripe.authorize(&ids[3], scene.start);
    }
    scene.pass(&reconciler, 3 * HOUR, 10 * SECOND).await;
    for (order, stands) in [
        ("failed", OrderStatus::Expired),
        ("canceled", OrderStatus::Canceled),
        ("paid", OrderStatus::Paid),
        ("authorized", OrderStatus::Authorized),
    ] {
        assert_eq!(status(&scene, order).await, stands, "{order}");
    }
    assert_proven(&scene, &reconciler, "failed", 1).await;
}

/// By webhook and by poll; the payer paid a minute after all was over.
#[tokio::test]
async fn a_late_success_wins() {
    for by_webhook in [true, false] {
        let scene = scene().await;
        let reconciler = scene.reconciler().await;
        let id = scene.open_until(&reconciler, "order-1", end(&scene)).await;
        scene.pass(&reconciler, 2 * HOUR, 10 * SECOND).await;
        assert_eq!(status(&scene, "order-1").await, OrderStatus::Expired);
        scene.stripe.ledger_mut().capture(&id, PAID, scene.clock.now().seconds());
        if by_webhook {
            scene.webhook(&reconciler).await;
        } else {
            scene.pass(&reconciler, Duration::from_hours(12), Duration::from_mins(1)).await;
        }
        assert_eq!(status(&scene, "order-1").await, OrderStatus::Paid);
        assert_proven(&scene, &reconciler, "order-1", 1).await;
        scene.assert_true("order-1").await;
    }
}

/// Just before the second look.
#[tokio::test]
async fn a_success_between_the_two_looks_is_seen() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open_until(&reconciler, "order-1", end(&scene)).await;
    scene.pass(&reconciler, HOUR + 30 * SECOND, 10 * SECOND).await;
    scene.stripe.ledger_mut().capture(&id, PAID, scene.clock.now().seconds());
    scene.pass(&reconciler, HOUR, 10 * SECOND).await;
    let order = scene.order("order-1").await;
    assert_eq!((order.view.status, order.version), (OrderStatus::Paid, 2), "it never expired");
    assert_proven(&scene, &reconciler, "order-1", 0).await;
}

#[tokio::test]
async fn an_end_that_the_shop_moves_counts() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let first = end(&scene);
    scene.open_until(&reconciler, "order-1", first).await;
    let moved = |to: Timestamp| Registration { expires_at: Some(to), ..registration(&scene.account, "order-1", None, PAID) };
    put(reconciler.context(), moved(first.plus(HOUR))).await;
    scene.pass(&reconciler, HOUR + Duration::from_mins(10), 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Pending, "it was given an hour more");
    scene.pass(&reconciler, HOUR, 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Expired);
    // A new end makes it live again, and it expires again.
    let again = put(reconciler.context(), moved(scene.clock.now().plus(HOUR))).await;
    assert_eq!((again.view.status, again.version), (OrderStatus::Pending, 3));
    scene.pass(&reconciler, HOUR.saturating_sub(10 * SECOND), 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Pending);
    scene.pass(&reconciler, Duration::from_mins(3), 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Expired);
    // An earlier one changes nothing that shows.
    let earlier = put(reconciler.context(), moved(first)).await;
    assert_eq!((earlier.view.status, earlier.version), (OrderStatus::Expired, 4));
    assert_proven(&scene, &reconciler, "order-1", 2).await;
}

/// Of the same end, and by facts alone: the expiry is not lost.
#[tokio::test]
async fn rebuilding_the_order_keeps_it() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open_until(&reconciler, "order-1", end(&scene)).await;
    scene.stripe.ledger_mut().decline(&id, DECLINES[0], scene.start);
    scene.webhook(&reconciler).await;
    scene.pass(&reconciler, 2 * HOUR, 10 * SECOND).await;
    let expired = scene.order("order-1").await;
    assert_eq!(expired.view.status, OrderStatus::Expired);
    // What is stored is what all facts amount to, joined anew.
    assert_proven(&scene, &reconciler, "order-1", 1).await;
    scene.webhook(&reconciler).await;
    assert_eq!(scene.order("order-1").await, expired, "a duplicate");
}

/// It does not agree: the order waits, and the PSP is not stormed.
#[tokio::test]
async fn a_psp_that_does_not_answer_lets_nothing_expire() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    scene.open_until(&reconciler, "order-1", end(&scene)).await;
    scene.pass(&reconciler, HOUR.saturating_sub(Duration::from_mins(5)), 10 * SECOND).await;
    scene.answers(Some(Instead::of(503, "")));
    let before = scene.requests();
    scene.pass(&reconciler, Duration::from_hours(12), 10 * SECOND).await;
    let order = scene.order("order-1").await;
    assert_eq!((order.view.status, order.version), (OrderStatus::Pending, 1));
    let requests = scene.requests() - before;
    assert!((5..40).contains(&requests), "{requests} requests in 12 hours");
    scene.answers(None);
    scene.pass(&reconciler, 2 * HOUR, 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Expired);
    assert_proven(&scene, &reconciler, "order-1", 1).await;
}

/// Nor does one that does not know the payment.
#[tokio::test]
async fn a_psp_that_does_not_know_the_payment_lets_nothing_expire() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    scene.open_until(&reconciler, "order-1", end(&scene)).await;
    scene.answers(Some(Instead::of(404, r#"{"error":{"code":"resource_missing"}}"#)));
    scene.pass(&reconciler, Duration::from_hours(12), Duration::from_mins(1)).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Pending);
}

/// A worker of the same configuration that can ask nobody.
async fn silent_worker(scene: &Scene) -> Context {
    let mut context = context(Arc::clone(&scene.bench.store), scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
    context.policy.asking = HashMap::new();
    context
}

#[tokio::test]
async fn where_nobody_can_be_asked_the_clock_decides() {
    let scene = scene().await;
    let context = silent_worker(&scene).await;
    let end = end(&scene);
    for (order, payment) in [("order-1", Some("pi_1")), ("order-2", None)] {
        put(&context, Registration { expires_at: Some(end), ..registration(&scene.account, order, payment, PAID) }).await;
    }
    let step = async || expiry::step(&context).await.unwrap();
    scene.clock.advance(HOUR.saturating_sub(SECOND));
    assert_eq!(step().await, StepReport::default());
    scene.clock.advance(SECOND);
    assert_eq!(step().await, StepReport { attended: 2, expired: 0, looks: 0 }, "a webhook of the last moment may be on its way");
    scene.clock.advance(scene.account.psp.profile().usual_delay.saturating_sub(SECOND));
    assert_eq!(step().await.expired, 0);
    scene.clock.advance(SECOND);
    assert_eq!(step().await, StepReport { attended: 2, expired: 2, looks: 0 });
    for order in ["order-1", "order-2"] {
        assert_eq!(status(&scene, order).await, OrderStatus::Expired);
    }
    assert_eq!(scene.requests(), 0);
    assert_eq!(scene.bench.count("SELECT count(*) FROM unasked").await, 0, "they wait no more");
    let scope = Scope { policy: &context.policy, bodies_kept_since: None };
    let report = scene.bench.store.audit(scope, &|_, _| ()).await.unwrap();
    assert!(report.is_balanced(), "{:#?}", report.findings);
}

/// Where no payment is known, there is nobody to ask about.
#[tokio::test]
async fn an_order_without_a_payment_expires_by_the_clock() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let ends = Registration { expires_at: Some(end(&scene)), ..registration(&scene.account, "order-1", None, PAID) };
    put(reconciler.context(), ends).await;
    scene.pass(&reconciler, HOUR + Duration::from_mins(2), 10 * SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Expired);
    assert_proven(&scene, &reconciler, "order-1", 1).await;
}

/// Each once, on the database that they share.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_workers_expire_each_order_once() {
    const ORDERS: usize = 250;
    let scene = scene_with(Bench::new(servers::postgres().await.database().await).await).await;
    let context = silent_worker(&scene).await;
    let end = end(&scene);
    for number in 0..ORDERS {
        let order = registration(&scene.account, &format!("order-{number}"), None, PAID);
        put(&context, Registration { expires_at: Some(end), ..order }).await;
    }
    scene.clock.advance(HOUR + Duration::from_mins(1));
    let workers = [silent_worker(&scene).await, silent_worker(&scene).await, silent_worker(&scene).await];
    let worker = async |context: &Context| {
        let mut expired = 0;
        loop {
            let report = expiry::step(context).await.unwrap();
            expired += report.expired;
            if report.attended == 0 && scene.bench.count("SELECT count(*) FROM orders WHERE status = 'pending'").await == 0 {
                return expired;
            }
        }
    };
    let (one, two, three) = tokio::join!(worker(&workers[0]), worker(&workers[1]), worker(&workers[2]));
    assert_eq!(one + two + three, ORDERS);
    assert_eq!(scene.bench.count("SELECT count(*) FROM actions WHERE kind = 'expired'").await, i64::try_from(ORDERS).unwrap());
    assert_eq!(scene.bench.count("SELECT count(*) FROM transitions").await, 2 * i64::try_from(ORDERS).unwrap());
    scene.bench.check_invariants().await;
}

/// A worker that died after it leased an order, and one whose answer came while the order was leased.
#[tokio::test]
async fn a_lease_that_nobody_ends_is_the_next_ones() {
    let scene = scene().await;
    let context = silent_worker(&scene).await;
    let ends = Registration { expires_at: Some(end(&scene)), ..registration(&scene.account, "order-1", None, PAID) };
    put(&context, ends).await;
    scene.clock.advance(2 * HOUR);
    let now = scene.clock.now();
    assert_eq!(scene.bench.store.lease_orders(now, now.plus(Duration::from_mins(1)), 100).await.unwrap().len(), 1);
    assert_eq!(expiry::step(&context).await.unwrap(), StepReport::default());
    scene.clock.advance(Duration::from_mins(1));
    assert_eq!(expiry::step(&context).await.unwrap().expired, 1);
}

/// The looks that it plans are those of all payments; one that is asked about anyway is not asked more.
#[tokio::test]
async fn every_payment_of_the_order_is_asked_about() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let end = end(&scene);
    let first = scene.open_until(&reconciler, "order-1", end).await;
    let second = scene.stripe.ledger_mut().open("order-1-again", PAID, "EUR", false, scene.start);
    put(reconciler.context(), registration(&scene.account, "order-1", Some(&second), PAID)).await;
    scene.clock.advance(HOUR);
    assert_eq!(expiry::step(reconciler.context()).await.unwrap(), StepReport { attended: 1, expired: 0, looks: 0 });
    while reconcile::step(&reconciler).await.unwrap().asked > 0 {}
    scene.pass(&reconciler, Duration::from_mins(5), SECOND).await;
    assert_eq!(status(&scene, "order-1").await, OrderStatus::Expired);
    let asked = scene.api.asked.lock().unwrap().clone();
    for id in [first, second] {
        assert_eq!(asked[&format!("/v1/payment_intents/{id}")], 2, "{asked:?}");
    }
}
