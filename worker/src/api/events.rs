//! The inbox: one event, and those that wait for their order.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, Source};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::{Patience, cut, page_limit};
use crate::consume::Context;
use crate::inbox::Outcome;
use crate::store::{InboxEntry, StoreError};
use crate::timeline::{self, Line};

/// After everything: the latest time that the database can hold.
const END_OF_TIME: Timestamp = Timestamp::from_millis(253_402_300_799_000);

/// An event of the inbox.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the API's words are `event_id` and `event_type`")]
pub(super) struct Event {
    psp: String,
    account: String,
    event_id: String,
    /// The PSP's name of it.
    event_type: String,
    /// How it came: `webhook` or `reconciliation`.
    #[schema(value_type = String)]
    source: Source,
    /// What became of it: `applied`, `superseded`, `parked`, `ignored` or `quarantined`.
    outcome: &'static str,
    /// Why it was ignored or quarantined.
    reason: Option<String>,
    /// Names the cause of the quarantine.
    fingerprint: Option<String>,
    order_id: Option<String>,
    /// The version at which the order stood after it.
    order_version: Option<i64>,
    /// What it says: codes and amounts, nothing of persons; null where it was not understood.
    #[schema(value_type = Option<Object>)]
    facts: Option<serde_json::Value>,
    /// The version of the adapter that read it.
    mapping_version: u32,
    /// The name of the secret that proved it; null for an answer.
    secret: Option<String>,
    /// By the ingress's clock; for an answer by the worker's.
    #[schema(value_type = String, format = DateTime)]
    received_at: Timestamp,
    /// By the worker's clock.
    #[schema(value_type = Option<String>, format = DateTime)]
    taken_at: Option<Timestamp>,
    /// Since when it waits, or had waited, for its order.
    #[schema(value_type = Option<String>, format = DateTime)]
    parked_at: Option<Timestamp>,
    /// When it got its outcome; null while it is parked.
    #[schema(value_type = Option<String>, format = DateTime)]
    settled_at: Option<Timestamp>,
    /// The names under which it waits for its order.
    waits_under: Vec<WaitsUnder>,
    /// While it is parked: when it has waited for too long.
    #[schema(value_type = Option<String>, format = DateTime)]
    deadline: Option<Timestamp>,
    /// It has waited for too long.
    overdue: bool,
    body: BodyState,
    /// The same in lines for people.
    timeline: Vec<Line>,
}

/// A name that may lead to an order.
#[derive(Debug, Serialize, ToSchema)]
struct WaitsUnder {
    /// `order` is the shop's own id; all others are the PSP's.
    kind: &'static str,
    value: String,
}

/// The exact bytes of the webhook.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BodyState {
    /// There: it can be replayed.
    Kept,
    /// Older than `[retention] bodies_days`.
    Gone,
    /// There never was one: it is an answer.
    None,
}

impl Event {
    fn of(entry: InboxEntry, patience: Patience, now: Timestamp) -> Result<Self, StoreError> {
        let InboxEntry { event, waits_under, body_kept } = entry;
        let timeline = timeline::of_event(&event);
        let is_parked = event.outcome == Outcome::Parked;
        let deadline = is_parked.then(|| event.received_at.plus(patience.parked_max));
        let facts = event.facts.as_ref().map(serde_json::to_value).transpose();
        Ok(Self {
            // What was read as facts is JSON.
            facts: facts.map_err(|error| StoreError::Inconsistent {
                table: "events",
                column: "facts",
                key: event.key.to_string(),
                problem: error.to_string(),
            })?,
            psp: event.key.psp.to_string(),
            account: event.key.account.to_string(),
            event_id: event.key.event_id,
            event_type: event.event_type,
            source: event.source,
            outcome: event.outcome.as_str(),
            reason: event.reason,
            fingerprint: event.fingerprint,
            order_id: event.order_id,
            order_version: event.order_version,
            mapping_version: event.mapping_version,
            secret: event.secret_name,
            received_at: event.received_at,
            taken_at: event.taken_at,
            parked_at: event.parked_at,
            settled_at: (!is_parked).then_some(event.applied_at),
            waits_under: waits_under
                .into_iter()
                .map(|reference| WaitsUnder { kind: reference.kind.as_str(), value: reference.value })
                .collect(),
            deadline,
            overdue: deadline.is_some_and(|deadline| deadline < now),
            body: match event.body_id {
                Some(_) if body_kept => BodyState::Kept,
                Some(_) => BodyState::Gone,
                None => BodyState::None,
            },
            timeline,
        })
    }
}

/// What became of an event.
#[utoipa::path(
    get, path = "/v1/events/{psp}/{account}/{event_id}", tag = "events",
    params(
        ("psp" = String, Path, description = "The PSP's id, as in the webhook's URL"),
        ("account" = String, Path, description = "The account's name in the configuration"),
        ("event_id" = String, Path, description = "The PSP's id of the event, percent-encoded"),
    ),
    responses(
        (status = 200, description = "The event", body = Event),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such event", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_event(
    Extension(context): Extension<Arc<Context>>,
    Extension(patience): Extension<Patience>,
    key: Result<Path<(String, String, String)>, PathRejection>,
) -> Result<Json<Event>, Problem> {
    let Path((psp, account, event_id)) = key.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let key = EventKey { psp: psp.into(), account: account.into(), event_id };
    let found = context.store.event(&key).await?;
    let entry = found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such event"))?;
    Ok(Json(Event::of(entry, patience, context.clock.now())?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ParkedQuery {
    /// Only events that have waited for too long (`[limits] parked_max_s`).
    overdue: Option<bool>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many, at most 500; 50 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ParkedPage {
    /// Oldest first.
    items: Vec<Event>,
    /// There is more: ask again with this cursor.
    next_cursor: Option<String>,
}

/// Events that wait for their order, oldest first.
#[utoipa::path(
    get, path = "/v1/parked", tag = "events",
    params(ParkedQuery),
    responses(
        (status = 200, description = "A page of events", body = ParkedPage),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_parked(
    Extension(context): Extension<Arc<Context>>,
    Extension(patience): Extension<Patience>,
    query: Result<Query<ParkedQuery>, QueryRejection>,
) -> Result<Json<ParkedPage>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let limit = page_limit(query.limit)?;
    let unknown = || bad("cursor: is not one that was given out".to_owned());
    let after = query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(unknown)).transpose()?;
    let now = context.clock.now();
    let before = if query.overdue == Some(true) { now.minus(patience.parked_max) } else { END_OF_TIME };
    let mut found = context.store.parked(before, after.as_ref(), limit + 1).await?;
    let next_cursor = cut(&mut found, limit, |entry| format!("{}.{}", entry.event.received_at.millis(), entry.event.key));
    let items = found.into_iter().map(|entry| Event::of(entry, patience, now)).collect::<Result<_, _>>()?;
    Ok(Json(ParkedPage { items, next_cursor }))
}

/// `<milliseconds>.<psp>/<account>/<event id>`.
fn read_cursor(cursor: &str) -> Option<(Timestamp, EventKey)> {
    let (at, key) = cursor.split_once('.').filter(|_| !cursor.contains('\0'))?;
    let (psp, rest) = key.split_once('/')?;
    let (account, event_id) = rest.split_once('/')?;
    let key = EventKey { psp: psp.into(), account: account.into(), event_id: event_id.to_owned() };
    Some((Timestamp::from_millis(at.parse().ok()?), key))
}
