//! The simulator signs, the adapters verify: two separate codes, one law.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use paybell::simulator::stripe::{Situation, endings};
use paybell::simulator::{Headers, SimulatedPsp, Webhook};
use paybell_shared::clock::Timestamp;
use paybell_shared::envelope::Envelope;
use paybell_shared::event::Mode;
use paybell_shared::psp::{self, Account, Api, Keys, Proof, Rejection, TranslateError, Verified, WebhookRequest};
use paybell_shared::secret::Secret;
use proptest::prelude::*;

const TOLERANCE_S: u32 = 300;

fn verify(psp: SimulatedPsp, secret: &str, headers: &Headers, body: &[u8], now: i64) -> Result<Verified, Rejection> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    let keys = Keys { secrets: vec![Secret::new("theirs", secret)], tolerance_s: TOLERANCE_S, ..Keys::default() };
    let request = WebhookRequest { headers: &map, body, token: None, certificate: None };
    psp::find(psp.id()).unwrap().verify(&request, &keys, Timestamp::from_seconds(now))
}

fn psps() -> impl Strategy<Value = SimulatedPsp> {
    prop::sample::select(SimulatedPsp::ALL.to_vec())
}

/// A secret that both PSPs take: `whsec_` and the Base64 of 24 to 64 bytes.
fn secrets() -> impl Strategy<Value = String> {
    use base64::Engine as _;
    prop::collection::vec(any::<u8>(), 24..=64)
        .prop_map(|bytes| format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
}

/// Any event that the PSP has, about any order.
fn webhooks() -> impl Strategy<Value = (SimulatedPsp, Webhook)> {
    (psps(), any::<prop::sample::Index>(), "[ -~]{1,40}", 1i64..1_000_000_000, any::<u64>(), any::<bool>()).prop_map(
        |(psp, event, order, amount, salt, livemode)| {
            let situation = Situation {
                order_id: &order,
                amount,
                currency: "EUR",
                part: None,
                ending: None,
                livemode,
                at: 1_790_000_000,
                salt,
            };
            let event = psp.event_types()[event.index(psp.event_types().len())];
            (psp, psp.staged(event, &situation).unwrap())
        },
    )
}

proptest! {
    #[test]
    fn what_is_signed_verifies_within_the_tolerance(
        (psp, webhook) in webhooks(), secret in secrets(), at in 1_000_000_000i64..4_000_000_000, skew in -300i64..=300,
    ) {
        let headers = psp.sign(&secret, &webhook, at).unwrap();
        let verified = verify(psp, &secret, &headers, &webhook.body, at + skew).unwrap();
        prop_assert_eq!(verified.webhook_id(), &webhook.id);
        prop_assert_eq!(verified.proof(), Proof::Proven);
        prop_assert_eq!(verified.secret_name(), "theirs");
    }

    #[test]
    fn beyond_the_tolerance_it_does_not(
        (psp, webhook) in webhooks(), secret in secrets(), at in 1_000_000_000i64..4_000_000_000, beyond in 301i64..100_000,
    ) {
        let headers = psp.sign(&secret, &webhook, at).unwrap();
        let is_old = matches!(verify(psp, &secret, &headers, &webhook.body, at + beyond), Err(Rejection::TooOld { .. }));
        prop_assert!(is_old);
        let is_new = matches!(verify(psp, &secret, &headers, &webhook.body, at - beyond), Err(Rejection::TooNew { .. }));
        prop_assert!(is_new);
    }

    #[test]
    fn any_altered_byte_is_found(
        (psp, webhook) in webhooks(), secret in secrets(), place in any::<prop::sample::Index>(), mask in 1u8..,
    ) {
        let headers = psp.sign(&secret, &webhook, 1_790_000_000).unwrap();
        let mut body = webhook.body.to_vec();
        let place = place.index(body.len());
        body[place] ^= mask;
        let result = verify(psp, &secret, &headers, &body, 1_790_000_000);
        let is_mismatch = matches!(result, Err(Rejection::SignatureMismatch { .. }));
        prop_assert!(is_mismatch, "{:?}", result);
    }

    #[test]
    fn any_other_secret_is_found((psp, webhook) in webhooks(), secret in secrets(), other in secrets()) {
        prop_assume!(secret != other);
        let headers = psp.sign(&other, &webhook, 1_790_000_000).unwrap();
        let result = verify(psp, &secret, &headers, &webhook.body, 1_790_000_000);
        let is_mismatch = matches!(result, Err(Rejection::SignatureMismatch { .. }));
        prop_assert!(is_mismatch, "{:?}", result);
    }
}

/// The account that every event here is for.
fn account(psp: SimulatedPsp) -> Account {
    Account {
        psp: psp::find(psp.id()).unwrap(),
        psp_id: psp.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys::default(),
        api: Api::default(),
        order_reference: None,
        capture: psp::Capture::default(),
    }
}

#[test]
fn every_event_that_can_be_sent_is_understood() {
    let mut understood = 0;
    for psp in SimulatedPsp::ALL {
        for event_type in psp.event_types() {
            for ending in [None].into_iter().chain(endings(event_type).iter().map(|ending| Some(*ending))) {
                let situation = Situation {
                    order_id: "ORD-1001",
                    amount: 4999,
                    currency: "EUR",
                    part: None,
                    ending,
                    livemode: false,
                    at: 1_790_000_000,
                    salt: 1,
                };
                let webhook = psp.staged(event_type, &situation).unwrap();
                let secret = "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=";
                let headers = psp.sign(secret, &webhook, 1_790_000_000).unwrap();
                let verified = verify(psp, secret, &headers, &webhook.body, 1_790_000_000).unwrap();
                let account = account(psp);
                let envelope = Envelope::new(&account, verified, Timestamp::from_seconds(1_790_000_000), webhook.body, None);
                match account.psp.translate(&envelope, &account) {
                    Ok(events) => understood += events.len(),
                    Err(TranslateError::Ignored(_)) => {}
                    Err(error) => panic!("{event_type} {ending:?}: {error}"),
                }
            }
        }
    }
    // Twelve normalised types, and at least as many of Stripe's.
    assert!(understood >= 24, "{understood}");
}

#[test]
fn a_private_key_of_standard_webhooks_signs_for_its_public_one() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let private = format!("whsk_{}", STANDARD.encode([9; 32]));
    let public = format!("whpk_{}", STANDARD.encode(pair.public_key()));
    let body = Bytes::from_static(br#"{"type":"payment.captured","timestamp":"2026-09-21T13:33:10Z","data":{}}"#);
    let webhook = Webhook { id: "msg_1".to_owned(), event_type: "payment.captured".to_owned(), body };
    let psp = SimulatedPsp::StandardWebhooks;
    let headers = psp.sign(&private, &webhook, 1_790_000_000).unwrap();
    assert_eq!(verify(psp, &public, &headers, &webhook.body, 1_790_000_000).unwrap().webhook_id(), "msg_1");
}
