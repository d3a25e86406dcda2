//! What is kept of an order or an event, for those who ask why.

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, PaymentEvent, Reference, Source};
use uuid::Uuid;

use super::{Change, StoredOrder};
use crate::inbox::Outcome;
use crate::order::AccountKey;

/// A row of the inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    pub key: EventKey,
    pub event_type: String,
    pub source: Source,
    /// `None`: ignored, or quarantined before it was translated.
    pub facts: Option<PaymentEvent>,
    pub mapping_version: u32,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub fingerprint: Option<String>,
    pub order_id: Option<String>,
    /// The version at which its order stood after it.
    pub order_version: Option<i64>,
    pub body_id: Option<Uuid>,
    /// The name of the secret that proved it; `None` for an answer.
    pub secret_name: Option<String>,
    /// By the ingress's clock; for an answer by the worker's.
    pub received_at: Timestamp,
    /// By the worker's clock.
    pub taken_at: Option<Timestamp>,
    /// Since when it waited, or had waited, for its order.
    pub parked_at: Option<Timestamp>,
    pub applied_at: Timestamp,
}

/// All that is kept of one order, each list by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    pub order: StoredOrder,
    pub events: Vec<StoredEvent>,
    pub changes: Vec<Change>,
    pub notices: Vec<NoticeState>,
    pub actions: Vec<Action>,
    pub checks: Vec<CheckState>,
    /// More than [`Timeline`] may hold was left out of the middle: so many rows.
    pub left_out: u64,
}

/// A change and a destination: told, given up, or still to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeState {
    pub version: i64,
    pub destination: String,
    /// When it was told or given up; for one that waits, when the next attempt is due.
    pub at: Timestamp,
    pub outcome: Option<String>,
    pub attempts: i32,
    pub last_error: Option<String>,
}

/// What the shop or an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub id: Uuid,
    pub kind: String,
    pub operator: String,
    pub reason: Option<String>,
    pub at: Timestamp,
    pub detail: serde_json::Value,
}

/// Where asking the PSP about a payment stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckState {
    pub account: AccountKey,
    pub payment_id: String,
    pub looks: i32,
    pub last_result: Option<String>,
    pub last_checked_at: Option<Timestamp>,
    pub next_check_at: Option<Timestamp>,
}

/// An event that waits for its order, and under which names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedRow {
    pub event: StoredEvent,
    pub waits_under: Vec<Reference>,
}
