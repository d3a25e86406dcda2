//! One read transaction for the audit, and its rows.

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection, TypeInfo as _, ValueRef as _};

use super::classify;
use crate::store::audit::{Cell, Frozen, Row, Scope, run};
use crate::store::rows::inconsistent;
use crate::store::{AuditReport, StoreError};

pub(in crate::store) async fn audit(
    connection: &mut SqliteConnection,
    scope: Scope<'_>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<AuditReport, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let report = run(Frozen::Sqlite(&mut transaction), scope, progress).await?;
    transaction.rollback().await.map_err(classify)?;
    Ok(report)
}

pub(in crate::store) async fn rows(
    connection: &mut SqliteConnection,
    sql: String,
    see: &mut (dyn FnMut(&Row) + Send),
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(classify)? {
        let cells = (0..row.len()).map(|place| {
            let value = row.try_get_raw(place).map_err(classify)?;
            if value.is_null() {
                return Ok(Cell::Null);
            }
            let kind = value.type_info();
            match kind.name() {
                "TEXT" => row.try_get_unchecked(place).map(Cell::Text).map_err(classify),
                "INTEGER" => row.try_get_unchecked(place).map(Cell::Integer).map_err(classify),
                "BLOB" => row.try_get_unchecked(place).map(Cell::Bytes).map_err(classify),
                other => Err(inconsistent("the audit", "a column", place, format!("it is of type {other}"))),
            }
        });
        see(&Row(cells.collect::<Result<_, StoreError>>()?));
    }
    Ok(())
}
