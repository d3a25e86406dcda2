//! Reading kept bodies.

use sqlx::PgConnection;

use crate::store::{BodyPlace, Selection, StoreError, StoredBody};

pub(super) async fn bodies(
    _: &mut PgConnection,
    _: &Selection,
    _: Option<&BodyPlace>,
    _: u32,
) -> Result<Vec<StoredBody>, StoreError> {
    todo!()
}
