//! What a webhook or an answer of a PSP says, in our words.
//!
//! An adapter translates; [`Fact`]s then merge into an order (`worker/src/order.rs`), whatever their order of arrival.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::money::Money;

/// The idempotency key: at most one effect each, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventKey {
    pub psp: Arc<str>,
    pub account: Arc<str>,
    pub event_id: String,
}

impl Ord for EventKey {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_shared(&self.psp, &other.psp)
            .then_with(|| compare_shared(&self.account, &other.account))
            .then_with(|| self.event_id.cmp(&other.event_id))
    }
}

impl PartialOrd for EventKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The order of texts that are mostly one and the same: PSP and account of all that is sorted together. Comparing them by
/// their bytes, for each comparison of two keys, was a twelfth of the worker's own time under load.
#[must_use]
pub fn compare_shared(one: &Arc<str>, other: &Arc<str>) -> Ordering {
    if Arc::ptr_eq(one, other) { Ordering::Equal } else { one.cmp(other) }
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.psp, self.account, self.event_id)
    }
}

/// One normalised fact, translated from a webhook or from a PSP's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentEvent {
    pub key: EventKey,
    /// The PSP's name of the event, for people.
    pub event_type: String,
    /// When it happened, by the PSP's clock.
    pub occurred_at: Timestamp,
    pub source: Source,
    /// What the event itself says of test or live; `None` where the PSP does not say.
    pub mode: Option<Mode>,
    /// Under which names the order may be found.
    pub references: Vec<Reference>,
    /// The PSP's id of the payment that the fact is about.
    pub payment_id: String,
    pub version: FactVersion,
    pub fact: Fact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Webhook,
    Reconciliation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Live,
    Test,
}

impl Mode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }
}

/// A name under which a PSP's event may lead to an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reference {
    pub kind: ReferenceKind,
    pub value: String,
}

impl Reference {
    #[must_use]
    pub fn new(kind: ReferenceKind, value: impl Into<String>) -> Self {
        Self { kind, value: value.into() }
    }
}

/// The kinds of [`Reference`]. `Order` is the merchant's own id; all others are the PSP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceKind {
    Order,
    Payment,
    Charge,
    Capture,
    Refund,
    Dispute,
    Session,
}

impl ReferenceKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Payment => "payment",
            Self::Charge => "charge",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Dispute => "dispute",
            Self::Session => "session",
        }
    }

    /// The kind of a stored name; `None` for one that a newer version wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Order, Self::Payment, Self::Charge, Self::Capture, Self::Refund, Self::Dispute, Self::Session]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// Where a fact stands among the facts about the same object: compared first within one object, never across.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactVersion {
    /// The PSP's update or event time in milliseconds, or the `Date` of its answer: may be equal for different facts,
    /// and may lie.
    Time(i64),
    /// The PSP's own version number of the object. Stands above any time: a PSP that numbers, numbers always.
    Number(i64),
}

/// What is claimed about one object of the PSP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "object", rename_all = "snake_case")]
pub enum Fact {
    /// The payment or one attempt at it.
    Payment(PaymentFact),
    /// One capture, for PSPs that name them singly.
    Capture { id: String, state: CaptureState, amount: Money },
    /// One refund. `created` is when the PSP made it, where the PSP says so: a cumulative figure of a later version already
    /// counts it, even if the refund itself is heard of later.
    Refund { id: String, state: RefundState, amount: Money, created: Option<Timestamp> },
    /// All that is refunded of the payment so far, as a cumulative figure.
    RefundTotal { amount: Money },
    /// One dispute.
    Dispute { id: String, state: DisputeState, amount: Money },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PaymentFact {
    pub state: PaymentState,
    /// The attempt (Stripe: the charge) that the state is about, where the PSP tells attempts apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// What may be captured, or was authorised in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized: Option<Money>,
    /// What is captured in all, gross; refunds do not lower it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<Money>,
    /// The PSP will capture no more of this payment.
    #[serde(default)]
    pub capture_final: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl PaymentFact {
    /// A payment in `state` of which nothing else is said.
    #[must_use]
    pub const fn new(state: PaymentState) -> Self {
        Self { state, attempt: None, authorized: None, captured: None, capture_final: false, failure: None }
    }
}

/// States of a payment attempt, in rank order: of two, the later one in this list wins, whichever came first.
/// Success after failure wins, failure after success is an attempt's failure, expiry ranks below every success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// Open: created, waiting for the payer, or processing.
    Pending,
    /// The attempt failed; the payment may be tried again.
    Failed,
    /// Nobody paid in time.
    Expired,
    Authorized,
    /// The authorisation lapsed uncaptured: the money is the payer's again.
    AuthorizationExpired,
    /// Given up by the merchant or by the PSP, for good.
    Canceled,
    Captured,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureState {
    Pending,
    Succeeded,
    /// Refused, or undone after it had succeeded.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundState {
    Pending,
    Succeeded,
    /// Refused, canceled, or undone after it had succeeded: the money is the merchant's again.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisputeState {
    /// A question before a dispute; no money moved.
    Inquiry,
    /// The question was answered; no money ever moved.
    InquiryClosed,
    Open,
    Won,
    Lost,
}

/// Why an attempt failed, in the PSP's words: codes and messages about the card, never about the person.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Failure {
    pub code: String,
    pub message: String,
}

/// With this begin the ids of events that adapters make of an answer about how an object stands.
pub const ANSWER_PREFIX: &str = "poll:";

impl PaymentEvent {
    /// Whether the PSP told it when asked how the object stands. Not so an event from the PSP's list of events, which is
    /// the same as by its webhook: what an order becomes must not depend on which of the two came first.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.source == Source::Reconciliation && self.key.event_id.starts_with(ANSWER_PREFIX)
    }

    /// SHA-256 of what enters the merge. Two events with one key and one hash are duplicates; with two hashes, under the
    /// same mapping version, they are a security event (`design.md`, "duplicate").
    ///
    /// Not hashed: the source and the PSP's name of the event, which do not change an order.
    #[must_use]
    pub fn facts_sha256(&self) -> [u8; 32] {
        let merged = (&self.payment_id, &self.mode, &self.references, &self.version, &self.fact);
        // Serialising these types cannot fail: no maps with other keys than strings, no foreign serialisers.
        let bytes = serde_json::to_vec(&merged).unwrap_or_default();
        Sha256::digest(bytes).into()
    }
}
