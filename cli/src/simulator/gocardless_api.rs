//! The part of GoCardless's HTTP API that reconciliation asks, answered from the account's ledger.

use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::gocardless::time;
use super::http::{self, bearer, only_for, pairs, value};
use super::ledger::{DisputeState, Event, Payment, Refund, RefundState, State as PaymentState};

/// GoCardless's default and largest page.
const PAGE_DEFAULT: usize = 50;
const PAGE_MAX: usize = 500;
/// The one version that there is.
const API_VERSION: &str = "2015-07-06";

/// The API, to be served anywhere; every route wants the token and the version.
pub(super) fn router(account: &Account) -> Router {
    let routes = Router::new()
        .route("/payments/{id}", get(payment))
        .route("/refunds", get(refunds))
        .route("/events", get(events))
        .with_state(account.clone())
        .layer(middleware::from_fn(|headers: HeaderMap, request: Request, next: Next| async move {
            if headers.get("gocardless-version").is_some_and(|version| version == API_VERSION) {
                next.run(request).await
            } else {
                error(StatusCode::BAD_REQUEST, "missing_version_header", "Specify a version in GoCardless-Version.")
            }
        }));
    let refusal = json!({ "error": {
        "message": "The access token is not valid.", "code": 401, "type": "invalid_api_usage",
        "errors": [{ "reason": "access_token_not_found", "message": "The access token is not valid." }],
    } });
    let key = account.settings.api_key.as_deref().unwrap_or_default();
    only_for(routes, bearer(key), (StatusCode::UNAUTHORIZED, refusal))
}

async fn payment(State(account): State<Account>, Path(id): Path<String>) -> Response {
    let ledger = account.ledger();
    match ledger.payment(&id) {
        Some(payment) => http::json(StatusCode::OK, &json!({ "payments": payment_object(payment) })),
        None => error(StatusCode::NOT_FOUND, "resource_not_found", "Resource not found."),
    }
}

async fn refunds(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let of = ledger.payments().filter(|payment| value(&query, "payment").is_none_or(|id| id == payment.id));
    let mut found: Vec<(i64, Value)> = of
        .flat_map(|payment| payment.refunds.iter().rev().map(|refund| (refund.created, refund_object(payment, refund))))
        .collect();
    found.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    page("refunds", found.into_iter().map(|(_, refund)| refund), &query)
}

async fn events(State(account): State<Account>, RawQuery(query): RawQuery) -> Response {
    let ledger = account.ledger();
    let query = pairs(query.as_deref());
    let mut told: Vec<&Event> = ledger.events().iter().filter(|event| created_fits(&query, event.created)).collect();
    // Newest first; the ledger's own order among equals.
    told.reverse();
    told.sort_by_key(|event| std::cmp::Reverse(event.created));
    let single = told.into_iter().flat_map(|event| {
        let body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
        let mut events = body["events"].as_array().cloned().unwrap_or_default();
        events.reverse();
        events
    });
    let fits = |event: &Value| {
        value(&query, "resource_type").is_none_or(|wanted| event["resource_type"] == wanted)
            && value(&query, "payment").is_none_or(|wanted| event["links"]["payment"] == wanted)
    };
    page("events", single.filter(fits), &query)
}

fn created_fits(query: &[(String, String)], created: i64) -> bool {
    query.iter().all(|(key, value)| {
        let bound = Timestamp::parse_rfc3339(value).map(Timestamp::millis);
        let created = created.saturating_mul(1_000);
        match (key.as_str(), bound) {
            ("created_at[gte]", Ok(bound)) => created >= bound,
            ("created_at[gt]", Ok(bound)) => created > bound,
            ("created_at[lte]", Ok(bound)) => created <= bound,
            ("created_at[lt]", Ok(bound)) => created < bound,
            (key, _) => !key.starts_with("created_at["),
        }
    })
}

/// One page of `newest_first`, after the cursor.
fn page(name: &str, newest_first: impl Iterator<Item = Value>, query: &[(String, String)]) -> Response {
    let limit = match value(query, "limit").map(str::parse::<usize>) {
        None => PAGE_DEFAULT,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => return error(StatusCode::UNPROCESSABLE_ENTITY, "invalid_type", "Invalid limit."),
    };
    let mut rest = newest_first.collect::<Vec<_>>().into_iter();
    if let Some(cursor) = value(query, "after")
        && !rest.by_ref().any(|object| object["id"] == cursor)
    {
        return error(StatusCode::BAD_REQUEST, "invalid_cursor", "No such cursor.");
    }
    let found: Vec<Value> = rest.by_ref().take(limit).collect();
    let after = found.last().filter(|_| rest.len() > 0).map(|last| last["id"].clone());
    let meta = json!({ "cursors": { "before": value(query, "after"), "after": after }, "limit": limit });
    http::json(StatusCode::OK, &json!({ name: found, "meta": meta }))
}

fn payment_object(payment: &Payment) -> Value {
    let is_lost = |state| matches!(state, DisputeState::NeedsResponse | DisputeState::Lost);
    let status = match payment.state {
        PaymentState::Open => "pending_submission",
        PaymentState::ActionRequired => "pending_customer_approval",
        PaymentState::Processing | PaymentState::Authorized => "submitted",
        PaymentState::Declined(_) => "failed",
        PaymentState::Captured if payment.disputes.iter().any(|dispute| is_lost(dispute.state)) => "charged_back",
        PaymentState::Captured => "confirmed",
        PaymentState::Canceled(_) | PaymentState::Expired => "cancelled",
    };
    json!({
        "id": payment.id,
        "created_at": time(payment.created),
        "charge_date": time(payment.created).split('T').next(),
        "amount": payment.amount,
        "amount_refunded": payment.refunded(),
        "currency": payment.currency,
        "description": null,
        "reference": null,
        "status": status,
        "metadata": { "order_id": payment.order_id },
        "links": { "mandate": format!("MD{}", payment.seed("mandate").letters(14)), "creditor": "CR0SIMULATED" },
        "retry_if_possible": false,
    })
}

fn refund_object(payment: &Payment, refund: &Refund) -> Value {
    let status = match refund.state {
        RefundState::Pending => "submitted",
        RefundState::Succeeded => "paid",
        RefundState::Failed => "bounced",
    };
    json!({
        "id": refund.id,
        "created_at": time(refund.created),
        "amount": refund.amount,
        "currency": payment.currency,
        "reference": null,
        "status": status,
        "metadata": {},
        "links": { "payment": payment.id },
    })
}

fn error(status: StatusCode, reason: &str, message: &str) -> Response {
    let code = status.as_u16();
    let body = json!({ "error": {
        "message": message, "code": code, "type": "invalid_api_usage", "errors": [{ "reason": reason, "message": message }],
    } });
    http::json(status, &body)
}
