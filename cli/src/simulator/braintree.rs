//! Braintree as the simulator plays it: transactions in XML, inside a form that signs itself.
//!
//! Written from Braintree's documentation and SDKs and not from the adapter that reads it; the two share test vectors, no
//! code. Of a card's ordinary life (authorised, voided, lapsed, a refund on its way) Braintree tells nothing; only its API
//! does. Each attempt is a transaction of its own: the first has the payment's id.

use std::fmt::Write as _;
use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_shared::clock::Timestamp;
use sha1::{Digest as _, Sha1};
use url::form_urlencoded;

use super::account::Account;
use super::braintree_api;
use super::decimal::decimal;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::ledger::{Decline, Dispute, DisputeState, Event, Happened, Object, Payment, Refund, RefundState, State, Step};
use super::mac;
use super::seed::Seed;
use super::story::Story;

/// Braintree.
pub struct Braintree;

/// Hourly for a day, as it does in production.
const RETRIES: [Duration; 24] = [Duration::from_hours(1); 24];
/// A line of the payload, in characters of base64.
const LINE: usize = 60;

const EVENT_TYPES: [EventType; 19] = [
    EventType::open(
        "transaction_settled",
        &[("sale", Scene::Captured), ("credit", Scene::RefundSettled(RefundState::Succeeded))],
    ),
    EventType::new("transaction_settlement_declined", Scene::Declined),
    EventType::new("transaction_disbursed", Scene::Noted),
    EventType::new("transaction_retried", Scene::Authorized),
    EventType::new("transaction_reviewed", Scene::Authorized),
    EventType::new("refund_failed", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("dispute_opened", Scene::Disputed),
    EventType::new("dispute_under_review", Scene::Disputed),
    EventType::new("dispute_disputed", Scene::Disputed),
    EventType::new("dispute_won", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("dispute_lost", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("dispute_accepted", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("dispute_auto_accepted", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("dispute_expired", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("local_payment_completed", Scene::Processing),
    EventType::new("local_payment_funded", Scene::Captured),
    EventType::new("local_payment_expired", Scene::Opened),
    EventType::new("local_payment_reversed", Scene::Opened),
    EventType::new("check", Scene::Opened),
];

impl Dialect for Braintree {
    fn id(&self) -> &'static str {
        "braintree"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        match object {
            Object::Dispute => seed.hex(16),
            Object::Event => seed.hex(32),
            Object::Payment | Object::Attempt | Object::Capture | Object::Refund => seed.hex(12),
        }
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let latest = || transaction(payment, latest_attempt(payment));
        let of_refund = |number: usize| {
            let refund = payment.refunds.get(number)?;
            let kind = match refund.state {
                RefundState::Pending => return None,
                RefundState::Succeeded => "transaction_settled",
                RefundState::Failed => "refund_failed",
            };
            Some((kind, refund.id.clone(), credit(payment, refund)))
        };
        let of_dispute = |number: usize, kind| {
            let dispute = payment.disputes.get(number)?;
            Some((kind, dispute.id.clone(), claim(payment, dispute, dispute_status(dispute.state))))
        };
        let latest_id = || transaction_id(payment, latest_attempt(payment)).to_owned();
        let told = match step.happened {
            Happened::Declined => Some(("transaction_settlement_declined", latest_id(), latest())),
            Happened::Captured { .. } => Some(("transaction_settled", latest_id(), latest())),
            Happened::Noted => Some(("transaction_disbursed", latest_id(), latest())),
            Happened::Refunded { number, .. } | Happened::RefundSettled { number } => of_refund(number),
            Happened::Disputed { number } => of_dispute(number, "dispute_opened"),
            Happened::DisputeClosed { number } => {
                let is_won = payment.disputes.get(number).is_some_and(|dispute| dispute.state == DisputeState::Won);
                of_dispute(number, if is_won { "dispute_won" } else { "dispute_lost" })
            }
            Happened::Opened
            | Happened::ActionRequired
            | Happened::Processing
            | Happened::Authorized
            | Happened::Canceled { .. }
            | Happened::Expired { .. } => None,
        };
        let id = self.object_id(Object::Event, &step.event_seed(0));
        told.map(|(kind, object_id, subject)| event(id, kind, step.at, payment, object_id, &subject)).into_iter().collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        // No step of the ledger's is told so.
        let payment = ledger.payments().next()?;
        let latest = || transaction(payment, latest_attempt(payment));
        let local = payment.seed("local payment").hex(17);
        let subject = match event_type {
            "transaction_retried" => latest(),
            "transaction_reviewed" => {
                format!("<transaction-review><transaction-id>{}</transaction-id></transaction-review>", payment.id)
            }
            "local_payment_completed" => {
                format!("<local-payment><payment-id>{local}</payment-id>{}</local-payment>", latest())
            }
            "local_payment_funded" => {
                format!("<local-payment-funded><payment-id>{local}</payment-id>{}</local-payment-funded>", latest())
            }
            "local_payment_expired" => {
                format!("<local-payment-expired><payment-id>{local}</payment-id></local-payment-expired>")
            }
            "local_payment_reversed" => {
                format!("<local-payment-reversed><payment-id>{local}</payment-id></local-payment-reversed>")
            }
            "check" => "<check type=\"boolean\">true</check>".to_owned(),
            kind => claim(payment, payment.disputes.last()?, kind.strip_prefix("dispute_")?),
        };
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&event(id, known.name, situation.at, payment, payment.id.clone(), &subject)).into())
    }

    /// The signature stands in the form, beside what it signs.
    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let public_key = settings.public_key.as_deref().ok_or(SignError::Missing("public_key"))?;
        let payload = payload(&webhook.body);
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("bt_signature", &format!("{public_key}|{}", signature(&settings.secret, &payload)))
            .append_pair("bt_payload", &payload)
            .finish();
        let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
        Ok(SignedCall { headers, body: form.into(), token: None })
    }

    fn secret(&self, seed: &Seed) -> String {
        seed.hex(32)
    }

    fn settings(&self) -> Settings {
        let private_key = self.secret(&Seed::new("secret", "braintree", 0));
        Settings {
            secret: private_key.clone(),
            public_key: Some("demo_public_key".to_owned()),
            merchant_id: Some("demo_merchant".to_owned()),
            api_key: Some(private_key),
            ..Settings::default()
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(braintree_api::router(account))
    }

    fn tells(&self, story: Story) -> bool {
        !matches!(story, Story::Authorized | Story::Canceled | Story::AuthorizedThenCanceled | Story::AuthorizationExpired)
    }

    /// The transaction that paid is another one than those that failed, and nobody knows its id.
    fn tells_when_asked(&self, story: Story) -> bool {
        story != Story::FailedThenPaid
    }
}

/// XML in base64, in lines.
fn payload(xml: &[u8]) -> String {
    let text = STANDARD.encode(xml);
    let mut lines = String::with_capacity(text.len() + text.len() / LINE + 1);
    for (place, letter) in text.chars().enumerate() {
        if place > 0 && place % LINE == 0 {
            lines.push('\n');
        }
        lines.push(letter);
    }
    lines + "\n"
}

/// HMAC-SHA1 over the payload's text, keyed with the SHA-1 of the private key.
#[must_use]
pub fn signature(private_key: &str, payload: &str) -> String {
    hex::encode(mac::sha1(&Sha1::digest(private_key.as_bytes()), &[payload.as_bytes()]))
}

fn event(id: String, kind: &'static str, at: i64, payment: &Payment, object_id: String, subject: &str) -> Event {
    let timestamp = format!("<timestamp type=\"datetime\">{}</timestamp>", Timestamp::from_seconds(at));
    let notification = format!("<notification>{timestamp}<kind>{kind}</kind><subject>{subject}</subject></notification>");
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{notification}\n").into();
    Event { id, event_type: kind, created: at, payment_id: payment.id.clone(), object_id, body }
}

/// Which attempt stands; a payment that nobody tried yet is its first.
pub(super) fn latest_attempt(payment: &Payment) -> usize {
    payment.attempts.len().saturating_sub(1)
}

pub(super) fn transaction_id(payment: &Payment, attempt: usize) -> &str {
    match payment.attempts.get(attempt) {
        Some(later) if attempt > 0 => &later.id,
        _ => &payment.id,
    }
}

/// A `transaction` of the type `sale`.
pub(super) fn transaction(payment: &Payment, attempt: usize) -> String {
    let is_latest = attempt == latest_attempt(payment);
    let status = match payment.state {
        _ if !is_latest => "settlement_declined",
        State::Open | State::ActionRequired => "authorizing",
        State::Processing => "settlement_pending",
        State::Declined(_) => "settlement_declined",
        State::Authorized => "authorized",
        State::Captured => "settled",
        State::Canceled(_) => "voided",
        State::Expired => "authorization_expired",
    };
    let amount = if status == "settled" { payment.captured() } else { payment.amount };
    let made = payment.attempts.get(attempt).map_or(payment.created, |attempt| attempt.created);
    let mut more = String::new();
    if let Some(decline) = payment.attempts.get(attempt).and_then(|attempt| attempt.decline) {
        let (code, text) = decline_words(decline);
        element(&mut more, "processor-settlement-response-code", code);
        element(&mut more, "processor-settlement-response-text", text);
    }
    let mut history = String::new();
    if payment.manual_capture && !matches!(status, "authorizing" | "authorized") {
        history.push_str("<status-event><status>authorized</status></status-event>");
    }
    let _ = write!(history, "<status-event><status>{status}</status></status-event>");
    let _ = write!(more, "<status-history type=\"array\">{history}</status-history>");
    if is_latest {
        let refunds: String = payment.refunds.iter().flat_map(|refund| ["<item>", &refund.id, "</item>"]).collect();
        let disputes: String = payment.disputes.iter().map(|it| dispute(payment, it, dispute_status(it.state), "")).collect();
        let _ = write!(more, "<refund-ids type=\"array\">{refunds}</refund-ids><disputes type=\"array\">{disputes}</disputes>");
    }
    let changed = if is_latest { payment.changed } else { made };
    document(payment, transaction_id(payment, attempt), status, "sale", amount, (made, changed), &more)
}

/// A `transaction` of the type `credit`: a refund.
pub(super) fn credit(payment: &Payment, refund: &Refund) -> String {
    let status = match refund.state {
        RefundState::Pending => "submitted_for_settlement",
        RefundState::Succeeded => "settled",
        RefundState::Failed => "processor_declined",
    };
    let of = transaction_id(payment, latest_attempt(payment));
    let more = format!("<refunded-transaction-id>{of}</refunded-transaction-id>");
    document(payment, &refund.id, status, "credit", refund.amount, (refund.created, refund.changed), &more)
}

fn document(
    payment: &Payment,
    id: &str,
    status: &str,
    kind: &str,
    amount: i64,
    (created, changed): (i64, i64),
    more: &str,
) -> String {
    let mut inner = String::new();
    element(&mut inner, "id", id);
    element(&mut inner, "status", status);
    element(&mut inner, "type", kind);
    element(&mut inner, "currency-iso-code", &payment.currency);
    element(&mut inner, "amount", &decimal(amount, &payment.currency));
    element(&mut inner, "merchant-account-id", "demo_account");
    element(&mut inner, "order-id", &payment.order_id);
    for (name, at) in [("created-at", created), ("updated-at", changed)] {
        let _ = write!(inner, "<{name} type=\"datetime\">{}</{name}>", Timestamp::from_seconds(at));
    }
    format!("<transaction>{inner}{more}</transaction>")
}

/// A dispute as a notification shows it, with what it is about.
fn claim(payment: &Payment, disputed: &Dispute, status: &str) -> String {
    let mut of = String::new();
    element(&mut of, "id", transaction_id(payment, latest_attempt(payment)));
    element(&mut of, "amount", &decimal(payment.captured(), &payment.currency));
    element(&mut of, "order-id", &payment.order_id);
    dispute(payment, disputed, status, &format!("<transaction>{of}</transaction>"))
}

fn dispute(payment: &Payment, dispute: &Dispute, status: &str, more: &str) -> String {
    let amount = decimal(dispute.amount, &payment.currency);
    let mut inner = String::new();
    element(&mut inner, "id", &dispute.id);
    element(&mut inner, "amount", &amount);
    element(&mut inner, "amount-disputed", &amount);
    element(&mut inner, "currency-iso-code", &payment.currency);
    element(&mut inner, "kind", "chargeback");
    element(&mut inner, "reason", "fraud");
    element(&mut inner, "status", if status == "opened" { "open" } else { status });
    for (name, at) in [("created-at", dispute.created), ("updated-at", dispute.changed)] {
        let _ = write!(inner, "<{name} type=\"datetime\">{}</{name}>", Timestamp::from_seconds(at));
    }
    format!("<dispute>{inner}{more}</dispute>")
}

const fn dispute_status(state: DisputeState) -> &'static str {
    match state {
        DisputeState::NeedsResponse => "open",
        DisputeState::Won => "won",
        DisputeState::Lost => "lost",
    }
}

/// Braintree's codes and words, of settlements.
const fn decline_words(decline: Decline) -> (&'static str, &'static str) {
    match decline {
        Decline::InsufficientFunds => ("4004", "Insufficient Funds"),
        Decline::Generic => ("4001", "Settlement Declined"),
        Decline::ExpiredCard => ("4003", "Already Captured"),
    }
}

/// An element with a text.
pub(super) fn element(xml: &mut String, name: &str, text: &str) {
    let _ = write!(xml, "<{name}>");
    for letter in text.chars() {
        match letter {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            letter => xml.push(letter),
        }
    }
    let _ = write!(xml, "</{name}>");
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::ledger::{DECLINES, Ledger};
    use super::*;

    const VECTORS: &str = include_str!("../../../shared/src/psp/fixtures/vectors.json");

    fn situation<'a>() -> Situation<'a> {
        Situation {
            order_id: "ORD <1001> & more",
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
    fn signs_as_the_official_libraries_do() {
        let vectors: Vec<Value> = serde_json::from_str(VECTORS).unwrap();
        let genuine = vectors.iter().filter(|vector| vector["scheme"] == "braintree-form" && vector["expected"] == "valid");
        let mut tried = 0;
        for vector in genuine {
            let payload = vector["form"]["bt_payload"].as_str().unwrap();
            let signed = signature(vector["secrets"][0].as_str().unwrap(), payload);
            assert!(vector["form"]["bt_signature"].as_str().unwrap().contains(&format!("|{signed}")), "{}", vector["id"]);
            tried += 1;
        }
        assert!(tried > 0);
    }

    #[test]
    fn a_form_is_written_as_the_vectors_are() {
        let vectors: Vec<Value> = serde_json::from_str(VECTORS).unwrap();
        let vector = vectors.iter().find(|vector| vector["id"] == "braintree-valid").unwrap();
        let text = vector["form"]["bt_payload"].as_str().unwrap().replace('\n', "");
        let body = STANDARD.decode(text).unwrap().into();
        let webhook = Webhook { id: String::new(), event_type: String::new(), body };
        let settings = Settings {
            secret: "bt_private_test_key_1".to_owned(),
            public_key: Some("bt_pub_test_key".to_owned()),
            ..Settings::default()
        };
        let call = Braintree.sign(&settings, &webhook, 0).unwrap();
        assert!(payload(&webhook.body).lines().all(|line| line.len() <= LINE));
        let fields: Vec<(String, String)> = form_urlencoded::parse(&call.body).into_owned().collect();
        assert_eq!(fields[1], ("bt_payload".to_owned(), payload(&webhook.body)));
        assert_eq!(fields[0].1, format!("bt_pub_test_key|{}", signature("bt_private_test_key_1", &fields[1].1)));
    }

    #[test]
    fn what_braintree_keeps_to_itself_is_not_told() {
        let mut ledger = Ledger::new(&Braintree, false, 1);
        let id = ledger.open("o", 4999, "EUR", true, 100);
        ledger.authorize(&id, 110);
        assert!(ledger.events().is_empty());
        ledger.capture(&id, 4999, 120);
        let number = ledger.refund(&id, 1000, RefundState::Pending, 130);
        ledger.settle_refund(&id, number, RefundState::Succeeded, 140);
        let told: Vec<&str> = ledger.events().iter().map(|event| event.event_type).collect();
        assert_eq!(told, ["transaction_settled", "transaction_settled"]);
        let refund = String::from_utf8_lossy(&ledger.events()[1].body).into_owned();
        assert!(refund.contains("<type>credit</type>") && refund.contains("<amount>10.00</amount>"), "{refund}");
    }

    #[test]
    fn each_attempt_is_a_transaction_of_its_own() {
        let mut ledger = Ledger::new(&Braintree, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, DECLINES[0], 110);
        ledger.capture(&id, 4999, 120);
        let objects: Vec<&str> = ledger.events().iter().map(|event| event.object_id.as_str()).collect();
        assert_eq!(objects[0], id);
        assert_ne!(objects[1], id);
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        for known in EVENT_TYPES {
            let endings = known.endings.iter().map(|(ending, _)| Some(*ending));
            for ending in [None].into_iter().chain(endings) {
                let webhook = Braintree.staged(known.name, &Situation { ending, ..situation() }).unwrap();
                let body = String::from_utf8_lossy(&webhook.body).into_owned();
                assert!(body.contains(&format!("<kind>{}</kind>", known.name)), "{body}");
                assert!(body.contains("2026-09-21T14:13:20Z"), "{body}");
            }
        }
    }
}
