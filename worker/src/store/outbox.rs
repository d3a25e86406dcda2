//! What is still to be told about orders.
//!
//! A row of the outbox is left alone until its `next_attempt_at`, whatever the reason: a failed attempt, a lease, or a lower
//! version of its order before it. So the rows that are due are the first of one index, and a claim reads no others,
//! however many wait. A claim that meets a later version puts it off to when the first one is due again; the end of the
//! first one fetches the next.

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

impl NoticeOutcome {
    /// The outcome as it is stored and counted: a closed set.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Again { .. } => "failed",
            Self::GivenUp { .. } => "given_up",
        }
    }

    /// Why it failed.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Told => None,
            Self::Again { error, .. } | Self::GivenUp { error } => Some(error),
        }
    }
}

/// What a destination is still to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    pub destination: String,
    pub waiting: i64,
    /// When the oldest of them happened.
    pub oldest_at: Timestamp,
}
