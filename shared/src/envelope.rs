//! The verified webhook, as it travels on the queue.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::psp::{Account, Proof, Verified};

/// Version of the envelope's own layout. A worker that meets a newer one leaves it to newer workers (retry ladder).
pub const SCHEMA: u32 = 1;

/// A verified webhook: who sent it, what it is called, and the exact bytes.
///
/// Made from a [`Verified`] only, so nothing unauthenticated can be put on the queue; on the other side the queue's
/// codec (`queue/cloudevents.rs`) reads it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub psp: Arc<str>,
    pub account: Arc<str>,
    /// The webhook's id within its source: the PSP's event id where a call carries one event, else the body's SHA-256.
    pub webhook_id: String,
    /// The PSP's name of the event, where the call names it.
    pub event_type: Option<String>,
    /// What the webhook is about, where verification already knows it.
    pub subject: Option<String>,
    /// By the ingress' clock.
    pub received_at: Timestamp,
    /// The name of the secret that matched, never the secret.
    pub secret_name: Arc<str>,
    pub proof: Proof,
    pub content_type: Option<String>,
    /// The headers that the adapter's `translate` reads, in the adapter's order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// W3C trace context of the call.
    pub traceparent: Option<String>,
    /// The exact bytes of the body on the wire.
    pub body: Bytes,
}

impl Envelope {
    #[must_use]
    pub fn new(account: &Account, verified: Verified, received_at: Timestamp, body: Bytes, traceparent: Option<String>) -> Self {
        let Verified { webhook_id, event_type, subject, secret_name, proof, content_type, headers } = verified;
        Self {
            psp: Arc::clone(&account.psp_id),
            account: Arc::clone(&account.name),
            webhook_id,
            event_type,
            subject,
            received_at,
            secret_name,
            proof,
            content_type,
            headers,
            traceparent,
            body,
        }
    }

    /// A header that the adapter asked to keep; `name` in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}
