use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::event::{Reference, ReferenceKind};
use crate::psp::tests::{self as common, NOW_S, Specimen, account};

const KEY: &str = "A1B22DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
const OTHER_KEY: &str = "0F1E2D3C4B5A69788796A5B4C3D2E1F00F1E2D3C4B5A69788796A5B4C3D2E1F0";

pub(in crate::psp) fn specimen() -> Specimen {
    Specimen {
        psp: &Adyen,
        scheme: STANDARD,
        secret: KEY,
        other_secret: OTHER_KEY,
        settings: |_| {},
        sign: |secret, _, body| (HeaderMap::new(), signed(secret, body)),
        body: include_bytes!("../fixtures/adyen/authorisation.json"),
        event_type: Some("AUTHORISATION"),
        timed: false,
        any_body: false,
        unsigned_headers: &[],
    }
}

pub(in crate::psp) fn platform_specimen() -> Specimen {
    Specimen {
        psp: &Adyen,
        scheme: PLATFORM,
        secret: KEY,
        other_secret: OTHER_KEY,
        settings: |_| {},
        sign: |secret, _, body| (common::headers([(platform::SIGNATURE, mac(secret, body))]), body.to_vec()),
        body: include_bytes!("../fixtures/adyen-adyen-platform-header/transfer.captured.json"),
        event_type: Some("balancePlatform.transfer.updated"),
        timed: false,
        any_body: true,
        unsigned_headers: &[],
    }
}

fn mac(secret: &str, message: &[u8]) -> String {
    BASE64.encode(signature::hmac_sha256(&hex::decode(secret).unwrap(), &[message]))
}

/// The fields that Adyen signs, by their pointers, in the order in which it signs them.
const SIGNED: [&str; 8] = [
    "/pspReference",
    "/originalReference",
    "/merchantAccountCode",
    "/merchantReference",
    "/amount/value",
    "/amount/currency",
    "/eventCode",
    "/success",
];

/// The body with each item signed that has no signature yet; what is no such body is left as it is.
fn signed(secret: &str, body: &[u8]) -> Vec<u8> {
    let Ok(mut call) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    for wrapper in call["notificationItems"].as_array_mut().into_iter().flatten() {
        let item = &mut wrapper["NotificationRequestItem"];
        let field = |pointer: &str| match item.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        let signature = mac(secret, SIGNED.map(field).join(":").as_bytes());
        let additional = item["additionalData"].as_object_mut();
        if additional.is_none_or(|additional| !additional.contains_key("hmacSignature")) {
            item["additionalData"]["hmacSignature"] = signature.into();
        }
    }
    serde_json::to_vec(&call).unwrap()
}

fn item() -> Value {
    json!({
        "pspReference": "TSTK5VQ8HXSKGK82", "originalReference": "TSTORIG8HXSKGK82", "merchantAccountCode": "AcmeShopECOM",
        "merchantReference": "ORD-1001", "amount": {"value": 4999, "currency": "EUR"}, "eventCode": "CAPTURE",
        "eventDate": "2026-09-21T15:33:10+02:00", "success": "true",
    })
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut item = item();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    item.pointer_mut(parent).unwrap()[key] = value;
    item
}

fn call(items: &[Value]) -> Vec<u8> {
    let items: Vec<Value> = items.iter().map(|item| json!({ "NotificationRequestItem": item })).collect();
    json!({ "live": "false", "notificationItems": items }).to_string().into_bytes()
}

fn reason(secrets: &[&str], body: &[u8]) -> &'static str {
    let verdict = specimen().verify(secrets, &HeaderMap::new(), body);
    verdict.map_or_else(|rejection| rejection.reason(), |_| "accepted")
}

fn translate(account: &Account, body: &[u8]) -> Result<Vec<PaymentEvent>, TranslateError> {
    Adyen.translate(&specimen().envelope(body), account)
}

fn standard_account() -> Account {
    specimen().account(&[KEY])
}

// -------------------------------------------------------------------------------------------------------- signature

#[test]
fn every_item_must_hold() {
    let good = serde_json::from_slice::<Value>(&signed(KEY, &call(&[item()]))).unwrap();
    let good = good["notificationItems"][0]["NotificationRequestItem"].clone();
    let by_other = serde_json::from_slice::<Value>(&signed(OTHER_KEY, &call(&[item()]))).unwrap();
    let by_other = by_other["notificationItems"][0]["NotificationRequestItem"].clone();
    let mut forged = good.clone();
    forged["merchantReference"] = "ORD-9999".into();
    for (items, secrets, expected) in [
        (vec![good.clone()], vec![KEY], "accepted"),
        (vec![good.clone(), good.clone()], vec![KEY], "accepted"),
        (vec![good.clone(), forged.clone()], vec![KEY], "signature_mismatch"),
        (vec![forged, good.clone()], vec![KEY], "signature_mismatch"),
        (vec![good.clone(), item()], vec![KEY], "no_usable_signature"),
        (vec![good.clone(), by_other.clone()], vec![KEY], "signature_mismatch"),
        (vec![good.clone(), by_other], vec![KEY, OTHER_KEY], "accepted"),
        (vec![], vec![KEY], "malformed_body"),
        (vec![good.clone(); ITEMS_MAX], vec![KEY], "accepted"),
        (vec![good; ITEMS_MAX + 1], vec![KEY], "malformed_body"),
    ] {
        assert_eq!(reason(&secrets, &call(&items)), expected, "{items:?}");
    }
}

#[test]
fn fields_are_read_strictly() {
    for (item, expected) in [
        (item(), "accepted"),
        (changed("/originalReference", Value::Null), "accepted"),
        (changed("/originalReference", "".into()), "accepted"),
        (changed("/merchantReference", r"21-09-2026\:09:53:00/\x".into()), "accepted"),
        (changed("/amount/value", (-1).into()), "accepted"),
        (changed("/success", "maybe".into()), "accepted"),
        (changed("/success", true.into()), "malformed_body"),
        (changed("/success", Value::Null), "malformed_body"),
        (changed("/amount/value", "4999".into()), "malformed_body"),
        (changed("/amount/value", 4999.0.into()), "malformed_body"),
        (changed("/amount", 4999.into()), "malformed_body"),
        (changed("/pspReference", 7.into()), "malformed_body"),
        (changed("/additionalData", "x".into()), "malformed_body"),
        (changed("/eventCode", "CAPTURE:true".into()), "malformed_body"),
    ] {
        // What is no object cannot be signed in it.
        let body = if item["additionalData"].is_string() { call(&[item]) } else { signed(KEY, &call(&[item])) };
        assert_eq!(reason(&[KEY], &body), expected, "{}", String::from_utf8_lossy(&body));
    }
    let body = String::from_utf8(signed(KEY, &call(&[item()]))).unwrap();
    for (body, expected) in [
        (body.replace(r#""success":"true""#, r#""success":"true","success":"true""#), "malformed_body"),
        (body.replace(r#""value":4999"#, r#""value":4.999e3"#), "malformed_body"),
        (body.replace("NotificationRequestItem", "Item"), "malformed_body"),
        (format!("{body}{body}"), "malformed_body"),
        (body.replace("true", "tru\\u0065"), "accepted"),
        ("live=false&notificationItems=x".to_owned(), "malformed_body"),
        (String::new(), "empty_body"),
    ] {
        assert_eq!(reason(&[KEY], body.as_bytes()), expected, "{body}");
    }
    for bad in ["", "x", "AAAA", &BASE64.encode([0; 31]), &BASE64.encode([0; 33]), BASE64.encode([0; 32]).trim_end_matches('=')] {
        let mut item = item();
        item["additionalData"]["hmacSignature"] = bad.into();
        let expected = if bad.is_empty() { "no_usable_signature" } else { "malformed_body" };
        assert_eq!(reason(&[KEY], &call(&[item])), expected, "{bad}");
    }
    assert_eq!(reason(&[&KEY.to_lowercase()], body.as_bytes()), "accepted", "hex has no case");
}

#[test]
fn one_signature_has_one_reading() {
    let genuine = changed("/merchantReference", "Shop:ORD-1001".into());
    let genuine: Value = serde_json::from_slice(&signed(KEY, &call(&[genuine]))).unwrap();
    assert_eq!(reason(&[KEY], genuine.to_string().as_bytes()), "accepted");
    // The same signed text, cut at another colon.
    let mut cut = genuine;
    let item = cut.pointer_mut("/notificationItems/0/NotificationRequestItem").unwrap();
    item["merchantAccountCode"] = "AcmeShopECOM:Shop".into();
    item["merchantReference"] = "ORD-1001".into();
    assert_eq!(reason(&[KEY], cut.to_string().as_bytes()), "malformed_body");
}

#[test]
fn what_is_not_signed_is_listed_and_says_nothing_about_money() {
    let rich = json!({
        "live": "false",
        "notificationItems": [{ "NotificationRequestItem": {
            "additionalData": { "metadata.order_id": "ORD-1001", "modification.action": "refund", "captureMerchantReference": "C1" },
            "amount": { "value": 4999, "currency": "EUR" }, "eventCode": "CANCEL_OR_REFUND",
            "eventDate": "2026-09-21T15:33:10+02:00", "merchantAccountCode": "AcmeShopECOM", "merchantReference": "ORD-1001",
            "operations": ["CANCEL"], "originalReference": "TSTORIG8HXSKGK82", "paymentMethod": "visa",
            "pspReference": "TSTK5VQ8HXSKGK82", "reason": "012345:1111:03/2030", "success": "true",
        }}],
    });
    let rich: Value = serde_json::from_slice(&signed(KEY, rich.to_string().as_bytes())).unwrap();
    let account = standard_account();
    let facts = |body: &Value| -> Vec<_> {
        let events = translate(&account, body.to_string().as_bytes()).unwrap();
        events.into_iter().map(|event| (event.key.clone(), event.facts_sha256())).collect()
    };
    let mut leaves = Vec::new();
    leaves_of(&rich, "", &mut leaves);
    let mut unsigned = BTreeSet::new();
    for leaf in &leaves {
        let mut altered = rich.clone();
        let value = altered.pointer_mut(leaf).unwrap();
        *value = match (leaf.rsplit('/').next(), value.as_str()) {
            (Some("eventDate"), _) => "2031-01-01T00:00:00Z".into(),
            (Some("live"), _) => "true".into(),
            (_, Some(text)) => format!("{text}X").into(),
            _ => 5000.into(),
        };
        if reason(&[KEY], altered.to_string().as_bytes()) != "accepted" {
            continue;
        }
        let place = leaf.strip_prefix("/notificationItems/0/NotificationRequestItem").unwrap_or(leaf);
        if place == "/live" {
            assert!(matches!(
                translate(&account, altered.to_string().as_bytes()),
                Err(TranslateError::Unintelligible { reason: "of the other mode than the account's", .. })
            ));
        } else {
            assert_eq!(facts(&altered), facts(&rich), "{leaf}");
        }
        unsigned.insert(place.to_owned());
    }
    let expected = [
        "/additionalData/captureMerchantReference",
        "/additionalData/metadata.order_id",
        "/additionalData/modification.action",
        "/eventDate",
        "/live",
        "/operations/0",
        "/paymentMethod",
        "/reason",
    ];
    assert_eq!(unsigned.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(leaves.len(), expected.len() + SIGNED.len() + 1, "the rest is signed, or the signature");
}

fn leaves_of(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| leaves_of(value, &format!("{at}/{key}"), found)),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| leaves_of(value, &format!("{at}/{index}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// Any item that Adyen could sign: only the shop's reference may have colons.
fn any_item() -> impl Strategy<Value = Value> {
    let text = || "[^:]{0,20}";
    let references = (text(), prop::option::of(text()), text(), any::<String>());
    (references, any::<i64>(), text(), text(), text(), any::<String>()).prop_map(
        |((psp, original, account, reference), value, currency, code, success, unsigned)| {
            json!({
                "pspReference": psp, "originalReference": original, "merchantAccountCode": account,
                "merchantReference": reference, "amount": {"value": value, "currency": currency}, "eventCode": code,
                "success": success, "reason": unsigned, "additionalData": {"metadata.x": unsigned},
            })
        },
    )
}

proptest! {
    #[test]
    fn whatever_adyen_signs_is_accepted(items in prop::collection::vec(any_item(), 1..4)) {
        let body = signed(KEY, &call(&items));
        prop_assert_eq!(reason(&[OTHER_KEY, KEY], &body), "accepted");
        prop_assert_eq!(reason(&[OTHER_KEY], &body), "signature_mismatch");
        // And whatever it says is said, or refused, without a panic.
        let told = translate(&standard_account(), &body);
        for event in told.unwrap_or_default() {
            prop_assert!(json::is_name(&event.key.event_id) && json::is_name(&event.payment_id));
        }
    }

    #[test]
    fn no_bit_of_a_signed_field_may_differ(item in any_item(), field in 0..SIGNED.len(), bit in any::<prop::sample::Index>()) {
        let mut call: Value = serde_json::from_slice(&signed(KEY, &call(&[item]))).unwrap();
        let value = call.pointer_mut(&format!("/notificationItems/0/NotificationRequestItem{}", SIGNED[field])).unwrap();
        *value = match value {
            Value::Number(number) => (number.as_i64().unwrap() ^ (1_i64 << bit.index(64))).into(),
            Value::String(text) if !text.is_empty() => {
                let mut bytes = text.clone().into_bytes();
                let bit = bit.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                // What is no text cannot stand in JSON.
                let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
                text.into()
            }
            // Nothing to flip: something appears where nothing was.
            _ => "X".into(),
        };
        prop_assert_ne!(reason(&[KEY], call.to_string().as_bytes()), "accepted");
    }
}

// ------------------------------------------------------------------------------------------------------ translation

fn told(account: &Account, item: Value) -> Vec<PaymentEvent> {
    translate(account, &call(&[item])).unwrap()
}

#[test]
fn a_refusal_and_a_later_success_of_one_payment_are_two_events() {
    let authorisation = |success: &str, reason: &str, date: &str| {
        let mut item = item();
        item["eventCode"] = "AUTHORISATION".into();
        item["originalReference"] = Value::Null;
        item["success"] = success.into();
        item["reason"] = reason.into();
        item["eventDate"] = date.into();
        told(&standard_account(), item).remove(0)
    };
    let refused = authorisation("false", "Refused", "2026-09-21T15:33:10+02:00");
    let again = authorisation("false", "Acquirer Error", "2026-09-21T15:40:10+02:00");
    let paid = authorisation("true", "012345:1111:03/2030", "2026-09-21T15:41:10+02:00");
    assert_eq!((&refused.key, refused.facts_sha256()), (&again.key, again.facts_sha256()), "a duplicate, not a contradiction");
    assert_eq!(refused.key.event_id, "AUTHORISATION:TSTK5VQ8HXSKGK82:false:AcmeShopECOM");
    assert_eq!(paid.key.event_id, "AUTHORISATION:TSTK5VQ8HXSKGK82:true:AcmeShopECOM");
    assert!(!serde_json::to_string(&paid).unwrap().contains("1111"), "card data is kept");
}

#[test]
fn who_captures_by_itself_is_paid_when_it_authorises_and_not_when_it_gives_up() {
    let automatic = Account { capture: Capture::Automatic, ..standard_account() };
    let facts = |code: &str, original: Option<&str>, value: i64| -> Vec<(Fact, FactVersion)> {
        let mut item = item();
        item["eventCode"] = code.into();
        item["originalReference"] = original.into();
        item["amount"]["value"] = value.into();
        told(&automatic, item).into_iter().map(|event| (event.fact, event.version)).collect()
    };
    let capture = |state, value, stage| {
        let amount = Money::new(value, crate::money::Currency::parse("EUR").unwrap());
        (Fact::Capture { id: "P1".to_owned(), state, amount }, FactVersion::Number(stage))
    };
    let mut authorised = facts("AUTHORISATION", None, 4999);
    assert_eq!(authorised.len(), 2);
    let (Fact::Capture { id, state, .. }, version) = authorised.remove(1) else { panic!("no capture") };
    assert_eq!((&*id, state, version), ("TSTK5VQ8HXSKGK82", CaptureState::Succeeded, FactVersion::Number(1)));
    let (Fact::Payment(fact), _) = authorised.remove(0) else { panic!("no payment") };
    assert!(fact.state == PaymentState::Captured && fact.capture_final && fact.captured.is_none());

    assert_eq!(facts("CAPTURE", Some("P1"), 4999), [capture(CaptureState::Succeeded, 4999, 2)], "the one capture, not a second");
    assert_eq!(facts("CAPTURE_FAILED", Some("P1"), 4999), [capture(CaptureState::Failed, 4999, 3)]);
    for code in ["CANCELLATION", "TECHNICAL_CANCEL", "EXPIRE"] {
        // The amount of a cancellation may be anything.
        assert_eq!(facts(code, Some("P1"), 0)[1], capture(CaptureState::Failed, 0, 4), "{code}");
    }
    assert!(matches!(&facts("AUTHORISATION", None, 0)[..], [(Fact::Payment(fact), _)] if fact.state == PaymentState::Authorized));
}

#[test]
fn what_the_shop_asked_for_leads_to_the_order_by_the_payment() {
    let orders = |account: &Account, code: &str| {
        let events = told(account, changed("/eventCode", code.into()));
        let of = |kind| {
            let references = events[0].references.iter().filter(|reference| reference.kind == kind);
            references.map(|reference| reference.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of(ReferenceKind::Payment), ["TSTORIG8HXSKGK82"], "{code}");
        of(ReferenceKind::Order)
    };
    let default = standard_account();
    let repeating = Account { order_reference: Some(vec!["merchantReference".to_owned()]), ..standard_account() };
    for code in ["CAPTURE", "CAPTURE_FAILED", "REFUND", "REFUND_FAILED", "CANCELLATION", "CANCEL_OR_REFUND"] {
        assert_eq!((orders(&default, code), orders(&repeating, code)), (vec![], vec!["ORD-1001".to_owned()]), "{code}");
    }
    for code in ["AUTHORISATION", "EXPIRE", "CHARGEBACK", "SECOND_CHARGEBACK"] {
        assert_eq!(orders(&default, code), ["ORD-1001"], "{code}");
    }
    let absurd = changed("/merchantReference", "a\u{0}".into());
    assert!(!told(&repeating, absurd)[0].references.iter().any(|reference| reference.kind == ReferenceKind::Order));
    let own = Reference::new(ReferenceKind::Refund, "TSTK5VQ8HXSKGK82");
    assert!(told(&default, changed("/eventCode", "REFUND".into()))[0].references.contains(&own));
}

#[test]
fn another_merchant_account_is_quarantined_if_ours_is_named() {
    let mut account = standard_account();
    account.api.merchant_id = Some("AcmeShopECOM".to_owned());
    assert!(translate(&account, &call(&[item()])).is_ok());
    account.api.merchant_id = Some("Acme".to_owned());
    let Err(TranslateError::Unintelligible { pointer, .. }) = translate(&account, &call(&[item()])) else { panic!("translated") };
    assert_eq!(pointer, "/notificationItems/0/NotificationRequestItem/merchantAccountCode");
}

#[test]
fn a_call_is_named_by_its_body() {
    let one = specimen().envelope(&call(&[item()]));
    let other_words = specimen().envelope(&call(&[changed("/reason", "x".into())]));
    assert_eq!(one.webhook_id, signature::body_id(&one.body));
    assert_ne!(one.webhook_id, other_words.webhook_id);
    let mixed = specimen().envelope(&call(&[item(), changed("/eventCode", "REFUND".into())]));
    assert_eq!((one.event_type.as_deref(), mixed.event_type), (Some("CAPTURE"), None));
    assert_eq!(Adyen.acknowledgement().body, "[accepted]");
}

#[test]
fn settings_that_cannot_work_are_refused_at_start() {
    let setting = |scheme: &'static str, change: fn(&mut Account)| {
        let mut account = account(&Adyen, &[KEY]);
        account.keys.scheme = scheme;
        change(&mut account);
        Adyen.check(&account).map_err(|error| error.setting)
    };
    let other = |account: &mut Account| account.order_reference = Some(vec!["additionalData".to_owned(), "x".to_owned()]);
    for scheme in [STANDARD, PLATFORM] {
        assert_eq!(setting(scheme, |_| ()), Ok(()));
        assert_eq!(setting(scheme, |account| account.keys.secrets.push(Secret::new("x", "abc"))), Err("secrets"));
        assert_eq!(setting(scheme, |account| account.keys.secrets.push(Secret::new("x", &KEY[2..]))), Err("secrets"));
        assert_eq!(setting(scheme, |account| account.api.merchant_id = Some("a/b".to_owned())), Err("merchant_id"));
        assert_eq!(setting(scheme, |account| account.api.key = Some(Secret::new("x", "a b"))), Err("api_key"));
    }
    assert_eq!((setting(STANDARD, other), setting(PLATFORM, other)), (Err("order_reference"), Ok(())));
}

// --------------------------------------------------------------------------------------------------------- platform

#[test]
fn the_protocol_is_the_one_that_is_known() {
    let specimen = platform_specimen();
    let verdict = |protocols: &[&str]| {
        let (mut headers, body) = (specimen.sign)(KEY, NOW_S, specimen.body);
        for protocol in protocols {
            headers.append("protocol", protocol.parse().unwrap());
        }
        specimen.verify(&[KEY], &headers, &body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
    };
    assert_eq!((verdict(&[]), verdict(&["HmacSHA256"])), ("accepted", "accepted"));
    for (protocols, reason) in [
        (&["HmacSHA1"][..], "malformed_header"),
        (&["hmacsha256"], "malformed_header"),
        (&[""], "malformed_header"),
        (&["HmacSHA256", "HmacSHA256"], "duplicate_header"),
    ] {
        assert_eq!(verdict(protocols), reason, "{protocols:?}");
    }
}

#[test]
fn the_schemes_do_not_pass_for_each_other() {
    let (headers, _) = (platform_specimen().sign)(KEY, NOW_S, &call(&[item()]));
    let standard = signed(KEY, &call(&[item()]));
    assert_eq!(reason(&[KEY], &call(&[item()])), "no_usable_signature", "a header signs no item");
    assert!(specimen().verify(&[KEY], &headers, &call(&[item()])).is_err());
    assert!(platform_specimen().verify(&[KEY], &HeaderMap::new(), &standard).is_err());
    // A body of both kinds, of which only the items are signed, is read as items.
    let mut both: Value = serde_json::from_slice(&standard).unwrap();
    let transfer: Value = serde_json::from_slice(platform_specimen().body).unwrap();
    both.as_object_mut().unwrap().extend(transfer.as_object().unwrap().clone());
    let events = translate(&standard_account(), both.to_string().as_bytes()).unwrap();
    assert_eq!(events.iter().map(|event| &*event.event_type).collect::<Vec<_>>(), ["CAPTURE"]);
}

// -------------------------------------------------------------------------------------------------------- questions

#[test]
fn nobody_can_be_asked_about_a_payment() {
    let account = standard_account();
    assert_eq!(Adyen.status_request("TSTK5VQ8HXSKGK82", None, &account).unwrap_err(), AskError::Unsupported);
    assert_eq!(Adyen.events_request(common::WHOLE, None, &account).unwrap_err(), AskError::Unsupported);
}

#[test]
fn webhooks_are_listed_at_the_merchant_account() {
    let mut account = standard_account();
    assert_eq!(Adyen.endpoints_request(None, &account).unwrap_err(), AskError::Missing("merchant_id"));
    account.api.merchant_id = Some("AcmeShopECOM".to_owned());
    let request = Adyen.endpoints_request(None, &account).unwrap();
    let list = "https://management-test.adyen.com/v3/merchants/AcmeShopECOM/webhooks?pageSize=100&pageNumber=";
    assert_eq!(request.uri().to_string(), format!("{list}1"));
    assert_eq!(request.headers()["x-api-key"], "sk_test_invented");
    assert!(!format!("{request:?}").contains("sk_test_invented"), "the key shows in a log");
    assert_eq!(Adyen.endpoints_request(Some("2"), &account).unwrap().uri().to_string(), format!("{list}2"));
    account.mode = Mode::Live;
    assert_eq!(Adyen.endpoints_request(None, &account).unwrap().uri().host(), Some("management-live.adyen.com"));
    for cursor in ["", "0", "-1", "01", "2&x", "101"] {
        assert_eq!(Adyen.endpoints_request(Some(cursor), &account).unwrap_err(), AskError::MalformedId(cursor.to_owned()));
    }
    account.api.merchant_id = Some("../x".to_owned());
    assert!(Adyen.endpoints_request(None, &account).is_err());
}

fn listed(body: &[u8]) -> Result<EndpointList, ReadError> {
    Adyen.read_endpoints(&Response::new(Bytes::copy_from_slice(body)))
}

#[test]
fn the_list_reads_as_recorded_to_its_end() {
    let first = listed(include_bytes!("../fixtures/adyen/answers/endpoints.json")).unwrap();
    assert_eq!(first.next.as_deref(), Some("2"));
    insta::assert_json_snapshot!("adyen-answer-endpoints", first.endpoints);
    let webhook = json!({"id": "S2-1", "url": "https://x", "active": true});
    let page = |this: u32, next: Option<u32>, data: Value| {
        let link = |number: u32| json!({"href": format!("https://x/webhooks?pageSize=100&pageNumber={number}")});
        json!({"_links": {"self": link(this), "next": next.map(link)}, "data": data}).to_string().into_bytes()
    };
    assert_eq!(listed(&page(2, None, json!([webhook]))).unwrap().next, None);
    assert_eq!(listed(b"{\"itemsTotal\":0,\"pagesTotal\":0}").unwrap().endpoints, []);
    for bad in [
        page(2, Some(2), json!([webhook])),
        page(2, Some(1), json!([webhook])),
        page(1, Some(2), json!([])),
        page(1, Some(2), json!({})),
        page(1, None, json!(vec![webhook.clone(); PAGE + 1])),
        json!({"_links": {"next": {"href": "https://x"}}, "data": [webhook]}).to_string().into_bytes(),
        json!({"data": [{"id": "S2-1"}]}).to_string().into_bytes(),
    ] {
        assert!(matches!(listed(&bad), Err(ReadError::Unintelligible(_))), "{}", String::from_utf8_lossy(&bad));
    }
    let mut nothing = Response::new(Bytes::new());
    *nothing.status_mut() = StatusCode::NO_CONTENT;
    assert_eq!(Adyen.read_endpoints(&nothing).unwrap().endpoints, []);
}

#[test]
fn what_is_wanted_is_what_is_read() {
    assert!(WANTED.events.iter().all(|code| Code::of(code).is_some()));
}
