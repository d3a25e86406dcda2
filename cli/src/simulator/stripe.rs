//! Stripe as the simulator plays it: objects, events and signatures in Stripe's form.
//!
//! Written from Stripe's documentation and not from the adapter that reads it; the two share test vectors, no code.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use axum::Router;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::ledger::{Attempt, Cancellation, Decline, Dispute, DisputeState, Event, Happened, Object, Payment, Refund};
use super::ledger::{RefundState, State, Step};
use super::mac;
use super::seed::Seed;
use super::stripe_api;

/// Stripe, signing with `v1`.
pub struct Stripe;

/// The version that Stripe's SDKs of 2026 pin.
pub const API_VERSION: &str = "2026-10-28.endive";
/// How long a merchant has to answer a dispute, in seconds.
const DISPUTE_ANSWER_S: i64 = 14 * 24 * 3600;
/// Stripe publishes "exponential, for three days" and no intervals: these are ours.
const RETRIES: [Duration; 5] =
    [Duration::from_mins(3), Duration::from_mins(12), Duration::from_mins(48), Duration::from_hours(2), Duration::from_hours(4)];

/// Every type of event that Paybell gives a meaning, and those that it must ignore.
const EVENT_TYPES: [EventType; 31] = [
    EventType::new("payment_intent.created", Scene::Opened),
    EventType::new("payment_intent.processing", Scene::Processing),
    EventType::new("payment_intent.requires_action", Scene::ActionRequired),
    EventType::new("payment_intent.partially_funded", Scene::ActionRequired),
    EventType::new("payment_intent.amount_capturable_updated", Scene::Authorized),
    EventType::new("payment_intent.succeeded", Scene::Captured),
    EventType::new("payment_intent.payment_failed", Scene::Declined),
    EventType::open("payment_intent.canceled", &CANCELLATIONS),
    EventType::new("charge.pending", Scene::Noted),
    EventType::new("charge.succeeded", Scene::Captured),
    EventType::new("charge.captured", Scene::CapturedLater),
    EventType::new("charge.failed", Scene::Declined),
    EventType::new("charge.updated", Scene::Noted),
    EventType::new("charge.expired", Scene::Lapsed),
    EventType::new("charge.refunded", Scene::Refunded(RefundState::Succeeded)),
    EventType::open("charge.refund.updated", &SETTLEMENTS),
    EventType::open(
        "refund.created",
        &[
            ("succeeded", Scene::Refunded(RefundState::Succeeded)),
            ("pending", Scene::Refunded(RefundState::Pending)),
            ("failed", Scene::Refunded(RefundState::Failed)),
        ],
    ),
    EventType::open("refund.updated", &SETTLEMENTS),
    EventType::new("refund.failed", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("charge.dispute.created", Scene::Disputed),
    EventType::new("charge.dispute.updated", Scene::Disputed),
    EventType::new("charge.dispute.funds_withdrawn", Scene::Disputed),
    EventType::new("charge.dispute.funds_reinstated", Scene::DisputeClosed(DisputeState::Won)),
    EventType::open(
        "charge.dispute.closed",
        &[("lost", Scene::DisputeClosed(DisputeState::Lost)), ("won", Scene::DisputeClosed(DisputeState::Won))],
    ),
    EventType::new("checkout.session.completed", Scene::Captured),
    EventType::new("checkout.session.async_payment_succeeded", Scene::Captured),
    EventType::new("checkout.session.async_payment_failed", Scene::Declined),
    EventType::new("checkout.session.expired", Scene::Opened),
    EventType::new("customer.created", Scene::Opened),
    EventType::new("payout.paid", Scene::Opened),
    EventType::new("product.created", Scene::Opened),
];

const CANCELLATIONS: [(&str, Scene); 5] = [
    ("requested_by_customer", Scene::Canceled(Cancellation::Requested)),
    ("abandoned", Scene::Canceled(Cancellation::Abandoned)),
    ("duplicate", Scene::Canceled(Cancellation::Duplicate)),
    ("fraudulent", Scene::Canceled(Cancellation::Fraudulent)),
    ("automatic", Scene::Expired),
];

const SETTLEMENTS: [(&str, Scene); 3] = [
    ("succeeded", Scene::RefundSettled(RefundState::Succeeded)),
    ("pending", Scene::RefundSettled(RefundState::Pending)),
    ("failed", Scene::RefundSettled(RefundState::Failed)),
];

impl Dialect for Stripe {
    fn id(&self) -> &'static str {
        "stripe"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        let prefix = match object {
            Object::Payment => "pi",
            // Stripe knows no captures: a charge is captured once.
            Object::Attempt | Object::Capture => "ch",
            Object::Refund => "re",
            Object::Dispute => "dp",
            Object::Event => "evt",
        };
        format!("{prefix}_{}", seed.hex(24))
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let (payment, live) = (step.payment, step.live);
        let intent = || Some(payment_intent(payment, live));
        let charge = || Some(charge(payment, payment.attempts.last()?, live));
        let refund = |number: usize| Some(refund(payment, payment.refunds.get(number)?));
        let dispute = |number: usize| Some(dispute(payment, payment.disputes.get(number)?, live));
        let told: Vec<(&'static str, Option<Value>)> = match step.happened {
            Happened::Opened => vec![("payment_intent.created", intent())],
            Happened::ActionRequired => vec![("payment_intent.requires_action", intent())],
            Happened::Processing => vec![("payment_intent.processing", intent())],
            Happened::Declined => vec![("charge.failed", charge()), ("payment_intent.payment_failed", intent())],
            Happened::Authorized => {
                vec![("charge.succeeded", charge()), ("payment_intent.amount_capturable_updated", intent())]
            }
            Happened::Captured { was_authorized } => vec![
                (if was_authorized { "charge.captured" } else { "charge.succeeded" }, charge()),
                ("payment_intent.succeeded", intent()),
            ],
            Happened::Canceled { .. } | Happened::Expired { was_authorized: false } => {
                vec![("payment_intent.canceled", intent())]
            }
            Happened::Expired { was_authorized: true } => {
                vec![("charge.expired", charge()), ("payment_intent.canceled", intent())]
            }
            Happened::Refunded { number, .. } => vec![("refund.created", refund(number)), ("charge.refunded", charge())],
            Happened::RefundSettled { number } => {
                let mut told = vec![("charge.refund.updated", refund(number)), ("refund.updated", refund(number))];
                if payment.refunds.get(number).is_some_and(|refund| refund.state == RefundState::Failed) {
                    told.push(("refund.failed", refund(number)));
                }
                told
            }
            Happened::Disputed { number } => {
                vec![("charge.dispute.created", dispute(number)), ("charge.dispute.funds_withdrawn", dispute(number))]
            }
            Happened::DisputeClosed { number } => {
                let mut told = vec![("charge.dispute.closed", dispute(number))];
                if payment.disputes.get(number).is_some_and(|dispute| dispute.state == DisputeState::Won) {
                    told.push(("charge.dispute.funds_reinstated", dispute(number)));
                }
                told
            }
            Happened::Noted => vec![("charge.updated", charge())],
        };
        let previous = |event_type| match step.happened {
            Happened::Refunded { before, .. } if event_type == "charge.refunded" => Some(json!({ "amount_refunded": before })),
            _ => None,
        };
        let events = told.into_iter().enumerate().filter_map(|(nth, (event_type, object))| {
            let id = self.object_id(Object::Event, &step.event_seed(nth));
            Some(event(id, event_type, step.at, &payment.id, &object?, previous(event_type), live))
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
        let live = situation.live;
        let object = match event_type {
            "payment_intent.partially_funded" => payment_intent(payment, live),
            "charge.pending" => charge(payment, payment.attempts.last()?, live),
            "charge.dispute.updated" => dispute(payment, payment.disputes.last()?, live),
            _ if event_type.starts_with("checkout.session.") => checkout_session(payment, event_type, live),
            _ => {
                let kind = event_type.split('.').next()?;
                let id = format!("{kind}_{}", Seed::new(kind, &situation.salt.to_string(), 0).hex(24));
                json!({ "id": id, "object": kind, "created": situation.at, "livemode": live, "metadata": {} })
            }
        };
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&event(id, known.name, situation.at, &payment.id, &object, None, live)).into())
    }

    /// The last one about each payment and dispute, and all about each refund, since a cumulative figure of before counts
    /// refunds that failed afterwards. Charges say nothing more.
    fn telling<'a>(&self, events: &'a [Event]) -> HashSet<&'a str> {
        let refunds = events.iter().filter(|event| event.event_type.starts_with("refund."));
        let others = events.iter().filter(|event| {
            event.event_type.starts_with("payment_intent.")
                || matches!(event.event_type, "charge.dispute.created" | "charge.dispute.closed")
        });
        let last: HashMap<&str, &str> = others.map(|event| (event.object_id.as_str(), event.id.as_str())).collect();
        refunds.map(|event| event.id.as_str()).chain(last.into_values()).collect()
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json; charset=utf-8".to_owned()),
            ("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)".to_owned()),
            ("stripe-signature", signature(&settings.secret, at, &webhook.body)),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn secret(&self, seed: &Seed) -> String {
        format!("whsec_{}", seed.hex(32))
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "stripe", 0)),
            api_key: Some("sk_test_DemoOnly".to_owned()),
            ..Settings::default()
        }
    }

    fn signs_time(&self) -> bool {
        true
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(stripe_api::router(account))
    }
}

/// The value of `Stripe-Signature`: HMAC-SHA256 over `t.body`, keyed with the whole secret as it stands.
#[must_use]
pub fn signature(secret: &str, at: i64, body: &[u8]) -> String {
    format!("t={at},v1={}", hex::encode(mac::sha256(secret.as_bytes(), &[at.to_string().as_bytes(), b".", body])))
}

/// An event around an object, indented by two spaces as Stripe sends it.
fn event(
    id: String,
    event_type: &'static str,
    created: i64,
    payment_id: &str,
    object: &Value,
    previous: Option<Value>,
    live: bool,
) -> Event {
    let mut data = json!({ "object": object });
    if let Some(previous) = previous {
        data["previous_attributes"] = previous;
    }
    let body = json!({
        "id": id,
        "object": "event",
        "api_version": API_VERSION,
        "created": created,
        "data": data,
        "livemode": live,
        "pending_webhooks": 1,
        "request": { "id": id.replacen("evt", "req", 1), "idempotency_key": null },
        "type": event_type,
    });
    let object_id = object["id"].as_str().unwrap_or_default().to_owned();
    Event { id, event_type, created, payment_id: payment_id.to_owned(), object_id, body: format!("{body:#}").into() }
}

/// Stripe's `decline_code` and words for it.
const fn decline_words(decline: Decline) -> (&'static str, &'static str) {
    match decline {
        Decline::InsufficientFunds => ("insufficient_funds", "Your card has insufficient funds."),
        Decline::Generic => ("generic_decline", "Your card was declined."),
        Decline::ExpiredCard => ("expired_card", "Your card has expired."),
    }
}

/// A `payment_intent`.
pub(super) fn payment_intent(payment: &Payment, live: bool) -> Value {
    let last = payment.attempts.last();
    let error = if let State::Declined(decline) = payment.state {
        let (code, message) = decline_words(decline);
        json!({
            "charge": last.map(|charge| &charge.id), "code": "card_declined", "decline_code": code,
            "doc_url": "https://stripe.com/docs/error-codes/card-declined", "message": message, "type": "card_error",
        })
    } else {
        Value::Null
    };
    let (status, capturable, cancellation) = match payment.state {
        State::Open | State::Declined(_) => ("requires_payment_method", 0, None),
        State::ActionRequired => ("requires_action", 0, None),
        State::Processing => ("processing", 0, None),
        State::Authorized => ("requires_capture", payment.amount, None),
        State::Captured => ("succeeded", 0, None),
        State::Canceled(reason) => ("canceled", 0, Some(cancellation_reason(reason))),
        State::Expired => ("canceled", 0, Some("automatic")),
    };
    json!({
        "id": payment.id,
        "object": "payment_intent",
        "amount": payment.amount,
        "amount_capturable": capturable,
        "amount_details": { "tip": {} },
        "amount_received": payment.captured(),
        "application": null,
        "automatic_payment_methods": { "allow_redirects": "always", "enabled": true },
        "cancellation_reason": cancellation,
        "capture_method": if payment.manual_capture { "manual" } else { "automatic" },
        "confirmation_method": "automatic",
        "created": payment.created,
        "currency": payment.currency.to_ascii_lowercase(),
        "customer": null,
        "description": null,
        "last_payment_error": error,
        "latest_charge": last.map(|charge| &charge.id),
        "livemode": live,
        "metadata": { "order_id": payment.order_id },
        "next_action": null,
        "payment_method_types": ["card"],
        "processing": null,
        "receipt_email": null,
        "setup_future_usage": null,
        "shipping": null,
        "statement_descriptor": null,
        "status": status,
        "transfer_group": null,
    })
}

const fn cancellation_reason(reason: Cancellation) -> &'static str {
    match reason {
        Cancellation::Requested => "requested_by_customer",
        Cancellation::Abandoned => "abandoned",
        Cancellation::Duplicate => "duplicate",
        Cancellation::Fraudulent => "fraudulent",
    }
}

/// A `charge`.
pub(super) fn charge(payment: &Payment, charge: &Attempt, live: bool) -> Value {
    // Nothing is tried any more once something is captured.
    let captured = if charge.decline.is_none() { payment.captured() } else { 0 };
    let refunded = if captured > 0 { payment.refunded() } else { 0 };
    json!({
        "id": charge.id,
        "object": "charge",
        "amount": payment.amount,
        "amount_captured": captured,
        "amount_refunded": refunded,
        "balance_transaction": null,
        "captured": captured > 0,
        "created": charge.created,
        "currency": payment.currency.to_ascii_lowercase(),
        "customer": null,
        "description": null,
        "disputed": captured > 0 && !payment.disputes.is_empty(),
        "failure_code": charge.decline.map(|_| "card_declined"),
        "failure_message": charge.decline.map(|decline| decline_words(decline).1),
        "livemode": live,
        "metadata": { "order_id": payment.order_id },
        "outcome": {
            "network_status": if charge.decline.is_some() { "declined_by_network" } else { "approved_by_network" },
            "risk_level": "normal",
            "type": if charge.decline.is_some() { "issuer_declined" } else { "authorized" },
        },
        "paid": charge.decline.is_none(),
        "payment_intent": payment.id,
        "payment_method_details": { "card": { "brand": "visa", "country": "DE", "funding": "credit" }, "type": "card" },
        "refunded": captured > 0 && refunded >= captured,
        "status": if charge.decline.is_some() { "failed" } else { "succeeded" },
        "transfer_group": null,
    })
}

/// A `refund`.
pub(super) fn refund(payment: &Payment, refund: &Refund) -> Value {
    json!({
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": null,
        "charge": payment.attempts.last().map(|charge| &charge.id),
        "created": refund.created,
        "currency": payment.currency.to_ascii_lowercase(),
        "destination_details": { "card": { "reference_status": "pending", "type": "refund" }, "type": "card" },
        "failure_reason": (refund.state == RefundState::Failed).then_some("lost_or_stolen_card"),
        "metadata": {},
        "payment_intent": payment.id,
        "reason": "requested_by_customer",
        "receipt_number": null,
        "status": match refund.state {
            RefundState::Pending => "pending",
            RefundState::Succeeded => "succeeded",
            RefundState::Failed => "failed",
        },
    })
}

/// A `dispute`.
pub(super) fn dispute(payment: &Payment, dispute: &Dispute, live: bool) -> Value {
    json!({
        "id": dispute.id,
        "object": "dispute",
        "amount": dispute.amount,
        "balance_transactions": [],
        "charge": payment.attempts.last().map(|charge| &charge.id),
        "created": dispute.created,
        "currency": payment.currency.to_ascii_lowercase(),
        "evidence_details": {
            "due_by": dispute.created + DISPUTE_ANSWER_S,
            "has_evidence": dispute.state != DisputeState::NeedsResponse,
            "past_due": false,
            "submission_count": i32::from(dispute.state != DisputeState::NeedsResponse),
        },
        "is_charge_refundable": false,
        "livemode": live,
        "metadata": {},
        "payment_intent": payment.id,
        "reason": "fraudulent",
        "status": match dispute.state {
            DisputeState::NeedsResponse => "needs_response",
            DisputeState::Won => "won",
            DisputeState::Lost => "lost",
        },
    })
}

/// A `checkout.session` that led to the payment.
fn checkout_session(payment: &Payment, event_type: &str, live: bool) -> Value {
    let expired = event_type == "checkout.session.expired";
    json!({
        "id": format!("cs_test_{}", payment.id.trim_start_matches("pi_")),
        "object": "checkout.session",
        "amount_subtotal": payment.amount,
        "amount_total": payment.amount,
        "client_reference_id": payment.order_id,
        "created": payment.created,
        "currency": payment.currency.to_ascii_lowercase(),
        "customer": null,
        "expires_at": payment.created + 24 * 3600,
        "livemode": live,
        "metadata": { "order_id": payment.order_id },
        "mode": "payment",
        "payment_intent": (!expired).then_some(&payment.id),
        "payment_method_types": ["card"],
        "payment_status": if payment.state == State::Captured { "paid" } else { "unpaid" },
        "status": if expired { "expired" } else { "complete" },
    })
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
    fn signs_as_stripes_own_sdk_does() {
        // The vector `stripe-valid`, accepted by Stripe's SDK.
        let body = BODY;
        let header = signature("whsec_Test7Qb1mZx0aVYtqk3RjU2eNw5pLs8dHfGc", 1_789_999_990, body.as_bytes());
        assert_eq!(header, "t=1789999990,v1=01698350869fbb2a9ffc19c06f3d269ec1a8f214e8703c08c153de656abf25bd");
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        for EventType { name: event_type, .. } in EVENT_TYPES {
            let webhook = Stripe.staged(event_type, &situation()).unwrap_or_else(|| panic!("{event_type}"));
            let body: Value = serde_json::from_slice(&webhook.body).unwrap();
            assert_eq!(body["type"], event_type);
            assert_eq!(body["id"], webhook.id);
            assert_eq!(body["created"], 1_790_000_000);
            assert!(!body["data"]["object"]["id"].as_str().unwrap().is_empty(), "{event_type}");
        }
        assert!(Stripe.staged("payment_intent.exploded", &situation()).is_none());
    }

    #[test]
    fn events_of_one_order_concern_one_payment_and_each_ending_shows() {
        let payment = super::super::ledger::payment_id(&Stripe, "ORD-1001");
        let names = EVENT_TYPES.iter().map(|event_type| event_type.name);
        for event_type in names.filter(|name| name.starts_with("refund") || name.starts_with("charge.dispute")) {
            let body: Value = serde_json::from_slice(&Stripe.staged(event_type, &situation()).unwrap().body).unwrap();
            assert_eq!(body["data"]["object"]["payment_intent"], payment.as_str(), "{event_type}");
        }
        for event_type in
            EVENT_TYPES.iter().filter(|it| matches!(it.name, "refund.updated" | "refund.created" | "charge.dispute.closed"))
        {
            for (ending, _) in event_type.endings {
                let webhook =
                    Stripe.staged(event_type.name, &Situation { ending: Some(ending), part: Some(1000), ..situation() }).unwrap();
                let body: Value = serde_json::from_slice(&webhook.body).unwrap();
                assert_eq!(
                    (&body["data"]["object"]["status"], &body["data"]["object"]["amount"]),
                    (&json!(ending), &json!(1000))
                );
            }
        }
    }

    #[test]
    fn each_step_is_told_as_stripe_tells_it() {
        let mut ledger = Ledger::new(&Stripe, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, Decline::Generic, 110);
        ledger.capture(&id, 4999, 120);
        ledger.refund(&id, 4999, RefundState::Pending, 200);
        let types: Vec<_> = ledger.events().iter().map(|event| event.event_type).collect();
        assert_eq!(
            types,
            [
                "payment_intent.created",
                "charge.failed",
                "payment_intent.payment_failed",
                "charge.succeeded",
                "payment_intent.succeeded",
                "refund.created",
                "charge.refunded"
            ]
        );
    }

    const BODY: &str = concat!(
        r#"{"id":"evt_3QxTest0001","object":"event","api_version":"2026-10-28.endive","created":1789999990,"dat"#,
        r#"a":{"object":{"id":"pi_3QxTest0001","object":"payment_intent","amount":4999,"amount_capturable":0,"a"#,
        r#"mount_received":4999,"capture_method":"automatic","currency":"eur","latest_charge":"ch_3QxTest0001","#,
        r#""livemode":false,"metadata":{"order_id":"ORD-1001"},"status":"succeeded"}},"livemode":false,"pending"#,
        r#"_webhooks":1,"request":{"id":"req_Test1","idempotency_key":"idem-1001"},"type":"payment_intent.succe"#,
        r#"eded"}"#,
    );
}
