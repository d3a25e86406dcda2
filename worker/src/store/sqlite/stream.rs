//! Changes in the order in which they were committed.

use sqlx::sqlite::SqliteConnection;

use crate::store::{Position, Positioned, StoreError};

pub(super) async fn position(_: &mut SqliteConnection) -> Result<Position, StoreError> {
    todo!()
}

pub(super) async fn changes_after(
    _: &mut SqliteConnection,
    _: Option<&str>,
    _: Position,
    _: u32,
) -> Result<Vec<Positioned>, StoreError> {
    todo!()
}
