//! A [`Message`] as AMQP properties and back.
//!
//! AMQP's own fields for the content type and the id hold 255 bytes at most; what is longer travels in a header, whose
//! value has no such limit, so that a message comes back exactly as it was.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use sha2::{Digest, Sha256};

use super::super::{Message, REASON_HEADER};

/// Which attempt a delivery is; absent on the first.
pub const ATTEMPT_HEADER: &str = "x-paybell-attempt";
const LONG_ID_HEADER: &str = "x-paybell-message-id";
const LONG_CONTENT_TYPE_HEADER: &str = "x-paybell-content-type";

/// Written by brokers when they dead-letter or redeliver; not the message's, and not to be sent on: 4.x ignores it,
/// 3.10 would follow it.
const BROKERS: [&str; 4] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];
const DEATH_REASON_HEADER: &str = "x-first-death-reason";

/// Persistent: also what a quorum queue dead-letters keeps the publisher's mode.
const PERSISTENT: u8 = 2;

const APP_ID: &str = "paybell";

/// What a move adds to a message.
#[derive(Clone, Copy, Default)]
pub struct Moved<'a> {
    /// For a retry: the attempt that it becomes.
    pub attempt: Option<u32>,
    pub reason: Option<&'a str>,
}

/// A message that AMQP cannot carry: a header's name is longer than 255 bytes.
#[derive(Debug, thiserror::Error)]
#[error("a header's name of {0} bytes does not fit AMQP")]
pub struct Unsendable(usize);

/// `now`: seconds since the epoch.
pub fn properties(message: &Message, moved: Moved<'_>, now: u64) -> Result<BasicProperties, Unsendable> {
    let mut headers = FieldTable::default();
    let mut insert = |name: &str, value: AMQPValue| {
        let name = ShortString::try_new(name).map_err(|_| Unsendable(name.len()))?;
        headers.insert(name, value);
        Ok(())
    };
    for (name, value) in &message.headers {
        insert(name, text(value))?;
    }
    if let Some(attempt) = moved.attempt {
        insert(ATTEMPT_HEADER, AMQPValue::LongLongInt(i64::from(attempt)))?;
    }
    if let Some(reason) = moved.reason {
        insert(REASON_HEADER, text(reason))?;
    }
    let mut properties = BasicProperties::default();
    properties = if let Ok(id) = ShortString::try_new(message.id.as_str()) {
        properties.with_message_id(id)
    } else {
        insert(LONG_ID_HEADER, text(&message.id))?;
        properties.with_message_id(hex::encode(Sha256::digest(&message.id)).into())
    };
    if let Some(content_type) = &message.content_type {
        if let Ok(short) = ShortString::try_new(content_type.as_str()) {
            properties = properties.with_content_type(short);
        } else {
            insert(LONG_CONTENT_TYPE_HEADER, text(content_type))?;
        }
    }
    Ok(properties.with_headers(headers).with_delivery_mode(PERSISTENT).with_timestamp(now).with_app_id(APP_ID.into()))
}

/// A delivered message, which attempt it is, and, if it was moved, why.
pub fn read(properties: &BasicProperties, body: Bytes) -> (Message, u32, Option<String>) {
    let mut message = Message {
        id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        content_type: properties.content_type().as_ref().map(|name| name.as_str().to_owned()),
        headers: Vec::new(),
        body,
    };
    let (mut attempt, mut reason, mut brokers_reason) = (1, None, None);
    let headers = properties.headers().iter().flat_map(FieldTable::inner);
    for (name, value) in headers {
        match name.as_str() {
            ATTEMPT_HEADER => attempt = number(value).unwrap_or(1).max(1),
            REASON_HEADER => reason = written(value),
            LONG_ID_HEADER => message.id = written(value).unwrap_or_default(),
            LONG_CONTENT_TYPE_HEADER => message.content_type = written(value),
            DEATH_REASON_HEADER => brokers_reason = written(value),
            name if BROKERS.iter().any(|prefix| name.starts_with(prefix)) => {}
            name => message.headers.extend(written(value).map(|value| (name.to_owned().into(), value))),
        }
    }
    let reason = reason.or_else(|| brokers_reason.map(|reason| format!("broker: {reason}")));
    (message, attempt, reason)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// Text as we write it. What a stranger wrote and is no text is not ours to carry.
fn written(value: &AMQPValue) -> Option<String> {
    let bytes = value.as_long_string()?.as_bytes();
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

fn number(value: &AMQPValue) -> Option<u32> {
    u32::try_from(value.as_long_long_int()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(
            id in prop_oneof![any::<String>(), Just("é".repeat(200))],
            content_type in option::of(prop_oneof![any::<String>(), Just("x".repeat(256))]),
            headers in btree_map("(ce|h)-[a-z0-9-]{0,100}", any::<String>(), 0..8),
            attempt in option::of(1..u32::MAX),
            reason in option::of(any::<String>()),
        ) {
            let headers = headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let message = Message { id, content_type, headers, body: Bytes::from_static(b"\0\xff") };
            let properties = properties(&message, Moved { attempt, reason: reason.as_deref() }, 1).unwrap();
            let read = read(&properties, message.body.clone());
            prop_assert_eq!(read, (message, attempt.unwrap_or(1), reason));
        }
    }

    #[test]
    fn what_a_broker_adds_is_read_and_not_sent_on() {
        let mut headers = FieldTable::default();
        headers.insert(DEATH_REASON_HEADER.into(), text("delivery_limit"));
        headers.insert("x-last-death-queue".into(), text("paybell.webhooks.v1"));
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        headers.insert("x-death".into(), AMQPValue::Void);
        headers.insert("ce-id".into(), text("evt_1"));
        let (message, attempt, reason) = read(&BasicProperties::default().with_headers(headers), Bytes::new());
        assert_eq!(message.headers, [("ce-id".into(), "evt_1".to_owned())]);
        assert_eq!((attempt, reason.as_deref()), (1, Some("broker: delivery_limit")));
    }

    #[test]
    fn a_name_that_amqp_cannot_carry_is_refused() {
        let message = Message { headers: vec![("x".repeat(256).into(), String::new())], ..Message::default() };
        assert!(matches!(properties(&message, Moved::default(), 1), Err(Unsendable(256))));
    }
}
