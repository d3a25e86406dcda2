//! What one worker of many looks after now and then: leased in the database, so that it is done once.

use paybell_shared::clock::Timestamp;
use uuid::Uuid;

use crate::order::AccountKey;

/// Something of an account that is looked after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchKey {
    pub kind: WatchKind,
    pub account: AccountKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchKind {
    /// Whether what is registered at the PSP leads to us: [`crate::endpoints`].
    Endpoint,
    /// Whether a webhook comes through: [`crate::canary`].
    Canary,
}

impl WatchKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Canary => "canary",
        }
    }
}

/// The terms of a lease on a watch.
#[derive(Clone, Copy, Debug)]
pub struct WatchLease {
    pub now: Timestamp,
    /// It ends by itself then.
    pub until: Timestamp,
    pub token: Uuid,
    /// Only if it is due; else also before, because somebody asks.
    pub only_if_due: bool,
}

/// A watch under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedWatch {
    /// What was found last; `None`: it was never looked after.
    pub state: Option<String>,
}

/// What was found last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchState {
    pub key: WatchKey,
    pub state: String,
}
