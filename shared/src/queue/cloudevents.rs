//! CloudEvents in binary mode over AMQP 0-9-1: one mapping, both ways.
//!
//! The body is the body on the wire, untouched; the attributes are headers. There is no binding of CloudEvents to
//! AMQP 0-9-1, so the names are those of the HTTP binding (`ce-…`). What CloudEvents has no word for is `x-paybell-…`,
//! and a kept header of the call is `h-<place>-<name>`, because a table of headers has neither order nor doubles.
//! What is told of orders ([`OrderEvent`]) has the same form, and goes one way.

use std::borrow::Cow;

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::Message;
use crate::clock::Timestamp;
use crate::envelope::{Envelope, SCHEMA};
use crate::psp::Proof;

const SPEC_VERSION: &str = "ce-specversion";
const ID: &str = "ce-id";
const SOURCE: &str = "ce-source";
const TYPE: &str = "ce-type";
const TIME: &str = "ce-time";
const SUBJECT: &str = "ce-subject";
const TRACEPARENT: &str = "traceparent";
const SCHEMA_VERSION: &str = "x-paybell-schema";
const PROOF: &str = "x-paybell-proof";
const SECRET_NAME: &str = "x-paybell-secret-name";
const KEPT_PREFIX: &str = "h-";

/// `ce-type` is mandatory; this stands for a call that names no event.
const UNTYPED: &str = "paybell.webhook";

/// What would end or change a segment of the source's path, so that any id or account comes back as it was.
const SEGMENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'<').add(b'>').add(b'?');

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the message's header {0} is missing or malformed")]
    Header(&'static str),
    /// Written by a newer Paybell: for newer workers.
    #[error("the envelope's schema {0} is newer than this worker's")]
    Newer(u32),
}

/// Where changes of orders come from.
const ORDERS_SOURCE: &str = "/paybell/orders";

/// What is told of a change of an order, for `paybell.orders`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderEvent {
    /// The change's, so that a receiver tells a repetition.
    pub id: String,
    /// `order.<status>`: also the routing key.
    pub event_type: String,
    pub order_id: String,
    pub at: Timestamp,
    /// JSON.
    pub body: Bytes,
}

impl From<OrderEvent> for Message {
    fn from(event: OrderEvent) -> Self {
        let headers = vec![
            (SPEC_VERSION.into(), "1.0".to_owned()),
            (ID.into(), event.id.clone()),
            (SOURCE.into(), ORDERS_SOURCE.to_owned()),
            (TYPE.into(), event.event_type),
            (TIME.into(), event.at.to_string()),
            (SUBJECT.into(), event.order_id),
        ];
        Self { id: event.id, content_type: Some("application/json".to_owned()), headers, body: event.body }
    }
}

impl From<Envelope> for Message {
    fn from(envelope: Envelope) -> Self {
        let segment = |text| utf8_percent_encode(text, SEGMENT);
        let source = format!("/psp/{}/{}", segment(&envelope.psp), segment(&envelope.account));
        let id = format!("{source} {}", envelope.webhook_id);
        let mut headers: Vec<(Cow<'static, str>, String)> = vec![
            (SPEC_VERSION.into(), "1.0".to_owned()),
            (ID.into(), envelope.webhook_id),
            (SOURCE.into(), source),
            (TYPE.into(), write_type(envelope.event_type)),
            (TIME.into(), envelope.received_at.to_string()),
            (SCHEMA_VERSION.into(), SCHEMA.to_string()),
            (PROOF.into(), envelope.proof.as_str().to_owned()),
            (SECRET_NAME.into(), envelope.secret_name.as_ref().to_owned()),
        ];
        headers.extend(envelope.subject.map(|subject| (SUBJECT.into(), subject)));
        headers.extend(envelope.traceparent.map(|context| (TRACEPARENT.into(), context)));
        let kept = envelope.headers.into_iter().enumerate();
        headers.extend(kept.map(|(place, (name, value))| (format!("{KEPT_PREFIX}{place}-{name}").into(), value)));
        Self { id, content_type: envelope.content_type, headers, body: envelope.body }
    }
}

impl TryFrom<Message> for Envelope {
    type Error = EnvelopeError;

    fn try_from(message: Message) -> Result<Self, EnvelopeError> {
        let required = |name: &'static str| message.header(name).ok_or(EnvelopeError::Header(name));
        // First: whatever else a newer layout changed is not ours to judge.
        let schema: u32 = required(SCHEMA_VERSION)?.parse().map_err(|_| EnvelopeError::Header(SCHEMA_VERSION))?;
        if schema > SCHEMA {
            return Err(EnvelopeError::Newer(schema));
        }
        let (psp, account) = read_source(required(SOURCE)?).ok_or(EnvelopeError::Header(SOURCE))?;
        let proof = match required(PROOF)? {
            text if text == Proof::Proven.as_str() => Proof::Proven,
            text if text == Proof::Hint.as_str() => Proof::Hint,
            _ => return Err(EnvelopeError::Header(PROOF)),
        };
        Ok(Self {
            psp: psp.into(),
            account: account.into(),
            webhook_id: required(ID)?.to_owned(),
            event_type: read_type(required(TYPE)?),
            subject: message.header(SUBJECT).map(str::to_owned),
            received_at: Timestamp::parse_rfc3339(required(TIME)?).map_err(|_| EnvelopeError::Header(TIME))?,
            secret_name: required(SECRET_NAME)?.into(),
            proof,
            headers: read_kept(&message)?,
            traceparent: message.header(TRACEPARENT).map(str::to_owned),
            content_type: message.content_type,
            body: message.body,
        })
    }
}

/// A type that could be taken for the stand-in, or that is empty, which CloudEvents forbids, is marked by the stand-in
/// before it.
fn write_type(event_type: Option<String>) -> String {
    match event_type {
        None => UNTYPED.to_owned(),
        Some(name) if name.is_empty() || name.starts_with(UNTYPED) => format!("{UNTYPED}:{name}"),
        Some(name) => name,
    }
}

fn read_type(text: &str) -> Option<String> {
    match text.strip_prefix(UNTYPED) {
        Some("") => None,
        Some(marked) => Some(marked.strip_prefix(':').unwrap_or(text).to_owned()),
        None => Some(text.to_owned()),
    }
}

fn read_source(source: &str) -> Option<(String, String)> {
    let (psp, account) = source.strip_prefix("/psp/")?.split_once('/')?;
    let segment = |text| percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned);
    Some((segment(psp)?, segment(account)?))
}

fn read_kept(message: &Message) -> Result<Vec<(String, String)>, EnvelopeError> {
    let mut kept = Vec::new();
    for (key, value) in &message.headers {
        let Some(placed) = key.strip_prefix(KEPT_PREFIX) else { continue };
        let (place, name) = placed.split_once('-').ok_or(EnvelopeError::Header("h-…"))?;
        let place: usize = place.parse().map_err(|_| EnvelopeError::Header("h-…"))?;
        kept.push((place, name.to_owned(), value.clone()));
    }
    kept.sort_by_key(|(place, ..)| *place);
    Ok(kept.into_iter().map(|(_, name, value)| (name, value)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    /// Text as hostile as a PSP's can be, and a few ends that random text seldom meets.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[a-zA-Z0-9_-]{1,40}",
            Just(UNTYPED.to_owned()),
            Just(format!("{UNTYPED}:x")),
            Just(format!("{UNTYPED}s")),
            Just("%2F/../%".to_owned()),
            Just("x".repeat(300)),
        ]
    }

    prop_compose! {
        fn envelope()(
            (psp, account, webhook_id) in (text(), text(), text()),
            (event_type, subject, traceparent, content_type) in (option::of(text()), option::of(text()), option::of(text()), option::of(text())),
            // The years that RFC 3339 can write.
            millis in 0_i64..253_402_300_800_000,
            (secret_name, proven) in (text(), any::<bool>()),
            headers in vec(("[a-z-]{1,20}", text()), 0..12),
            body in vec(any::<u8>(), 0..64),
        ) -> Envelope {
            Envelope {
                psp: psp.into(),
                account: account.into(),
                webhook_id,
                event_type,
                subject,
                received_at: Timestamp::from_millis(millis),
                secret_name: secret_name.into(),
                proof: if proven { Proof::Proven } else { Proof::Hint },
                content_type,
                headers,
                traceparent,
                body: Bytes::from(body),
            }
        }
    }

    proptest! {
        #[test]
        fn an_envelope_comes_back_as_it_was(envelope in envelope(), shuffle in any::<prop::sample::Index>()) {
            let mut message = Message::from(envelope.clone());
            // A table of headers keeps no order.
            let by = shuffle.index(message.headers.len());
            message.headers.rotate_left(by);
            prop_assert_eq!(Envelope::try_from(message).unwrap(), envelope);
        }

        #[test]
        fn a_broken_header_is_an_error_by_name(envelope in envelope(), lost in any::<prop::sample::Index>(), junk in any::<String>()) {
            let message = Message::from(envelope);
            let required = [SCHEMA_VERSION, SOURCE, PROOF, ID, TYPE, TIME, SECRET_NAME];
            let name = required[lost.index(required.len())];
            let mut without = message.clone();
            without.headers.retain(|(key, _)| key != name);
            prop_assert!(matches!(Envelope::try_from(without), Err(EnvelopeError::Header(header)) if header == name));
            // Junk in any place is an error or another envelope, never a panic.
            let mut junked = message;
            for (key, value) in &mut junked.headers {
                if key == name { value.clone_from(&junk); }
            }
            let _ = Envelope::try_from(junked);
        }
    }

    fn plain() -> Message {
        Message::from(Envelope {
            psp: "stripe".into(),
            account: "default".into(),
            webhook_id: "evt_1".to_owned(),
            event_type: Some("payment_intent.succeeded".to_owned()),
            subject: Some("pi_1".to_owned()),
            received_at: Timestamp::from_millis(1_790_000_000_123),
            secret_name: "env:STRIPE".into(),
            proof: Proof::Proven,
            content_type: Some("application/json".to_owned()),
            headers: vec![("stripe-version".to_owned(), "2026-01-01".to_owned())],
            traceparent: None,
            body: Bytes::from_static(b"{}"),
        })
    }

    #[test]
    fn the_headers_are_those_of_the_design() {
        let message = plain();
        assert_eq!(message.id, "/psp/stripe/default evt_1");
        let expected = [
            ("ce-specversion", "1.0"),
            ("ce-id", "evt_1"),
            ("ce-source", "/psp/stripe/default"),
            ("ce-type", "payment_intent.succeeded"),
            ("ce-time", "2026-09-21T14:13:20.123Z"),
            ("x-paybell-schema", "1"),
            ("x-paybell-proof", "proven"),
            ("x-paybell-secret-name", "env:STRIPE"),
            ("ce-subject", "pi_1"),
            ("h-0-stripe-version", "2026-01-01"),
        ];
        let headers: Vec<(&str, &str)> = message.headers.iter().map(|(key, value)| (key.as_ref(), value.as_str())).collect();
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_newer_schema_is_told_apart_even_if_nothing_else_is_understood() {
        let message = Message { headers: vec![(SCHEMA_VERSION.into(), (SCHEMA + 1).to_string())], ..Message::default() };
        assert!(matches!(Envelope::try_from(message), Err(EnvelopeError::Newer(newer)) if newer == SCHEMA + 1));
    }
}
