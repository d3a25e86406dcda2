//! What became of an order, page by page.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::{cut, page_limit};
use crate::consume::Context;
use crate::store::{MomentKind, Place};
use crate::timeline::Line;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TimelineQuery {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many, at most 500; 50 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TimelinePage {
    /// By time.
    items: Vec<Line>,
    /// There is more: ask again with this cursor.
    next_cursor: Option<String>,
}

/// What became of an order, by time: events, changes, notifications, looks, and what people did.
#[utoipa::path(
    get, path = "/v1/orders/{id}/timeline", tag = "orders",
    params(
        ("id" = String, Path, description = "The shop's order id, percent-encoded", min_length = 1, max_length = 255),
        TimelineQuery,
    ),
    responses(
        (status = 200, description = "A page of lines", body = TimelinePage),
        (status = 400, description = "The request cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such order", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_timeline(
    Extension(context): Extension<Arc<Context>>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<TimelineQuery>, QueryRejection>,
) -> Result<Json<TimelinePage>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Path(id) = id.map_err(|rejection| bad(rejection.body_text()))?;
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let limit = page_limit(query.limit)?;
    let unknown = || bad("cursor: is not one that was given out".to_owned());
    let after = query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(unknown)).transpose()?;
    let found = context.store.timeline(&id, after.as_ref(), limit + 1).await?;
    let mut found = found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such order"))?;
    let next_cursor = cut(&mut found, limit, |moment| cursor_of(&moment.place));
    Ok(Json(TimelinePage { items: found.into_iter().map(Line::of).collect(), next_cursor }))
}

fn cursor_of(place: &Place) -> String {
    format!("{}.{}.{}.{}", place.at.millis(), place.version, place.kind.number(), place.key)
}

fn read_cursor(cursor: &str) -> Option<Place> {
    let mut parts = cursor.splitn(4, '.');
    let place = Place {
        at: Timestamp::from_millis(parts.next()?.parse().ok()?),
        version: parts.next()?.parse().ok()?,
        kind: MomentKind::of_number(parts.next()?.parse().ok()?)?,
        key: parts.next()?.to_owned(),
    };
    (!place.key.contains('\0')).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for (at, key) in [(1_790_000_000_123, "stripe/default/evt.1.2"), (-1, ""), (i64::MAX, "..")] {
            for kind in MomentKind::ALL {
                let place = Place { at: Timestamp::from_millis(at), version: 7, kind, key: key.to_owned() };
                assert_eq!(read_cursor(&cursor_of(&place)), Some(place));
            }
        }
        for wrong in ["", "1", "1.2.3", "1.2.9.x", "1.2.-1.x", "x.2.3.y", "1.2.3.\0"] {
            assert_eq!(read_cursor(wrong), None, "{wrong:?}");
        }
    }
}
