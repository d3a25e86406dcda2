//! Leasing the next page of an account's list, and keeping how far it is read: what both backends promise.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{Fact, Failure, PaymentEvent, PaymentState, Source};
use paybell_shared::psp::{Hinted, Listing, Window};
use paybell_worker::inbox::{Arrival, Content, InboxRow};
use paybell_worker::manners::{BUSY_MAX, Ended, Leave, Manner, News};
use paybell_worker::order::AccountKey;
use paybell_worker::store::{DuePage, Lease, LeasedPage, Looked, ReadPage, Said};
use paybell_worker::sweep::course::{Course, Failure as NotRead};
use paybell_worker::sweep::walk::Page;

use super::store::{Bench, NOW, account, captured, refund, row, state};

/// The tests of [`Bench`]es, each by its name: `sweeps_suite!(a_function_that_makes_one)`.
#[macro_export]
macro_rules! sweeps_suite {
    ($bench:path) => {
        $crate::sweeps_suite!($bench:
            an_account_that_was_never_swept_begins,
            a_page_is_leased_by_one,
            a_page_whose_reader_died_is_another_ones,
            a_page_is_not_leased_before_it_is_due,
            a_page_is_asked_for_with_the_accounts_manners,
            a_payments_backlog_leaves_a_place_for_a_page,
            who_lost_the_lease_keeps_nothing_of_the_course,
            how_the_psp_behaved_is_kept_even_of_a_lost_lease,
            a_course_comes_back_as_it_was_kept,
            each_account_has_a_course_of_its_own,
            what_webhooks_told_is_found_by_when_it_happened,
            only_what_webhooks_of_the_account_told_counts,
            facts_with_a_nul_are_told_as_any,
            hints_are_answered_by_looks_that_began_after_them
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::sweeps::$behaviour(&bench).await;
                bench.check_invariants().await;
                bench.store.close().await;
            }
        )+
    };
}

const LEASE: Duration = Duration::from_mins(2);
const EVERY: Duration = Duration::from_mins(5);
const HOUR: Duration = Duration::from_hours(1);
const MOMENT: Duration = Duration::from_millis(1);
/// More than any of these tests asks.
const RATE: u32 = 1000;
const ANSWERED: Ended = Ended { requests: 1, manner: Manner::Answered };

fn terms(bench: &Bench, now: Timestamp) -> Lease {
    Lease { now, until: now.plus(LEASE), token: bench.ids.next(), per_second: RATE }
}

fn other() -> AccountKey {
    AccountKey { account: "other".into(), ..account() }
}

/// The page, or before when there is none.
async fn lease(bench: &Bench, now: Timestamp) -> Result<DuePage, Timestamp> {
    match bench.store.lease_page(&account(), &terms(bench, now)).await.unwrap() {
        LeasedPage::Page(page) => Ok(page),
        LeasedPage::NotBefore(not_before) => Err(not_before),
    }
}

/// The course behind a page that was the only one of its window.
fn read(course: &Course, now: Timestamp) -> Course {
    let mut course = course.clone();
    let mut walk = course.ahead(&Listing::USUAL, now).walk;
    let is_last = walk.pass(Page { next: None, newest: None, answered_at: Some(now) }).unwrap();
    let _ = course.read(&Listing::USUAL, walk, is_last, false, Duration::ZERO, now);
    course
}

async fn finish(bench: &Bench, page: &DuePage, now: Timestamp) -> Course {
    let course = read(&page.course, now);
    let read = ReadPage { at: now, course: course.clone(), due_at: now.plus(EVERY), ended: ANSWERED };
    assert_eq!(bench.store.finish_page(page, &read).await.unwrap(), None);
    course
}

async fn course(bench: &Bench) -> Option<Course> {
    bench.store.course(&account()).await.unwrap()
}

pub async fn an_account_that_was_never_swept_begins(bench: &Bench) {
    assert_eq!(course(bench).await, None);
    let terms = terms(bench, NOW);
    let first = Course::first(NOW);
    let page = DuePage { account: account(), lease_token: terms.token, course: first.clone() };
    assert_eq!(bench.store.lease_page(&account(), &terms).await.unwrap(), LeasedPage::Page(page));
    assert_eq!(course(bench).await, Some(first), "it begins once, and not anew with each lease");
    let later = NOW.plus(HOUR);
    assert_eq!(lease(bench, later).await.unwrap().course, Course::first(NOW));
}

/// Also where nobody swept before, and all are there at once.
pub async fn a_page_is_leased_by_one(bench: &Bench) {
    let mut now = NOW;
    for _ in 0..5 {
        let leased = join_all((0..8).map(|_| lease(bench, now))).await;
        let (pages, waiting): (Vec<_>, Vec<_>) = leased.into_iter().partition(Result::is_ok);
        assert_eq!((pages.len(), waiting.len()), (1, 7));
        assert!(waiting.into_iter().all(|waiting| waiting == Err(now.plus(LEASE))));
        finish(bench, pages[0].as_ref().unwrap(), now).await;
        now = now.plus(EVERY);
    }
}

pub async fn a_page_whose_reader_died_is_another_ones(bench: &Bench) {
    let dead = lease(bench, NOW).await.unwrap();
    let expiry = NOW.plus(LEASE);
    assert_eq!(lease(bench, expiry.minus(MOMENT)).await, Err(expiry));
    let page = lease(bench, expiry).await.unwrap();
    assert_eq!(page.course, dead.course, "the same page again");
    assert_ne!(page.lease_token, dead.lease_token);
    assert_eq!(lease(bench, expiry).await, Err(expiry.plus(LEASE)));
}

pub async fn a_page_is_not_leased_before_it_is_due(bench: &Bench) {
    let page = lease(bench, NOW).await.unwrap();
    let kept = finish(bench, &page, NOW).await;
    let due = NOW.plus(EVERY);
    for early in [NOW, NOW.plus(LEASE), due.minus(MOMENT)] {
        assert_eq!(lease(bench, early).await, Err(due));
    }
    assert_eq!(lease(bench, due).await.unwrap().course, kept);
}

pub async fn a_page_is_asked_for_with_the_accounts_manners(bench: &Bench) {
    // As many conversations as there may be are under way.
    let busy = terms(bench, NOW);
    assert_eq!(bench.store.begin_asking(&account(), &busy, BUSY_MAX).await.unwrap(), Leave::Go(BUSY_MAX));
    assert!(lease(bench, NOW).await.unwrap_err() > NOW);
    assert_eq!(bench.store.end_asking(&account(), NOW, busy.token, ANSWERED).await.unwrap(), None);
    let page = lease(bench, NOW).await.unwrap();
    // Its answer asks for patience: no payment is asked about either.
    let slow_down = Ended { requests: 1, manner: Manner::SlowDown { retry_after: Some(Duration::from_secs(7)) } };
    let read = ReadPage { at: NOW, course: page.course.clone(), due_at: NOW, ended: slow_down };
    assert_eq!(bench.store.finish_page(&page, &read).await.unwrap(), None);
    let told = NOW.plus(Duration::from_secs(7));
    assert_eq!(bench.store.begin_asking(&account(), &terms(bench, NOW), 1).await.unwrap(), Leave::NotBefore(told));
    assert_eq!(lease(bench, told.minus(MOMENT)).await, Err(told), "due, and not to be asked for");
    // Who was not given leave holds no lease.
    assert_eq!(lease(bench, told).await.unwrap().course, page.course);
}

/// Whoever asks about payments all the time takes every place that there is.
pub async fn a_payments_backlog_leaves_a_place_for_a_page(bench: &Bench) {
    let busy = terms(bench, NOW);
    assert_eq!(bench.store.begin_asking(&account(), &busy, BUSY_MAX).await.unwrap(), Leave::Go(BUSY_MAX));
    let not_before = lease(bench, NOW).await.unwrap_err();
    bench.store.end_asking(&account(), NOW, busy.token, ANSWERED).await.unwrap();
    for n in 0..10 {
        bench.apply(&[state(&format!("evt_{n}"), &format!("pi_{n}"), Some("order-1"), PaymentState::Pending)]).await;
    }
    bench.execute(&format!("UPDATE checks SET next_check_at = {}", written(bench, NOW))).await;
    let leased = bench.store.lease_checks(&account(), &terms(bench, not_before)).await.unwrap();
    assert_eq!(leased.checks.len(), 0, "one place is free, and it is kept");
    assert!(lease(bench, not_before).await.is_ok());
}

/// A time, as the database writes it.
fn written(bench: &Bench, at: Timestamp) -> String {
    if bench.is_postgres() { format!("to_timestamp({}::float8 / 1000)", at.millis()) } else { at.millis().to_string() }
}

pub async fn who_lost_the_lease_keeps_nothing_of_the_course(bench: &Bench) {
    let lost = lease(bench, NOW).await.unwrap();
    let now = NOW.plus(LEASE);
    let held = lease(bench, now).await.unwrap();
    finish(bench, &lost, now).await;
    assert_eq!(course(bench).await.as_ref(), Some(&held.course), "another one reads it");
    assert_eq!(lease(bench, now).await, Err(now.plus(LEASE)), "and holds the lease as before");
    let kept = finish(bench, &held, now).await;
    // Too late, and too late twice.
    for late in [&lost, &held] {
        finish(bench, late, now.plus(HOUR)).await;
        assert_eq!(course(bench).await.as_ref(), Some(&kept));
    }
    assert_eq!(lease(bench, now).await, Err(now.plus(EVERY)));
}

/// The PSP was asked all the same.
pub async fn how_the_psp_behaved_is_kept_even_of_a_lost_lease(bench: &Bench) {
    let lost = lease(bench, NOW).await.unwrap();
    let now = NOW.plus(LEASE);
    let held = lease(bench, now).await.unwrap();
    let refused = Ended { requests: 1, manner: Manner::Refused };
    let read = ReadPage { at: now, course: lost.course.clone(), due_at: now, ended: refused };
    assert_eq!(bench.store.finish_page(&lost, &read).await.unwrap(), Some(News::CredentialsRefused));
    assert!(matches!(
        bench.store.begin_asking(&account(), &terms(bench, now), 1).await.unwrap(),
        Leave::NotBefore(at) if at > now
    ));
    let read = ReadPage { ended: ANSWERED, ..read };
    assert_eq!(bench.store.finish_page(&held, &read).await.unwrap(), Some(News::Recovered), "told once");
}

/// In the middle of a window, after failures, in doubt.
pub async fn a_course_comes_back_as_it_was_kept(bench: &Bench) {
    let log = Listing { is_log: true, reach: Some(HOUR * 24 * 30), ..Listing::USUAL };
    let mut now = NOW;
    let mut course = lease(bench, now).await.unwrap().course;
    for (told, next) in [(false, None), (true, None), (false, Some("evt_1")), (false, Some("odd \" \\ \u{10ffff} cursor"))] {
        let mut walk = course.ahead(&log, now).walk;
        let page = Page { next: next.map(str::to_owned), newest: Some(now.minus(HOUR)), answered_at: Some(now) };
        let is_last = walk.pass(page).unwrap();
        let _ = course.read(&log, walk.clone(), is_last, told, Duration::ZERO, now);
        if !is_last {
            let _ = course.failed(walk, NotRead::NoAnswer, now);
        }
        now = now.plus(HOUR);
        let page = lease(bench, now).await.unwrap();
        let read = ReadPage { at: now, course: course.clone(), due_at: now, ended: ANSWERED };
        assert_eq!(bench.store.finish_page(&page, &read).await.unwrap(), None);
        assert_eq!(self::course(bench).await, Some(course.clone()));
        now = now.plus(HOUR);
        let page = lease(bench, now).await.unwrap();
        assert_eq!(page.course, course);
        let read = ReadPage { at: now, course: course.clone(), due_at: now, ended: ANSWERED };
        assert_eq!(bench.store.finish_page(&page, &read).await.unwrap(), None);
    }
}

pub async fn each_account_has_a_course_of_its_own(bench: &Bench) {
    let page = lease(bench, NOW).await.unwrap();
    let LeasedPage::Page(others) = bench.store.lease_page(&other(), &terms(bench, NOW)).await.unwrap() else {
        panic!("another account's lease is in the way")
    };
    assert_eq!(others.account, other());
    let kept = finish(bench, &page, NOW).await;
    assert_eq!(course(bench).await, Some(kept));
    assert_eq!(bench.store.course(&other()).await.unwrap(), Some(others.course));
    let psp = AccountKey { psp: "mollie".into(), ..account() };
    assert_eq!(bench.store.course(&psp).await.unwrap(), None);
}

/// A webhook that was received then, of what happened then.
fn told(id: &str, happened: Timestamp, received: Timestamp) -> Arrival {
    let event = PaymentEvent { occurred_at: happened, ..captured(id, &format!("pi_{id}"), None, 4999) };
    let row = InboxRow { received_at: received, ..row(&event) };
    Arrival { body: None, rows: vec![row], asks: Vec::new(), heard_at: None }
}

async fn is_told(bench: &Bench, since: Timestamp, until: Timestamp) -> bool {
    bench.store.told_within(&account(), Window { since, until }).await.unwrap()
}

pub async fn what_webhooks_told_is_found_by_when_it_happened(bench: &Bench) {
    let (since, until) = (NOW, NOW.plus(HOUR));
    assert!(!is_told(bench, since, until).await);
    // Told late: it happened before.
    let late = told("evt_late", NOW.minus(MOMENT), NOW.plus(MOMENT));
    // Told within the time, of what happened behind it.
    let behind = told("evt_behind", until.plus(MOMENT), until.plus(MOMENT));
    bench.apply_arrivals_at(until, &[late, behind]).await;
    assert!(!is_told(bench, since, until).await);
    assert!(is_told(bench, since.minus(MOMENT), until).await, "both ends belong to it");
    assert!(is_told(bench, since, until.plus(MOMENT)).await, "both ends belong to it");
    // Told long after the time, of what happened in it.
    bench.apply_arrivals_at(until, &[told("evt_in", NOW.plus(HOUR / 2), NOW.plus(HOUR * 20))]).await;
    assert!(is_told(bench, since, until).await);
    assert!(!is_told(bench, since, NOW.plus(HOUR / 2).minus(MOMENT)).await);
}

pub async fn only_what_webhooks_of_the_account_told_counts(bench: &Bench) {
    let at = NOW.plus(MOMENT);
    let base = told("evt_1", at, at);
    let with = |change: &dyn Fn(&mut InboxRow)| {
        let mut arrival = base.clone();
        change(&mut arrival.rows[0]);
        arrival
    };
    let answer = with(&|row| {
        row.source = Source::Reconciliation;
        let Content::Fact { event, .. } = &mut row.content else { unreachable!() };
        event.source = Source::Reconciliation;
        (event.key.event_id, row.key.event_id) = ("evt_2".to_owned(), "evt_2".to_owned());
    });
    let foreign = with(&|row| {
        let Content::Fact { event, foreign_mode } = &mut row.content else { unreachable!() };
        *foreign_mode = true;
        (event.key.event_id, row.key.event_id) = ("evt_3".to_owned(), "evt_3".to_owned());
    });
    let ignored = with(&|row| {
        row.content = Content::Ignored { reason: "not a payment".to_owned() };
        "evt_4".clone_into(&mut row.key.event_id);
    });
    bench.apply_arrivals_at(NOW.plus(HOUR), &[answer, foreign, ignored]).await;
    assert!(!is_told(bench, NOW, NOW.plus(HOUR)).await);
    bench.apply_arrivals_at(NOW.plus(HOUR), &[base]).await;
    let window = Window { since: NOW, until: NOW.plus(HOUR) };
    for (account, is_told) in [(account(), true), (other(), false), (AccountKey { psp: "mollie".into(), ..account() }, false)] {
        assert_eq!(bench.store.told_within(&account, window).await.unwrap(), is_told, "{account:?}");
    }
}

/// A payer's bank may write anything into a failure.
pub async fn facts_with_a_nul_are_told_as_any(bench: &Bench) {
    let mut event = state("evt_1", "pi_1", Some("order-1"), PaymentState::Failed);
    let Fact::Payment(fact) = &mut event.fact else { unreachable!() };
    fact.failure = Some(Failure { code: "odd\0code".to_owned(), message: "\"occurred_at\":\"\0".to_owned() });
    bench.apply(&[event]).await;
    assert!(is_told(bench, NOW.minus(MOMENT), NOW).await);
    assert!(!is_told(bench, NOW.minus(HOUR), NOW.minus(MOMENT)).await);
}

pub async fn hints_are_answered_by_looks_that_began_after_them(bench: &Bench) {
    let unanswered = async |hints: &[(&str, Timestamp)]| {
        let hints: Vec<Hinted> = hints.iter().map(|(id, at)| Hinted { payment_id: (*id).to_owned(), at: *at }).collect();
        let unanswered = bench.store.unanswered(&account(), &hints).await.unwrap();
        unanswered.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(unanswered(&[]).await, [""; 0]);
    bench.apply(&[refund("evt_1", "pi_1", "re_1", 1)]).await;
    assert_eq!(unanswered(&[("pi_2", NOW), ("pi_1", NOW), ("pi_2", NOW)]).await, ["pi_1", "pi_2"], "nobody looked");
    let look = async |began: Timestamp, said: Said| {
        bench.store.ask_about(began, &BTreeSet::from([(account(), "pi_1".to_owned())])).await.unwrap();
        let check = bench.store.lease_checks(&account(), &terms(bench, began)).await.unwrap().checks.remove(0);
        let under_way = unanswered(&[("pi_1", began)]).await;
        let at = began.plus(Duration::from_secs(5));
        let looked = Looked { at, result: "same", said, next_check_at: None, in_doubt_until: None, ended: ANSWERED };
        assert_eq!(bench.store.finish_check(&check, &looked).await.unwrap(), None);
        under_way
    };
    let began = NOW.plus(HOUR);
    assert_eq!(look(began, Said::NoMoney).await, ["pi_1"], "it has no answer yet");
    for (hinted_at, left) in [(NOW, 0), (began, 0), (began.plus(MOMENT), 1), (began.plus(HOUR), 1)] {
        assert_eq!(unanswered(&[("pi_1", hinted_at)]).await.len(), left);
    }
    assert_eq!(unanswered(&[("pi_1", NOW), ("pi_1", began.plus(HOUR)), ("pi_2", NOW)]).await, ["pi_1", "pi_2"]);
    // The PSP did not answer.
    let again = began.plus(HOUR);
    assert_eq!(look(again, Said::Nothing).await, ["pi_1"]);
    assert_eq!(unanswered(&[("pi_1", again)]).await, ["pi_1"]);
    let elsewhere = bench.store.unanswered(&other(), &[Hinted { payment_id: "pi_1".to_owned(), at: NOW }]).await.unwrap();
    assert_eq!(elsewhere.len(), 1, "another account's");
}
