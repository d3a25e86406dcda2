//! Asking the PSP about payments that are due: the one machine that does (design decision 12).
//!
//! [`step`] leases an account's due payments, as many as its [`manners`](crate::manners) allow, asks about each, and applies
//! the answers through the same write path as webhooks; [`run`] only waits and steps. When to ask next is in
//! [`schedule`](crate::schedule).
//!
//! An answer is distrusted: none, an unknown payment, a page that leads in a circle or never ends, a time to come: none of
//! them says anything about the payment, least of all that it failed. What the PSP does say only adds facts; the merge
//! decides what they amount to, so that nothing goes backwards. One that does not say what it was asked for is asked once more:
//! PSPs read from copies that lag behind their webhooks.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{CaptureState, EventKey, Fact, FactVersion, PaymentEvent, PaymentState};
use paybell_shared::psp::{Account, Answer, Asked, ReadError, Unread};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{
    ACCOUNT, OUTCOME, PSP, PSP_CIRCUIT_OPEN, PSP_CREDENTIALS_REFUSED, RECONCILE_DUE, RECONCILE_ETA_SECONDS,
    RECONCILE_LOOKS_TOTAL, RECONCILE_OLDEST_SECONDS,
};
use tokio::time::timeout;

use crate::asking::{Asker, AskingError};
use crate::consume::Context;
use crate::inbox::Arrival;
use crate::manners::{Ended, News};
use crate::order::AccountKey;
use crate::schedule::{self, After, Habits};
use crate::store::{Due, DueCheck, Lease, Looked, Said, StoreError, Work};
use crate::transport::PspTransport;

/// So long nobody else asks about a payment. A look that outlasts it changes nothing.
const LEASE: Duration = Duration::from_mins(5);
/// For a look with all its pages; each request has its own limit (15 s) in [`crate::transport`].
const LOOK_MAX: Duration = Duration::from_mins(4);
/// Pages of one answer: 100 refunds a page, and nobody refunds one payment a thousand times; PayPal has a page for each
/// capture and dispute.
const PAGES_MAX: usize = 32;
/// How long to wait if nothing is due, or nobody may be asked.
const IDLE: Duration = Duration::from_secs(1);
/// Between two counts of what is due.
const WATCH_PERIOD: Duration = Duration::from_secs(30);
/// How long looks have to be given back once the stop has begun: a statement each, if the database is well.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// So far ahead of our clock an answer may be: clocks differ. What is later would stand above every later fact.
pub(crate) const AHEAD_MAX: Duration = Duration::from_mins(5);

const _: () = assert!(LOOK_MAX.as_secs() < LEASE.as_secs());

/// What reconciliation needs beside the write path.
pub struct Reconciler {
    pub asker: Asker,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    pub asked: usize,
    /// Of these, how many answers told something new.
    pub changed: usize,
    pub failed: usize,
}

impl Reconciler {
    #[must_use]
    pub fn new(context: Arc<Context>, transport: Arc<dyn PspTransport>) -> Self {
        Self { asker: Asker::new(context, transport) }
    }

    #[must_use]
    pub fn context(&self) -> &Context {
        &self.asker.context
    }

    /// The accounts that can be asked.
    fn accounts(&self) -> impl Iterator<Item = (&AccountKey, &Arc<Account>, Habits)> {
        let Context { accounts, policy, .. } = self.context();
        accounts.iter().filter_map(|(key, account)| Some((key, account, *policy.asking.get(key)?)))
    }
}

/// Asks about the payments that are due at every account, as far as its manners allow now.
///
/// # Errors
/// The database is away.
pub async fn step(reconciler: &Reconciler) -> Result<StepReport, StoreError> {
    let never = Shutdown::new();
    let mut steps: FuturesUnordered<_> =
        reconciler.accounts().map(|(key, account, habits)| step_account(reconciler, key, account, habits, &never)).collect();
    let (mut report, mut failure) = (StepReport::default(), None);
    while let Some(stepped) = steps.next().await {
        match stepped {
            Ok(StepReport { asked, changed, failed }) => {
                report.asked += asked;
                report.changed += changed;
                report.failed += failed;
            }
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(report), Err)
}

/// Steps until the stop, each account for itself: one that answers slowly keeps no other waiting. At the stop, looks are cut off
/// and given back, so that a deploy holds up no account until their leases end.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(reconciler: Reconciler, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut loops: FuturesUnordered<_> =
        reconciler.accounts().map(|(key, account, habits)| run_account(&reconciler, key, account, habits, &shutdown)).collect();
    let long_stopped = async {
        shutdown.stopping().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        () = async { while loops.next().await.is_some() {} } => {}
        // What could not be given back loses nothing: its lease ends, and it is asked again.
        () = long_stopped => {}
    }
    Ok(())
}

/// Counts what is due at every account, until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, the last count stands.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    let accounts: Vec<&AccountKey> = context.policy.asking.keys().collect();
    loop {
        let now = context.clock.now();
        match context.store.due(now, &accounts).await {
            Ok(due) => due.iter().for_each(|due| show(&context, due, now)),
            // The pulse says so.
            Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "due payments are not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

fn show(context: &Context, due: &Due, now: Timestamp) {
    let Due { account: key, payments, since, manners } = due;
    let per_second = context.accounts.get(key).map_or(1, |account| account.psp.profile().asks_per_second.max(1));
    let set = |name: &'static str, value: f64| {
        metrics::gauge!(name, PSP => Arc::clone(&key.psp), ACCOUNT => Arc::clone(&key.account)).set(value);
    };
    set(RECONCILE_DUE, f64::from(*payments));
    set(RECONCILE_OLDEST_SECONDS, since.map_or(0.0, |since| now.since(since).as_secs_f64()));
    set(RECONCILE_ETA_SECONDS, f64::from(*payments) / f64::from(per_second));
    set(PSP_CIRCUIT_OPEN, f64::from(u8::from(manners.is_open())));
    set(PSP_CREDENTIALS_REFUSED, f64::from(u8::from(manners.refused_since().is_some())));
}

async fn run_account(reconciler: &Reconciler, key: &AccountKey, account: &Account, habits: Habits, shutdown: &Shutdown) {
    while !shutdown.is_stopping() {
        match step_account(reconciler, key, account, habits, shutdown).await {
            Ok(report) if report.asked > 0 => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "reconciliation pauses"),
        }
        tokio::select! {
            () = tokio::time::sleep(IDLE) => {}
            () = shutdown.stopping() => {}
        }
    }
}

async fn step_account(
    reconciler: &Reconciler,
    key: &AccountKey,
    account: &Account,
    habits: Habits,
    shutdown: &Shutdown,
) -> Result<StepReport, StoreError> {
    let context = reconciler.context();
    let (now, per_second) = (context.clock.now(), account.psp.profile().asks_per_second);
    let lease = Lease { now, until: now.plus(LEASE), token: context.ids.next(), per_second };
    let leased = context.store.lease_checks(key, &lease).await?;
    let mut looks: FuturesUnordered<_> =
        leased.checks.iter().map(|check| look(reconciler, account, habits, check, shutdown)).collect();
    let (mut report, mut failure) = (StepReport::default(), None);
    while let Some(outcome) = looks.next().await {
        report.asked += 1;
        match outcome {
            Ok(Outcome::Changed) => report.changed += 1,
            Ok(Outcome::Same) => {}
            Ok(Outcome::Missing | Outcome::Failed) => report.failed += 1,
            // The others have asked already, and what they heard counts.
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(report), Err)
}

/// All pages of an answer.
#[derive(Default)]
struct Told {
    events: BTreeMap<EventKey, PaymentEvent>,
    unread: Vec<Unread>,
}

impl Told {
    /// Pages shift while they are read, so that a row may come again: of what one look says of one object, the last counts.
    fn take(&mut self, page: Answer) {
        self.events.extend(page.events.into_iter().map(|event| (event.key.clone(), event)));
        self.unread.extend(page.unread);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Changed,
    Same,
    /// The PSP does not know the payment.
    Missing,
    Failed,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Same => "same",
            Self::Missing => "missing",
            Self::Failed => "failed",
        }
    }
}

async fn look(
    reconciler: &Reconciler,
    account: &Account,
    habits: Habits,
    check: &DueCheck,
    shutdown: &Shutdown,
) -> Result<Outcome, StoreError> {
    let context = reconciler.context();
    let mut requests = 0;
    let asked = tokio::select! {
        asked = timeout(LOOK_MAX, ask(reconciler, account, check, &mut requests)) => {
            asked.unwrap_or(Err(AskingError::Slow(LOOK_MAX.as_secs())))
        }
        // A PSP that answers slowly must not outlast the stop.
        () = shutdown.stopping() => Err(AskingError::Stopped),
    };
    let is_cut_off = matches!(asked, Err(AskingError::Stopped));
    let manner = asked.as_ref().map_or_else(AskingError::manner, |_| crate::manners::Manner::Answered);
    let (psp, account_name, payment_id) = (&*check.account.psp, &*check.account.account, &*check.payment_id);
    let mut left = Left { in_doubt: false, led_elsewhere: false };
    let (outcome, said) = match asked {
        Ok(told) => {
            let said = if told.events.values().any(has_money) { Said::Money } else { Said::NoMoney };
            match apply(reconciler, account, check, told).await {
                Ok((changed, now)) => {
                    left = now;
                    (if changed { Outcome::Changed } else { Outcome::Same }, said)
                }
                // Of this answer alone: the others go on, and this payment does not come first again in five minutes.
                Err(error @ (StoreError::Refused(_) | StoreError::Inconsistent { .. })) => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::error!(event = "payment.polled", psp, account = account_name, payment_id, error, "not stored");
                    (Outcome::Failed, Said::Nothing)
                }
                Err(error) => return Err(error),
            }
        }
        Err(AskingError::Read(ReadError::NotFound)) => {
            tracing::warn!(
                event = "payment.polled",
                psp,
                account = account_name,
                payment_id,
                "the PSP does not know the payment"
            );
            (Outcome::Missing, Said::Unknown)
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(event = "payment.polled", psp, account = account_name, payment_id, error, "no answer");
            (Outcome::Failed, Said::Nothing)
        }
    };
    metrics::counter!(RECONCILE_LOOKS_TOTAL, PSP => Arc::clone(&check.account.psp), OUTCOME => outcome.as_str()).increment(1);
    let at = context.clock.now();
    let after = match said {
        Said::Money | Said::NoMoney => After::Answer,
        Said::Unknown => After::Missing(check.missing_since.unwrap_or(at)),
        Said::Nothing => After::Nothing(check.unanswered_since.unwrap_or(at)),
    };
    // Whoever takes over asks at once.
    let next_check_at = if is_cut_off { Some(at) } else { left.next_look(check, habits, after, context, at) };
    // A PSP that gives reason to ask, and then has nothing new to say, may read from a copy that lags behind its webhooks.
    let is_unexplained = check.is_hinted && outcome == Outcome::Same;
    // Two looks that agree end a contradiction, and they must be apart.
    let in_doubt_until = (left.in_doubt || is_unexplained).then(|| at.plus(habits.usual_delay));
    let ended = Ended { requests, manner };
    let looked = Looked { at, result: outcome.as_str(), said, next_check_at, in_doubt_until, ended };
    let news = context.store.finish_check(check, &looked).await?;
    report(&check.account, news);
    Ok(outcome)
}

/// Says what a person should hear of, once.
pub(crate) fn report(account: &AccountKey, news: Option<News>) {
    let (psp, account) = (&*account.psp, &*account.account);
    match news {
        None => {}
        Some(News::CircuitOpened) => {
            tracing::error!(event = "psp.silent", psp, account, "the PSP does not answer: it is left alone");
        }
        Some(News::CredentialsRefused) => {
            tracing::error!(event = "psp.refused", psp, account, "the PSP refuses our credentials: see api_key of this account");
        }
        Some(News::Recovered) => tracing::info!(event = "psp.recovered", psp, account, "the PSP answers again"),
    }
}

/// Whether a fact tells of money that is captured or promised.
fn has_money(event: &PaymentEvent) -> bool {
    match &event.fact {
        Fact::Payment(fact) => matches!(fact.state, PaymentState::Authorized | PaymentState::Captured),
        Fact::Capture { state, .. } => *state != CaptureState::Failed,
        Fact::Refund { .. } | Fact::RefundTotal { .. } | Fact::Dispute { .. } => false,
    }
}

/// Asks page by page; an answer counts as a whole or not at all.
async fn ask(reconciler: &Reconciler, account: &Account, check: &DueCheck, requests: &mut u32) -> Result<Told, AskingError> {
    let context = reconciler.context();
    let at = context.clock.now();
    // Of this look alone: one lease is of several payments, and two of them may lead to one object.
    let look_id = format!("{}-{}", at.millis(), &context.ids.next().simple().to_string()[..8]);
    let mut told = Told::default();
    let mut cursor: Option<String> = None;
    let mut read = BTreeSet::new();
    for _ in 0..PAGES_MAX {
        let request = account.psp.status_request(&check.payment_id, cursor.as_deref(), account)?;
        *requests += 1;
        let response = reconciler.asker.send(&check.account, account, request).await?;
        let asked = Asked { payment_id: &check.payment_id, cursor: cursor.as_deref(), at, look_id: &look_id };
        // Adapters never panic (invariant I7); if one does, it costs its own look and not the worker.
        let answer = catch_unwind(AssertUnwindSafe(|| account.psp.read_status(&asked, &response, account)))
            .map_err(|_| AskingError::Panicked)??;
        answer.events.iter().try_for_each(|event| not_ahead(event, context.clock.now()))?;
        let next = answer.next.clone();
        told.take(answer);
        match next {
            Some(next) if !read.insert(next.clone()) => return Err(AskingError::Loop),
            Some(next) => cursor = Some(next),
            None => return Ok(told),
        }
    }
    Err(AskingError::Endless(PAGES_MAX))
}

/// The latest time that an event speaks of.
pub(crate) fn latest_of(event: &PaymentEvent) -> Timestamp {
    match event.version {
        FactVersion::Time(millis) => Timestamp::from_millis(millis).max(event.occurred_at),
        FactVersion::Number(_) => event.occurred_at,
    }
}

/// A fact of a time to come would stand above all that is told later.
fn not_ahead(event: &PaymentEvent, now: Timestamp) -> Result<(), AskingError> {
    let latest = latest_of(event);
    if latest > now.plus(AHEAD_MAX) { Err(AskingError::Future { ahead_s: latest.since(now).as_secs() }) } else { Ok(()) }
}

/// What a look left.
struct Left {
    /// The answer did not end the contradiction.
    in_doubt: bool,
    /// The answer was about a payment of another id, which has looks of its own: this id was another name of it.
    led_elsewhere: bool,
}

impl Left {
    /// The next look, if the payment stands as it did when the look began: else it was planned when that changed.
    fn next_look(&self, check: &DueCheck, habits: Habits, after: After, context: &Context, now: Timestamp) -> Option<Timestamp> {
        if self.led_elsewhere {
            return None;
        }
        let since = check.standing_since.or(check.first_seen_at).unwrap_or(now);
        schedule::next_look(check.standing, since, habits, after, now, context.ids.next())
    }
}

/// Whether an order changed, and what is left to ask.
async fn apply(reconciler: &Reconciler, account: &Account, check: &DueCheck, told: Told) -> Result<(bool, Left), StoreError> {
    let context = reconciler.context();
    let now = context.clock.now();
    let led_elsewhere = !told.events.is_empty() && told.events.values().all(|event| event.payment_id != check.payment_id);
    let answer = Arrival::of_answer(told.events.into_values().collect(), told.unread, account, now);
    let arrivals = [Arrival { heard_at: check.hinted_at, ..answer }];
    let work = Work { arrivals: &arrivals, now, ..context.work() };
    let applied = context.store.apply(&work).await?;
    let in_doubt = applied.in_doubt.contains(&(check.account.clone(), check.payment_id.clone()));
    Ok((applied.transitions > 0, Left { in_doubt, led_elsewhere }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use async_trait::async_trait;
    use bytes::Bytes;
    use http::{Request, Response};
    use paybell_shared::clock::ManualClock;
    use paybell_shared::event::Mode;
    use paybell_shared::psp::{self, Api, Keys};
    use paybell_shared::secret::Secret;
    use sqlx::SqlitePool;
    use tokio::sync::Notify;
    use uuid::Uuid;

    use super::*;
    use crate::ids::Ids;
    use crate::seen::memory::Memory;
    use crate::store::{self, Policy, Store};
    use crate::transport::TransportError;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

    /// A database in which two payments are due. What is said of `pi_bad` it refuses.
    struct TwoDue {
        store: Arc<dyn Store>,
        database: SqlitePool,
        folder: PathBuf,
    }

    impl TwoDue {
        async fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("paybell-reconcile-{}", Ids::random().next()));
            let url = format!("sqlite:{}", folder.join("store.db").display());
            let store = store::connect(&url).await.unwrap();
            let database = SqlitePool::connect(&url).await.unwrap();
            for sql in [
                "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.event_id LIKE '%pi_bad%'
                 BEGIN SELECT RAISE(ABORT, 'it is bad'); END",
                "INSERT INTO checks (psp, account, payment_id, next_check_at) VALUES
                 ('stripe', 'default', 'pi_bad', 0), ('stripe', 'default', 'pi_good', 0)",
            ] {
                sqlx::query(sql).execute(&database).await.unwrap();
            }
            Self { store, database, folder }
        }

        async fn end(self) {
            self.store.close().await;
            self.database.close().await;
            std::fs::remove_dir_all(self.folder).unwrap();
        }
    }

    /// Says of each payment that it is open, or nothing at all.
    struct Stripe {
        silent: bool,
        asked: Notify,
    }

    #[async_trait]
    impl PspTransport for Stripe {
        async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
            self.asked.notify_one();
            if self.silent {
                std::future::pending::<()>().await;
            }
            let id = request.uri().path().rsplit('/').next().unwrap();
            let intent = format!(r#"{{"id":"{id}","object":"payment_intent","status":"processing","livemode":false}}"#);
            Ok(Response::new(intent.into()))
        }
    }

    fn stripe() -> AccountKey {
        AccountKey { psp: "stripe".into(), account: "default".into() }
    }

    fn reconciler(due: &TwoDue, silent: bool) -> (Reconciler, Arc<Stripe>) {
        let account = Account {
            psp: psp::find("stripe").unwrap(),
            psp_id: "stripe".into(),
            name: "default".into(),
            mode: Mode::Test,
            keys: Keys::default(),
            api: Api { key: Some(Secret::new("api_key", "sk_test_1")), ..Api::default() },
            order_reference: None,
            capture: psp::Capture::default(),
        };
        let habits = Habits { usual_delay: Duration::from_mins(1), lists_late_changes: psp::LateChanges::Unlisted };
        let context = Context {
            store: Arc::clone(&due.store),
            seen: Arc::new(Memory::default()),
            accounts: HashMap::from([(stripe(), Arc::new(account))]),
            clock: Arc::new(ManualClock::at(NOW)),
            ids: Ids::seeded(1),
            epoch: Uuid::nil(),
            policy: Policy { events_create_orders: true, asking: HashMap::from([(stripe(), habits)]), ..Policy::default() },
        };
        let transport = Arc::new(Stripe { silent, asked: Notify::new() });
        (Reconciler::new(Arc::new(context), Arc::clone(&transport) as Arc<dyn PspTransport>), transport)
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_stored_costs_only_its_own_look() {
        let due = TwoDue::new().await;
        let report = step(&reconciler(&due, false).0).await.unwrap();
        assert_eq!(report, StepReport { asked: 2, changed: 0, failed: 1 });
        let ended: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT payment_id, last_result, next_check_at FROM checks ORDER BY payment_id")
                .fetch_all(&due.database)
                .await
                .unwrap();
        let results: Vec<(&str, &str)> = ended.iter().map(|(id, result, _)| (&**id, &**result)).collect();
        assert_eq!(results, [("pi_bad", "failed"), ("pi_good", "same")]);
        assert!(ended.iter().all(|(_, _, next)| *next > NOW.millis()), "each has its next look: {ended:?}");
        due.end().await;
    }

    #[tokio::test]
    async fn a_psp_that_never_answers_does_not_outlast_the_stop_and_the_next_worker_asks_at_once() {
        let due = TwoDue::new().await;
        let (stopping, transport) = reconciler(&due, true);
        let shutdown = Shutdown::new();
        let running = tokio::spawn(run(stopping, shutdown.clone()));
        transport.asked.notified().await;
        shutdown.stop();
        // Without the cut this test never ends.
        running.await.unwrap().unwrap();
        // Neither the payments' leases nor the account's conversations are left to end by themselves.
        assert_eq!(step(&reconciler(&due, false).0).await.unwrap().asked, 2);
        due.end().await;
    }
}
