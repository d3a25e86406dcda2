//! Klarna as the simulator plays it: a session's callbacks, which only name an order, and the orders' API.
//!
//! Written from Klarna's documentation and not from the adapter that reads it.
//!
//! Klarna calls about what the payer does. What the merchant does with the order (captures, refunds, cancellations) nobody is
//! told: it is seen by asking. An order is there from the payer's agreement on; before, there is only a session.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::{Dialect, EventType, Scene, Settings, SignError, SignedCall, Situation, Webhook};
use super::http::{self, basic, only_for};
use super::ledger::{Cancellation, Event, Happened, Object, Payment, RefundState, State, Step};
use super::seed::Seed;
use super::story::Story;

/// Klarna, by the hosted payment page.
pub struct Klarna;

/// Klarna calls up to three times more, beginning after a second.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// The session's statuses, and the decision about a pending order.
const EVENT_TYPES: [EventType; 6] = [
    EventType::new("status_update.in_progress", Scene::Opened),
    EventType::open("status_update.completed", &COMPLETIONS),
    EventType::new("status_update.failed", Scene::Declined),
    EventType::new("status_update.cancelled", Scene::Canceled(Cancellation::Requested)),
    EventType::new("status_update.timeout", Scene::Expired),
    EventType::new(NOTIFICATION, Scene::Authorized),
];

const COMPLETIONS: [(&str, Scene); 3] =
    [("authorized", Scene::Authorized), ("captured", Scene::Captured), ("pending", Scene::Processing)];

const NOTIFICATION: &str = "notification.accepted";

impl Dialect for Klarna {
    fn id(&self) -> &'static str {
        "klarna"
    }

    fn object_id(&self, _object: Object, seed: &Seed) -> String {
        seed.uuid()
    }

    fn event_types(&self) -> &'static [EventType] {
        &EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        let event_type = match step.happened {
            Happened::Opened => "status_update.in_progress",
            Happened::ActionRequired
            | Happened::Processing
            | Happened::Authorized
            | Happened::Captured { was_authorized: false } => "status_update.completed",
            Happened::Declined => "status_update.failed",
            Happened::Canceled { was_authorized: false } => "status_update.cancelled",
            Happened::Expired { was_authorized: false } => "status_update.timeout",
            Happened::Captured { .. }
            | Happened::Canceled { .. }
            | Happened::Expired { .. }
            | Happened::Refunded { .. }
            | Happened::RefundSettled { .. }
            | Happened::Disputed { .. }
            | Happened::DisputeClosed { .. }
            | Happened::Noted => return Vec::new(),
        };
        let id = self.object_id(Object::Event, &step.event_seed(0));
        let payment = step.payment;
        let status = event_type.split_once('.').map_or("", |(_, status)| status).to_ascii_uppercase();
        let mut session = json!({
            "session_id": payment.seed("session").uuid(), "status": status, "updated_at": Timestamp::from_seconds(step.at),
        });
        if has_order(payment) {
            session["order_id"] = payment.id.as_str().into();
            session["klarna_reference"] = payment.seed("reference").letters(8).into();
        }
        let body = json!({ "event_id": id, "session": session });
        vec![event(id, event_type, step.at, payment, &body)]
    }

    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = EVENT_TYPES.iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(&Self, known.scene(situation.ending)?);
        if event_type != NOTIFICATION {
            return Some(ledger.events().iter().rfind(|event| event.event_type == event_type)?.into());
        }
        let payment = ledger.payments().next()?;
        let id = Seed::new(NOTIFICATION, &situation.salt.to_string(), 0).uuid();
        let body = json!({ "order_id": payment.id, "event_type": "FRAUD_RISK_ACCEPTED" });
        Some((&event(id, known.name, situation.at, payment, &body)).into())
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![("content-type", "application/json".to_owned())];
        Ok(SignedCall { token: Some(settings.secret.clone()), ..SignedCall::by_headers(webhook, headers) })
    }

    fn settings(&self) -> Settings {
        Settings {
            secret: self.secret(&Seed::new("secret", "klarna", 0)),
            api_key: Some("DemoOnly".to_owned()),
            client_id: Some("PK00000_DemoOnly".to_owned()),
            ..Settings::default()
        }
    }

    fn token_in_path(&self) -> bool {
        true
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn api(&self, account: &Account) -> Option<Router> {
        let routes = Router::new().route("/ordermanagement/v1/orders/{id}", get(order)).with_state(account.clone());
        let refusal = json!({ "error_code": "UNAUTHORIZED", "error_messages": ["Invalid credentials"] });
        let settings = &account.settings;
        let (name, key) = (settings.client_id.as_deref().unwrap_or_default(), settings.api_key.as_deref().unwrap_or_default());
        Some(only_for(routes, basic(name, key), (StatusCode::UNAUTHORIZED, refusal)))
    }

    /// Of a payer who never agreed there is no order, and disputes stand in another API.
    fn plays(&self, story: Story) -> bool {
        !matches!(story, Story::Failed | Story::Canceled | Story::Disputed | Story::DisputeLost)
    }

    fn currencies(&self) -> &'static [&'static str] {
        &["EUR", "USD", "GBP", "SEK"]
    }
}

fn event(id: String, event_type: &'static str, created: i64, payment: &Payment, body: &Value) -> Event {
    let (payment_id, object_id) = (payment.id.clone(), payment.id.clone());
    Event { id, event_type, created, payment_id, object_id, body: body.to_string().into() }
}

/// The payer has agreed.
fn has_order(payment: &Payment) -> bool {
    let agreed = payment.attempts.last().is_some_and(|attempt| attempt.decline.is_none());
    agreed || matches!(payment.state, State::ActionRequired | State::Processing)
}

async fn order(Shared(account): Shared<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    match ledger.payment(&id).filter(|payment| has_order(payment)) {
        Some(payment) => http::json(StatusCode::OK, &order_object(payment)),
        None => http::json(
            StatusCode::NOT_FOUND,
            &json!({ "error_code": "NO_SUCH_ORDER", "error_messages": [format!("No order with id {id}")] }),
        ),
    }
}

fn order_object(payment: &Payment) -> Value {
    let (status, remaining) = match payment.state {
        State::Captured => ("CAPTURED", 0),
        State::Canceled(_) => ("CANCELLED", 0),
        State::Expired => ("EXPIRED", 0),
        _ => ("AUTHORIZED", payment.amount),
    };
    let is_decided = !matches!(payment.state, State::ActionRequired | State::Processing);
    // What Klarna lists went back; what is on its way or failed is not there.
    let refunds = || payment.refunds.iter().filter(|refund| refund.state == RefundState::Succeeded);
    let time = |at| Timestamp::from_seconds(at).to_string();
    json!({
        "order_id": payment.id,
        "status": status,
        "fraud_status": if is_decided { "ACCEPTED" } else { "PENDING" },
        "order_amount": payment.amount,
        "original_order_amount": payment.amount,
        "captured_amount": payment.captured(),
        "refunded_amount": refunds().map(|refund| refund.amount).sum::<i64>(),
        "remaining_authorized_amount": remaining,
        "purchase_country": "DE",
        "purchase_currency": payment.currency,
        "locale": "de-DE",
        "klarna_reference": payment.seed("reference").letters(8),
        "merchant_reference1": payment.order_id,
        "created_at": time(payment.created),
        "captures": payment.captures.iter().map(|capture| json!({
            "capture_id": capture.id, "captured_amount": capture.amount, "captured_at": time(capture.created),
        })).collect::<Vec<_>>(),
        "refunds": refunds().map(|refund| json!({
            "refund_id": refund.id, "refunded_amount": refund.amount, "refunded_at": time(refund.changed),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture as _;

    use super::super::ledger::{DECLINES, Ledger};
    use super::*;

    async fn ask(account: &Account, name: &str, id: &str) -> (u16, Value) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ordermanagement/v1/orders/{id}", listener.local_addr().unwrap());
        let server = tokio::spawn(axum::serve(listener, account.api().unwrap()).into_future());
        let request = crate::simulator::http_client().unwrap().get(url).basic_auth(name, Some("DemoOnly"));
        let response = request.send().await.unwrap();
        let answered = (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap());
        server.abort();
        answered
    }

    #[tokio::test]
    async fn an_order_is_there_when_the_payer_agreed_and_for_its_merchant_only() {
        let mut ledger = Ledger::new(&Klarna, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, DECLINES[0], 110);
        let account = Account::new(&Klarna, Klarna.settings(), ledger);
        assert_eq!(ask(&account, "PK00000_DemoOnly", &id).await.0, 404);
        account.ledger_mut().capture(&id, 4999, 120);
        account.ledger_mut().refund(&id, 1000, RefundState::Succeeded, 130);
        account.ledger_mut().refund(&id, 500, RefundState::Pending, 140);
        assert_eq!(ask(&account, "somebody", &id).await.0, 401);
        let (status, order) = ask(&account, "PK00000_DemoOnly", &id).await;
        assert_eq!((status, &order["status"], &order["refunded_amount"]), (200, &json!("CAPTURED"), &json!(1000)));
        let ledger = account.ledger();
        let told: Vec<(&str, bool)> = ledger
            .events()
            .iter()
            .map(|event| (event.event_type, String::from_utf8_lossy(&event.body).contains("order_id")))
            .collect();
        let expected = [("status_update.in_progress", false), ("status_update.failed", false), ("status_update.completed", true)];
        assert_eq!(told, expected);
    }
}
