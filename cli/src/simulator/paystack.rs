//! Paystack as the simulator plays it: transactions, refunds and disputes.
//!
//! Written from Paystack's documentation and not from the adapter that reads it; the two share test vectors, no code.
//!
//! Of a transaction that is not paid Paystack tells nothing: that it failed, whoever wants to know must ask. It has no
//! authorisations that are captured later, and nobody can give a transaction up.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::http::{self, bearer, only_for, pairs, value};
use super::ledger::{Decline, Dispute, DisputeState, Event, Happened, Object, Payment, Refund, RefundState};
use super::ledger::{State as PaymentState, Step};
use super::mac;
use super::seed::Seed;
use super::story::Story;

/// Paystack, signing with the API's secret key.
pub struct Paystack;

/// How long a merchant has to answer a dispute, in seconds.
const DISPUTE_ANSWER_S: i64 = 24 * 3600;
/// Paystack's default page, and a bound of ours.
const PAGE_DEFAULT: usize = 50;
const PAGE_MAX: usize = 1000;
/// Every 3 minutes for the first 4 tries, then hourly for 72 hours.
const RETRIES: [Duration; 75] = {
    let mut waits = [Duration::from_hours(1); 75];
    (waits[0], waits[1], waits[2]) = (Duration::from_mins(3), Duration::from_mins(3), Duration::from_mins(3));
    waits
};

const EVENT_TYPES: [EventType; 10] = [
    EventType::new("charge.success", Scene::Captured),
    EventType::new("refund.pending", Scene::Refunded(RefundState::Pending)),
    EventType::new("refund.processing", Scene::RefundSettled(RefundState::Pending)),
    EventType::new("refund.processed", Scene::RefundSettled(RefundState::Succeeded)),
    EventType::new("refund.failed", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("charge.dispute.create", Scene::Disputed),
    EventType::new("charge.dispute.remind", Scene::Disputed),
    EventType::open(
        "charge.dispute.resolve",
        &[("merchant-accepted", Scene::DisputeClosed(DisputeState::Lost)), ("declined", Scene::DisputeClosed(DisputeState::Won))],
    ),
    EventType::new("transfer.success", Scene::Captured),
    EventType::new("customeridentification.success", Scene::Captured),
];

impl Dialect for Paystack {
    fn id(&self) -> &'static str {
        "paystack"
    }

    /// A payment is named by the merchant's reference; the order stands in the metadata.
    fn object_id(&self, object: Object, seed: &Seed) -> String {
        match object {
            Object::Payment => format!("T-{}", seed.hex(20)),
            Object::Attempt | Object::Capture | Object::Refund | Object::Dispute => seed.number(9).to_string(),
            // It has none.
            Object::Event => seed.hex(24),
        }
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let (payment, live) = (step.payment, step.live);
        let of_refund = |number: usize, states: &[RefundState]| {
            let refund = payment.refunds.get(number);
            let told = states.iter().filter_map(|state| {
                let (event_type, status) = refund_words(*state);
                Some((event_type, refund_data(payment, refund?, status, live)))
            });
            told.collect::<Vec<_>>()
        };
        let of_dispute = |number: usize, event_type: &'static str| {
            payment.disputes.get(number).map(|it| (event_type, dispute(payment, it, live))).into_iter().collect()
        };
        let told: Vec<(&'static str, Value)> = match step.happened {
            Happened::Captured { .. } => vec![("charge.success", transaction(payment, live))],
            Happened::Refunded { number, .. } => {
                let state = payment.refunds.get(number).map_or(RefundState::Pending, |refund| refund.state);
                match state {
                    RefundState::Pending => of_refund(number, &[RefundState::Pending]),
                    ended => of_refund(number, &[RefundState::Pending, ended]),
                }
            }
            Happened::RefundSettled { number } => match payment.refunds.get(number) {
                Some(refund) if refund.state == RefundState::Pending => {
                    vec![("refund.processing", refund_data(payment, refund, "processing", live))]
                }
                Some(refund) => of_refund(number, &[refund.state]),
                None => vec![],
            },
            Happened::Disputed { number } => of_dispute(number, "charge.dispute.create"),
            Happened::DisputeClosed { number } => of_dispute(number, "charge.dispute.resolve"),
            _ => vec![],
        };
        let events = told.into_iter().enumerate().map(|(nth, (event_type, data))| {
            event(self.object_id(Object::Event, &step.event_seed(nth)), event_type, step.at, &payment.id, &data)
        });
        events.collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        // A reminder repeats the dispute; the others are not about payments at all.
        let payment = ledger.payments().next()?;
        let data = match payment.disputes.last() {
            Some(it) => dispute(payment, it, situation.live),
            None => json!({ "id": payment.seed(event_type).number(9), "domain": domain(situation.live) }),
        };
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&event(id, known.name, situation.at, &payment.id, &data)).into())
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-paystack-signature", signature(&settings.secret, &webhook.body)),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn secret(&self, seed: &Seed) -> String {
        format!("sk_test_{}", seed.hex(40))
    }

    /// The secret is the API's key, too.
    fn settings(&self) -> Settings {
        Settings { secret: self.secret(&Seed::new("secret", "paystack", 0)), ..Settings::default() }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(router(account))
    }

    fn plays(&self, story: Story) -> bool {
        !matches!(
            story,
            Story::Canceled
                | Story::Authorized
                | Story::AuthorizedThenCaptured
                | Story::AuthorizedThenCanceled
                | Story::AuthorizationExpired
        )
    }

    /// Paystack's currencies all have a minor unit.
    fn currencies(&self) -> &'static [&'static str] {
        &["NGN", "GHS", "ZAR", "KES", "USD"]
    }

    /// No webhook tells of a failure.
    fn tells(&self, story: Story) -> bool {
        self.plays(story) && story != Story::Failed
    }
}

/// The value of `x-paystack-signature`: HMAC-SHA512 over the body, keyed with the API's secret key.
#[must_use]
pub fn signature(secret: &str, body: &[u8]) -> String {
    hex::encode(mac::sha512(secret.as_bytes(), &[body]))
}

// ------------------------------------------------------------------------------------------------------------ objects

fn event(id: String, event_type: &'static str, created: i64, payment_id: &str, data: &Value) -> Event {
    let body = json!({ "event": event_type, "data": data }).to_string();
    let object_id = data["id"].to_string();
    Event { id, event_type, created, payment_id: payment_id.to_owned(), object_id, body: body.into() }
}

const fn domain(live: bool) -> &'static str {
    if live { "live" } else { "test" }
}

/// `2026-09-21T13:33:10.000Z`.
fn time(at: i64) -> String {
    Timestamp::from_seconds(at).to_string().replace('Z', ".000Z")
}

const fn decline_words(decline: Decline) -> &'static str {
    match decline {
        Decline::InsufficientFunds => "Insufficient Funds",
        Decline::Generic => "Declined",
        Decline::ExpiredCard => "Expired card",
    }
}

fn transaction_number(payment: &Payment) -> u64 {
    payment.seed("transaction").number(10)
}

/// What the payer has back.
fn returned(payment: &Payment) -> i64 {
    let succeeded = payment.refunds.iter().filter(|refund| refund.state == RefundState::Succeeded);
    succeeded.map(|refund| refund.amount).sum()
}

fn transaction(payment: &Payment, live: bool) -> Value {
    let captured = payment.captured();
    let (status, words) = match payment.state {
        PaymentState::Captured if returned(payment) >= captured => ("reversed", "Reversed"),
        PaymentState::Captured => ("success", "Successful"),
        PaymentState::Declined(decline) => ("failed", decline_words(decline)),
        PaymentState::Open | PaymentState::ActionRequired | PaymentState::Processing | PaymentState::Authorized => {
            ("ongoing", "The transaction is not completed")
        }
        PaymentState::Canceled(_) | PaymentState::Expired => ("abandoned", "The transaction was not completed"),
    };
    let is_paid = payment.state == PaymentState::Captured;
    json!({
        "id": transaction_number(payment),
        "domain": domain(live),
        "status": status,
        "reference": payment.id,
        "amount": if is_paid { captured } else { payment.amount },
        "requested_amount": payment.amount,
        "message": null,
        "gateway_response": words,
        "paid_at": payment.captures.first().map(|capture| time(capture.created)),
        "created_at": time(payment.created),
        "channel": "card",
        "currency": payment.currency,
        "ip_address": null,
        "metadata": { "order_id": payment.order_id },
        "fees": if is_paid { Some(captured / 66) } else { None },
        "customer": { "id": payment.seed("customer").number(8), "customer_code": "CUS_simulated" },
    })
}

/// The event's name and the status.
const fn refund_words(state: RefundState) -> (&'static str, &'static str) {
    match state {
        RefundState::Pending => ("refund.pending", "pending"),
        RefundState::Succeeded => ("refund.processed", "processed"),
        RefundState::Failed => ("refund.failed", "failed"),
    }
}

/// As webhooks have it: the amount is a string, and nothing says when.
fn refund_data(payment: &Payment, refund: &Refund, status: &str, live: bool) -> Value {
    json!({
        "id": number(&refund.id),
        "status": status,
        "transaction_reference": payment.id,
        "refund_reference": if status == "processed" { Some(format!("RF{}", refund.id)) } else { None },
        "amount": refund.amount.to_string(),
        "currency": payment.currency,
        "domain": domain(live),
    })
}

/// As the list has it: the amount is a number, and the transaction is named by its own.
fn listed_refund(payment: &Payment, refund: &Refund, live: bool) -> Value {
    json!({
        "id": number(&refund.id),
        "domain": domain(live),
        "transaction": transaction_number(payment),
        "transaction_reference": payment.id,
        "dispute": null,
        "amount": refund.amount,
        "deducted_amount": refund.amount,
        "currency": payment.currency,
        "channel": "card",
        "status": refund_words(refund.state).1,
        "createdAt": time(refund.created),
        "updatedAt": time(refund.changed),
    })
}

fn dispute(payment: &Payment, dispute: &Dispute, live: bool) -> Value {
    let (status, resolution) = match dispute.state {
        DisputeState::NeedsResponse => ("awaiting-merchant-feedback", None),
        DisputeState::Won => ("resolved", Some("declined")),
        DisputeState::Lost => ("resolved", Some("merchant-accepted")),
    };
    json!({
        "id": number(&dispute.id),
        "refund_amount": dispute.amount,
        "currency": payment.currency,
        "status": status,
        "resolution": resolution,
        "domain": domain(live),
        "transaction": {
            "id": transaction_number(payment), "domain": domain(live), "status": "success", "reference": payment.id,
            "amount": payment.captured(), "currency": payment.currency, "metadata": { "order_id": payment.order_id },
        },
        "category": "chargeback",
        "dueAt": time(dispute.created + DISPUTE_ANSWER_S),
        "createdAt": time(dispute.created),
        "updatedAt": time(dispute.changed),
    })
}

fn number(id: &str) -> Value {
    id.parse::<u64>().map_or_else(|_| id.into(), Into::into)
}

// ---------------------------------------------------------------------------------------------------------------- API

/// The part of the API that reconciliation asks; every route wants the secret key as a bearer token.
fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/transaction", get(transactions))
        .route("/transaction/verify/{reference}", get(verify))
        .route("/refund", get(refunds))
        .route("/dispute", get(disputes))
        .with_state(account.clone());
    let refusal = json!({ "status": false, "message": "Invalid key", "type": "validation_error", "code": "invalid_Key" });
    let key = account.settings.api_key.as_deref().unwrap_or(&account.settings.secret);
    only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal))
}

async fn verify(State(account): State<Account>, Path(reference): Path<String>) -> Response {
    let ledger = account.ledger();
    match ledger.payment(&reference) {
        Some(payment) => answer(&json!({
            "status": true, "message": "Verification successful", "data": transaction(payment, ledger.live()),
        })),
        None => refused("Transaction reference not found", "transaction_not_found"),
    }
}

async fn transactions(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let status = value(&query, "status");
    let all = ledger.payments().map(|payment| (payment.created, transaction(payment, ledger.live())));
    list(all.filter(|(_, item)| status.is_none_or(|status| item["status"] == status)), &query)
}

async fn refunds(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let of = ledger.payments().filter(|payment| concerns(&query, payment));
    let live = ledger.live();
    list(of.flat_map(|payment| payment.refunds.iter().map(move |it| (it.created, listed_refund(payment, it, live)))), &query)
}

async fn disputes(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let of = ledger.payments().filter(|payment| concerns(&query, payment));
    let live = ledger.live();
    let all = of.flat_map(|payment| payment.disputes.iter().map(move |it| (it.created, dispute(payment, it, live))));
    let status = value(&query, "status");
    list(all.filter(|(_, item)| status.is_none_or(|status| item["status"] == status)), &query)
}

/// `transaction` is the transaction's number.
fn concerns(query: &[(String, String)], payment: &Payment) -> bool {
    value(query, "transaction").is_none_or(|number| number == transaction_number(payment).to_string())
}

/// One page, newest first, of what was made between `from` and `to`.
fn list(made: impl Iterator<Item = (i64, Value)>, query: &[(String, String)]) -> Response {
    let number = |name: &str, default: usize| value(query, name).map_or(Some(default), |text| text.parse().ok());
    let (Some(per_page @ 1..=PAGE_MAX), Some(page @ 1..)) = (number("perPage", PAGE_DEFAULT), number("page", 1)) else {
        return refused("Invalid page", "invalid_params");
    };
    let bound = |name: &str, default: i64| {
        value(query, name).map_or(Some(default), |text| Timestamp::parse_rfc3339(text).ok().map(Timestamp::seconds))
    };
    let (Some(from), Some(to)) = (bound("from", 0), bound("to", i64::MAX)) else {
        return refused("Invalid 'from' date", "invalid_params");
    };
    let mut made: Vec<(i64, Value)> = made.filter(|(created, _)| (from..=to).contains(created)).collect();
    made.reverse();
    made.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    let total = made.len();
    let data: Vec<Value> = made.into_iter().skip((page - 1) * per_page).take(per_page).map(|(_, item)| item).collect();
    let meta = json!({ "total": total, "perPage": per_page, "page": page, "pageCount": total.div_ceil(per_page) });
    answer(&json!({ "status": true, "message": "Retrieved", "data": data, "meta": meta }))
}

fn refused(message: &str, code: &str) -> Response {
    let body = json!({ "status": false, "message": message, "type": "validation_error", "code": code });
    http::json(StatusCode::BAD_REQUEST, &body)
}

fn answer(body: &Value) -> Response {
    http::json(StatusCode::OK, body)
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
            live: false,
            at: 1_790_000_000,
            salt: 7,
        }
    }

    fn body(event_type: &str, ending: Option<&str>) -> Value {
        let webhook = Paystack.staged(event_type, &Situation { ending, part: Some(1000), ..situation() }).unwrap();
        serde_json::from_slice(&webhook.body).unwrap()
    }

    #[test]
    fn signs_as_the_vector_says() {
        // The vector `paystack-valid-utf8`.
        let body = r#"{"event":"charge.success","data":{"id":302961001,"domain":"test","status":"success","reference":"ORD-Ü-1001","amount":499900,"message":null,"gateway_response":"Successful","paid_at":"2026-09-21T13:33:09.000Z","created_at":"2026-09-21T13:30:00.000Z","channel":"card","currency":"NGN","metadata":{"order_id":"ORD-Ü-1001"},"fees":7499,"customer":{"id":84312,"email":"a@example.com"}}}"#;
        let expected = "c27efa84ca73eaff74b5849e355c5bde5bed0c0954ac6f268029958bbea01c9bde988df15f2f1e698573aaa34af5f988d45a078175da88d6315eaaf42dd79ce9";
        assert_eq!(signature("sk_test_paystack_secret_01", body.as_bytes()), expected);
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        for EventType { name: event_type, endings, .. } in EVENT_TYPES {
            for ending in [None].into_iter().chain(endings.iter().map(|(ending, _)| Some(*ending))) {
                assert_eq!(body(event_type, ending)["event"], event_type);
            }
        }
        assert!(Paystack.staged("payment.exploded", &situation()).is_none());
    }

    #[test]
    fn events_name_the_payment_by_its_reference() {
        let payment = super::super::ledger::payment_id(&Paystack, "ORD-1001");
        let charge = body("charge.success", None);
        assert_eq!(
            (&charge["data"]["reference"], &charge["data"]["metadata"]["order_id"]),
            (&json!(payment), &json!("ORD-1001"))
        );
        let refund = body("refund.processed", None);
        assert_eq!((&refund["data"]["transaction_reference"], &refund["data"]["amount"]), (&json!(payment), &json!("1000")));
        for resolution in ["declined", "merchant-accepted"] {
            let dispute = body("charge.dispute.resolve", Some(resolution));
            assert_eq!(dispute["data"]["resolution"], resolution);
            assert_eq!(dispute["data"]["transaction"]["reference"], payment.as_str());
        }
    }

    #[test]
    fn what_fails_is_not_told() {
        let mut ledger = super::super::ledger::Ledger::new(&Paystack, false, 1);
        let id = ledger.open("o", 4999, "NGN", false, 100);
        ledger.decline(&id, Decline::Generic, 110);
        assert!(ledger.events().is_empty());
        assert_eq!(transaction(ledger.payment(&id).unwrap(), false)["status"], "failed", "but it can be asked");
    }
}
