//! The part of Mollie's HTTP API that reconciliation asks, answered from the account's ledger.

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, patch};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::account::Account;
use super::endpoint::{self, Change, Registered, texts};
use super::http::{self, bearer, only_for, pairs, value};
use super::ledger::{Ledger, Payment};
use super::mollie::{self, Attempted, link};

/// Mollie's default and largest page.
const PAGE_DEFAULT: usize = 50;
const PAGE_MAX: usize = 250;

/// The API, to be served anywhere; every route wants the key as a bearer token.
pub(super) fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/v2/payments", get(payments))
        .route("/v2/payments/{id}", get(payment))
        .route("/v2/refunds", get(refunds))
        .route("/v2/chargebacks", get(chargebacks))
        .route("/v2/webhooks", get(webhooks).post(create_webhook))
        .route("/v2/webhooks/{id}", patch(change_webhook))
        .with_state(account.clone());
    let refusal = json!({
        "status": 401, "title": "Unauthorized Request", "detail": "Missing authentication, or failed to authenticate",
    });
    let key = account.settings.api_key.as_deref().unwrap_or_default();
    only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal))
}

async fn payment(State(account): State<Account>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let Some(found) = attempts(&ledger).find(|attempted| attempted.id() == id) else {
        return error(StatusCode::NOT_FOUND, "Not Found", &format!("No payment exists with token {id}."));
    };
    let query = pairs(query.as_deref());
    let mut object = found.object(ledger.live());
    let mut embedded = json!({});
    for wanted in value(&query, "embed").unwrap_or_default().split(',').filter(|wanted| !wanted.is_empty()) {
        // What hangs on a payment hangs on the one that the money came by.
        let Some(of) = belongings(found.payment, wanted, ledger.live()) else {
            return error(StatusCode::BAD_REQUEST, "Bad Request", "The value for 'embed' is not supported.");
        };
        embedded[wanted] = if found.is_latest() { of.into() } else { json!([]) };
    }
    if embedded != json!({}) {
        object["_embedded"] = embedded;
    }
    http::json(StatusCode::OK, &object)
}

async fn payments(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let mut all: Vec<Attempted<'_>> = attempts(&ledger).collect();
    all.sort_by_key(|attempted| std::cmp::Reverse(attempted.created()));
    list("payments", all.into_iter().map(|attempted| attempted.object(ledger.live())), query.as_deref())
}

async fn refunds(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let of = |payment| belongings(payment, "refunds", ledger.live()).unwrap_or_default();
    list("refunds", newest_first(ledger.payments().flat_map(of)), query.as_deref())
}

async fn chargebacks(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let of = |payment| belongings(payment, "chargebacks", ledger.live()).unwrap_or_default();
    list("chargebacks", newest_first(ledger.payments().flat_map(of)), query.as_deref())
}

async fn webhooks(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let live = account.ledger().live();
    let endpoints: Vec<Value> = account.endpoints().iter().map(|registered| webhook(registered, live)).collect();
    list("webhooks", endpoints.into_iter(), query.as_deref())
}

async fn create_webhook(State(account): State<Account>, Json(request): Json<Value>) -> Response {
    let (Some(url), Some(_), Some(events)) = (request["url"].as_str(), request["name"].as_str(), texts(&request["eventTypes"]))
    else {
        return error(StatusCode::UNPROCESSABLE_ENTITY, "Unprocessable Entity", "A field is missing.");
    };
    let live = account.ledger().live();
    let made = endpoint::create(account.dialect, &mut account.endpoints_mut(), url, events, None);
    match made {
        Ok(made) => {
            let mut object = webhook(&made, live);
            object["webhookSecret"] = made.secret.into();
            http::json(StatusCode::CREATED, &object)
        }
        Err(refusal) => error(StatusCode::UNPROCESSABLE_ENTITY, "Unprocessable Entity", refusal.words()),
    }
}

async fn change_webhook(State(account): State<Account>, Path(id): Path<String>, Json(request): Json<Value>) -> Response {
    let change = Change { url: request["url"].as_str().map(str::to_owned), events: texts(&request["eventTypes"]), enabled: None };
    let number = id.strip_prefix(WEBHOOK).and_then(|number| number.parse().ok());
    let live = account.ledger().live();
    let changed = endpoint::change(&mut account.endpoints_mut(), number, change);
    changed.map_or_else(
        || error(StatusCode::NOT_FOUND, "Not Found", "No webhook exists with this id."),
        |changed| http::json(StatusCode::OK, &webhook(&changed, live)),
    )
}

/// With this begin the ids of webhooks.
const WEBHOOK: &str = "hook_Simulated";

/// Without its secret.
fn webhook(registered: &Registered, live: bool) -> Value {
    json!({
        "resource": "webhook", "id": format!("{WEBHOOK}{}", registered.number), "url": registered.url,
        "profileId": "pfl_Simulated1", "createdAt": mollie::time(0), "name": "Paybell", "eventTypes": registered.events,
        "status": if registered.enabled { "enabled" } else { "blocked" }, "mode": mollie::mode(live),
    })
}

/// All payments of Mollie's, in no order.
fn attempts(ledger: &Ledger) -> impl Iterator<Item = Attempted<'_>> {
    ledger.payments().flat_map(mollie::all)
}

/// What can be embedded into a payment; `None`: there is no such list.
fn belongings(payment: &Payment, list: &str, live: bool) -> Option<Vec<Value>> {
    Some(match list {
        "refunds" => payment.refunds.iter().map(|refund| mollie::refund(payment, refund, live)).collect(),
        "chargebacks" => payment.disputes.iter().map(|dispute| mollie::chargeback(payment, dispute)).collect(),
        // One that was captured at once has none.
        "captures" if payment.manual_capture => {
            payment.captures.iter().map(|capture| mollie::capture(payment, capture, live)).collect()
        }
        "captures" => Vec::new(),
        _ => return None,
    })
}

fn newest_first(objects: impl Iterator<Item = Value>) -> impl Iterator<Item = Value> {
    let mut objects: Vec<Value> = objects.collect();
    // All times have one form, in which the later is the greater.
    objects.sort_by_key(|object| std::cmp::Reverse(object["createdAt"].as_str().map(str::to_owned)));
    objects.into_iter()
}

/// One page of `newest_first`, beginning with `from`.
fn list(name: &str, newest_first: impl Iterator<Item = Value>, query: Option<&str>) -> Response {
    let query = pairs(query);
    let limit = match value(&query, "limit").map(str::parse::<usize>) {
        None => PAGE_DEFAULT,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => return error(StatusCode::BAD_REQUEST, "Bad Request", "Invalid limit."),
    };
    let all: Vec<Value> = newest_first.collect();
    let begin = match value(&query, "from") {
        None => 0,
        Some(from) => match all.iter().position(|object| object["id"] == from) {
            Some(begin) => begin,
            None => return error(StatusCode::BAD_REQUEST, "Bad Request", "Invalid cursor value."),
        },
    };
    let (page, rest) = all[begin..].split_at(limit.min(all.len() - begin));
    let next = rest.first().and_then(|object| object["id"].as_str());
    let next = next.map(|from| link(&format!("/v2/{name}?from={from}&limit={limit}")));
    let mut answer = json!({
        "count": page.len(), "_embedded": {}, "_links": { "self": link(&format!("/v2/{name}")), "previous": null, "next": next },
    });
    answer["_embedded"][name] = page.into();
    http::json(StatusCode::OK, &answer)
}

fn error(status: StatusCode, title: &str, detail: &str) -> Response {
    http::json(status, &json!({ "status": status.as_u16(), "title": title, "detail": detail }))
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture as _;

    use super::*;
    use crate::simulator::Dialect as _;
    use crate::simulator::ledger::{DECLINES, RefundState};
    use crate::simulator::mollie::Mollie;

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
        let mut ledger = Ledger::new(&Mollie, false, 1);
        let id = ledger.open("o", 4999, "EUR", false, 100);
        ledger.decline(&id, DECLINES[0], 110);
        ledger.capture(&id, 4999, 120);
        for at in 0..3 {
            ledger.refund(&id, 1000, RefundState::Succeeded, 130 + at);
        }
        (Account::new(&Mollie, Mollie.settings(), ledger), id)
    }

    const KEY: &str = "test_DemoOnly";

    #[tokio::test]
    async fn answers_only_its_key_and_only_what_it_knows() {
        let (account, id) = account();
        assert_eq!(ask(&account, "live_other", &format!("/v2/payments/{id}")).await.0, 401);
        assert_eq!(ask(&account, KEY, "/v2/payments/tr_other").await.0, 404);
        assert_eq!(ask(&account, KEY, &format!("/v2/payments/{id}?embed=everything")).await.0, 400);
        let failed = ask(&account, KEY, &format!("/v2/payments/{id}?embed=refunds,chargebacks,captures")).await.1;
        assert_eq!((&failed["status"], &failed["_embedded"]["refunds"]), (&json!("failed"), &json!([])));
        let paid = ask(&account, KEY, "/v2/payments?limit=1").await.1["_embedded"]["payments"][0].clone();
        assert_eq!(paid["amountRefunded"]["value"], "30.00");
        let paid_id = paid["id"].as_str().unwrap();
        let (status, paid) = ask(&account, KEY, &format!("/v2/payments/{paid_id}?embed=refunds,chargebacks,captures")).await;
        assert_eq!((status, paid["_embedded"]["refunds"].as_array().map(Vec::len)), (200, Some(3)));
    }

    #[tokio::test]
    async fn pages_reach_every_object_once_newest_first() {
        let (account, _) = account();
        for (name, expected) in [("payments", 2), ("refunds", 3), ("chargebacks", 0), ("webhooks", 0)] {
            let (mut seen, mut from) = (Vec::<(String, String)>::new(), String::new());
            loop {
                let (status, page) = ask(&account, KEY, &format!("/v2/{name}?limit=1{from}")).await;
                assert_eq!(status, 200, "{name}");
                for object in page["_embedded"][name].as_array().unwrap() {
                    let text = |key: &str| object[key].as_str().unwrap().to_owned();
                    seen.push((text("createdAt"), text("id")));
                }
                let Some(next) = page["_links"]["next"]["href"].as_str() else { break };
                from = format!("&from={}", next.split_once("from=").unwrap().1.split_once('&').unwrap().0);
            }
            assert_eq!(seen.len(), expected, "{name}");
            assert!(seen.is_sorted_by(|newer, older| newer.0 >= older.0 && newer.1 != older.1), "{name}: {seen:?}");
        }
        assert_eq!(ask(&account, KEY, "/v2/payments?limit=251").await.0, 400);
        account.set_endpoint("https://pay.example/webhooks/mollie");
        assert_eq!(ask(&account, KEY, "/v2/webhooks").await.1["_embedded"]["webhooks"][0]["status"], "enabled");
    }
}
