//! Proving invariant I11.

use crate::store::{AuditReport, StoreError};
use sqlx::sqlite::SqliteConnection;

pub(super) async fn audit(_: &mut SqliteConnection, _: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<AuditReport, StoreError> {
    todo!()
}
