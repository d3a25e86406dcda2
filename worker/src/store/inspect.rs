//! What is kept of an order or an event, for those who ask why.

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, PaymentEvent, Reference, Source};
use uuid::Uuid;

use super::rows::{self, inconsistent};
use super::{Change, StoreError};
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
    /// Names its body, which may be gone by now; `None` for an answer.
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

/// A row of the inbox with what depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxEntry {
    pub event: StoredEvent,
    /// The names under which it waits for its order; empty if it does not.
    pub waits_under: Vec<Reference>,
    /// Its exact bytes are still there.
    pub body_kept: bool,
}

/// A moment of an order, and the row that tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub place: Place,
    pub row: MomentRow,
}

/// Where a moment stands in its order's timeline: by time; within a millisecond by what leads to what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub at: Timestamp,
    /// The version of the order that it belongs to; 0: none.
    pub version: i64,
    pub kind: MomentKind,
    /// Tells moments of one kind apart.
    pub key: String,
}

/// What happened at a moment. The numbers are in SQL, and in cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MomentKind {
    /// The shop or an operator did something.
    Acted = 0,
    /// The ingress accepted a webhook, or the worker read an answer.
    Received = 1,
    /// An event did not find its order.
    Parked = 2,
    /// An event got its outcome.
    Settled = 3,
    /// The order changed.
    Changed = 4,
    /// A destination was told of a change, or was given up.
    Noticed = 5,
    /// A destination is due to be told of a change.
    NoticeDue = 6,
    /// The PSP was last asked about a payment.
    Asked = 7,
    /// The PSP is due to be asked about a payment.
    LookDue = 8,
}

impl MomentKind {
    pub const ALL: [Self; 9] = [
        Self::Acted,
        Self::Received,
        Self::Parked,
        Self::Settled,
        Self::Changed,
        Self::Noticed,
        Self::NoticeDue,
        Self::Asked,
        Self::LookDue,
    ];

    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind of a number; `None` for one that a newer version gave.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MomentRow {
    Action(Action),
    Event(Box<StoredEvent>),
    Change(Box<Change>),
    Notice(NoticeState),
    Check(CheckState),
}

/// A change and a destination: told, given up, or still to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeState {
    pub version: i64,
    pub destination: String,
    /// `None`: still to be told.
    pub outcome: Option<String>,
    pub attempts: i32,
    pub last_error: Option<String>,
}

/// What the shop or an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub kind: String,
    pub operator: String,
    pub reason: Option<String>,
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

/// An event's columns, as they were read.
pub(super) struct EventColumns {
    pub key: EventKey,
    pub event_type: String,
    pub source: String,
    pub facts: Option<String>,
    pub mapping_version: i64,
    pub outcome: String,
    pub reason: Option<String>,
    pub fingerprint: Option<String>,
    pub order_id: Option<String>,
    pub order_version: Option<i64>,
    pub body_id: Option<Uuid>,
    pub secret_name: Option<String>,
    pub received_at: Timestamp,
    pub taken_at: Option<Timestamp>,
    pub parked_at: Option<Timestamp>,
    pub applied_at: Timestamp,
}

impl EventColumns {
    pub fn read(self) -> Result<StoredEvent, StoreError> {
        let bad = |column, problem: String| inconsistent("events", column, &self.key, problem);
        let source =
            [Source::Webhook, Source::Reconciliation].into_iter().find(|source| rows::source_name(*source) == self.source);
        Ok(StoredEvent {
            source: source.ok_or_else(|| bad("source", format!("{:?} is no source", self.source)))?,
            outcome: Outcome::parse(&self.outcome).ok_or_else(|| bad("outcome", format!("{:?} is no outcome", self.outcome)))?,
            mapping_version: u32::try_from(self.mapping_version)
                .map_err(|_| bad("mapping_version", "it is out of range".to_owned()))?,
            facts: self
                .facts
                .as_deref()
                .map(|facts| rows::from_json(facts, "events", "facts", &self.key.to_string()))
                .transpose()?,
            key: self.key,
            event_type: self.event_type,
            reason: self.reason,
            fingerprint: self.fingerprint,
            order_id: self.order_id,
            order_version: self.order_version,
            body_id: self.body_id,
            secret_name: self.secret_name,
            received_at: self.received_at,
            taken_at: self.taken_at,
            parked_at: self.parked_at,
            applied_at: self.applied_at,
        })
    }
}
