//! The store in one `SQLite` file: durable, for one machine.
//!
//! One writer at a time, so nothing has to be locked row by row: the plan is read and written row by row with prepared
//! statements inside one transaction. Readers see the last commit and wait for nobody (WAL).

mod audit;
mod checks;
mod expiry;
mod inspect;
mod learning;
mod letters;
mod outbox;
mod read;
mod replay;
mod retention;
mod stream;
mod sweeps;
mod unsettled;
mod watches;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use paybell_shared::psp::{Hinted, Window};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection, SqlitePool};
use uuid::Uuid;

pub(super) use self::audit::rows as audit_rows;
use super::rows::writes_nothing;
use super::{
    AccountState, Applied, AskedFirst, Attended, AuditReport, Backlog, Balance, BodyPlace, ConnectError, DeadLetter, Decision,
    Due, DueCheck, DueOrder, DuePage, Expected, HourTotal, InboxEntry, Kept, Lease, LeasedChecks, LeasedPage, LeasedWatch,
    LetterDecision, LetterHead, Looked, Moment, Notice, NoticeKey, NoticeOutcome, Place, Position, Positioned, ReadPage, Reason,
    ReferenceKey, Rest, Scope, Selection, Store, StoreError, StoredBody, StoredOrder, Unsettled, UnsettledPlace, WAKING_MAX,
    Wanted, WatchKey, WatchKind, WatchLease, WatchState, Work,
};
use crate::apply::{plan, wanted};
use crate::manners::{Ended, Leave, News};
use crate::order::{AccountKey, OrderStatus};
use crate::sweep::course::Course;

/// Waiting for another process (an operator's command) that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Waiting for the one writer of this process, or for a reader. Above [`BUSY_TIMEOUT`], which the one before may need.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// The API's reads at once; each is a thread.
const READERS_MAX: u32 = 4;
/// Readings for one piece of work, each finding more to read: the length of a chain of references.
const ROUNDS_MAX: u32 = 16;
/// Waiting for connections in use when the store closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(BUSY_TIMEOUT.as_millis() < ACQUIRE_TIMEOUT.as_millis());

/// One file.
#[derive(Clone, Debug)]
pub struct Sqlite {
    /// Of one connection: to hold it is to be the writer.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    /// Creates the file and its folder where they are missing, and brings the schema up to date.
    ///
    /// # Errors
    /// The URL is wrong or not a file, or the file cannot be used.
    pub async fn open(url: &str) -> Result<Self, ConnectError> {
        let options = SqliteConnectOptions::from_str(url).map_err(|error| ConnectError::Url(error.to_string()))?;
        let folder = options.get_filename().parent().filter(|folder| *folder != Path::new(""));
        if let Some(folder) = folder {
            let failed = |error| ConnectError::Folder(folder.to_owned(), error);
            tokio::fs::create_dir_all(folder).await.map_err(failed)?;
        }
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = |connections_max| {
            SqlitePoolOptions::new()
                .max_connections(connections_max)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .after_connect(|connection, _| Box::pin(assert_durable(connection)))
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        migrate(&writer).await?;
        let readers = pool(READERS_MAX).connect_with(options).await?;
        Ok(Self { writer, readers })
    }

    /// Opens a file whose schema is this program's, beside a process that writes to it or alone. Nothing is written.
    ///
    /// # Errors
    /// The URL is wrong, there is no such file, or its schema is of another version.
    pub async fn open_to_read(url: &str) -> Result<Self, ConnectError> {
        let options = SqliteConnectOptions::from_str(url).map_err(|error| ConnectError::Url(error.to_string()))?;
        let options = options.create_if_missing(false).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(READERS_MAX).acquire_timeout(ACQUIRE_TIMEOUT);
        let pool = pool.connect_with(options).await?;
        let is_noted = "SELECT count(*) > 0 FROM sqlite_schema WHERE name = '_sqlx_migrations'";
        let is_noted: bool = sqlx::query_scalar(is_noted).fetch_one(&pool).await?;
        let found = if is_noted { sqlx::query_scalar(super::LAST_STEP).fetch_one(&pool).await? } else { None };
        super::check_schema(found, &super::SQLITE_STEPS)?;
        Ok(Self { writer: pool.clone(), readers: pool })
    }

    async fn transact(&self, work: &Work<'_>, wanted: &mut Wanted) -> Result<(Applied, Option<Rest>), StoreError> {
        let mut connection = self.writer.acquire().await.map_err(classify)?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
        for _ in 0..ROUNDS_MAX {
            // Nobody else writes meanwhile, so to read more is to go on.
            let snapshot = read::snapshot(&mut transaction, wanted).await?;
            match plan(work, &snapshot, work.ids) {
                Decision::ReadMore(more) => wanted.extend(more),
                Decision::Write(plan) => {
                    let rest = Rest::of(&plan, &snapshot, wanted);
                    if !work.dry_run && !writes_nothing(&plan) {
                        write::plan(&mut transaction, &plan).await?;
                        // An error of the disk at this point does not say what a restart will find.
                        transaction.commit().await.map_err(StoreError::Unknown)?;
                    }
                    return Ok((plan.applied, rest));
                }
            }
        }
        Err(StoreError::Contended(ROUNDS_MAX))
    }

    /// Wakes the parked events that the first transaction did not read.
    async fn wake(&self, work: &Work<'_>, mut wanted: Wanted, mut rest: Rest, applied: &mut Applied) -> Result<(), StoreError> {
        for _ in 0..WAKING_MAX {
            let awaited = read::awaited(&mut *self.readers.acquire().await.map_err(classify)?, &wanted.references).await?;
            wanted = Wanted::to_wake(awaited, rest);
            if wanted.is_empty() {
                break;
            }
            let (woke, more) = self.transact(work, &mut wanted).await?;
            applied.and_woke(woke);
            match more {
                Some(more) => rest = more,
                None => break,
            }
        }
        for order in applied.registered_mut() {
            let now = read::order(&mut *self.readers.acquire().await.map_err(classify)?, &order.id).await?;
            *order = now.unwrap_or_else(|| order.clone());
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn epoch(&self) -> Result<Uuid, StoreError> {
        sqlx::query_scalar("SELECT epoch FROM meta").fetch_one(&self.readers).await.map_err(classify)
    }

    async fn apply(&self, work: &Work<'_>) -> Result<Applied, StoreError> {
        let mut wanted = wanted(work);
        if wanted.is_empty() {
            return Ok(Applied::default());
        }
        let (mut applied, rest) = self.transact(work, &mut wanted).await?;
        if let Some(rest) = rest
            && !work.dry_run
            && let Err(error) = self.wake(&work.waking(), wanted, rest, &mut applied).await
        {
            // The work itself is done.
            tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "the rest of the parked events is woken later");
        }
        Ok(applied)
    }

    async fn order(&self, id: &str) -> Result<Option<StoredOrder>, StoreError> {
        read::order(&mut *self.readers.acquire().await.map_err(classify)?, id).await
    }

    async fn orders(&self, status: Option<OrderStatus>, after: Option<&str>, limit: u32) -> Result<Vec<StoredOrder>, StoreError> {
        read::orders(&mut *self.readers.acquire().await.map_err(classify)?, status, after, limit).await
    }

    async fn balance(&self) -> Result<Balance, StoreError> {
        read::balance(&mut *self.readers.acquire().await.map_err(classify)?).await
    }

    async fn hours(&self, since: Timestamp, until: Timestamp) -> Result<Vec<HourTotal>, StoreError> {
        read::hours(&mut *self.readers.acquire().await.map_err(classify)?, since, until).await
    }

    async fn ask_about(&self, now: Timestamp, payments: &BTreeSet<(AccountKey, String)>) -> Result<(), StoreError> {
        checks::ask_about(&mut *self.writer.acquire().await.map_err(classify)?, now, payments).await
    }

    async fn hinted(&self, now: Timestamp, hints: &BTreeMap<(AccountKey, String), Timestamp>) -> Result<(), StoreError> {
        checks::hinted(&mut *self.writer.acquire().await.map_err(classify)?, now, hints).await
    }

    async fn lease_checks(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedChecks, StoreError> {
        // Asked all the time, and seldom is anything due: the writer is not kept for that.
        let mut reader = self.readers.acquire().await.map_err(classify)?;
        if checks::nothing_is_due(&mut reader, account, lease.now).await? {
            return Ok(LeasedChecks::default());
        }
        drop(reader);
        checks::lease(&mut *self.writer.acquire().await.map_err(classify)?, account, lease).await
    }

    async fn finish_check(&self, check: &DueCheck, looked: &Looked) -> Result<Option<News>, StoreError> {
        checks::finish(&mut *self.writer.acquire().await.map_err(classify)?, check, looked).await
    }

    async fn begin_asking(&self, account: &AccountKey, lease: &Lease, wanted: u32) -> Result<Leave, StoreError> {
        checks::begin_asking(&mut *self.writer.acquire().await.map_err(classify)?, account, lease, wanted).await
    }

    async fn end_asking(
        &self,
        account: &AccountKey,
        now: Timestamp,
        token: Uuid,
        ended: Ended,
    ) -> Result<Option<News>, StoreError> {
        checks::end_asking(&mut *self.writer.acquire().await.map_err(classify)?, account, now, token, ended).await
    }

    async fn due(&self, now: Timestamp, accounts: &[&AccountKey]) -> Result<Vec<Due>, StoreError> {
        checks::due(&mut *self.readers.acquire().await.map_err(classify)?, now, accounts).await
    }

    async fn lease_orders(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<DueOrder>, StoreError> {
        // As with checks: the writer is not kept for nothing.
        let mut reader = self.readers.acquire().await.map_err(classify)?;
        if expiry::nothing_is_due(&mut reader, now).await? {
            return Ok(Vec::new());
        }
        drop(reader);
        expiry::lease(&mut *self.writer.acquire().await.map_err(classify)?, now, until, limit).await
    }

    async fn attend_orders(&self, attended: &[Attended]) -> Result<(), StoreError> {
        expiry::attended(&mut *self.writer.acquire().await.map_err(classify)?, attended).await
    }

    async fn learned(&self, since: Timestamp, until: Timestamp) -> Result<Vec<(AccountKey, u64)>, StoreError> {
        learning::count(&mut *self.readers.acquire().await.map_err(classify)?, since, until).await
    }

    async fn asked_first(
        &self,
        since: Timestamp,
        until: Timestamp,
        now: Timestamp,
        accounts: &[(AccountKey, Duration)],
    ) -> Result<Vec<AskedFirst>, StoreError> {
        learning::asked_first(&mut *self.readers.acquire().await.map_err(classify)?, since, until, now, accounts).await
    }

    async fn account_states(&self) -> Result<Vec<AccountState>, StoreError> {
        learning::account_states(&mut *self.readers.acquire().await.map_err(classify)?).await
    }

    async fn expected(&self, account: &AccountKey, since: Timestamp, until: Timestamp) -> Result<Expected, StoreError> {
        learning::expected(&mut *self.readers.acquire().await.map_err(classify)?, account, since, until).await
    }

    async fn unsettled(
        &self,
        reason: Reason,
        accounts: &[AccountKey],
        before: Timestamp,
        after: Option<&UnsettledPlace>,
        limit: u32,
    ) -> Result<Vec<Unsettled>, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(classify)?;
        unsettled::unsettled(&mut reader, reason, accounts, before, after, limit).await
    }

    async fn count_unsettled(&self, reason: Reason, accounts: &[AccountKey], before: Timestamp) -> Result<u32, StoreError> {
        unsettled::count(&mut *self.readers.acquire().await.map_err(classify)?, reason, accounts, before).await
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let letters = super::letters::distinct(letters);
        letters::bury(&mut *self.writer.acquire().await.map_err(classify)?, &letters).await
    }

    async fn dead_letters(&self, after: Option<(Timestamp, Uuid)>, limit: u32) -> Result<Vec<LetterHead>, StoreError> {
        letters::waiting(&mut *self.readers.acquire().await.map_err(classify)?, after, limit).await
    }

    async fn letter_head(&self, id: Uuid) -> Result<Option<LetterHead>, StoreError> {
        letters::one(&mut *self.readers.acquire().await.map_err(classify)?, id).await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        letters::whole(&mut *self.readers.acquire().await.map_err(classify)?, id).await
    }

    async fn decide_letter(&self, id: Uuid, decision: &LetterDecision) -> Result<bool, StoreError> {
        letters::decide(&mut *self.writer.acquire().await.map_err(classify)?, id, decision).await
    }

    async fn count_letters(&self) -> Result<u32, StoreError> {
        letters::count(&mut *self.readers.acquire().await.map_err(classify)?).await
    }

    async fn lease_watch(&self, key: &WatchKey, lease: &WatchLease) -> Result<Option<LeasedWatch>, StoreError> {
        watches::lease(&mut *self.writer.acquire().await.map_err(classify)?, key, lease).await
    }

    async fn finish_watch(&self, key: &WatchKey, token: Uuid, next_at: Timestamp, state: &str) -> Result<bool, StoreError> {
        watches::finish(&mut *self.writer.acquire().await.map_err(classify)?, key, token, next_at, state).await
    }

    async fn watch_states(&self, kind: WatchKind) -> Result<Vec<WatchState>, StoreError> {
        watches::states(&mut *self.readers.acquire().await.map_err(classify)?, kind).await
    }

    async fn lease_page(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedPage, StoreError> {
        // Asked all the time, and seldom is one due: the writer is not kept for that.
        let mut reader = self.readers.acquire().await.map_err(classify)?;
        if let Some(not_before) = sweeps::not_before(&mut reader, account, lease.now).await? {
            return Ok(LeasedPage::NotBefore(not_before));
        }
        drop(reader);
        sweeps::lease(&mut *self.writer.acquire().await.map_err(classify)?, account, lease).await
    }

    async fn finish_page(&self, page: &DuePage, read: &ReadPage) -> Result<Option<News>, StoreError> {
        sweeps::finish(&mut *self.writer.acquire().await.map_err(classify)?, page, read).await
    }

    async fn course(&self, account: &AccountKey) -> Result<Option<Course>, StoreError> {
        sweeps::course(&mut *self.readers.acquire().await.map_err(classify)?, account).await
    }

    async fn told_within(&self, account: &AccountKey, window: Window) -> Result<bool, StoreError> {
        sweeps::told_within(&mut *self.readers.acquire().await.map_err(classify)?, account, window).await
    }

    async fn unanswered(&self, account: &AccountKey, hints: &[Hinted]) -> Result<BTreeSet<String>, StoreError> {
        sweeps::unanswered(&mut *self.readers.acquire().await.map_err(classify)?, account, hints).await
    }

    async fn lease_notices(
        &self,
        destination: &str,
        now: Timestamp,
        lease: Duration,
        token: Uuid,
        limit: u32,
    ) -> Result<Vec<Notice>, StoreError> {
        outbox::lease(&mut *self.writer.acquire().await.map_err(classify)?, destination, now, lease, token, limit).await
    }

    async fn finish_notices(&self, now: Timestamp, token: Uuid, ended: &[(NoticeKey, NoticeOutcome)]) -> Result<(), StoreError> {
        outbox::finish(&mut *self.writer.acquire().await.map_err(classify)?, now, token, ended).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        outbox::backlog(&mut *self.readers.acquire().await.map_err(classify)?).await
    }

    async fn position(&self) -> Result<Position, StoreError> {
        stream::position(&mut *self.readers.acquire().await.map_err(classify)?).await
    }

    async fn changes_after(&self, order_id: Option<&str>, after: Position, limit: u32) -> Result<Vec<Positioned>, StoreError> {
        stream::changes_after(&mut *self.readers.acquire().await.map_err(classify)?, order_id, after, limit).await
    }

    async fn latest_change(&self, order_id: &str) -> Result<Option<Positioned>, StoreError> {
        stream::latest_change(&mut *self.readers.acquire().await.map_err(classify)?, order_id).await
    }

    async fn timeline(&self, order_id: &str, after: Option<&Place>, limit: u32) -> Result<Option<Vec<Moment>>, StoreError> {
        inspect::timeline(&mut *self.readers.acquire().await.map_err(classify)?, order_id, after, limit).await
    }

    async fn event(&self, key: &EventKey) -> Result<Option<InboxEntry>, StoreError> {
        inspect::event(&mut *self.readers.acquire().await.map_err(classify)?, key).await
    }

    async fn parked(
        &self,
        before: Timestamp,
        after: Option<&(Timestamp, EventKey)>,
        limit: u32,
    ) -> Result<Vec<InboxEntry>, StoreError> {
        inspect::parked(&mut *self.readers.acquire().await.map_err(classify)?, before, after, limit).await
    }

    async fn overdue(&self, before: Timestamp) -> Result<u32, StoreError> {
        inspect::overdue(&mut *self.readers.acquire().await.map_err(classify)?, before).await
    }

    async fn unwoken(&self, after: Option<&ReferenceKey>, limit: u32) -> Result<Vec<ReferenceKey>, StoreError> {
        read::unwoken(&mut *self.readers.acquire().await.map_err(classify)?, after, limit).await
    }

    async fn audit(&self, scope: Scope<'_>, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<AuditReport, StoreError> {
        audit::audit(&mut *self.readers.acquire().await.map_err(classify)?, scope, progress).await
    }

    async fn bodies(&self, selection: &Selection, after: Option<&BodyPlace>, limit: u32) -> Result<Vec<StoredBody>, StoreError> {
        replay::bodies(&mut *self.readers.acquire().await.map_err(classify)?, selection, after, limit).await
    }

    async fn retain(&self, now: Timestamp, keep: Duration) -> Result<Kept, StoreError> {
        retention::retain(&mut *self.writer.acquire().await.map_err(classify)?, now, keep).await
    }

    async fn close(&self) {
        // Readers first: the last connection to close empties the log into the file.
        for pool in [&self.readers, &self.writer] {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, pool.close()).await;
        }
    }
}

/// In one transaction that only one process can begin: the lock.
async fn migrate(writer: &SqlitePool) -> Result<(), ConnectError> {
    let mut connection = writer.acquire().await?;
    let mut transaction = match connection.begin_with("BEGIN IMMEDIATE").await {
        Ok(transaction) => transaction,
        Err(error) if matches!(primary_code(&error), Some(BUSY | LOCKED)) => return Err(ConnectError::Migrating(BUSY_TIMEOUT)),
        Err(error) => return Err(error.into()),
    };
    super::migrator(&super::SQLITE_STEPS).run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(())
}

/// Refuses a connection whose commits would not be on the disk: a database in memory, or a build with other ideas.
async fn assert_durable(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let synchronous: i64 = connection.fetch_one("PRAGMA synchronous").await?.try_get(0)?;
    let journal: String = connection.fetch_one("PRAGMA journal_mode").await?.try_get(0)?;
    // 2: FULL.
    if synchronous == 2 && journal.eq_ignore_ascii_case("wal") {
        Ok(())
    } else {
        let problem = format!("not a durable file: journal_mode is {journal}, synchronous is {synchronous}");
        Err(sqlx::Error::Configuration(problem.into()))
    }
}

// Primary result codes: the low byte of the extended ones (SQLite's "Result and Error Codes").
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Whose fault an error is. What is not known to be about the data is the database's own trouble.
fn classify(error: sqlx::Error) -> StoreError {
    match (primary_code(&error), error) {
        (Some(BUSY | LOCKED), _) => StoreError::Contended(1),
        (Some(TOO_BIG | CONSTRAINT | MISMATCH), error) | (None, error @ sqlx::Error::Encode(_)) => StoreError::Refused(error),
        (None, sqlx::Error::ColumnDecode { index, source }) => super::rows::inconsistent("a query", "its column", index, source),
        (None, sqlx::Error::Decode(source)) => super::rows::inconsistent("a query", "a column", "a row", source),
        (_, error) => StoreError::Unavailable(error),
    }
}
