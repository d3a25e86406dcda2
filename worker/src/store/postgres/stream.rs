//! Changes in the order in which they were committed.
//!
//! A reader that must miss nothing reads up to the oldest transaction that is still open: whatever becomes visible later has
//! its number or a higher one. A transaction of any database of the server counts, if it has written: one that is left open
//! holds the stream up, and loses nothing.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::errors::classify;
use super::read::timestamp;
use crate::store::rows::inconsistent;
use crate::store::stream::ChangeColumns;
use crate::store::{Position, Positioned, StoreError};

const HORIZON: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";

const OF_ALL: &str = "\
    SELECT xid::text AS xid_text, position, id, order_id, version, from_status, at, view::text AS view, review_since
    FROM transitions
    WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND (xid, position) > ($1::text::xid8, $2)
    ORDER BY xid, position
    LIMIT $3";

/// By version, which for one order is the same order, and leads to the key of the table.
const OF_ONE: &str = "\
    SELECT xid::text AS xid_text, position, id, order_id, version, from_status, at, view::text AS view, review_since
    FROM transitions
    WHERE order_id = $4 AND xid < pg_snapshot_xmin(pg_current_snapshot()) AND (xid, position) > ($1::text::xid8, $2)
    ORDER BY version
    LIMIT $3";

const LATEST: &str = "\
    SELECT xid::text AS xid_text, position, id, order_id, version, from_status, at, view::text AS view, review_since
    FROM transitions WHERE order_id = $1 ORDER BY version DESC LIMIT 1";

pub(super) async fn position(connection: &mut PgConnection) -> Result<Position, StoreError> {
    let horizon: String = sqlx::query_scalar(HORIZON).fetch_one(connection).await.map_err(classify)?;
    // Identities begin at 1: before all that a transaction from the horizon on writes.
    Ok(Position { xid: transaction(&horizon)?, place: 0 })
}

pub(super) async fn changes_after(
    connection: &mut PgConnection,
    order_id: Option<&str>,
    after: Position,
    limit: u32,
) -> Result<Vec<Positioned>, StoreError> {
    let query = sqlx::query(if order_id.is_some() { OF_ONE } else { OF_ALL });
    let mut query = query.bind(after.xid.to_string()).bind(after.place).bind(i64::from(limit));
    if let Some(order_id) = order_id {
        query = query.bind(order_id);
    }
    query.fetch_all(connection).await.map_err(classify)?.iter().map(positioned).collect()
}

pub(super) async fn latest_change(connection: &mut PgConnection, order_id: &str) -> Result<Option<Positioned>, StoreError> {
    let row = sqlx::query(LATEST).bind(order_id).fetch_optional(connection).await.map_err(classify)?;
    row.as_ref().map(positioned).transpose()
}

fn positioned(row: &PgRow) -> Result<Positioned, StoreError> {
    let xid: String = row.try_get("xid_text").map_err(classify)?;
    let place = row.try_get("position").map_err(classify)?;
    Ok(Positioned { position: Position { xid: transaction(&xid)?, place }, change: columns(row).map_err(classify)?.read()? })
}

/// The columns of a transition, `view` as text.
pub(super) fn columns(row: &PgRow) -> Result<ChangeColumns, sqlx::Error> {
    let review_since: Option<time::OffsetDateTime> = row.try_get("review_since")?;
    Ok(ChangeColumns {
        id: row.try_get("id")?,
        from_status: row.try_get("from_status")?,
        order_id: row.try_get("order_id")?,
        view: row.try_get("view")?,
        version: row.try_get("version")?,
        review_since: review_since.map(Into::into),
        at: timestamp(row, "at")?,
    })
}

fn transaction(text: &str) -> Result<u64, StoreError> {
    text.parse().map_err(|_| inconsistent("transitions", "xid", text, "it is no number"))
}
