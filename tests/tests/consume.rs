//! `consume::step`: what becomes of each delivery of a batch, over a real SQLite store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paybell::simulator::Webhook;
use paybell_shared::clock::SystemClock;
use paybell_shared::config::DEFAULT_ACCOUNT;
use paybell_shared::envelope::{Envelope, SCHEMA};
use paybell_shared::psp::{Account, Psp as _};
use paybell_shared::queue::{Delivery, Disposition, Message, Tag};
use paybell_tests::conformance::store::Bench;
use paybell_tests::shop::{configuration, webhook};
use paybell_tests::worker::{self, FailingStore, Fault, Panicking, accounts, context, delivery, message};
use paybell_worker::consume::{Context, step};
use paybell_worker::inbox::Arrival;
use paybell_worker::order::OrderStatus;
use paybell_worker::store::{StoreError, Work};

/// A context over a store that fails as told.
struct Inside {
    context: Context,
    store: Arc<FailingStore>,
    account: Arc<Account>,
    bench: Bench,
}

async fn inside(fault: Fault) -> Inside {
    let bench = Bench::sqlite().await;
    let store = FailingStore::new(Arc::clone(&bench.store), fault);
    let account = accounts(&configuration("sqlite:q", "sqlite:s", "memory:")).remove(0);
    let context = context(store.clone(), Arc::new(SystemClock), vec![Arc::clone(&account)]).await;
    Inside { context, store, account, bench }
}

impl Inside {
    /// A delivery that pays an order.
    fn payment(&self, number: u64) -> Delivery {
        delivery(number, message(&self.account, &webhook("payment_intent.succeeded", &format!("order-{number}"))))
    }

    async fn status(&self, order_id: &str) -> Option<OrderStatus> {
        self.bench.store.order(order_id).await.unwrap().map(|order| order.view.status)
    }

    /// What became of each, by its number.
    async fn step(&self, deliveries: &[Delivery]) -> Vec<(u64, Disposition)> {
        let mut settled = step(&self.context, deliveries).await.unwrap();
        settled.sort_by_key(|(tag, _)| *tag);
        settled.into_iter().map(|(Tag { number, .. }, disposition)| (number, disposition)).collect()
    }
}

/// Every delivery has exactly one settlement.
fn all_done(deliveries: &[Delivery]) -> Vec<(u64, Disposition)> {
    deliveries.iter().map(|delivery| (delivery.tag.number, Disposition::Done)).collect()
}

/// An error, anew each time.
type Failure = fn() -> StoreError;

/// The database's words do not matter here.
const fn broken() -> sqlx::Error {
    sqlx::Error::PoolClosed
}

#[tokio::test]
async fn what_was_seen_is_done_without_the_store() {
    let inside = inside(Box::new(|_| None)).await;
    let first = [inside.payment(1), inside.payment(2)];
    assert_eq!(inside.step(&first).await, all_done(&first));
    assert_eq!(inside.store.works(), 1, "a batch is one transaction");
    assert_eq!(inside.step(&first).await, all_done(&first));
    assert_eq!(inside.store.works(), 1, "nothing was left to do");
    // Beside what was seen, what is new is done.
    let second = [first[0].clone(), inside.payment(3)];
    assert_eq!(inside.step(&second).await, all_done(&second));
    assert_eq!(inside.status("order-3").await, Some(OrderStatus::Paid));
    inside.bench.check_invariants().await;
}

#[tokio::test]
async fn twice_in_a_batch_is_one_effect() {
    let inside = inside(Box::new(|_| None)).await;
    let once = inside.payment(1);
    let twice = Delivery { tag: Tag { number: 2, ..once.tag }, redelivered: true, ..once.clone() };
    let batch = [once, twice];
    assert_eq!(inside.step(&batch).await, all_done(&batch));
    assert_eq!(inside.bench.count("SELECT count(*) FROM events").await, 1);
    inside.bench.check_invariants().await;
}

/// Nothing is settled, nobody's attempt is burnt, and nothing is marked: the same batch is done by the next step.
#[tokio::test]
async fn a_database_that_is_away_decides_nothing() {
    let errors: [Failure; 2] = [|| StoreError::Unavailable(broken()), || StoreError::Contended(5)];
    for error in errors {
        let away = Arc::new(AtomicBool::new(true));
        let is_away = Arc::clone(&away);
        let inside = inside(Box::new(move |_| is_away.load(Ordering::SeqCst).then(error))).await;
        let batch = [inside.payment(1), inside.payment(2)];
        assert!(matches!(step(&inside.context, &batch).await, Err(StoreError::Unavailable(_) | StoreError::Contended(_))));
        away.store(false, Ordering::SeqCst);
        assert_eq!(inside.step(&batch).await, all_done(&batch));
        assert_eq!(inside.store.works(), 2, "it was marked before it was committed");
        assert_eq!(inside.status("order-2").await, Some(OrderStatus::Paid));
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_released_and_not_marked() {
    let unknown = Arc::new(AtomicBool::new(true));
    let is_unknown = Arc::clone(&unknown);
    let fault = move |_: &Work<'_>| is_unknown.load(Ordering::SeqCst).then(|| StoreError::Unknown(broken()));
    let inside = inside(Box::new(fault)).await;
    let batch = [inside.payment(1), inside.payment(2)];
    assert_eq!(inside.step(&batch).await, [(1, Disposition::Release), (2, Disposition::Release)]);
    unknown.store(false, Ordering::SeqCst);
    assert_eq!(inside.step(&batch).await, all_done(&batch));
    assert_eq!(inside.store.works(), 2);
}

/// A message with another value of one header, or without it.
fn with_header(message: Message, name: &str, value: Option<&str>) -> Message {
    let mut headers = message.headers;
    headers.retain_mut(|(key, text)| {
        if key == name {
            value.unwrap_or_default().clone_into(text);
        }
        key != name || value.is_some()
    });
    Message { headers, ..message }
}

#[tokio::test]
async fn what_cannot_be_opened_costs_only_itself() {
    let inside = inside(Box::new(|_| None)).await;
    let with = |number, name: &str, value: Option<&str>| {
        let delivery = inside.payment(number);
        Delivery { message: with_header(delivery.message, name, value), ..delivery }
    };
    let newer = (SCHEMA + 1).to_string();
    let batch = [
        with(1, "x-paybell-schema", Some(&newer)),
        with(2, "ce-source", Some("/psp/stripe/other")),
        with(3, "ce-source", Some("/psp/unheard-of/default")),
        with(4, "x-paybell-schema", None),
        with(5, "ce-id", None),
        with(6, "ce-time", Some("yesterday")),
        inside.payment(7),
    ];
    let settled = inside.step(&batch).await;
    let words: Vec<_> = settled.iter().map(|(_, disposition)| disposition.as_str()).collect();
    assert_eq!(words, ["retry", "retry", "retry", "dead", "dead", "dead", "done"], "{settled:?}");
    let Disposition::Retry { reason } = &settled[1].1 else { panic!("{settled:?}") };
    assert!(reason.contains("stripe/other"), "{reason}");
    assert_eq!(inside.bench.count("SELECT count(*) FROM events").await, 1);
}

/// Whether one of the arrivals is about this order.
fn holds(work: &Work<'_>, order_id: &str) -> bool {
    let about = |arrival: &Arrival| {
        arrival.body.as_ref().is_some_and(|body| String::from_utf8_lossy(&body.bytes).contains(&format!("{order_id:?}")))
    };
    work.arrivals.iter().any(about)
}

#[tokio::test]
async fn a_poison_event_costs_only_itself_wherever_it_stands() {
    // What only a newer version can read is left to it.
    let errors: [(Failure, &str); 2] = [
        (|| StoreError::Refused(broken()), "dead"),
        (
            || StoreError::Inconsistent { table: "orders", column: "view", key: "x".to_owned(), problem: "newer".to_owned() },
            "retry",
        ),
    ];
    for ((error, becomes), poison) in errors.into_iter().flat_map(|error| [1, 4, 7].map(|poison| (error, poison))) {
        let inside = inside(Box::new(move |work| holds(work, &format!("order-{poison}")).then(error))).await;
        let batch: Vec<Delivery> = (1..=7).map(|number| inside.payment(number)).collect();
        for (number, disposition) in inside.step(&batch).await {
            if number == poison {
                assert_eq!(disposition.as_str(), becomes, "{number}: {disposition:?}");
                assert_eq!(inside.status(&format!("order-{number}")).await, None);
            } else {
                assert_eq!(disposition, Disposition::Done, "{number} is not the poison");
                assert_eq!(inside.status(&format!("order-{number}")).await, Some(OrderStatus::Paid));
            }
        }
        // It was not marked: when it comes again, it meets the store.
        let works = inside.store.works();
        let again = batch.iter().find(|delivery| delivery.tag.number == poison).unwrap();
        inside.step(std::slice::from_ref(again)).await;
        assert_eq!(inside.store.works(), works + 1);
        inside.bench.check_invariants().await;
    }
}

/// A database that goes while a batch is halved: the whole batch comes again, and what was committed is not done twice.
#[tokio::test]
async fn a_database_that_goes_amid_the_halving_decides_nothing() {
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let inside = inside(Box::new(move |work| {
        let refused = (work.arrivals.len() > 1).then(|| StoreError::Refused(broken()));
        refused.or_else(|| {
            let gone = is_away.load(Ordering::SeqCst) && holds(work, "order-2");
            gone.then(|| StoreError::Unavailable(broken()))
        })
    }))
    .await;
    let batch = [inside.payment(1), inside.payment(2)];
    assert!(step(&inside.context, &batch).await.is_err());
    assert_eq!(inside.status("order-1").await, Some(OrderStatus::Paid));
    away.store(false, Ordering::SeqCst);
    assert_eq!(inside.step(&batch).await, all_done(&batch));
    assert_eq!(inside.bench.count("SELECT count(*) FROM events").await, 2);
    inside.bench.check_invariants().await;
}

#[tokio::test]
async fn an_adapter_that_panics_costs_only_its_own_delivery() {
    let mut inside = inside(Box::new(|_| None)).await;
    let panicking = Account { psp: &Panicking, psp_id: Panicking.id().into(), ..(*inside.account).clone() };
    inside.context.accounts.insert(worker::key_of(&panicking), Arc::new(panicking));
    let broken = Envelope {
        psp: Panicking.id().into(),
        account: DEFAULT_ACCOUNT.into(),
        ..Envelope::try_from(inside.payment(2).message).unwrap()
    };
    let batch = [inside.payment(1), delivery(2, broken.into()), inside.payment(3)];
    let settled = inside.step(&batch).await;
    let words: Vec<_> = settled.iter().map(|(_, disposition)| disposition.as_str()).collect();
    assert_eq!(words, ["done", "dead", "done"], "{settled:?}");
}

#[tokio::test]
async fn what_is_not_understood_is_kept_and_done() {
    let inside = inside(Box::new(|_| None)).await;
    let odd = [&b"not json"[..], b"\xff\xfe", b"[]", b"{\"id\":\"evt_1\"}"];
    let bodies = odd.map(|body| Webhook { id: String::new(), event_type: String::new(), body: body.into() });
    let batch: Vec<Delivery> = (1..).zip(&bodies).map(|(number, odd)| delivery(number, message(&inside.account, odd))).collect();
    assert_eq!(inside.step(&batch).await, all_done(&batch));
    let kept = inside.bench.count("SELECT count(*) FROM events JOIN bodies ON bodies.id = body_id WHERE outcome = 'quarantined'");
    assert_eq!(kept.await, i64::try_from(odd.len()).unwrap());
}
