//! What one worker of many looks after: what both backends promise.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_worker::store::{LeasedWatch, WatchKey, WatchKind, WatchLease, WatchState};

use super::store::{Bench, NOW, account};

/// The tests of [`Bench`]es, each by its name: `watches_suite!(a_function_that_makes_one)`.
#[macro_export]
macro_rules! watches_suite {
    ($bench:path) => {
        $crate::watches_suite!($bench:
            a_watch_is_leased_by_one_when_it_is_due,
            somebody_who_asks_need_not_wait_until_it_is_due,
            a_lost_lease_keeps_nothing,
            what_was_found_is_told_by_kind
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::watches::$behaviour(&bench).await;
                bench.check_invariants().await;
                bench.store.close().await;
            }
        )+
    };
}

const LEASE: Duration = Duration::from_mins(2);
const PERIOD: Duration = Duration::from_hours(1);

fn endpoint() -> WatchKey {
    WatchKey { kind: WatchKind::Endpoint, account: account() }
}

fn terms(bench: &Bench, now: Timestamp, only_if_due: bool) -> WatchLease {
    WatchLease { now, until: now.plus(LEASE), token: bench.ids.next(), only_if_due }
}

async fn lease(bench: &Bench, lease: WatchLease) -> Option<LeasedWatch> {
    bench.store.lease_watch(&endpoint(), &lease).await.unwrap()
}

async fn finish(bench: &Bench, lease: WatchLease, state: &str) -> bool {
    bench.store.finish_watch(&endpoint(), lease.token, lease.now.plus(PERIOD), state).await.unwrap()
}

fn found(state: Option<&str>) -> LeasedWatch {
    LeasedWatch { state: state.map(str::to_owned) }
}

pub async fn a_watch_is_leased_by_one_when_it_is_due(bench: &Bench) {
    let worker = async || lease(bench, terms(bench, NOW, true)).await.is_some();
    let (one, two, three) = tokio::join!(worker(), worker(), worker());
    assert_eq!([one, two, three].iter().filter(|got| **got).count(), 1, "the first look is due at once, and is one's");
    // Whoever had it died.
    let expiry = NOW.plus(LEASE);
    assert_eq!(lease(bench, terms(bench, expiry.minus(Duration::from_millis(1)), true)).await, None);
    let held = terms(bench, expiry, true);
    assert_eq!(lease(bench, held).await, Some(found(None)));
    assert!(finish(bench, held, r#"{"it":"is well"}"#).await);
    let due = expiry.plus(PERIOD);
    assert_eq!(lease(bench, terms(bench, due.minus(Duration::from_millis(1)), true)).await, None);
    assert_eq!(lease(bench, terms(bench, due, true)).await, Some(found(Some(r#"{"it":"is well"}"#))));
}

pub async fn somebody_who_asks_need_not_wait_until_it_is_due(bench: &Bench) {
    let first = terms(bench, NOW, true);
    assert_eq!(lease(bench, first).await, Some(found(None)));
    assert_eq!(lease(bench, terms(bench, NOW, false)).await, None, "another one looks");
    assert!(finish(bench, first, "{}").await);
    assert_eq!(lease(bench, terms(bench, NOW, true)).await, None);
    assert_eq!(lease(bench, terms(bench, NOW, false)).await, Some(found(Some("{}"))));
}

pub async fn a_lost_lease_keeps_nothing(bench: &Bench) {
    let lost = terms(bench, NOW, true);
    assert_eq!(lease(bench, lost).await, Some(found(None)));
    let held = terms(bench, NOW.plus(LEASE), true);
    assert_eq!(lease(bench, held).await, Some(found(None)));
    assert!(!finish(bench, lost, r#"{"by":"who lost it"}"#).await);
    assert!(finish(bench, held, r#"{"by":"who held it"}"#).await);
    assert!(!finish(bench, held, r#"{"again":true}"#).await, "a lease ends once");
    let states = bench.store.watch_states(WatchKind::Endpoint).await.unwrap();
    assert_eq!(states, [WatchState { key: endpoint(), state: r#"{"by":"who held it"}"#.to_owned() }]);
}

pub async fn what_was_found_is_told_by_kind(bench: &Bench) {
    let watch = async |kind, name: &str, state| {
        let key = WatchKey { kind, account: paybell_worker::order::AccountKey { account: name.into(), ..account() } };
        let lease = terms(bench, NOW, true);
        assert_eq!(bench.store.lease_watch(&key, &lease).await.unwrap(), Some(found(None)));
        if let Some(state) = state {
            assert!(bench.store.finish_watch(&key, lease.token, NOW, state).await.unwrap());
        }
    };
    watch(WatchKind::Endpoint, "b", Some("2")).await;
    watch(WatchKind::Endpoint, "a", Some("1")).await;
    watch(WatchKind::Endpoint, "never finished", None).await;
    watch(WatchKind::Canary, "a", Some("3")).await;
    let told = async |kind| {
        let states = bench.store.watch_states(kind).await.unwrap();
        states.into_iter().map(|state| (state.key.account.account.to_string(), state.state)).collect::<Vec<_>>()
    };
    let pair = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    assert_eq!(told(WatchKind::Endpoint).await, [pair("a", "1"), pair("b", "2")]);
    assert_eq!(told(WatchKind::Canary).await, [pair("a", "3")]);
}
