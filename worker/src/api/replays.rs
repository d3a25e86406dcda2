//! Replays: kept webhooks translated again.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Caller;
use super::problem::Problem;
use super::wire::Object;
use crate::consume::Context;
use crate::inbox::Outcome;
use crate::order::{AccountKey, OrderStatus, View};
use crate::replay::{self, PAGE_MAX, Request};
use crate::store::{BodyPlace, EventChange, EventState, OrderChange, Replayed, Selection};

const PAGE_DEFAULT: u32 = 100;
/// A reason is a sentence, or the name of a ticket.
const REASON_BYTES_MAX: usize = 1000;

/// Which webhooks, and what to do with them. All that is given must hold; something must be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayWebhooks {
    /// Whose events the order has now.
    order_id: Option<String>,
    event: Option<EventName>,
    #[schema(example = "stripe")]
    psp: Option<String>,
    /// Needs `psp`.
    account: Option<String>,
    /// Received at or after.
    #[schema(format = DateTime)]
    since: Option<String>,
    /// Received before.
    #[schema(format = DateTime)]
    until: Option<String>,
    /// Quarantined under this fingerprint.
    fingerprint: Option<String>,
    /// Change nothing, say what would change. `true` if absent.
    dry_run: Option<bool>,
    /// Replace also what was translated by the same mapping version. `false` if absent.
    force: Option<bool>,
    /// Why; kept with the orders that change. Needed unless it is a dry run.
    reason: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many webhooks, at most 500; 100 if absent. A page is one transaction.
    #[schema(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventName {
    psp: String,
    account: String,
    event_id: String,
}

/// What changed or would change, and what was left as it is although it differs.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayPage {
    items: Vec<ReplayItem>,
    /// There may be more: ask again with this cursor.
    next_cursor: Option<String>,
    totals: ReplayTotals,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayTotals {
    /// Looked at.
    webhooks: usize,
    /// Of these, those that say what they said.
    unchanged: usize,
    /// Of these, those of which something was left as it is.
    skipped: usize,
    /// Events that say or became something else.
    events: usize,
    /// Orders that look otherwise.
    orders: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ReplayItem {
    Event {
        psp: String,
        account: String,
        event_id: String,
        /// Null: it is new.
        before: Option<EventThen>,
        after: EventThen,
    },
    Order {
        order_id: String,
        /// Null: it did not exist.
        before: Option<OrderThen>,
        after: OrderThen,
    },
    Skipped {
        psp: String,
        account: String,
        webhook_id: String,
        reason: String,
    },
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EventThen {
    outcome: Outcome,
    order_id: Option<String>,
    /// What it says; null where it says nothing of ours, or was not understood.
    #[schema(value_type = Option<Object>)]
    fact: Option<serde_json::Value>,
}

/// An order, in short. Amounts are in minor units of `currency`.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrderThen {
    status: OrderStatus,
    currency: Option<String>,
    authorized: i64,
    captured: i64,
    refunded: i64,
    disputed: i64,
    /// Why a person must look.
    review: Option<String>,
    /// The PSP's ids.
    payments: Vec<String>,
}

/// Translates kept webhooks again.
///
/// From their exact bytes, with the mapping and the accounts of now; in the database alone. Repeating it changes nothing
/// more. Each page is one transaction.
#[utoipa::path(
    post, path = "/v1/replays", tag = "replays",
    request_body = ReplayWebhooks,
    responses(
        (status = 200, description = "What a page of webhooks changed, or would change", body = ReplayPage),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A field has an impossible value", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn replay_webhooks(
    Extension(context): Extension<Arc<Context>>,
    Extension(Caller(operator)): Extension<Caller>,
    body: Result<Json<Object<ReplayWebhooks>>, JsonRejection>,
) -> Result<Json<ReplayPage>, Problem> {
    let Json(Object(body)) = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let page = replay::page(&context, &request(body, operator)?).await?;
    let Replayed { events, orders, skipped, unchanged, needed: _ } = page.replayed;
    let totals =
        ReplayTotals { webhooks: page.webhooks, unchanged, skipped: skipped.len(), events: events.len(), orders: orders.len() };
    let skipped = skipped.into_iter().map(|(key, reason)| {
        let (psp, account) = (key.psp.to_string(), key.account.to_string());
        ReplayItem::Skipped { psp, account, webhook_id: key.event_id, reason }
    });
    let items = events.into_iter().map(event_item).chain(orders.into_iter().map(order_item)).chain(skipped).collect();
    Ok(Json(ReplayPage { items, next_cursor: page.next.map(write_cursor), totals }))
}

fn request(body: ReplayWebhooks, operator: String) -> Result<Request, Problem> {
    let unprocessable = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
    let texts = [&body.order_id, &body.psp, &body.account, &body.fingerprint];
    let name = body.event.iter().flat_map(|event| [&event.psp, &event.account, &event.event_id]);
    if texts.into_iter().flatten().chain(name).any(|text| text.is_empty() || text.contains('\0')) {
        return Err(unprocessable("a selector is empty or has a NUL in it".to_owned()));
    }
    let account = match (&body.psp, body.account) {
        (Some(psp), Some(account)) => Some(AccountKey { psp: psp.as_str().into(), account: account.into() }),
        (None, Some(_)) => return Err(unprocessable("account: needs psp too".to_owned())),
        (_, None) => None,
    };
    let time = |name: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => {
            Timestamp::parse_rfc3339(&text).map(Some).map_err(|_| unprocessable(format!("{name}: {text:?} is not RFC 3339")))
        }
    };
    let event =
        body.event.map(|event| EventKey { psp: event.psp.into(), account: event.account.into(), event_id: event.event_id });
    let selection = Selection {
        order_id: body.order_id,
        event,
        account,
        psp: body.psp,
        since: time("since", body.since)?,
        until: time("until", body.until)?,
        fingerprint: body.fingerprint,
        places: None,
    };
    if selection == Selection::default() {
        return Err(unprocessable("which? one of order_id, event, psp, since, until and fingerprint is needed".to_owned()));
    }
    let limit = body.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(unprocessable(format!("limit: must be 1 to {PAGE_MAX}")));
    }
    let dry_run = body.dry_run.unwrap_or(true);
    let reason = body.reason.unwrap_or_default();
    if reason.trim().is_empty() && !dry_run {
        return Err(unprocessable("reason: is needed unless it is a dry run".to_owned()));
    }
    if reason.len() > REASON_BYTES_MAX || reason.contains('\0') {
        return Err(unprocessable(format!("reason: must be at most {REASON_BYTES_MAX} bytes without a NUL")));
    }
    let after = match body.cursor {
        None => None,
        Some(cursor) => {
            let bad = || Problem::new(StatusCode::BAD_REQUEST, "cursor: is not one that was given out");
            Some(read_cursor(&cursor).ok_or_else(bad)?)
        }
    };
    Ok(Request { selection, after, limit, dry_run, forced: body.force.unwrap_or(false), operator, reason })
}

fn write_cursor(place: BodyPlace) -> String {
    format!("{}-{}", place.received_at.millis(), place.id.simple())
}

fn read_cursor(text: &str) -> Option<BodyPlace> {
    let (millis, id) = text.rsplit_once('-')?;
    Some(BodyPlace { received_at: Timestamp::from_millis(millis.parse().ok()?), id: Uuid::try_parse(id).ok()? })
}

fn event_item(EventChange { key, before, after }: EventChange) -> ReplayItem {
    ReplayItem::Event {
        psp: key.psp.to_string(),
        account: key.account.to_string(),
        event_id: key.event_id,
        before: before.map(event_then),
        after: event_then(after),
    }
}

fn event_then(EventState { outcome, order_id, fact }: EventState) -> EventThen {
    // Facts have no maps with other keys than strings: this never fails.
    EventThen { outcome, order_id, fact: fact.and_then(|fact| serde_json::to_value(fact).ok()) }
}

fn order_item(OrderChange { id, before, after }: OrderChange) -> ReplayItem {
    ReplayItem::Order { order_id: id, before: before.map(order_then), after: order_then(after) }
}

fn order_then(view: View) -> OrderThen {
    OrderThen {
        status: view.status,
        currency: view.currency.map(|currency| currency.to_string()),
        authorized: view.authorized,
        captured: view.captured,
        refunded: view.refunded,
        disputed: view.disputed,
        review: view.review.and_then(|reason| Some(serde_json::to_value(reason).ok()?.as_str()?.to_owned())),
        payments: view.payments.into_iter().map(|payment| payment.payment_id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for millis in [0, 1_790_000_000_123, -1] {
            let place = BodyPlace { received_at: Timestamp::from_millis(millis), id: Uuid::from_u128(7) };
            assert_eq!(read_cursor(&write_cursor(place)), Some(place));
        }
        for text in ["", "-", "1", "1-", "x-00000000000000000000000000000007", "1-0"] {
            assert_eq!(read_cursor(text), None, "{text}");
        }
    }
}
