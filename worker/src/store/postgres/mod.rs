//! The store on PostgreSQL 14 or newer.
//!
//! [`transaction`] is the loop around one transaction, [`read`] locks and reads its snapshot, [`write`] writes its plan,
//! [`copy`] appends rows, [`checks`] leases payments, [`sweeps`] pages of lists, [`errors`] says whose fault an error is. Every statement takes arrays, or
//! rows by the stream, so a transaction has a fixed number of them whatever its size; rows are inserted and locked in sorted
//! order, so transactions wait for each other but not in circles.

mod audit;
mod checks;
mod copy;
mod errors;
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
mod transaction;
mod unsettled;
mod watches;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use paybell_shared::psp::{Hinted, Window};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool, Row as _};
use tokio::time::timeout;
use uuid::Uuid;

pub(super) use self::audit::rows as audit_rows;
use self::errors::{classify, timed_out};
use super::{
    AccountState, Applied, AskedFirst, Attended, AuditReport, Backlog, Balance, BodyPlace, ConnectError, DeadLetter, Due,
    DueCheck, DueOrder, DuePage, Expected, HourTotal, InboxEntry, Kept, Lease, LeasedChecks, LeasedPage, LeasedWatch,
    LetterDecision, LetterHead, Looked, Moment, Notice, NoticeKey, NoticeOutcome, Place, Position, Positioned, ReadPage, Reason,
    ReferenceKey, Scope, Selection, Store, StoreError, StoredBody, StoredOrder, Unsettled, UnsettledPlace, WatchKey, WatchKind,
    WatchLease, WatchState, Work,
};
use crate::manners::{Ended, Leave, News};
use crate::order::{AccountKey, OrderStatus};
use crate::sweep::course::Course;

/// Four connections saturate the measured server in batches; the rest is for the API and the checks. Twelve workers stay
/// below PostgreSQL's default of 100 connections.
const CONNECTIONS_MAX: u32 = 8;
/// Waiting for a connection of the pool, opening one included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Waiting for a row that another transaction holds. A batch takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// One statement, on the server. Above [`LOCK_TIMEOUT`], so that a wait ends with its own name.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// After this the server ends a transaction whose client fell silent, and so frees its rows.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// One read, seen from here: also ends when the network swallows everything.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Opening the connection that migrates.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Waiting for another process to migrate. Long, because that is not ready, not dead.
const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_mins(1);
/// The whole migration, seen from here.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(10);
/// Waiting for connections in use when the store closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Every statement here finds its rows by keys. A plan made while the tables are empty, or before they are analysed, would
/// read them whole instead, and be kept while they grow (seen on PostgreSQL 15 for half of the statements). So no plan is
/// made for the values of one call: with arrays of 500 in sight and no statistics, it compared each with every row (770 ms
/// instead of 10). And nothing is compiled: forbidding a kind of plan makes the ones that cannot do without it look so
/// expensive that the server compiled `SELECT epoch FROM meta` for 200 ms, every time.
const KEYED: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];

const _: () = assert!(LOCK_TIMEOUT.as_millis() < STATEMENT_TIMEOUT.as_millis());
const _: () = assert!(STATEMENT_TIMEOUT.as_millis() < READ_TIMEOUT.as_millis());
const _: () = assert!(MIGRATION_LOCK_TIMEOUT.as_millis() < MIGRATION_TIMEOUT.as_millis());

/// A pool of connections to one database.
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Brings the schema up to date and opens the pool.
    ///
    /// # Errors
    /// The URL is wrong, the database is away, or another process migrates it for longer than a minute.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        let options = PgConnectOptions::from_str(url).map_err(|error| ConnectError::Url(error.to_string()))?;
        let options = options.application_name("paybell").options([("client_min_messages", "warning")]);
        migrate(&options).await?;
        Self::pool_of(options).await
    }

    /// Opens the pool on a database whose schema is this program's. No transaction writes.
    ///
    /// # Errors
    /// The URL is wrong, the database is away, or its schema is of another version.
    pub async fn open_to_read(url: &str) -> Result<Self, ConnectError> {
        let options = PgConnectOptions::from_str(url).map_err(|error| ConnectError::Url(error.to_string()))?;
        let options = options.application_name("paybell").options([("default_transaction_read_only", "on")]);
        let mut connection = timeout(CONNECT_TIMEOUT, options.connect()).await.map_err(|_| timed_out())??;
        let is_noted = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
        let found = timeout(READ_TIMEOUT, async {
            let is_noted: bool = sqlx::query_scalar(is_noted).fetch_one(&mut connection).await?;
            if is_noted { sqlx::query_scalar(super::LAST_STEP).fetch_one(&mut connection).await } else { Ok(None) }
        });
        let found = found.await.map_err(|_| timed_out())??;
        let _ = timeout(CONNECT_TIMEOUT, connection.close()).await;
        super::check_schema(found, &super::POSTGRES_STEPS)?;
        Self::pool_of(options).await
    }

    async fn pool_of(options: PgConnectOptions) -> Result<Self, ConnectError> {
        let limits = [
            ("lock_timeout", LOCK_TIMEOUT),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
        ];
        let options = options.options(limits.map(|(name, limit)| (name, format!("{}ms", limit.as_millis()))));
        let options = options.options(KEYED);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| Box::pin(commit_durably(connection)))
            .connect_with(options)
            .await?;
        let fsync: String = sqlx::query_scalar("SELECT current_setting('fsync')").fetch_one(&pool).await?;
        if fsync != "on" {
            tracing::warn!(fsync, "the database may lose commits that it has answered, when its machine fails");
        }
        Ok(Self { pool })
    }

    /// Runs a read on a connection of the pool. A connection that does not answer in time is thrown away.
    async fn read<T>(&self, read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        if let Ok(result) = timeout(READ_TIMEOUT, read(&mut connection)).await {
            result
        } else {
            drop(connection.detach());
            Err(StoreError::Unavailable(timed_out()))
        }
    }
}

#[async_trait]
impl Store for Postgres {
    async fn epoch(&self) -> Result<Uuid, StoreError> {
        self.read(async |connection| sqlx::query_scalar("SELECT epoch FROM meta").fetch_one(connection).await.map_err(classify))
            .await
    }

    async fn apply(&self, work: &Work<'_>) -> Result<Applied, StoreError> {
        transaction::apply(&self.pool, work).await
    }

    async fn order(&self, id: &str) -> Result<Option<StoredOrder>, StoreError> {
        if cannot_be(id) {
            return Ok(None);
        }
        self.read(async |connection| read::order(connection, id).await).await
    }

    async fn orders(&self, status: Option<OrderStatus>, after: Option<&str>, limit: u32) -> Result<Vec<StoredOrder>, StoreError> {
        // The same text up to what cannot be stored: no order lies between the two.
        let after = after.map(|after| after.split('\0').next().unwrap_or_default());
        self.read(async |connection| read::orders(connection, status, after, limit).await).await
    }

    async fn balance(&self) -> Result<Balance, StoreError> {
        self.read(async |connection| read::balance(connection).await).await
    }

    async fn hours(&self, since: Timestamp, until: Timestamp) -> Result<Vec<HourTotal>, StoreError> {
        self.read(async |connection| read::hours(connection, since, until).await).await
    }

    async fn ask_about(&self, now: Timestamp, payments: &BTreeSet<(AccountKey, String)>) -> Result<(), StoreError> {
        self.read(async |connection| checks::ask_about(connection, now, payments).await).await
    }

    async fn hinted(&self, now: Timestamp, hints: &BTreeMap<(AccountKey, String), Timestamp>) -> Result<(), StoreError> {
        self.read(async |connection| checks::hinted(connection, now, hints).await).await
    }

    async fn lease_checks(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedChecks, StoreError> {
        self.read(async |connection| checks::lease(connection, account, lease).await).await
    }

    async fn finish_check(&self, check: &DueCheck, looked: &Looked) -> Result<Option<News>, StoreError> {
        self.read(async |connection| checks::finish(connection, check, looked).await).await
    }

    async fn begin_asking(&self, account: &AccountKey, lease: &Lease, wanted: u32) -> Result<Leave, StoreError> {
        self.read(async |connection| checks::begin_asking(connection, account, lease, wanted).await).await
    }

    async fn end_asking(
        &self,
        account: &AccountKey,
        now: Timestamp,
        token: Uuid,
        ended: Ended,
    ) -> Result<Option<News>, StoreError> {
        self.read(async |connection| checks::end_asking(connection, account, now, token, ended).await).await
    }

    async fn due(&self, now: Timestamp, accounts: &[&AccountKey]) -> Result<Vec<Due>, StoreError> {
        self.read(async |connection| checks::due(connection, now, accounts).await).await
    }

    async fn lease_orders(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<DueOrder>, StoreError> {
        self.read(async |connection| expiry::lease(connection, now, until, limit).await).await
    }

    async fn attend_orders(&self, attended: &[Attended]) -> Result<(), StoreError> {
        self.read(async |connection| expiry::attended(connection, attended).await).await
    }

    async fn learned(&self, since: Timestamp, until: Timestamp) -> Result<Vec<(AccountKey, u64)>, StoreError> {
        self.read(async |connection| learning::count(connection, since, until).await).await
    }

    async fn asked_first(
        &self,
        since: Timestamp,
        until: Timestamp,
        now: Timestamp,
        accounts: &[(AccountKey, Duration)],
    ) -> Result<Vec<AskedFirst>, StoreError> {
        self.read(async |connection| learning::asked_first(connection, since, until, now, accounts).await).await
    }

    async fn account_states(&self) -> Result<Vec<AccountState>, StoreError> {
        self.read(async |connection| learning::account_states(connection).await).await
    }

    async fn expected(&self, account: &AccountKey, since: Timestamp, until: Timestamp) -> Result<Expected, StoreError> {
        self.read(async |connection| learning::expected(connection, account, since, until).await).await
    }

    async fn unsettled(
        &self,
        reason: Reason,
        accounts: &[AccountKey],
        before: Timestamp,
        after: Option<&UnsettledPlace>,
        limit: u32,
    ) -> Result<Vec<Unsettled>, StoreError> {
        self.read(async |connection| unsettled::unsettled(connection, reason, accounts, before, after, limit).await).await
    }

    async fn count_unsettled(&self, reason: Reason, accounts: &[AccountKey], before: Timestamp) -> Result<u32, StoreError> {
        self.read(async |connection| unsettled::count(connection, reason, accounts, before).await).await
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let letters = super::letters::distinct(letters);
        self.read(async |connection| letters::bury(connection, &letters).await).await
    }

    async fn dead_letters(&self, after: Option<(Timestamp, Uuid)>, limit: u32) -> Result<Vec<LetterHead>, StoreError> {
        self.read(async |connection| letters::waiting(connection, after, limit).await).await
    }

    async fn letter_head(&self, id: Uuid) -> Result<Option<LetterHead>, StoreError> {
        self.read(async |connection| letters::one(connection, id).await).await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.read(async |connection| letters::whole(connection, id).await).await
    }

    async fn decide_letter(&self, id: Uuid, decision: &LetterDecision) -> Result<bool, StoreError> {
        self.read(async |connection| letters::decide(connection, id, decision).await).await
    }

    async fn count_letters(&self) -> Result<u32, StoreError> {
        self.read(async |connection| letters::count(connection).await).await
    }

    async fn lease_watch(&self, key: &WatchKey, lease: &WatchLease) -> Result<Option<LeasedWatch>, StoreError> {
        self.read(async |connection| watches::lease(connection, key, lease).await).await
    }

    async fn finish_watch(&self, key: &WatchKey, token: Uuid, next_at: Timestamp, state: &str) -> Result<bool, StoreError> {
        self.read(async |connection| watches::finish(connection, key, token, next_at, state).await).await
    }

    async fn watch_states(&self, kind: WatchKind) -> Result<Vec<WatchState>, StoreError> {
        self.read(async |connection| watches::states(connection, kind).await).await
    }

    async fn lease_page(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedPage, StoreError> {
        self.read(async |connection| sweeps::lease(connection, account, lease).await).await
    }

    async fn finish_page(&self, page: &DuePage, read: &ReadPage) -> Result<Option<News>, StoreError> {
        self.read(async |connection| sweeps::finish(connection, page, read).await).await
    }

    async fn course(&self, account: &AccountKey) -> Result<Option<Course>, StoreError> {
        self.read(async |connection| sweeps::course(connection, account).await).await
    }

    async fn told_within(&self, account: &AccountKey, window: Window) -> Result<bool, StoreError> {
        self.read(async |connection| sweeps::told_within(connection, account, window).await).await
    }

    async fn unanswered(&self, account: &AccountKey, hints: &[Hinted]) -> Result<BTreeSet<String>, StoreError> {
        self.read(async |connection| sweeps::unanswered(connection, account, hints).await).await
    }

    async fn lease_notices(
        &self,
        destination: &str,
        now: Timestamp,
        lease: Duration,
        token: Uuid,
        limit: u32,
    ) -> Result<Vec<Notice>, StoreError> {
        self.read(async |connection| outbox::lease(connection, destination, now, lease, token, limit).await).await
    }

    async fn finish_notices(&self, now: Timestamp, token: Uuid, ended: &[(NoticeKey, NoticeOutcome)]) -> Result<(), StoreError> {
        self.read(async |connection| outbox::finish(connection, now, token, ended).await).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.read(async |connection| outbox::backlog(connection).await).await
    }

    async fn position(&self) -> Result<Position, StoreError> {
        self.read(async |connection| stream::position(connection).await).await
    }

    async fn changes_after(&self, order_id: Option<&str>, after: Position, limit: u32) -> Result<Vec<Positioned>, StoreError> {
        self.read(async |connection| stream::changes_after(connection, order_id, after, limit).await).await
    }

    async fn latest_change(&self, order_id: &str) -> Result<Option<Positioned>, StoreError> {
        if cannot_be(order_id) {
            return Ok(None);
        }
        self.read(async |connection| stream::latest_change(connection, order_id).await).await
    }

    async fn timeline(&self, order_id: &str, after: Option<&Place>, limit: u32) -> Result<Option<Vec<Moment>>, StoreError> {
        if cannot_be(order_id) {
            return Ok(None);
        }
        self.read(async |connection| inspect::timeline(connection, order_id, after, limit).await).await
    }

    async fn event(&self, key: &EventKey) -> Result<Option<InboxEntry>, StoreError> {
        if [&*key.psp, &*key.account, &*key.event_id].into_iter().any(cannot_be) {
            return Ok(None);
        }
        self.read(async |connection| inspect::event(connection, key).await).await
    }

    async fn parked(
        &self,
        before: Timestamp,
        after: Option<&(Timestamp, EventKey)>,
        limit: u32,
    ) -> Result<Vec<InboxEntry>, StoreError> {
        self.read(async |connection| inspect::parked(connection, before, after, limit).await).await
    }

    async fn overdue(&self, before: Timestamp) -> Result<u32, StoreError> {
        self.read(async |connection| inspect::overdue(connection, before).await).await
    }

    async fn unwoken(&self, after: Option<&ReferenceKey>, limit: u32) -> Result<Vec<ReferenceKey>, StoreError> {
        self.read(async |connection| read::unwoken(connection, after, limit).await).await
    }

    async fn audit(&self, scope: Scope<'_>, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<AuditReport, StoreError> {
        audit::audit(&self.pool, scope, progress).await
    }

    async fn bodies(&self, selection: &Selection, after: Option<&BodyPlace>, limit: u32) -> Result<Vec<StoredBody>, StoreError> {
        self.read(async |connection| replay::bodies(connection, selection, after, limit).await).await
    }

    async fn retain(&self, now: Timestamp, keep: Duration) -> Result<Kept, StoreError> {
        self.read(async |connection| retention::retain(connection, now, keep).await).await
    }

    async fn close(&self) {
        // Whoever does not give its connection back in time loses it with the process.
        let _ = timeout(CLOSE_TIMEOUT, self.pool.close()).await;
    }
}

/// No text of `PostgreSQL` holds a NUL: nothing has such an id, and asking for it would be an error.
fn cannot_be(id: &str) -> bool {
    id.contains('\0')
}

/// On a connection of its own, which ends with it: a lock that an error leaves behind goes with the connection.
async fn migrate(options: &PgConnectOptions) -> Result<(), ConnectError> {
    let lock_timeout = format!("{}ms", MIGRATION_LOCK_TIMEOUT.as_millis());
    let options = options.clone().options([("lock_timeout", lock_timeout.as_str()), ("statement_timeout", "0")]);
    let mut connection = timeout(CONNECT_TIMEOUT, options.connect()).await.map_err(|_| timed_out())??;
    let migrator = super::migrator(&super::POSTGRES_STEPS);
    let result = timeout(MIGRATION_TIMEOUT, migrator.run_direct(None, &mut connection, false)).await.map_err(|_| timed_out())?;
    let _ = timeout(CONNECT_TIMEOUT, connection.close()).await;
    result.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {
            ConnectError::Migrating(MIGRATION_LOCK_TIMEOUT)
        }
        error => ConnectError::Migrate(error),
    })
}

/// A commit that was answered must be on the disk: a server or role configured otherwise is overruled, and what is stronger
/// (a replica's answer) stays.
async fn commit_durably(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let weak =
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')";
    connection.execute(weak).await?;
    let commit: String = connection.fetch_one("SELECT current_setting('synchronous_commit')").await?.try_get(0)?;
    if ["on", "remote_write", "remote_apply"].contains(&commit.as_str()) {
        Ok(())
    } else {
        Err(sqlx::Error::Configuration(format!("synchronous_commit is {commit}").into()))
    }
}
