//! Dead letters: listed, tried again, discarded.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::Problem;
use super::wire::Object;
use super::{Caller, cut, page_limit};
use crate::consume::Context;
use crate::dead_letters::{self, Tried};
use crate::store::{Decided, LetterDecision, LetterHead};

/// Room for an explanation; it is kept with the letter for ever.
const REASON_BYTES_MAX: usize = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LettersQuery {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many, at most 500; 50 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterPage {
    /// Those that wait for somebody, in the order of their deaths.
    items: Vec<Letter>,
    /// There is more: ask again with this cursor.
    next_cursor: Option<String>,
}

/// A message that nobody could apply; without its body.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Letter {
    #[schema(value_type = String)]
    id: Uuid,
    /// Where it came from, and its id there.
    #[schema(example = "/psp/stripe/default evt_1N2b3c")]
    message_id: String,
    attempts: u32,
    /// Why it died; the last time, if more than once.
    reason: String,
    #[schema(value_type = String, format = DateTime)]
    died_at: Timestamp,
    body_bytes: u64,
    /// Null: it waits.
    decision: Option<Decision>,
}

/// What somebody decided.
#[derive(Debug, Serialize, ToSchema)]
struct Decision {
    decided: Decided,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    operator: String,
    reason: String,
}

impl From<LetterHead> for Letter {
    fn from(head: LetterHead) -> Self {
        let LetterHead { id, message_id, attempts, reason, died_at, body_bytes, decision } = head;
        let decision =
            decision.map(|LetterDecision { decided, at, operator, note }| Decision { decided, at, operator, reason: note });
        Self { id, message_id, attempts, reason, died_at, body_bytes, decision }
    }
}

/// What became of a letter that was tried again.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Replay {
    /// It is applied, or was before. Else it waits, as it did.
    applied: bool,
    letter: Letter,
}

/// Why it is not to be applied.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Discard {
    /// For whoever asks later.
    #[schema(min_length = 1, max_length = 1000)]
    reason: String,
}

/// Messages that nobody could apply, and that wait for somebody.
#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "dead letters",
    params(LettersQuery),
    responses(
        (status = 200, description = "A page of dead letters", body = LetterPage),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_dead_letters(
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<LettersQuery>, QueryRejection>,
) -> Result<Json<LetterPage>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let limit = page_limit(query.limit)?;
    let unknown = || bad("cursor: is not one that was given out".to_owned());
    let after = query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(unknown)).transpose()?;
    let mut found = context.store.dead_letters(after, limit + 1).await?;
    let next_cursor = cut(&mut found, limit, |head| format!("{}.{}", head.died_at.millis(), head.id));
    Ok(Json(LetterPage { items: found.into_iter().map(Letter::from).collect(), next_cursor }))
}

fn read_cursor(cursor: &str) -> Option<(Timestamp, Uuid)> {
    let (at, id) = cursor.split_once('.')?;
    Some((Timestamp::from_millis(at.parse().ok()?), id.parse().ok()?))
}

fn no_such_letter() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such dead letter")
}

fn read_id(id: Result<Path<String>, PathRejection>) -> Result<Uuid, Problem> {
    let Path(id) = id.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    id.parse().map_err(|_| no_such_letter())
}

async fn find(context: &Context, id: Uuid) -> Result<Letter, Problem> {
    context.store.letter_head(id).await?.map(Letter::from).ok_or_else(no_such_letter)
}

/// A dead letter, decided on or not.
#[utoipa::path(
    get, path = "/v1/dead-letters/{id}", tag = "dead letters",
    params(("id" = String, Path, description = "The letter's id")),
    responses(
        (status = 200, description = "The letter", body = Letter),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such letter", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_dead_letter(
    Extension(context): Extension<Arc<Context>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Letter>, Problem> {
    Ok(Json(find(&context, read_id(id)?).await?))
}

/// Tries a dead letter again: after what it died of was mended.
///
/// It is applied as if it came from the queue now, so that what was applied before changes nothing. If it dies again, it waits as
/// before, with its new reason.
#[utoipa::path(
    post, path = "/v1/dead-letters/{id}/replay", tag = "dead letters",
    params(("id" = String, Path, description = "The letter's id")),
    responses(
        (status = 200, description = "What became of it", body = Replay),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such letter", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Somebody has decided on it", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn replay_dead_letter(
    Extension(context): Extension<Arc<Context>>,
    Extension(Caller(operator)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Replay>, Problem> {
    let id = read_id(id)?;
    let applied = match dead_letters::try_again(&context, id, operator).await? {
        Tried::Applied => true,
        Tried::Died { .. } => false,
        Tried::Decided => return Err(decided()),
        Tried::Unknown => return Err(no_such_letter()),
    };
    Ok(Json(Replay { applied, letter: find(&context, id).await? }))
}

fn decided() -> Problem {
    Problem::new(StatusCode::CONFLICT, "somebody has decided on this letter: GET it to see")
}

/// Discards a dead letter: it is not to be applied. It stays to be looked up, and waits no more.
#[utoipa::path(
    post, path = "/v1/dead-letters/{id}/discard", tag = "dead letters",
    params(("id" = String, Path, description = "The letter's id")),
    request_body = Discard,
    responses(
        (status = 200, description = "Discarded", body = Letter),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such letter", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Somebody has decided on it", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A field has an impossible value", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn discard_dead_letter(
    Extension(context): Extension<Arc<Context>>,
    Extension(Caller(operator)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<Discard>>, JsonRejection>,
) -> Result<Json<Letter>, Problem> {
    let id = read_id(id)?;
    let Json(Object(Discard { reason })) = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let note = reason.trim().to_owned();
    if note.is_empty() || note.len() > REASON_BYTES_MAX || note.contains('\0') {
        let detail = format!("reason: must be 1 to {REASON_BYTES_MAX} bytes of text: it is kept for whoever asks later");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let decision = LetterDecision { decided: Decided::Discarded, at: context.clock.now(), operator, note };
    let is_kept = context.store.decide_letter(id, &decision).await?;
    let letter = find(&context, id).await?;
    if is_kept { Ok(Json(letter)) } else { Err(decided()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_time_and_an_id() {
        let id = Uuid::from_u128(7);
        assert_eq!(read_cursor(&format!("-1.{id}")), Some((Timestamp::from_millis(-1), id)));
        for wrong in ["", "1", "1.", "x.00000000-0000-0000-0000-000000000007", "1.2"] {
            assert_eq!(read_cursor(wrong), None, "{wrong:?}");
        }
    }
}
