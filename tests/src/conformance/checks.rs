//! What is due to be asked, and how much an account may be: what both backends promise.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::PaymentState;
use paybell_worker::manners::{BUSY_MAX, Ended, Leave, Manner, News};
use paybell_worker::order::Standing;
use paybell_worker::store::{DueCheck, Lease, Looked, Said};

use super::store::{Bench, FIRST_LOOK, NOW, account, captured, refund, registration, state};

/// The tests of [`Bench`]es, each by its name: `checks_suite!(a_function_that_makes_one)`.
#[macro_export]
macro_rules! checks_suite {
    ($bench:path) => {
        $crate::checks_suite!($bench:
            a_lease_is_held_by_one_and_few_are_given,
            a_lease_that_ended_is_another_ones_and_its_holder_ends_nothing,
            a_hint_is_one_question_and_not_too_soon,
            a_doubt_has_the_psp_asked_once,
            a_look_is_planned_when_a_payment_stands_otherwise,
            what_is_planned_during_a_look_outlives_it,
            a_hint_outlives_a_change,
            what_looks_heard_is_kept,
            a_hint_that_no_look_answered_stays_open,
            a_row_of_an_older_schema_begins_to_age,
            an_accounts_patience_is_one_for_all,
            what_is_due_is_counted
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::checks::$behaviour(&bench).await;
                bench.check_invariants().await;
                bench.store.close().await;
            }
        )+
    };
}

const LEASE: Duration = Duration::from_secs(30);
/// More than any of these tests asks.
const RATE: u32 = 1000;

fn terms(bench: &Bench, now: Timestamp) -> Lease {
    Lease { now, until: now.plus(LEASE), token: bench.ids.next(), per_second: RATE }
}

async fn lease(bench: &Bench, now: Timestamp) -> Vec<DueCheck> {
    let leased = bench.store.lease_checks(&account(), &terms(bench, now)).await.unwrap();
    assert_eq!(leased.not_before, None);
    leased.checks
}

fn looked(at: Timestamp, next_check_at: Option<Timestamp>) -> Looked {
    let ended = Ended { requests: 1, manner: Manner::Answered };
    Looked { at, result: "same", said: Said::NoMoney, next_check_at, in_doubt_until: None, ended }
}

async fn finish(bench: &Bench, check: &DueCheck, looked: Looked) {
    assert_eq!(bench.store.finish_check(check, &looked).await.unwrap(), None);
}

fn names(checks: &[DueCheck]) -> Vec<&str> {
    checks.iter().map(|check| &*check.payment_id).collect()
}

async fn open(bench: &Bench, payments: u32) {
    for n in 0..payments {
        bench.apply(&[state(&format!("evt_{n}"), &format!("pi_{n:02}"), Some("order-1"), PaymentState::Pending)]).await;
    }
}

pub async fn a_lease_is_held_by_one_and_few_are_given(bench: &Bench) {
    open(bench, 20).await;
    let due = NOW.plus(FIRST_LOOK);
    assert_eq!(lease(bench, due.minus(Duration::from_millis(1))).await, []);
    let worker = async || {
        let mut looks = Vec::new();
        loop {
            let leased = bench.store.lease_checks(&account(), &terms(bench, due)).await.unwrap();
            assert!(leased.checks.len() <= BUSY_MAX as usize);
            if leased.checks.is_empty() && leased.not_before.is_none() {
                return looks;
            }
            for check in leased.checks {
                assert_eq!((check.standing, check.standing_since), (Some(Standing::Open), Some(NOW)));
                assert_eq!((check.looks, check.hint_seq, &check.account), (0, 0, &account()));
                finish(bench, &check, looked(due, None)).await;
                looks.push(check.payment_id);
            }
        }
    };
    let (one, two) = tokio::join!(worker(), worker());
    let all: BTreeSet<&String> = one.iter().chain(&two).collect();
    assert_eq!((one.len() + two.len(), all.len()), (20, 20));
}

pub async fn a_lease_that_ended_is_another_ones_and_its_holder_ends_nothing(bench: &Bench) {
    open(bench, 1).await;
    let due = NOW.plus(FIRST_LOOK);
    let lost = lease(bench, due).await.remove(0);
    let expiry = due.plus(LEASE);
    assert_eq!(lease(bench, expiry.minus(Duration::from_millis(1))).await, []);
    let held = lease(bench, expiry).await.remove(0);
    finish(bench, &lost, looked(expiry, None)).await;
    let untouched = "SELECT count(*) FROM checks WHERE last_result IS NULL AND looks = 0 AND lease_token IS NOT NULL";
    assert_eq!(bench.count(untouched).await, 1);

    let next = expiry.plus(FIRST_LOOK);
    finish(bench, &held, looked(expiry, Some(next))).await;
    assert_eq!(lease(bench, next.minus(Duration::from_millis(1))).await, []);
    let again = lease(bench, next).await.remove(0);
    assert_eq!(again.looks, 1);
    finish(bench, &again, Looked { result: "missing", ..looked(next, None) }).await;
    assert_eq!(lease(bench, next.plus(LEASE)).await, []);
    assert_eq!(bench.texts("SELECT last_result FROM checks").await, ["missing"]);
}

/// Any number of hints about a payment, known or not, is one outstanding question; one that comes during a look is not
/// answered by it, and is not asked within two seconds of it.
pub async fn a_hint_is_one_question_and_not_too_soon(bench: &Bench) {
    bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
    let hinted = BTreeSet::from([(account(), "pi_1".to_owned()), (account(), "pi_unheard".to_owned())]);
    assert_eq!(lease(bench, NOW).await, []);
    for _ in 0..3 {
        bench.store.ask_about(NOW, &hinted).await.unwrap();
    }
    let mut due = lease(bench, NOW).await;
    due.sort_by(|one, other| one.payment_id.cmp(&other.payment_id));
    assert_eq!(names(&due), ["pi_1", "pi_unheard"]);
    assert_eq!(due.iter().map(|check| check.hint_seq).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(due[1].standing, None, "nothing is known of it yet");
    // While the look at the first is under way.
    bench.store.ask_about(NOW, &BTreeSet::from([(account(), "pi_1".to_owned())])).await.unwrap();
    for check in &due {
        finish(bench, check, looked(NOW, None)).await;
    }
    let soon = NOW.plus(Duration::from_secs(2));
    assert_eq!(lease(bench, soon.minus(Duration::from_millis(1))).await, []);
    let again = lease(bench, soon).await;
    assert_eq!((names(&again), again[0].hint_seq), (vec!["pi_1"], 4));
    finish(bench, &again[0], looked(soon, None)).await;
    assert_eq!(lease(bench, soon.plus(LEASE)).await, []);
}

/// Facts of one version that contradict each other: the PSP is asked soon, also where a look is planned for later or under
/// way, and not again for what was asked about already.
pub async fn a_doubt_has_the_psp_asked_once(bench: &Bench) {
    let next = "SELECT count(*) FROM checks WHERE hint_seq = 1";
    bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999), refund("evt_2", "pi_1", "re_1", 1000)]).await;
    assert_eq!(bench.count(next).await, 0);
    let mut other = refund("evt_3", "pi_1", "re_1", 1500);
    other.version = refund("evt_2", "pi_1", "re_1", 1000).version;
    bench.apply(std::slice::from_ref(&other)).await;
    assert_eq!(bench.count(next).await, 1, "the amounts of one refund differ");
    let soon = NOW.plus(Duration::from_secs(2));
    let due = lease(bench, soon).await;
    assert_eq!(names(&due), ["pi_1"]);
    let in_doubt_until = Some(soon.plus(FIRST_LOOK));
    finish(bench, &due[0], Looked { in_doubt_until, ..looked(soon, None) }).await;
    bench.apply(&[other]).await;
    assert_eq!(bench.count(next).await, 1, "a duplicate asks nothing");
    assert_eq!(lease(bench, soon).await, []);
    assert_eq!(names(&lease(bench, soon.plus(FIRST_LOOK)).await), ["pi_1"], "two looks that agree are apart");
}

/// Not by every event: what only confirms plans nothing.
pub async fn a_look_is_planned_when_a_payment_stands_otherwise(bench: &Bench) {
    let next = "SELECT count(*) FROM checks WHERE next_check_at IS NULL";
    bench.apply(&[state("evt_1", "pi_1", None, PaymentState::Pending)]).await;
    assert_eq!(names(&lease(bench, NOW.plus(FIRST_LOOK)).await), ["pi_1"], "it has no order yet");
    bench.execute("UPDATE checks SET next_check_at = NULL, lease_token = NULL, lease_until = NULL").await;
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    assert_eq!(bench.texts("SELECT standing FROM checks").await, ["open"]);
    assert_eq!(bench.count(next).await, 0);
    bench.execute("UPDATE checks SET next_check_at = NULL").await;
    bench.apply(&[state("evt_2", "pi_1", None, PaymentState::Pending)]).await;
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    assert_eq!(bench.count(next).await, 1, "it stands as before");
    bench.apply(&[captured("evt_3", "pi_1", None, 4999)]).await;
    assert_eq!(bench.texts("SELECT standing FROM checks").await, ["settled"]);
    let day = Duration::from_hours(24);
    assert_eq!(lease(bench, NOW.plus(day).minus(Duration::from_millis(1))).await, []);
    assert_eq!(names(&lease(bench, NOW.plus(day)).await), ["pi_1"]);
    assert_eq!(bench.count("SELECT count(*) FROM checks").await, 1);
}

/// A webhook comes while the PSP is asked, and the answer is older than it.
pub async fn what_is_planned_during_a_look_outlives_it(bench: &Bench) {
    open(bench, 1).await;
    let due = NOW.plus(FIRST_LOOK);
    let look = lease(bench, due).await.remove(0);
    bench.execute("UPDATE checks SET standing_since = standing_since").await;
    let mut later = state("evt_x", "pi_00", None, PaymentState::Failed);
    later.occurred_at = due;
    bench.apply_at(due, &[later]).await;
    finish(bench, &look, looked(due, None)).await;
    assert_eq!(bench.texts("SELECT standing FROM checks").await, ["failed"]);
    assert_eq!(bench.count("SELECT count(*) FROM checks WHERE next_check_at IS NULL").await, 0, "late success is looked for");
}

/// A change by a webhook plans no look, or a later one: the hint before it is not answered by that.
pub async fn a_hint_outlives_a_change(bench: &Bench) {
    open(bench, 1).await;
    bench.store.ask_about(NOW, &BTreeSet::from([(account(), "pi_00".to_owned())])).await.unwrap();
    bench.apply(&[captured("evt_x", "pi_00", None, 4999)]).await;
    let hinted = lease(bench, NOW).await;
    assert_eq!((names(&hinted), hinted[0].standing), (vec!["pi_00"], Some(Standing::Settled)));
}

pub async fn what_looks_heard_is_kept(bench: &Bench) {
    open(bench, 1).await;
    let mut at = NOW.plus(FIRST_LOOK);
    let mut look = async |said| {
        let check = lease(bench, at).await.remove(0);
        let next = at.plus(FIRST_LOOK);
        finish(bench, &check, Looked { said, ..looked(at, Some(next)) }).await;
        let text = |column: &str| {
            let seconds =
                if bench.is_postgres() { format!("extract(epoch FROM {column})::bigint") } else { format!("{column} / 1000") };
            format!("coalesce(cast({seconds} AS text), '-')")
        };
        let columns = ["answered_at", "denied_at", "denied_before_at", "missing_since", "unanswered_since"].map(text);
        let row = bench.texts(&format!("SELECT {} FROM checks", columns.join(" || ' ' || "))).await.remove(0);
        let first = NOW.plus(FIRST_LOOK).seconds();
        at = next;
        let minutes = row.split(' ').map(|word| word.parse::<i64>().map_or("-".to_owned(), |s| ((s - first) / 60).to_string()));
        minutes.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(look(Said::NoMoney).await, "0 0 - - -");
    assert_eq!(look(Said::NoMoney).await, "1 1 0 - -");
    assert_eq!(look(Said::Nothing).await, "1 1 0 - 2");
    assert_eq!(look(Said::Nothing).await, "1 1 0 - 2");
    assert_eq!(look(Said::Unknown).await, "4 1 0 4 -");
    assert_eq!(look(Said::Nothing).await, "4 1 0 4 5");
    assert_eq!(look(Said::Unknown).await, "6 1 0 4 -");
    assert_eq!(look(Said::NoMoney).await, "7 7 1 - -");
    assert_eq!(look(Said::Money).await, "8 - - - -");
}

/// The PSP was down, and then a webhook changes how the payment stands: the hint is still to be answered, soon.
pub async fn a_hint_that_no_look_answered_stays_open(bench: &Bench) {
    open(bench, 1).await;
    bench.store.ask_about(NOW, &BTreeSet::from([(account(), "pi_00".to_owned())])).await.unwrap();
    let hinted = lease(bench, NOW).await.remove(0);
    let next = NOW.plus(Duration::from_hours(1));
    finish(bench, &hinted, Looked { said: Said::Nothing, ..looked(NOW, Some(next)) }).await;
    bench.apply(&[captured("evt_x", "pi_00", None, 4999)]).await;
    assert_eq!(lease(bench, next.minus(Duration::from_millis(1))).await, []);
    let again = lease(bench, next).await.remove(0);
    assert_eq!(again.standing, Some(Standing::Settled));
    finish(bench, &again, looked(next, None)).await;
    assert_eq!(lease(bench, next.plus(Duration::from_hours(24 * 365))).await, [], "it is answered");
}

/// Of a payment from before version 3 of the schema nobody knows since when it is known: without an age its looks would never
/// grow rarer.
pub async fn a_row_of_an_older_schema_begins_to_age(bench: &Bench) {
    open(bench, 1).await;
    bench.execute("UPDATE checks SET standing = NULL, standing_since = NULL, first_seen_at = NULL").await;
    let due = NOW.plus(FIRST_LOOK);
    let check = lease(bench, due).await.remove(0);
    assert_eq!((check.first_seen_at, check.standing_since), (None, None));
    let next = due.plus(FIRST_LOOK);
    finish(bench, &check, looked(due, Some(next))).await;
    let check = lease(bench, next).await.remove(0);
    assert_eq!(check.first_seen_at, Some(due));
    let later = next.plus(FIRST_LOOK);
    finish(bench, &check, looked(next, Some(later))).await;
    assert_eq!(lease(bench, later).await.remove(0).first_seen_at, Some(due));
}

pub async fn an_accounts_patience_is_one_for_all(bench: &Bench) {
    open(bench, 10).await;
    let due = NOW.plus(FIRST_LOOK);
    let (one, two) = (terms(bench, due), terms(bench, due));
    assert_eq!(bench.store.begin_asking(&account(), &one, 3).await.unwrap(), Leave::Go(3));
    let leased = bench.store.lease_checks(&account(), &two).await.unwrap();
    assert_eq!((leased.checks.len(), leased.not_before), (1, None), "three conversations are under way");
    let full = bench.store.lease_checks(&account(), &terms(bench, due)).await.unwrap();
    assert_eq!(full.checks, []);
    assert!(full.not_before.is_some_and(|at| at > due));
    // The PSP says to one of them that it asks too often: so it is for all.
    let slow_down = Ended { requests: 1, manner: Manner::SlowDown { retry_after: Some(Duration::from_secs(7)) } };
    assert_eq!(bench.store.end_asking(&account(), due, one.token, slow_down).await.unwrap(), None);
    let told = due.plus(Duration::from_secs(7));
    assert_eq!(bench.store.lease_checks(&account(), &terms(bench, due)).await.unwrap().not_before, Some(told));
    assert_eq!(bench.store.begin_asking(&account(), &terms(bench, due), 1).await.unwrap(), Leave::NotBefore(told));
    // News are told to one of all.
    let refused = Looked { said: Said::Nothing, ended: Ended { requests: 1, manner: Manner::Refused }, ..looked(due, Some(due)) };
    let news = bench.store.finish_check(&leased.checks[0], &refused).await.unwrap();
    assert_eq!(news, Some(News::CredentialsRefused));
    assert_eq!(bench.store.end_asking(&account(), due, one.token, refused.ended).await.unwrap(), None);
    let other = paybell_worker::order::AccountKey { account: "other".into(), ..account() };
    assert_eq!(bench.store.begin_asking(&other, &terms(bench, due), 1).await.unwrap(), Leave::Go(1), "another account's");
}

pub async fn what_is_due_is_counted(bench: &Bench) {
    open(bench, 3).await;
    let other = paybell_worker::order::AccountKey { account: "other".into(), ..account() };
    let due = bench.store.due(NOW.plus(FIRST_LOOK), &[&account(), &other]).await.unwrap();
    let told: Vec<_> = due.iter().map(|due| (&due.account, due.payments, due.since)).collect();
    assert_eq!(told, [(&account(), 3, Some(NOW.plus(FIRST_LOOK))), (&other, 0, None)]);
    assert!(due.iter().all(|due| due.manners == paybell_worker::manners::Manners::default()));
}
