//! PayPal as the simulator plays it: orders of Checkout, their events, and signatures in PayPal's form.
//!
//! Written from PayPal's documentation and not from the adapter that reads it; the two share test vectors, no code.
//!
//! The key and its certificate are the simulator's own, for anyone to see: an account that trusts `paypal/root.pem`
//! (`trusted_root`, which is for `mode = "test"` only) believes whoever has this source. The certificate lies where the
//! account's `api_url` is, so what is signed verifies only while the simulator's API is served there.

use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_shared::clock::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

use super::account::Account;
use super::decimal::decimal;
use super::dialect::{self, Dialect, EventType, Forgery, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::ledger::{Attempt, Cancellation, Capture, Decline, Dispute, DisputeState, Event, Happened, Object, Payment, Refund};
use super::ledger::{RefundState, State, Step};
use super::paypal_api;
use super::seed::Seed;
use super::story::Story;

/// PayPal, REST webhooks.
pub struct PayPal;

const KEY: &str = include_str!("paypal/key.pem");
const CERTIFICATE: &str = include_str!("paypal/certificate.pem");
const ROOT: &str = include_str!("paypal/root.pem");
/// The certificate's id at PayPal.
const CERTIFICATE_ID: &str = "CERT-simulator-1";
/// Up to 25 times over three days; PayPal publishes no intervals: these are ours.
const RETRIES: [Duration; 6] = [
    Duration::from_mins(2),
    Duration::from_mins(10),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(3),
    Duration::from_hours(3),
];

/// Every type of event that Paybell gives a meaning, and one that it must ignore.
const EVENT_TYPES: [EventType; 17] = [
    EventType::new("CHECKOUT.ORDER.APPROVED", Scene::Captured),
    EventType::new("CHECKOUT.ORDER.COMPLETED", Scene::Captured),
    EventType::new("CHECKOUT.ORDER.VOIDED", Scene::Canceled(Cancellation::Requested)),
    EventType::new("CHECKOUT.PAYMENT-APPROVAL.REVERSED", Scene::Expired),
    EventType::new("PAYMENT.AUTHORIZATION.CREATED", Scene::Authorized),
    EventType::open("PAYMENT.AUTHORIZATION.VOIDED", &[("voided", Scene::Voided), ("expired", Scene::Lapsed)]),
    EventType::new("PAYMENT.CAPTURE.PENDING", Scene::Processing),
    EventType::new("PAYMENT.CAPTURE.COMPLETED", Scene::Captured),
    EventType::new("PAYMENT.CAPTURE.DECLINED", Scene::Declined),
    EventType::new("PAYMENT.CAPTURE.REFUNDED", Scene::Refunded(RefundState::Succeeded)),
    EventType::new("PAYMENT.CAPTURE.REVERSED", Scene::Refunded(RefundState::Succeeded)),
    EventType::new("PAYMENT.REFUND.PENDING", Scene::Refunded(RefundState::Pending)),
    EventType::new("PAYMENT.REFUND.FAILED", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("CUSTOMER.DISPUTE.CREATED", Scene::Disputed),
    EventType::new("CUSTOMER.DISPUTE.UPDATED", Scene::Disputed),
    EventType::open(
        "CUSTOMER.DISPUTE.RESOLVED",
        &[
            ("RESOLVED_BUYER_FAVOUR", Scene::DisputeClosed(DisputeState::Lost)),
            ("RESOLVED_SELLER_FAVOUR", Scene::DisputeClosed(DisputeState::Won)),
        ],
    ),
    EventType::new("CATALOG.PRODUCT.CREATED", Scene::Opened),
];

impl Dialect for PayPal {
    fn id(&self) -> &'static str {
        "paypal"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        match object {
            Object::Dispute => format!("PP-D-{}", seed.number(9)),
            Object::Event => {
                let letters = seed.letters(32);
                format!("WH-{}-{}", &letters[..16], &letters[16..])
            }
            Object::Payment | Object::Attempt | Object::Capture | Object::Refund => seed.letters(17),
        }
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    /// PayPal says nothing before the payer approved.
    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let whole = || Some(order(payment));
        let capture = || capture_objects(payment).pop();
        let authorization = || authorization_object(payment);
        let told: Vec<(&'static str, &'static str, Option<Value>)> = match step.happened {
            Happened::Opened | Happened::ActionRequired | Happened::Noted => Vec::new(),
            Happened::Processing => vec![("PAYMENT.CAPTURE.PENDING", "capture", capture())],
            Happened::Declined => vec![("PAYMENT.CAPTURE.DECLINED", "capture", capture())],
            Happened::Authorized => vec![
                ("CHECKOUT.ORDER.APPROVED", "checkout-order", Some(approved(payment))),
                ("PAYMENT.AUTHORIZATION.CREATED", "authorization", authorization()),
            ],
            Happened::Captured { was_authorized: true } => vec![("PAYMENT.CAPTURE.COMPLETED", "capture", capture())],
            Happened::Captured { was_authorized: false } => vec![
                ("CHECKOUT.ORDER.APPROVED", "checkout-order", Some(approved(payment))),
                ("PAYMENT.CAPTURE.COMPLETED", "capture", capture()),
                ("CHECKOUT.ORDER.COMPLETED", "checkout-order", whole()),
            ],
            Happened::Canceled { was_authorized: false } => vec![("CHECKOUT.ORDER.VOIDED", "checkout-order", whole())],
            Happened::Expired { was_authorized: false } => {
                let units = json!([{ "custom_id": payment.order_id }]);
                let reversed = json!({ "order_id": payment.id, "purchase_units": units, "payment_source": { "ideal": {} } });
                vec![("CHECKOUT.PAYMENT-APPROVAL.REVERSED", "payment_source", Some(reversed))]
            }
            Happened::Canceled { was_authorized: true } | Happened::Expired { was_authorized: true } => {
                vec![("PAYMENT.AUTHORIZATION.VOIDED", "authorization", authorization())]
            }
            Happened::Refunded { number, .. } | Happened::RefundSettled { number } => {
                let Some(refund) = payment.refunds.get(number) else { return Vec::new() };
                let event_type = match refund.state {
                    RefundState::Succeeded => "PAYMENT.CAPTURE.REFUNDED",
                    RefundState::Pending => "PAYMENT.REFUND.PENDING",
                    RefundState::Failed => "PAYMENT.REFUND.FAILED",
                };
                vec![(event_type, "refund", Some(refund_object(payment, refund)))]
            }
            Happened::Disputed { number } => {
                vec![("CUSTOMER.DISPUTE.CREATED", "dispute", payment.disputes.get(number).map(|it| dispute_object(payment, it)))]
            }
            Happened::DisputeClosed { number } => {
                vec![("CUSTOMER.DISPUTE.RESOLVED", "dispute", payment.disputes.get(number).map(|it| dispute_object(payment, it)))]
            }
        };
        let events = told.into_iter().enumerate().filter_map(|(nth, (event_type, kind, resource))| {
            let id = self.object_id(Object::Event, &step.event_seed(nth));
            Some(event(id, event_type, kind, step.at, &payment.id, &resource?))
        });
        events.collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        // No step of the ledger's is told so: a double of something else, or not about payments at all.
        let payment = ledger.payments().next()?;
        let (kind, resource) = match event_type {
            "PAYMENT.CAPTURE.REVERSED" => {
                let mut capture = capture_objects(payment).pop()?;
                capture["status"] = "REVERSED".into();
                ("capture", capture)
            }
            "CUSTOMER.DISPUTE.UPDATED" => ("dispute", dispute_object(payment, payment.disputes.last()?)),
            _ => ("product", json!({ "id": format!("PROD-{}", situation.salt), "name": "A thing" })),
        };
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&event(id, known.name, kind, situation.at, &payment.id, &resource)).into())
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError> {
        let webhook_id = settings.webhook_id.as_deref().ok_or(SignError::Missing("webhook_id"))?;
        let host = settings.api_url.as_deref().ok_or(SignError::Missing("api_url"))?;
        let id = Seed::new("transmission", &webhook.id, usize::try_from(at).unwrap_or_default()).uuid();
        let time = Timestamp::from_seconds(at).to_string();
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", "PayPal/AUHD-214.0-58391792".to_owned()),
            ("paypal-auth-version", "v2".to_owned()),
            ("paypal-auth-algo", "SHA256withRSA".to_owned()),
            ("paypal-cert-url", format!("{host}/v1/notifications/certs/{CERTIFICATE_ID}")),
            ("paypal-transmission-sig", signature(&id, &time, webhook_id, &webhook.body)?),
            ("paypal-transmission-id", id),
            ("paypal-transmission-time", time),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings {
            webhook_id: Some("8PT597110X687430L".to_owned()),
            trusted_root: Some(ROOT.to_owned()),
            client_id: Some("AeA1QIZXiflr1-simulated".to_owned()),
            api_key: Some("EEA1QIZXiflr1-simulated".to_owned()),
            ..Settings::default()
        }
    }

    fn certificate(&self) -> Option<&'static str> {
        Some(CERTIFICATE)
    }

    /// A checksum of the body is signed: it finds a byte that was altered, but not one who alters four more for it.
    fn forge(&self, settings: &Settings, webhook: &Webhook, forgery: Forgery, at: i64) -> Result<Option<SignedCall>, SignError> {
        match forgery {
            Forgery::WrongSecret => {
                let other = Some(Seed::new("webhook", "of somebody else", 0).letters(17));
                self.sign(&Settings { webhook_id: other, ..settings.clone() }, webhook, at).map(Some)
            }
            Forgery::AlteredByte => {
                let mut call = self.sign(settings, webhook, at)?;
                call.body = dialect::altered(&call.body);
                Ok(Some(call))
            }
            // The time is signed, but any age is PayPal's.
            Forgery::Stale => Ok(None),
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(paypal_api::router(account))
    }

    /// An authorisation that lapses is voided, like one that is given up.
    fn plays(&self, story: Story) -> bool {
        story != Story::AuthorizationExpired
    }

    fn currencies(&self) -> &'static [&'static str] {
        &["EUR", "USD", "GBP", "JPY"]
    }
}

/// The value of `PAYPAL-TRANSMISSION-SIG`: RSA with SHA-256 over the ids, the time and the body's CRC-32 in decimal digits.
fn signature(id: &str, time: &str, webhook_id: &str, body: &[u8]) -> Result<String, SignError> {
    let broken = || SignError::Secret("the simulator's own key is broken".to_owned());
    let base64: String = KEY.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(base64).map_err(|_| broken())?;
    let key = RsaKeyPair::from_pkcs8(&der).map_err(|_| broken())?;
    let mut made = vec![0; key.public().modulus_len()];
    let message = signed(id, time, webhook_id, body);
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut made).map_err(|_| broken())?;
    Ok(STANDARD.encode(made))
}

/// What is signed.
fn signed(id: &str, time: &str, webhook_id: &str, body: &[u8]) -> String {
    format!("{id}|{time}|{webhook_id}|{}", crc32fast::hash(body))
}

fn event(id: String, event_type: &'static str, kind: &str, created: i64, payment_id: &str, resource: &Value) -> Event {
    let body = json!({
        "id": id,
        "event_version": "1.0",
        "create_time": Timestamp::from_seconds(created),
        "resource_type": kind,
        "resource_version": "2.0",
        "event_type": event_type,
        "summary": format!("{event_type}, as the simulator plays it"),
        "resource": resource,
        "links": [link("self", &format!("/v1/notifications/webhooks-events/{id}"))],
    });
    let object_id = resource["id"].as_str().or(resource["dispute_id"].as_str()).unwrap_or(payment_id).to_owned();
    Event { id, event_type, created, payment_id: payment_id.to_owned(), object_id, body: body.to_string().into() }
}

fn link(relation: &str, path: &str) -> Value {
    json!({ "href": format!("https://api.sandbox.paypal.com{path}"), "rel": relation, "method": "GET" })
}

fn money(minor: i64, currency: &str) -> Value {
    json!({ "currency_code": currency, "value": decimal(minor, currency) })
}

const fn decline_word(decline: Decline) -> &'static str {
    match decline {
        Decline::InsufficientFunds => "INSUFFICIENT_FUNDS",
        Decline::Generic => "DECLINED_BY_RISK_FRAUD_FILTERS",
        Decline::ExpiredCard => "CARD_EXPIRED",
    }
}

/// An order, as `/v2/checkout/orders` shows it.
pub(super) fn order(payment: &Payment) -> Value {
    let status = match payment.state {
        State::Open => "CREATED",
        State::ActionRequired => "PAYER_ACTION_REQUIRED",
        State::Canceled(_) | State::Expired if payment.attempts.is_empty() => "VOIDED",
        State::Processing | State::Declined(_) | State::Authorized | State::Captured | State::Canceled(_) | State::Expired => {
            "COMPLETED"
        }
    };
    let refunds: Vec<Value> = payment.refunds.iter().map(|refund| refund_object(payment, refund)).collect();
    let mut unit = unit(payment);
    unit["payments"] = json!({
        "authorizations": authorization_object(payment).into_iter().collect::<Vec<_>>(),
        "captures": capture_objects(payment),
        "refunds": refunds,
    });
    shown(payment, status, &unit)
}

/// The order before anything was done with the payer's approval.
fn approved(payment: &Payment) -> Value {
    shown(payment, "APPROVED", &unit(payment))
}

fn shown(payment: &Payment, status: &str, unit: &Value) -> Value {
    json!({
        "id": payment.id,
        "intent": if payment.manual_capture { "AUTHORIZE" } else { "CAPTURE" },
        "status": status,
        "purchase_units": [unit],
        "create_time": Timestamp::from_seconds(payment.created),
        "update_time": Timestamp::from_seconds(payment.changed),
        "links": [link("self", &format!("/v2/checkout/orders/{}", payment.id))],
    })
}

fn unit(payment: &Payment) -> Value {
    json!({ "reference_id": "default", "custom_id": payment.order_id, "amount": money(payment.amount, &payment.currency) })
}

/// The one authorisation that an order has.
pub(super) fn authorization_object(payment: &Payment) -> Option<Value> {
    let attempt = payment.attempts.last().filter(|attempt| payment.manual_capture && attempt.decline.is_none())?;
    let status = match payment.state {
        State::Captured if payment.captured() < payment.amount => "PARTIALLY_CAPTURED",
        State::Captured => "CAPTURED",
        State::Canceled(_) | State::Expired => "VOIDED",
        _ => "CREATED",
    };
    Some(json!({
        "id": attempt.id,
        "status": status,
        "amount": money(payment.amount, &payment.currency),
        "custom_id": payment.order_id,
        "supplementary_data": { "related_ids": { "order_id": payment.id } },
        "create_time": Timestamp::from_seconds(attempt.created),
        "update_time": Timestamp::from_seconds(payment.changed),
        "links": [link("self", &format!("/v2/payments/authorizations/{}", attempt.id))],
    }))
}

/// What was captured, and what PayPal tried to, oldest first.
pub(super) fn capture_objects(payment: &Payment) -> Vec<Value> {
    let declined = payment.attempts.iter().filter_map(|attempt| Some(declined_capture(payment, attempt, attempt.decline?)));
    let captures = payment.captures.iter().map(|capture| capture_object(payment, capture));
    let pending = (payment.state == State::Processing).then(|| {
        let id = payment.seed("pending capture").letters(17);
        let mut capture = any_capture(payment, &id, payment.amount, "PENDING", payment.changed);
        capture["status_details"] = json!({ "reason": "ECHECK" });
        capture
    });
    declined.chain(captures).chain(pending).collect()
}

fn declined_capture(payment: &Payment, attempt: &Attempt, decline: Decline) -> Value {
    let mut capture = any_capture(payment, &attempt.id, payment.amount, "DECLINED", attempt.created);
    capture["status_details"] = json!({ "reason": decline_word(decline) });
    capture
}

fn capture_object(payment: &Payment, capture: &Capture) -> Value {
    let succeeded = payment.refunds.iter().filter(|refund| refund.state == RefundState::Succeeded);
    let refunded: i64 = succeeded.map(|refund| refund.amount).sum();
    let status = match refunded {
        0 => "COMPLETED",
        some if some < capture.amount => "PARTIALLY_REFUNDED",
        _ => "REFUNDED",
    };
    let mut shown = any_capture(payment, &capture.id, capture.amount, status, capture.created);
    // What is not captured is released for good.
    shown["final_capture"] = true.into();
    shown["update_time"] = json!(Timestamp::from_seconds(payment.changed));
    shown
}

fn any_capture(payment: &Payment, id: &str, amount: i64, status: &str, at: i64) -> Value {
    let authorization = payment.attempts.last().filter(|attempt| payment.manual_capture && attempt.decline.is_none());
    let mut related = json!({ "order_id": payment.id });
    if let Some(authorization) = authorization {
        related["authorization_id"] = authorization.id.as_str().into();
    }
    json!({
        "id": id,
        "status": status,
        "amount": money(amount, &payment.currency),
        "final_capture": false,
        "custom_id": payment.order_id,
        "supplementary_data": { "related_ids": related },
        "create_time": Timestamp::from_seconds(at),
        "update_time": Timestamp::from_seconds(at),
        "links": [link("self", &format!("/v2/payments/captures/{id}"))],
    })
}

/// A refund, which names its capture by a link and nothing else.
pub(super) fn refund_object(payment: &Payment, refund: &Refund) -> Value {
    let capture = payment.captures.first().map_or("", |capture| capture.id.as_str());
    json!({
        "id": refund.id,
        "status": match refund.state {
            RefundState::Pending => "PENDING",
            RefundState::Succeeded => "COMPLETED",
            RefundState::Failed => "FAILED",
        },
        "amount": money(refund.amount, &payment.currency),
        "seller_payable_breakdown": { "gross_amount": money(refund.amount, &payment.currency) },
        "create_time": Timestamp::from_seconds(refund.created),
        "update_time": Timestamp::from_seconds(refund.changed),
        "links": [
            link("self", &format!("/v2/payments/refunds/{}", refund.id)),
            link("up", &format!("/v2/payments/captures/{capture}")),
        ],
    })
}

/// A dispute, which names the capture that it is about.
pub(super) fn dispute_object(payment: &Payment, dispute: &Dispute) -> Value {
    let capture = payment.captures.first().map_or("", |capture| capture.id.as_str());
    let outcome = match dispute.state {
        DisputeState::NeedsResponse => None,
        DisputeState::Won => Some("RESOLVED_SELLER_FAVOUR"),
        DisputeState::Lost => Some("RESOLVED_BUYER_FAVOUR"),
    };
    let mut shown = json!({
        "dispute_id": dispute.id,
        "create_time": Timestamp::from_seconds(dispute.created),
        "update_time": Timestamp::from_seconds(dispute.changed),
        "disputed_transactions": [{ "seller_transaction_id": capture, "custom": payment.order_id }],
        "reason": "UNAUTHORISED",
        "status": if outcome.is_some() { "RESOLVED" } else { "WAITING_FOR_SELLER_RESPONSE" },
        "dispute_amount": money(dispute.amount, &payment.currency),
        "dispute_life_cycle_stage": "CHARGEBACK",
        "dispute_channel": "INTERNAL",
        "links": [link("self", &format!("/v1/customer/disputes/{}", dispute.id))],
    });
    if let Some(outcome) = outcome {
        shown["dispute_outcome"] = json!({ "outcome_code": outcome });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Ledger;
    use super::*;

    fn situation<'a>() -> Situation<'a> {
        Situation {
            order_id: "ORD-1001",
            amount: 4999,
            currency: "EUR",
            part: None,
            ending: None,
            live: false,
            at: 1_790_000_000,
            salt: 7,
        }
    }

    #[test]
    fn signs_what_paypals_own_sdk_verifies() {
        // What the sender of the vector `paypal-tampered-body` signed, which PayPal's SDK checks; its CRC is above 2^31. The
        // body is that of `paypal-transmission-id-changed`.
        assert_eq!(
            signed("dfb3be50-fd74-11e4-8bf3-77339302725b", "2026-09-21T13:33:10Z", "4JH86294D6297924G", BODY.as_bytes()),
            "dfb3be50-fd74-11e4-8bf3-77339302725b|2026-09-21T13:33:10Z|4JH86294D6297924G|2186131090"
        );
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        for known in EVENT_TYPES {
            for ending in [None].into_iter().chain(known.endings.iter().map(|(ending, _)| Some(*ending))) {
                let webhook =
                    PayPal.staged(known.name, &Situation { ending, ..situation() }).unwrap_or_else(|| panic!("{}", known.name));
                let body: Value = serde_json::from_slice(&webhook.body).unwrap();
                assert_eq!((&body["event_type"], &body["id"]), (&json!(known.name), &json!(webhook.id)));
                assert_eq!(body["create_time"], "2026-09-21T14:13:20Z");
                assert!(body["resource"].is_object() && body["resource_type"].is_string(), "{}", known.name);
            }
        }
        assert!(PayPal.staged("PAYMENT.CAPTURE.EXPLODED", &situation()).is_none());
    }

    #[test]
    fn refunds_and_disputes_name_nothing_but_the_capture() {
        let body = |name: &str| -> Value { serde_json::from_slice(&PayPal.staged(name, &situation()).unwrap().body).unwrap() };
        let capture = body("PAYMENT.CAPTURE.COMPLETED")["resource"]["id"].clone();
        let refund = body("PAYMENT.CAPTURE.REFUNDED");
        assert!(refund["resource"]["links"][1]["href"].as_str().unwrap().ends_with(capture.as_str().unwrap()));
        assert!(refund["resource"]["custom_id"].is_null() && refund["resource"]["supplementary_data"].is_null());
        assert_eq!(body("CUSTOMER.DISPUTE.CREATED")["resource"]["disputed_transactions"][0]["seller_transaction_id"], capture);
    }

    #[test]
    fn amounts_have_the_digits_of_their_currency() {
        for (currency, value) in [("EUR", "49.99"), ("JPY", "4999"), ("TND", "4.999")] {
            let mut ledger = Ledger::new(&PayPal, false, 1);
            let id = ledger.open("o", 4999, currency, false, 100);
            assert_eq!(order(ledger.payment(&id).unwrap())["purchase_units"][0]["amount"]["value"], value);
        }
    }

    #[test]
    fn each_step_is_told_as_paypal_tells_it() {
        let mut ledger = Ledger::new(&PayPal, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, Decline::Generic, 110);
        ledger.capture(&id, 4999, 120);
        let refund = ledger.refund(&id, 4999, RefundState::Pending, 200);
        ledger.settle_refund(&id, refund, RefundState::Succeeded, 210);
        let types: Vec<_> = ledger.events().iter().map(|event| event.event_type).collect();
        assert_eq!(
            types,
            [
                "PAYMENT.CAPTURE.DECLINED",
                "CHECKOUT.ORDER.APPROVED",
                "PAYMENT.CAPTURE.COMPLETED",
                "CHECKOUT.ORDER.COMPLETED",
                "PAYMENT.REFUND.PENDING",
                "PAYMENT.CAPTURE.REFUNDED",
            ]
        );
        let captures = capture_objects(ledger.payment(&id).unwrap());
        let statuses: Vec<&Value> = captures.iter().map(|capture| &capture["status"]).collect();
        assert_eq!(statuses, ["DECLINED", "REFUNDED"]);
    }

    const BODY: &str = concat!(
        r#"{"id":"WH-58D329510W468432D-8HN650336L201105X","event_version":"1.0","create_time":"2026-09-21T13:33"#,
        r#":09.000Z","resource_type":"capture","resource_version":"2.0","event_type":"PAYMENT.CAPTURE.COMPLETED"#,
        r#"","summary":"Payment completed for EUR 49.99 EUR","resource":{"id":"42311647XV020574X","amount":{"cu"#,
        r#"rrency_code":"EUR","value":"49.99"},"final_capture":true,"seller_protection":{"status":"ELIGIBLE"},""#,
        r#"invoice_id":"ORD-1001","custom_id":"ORD-1001","status":"COMPLETED","supplementary_data":{"related_id"#,
        r#"s":{"order_id":"5O190127TN364715T"}},"create_time":"2026-09-21T13:33:05Z","update_time":"2026-09-21T"#,
        r#"13:33:06Z"},"links":[]}"#,
    );
}
