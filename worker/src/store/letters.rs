//! Dead letters: messages that nobody could apply, kept until somebody decides.

use std::collections::BTreeMap;

use bytes::Bytes;
use paybell_shared::clock::Timestamp;
use paybell_shared::queue::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

/// So many are counted; that there are more says the same.
pub const LETTERS_COUNTED_MAX: u32 = 10_000;

/// A message as it died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub message: Message,
    /// Made so far.
    pub attempts: u32,
    pub reason: String,
    pub died_at: Timestamp,
}

impl DeadLetter {
    /// The same for the same message, however often it is delivered or dies.
    #[must_use]
    pub fn id(&self) -> Uuid {
        let mut hash = Sha256::new();
        hash.update(self.message.id.as_bytes());
        hash.update([0]);
        hash.update(&self.message.body);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        Uuid::from_bytes(id)
    }
}

/// What somebody decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    /// It was applied after all.
    Replayed,
    /// It is not to be applied.
    Discarded,
}

impl Decided {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Replayed, Self::Discarded].into_iter().find(|decided| decided.as_str() == text)
    }
}

/// Who decided what, when and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterDecision {
    pub decided: Decided,
    pub at: Timestamp,
    pub operator: String,
    pub note: String,
}

/// A dead letter without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterHead {
    pub id: Uuid,
    /// Where it came from, and its id there: `/psp/stripe/default evt_1`.
    pub message_id: String,
    pub attempts: u32,
    pub reason: String,
    pub died_at: Timestamp,
    pub body_bytes: u64,
    /// `None`: it waits.
    pub decision: Option<LetterDecision>,
}

/// All of a message but its body, as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Envelope {
    id: String,
    content_type: Option<String>,
    headers: Vec<(String, String)>,
}

impl Envelope {
    pub(super) fn of(message: &Message) -> Self {
        let Message { id, content_type, headers, .. } = message;
        let headers = headers.iter().map(|(name, value)| (name.clone().into_owned(), value.clone())).collect();
        Self { id: id.clone(), content_type: content_type.clone(), headers }
    }

    pub(super) fn with(self, body: Vec<u8>) -> Message {
        let headers = self.headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Message { id: self.id, content_type: self.content_type, headers, body: Bytes::from(body) }
    }
}

/// What PostgreSQL takes for text, which holds no NUL.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Each message once, the last time that it died.
pub(super) fn distinct(letters: &[DeadLetter]) -> Vec<&DeadLetter> {
    let by_id: BTreeMap<Uuid, &DeadLetter> = letters.iter().map(|letter| (letter.id(), letter)).collect();
    by_id.into_values().collect()
}
