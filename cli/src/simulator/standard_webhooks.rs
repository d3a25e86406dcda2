//! A sender after the Standard Webhooks specification that carries Paybell's normalised events.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use ring::signature::Ed25519KeyPair;

use super::dialect::{Dialect, EventType, Settings, SignError, SignedCall, Webhook};
use super::ledger::{Event, Object, Step};
use super::seed::Seed;
use super::story::Story;
use super::{mac, normalised};

/// An in-house PSP, or a bridge to one, that carries normalised events.
pub struct StandardWebhooks;

/// The schedule that the specification recommends.
pub(super) const RETRIES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    Duration::from_hours(24),
];

/// The specification's bounds for a symmetric key, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

impl Dialect for StandardWebhooks {
    fn id(&self) -> &'static str {
        "standard-webhooks"
    }

    /// The secret says which: one for `v1`, a private key for `v1a`.
    fn speaks(&self, _scheme: Option<&str>) -> bool {
        true
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        normalised::object_id(object, seed)
    }

    fn event_types(&self) -> &'static [EventType] {
        &normalised::EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        normalised::told(self, step)
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("webhook-id", webhook.id.clone()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", signature(&settings.secret, &webhook.id, at, &webhook.body)?),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn secret(&self, seed: &Seed) -> String {
        key(seed)
    }

    fn settings(&self) -> Settings {
        Settings { secret: self.secret(&Seed::new("secret", "standard-webhooks", 0)), ..Settings::default() }
    }

    fn signs_time(&self) -> bool {
        true
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn plays(&self, story: Story) -> bool {
        normalised::plays(story)
    }
}

/// A symmetric secret, as both names of the scheme write it.
pub(super) fn key(seed: &Seed) -> String {
    format!("whsec_{}", STANDARD.encode(seed.hex(32)))
}

/// The value of `webhook-signature` over `id.timestamp.body`: `v1` with a symmetric secret, `v1a` with a `whsk_` key.
///
/// # Errors
/// The secret cannot sign.
pub fn signature(secret: &str, id: &str, at: i64, body: &[u8]) -> Result<String, SignError> {
    let at = at.to_string();
    let parts: [&[u8]; 5] = [id.as_bytes(), b".", at.as_bytes(), b".", body];
    if secret.starts_with("whpk_") {
        return Err(refuse("a public key (\"whpk_\") signs nothing: it takes the private one (\"whsk_\")"));
    }
    if let Some(private) = secret.strip_prefix("whsk_") {
        let bytes = STANDARD_PAD_INDIFFERENT.decode(private).map_err(|_| not_base64())?;
        // Only the seed is needed; libsodium appends the public key to it.
        let seed = bytes.get(..32).filter(|_| matches!(bytes.len(), 32 | 64)).ok_or_else(not_ed25519)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| not_ed25519())?;
        return Ok(format!("v1a,{}", STANDARD.encode(pair.sign(&parts.concat()))));
    }
    let key = STANDARD_PAD_INDIFFERENT.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).map_err(|_| not_base64())?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err(refuse(&format!("it is {} bytes long, Standard Webhooks wants 24 to 64", key.len())));
    }
    Ok(format!("v1,{}", STANDARD.encode(mac::sha256(&key, &parts))))
}

fn refuse(problem: &str) -> SignError {
    SignError::Secret(problem.to_owned())
}

fn not_base64() -> SignError {
    refuse("it is not Base64 (after its prefix, if it has one)")
}

fn not_ed25519() -> SignError {
    refuse("it is no Ed25519 key: 32 bytes of seed, or 64 of seed and public key, are expected")
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
        for (secret, problem) in
            [("whsec_***", "not Base64"), ("whsec_AAAA", "3 bytes"), ("whpk_AAAA", "public key"), ("whsk_AAAA", "Ed25519")]
        {
            let refusal = signature(secret, "m", 0, b"").unwrap_err().to_string();
            assert!(refusal.contains(problem), "{refusal}");
        }
    }
}
