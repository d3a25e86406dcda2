//! Dropping bodies that are old enough: row by row, a portion at a time, because the writer is one for all.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::classify;
use crate::store::{Kept, StoreError};

/// Rows of one portion: of usual bodies (3 kB) a few milliseconds, for which webhooks wait.
const PORTION: u32 = 500;

pub(super) async fn retain(connection: &mut SqliteConnection, now: Timestamp, keep: Duration) -> Result<Kept, StoreError> {
    let deleted = sqlx::query(
        "DELETE FROM bodies WHERE id IN (SELECT id FROM bodies WHERE received_at < ?1 ORDER BY received_at, id LIMIT ?2)",
    )
    .bind(now.minus(keep).millis())
    .bind(PORTION)
    .execute(connection)
    .await
    .map_err(classify)?
    .rows_affected();
    Ok(Kept { bodies_deleted: deleted, more: deleted == u64::from(PORTION), ..Kept::default() })
}
