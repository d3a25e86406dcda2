//! What every [`Store`](paybell_worker::store::Store) must tell to those who follow changes or ask why.
//!
//! `inspect_suite!` makes a test of each function for one backend, on the benches of [`super::store`].

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{PaymentEvent, PaymentState, Reference, ReferenceKind, Source};
use paybell_worker::inbox::{Arrival, Outcome};
use paybell_worker::order::OrderStatus;
use paybell_worker::store::{self, Moment, MomentRow, Place, Policy, Position, Positioned, Registration, Work};
use paybell_worker::timeline::Line;
use paybell_worker::timeline::LineKind::{
    self, Accepted, Answered, Applied, Asked, Changed, GivenUp, NextLook, Other, Parked, Registered, Replayed, Reviewed,
    Superseded, Told, Waiting, Woken,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::store::{Bench, Database, HABITS, NOW, account, arrival, body, captured, ignored, refund, registration, state};

/// Expands to one test for each behaviour. `$bench` names an `async fn() -> Bench` of an empty database.
#[macro_export]
macro_rules! inspect_suite {
    ($bench:path) => {
        $crate::inspect_suite!($bench:
            changes_come_in_one_order_and_only_once,
            an_orders_changes_come_without_the_others,
            the_latest_change_is_the_order_and_where_it_goes_on,
            the_end_is_behind_what_was_told,
            a_timeline_tells_of_every_kind_of_row,
            a_long_timeline_comes_in_pages,
            an_event_is_told_with_its_names_and_its_body,
            parked_events_are_listed_oldest_first
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::inspect::$behaviour(&bench).await;
                bench.store.close().await;
            }
        )+
    };
}

/// How long a change may take to be told: others' transactions on the same server may be open that long.
const TOLD_LIMIT: Duration = Duration::from_secs(30);

async fn apply_at(bench: &Bench, now: Timestamp, arrivals: &[Arrival], registrations: &[Registration]) -> store::Applied {
    let policy = Policy {
        events_create_orders: true,
        asking: HashMap::from([(account(), HABITS)]),
        destinations: vec![Arc::from("bus"), Arc::from("shop")],
        ..Policy::default()
    };
    bench.store.apply(&Work { arrivals, registrations, ..Work::new(&policy, &bench.ids, now) }).await.unwrap()
}

/// Reads on from `after`, in pages of `page`, until so many changes are there.
async fn changes(bench: &Bench, order_id: Option<&str>, mut after: Position, count: usize, page: u32) -> Vec<Positioned> {
    let deadline = Instant::now() + TOLD_LIMIT;
    let mut told: Vec<Positioned> = Vec::new();
    while told.len() < count {
        let found = bench.store.changes_after(order_id, after, page).await.unwrap();
        assert!(found.len() <= page as usize);
        after = found.last().map_or(after, |change| change.position);
        told.extend(found);
        assert!(Instant::now() < deadline, "{} of {count} changes are told", told.len());
        tokio::task::yield_now().await;
    }
    assert_eq!(told.len(), count, "more is told than was done");
    told
}

fn names(changes: &[Positioned]) -> Vec<(String, i64)> {
    changes.iter().map(|told| (told.change.order.id.clone(), told.change.order.version)).collect()
}

/// Three changes of each of four orders, in turns.
async fn twelve_changes(bench: &Bench) {
    for (turn, told) in [PaymentState::Pending, PaymentState::Failed, PaymentState::Captured].into_iter().enumerate() {
        for order in 0..4 {
            let (id, payment) = (format!("evt_{turn}_{order}"), format!("pi_{order}"));
            let name = format!("order-{order}");
            let event = match told {
                PaymentState::Captured => captured(&id, &payment, Some(&name), 4999),
                other => state(&id, &payment, Some(&name), other),
            };
            bench.apply(&[event]).await;
        }
    }
}

pub async fn changes_come_in_one_order_and_only_once(bench: &Bench) {
    assert_eq!(bench.store.changes_after(None, Position::default(), 10).await.unwrap(), []);
    twelve_changes(bench).await;
    let all = changes(bench, None, Position::default(), 12, 100).await;
    let expected: Vec<_> = (1..=3).flat_map(|version| (0..4).map(move |order| (format!("order-{order}"), version))).collect();
    assert_eq!(names(&all), expected);
    assert!(all.is_sorted_by(|one, next| one.position < next.position));
    for page in [1, 5, 12] {
        assert_eq!(changes(bench, None, Position::default(), 12, page).await, all, "in pages of {page}");
    }
    for (taken, told) in all.iter().enumerate() {
        let rest = changes(bench, None, told.position, 11 - taken, 4).await;
        assert_eq!(rest, all[taken + 1..], "behind {taken}");
    }
    let last = &all[11].change;
    assert_eq!((last.from.map(OrderStatus::as_str), last.order.view.status.as_str()), (Some("failed"), "paid"));
    assert_eq!(last.order, bench.store.order("order-3").await.unwrap().unwrap());
}

pub async fn an_orders_changes_come_without_the_others(bench: &Bench) {
    twelve_changes(bench).await;
    let all = changes(bench, None, Position::default(), 12, 100).await;
    let of_one: Vec<Positioned> = all.iter().filter(|told| told.change.order.id == "order-2").cloned().collect();
    for page in [1, 2, 100] {
        assert_eq!(changes(bench, Some("order-2"), Position::default(), 3, page).await, of_one);
    }
    // From any place of the whole stream.
    for told in &all {
        let rest: Vec<Positioned> = of_one.iter().filter(|change| change.position > told.position).cloned().collect();
        assert_eq!(bench.store.changes_after(Some("order-2"), told.position, 100).await.unwrap(), rest);
    }
    assert_eq!(bench.store.changes_after(Some("nobody"), Position::default(), 100).await.unwrap(), []);
}

pub async fn the_latest_change_is_the_order_and_where_it_goes_on(bench: &Bench) {
    assert_eq!(bench.store.latest_change("order-1").await.unwrap(), None);
    assert_eq!(bench.store.latest_change("order-\0").await.unwrap(), None);
    twelve_changes(bench).await;
    let latest = bench.store.latest_change("order-1").await.unwrap().unwrap();
    assert_eq!(latest.change.order, bench.store.order("order-1").await.unwrap().unwrap());
    assert_eq!(bench.store.changes_after(Some("order-1"), latest.position, 10).await.unwrap(), []);
    bench.apply(&[refund("evt_r", "pi_1", "re_1", 1)]).await;
    let next = changes(bench, Some("order-1"), latest.position, 1, 10).await.remove(0);
    assert_eq!((next.change.order.version, next.change.order.view.refunded), (4, 1));
    assert_eq!(bench.store.latest_change("order-1").await.unwrap(), Some(next));
}

pub async fn the_end_is_behind_what_was_told(bench: &Bench) {
    twelve_changes(bench).await;
    changes(bench, None, Position::default(), 12, 100).await;
    let end = bench.store.position().await.unwrap();
    assert_eq!(bench.store.changes_after(None, end, 10).await.unwrap(), []);
    bench.apply(&[refund("evt_r", "pi_1", "re_1", 1)]).await;
    assert_eq!(names(&changes(bench, None, end, 1, 10).await), [("order-1".to_owned(), 4)]);
}

fn webhook(event: &PaymentEvent, received_at: Timestamp) -> Arrival {
    let mut arrival = arrival(event);
    arrival.rows[0].received_at = received_at;
    arrival.body = Some(paybell_worker::inbox::Body { received_at, ..body(b"{}") });
    arrival
}

fn seconds(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

/// A time as this backend writes it in SQL.
fn sql_time(bench: &Bench, at: Timestamp) -> String {
    match bench.database {
        Database::Postgres(_) => format!("timestamptz '{at}'"),
        Database::Sqlite(_) => at.millis().to_string(),
    }
}

async fn lines(bench: &Bench, order_id: &str) -> Vec<Line> {
    let moments = bench.store.timeline(order_id, None, 1000).await.unwrap().unwrap();
    moments.into_iter().map(Line::of).collect()
}

/// Of one order, with every kind of row.
async fn tell_a_story(bench: &Bench) {
    // A refund that finds no order, then the order, then its payment, twice, then an answer of the PSP.
    apply_at(bench, seconds(2), &[webhook(&refund("evt_r", "pi_1", "re_1", 999), seconds(1))], &[]).await;
    apply_at(bench, seconds(5), &[], &[registration("order-1", Some("pi_1"), 4999)]).await;
    let paid = captured("evt_p", "pi_1", Some("order-1"), 4999);
    apply_at(bench, seconds(8), &[webhook(&paid, seconds(7))], &[]).await;
    let again = captured("evt_q", "pi_1", Some("order-1"), 4999);
    apply_at(bench, seconds(10), &[webhook(&again, seconds(9))], &[]).await;
    let mut answer = refund("evt_a", "pi_1", "re_2", 1);
    answer.source = Source::Reconciliation;
    let mut answered = arrival(&answer);
    answered.rows[0].received_at = seconds(12);
    apply_at(bench, seconds(12), &[answered], &[]).await;
    // What other parts of the worker write.
    bench.execute("DELETE FROM outbox WHERE version = 1 OR (version = 2 AND destination = 'shop')").await;
    let (told, given_up, due) = (sql_time(bench, seconds(6)), sql_time(bench, seconds(20)), sql_time(bench, seconds(90)));
    bench
        .execute(&format!(
            "INSERT INTO notices (order_id, version, destination, outcome, at, attempts, last_error) VALUES
                 ('order-1', 1, 'bus', 'told', {told}, 1, NULL), ('order-1', 1, 'shop', 'told', {told}, 2, '503'),
                 ('order-1', 2, 'shop', 'given_up', {given_up}, 12, 'no answer');
             UPDATE outbox SET attempts = 3, last_error = 'refused', next_attempt_at = {due}
                 WHERE version = 2 AND destination = 'bus';
             DELETE FROM outbox WHERE version = 3"
        ))
        .await;
    bench
        .execute(&format!(
            "UPDATE checks SET last_checked_at = {}, looks = 2, last_result = 'same'",
            sql_time(bench, seconds(11))
        ))
        .await;
    let (reviewed, replayed) = (sql_time(bench, seconds(30)), sql_time(bench, seconds(31)));
    let id = |n: u8| match bench.database {
        Database::Postgres(_) => format!("'00000000-0000-4000-8000-0000000000{n:02x}'"),
        Database::Sqlite(_) => format!("x'000000000000400080000000000000{n:02x}'"),
    };
    for (n, kind, at, reason) in
        [(1, "reviewed", reviewed, "'seen'"), (2, "replayed", replayed.clone(), "'a fix'"), (3, "of_tomorrow", replayed, "NULL")]
    {
        let id = id(n);
        bench
            .execute(&format!(
                "INSERT INTO actions (id, order_id, kind, operator, reason, at, detail)
                 VALUES ({id}, 'order-1', '{kind}', 'ada', {reason}, {at}, '{{\"decision\":\"accept\"}}')"
            ))
            .await;
    }
}

pub async fn a_timeline_tells_of_every_kind_of_row(bench: &Bench) {
    assert_eq!(bench.store.timeline("order-1", None, 10).await.unwrap(), None);
    assert_eq!(bench.store.timeline("order-\0", None, 10).await.unwrap(), None);
    tell_a_story(bench).await;
    let lines = lines(bench, "order-1").await;
    let told: Vec<(u64, LineKind)> = lines.iter().map(|line| (line.at.since(NOW).as_secs(), line.kind)).collect();
    // A day after the payment was settled.
    let look_due = 8 + 24 * 60 * 60;
    let expected = [
        (1, Accepted),
        (2, Parked),
        (5, Registered),
        (5, Woken),
        (5, Changed),
        (6, Told),
        (6, Told),
        (7, Accepted),
        (8, Applied),
        (8, Changed),
        (9, Accepted),
        (10, Superseded),
        (11, Asked),
        (12, Answered),
        (12, Applied),
        (12, Changed),
        (20, GivenUp),
        (30, Reviewed),
        (31, Replayed),
        (31, Other),
        (90, Waiting),
        (look_due, NextLook),
    ];
    assert_eq!(told, expected, "{lines:#?}");
    let line = |kind| serde_json::to_value(lines.iter().find(|line| line.kind == kind).unwrap()).unwrap();
    let holds = |kind, members: Value| {
        let line = line(kind);
        for (name, value) in members.as_object().unwrap() {
            assert_eq!(&line[name], value, "{name} of {line}");
        }
        let text = line["text"].as_str().unwrap().to_owned();
        assert!(!text.is_empty() && !text.contains('?'), "{text}");
        text
    };
    let accepted = holds(Accepted, json!({ "psp": "stripe", "account": "default", "event_id": "evt_r", "secret": "first" }));
    assert_eq!(accepted, "stripe/default sent payment.test evt_r: refund re_1 of pi_1 succeeded, 9.99 EUR; proven by first");
    let woken = holds(Woken, json!({ "outcome": "applied", "order_version": 1, "taken_at": seconds(2).to_string() }));
    assert!(woken.contains("3.0 s"), "{woken}");
    let superseded = holds(Superseded, json!({ "event_id": "evt_q", "outcome": "superseded", "order_version": 2 }));
    assert_eq!(superseded, "evt_q adds nothing to version 2");
    holds(Answered, json!({ "event_id": "evt_a", "secret": null }));
    let registered = holds(Registered, json!({ "operator": "test", "reason": null }));
    assert_eq!(registered, "test registered 49.99 EUR by stripe/default as pi_1");
    holds(Reviewed, json!({ "operator": "ada", "reason": "seen", "detail": { "decision": "accept" } }));
    let changed = holds(Changed, json!({ "version": 1, "from": null, "to": status_at(bench, 1).await, "currency": "EUR" }));
    assert!(changed.starts_with("version 1: "), "{changed}");
    holds(GivenUp, json!({ "destination": "shop", "version": 2, "attempts": 12, "last_error": "no answer" }));
    holds(Waiting, json!({ "destination": "bus", "version": 2, "attempts": 3, "last_error": "refused" }));
    holds(Asked, json!({ "payment_id": "pi_1", "looks": 2, "last_result": "same" }));

    let whole = bench.store.timeline("order-1", None, 1000).await.unwrap().unwrap();
    for page in [1, 3, 21, 22] {
        assert_eq!(in_pages(bench, "order-1", page).await, whole, "in pages of {page}");
    }
}

async fn status_at(bench: &Bench, version: i64) -> String {
    bench.texts(&format!("SELECT to_status FROM transitions WHERE version = {version}")).await.remove(0)
}

async fn in_pages(bench: &Bench, order_id: &str, page: u32) -> Vec<Moment> {
    let mut all: Vec<Moment> = Vec::new();
    loop {
        let after: Option<Place> = all.last().map(|moment| moment.place.clone());
        let found = bench.store.timeline(order_id, after.as_ref(), page).await.unwrap().unwrap();
        let is_last = found.len() < page as usize;
        all.extend(found);
        if is_last {
            return all;
        }
    }
}

/// Many events, all within a millisecond.
pub async fn a_long_timeline_comes_in_pages(bench: &Bench) {
    const REFUNDS: usize = 300;
    bench.apply(&[captured("evt", "pi_1", Some("order-1"), 4999)]).await;
    let refunds: Vec<_> = (0..REFUNDS).map(|n| refund(&format!("evt_{n}"), "pi_1", &format!("re_{n}"), 1)).collect();
    bench.apply(&refunds).await;
    let whole = bench.store.timeline("order-1", None, 10_000).await.unwrap().unwrap();
    // Each event came and was settled; two versions; the look that is due.
    assert_eq!(whole.len(), 2 * (REFUNDS + 1) + 2 + 1);
    assert!(whole.is_sorted_by(|one, next| one.place < next.place));
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for moment in &whole {
        if let MomentRow::Event(event) = &moment.row {
            *told.entry(&event.key.event_id).or_default() += 1;
        }
    }
    assert!(told.len() == REFUNDS + 1 && told.values().all(|times| *times == 2), "{told:?}");
    for page in [7, 100] {
        assert_eq!(in_pages(bench, "order-1", page).await, whole, "in pages of {page}");
    }
}

pub async fn an_event_is_told_with_its_names_and_its_body(bench: &Bench) {
    let parked = refund("evt_1", "pi_1", "re_1", 999);
    apply_at(bench, seconds(2), &[webhook(&parked, seconds(1))], &[]).await;
    let entry = bench.store.event(&parked.key).await.unwrap().unwrap();
    assert_eq!((entry.event.outcome, &entry.event.facts), (Outcome::Parked, &Some(parked.clone())));
    assert_eq!(entry.waits_under, [Reference::new(ReferenceKind::Payment, "pi_1")]);
    assert!(entry.body_kept && entry.event.body_id.is_some());
    assert_eq!(entry.event.secret_name.as_deref(), Some("first"));
    let times = (entry.event.received_at, entry.event.taken_at, entry.event.parked_at);
    assert_eq!(times, (seconds(1), Some(seconds(2)), Some(seconds(2))));

    apply_at(bench, seconds(5), &[], &[registration("order-1", Some("pi_1"), 4999)]).await;
    bench.execute("DELETE FROM bodies").await;
    let entry = bench.store.event(&parked.key).await.unwrap().unwrap();
    assert_eq!((entry.event.outcome, entry.event.order_id.as_deref()), (Outcome::Applied, Some("order-1")));
    assert_eq!((entry.event.order_version, entry.event.applied_at), (Some(1), seconds(5)));
    assert_eq!((entry.event.parked_at, entry.waits_under, entry.body_kept), (Some(seconds(2)), vec![], false));

    bench.try_apply(&[ignored("evt_2")], &[], true).await.unwrap();
    let mut key = parked.key.clone();
    "evt_2".clone_into(&mut key.event_id);
    let entry = bench.store.event(&key).await.unwrap().unwrap();
    assert_eq!((entry.event.outcome, &entry.event.facts), (Outcome::Ignored, &None));
    assert_eq!((entry.event.reason.as_deref(), entry.event.body_id), (Some("not a payment"), None));
    for unknown in ["evt_3", "evt_\0"] {
        unknown.clone_into(&mut key.event_id);
        assert_eq!(bench.store.event(&key).await.unwrap(), None);
    }
}

pub async fn parked_events_are_listed_oldest_first(bench: &Bench) {
    assert_eq!(bench.store.parked(seconds(100), None, 10).await.unwrap(), []);
    // Two of each second, told in another order.
    let ages = [4_u64, 1, 3, 0, 2];
    for age in ages {
        for n in ["b", "a"] {
            let event = refund(&format!("evt_{age}{n}"), &format!("pi_{age}{n}"), "re", 1);
            apply_at(bench, seconds(10), &[webhook(&event, seconds(age))], &[]).await;
        }
    }
    apply_at(bench, seconds(11), &[webhook(&captured("evt_p", "pi_p", Some("order-1"), 1), seconds(0))], &[]).await;
    let page = async |before, after: Option<&paybell_worker::store::InboxEntry>, limit| {
        let after = after.map(|entry| (entry.event.received_at, entry.event.key.clone()));
        bench.store.parked(before, after.as_ref(), limit).await.unwrap()
    };
    let ids = |entries: &[paybell_worker::store::InboxEntry]| -> Vec<String> {
        entries.iter().map(|entry| entry.event.key.event_id.clone()).collect()
    };
    let all = page(seconds(100), None, 100).await;
    let expected = ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b", "4a", "4b"].map(|id| format!("evt_{id}"));
    assert_eq!(ids(&all), expected);
    assert_eq!(all[3].waits_under, [Reference::new(ReferenceKind::Payment, "pi_1b")]);
    assert_eq!(ids(&page(seconds(3), None, 100).await), expected[..6], "received before, not at");
    let first = page(seconds(100), None, 3).await;
    assert_eq!(ids(&page(seconds(100), first.last(), 4).await), expected[3..7]);
    assert_eq!(page(seconds(100), all.last(), 4).await, []);
    assert_eq!((bench.store.overdue(seconds(3)).await.unwrap(), bench.store.overdue(seconds(0)).await.unwrap()), (6, 0));
    apply_at(bench, seconds(12), &[], &[registration("order-2", Some("pi_0b"), 1)]).await;
    assert_eq!(ids(&page(seconds(2), None, 100).await), ["evt_0a", "evt_1a", "evt_1b"]);
}
