//! Dropping bodies that are old enough, and making room for new ones.

use std::time::Duration;

use paybell_shared::clock::Timestamp;

use crate::store::{Kept, StoreError};

pub(super) async fn retain(_: &sqlx::PgPool, _: Timestamp, _: Duration) -> Result<Kept, StoreError> {
    todo!()
}
