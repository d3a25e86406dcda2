//! Leasing what is still to be told, and ending attempts.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use crate::store::{Backlog, Notice, NoticeKey, NoticeOutcome, StoreError};

pub(super) async fn lease(
    _: &mut SqliteConnection,
    _: &str,
    _: Timestamp,
    _: Duration,
    _: Uuid,
    _: u32,
) -> Result<Vec<Notice>, StoreError> {
    todo!()
}

pub(super) async fn finish(
    _: &mut SqliteConnection,
    _: Timestamp,
    _: Uuid,
    _: &[(NoticeKey, NoticeOutcome)],
) -> Result<(), StoreError> {
    todo!()
}

pub(super) async fn backlog(_: &mut SqliteConnection) -> Result<Vec<Backlog>, StoreError> {
    todo!()
}
