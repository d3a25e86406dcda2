//! What a person decides about an order under review.

use std::sync::Arc;

use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Caller;
use super::problem::Problem;
use super::wire::{Object, Order};
use crate::consume::Context;
use crate::order::Verdict;
use crate::store::{Review, Reviewed, Work};

/// Room for an explanation; it is kept with the order for ever.
const REASON_BYTES_MAX: usize = 1_000;

/// A decision on what is seen now: it ends when the amounts change that it was made on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecideReview {
    pub decision: Verdict,
    /// Why, for whoever asks later.
    #[schema(min_length = 1, max_length = 1000)]
    pub reason: String,
}

/// Decides about an order under review.
///
/// `accept`: the money in question pays the order. `reject`: it does not. The decision is tied to the amounts that stand at
/// that moment; if they change, the order is under review again.
#[utoipa::path(
    post, path = "/v1/orders/{id}/review", tag = "orders",
    params(("id" = String, Path, description = "The shop's order id, percent-encoded", min_length = 1, max_length = 255)),
    request_body = DecideReview,
    responses(
        (status = 200, description = "Decided", body = Order),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such order", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The order is not under review", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A field has an impossible value", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn decide_review(
    Extension(context): Extension<Arc<Context>>,
    Extension(Caller(operator)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<DecideReview>>, JsonRejection>,
) -> Result<Json<Order>, Problem> {
    let Path(order_id) = id.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let Json(Object(body)) = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let reason = body.reason.trim().to_owned();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.contains('\0') {
        let detail = format!("reason: must be 1 to {REASON_BYTES_MAX} bytes of text: it is kept for whoever asks later");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let no_such_order = || Problem::new(StatusCode::NOT_FOUND, "no such order");
    if order_id.contains('\0') {
        return Err(no_such_order()); // PostgreSQL has no text with a NUL
    }
    let reviews = [Review { order_id, verdict: body.decision, reason, operator }];
    let mut applied = context.store.apply(&Work { reviews: &reviews, ..context.work() }).await?;
    match applied.reviews.pop() {
        Some(Reviewed::Decided(order)) => Ok(Json((*order).into())),
        Some(Reviewed::NotUnderReview) => Err(Problem::new(StatusCode::CONFLICT, "the order is not under review")),
        Some(Reviewed::NoSuchOrder) => Err(no_such_order()),
        // The store answers every review of its work.
        None => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the review got no answer")),
    }
}
