//! The books, as totals.

use std::sync::Arc;

use axum::{Extension, Json};

use super::problem::Problem;
use crate::consume::Context;
use crate::store::Balance;

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
pub(super) async fn get_balance(Extension(context): Extension<Arc<Context>>) -> Result<Json<Balance>, Problem> {
    Ok(Json(context.store.balance().await?))
}
