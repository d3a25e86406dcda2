//! What is still to be told about orders.

use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use uuid::Uuid;

use super::Change;

/// A change that a destination is to be told, under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub destination: Arc<str>,
    pub change: Change,
    /// Attempts before this one.
    pub attempts: u32,
    pub lease_token: Uuid,
}

/// Names a [`Notice`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NoticeKey {
    pub destination: Arc<str>,
    pub order_id: String,
    pub version: i64,
}

/// How an attempt to tell ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoticeOutcome {
    Told,
    /// It failed; the next attempt is due then. Later versions of the order wait behind it.
    Again {
        at: Timestamp,
        error: String,
    },
    /// It failed for the last time; the next version goes on.
    GivenUp {
        error: String,
    },
}

/// What a destination is still to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    pub destination: String,
    pub waiting: i64,
    /// When the oldest of them happened.
    pub oldest_at: Timestamp,
}
