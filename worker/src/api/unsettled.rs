//! The operator's list.

use std::sync::Arc;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::wire::Expected;
use super::{cut, page_limit};
use crate::consume::Context;
use crate::order::{AccountKey, OrderStatus};
use crate::store::{Reason, Unsettled, UnsettledPlace};
use crate::unsettled;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UnsettledQuery {
    /// Only orders that are not settled for this reason.
    reason: Option<Reason>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many, at most 500; 50 if absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UnsettledPage {
    /// By reason, oldest first. An order is here once for each payment and reason that holds it up.
    items: Vec<UnsettledOrder>,
    /// There is more: ask again with this cursor.
    next_cursor: Option<String>,
}

/// An open order that will not be settled by itself.
#[derive(Debug, Serialize, ToSchema)]
struct UnsettledOrder {
    order_id: String,
    status: OrderStatus,
    expected: Option<Expected>,
    reason: Reason,
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    what_to_do: &'static str,
    psp: String,
    account: String,
    /// Null: no payment of it is known that could be asked about.
    payment_id: Option<String>,
}

impl UnsettledOrder {
    fn of(reason: Reason, Unsettled { place, order }: Unsettled) -> Self {
        let UnsettledPlace { since, id, account } = place;
        Self {
            order_id: order.id,
            status: order.view.status,
            expected: order.view.expected.map(|money| Expected { amount: money.minor, currency: money.currency.to_string() }),
            reason,
            since,
            what_to_do: unsettled::advice(reason),
            psp: account.psp.to_string(),
            account: account.account.to_string(),
            payment_id: (reason != Reason::CannotBeAsked).then_some(id),
        }
    }
}

/// Open orders that will not be settled by themselves, each with its reason and what to do.
#[utoipa::path(
    get, path = "/v1/unsettled", tag = "orders",
    params(UnsettledQuery),
    responses(
        (status = 200, description = "A page of orders", body = UnsettledPage),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_unsettled(
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<UnsettledQuery>, QueryRejection>,
) -> Result<Json<UnsettledPage>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let limit = page_limit(query.limit)?;
    let unknown = || bad("cursor: is not one that was given out".to_owned());
    let after = query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(unknown)).transpose()?;
    let mut found = unsettled::page(&context, query.reason, after.as_ref(), limit + 1).await?;
    let next_cursor = cut(&mut found, limit, |(reason, unsettled)| cursor_of(*reason, &unsettled.place));
    let items = found.into_iter().map(|(reason, unsettled)| UnsettledOrder::of(reason, unsettled)).collect();
    Ok(Json(UnsettledPage { items, next_cursor }))
}

/// `<reason>.<milliseconds>.<psp>/<account>/<payment or order id>`.
fn cursor_of(reason: Reason, place: &UnsettledPlace) -> String {
    let UnsettledPlace { since, id, account: AccountKey { psp, account } } = place;
    format!("{}.{}.{psp}/{account}/{id}", reason.as_str(), since.millis())
}

fn read_cursor(cursor: &str) -> Option<(Reason, UnsettledPlace)> {
    let (reason, rest) = cursor.split_once('.').filter(|_| !cursor.contains('\0'))?;
    let (since, key) = rest.split_once('.')?;
    let (psp, rest) = key.split_once('/')?;
    let (account, id) = rest.split_once('/')?;
    let account = AccountKey { psp: psp.into(), account: account.into() };
    let place = UnsettledPlace { since: Timestamp::from_millis(since.parse().ok()?), id: id.to_owned(), account };
    Some((Reason::parse(reason)?, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let account = AccountKey { psp: "stripe".into(), account: "a.b".into() };
        for reason in Reason::ALL {
            for (at, id) in [(1_790_000_000_123, "pi/1.2"), (-1, ""), (i64::MAX, "..")] {
                let place = UnsettledPlace { since: Timestamp::from_millis(at), id: id.to_owned(), account: account.clone() };
                assert_eq!(read_cursor(&cursor_of(reason, &place)), Some((reason, place)));
            }
        }
        for wrong in [
            "",
            "no_money",
            "no_money.1",
            "no_money.1.stripe/default",
            "nothing.1.a/b/c",
            "no_money.x.a/b/c",
            "no_money.1.a/b/\0",
        ] {
            assert_eq!(read_cursor(wrong), None, "{wrong:?}");
        }
    }
}
