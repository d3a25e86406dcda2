//! Sweeps on demand: a time of a PSP's list read again.

use std::sync::{Arc, OnceLock};

use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;
use super::wire::Object;
use crate::asking::Asker;
use crate::consume::Context;
use crate::order::AccountKey;
use crate::sweep::fill::{self, FillError, Filled, Place};
use crate::transport::PspTransport;

const ACCOUNT_DEFAULT: &str = "default";

/// Asks PSPs for those who call; made with the first call.
pub(super) struct Asking {
    transport: Arc<dyn PspTransport>,
    made: OnceLock<Asker>,
}

impl Asking {
    pub(super) fn new(transport: Arc<dyn PspTransport>) -> Self {
        Self { transport, made: OnceLock::new() }
    }

    fn asker(&self, context: &Arc<Context>) -> &Asker {
        self.made.get_or_init(|| Asker::new(Arc::clone(context), Arc::clone(&self.transport)))
    }
}

/// Whose list, and of which time.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepList {
    #[schema(example = "stripe")]
    psp: String,
    /// `default` if absent.
    account: Option<String>,
    /// What happened, or was made, then or later.
    #[schema(format = DateTime)]
    since: String,
    /// Up to then; up to now if absent.
    #[schema(format = DateTime)]
    until: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What a page of the list told.
#[derive(Debug, Serialize, ToSchema)]
pub struct SweepPage {
    totals: SweepTotals,
    /// The part of the time that was read.
    window: SweepWindow,
    /// There is more: ask again with this cursor.
    next_cursor: Option<String>,
    /// Nothing was read, since the PSP may not be asked yet: ask again after so many seconds.
    retry_after_s: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SweepTotals {
    /// New, known, or quarantined.
    events: usize,
    /// That nobody had told before, or that changed something.
    new: usize,
    known: usize,
    /// Payments that are asked about now.
    hints: usize,
    /// Not understood, or contradicting what is known.
    quarantined: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SweepWindow {
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
}

/// Reads a page of a PSP's list again.
///
/// What it tells is applied as webhooks are. The sweep that runs all the time is not disturbed, and the PSP is asked no more
/// than is good manners. Repeating it changes nothing more.
#[utoipa::path(
    post, path = "/v1/sweeps", tag = "sweeps",
    request_body = SweepList,
    responses(
        (status = 200, description = "What a page told", body = SweepPage),
        (status = 400, description = "The request or its cursor cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such account", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The account's list cannot be read, or does not show this time", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "The PSP does not answer, or not so that it can be read", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn sweep_list(
    Extension(context): Extension<Arc<Context>>,
    Extension(asking): Extension<Arc<Asking>>,
    body: Result<Json<Object<SweepList>>, JsonRejection>,
) -> Result<Json<SweepPage>, Problem> {
    let Json(Object(body)) = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let (key, place) = place(body, &context)?;
    let Filled { counts, window, next, not_before } = fill::read(asking.asker(&context), &key, place).await?;
    let now = context.clock.now();
    Ok(Json(SweepPage {
        totals: SweepTotals {
            events: counts.new + counts.known + counts.quarantined,
            new: counts.new,
            known: counts.known,
            hints: counts.hints,
            quarantined: counts.quarantined,
        },
        window: SweepWindow { since: window.since, until: window.until },
        next_cursor: next.and_then(|place| serde_json::to_string(&place).ok()),
        // Not too early by what a second hides.
        retry_after_s: not_before
            .map(|not_before| not_before.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
    }))
}

fn place(body: SweepList, context: &Context) -> Result<(AccountKey, Place), Problem> {
    let SweepList { psp, account, since, until, cursor } = body;
    let time = |name: &str, text: &str| {
        let bad = |_| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{name}: {text:?} is not RFC 3339"));
        Timestamp::parse_rfc3339(text).map_err(bad)
    };
    let since = time("since", &since)?;
    let until = until.map(|until| time("until", &until)).transpose()?;
    let key = AccountKey { psp: psp.into(), account: account.as_deref().unwrap_or(ACCOUNT_DEFAULT).into() };
    let Some(account) = context.accounts.get(&key) else {
        let mut known: Vec<String> = context.accounts.keys().map(|key| format!("{}/{}", key.psp, key.account)).collect();
        known.sort();
        let detail = format!("there is no account {}/{} here; there are {}", key.psp, key.account, known.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    // Also with a cursor: what it says must still hold.
    let first = Place::first(account, since, until, context.clock.now());
    let Some(cursor) = cursor else { return Ok((key, first?)) };
    if let Err(error) = first
        // It may have been within reach when it began.
        && !matches!(error, FillError::BeyondReach { .. })
    {
        return Err(error.into());
    }
    let bad = || Problem::new(StatusCode::BAD_REQUEST, "cursor: is not one that was given out for this request");
    let place: Place = serde_json::from_str(&cursor).map_err(|_| bad())?;
    if place.is_of(since, until) { Ok((key, place)) } else { Err(bad()) }
}

impl From<FillError> for Problem {
    fn from(error: FillError) -> Self {
        let status = match error {
            FillError::Store(error) => return error.into(),
            FillError::NotRead { .. } => StatusCode::BAD_GATEWAY,
            FillError::NoAccount(..) => StatusCode::NOT_FOUND,
            FillError::NoList(_) | FillError::CannotAsk(..) | FillError::BeyondReach { .. } | FillError::NoTime => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
        };
        Self::new(status, error.to_string())
    }
}
