//! Changes in the order in which they were committed.

use paybell_shared::clock::Timestamp;
use uuid::Uuid;

use super::rows::{self, OrderColumns};
use super::{Change, StoreError};

/// A place in the stream of changes. On PostgreSQL a transaction and a place in it, because identities become visible out of
/// order; on SQLite, which has one writer, `xid` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub xid: u64,
    pub place: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positioned {
    pub position: Position,
    pub change: Change,
}

/// A transition's columns, as they were read.
pub(super) struct ChangeColumns {
    pub id: Uuid,
    pub from_status: Option<String>,
    pub order_id: String,
    pub view: String,
    pub version: i64,
    pub review_since: Option<Timestamp>,
    pub at: Timestamp,
}

impl ChangeColumns {
    pub fn read(self) -> Result<Change, StoreError> {
        let Self { id, from_status, order_id, view, version, review_since, at } = self;
        let from = from_status.map(|status| rows::status(&status, &order_id)).transpose()?;
        let order = OrderColumns { id: order_id, view, version, review_since, updated_at: at }.read()?;
        Ok(Change { id, from, order })
    }
}
