//! What is kept of an order or an event.

use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use sqlx::PgConnection;

use crate::store::{ParkedRow, StoreError, StoredEvent, Timeline};

pub(super) async fn timeline(_: &mut PgConnection, _: &str) -> Result<Option<Timeline>, StoreError> {
    todo!()
}

pub(super) async fn event(_: &mut PgConnection, _: &EventKey) -> Result<Option<StoredEvent>, StoreError> {
    todo!()
}

pub(super) async fn parked(
    _: &mut PgConnection,
    _: Timestamp,
    _: Option<&(Timestamp, EventKey)>,
    _: u32,
) -> Result<Vec<ParkedRow>, StoreError> {
    todo!()
}
