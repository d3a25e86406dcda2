//! Leasing what is still to be told, and ending attempts.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use uuid::Uuid;

use super::classify;
use super::read::timestamp;
use crate::store::rows::{self, ChangeColumns, OrderColumns};
use crate::store::{Backlog, Notice, NoticeKey, NoticeOutcome, StoreError};

/// Looks at the index for one claim. Each that finds only later versions of orders puts them off, so the next one looks at
/// others.
const ROUNDS_MAX: u32 = 16;

const DUE: &str = "\
    SELECT o.order_id, o.version, h.version AS head, h.next_attempt_at AS head_at
    FROM outbox o INDEXED BY outbox_due
    JOIN outbox h ON h.destination = o.destination AND h.order_id = o.order_id AND h.version = (
        SELECT min(version) FROM outbox WHERE destination = o.destination AND order_id = o.order_id
    )
    WHERE o.destination = ?1 AND o.next_attempt_at <= ?2
    ORDER BY o.next_attempt_at
    LIMIT ?3";

const LEASED: &str = "\
    SELECT o.order_id, o.version, o.attempts, o.at, t.id, t.from_status, t.view, t.review_since
    FROM outbox o LEFT JOIN transitions t ON t.order_id = o.order_id AND t.version = o.version
    WHERE o.destination = ?1 AND o.order_id = ?2 AND o.version = ?3";

pub(super) async fn lease(
    connection: &mut SqliteConnection,
    destination: &str,
    now: Timestamp,
    lease: Duration,
    token: Uuid,
    limit: u32,
) -> Result<Vec<Notice>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let mut leased = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let due = sqlx::query_as::<_, (String, i64, i64, i64)>(DUE)
            .bind(destination)
            .bind(now.millis())
            .bind(limit)
            .fetch_all(&mut *transaction)
            .await
            .map_err(classify)?;
        for (order_id, version, head, head_at) in &due {
            let is_head = version == head;
            let until = if is_head || *head_at <= now.millis() { now.plus(lease).millis() } else { *head_at };
            sqlx::query(
                "UPDATE outbox SET next_attempt_at = ?4, lease_token = ?5
                 WHERE destination = ?1 AND order_id = ?2 AND version = ?3",
            )
            .bind(destination)
            .bind(order_id)
            .bind(version)
            .bind(until)
            .bind(is_head.then_some(token))
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
            if is_head {
                let row = sqlx::query(LEASED).bind(destination).bind(order_id).bind(version);
                leased.push(row.fetch_one(&mut *transaction).await.map_err(classify)?);
            }
        }
        if !leased.is_empty() || due.len() < limit as usize {
            break;
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(leased.iter().filter_map(|row| rows::readable(notice(row, destination, token), destination)).collect())
}

pub(super) async fn finish(
    connection: &mut SqliteConnection,
    now: Timestamp,
    token: Uuid,
    ended: &[(NoticeKey, NoticeOutcome)],
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    for (key, outcome) in ended {
        match outcome {
            NoticeOutcome::Again { at, error } => again(&mut transaction, token, key, *at, error).await?,
            NoticeOutcome::Told | NoticeOutcome::GivenUp { .. } => end(&mut transaction, now, token, key, outcome).await?,
        }
    }
    transaction.commit().await.map_err(classify)
}

async fn again(
    connection: &mut SqliteConnection,
    token: Uuid,
    key: &NoticeKey,
    at: Timestamp,
    error: &str,
) -> Result<(), StoreError> {
    let update = sqlx::query(
        "UPDATE outbox SET next_attempt_at = ?5, attempts = attempts + 1, last_error = ?6, lease_token = NULL
         WHERE destination = ?1 AND order_id = ?2 AND version = ?3 AND lease_token = ?4",
    );
    let update = update.bind(&*key.destination).bind(&*key.order_id).bind(key.version).bind(token);
    update.bind(at.millis()).bind(error).execute(connection).await.map_err(classify).map(drop)
}

async fn end(
    connection: &mut SqliteConnection,
    now: Timestamp,
    token: Uuid,
    key: &NoticeKey,
    outcome: &NoticeOutcome,
) -> Result<(), StoreError> {
    let attempts: Option<i64> = sqlx::query_scalar(
        "DELETE FROM outbox WHERE destination = ?1 AND order_id = ?2 AND version = ?3 AND lease_token = ?4 RETURNING attempts",
    )
    .bind(&*key.destination)
    .bind(&*key.order_id)
    .bind(key.version)
    .bind(token)
    .fetch_optional(&mut *connection)
    .await
    .map_err(classify)?;
    let Some(attempts) = attempts else { return Ok(()) };
    sqlx::query(
        "INSERT INTO notices (order_id, version, destination, outcome, at, attempts, last_error)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
    )
    .bind(&*key.order_id)
    .bind(key.version)
    .bind(&*key.destination)
    .bind(outcome.as_str())
    .bind(now.millis())
    .bind(attempts + 1)
    .bind(outcome.error())
    .execute(&mut *connection)
    .await
    .map_err(classify)?;
    sqlx::query(
        "UPDATE outbox SET next_attempt_at = min(next_attempt_at, ?4)
         WHERE destination = ?1 AND order_id = ?2
             AND version = (SELECT min(version) FROM outbox WHERE destination = ?1 AND order_id = ?2 AND version > ?3)",
    )
    .bind(&*key.destination)
    .bind(&*key.order_id)
    .bind(key.version)
    .bind(now.millis())
    .execute(connection)
    .await
    .map_err(classify)?;
    Ok(())
}

pub(super) async fn backlog(connection: &mut SqliteConnection) -> Result<Vec<Backlog>, StoreError> {
    let rows = sqlx::query("SELECT destination, count(*) AS waiting, min(at) AS at FROM outbox GROUP BY destination ORDER BY 1");
    let rows = rows.fetch_all(connection).await.map_err(classify)?;
    let backlog = |row: &SqliteRow| {
        let (destination, waiting) = (row.try_get("destination")?, row.try_get("waiting")?);
        Ok(Backlog { destination, waiting, oldest_at: timestamp(row, "at")? })
    };
    rows.iter().map(backlog).collect::<Result<_, _>>().map_err(classify)
}

fn notice(row: &SqliteRow, destination: &str, lease_token: Uuid) -> Result<Notice, StoreError> {
    let columns = |row: &SqliteRow| {
        Ok(ChangeColumns {
            id: row.try_get("id")?,
            from: row.try_get("from_status")?,
            order: OrderColumns {
                id: row.try_get("order_id")?,
                view: row.try_get("view")?,
                version: row.try_get("version")?,
                review_since: row.try_get::<Option<i64>, _>("review_since")?.map(Timestamp::from_millis),
                updated_at: timestamp(row, "at")?,
            },
        })
    };
    let attempts: i64 = row.try_get("attempts").map_err(classify)?;
    Ok(Notice {
        destination: destination.into(),
        change: columns(row).map_err(classify)?.read()?,
        attempts: u32::try_from(attempts).unwrap_or(0),
        lease_token,
    })
}
