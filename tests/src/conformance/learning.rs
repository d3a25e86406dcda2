//! Who told first what a payment came to: what both backends promise.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{PaymentEvent, PaymentState, Source};
use paybell_worker::inbox::{Arrival, InboxRow};
use paybell_worker::manners::{Ended, Manner};
use paybell_worker::order::AccountKey;
use paybell_worker::store::{AskedFirst, Expected, Lease, Looked, Said};

use super::store::{Bench, FIRST_LOOK, NOW, account, captured, refund, registration, row, state};

/// The tests of [`Bench`]es, each by its name: `learning_suite!(a_function_that_makes_one)`.
#[macro_export]
macro_rules! learning_suite {
    ($bench:path) => {
        $crate::learning_suite!($bench:
            a_webhook_that_decides_a_payment_is_learned_once,
            an_answer_learns_only_what_no_webhook_told,
            a_webhook_after_the_answer_is_late_whatever_becomes_of_it,
            of_several_webhooks_after_the_answer_the_first_counts,
            a_webhook_received_before_the_answer_was_never_late,
            money_after_a_failure_begins_anew,
            a_parked_webhook_has_told,
            what_is_told_at_once_is_told_by_the_webhook,
            a_hint_has_told_what_its_answer_tells,
            a_hint_that_was_answered_has_told_nothing_more,
            what_was_decided_before_this_was_kept_is_not_counted,
            many_workers_learn_as_one,
            what_became_of_webhooks_is_counted,
            what_a_silent_account_owes_is_counted,
            the_last_webhook_of_an_account_is_known
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::learning::$behaviour(&bench).await;
                bench.check_invariants().await;
                bench.store.close().await;
            }
        )+
    };
}

const DAY: Duration = Duration::from_hours(24);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() + seconds * 1000)
}

fn arrival_at(event: &PaymentEvent, seconds: i64, heard_at: Option<Timestamp>) -> Arrival {
    let rows = vec![InboxRow { received_at: at(seconds), ..row(event) }];
    Arrival { body: None, rows, asks: Vec::new(), heard_at }
}

/// The PSP's webhook comes.
async fn hear(bench: &Bench, seconds: i64, event: &PaymentEvent) {
    bench.apply_arrivals_at(at(seconds), &[arrival_at(event, seconds, Some(at(seconds)))]).await;
}

/// The same as an answer of the PSP's.
fn answer(event: &PaymentEvent, look: &str) -> PaymentEvent {
    let mut answer = listed(event);
    answer.key.event_id = format!("poll:{}:{look}", event.payment_id);
    answer
}

/// The same as the PSP's list of events has it.
fn listed(event: &PaymentEvent) -> PaymentEvent {
    PaymentEvent { source: Source::Reconciliation, ..event.clone() }
}

async fn ask(bench: &Bench, seconds: i64, event: &PaymentEvent) {
    bench.apply_arrivals_at(at(seconds), &[arrival_at(event, seconds, None)]).await;
}

/// `<payment> <money or nothing> <webhook at> <asked at>`, in seconds.
pub async fn learned(bench: &Bench) -> Vec<String> {
    let seconds = |column: &str| {
        let seconds = if bench.is_postgres() {
            format!("floor(extract(epoch FROM {column}))::bigint - {}", NOW.seconds())
        } else {
            format!("{column} / 1000 - {}", NOW.seconds())
        };
        format!("coalesce(cast({seconds} AS text), '-')")
    };
    let columns = [
        "payment_id".to_owned(),
        "CASE WHEN money THEN 'money' ELSE 'nothing' END".to_owned(),
        seconds("webhook_at"),
        seconds("asked_at"),
    ];
    bench.texts(&format!("SELECT {} FROM learned ORDER BY psp, account, payment_id", columns.join(" || ' ' || "))).await
}

/// By its first webhook: repetitions, others that say the same, refunds and later answers write nothing.
pub async fn a_webhook_that_decides_a_payment_is_learned_once(bench: &Bench) {
    hear(bench, 0, &state("evt_0", "pi_1", Some("order-1"), PaymentState::Pending)).await;
    assert_eq!(learned(bench).await, [""; 0], "it is open");
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    hear(bench, 1, &paid).await;
    let first = bench.rows("learned").await;
    assert_eq!(learned(bench).await, ["pi_1 money 1 -"]);
    hear(bench, 2, &paid).await;
    hear(bench, 3, &captured("evt_2", "pi_1", Some("order-1"), 4999)).await;
    hear(bench, 4, &refund("evt_3", "pi_1", "re_1", 10)).await;
    hear(bench, 5, &state("evt_4", "pi_1", Some("order-1"), PaymentState::Failed)).await;
    ask(bench, 6, &answer(&paid, "1")).await;
    ask(bench, 7, &listed(&paid)).await;
    assert_eq!(bench.rows("learned").await, first);
}

pub async fn an_answer_learns_only_what_no_webhook_told(bench: &Bench) {
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    ask(bench, 60, &answer(&paid, "1")).await;
    assert_eq!(learned(bench).await, ["pi_1 money - 60"]);
    for look in 2..5 {
        ask(bench, look * 60, &answer(&paid, &look.to_string())).await;
    }
    assert_eq!(learned(bench).await, ["pi_1 money - 60"], "to be told again by asking says nothing");
}

/// Superseded by the answer, or a duplicate of what the list told: for which nothing else is written.
pub async fn a_webhook_after_the_answer_is_late_whatever_becomes_of_it(bench: &Bench) {
    let [answered, swept] = ["pi_1", "pi_2"].map(|payment| {
        let order = format!("order-{payment}");
        captured(&format!("evt_{payment}"), payment, Some(&order), 4999)
    });
    ask(bench, 60, &answer(&answered, "1")).await;
    ask(bench, 60, &listed(&swept)).await;
    assert_eq!(learned(bench).await, ["pi_1 money - 60", "pi_2 money - 60"]);
    hear(bench, 90, &answered).await;
    let before = bench.rows("events").await;
    hear(bench, 90, &swept).await;
    assert_eq!(bench.rows("events").await, before, "a duplicate");
    assert_eq!(learned(bench).await, ["pi_1 money 90 60", "pi_2 money 90 60"]);
}

pub async fn of_several_webhooks_after_the_answer_the_first_counts(bench: &Bench) {
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    ask(bench, 60, &listed(&paid)).await;
    hear(bench, 90, &captured("evt_2", "pi_1", Some("order-1"), 4999)).await;
    hear(bench, 120, &paid).await;
    assert_eq!(learned(bench).await, ["pi_1 money 90 60"]);
    // It was taken first, and stood in our own queue.
    bench.apply_arrivals_at(at(130), &[arrival_at(&captured("evt_3", "pi_1", Some("order-1"), 4999), 70, None)]).await;
    assert_eq!(learned(bench).await, ["pi_1 money 70 60"]);
}

/// Our own queue was long, and the answer was applied first.
pub async fn a_webhook_received_before_the_answer_was_never_late(bench: &Bench) {
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    ask(bench, 60, &answer(&paid, "1")).await;
    bench.apply_arrivals_at(at(90), &[arrival_at(&paid, 59, None)]).await;
    assert_eq!(learned(bench).await, ["pi_1 money 59 -"]);
}

pub async fn money_after_a_failure_begins_anew(bench: &Bench) {
    hear(bench, 1, &state("evt_1", "pi_1", Some("order-1"), PaymentState::Failed)).await;
    assert_eq!(learned(bench).await, ["pi_1 nothing 1 -"]);
    let paid = captured("evt_2", "pi_1", Some("order-1"), 4999);
    ask(bench, 60, &answer(&paid, "1")).await;
    assert_eq!(learned(bench).await, ["pi_1 money - 60"], "what the payment came to, no webhook told");
    hear(bench, 61, &state("evt_3", "pi_1", Some("order-1"), PaymentState::Canceled)).await;
    assert_eq!(learned(bench).await, ["pi_1 money - 60"], "nor does this one");
    hear(bench, 62, &paid).await;
    assert_eq!(learned(bench).await, ["pi_1 money 62 60"]);
}

/// Nobody knew its order; the answer, later, does.
pub async fn a_parked_webhook_has_told(bench: &Bench) {
    hear(bench, 1, &captured("evt_1", "pi_1", None, 4999)).await;
    assert_eq!(learned(bench).await, ["pi_1 money 1 -"]);
    ask(bench, 60, &answer(&captured("evt_1", "pi_1", None, 4999), "1")).await;
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    ask(bench, 120, &answer(&captured("evt_1", "pi_1", None, 4999), "2")).await;
    assert_eq!(learned(bench).await, ["pi_1 money 1 -"]);
}

/// Both in one transaction.
pub async fn what_is_told_at_once_is_told_by_the_webhook(bench: &Bench) {
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    let both = [arrival_at(&answer(&paid, "1"), 60, None), arrival_at(&paid, 60, None)];
    bench.apply_arrivals_at(at(60), &both).await;
    let failed = state("evt_2", "pi_2", Some("order-2"), PaymentState::Failed);
    let paid = captured("evt_3", "pi_2", Some("order-2"), 4999);
    let all = [arrival_at(&failed, 60, None), arrival_at(&answer(&paid, "1"), 60, None), arrival_at(&paid, 61, None)];
    bench.apply_arrivals_at(at(60), &all).await;
    assert_eq!(learned(bench).await, ["pi_1 money 60 -", "pi_2 money 61 60"]);
}

/// Leases the payment's look and applies this answer to it, as the reconciler does; whether it found money.
async fn look(bench: &Bench, seconds: i64, event: Option<&PaymentEvent>, meanwhile: impl AsyncFnOnce()) {
    let now = at(seconds);
    let lease = Lease { now, until: now.plus(FIRST_LOOK), token: bench.ids.next(), per_second: 1000 };
    let check = bench.store.lease_checks(&account(), &lease).await.unwrap().checks.remove(0);
    meanwhile().await;
    let said = match event {
        Some(event) => {
            let answer = answer(event, &seconds.to_string());
            bench.apply_arrivals_at(now, &[arrival_at(&answer, seconds, check.hinted_at)]).await;
            if event.fact == captured("", "", None, 4999).fact { Said::Money } else { Said::NoMoney }
        }
        None => Said::Nothing,
    };
    let ended = Ended { requests: 1, manner: Manner::Answered };
    let looked = Looked { at: now, result: "same", said, next_check_at: None, in_doubt_until: None, ended };
    bench.store.finish_check(&check, &looked).await.unwrap();
}

async fn hint(bench: &Bench, seconds: i64) {
    bench.store.hinted(at(seconds), &BTreeMap::from([((account(), "pi_1".to_owned()), at(seconds))])).await.unwrap();
}

/// Of a webhook that proves nothing. It came before the look, during it, or after another one had told; and a look that got no
/// answer does not use it up.
pub async fn a_hint_has_told_what_its_answer_tells(bench: &Bench) {
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    hint(bench, 5).await;
    look(bench, 6, None, async || ()).await;
    hint(bench, 8).await;
    look(bench, 10, Some(&paid), async || ()).await;
    assert_eq!(learned(bench).await, ["pi_1 money 5 -"]);

    for (hinted, told) in [(22, "pi_1 money 22 -"), (99, "pi_1 money 99 22")] {
        bench.execute("DELETE FROM learned; DELETE FROM events; DELETE FROM orders; DELETE FROM refs; DELETE FROM checks; DELETE FROM transitions; DELETE FROM books").await;
        bench.register(registration("order-1", Some("pi_1"), 4999)).await;
        bench.execute("UPDATE checks SET next_check_at = first_seen_at").await;
        let during = async || {
            if hinted == 22 {
                hint(bench, 22).await;
            }
        };
        look(bench, 22, Some(&paid), during).await;
        assert_eq!(learned(bench).await, ["pi_1 money - 22"]);
        if hinted != 22 {
            hint(bench, hinted).await;
        }
        look(bench, hinted.max(24), Some(&paid), async || ()).await;
        assert_eq!(learned(bench).await, [told]);
    }
}

/// It was about something else: what comes later, nobody told.
pub async fn a_hint_that_was_answered_has_told_nothing_more(bench: &Bench) {
    let open = state("evt_0", "pi_1", Some("order-1"), PaymentState::Pending);
    hint(bench, 5).await;
    look(bench, 6, Some(&open), async || ()).await;
    bench.execute("UPDATE checks SET next_check_at = first_seen_at").await;
    look(bench, 60, Some(&captured("evt_1", "pi_1", Some("order-1"), 4999)), async || ()).await;
    assert_eq!(learned(bench).await, ["pi_1 money - 60"]);
}

/// Who told that first is not known any more.
pub async fn what_was_decided_before_this_was_kept_is_not_counted(bench: &Bench) {
    let paid = captured("evt_1", "pi_1", Some("order-1"), 4999);
    hear(bench, 1, &paid).await;
    bench.execute("DELETE FROM learned").await;
    ask(bench, 60, &answer(&paid, "1")).await;
    hear(bench, 61, &paid).await;
    hear(bench, 62, &captured("evt_2", "pi_1", Some("order-1"), 4999)).await;
    ask(bench, 63, &listed(&captured("evt_3", "pi_1", Some("order-1"), 4999))).await;
    hear(bench, 64, &captured("evt_3", "pi_1", Some("order-1"), 4999)).await;
    assert_eq!(learned(bench).await, [""; 0]);
}

/// Webhooks and answers of the same payments at once, again and again: each payment has its row, and none is missed whose webhook
/// came.
pub async fn many_workers_learn_as_one(bench: &Bench) {
    const PAYMENTS: usize = 12;
    let paid: Vec<PaymentEvent> =
        (0..PAYMENTS).map(|n| captured(&format!("evt_{n}"), &format!("pi_{n:02}"), Some(&format!("order-{n}")), 4999)).collect();
    let workers = (0_usize..6).map(|worker| {
        let paid = &paid;
        async move {
            for turn in 0..PAYMENTS {
                let event = &paid[(turn * 5 + worker) % PAYMENTS];
                match worker {
                    0 | 1 => hear(bench, 70, event).await,
                    2 => ask(bench, 60, &listed(event)).await,
                    _ => ask(bench, 60, &answer(event, &worker.to_string())).await,
                }
            }
        }
    });
    join_all(workers).await;
    let all = learned(bench).await;
    assert_eq!(all.len(), PAYMENTS);
    // First by either; the webhook came in any case.
    assert!(all.iter().all(|row| row.ends_with("money 70 60") || row.ends_with("money 70 -")), "{all:#?}");
}

pub async fn what_became_of_webhooks_is_counted(bench: &Bench) {
    let hour = 3_600;
    // By webhook, late by a minute, by a day and an hour, never, and not yet.
    for (payment, asked, heard) in [
        ("pi_1", None, Some(0)),
        ("pi_2", Some(0), Some(60)),
        ("pi_3", Some(0), Some(25 * hour)),
        ("pi_4", Some(0), Some(80 * hour)),
        ("pi_5", Some(0), None),
        ("pi_6", Some(90 * hour), None),
    ] {
        let paid = captured(&format!("evt_{payment}"), payment, Some(&format!("order-{payment}")), 4999);
        if let Some(asked) = asked {
            ask(bench, asked, &answer(&paid, "1")).await;
        }
        if let Some(heard) = heard {
            hear(bench, heard, &paid).await;
        }
    }
    let (since, until) = (at(0), at(100 * hour));
    assert_eq!(bench.store.learned(since, until).await.unwrap(), [(account(), 6)]);
    assert_eq!(bench.store.learned(since, at(0)).await.unwrap(), []);
    assert_eq!(bench.store.learned(at(90 * hour), at(90 * hour + 1)).await.unwrap(), [(account(), 1)]);
    let other = AccountKey { account: "other".into(), ..account() };
    let windows = [(account(), 3 * DAY), (other.clone(), DAY)];
    let counted = bench.store.asked_first(since, until, until, &windows).await.unwrap();
    let nothing = AskedFirst { account: other, late: 0, missed: 0, pending: 0, came_by: [0; 7] };
    let expected = AskedFirst { account: account(), late: 2, missed: 2, pending: 1, came_by: [0, 1, 1, 1, 1, 1, 3] };
    assert_eq!(counted, [expected.clone(), nothing]);
    // Within a day after asking; each may still come, or came in time.
    let early = bench.store.asked_first(since, at(80 * hour), at(hour), &[(account(), 100 * DAY)]).await.unwrap();
    assert_eq!(early, [AskedFirst { late: 3, missed: 0, pending: 1, ..expected }]);
}

pub async fn what_a_silent_account_owes_is_counted(bench: &Bench) {
    // Nobody can be asked about an order without a payment.
    bench.register(registration("order-x", None, 4999)).await;
    for (payment, seconds) in [("pi_1", 100), ("pi_2", 200), ("pi_3", 300)] {
        ask(bench, seconds, &answer(&captured("", payment, Some(&format!("order-{payment}")), 4999), "1")).await;
    }
    let expected = async |since, until| bench.store.expected(&account(), at(since), at(until)).await.unwrap();
    assert_eq!(expected(-1, 1000).await, Expected { decided: 3, registered: 1 });
    assert_eq!(expected(100, 299).await, Expected { decided: 1, registered: 0 });
    assert_eq!(expected(0, 300).await, Expected { decided: 3, registered: 0 });
    hear(bench, 400, &captured("evt_2", "pi_2", Some("order-pi_2"), 4999)).await;
    hear(bench, 401, &captured("evt_x", "pi_x", Some("order-x"), 4999)).await;
    assert_eq!(expected(-1, 1000).await, Expected { decided: 2, registered: 0 });
    let other = AccountKey { account: "other".into(), ..account() };
    assert_eq!(bench.store.expected(&other, at(-1), at(1000)).await.unwrap(), Expected::default());
}

/// To ten seconds: hints too, but no answers.
pub async fn the_last_webhook_of_an_account_is_known(bench: &Bench) {
    let last = async || {
        let states = bench.store.account_states().await.unwrap();
        states.iter().find(|state| state.account == account()).and_then(|state| state.last_webhook_at)
    };
    ask(bench, 1, &answer(&captured("", "pi_1", Some("order-1"), 4999), "1")).await;
    assert_eq!(last().await, None);
    hear(bench, 2, &captured("evt_1", "pi_1", Some("order-1"), 4999)).await;
    assert_eq!(last().await, Some(at(2)));
    hear(bench, 11, &captured("evt_2", "pi_1", Some("order-1"), 4999)).await;
    assert_eq!(last().await, Some(at(2)));
    hint(bench, 13).await;
    assert_eq!(last().await, Some(at(13)));
    hear(bench, 5, &captured("evt_3", "pi_1", Some("order-1"), 4999)).await;
    assert_eq!(last().await, Some(at(13)), "one that stood in the queue");
}
