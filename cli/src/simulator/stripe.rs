//! Stripe as the simulator plays it: objects, events and signatures in Stripe's form.
//!
//! Written from Stripe's documentation and not from the adapter that reads it; the two share test vectors, no code.

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::ledger::{Charge, DECLINES, Dispute, DisputeState, Ledger, Payment, Refund, RefundState, State};

/// The version that Stripe's SDKs of 2026 pin.
pub const API_VERSION: &str = "2026-10-28.endive";
/// How long a merchant has to answer a dispute, in seconds.
const DISPUTE_ANSWER_S: i64 = 14 * 24 * 3600;

/// Every type of event that Paybell gives a meaning, and those that it must ignore.
pub const EVENT_TYPES: [&str; 31] = [
    "payment_intent.created",
    "payment_intent.processing",
    "payment_intent.requires_action",
    "payment_intent.partially_funded",
    "payment_intent.amount_capturable_updated",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "charge.pending",
    "charge.succeeded",
    "charge.captured",
    "charge.failed",
    "charge.updated",
    "charge.expired",
    "charge.refunded",
    "charge.refund.updated",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "charge.dispute.closed",
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "customer.created",
    "payout.paid",
    "product.created",
];

/// The value of `Stripe-Signature`: HMAC-SHA256 over `t.body`, keyed with the whole secret as it stands.
#[must_use]
pub fn signature(secret: &str, at: i64, body: &[u8]) -> String {
    format!("t={at},v1={}", hex::encode(mac(secret.as_bytes(), &[at.to_string().as_bytes(), b".", body])))
}

/// HMAC-SHA256 over the parts, one after the other.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is a key to HMAC.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// One event about an order's payment, with what must have happened before it; `None`: no such event.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub order_id: &'a str,
    pub amount: i64,
    pub currency: &'a str,
    /// What is captured, refunded or disputed, where it is not all.
    pub part: Option<i64>,
    /// How the event ends, where its type leaves that open: a refund's or a dispute's status.
    pub ending: Option<&'a str>,
    pub livemode: bool,
    /// Unix seconds.
    pub at: i64,
    /// Makes the event's id new.
    pub salt: u64,
}

/// The endings that a type leaves open, the usual one first.
#[must_use]
pub fn endings(event_type: &str) -> &'static [&'static str] {
    match event_type {
        "refund.created" | "refund.updated" | "charge.refund.updated" => &["succeeded", "pending", "failed"],
        "charge.dispute.closed" => &["lost", "won"],
        "payment_intent.canceled" => &["requested_by_customer", "abandoned", "duplicate", "fraudulent", "automatic"],
        _ => &[],
    }
}

/// Plays the order's story up to the event, and returns the event. All ids but the event's own follow from the order.
#[must_use]
pub fn staged(event_type: &str, situation: &Situation<'_>) -> Option<super::Webhook> {
    let event_type = EVENT_TYPES.into_iter().find(|known| *known == event_type)?;
    let Situation { order_id, amount, currency, at, .. } = *situation;
    let part = situation.part.unwrap_or(amount);
    let ending = situation.ending.or_else(|| endings(event_type).first().copied()).unwrap_or_default();
    let manual = matches!(event_type, "payment_intent.amount_capturable_updated" | "charge.captured" | "charge.expired");
    let mut ledger = Ledger::new(situation.livemode, situation.salt);
    // The story before lies a minute back; nobody gets those events.
    let before = at - 60;
    let opened = if event_type == "payment_intent.created" { at } else { before };
    let id = ledger.open(order_id, amount, currency, manual, opened);
    match event_type {
        "payment_intent.created" => {}
        "payment_intent.processing" => ledger.process(&id, at),
        "payment_intent.requires_action" => ledger.require_action(&id, at),
        "payment_intent.partially_funded" => {
            ledger.require_action(&id, before);
            ledger.show_payment(&id, event_type, at);
        }
        "payment_intent.amount_capturable_updated" => ledger.authorize(&id, at),
        "payment_intent.succeeded" | "charge.succeeded" => ledger.capture(&id, part, at),
        "payment_intent.payment_failed" | "charge.failed" => ledger.decline(&id, DECLINES[0], at),
        "payment_intent.canceled" => {
            let reason = endings(event_type).iter().find(|reason| **reason == ending)?;
            ledger.cancel(&id, reason, at);
        }
        "charge.captured" => {
            ledger.authorize(&id, before);
            ledger.capture(&id, part, at);
        }
        "charge.expired" => {
            ledger.authorize(&id, before);
            ledger.expire(&id, at);
        }
        "checkout.session.completed" | "checkout.session.async_payment_succeeded" => {
            ledger.capture(&id, part, before);
            ledger.show_session(&id, event_type, at);
        }
        "checkout.session.async_payment_failed" => {
            ledger.decline(&id, DECLINES[0], before);
            ledger.show_session(&id, event_type, at);
        }
        "checkout.session.expired" => ledger.show_session(&id, event_type, at),
        "charge.pending" | "charge.updated" => {
            ledger.capture(&id, part, before);
            ledger.show_charge(&id, event_type, at, None);
        }
        "refund.created" | "charge.refunded" | "refund.updated" | "charge.refund.updated" | "refund.failed" => {
            ledger.capture(&id, amount, before);
            let state = match ending {
                "pending" => RefundState::Pending,
                "failed" => RefundState::Failed,
                _ => RefundState::Succeeded,
            };
            match event_type {
                "refund.created" => drop(ledger.refund(&id, part, state, at)),
                "charge.refunded" => drop(ledger.refund(&id, part, RefundState::Succeeded, at)),
                _ => {
                    let number = ledger.refund(&id, part, RefundState::Pending, before + 30);
                    let state = if event_type == "refund.failed" { RefundState::Failed } else { state };
                    ledger.settle_refund(&id, number, state, at);
                }
            }
        }
        "charge.dispute.created" | "charge.dispute.funds_withdrawn" => {
            ledger.capture(&id, amount, before);
            ledger.dispute(&id, part, at);
        }
        "charge.dispute.updated" | "charge.dispute.funds_reinstated" | "charge.dispute.closed" => {
            ledger.capture(&id, amount, before);
            let number = ledger.dispute(&id, part, before + 30);
            let won = event_type == "charge.dispute.funds_reinstated" || ending == "won";
            if event_type == "charge.dispute.updated" {
                ledger.show_dispute(&id, number, event_type, at);
            } else {
                ledger.close_dispute(&id, number, if won { DisputeState::Won } else { DisputeState::Lost }, at);
            }
        }
        // Not about payments: a body of the right shape that Paybell must record and ignore.
        _ => {
            let object = event_type.split('.').next().unwrap_or_default();
            ledger.show_stranger(event_type, object, at);
        }
    }
    let event = ledger.events().iter().rfind(|event| event.event_type == event_type)?;
    Some(super::Webhook { id: event.id.clone(), event_type: event.event_type.to_owned(), body: event.body.clone() })
}

/// Reasons by which Stripe itself gives an unpaid payment up.
#[must_use]
pub fn is_expiry(cancellation_reason: &str) -> bool {
    matches!(cancellation_reason, "automatic" | "expired")
}

/// An event around an object, indented by two spaces as Stripe sends it.
pub(super) fn event(id: &str, event_type: &str, created: i64, object: &Value, previous: Option<Value>, livemode: bool) -> Bytes {
    let mut data = json!({ "object": object });
    if let Some(previous) = previous {
        data["previous_attributes"] = previous;
    }
    let event = json!({
        "id": id,
        "object": "event",
        "api_version": API_VERSION,
        "created": created,
        "data": data,
        "livemode": livemode,
        "pending_webhooks": 1,
        "request": { "id": format!("req_{}", &id[4.min(id.len())..18.min(id.len())]), "idempotency_key": null },
        "type": event_type,
    });
    format!("{event:#}").into()
}

/// A `payment_intent`.
pub(super) fn payment_intent(payment: &Payment, livemode: bool) -> Value {
    let last = payment.charges.last();
    let error = last.filter(|_| payment.state == State::RequiresPaymentMethod).and_then(|charge| {
        let decline = charge.decline?;
        Some(json!({
            "charge": charge.id, "code": "card_declined", "decline_code": decline.code,
            "doc_url": "https://stripe.com/docs/error-codes/card-declined", "message": decline.message, "type": "card_error",
        }))
    });
    let (status, capturable) = match payment.state {
        State::RequiresPaymentMethod => ("requires_payment_method", 0),
        State::RequiresAction => ("requires_action", 0),
        State::Processing => ("processing", 0),
        State::RequiresCapture => ("requires_capture", payment.amount),
        State::Succeeded => ("succeeded", 0),
        State::Canceled => ("canceled", 0),
    };
    json!({
        "id": payment.id,
        "object": "payment_intent",
        "amount": payment.amount,
        "amount_capturable": capturable,
        "amount_details": { "tip": {} },
        "amount_received": payment.received,
        "application": null,
        "automatic_payment_methods": { "allow_redirects": "always", "enabled": true },
        "cancellation_reason": payment.cancellation_reason,
        "capture_method": if payment.manual_capture { "manual" } else { "automatic" },
        "confirmation_method": "automatic",
        "created": payment.created,
        "currency": payment.currency,
        "customer": null,
        "description": null,
        "last_payment_error": error,
        "latest_charge": last.map(|charge| &charge.id),
        "livemode": livemode,
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

/// A `charge`.
pub(super) fn charge(payment: &Payment, charge: &Charge, livemode: bool) -> Value {
    let refunded = if charge.captured > 0 { payment.refunded() } else { 0 };
    json!({
        "id": charge.id,
        "object": "charge",
        "amount": payment.amount,
        "amount_captured": charge.captured,
        "amount_refunded": refunded,
        "balance_transaction": null,
        "captured": charge.captured > 0,
        "created": charge.created,
        "currency": payment.currency,
        "customer": null,
        "description": null,
        "disputed": charge.captured > 0 && !payment.disputes.is_empty(),
        "failure_code": charge.decline.map(|_| "card_declined"),
        "failure_message": charge.decline.map(|decline| decline.message),
        "livemode": livemode,
        "metadata": { "order_id": payment.order_id },
        "outcome": {
            "network_status": if charge.decline.is_some() { "declined_by_network" } else { "approved_by_network" },
            "risk_level": "normal",
            "type": if charge.decline.is_some() { "issuer_declined" } else { "authorized" },
        },
        "paid": charge.decline.is_none(),
        "payment_intent": payment.id,
        "payment_method_details": { "card": { "brand": "visa", "country": "DE", "funding": "credit" }, "type": "card" },
        "refunded": charge.captured > 0 && refunded >= charge.captured,
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
        "charge": payment.charges.last().map(|charge| &charge.id),
        "created": refund.created,
        "currency": payment.currency,
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
pub(super) fn dispute(payment: &Payment, dispute: &Dispute, livemode: bool) -> Value {
    json!({
        "id": dispute.id,
        "object": "dispute",
        "amount": dispute.amount,
        "balance_transactions": [],
        "charge": payment.charges.last().map(|charge| &charge.id),
        "created": dispute.created,
        "currency": payment.currency,
        "evidence_details": {
            "due_by": dispute.created + DISPUTE_ANSWER_S,
            "has_evidence": dispute.state != DisputeState::NeedsResponse,
            "past_due": false,
            "submission_count": i32::from(dispute.state != DisputeState::NeedsResponse),
        },
        "is_charge_refundable": false,
        "livemode": livemode,
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
pub(super) fn checkout_session(payment: &Payment, event_type: &str, livemode: bool) -> Value {
    let expired = event_type == "checkout.session.expired";
    json!({
        "id": format!("cs_test_{}", payment.id.trim_start_matches("pi_")),
        "object": "checkout.session",
        "amount_subtotal": payment.amount,
        "amount_total": payment.amount,
        "client_reference_id": payment.order_id,
        "created": payment.created,
        "currency": payment.currency,
        "customer": null,
        "expires_at": payment.created + 24 * 3600,
        "livemode": livemode,
        "metadata": { "order_id": payment.order_id },
        "mode": "payment",
        "payment_intent": (!expired).then_some(&payment.id),
        "payment_method_types": ["card"],
        "payment_status": if payment.state == State::Succeeded { "paid" } else { "unpaid" },
        "status": if expired { "expired" } else { "complete" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation<'a>() -> Situation<'a> {
        Situation {
            order_id: "ORD-1001",
            amount: 4999,
            currency: "EUR",
            part: None,
            ending: None,
            livemode: false,
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
        for event_type in EVENT_TYPES {
            let webhook = staged(event_type, &situation()).unwrap_or_else(|| panic!("{event_type}"));
            let body: Value = serde_json::from_slice(&webhook.body).unwrap();
            assert_eq!(body["type"], event_type);
            assert_eq!(body["id"], webhook.id);
            assert_eq!(body["created"], 1_790_000_000);
            assert!(!body["data"]["object"]["id"].as_str().unwrap().is_empty(), "{event_type}");
        }
        assert!(staged("payment_intent.exploded", &situation()).is_none());
    }

    #[test]
    fn events_of_one_order_concern_one_payment_and_each_ending_shows() {
        let payment = super::super::ledger::payment_id("ORD-1001");
        for event_type in EVENT_TYPES.into_iter().filter(|name| name.starts_with("refund") || name.starts_with("charge.dispute"))
        {
            let body: Value = serde_json::from_slice(&staged(event_type, &situation()).unwrap().body).unwrap();
            assert_eq!(body["data"]["object"]["payment_intent"], payment.as_str(), "{event_type}");
        }
        for event_type in ["refund.updated", "refund.created", "charge.dispute.closed"] {
            for ending in endings(event_type) {
                let webhook = staged(event_type, &Situation { ending: Some(ending), part: Some(1000), ..situation() }).unwrap();
                let body: Value = serde_json::from_slice(&webhook.body).unwrap();
                assert_eq!(
                    (&body["data"]["object"]["status"], &body["data"]["object"]["amount"]),
                    (&json!(ending), &json!(1000))
                );
            }
        }
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
