//! What holds for every adapter, as tables over [`ALL`]; an adapter's own rules are tested in its file.
//!
//! The signers here are for these tests only; the simulator has its own, and both answer to the same vectors.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::signature::hmac_sha256;
use super::*;
use crate::event::{Reference, ReferenceKind};

pub(super) const NOW_S: i64 = 1_790_000_000;
const TOLERANCE_S: u32 = 300;
/// Text for Stripe, base64 of 32 bytes for Standard Webhooks.
const SECRET: &str = "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=";
const OTHER_SECRET: &str = "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktT0xEMDAh";
const BODY: &[u8] = br#"{"id":"evt_1","object":"event","type":"payment_intent.succeeded"}"#;

pub(super) fn account(psp: &'static dyn Psp, secrets: &[&str]) -> Account {
    let named = |(number, secret): (usize, &&str)| Secret::new(format!("secrets[{number}]"), *secret);
    Account {
        psp,
        psp_id: psp.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys { secrets: secrets.iter().enumerate().map(named).collect(), tolerance_s: TOLERANCE_S },
        api: Api { key: Some(Secret::new("api_key", "sk_test_invented")), url: None },
        order_reference: None,
    }
}

/// The headers that the PSP would send.
fn sign(psp: &dyn Psp, secret: &str, time_s: i64, body: &[u8]) -> HeaderMap {
    let time = time_s.to_string();
    let headers = match psp.id() {
        "stripe" => {
            let mac = hmac_sha256(secret.as_bytes(), &[time.as_bytes(), b".", body]);
            vec![("stripe-signature", format!("t={time},v1={}", hex::encode(mac)))]
        }
        "standard-webhooks" => {
            let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
            let mac = hmac_sha256(&key, &[b"msg_1.", time.as_bytes(), b".", body]);
            vec![
                ("webhook-id", "msg_1".to_owned()),
                ("webhook-timestamp", time),
                ("webhook-signature", format!("v1,{}", STANDARD.encode(mac))),
            ]
        }
        other => panic!("the tests cannot sign as {other}"),
    };
    let header = |(name, value): (&'static str, String)| (HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
    headers.into_iter().map(header).collect()
}

pub(super) fn verify(psp: &'static dyn Psp, secrets: &[&str], headers: &HeaderMap, body: &[u8]) -> Result<Verified, Rejection> {
    let request = WebhookRequest { headers, body, token: None };
    psp.verify(&request, &account(psp, secrets).keys, Timestamp::from_seconds(NOW_S))
}

/// The envelope of a body that the PSP signed.
pub(super) fn envelope(psp: &'static dyn Psp, body: &[u8]) -> Envelope {
    let verified = verify(psp, &[SECRET], &sign(psp, SECRET, NOW_S, body), body).unwrap();
    let received_at = Timestamp::from_seconds(NOW_S);
    Envelope::new(&account(psp, &[SECRET]), verified, received_at, Bytes::copy_from_slice(body), None)
}

/// The webhook bodies beside the adapter, by name.
pub(super) fn fixtures(psp: &dyn Psp) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/psp/fixtures").join(psp.id());
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let read = |path: PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
    let mut fixtures: Vec<_> = paths.map(read).collect();
    fixtures.sort();
    assert!(!fixtures.is_empty(), "{} has no fixtures", psp.id());
    fixtures
}

/// The id of any adapter.
fn any_psp() -> impl Strategy<Value = &'static str> {
    prop::sample::select(ALL.iter().map(|psp| psp.id()).collect::<Vec<_>>())
}

// -------------------------------------------------------------------------------------------------------- tables

#[test]
fn every_adapter_is_found_by_an_id_of_its_own() {
    let ids: BTreeSet<&str> = ALL.iter().map(|psp| psp.id()).collect();
    assert_eq!(ids.len(), ALL.len());
    for psp in ALL {
        assert_eq!(find(psp.id()).unwrap().id(), psp.id());
        let profile = psp.profile();
        assert!(profile.translate_headers.iter().all(|name| *name == name.to_ascii_lowercase()), "{}", psp.id());
        assert!(profile.mapping_version >= 1 && profile.retry_window > profile.timeout, "{}", psp.id());
    }
    assert!(find("unheard-of").is_none());
}

#[test]
fn every_vector_has_its_verdict() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("fixtures/vectors.json")).unwrap();
    let mut tried: Vec<&str> = Vec::new();
    for vector in vectors.as_array().unwrap() {
        let Some(psp) = find(vector["psp"].as_str().unwrap()) else { continue };
        let id = vector["id"].as_str().unwrap();
        let mut headers = HeaderMap::new();
        for (name, values) in vector["headers"].as_object().unwrap() {
            let values = values.as_array().cloned().unwrap_or_else(|| vec![values.clone()]);
            for value in values {
                let name: HeaderName = name.parse().unwrap();
                headers.append(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
            }
        }
        let body = STANDARD.decode(vector["body_base64"].as_str().unwrap()).unwrap();
        let secrets: Vec<&str> = vector["secrets"].as_array().unwrap().iter().map(|secret| secret.as_str().unwrap()).collect();
        let mut keys = account(psp, &secrets).keys;
        keys.tolerance_s = vector["tolerance_seconds"].as_u64().unwrap().try_into().unwrap();
        let now = Timestamp::from_seconds(vector["verify_at"].as_i64().unwrap());
        let verdict = psp.verify(&WebhookRequest { headers: &headers, body: &body, token: None }, &keys, now);
        // Stripe's SDKs take any time in the future; we do not.
        let expected = vector["expected"] == "valid" && id != "stripe-future-600s";
        assert_eq!(verdict.is_ok(), expected, "{id} ({}): {verdict:?}", vector["why"]);
        tried.push(psp.id());
    }
    for psp in ALL {
        assert!(tried.contains(&psp.id()), "{} has no vectors", psp.id());
    }
}

#[test]
fn a_genuine_webhook_is_accepted_under_any_of_the_secrets() {
    for &psp in ALL {
        for (secrets, name) in [(vec![SECRET], "secrets[0]"), (vec![OTHER_SECRET, SECRET], "secrets[1]")] {
            let verified = verify(psp, &secrets, &sign(psp, SECRET, NOW_S, BODY), BODY).unwrap();
            assert_eq!(verified.secret_name(), name, "{}", psp.id());
            assert_eq!(verified.event_type.as_deref(), Some("payment_intent.succeeded"));
            let kept: Vec<&str> = verified.headers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(kept, psp.profile().translate_headers, "{}", psp.id());
        }
    }
}

#[test]
fn what_is_not_genuine_is_refused_for_its_reason() {
    for &psp in ALL {
        let reason = |secrets: &[&str], headers: &HeaderMap, body: &[u8]| {
            verify(psp, secrets, headers, body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        let at = |time_s| sign(psp, SECRET, time_s, BODY);
        let genuine = at(NOW_S);
        let id = psp.id();
        assert_eq!(reason(&[OTHER_SECRET], &genuine, BODY), "signature_mismatch", "{id}");
        assert_eq!(reason(&[SECRET], &genuine, &BODY[..BODY.len() - 1]), "signature_mismatch", "{id}");
        assert_eq!(reason(&[SECRET], &genuine, &[BODY, b"\n"].concat()), "signature_mismatch", "{id}");
        assert_eq!(reason(&[SECRET], &sign(psp, SECRET, NOW_S, b""), b""), "empty_body", "{id}");
        let tolerance = i64::from(TOLERANCE_S);
        for (time_s, expected) in [
            (NOW_S - tolerance, "accepted"),
            (NOW_S + tolerance, "accepted"),
            (NOW_S - tolerance - 1, "too_old"),
            (NOW_S + tolerance + 1, "too_new"),
            (0, "too_old"),
        ] {
            assert_eq!(reason(&[SECRET], &at(time_s), BODY), expected, "{id} at {time_s}");
        }
        // A stale time on a forged webhook must not read as "compare the clocks".
        assert_eq!(reason(&[OTHER_SECRET], &at(0), BODY), "signature_mismatch", "{id}");
        for (name, value) in &genuine {
            let mut missing = genuine.clone();
            missing.remove(name);
            assert_eq!(reason(&[SECRET], &missing, BODY), "missing_header", "{id} without {name}");
            let mut doubled = genuine.clone();
            doubled.append(name, value.clone());
            assert_eq!(reason(&[SECRET], &doubled, BODY), "duplicate_header", "{id} with two {name}");
            for malformed in ["", ",", " ", "=", "x", "\u{ff}"] {
                let mut broken = genuine.clone();
                broken.insert(name, HeaderValue::from_bytes(malformed.as_bytes()).unwrap());
                assert_ne!(reason(&[SECRET], &broken, BODY), "accepted", "{id} with {name}: {malformed:?}");
            }
        }
    }
}

#[test]
fn an_account_that_could_verify_nothing_is_refused_at_start() {
    for &psp in ALL {
        assert_eq!(psp.check(&account(psp, &[SECRET, OTHER_SECRET])), Ok(()), "{}", psp.id());
        for secrets in [&[][..], &[""], &[SECRET, ""], &["has a space"], &["whsec_x\n"]] {
            let error = psp.check(&account(psp, secrets)).unwrap_err();
            assert_eq!(error.setting, "secrets", "{}", psp.id());
            assert!(!error.to_string().contains("has a space"), "a secret is printed");
        }
    }
}

#[test]
fn every_fixture_translates_as_recorded() {
    for &psp in ALL {
        for (name, body) in fixtures(psp) {
            let envelope = envelope(psp, &body);
            let translated = match psp.translate(&envelope, &account(psp, &[SECRET])) {
                Ok(events) => serde_json::to_value(events).unwrap(),
                Err(TranslateError::Ignored(reason)) => serde_json::json!({ "ignored": reason }),
                Err(TranslateError::Unintelligible { reason, pointer }) => {
                    serde_json::json!({ "unintelligible": reason, "pointer": pointer })
                }
            };
            insta::assert_json_snapshot!(format!("{}-{name}", psp.id()), translated);
        }
    }
}

#[test]
fn events_are_keyed_by_account_and_webhook_and_lead_to_their_payment() {
    for &psp in ALL {
        for (name, body) in fixtures(psp) {
            let envelope = envelope(psp, &body);
            for event in psp.translate(&envelope, &account(psp, &[SECRET])).unwrap_or_default() {
                assert_eq!((&*event.key.psp, &*event.key.account), (psp.id(), "default"), "{name}");
                assert_eq!(event.key.event_id, envelope.webhook_id, "{name}");
                let payment = Reference::new(ReferenceKind::Payment, event.payment_id.as_str());
                assert!(event.references.contains(&payment), "{name}");
                let distinct: BTreeSet<&Reference> = event.references.iter().collect();
                assert_eq!(distinct.len(), event.references.len(), "{name}");
            }
        }
    }
}

#[test]
fn the_order_is_found_where_the_setting_says() {
    for (psp, body, path) in [
        (
            find("stripe").unwrap(),
            r#"{"id":"evt_1","type":"payment_intent.created","created":1,"data":{"object":{"id":"pi_1","metadata":{"shop":{"ref":"A 7"},"order_id":"B"}}}}"#,
            "metadata.shop.ref",
        ),
        (
            find("standard-webhooks").unwrap(),
            r#"{"type":"payment.pending","timestamp":"2026-01-01T00:00:00Z","data":{"payment_id":"p","order_id":"B","shop":{"ref":"A 7"}}}"#,
            "shop.ref",
        ),
    ] {
        let orders = |path: Option<&str>, body: &str| {
            let order_reference = path.map(|path| path.split('.').map(str::to_owned).collect());
            let account = Account { order_reference, ..account(psp, &[SECRET]) };
            let events = psp.translate(&envelope(psp, body.as_bytes()), &account).unwrap();
            let orders = events[0].references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
            orders.map(|reference| reference.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(orders(Some(path), body), ["A 7"]);
        assert_eq!(orders(None, body), ["B"]);
        assert_eq!(orders(Some("nowhere.at.all"), body), [""; 0]);
        for absurd in [String::new(), "a".repeat(256), "a\\u0000".to_owned()] {
            assert_eq!(orders(Some(path), &body.replace("A 7", &absurd)), [""; 0]);
        }
        assert_eq!(orders(Some(path), &body.replace("\"A 7\"", "7")), [""; 0]);
    }
}

// ---------------------------------------------------------------------------------------------------------- laws

#[test]
fn no_bit_of_the_headers_may_differ() {
    for &psp in ALL {
        let genuine = sign(psp, SECRET, NOW_S, BODY);
        for (name, value) in &genuine {
            for bit in 0..value.len() * 8 {
                let mut bytes = value.as_bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                // What is no header value cannot arrive.
                let Ok(altered) = HeaderValue::from_bytes(&bytes) else { continue };
                let mut headers = genuine.clone();
                headers.insert(name, altered);
                assert!(verify(psp, &[SECRET], &headers, BODY).is_err(), "{} {name} bit {bit}", psp.id());
            }
        }
    }
}

#[test]
fn deep_and_huge_bodies_are_kept_and_quarantined() {
    for &psp in ALL {
        for body in [
            "[".repeat(200_000),
            "{\"a\":".repeat(100_000),
            format!("{{\"id\":{}}}", "9".repeat(100_000)),
            format!("{{\"id\":1e{}}}", "9".repeat(1000)),
            format!("{{\"type\":\"{}\"}}", "a".repeat(100_000)),
            "\u{feff}{}".to_owned(),
            "null".to_owned(),
        ] {
            let envelope = envelope(psp, body.as_bytes());
            assert!(envelope.webhook_id.len() <= 255 && envelope.event_type.is_none());
            let error = psp.translate(&envelope, &account(psp, &[SECRET])).unwrap_err();
            assert!(matches!(error, TranslateError::Unintelligible { .. }), "{} {error}", psp.id());
        }
    }
}

/// JSON that an adapter did not expect where it stands.
fn odd_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "(pi|ch|re|dp|cs|evt)_[a-zA-Z0-9]{0,300}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            inner.prop_map(|inner| json!({ "id": inner, "object": "charge", "data": [] })),
        ]
    })
}

/// Every pointer into a document.
fn pointers(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        serde_json::Value::Object(members) => {
            for (key, value) in members {
                pointers(value, &format!("{at}/{key}"), found);
            }
        }
        serde_json::Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                pointers(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// A fixture with one or two of its values replaced.
fn odd_body(psp: &'static dyn Psp) -> impl Strategy<Value = Vec<u8>> {
    let documents: Vec<serde_json::Value> =
        fixtures(psp).iter().filter_map(|(_, body)| serde_json::from_slice(body).ok()).collect();
    let change = (any::<prop::sample::Index>(), odd_json());
    (prop::sample::select(documents), prop::collection::vec(change, 1..3)).prop_map(|(mut document, changes)| {
        for (index, odd) in changes {
            let mut places = Vec::new();
            pointers(&document, "", &mut places);
            *document.pointer_mut(&places[index.index(places.len())]).unwrap() = odd;
        }
        serde_json::to_vec(&document).unwrap()
    })
}

fn read_everything(psp: &'static dyn Psp, status: u16, headers: HeaderMap, body: Vec<u8>, cursor: Option<&str>) {
    let account = account(psp, &[SECRET]);
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = headers;
    let asked = Asked { payment_id: "pi_3PbA", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-1" };
    let _ = psp.read_status(&asked, &response, &account);
    let _ = psp.read_events(&asked, &response, &account);
    let _ = psp.read_endpoints(&response);
    let _ = psp.status_request(cursor.unwrap_or("pi_3PbA"), cursor, &account);
    let _ = psp.events_request(asked.at, cursor, &account);
    let _ = psp.endpoints_request(cursor, &account);
}

proptest! {
    #[test]
    fn no_bit_of_the_body_may_differ(id in any_psp(), body in prop::collection::vec(any::<u8>(), 1..300), bit in any::<prop::sample::Index>()) {
        let psp = find(id).unwrap();
        let headers = sign(psp, SECRET, NOW_S, &body);
        prop_assert!(verify(psp, &[SECRET], &headers, &body).is_ok());
        let bit = bit.index(body.len() * 8);
        let mut altered = body.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(verify(psp, &[SECRET], &headers, &altered), Err(Rejection::SignatureMismatch { secrets: 1 }));
    }

    #[test]
    fn arbitrary_calls_are_refused_and_nothing_panics(
        id in any_psp(),
        headers in prop::collection::vec((0_usize..5, prop::collection::vec(any::<u8>(), 0..120)), 0..5),
        text in "[tv01a=,. wA-F]{0,80}",
        secret in any::<String>(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let psp = find(id).unwrap();
        let names = ["stripe-signature", "webhook-id", "webhook-timestamp", "webhook-signature", "content-type"];
        let mut map = HeaderMap::new();
        for (name, value) in &headers {
            if let Ok(value) = HeaderValue::from_bytes(value) { map.append(names[*name], value); }
        }
        map.append("stripe-signature", HeaderValue::from_str(&text).unwrap());
        map.append("webhook-signature", HeaderValue::from_str(&text).unwrap());
        prop_assert!(verify(psp, &[SECRET, &secret], &map, &body).is_err());
        let _ = psp.check(&account(psp, &[&secret]));
        read_everything(psp, 200, map, body, Some(&text));
    }

    #[test]
    fn an_authentic_body_is_accepted_and_translation_never_panics(id in any_psp(), body in prop::collection::vec(any::<u8>(), 1..200)) {
        let psp = find(id).unwrap();
        let envelope = envelope(psp, &body);
        let translated = psp.translate(&envelope, &account(psp, &[SECRET]));
        prop_assert!(translated.is_err());
    }

    #[test]
    fn odd_events_never_panic_and_stay_within_bounds((id, body) in any_psp().prop_flat_map(|id| (Just(id), odd_body(find(id).unwrap())))) {
        let psp = find(id).unwrap();
        let envelope = envelope(psp, &body);
        prop_assert!(!envelope.webhook_id.is_empty() && envelope.webhook_id.len() <= 255);
        let account = account(psp, &[SECRET]);
        let translated = psp.translate(&envelope, &account);
        prop_assert_eq!(&translated, &psp.translate(&envelope, &account), "the same bytes, another meaning");
        for event in translated.unwrap_or_default() {
            prop_assert_eq!(&event.key.event_id, &envelope.webhook_id);
            prop_assert!(json::is_name(&event.payment_id) && event.references.iter().all(|reference| json::is_name(&reference.value)));
        }
    }

    #[test]
    fn odd_answers_never_panic(
        body in odd_body(&stripe::Stripe),
        list in any::<bool>(),
        status in 100_u16..600,
        retry_after in "[0-9A-Za-z,: ]{0,40}",
        cursor in prop::option::of(prop_oneof![Just("refunds".to_owned()), Just("disputes:dp_1".to_owned()), any::<String>()]),
    ) {
        let body = if list { [&br#"{"object":"list","has_more":true,"data":["#[..], &body, b"]}"].concat() } else { body };
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_str(&retry_after).unwrap());
        headers.insert("date", HeaderValue::from_str(&retry_after).unwrap());
        read_everything(&stripe::Stripe, status, headers.clone(), body.clone(), cursor.as_deref());
        read_everything(&stripe::Stripe, 200, headers, body, cursor.as_deref());
    }
}
