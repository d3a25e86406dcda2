//! What a delivery becomes before it meets the database: rows with keys, and facts or the reason why there are none.

use std::sync::Arc;

use bytes::Bytes;
use paybell_shared::clock::Timestamp;
use paybell_shared::envelope::Envelope;
use paybell_shared::event::{ANSWER_PREFIX, EventKey, PaymentEvent, Source};
use paybell_shared::psp::{Account, Proof, TranslateError, Unread};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::order::AccountKey;

/// One webhook or answer of a PSP, translated. Becomes rows in the inbox, all in one transaction.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The exact bytes, kept for replay; `None` for answers of a PSP, whose facts are all that is kept.
    pub body: Option<Body>,
    pub rows: Vec<InboxRow>,
    /// Payments that its PSP is to be asked about. If there are no rows, that is all: it was a hint.
    pub asks: Vec<(AccountKey, String)>,
    /// When the webhook came that this is; of an answer, the webhook that had its PSP asked: `None` where none had.
    pub heard_at: Option<Timestamp>,
}

/// The exact bytes of a webhook and what is needed to translate them again.
#[derive(Clone, Debug)]
pub struct Body {
    pub psp: Arc<str>,
    pub account: Arc<str>,
    pub webhook_id: String,
    pub received_at: Timestamp,
    pub secret_name: Arc<str>,
    pub content_type: Option<String>,
    pub headers: Vec<(String, String)>,
    pub bytes: Bytes,
}

/// One event of an arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxRow {
    pub key: EventKey,
    pub event_type: String,
    pub received_at: Timestamp,
    /// SHA-256 of what enters the merge; of the body where nothing does.
    pub facts_sha256: [u8; 32],
    pub mapping_version: u32,
    pub source: Source,
    pub content: Content,
}

impl InboxRow {
    /// The PSP told it of this payment when it was asked how that stands.
    #[must_use]
    pub fn answers(&self, payment_id: &str) -> bool {
        match &self.content {
            Content::Fact { event, .. } => event.is_answer() && event.payment_id == payment_id,
            Content::Ignored { .. } | Content::Quarantined { .. } => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Fact {
        event: Box<PaymentEvent>,
        /// The event's mode is not its account's.
        foreign_mode: bool,
    },
    Ignored {
        reason: String,
    },
    Quarantined {
        reason: String,
        /// Names the cause, not the event: one alert for each.
        fingerprint: String,
    },
}

/// What became of an event. Every event in the inbox has exactly one (invariant I11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Applied,
    Superseded,
    Parked,
    Ignored,
    Quarantined,
}

impl Outcome {
    pub const ALL: [Self; 5] = [Self::Applied, Self::Superseded, Self::Parked, Self::Ignored, Self::Quarantined];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Superseded => "superseded",
            Self::Parked => "parked",
            Self::Ignored => "ignored",
            Self::Quarantined => "quarantined",
        }
    }

    /// The outcome of a stored name; `None` for one that a newer version wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

impl Arrival {
    /// Translates a webhook. What is not understood becomes a row of its own, never nothing.
    #[must_use]
    pub fn of_webhook(envelope: &Envelope, account: &Account) -> Self {
        let key = || AccountKey { psp: Arc::clone(&envelope.psp), account: Arc::clone(&envelope.account) };
        let asks = account.psp.hinted(envelope, account);
        let asks = asks.map(|payments| payments.into_iter().map(|payment_id| (key(), payment_id)).collect());
        if envelope.proof == Proof::Hint
            && let Ok(asks) = asks
        {
            return Self { body: None, rows: Vec::new(), asks, heard_at: Some(envelope.received_at) };
        }
        let (asks, translated) = match asks {
            Ok(asks) => (asks, account.psp.translate(envelope, account)),
            Err(error) if envelope.proof == Proof::Hint => (Vec::new(), Err(error)),
            Err(_) => (Vec::new(), account.psp.translate(envelope, account)),
        };
        let rows = match translated {
            Ok(events) if events.is_empty() => {
                vec![bare_row(envelope, account, Content::Ignored { reason: "carries no event".to_owned() })]
            }
            Ok(events) => events.into_iter().map(|event| fact_row(event, account, envelope.received_at)).collect(),
            Err(error) => vec![bare_row(envelope, account, not_a_fact(error, account, envelope.event_type.as_deref()))],
        };
        let body = Body {
            psp: Arc::clone(&envelope.psp),
            account: Arc::clone(&envelope.account),
            webhook_id: envelope.webhook_id.clone(),
            received_at: envelope.received_at,
            secret_name: Arc::clone(&envelope.secret_name),
            content_type: envelope.content_type.clone(),
            headers: envelope.headers.clone(),
            bytes: envelope.body.clone(),
        };
        Self { body: Some(body), rows, asks, heard_at: Some(envelope.received_at) }
    }

    /// What a PSP's answer says; what of it is not understood is kept as a webhook's would be, once for each mapping. It has a key
    /// of its own: it must not stand in the way of the webhook, whose bytes can be translated again.
    #[must_use]
    pub fn of_answer(events: Vec<PaymentEvent>, unread: Vec<Unread>, account: &Account, received_at: Timestamp) -> Self {
        let facts = events.into_iter().map(|event| fact_row(event, account, received_at));
        let unread = unread.into_iter().map(|unread| InboxRow {
            key: EventKey {
                psp: Arc::clone(&account.psp_id),
                account: Arc::clone(&account.name),
                event_id: unread_key(&unread.event_id, account.psp.profile().mapping_version),
            },
            event_type: String::new(),
            received_at,
            facts_sha256: Sha256::digest([]).into(),
            mapping_version: account.psp.profile().mapping_version,
            source: Source::Reconciliation,
            content: not_a_fact(unread.error, account, None),
        });
        Self { body: None, rows: facts.chain(unread).collect(), asks: Vec::new(), heard_at: None }
    }
}

fn unread_key(event_id: &str, mapping_version: u32) -> String {
    format!("{ANSWER_PREFIX}unread:{mapping_version}:{event_id}")
}

fn fact_row(event: PaymentEvent, account: &Account, received_at: Timestamp) -> InboxRow {
    InboxRow {
        key: event.key.clone(),
        event_type: event.event_type.clone(),
        received_at,
        facts_sha256: event.facts_sha256(),
        mapping_version: account.psp.profile().mapping_version,
        source: event.source,
        content: Content::Fact { foreign_mode: event.mode.is_some_and(|mode| mode != account.mode), event: Box::new(event) },
    }
}

fn bare_row(envelope: &Envelope, account: &Account, content: Content) -> InboxRow {
    InboxRow {
        key: EventKey {
            psp: Arc::clone(&envelope.psp),
            account: Arc::clone(&envelope.account),
            event_id: envelope.webhook_id.clone(),
        },
        event_type: envelope.event_type.clone().unwrap_or_default(),
        received_at: envelope.received_at,
        // Not the body: Stripe's `pending_webhooks` differs between retries of one event.
        facts_sha256: Sha256::digest([]).into(),
        mapping_version: account.psp.profile().mapping_version,
        source: Source::Webhook,
        content,
    }
}

fn not_a_fact(error: TranslateError, account: &Account, event_type: Option<&str>) -> Content {
    match error {
        TranslateError::Ignored(reason) => Content::Ignored { reason },
        TranslateError::Unintelligible { reason, pointer } => {
            let fingerprint = fingerprint(account, event_type, reason, &pointer);
            Content::Quarantined { reason: format!("{reason} at {pointer:?}"), fingerprint }
        }
    }
}

/// Names a cause of quarantine: PSP, type if known, reason, place, mapping version.
fn fingerprint(account: &Account, event_type: Option<&str>, reason: &str, pointer: &str) -> String {
    let version = account.psp.profile().mapping_version;
    let cause = format!("{}\n{}\n{reason}\n{pointer}\n{version}", account.psp_id, event_type.unwrap_or_default());
    Sha256::digest(cause)[..8].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
