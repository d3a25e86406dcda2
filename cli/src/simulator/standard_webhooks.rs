//! A sender after the Standard Webhooks specification that carries Paybell's normalised events.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use ring::signature::Ed25519KeyPair;
use serde_json::json;

use super::ledger::{DECLINES, payment_id};
use super::stripe::{Situation, mac};
use paybell_shared::clock::Timestamp;

/// Every normalised type.
pub const EVENT_TYPES: [&str; 12] = [
    "payment.pending",
    "payment.authorized",
    "payment.captured",
    "payment.failed",
    "payment.canceled",
    "payment.expired",
    "refund.pending",
    "refund.succeeded",
    "refund.failed",
    "dispute.opened",
    "dispute.won",
    "dispute.lost",
];

/// The specification's bounds for a symmetric key, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the secret is not Base64 (after \"whsec_\", if it has that)")]
    NotBase64,
    #[error("the secret is {0} bytes long, Standard Webhooks wants 24 to 64")]
    Length(usize),
    #[error("a public key (\"whpk_\") cannot sign: it takes the private one (\"whsk_\")")]
    PublicKey,
    #[error("the private key is no Ed25519 key: 32 bytes of seed, or 64 of seed and public key, are expected")]
    PrivateKey,
}

/// The value of `webhook-signature` over `id.timestamp.body`: `v1` with a symmetric secret, `v1a` with a `whsk_` key.
///
/// # Errors
/// The secret cannot sign.
pub fn signature(secret: &str, id: &str, at: i64, body: &[u8]) -> Result<String, SignError> {
    let at = at.to_string();
    let parts: [&[u8]; 5] = [id.as_bytes(), b".", at.as_bytes(), b".", body];
    if secret.starts_with("whpk_") {
        return Err(SignError::PublicKey);
    }
    if let Some(private) = secret.strip_prefix("whsk_") {
        let bytes = STANDARD_PAD_INDIFFERENT.decode(private).map_err(|_| SignError::NotBase64)?;
        // Only the seed is needed; libsodium appends the public key to it.
        let seed = bytes.get(..32).filter(|_| matches!(bytes.len(), 32 | 64)).ok_or(SignError::PrivateKey)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| SignError::PrivateKey)?;
        return Ok(format!("v1a,{}", STANDARD.encode(pair.sign(&parts.concat()))));
    }
    let key =
        STANDARD_PAD_INDIFFERENT.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).map_err(|_| SignError::NotBase64)?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err(SignError::Length(key.len()));
    }
    Ok(format!("v1,{}", STANDARD.encode(mac(&key, &parts))))
}

/// One normalised event about an order's payment; `None`: no such type.
#[must_use]
pub fn staged(event_type: &str, situation: &Situation<'_>) -> Option<super::Webhook> {
    let event_type = EVENT_TYPES.into_iter().find(|known| *known == event_type)?;
    // The ids that Stripe's simulator derives serve as well: one payment, one refund, one dispute an order.
    let payment = payment_id(situation.order_id);
    let tail = payment.trim_start_matches("pi_");
    let is_part = event_type.starts_with("refund") || event_type.starts_with("dispute") || event_type == "payment.captured";
    let amount = situation.part.filter(|_| is_part).unwrap_or(situation.amount);
    let mut data = json!({
        "order_id": situation.order_id,
        "payment_id": format!("pay_{tail}"),
        "amount": amount,
        "currency": situation.currency.to_ascii_uppercase(),
    });
    if event_type.starts_with("refund") {
        data["refund_id"] = format!("ref_{tail}").into();
    } else if event_type.starts_with("dispute") {
        data["dispute_id"] = format!("dis_{tail}").into();
    } else if event_type == "payment.failed" {
        data["failure_code"] = DECLINES[0].code.into();
        data["failure_message"] = DECLINES[0].message.into();
    }
    let timestamp = Timestamp::from_seconds(situation.at);
    let body = json!({ "type": event_type, "timestamp": timestamp, "data": data }).to_string();
    let id = format!("msg_{:016x}", situation.salt);
    Some(super::Webhook { id, event_type: event_type.to_owned(), body: body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of the vectors `stdwh-*`.
    const BODY: &str = r#"{"type":"payment.succeeded","timestamp":"2026-09-21T13:33:10Z","data":{"id":"pay_1001","order_id":"ORD-1001","amount":4999,"currency":"EUR","status":"succeeded"}}"#;

    #[test]
    fn signs_as_the_official_library_does() {
        for secret in ["whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=", "dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE="] {
            let signed = signature(secret, "msg_2KWPTestMessage0001", 1_789_999_995, BODY.as_bytes());
            assert_eq!(signed.unwrap(), "v1,vWQIIsgKcKe3eRP7/yYMyWUk9dTOgWX7mdho2XOfYgk=");
        }
    }

    #[test]
    fn a_private_key_signs_so_that_its_public_key_verifies() {
        use ring::signature::{ED25519, KeyPair as _, UnparsedPublicKey};
        let seed = [7; 32];
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let both = [&seed[..], pair.public_key().as_ref()].concat();
        for private in [&seed[..], &both] {
            let secret = format!("whsk_{}", STANDARD.encode(private));
            let signed = signature(&secret, "msg_1", 5, b"body").unwrap();
            let bytes = STANDARD.decode(signed.strip_prefix("v1a,").unwrap()).unwrap();
            UnparsedPublicKey::new(&ED25519, pair.public_key()).verify(b"msg_1.5.body", &bytes).unwrap();
        }
    }

    #[test]
    fn refuses_secrets_that_cannot_sign() {
        let refusal = |secret| signature(secret, "m", 0, b"").unwrap_err();
        assert_eq!(refusal("whsec_***"), SignError::NotBase64);
        assert_eq!(refusal("whsec_AAAA"), SignError::Length(3));
        assert_eq!(refusal("whpk_AAAA"), SignError::PublicKey);
        assert_eq!(refusal("whsk_AAAA"), SignError::PrivateKey);
    }
}
