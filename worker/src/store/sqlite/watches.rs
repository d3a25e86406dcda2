//! Leasing what one worker of many looks after, and keeping what it found.

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::classify;
use crate::order::AccountKey;
use crate::store::{LeasedWatch, StoreError, WatchKey, WatchKind, WatchLease, WatchState};

/// A row that is not due, or is held, is left as it is, and nothing is returned.
const LEASE: &str = "\
    INSERT INTO watches (kind, psp, account, lease_token, lease_until) VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (kind, psp, account) DO UPDATE SET lease_token = excluded.lease_token, lease_until = excluded.lease_until
    WHERE (watches.lease_until IS NULL OR watches.lease_until <= ?6)
      AND (NOT ?7 OR watches.next_at IS NULL OR watches.next_at <= ?6)
    RETURNING state";

pub(super) async fn lease(
    connection: &mut SqliteConnection,
    key: &WatchKey,
    lease: &WatchLease,
) -> Result<Option<LeasedWatch>, StoreError> {
    let row = sqlx::query(LEASE)
        .bind(key.kind.as_str())
        .bind(&*key.account.psp)
        .bind(&*key.account.account)
        .bind(lease.token)
        .bind(lease.until.millis())
        .bind(lease.now.millis())
        .bind(lease.only_if_due)
        .fetch_optional(connection)
        .await
        .map_err(classify)?;
    row.map(|row| Ok(LeasedWatch { state: row.try_get("state").map_err(classify)? })).transpose()
}

pub(super) async fn finish(
    connection: &mut SqliteConnection,
    key: &WatchKey,
    token: Uuid,
    next_at: Timestamp,
    state: &str,
) -> Result<bool, StoreError> {
    let finished = sqlx::query(
        "UPDATE watches SET lease_token = NULL, lease_until = NULL, next_at = ?5, state = ?6
         WHERE kind = ?1 AND psp = ?2 AND account = ?3 AND lease_token = ?4",
    )
    .bind(key.kind.as_str())
    .bind(&*key.account.psp)
    .bind(&*key.account.account)
    .bind(token)
    .bind(next_at.millis())
    .bind(state)
    .execute(connection)
    .await
    .map_err(classify)?;
    Ok(finished.rows_affected() == 1)
}

pub(super) async fn states(connection: &mut SqliteConnection, kind: WatchKind) -> Result<Vec<WatchState>, StoreError> {
    let rows = sqlx::query("SELECT psp, account, state FROM watches WHERE kind = ?1 AND state IS NOT NULL ORDER BY psp, account");
    let rows = rows.bind(kind.as_str()).fetch_all(connection).await.map_err(classify)?;
    let state = |row: &SqliteRow| {
        let text = |column| row.try_get::<String, _>(column).map_err(classify);
        let account = AccountKey { psp: text("psp")?.into(), account: text("account")?.into() };
        Ok(WatchState { key: WatchKey { kind, account }, state: text("state")? })
    };
    rows.iter().map(state).collect()
}
