//! One piece of work, in as many transactions as it takes to get one through.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, PgConnection, PgPool, PgTransaction, Postgres};
use tokio::time::{sleep, timeout};

use super::errors::{Failure, classify, timed_out};
use super::{read, write};
use crate::apply::{plan, wanted};
use crate::ids::Ids;
use crate::pace::Pace;
use crate::store::rows::writes_nothing;
use crate::store::{Applied, Decision, Rest, StoreError, WAKING_MAX, Wanted, Work};

/// Transactions for one piece of work: each finds more to lock, or loses against others.
const ROUNDS_MAX: u32 = 16;
/// From `BEGIN` to before `COMMIT`, seen from here: also ends when the network swallows everything.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// `COMMIT`, or `ROLLBACK`.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait after the first lost round; doubles with each, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(4);
const BACKOFF_MAX: Duration = Duration::from_millis(256);
/// Waits before each question what became of a commit. Together longer than PostgreSQL needs to restart after a crash with
/// little to recover.
const SETTLE_WAITS_MS: [u64; 9] = [0, 25, 50, 100, 200, 400, 800, 1600, 3200];

/// How a round ended.
enum Round {
    Done(Applied, Option<Rest>),
    More(Wanted),
    Lost,
    /// The connection is of no use any more, and nothing was committed.
    Broken(StoreError),
    /// The connection is of no use any more, and it broke during the commit.
    InDoubt {
        xid: String,
        applied: Applied,
        rest: Option<Rest>,
        error: sqlx::Error,
    },
}

pub(super) async fn apply(pool: &PgPool, work: &Work<'_>) -> Result<Applied, StoreError> {
    let mut wanted = wanted(work);
    if wanted.is_empty() {
        return Ok(Applied::default());
    }
    let (mut applied, rest) = get_through(pool, work, &mut wanted).await?;
    if let Some(rest) = rest
        && !work.dry_run
        && let Err(error) = wake(pool, &work.waking(), wanted, rest, &mut applied).await
    {
        // The work itself is done.
        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the rest of the parked events is woken later");
    }
    Ok(applied)
}

/// Wakes the parked events that the first transaction did not read.
async fn wake(
    pool: &PgPool,
    work: &Work<'_>,
    mut wanted: Wanted,
    mut rest: Rest,
    applied: &mut Applied,
) -> Result<(), StoreError> {
    for _ in 0..WAKING_MAX {
        let awaited = read::awaited(&mut *pool.acquire().await.map_err(classify)?, &wanted.references).await?;
        wanted = Wanted::to_wake(awaited, rest);
        if wanted.is_empty() {
            break;
        }
        let (woke, more) = get_through(pool, work, &mut wanted).await?;
        applied.and_woke(woke);
        match more {
            Some(more) => rest = more,
            None => break,
        }
    }
    for order in applied.registered_mut() {
        let now = read::order(&mut *pool.acquire().await.map_err(classify)?, &order.id).await?;
        *order = now.unwrap_or_else(|| order.clone());
    }
    Ok(())
}

/// A connection that goes back to the pool only when its transaction has ended in order. Otherwise it is closed: it does not
/// answer any more, or whoever waited for the transaction gave up amid a `COPY`, of which the driver does not know then where
/// its answers end (the next user would read them for its own).
struct Lent(Option<PoolConnection<Postgres>>);

impl Lent {
    fn give_back(&mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// One transaction, tried until it gets through.
async fn get_through(pool: &PgPool, work: &Work<'_>, wanted: &mut Wanted) -> Result<(Applied, Option<Rest>), StoreError> {
    for round in 0..ROUNDS_MAX {
        let mut lent = Lent(Some(pool.acquire().await.map_err(classify)?));
        let Some(connection) = lent.0.as_mut() else { continue };
        let ended = transact(connection, work, wanted).await;
        if !matches!(ended, Ok(Round::Broken(_) | Round::InDoubt { .. })) {
            // Before the wait for the next round: others may be waiting for a connection.
            lent.give_back();
        }
        match ended? {
            Round::Done(applied, rest) => return Ok((applied, rest)),
            Round::More(more) => wanted.extend(more),
            Round::Lost => sleep(backoff(round, work.ids)).await,
            Round::Broken(error) => return Err(error),
            Round::InDoubt { xid, applied, rest, error } => {
                drop(lent);
                if was_committed(pool, &xid, error).await? {
                    return Ok((applied, rest));
                }
            }
        }
    }
    Err(StoreError::Contended(ROUNDS_MAX))
}

async fn transact(connection: &mut PgConnection, work: &Work<'_>, wanted: &Wanted) -> Result<Round, StoreError> {
    let broken = |error| Ok(Round::Broken(StoreError::Unavailable(error)));
    let mut pace = Pace::start();
    let mut transaction = match in_time(COMMIT_TIMEOUT, connection.begin()).await {
        Ok(transaction) => transaction,
        Err(error) => return broken(error),
    };
    pace.lap("begin");
    let Ok(prepared) = timeout(TRANSACTION_TIMEOUT, prepare(&mut transaction, work, wanted, &mut pace)).await else {
        return broken(timed_out());
    };
    let ended = match prepared {
        Ok(Prepared::Written { xid, applied, rest }) => {
            let committed = in_time(COMMIT_TIMEOUT, transaction.commit()).await;
            pace.lap("commit");
            return Ok(match committed {
                Ok(()) => Round::Done(applied, rest),
                Err(error) => Round::InDoubt { xid, applied, rest, error },
            });
        }
        Ok(Prepared::Nothing(applied, rest)) => Ok(Round::Done(applied, rest)),
        Ok(Prepared::More(more)) => Ok(Round::More(more)),
        Err(Failure::Lost) => Ok(Round::Lost),
        Err(Failure::Store(error)) => Err(error),
    };
    match in_time(COMMIT_TIMEOUT, transaction.rollback()).await {
        Ok(()) => ended,
        Err(error) => Ok(Round::Broken(ended.err().unwrap_or(StoreError::Unavailable(error)))),
    }
}

async fn in_time<T>(limit: Duration, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(limit, answer).await.unwrap_or_else(|_| Err(timed_out()))
}

enum Prepared {
    Written {
        xid: String,
        applied: Applied,
        rest: Option<Rest>,
    },
    /// All was known, or it was only asked: there is nothing to commit.
    Nothing(Applied, Option<Rest>),
    More(Wanted),
}

async fn prepare(
    transaction: &mut PgTransaction<'_>,
    work: &Work<'_>,
    wanted: &Wanted,
    pace: &mut Pace,
) -> Result<Prepared, Failure> {
    let alone = !work.replays.is_empty() && !work.dry_run;
    let (xid, mut snapshot) = read::snapshot(transaction, wanted, alone, pace).await?;
    let decision = plan(work, &snapshot, work.ids);
    pace.lap("plan");
    match decision {
        Decision::ReadMore(more) => Ok(Prepared::More(more)),
        Decision::Write(mut plan) => {
            let rest = Rest::of(&plan, &snapshot, wanted);
            if work.dry_run || writes_nothing(&plan) {
                return Ok(Prepared::Nothing(plan.applied, rest));
            }
            plan.settle_ahead(std::mem::take(&mut snapshot.ahead));
            write::plan(transaction, &plan, pace).await?;
            Ok(Prepared::Written { xid, applied: plan.applied, rest })
        }
    }
}

/// Asks what became of a commit whose answer was lost.
async fn was_committed(pool: &PgPool, xid: &str, error: sqlx::Error) -> Result<bool, StoreError> {
    for wait in SETTLE_WAITS_MS {
        sleep(Duration::from_millis(wait)).await;
        let status = sqlx::query_scalar("SELECT pg_xact_status($1::text::xid8)").bind(xid).fetch_one(pool);
        // Not back yet: the next question may find it.
        let Ok(status) = in_time(COMMIT_TIMEOUT, status).await else { continue };
        let status: Option<String> = status;
        match status.as_deref() {
            Some("committed") => return Ok(true),
            Some("aborted") => return Ok(false),
            // Still in progress: the server has not noticed yet that nobody is there.
            _ => {}
        }
    }
    Err(StoreError::Unknown(error))
}

/// Half of the round's longest wait and a random part of the other half, so that those who met do not meet again.
fn backoff(round: u32, ids: &Ids) -> Duration {
    let half = BACKOFF.saturating_mul(1 << round.min(16)).min(BACKOFF_MAX) / 2;
    let random = f64::from(ids.next().as_fields().0) / f64::from(u32::MAX);
    half + half.mul_f64(random)
}
