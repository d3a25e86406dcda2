//! Every webhook is dropped, at every PSP: each order whose PSP can be asked comes to its state within the schedule of
//! `worker/src/schedule.rs`, and of every other nothing is made up, and it is listed.

use std::sync::Arc;
use std::time::Duration;

use paybell::simulator::ledger::{Cancellation, DECLINES, Ledger, RefundState, payment_id};
use paybell::simulator::story::Story;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::{self, Dialect};
use paybell_shared::clock::{Clock as _, ManualClock, SystemClock, Timestamp};
use paybell_shared::money::{Currency, Money};
use paybell_tests::conformance::store::Bench;
use paybell_tests::played::Played;
use paybell_tests::worker::{key_of, register_over};
use paybell_worker::order::{OrderStatus, Standing};
use paybell_worker::reconcile::{Reconciler, StepReport, step};
use paybell_worker::schedule::{self, After};
use paybell_worker::store::Reason;
use paybell_worker::unsettled::{self, SETTLE_MAX};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use uuid::Uuid;

const AMOUNT: i64 = 6000;
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// Of which the spread of looks makes the latest.
const LATEST: Uuid = Uuid::from_u128(200);
/// What is due at once is asked at the account's rate: thirty payments of a dozen requests each, at five a second.
const QUEUE: Duration = Duration::from_mins(2);

/// A PSP, a worker that asks it, and nothing else: no webhook ever comes.
struct Silence {
    dialect: &'static dyn Dialect,
    bench: Bench,
    clock: Arc<ManualClock>,
    played: Played,
    reconciler: Reconciler,
}

/// An order that something happened to, and when it must be known.
struct Awaited {
    order_id: String,
    by: Timestamp,
}

impl Silence {
    async fn at(dialect: &'static dyn Dialect) -> Self {
        let (bench, clock) = (Bench::sqlite().await, Arc::new(ManualClock::at(SystemClock.now())));
        let played = Played::new(dialect, clock.clone()).await;
        let reconciler = played.reconciler(&bench.store, &clock).await;
        Self { dialect, bench, clock, played, reconciler }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn books<T>(&self, write: impl FnOnce(&mut Ledger, i64) -> T) -> T {
        write(&mut self.played.simulated.ledger_mut(), self.now().seconds())
    }

    fn currency(&self) -> &'static str {
        self.dialect.currencies()[0]
    }

    async fn register(&self, order_id: &str) -> String {
        let (id, currency) = (payment_id(self.dialect, order_id), Currency::parse(self.currency()).unwrap());
        register_over(self.reconciler.context(), &self.played.account, order_id, &id, Money::new(AMOUNT, currency)).await;
        id
    }

    /// The latest time by which a change of now is asked about, of a payment that has stood like this since then. A PSP may not
    /// show a payment that nobody tried to pay yet.
    fn bound(&self, standing: Standing, since: Timestamp) -> Timestamp {
        let habits = self.reconciler.context().policy.asking[&key_of(&self.played.account)];
        let next = |after| schedule::next_look(Some(standing), since, habits, after, self.now(), LATEST).unwrap();
        next(After::Answer).max(next(After::Missing(since))).plus(QUEUE)
    }

    async fn is_true(&self, order_id: &str) -> bool {
        let truth = self.played.simulated.ledger().truth(order_id).unwrap();
        let view = self.bench.order(order_id).await.view;
        (view.status.as_str(), view.captured, view.refunded, view.disputed)
            == (truth.status, truth.captured, truth.refunded, truth.disputed)
    }

    /// Asks whenever something is due, until then.
    async fn pass_until(&self, end: Timestamp) {
        while self.now() < end {
            self.ask_all().await;
            let pause = self.until_due().await;
            self.clock.advance(pause.min(end.since(self.now())));
        }
    }

    async fn ask_all(&self) {
        while step(&self.reconciler).await.unwrap().asked > 0 {}
    }

    /// A second, if something is due and must wait for its turn.
    async fn until_due(&self) -> Duration {
        let next = self.bench.texts("SELECT coalesce(CAST(min(next_check_at) AS text), '') FROM checks").await.remove(0);
        let next = next.parse().map_or(DAY, |millis| Timestamp::from_millis(millis).since(self.now()));
        next.max(Duration::from_secs(1))
    }

    /// Lets time pass until all are known, each in its time.
    async fn await_all(&self, mut awaited: Vec<Awaited>) {
        loop {
            self.ask_all().await;
            let mut waiting = Vec::new();
            for one in awaited {
                if !self.is_true(&one.order_id).await {
                    waiting.push(one);
                }
            }
            awaited = waiting;
            if awaited.is_empty() {
                break;
            }
            for Awaited { order_id, by } in &awaited {
                let truth = self.played.simulated.ledger().truth(order_id);
                let view = self.bench.order(order_id).await.view;
                let late = self.now().since(*by).as_secs();
                assert!(self.now() <= *by, "{}, {order_id}: {late} s late, {truth:?} is {view:#?}", self.dialect.id());
            }
            self.clock.advance(self.until_due().await);
        }
        self.bench.check_invariants().await;
    }
}

/// Stories that asking alone leads to the end of.
fn told(dialect: &dyn Dialect) -> impl Iterator<Item = Story> {
    Story::ALL.into_iter().filter(|story| dialect.plays(*story) && dialect.tells_when_asked(*story))
}

fn can_tell(dialect: &dyn Dialect, stories: [Story; 2]) -> bool {
    stories.iter().all(|story| told(dialect).any(|told| told == *story))
}

/// The dialects whose PSP can be asked, or cannot.
async fn each(asked: bool) -> Vec<Silence> {
    let mut all = Vec::new();
    for dialect in simulator::ALL {
        let silence = Silence::at(*dialect).await;
        if silence.played.habits.is_some() == asked {
            all.push(silence);
        }
    }
    all
}

/// All happens at one time: to payments that were registered hours ago, and, of each story, to one that is registered late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_order_comes_to_its_end_within_its_schedule_at_every_psp_that_can_be_asked() {
    let all = each(true).await;
    assert!(all.len() >= 14, "{} dialects can be asked", all.len());
    for silence in all {
        let (dialect, mut random) = (silence.dialect, StdRng::seed_from_u64(8));
        let registered = silence.now();
        let early: Vec<(String, Story)> = told(dialect).map(|story| (format!("early-{story:?}"), story)).collect();
        for (order_id, _) in &early {
            silence.register(order_id).await;
            silence.books(|ledger, at| ledger.open(order_id, AMOUNT, silence.currency(), false, at));
        }
        silence.pass_until(registered.plus(3 * HOUR)).await;
        for (order_id, _) in &early {
            let status = silence.bench.order(order_id).await.view.status;
            assert_eq!(status, OrderStatus::Pending, "{}, {order_id}", dialect.id());
        }
        let late: Vec<(String, Story)> = told(dialect).map(|story| (format!("late-{story:?}"), story)).collect();
        for (order_id, story) in early.iter().chain(&late) {
            silence.books(|ledger, now| story.play(ledger, order_id, AMOUNT, silence.currency(), &mut random, now));
        }
        let by = silence.bound(Standing::Open, registered);
        let mut awaited: Vec<Awaited> = early.into_iter().map(|(order_id, _)| Awaited { order_id, by }).collect();
        for (order_id, _) in late {
            silence.register(&order_id).await;
            let by = silence.bound(Standing::Open, silence.now());
            awaited.push(Awaited { order_id, by });
        }
        silence.await_all(awaited).await;
    }
}

/// What happens days after the payment was thought to be done with: it is looked for, in its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_days_later_is_learned_within_its_schedule_at_every_psp_that_can_be_asked() {
    for silence in each(true).await {
        let (dialect, currency) = (silence.dialect, silence.currency());
        let started = silence.now();
        let mut orders = Vec::new();
        let mut play = async |order_id: &'static str, manual: bool, story: fn(&mut Ledger, &str, i64)| {
            let id = silence.register(order_id).await;
            silence.books(|ledger, at| {
                ledger.open(order_id, AMOUNT, currency, manual, at);
                story(ledger, &id, at);
            });
            orders.push(order_id);
        };
        if can_tell(dialect, [Story::Paid, Story::Refunded]) {
            play("refunded-later", false, |ledger, id, at| ledger.capture(id, AMOUNT, at)).await;
        }
        if can_tell(dialect, [Story::Authorized, Story::AuthorizedThenCaptured]) {
            play("captured-later", true, Ledger::authorize).await;
        }
        if can_tell(dialect, [Story::Failed, Story::FailedThenPaid]) {
            play("paid-after-a-failure", false, |ledger, id, at| ledger.decline(id, DECLINES[0], at)).await;
        }
        let by = silence.bound(Standing::Open, started);
        silence.await_all(orders.iter().map(|order_id| Awaited { order_id: (*order_id).to_owned(), by }).collect()).await;
        // By now each stands as it does, since some time between the start and now.
        silence.pass_until(started.plus(3 * DAY)).await;
        let mut awaited = Vec::new();
        for order_id in orders {
            let id = payment_id(dialect, order_id);
            let standing = silence.books(|ledger, at| match order_id {
                "refunded-later" => {
                    ledger.refund(&id, AMOUNT, RefundState::Succeeded, at);
                    Standing::Settled
                }
                "captured-later" => {
                    ledger.capture(&id, AMOUNT, at);
                    Standing::Authorized
                }
                _ => {
                    ledger.capture(&id, AMOUNT, at);
                    Standing::Failed
                }
            });
            awaited.push(Awaited { order_id: order_id.to_owned(), by: silence.bound(standing, started) });
        }
        silence.await_all(awaited).await;
    }
}

/// Money comes although the payment was given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_success_is_learned_after_a_cancellation_and_after_an_expiry() {
    let silence = Silence::at(&Stripe).await;
    let started = silence.now();
    let given_up = ["canceled", "expired"];
    for order_id in given_up {
        let id = silence.register(order_id).await;
        silence.books(|ledger, at| {
            ledger.open(order_id, AMOUNT, "EUR", false, at);
            match order_id {
                "canceled" => ledger.cancel(&id, Cancellation::Abandoned, at),
                _ => ledger.expire(&id, at),
            }
        });
    }
    let by = silence.bound(Standing::Open, started);
    silence.await_all(given_up.iter().map(|order_id| Awaited { order_id: (*order_id).to_owned(), by }).collect()).await;
    silence.pass_until(started.plus(2 * DAY)).await;
    let mut awaited = Vec::new();
    for order_id in given_up {
        silence.books(|ledger, at| ledger.capture(&payment_id(&Stripe, order_id), AMOUNT, at));
        awaited.push(Awaited { order_id: order_id.to_owned(), by: silence.bound(Standing::GivenUp, started) });
    }
    silence.await_all(awaited).await;
}

/// Nobody can be asked, and nothing is told: the order is what the shop said, nobody guesses, and it is on the operator's list once
/// its time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_psp_cannot_be_asked_stays_as_it_is_and_is_listed() {
    let all = each(false).await;
    assert!(!all.is_empty());
    for silence in all {
        let order_id = "unheard-of";
        silence.register(order_id).await;
        let registered = silence.bench.order(order_id).await;
        let listed = async || {
            let page = unsettled::page(silence.reconciler.context(), None, None, 10).await.unwrap();
            page.into_iter().map(|(reason, one)| (one.order.id, reason)).collect::<Vec<_>>()
        };
        silence.clock.advance(SETTLE_MAX.saturating_sub(HOUR));
        assert_eq!(listed().await, [], "{}", silence.dialect.id());
        for _ in 0..200 {
            silence.clock.advance(DAY);
            assert_eq!(step(&silence.reconciler).await.unwrap(), StepReport::default(), "{}", silence.dialect.id());
            assert_eq!(listed().await, [(order_id.to_owned(), Reason::CannotBeAsked)], "{}", silence.dialect.id());
        }
        assert_eq!(registered.view.status, OrderStatus::Pending);
        assert_eq!(silence.bench.order(order_id).await, registered, "{}", silence.dialect.id());
        silence.bench.check_invariants().await;
    }
}
