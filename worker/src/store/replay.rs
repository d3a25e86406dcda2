//! Translating kept bytes again.

use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, Fact};
use uuid::Uuid;

use super::EventWrite;
use crate::inbox::{Body, InboxRow, Outcome};
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
    /// None but these.
    pub places: Option<Vec<BodyPlace>>,
}

impl Selection {
    /// Which bodies are meant is known from their events.
    pub(super) const fn is_of_events(&self) -> bool {
        self.order_id.is_some() || self.event.is_some() || self.fingerprint.is_some()
    }
}

/// Where a body stands among all: bodies are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyPlace {
    pub received_at: Timestamp,
    pub id: Uuid,
}

/// The exact bytes of a webhook as they are kept.
#[derive(Clone, Debug)]
pub struct StoredBody {
    pub place: BodyPlace,
    pub body: Body,
    /// The PSP's name of its event, where the call named it.
    pub event_type: Option<String>,
}

/// A kept webhook that was translated again.
#[derive(Clone, Debug)]
pub struct Replay {
    pub place: BodyPlace,
    /// PSP, account, and the webhook's id.
    pub webhook: EventKey,
    /// The name of the secret that proved it.
    pub secret_name: Arc<str>,
    /// What it says now.
    pub rows: Vec<InboxRow>,
    /// Also replace facts that were translated by the same mapping version.
    pub forced: bool,
    /// What it needs beside it was looked for ([`Replayed::needed`]): what conflicts now, conflicts.
    pub concluded: bool,
    pub operator: String,
    pub reason: String,
}

/// A row of the inbox, as a replay compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEvent {
    pub row: InboxRow,
    pub outcome: Outcome,
    pub order_id: Option<String>,
    /// `None`: an answer of the PSP.
    pub body: Option<BodyPlace>,
}

/// A row that is written over what it was.
#[derive(Debug)]
pub struct ReplacedEvent {
    /// If it is not this any more, somebody else was first.
    pub was: KeptEvent,
    pub write: EventWrite,
}

/// What replays changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Events that say or became something else, also of other webhooks: an order that loses facts may lose what led others
    /// to it.
    pub events: Vec<EventChange>,
    /// Orders that look otherwise now.
    pub orders: Vec<OrderChange>,
    /// Webhooks of which something was left as it is, and why.
    pub skipped: Vec<(EventKey, String)>,
    /// Webhooks that say what they said.
    pub unchanged: usize,
    /// Nothing was done: what these say of an order by an older mapping contradicts what is replayed. Both must be replayed
    /// together.
    pub needed: Vec<BodyPlace>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventChange {
    pub key: EventKey,
    /// `None`: it is new.
    pub before: Option<EventState>,
    pub after: EventState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventState {
    pub outcome: Outcome,
    pub order_id: Option<String>,
    pub fact: Option<Fact>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderChange {
    pub id: String,
    /// `None`: it did not exist.
    pub before: Option<View>,
    pub after: View,
}
