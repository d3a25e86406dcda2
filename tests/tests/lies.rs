//! A PSP that is down, asks for patience, refuses us, or lies: it is asked no more than is good manners, and nothing that it
//! does not say becomes true.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use paybell::simulator::Webhook;
use paybell::simulator::ledger::{RefundState, payment_id};
use paybell::simulator::paypal::PayPal;
use paybell::simulator::stripe::Stripe;
use paybell_shared::clock::{Clock as _, ManualClock, SystemClock};
use paybell_tests::conformance::store::Bench;
use paybell_tests::liar::{self, Liar, Line, Question};
use paybell_tests::played::Played;
use paybell_tests::scene::{Instead, PAID, Scene, scene};
use paybell_tests::worker::{context, delivery, key_of, message, register};
use paybell_worker::consume;
use paybell_worker::order::OrderStatus;
use paybell_worker::reconcile::{Reconciler, StepReport, step};
use paybell_worker::transport::{PspTransport, TransportError};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

/// Opens and captures so many payments, of which nobody hears.
async fn captured(scene: &Scene, reconciler: &Reconciler, payments: usize) {
    for number in 0..payments {
        let id = scene.open(reconciler, &format!("order-{number}")).await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    }
    scene.first_look_is_due();
}

/// Steps every `pause` for so long; the requests that it took.
async fn pass(scene: &Scene, reconciler: &Reconciler, time: Duration, pause: Duration) -> usize {
    let (before, end) = (scene.requests(), scene.clock.now().plus(time));
    while scene.clock.now() < end {
        step(reconciler).await.unwrap();
        scene.clock.advance(pause);
    }
    scene.requests() - before
}

#[tokio::test]
async fn a_psp_that_is_down_for_hours_sees_a_probe_now_and_then_and_then_all_is_learned() {
    const PAYMENTS: usize = 100;
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    captured(&scene, &reconciler, PAYMENTS).await;
    scene.answers(Some(Instead::of(503, "")));
    let while_down = pass(&scene, &reconciler, Duration::from_hours(4), 5 * SECOND).await;
    // Two steps of four until five failed in a row; then 30 s, 1, 2, 4, 8 minutes, and every ten.
    assert!((25..45).contains(&while_down), "{while_down} requests");
    scene.answers(None);
    // One probe, and then all of them at the account's rate.
    let after = pass(&scene, &reconciler, Duration::from_hours(2), 5 * SECOND).await;
    assert!(after >= PAYMENTS, "{after} requests");
    for number in 0..PAYMENTS {
        assert_eq!(scene.order(&format!("order-{number}")).await.view.status, OrderStatus::Paid);
    }
    scene.assert_true("order-0").await;
}

#[tokio::test]
async fn retry_after_is_kept_however_odd() {
    let hour = 3600;
    for (said, pause_s) in [
        (Some("7"), 7),
        (Some("0"), 1),
        (Some("99999999999999999999"), hour),
        // In the past.
        (Some("Mon, 21 Sep 2020 14:13:20 GMT"), 1),
        // No wait that anybody understands: as without one.
        (Some("soon"), 2),
        (Some("-5"), 2),
        (None, 2),
    ] {
        let scene = scene().await;
        let reconciler = scene.reconciler().await;
        captured(&scene, &reconciler, 1).await;
        scene.answers(Some(Instead { retry_after: said.map(str::to_owned), ..Instead::of(429, "{}") }));
        assert_eq!(step(&reconciler).await.unwrap().failed, 1, "{said:?}");
        scene.answers(None);
        // Whoever asks now is the shop's hint, which does not wait for the schedule.
        scene.bench.execute("UPDATE checks SET next_check_at = 0").await;
        scene.clock.advance(Duration::from_secs(pause_s).saturating_sub(Duration::from_millis(1)));
        assert_eq!(step(&reconciler).await.unwrap().asked, 0, "{said:?}");
        scene.clock.advance(Duration::from_millis(1));
        assert_eq!(scene.requests(), 1, "{said:?}");
        assert_eq!(step(&reconciler).await.unwrap().changed, 1, "{said:?}");
    }
}

#[tokio::test]
async fn refused_credentials_are_tried_four_times_an_hour() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    captured(&scene, &reconciler, 50).await;
    scene.answers(Some(Instead::of(401, json!({ "error": { "type": "invalid_request_error" } }).to_string())));
    let requests = pass(&scene, &reconciler, Duration::from_hours(24), 30 * SECOND).await;
    assert!((90..=4 + 24 * 4).contains(&requests), "{requests} requests in a day");
    scene.answers(None);
    pass(&scene, &reconciler, Duration::from_hours(2), 10 * SECOND).await;
    assert_eq!(scene.order("order-49").await.view.status, OrderStatus::Paid);
}

/// The PSP's read side lags behind its webhooks.
#[tokio::test]
async fn an_answer_that_lags_takes_nothing_back() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-1").await;
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    let webhook = Webhook::from(scene.stripe.ledger().events().last().unwrap());
    consume::step(reconciler.context(), &[delivery(1, message(&scene.account, &webhook))]).await.unwrap();
    let paid = scene.order("order-1").await;
    assert_eq!(paid.view.status, OrderStatus::Paid);
    for status in ["processing", "requires_payment_method", "canceled"] {
        let body = json!({ "id": id, "object": "payment_intent", "status": status, "livemode": false, "currency": "eur",
            "amount": PAID, "amount_received": 0, "amount_capturable": 0 });
        scene.answers(Some(Instead::of(200, body.to_string())));
        scene.bench.execute("UPDATE checks SET next_check_at = 0").await;
        let StepReport { asked, changed, .. } = step(&reconciler).await.unwrap();
        assert_eq!((asked, changed), (1, 0), "{status}");
        let now = scene.order("order-1").await;
        assert_eq!((now.view.status, now.view.captured), (OrderStatus::Paid, PAID), "{status}");
        scene.clock.advance(Duration::from_hours(1));
    }
    scene.bench.check_invariants().await;
}

#[tokio::test]
async fn an_answer_of_a_time_to_come_or_of_an_unknown_kind_changes_nothing() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    captured(&scene, &reconciler, 1).await;
    let registered = scene.order("order-0").await;
    let id = scene.bench.texts("SELECT payment_id FROM checks").await.remove(0);
    *scene.api.ahead.lock().unwrap() = Duration::from_hours(24 * 365);
    assert_eq!(step(&reconciler).await.unwrap().failed, 1);
    assert_eq!(scene.order("order-0").await, registered, "a year ahead");
    *scene.api.ahead.lock().unwrap() = Duration::ZERO;
    scene.clock.advance(Duration::from_hours(2));
    let body = json!({ "id": id, "object": "payment_intent", "status": "teleported", "livemode": false });
    scene.answers(Some(Instead::of(200, body.to_string())));
    step(&reconciler).await.unwrap();
    assert_eq!(scene.order("order-0").await, registered, "an unknown status");
    scene.answers(None);
    scene.clock.advance(Duration::from_hours(7));
    assert_eq!(step(&reconciler).await.unwrap().changed, 1);
    scene.assert_true("order-0").await;
}

/// Not found, again and again, is never a failed payment; and what turns up later counts.
#[tokio::test]
async fn a_payment_that_the_psp_does_not_know_is_neither_failed_nor_forgotten() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    captured(&scene, &reconciler, 1).await;
    let registered = scene.order("order-0").await;
    scene.answers(Some(Instead::of(404, json!({ "error": { "code": "resource_missing" } }).to_string())));
    let requests = pass(&scene, &reconciler, Duration::from_hours(24 * 10), Duration::from_mins(5)).await;
    assert!((10..40).contains(&requests), "{requests} requests in ten days");
    assert_eq!(scene.order("order-0").await, registered);
    assert_eq!(scene.bench.count("SELECT count(*) FROM checks WHERE missing_since IS NOT NULL").await, 1);
    scene.answers(None);
    pass(&scene, &reconciler, Duration::from_hours(27), Duration::from_mins(5)).await;
    assert_eq!(scene.order("order-0").await.view.status, OrderStatus::Paid);
    assert_eq!(scene.bench.count("SELECT count(*) FROM checks WHERE missing_since IS NOT NULL").await, 0);
}

/// Stripe pages refunds by the last id: a page that leads to itself, and one that never ends.
#[tokio::test]
async fn pages_that_lead_nowhere_are_left() {
    let scene = scene().await;
    let transport = Arc::new(Circles { requests: AtomicUsize::new(0), endless: Mutex::new(false) });
    let context = context(Arc::clone(&scene.bench.store), scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
    let reconciler = Reconciler::new(Arc::new(context), transport.clone());
    captured(&scene, &reconciler, 1).await;
    let registered = scene.order("order-0").await;
    for (endless, most) in [(false, 4), (true, 32)] {
        *transport.endless.lock().unwrap() = endless;
        transport.requests.store(0, Ordering::SeqCst);
        assert_eq!(step(&reconciler).await.unwrap().failed, 1);
        let requests = transport.requests.load(Ordering::SeqCst);
        assert!((2..=most).contains(&requests), "{requests} requests");
        assert_eq!(scene.order("order-0").await, registered, "no part of such an answer counts");
        scene.clock.advance(Duration::from_hours(2));
    }
}

/// Rows shift from page to page while they are read, and time goes on: a refund that two pages list is one refund, as the later
/// page has it, and not a contradiction between two.
#[tokio::test]
async fn a_row_that_comes_again_on_the_next_page_is_one() {
    let scene = scene().await;
    let clock = scene.clock.clone();
    let refund = |id: &str, status: &str| {
        json!({ "id": id, "object": "refund", "amount": 1000, "currency": "eur", "status": status, "created": 1,
            "payment_intent": payment_id(&Stripe, "order-0"), "charge": "ch_1" })
    };
    let liar = Liar::new(scene.clock.clone(), move |question: &Question| {
        clock.advance(SECOND);
        Line::Says(match (question.path.as_str(), question.query.contains("starting_after")) {
            ("/v1/refunds", false) => liar::page(&[refund("re_2", "pending"), refund("re_1", "succeeded")], true),
            ("/v1/refunds", true) => liar::page(&[refund("re_2", "succeeded"), refund("re_0", "succeeded")], false),
            ("/v1/disputes", _) => liar::page(&[], false),
            _ => liar::paid_intent(question.id(), PAID),
        })
    });
    let context = context(Arc::clone(&scene.bench.store), scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
    let reconciler = Reconciler::new(Arc::new(context), Arc::<Liar>::clone(&liar));
    scene.open(&reconciler, "order-0").await;
    scene.first_look_is_due();
    assert_eq!(step(&reconciler).await.unwrap().changed, 1);
    let view = scene.order("order-0").await.view;
    assert_eq!((view.status, view.refunded, view.review), (OrderStatus::PartiallyRefunded, 3000, None));
    assert_eq!(scene.bench.count("SELECT count(*) FROM events WHERE outcome = 'quarantined'").await, 0);
    scene.bench.check_invariants().await;
}

/// PayPal's capture and the order that it belongs to are asked about at once, by one lease, and lead to one payment. Their
/// answers are a second apart.
#[tokio::test]
async fn two_names_of_one_payment_that_are_asked_about_together_tell_of_it_twice() {
    let (bench, clock) = (Bench::sqlite().await, Arc::new(ManualClock::at(SystemClock.now())));
    let played = Played::new(&PayPal, clock.clone()).await;
    let reconciler = played.reconciler(&bench.store, &clock).await;
    let at = clock.now().seconds() - 3600;
    let (id, capture) = {
        let ledger = &mut played.simulated.ledger_mut();
        let id = ledger.open("order-1", PAID, "EUR", false, at);
        ledger.capture(&id, PAID, at + 1);
        let capture = ledger.payment(&id).unwrap().captures[0].id.clone();
        (id, capture)
    };
    register(reconciler.context(), &played.account, "order-1", &id, PAID).await;
    let names = BTreeSet::from([(key_of(&played.account), id), (key_of(&played.account), format!("capture:{capture}"))]);
    bench.store.ask_about(clock.now(), &names).await.unwrap();
    *played.api.ticks.lock().unwrap() = SECOND;
    assert_eq!(step(&reconciler).await.unwrap(), StepReport { asked: 2, changed: 1, failed: 0 });
    assert_eq!(bench.count("SELECT count(*) FROM events WHERE outcome = 'quarantined'").await, 0);
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Paid);
    bench.check_invariants().await;
}

/// PayPal tells of a refund that its API does not show yet: the hint is not used up by an answer that says nothing new.
#[tokio::test]
async fn a_hint_that_the_answer_does_not_explain_is_asked_about_once_more() {
    let (bench, clock) = (Bench::sqlite().await, Arc::new(ManualClock::at(SystemClock.now())));
    let played = Played::new(&PayPal, clock.clone()).await;
    let reconciler = played.reconciler(&bench.store, &clock).await;
    let at = clock.now().seconds() - 3600;
    let id = {
        let ledger = &mut played.simulated.ledger_mut();
        let id = ledger.open("order-1", PAID, "EUR", false, at);
        ledger.capture(&id, PAID, at + 1);
        id
    };
    register(reconciler.context(), &played.account, "order-1", &id, PAID).await;
    let usual_delay = played.account.psp.profile().usual_delay;
    clock.advance(usual_delay);
    assert_eq!(step(&reconciler).await.unwrap().changed, 1);
    let hints = BTreeSet::from([(key_of(&played.account), id.clone())]);
    clock.advance(Duration::from_mins(10));
    bench.store.ask_about(clock.now(), &hints).await.unwrap();
    assert_eq!(step(&reconciler).await.unwrap(), StepReport { asked: 1, changed: 0, failed: 0 });
    played.simulated.ledger_mut().refund(&id, PAID, RefundState::Succeeded, clock.now().seconds());
    clock.advance(usual_delay);
    assert_eq!(step(&reconciler).await.unwrap(), StepReport { asked: 1, changed: 1, failed: 0 });
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Refunded);
    // Once more, and not for ever.
    clock.advance(Duration::from_mins(10));
    bench.store.ask_about(clock.now(), &hints).await.unwrap();
    for asked in [1, 1, 0, 0] {
        assert_eq!(step(&reconciler).await.unwrap().asked, asked);
        clock.advance(usual_delay);
    }
}

/// A payment that says it was refunded, and lists of its refunds that go on.
struct Circles {
    requests: AtomicUsize,
    endless: Mutex<bool>,
}

#[async_trait]
impl PspTransport for Circles {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, TransportError> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let path = request.uri().path();
        let body = if path.starts_with("/v1/refunds") {
            let id = if *self.endless.lock().unwrap() { format!("re_{number}") } else { "re_1".to_owned() };
            let refund = json!({ "id": id, "object": "refund", "amount": 1, "currency": "eur", "status": "succeeded",
                "payment_intent": "pi_1", "charge": "ch_1", "created": 1 });
            json!({ "object": "list", "has_more": true, "data": [refund] })
        } else {
            let id = path.rsplit('/').next().unwrap();
            let charge = json!({ "id": "ch_1", "object": "charge", "amount": PAID, "amount_captured": PAID, "amount_refunded": 100,
                "currency": "eur", "captured": true, "paid": true, "status": "succeeded", "payment_intent": id, "refunded": false,
                "disputed": false, "livemode": false, "created": 1 });
            json!({ "id": id, "object": "payment_intent", "status": "succeeded", "livemode": false, "currency": "eur", "amount": PAID,
                "amount_received": PAID, "amount_capturable": 0, "latest_charge": charge })
        };
        Ok(http::Response::new(body.to_string().into()))
    }
}

/// After an outage of ours or of theirs: those that wait longest come first.
#[tokio::test]
async fn a_backlog_is_caught_up_with_oldest_first_and_at_the_rate() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let mut opened = Vec::new();
    for number in 0..200 {
        opened.push(scene.open(&reconciler, &format!("order-{number}")).await);
        scene.clock.advance(SECOND);
    }
    scene.clock.advance(Duration::from_hours(24 * 3));
    let per_second = scene.account.psp.profile().asks_per_second as usize;
    let mut seconds = 0;
    while scene.bench.count("SELECT count(*) FROM checks WHERE looks = 0").await > 0 {
        let before = scene.requests();
        while step(&reconciler).await.unwrap().asked > 0 {}
        let burst = if seconds == 0 { 2 * per_second } else { per_second };
        assert!(scene.requests() - before <= burst, "in second {seconds}");
        scene.clock.advance(SECOND);
        seconds += 1;
    }
    let paths = scene.api.paths.lock().unwrap().clone();
    let asked: Vec<&str> = paths.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
    // Four at a time, in no order among themselves.
    for (place, id) in asked.iter().enumerate() {
        let turn = opened.iter().position(|opened| opened == id).unwrap();
        assert!(turn.abs_diff(place) < 4, "{id} is asked about as number {place}, and is {turn}");
    }
    assert_eq!(asked.len(), 200, "each once");
}
