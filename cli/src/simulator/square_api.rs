//! The part of Square's HTTP API that reconciliation asks, answered from the account's ledger.

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, put};
use axum::{Json, Router};
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::endpoint::{self, Change, Registered, texts};
use super::http::{self, bearer, only_for, pairs, value};
use super::square::{self, API_VERSION};

/// Square's default and largest page.
const PAGE: usize = 100;

/// The API, to be served anywhere; every route wants the access token as a bearer token.
pub(super) fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/v2/payments", get(payments))
        .route("/v2/payments/{id}", get(payment))
        .route("/v2/refunds", get(refunds))
        .route("/v2/refunds/{id}", get(refund))
        .route("/v2/disputes", get(disputes))
        .route("/v2/webhooks/subscriptions", get(subscriptions).post(create_subscription))
        .route("/v2/webhooks/subscriptions/{id}", put(change_subscription))
        .with_state(account.clone());
    let refusal = errors("AUTHENTICATION_ERROR", "UNAUTHORIZED", "This request could not be authorized.");
    let key = account.settings.api_key.as_deref().unwrap_or_default();
    only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal))
}

async fn payment(State(account): State<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    ledger.payment(&id).map_or_else(missing, |payment| answer(&json!({ "payment": square::payment_object(payment) })))
}

async fn refund(State(account): State<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    let found = ledger.payments().find_map(|payment| Some((payment, payment.refunds.iter().find(|refund| refund.id == id)?)));
    found.map_or_else(missing, |(payment, refund)| answer(&json!({ "refund": square::refund_object(payment, refund) })))
}

async fn payments(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let objects = ledger.payments().map(|payment| (payment.changed, square::payment_object(payment)));
    list("payments", objects.collect(), &pairs(query.as_deref()))
}

async fn refunds(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let of = |payment| move |refund: &super::ledger::Refund| (refund.changed, square::refund_object(payment, refund));
    let objects = ledger.payments().flat_map(|payment| payment.refunds.iter().map(of(payment)));
    list("refunds", objects.collect(), &pairs(query.as_deref()))
}

async fn disputes(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let of = |payment| move |dispute: &super::ledger::Dispute| (dispute.changed, square::dispute_object(payment, dispute));
    let objects = ledger.payments().flat_map(|payment| payment.disputes.iter().map(of(payment)));
    list("disputes", objects.collect(), &pairs(query.as_deref()))
}

async fn subscriptions(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let query = pairs(query.as_deref());
    let with_disabled = value(&query, "include_disabled") == Some("true");
    let listed = account.endpoints().iter().filter(|registered| registered.enabled || with_disabled).cloned().collect::<Vec<_>>();
    list("subscriptions", listed.iter().map(|registered| (0, subscription(&account, registered))).collect(), &query)
}

async fn create_subscription(State(account): State<Account>, Json(request): Json<Value>) -> Response {
    let wanted = &request["subscription"];
    let (Some(url), Some(events)) = (wanted["notification_url"].as_str(), texts(&wanted["event_types"])) else {
        return invalid("Missing required parameter.");
    };
    let version = wanted["api_version"].as_str().map(str::to_owned);
    let made = endpoint::create(account.dialect, &mut account.endpoints_mut(), url, events, version);
    match made {
        Ok(made) => {
            let mut object = subscription(&account, &made);
            object["signature_key"] = made.secret.into();
            answer(&json!({ "subscription": object }))
        }
        Err(refusal) => invalid(refusal.words()),
    }
}

async fn change_subscription(State(account): State<Account>, Path(id): Path<String>, Json(request): Json<Value>) -> Response {
    let wanted = &request["subscription"];
    let change = Change {
        url: wanted["notification_url"].as_str().map(str::to_owned),
        events: texts(&wanted["event_types"]),
        enabled: wanted["enabled"].as_bool(),
    };
    let number = id.strip_prefix(SUBSCRIPTION).and_then(|number| number.parse().ok());
    let changed = endpoint::change(&mut account.endpoints_mut(), number, change);
    changed.map_or_else(missing, |changed| answer(&json!({ "subscription": subscription(&account, &changed) })))
}

/// With this begin the ids of subscriptions.
const SUBSCRIPTION: &str = "wbhk_simulated";

/// Without its signature key. Square has no name for all events.
fn subscription(account: &Account, registered: &Registered) -> Value {
    let all = || account.dialect.event_types().iter().map(|event_type| event_type.name.to_owned()).collect();
    let types: Vec<String> = if registered.events == ["*"] { all() } else { registered.events.clone() };
    json!({
        "id": format!("{SUBSCRIPTION}{}", registered.number), "name": "Paybell", "enabled": registered.enabled,
        "event_types": types, "notification_url": registered.url,
        "api_version": registered.api_version.as_deref().unwrap_or(API_VERSION),
    })
}

fn invalid(detail: &str) -> Response {
    http::json(StatusCode::BAD_REQUEST, &errors("INVALID_REQUEST_ERROR", "BAD_REQUEST", detail))
}

/// One page, by the time of the last change, oldest first, beginning behind `cursor`. What is empty is left out.
fn list(name: &str, mut objects: Vec<(i64, Value)>, query: &[(String, String)]) -> Response {
    let since = value(query, "updated_at_begin_time").map(Timestamp::parse_rfc3339);
    let until = value(query, "updated_at_end_time").map(Timestamp::parse_rfc3339);
    let limit = value(query, "limit").map_or(Ok(PAGE), str::parse::<usize>);
    let from = value(query, "cursor").map_or(Ok(0), |cursor| cursor.trim_start_matches("after+").parse::<usize>());
    let (Ok(since), Ok(until), Ok(limit @ 1..=PAGE), Ok(from)) = (since.transpose(), until.transpose(), limit, from) else {
        return http::json(StatusCode::BAD_REQUEST, &errors("INVALID_REQUEST_ERROR", "INVALID_VALUE", "A parameter is invalid."));
    };
    let at = |changed: i64| Timestamp::from_seconds(changed);
    objects.retain(|(changed, _)| {
        since.is_none_or(|since| at(*changed) >= since) && until.is_none_or(|until| at(*changed) <= until)
    });
    objects.sort_by_key(|(changed, _)| *changed);
    let more = objects.len() > from.saturating_add(limit);
    let page: Vec<Value> = objects.into_iter().skip(from).take(limit).map(|(_, object)| object).collect();
    let mut body = json!({});
    if !page.is_empty() {
        body[name] = page.into();
    }
    if more {
        // With a sign that a query must encode.
        body["cursor"] = format!("after+{}", from + limit).into();
    }
    answer(&body)
}

fn missing() -> Response {
    http::json(StatusCode::NOT_FOUND, &errors("INVALID_REQUEST_ERROR", "NOT_FOUND", "Could not find it."))
}

fn errors(category: &str, code: &str, detail: &str) -> Value {
    json!({ "errors": [{ "category": category, "code": code, "detail": detail }] })
}

fn answer(object: &Value) -> Response {
    http::json(StatusCode::OK, object)
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture as _;

    use super::*;
    use crate::simulator::Dialect as _;
    use crate::simulator::ledger::{Ledger, RefundState};
    use crate::simulator::square::Square;

    /// Serves the account and asks it over HTTP, as Paybell would.
    async fn ask(account: &Account, key: &str, path: &str) -> (u16, Value) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let server = tokio::spawn(axum::serve(listener, account.api().unwrap()).into_future());
        let response = crate::simulator::http_client().unwrap().get(url).bearer_auth(key).send().await.unwrap();
        let answered = (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap());
        server.abort();
        answered
    }

    #[tokio::test]
    async fn answers_only_its_key_and_pages_reach_every_object_once() {
        let mut ledger = Ledger::new(&Square, false, 1);
        let id = ledger.open("o", 4999, "USD", false, 100);
        ledger.capture(&id, 4999, 110);
        for at in 0..3 {
            ledger.refund(&id, 1000, RefundState::Succeeded, 120 + at);
        }
        ledger.dispute(&id, 1000, 130);
        let settings = Square.settings();
        let key = settings.api_key.clone().unwrap();
        let account = Account::new(&Square, settings, ledger);
        let payment = format!("/v2/payments/{id}");
        assert_eq!(ask(&account, "another", &payment).await.0, 401);
        assert_eq!(ask(&account, &key, "/v2/payments/other").await.0, 404);
        let (status, body) = ask(&account, &key, &payment).await;
        assert_eq!((status, &body["payment"]["refunded_money"]["amount"]), (200, &json!(3000)));
        let first = body["payment"]["refund_ids"][0].as_str().unwrap().to_owned();
        assert_eq!(ask(&account, &key, &format!("/v2/refunds/{first}")).await.1["refund"]["payment_id"], id.as_str());

        let since = "updated_at_begin_time=1970-01-01T00:02:01Z&limit=1";
        let (_, page) = ask(&account, &key, &format!("/v2/refunds?{since}")).await;
        assert_eq!((page["refunds"].as_array().unwrap().len(), &page["cursor"]), (1, &json!("after+1")));
        let (_, last) = ask(&account, &key, &format!("/v2/refunds?{since}&cursor=after%2B1")).await;
        assert_eq!((last["refunds"].as_array().unwrap().len(), last.get("cursor")), (1, None));
        assert_ne!(page["refunds"][0]["id"], last["refunds"][0]["id"]);
        assert_eq!(ask(&account, &key, "/v2/disputes").await.1["disputes"][0]["state"], "EVIDENCE_REQUIRED");
        assert_eq!(ask(&account, &key, "/v2/webhooks/subscriptions").await.1, json!({}));
        assert_eq!(ask(&account, &key, "/v2/payments?limit=101").await.0, 400);
    }
}
