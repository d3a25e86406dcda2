//! Reading kept bodies.

use sqlx::sqlite::SqliteConnection;

use crate::store::{BodyPlace, Selection, StoreError, StoredBody};

pub(super) async fn bodies(
    _: &mut SqliteConnection,
    _: &Selection,
    _: Option<&BodyPlace>,
    _: u32,
) -> Result<Vec<StoredBody>, StoreError> {
    todo!()
}
