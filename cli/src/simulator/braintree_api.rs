//! The part of Braintree's HTTP API that reconciliation asks, in XML, answered from the account's ledger.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use paybell_shared::clock::Timestamp;
use serde_json::Value;

use super::account::Account;
use super::braintree::{credit, element, latest_attempt, transaction, transaction_id};
use super::http::{basic, only_for};
use super::ledger::{Ledger, RefundState, State as PaymentState};

/// Transactions in one page of a search.
const PAGE: usize = 50;

/// The API, to be served anywhere; every route wants the pair of keys.
pub(super) fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/merchants/{merchant}/transactions/{id}", get(found_by_id))
        .route("/merchants/{merchant}/transactions/advanced_search", post(found_by_ids))
        .route("/merchants/{merchant}/transactions/advanced_search_ids", post(ids_found))
        .with_state(account.clone());
    let public_key = account.settings.public_key.as_deref().unwrap_or_default();
    let private_key = account.settings.api_key.as_deref().unwrap_or_default();
    only_for(routes, basic(public_key, private_key), (StatusCode::UNAUTHORIZED, Value::Null))
}

async fn found_by_id(State(account): State<Account>, Path((merchant, id)): Path<(String, String)>) -> Response {
    let is_ours = account.settings.merchant_id.as_deref() == Some(&merchant);
    let found = all(&account.ledger()).into_iter().find(|found| found.id == id && is_ours);
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |found| xml(&found.xml))
}

async fn found_by_ids(State(account): State<Account>, Path(merchant): Path<String>, search: String) -> Response {
    if account.settings.merchant_id.as_deref() != Some(&merchant) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let ids: Vec<&str> = search.split("<item>").skip(1).filter_map(|rest| rest.split("</item>").next()).collect();
    if ids.len() > PAGE {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    }
    let found: Vec<Found> = all(&account.ledger()).into_iter().filter(|found| ids.contains(&&*found.id)).collect();
    let mut page =
        format!("<page-size type=\"integer\">{PAGE}</page-size><total-items type=\"integer\">{}</total-items>", found.len());
    page.extend(found.into_iter().map(|found| found.xml));
    xml(&format!("<credit-card-transactions type=\"collection\">{page}</credit-card-transactions>"))
}

/// The ids of transactions to which something happened between `min` and `max`.
async fn ids_found(State(account): State<Account>, Path(merchant): Path<String>, search: String) -> Response {
    let criterion = search.strip_prefix("<search><").and_then(|rest| rest.split_once('>'));
    let bound = |name: &str| {
        let behind = search.split(&format!("<{name} type=\"datetime\">")).nth(1)?;
        Timestamp::parse_rfc3339(behind.split('<').next()?).ok().map(Timestamp::seconds)
    };
    let (Some((field, _)), Some(min), Some(max)) = (criterion, bound("min"), bound("max")) else {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    };
    if account.settings.merchant_id.as_deref() != Some(&merchant) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let mut ids = String::new();
    for found in all(&account.ledger()) {
        if found.times.iter().any(|(name, at)| *name == field && (min..=max).contains(at)) {
            element(&mut ids, "item", &found.id);
        }
    }
    let page_size = format!("<page-size type=\"integer\">{PAGE}</page-size>");
    xml(&format!("<search-results>{page_size}<ids type=\"array\">{ids}</ids></search-results>"))
}

/// A transaction, and when what happened to it, by the names of the searches.
struct Found {
    id: String,
    xml: String,
    times: Vec<(&'static str, i64)>,
}

/// All sales and credits.
fn all(ledger: &Ledger) -> Vec<Found> {
    let mut all = Vec::new();
    for payment in ledger.payments() {
        for attempt in 0..=latest_attempt(payment) {
            let made = payment.attempts.get(attempt).map_or(payment.created, |attempt| attempt.created);
            let mut times = vec![("created_at", made)];
            if attempt == latest_attempt(payment) {
                times.extend(payment.captures.iter().map(|capture| ("settled_at", capture.created)));
                times.extend(payment.disputes.iter().map(|dispute| ("dispute_date", dispute.changed)));
                match payment.state {
                    PaymentState::Canceled(_) => times.push(("voided_at", payment.changed)),
                    PaymentState::Expired => times.push(("authorization_expired_at", payment.changed)),
                    _ => {}
                }
            }
            all.push(Found { id: transaction_id(payment, attempt).to_owned(), xml: transaction(payment, attempt), times });
        }
        for refund in &payment.refunds {
            let settled = (refund.state == RefundState::Succeeded).then_some(("settled_at", refund.changed));
            let times = [("created_at", refund.created)].into_iter().chain(settled).collect();
            all.push(Found { id: refund.id.clone(), xml: credit(payment, refund), times });
        }
    }
    all
}

fn xml(body: &str) -> Response {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}\n");
    ([(header::CONTENT_TYPE, "application/xml; charset=utf-8")], body).into_response()
}
