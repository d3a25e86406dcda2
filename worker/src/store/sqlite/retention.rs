//! Dropping bodies that are old enough, and making room for new ones.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteConnection;

use crate::store::{Kept, StoreError};

pub(super) async fn retain(_: &mut SqliteConnection, _: Timestamp, _: Duration) -> Result<Kept, StoreError> {
    todo!()
}
