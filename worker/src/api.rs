//! The internal API: the shop registers orders and asks where they stand.
//!
//! One route a function; their description (`GET /v1/openapi.json`) is generated from them. Every request carries a bearer token.

mod problem;
mod replays;
mod review;
mod wire;

use std::sync::{Arc, OnceLock};

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json, Router};
use paybell_shared::clock::Timestamp;
use paybell_shared::config::{ApiToken, Scope};
use paybell_shared::money::{Currency, Money};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::problem::Problem;
use self::wire::{Object, Order, OrderPage, OrdersQuery, RegisterOrder};
use crate::consume::Context;
use crate::order::AccountKey;
use crate::store::{Balance, Registered, Registration, Work};

/// A registration is a few hundred bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Ids are keys of indexes.
const ORDER_ID_BYTES_MAX: usize = 255;
/// Larger than any payment in any currency; sums of a thousand of them still fit.
const AMOUNT_MAX: i64 = 1_000_000_000_000_000;
const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 500;

/// What the API answers from, once the database is there.
pub type Answering = Arc<OnceLock<Arc<Context>>>;

#[derive(Clone)]
struct ApiState {
    context: Answering,
    tokens: Arc<[ApiToken]>,
}

/// The name of the token that a request came with.
#[derive(Clone)]
struct Caller(String);

#[derive(OpenApi)]
#[openapi(
    info(title = "Paybell internal API", description = "Register orders, and ask where they stand."),
    modifiers(&BearerToken),
    security(("bearer" = []))
)]
struct Description;

struct BearerToken;

impl utoipa::Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The API's routes; 503 until `context` is set.
pub fn router(context: Answering, tokens: Vec<ApiToken>) -> Router {
    let state = ApiState { context, tokens: tokens.into() };
    let (router, description) = documented().split_for_parts();
    let description = Arc::new(description);
    router
        .route("/v1/openapi.json", axum::routing::get(move || std::future::ready(Json((*description).clone()))))
        .fallback(|| std::future::ready(Problem::new(StatusCode::NOT_FOUND, "there is no such route")))
        .method_not_allowed_fallback(|| {
            std::future::ready(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the route has other methods"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state, authorize))
}

/// The API's description, without a server.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

fn documented() -> OpenApiRouter {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(register_order, get_order))
        .routes(routes!(list_orders))
        .routes(routes!(review::decide_review))
        .routes(routes!(get_balance))
        .routes(routes!(replays::replay_webhooks))
}

/// Admits a request whose bearer token has the scope that its method needs, and hands it the context.
async fn authorize(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let needed = if request.method().is_safe() { Scope::Read } else { Scope::Operate };
    let offered = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let offered = offered.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // Every token is compared, so that the time tells nothing of which one matched.
    let matched = offered.and_then(|(_, token)| {
        state.tokens.iter().fold(None, |found, known| if known.secret.matches(token.trim()) { Some(known) } else { found })
    });
    let Some(token) = matched else {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "a bearer token of [api] token or tokens is needed");
        return ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response();
    };
    if !token.scopes.contains(&needed) {
        let detail = format!("the token {:?} lacks the scope {}", token.name, scope_name(needed));
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    let Some(context) = state.context.get() else {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database was not reached yet").into_response();
    };
    request.extensions_mut().insert(Arc::clone(context));
    request.extensions_mut().insert(Caller(token.name.clone()));
    if needed == Scope::Operate {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = next.run(request).await;
        tracing::info!(event = "api.change", token = token.name, %method, path, status = response.status().as_u16());
        return response;
    }
    next.run(request).await
}

const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Operate => "operate",
    }
}

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
async fn register_order(
    Extension(context): Extension<Arc<Context>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
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
async fn get_order(
    Extension(context): Extension<Arc<Context>>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
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
async fn list_orders(
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<OrdersQuery>, QueryRejection>,
) -> Result<Json<OrderPage>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(bad(format!("limit: must be 1 to {PAGE_MAX}")));
    }
    if query.cursor.as_deref().is_some_and(|cursor| cursor.contains('\0')) {
        return Err(bad("cursor: is not one that was given out".to_owned()));
    }
    // One more than asked for tells whether there is a next page.
    let mut found = context.store.orders(query.status, query.cursor.as_deref(), limit + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = if more { found.last().map(|order| order.id.clone()) } else { None };
    Ok(Json(OrderPage { items: found.into_iter().map(Order::from).collect(), next_cursor }))
}

/// The books: events by outcome, orders by status.
#[utoipa::path(
    get, path = "/v1/balance", tag = "books",
    responses(
        (status = 200, description = "The totals, read in one snapshot", body = Balance),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn get_balance(Extension(context): Extension<Arc<Context>>) -> Result<Json<Balance>, Problem> {
    Ok(Json(context.store.balance().await?))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_description_names_every_route_and_the_token() {
        let json = serde_json::to_value(openapi()).unwrap();
        let paths: HashSet<&str> = json["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let known = ["/v1/orders", "/v1/orders/{id}", "/v1/orders/{id}/review", "/v1/balance", "/v1/replays"];
        assert_eq!(paths, HashSet::from(known));
        assert_eq!(json["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    }
}
