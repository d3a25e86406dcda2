//! Orders whose time is over, orders about which nobody can be asked, and the operator's list: what both backends promise.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::time::Duration;

use futures_util::future::join_all;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::PaymentState;
use paybell_worker::manners::{Ended, Manner};
use paybell_worker::order::{AccountKey, OrderStatus};
use paybell_worker::store::{
    Agreed, Attended, DueOrder, Expiry, Lease, Looked, Reason, Registration, Said, UnaskedWrite, UnsettledPlace,
};

use super::store::{Bench, FIRST_LOOK, NOW, account, captured, registration, state};

/// The tests of [`Bench`]es, each by its name: `expiry_suite!(a_function_that_makes_one)`.
#[macro_export]
macro_rules! expiry_suite {
    ($bench:path) => {
        $crate::expiry_suite!($bench:
            an_order_is_due_at_its_end_and_leased_to_one,
            an_order_that_changes_is_due_anew,
            an_order_of_an_earlier_version_is_seen_to_at_once,
            a_look_is_brought_forward_and_never_put_off,
            an_expiry_is_one_change_and_is_said,
            an_expiry_holds_against_the_order_as_it_is,
            orders_that_nobody_can_be_asked_about_are_known,
            what_is_unsettled_is_listed_by_reason_and_age,
            what_waits_to_be_asked_is_listed_by_account
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::expiry::$behaviour(&bench).await;
                bench.check_invariants().await;
                bench.store.close().await;
            }
        )+
    };
}

const HOUR: Duration = Duration::from_hours(1);
const LEASE: Duration = Duration::from_mins(1);
const END: Timestamp = Timestamp::from_millis(NOW.millis() + 3_600_000);

fn ending(order: &str, payment: Option<&str>, expires_at: Timestamp) -> Registration {
    Registration { expires_at: Some(expires_at), ..registration(order, payment, 4999) }
}

async fn due(bench: &Bench, now: Timestamp) -> Vec<DueOrder> {
    bench.store.lease_orders(now, now.plus(LEASE), 100).await.unwrap()
}

fn names(due: &[DueOrder]) -> Vec<&str> {
    let mut names: Vec<&str> = due.iter().map(|order| &*order.stored.id).collect();
    names.sort_unstable();
    names
}

fn attended(order: &DueOrder, due_at: Option<Timestamp>) -> Attended {
    let order_id = order.stored.id.clone();
    let unasked = UnaskedWrite { order_id: order_id.clone(), account: None, since: NOW };
    Attended { order_id, version: order.stored.version, leased_until: order.leased_until, due_at, looks: Vec::new(), unasked }
}

fn expiry(order_id: &str, ends_at: Timestamp, payments: &[&str]) -> Expiry {
    let agreed = |payment_id: &&str| Agreed {
        account: account(),
        payment_id: (*payment_id).to_owned(),
        looks: [ends_at, ends_at.plus(FIRST_LOOK)],
    };
    Expiry { order_id: order_id.to_owned(), ends_at, by: ends_at, asked: payments.iter().map(agreed).collect() }
}

pub async fn an_order_is_due_at_its_end_and_leased_to_one(bench: &Bench) {
    for n in 0..20 {
        bench.register(ending(&format!("order-{n:02}"), Some(&format!("pi_{n}")), END)).await;
    }
    bench.register(registration("order-without", Some("pi_x"), 4999)).await;
    assert_eq!(names(&due(bench, END.minus(Duration::from_millis(1))).await), [""; 0]);
    let workers = (0..4).map(async |_| {
        let mut leased = Vec::new();
        loop {
            let more = bench.store.lease_orders(END, END.plus(LEASE), 3).await.unwrap();
            assert!(more.len() <= 3);
            // On PostgreSQL, what another one is leasing at this moment is passed over.
            if more.is_empty()
                && bench.count(&format!("SELECT count(*) FROM orders WHERE due_at <= {}", sql(bench, END))).await == 0
            {
                return leased;
            }
            leased.extend(more);
        }
    });
    let leased: Vec<DueOrder> = join_all(workers).await.into_iter().flatten().collect();
    let all: Vec<String> = (0..20).map(|n| format!("order-{n:02}")).collect();
    assert_eq!(names(&leased), all, "each once");
    assert!(leased.iter().all(|order| order.registers.expires_at == Some(END) && order.looks.len() == 1));
    // Whoever died with a lease loses it.
    assert_eq!(names(&due(bench, END.plus(LEASE).minus(Duration::from_millis(1))).await), [""; 0]);
    assert_eq!(due(bench, END.plus(LEASE)).await.len(), 20);
    // And whoever lost it ends nothing.
    bench.store.attend_orders(&leased.iter().map(|order| attended(order, None)).collect::<Vec<_>>()).await.unwrap();
    let again = due(bench, END.plus(LEASE * 2)).await;
    assert_eq!(again.len(), 20);
    let later = END.plus(HOUR);
    bench.store.attend_orders(&again.iter().map(|order| attended(order, Some(later))).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(names(&due(bench, later.minus(Duration::from_millis(1))).await), [""; 0]);
    let last = due(bench, later).await;
    bench.store.attend_orders(&last.iter().map(|order| attended(order, None)).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(names(&due(bench, later.plus(HOUR)).await), [""; 0]);
}

fn sql(bench: &Bench, at: Timestamp) -> String {
    if bench.is_postgres() { format!("timestamptz '{at}'") } else { at.millis().to_string() }
}

/// Whoever attends to it knows it as it was.
pub async fn an_order_that_changes_is_due_anew(bench: &Bench) {
    for order in ["order-1", "order-2", "order-3"] {
        bench.register(ending(order, Some(&format!("pi_{order}")), END)).await;
    }
    let leased = due(bench, END).await;
    assert_eq!(leased.len(), 3);
    bench
        .apply_at(END, &[captured("evt_1", "pi_order-1", None, 4999), state("evt_2", "pi_order-2", None, PaymentState::Failed)])
        .await;
    bench.register_at(END, ending("order-3", None, END.plus(HOUR))).await;
    bench.store.attend_orders(&leased.iter().map(|order| attended(order, None)).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(names(&due(bench, END).await), ["order-2"], "paid; failed; given another hour");
    assert_eq!(names(&due(bench, END.plus(HOUR)).await), ["order-2", "order-3"]);
}

/// It has the column's default; closed ones are none of this.
pub async fn an_order_of_an_earlier_version_is_seen_to_at_once(bench: &Bench) {
    bench.register(ending("order-1", Some("pi_1"), END)).await;
    bench.register(registration("order-2", Some("pi_2"), 4999)).await;
    bench.apply(&[captured("evt_3", "pi_3", Some("order-3"), 4999)]).await;
    let copy = "id, status, view, registers, version, review_since, updated_at";
    bench
        .execute(&format!(
            "CREATE TABLE old_orders AS SELECT {copy} FROM orders; DELETE FROM orders;
             INSERT INTO orders ({copy}) SELECT {copy} FROM old_orders; DROP TABLE old_orders"
        ))
        .await;
    let found = due(bench, NOW).await;
    assert_eq!(names(&found), ["order-1", "order-2"]);
    let next = |order: &DueOrder| order.registers.ends_at(order.stored.view.status);
    bench.store.attend_orders(&found.iter().map(|order| attended(order, next(order))).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(names(&due(bench, END.minus(Duration::from_millis(1))).await), [""; 0]);
    assert_eq!(names(&due(bench, END).await), ["order-1"]);
}

pub async fn a_look_is_brought_forward_and_never_put_off(bench: &Bench) {
    bench.register(ending("order-1", Some("pi_1"), END)).await;
    bench.execute("DELETE FROM checks").await;
    let plan = async |seconds: u64| {
        let order = due(bench, END.plus(Duration::from_secs(seconds))).await.remove(0);
        let at = END.plus(Duration::from_secs(seconds));
        let looks = vec![(account(), "pi_1".to_owned(), at)];
        bench.store.attend_orders(&[Attended { looks, ..attended(&order, Some(NOW)) }]).await.unwrap();
        due(bench, END).await.remove(0).looks.remove(0).next_check_at
    };
    assert_eq!(plan(0).await, Some(END), "it was not known");
    assert_eq!(plan(100).await, Some(END));
    bench.execute(&format!("UPDATE checks SET next_check_at = {}", sql(bench, END.plus(HOUR)))).await;
    assert_eq!(plan(200).await, Some(END.plus(Duration::from_secs(200))));
    bench.execute("UPDATE checks SET next_check_at = NULL").await;
    assert_eq!(plan(300).await, Some(END.plus(Duration::from_mins(5))), "nothing was left to ask");
}

pub async fn an_expiry_is_one_change_and_is_said(bench: &Bench) {
    bench.register(ending("order-1", Some("pi_1"), END)).await;
    let found = expiry("order-1", END, &["pi_1"]);
    let workers = (0..4).map(|_| bench.expire_at(END.plus(HOUR), std::slice::from_ref(&found)));
    let expired: Vec<String> = join_all(workers).await.into_iter().flatten().collect();
    assert_eq!(expired, ["order-1"], "once");
    let order = bench.order("order-1").await;
    assert_eq!((order.view.status, order.version), (OrderStatus::Expired, 2));
    let said = "SELECT kind || ' ' || operator FROM actions WHERE kind = 'expired'";
    assert_eq!(bench.texts(said).await, ["expired paybell"]);
    assert_eq!(bench.count("SELECT count(*) FROM orders WHERE due_at IS NULL").await, 1);
    bench.apply_at(END.plus(HOUR), &[captured("evt_1", "pi_1", None, 4999)]).await;
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Paid, "a late success wins");
    assert_eq!(bench.expire_at(END.plus(HOUR), &[found]).await, [""; 0]);
}

/// It was found expired by what was known before.
pub async fn an_expiry_holds_against_the_order_as_it_is(bench: &Bench) {
    for order in ["ended-later", "paid", "authorized", "another-payment"] {
        bench.register(ending(order, Some(&format!("pi_{order}")), END)).await;
    }
    bench.register(ending("ended-later", None, END.plus(HOUR))).await;
    bench.apply(&[captured("evt_1", "pi_paid", None, 4999)]).await;
    bench.apply(&[state("evt_2", "pi_authorized", None, PaymentState::Authorized)]).await;
    bench.register(registration("another-payment", Some("pi_other"), 4999)).await;
    for order in ["ended-later", "paid", "authorized", "another-payment", "nobody"] {
        let before = bench.rows("orders").await;
        assert_eq!(bench.expire_at(END, &[expiry(order, END, &[&format!("pi_{order}")])]).await, [""; 0], "{order}");
        assert_eq!(bench.rows("orders").await, before, "{order}");
    }
    assert_eq!(bench.count("SELECT count(*) FROM actions WHERE kind = 'expired'").await, 0);
    let both = expiry("another-payment", END, &["pi_another-payment", "pi_other"]);
    assert_eq!(bench.expire_at(END, &[both]).await, ["another-payment"]);
}

pub async fn orders_that_nobody_can_be_asked_about_are_known(bench: &Bench) {
    let unasked = async || bench.texts("SELECT order_id || ' ' || psp || '/' || account FROM unasked ORDER BY order_id").await;
    let of_adyen = |order: &str, payment: Option<&str>| Registration {
        account: AccountKey { psp: "adyen".into(), account: "shop".into() },
        ..registration(order, payment, 4999)
    };
    bench.register(registration("order-1", None, 4999)).await;
    bench.register(registration("order-2", Some("pi_2"), 4999)).await;
    bench.register(of_adyen("order-3", Some("psp_3"))).await;
    assert_eq!(unasked().await, ["order-1 stripe/default", "order-3 adyen/shop"]);
    bench.register_at(NOW.plus(HOUR), of_adyen("order-3", Some("psp_4"))).await;
    let since = format!("SELECT count(*) FROM unasked WHERE since = {}", sql(bench, NOW));
    assert_eq!(bench.count(&since).await, 2, "since when stays");
    bench.apply(&[state("evt_1", "pi_1", Some("order-1"), PaymentState::Pending)]).await;
    assert_eq!(unasked().await, ["order-3 adyen/shop"], "a payment of it is known");
    bench.register(registration("order-3", Some("pi_3"), 4999)).await;
    assert_eq!(unasked().await, [""; 0]);
    bench.register(registration("order-4", None, 4999)).await;
    bench.apply(&[captured("evt_4", "pi_4", Some("order-4"), 4999)]).await;
    assert_eq!(unasked().await, [""; 0], "it is paid");
}

/// By payment: its looks found this, so many seconds before [`NOW`].
async fn stands(bench: &Bench, payment: &str, column: &str, seconds: u64) {
    let at = sql(bench, NOW.minus(Duration::from_secs(seconds)));
    bench.execute(&format!("UPDATE checks SET {column} = {at} WHERE payment_id = '{payment}'")).await;
}

async fn listed(bench: &Bench, reason: Reason, before: Timestamp) -> Vec<String> {
    let mut all = Vec::new();
    let mut after: Option<UnsettledPlace> = None;
    loop {
        // Page by page.
        let page = bench.store.unsettled(reason, &[account()], before, after.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.place.clone());
        assert!(page.iter().all(|found| found.place.account.psp.len() > 1));
        all.extend(page.into_iter().map(|found| format!("{} {}", found.order.id, found.place.id)));
    }
    let count = bench.store.count_unsettled(reason, &[account()], before).await.unwrap();
    let orders: std::collections::BTreeSet<&str> = all.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(count as usize, orders.len(), "{reason:?}");
    all
}

pub async fn what_is_unsettled_is_listed_by_reason_and_age(bench: &Bench) {
    for n in 1..=6 {
        bench.register(registration(&format!("order-{n}"), Some(&format!("pi_{n}")), 4999)).await;
    }
    for (n, payment) in ["pi_1", "pi_2", "pi_3", "pi_4", "pi_5"].into_iter().enumerate() {
        let seconds = 500 - 100 * u64::try_from(n).unwrap();
        stands(bench, payment, "missing_since", seconds).await;
        stands(bench, payment, "standing_since", seconds).await;
        stands(bench, payment, "denied_before_at", 1).await;
    }
    bench.apply(&[captured("evt_3", "pi_3", None, 4999)]).await;
    bench.register(ending("order-4", None, END)).await;
    let ago = |seconds| NOW.minus(Duration::from_secs(seconds));
    let unknown = ["order-1 pi_1", "order-2 pi_2", "order-4 pi_4", "order-5 pi_5"];
    assert_eq!(listed(bench, Reason::UnknownToPsp, NOW).await, unknown, "but not the one that is paid");
    assert_eq!(listed(bench, Reason::UnknownToPsp, ago(400)).await, unknown[..2], "younger ones may turn up");
    assert_eq!(listed(bench, Reason::UnknownToPsp, ago(501)).await, [""; 0]);
    // Nor the one that will expire by itself.
    assert_eq!(listed(bench, Reason::NoMoney, NOW).await, ["order-1 pi_1", "order-2 pi_2", "order-5 pi_5"]);
    bench.execute("UPDATE checks SET denied_before_at = NULL WHERE payment_id = 'pi_1'").await;
    assert_eq!(listed(bench, Reason::NoMoney, NOW).await, ["order-2 pi_2", "order-5 pi_5"], "asked once is not enough");
    bench.execute("UPDATE checks SET next_check_at = NULL WHERE payment_id = 'pi_1'").await;
    assert_eq!(listed(bench, Reason::NoMoney, NOW).await, ["order-1 pi_1", "order-2 pi_2", "order-5 pi_5"], "unless that is all");
    // A payment more that holds it up.
    bench.register(registration("order-5", Some("pi_5b"), 4999)).await;
    stands(bench, "pi_5b", "missing_since", 1).await;
    assert_eq!(listed(bench, Reason::UnknownToPsp, NOW).await.last().unwrap(), "order-5 pi_5b");

    assert_eq!(listed(bench, Reason::CannotBeAsked, NOW).await, [""; 0]);
    for (order, seconds) in [("order-7", 300), ("order-8", 200), ("order-9", 100)] {
        bench.register_at(ago(seconds), registration(order, None, 4999)).await;
    }
    bench.register_at(ago(300), ending("order-ends", None, END)).await;
    assert_eq!(listed(bench, Reason::CannotBeAsked, NOW).await, ["order-7 order-7", "order-8 order-8", "order-9 order-9"]);
    assert_eq!(listed(bench, Reason::CannotBeAsked, ago(200)).await, ["order-7 order-7", "order-8 order-8"]);
}

/// Whether it got no answer, or was not even asked.
pub async fn what_waits_to_be_asked_is_listed_by_account(bench: &Bench) {
    for n in 1..=4 {
        bench.register(registration(&format!("order-{n}"), Some(&format!("pi_{n}")), 4999)).await;
    }
    bench.apply(&[captured("evt_3", "pi_3", None, 4999)]).await;
    stands(bench, "pi_1", "next_check_at", 200).await;
    stands(bench, "pi_2", "next_check_at", 100).await;
    stands(bench, "pi_3", "next_check_at", 300).await;
    let now = NOW;
    let lease = Lease { now, until: now.plus(LEASE), token: bench.ids.next(), per_second: 1000 };
    let checks = bench.store.lease_checks(&account(), &lease).await.unwrap().checks;
    let check = checks.iter().find(|check| check.payment_id == "pi_2").unwrap();
    let ended = Ended { requests: 1, manner: Manner::Failed { retry_after: None } };
    let (said, next_check_at) = (Said::Nothing, Some(now.minus(Duration::from_secs(150))));
    let looked = Looked { at: now, result: "failed", said, next_check_at, in_doubt_until: None, ended };
    bench.store.finish_check(check, &looked).await.unwrap();
    for reason in [Reason::NoAnswer, Reason::CredentialsRefused] {
        assert_eq!(listed(bench, reason, NOW).await, ["order-1 pi_1", "order-2 pi_2"], "each once; the paid one never");
        assert_eq!(
            listed(bench, reason, NOW.minus(Duration::from_secs(101))).await,
            ["order-1 pi_1"],
            "since their looks were due"
        );
        let other = [AccountKey { account: "other".into(), ..account() }];
        assert!(bench.store.unsettled(reason, &other, NOW, None, 10).await.unwrap().is_empty());
        assert!(bench.store.unsettled(reason, &[], NOW, None, 10).await.unwrap().is_empty());
    }
}
