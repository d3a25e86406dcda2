//! Flutterwave as the simulator plays it: v3, v4, and v4 with the header of v3.
//!
//! Written from what is known of Flutterwave's documentation and not from the adapter that reads it; the two share test vectors,
//! no code. Amounts are JSON numbers in major units, made of decimal text: no float stands in between.
//!
//! What v3 calls a transaction is one attempt, so that a second one would be another transaction. The books know one payment for
//! an order: here a failed one is paid in the end, as an asynchronous method does it.

use std::collections::HashSet;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paybell_shared::clock::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::account::Account;
use super::decimal::decimal;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::http::{self, bearer, only_for, pairs, value};
use super::ledger::{Decline, Event, Happened, Object, Payment, Refund, RefundState, State, Step};
use super::mac;
use super::seed::Seed;
use super::story::Story;

/// The older generation: the header is the secret itself.
pub struct V3;

/// The newer one.
pub struct V4;

/// The newer one where it sends the older one's header, as some live traffic is said to do.
pub struct V4Plain;

/// The adapter's name of that.
const PLAIN: &str = "flutterwave-plain-hash";

/// Uncertain, and a switch in the dashboard: three times, half an hour apart.
const RETRIES: [Duration; 3] = [Duration::from_mins(30), Duration::from_mins(30), Duration::from_mins(30)];

/// A page of v3's list.
const PAGE: usize = 10;

/// The only token that the simulated identity provider gives, and for how long, in seconds.
const TOKEN: &str = "flw-simulated-token";
const TOKEN_LIVES_S: u32 = 600;

const CURRENCIES: [&str; 4] = ["NGN", "KES", "USD", "UGX"];

const CHARGE: &str = "charge.completed";
const REFUND: &str = "refund.completed";
const TRANSFER_V3: &str = "transfer.completed";
const TRANSFER_V4: &str = "transfer.disburse";

/// Failures come as completed, too.
const EVENT_TYPES_V3: [EventType; 2] = [
    EventType::open(CHARGE, &[("successful", Scene::Captured), ("failed", Scene::Declined)]),
    EventType::new(TRANSFER_V3, Scene::Opened),
];

const EVENT_TYPES_V4: [EventType; 3] = [
    EventType::open(CHARGE, &[("succeeded", Scene::Captured), ("failed", Scene::Declined)]),
    EventType::open(
        REFUND,
        &[("completed", Scene::Refunded(RefundState::Succeeded)), ("failed", Scene::RefundSettled(RefundState::Failed))],
    ),
    EventType::new(TRANSFER_V4, Scene::Opened),
];

impl Dialect for V3 {
    fn id(&self) -> &'static str {
        "flutterwave-v3"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        match object {
            // None is sent: it stands for the event in the books.
            Object::Event => seed.hex(24),
            _ => seed.number(9).to_string(),
        }
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES_V3
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        if !matches!(step.happened, Happened::Captured { .. } | Happened::Declined) {
            return Vec::new();
        }
        let body = CallV3 { event: CHARGE, data: Transaction::of(step.payment), kind: "CARD_TRANSACTION" };
        vec![Event {
            id: self.object_id(Object::Event, &step.event_seed(0)),
            event_type: CHARGE,
            created: step.at,
            payment_id: step.payment.id.clone(),
            object_id: step.payment.id.clone(),
            body: text(&body).into(),
        }]
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        if event_type == TRANSFER_V3 {
            let data = json!({ "id": situation.seed().number(6), "status": "SUCCESSFUL", "reference": situation.order_id });
            let body = json!({ "event": TRANSFER_V3, "event.type": "Transfer", "data": data }).to_string();
            return Some(Webhook { id: situation.seed().hex(24), event_type: event_type.to_owned(), body: body.into() });
        }
        staged(&Self, event_type, situation)
    }

    fn telling<'a>(&self, events: &'a [Event]) -> HashSet<&'a str> {
        events.last().map(|event| event.id.as_str()).into_iter().collect()
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        Ok(SignedCall::by_headers(webhook, by_hash(settings)))
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", self.id(), 0)),
            api_key: Some("FLWSECK_TEST-simulated-X".to_owned()),
            ..Settings::default()
        }
    }

    fn signs_body(&self) -> bool {
        false
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        let routes = Router::new()
            .route("/v3/transactions/{id}/verify", get(verify_transaction))
            .route("/v3/transactions", get(list_transactions))
            .with_state(account.clone());
        let key = account.settings.api_key.as_deref().unwrap_or_default();
        let refusal = json!({ "status": "error", "message": "Invalid authorization key", "data": null });
        Some(only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal)))
    }

    /// No refund, dispute or hold shows in what the API says of a transaction.
    fn plays(&self, story: Story) -> bool {
        is_of_one_transaction(story)
    }

    fn currencies(&self) -> &'static [&'static str] {
        &CURRENCIES
    }
}

impl Dialect for V4 {
    fn id(&self) -> &'static str {
        "flutterwave-v4"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        let prefix = match object {
            Object::Payment | Object::Attempt | Object::Capture => "chg",
            Object::Refund => "rfd",
            Object::Dispute => "chb",
            Object::Event => "wbk",
        };
        format!("{prefix}_{}", seed.hex(20))
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES_V4
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let payment = step.payment;
        let id = self.object_id(Object::Event, &step.event_seed(0));
        let event = |event_type: &'static str, object_id: &str, body: String| Event {
            id: id.clone(),
            event_type,
            created: step.at,
            payment_id: payment.id.clone(),
            object_id: object_id.to_owned(),
            body: body.into(),
        };
        let timestamp = step.at * 1000;
        match step.happened {
            Happened::Captured { .. } | Happened::Declined => {
                let body = CallV4 { webhook_id: &id, timestamp, event_type: CHARGE, data: Charge::of(payment) };
                vec![event(CHARGE, &payment.id, text(&body))]
            }
            Happened::Refunded { number, .. } | Happened::RefundSettled { number } => {
                // One that is still on its way is not told.
                let ended = payment.refunds.get(number).filter(|refund| refund.state != RefundState::Pending);
                let told = ended.map(|refund| {
                    let data = RefundOfCharge::of(payment, refund);
                    event(REFUND, &refund.id, text(&CallV4 { webhook_id: &id, timestamp, event_type: REFUND, data }))
                });
                told.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        if event_type == TRANSFER_V4 {
            let id = self.object_id(Object::Event, &situation.seed());
            let data = json!({ "id": format!("trf_{}", situation.seed().hex(20)), "status": "SUCCESSFUL" });
            let body = json!({ "webhook_id": id, "timestamp": situation.at * 1000, "type": TRANSFER_V4, "data": data });
            return Some(Webhook { id, event_type: event_type.to_owned(), body: body.to_string().into() });
        }
        staged(&Self, event_type, situation)
    }

    /// What each object came to last; of a refund all, since it goes back and forth.
    fn telling<'a>(&self, events: &'a [Event]) -> HashSet<&'a str> {
        let charge = events.iter().rfind(|event| event.event_type == CHARGE);
        let refunds = events.iter().filter(|event| event.event_type == REFUND);
        charge.into_iter().chain(refunds).map(|event| event.id.as_str()).collect()
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("flutterwave-signature", signature(&settings.secret, &webhook.body)),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", self.id(), 0)),
            api_key: Some("simulated-client-secret".to_owned()),
            client_id: Some("simulated-client".to_owned()),
            ..Settings::default()
        }
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        let charges = Router::new().route("/charges/{id}", get(show_charge)).with_state(account.clone());
        let refusal =
            json!({ "status": "failed", "error": { "type": "UNAUTHORIZED", "code": "10401", "message": "Unauthorized" } });
        let tokens = Router::new()
            .route("/realms/flutterwave/protocol/openid-connect/token", post(give_token))
            .with_state(account.clone());
        Some(only_for(charges, bearer(TOKEN), (StatusCode::UNAUTHORIZED, refusal)).merge(tokens))
    }

    /// Chargebacks are told in a form that nobody has seen, holds not at all.
    fn plays(&self, story: Story) -> bool {
        is_of_one_transaction(story) || is_of_refunds(story)
    }

    /// Nothing is known of how refunds are asked for.
    fn tells_when_asked(&self, story: Story) -> bool {
        is_of_one_transaction(story)
    }

    fn currencies(&self) -> &'static [&'static str] {
        &CURRENCIES
    }
}

impl Dialect for V4Plain {
    fn id(&self) -> &'static str {
        "flutterwave-v4-plain"
    }

    fn psp(&self) -> &'static str {
        V4.id()
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        V4.object_id(object, seed)
    }

    fn event_types(&self) -> &'static [EventType] {
        V4.event_types()
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        V4.told(step)
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        V4.staged(event_type, situation)
    }

    fn telling<'a>(&self, events: &'a [Event]) -> HashSet<&'a str> {
        V4.telling(events)
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        Ok(SignedCall::by_headers(webhook, by_hash(settings)))
    }

    fn settings(&self) -> Settings {
        Settings { scheme: Some(PLAIN), secret: self.secret(&Seed::new("secret", self.id(), 0)), ..V4.settings() }
    }

    fn signs_body(&self) -> bool {
        false
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        V4.api(account)
    }

    fn plays(&self, story: Story) -> bool {
        V4.tells_when_asked(story)
    }

    fn currencies(&self) -> &'static [&'static str] {
        &CURRENCIES
    }
}

const fn is_of_one_transaction(story: Story) -> bool {
    matches!(story, Story::Paid | Story::FailedThenPaid | Story::Failed | Story::Pending)
}

const fn is_of_refunds(story: Story) -> bool {
    matches!(
        story,
        Story::PartlyRefunded
            | Story::RefundedInTwoParts
            | Story::Refunded
            | Story::RefundFailed
            | Story::RefundFailedThenRefunded
    )
}

/// What the books tell of the scene.
fn staged(dialect: &'static dyn Dialect, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
    let known = dialect.event_types().iter().find(|known| known.name == event_type)?;
    let ledger = situation.played(dialect, known.scene(situation.ending)?);
    Some(ledger.events().iter().rfind(|event| event.event_type == event_type)?.into())
}

/// The secret hash, verbatim.
fn by_hash(settings: &Settings) -> super::dialect::Headers {
    vec![("content-type", "application/json".to_owned()), ("verif-hash", settings.secret.clone())]
}

/// The value of `flutterwave-signature`.
fn signature(secret: &str, body: &[u8]) -> String {
    STANDARD.encode(mac::sha256(secret.as_bytes(), &[body]))
}

// ----------------------------------------------------------------------------------------------------------- objects

/// A JSON number of major units, to the digit.
fn number(minor: i64, currency: &str) -> Box<RawValue> {
    // A decimal is a JSON number.
    RawValue::from_string(decimal(minor, currency)).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn text(body: &impl Serialize) -> String {
    // Strings, numbers and objects with names for keys: there is nothing that JSON could not say.
    serde_json::to_string(body).unwrap_or_default()
}

#[derive(Serialize)]
struct CallV3<'a> {
    event: &'static str,
    data: Transaction<'a>,
    #[serde(rename = "event.type")]
    kind: &'static str,
}

/// A transaction of v3.
#[derive(Serialize)]
struct Transaction<'a> {
    id: Box<RawValue>,
    tx_ref: &'a str,
    flw_ref: String,
    amount: Box<RawValue>,
    currency: &'a str,
    /// With the fees that the payer bears.
    charged_amount: Box<RawValue>,
    status: &'static str,
    processor_response: &'static str,
    payment_type: &'static str,
    created_at: Timestamp,
    meta: Value,
}

impl<'a> Transaction<'a> {
    fn of(payment: &'a Payment) -> Self {
        let (amount, currency) = (amount_of(payment), payment.currency.as_str());
        let (status, processor_response) = match payment.state {
            State::Captured => ("successful", "Approved by Financial Institution"),
            State::Declined(decline) => ("failed", decline_words(decline).1),
            _ => ("pending", "Pending"),
        };
        Self {
            id: RawValue::from_string(payment.id.clone()).unwrap_or_else(|_| RawValue::NULL.to_owned()),
            tx_ref: &payment.order_id,
            flw_ref: format!("FLW-MOCK-{}", payment.seed("flw_ref").letters(16)),
            amount: number(amount, currency),
            currency,
            charged_amount: number(amount + amount * 14 / 1000, currency),
            status,
            processor_response,
            payment_type: "card",
            created_at: Timestamp::from_seconds(payment.created),
            meta: json!({ "order_id": payment.order_id }),
        }
    }
}

#[derive(Serialize)]
struct CallV4<'a, D> {
    webhook_id: &'a str,
    /// In milliseconds.
    timestamp: i64,
    #[serde(rename = "type")]
    event_type: &'static str,
    data: D,
}

/// A charge of v4.
#[derive(Serialize)]
struct Charge<'a> {
    id: &'a str,
    amount: Box<RawValue>,
    currency: &'a str,
    reference: &'a str,
    status: &'static str,
    customer: Value,
    payment_method: Value,
    processor_response: Value,
    meta: Value,
    created_datetime: i64,
}

impl<'a> Charge<'a> {
    fn of(payment: &'a Payment) -> Self {
        let (status, processor_response) = match payment.state {
            State::Captured => ("succeeded", json!({ "type": "approved", "code": "00" })),
            State::Declined(decline) => ("failed", json!({ "type": decline_words(decline).1, "code": decline_words(decline).0 })),
            _ => ("pending", json!({ "type": "pending", "code": "02" })),
        };
        Self {
            id: &payment.id,
            amount: number(amount_of(payment), &payment.currency),
            currency: &payment.currency,
            reference: &payment.order_id,
            status,
            customer: json!({ "id": format!("cus_{}", payment.seed("customer").hex(10)) }),
            payment_method: json!({ "type": "card" }),
            processor_response,
            meta: json!({ "order_id": payment.order_id }),
            created_datetime: payment.created,
        }
    }
}

/// A refund of v4.
#[derive(Serialize)]
struct RefundOfCharge<'a> {
    id: &'a str,
    amount_refunded: Box<RawValue>,
    currency: &'a str,
    status: &'static str,
    reason: &'static str,
    charge_id: &'a str,
    created_datetime: i64,
}

impl<'a> RefundOfCharge<'a> {
    fn of(payment: &'a Payment, refund: &'a Refund) -> Self {
        Self {
            id: &refund.id,
            amount_refunded: number(refund.amount, &payment.currency),
            currency: &payment.currency,
            status: match refund.state {
                RefundState::Pending => "pending",
                RefundState::Succeeded => "completed",
                RefundState::Failed => "failed",
            },
            reason: "requested_by_customer",
            charge_id: &payment.id,
            created_datetime: refund.created,
        }
    }
}

/// What was paid, or is to be.
fn amount_of(payment: &Payment) -> i64 {
    if payment.state == State::Captured { payment.captured() } else { payment.amount }
}

/// The issuer's code (ISO 8583) and words for it.
const fn decline_words(decline: Decline) -> (&'static str, &'static str) {
    match decline {
        Decline::InsufficientFunds => ("51", "Insufficient Funds"),
        Decline::Generic => ("05", "Do Not Honour"),
        Decline::ExpiredCard => ("54", "Expired Card"),
    }
}

/// Somebody has tried to pay: before that there is no transaction.
fn is_begun(payment: &Payment) -> bool {
    !payment.attempts.is_empty() || payment.state != State::Open
}

// --------------------------------------------------------------------------------------------------------------- API

#[derive(Serialize)]
struct Answer<D> {
    status: &'static str,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Value>,
    data: D,
}

fn answer<D: Serialize>(message: &'static str, meta: Option<Value>, data: D) -> Response {
    let body = text(&Answer { status: "success", message, meta, data });
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn verify_transaction(Shared(account): Shared<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    let Some(payment) = ledger.payment(&id).filter(|payment| is_begun(payment)) else {
        let body = json!({ "status": "error", "message": "No transaction was found for this id", "data": null });
        return http::json(StatusCode::BAD_REQUEST, &body);
    };
    answer("Transaction fetched successfully", None, Transaction::of(payment))
}

/// Newest first, of these days.
async fn list_transactions(Shared(account): Shared<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let day = |payment: &Payment| Timestamp::from_seconds(payment.created).to_string().chars().take(10).collect::<String>();
    let is_asked_for = |payment: &Payment| {
        value(&query, "from").is_none_or(|from| day(payment).as_str() >= from)
            && value(&query, "to").is_none_or(|to| day(payment).as_str() <= to)
    };
    let mut found: Vec<&Payment> = ledger.payments().filter(|payment| is_begun(payment) && is_asked_for(payment)).collect();
    found.sort_by_key(|payment| (std::cmp::Reverse(payment.created), payment.id.as_str()));
    let Some(page) = value(&query, "page").map_or(Some(1), |page| page.parse::<usize>().ok()).filter(|page| *page > 0) else {
        return http::json(
            StatusCode::BAD_REQUEST,
            &json!({ "status": "error", "message": "page must be a number", "data": null }),
        );
    };
    let shown = found.iter().skip(page.saturating_sub(1).saturating_mul(PAGE)).take(PAGE);
    let shown: Vec<Transaction<'_>> = shown.map(|payment| Transaction::of(payment)).collect();
    let pages = found.len().div_ceil(PAGE);
    let info = json!({ "page_info": { "total": found.len(), "current_page": page, "total_pages": pages } });
    answer("Transactions fetched", Some(info), shown)
}

async fn show_charge(Shared(account): Shared<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    let Some(payment) = ledger.payment(&id) else {
        let error = json!({ "type": "RESOURCE_NOT_FOUND", "code": "10404", "message": "Charge not found" });
        return http::json(StatusCode::NOT_FOUND, &json!({ "status": "failed", "error": error }));
    };
    answer("Charge fetched", None, Charge::of(payment))
}

/// OAuth 2, client credentials, as a form.
async fn give_token(Shared(account): Shared<Account>, form: String) -> Response {
    let form = pairs(Some(&form));
    let is = |name: &str, expected: Option<&str>| expected.is_some() && value(&form, name) == expected;
    let knows =
        is("client_id", account.settings.client_id.as_deref()) && is("client_secret", account.settings.api_key.as_deref());
    if !knows || !is("grant_type", Some("client_credentials")) {
        return http::json(StatusCode::UNAUTHORIZED, &json!({ "error": "invalid_client" }));
    }
    http::json(StatusCode::OK, &json!({ "access_token": TOKEN, "expires_in": TOKEN_LIVES_S, "token_type": "Bearer" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::ledger::{DECLINES, Ledger};

    #[test]
    fn signs_as_the_vectors_have_it() {
        // Vector flutterwave-v4-valid-utf8.
        let body = "{\"webhook_id\":\"wbk_Test0001\",\"timestamp\":1789999990123,\"type\":\"charge.completed\",\"data\":{\"id\":\"chg_Test0001\",\"amount\":49.99,\"currency\":\"NGN\",\"reference\":\"ORD-Ü-1001\",\"status\":\"succeeded\",\"meta\":{\"order_id\":\"ORD-Ü-1001\"},\"created_datetime\":1789999980}}";
        assert_eq!(signature("flw_secret_hash_Test01", body.as_bytes()), "I2lKyB70VhFabDQ+MN3SAxkKdmNstNoV974QYHhamz0=");
        // Vector flutterwave-v3-valid.
        let settings = Settings { secret: "my-secret-hash-1".to_owned(), ..Settings::default() };
        assert!(by_hash(&settings).contains(&("verif-hash", "my-secret-hash-1".to_owned())));
    }

    #[test]
    fn amounts_are_numbers_with_the_digits_of_the_currency() {
        let told = |currency: &str| {
            let mut ledger = Ledger::new(&V4, false, 1);
            let id = ledger.open("o", 500_010, currency, false, 100);
            ledger.capture(&id, 500_010, 110);
            String::from_utf8(ledger.events()[0].body.to_vec()).unwrap()
        };
        for (currency, expected) in [("NGN", "5000.10"), ("UGX", "500010"), ("TND", "500.010")] {
            assert!(told(currency).contains(&format!("\"amount\":{expected},")), "{}", told(currency));
        }
    }

    #[test]
    fn a_failure_is_told_as_completed() {
        let mut ledger = Ledger::new(&V3, false, 1);
        let id = ledger.open("o", 4999, "NGN", false, 100);
        assert!(ledger.events().is_empty(), "nobody has tried");
        ledger.decline(&id, DECLINES[0], 110);
        ledger.capture(&id, 4999, 120);
        let told: Vec<Value> = ledger.events().iter().map(|event| serde_json::from_slice(&event.body).unwrap()).collect();
        let of = |key: &str| told.iter().map(|call| call["data"][key].clone()).collect::<Vec<_>>();
        assert_eq!(of("status"), ["failed", "successful"]);
        assert_eq!(of("id"), [json!(id.parse::<u64>().unwrap()), json!(id.parse::<u64>().unwrap())]);
        assert!(told.iter().all(|call| call["event"] == "charge.completed"));
    }

    async fn ask(account: &Account, request: impl FnOnce(reqwest::Client, String) -> reqwest::RequestBuilder) -> (u16, Value) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = account.api().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let response = request(crate::simulator::http_client().unwrap(), base).send().await.unwrap();
        let answered = (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap());
        server.abort();
        answered
    }

    #[tokio::test]
    async fn v3_shows_transactions_to_its_key_page_by_page() {
        let mut ledger = Ledger::new(&V3, false, 1);
        let ids: Vec<String> = (0..12)
            .map(|number| {
                let id = ledger.open(&format!("o-{number}"), 4999, "NGN", false, 1_790_000_000 + number);
                ledger.capture(&id, 4999, 1_790_000_010);
                id
            })
            .collect();
        let untouched = ledger.open("o-untouched", 4999, "NGN", false, 1_790_000_000);
        let account = Account::new(&V3, V3.settings(), ledger);
        let key = account.settings.api_key.clone().unwrap();
        let get = async |key: &str, path: &str| {
            ask(&account, |client, base| client.get(format!("{base}{path}")).bearer_auth(key)).await
        };
        assert_eq!(get("another", "/v3/transactions").await.0, 401);
        let (status, one) = get(&key, &format!("/v3/transactions/{}/verify", ids[0])).await;
        assert_eq!((status, &one["data"]["status"], &one["data"]["tx_ref"]), (200, &json!("successful"), &json!("o-0")));
        assert_eq!(get(&key, &format!("/v3/transactions/{untouched}/verify")).await.0, 400);
        let (_, first) = get(&key, "/v3/transactions?from=2026-09-20&page=1").await;
        let (_, second) = get(&key, "/v3/transactions?from=2026-09-20&page=2").await;
        assert_eq!(first["meta"]["page_info"], json!({ "total": 12, "current_page": 1, "total_pages": 2 }));
        assert_eq!((first["data"].as_array().unwrap().len(), second["data"].as_array().unwrap().len()), (10, 2));
        assert_eq!(get(&key, "/v3/transactions?from=2026-09-22").await.1["data"], json!([]));
        assert_eq!(get(&key, "/v3/transactions?page=0").await.0, 400);
    }

    #[tokio::test]
    async fn v4_gives_a_token_for_the_clients_secret_and_a_charge_for_the_token() {
        let mut ledger = Ledger::new(&V4, false, 1);
        let id = ledger.open("o", 4999, "NGN", false, 100);
        ledger.capture(&id, 4999, 110);
        let account = Account::new(&V4, V4.settings(), ledger);
        let token = async |secret: &str| {
            let form = format!("client_id=simulated-client&client_secret={secret}&grant_type=client_credentials");
            let path = "/realms/flutterwave/protocol/openid-connect/token";
            ask(&account, |client, base| client.post(format!("{base}{path}")).body(form)).await
        };
        assert_eq!(token("another").await.0, 401);
        let (status, given) = token("simulated%2Dclient%2Dsecret").await;
        assert_eq!((status, &given["access_token"]), (200, &json!(TOKEN)));
        let charge = async |token: &str, id: &str| {
            let path = format!("/charges/{id}");
            ask(&account, |client, base| client.get(format!("{base}{path}")).bearer_auth(token)).await
        };
        assert_eq!(charge("simulated-client-secret", &id).await.0, 401);
        assert_eq!(charge(TOKEN, "chg_other").await.0, 404);
        let (status, charge) = charge(TOKEN, &id).await;
        assert_eq!((status, &charge["data"]["status"]), (200, &json!("succeeded")));
    }
}
