//! One snapshot for the audit, and its rows.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Column as _, Connection as _, PgConnection, PgPool, Row as _, TypeInfo as _};
use tokio::time::timeout;

use super::errors::{classify, timed_out};
use crate::store::audit::{Cell, Frozen, Row, Scope, run};
use crate::store::rows::inconsistent;
use crate::store::{AuditReport, StoreError};

/// From a question to its first row, and between two rows: sorting the rows of a hundred million events takes minutes.
const ROW_TIMEOUT: Duration = Duration::from_hours(1);
/// What one of the few sorts and joins may hold in memory before it goes to the disk.
const WORK_MEMORY: &str = "64MB";
/// `BEGIN`, `SET`, and the end.
const SETTING_TIMEOUT: Duration = Duration::from_secs(10);

pub(in crate::store) async fn audit(
    pool: &PgPool,
    scope: Scope<'_>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<AuditReport, StoreError> {
    // Not back to the pool: it takes its settings, and what it may still have to say, with it.
    let mut connection = pool.acquire().await.map_err(classify)?.detach();
    let begun = timeout(SETTING_TIMEOUT, begin(&mut connection)).await;
    begun.map_err(|_| StoreError::Unavailable(timed_out()))?.map_err(classify)?;
    let report = run(Frozen::Postgres(&mut connection), scope, progress).await?;
    // Nothing was written: how the transaction ends does not matter.
    let _ = timeout(SETTING_TIMEOUT, connection.close()).await;
    Ok(report)
}

/// Whole tables are read and joined here, which the store's other statements never do. The walks read everything that they
/// ask for: a plan that is quick to its first row would be the wrong one.
async fn begin(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let limit = ROW_TIMEOUT.as_millis();
    let settings = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
         SET LOCAL statement_timeout = {limit};
         SET LOCAL idle_in_transaction_session_timeout = {limit};
         SET LOCAL work_mem = '{WORK_MEMORY}';
         SET LOCAL enable_seqscan = on;
         SET LOCAL enable_hashjoin = on;
         SET LOCAL enable_mergejoin = on;"
    );
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(connection).await?;
    Ok(())
}

pub(in crate::store) async fn rows(
    connection: &mut PgConnection,
    sql: String,
    see: &mut (dyn FnMut(&Row) + Send),
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch(connection);
    loop {
        let next = timeout(ROW_TIMEOUT, rows.try_next()).await.map_err(|_| StoreError::Unavailable(timed_out()))?;
        let Some(row) = next.map_err(classify)? else { return Ok(()) };
        let cells = row.columns().iter().enumerate().map(|(place, column)| {
            let cell = match column.type_info().name() {
                "TEXT" => row.try_get::<Option<String>, _>(place).map(|cell| cell.map(Cell::Text)),
                "INT8" => row.try_get::<Option<i64>, _>(place).map(|cell| cell.map(Cell::Integer)),
                "INT4" => row.try_get::<Option<i32>, _>(place).map(|cell| cell.map(|cell| Cell::Integer(cell.into()))),
                "BYTEA" => row.try_get::<Option<Vec<u8>>, _>(place).map(|cell| cell.map(Cell::Bytes)),
                other => return Err(inconsistent("the audit", "a column", column.name(), format!("it is of type {other}"))),
            };
            Ok(cell.map_err(classify)?.unwrap_or(Cell::Null))
        });
        see(&Row(cells.collect::<Result<_, StoreError>>()?));
    }
}
