//! Changes in the order in which they were committed. There is one writer, so positions are in that order.

use paybell_shared::clock::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::classify;
use super::read::timestamp;
use crate::store::stream::ChangeColumns;
use crate::store::{Position, Positioned, StoreError};

pub(super) async fn position(connection: &mut SqliteConnection) -> Result<Position, StoreError> {
    let last = sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM transitions");
    Ok(Position { xid: 0, place: last.fetch_one(connection).await.map_err(classify)? })
}

pub(super) async fn changes_after(
    connection: &mut SqliteConnection,
    order_id: Option<&str>,
    after: Position,
    limit: u32,
) -> Result<Vec<Positioned>, StoreError> {
    let rows = match order_id {
        None => sqlx::query(
            "SELECT position, id, order_id, version, from_status, at, view, review_since FROM transitions
             WHERE position > ?1 ORDER BY position LIMIT ?2",
        )
        .bind(after.place)
        .bind(limit),
        // By version, which for one order is the same order, and leads to the order's own index.
        Some(order_id) => sqlx::query(
            "SELECT position, id, order_id, version, from_status, at, view, review_since FROM transitions
             WHERE order_id = ?3 AND +position > ?1 ORDER BY version LIMIT ?2",
        )
        .bind(after.place)
        .bind(limit)
        .bind(order_id),
    };
    rows.fetch_all(connection).await.map_err(classify)?.iter().map(positioned).collect()
}

pub(super) async fn latest_change(connection: &mut SqliteConnection, order_id: &str) -> Result<Option<Positioned>, StoreError> {
    let row = sqlx::query(
        "SELECT position, id, order_id, version, from_status, at, view, review_since FROM transitions
         WHERE order_id = ?1 ORDER BY version DESC LIMIT 1",
    );
    let row = row.bind(order_id).fetch_optional(connection).await.map_err(classify)?;
    row.as_ref().map(positioned).transpose()
}

fn positioned(row: &SqliteRow) -> Result<Positioned, StoreError> {
    let place = row.try_get("position").map_err(classify)?;
    Ok(Positioned { position: Position { xid: 0, place }, change: columns(row).map_err(classify)?.read()? })
}

/// The columns of a transition.
pub(super) fn columns(row: &SqliteRow) -> Result<ChangeColumns, sqlx::Error> {
    Ok(ChangeColumns {
        id: row.try_get("id")?,
        from_status: row.try_get("from_status")?,
        order_id: row.try_get("order_id")?,
        view: row.try_get("view")?,
        version: row.try_get("version")?,
        review_since: row.try_get::<Option<i64>, _>("review_since")?.map(Timestamp::from_millis),
        at: timestamp(row, "at")?,
    })
}
