//! Asking the PSP about payments that are due: the one machine that does (design decision 12).
//!
//! [`step`] leases due payments, asks about each, and applies the answers through the same write path as webhooks;
//! [`run`] only waits and steps.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use paybell_shared::clock::Timestamp;
use paybell_shared::event::PaymentEvent;
use paybell_shared::psp::{Account, AskError, Asked, ReadError, Unread};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{OUTCOME, PSP, RECONCILE_LOOKS_TOTAL};
use tokio::sync::Semaphore;

use crate::access::{Access, AccessError};
use crate::consume::Context;
use crate::inbox::Arrival;
use crate::order::{AccountKey, OrderStatus};
use crate::store::{DueCheck, StoreError, Work};
use crate::transport::{PspTransport, TransportError};

/// Payments leased at a time: two requests at a time of 15 s at the most, and few payments have more than three pages. A look
/// that outlasts its lease changes nothing.
const LEASED_MAX: u32 = 4;
/// So long nobody else asks about them.
const LEASE: Duration = Duration::from_mins(5);
/// Requests at a time to one account.
const CONCURRENT_PER_ACCOUNT: usize = 2;
/// Pages of one answer: 100 refunds a page, and nobody refunds one payment a thousand times; PayPal has a page for each
/// capture and dispute.
const PAGES_MAX: usize = 32;
/// How long to wait if nothing is due.
const IDLE: Duration = Duration::from_secs(1);
/// Between looks at a payment that has not changed: doubled from the shortest to the longest.
const NEXT_LOOK_MIN: Duration = Duration::from_mins(1);
const NEXT_LOOK_MAX: Duration = Duration::from_hours(24);

/// What reconciliation needs beside the write path.
pub struct Reconciler {
    pub context: Arc<Context>,
    pub transport: Arc<dyn PspTransport>,
    permits: HashMap<AccountKey, Semaphore>,
    access: Access,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    pub asked: usize,
    /// Of these, how many answers told something new.
    pub changed: usize,
    pub failed: usize,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the answer goes on for more than {PAGES_MAX} pages")]
    Endless,
    #[error("the account is not configured")]
    NoAccount,
    #[error("reading the answer panicked")]
    Panicked,
}

impl Reconciler {
    #[must_use]
    pub fn new(context: Arc<Context>, transport: Arc<dyn PspTransport>) -> Self {
        let permits = context.accounts.keys().map(|key| (key.clone(), Semaphore::new(CONCURRENT_PER_ACCOUNT))).collect();
        let access = Access::new(context.accounts.keys());
        Self { context, transport, permits, access }
    }
}

/// Asks about payments that are due, if any.
///
/// # Errors
/// The database is away.
pub async fn step(reconciler: &Reconciler) -> Result<StepReport, StoreError> {
    let context = &reconciler.context;
    let due = context.store.lease_checks(context.clock.now(), LEASE, context.ids.next(), LEASED_MAX).await?;
    let mut looks: FuturesUnordered<_> = due.iter().map(|check| look(reconciler, check)).collect();
    let mut report = StepReport::default();
    while let Some(outcome) = looks.next().await {
        report.asked += 1;
        match outcome? {
            Looked::Changed => report.changed += 1,
            Looked::Same => {}
            Looked::Failed => report.failed += 1,
        }
    }
    Ok(report)
}

/// Steps until the stop.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(reconciler: Reconciler, shutdown: Shutdown) -> anyhow::Result<()> {
    while !shutdown.is_stopping() {
        let stepped = tokio::select! {
            // A PSP that answers slowly must not outlast the stop. A look that is cut off loses nothing: its lease ends, and it
            // is asked again.
            () = shutdown.stopping() => break,
            stepped = step(&reconciler) => stepped,
        };
        let idle = match stepped {
            Ok(report) => report.asked == 0,
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "reconciliation pauses");
                true
            }
        };
        if idle {
            tokio::select! {
                () = tokio::time::sleep(IDLE) => {}
                () = shutdown.stopping() => {}
            }
        }
    }
    Ok(())
}

/// All pages of an answer.
#[derive(Default)]
struct Told {
    events: Vec<PaymentEvent>,
    unread: Vec<Unread>,
}

enum Looked {
    Changed,
    Same,
    Failed,
}

async fn look(reconciler: &Reconciler, check: &DueCheck) -> Result<Looked, StoreError> {
    let context = &reconciler.context;
    let mut left = Left { order_status: check.order_status, in_doubt: true, led_elsewhere: false };
    let (looked, result) = match ask(reconciler, check).await {
        Ok(told) => match apply(reconciler, check, told).await {
            Ok((changed, now)) => {
                left = now;
                if changed { (Looked::Changed, "changed") } else { (Looked::Same, "same") }
            }
            // Of this answer alone: the others go on, and this payment does not come first again in five minutes.
            Err(error @ (StoreError::Refused(_) | StoreError::Inconsistent { .. })) => {
                let (psp, account) = (&*check.account.psp, &*check.account.account);
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(event = "payment.polled", psp, account, payment_id = check.payment_id, error, "not stored");
                (Looked::Failed, "failed")
            }
            Err(error) => return Err(error),
        },
        Err(error) => {
            let (psp, account) = (&*check.account.psp, &*check.account.account);
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(event = "payment.polled", psp, account, payment_id = check.payment_id, error, "no answer");
            (Looked::Failed, "failed")
        }
    };
    metrics::counter!(RECONCILE_LOOKS_TOTAL, PSP => Arc::clone(&check.account.psp), OUTCOME => result).increment(1);
    let next = next_look(&left, check.looks, context.clock.now());
    context.store.finish_check(check, next, result).await?;
    Ok(looked)
}

/// Asks page by page; an answer counts as a whole or not at all.
async fn ask(reconciler: &Reconciler, check: &DueCheck) -> Result<Told, LookError> {
    let account: &Account = reconciler.context.accounts.get(&check.account).ok_or(LookError::NoAccount)?;
    let permits = reconciler.permits.get(&check.account).ok_or(LookError::NoAccount)?;
    let at = reconciler.context.clock.now();
    let look_id = format!("{}-{}", at.millis(), &check.lease_token.simple().to_string()[..8]);
    let mut told = Told::default();
    let mut cursor: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let request = account.psp.status_request(&check.payment_id, cursor.as_deref(), account)?;
        let response = {
            // Never closed, so that a permit always comes.
            let _permit = permits.acquire().await;
            send(reconciler, check, account, request).await?
        };
        let asked = Asked { payment_id: &check.payment_id, cursor: cursor.as_deref(), at, look_id: &look_id };
        // Adapters never panic (invariant I7); if one does, it costs its own look and not the worker.
        let answer = catch_unwind(AssertUnwindSafe(|| account.psp.read_status(&asked, &response, account)))
            .map_err(|_| LookError::Panicked)??;
        told.events.extend(answer.events);
        told.unread.extend(answer.unread);
        match answer.next {
            Some(next) => cursor = Some(next),
            None => return Ok(told),
        }
    }
    Err(LookError::Endless)
}

/// Sends a request, with a token where the PSP wants one. One that it does not take any more is renewed once.
async fn send(
    reconciler: &Reconciler,
    check: &DueCheck,
    account: &Account,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, LookError> {
    let Reconciler { context, transport, access, .. } = reconciler;
    for is_last in [false, true] {
        let now = context.clock.now();
        let Some(credentials) = access.credentials(&check.account, account, &**transport, now).await? else { break };
        let mut authorized = request.clone();
        authorized.headers_mut().insert(AUTHORIZATION, credentials.clone());
        let response = transport.send(authorized).await?;
        if response.status() != StatusCode::UNAUTHORIZED || is_last {
            return Ok(response);
        }
        access.refused(&check.account, &credentials).await;
    }
    Ok(transport.send(request).await?)
}

/// What a look left.
struct Left {
    order_status: Option<OrderStatus>,
    /// There was no answer, or it did not end the contradiction.
    in_doubt: bool,
    /// The answer was about a payment of another id, which has looks of its own: this id was another name of it.
    led_elsewhere: bool,
}

/// Whether an order changed, and where it stands now.
async fn apply(reconciler: &Reconciler, check: &DueCheck, told: Told) -> Result<(bool, Left), StoreError> {
    let context = &reconciler.context;
    let Some(account) = context.accounts.get(&check.account) else {
        return Ok((false, Left { order_status: check.order_status, in_doubt: true, led_elsewhere: false }));
    };
    let now = context.clock.now();
    let led_elsewhere = !told.events.is_empty() && told.events.iter().all(|event| event.payment_id != check.payment_id);
    let arrivals = [Arrival::of_answer(told.events, told.unread, account, now)];
    let work = Work { arrivals: &arrivals, now, ..context.work() };
    let applied = context.store.apply(&work).await?;
    let order_status = applied.orders.first().map(|(_, status)| *status).or(check.order_status);
    let in_doubt = applied.in_doubt.contains(&(check.account.clone(), check.payment_id.clone()));
    Ok((applied.transitions > 0, Left { order_status, in_doubt, led_elsewhere }))
}

/// When to look next: not at all once the payment is paid or given up beyond doubt, else ever more rarely.
fn next_look(left: &Left, looks: i32, now: Timestamp) -> Option<Timestamp> {
    let settled = !left.in_doubt
        && matches!(
            left.order_status,
            Some(
                OrderStatus::Paid
                    | OrderStatus::Refunded
                    | OrderStatus::ChargedBack
                    | OrderStatus::Canceled
                    | OrderStatus::Expired
            )
        );
    let settled = settled || left.led_elsewhere;
    let doublings = u32::try_from(looks).unwrap_or(0).min(16);
    (!settled).then(|| now.plus((NEXT_LOOK_MIN * 2_u32.pow(doublings)).min(NEXT_LOOK_MAX)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use async_trait::async_trait;
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
        let context = Context {
            store: Arc::clone(&due.store),
            seen: Arc::new(Memory::default()),
            accounts: HashMap::from([(stripe(), Arc::new(account))]),
            clock: Arc::new(ManualClock::at(NOW)),
            ids: Ids::seeded(1),
            epoch: Uuid::nil(),
            policy: Policy { events_create_orders: true, ..Policy::default() },
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
    async fn a_psp_that_never_answers_does_not_outlast_the_stop() {
        let due = TwoDue::new().await;
        let (reconciler, transport) = reconciler(&due, true);
        let shutdown = Shutdown::new();
        let running = tokio::spawn(run(reconciler, shutdown.clone()));
        transport.asked.notified().await;
        shutdown.stop();
        // Without the cut this test never ends.
        running.await.unwrap().unwrap();
        due.end().await;
    }
}
