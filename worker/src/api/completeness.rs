//! How complete webhooks are.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use crate::completeness::{self, Completeness, METRICS_SPAN};
use crate::consume::Context;
use crate::store::LATENESS_S;

/// A quarter of a year: it is counted, payment by payment.
const SPAN_MAX: Duration = Duration::from_hours(24 * 92);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CompletenessQuery {
    /// Payments that were decided since then, at most 92 days ago; a week ago if absent.
    #[param(format = DateTime)]
    since: Option<String>,
}

/// Of the payments that were decided within a time: who told it first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CompletenessReport {
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Now.
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
    /// Every account that is configured or has payments.
    accounts: Vec<AccountCompleteness>,
}

/// One account's payments. `by_webhook`, `late`, `missed` and `pending` are all of them.
#[derive(Debug, Serialize, ToSchema)]
struct AccountCompleteness {
    psp: String,
    account: String,
    /// That were decided: money was captured, or they failed, were canceled or expired.
    payments: u64,
    /// Told first by their webhook.
    by_webhook: u64,
    /// Told first by asking the PSP; their webhook came after all, while the PSP would still send it.
    late: u64,
    /// Told by asking alone.
    missed: u64,
    /// Told by asking; their webhook may still come.
    pending: u64,
    /// Missed, of those that are not pending; null if there are none.
    missed_ratio: Option<f64>,
    /// Late, of the same.
    late_ratio: Option<f64>,
    /// How long after asking those webhooks came that came then.
    lateness: Vec<Lateness>,
    /// For how long the PSP sends a webhook again.
    retry_window_s: u64,
    /// The last webhook that came, whatever it was about; null: none ever did.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_webhook_at: Option<Timestamp>,
    /// How long that is ago.
    silence_s: Option<u64>,
    expected: ExpectedWebhooks,
}

#[derive(Debug, Serialize, ToSchema)]
struct Lateness {
    /// In seconds; null: however late.
    within_s: Option<u32>,
    payments: u64,
}

/// Payments that became due for a webhook since the last one came, and had none; counted up to 1000.
#[derive(Debug, Serialize, ToSchema)]
struct ExpectedWebhooks {
    /// The PSP, when it was asked, said what they came to.
    decided: u32,
    /// Their orders were registered, and nobody can be asked about them: an order that nobody pays is one of these too.
    registered: u32,
}

impl AccountCompleteness {
    fn of(one: &Completeness, now: Timestamp) -> Self {
        let Completeness { account, by_webhook, asked_first, retry_window, last_webhook_at, expected } = one;
        let lateness = asked_first.came_by.iter().enumerate();
        Self {
            psp: account.psp.to_string(),
            account: account.account.to_string(),
            payments: one.payments(),
            by_webhook: *by_webhook,
            late: asked_first.late,
            missed: asked_first.missed,
            pending: asked_first.pending,
            missed_ratio: one.ratio(asked_first.missed),
            late_ratio: one.ratio(asked_first.late),
            lateness: lateness
                .map(|(place, payments)| Lateness { within_s: LATENESS_S.get(place).copied(), payments: *payments })
                .collect(),
            retry_window_s: retry_window.as_secs(),
            last_webhook_at: *last_webhook_at,
            silence_s: last_webhook_at.map(|last| now.since(last).as_secs()),
            expected: ExpectedWebhooks { decided: expected.decided, registered: expected.registered },
        }
    }
}

/// How complete webhooks are: of every decided payment, whether its webhook told it first, or asking did.
#[utoipa::path(
    get, path = "/v1/completeness", tag = "books",
    params(CompletenessQuery),
    responses(
        (status = 200, description = "By account", body = CompletenessReport),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_completeness(
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<CompletenessQuery>, QueryRejection>,
) -> Result<Json<CompletenessReport>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let until = context.clock.now();
    let since = match &query.since {
        None => until.minus(METRICS_SPAN),
        Some(text) => Timestamp::parse_rfc3339(text).map_err(|_| bad(format!("since: {text:?} is not RFC 3339")))?,
    };
    if since > until || until.since(since) > SPAN_MAX {
        return Err(bad(format!("since: at most {} days ago, and not to come", SPAN_MAX.as_secs() / 86_400)));
    }
    // What is decided now is part of it.
    let all = completeness::report(&context, since, until.plus(Duration::from_millis(1))).await?;
    let accounts = all.iter().map(|one| AccountCompleteness::of(one, until)).collect();
    Ok(Json(CompletenessReport { since, until, accounts }))
}
