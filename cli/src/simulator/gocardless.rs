//! GoCardless as the simulator plays it: payments by bank debit, events in batches, signatures in GoCardless's form.
//!
//! Written from GoCardless's documentation and not from the adapter that reads it; the two share test vectors, no code.

use std::time::Duration;

use axum::Router;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::gocardless_api;
use super::ledger::{Cancellation, Decline, DisputeState, Event, Happened, Object, Payment, Refund, RefundState, State, Step};
use super::mac;
use super::seed::Seed;
use super::story::Story;

/// GoCardless, with one step's events in one body.
pub struct GoCardless;

/// "Up to eight more times at increasing intervals", without the intervals: these are ours.
const RETRIES: [Duration; 8] = [
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(15),
    Duration::from_mins(30),
    Duration::from_hours(1),
    Duration::from_hours(2),
    Duration::from_hours(4),
    Duration::from_hours(8),
];

/// Resource and action, as in "payments confirmed".
const EVENT_TYPES: [EventType; 20] = [
    EventType::new("payments.created", Scene::Opened),
    EventType::new("payments.customer_approval_granted", Scene::ActionRequired),
    EventType::new("payments.customer_approval_denied", Scene::Canceled(Cancellation::Abandoned)),
    EventType::new("payments.submitted", Scene::Processing),
    EventType::new("payments.confirmed", Scene::Captured),
    EventType::new("payments.paid_out", Scene::Noted),
    EventType::new("payments.failed", Scene::Declined),
    EventType::new("payments.resubmission_requested", Scene::Declined),
    EventType::new("payments.late_failure_settled", Scene::Declined),
    EventType::new("payments.cancelled", Scene::Canceled(Cancellation::Requested)),
    EventType::new("payments.charged_back", Scene::Disputed),
    EventType::new("payments.chargeback_cancelled", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("payments.chargeback_settled", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("payments.surcharge_fee_debited", Scene::Noted),
    EventType::new("refunds.created", Scene::Refunded(RefundState::Pending)),
    EventType::new("refunds.paid", Scene::RefundSettled(RefundState::Succeeded)),
    EventType::new("refunds.refund_settled", Scene::RefundSettled(RefundState::Succeeded)),
    EventType::new("refunds.failed", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("refunds.funds_returned", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("mandates.cancelled", Scene::Opened),
];

impl Dialect for GoCardless {
    fn id(&self) -> &'static str {
        "gocardless"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        let kind = match object {
            Object::Payment => "PM",
            Object::Refund => "RF",
            Object::Event => "EV",
            // It has no ids for these.
            Object::Attempt => "AT",
            Object::Capture => "CA",
            Object::Dispute => "CB",
        };
        format!("{kind}{}", seed.letters(14))
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    /// All of a step in one body.
    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let is_retry = payment.attempts.len() > 1;
        let again = is_retry.then_some("payments.resubmission_requested");
        let mut refund = None;
        let told: Vec<&'static str> = match step.happened {
            Happened::Opened => vec!["payments.created"],
            Happened::Processing => vec!["payments.submitted"],
            Happened::Declined => again.into_iter().chain(["payments.failed"]).collect(),
            Happened::Captured { .. } => again.into_iter().chain(["payments.confirmed"]).collect(),
            Happened::Canceled { .. } => vec!["payments.cancelled"],
            Happened::Refunded { number, .. } => {
                refund = payment.refunds.get(number);
                ["refunds.created"].into_iter().chain(refund.and_then(refund_end)).collect()
            }
            Happened::RefundSettled { number } => {
                refund = payment.refunds.get(number);
                refund.and_then(refund_end).into_iter().collect()
            }
            Happened::Disputed { .. } => vec!["payments.charged_back"],
            Happened::DisputeClosed { number } => match payment.disputes.get(number).map(|dispute| dispute.state) {
                Some(DisputeState::Won) => vec!["payments.chargeback_cancelled"],
                _ => vec!["payments.chargeback_settled"],
            },
            Happened::Noted => vec!["payments.paid_out"],
            // Bank debits are not authorised beforehand, and wait for nobody for ever.
            Happened::ActionRequired | Happened::Authorized | Happened::Expired { .. } => Vec::new(),
        };
        let ids = (0..told.len()).map(|nth| self.object_id(Object::Event, &step.event_seed(nth)));
        let events: Vec<(String, &'static str)> = ids.zip(told).collect();
        batch(&events, step.at, payment, refund).into_iter().collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        let payment = ledger.payments().next()?;
        let refund = payment.refunds.last().filter(|_| event_type.starts_with("refunds."));
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&batch(&[(id, known.name)], situation.at, payment, refund)?).into())
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", "gocardless-webhook-service/1.1".to_owned()),
            ("origin", "https://api-sandbox.gocardless.com".to_owned()),
            ("webhook-signature", signature(&settings.secret, &webhook.body)),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "gocardless", 0)),
            api_key: Some("sandbox_DemoOnly".to_owned()),
            ..Settings::default()
        }
    }

    fn refused_with(&self) -> u16 {
        498
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(gocardless_api::router(account))
    }

    /// What a bank debit can come to: nothing is authorised to be captured later.
    fn plays(&self, story: Story) -> bool {
        !matches!(
            story,
            Story::Authorized | Story::AuthorizedThenCaptured | Story::AuthorizedThenCanceled | Story::AuthorizationExpired
        )
    }

    /// It debits in eight currencies, all with minor units.
    fn currencies(&self) -> &'static [&'static str] {
        &["EUR", "GBP", "SEK", "USD"]
    }
}

/// The value of `Webhook-Signature`: HMAC-SHA256 over the body.
#[must_use]
pub fn signature(secret: &str, body: &[u8]) -> String {
    hex::encode(mac::sha256(secret.as_bytes(), &[body]))
}

/// How a refund's end is told; a pending one has none.
fn refund_end(refund: &Refund) -> Option<&'static str> {
    match refund.state {
        RefundState::Pending => None,
        RefundState::Succeeded => Some("refunds.paid"),
        RefundState::Failed => Some("refunds.failed"),
    }
}

/// One body with these events (id and type); named after the last one. `None`: there are none.
fn batch(events: &[(String, &'static str)], at: i64, payment: &Payment, refund: Option<&Refund>) -> Option<Event> {
    let (id, event_type) = events.last()?;
    let told: Vec<Value> = events.iter().map(|(id, event_type)| event(id, event_type, at, payment, refund)).collect();
    let body = json!({ "events": told, "meta": { "webhook_id": id.replacen("EV", "WB", 1) } });
    let object_id = refund.map_or(&payment.id, |refund| &refund.id).clone();
    let payment_id = payment.id.clone();
    Some(Event { id: id.clone(), event_type, created: at, payment_id, object_id, body: body.to_string().into() })
}

fn event(id: &str, event_type: &str, at: i64, payment: &Payment, refund: Option<&Refund>) -> Value {
    let (resource_type, action) = event_type.split_once('.').unwrap_or_default();
    let links = match (resource_type, refund) {
        ("mandates", _) => json!({ "mandate": payment.seed("mandate").letters(14) }),
        (_, Some(refund)) => json!({ "refund": refund.id, "payment": payment.id }),
        _ => json!({ "payment": payment.id }),
    };
    // Metadata of the resource, and a refund has its own.
    let metadata = if refund.is_some() { json!({}) } else { json!({ "order_id": payment.order_id }) };
    json!({
        "id": id,
        "created_at": time(at),
        "resource_type": resource_type,
        "action": action,
        "links": links,
        "details": details(action, payment),
        "metadata": {},
        "resource_metadata": metadata,
    })
}

/// Milliseconds are always written.
pub(super) fn time(at: i64) -> String {
    Timestamp::from_seconds(at).to_string().replace('Z', ".000Z")
}

fn details(action: &str, payment: &Payment) -> Value {
    let (origin, cause, description) = match (action, payment.state) {
        ("failed", State::Declined(decline)) => {
            let (cause, description) = decline_words(decline);
            return json!({
                "origin": "bank", "cause": cause, "description": description, "scheme": "sepa_core", "reason_code": "AM04",
                "will_attempt_retry": false,
            });
        }
        ("created", _) => ("api", "payment_created", "Created via the API."),
        ("submitted", _) => ("gocardless", "payment_submitted", "Submitted to the banks."),
        ("resubmission_requested", _) => ("api", "payment_retried", "A retry was requested via the API."),
        ("confirmed", _) => ("gocardless", "payment_confirmed", "Enough time has passed since it was submitted."),
        ("paid_out" | "paid", _) => ("gocardless", "paid_out", "It was paid."),
        ("cancelled", _) => ("api", "payment_cancelled", "Cancelled at your request."),
        ("charged_back", _) => ("bank", "authorisation_disputed", "The customer disputes the authorisation."),
        ("funds_returned" | "failed", _) => ("bank", "refund_failed", "The customer's account took it not."),
        _ => ("gocardless", "other", "Something else."),
    };
    json!({ "origin": origin, "cause": cause, "description": description })
}

/// GoCardless's cause and words for it.
const fn decline_words(decline: Decline) -> (&'static str, &'static str) {
    match decline {
        Decline::InsufficientFunds => ("insufficient_funds", "The account has too little money."),
        Decline::Generic => ("refer_to_payer", "The bank asks to refer to the payer."),
        Decline::ExpiredCard => ("bank_account_closed", "The account is closed."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{DECLINES, Ledger};
    use super::*;

    const VECTORS: &str = include_str!("../../../shared/src/psp/fixtures/vectors.json");

    #[test]
    fn signs_as_the_official_libraries_do() {
        let vectors: Vec<Value> = serde_json::from_str(VECTORS).unwrap();
        let genuine: Vec<&Value> =
            vectors.iter().filter(|vector| vector["psp"] == "gocardless" && vector["expected"] == "valid").collect();
        assert!(!genuine.is_empty());
        for vector in genuine {
            let signed = signature(vector["secrets"][0].as_str().unwrap(), vector["body"].as_str().unwrap().as_bytes());
            assert_eq!(signed, vector["headers"]["Webhook-Signature"], "{}", vector["id"]);
        }
    }

    #[test]
    fn a_step_is_one_body_with_all_its_events() {
        let mut ledger = Ledger::new(&GoCardless, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, DECLINES[0], 110);
        ledger.capture(&id, 4999, 120);
        ledger.refund(&id, 1000, RefundState::Succeeded, 130);
        let told = |event: &Event| {
            let body: Value = serde_json::from_slice(&event.body).unwrap();
            let events = body["events"].as_array().unwrap().clone();
            events.iter().map(|event| event["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let bodies: Vec<Vec<String>> = ledger.events().iter().map(told).collect();
        assert_eq!(
            bodies,
            [vec!["created"], vec!["failed"], vec!["resubmission_requested", "confirmed"], vec!["created", "paid"]]
        );
        assert!(!String::from_utf8_lossy(&ledger.events()[2].body).contains("4999"), "events carry no amount");
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        let situation = Situation {
            order_id: "ORD-1001",
            amount: 4999,
            currency: "EUR",
            part: None,
            ending: None,
            live: false,
            at: 1_790_000_000,
            salt: 7,
        };
        for EventType { name, .. } in EVENT_TYPES {
            let webhook = GoCardless.staged(name, &situation).unwrap_or_else(|| panic!("{name}"));
            let body: Value = serde_json::from_slice(&webhook.body).unwrap();
            let last = body["events"].as_array().unwrap().last().unwrap().clone();
            assert_eq!(format!("{}.{}", last["resource_type"].as_str().unwrap(), last["action"].as_str().unwrap()), name);
            assert_eq!((&last["id"], &last["created_at"]), (&json!(webhook.id), &json!("2026-09-21T14:13:20.000Z")));
        }
    }
}
