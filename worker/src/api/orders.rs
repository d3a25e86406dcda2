//! Orders: register one, ask where one stands, list them.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use paybell_shared::money::{Currency, Money};

use super::problem::Problem;
use super::wire::{Object, Order, OrderPage, OrdersQuery, RegisterOrder};
use super::{Caller, cut, page_limit};
use crate::consume::Context;
use crate::order::AccountKey;
use crate::store::{Registered, Registration, Work};

/// Ids are keys of indexes.
const ORDER_ID_BYTES_MAX: usize = 255;
/// Larger than any payment in any currency; sums of a thousand of them still fit.
const AMOUNT_MAX: i64 = 1_000_000_000_000_000;

/// Registers an order's payment.
///
/// Repeating it is a no-op. Another PSP, account or payment id adds a payment; a new `expires_at` replaces the old one.
#[utoipa::path(
    put, path = "/v1/orders/{id}", tag = "orders",
    params(("id" = String, Path, description = "The shop's order id, percent-encoded", min_length = 1, max_length = 255)),
    request_body = RegisterOrder,
    responses(
        (status = 200, description = "The order was known", body = Order),
        (status = 201, description = "The order is new", body = Order),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another amount or currency, or a payment of another order", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A field has an impossible value", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn register_order(
    Extension(context): Extension<Arc<Context>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<RegisterOrder>>, JsonRejection>,
) -> Result<(StatusCode, Json<Order>), Problem> {
    let Path(id) = id.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let Json(Object(body)) = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let registration = check_registration(&context, caller, id, body)?;
    let registrations = [registration];
    let work = Work { registrations: &registrations, ..context.work() };
    let mut applied = context.store.apply(&work).await?;
    match applied.registrations.pop() {
        Some(Registered::Created(order)) => Ok((StatusCode::CREATED, Json((*order).into()))),
        Some(Registered::Updated(order)) => Ok((StatusCode::OK, Json((*order).into()))),
        Some(Registered::Refused(conflict)) => Err(Problem::new(StatusCode::CONFLICT, conflict.to_string())),
        // The store answers every registration of its work.
        None => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the registration got no answer")),
    }
}

fn check_registration(
    context: &Context,
    Caller(operator): Caller,
    id: String,
    body: RegisterOrder,
) -> Result<Registration, Problem> {
    let unprocessable = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
    let is_id = |text: &str| !text.is_empty() && text.len() <= ORDER_ID_BYTES_MAX && !text.chars().any(char::is_control);
    if !is_id(&id) {
        return Err(unprocessable(format!("id: must be 1 to {ORDER_ID_BYTES_MAX} bytes without control characters")));
    }
    if body.payment_id.as_deref().is_some_and(|payment_id| !is_id(payment_id)) {
        return Err(unprocessable(format!("payment_id: must be 1 to {ORDER_ID_BYTES_MAX} bytes without control characters")));
    }
    if !(1..=AMOUNT_MAX).contains(&body.amount) {
        return Err(unprocessable(format!("amount: must be 1 to {AMOUNT_MAX} minor units")));
    }
    let currency = Currency::parse(&body.currency).map_err(|error| unprocessable(format!("currency: {error}")))?;
    let expires_at = match body.expires_at.as_deref() {
        None => None,
        Some(text) => {
            Some(Timestamp::parse_rfc3339(text).map_err(|_| unprocessable(format!("expires_at: {text:?} is not RFC 3339")))?)
        }
    };
    let account = AccountKey { psp: body.psp.into(), account: body.account.as_deref().unwrap_or("default").into() };
    if !context.accounts.contains_key(&account) {
        let mut known: Vec<String> = context.accounts.keys().map(|key| format!("{}/{}", key.psp, key.account)).collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(unprocessable(format!(
            "psp, account: {}/{} is not configured here; configured: {known}",
            account.psp, account.account
        )));
    }
    Ok(Registration {
        order_id: id,
        account,
        payment_id: body.payment_id,
        expected: Money::new(body.amount, currency),
        expires_at,
        operator,
    })
}

/// Where an order stands.
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders",
    params(("id" = String, Path, description = "The shop's order id, percent-encoded", min_length = 1, max_length = 255)),
    responses(
        (status = 200, description = "The order", body = Order),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such order", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_order(
    Extension(context): Extension<Arc<Context>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Order>, Problem> {
    let Path(id) = id.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let not_found = || Problem::new(StatusCode::NOT_FOUND, "no such order");
    if id.contains('\0') {
        return Err(not_found()); // PostgreSQL has no text with a NUL
    }
    let stored = context.store.order(&id).await?.ok_or_else(not_found)?;
    Ok(Json(stored.into()))
}

/// Orders by id, page by page.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders",
    params(OrdersQuery),
    responses(
        (status = 200, description = "A page of orders", body = OrderPage),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_orders(
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<OrdersQuery>, QueryRejection>,
) -> Result<Json<OrderPage>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let limit = page_limit(query.limit)?;
    if query.cursor.as_deref().is_some_and(|cursor| cursor.contains('\0')) {
        return Err(bad("cursor: is not one that was given out".to_owned()));
    }
    let mut found = context.store.orders(query.status, query.cursor.as_deref(), limit + 1).await?;
    let next_cursor = cut(&mut found, limit, |order| order.id.clone());
    Ok(Json(OrderPage { items: found.into_iter().map(Order::from).collect(), next_cursor }))
}
