//! The part of PayPal's HTTP API that reconciliation asks, answered from the account's ledger; and the certificate, which is
//! everyone's.

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::dialect::Settings;
use super::endpoint::{self, Change, Refusal, Registered};
use super::http::{self, basic, bearer, only_for, pairs, value};
use super::ledger::{Event, Payment};
use super::paypal::{authorization_object, capture_objects, dispute_object, order, refund_object};
use super::seed::Seed;

/// PayPal's default page of events.
const PAGE_DEFAULT: usize = 10;
const PAGE_MAX: usize = 100;
/// PayPal's largest page of disputes.
const DISPUTES_MAX: usize = 50;
/// What a token lives, in seconds.
const TOKEN_LIVES_S: u64 = 32_400;

/// The API, to be served anywhere; every route but two wants an access token.
pub(super) fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/v2/checkout/orders/{id}", get(checkout_order))
        .route("/v2/payments/captures/{id}", get(capture))
        .route("/v2/payments/authorizations/{id}", get(authorization))
        .route("/v2/payments/refunds/{id}", get(refund))
        .route("/v1/customer/disputes", get(disputes))
        .route("/v1/customer/disputes/{id}", get(dispute))
        .route("/v1/notifications/webhooks-events", get(webhooks_events))
        .route("/v1/notifications/webhooks", get(webhooks).post(create_webhook))
        .route("/v1/notifications/webhooks/{id}", patch(change_webhook))
        .with_state(account.clone());
    let refusal = json!({ "error": "invalid_token", "error_description": "Token signature verification failed" });
    let open = Router::new()
        .route("/v1/oauth2/token", post(token))
        .route("/v1/notifications/certs/{id}", get(certificate))
        .with_state(account.clone());
    only_for(routes, bearer(&access_token(&account.settings)), (StatusCode::UNAUTHORIZED, refusal)).merge(open)
}

/// Always the same, so that no one need remember it.
fn access_token(settings: &Settings) -> String {
    let of = settings.api_key.as_deref().unwrap_or_default();
    format!("A21AA{}", Seed::new("access token", of, 0).letters(32))
}

async fn token(State(account): State<Account>, headers: HeaderMap, body: String) -> Response {
    let settings = &account.settings;
    let (client, key) = (settings.client_id.as_deref().unwrap_or_default(), settings.api_key.as_deref().unwrap_or_default());
    if headers.get(header::AUTHORIZATION).is_none_or(|value| value != basic(client, key).as_str()) {
        return http::json(StatusCode::UNAUTHORIZED, &json!({ "error": "invalid_client" }));
    }
    if value(&pairs(Some(&body)), "grant_type") != Some("client_credentials") {
        return http::json(StatusCode::BAD_REQUEST, &json!({ "error": "unsupported_grant_type" }));
    }
    let scope = "https://uri.paypal.com/services/disputes/read-seller";
    let token = access_token(settings);
    answer(&json!({ "scope": scope, "access_token": token, "token_type": "Bearer", "expires_in": TOKEN_LIVES_S }))
}

async fn certificate(State(account): State<Account>) -> Response {
    let pem = account.dialect.certificate().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/x-x509-ca-cert")], pem).into_response()
}

async fn checkout_order(State(account): State<Account>, Path(id): Path<String>) -> Response {
    account.ledger().payment(&id).map_or_else(missing, |payment| answer(&order(payment)))
}

async fn capture(State(account): State<Account>, Path(id): Path<String>) -> Response {
    one(&account, &id, "id", capture_objects)
}

async fn authorization(State(account): State<Account>, Path(id): Path<String>) -> Response {
    one(&account, &id, "id", |payment| authorization_object(payment).into_iter().collect())
}

async fn refund(State(account): State<Account>, Path(id): Path<String>) -> Response {
    one(&account, &id, "id", |payment| payment.refunds.iter().map(|refund| refund_object(payment, refund)).collect())
}

async fn dispute(State(account): State<Account>, Path(id): Path<String>) -> Response {
    one(&account, &id, "dispute_id", all_disputes)
}

/// The list shows a summary: without the outcome, and without the transactions.
async fn disputes(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let query = pairs(query.as_deref());
    let Some(transaction) = value(&query, "disputed_transaction_id") else {
        return error(StatusCode::BAD_REQUEST, "INVALID_REQUEST");
    };
    let size = value(&query, "page_size").map_or(Some(PAGE_DEFAULT), |text| text.parse().ok());
    let Some(size) = size.filter(|size| (1..=DISPUTES_MAX).contains(size)) else {
        return error(StatusCode::BAD_REQUEST, "INVALID_REQUEST");
    };
    let ledger = account.ledger();
    let all = ledger.payments().flat_map(all_disputes);
    let of = all.filter(|dispute| dispute["disputed_transactions"][0]["seller_transaction_id"] == transaction);
    let summaries = of.take(size).map(|mut dispute| {
        if let Some(members) = dispute.as_object_mut() {
            members.retain(|name, _| name != "dispute_outcome" && name != "disputed_transactions");
        }
        dispute
    });
    answer(&json!({ "items": summaries.collect::<Vec<_>>(), "links": [] }))
}

async fn webhooks_events(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let query = pairs(query.as_deref());
    let bound =
        |name: &str, default: i64| value(&query, name).map_or(Ok(Timestamp::from_seconds(default)), Timestamp::parse_rfc3339);
    let (Ok(since), Ok(until)) = (bound("start_time", 0), bound("end_time", 253_402_300_799)) else {
        return error(StatusCode::BAD_REQUEST, "INVALID_REQUEST");
    };
    let size = value(&query, "page_size").map_or(Some(PAGE_DEFAULT), |text| text.parse().ok());
    let Some(size) = size.filter(|size| (1..=PAGE_MAX).contains(size)) else {
        return error(StatusCode::BAD_REQUEST, "INVALID_REQUEST");
    };
    let ledger = account.ledger();
    let is_within = |event: &&Event| (since.seconds()..=until.seconds()).contains(&event.created);
    let mut wanted: Vec<&Event> = ledger.events().iter().filter(is_within).collect();
    wanted.reverse();
    wanted.sort_by_key(|event| std::cmp::Reverse(event.created));
    if let Some(start) = value(&query, "start_id") {
        wanted.drain(..wanted.iter().position(|event| event.id == start).unwrap_or(wanted.len()));
    }
    let next = wanted.get(size).map(|event| {
        let href = format!(
            "https://api.sandbox.paypal.com/v1/notifications/webhooks-events?start_time={since}&end_time={until}&start_id={}&page_size={size}",
            event.id
        );
        json!({ "href": href, "rel": "next", "method": "GET" })
    });
    let events: Vec<Value> = wanted.iter().take(size).filter_map(|event| serde_json::from_slice(&event.body).ok()).collect();
    answer(&json!({ "count": events.len(), "events": events, "links": next.into_iter().collect::<Vec<_>>() }))
}

async fn webhooks(State(account): State<Account>) -> Response {
    let webhooks: Vec<Value> = account.endpoints().iter().map(|registered| webhook(&account, registered)).collect();
    answer(&json!({ "webhooks": webhooks }))
}

async fn create_webhook(State(account): State<Account>, Json(request): Json<Value>) -> Response {
    let Some(url) = request["url"].as_str() else { return error(StatusCode::BAD_REQUEST, "VALIDATION_ERROR") };
    let made = endpoint::create(account.dialect, &mut account.endpoints_mut(), url, names(&request["event_types"]), None);
    match made {
        Ok(made) => http::json(StatusCode::CREATED, &webhook(&account, &made)),
        Err(Refusal::Taken) => error(StatusCode::BAD_REQUEST, "WEBHOOK_URL_ALREADY_EXISTS"),
        Err(Refusal::TooMany) => error(StatusCode::BAD_REQUEST, "WEBHOOK_NUMBER_LIMIT_EXCEEDED"),
        Err(Refusal::Url) => error(StatusCode::BAD_REQUEST, "VALIDATION_ERROR"),
    }
}

/// JSON Patch, of which PayPal knows `replace`.
async fn change_webhook(State(account): State<Account>, Path(id): Path<String>, Json(patches): Json<Value>) -> Response {
    let mut change = Change::default();
    for patch in patches.as_array().into_iter().flatten() {
        match (patch["op"].as_str(), patch["path"].as_str()) {
            (Some("replace"), Some("/url")) => change.url = patch["value"].as_str().map(str::to_owned),
            (Some("replace"), Some("/event_types")) => change.events = Some(names(&patch["value"])),
            _ => return error(StatusCode::BAD_REQUEST, "WEBHOOK_PATCH_REQUEST_NO_CHANGE"),
        }
    }
    let number = account.endpoints().iter().find(|known| webhook_id(&account, known) == id).map(|known| known.number);
    let changed = endpoint::change(&mut account.endpoints_mut(), number, change);
    changed.map_or_else(missing, |changed| answer(&webhook(&account, &changed)))
}

fn webhook(account: &Account, registered: &Registered) -> Value {
    let types: Vec<Value> = registered.events.iter().map(|event| json!({ "name": event })).collect();
    json!({ "id": webhook_id(account, registered), "url": registered.url, "event_types": types, "links": [] })
}

/// The first is the one that the account's webhooks are signed for.
fn webhook_id(account: &Account, registered: &Registered) -> String {
    match (registered.number, &account.settings.webhook_id) {
        (0, Some(id)) => id.clone(),
        (number, _) => format!("SIMULATED{number}"),
    }
}

fn names(types: &Value) -> Vec<String> {
    types.as_array().into_iter().flatten().filter_map(|event| event["name"].as_str().map(str::to_owned)).collect()
}

fn all_disputes(payment: &Payment) -> Vec<Value> {
    payment.disputes.iter().map(|dispute| dispute_object(payment, dispute)).collect()
}

/// The object of this id, among those that any payment has.
fn one(account: &Account, id: &str, key: &str, objects: impl Fn(&Payment) -> Vec<Value>) -> Response {
    let ledger = account.ledger();
    let found = ledger.payments().flat_map(objects).find(|object| object[key] == id);
    found.map_or_else(missing, |object| answer(&object))
}

fn missing() -> Response {
    error(StatusCode::NOT_FOUND, "RESOURCE_NOT_FOUND")
}

fn error(status: StatusCode, name: &str) -> Response {
    http::json(status, &json!({ "name": name, "message": "The simulator has no such thing.", "debug_id": "0" }))
}

fn answer(object: &Value) -> Response {
    http::json(StatusCode::OK, object)
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture as _;

    use super::*;
    use crate::simulator::Dialect as _;
    use crate::simulator::ledger::{DisputeState, Ledger, RefundState};
    use crate::simulator::paypal::PayPal;

    /// Serves the account and asks it over HTTP, as Paybell would.
    async fn ask(account: &Account, authorization: Option<String>, path: &str) -> (u16, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let server = tokio::spawn(axum::serve(listener, account.api().unwrap()).into_future());
        let http = crate::simulator::http_client().unwrap();
        let request =
            if path == "/v1/oauth2/token" { http.post(url).body("grant_type=client_credentials") } else { http.get(url) };
        let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("date"), "a version for the answer");
        let answered = (response.status().as_u16(), response.text().await.unwrap());
        server.abort();
        answered
    }

    async fn get(account: &Account, path: &str) -> (u16, Value) {
        let (status, text) = ask(account, Some(bearer(&access_token(&account.settings))), path).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    fn account() -> (Account, String) {
        let mut ledger = Ledger::new(&PayPal, false, 1);
        let id = ledger.open("o", 4999, "EUR", true, 100);
        ledger.authorize(&id, 105);
        ledger.capture(&id, 4999, 110);
        ledger.refund(&id, 1000, RefundState::Succeeded, 120);
        let number = ledger.dispute(&id, 4999, 130);
        ledger.close_dispute(&id, number, DisputeState::Lost, 140);
        (Account::new(&PayPal, PayPal.settings(), ledger), id)
    }

    #[tokio::test]
    async fn a_token_is_for_who_has_the_key_and_lets_in() {
        let (account, id) = account();
        let settings = &account.settings;
        let (client, key) = (settings.client_id.clone().unwrap(), settings.api_key.clone().unwrap());
        assert_eq!(ask(&account, Some(basic(&client, "another")), "/v1/oauth2/token").await.0, 401);
        let (status, text) = ask(&account, Some(basic(&client, &key)), "/v1/oauth2/token").await;
        let token: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &token["token_type"]), (200, &json!("Bearer")));
        let path = format!("/v2/checkout/orders/{id}");
        assert_eq!(ask(&account, None, &path).await.0, 401);
        assert_eq!(ask(&account, Some(bearer(token["access_token"].as_str().unwrap())), &path).await.0, 200);
        let (status, pem) = ask(&account, None, "/v1/notifications/certs/CERT-simulator-1").await;
        assert_eq!((status, pem.as_str()), (200, PayPal.certificate().unwrap()), "the certificate is everyone's");
    }

    #[tokio::test]
    async fn every_object_is_found_by_its_id_and_only_there() {
        let (account, id) = account();
        let (_, order) = get(&account, &format!("/v2/checkout/orders/{id}")).await;
        let payments = &order["purchase_units"][0]["payments"];
        for (kind, object) in [
            ("captures", &payments["captures"][0]),
            ("authorizations", &payments["authorizations"][0]),
            ("refunds", &payments["refunds"][0]),
        ] {
            let own = object["id"].as_str().unwrap();
            assert_eq!(get(&account, &format!("/v2/payments/{kind}/{own}")).await, (200, object.clone()), "{kind}");
            assert_eq!(get(&account, &format!("/v2/checkout/orders/{own}")).await.0, 404, "{kind}");
        }
        assert_eq!(get(&account, &format!("/v2/payments/captures/{id}")).await.0, 404);
    }

    #[tokio::test]
    async fn a_list_of_disputes_does_not_say_how_they_ended() {
        let (account, id) = account();
        let (_, order) = get(&account, &format!("/v2/checkout/orders/{id}")).await;
        let capture = order["purchase_units"][0]["payments"]["captures"][0]["id"].as_str().unwrap().to_owned();
        let (_, list) = get(&account, &format!("/v1/customer/disputes?disputed_transaction_id={capture}&page_size=50")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), 1);
        assert!(list["items"][0]["dispute_outcome"].is_null());
        let dispute = list["items"][0]["dispute_id"].as_str().unwrap();
        let (_, whole) = get(&account, &format!("/v1/customer/disputes/{dispute}")).await;
        assert_eq!(whole["dispute_outcome"]["outcome_code"], "RESOLVED_BUYER_FAVOUR");
        let (_, none) = get(&account, "/v1/customer/disputes?disputed_transaction_id=9&page_size=50").await;
        assert_eq!(none["items"], json!([]));
        assert_eq!(get(&account, "/v1/customer/disputes?page_size=50").await.0, 400);
    }

    #[tokio::test]
    async fn pages_reach_every_event_once() {
        let (account, _) = account();
        let expected = account.ledger().events().len();
        let (mut seen, mut query) = (Vec::new(), "start_time=1970-01-01T00:01:00Z&page_size=2".to_owned());
        loop {
            let (status, page) = get(&account, &format!("/v1/notifications/webhooks-events?{query}")).await;
            assert_eq!(status, 200);
            seen.extend(page["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["links"].as_array().unwrap().first() else { break };
            query = next["href"].as_str().unwrap().split_once('?').unwrap().1.to_owned();
        }
        assert_eq!(seen.len(), expected);
        assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), expected);
    }
}
