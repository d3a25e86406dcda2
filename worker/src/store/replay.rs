//! Translating kept bytes again.

use bytes::Bytes;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use uuid::Uuid;

use crate::inbox::{Arrival, Body, Outcome};
use crate::order::{AccountKey, View};

/// Which kept webhooks are meant. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub order_id: Option<String>,
    pub event: Option<EventKey>,
    pub account: Option<AccountKey>,
    pub psp: Option<String>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Quarantined under this fingerprint.
    pub fingerprint: Option<String>,
}

/// Where a body stands among all: bodies are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BodyPlace {
    pub received_at: Timestamp,
    pub id: Uuid,
}

/// The exact bytes of a webhook as they are kept.
#[derive(Clone, Debug)]
pub struct StoredBody {
    pub place: BodyPlace,
    pub body: Body,
}

impl StoredBody {
    /// The bytes alone.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.body.bytes
    }
}

/// A kept webhook that was translated again.
#[derive(Clone, Debug)]
pub struct Replay {
    pub place: BodyPlace,
    /// What it says now; without its body, which is kept already.
    pub arrival: Arrival,
    /// Also replace facts that were translated by the same mapping version.
    pub forced: bool,
    pub operator: String,
    pub reason: String,
}

/// What a replay changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Each event with what it was and what it is; `None` before: it is new.
    pub events: Vec<(EventKey, Option<Outcome>, Outcome)>,
    /// Orders that look otherwise now: id, before (`None`: it did not exist), after.
    pub orders: Vec<(String, Option<View>, View)>,
    /// Why nothing was done, where that needs saying.
    pub skipped: Option<String>,
}
