//! `reconcile::step` against the simulated Stripe's API over HTTP: what every webhook lost comes to, and what no answer does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use paybell::simulator::Webhook;
use paybell::simulator::ledger::{DECLINES, DisputeState, Ledger, RefundState, payment_id};
use paybell::simulator::stripe::Stripe;
use paybell_shared::clock::Clock as _;
use paybell_shared::psp::Account;
use paybell_tests::scene::{Instead, PAID, account_at, scene};
use paybell_tests::servers::free_port;
use paybell_tests::worker::{FailingStore, Panicking, context, delivery, message};
use paybell_worker::consume;
use paybell_worker::order::{OrderStatus, ReviewReason};
use paybell_worker::reconcile::{Reconciler, StepReport, step};
use paybell_worker::store::{StoreError, StoredOrder};
use paybell_worker::transport::{HttpTransport, PspTransport, TransportError};
use serde_json::json;

/// Longer than the longest time between two looks at an open payment in its first week.
const UNTIL_THE_NEXT_LOOK: Duration = Duration::from_hours(27);

/// Counts requests on their way.
struct Counting {
    transport: HttpTransport,
    now: AtomicUsize,
    max: AtomicUsize,
}

#[async_trait]
impl PspTransport for Counting {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, TransportError> {
        self.max.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let response = self.transport.send(request).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        response
    }
}

const CHANGED: StepReport = StepReport { asked: 1, changed: 1, failed: 0 };
const SAME: StepReport = StepReport { asked: 1, changed: 0, failed: 0 };
const FAILED: StepReport = StepReport { asked: 1, changed: 0, failed: 1 };
const NOTHING_DUE: StepReport = StepReport { asked: 0, changed: 0, failed: 0 };

#[tokio::test]
async fn a_payment_whose_every_webhook_is_lost_is_paid_by_its_first_look() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-1").await;
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    assert_eq!(step(&reconciler).await.unwrap(), NOTHING_DUE);
    scene.first_look_is_due();
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED);
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Paid);
    scene.assert_true("order-1").await;
    assert_eq!(step(&reconciler).await.unwrap(), NOTHING_DUE);
}

#[tokio::test]
async fn a_look_that_finds_nothing_new_changes_nothing() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-1").await;
    scene.stripe.ledger_mut().decline(&id, DECLINES[0], scene.start);
    scene.first_look_is_due();
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED);
    let before = scene.order("order-1").await;
    assert_eq!(before.view.status, OrderStatus::Failed);
    for days in [1, 2, 4] {
        scene.clock.advance(UNTIL_THE_NEXT_LOOK * days);
        assert_eq!(step(&reconciler).await.unwrap(), SAME);
        assert_eq!(scene.order("order-1").await, before);
    }
    // Failed is not final.
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start + 60);
    scene.clock.advance(UNTIL_THE_NEXT_LOOK * 8);
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED);
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Paid);
    scene.assert_true("order-1").await;
}

#[tokio::test]
async fn looks_at_what_stays_the_same_grow_rarer() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    scene.open(&reconciler, "order-1").await;
    scene.first_look_is_due();
    let mut minutes = Vec::new();
    for _ in 0..4 {
        assert_eq!(step(&reconciler).await.unwrap().asked, 1);
        let mut waited = 0;
        let due = "SELECT count(*) FROM checks WHERE next_check_at <= ";
        while scene.bench.count(&format!("{due}{}", scene.clock.now().millis())).await == 0 {
            scene.clock.advance(Duration::from_mins(1));
            waited += 1;
        }
        minutes.push(waited);
    }
    assert!(minutes.is_sorted() && minutes[0] >= 1 && minutes[0] < minutes[3], "{minutes:?}");
}

/// Webhook first, poll first, both at once: one end and one effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_and_a_look_come_to_the_same_in_any_order() {
    let mut ends = Vec::new();
    for order in 0..8 {
        let scene = scene().await;
        let reconciler = scene.reconciler().await;
        let id = scene.open(&reconciler, "order-1").await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
        let webhook = Webhook::from(scene.stripe.ledger().events().last().unwrap());
        let batch = [delivery(1, message(&scene.account, &webhook))];
        scene.first_look_is_due();
        let consume = async || assert_eq!(consume::step(reconciler.context(), &batch).await.unwrap()[0].1.as_str(), "done");
        // If the webhook was first, there is nothing to ask about.
        let look = async || assert_eq!(step(&reconciler).await.unwrap().failed, 0);
        match order {
            0 => {
                consume().await;
                look().await;
            }
            1 => {
                look().await;
                consume().await;
            }
            _ => {
                tokio::join!(look(), consume());
            }
        }
        scene.assert_true("order-1").await;
        let StoredOrder { view, version, .. } = scene.order("order-1").await;
        assert_eq!((view.status, view.captured, version), (OrderStatus::Paid, PAID, 2), "registered, then paid once");
        ends.push(view);
    }
    ends.dedup();
    assert_eq!(ends.len(), 1, "{ends:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_what_is_due_and_ask_once_each() {
    const PAYMENTS: usize = 50;
    let scene = scene().await;
    let (one, other) = (scene.reconciler().await, scene.reconciler().await);
    for number in 0..PAYMENTS {
        scene.open(&one, &format!("order-{number}")).await;
    }
    scene.first_look_is_due();
    let left = "SELECT count(*) FROM checks WHERE looks = 0";
    let until_nothing_is_due = async |reconciler: &Reconciler| {
        let mut asked = 0;
        loop {
            match step(reconciler).await.unwrap() {
                // The rate keeps them waiting.
                NOTHING_DUE if scene.bench.count(left).await == 0 => return asked,
                NOTHING_DUE => scene.clock.advance(Duration::from_millis(50)),
                report => asked += report.asked,
            }
        }
    };
    let (of_one, of_other) = tokio::join!(until_nothing_is_due(&one), until_nothing_is_due(&other));
    assert_eq!(of_one + of_other, PAYMENTS);
    let asked = scene.api.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), PAYMENTS);
    assert!(asked.values().all(|times| *times == 1), "{asked:?}");
    scene.bench.check_invariants().await;
}

/// All looks begin before any answer can be there, so whoever may ask at once does.
#[tokio::test]
async fn an_account_is_asked_four_questions_at_a_time() {
    let scene = scene().await;
    let transport = HttpTransport::new().unwrap();
    let counting = Arc::new(Counting { transport, now: AtomicUsize::new(0), max: AtomicUsize::new(0) });
    let reconciler = Reconciler::new(scene.reconciler().await.asker.context, counting.clone());
    for number in 0..9 {
        scene.open(&reconciler, &format!("order-{number}")).await;
    }
    scene.first_look_is_due();
    let StepReport { asked, failed, .. } = step(&reconciler).await.unwrap();
    assert_eq!((asked, failed), (4, 0));
    assert_eq!(counting.max.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn no_answer_is_no_failure_of_the_payment() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-1").await;
    let registered = scene.order("order-1").await;
    let intent = |id: &str, status: &str| json!({ "id": id, "object": "payment_intent", "status": status }).to_string();
    let answers = [
        (500, "{}".to_owned()),
        (503, String::new()),
        (429, json!({ "error": { "type": "rate_limit_error" } }).to_string()),
        (401, json!({ "error": { "type": "invalid_request_error" } }).to_string()),
        (403, "{}".to_owned()),
        (404, json!({ "error": { "code": "resource_missing" } }).to_string()),
        (302, String::new()),
        (204, String::new()),
        (200, String::new()),
        (200, "<html>maintenance</html>".to_owned()),
        (200, "{\"id\":".to_owned()),
        (200, "[]".to_owned()),
        (200, "[".repeat(100_000)),
        (200, " ".repeat(5 * 1024 * 1024)),
        (200, intent("pi_another", "canceled")),
        (200, intent(&id, "succeeded")),
    ];
    for (status, body) in answers {
        let shown = format!("{status} {}", &body[..body.len().min(60)]);
        scene.answers(Some(Instead::of(status, body)));
        scene.clock.advance(UNTIL_THE_NEXT_LOOK);
        assert_eq!(step(&reconciler).await.unwrap(), FAILED, "{shown}");
        assert_eq!(scene.order("order-1").await, registered, "{shown}");
    }
    scene.answers(None);
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    scene.clock.advance(UNTIL_THE_NEXT_LOOK);
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED);
    scene.assert_true("order-1").await;
}

#[tokio::test]
async fn a_psp_that_is_not_reached_is_asked_again() {
    let mut scene = scene().await;
    scene.account = account_at(free_port());
    let reconciler = scene.reconciler().await;
    scene.open(&reconciler, "order-1").await;
    for _ in 0..2 {
        scene.clock.advance(UNTIL_THE_NEXT_LOOK);
        assert_eq!(step(&reconciler).await.unwrap(), FAILED);
        assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Pending);
    }
}

/// The oldest is the one that the database refuses, each time: the others are looked at all the same.
#[tokio::test]
async fn an_answer_that_the_database_refuses_costs_only_its_payment() {
    let errors: [fn() -> StoreError; 2] = [
        || StoreError::Refused(sqlx::Error::PoolClosed),
        || StoreError::Inconsistent { table: "orders", column: "view", key: "x".to_owned(), problem: "newer".to_owned() },
    ];
    for error in errors {
        let scene = scene().await;
        let refused = payment_id(&Stripe, "order-0");
        let store = FailingStore::new(
            Arc::clone(&scene.bench.store),
            Box::new(move |work| {
                let rows = work.arrivals.iter().flat_map(|arrival| &arrival.rows);
                rows.map(|row| &row.key.event_id).any(|id| id.contains(&refused)).then(error)
            }),
        );
        let context = context(store, scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
        let reconciler = Reconciler::new(Arc::new(context), Arc::new(HttpTransport::new().unwrap()));
        for number in 0..3 {
            let id = scene.open(&reconciler, &format!("order-{number}")).await;
            scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
            scene.clock.advance(Duration::from_secs(1));
        }
        scene.first_look_is_due();
        assert_eq!(step(&reconciler).await.unwrap(), StepReport { asked: 3, changed: 2, failed: 1 });
        assert_eq!(scene.order("order-0").await.view.status, OrderStatus::Pending);
        scene.assert_true("order-1").await;
        scene.assert_true("order-2").await;
    }
}

/// The transaction of one answer loses against others, again and again: those that were asked with it have answers, too.
#[tokio::test]
async fn a_database_that_fails_for_one_answer_loses_none_of_the_others() {
    let scene = scene().await;
    let lost = payment_id(&Stripe, "order-0");
    let store = FailingStore::new(
        Arc::clone(&scene.bench.store),
        Box::new(move |work| {
            let rows = work.arrivals.iter().flat_map(|arrival| &arrival.rows);
            rows.map(|row| &row.key.event_id).any(|id| id.contains(&lost)).then_some(StoreError::Contended(16))
        }),
    );
    let context = context(store, scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
    let reconciler = Reconciler::new(Arc::new(context), Arc::new(HttpTransport::new().unwrap()));
    for number in 0..4 {
        let id = scene.open(&reconciler, &format!("order-{number}")).await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    }
    scene.first_look_is_due();
    assert!(matches!(step(&reconciler).await, Err(StoreError::Contended(_))));
    assert_eq!(scene.order("order-0").await.view.status, OrderStatus::Pending);
    for number in 1..4 {
        scene.assert_true(&format!("order-{number}")).await;
    }
    assert_eq!(scene.bench.count("SELECT count(*) FROM checks WHERE looks = 1").await, 3);
    // Its lease ends, and it is asked about again, by whoever can store the answer.
    scene.clock.advance(Duration::from_mins(5));
    assert_eq!(step(&scene.reconciler().await).await.unwrap(), CHANGED);
    scene.assert_true("order-0").await;
}

/// A→B→A: each answer is one of its own, although the first and the last say the same.
#[tokio::test]
async fn what_goes_back_and_forth_between_looks_is_as_many_answers() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "order-1").await;
    scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    let dispute = scene.stripe.ledger_mut().dispute(&id, PAID, scene.start + 60);
    scene.first_look_is_due();
    let states = [DisputeState::NeedsResponse, DisputeState::Won, DisputeState::NeedsResponse, DisputeState::Lost];
    let expected = [OrderStatus::Disputed, OrderStatus::Paid, OrderStatus::Disputed, OrderStatus::ChargedBack];
    for (number, (state, status)) in states.into_iter().zip(expected).enumerate() {
        let now = scene.clock.now().seconds();
        scene.stripe.ledger_mut().close_dispute(&id, dispute, state, now);
        assert_eq!(step(&reconciler).await.unwrap(), CHANGED, "look {number}");
        assert_eq!(scene.order("order-1").await.view.status, status, "look {number}");
        scene.clock.advance(UNTIL_THE_NEXT_LOOK);
    }
    let answers = "SELECT count(*) FROM events WHERE event_type = 'poll:dispute' AND outcome = 'applied'";
    assert_eq!(scene.bench.count(answers).await, 4);
    assert_eq!(scene.order("order-1").await.version, 5);
    scene.assert_true("order-1").await;
}

/// While a deploy rolls, a newer worker may write a status that this one does not know.
#[tokio::test]
async fn an_order_of_a_newer_version_holds_up_no_other() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    for order_id in ["order-0", "order-1"] {
        let id = scene.open(&reconciler, order_id).await;
        scene.stripe.ledger_mut().capture(&id, PAID, scene.start);
    }
    scene.bench.execute("UPDATE orders SET status = 'newer', view = '{\"status\":\"newer\"}' WHERE id = 'order-0'").await;
    scene.first_look_is_due();
    assert_eq!(step(&reconciler).await.unwrap(), StepReport { asked: 2, changed: 1, failed: 1 });
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Paid);
}

#[tokio::test]
async fn an_adapter_that_panics_costs_only_its_own_look() {
    let mut scene = scene().await;
    scene.account = Arc::new(Account { psp: &Panicking, ..(*scene.account).clone() });
    let reconciler = scene.reconciler().await;
    scene.open(&reconciler, "order-1").await;
    scene.first_look_is_due();
    assert_eq!(step(&reconciler).await.unwrap(), FAILED);
    assert_eq!(scene.order("order-1").await.view.status, OrderStatus::Pending);
}

/// What happens to a payment at the PSP, from then on.
type Story = fn(&mut Ledger, &str, i64);

#[tokio::test]
async fn refunds_and_disputes_made_at_the_psp_are_learned() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let stories: [(&str, Story); 6] = [
        ("partially-refunded", |ledger, id, at| {
            ledger.refund(id, 1000, RefundState::Succeeded, at);
            ledger.refund(id, 500, RefundState::Failed, at);
            ledger.refund(id, 250, RefundState::Pending, at);
        }),
        // More than a page.
        ("refunded-bit-by-bit", |ledger, id, at| {
            for _ in 0..210 {
                ledger.refund(id, 1, RefundState::Succeeded, at);
            }
        }),
        ("refunded", |ledger, id, at| {
            ledger.refund(id, PAID, RefundState::Succeeded, at);
        }),
        ("disputed", |ledger, id, at| {
            ledger.dispute(id, PAID, at);
        }),
        ("won", |ledger, id, at| {
            let number = ledger.dispute(id, PAID, at);
            ledger.close_dispute(id, number, DisputeState::Won, at);
        }),
        ("lost", |ledger, id, at| {
            let number = ledger.dispute(id, 100, at);
            ledger.close_dispute(id, number, DisputeState::Lost, at);
        }),
    ];
    for (order_id, story) in stories {
        let id = scene.open(&reconciler, order_id).await;
        let ledger = &mut scene.stripe.ledger_mut();
        ledger.capture(&id, PAID, scene.start);
        story(ledger, &id, scene.start + 60);
    }
    scene.first_look_is_due();
    let (mut asked, mut changed) = (0, 0);
    while asked < stories.len() {
        let report = step(&reconciler).await.unwrap();
        assert!(report.asked > 0 && report.failed == 0, "after {asked}: {report:?}");
        asked += report.asked;
        changed += report.changed;
    }
    assert_eq!((asked, changed), (stories.len(), stories.len()));
    for (order_id, _) in stories {
        scene.assert_true(order_id).await;
    }
}

/// Older news delivered after newer, and a PSP that says now this and now that: no webhook decides what only the PSP knows.
#[tokio::test]
async fn facts_that_contradict_each_other_have_the_psp_asked_until_it_agrees_with_itself() {
    let scene = scene().await;
    let reconciler = scene.reconciler().await;
    let id = scene.open(&reconciler, "torn").await;
    let deliver_new = async |from: usize| {
        let webhooks: Vec<Webhook> = scene.stripe.ledger().events()[from..].iter().map(Webhook::from).collect();
        let deliveries = webhooks.iter().zip(1..).map(|(webhook, number)| delivery(number, message(&scene.account, webhook)));
        consume::step(reconciler.context(), &deliveries.collect::<Vec<_>>()).await.unwrap();
        scene.stripe.ledger().events().len()
    };
    let refund = {
        let ledger = &mut scene.stripe.ledger_mut();
        ledger.capture(&id, PAID, scene.start);
        ledger.refund(&id, 1000, RefundState::Succeeded, scene.start + 60)
    };
    let told = deliver_new(0).await;
    assert_eq!(scene.order("torn").await.view.status, OrderStatus::PartiallyRefunded);
    assert_eq!(scene.bench.count("SELECT max(hint_seq) FROM checks").await, 0, "all agrees");

    // A later webhook says that the refund is still on its way.
    scene.stripe.ledger_mut().settle_refund(&id, refund, RefundState::Pending, scene.start + 120);
    deliver_new(told).await;
    scene.stripe.ledger_mut().settle_refund(&id, refund, RefundState::Succeeded, scene.start + 180);
    assert_eq!(step(&reconciler).await.unwrap(), NOTHING_DUE, "what ends the doubt may be on its way");
    scene.clock.advance(Duration::from_secs(2));
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED, "soon, and not in a first look's time");
    let settled = scene.order("torn").await.view;
    assert_eq!((settled.status, settled.review, settled.refunded), (OrderStatus::PartiallyRefunded, None, 1000));

    // Asked again, the PSP takes back what it answered. Nobody is paid by a coin toss: a person looks, and it is asked again.
    scene.stripe.ledger_mut().settle_refund(&id, refund, RefundState::Pending, scene.start + 240);
    scene.clock.advance(UNTIL_THE_NEXT_LOOK);
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED);
    let torn = scene.order("torn").await.view;
    assert_eq!((torn.status, torn.review), (OrderStatus::UnderReview, Some(ReviewReason::Contradiction)));
    assert_eq!(step(&reconciler).await.unwrap(), NOTHING_DUE, "looks that agree must be apart in time");

    // It repeats its last word: so it is.
    scene.clock.advance(UNTIL_THE_NEXT_LOOK);
    assert_eq!(step(&reconciler).await.unwrap(), CHANGED);
    let agreed = scene.order("torn").await.view;
    assert_eq!((agreed.status, agreed.review, agreed.refunded), (OrderStatus::Paid, None, 0));
    scene.bench.check_invariants().await;
}
