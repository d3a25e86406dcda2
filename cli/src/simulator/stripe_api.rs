//! The part of Stripe's HTTP API that reconciliation asks, answered from the account's ledger.

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::account::Account;
use super::endpoint::{self, Change, Registered};
use super::http::{self, bearer, only_for, pairs, value};
use super::ledger::Event;
use super::stripe;

/// Stripe's default and largest page.
const PAGE_DEFAULT: usize = 10;
const PAGE_MAX: usize = 100;
/// Stripe takes at most so many `types[]`.
const TYPES_MAX: usize = 20;

/// The API, to be served anywhere; every route wants the key as a bearer token.
pub(super) fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/v1/payment_intents/{id}", get(payment_intent))
        .route("/v1/charges/{id}", get(charge))
        .route("/v1/refunds", get(refunds))
        .route("/v1/disputes", get(disputes))
        .route("/v1/events", get(events))
        .route("/v1/webhook_endpoints", get(webhook_endpoints).post(create_endpoint))
        .route("/v1/webhook_endpoints/{id}", post(change_endpoint))
        .with_state(account.clone());
    let refusal = json!({ "error": { "message": "Invalid API Key provided.", "type": "invalid_request_error" } });
    let key = account.settings.api_key.as_deref().unwrap_or_default();
    only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal))
}

async fn payment_intent(State(account): State<Account>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let Some(payment) = ledger.payment(&id) else { return missing("payment_intent", &id) };
    let mut object = stripe::payment_intent(payment, ledger.live());
    let expands = pairs(query.as_deref()).iter().any(|(key, value)| key.starts_with("expand[") && value == "latest_charge");
    if let Some(charge) = payment.attempts.last().filter(|_| expands) {
        object["latest_charge"] = stripe::charge(payment, charge, ledger.live());
    }
    answer(&object)
}

async fn charge(State(account): State<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    let found = ledger.payments().find_map(|payment| Some((payment, payment.attempts.iter().find(|charge| charge.id == id)?)));
    found.map_or_else(|| missing("charge", &id), |(payment, charge)| answer(&stripe::charge(payment, charge, ledger.live())))
}

async fn refunds(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let of = ledger.payments().filter(|payment| concerns(&query, &payment.id));
    let expands = query.iter().any(|(key, value)| key.starts_with("expand[") && value == "data.charge");
    let newest_first = of.flat_map(|payment| {
        let charge = payment.attempts.last().filter(|_| expands).map(|charge| stripe::charge(payment, charge, ledger.live()));
        payment.refunds.iter().rev().map(move |refund| {
            let mut object = stripe::refund(payment, refund);
            if let Some(charge) = &charge {
                object["charge"] = charge.clone();
            }
            object
        })
    });
    list("/v1/refunds", newest_first, &query)
}

async fn disputes(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let of = ledger.payments().filter(|payment| concerns(&query, &payment.id));
    let newest_first =
        of.flat_map(|payment| payment.disputes.iter().rev().map(|dispute| stripe::dispute(payment, dispute, ledger.live())));
    list("/v1/disputes", newest_first, &query)
}

async fn events(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let types: Vec<&str> =
        query.iter().filter(|(key, _)| key == "type" || key.starts_with("types[")).map(|(_, value)| value.as_str()).collect();
    if types.len() > TYPES_MAX {
        return error(StatusCode::BAD_REQUEST, "invalid_request_error", "Too many types.");
    }
    let delivered = value(&query, "delivery_success").map(|value| value == "true");
    let wanted = |event: &Event| {
        (types.is_empty() || types.contains(&event.event_type))
            && created_fits(&query, event.created)
            && delivered.is_none_or(|delivered| ledger.is_acknowledged(&event.id) == delivered)
    };
    let mut wanted: Vec<&Event> = ledger.events().iter().filter(|event| wanted(event)).collect();
    // Newest first; the ledger's own order among equals, as ids are all that a cursor has.
    wanted.reverse();
    wanted.sort_by_key(|event| std::cmp::Reverse(event.created));
    let objects = wanted.into_iter().filter_map(|event| serde_json::from_slice(&event.body).ok());
    list("/v1/events", objects, &query)
}

async fn webhook_endpoints(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let live = account.ledger().live();
    let endpoints: Vec<Value> = account.endpoints().iter().map(|registered| webhook_endpoint(registered, live)).collect();
    list("/v1/webhook_endpoints", endpoints.into_iter(), &pairs(query.as_deref()))
}

async fn create_endpoint(State(account): State<Account>, body: String) -> Response {
    let form = pairs(Some(&body));
    let Some(url) = value(&form, "url").map(str::to_owned) else {
        return error(StatusCode::BAD_REQUEST, "invalid_request_error", "Missing required param: url.");
    };
    let version = value(&form, "api_version").map(str::to_owned);
    let live = account.ledger().live();
    match endpoint::create(account.dialect, &mut account.endpoints_mut(), &url, enabled_events(&form), version) {
        Ok(made) => {
            let mut object = webhook_endpoint(&made, live);
            object["secret"] = made.secret.into();
            answer(&object)
        }
        Err(refusal) => error(StatusCode::BAD_REQUEST, "invalid_request_error", refusal.words()),
    }
}

async fn change_endpoint(State(account): State<Account>, Path(id): Path<String>, body: String) -> Response {
    let form = pairs(Some(&body));
    let events = Some(enabled_events(&form)).filter(|events| !events.is_empty());
    let change = Change {
        url: value(&form, "url").map(str::to_owned),
        events,
        enabled: value(&form, "disabled").map(|disabled| disabled == "false"),
    };
    let number = id.strip_prefix(ENDPOINT).and_then(|number| number.parse().ok());
    let live = account.ledger().live();
    let changed = endpoint::change(&mut account.endpoints_mut(), number, change);
    changed.map_or_else(|| missing("webhook_endpoint", &id), |changed| answer(&webhook_endpoint(&changed, live)))
}

/// With this begin the ids of endpoints.
const ENDPOINT: &str = "we_simulated";

/// Without its secret.
fn webhook_endpoint(registered: &Registered, live: bool) -> Value {
    json!({
        "id": format!("{ENDPOINT}{}", registered.number), "object": "webhook_endpoint",
        "api_version": registered.api_version.as_deref().unwrap_or(stripe::API_VERSION), "application": null, "created": 0,
        "description": null, "enabled_events": registered.events, "livemode": live, "metadata": {},
        "status": if registered.enabled { "enabled" } else { "disabled" }, "url": registered.url,
    })
}

fn enabled_events(form: &[(String, String)]) -> Vec<String> {
    form.iter().filter(|(name, _)| name.starts_with("enabled_events[")).map(|(_, event)| event.clone()).collect()
}

fn concerns(query: &[(String, String)], payment_id: &str) -> bool {
    value(query, "payment_intent").is_none_or(|value| value == payment_id)
}

fn created_fits(query: &[(String, String)], created: i64) -> bool {
    query.iter().all(|(key, value)| {
        let Ok(bound) = value.parse::<i64>() else { return !key.starts_with("created[") };
        match key.as_str() {
            "created[gte]" => created >= bound,
            "created[gt]" => created > bound,
            "created[lte]" => created <= bound,
            "created[lt]" => created < bound,
            _ => true,
        }
    })
}

/// One page of `newest_first`, after `starting_after`.
fn list(url: &str, newest_first: impl Iterator<Item = Value>, query: &[(String, String)]) -> Response {
    let limit = match value(query, "limit").map(str::parse::<usize>) {
        None => PAGE_DEFAULT,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => return error(StatusCode::BAD_REQUEST, "invalid_request_error", "Invalid limit."),
    };
    let mut rest = newest_first.collect::<Vec<_>>().into_iter();
    if let Some(cursor) = value(query, "starting_after")
        && !rest.by_ref().any(|object| object["id"] == cursor)
    {
        return error(StatusCode::BAD_REQUEST, "invalid_request_error", "No such object: starting_after.");
    }
    let data: Vec<Value> = rest.by_ref().take(limit).collect();
    answer(&json!({ "object": "list", "data": data, "has_more": rest.next().is_some(), "url": url }))
}

fn missing(object: &str, id: &str) -> Response {
    error(StatusCode::NOT_FOUND, "invalid_request_error", &format!("No such {object}: '{id}'"))
}

fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    http::json(status, &json!({ "error": { "message": message, "type": kind } }))
}

fn answer(object: &Value) -> Response {
    http::json(StatusCode::OK, object)
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture as _;

    use super::*;
    use crate::simulator::ledger::{Ledger, RefundState};
    use crate::simulator::stripe::Stripe;
    use crate::simulator::{Dialect as _, Settings};

    /// Serves the account and asks it over HTTP, as Paybell would.
    async fn ask(account: &Account, key: &str, path: &str) -> (u16, Value) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let server = tokio::spawn(axum::serve(listener, account.api().unwrap()).into_future());
        let response = crate::simulator::http_client().unwrap().get(url).bearer_auth(key).send().await.unwrap();
        assert!(response.headers().contains_key("date"), "a version for the answer");
        let answered = (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap());
        server.abort();
        answered
    }

    fn account() -> (Account, String) {
        let mut ledger = Ledger::new(&Stripe, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.capture(&id, 4999, 110);
        for at in 0..3 {
            ledger.refund(&id, 1000, RefundState::Succeeded, 120 + at);
        }
        let settings = Settings { api_key: Some("sk_test_1".to_owned()), ..Stripe.settings() };
        (Account::new(&Stripe, settings, ledger), id)
    }

    #[tokio::test]
    async fn answers_only_its_key_and_only_what_it_knows() {
        let (account, id) = account();
        assert_eq!(ask(&account, "sk_test_2", &format!("/v1/payment_intents/{id}")).await.0, 401);
        assert_eq!(ask(&account, "sk_test_1", "/v1/payment_intents/pi_other").await.0, 404);
        let (status, object) = ask(&account, "sk_test_1", &format!("/v1/payment_intents/{id}?expand[]=latest_charge")).await;
        assert_eq!((status, &object["latest_charge"]["amount_refunded"]), (200, &json!(3000)));
    }

    #[tokio::test]
    async fn pages_reach_every_object_once_newest_first() {
        let (account, id) = account();
        for (path, expected) in [(format!("/v1/refunds?payment_intent={id}"), 3), ("/v1/events?created[gte]=110".to_owned(), 8)] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let (status, page) =
                    ask(&account, "sk_test_1", &format!("{path}{}limit=2{cursor}", if path.contains('?') { '&' } else { '?' }))
                        .await;
                assert_eq!(status, 200);
                seen.extend(page["data"].as_array().unwrap().iter().map(|object| object["id"].as_str().unwrap().to_owned()));
                if page["has_more"] == false {
                    break;
                }
                cursor = format!("&starting_after={}", seen.last().unwrap());
            }
            assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), expected);
            assert_eq!(seen.len(), expected);
        }
        assert_eq!(ask(&account, "sk_test_1", "/v1/refunds?payment_intent=pi_none").await.1["data"], json!([]));
        let (_, expanded) = ask(&account, "sk_test_1", &format!("/v1/refunds?payment_intent={id}&expand[]=data.charge")).await;
        assert_eq!(expanded["data"][0]["charge"]["amount_refunded"], 3000);
        assert_eq!(ask(&account, "sk_test_1", "/v1/refunds?limit=101").await.0, 400);
    }
}
