//! Square as the simulator plays it: payments, refunds and disputes as they stand, with the registered URL signed, too.
//!
//! Written from Square's documentation and not from the adapter that reads it; the two share test vectors, no code.

use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Webhook};
use super::ledger::{Cancellation, Decline, Dispute, DisputeState, Event, Happened, Object, Payment, Refund, RefundState};
use super::ledger::{State, Step};
use super::mac;
use super::seed::Seed;
use super::square_api;
use super::story::Story;

/// Square.
pub struct Square;

/// The version of the API that answers and events have.
pub const API_VERSION: &str = "2025-08-20";
const MERCHANT: &str = "MLPAYBELLDEMO";
const LOCATION: &str = "LPAYBELLDEMO";
/// How long an authorised payment waits to be completed, in seconds: a card that was not present.
const DELAY_S: i64 = 7 * 24 * 3600;
/// How long a merchant has to answer a dispute, in seconds.
const DISPUTE_ANSWER_S: i64 = 14 * 24 * 3600;

/// Eleven tries in 24 hours.
const RETRIES: [Duration; 11] = [
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(4),
    Duration::from_mins(8),
    Duration::from_mins(16),
    Duration::from_mins(32),
    Duration::from_hours(1),
    Duration::from_hours(2),
    Duration::from_hours(4),
    Duration::from_hours(8),
    Duration::from_hours(8),
];

const EVENT_TYPES: [EventType; 7] = [
    EventType::new("payment.created", Scene::Opened),
    EventType::open(
        "payment.updated",
        &[
            ("COMPLETED", Scene::Captured),
            ("APPROVED", Scene::Authorized),
            ("CANCELED", Scene::Canceled(Cancellation::Requested)),
            ("FAILED", Scene::Declined),
            ("PENDING", Scene::Processing),
        ],
    ),
    EventType::open(
        "refund.created",
        &[
            ("PENDING", Scene::Refunded(RefundState::Pending)),
            ("COMPLETED", Scene::Refunded(RefundState::Succeeded)),
            ("FAILED", Scene::Refunded(RefundState::Failed)),
        ],
    ),
    EventType::open(
        "refund.updated",
        &[("COMPLETED", Scene::RefundSettled(RefundState::Succeeded)), ("FAILED", Scene::RefundSettled(RefundState::Failed))],
    ),
    EventType::new("dispute.created", Scene::Disputed),
    EventType::open(
        "dispute.state.updated",
        &[("LOST", Scene::DisputeClosed(DisputeState::Lost)), ("WON", Scene::DisputeClosed(DisputeState::Won))],
    ),
    EventType::new("location.updated", Scene::Noted),
];

impl Dialect for Square {
    fn id(&self) -> &'static str {
        "square"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        match object {
            Object::Event => seed.uuid(),
            Object::Payment | Object::Attempt | Object::Capture => seed.letters(22),
            Object::Refund => format!("{}_{}", Seed::new("payment", seed.of(), 0).letters(22), seed.letters(22)),
            Object::Dispute => seed.letters(16),
        }
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let own = || ("payment", payment_object(payment));
        let refund = |number: usize| payment.refunds.get(number).map(|refund| ("refund", refund_object(payment, refund)));
        let dispute = |number: usize| payment.disputes.get(number).map(|dispute| ("dispute", dispute_object(payment, dispute)));
        let told = match step.happened {
            Happened::Opened => vec![("payment.created", Some(own()))],
            Happened::ActionRequired
            | Happened::Processing
            | Happened::Declined
            | Happened::Authorized
            | Happened::Captured { .. }
            | Happened::Canceled { .. }
            | Happened::Expired { .. } => vec![("payment.updated", Some(own()))],
            Happened::Refunded { number, .. } => vec![("refund.created", refund(number)), ("payment.updated", Some(own()))],
            Happened::RefundSettled { number } => vec![("refund.updated", refund(number)), ("payment.updated", Some(own()))],
            Happened::Disputed { number } => vec![("dispute.created", dispute(number))],
            Happened::DisputeClosed { number } => vec![("dispute.state.updated", dispute(number))],
            Happened::Noted => vec![("location.updated", Some(("location", json!({ "id": LOCATION }))))],
        };
        let events = told.into_iter().enumerate().filter_map(|(nth, (event_type, object))| {
            let (kind, object) = object?;
            let id = self.object_id(Object::Event, &step.event_seed(nth));
            let object_id = object["id"].as_str().unwrap_or_default().to_owned();
            let body = json!({
                "merchant_id": MERCHANT,
                "type": event_type,
                "event_id": id,
                "created_at": Timestamp::from_seconds(step.at),
                "data": { "type": kind, "id": object_id, "object": { kind: object } },
            });
            let (created, payment_id) = (step.at, payment.id.clone());
            Some(Event { id, event_type, created, payment_id, object_id, body: body.to_string().into() })
        });
        events.collect()
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let url = settings.url.as_deref().ok_or(SignError::Missing("url"))?;
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", "Square Connect v2".to_owned()),
            ("square-environment", "Sandbox".to_owned()),
            ("x-square-hmacsha256-signature", signature(&settings.secret, url, &webhook.body)),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn secret(&self, seed: &Seed) -> String {
        seed.letters(22)
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "square", 0)),
            url: Some("https://shop.example/webhooks/square".to_owned()),
            api_key: Some("EAAAsquare-DemoOnly".to_owned()),
            merchant_id: Some(MERCHANT.to_owned()),
            ..Settings::default()
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(square_api::router(account))
    }

    /// A payment of Square's that failed stays so: another try is another payment.
    fn plays(&self, story: Story) -> bool {
        story != Story::FailedThenPaid
    }

    /// There is no list of one payment's disputes.
    fn tells_when_asked(&self, story: Story) -> bool {
        !matches!(story, Story::Disputed | Story::DisputeLost)
    }
}

/// The value of `x-square-hmacsha256-signature`: HMAC-SHA256 over the registered URL and the body.
#[must_use]
pub fn signature(secret: &str, url: &str, body: &[u8]) -> String {
    STANDARD.encode(mac::sha256(secret.as_bytes(), &[url.as_bytes(), body]))
}

/// A `Payment`.
pub(super) fn payment_object(payment: &Payment) -> Value {
    let money = |amount: i64| json!({ "amount": amount, "currency": payment.currency });
    let (status, card) = match payment.state {
        State::Open | State::ActionRequired | State::Processing => ("PENDING", "PENDING"),
        State::Authorized => ("APPROVED", "AUTHORIZED"),
        State::Captured => ("COMPLETED", "CAPTURED"),
        State::Canceled(_) | State::Expired => ("CANCELED", "VOIDED"),
        State::Declined(_) => ("FAILED", "FAILED"),
    };
    let errors = if let State::Declined(decline) = payment.state { json!([error(decline)]) } else { json!([]) };
    // The PSP gives up at that time what nobody completed.
    let until = if payment.state == State::Expired { payment.changed } else { payment.created + DELAY_S };
    let total = if payment.state == State::Captured { payment.captured() } else { payment.amount };
    let mut object = json!({
        "id": payment.id,
        "created_at": Timestamp::from_seconds(payment.created),
        "updated_at": Timestamp::from_seconds(payment.changed),
        "amount_money": money(total),
        "total_money": money(total),
        "approved_money": money(payment.amount),
        "status": status,
        "delay_action": "CANCEL",
        "delayed_until": Timestamp::from_seconds(until),
        "source_type": "CARD",
        "card_details": { "status": card, "errors": errors },
        "location_id": LOCATION,
        "order_id": payment.seed("order").letters(22),
        "reference_id": payment.order_id,
        "version_token": payment.seed(&format!("version {}", payment.version)).hex(24),
    });
    if !payment.refunds.is_empty() {
        object["refunded_money"] = money(payment.refunded());
        object["refund_ids"] = payment.refunds.iter().map(|refund| refund.id.as_str()).collect();
    }
    object
}

fn error(decline: Decline) -> Value {
    let (code, detail) = match decline {
        Decline::InsufficientFunds => ("INSUFFICIENT_FUNDS", "Authorization error: 'INSUFFICIENT_FUNDS'"),
        Decline::Generic => ("GENERIC_DECLINE", "Authorization error: 'GENERIC_DECLINE'"),
        Decline::ExpiredCard => ("CARD_EXPIRED", "Authorization error: 'CARD_EXPIRED'"),
    };
    json!({ "category": "PAYMENT_METHOD_ERROR", "code": code, "detail": detail })
}

/// A `PaymentRefund`.
pub(super) fn refund_object(payment: &Payment, refund: &Refund) -> Value {
    json!({
        "id": refund.id,
        "status": match refund.state {
            RefundState::Pending => "PENDING",
            RefundState::Succeeded => "COMPLETED",
            RefundState::Failed => "FAILED",
        },
        "amount_money": { "amount": refund.amount, "currency": payment.currency },
        "payment_id": payment.id,
        "order_id": payment.seed("order").letters(22),
        "location_id": LOCATION,
        "created_at": Timestamp::from_seconds(refund.created),
        "updated_at": Timestamp::from_seconds(refund.changed),
    })
}

/// A `Dispute`.
pub(super) fn dispute_object(payment: &Payment, dispute: &Dispute) -> Value {
    json!({
        "id": dispute.id,
        "amount_money": { "amount": dispute.amount, "currency": payment.currency },
        "reason": "NO_KNOWLEDGE",
        "state": match dispute.state {
            DisputeState::NeedsResponse => "EVIDENCE_REQUIRED",
            DisputeState::Won => "WON",
            DisputeState::Lost => "LOST",
        },
        "due_at": Timestamp::from_seconds(dispute.created + DISPUTE_ANSWER_S),
        "disputed_payment": { "payment_id": payment.id },
        "card_brand": "VISA",
        "created_at": Timestamp::from_seconds(dispute.created),
        "updated_at": Timestamp::from_seconds(dispute.changed),
        "location_id": LOCATION,
        "version": if dispute.state == DisputeState::NeedsResponse { 1 } else { 2 },
    })
}

#[cfg(test)]
mod tests {
    use super::super::dialect::Situation;
    use super::super::ledger::Ledger;
    use super::*;

    #[test]
    fn signs_as_squares_own_sdk_does() {
        // The vector `square-valid-url-with-query`, accepted by Square's SDKs.
        let body = concat!(
            r#"{"merchant_id":"MLTESTMERCHANT","type":"payment.updated","event_id":"6a8f5f28-54a1-4eb0-a98a-3111513fd4aa","created_at":"#,
            r#""2026-09-21T13:33:10.308Z","data":{"type":"payment","id":"hYy9TestPayment01","object":{"payment":{"id":"#,
            r#""hYy9TestPayment01","created_at":"2026-09-21T13:33:00.086Z","updated_at":"2026-09-21T13:33:09.831Z","amount_money":"#,
            r#"{"amount":4999,"currency":"USD"},"total_money":{"amount":4999,"currency":"USD"},"status":"COMPLETED","source_type":"#,
            r#""CARD","location_id":"LTESTLOCATION","order_id":"03O3TestOrder","reference_id":"ORD-1001","version_token":"#,
            r#""bhC3TestToken6o"}}}}"#,
        );
        let url = "https://pay.example.com/hooks/square?tenant=acme&x=1";
        assert_eq!(signature("asdfQ1testSigKey-7Xw2LmN4", url, body.as_bytes()), "/llJ4XaA/Fsr/dnV5Eh0TDSi35Aivijtug7jPhFQl1g=");
        let nowhere = Settings { url: None, ..Square.settings() };
        let webhook = Webhook { id: "e".to_owned(), event_type: "x".to_owned(), body: body.into() };
        assert_eq!(Square.sign(&nowhere, &webhook, 0).err(), Some(SignError::Missing("url")));
    }

    #[test]
    fn each_step_is_told_as_square_tells_it() {
        let mut ledger = Ledger::new(&Square, false, 1);
        let id = ledger.open("o", 4999, "USD", false, 100);
        ledger.capture(&id, 4999, 120);
        let number = ledger.refund(&id, 1000, RefundState::Succeeded, 200);
        ledger.settle_refund(&id, number, RefundState::Failed, 210);
        ledger.dispute(&id, 4999, 300);
        let refunded: Vec<_> = ledger
            .events()
            .iter()
            .map(|event| {
                let body: Value = serde_json::from_slice(&event.body).unwrap();
                assert_eq!(body["event_id"], event.id.as_str());
                (event.event_type, body["data"]["object"]["payment"]["refunded_money"]["amount"].as_i64())
            })
            .collect();
        assert_eq!(
            refunded,
            [
                ("payment.created", None),
                ("payment.updated", None),
                ("refund.created", None),
                ("payment.updated", Some(1000)),
                ("refund.updated", None),
                ("payment.updated", Some(0)),
                ("dispute.created", None),
            ]
        );
    }

    #[test]
    fn every_ending_shows() {
        let situation = Situation {
            order_id: "ORD-1001",
            amount: 4999,
            currency: "USD",
            part: None,
            ending: None,
            live: false,
            at: 1_790_000_000,
            salt: 7,
        };
        for event_type in EVENT_TYPES {
            for (ending, _) in event_type.endings {
                let webhook = Square.staged(event_type.name, &Situation { ending: Some(ending), ..situation }).unwrap();
                let body: Value = serde_json::from_slice(&webhook.body).unwrap();
                let object = body["data"]["object"].as_object().unwrap().values().next().unwrap();
                assert_eq!(object.get("status").or(object.get("state")), Some(&json!(ending)), "{}", event_type.name);
            }
        }
    }
}
