//! A webhook as a record of the spool, and back from bytes that a power cut may have torn.
//!
//! `magic, length, CRC-32, payload`, numbers little-endian; the payload is the length of a JSON head, the head (id, content
//! type, headers) and the exact body. No index: a segment is read from its beginning, once, when it is drained.

use std::borrow::Cow;

use bytes::Bytes;
use paybell_shared::queue::Message;
use serde::{Deserialize, Serialize};

/// Begins each record, so that reading can go on behind a damaged one. The last byte is the format's version.
const MAGIC: [u8; 4] = *b"PBs1";
/// Magic, length and checksum.
const PREFIX_BYTES: usize = 12;

#[derive(Serialize, Deserialize)]
struct Head {
    id: String,
    content_type: Option<String>,
    headers: Vec<(Cow<'static, str>, String)>,
}

/// What a segment holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    pub messages: Vec<Message>,
    /// Bytes that belong to no whole record: the tail that a power cut tore, or damage.
    pub damaged_bytes: usize,
}

/// # Errors
/// The message has no JSON, or is longer than 4 GiB: neither comes from the ingress.
pub(super) fn encode(message: &Message) -> std::io::Result<Vec<u8>> {
    let Message { id, content_type, headers, body } = message;
    let head = Head { id: id.clone(), content_type: content_type.clone(), headers: headers.clone() };
    let head = serde_json::to_vec(&head)?;
    let length = |bytes: usize| u32::try_from(bytes).map_err(std::io::Error::other);
    let mut record = Vec::with_capacity(PREFIX_BYTES + 4 + head.len() + body.len());
    record.extend(MAGIC);
    record.extend(length(4 + head.len() + body.len())?.to_le_bytes());
    record.extend([0; 4]);
    record.extend(length(head.len())?.to_le_bytes());
    record.extend(&head);
    record.extend(body);
    let checksum = crc32fast::hash(&record[PREFIX_BYTES..]);
    record[8..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(record)
}

/// Every whole record. What is torn or damaged is passed over: no byte of it was acknowledged by the file's last fsync, or the
/// disk has broken its word, and then all that can be saved is.
pub(super) fn scan(bytes: &Bytes) -> Scanned {
    let (mut scanned, mut at) = (Scanned::default(), 0);
    while at < bytes.len() {
        if let Some((message, end)) = decode(bytes, at) {
            scanned.messages.push(message);
            at = end;
        } else {
            scanned.damaged_bytes += 1;
            at += 1;
        }
    }
    scanned
}

/// The record that begins here, and where it ends.
fn decode(bytes: &Bytes, at: usize) -> Option<(Message, usize)> {
    let prefix = bytes.get(at..at + PREFIX_BYTES)?;
    if prefix[..4] != MAGIC {
        return None;
    }
    let payload_at = at + PREFIX_BYTES;
    let end = payload_at.checked_add(number(&prefix[4..8])?)?;
    let payload = bytes.get(payload_at..end)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(prefix[8..12].try_into().ok()?) {
        return None;
    }
    let head_end = number(payload.get(..4)?)?.checked_add(4)?;
    let Head { id, content_type, headers } = serde_json::from_slice(payload.get(4..head_end)?).ok()?;
    Some((Message { id, content_type, headers, body: bytes.slice(payload_at + head_end..end) }, end))
}

fn number(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn message()(
            id in any::<String>(),
            content_type in proptest::option::of(any::<String>()),
            headers in vec((any::<String>(), any::<String>()), 0..4),
            body in vec(any::<u8>(), 0..64),
        ) -> Message {
            let headers = headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
            Message { id, content_type, headers, body: body.into() }
        }
    }

    proptest! {
        #[test]
        fn a_segment_cut_at_any_byte_holds_every_whole_record(messages in vec(message(), 0..6), cut in any::<prop::sample::Index>()) {
            let records: Vec<Vec<u8>> = messages.iter().map(|message| encode(message).unwrap()).collect();
            let whole = records.concat();
            prop_assert_eq!(scan(&whole.clone().into()), Scanned { messages: messages.clone(), damaged_bytes: 0 });
            let cut = cut.index(whole.len() + 1);
            let (mut kept, mut end) = (0, 0);
            while kept < records.len() && end + records[kept].len() <= cut {
                end += records[kept].len();
                kept += 1;
            }
            let torn = scan(&Bytes::copy_from_slice(&whole[..cut]));
            prop_assert_eq!(torn, Scanned { messages: messages[..kept].to_vec(), damaged_bytes: cut - end });
        }

        #[test]
        fn damage_costs_only_the_record_that_it_is_in(messages in vec(message(), 3), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let records: Vec<Vec<u8>> = messages.iter().map(|message| encode(message).unwrap()).collect();
            let mut bytes = records.concat();
            let at = at.index(records[1].len());
            bytes[records[0].len() + at] ^= 1 << bit;
            let scanned = scan(&bytes.into());
            prop_assert_eq!(scanned.messages, [messages[0].clone(), messages[2].clone()]);
            prop_assert_eq!(scanned.damaged_bytes, records[1].len());
        }

        #[test]
        fn any_bytes_can_be_read(bytes in vec(any::<u8>(), 0..200)) {
            let _ = scan(&bytes.into());
        }
    }
}
