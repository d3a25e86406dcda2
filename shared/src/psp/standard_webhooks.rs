//! Standard Webhooks: for an in-house or unlisted PSP.
//!
//! **Signature** (standardwebhooks.com, specification). `webhook-id`, `webhook-timestamp` (seconds),
//! `webhook-signature`: `<version>,<base64>` elements, separated by single spaces; any that matches accepts, unknown
//! versions are skipped. Signed is `id.timestamp.body`.
//! - `v1`: HMAC-SHA256; the key is the base64 of the secret without its `whsec_`, 24 to 64 bytes, padded or not.
//! - `v1a`: ed25519; the configured "secret" is the public key, `whpk_<base64>`, never one from a request.
//!
//! Stricter than the libraries: an id with a dot is refused, since `a.1` + `.2.…` and `a` + `.1.2.…` are the same signed
//! bytes, and a body could be cut into another id, time and body under one signature.
//!
//! **Body.** Paybell's normalised event, or any JSON by pointers (`normalised.rs`). The event's id is `webhook-id`, which is
//! signed and the same on every retry.
//!
//! Svix, from which the specification came, differs in the names of the headers alone (`svix.rs`).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use super::signature::{self, Matching, SIGNATURES_MAX};
use super::{
    Abilities, Account, Keys, LateChanges, Profile, Proof, Psp, Rejection, Scheme, SettingError, TranslateError, Verified,
    WebhookRequest, generic, normalised,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::PaymentEvent;
use crate::secret::Secret;

/// The adapter.
pub struct StandardWebhooks;

/// The names of the three headers.
pub(super) struct Names {
    pub id: &'static str,
    pub timestamp: &'static str,
    pub signature: &'static str,
}

pub(super) const NAMES: Names = Names { id: "webhook-id", timestamp: "webhook-timestamp", signature: "webhook-signature" };

/// Keys of `v1`, in bytes, by the specification.
const KEY_BYTES_MIN: usize = 24;
const KEY_BYTES_MAX: usize = 64;
/// The base64 of [`KEY_BYTES_MAX`], padded.
const KEY_DIGITS_MAX: usize = KEY_BYTES_MAX.div_ceil(3) * 4;
/// Room for the decoded digits before the length is judged.
const KEY_ROOM: usize = KEY_DIGITS_MAX / 4 * 3;

const ED25519_KEY_BYTES: usize = 32;
const ED25519_SIGNATURE_BYTES: usize = 64;

/// The longest id, in bytes.
const ID_BYTES_MAX: usize = 255;

static PROFILE: Profile = Profile {
    name: "Standard Webhooks",
    // Signed, and not in the body: part of what makes two deliveries the same.
    translate_headers: &[NAMES.id],
    // Recommended to senders: 15 to 30 s.
    timeout: Duration::from_secs(15),
    // The recommended steps: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h, in sum 75 h 35 min.
    retry_window: Duration::from_mins(75 * 60 + 35),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    // 2: amounts as decimal strings.
    mapping_version: 2,
    // Both at once: a header's elements say which they are.
    schemes: &[Scheme::signed("standard-webhooks-v1"), Scheme::signed("standard-webhooks-v1a")],
    can: Abilities { payment_status: false, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for StandardWebhooks {
    fn id(&self) -> &'static str {
        "standard-webhooks"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        check(account, "Standard Webhooks")
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        verify(&NAMES, request, keys, now)
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        normalised::translate(envelope, account).map(|event| vec![event])
    }
}

// ---------------------------------------------------------------------------------------------------- verification

/// Refuses secrets that are no keys, and rules of another signature.
pub(super) fn check(account: &Account, known: &str) -> Result<(), SettingError> {
    let refuse = |problem| Err(SettingError { setting: "secrets", problem });
    if account.keys.secrets.is_empty() {
        return refuse("is empty: without a secret nothing can be verified".to_owned());
    }
    for secret in &account.keys.secrets {
        if let Err(problem) = Key::read(secret.expose()) {
            return refuse(format!("{} {problem}", secret.name()));
        }
    }
    if account.keys.generic.as_ref().is_some_and(|rules| rules.pointers.id.is_some()) {
        let problem = "says where the event's id stands, but it is in a header that is signed".to_owned();
        return Err(SettingError { setting: "generic.id", problem });
    }
    generic::check_pointers_only(account, known)
}

/// By headers of these names.
pub(super) fn verify(names: &Names, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
    let id = signature::exactly_one(request.headers, names.id)?;
    check_id(id).map_err(|problem| Rejection::MalformedHeader { header: names.id, problem })?;
    let time = signature::exactly_one(request.headers, names.timestamp)?;
    let seconds = signature::seconds(time)
        .ok_or(Rejection::MalformedHeader { header: names.timestamp, problem: "it is no plain number of seconds" })?;
    let offered = SignatureHeader::read(names.signature, signature::exactly_one(request.headers, names.signature)?)?;
    if request.body.is_empty() {
        return Err(Rejection::EmptyBody);
    }
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", request.body];
    // ed25519 wants one piece; the body is copied for it only where a signature and a key of that kind meet.
    let mut whole = None;
    let mut matching = Matching::new();
    let mut usable = false;
    for (position, secret) in keys.active(now) {
        // `check` refuses such a secret at start; here it matches nothing.
        let Ok(key) = Key::read(secret.expose()) else { continue };
        usable = true;
        let equal = match key {
            Key::Hmac(key) => {
                let mac = signature::hmac_sha256(key.as_bytes(), &signed);
                offered.of("v1").fold(Choice::from(0), |equal, signature: [u8; 32]| equal | signature.ct_eq(&mac))
            }
            Key::Ed25519(key) => {
                let holds = |signature: [u8; ED25519_SIGNATURE_BYTES]| {
                    let message = whole.get_or_insert_with(|| signed.concat());
                    Choice::from(u8::from(UnparsedPublicKey::new(&ED25519, key).verify(message, &signature).is_ok()))
                };
                offered.of("v1a").map(holds).fold(Choice::from(0), |equal, holds| equal | holds)
            }
        };
        matching.note(position, equal);
    }
    if !usable {
        return Err(Rejection::Setting("secrets"));
    }
    let secret_name = matching.secret_name(keys)?;
    signature::within_tolerance(seconds, now, keys.tolerance_s)?;

    Ok(Verified {
        webhook_id: id.to_owned(),
        event_type: normalised::event_type(request.body, keys),
        subject: None,
        secret_name,
        proof: Proof::Proven,
        content_type: signature::content_type(request.headers),
        headers: vec![(names.id.to_owned(), id.to_owned())],
    })
}

/// A configured secret, decoded.
enum Key {
    Hmac(HmacKey),
    Ed25519([u8; ED25519_KEY_BYTES]),
}

/// Signs as a sender does, by `v1`: Paybell's own notifications.
pub struct Signer(Vec<HmacKey>);

impl Signer {
    /// # Errors
    /// A secret is none that a sender signs with: which one, and what is wrong with it.
    pub fn new(secrets: &[Secret]) -> Result<Self, (usize, &'static str)> {
        let keys = secrets.iter().enumerate().map(|(position, secret)| match Key::read(secret.expose()) {
            Ok(Key::Hmac(key)) => Ok(key),
            Ok(Key::Ed25519(_)) => Err((position, "is a public key, which does not sign")),
            Err(problem) => Err((position, problem)),
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// The headers of a call: a signature by every secret, so that a receiver may know any one of them.
    #[must_use]
    pub fn headers(&self, id: &str, at: Timestamp, body: &[u8]) -> [(&'static str, String); 3] {
        let time = at.seconds().to_string();
        let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body];
        let signature = |key: &HmacKey| format!("v1,{}", STANDARD.encode(signature::hmac_sha256(key.as_bytes(), &signed)));
        let signatures: Vec<String> = self.0.iter().map(signature).collect();
        [(NAMES.id, id.to_owned()), (NAMES.timestamp, time), (NAMES.signature, signatures.join(" "))]
    }
}

/// Wiped after use.
struct HmacKey {
    room: Zeroizing<[u8; KEY_ROOM]>,
    length: usize,
}

impl HmacKey {
    fn as_bytes(&self) -> &[u8] {
        &self.room[..self.length]
    }
}

impl Key {
    fn read(secret: &str) -> Result<Self, &'static str> {
        if secret.starts_with("whsk_") {
            return Err("is a private key, which is the sender's alone; a receiver has the public one, whpk_…");
        }
        if let Some(digits) = secret.strip_prefix("whpk_") {
            let mut key = [0; ED25519_KEY_BYTES];
            return match signature::EITHER_PADDING.decode_slice(digits, &mut key) {
                Ok(ED25519_KEY_BYTES) => Ok(Self::Ed25519(key)),
                _ => Err("is not the base64 of an ed25519 public key of 32 bytes"),
            };
        }
        let digits = secret.strip_prefix("whsec_").unwrap_or(secret);
        if digits.is_empty() {
            return Err("is empty");
        }
        if digits.len() > KEY_DIGITS_MAX {
            return Err("is longer than the base64 of 64 bytes");
        }
        let mut room = Zeroizing::new([0; KEY_ROOM]);
        let length = signature::EITHER_PADDING.decode_slice(digits, room.as_mut_slice()).map_err(|_| "is not base64")?;
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&length) {
            return Err("does not decode to 24 to 64 bytes");
        }
        Ok(Self::Hmac(HmacKey { room, length }))
    }
}

/// The dot separates id, time and body in what is signed: an id that has one could be cut differently.
fn check_id(id: &str) -> Result<(), &'static str> {
    if id.len() > ID_BYTES_MAX {
        return Err("it is longer than 255 bytes");
    }
    if !id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.') {
        return Err("it has a dot or a space");
    }
    Ok(())
}

/// The header, its grammar checked, nothing of it copied.
struct SignatureHeader<'h>(&'h str);

impl<'h> SignatureHeader<'h> {
    fn read(header: &'static str, text: &'h str) -> Result<Self, Rejection> {
        let malformed = |problem| Err(Rejection::MalformedHeader { header, problem });
        let (mut known, mut elements) = (false, 0);
        for element in text.split(' ') {
            let Some((version, _)) = element.split_once(',') else { return malformed("an element is no version,signature") };
            known |= matches!(version, "v1" | "v1a");
            elements += 1;
        }
        if elements > SIGNATURES_MAX {
            return malformed("it has too many signatures");
        }
        if known { Ok(Self(text)) } else { Err(Rejection::NoUsableSignature("only v1 and v1a are accepted")) }
    }

    /// The well-formed signatures of a version; an ill-formed one beside them can match nothing.
    fn of<const BYTES: usize>(&self, version: &str) -> impl Iterator<Item = [u8; BYTES]> {
        self.0.split(' ').filter_map(|element| element.split_once(',')).filter_map(move |(offered, digits)| {
            let mut signature = [0; BYTES];
            let decoded = offered == version && STANDARD.decode_slice(digits, &mut signature) == Ok(BYTES);
            decoded.then_some(signature)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    use super::super::AskError;
    use super::super::tests::{self, Specimen, account, verify};
    use super::*;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &StandardWebhooks,
            scheme: "standard-webhooks-v1",
            secret: "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=",
            other_secret: "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktT0xEMDAh",
            settings: |_| {},
            sign: |secret, time_s, body| {
                let (key, time) = (STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap(), time_s.to_string());
                let mac = signature::hmac_sha256(&key, &[b"msg_1.", time.as_bytes(), b".", body]);
                let signed = format!("v1,{}", STANDARD.encode(mac));
                (
                    tests::headers([(NAMES.id, "msg_1".to_owned()), (NAMES.timestamp, time), (NAMES.signature, signed)]),
                    body.to_vec(),
                )
            },
            body: br#"{"type":"payment.pending"}"#,
            event_type: Some("payment.pending"),
            timed: true,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    const KEY: &[u8; 32] = b"test-standard-webhooks-key-0001!";
    const TIME: &str = "1790000000";
    const BODY: &[u8] = br#"{"type":"payment.pending"}"#;

    fn secret(key: &[u8]) -> String {
        format!("whsec_{}", STANDARD.encode(key))
    }

    fn mac(id: &str, body: &[u8]) -> String {
        STANDARD.encode(signature::hmac_sha256(KEY, &[id.as_bytes(), b".", TIME.as_bytes(), b".", body]))
    }

    fn headers(id: &str, signature: &str) -> HeaderMap {
        let pairs = [(NAMES.id, id), (NAMES.timestamp, TIME), (NAMES.signature, signature)];
        pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).into_iter().collect()
    }

    fn reason(secrets: &[&str], headers: &HeaderMap) -> &'static str {
        verify(&StandardWebhooks, secrets, headers, BODY).map_or_else(|rejection| rejection.reason(), |_| "accepted")
    }

    #[test]
    fn the_header_is_a_list_of_which_one_must_match() {
        let secret = secret(KEY);
        let good = mac("msg_1", BODY);
        let other = STANDARD.encode([0; 32]);
        for (signatures, expected) in [
            (format!("v1,{good}"), "accepted"),
            (format!("v1,{other} v1,{good}"), "accepted"),
            (format!("v2,{other} v1a,{good} v1,{good}"), "accepted"),
            (format!("v1,@@ v1,{good}"), "accepted"),
            (format!("v2,{good}"), "no_usable_signature"),
            (format!("V1,{good}"), "no_usable_signature"),
            (format!("v1a,{good}"), "signature_mismatch"),
            (format!("v1,{}", good.trim_end_matches('=')), "signature_mismatch"),
            (format!("v1,{good}="), "signature_mismatch"),
            (format!("v1,{good},x"), "signature_mismatch"),
            ("v1,".to_owned(), "signature_mismatch"),
            (format!("v1,{good}  v1,{good}"), "malformed_header"),
            (format!("v1,{good} x"), "malformed_header"),
            (format!("v1={good}"), "malformed_header"),
            (vec![format!("v1,{good}"); SIGNATURES_MAX + 1].join(" "), "malformed_header"),
        ] {
            assert_eq!(reason(&[&secret], &headers("msg_1", &signatures)), expected, "{signatures}");
        }
    }

    #[test]
    fn one_signature_has_one_reading() {
        // Without the rule about dots these are the same signed bytes, cut at another place.
        let secret = secret(KEY);
        let inner = br#"{"a":"x.1790000000.y"}"#;
        let mac = mac("msg_1", inner);
        let accepted = |id: &str, body: &[u8]| verify(&StandardWebhooks, &[&secret], &headers(id, &format!("v1,{mac}")), body);
        assert!(accepted("msg_1", inner).is_ok());
        let cut = accepted(r#"msg_1.1790000000.{"a":"x"#, br#"y"}"#).unwrap_err();
        assert_eq!(cut.reason(), "malformed_header");
        for id in ["a b", "a.b", "", &"a".repeat(256)] {
            assert_eq!(reason(&[&secret], &headers(id, "v1,x")), "malformed_header", "{id:?}");
        }
    }

    #[test]
    fn public_and_shared_keys_may_stand_in_one_list() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let public = format!("whpk_{}", STANDARD.encode(pair.public_key()));
        let shared = secret(KEY);
        let message = [b"msg_1.", TIME.as_bytes(), b".", BODY].concat();
        let signed = STANDARD.encode(pair.sign(&message));
        let by_public = headers("msg_1", &format!("v1a,{signed}"));
        let by_shared = headers("msg_1", &format!("v1,{}", mac("msg_1", BODY)));
        for secrets in [[&*public, &*shared], [&*shared, &*public]] {
            assert_eq!((reason(&secrets, &by_public), reason(&secrets, &by_shared)), ("accepted", "accepted"));
        }
        assert_eq!(
            (reason(&[&shared], &by_public), reason(&[&public], &by_shared)),
            ("signature_mismatch", "signature_mismatch")
        );
        // A public key is no secret: it must not serve as one.
        let forged = signature::hmac_sha256(pair.public_key().as_ref(), &[&message]);
        assert_eq!(reason(&[&public], &headers("msg_1", &format!("v1,{}", STANDARD.encode(forged)))), "signature_mismatch");
        assert_eq!(reason(&["whsec_short", &shared], &by_shared), "accepted", "one broken secret does not silence the others");
        assert_eq!(reason(&["whsec_short"], &by_shared), "setting");
    }

    #[test]
    fn secrets_are_judged_at_their_limits() {
        let check = |secret: &str| StandardWebhooks.check(&account(&StandardWebhooks, &[secret])).is_ok();
        for length in [24, 25, 26, 32, 63, 64] {
            let padded = secret(&vec![7; length]);
            assert!(
                check(&padded) && check(padded.trim_end_matches('=')) && check(padded.strip_prefix("whsec_").unwrap()),
                "{length}"
            );
        }
        for bad in
            [secret(&[7; 23]), secret(&[7; 65]), secret(&[7; 66]), secret(&[7; 67]), "whsec_".to_owned(), "whsec_@@@@".to_owned()]
        {
            assert!(!check(&bad), "{bad}");
        }
        let key = STANDARD.encode([7; 32]);
        assert!(check(&format!("whpk_{key}")) && check(&format!("whpk_{}", key.trim_end_matches('='))));
        for bad in
            [format!("whsk_{key}"), format!("whpk_{}", STANDARD.encode([7; 31])), format!("whpk_{}", STANDARD.encode([7; 33]))]
        {
            assert!(!check(&bad), "{bad}");
        }
    }

    #[test]
    fn there_is_nobody_to_ask() {
        let account = account(&StandardWebhooks, &[&secret(KEY)]);
        assert_eq!(StandardWebhooks.status_request("pay_1", None, &account).unwrap_err(), AskError::Unsupported);
        assert_eq!(StandardWebhooks.events_request(tests::WHOLE, None, &account).unwrap_err(), AskError::Unsupported);
        assert_eq!(StandardWebhooks.endpoints_request(None, &account).unwrap_err(), AskError::Unsupported);
    }
}
