//! Changes in the order in which they were committed.

use sqlx::PgConnection;

use crate::store::{Position, Positioned, StoreError};

pub(super) async fn position(_: &mut PgConnection) -> Result<Position, StoreError> {
    todo!()
}

pub(super) async fn changes_after(
    _: &mut PgConnection,
    _: Option<&str>,
    _: Position,
    _: u32,
) -> Result<Vec<Positioned>, StoreError> {
    todo!()
}
