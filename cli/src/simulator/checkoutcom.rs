//! Checkout.com as the simulator plays it: payments with their balances, and disputes.
//!
//! Written from Checkout.com's documentation and not from the adapter that reads it; the two share test vectors, no code.

use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::endpoint::{self, Change, Registered, texts};
use super::http::{self, bearer, only_for, pairs, value};
use super::ledger::{Cancellation, Decline, Dispute, DisputeState, Event, Happened, Object, Payment, RefundState};
use super::ledger::{State as PaymentState, Step};
use super::mac;
use super::seed::Seed;

/// Checkout.com, signing with a webhook's signature key.
pub struct Checkoutcom;

/// How long a merchant has to answer a dispute, in seconds.
const DISPUTE_ANSWER_S: i64 = 14 * 24 * 3600;
/// Checkout.com's default page, and a bound of ours.
const PAGE_DEFAULT: usize = 10;
const PAGE_MAX: usize = 1000;
/// What is generally known; Checkout.com publishes none.
const RETRIES: [Duration; 8] = [
    Duration::from_mins(5),
    Duration::from_mins(10),
    Duration::from_mins(15),
    Duration::from_mins(30),
    Duration::from_hours(1),
    Duration::from_hours(4),
    Duration::from_hours(12),
    Duration::from_hours(24),
];

const EVENT_TYPES: [EventType; 26] = [
    EventType::new("payment_pending", Scene::Processing),
    EventType::new("payment_approved", Scene::Authorized),
    EventType::new("payment_captured", Scene::Captured),
    EventType::new("payment_capture_pending", Scene::Authorized),
    EventType::new("payment_capture_declined", Scene::Authorized),
    EventType::new("payment_declined", Scene::Declined),
    EventType::new("payment_authentication_failed", Scene::Declined),
    EventType::new("payment_canceled", Scene::Canceled(Cancellation::Requested)),
    EventType::new("payment_voided", Scene::Voided),
    EventType::new("payment_void_declined", Scene::Authorized),
    EventType::open("payment_expired", &[("unpaid", Scene::Expired), ("authorized", Scene::Lapsed)]),
    EventType::new("payment_refund_pending", Scene::Refunded(RefundState::Pending)),
    EventType::new("payment_refunded", Scene::Refunded(RefundState::Succeeded)),
    EventType::new("payment_refund_declined", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("payment_paid", Scene::Captured),
    EventType::new("dispute_received", Scene::Disputed),
    EventType::new("dispute_evidence_required", Scene::Disputed),
    EventType::new("dispute_won", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("dispute_canceled", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("dispute_resolved", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("dispute_lost", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("dispute_expired", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("dispute_accepted", Scene::DisputeClosed(DisputeState::Lost)),
    EventType::new("payment_retrieval", Scene::Captured),
    EventType::new("payment_chargeback", Scene::Captured),
    EventType::new("card_verified", Scene::Opened),
];

impl Dialect for Checkoutcom {
    fn id(&self) -> &'static str {
        "checkoutcom"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        let prefix = match object {
            Object::Payment => "pay",
            Object::Attempt | Object::Capture | Object::Refund => "act",
            Object::Dispute => "dsp",
            Object::Event => "evt",
        };
        format!("{prefix}_{}", seed.hex(26))
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let attempt = || payment.attempts.last().map(|attempt| attempt.id.clone());
        let of_payment = |action: Option<String>, amount: i64| payment_data(payment, action.as_deref(), amount, step.at);
        let of_dispute = |number: usize| payment.disputes.get(number).map(|it| dispute(payment, it));
        let told: Vec<(&'static str, Option<Value>)> = match step.happened {
            Happened::Opened | Happened::Noted => vec![],
            Happened::ActionRequired | Happened::Processing => {
                vec![("payment_pending", Some(of_payment(None, payment.amount)))]
            }
            Happened::Declined => vec![("payment_declined", Some(of_payment(attempt(), payment.amount)))],
            Happened::Authorized => vec![("payment_approved", Some(of_payment(attempt(), payment.amount)))],
            Happened::Captured { was_authorized } => {
                let approved = (!was_authorized).then(|| ("payment_approved", Some(of_payment(attempt(), payment.amount))));
                let captured = payment.captures.last().map(|it| of_payment(Some(it.id.clone()), it.amount));
                approved.into_iter().chain([("payment_captured", captured)]).collect()
            }
            Happened::Canceled { was_authorized } => {
                let event_type = if was_authorized { "payment_voided" } else { "payment_canceled" };
                vec![(event_type, Some(of_payment(Some(action_id(payment, "void")), payment.amount)))]
            }
            Happened::Expired { .. } => {
                vec![("payment_expired", Some(of_payment(Some(action_id(payment, "expiry")), payment.amount)))]
            }
            Happened::Refunded { number, .. } | Happened::RefundSettled { number } => {
                let Some(refund) = payment.refunds.get(number) else { return Vec::new() };
                let event_type = match refund.state {
                    RefundState::Pending => "payment_refund_pending",
                    RefundState::Succeeded => "payment_refunded",
                    RefundState::Failed => "payment_refund_declined",
                };
                vec![(event_type, Some(of_payment(Some(refund.id.clone()), refund.amount)))]
            }
            Happened::Disputed { number } => {
                vec![("dispute_received", of_dispute(number)), ("dispute_evidence_required", of_dispute(number))]
            }
            Happened::DisputeClosed { number } => {
                let is_won = payment.disputes.get(number).is_some_and(|dispute| dispute.state == DisputeState::Won);
                vec![(if is_won { "dispute_won" } else { "dispute_lost" }, of_dispute(number))]
            }
        };
        let events = told.into_iter().enumerate().filter_map(|(nth, (event_type, data))| {
            Some(event(self.object_id(Object::Event, &step.event_seed(nth)), event_type, step.at, payment, &data?))
        });
        events.collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        // Events that no step of the ledger's is told by: other words for what happened, or what changes nothing.
        let payment = ledger.payments().next()?;
        let mut data = match payment.disputes.last() {
            Some(it) => dispute(payment, it),
            None => payment_data(payment, Some(&action_id(payment, event_type)), payment.amount, situation.at),
        };
        match event_type {
            "payment_capture_declined" | "payment_void_declined" => {
                (data["response_code"], data["response_summary"]) = ("20005".into(), "Declined - Do Not Honour".into());
            }
            _ => {
                if let Some(status) = event_type.strip_prefix("dispute_") {
                    data["status"] = status.into();
                }
            }
        }
        let id = self.object_id(Object::Event, &Seed::new(event_type, &situation.salt.to_string(), 0));
        Some((&event(id, known.name, situation.at, payment, &data)).into())
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json; charset=utf-8".to_owned()),
            ("cko-signature", signature(&settings.secret, &webhook.body)),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "checkoutcom", 0)),
            api_key: Some("sk_sbox_DemoOnly".to_owned()),
            ..Settings::default()
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        Some(router(account))
    }
}

/// The value of `Cko-Signature`: HMAC-SHA256 over the body, keyed with the signature key.
#[must_use]
pub fn signature(key: &str, body: &[u8]) -> String {
    hex::encode(mac::sha256(key.as_bytes(), &[body]))
}

// ------------------------------------------------------------------------------------------------------------ objects

fn event(id: String, event_type: &'static str, created: i64, payment: &Payment, data: &Value) -> Event {
    let body = json!({
        "id": id,
        "type": event_type,
        "version": "1.0.33",
        "created_on": time(created),
        "data": data,
        "_links": { "payment": { "href": format!("https://api.sandbox.checkout.com/payments/{}", payment.id) } },
    });
    let object_id = data["id"].as_str().unwrap_or_default().to_owned();
    Event { id, event_type, created, payment_id: payment.id.clone(), object_id, body: body.to_string().into() }
}

fn time(at: i64) -> String {
    Timestamp::from_seconds(at).to_string()
}

/// An action that the ledger has no object for.
fn action_id(payment: &Payment, of: &str) -> String {
    Checkoutcom.object_id(Object::Attempt, &payment.seed(of))
}

/// Checkout.com's response code and words for it.
const fn response(state: PaymentState) -> (&'static str, &'static str) {
    match state {
        PaymentState::Declined(Decline::InsufficientFunds) => ("20051", "Insufficient Funds"),
        PaymentState::Declined(Decline::Generic) => ("20005", "Declined - Do Not Honour"),
        PaymentState::Declined(Decline::ExpiredCard) => ("30033", "Expired Card - Pick Up"),
        _ => ("10000", "Approved"),
    }
}

/// What a payment event says, of the payment as it stands.
fn payment_data(payment: &Payment, action: Option<&str>, amount: i64, at: i64) -> Value {
    let (code, summary) = response(payment.state);
    json!({
        "id": payment.id,
        "action_id": action,
        "reference": payment.order_id,
        "amount": amount,
        "currency": payment.currency,
        "response_code": code,
        "response_summary": summary,
        "processed_on": time(at),
        "balances": balances(payment),
        "metadata": { "order_id": payment.order_id },
        "processing": {},
    })
}

/// Cumulative, all of them.
fn balances(payment: &Payment) -> Value {
    let was_authorized = payment.attempts.iter().any(|attempt| attempt.decline.is_none());
    let authorized = if was_authorized { payment.amount } else { 0 };
    let (captured, refunded) = (payment.captured(), payment.refunded());
    let open = if payment.state == PaymentState::Authorized { payment.amount } else { 0 };
    json!({
        "total_authorized": authorized,
        "total_voided": authorized - captured - open,
        "available_to_void": open,
        "total_captured": captured,
        "available_to_capture": open,
        "total_refunded": refunded,
        "available_to_refund": captured - refunded,
    })
}

/// A payment, as the API has it.
fn payment_object(payment: &Payment) -> Value {
    let refunded = payment.refunded();
    let status = match payment.state {
        PaymentState::Open | PaymentState::ActionRequired | PaymentState::Processing => "Pending",
        PaymentState::Declined(_) => "Declined",
        PaymentState::Authorized => "Authorized",
        PaymentState::Captured if refunded == 0 => "Captured",
        PaymentState::Captured if refunded < payment.captured() => "Partially Refunded",
        PaymentState::Captured => "Refunded",
        PaymentState::Canceled(_) if payment.attempts.iter().any(|attempt| attempt.decline.is_none()) => "Voided",
        PaymentState::Canceled(_) => "Canceled",
        PaymentState::Expired => "Expired",
    };
    json!({
        "id": payment.id,
        "requested_on": time(payment.created),
        "amount": payment.amount,
        "currency": payment.currency,
        "payment_type": "Regular",
        "reference": payment.order_id,
        "approved": !matches!(payment.state, PaymentState::Declined(_)),
        "status": status,
        "balances": balances(payment),
        "metadata": { "order_id": payment.order_id },
    })
}

/// Newest first.
fn actions(payment: &Payment) -> Vec<Value> {
    let action = |id: &str, kind: &str, at: i64, amount: i64, approved: Option<bool>| {
        let code = match approved {
            Some(true) => Some("10000"),
            Some(false) => Some("20005"),
            None => None,
        };
        let object = json!({
            "id": id, "type": kind, "processed_on": time(at), "amount": amount, "approved": approved, "response_code": code,
            "reference": payment.order_id,
        });
        (at, object)
    };
    let attempts = payment.attempts.iter();
    let attempts = attempts.map(|it| action(&it.id, "Authorization", it.created, payment.amount, Some(it.decline.is_none())));
    let captures = payment.captures.iter().map(|it| action(&it.id, "Capture", it.created, it.amount, Some(true)));
    let refunds = payment.refunds.iter().map(|it| {
        let approved = match it.state {
            RefundState::Pending => None,
            RefundState::Succeeded => Some(true),
            RefundState::Failed => Some(false),
        };
        action(&it.id, "Refund", it.created, it.amount, approved)
    });
    let mut all: Vec<(i64, Value)> = attempts.chain(captures).chain(refunds).collect();
    all.reverse();
    all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    all.into_iter().map(|(_, object)| object).collect()
}

fn dispute(payment: &Payment, dispute: &Dispute) -> Value {
    let status = match dispute.state {
        DisputeState::NeedsResponse => "evidence_required",
        DisputeState::Won => "won",
        DisputeState::Lost => "lost",
    };
    json!({
        "id": dispute.id,
        "category": "general",
        "amount": dispute.amount,
        "currency": payment.currency,
        "reason_code": "4837",
        "status": status,
        "evidence_required_by": time(dispute.created + DISPUTE_ANSWER_S),
        "received_on": time(dispute.created),
        "last_update": time(dispute.changed),
        "payment_id": payment.id,
        "payment_reference": payment.order_id,
    })
}

// ---------------------------------------------------------------------------------------------------------------- API

/// The part of the API that reconciliation asks; every route wants the key as a bearer token.
fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/payments", get(payments_by_reference))
        .route("/payments/search", post(search))
        .route("/payments/{id}", get(payment))
        .route("/payments/{id}/actions", get(payment_actions))
        .route("/disputes", get(disputes))
        .route("/disputes/{id}", get(one_dispute))
        .route("/workflows", get(workflows).post(create_workflow))
        .route("/workflows/{id}", get(workflow).patch(change_workflow))
        .with_state(account.clone());
    let refusal = json!({ "error_type": "unauthorized", "error_codes": ["access_key_invalid"] });
    let key = account.settings.api_key.as_deref().unwrap_or_default();
    only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal))
}

async fn payment(State(account): State<Account>, Path(id): Path<String>) -> Response {
    found(account.ledger().payment(&id).map(payment_object))
}

async fn payment_actions(State(account): State<Account>, Path(id): Path<String>) -> Response {
    found(account.ledger().payment(&id).map(|payment| actions(payment).into()))
}

async fn payments_by_reference(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let Some(reference) = value(&query, "reference") else { return invalid("reference_required") };
    let of = ledger.payments().filter(|payment| payment.order_id == reference);
    list(of.map(|payment| (payment.created, payment_object(payment))).collect(), &query)
}

/// Of `query` nothing is understood here: everything matches.
async fn search(State(account): State<Account>, Json(request): Json<Value>) -> Response {
    let bound = |name: &str, default: i64| match request[name].as_str() {
        None => Some(default),
        Some(text) => Timestamp::parse_rfc3339(text).ok().map(Timestamp::seconds),
    };
    let limit = request["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok()).unwrap_or(PAGE_DEFAULT);
    let (Some(from), Some(to), 1..=PAGE_MAX) = (bound("from", 0), bound("to", i64::MAX), limit) else {
        return invalid("search_invalid");
    };
    let ledger = account.ledger();
    let made = ledger.payments().filter(|payment| (from..=to).contains(&payment.created));
    let found = newest_first(made.map(|payment| (payment.created, payment_object(payment))).collect());
    answer(&json!({ "data": found.into_iter().take(limit).collect::<Vec<_>>() }))
}

async fn disputes(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let payment_id = value(&query, "payment_id");
    let of = ledger.payments().filter(|payment| payment_id.is_none_or(|id| payment.id == id));
    list(of.flat_map(|payment| payment.disputes.iter().map(|it| (it.created, dispute(payment, it)))).collect(), &query)
}

async fn one_dispute(State(account): State<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    let mut all = ledger.payments().flat_map(|payment| payment.disputes.iter().map(move |it| (payment, it)));
    found(all.find(|(_, it)| it.id == id).map(|(payment, it)| dispute(payment, it)))
}

/// With this begin the ids of workflows; each sends webhooks to one URL.
const WORKFLOW: &str = "wf_simulated";

fn number_of(workflow: &str) -> Option<usize> {
    workflow.strip_prefix(WORKFLOW)?.parse().ok()
}

async fn workflows(State(account): State<Account>) -> Response {
    let head = |registered: &Registered| json!({ "id": format!("{WORKFLOW}{}", registered.number), "name": "Webhooks", "active": registered.enabled });
    answer(&json!({ "data": account.endpoints().iter().map(head).collect::<Vec<_>>() }))
}

async fn workflow(State(account): State<Account>, Path(id): Path<String>) -> Response {
    let wanted = number_of(&id);
    found(account.endpoints().iter().find(|registered| Some(registered.number) == wanted).map(workflow_object))
}

async fn create_workflow(State(account): State<Account>, Json(request): Json<Value>) -> Response {
    let (condition, action) = (&request["conditions"][0]["events"], &request["actions"][0]);
    let lists = ["gateway", "dispute"].map(|source| texts(&condition[source]).unwrap_or_default());
    let (Some(url), Some(_)) = (action["url"].as_str(), action["signature"]["key"].as_str()) else {
        return invalid("workflow_action_invalid");
    };
    let made = endpoint::create(account.dialect, &mut account.endpoints_mut(), url, lists.concat(), None);
    match made {
        Ok(made) => http::json(StatusCode::CREATED, &json!({ "id": format!("{WORKFLOW}{}", made.number) })),
        Err(refusal) => invalid(refusal.words()),
    }
}

async fn change_workflow(State(account): State<Account>, Path(id): Path<String>, Json(request): Json<Value>) -> Response {
    let change = Change { enabled: request["active"].as_bool(), ..Change::default() };
    let changed = endpoint::change(&mut account.endpoints_mut(), number_of(&id), change);
    found(changed.map(|changed| json!({ "name": "Webhooks", "active": changed.enabled })))
}

/// Without its signature key.
fn workflow_object(registered: &Registered) -> Value {
    let all: Vec<String> = EVENT_TYPES.iter().map(|known| known.name.to_owned()).collect();
    let events = if registered.events == ["*"] { all } else { registered.events.clone() };
    let (disputes, gateway): (Vec<String>, Vec<String>) = events.into_iter().partition(|name| name.starts_with("dispute_"));
    json!({
        "id": format!("{WORKFLOW}{}", registered.number),
        "name": "Webhooks",
        "active": registered.enabled,
        "conditions": [{ "id": "wfc_simulated", "type": "event", "events": { "gateway": gateway, "dispute": disputes } }],
        "actions": [{
            "id": "wfa_simulated", "type": "webhook", "url": registered.url, "headers": {},
            "signature": { "method": "HMACSHA256" },
        }],
    })
}

/// One page: of what was made from `from` to `to`, `limit` after the first `skip`.
fn list(made: Vec<(i64, Value)>, query: &[(String, String)]) -> Response {
    let number = |name: &str, default: usize| value(query, name).map_or(Some(default), |text| text.parse().ok());
    let bound = |name: &str, default: i64| {
        value(query, name).map_or(Some(default), |text| Timestamp::parse_rfc3339(text).ok().map(Timestamp::seconds))
    };
    let (Some(limit @ 1..=PAGE_MAX), Some(skip)) = (number("limit", PAGE_DEFAULT), number("skip", 0)) else {
        return invalid("paging_limit_invalid");
    };
    let (Some(from), Some(to)) = (bound("from", 0), bound("to", i64::MAX)) else { return invalid("date_invalid") };
    let all = newest_first(made.into_iter().filter(|(created, _)| (from..=to).contains(created)).collect());
    let total = all.len();
    let data: Vec<Value> = all.into_iter().skip(skip).take(limit).collect();
    answer(&json!({ "limit": limit, "skip": skip, "total_count": total, "data": data }))
}

fn newest_first(mut made: Vec<(i64, Value)>) -> Vec<Value> {
    made.reverse();
    made.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    made.into_iter().map(|(_, object)| object).collect()
}

/// Checkout.com answers 404 with nothing for an id that it does not know.
fn found(object: Option<Value>) -> Response {
    object.map_or_else(|| http::json(StatusCode::NOT_FOUND, &Value::Null), |object| answer(&object))
}

fn invalid(code: &str) -> Response {
    let error = json!({ "error_type": "request_invalid", "error_codes": [code] });
    http::json(StatusCode::UNPROCESSABLE_ENTITY, &error)
}

fn answer(object: &Value) -> Response {
    http::json(StatusCode::OK, object)
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
        let webhook = Checkoutcom.staged(event_type, &Situation { ending, part: Some(1000), ..situation() }).unwrap();
        serde_json::from_slice(&webhook.body).unwrap()
    }

    #[test]
    fn signs_as_the_vector_says() {
        // The vector `checkoutcom-valid`.
        let body = r#"{"id":"evt_6aznipgxbuaure3qen5qbzyswy","type":"payment_captured","version":"1.0.33","created_on":"2026-09-21T13:33:10Z","data":{"id":"pay_waji5li3mqtetnaor77xmow4bq","action_id":"act_gse7gcrhleuedmzhq25n3mhweq","reference":"ORD-1001","amount":4999,"currency":"EUR","response_code":"10000","response_summary":"Approved","processed_on":"2026-09-21T13:33:09Z","balances":{"total_authorized":4999,"total_voided":0,"available_to_void":0,"total_captured":4999,"available_to_capture":0,"total_refunded":0,"available_to_refund":4999},"metadata":{"order_id":"ORD-1001"}},"_links":{"payment":{"href":"https://api.sandbox.checkout.com/payments/pay_waji5li3mqtetnaor77xmow4bq"}}}"#;
        let expected = "7af5add191160a0032151090def8bd66a6cfb8e6aca1b5675629aed3b1e33d6f";
        assert_eq!(signature("cko_signature_key_Test01", body.as_bytes()), expected);
    }

    #[test]
    fn every_type_can_be_staged_and_looks_like_itself() {
        for EventType { name: event_type, endings, .. } in EVENT_TYPES {
            for ending in [None].into_iter().chain(endings.iter().map(|(ending, _)| Some(*ending))) {
                assert_eq!(body(event_type, ending)["type"], event_type);
            }
        }
        assert!(Checkoutcom.staged("payment.exploded", &situation()).is_none());
    }

    #[test]
    fn balances_are_cumulative() {
        let mut ledger = super::super::ledger::Ledger::new(&Checkoutcom, false, 1);
        let id = ledger.open("o", 4999, "EUR", true, 100);
        let look = |ledger: &super::super::ledger::Ledger| {
            let balances = balances(ledger.payment(&id).unwrap());
            [
                "total_authorized",
                "total_voided",
                "total_captured",
                "available_to_capture",
                "total_refunded",
                "available_to_refund",
            ]
            .map(|name| balances[name].as_i64().unwrap())
        };
        assert_eq!(look(&ledger), [0, 0, 0, 0, 0, 0]);
        ledger.authorize(&id, 110);
        assert_eq!(look(&ledger), [4999, 0, 0, 4999, 0, 0]);
        ledger.capture(&id, 4000, 120);
        assert_eq!(look(&ledger), [4999, 999, 4000, 0, 0, 4000]);
        ledger.refund(&id, 1000, RefundState::Succeeded, 130);
        ledger.refund(&id, 500, RefundState::Succeeded, 140);
        assert_eq!(look(&ledger), [4999, 999, 4000, 0, 1500, 2500]);
        assert_eq!(actions(ledger.payment(&id).unwrap()).len(), 4);
    }
}
