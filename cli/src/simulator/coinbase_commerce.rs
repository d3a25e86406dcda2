//! Coinbase Commerce as the simulator plays it: charges with a price, paid on a chain.
//!
//! Written from Coinbase's documentation and not from the adapter that reads it; the two share test vectors, no code.
//!
//! A chain declines nothing. What the books call a refused attempt is here a payer who sends half the price: the charge is
//! unresolved, and if it is paid in the end, the merchant has resolved it with the other half.

use std::collections::HashSet;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{HeaderName, StatusCode};
use axum::response::Response;
use axum::routing::get;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::decimal::decimal;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::http::{self, only_with, pairs, value};
use super::ledger::{Cancellation, Event, Happened, Object, Payment, State, Step};
use super::mac;
use super::seed::Seed;
use super::story::Story;

/// Coinbase Commerce.
pub struct CoinbaseCommerce;

const API_VERSION: &str = "2018-03-22";
const PAGE_DEFAULT: usize = 25;
const PAGE_MAX: usize = 100;

/// Coinbase publishes "ever more slowly, an hour apart at most, for three days" and no intervals: these are ours.
const RETRIES: [Duration; 6] = [
    Duration::from_mins(1),
    Duration::from_mins(4),
    Duration::from_mins(15),
    Duration::from_hours(1),
    Duration::from_hours(1),
    Duration::from_hours(1),
];

const CREATED: &str = "charge:created";
const PENDING: &str = "charge:pending";
const CONFIRMED: &str = "charge:confirmed";
const FAILED: &str = "charge:failed";
const RESOLVED: &str = "charge:resolved";
const DELAYED: &str = "charge:delayed";

const EVENT_TYPES: [EventType; 7] = [
    EventType::new(CREATED, Scene::Opened),
    EventType::new(PENDING, Scene::Processing),
    EventType::new(CONFIRMED, Scene::Captured),
    EventType::open(FAILED, &[("expired", Scene::Expired), ("underpaid", Scene::Declined)]),
    // Told of no scene of the books: the price of one, otherwise noted.
    EventType::new(RESOLVED, Scene::Captured),
    EventType::new(DELAYED, Scene::Captured),
    EventType::new("checkout:created", Scene::Opened),
];

impl Dialect for CoinbaseCommerce {
    fn id(&self) -> &'static str {
        "coinbase-commerce"
    }

    fn object_id(&self, _object: Object, seed: &Seed) -> String {
        seed.uuid()
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let told: &[&'static str] = match step.happened {
            Happened::Opened => &[CREATED],
            Happened::Processing => &[PENDING],
            Happened::Declined | Happened::Expired { .. } => &[FAILED],
            Happened::Captured { .. } if is_resolved(payment) => &[RESOLVED],
            Happened::Captured { .. } => &[PENDING, CONFIRMED],
            _ => &[],
        };
        let charge = charge(payment);
        let event = |(nth, event_type): (usize, &&'static str)| {
            let id = self.object_id(Object::Event, &step.event_seed(nth));
            Event {
                body: event(&id, event_type, step.at, &charge).to_string().into(),
                id,
                event_type,
                created: step.at,
                payment_id: payment.id.clone(),
                object_id: payment.id.clone(),
            }
        };
        told.iter().enumerate().map(event).collect()
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if let Some(told) = ledger.events().iter().rfind(|event| event.event_type == event_type) {
            return Some(told.into());
        }
        let payment = ledger.payments().next()?;
        let mut object = charge(payment);
        let resolved = [("PENDING", None), ("UNRESOLVED", Some("OTHER")), ("RESOLVED", None)];
        let delayed = [("EXPIRED", None), ("UNRESOLVED", Some("DELAYED"))];
        match event_type {
            RESOLVED => object["timeline"] = timeline(payment, &resolved),
            DELAYED => object["timeline"] = timeline(payment, &delayed),
            _ => object = json!({ "id": situation.seed().uuid(), "resource": "checkout", "name": "Simulated" }),
        }
        let id = self.object_id(Object::Event, &situation.seed());
        let body = event(&id, known.name, situation.at, &object).to_string();
        Some(Webhook { id, event_type: event_type.to_owned(), body: body.into() })
    }

    fn telling<'a>(&self, events: &'a [Event]) -> HashSet<&'a str> {
        events.last().map(|event| event.id.as_str()).into_iter().collect()
    }

    /// Each delivery has an id of its own around the event.
    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError> {
        let delivery = Seed::new("delivery", &webhook.id, usize::try_from(at).unwrap_or_default()).uuid();
        let (event, scheduled) = (String::from_utf8_lossy(&webhook.body), Timestamp::from_seconds(at));
        let body = format!(r#"{{"attempt_number":1,"event":{event},"id":"{delivery}","scheduled_for":"{scheduled}"}}"#);
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-cc-webhook-signature", signature(&settings.secret, body.as_bytes())),
        ];
        Ok(SignedCall { headers, body: body.into(), token: None })
    }

    fn secret(&self, seed: &Seed) -> String {
        seed.uuid()
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "coinbase-commerce", 0)),
            api_key: Some("simulated-cc-api-key".to_owned()),
            ..Settings::default()
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        let routes =
            Router::new().route("/charges/{id}", get(show_charge)).route("/events", get(list_events)).with_state(account.clone());
        let key = account.settings.api_key.clone().unwrap_or_default();
        let refusal = error("authentication_error", "Invalid API key");
        Some(only_with(routes, HeaderName::from_static("x-cc-api-key"), key, (StatusCode::UNAUTHORIZED, refusal)))
    }

    /// There are no holds, no refunds and no disputes; that a charge is canceled shows in its timeline, but no page says that it
    /// is told.
    fn plays(&self, story: Story) -> bool {
        matches!(story, Story::Paid | Story::FailedThenPaid | Story::Failed | Story::Pending)
    }
}

/// The value of `X-CC-Webhook-Signature`.
fn signature(secret: &str, body: &[u8]) -> String {
    hex::encode(mac::sha256(secret.as_bytes(), &[body]))
}

fn event(id: &str, event_type: &str, at: i64, data: &Value) -> Value {
    json!({
        "api_version": API_VERSION, "created_at": Timestamp::from_seconds(at), "data": data, "id": id, "resource": "event",
        "type": event_type,
    })
}

/// Paid otherwise than the price says, or not at once.
fn is_resolved(payment: &Payment) -> bool {
    payment.captured() != payment.amount || payment.attempts.iter().any(|attempt| attempt.decline.is_some())
}

/// A charge as it stands.
fn charge(payment: &Payment) -> Value {
    let came_in = match payment.state {
        State::Declined(_) => Some(payment.amount / 2),
        State::Captured => Some(payment.captured()),
        _ => None,
    };
    let paid = came_in.map(|minor| {
        let local = json!({ "amount": decimal(minor, &payment.currency), "currency": payment.currency });
        json!({
            "network": "ethereum", "transaction_id": format!("0x{}", payment.seed("transaction").hex(64)), "status": "CONFIRMED",
            "value": { "local": local, "crypto": { "amount": "0.021", "currency": "ETH" } },
        })
    });
    let entries: &[(&str, Option<&str>)] = match payment.state {
        State::Open | State::ActionRequired | State::Authorized => &[],
        State::Processing => &[("PENDING", None)],
        State::Declined(_) => &[("PENDING", None), ("UNRESOLVED", Some("UNDERPAID"))],
        State::Captured if is_resolved(payment) => &[("PENDING", None), ("UNRESOLVED", Some("UNDERPAID")), ("RESOLVED", None)],
        State::Captured => &[("PENDING", None), ("COMPLETED", None)],
        State::Canceled(
            Cancellation::Requested | Cancellation::Abandoned | Cancellation::Duplicate | Cancellation::Fraudulent,
        ) => &[("CANCELED", None)],
        State::Expired => &[("EXPIRED", None)],
    };
    let price = json!({ "amount": decimal(payment.amount, &payment.currency), "currency": payment.currency });
    json!({
        "id": payment.id,
        "resource": "charge",
        "code": code(payment),
        "name": "Simulated",
        "created_at": Timestamp::from_seconds(payment.created),
        "metadata": { "order_id": payment.order_id },
        "pricing_type": "fixed_price",
        "pricing": { "local": price, "ethereum": { "amount": "0.021", "currency": "ETH" } },
        "payments": paid.into_iter().collect::<Vec<_>>(),
        "timeline": timeline(payment, entries),
    })
}

/// The short name in links.
fn code(payment: &Payment) -> String {
    payment.seed("code").letters(8)
}

/// Beginning with the charge's making.
fn timeline(payment: &Payment, entries: &[(&str, Option<&str>)]) -> Value {
    let first = json!({ "status": "NEW", "time": Timestamp::from_seconds(payment.created) });
    let entry = |(status, context): &(&str, Option<&str>)| {
        let mut entry = json!({ "status": status, "time": Timestamp::from_seconds(payment.changed) });
        if let Some(context) = context {
            entry["context"] = (*context).into();
        }
        entry
    };
    std::iter::once(first).chain(entries.iter().map(entry)).collect()
}

// --------------------------------------------------------------------------------------------------------------- API

fn error(kind: &str, message: &str) -> Value {
    json!({ "error": { "type": kind, "message": message } })
}

/// By its id or by its code.
async fn show_charge(Shared(account): Shared<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    match ledger.payments().find(|payment| payment.id == id || code(payment) == id) {
        Some(payment) => http::json(StatusCode::OK, &json!({ "data": charge(payment) })),
        None => http::json(StatusCode::NOT_FOUND, &error("not_found", "Not found")),
    }
}

/// Newest first, unless asked otherwise; after a cursor.
async fn list_events(Shared(account): Shared<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let limit = value(&query, "limit").map_or(Some(PAGE_DEFAULT), |limit| limit.parse().ok());
    let Some(limit) = limit.filter(|limit| (1..=PAGE_MAX).contains(limit)) else {
        return http::json(StatusCode::BAD_REQUEST, &error("param_invalid", "limit must be between 0 and 100"));
    };
    let order = value(&query, "order").unwrap_or("desc");
    let mut events: Vec<&Event> = ledger.events().iter().collect();
    events.sort_by_key(|event| event.created);
    if order == "desc" {
        events.reverse();
    }
    let after = value(&query, "starting_after");
    let begin = match after {
        None => Some(0),
        Some(after) => events.iter().position(|event| event.id == after).map(|position| position + 1),
    };
    let Some(begin) = begin else {
        return http::json(StatusCode::BAD_REQUEST, &error("param_invalid", "starting_after names no event"));
    };
    let page: Vec<&&Event> = events.iter().skip(begin).take(limit).collect();
    let last = page.last().map(|event| event.id.as_str());
    let more = begin + page.len() < events.len();
    let next =
        last.filter(|_| more).map(|last| format!("https://api.commerce.coinbase.com/events?limit={limit}&starting_after={last}"));
    let data: Vec<Value> = page.iter().filter_map(|event| serde_json::from_slice(&event.body).ok()).collect();
    let pagination = json!({
        "order": order, "starting_after": after, "ending_before": null, "total": events.len(), "limit": limit,
        "yielded": page.len(), "cursor_range": [page.first().map(|event| &event.id), last], "previous_uri": null,
        "next_uri": next,
    });
    http::json(StatusCode::OK, &json!({ "pagination": pagination, "data": data }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::ledger::{DECLINES, Ledger};

    #[test]
    fn signs_as_the_official_sdk_does() {
        // Vector coinbase-valid.
        let body = r#"{"attempt_number":1,"event":{"api_version":"2018-03-22","created_at":"2026-09-21T13:33:10Z","data":{"code":"66BEOV2A","id":"0c1f2d3e-test","metadata":{"order_id":"ORD-1001"},"pricing":{"local":{"amount":"49.99","currency":"EUR"}},"pricing_type":"fixed_price","payments":[],"timeline":[{"status":"NEW","time":"2026-09-21T13:30:00Z"},{"status":"COMPLETED","time":"2026-09-21T13:33:09Z"}]},"id":"24934862-d980-46cb-9402-43c81b0cdb01","resource":"event","type":"charge:confirmed"},"id":"4a7ef4f5-test-delivery","scheduled_for":"2026-09-21T13:33:11Z"}"#;
        let expected = "39f060ffa88be825176c7508558022a24fcb1dbd236ffeb7c369c4bd037e8c87";
        assert_eq!(signature("cc-shared-secret-Test-01", body.as_bytes()), expected);
    }

    #[test]
    fn each_delivery_has_an_id_of_its_own_around_one_event() {
        let situation =
            Situation { order_id: "o", amount: 4999, currency: "EUR", part: None, ending: None, live: false, at: 100, salt: 1 };
        let webhook = CoinbaseCommerce.staged(CONFIRMED, &situation).unwrap();
        let sent = |at: i64| {
            let call = CoinbaseCommerce.sign(&CoinbaseCommerce.settings(), &webhook, at).unwrap();
            serde_json::from_slice::<Value>(&call.body).unwrap()
        };
        let (first, again) = (sent(100), sent(160));
        assert_eq!(first["event"], again["event"]);
        assert_eq!(first["event"]["id"], json!(webhook.id));
        assert_ne!(first["id"], again["id"]);
    }

    #[test]
    fn half_the_price_is_unresolved_until_the_merchant_has_the_rest() {
        let mut ledger = Ledger::new(&CoinbaseCommerce, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, DECLINES[0], 110);
        ledger.capture(&id, 4999, 120);
        let types: Vec<&str> = ledger.events().iter().map(|event| event.event_type).collect();
        assert_eq!(types, [CREATED, FAILED, RESOLVED]);
        let resolved: Value = serde_json::from_slice(&ledger.events()[2].body).unwrap();
        assert_eq!(resolved["data"]["payments"][0]["value"]["local"], json!({ "amount": "49.99", "currency": "EUR" }));
    }

    async fn ask(account: &Account, key: &str, path: &str) -> (u16, Value) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let router = account.api().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let request = crate::simulator::http_client().unwrap().get(url).header("x-cc-api-key", key);
        let response = request.send().await.unwrap();
        let answered = (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap());
        server.abort();
        answered
    }

    #[tokio::test]
    async fn charges_are_shown_by_both_names_and_events_page_by_page() {
        let mut ledger = Ledger::new(&CoinbaseCommerce, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.capture(&id, 4999, 110);
        let (short, total) = (code(ledger.payment(&id).unwrap()), ledger.events().len());
        let account = Account::new(&CoinbaseCommerce, CoinbaseCommerce.settings(), ledger);
        let key = account.settings.api_key.clone().unwrap();
        assert_eq!(ask(&account, "another", &format!("/charges/{id}")).await.0, 401);
        assert_eq!(ask(&account, &key, "/charges/other").await.0, 404);
        let (status, by_id) = ask(&account, &key, &format!("/charges/{id}")).await;
        assert_eq!((status, &by_id), (200, &ask(&account, &key, &format!("/charges/{short}")).await.1));
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let (_, page) = ask(&account, &key, &format!("/events?limit=2{cursor}")).await;
            seen.extend(page["data"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()));
            if page["pagination"]["next_uri"].is_null() {
                break;
            }
            cursor = format!("&starting_after={}", seen.last().unwrap());
        }
        assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (total, total));
        assert_eq!(ask(&account, &key, "/events?limit=101").await.0, 400);
        assert_eq!(ask(&account, &key, "/events?starting_after=other").await.0, 400);
    }
}
