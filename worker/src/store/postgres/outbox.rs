//! Leasing what is still to be told, and ending attempts.
//!
//! Who puts a later version off holds the lock of the first one, and who ends the first one takes that lock before it reads
//! what comes next: so no version is put off behind one that is gone. Locks of others are skipped when claiming, and what an
//! end locks is of its own lease, so nobody waits in a circle.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::errors::classify;
use super::read::timestamp;
use crate::store::rows::{self, ChangeColumns, OrderColumns};
use crate::store::{Backlog, Notice, NoticeKey, NoticeOutcome, StoreError};

/// Looks at the index for one claim. Each that finds only later versions of orders puts them off, so the next one looks at
/// others.
const ROUNDS_MAX: u32 = 16;

/// Rows that another worker claims or ends at this moment are passed over.
const LOCK_DUE: &str = "\
    SELECT order_id, version FROM outbox
    WHERE destination = $1 AND next_attempt_at <= $2
    ORDER BY next_attempt_at
    LIMIT $3
    FOR UPDATE SKIP LOCKED";

/// By a statement that starts after the rows are locked. A later version stays due if its first one cannot be locked:
/// whoever holds that is about to end it.
const LEASE: &str = "\
    WITH due AS MATERIALIZED (
        SELECT w.order_id, w.version, head.version AS head
        FROM UNNEST($2::text[], $3::bigint[]) AS w(order_id, version)
        CROSS JOIN LATERAL (
            SELECT version FROM outbox WHERE destination = $1 AND order_id = w.order_id ORDER BY version LIMIT 1
        ) head
    ), later AS MATERIALIZED (
        SELECT due.order_id, due.version, first.next_attempt_at AS first_at
        FROM due JOIN outbox first ON first.destination = $1 AND first.order_id = due.order_id AND first.version = due.head
        WHERE due.version > due.head
        FOR UPDATE OF first SKIP LOCKED
    ), put_off AS (
        UPDATE outbox o SET next_attempt_at = CASE WHEN first_at <= $4 THEN $5 ELSE first_at END
        FROM later
        WHERE o.destination = $1 AND o.order_id = later.order_id AND o.version = later.version
    ), leased AS (
        UPDATE outbox o SET next_attempt_at = $5, lease_token = $6
        FROM due
        WHERE due.version = due.head
            AND o.destination = $1 AND o.order_id = due.order_id AND o.version = due.version
        RETURNING o.order_id, o.version, o.at, o.attempts
    )
    SELECT leased.order_id, leased.version, leased.attempts, leased.at, t.id, t.from_status, t.view::text AS view, t.review_since
    FROM leased
    LEFT JOIN transitions t ON t.order_id = leased.order_id AND t.version = leased.version
    ORDER BY leased.at, leased.order_id";

const LOCK_LEASED: &str = "\
    SELECT o.version
    FROM UNNEST($1::text[], $2::text[], $3::bigint[]) AS w(destination, order_id, version)
    JOIN outbox o ON o.destination = w.destination AND o.order_id = w.order_id AND o.version = w.version
    WHERE o.lease_token = $4
    FOR UPDATE OF o";

/// By a statement that starts after the rows are locked. A null time: told or given up.
const FINISH: &str = "\
    WITH ended AS MATERIALIZED (
        SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[])
            AS w(destination, order_id, version, outcome, error, again_at)
    ), again AS (
        UPDATE outbox o SET
            next_attempt_at = e.again_at,
            attempts = o.attempts + 1,
            last_error = e.error,
            lease_token = NULL
        FROM ended e
        WHERE e.again_at IS NOT NULL
            AND o.destination = e.destination AND o.order_id = e.order_id AND o.version = e.version AND o.lease_token = $7
    ), gone AS (
        DELETE FROM outbox o USING ended e
        WHERE e.again_at IS NULL
            AND o.destination = e.destination AND o.order_id = e.order_id AND o.version = e.version AND o.lease_token = $7
        RETURNING o.destination, o.order_id, o.version, o.attempts, e.outcome, e.error
    ), next AS (
        UPDATE outbox o SET next_attempt_at = least(o.next_attempt_at, $8)
        FROM gone
        CROSS JOIN LATERAL (
            SELECT version FROM outbox
            WHERE destination = gone.destination AND order_id = gone.order_id AND version > gone.version
            ORDER BY version LIMIT 1
        ) following
        WHERE o.destination = gone.destination AND o.order_id = gone.order_id AND o.version = following.version
    )
    INSERT INTO notices (order_id, version, destination, outcome, at, attempts, last_error)
    SELECT order_id, version, destination, outcome, $8, attempts + 1, error FROM gone
    ON CONFLICT DO NOTHING";

pub(super) async fn lease(
    connection: &mut PgConnection,
    destination: &str,
    now: Timestamp,
    lease: Duration,
    token: Uuid,
    limit: u32,
) -> Result<Vec<Notice>, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let mut transaction = connection.begin().await.map_err(classify)?;
        let due = sqlx::query_as::<_, (String, i64)>(LOCK_DUE)
            .bind(destination)
            .bind(OffsetDateTime::from(now))
            .bind(i64::from(limit))
            .fetch_all(&mut *transaction)
            .await
            .map_err(classify)?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let leased = sqlx::query(LEASE)
            .bind(destination)
            .bind(due.iter().map(|(order_id, _)| &**order_id).collect::<Vec<_>>())
            .bind(due.iter().map(|(_, version)| *version).collect::<Vec<_>>())
            .bind(OffsetDateTime::from(now))
            .bind(OffsetDateTime::from(now.plus(lease)))
            .bind(token)
            .fetch_all(&mut *transaction)
            .await
            .map_err(classify)?;
        transaction.commit().await.map_err(classify)?;
        if !leased.is_empty() || due.len() < limit as usize {
            return Ok(leased.iter().filter_map(|row| rows::readable(notice(row, destination, token), destination)).collect());
        }
    }
    Ok(Vec::new())
}

pub(super) async fn finish(
    connection: &mut PgConnection,
    now: Timestamp,
    token: Uuid,
    ended: &[(NoticeKey, NoticeOutcome)],
) -> Result<(), StoreError> {
    let destinations: Vec<&str> = ended.iter().map(|(key, _)| &*key.destination).collect();
    let order_ids: Vec<&str> = ended.iter().map(|(key, _)| &*key.order_id).collect();
    let versions: Vec<i64> = ended.iter().map(|(key, _)| key.version).collect();
    let again_at = |outcome: &NoticeOutcome| match outcome {
        NoticeOutcome::Again { at, .. } => Some(OffsetDateTime::from(*at)),
        NoticeOutcome::Told | NoticeOutcome::GivenUp { .. } => None,
    };
    let mut transaction = connection.begin().await.map_err(classify)?;
    sqlx::query(LOCK_LEASED)
        .bind(&destinations)
        .bind(&order_ids)
        .bind(&versions)
        .bind(token)
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    sqlx::query(FINISH)
        .bind(&destinations)
        .bind(&order_ids)
        .bind(&versions)
        .bind(ended.iter().map(|(_, outcome)| outcome.as_str()).collect::<Vec<_>>())
        .bind(ended.iter().map(|(_, outcome)| outcome.error()).collect::<Vec<_>>())
        .bind(ended.iter().map(|(_, outcome)| again_at(outcome)).collect::<Vec<_>>())
        .bind(token)
        .bind(OffsetDateTime::from(now))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    transaction.commit().await.map_err(classify)
}

pub(super) async fn backlog(connection: &mut PgConnection) -> Result<Vec<Backlog>, StoreError> {
    let rows = sqlx::query("SELECT destination, count(*) AS waiting, min(at) AS at FROM outbox GROUP BY destination ORDER BY 1");
    let rows = rows.fetch_all(connection).await.map_err(classify)?;
    let backlog = |row: &PgRow| {
        let (destination, waiting) = (row.try_get("destination")?, row.try_get("waiting")?);
        Ok(Backlog { destination, waiting, oldest_at: timestamp(row, "at")? })
    };
    rows.iter().map(backlog).collect::<Result<_, _>>().map_err(classify)
}

fn notice(row: &PgRow, destination: &str, lease_token: Uuid) -> Result<Notice, StoreError> {
    let columns = |row: &PgRow| {
        Ok(ChangeColumns {
            id: row.try_get("id")?,
            from: row.try_get("from_status")?,
            order: OrderColumns {
                id: row.try_get("order_id")?,
                view: row.try_get("view")?,
                version: row.try_get("version")?,
                review_since: row.try_get::<Option<OffsetDateTime>, _>("review_since")?.map(Timestamp::from),
                updated_at: timestamp(row, "at")?,
            },
        })
    };
    let attempts: i32 = row.try_get("attempts").map_err(classify)?;
    Ok(Notice {
        destination: destination.into(),
        change: columns(row).map_err(classify)?.read()?,
        attempts: u32::try_from(attempts).unwrap_or(0),
        lease_token,
    })
}
